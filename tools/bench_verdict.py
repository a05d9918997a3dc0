"""How often `detframe diagnose` names the true cause of a mistake, on mistakes that are made with a known one.

    python tools/bench_verdict.py BCCD_ROOT --init-from BEST_CKPT
    python tools/bench_verdict.py DEEPPCB_ROOT --train train.json --test test.json --window 256 --size 256 256 \
        --train-images 150 --test-images 200 --init-from BEST_CKPT

From a real data set a training and a test split are made, every object with one history at most:

    model limitation  in training and in test a share of the objects is faded into what surrounds them, so far that
                      hardly anything is left: the detector has seen many, rightly labelled, and misses them still
    data gap          in test alone, a share of the objects looks as none in training does: chequered, behind
                      bars or noisy, by the seed
    annotation issue  in test alone, the pixels stay and the label is deleted, moved or given another class

A detector, say of configs/bccd.yaml or configs/deeppcb.yaml, is trained on for a few epochs with the faded objects, and
tested on the original test split and on the made one. What counts is a mistake on the made one that is about an object
with a history and that the detector did not make on the original: there it found that object. A wrong detection near an
object with a faulty label counts where it is right about the object. The verdict is right where it names the history;
"cannot tell" is wrong. Of three causes chance names a third.

Nothing of the verdict is fitted here: its constants are those of analysis/verdicts.py. What was looked at when they
were chosen is the development half of the images (--half development); figures are of the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from detframe.analysis.diagnosis import Diagnosis, diagnose_rows, parse_aim
from detframe.analysis.evaluation import read_run
from detframe.analysis.mistakes import Mistake, mistakes
from detframe.analysis.verdicts import Judgement, Verdict, judge, read_training, vectors_of_rows
from detframe.data.annotations import AnnotationIndex
from detframe.data.images import read_image
from detframe.data.sources import read_split

Pixels = NDArray[np.float64]  # [h, w, 3], 0..255
Look = Callable[[Pixels, Pixels, np.random.Generator], Pixels]

FADED, STRANGE, LABEL = 0.25, 0.2, 0.2  # shares of objects: faded in both splits, strange and wrongly labelled in test
LEFT = 0.06  # contrast of a faded object, of its own
CAUSES = {"faded": Verdict.LIMITATION, "strange": Verdict.GAP, "label": Verdict.ANNOTATION}


def fade(pixels: Pixels, around: Pixels, rng: np.random.Generator) -> Pixels:
    """Little more than the colour of the surroundings."""
    return around + LEFT * (pixels - around) + rng.normal(0, 3, pixels.shape)


def chequer(pixels: Pixels, around: Pixels, rng: np.random.Generator) -> Pixels:
    """Negative in every other square of three pixels.

    A negative of the whole would be a faulty label: a spur's is a mousebite, that of copper a pin-hole.
    """
    squares = (np.indices(pixels.shape[:2]) // 3).sum(axis=0) % 2
    return np.asarray(np.where(squares[..., None] == 0, 255 - pixels, pixels))


def bar(pixels: Pixels, around: Pixels, rng: np.random.Generator) -> Pixels:
    """Behind a grating of dark bars, two pixels of four."""
    return np.asarray(np.where((np.arange(len(pixels)) // 2 % 2)[:, None, None] == 0, 20.0, pixels))


def noise(pixels: Pixels, around: Pixels, rng: np.random.Generator) -> Pixels:
    """As of a camera in the dark."""
    return pixels + rng.normal(0, 90, (*pixels.shape[:2], 1))


LOOKS: tuple[Look, ...] = (chequer, bar, noise)


class Scene(NamedTuple):
    """An image with its objects."""

    pixels: Pixels
    objects: dict[int, tuple[list[float], int]]  # by annotation id: box xyxy in pixels, label


class History(NamedTuple):
    """What happened to an object."""

    name: str  # "faded", "strange" or "label"
    image: int  # place of its scene
    box: list[float]  # the true one
    label: int  # the true one


def read_scenes(index: AnnotationIndex, window: int, rng: np.random.Generator) -> list[Scene]:
    """The images of an index, or of each a window of that side about one of its objects; 0 takes the whole."""
    scenes = []
    number = 0
    for position in range(len(index)):
        pixels = read_image(index.path(position)).permute(1, 2, 0).numpy().astype(np.float64)
        boxes, labels = index.boxes[index.rows(position)], index.labels[index.rows(position)]
        if window and len(boxes):
            centre = boxes[rng.integers(len(boxes))].reshape(2, 2).mean(axis=0)
            corner = np.round(np.clip(centre - window / 2, 0, np.array(pixels.shape[1::-1]) - window)).astype(int)
            pixels = pixels[corner[1] : corner[1] + window, corner[0] : corner[0] + window].copy()  # frees the rest
            boxes = boxes - np.tile(corner, 2)
        inside = np.clip(boxes, 0, np.tile(pixels.shape[1::-1], 2))
        sides, whole = inside[:, 2:] - inside[:, :2], boxes[:, 2:] - boxes[:, :2]
        kept = (sides > 4).all(axis=1) & (sides.prod(axis=1) > 0.3 * whole.prod(axis=1))
        rows = list(zip(inside[kept].tolist(), labels[kept].tolist(), strict=True))
        scenes.append(Scene(pixels, dict(enumerate(rows, number + 1))))
        number += len(rows)
    return scenes


def change(image: Pixels, box: list[float], look: Look, rng: np.random.Generator) -> None:
    """Give the object in a box another look, in place; an ellipse with soft edges, so that no corner gives it away."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (round(v) for v in box)
    part = image[max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)]
    ring = image[max(y1 - 4, 0) : min(y2 + 4, height), max(x1 - 4, 0) : min(x2 + 4, width)]
    edge = np.concatenate([ring[:3].reshape(-1, 3), ring[-3:].reshape(-1, 3)])
    rows, columns = (np.linspace(-1, 1, n) for n in part.shape[:2])
    mask = np.clip((1.25 - np.hypot(rows[:, None], columns[None])) / 0.25, 0, 1)[..., None]
    part[...] = mask * look(part.copy(), np.median(edge, axis=0), rng) + (1 - mask) * part


def mislabel(box: list[float], label: int, classes: int, rng: np.random.Generator) -> tuple[list[float], int] | None:
    """A box moved by a quarter to half of its sides, or of another class, or None: the label deleted."""
    fault = rng.integers(3)
    if fault == 0:
        return None
    if fault == 1:
        return box, (label + 1 + int(rng.integers(classes - 1))) % classes
    extent = np.array([box[2] - box[0], box[3] - box[1]])
    return (np.array(box) + np.tile(extent * rng.uniform(0.25, 0.5, 2) * rng.choice([-1, 1], 2), 2)).tolist(), label


def with_histories(
    scenes: list[Scene], shares: dict[str, float], look: Look, classes: int, rng: np.random.Generator
) -> tuple[list[Scene], dict[int, History]]:
    """Scenes in which some objects have a history, and which.

    Args:
        scenes: As they are.
        shares: Of the objects, by history.
        look: Of the strange ones.
        classes: How many there are.
        rng: Decides about everything.
    """
    made, histories = [], {}
    for image, scene in enumerate(scenes):
        pixels, objects = scene.pixels.copy(), dict(scene.objects)
        for number, (box, label) in scene.objects.items():
            name = str(rng.choice([*shares, ""], p=[*shares.values(), 1 - sum(shares.values())]))
            if not name:
                continue
            histories[number] = History(name, image, box, label)
            if name != "label":
                change(pixels, box, fade if name == "faded" else look, rng)
                continue
            faulty = mislabel(box, label, classes, rng)
            if faulty is None:
                del objects[number]
            else:
                height, width = pixels.shape[:2]
                objects[number] = (np.clip(faulty[0], 0, [width, height] * 2).tolist(), faulty[1])
        made.append(Scene(pixels, objects))
    return made, histories


def write_split(scenes: list[Scene], class_names: list[str], folder: Path, name: str) -> None:
    """Write ``NAME.json`` and ``images/NAME/``; image ids are places + 1."""
    (folder / "images" / name).mkdir(parents=True)
    images, annotations = [], []
    for place, (pixels, objects) in enumerate(scenes):
        file_name = f"images/{name}/{place:05d}.png"
        Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).save(folder / file_name, compress_level=1)
        height, width = pixels.shape[:2]
        images.append({"id": place + 1, "file_name": file_name, "width": width, "height": height})
        for number, ((x1, y1, x2, y2), label) in objects.items():
            row = {"id": number, "image_id": place + 1, "category_id": label + 1, "iscrowd": 0}
            annotations.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    categories = [{"id": i + 1, "name": text} for i, text in enumerate(class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))


def configuration(folder: Path, size: tuple[int, int], init_from: Path | None, epochs: int) -> dict[str, Any]:
    """A short training."""
    flips = [{"class_path": f"kornia.augmentation.Random{way}Flip"} for way in ("Horizontal", "Vertical")]
    backbone = {"name": "efficientnet_lite0", "mean": [0.5] * 3, "std": [0.5] * 3}
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.95}}
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder), "name": "runs"},
    }
    return {
        "data": {
            "root": str(folder),
            "train": "train.json",
            "test": "test.json",
            "val_fraction": 0.05,
            "image_size": list(size),
            "batch_size": 4,
            "num_workers": 0,
            "augmentation": {
                "class_path": "detframe.augment.pipeline.AugmentationPipeline",
                "init_args": {"operators": flips},
            },
        },
        "model": {
            "backbone": {"class_path": "detframe.models.backbones.TimmBackbone", "init_args": backbone},
            "backbone_lr_factor": 0.5,
            "init_from": init_from and str(init_from.resolve()),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0007, "weight_decay": 0.05}},
        },
        "trainer": {
            "max_epochs": epochs,
            "gradient_clip_val": 10.0,
            "check_val_every_n_epoch": epochs,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "logger": logger,
            "callbacks": [average],
        },
        "test_after_fit": False,
    }


def detframe(*arguments: str) -> None:
    """Run a verb in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "detframe", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def found_on_original(run: Path, thresholds: NDArray[np.float64]) -> set[int]:
    """Ids of the objects that a detection from the operating threshold on found in the original split."""
    table = pq.read_table(run / "test_predictions.parquet").to_pylist()
    return {
        row["annotation_id"]
        for row in table
        if row["outcome"] == "true_positive" and row["score"] >= thresholds[row["label"]]
    }


class Outcome(NamedTuple):
    """A mistake that counts."""

    image: int  # place
    history: str
    kind: str  # of mistake
    judgement: Judgement


def outcomes(run: Path, original: Path, histories: dict[int, History]) -> list[Outcome]:
    """Mistakes about objects with a history that were found in the original split, with what was said of them."""
    evaluation = read_run(run)
    diagnosis = diagnose_rows(evaluation, parse_aim("f1"), [], {}, 10, 0)
    every = mistakes(diagnosis)
    training = read_training(run / "train_embeddings.parquet", diagnosis.evidence.thresholds)
    judged = judge(diagnosis, every, vectors_of_rows(evaluation, run / "test_embeddings.parquet"), training)
    found = found_on_original(original, diagnosis.evidence.thresholds)
    annotation_ids = evaluation.table["annotation_id"].to_pylist()
    counted = []
    for mistake, judgement in zip(every, judged, strict=True):
        place = int(evaluation.image_ids[mistake.image]) - 1
        number = _mislabelled(diagnosis, mistake, place, histories)
        if number is None and mistake.truth >= 0:
            number = annotation_ids[int(diagnosis.rows.truth_rows[mistake.truth])]
            if mistake.detection >= 0 and number in histories and histories[number].name == "label":
                number = None  # touches the faulty box, but is no detection of the object
        if number in histories and number in found and judgement is not None:
            counted.append(Outcome(place, histories[number].name, mistake.kind.name.lower(), judgement))
    return counted


def _mislabelled(diagnosis: Diagnosis, mistake: Mistake, place: int, histories: dict[int, History]) -> int | None:
    """The object with a faulty label that the "mistaken" detection is right about, or None."""
    if mistake.detection < 0:
        return None
    detections = diagnosis.evidence.operating.errors.detections
    box, label = detections.boxes[mistake.detection][None], int(detections.labels[mistake.detection])
    for number, history in histories.items():
        own = (history.name, history.image, history.label) == ("label", place, label)
        if own and box_iou(box, torch.tensor([history.box])) >= 0.5:
            return number
    return None


def measure(given: argparse.Namespace, seed: int, folder: Path) -> list[Outcome]:
    """Make the data, train, test twice and judge."""
    look = LOOKS[seed % len(LOOKS)]
    rng = np.random.default_rng(seed)
    indices = {"train": read_split(given.data, given.train), "test": read_split(given.data, given.test)}
    names = indices["train"].class_names
    scenes = {}
    for (name, index), most in zip(indices.items(), (given.train_images, given.test_images), strict=True):
        chosen = np.sort(rng.permutation(len(index))[:most])
        scenes[name] = read_scenes(index.subset(chosen), given.window, rng)
    train, _ = with_histories(scenes["train"], {"faded": FADED}, look, len(names), rng)
    shares = {"faded": FADED, "strange": STRANGE, "label": LABEL}
    test, histories = with_histories(scenes["test"], shares, look, len(names), rng)
    for name, content in (("train", train), ("test", test), ("original", scenes["test"])):
        write_split(content, names, folder, name)
    config = configuration(folder, tuple(given.size), given.init_from, given.epochs)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    options = ["--config", str(folder / "config.yaml")]
    detframe("fit", *options, "--seed_everything", str(seed))
    options += ["--ckpt_path", str(folder / "runs" / "version_0" / "checkpoints" / "best.ckpt")]
    detframe("test", *options, "--data.test", "original.json")
    detframe("test", *options, "--embeddings.write", "true")
    return outcomes(folder / "runs" / "version_2", folder / "runs" / "version_1", histories)


def table_of(counted: list[Outcome]) -> NDArray[np.int64]:
    """How often each history, in a row, got each verdict, in a column: ``[3, 4]``."""
    verdicts = list(Verdict)
    table = np.zeros((len(CAUSES), len(verdicts)), dtype=np.int64)
    for outcome in counted:
        table[list(CAUSES).index(outcome.history), verdicts.index(outcome.judgement.verdict)] += 1
    return table


def balanced_accuracy(table: NDArray[np.int64]) -> float:
    """Mean over the causes that occur of the share of right verdicts, 0..1."""
    verdicts = list(Verdict)
    right = [table[row, verdicts.index(cause)] for row, cause in enumerate(CAUSES.values())]
    totals = table.sum(axis=1)
    return float(np.mean(np.array(right)[totals > 0] / totals[totals > 0]))


def main() -> None:
    """Print one table for each seed, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="root of the data set")
    parser.add_argument("--train", default="train", help="split to train on")
    parser.add_argument("--test", default="test", help="split to make mistakes on")
    parser.add_argument("--window", type=int, default=0, help="side of what is taken of each image, 0 for the whole")
    parser.add_argument("--size", type=int, nargs=2, default=[160, 208], help="height and width that the network sees")
    parser.add_argument("--init-from", type=Path, help="checkpoint to begin with; none begins with random weights")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train-images", type=int, default=300, help="at most")
    parser.add_argument("--test-images", type=int, default=300, help="at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--half", choices=("test", "development"), default="test", help="images of odd or even place")
    parser.add_argument("--keep", type=Path, help="folder to leave data and runs in")
    given = parser.parse_args()
    tables, figures = [], []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (given.keep or Path(temporary)) / f"seed{seed}"
            folder.mkdir(parents=True)
            counted = measure(given, seed, folder.resolve())
        table = table_of([outcome for outcome in counted if outcome.image % 2 == (given.half == "test")])
        tables.append(table)
        figures.append(balanced_accuracy(table))
        print(f"seed {seed}: balanced accuracy {figures[-1]:.3f} of {table.sum()} mistakes", flush=True)
    whole = sum(tables[1:], tables[0])
    print(f"mean {np.mean(figures):.3f}, least {np.min(figures):.3f}; all seeds together:")
    print(f"{'':<10}" + "".join(f"{verdict.value:>18}" for verdict in Verdict))
    for cause, row in zip(CAUSES, whole, strict=True):
        print(f"{cause:<10}" + "".join(f"{count:>18}" for count in row))


if __name__ == "__main__":
    main()

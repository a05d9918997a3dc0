"""What it pays to look at the labels that `label-errors` puts first: trainings on right, wrong and mended labels.

    python tools/cleaning_study.py DATA OUT --config configs/bccd.yaml --trainer.max_epochs 10

For each seed a fifth of the training labels is made wrong (tools/corrupt_labels.py); `detframe crossfit` and
`detframe label-errors` judge them; the first tenth of the queue is "reviewed" by the truth, and so are, for comparison,
as many labels drawn at random; then detectors are trained on the right labels, the wrong ones, and those mended either
way, and evaluated on the test split as published. Options that are not listed are those of `detframe fit`, the same for
all.

Each stage's outcome is a file in OUT: killed and called again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from bench_verdict import detframe
from corrupt_labels import corrupt, ids_of, index_of, sound_labels, truths_of
from detframe.data.annotations import AnnotationIndex
from detframe.data.coco import write_coco
from detframe.data.label_queue import Suggestion, read_queue
from detframe.data.sources import read_split
from detframe.metrics.label_noise import LabelError, NoisyLabels
from detframe.metrics.rows import TruthRows

LABELS = ("clean", "noisy", "queue", "random")
MATCH = 0.5  # IoU from which a reviewer who is shown a box sees which object is meant


class Reviewed(NamedTuple):
    """What a review leaves."""

    labels: NoisyLabels
    mended: int  # labels that were wrong, among those looked at


def answer(noisy: NoisyLabels, clean: TruthRows, rows: Sequence[int], restored: Sequence[int]) -> Reviewed:
    """Labels after a reviewer who knows the truth has looked at some.

    Args:
        noisy: The labels in question.
        clean: The truth.
        rows: Of the labels that were looked at: what is wrong with them is mended.
        restored: Rows of the truth whose label was left out and is added.
    """
    errors, origins = noisy.errors.clone(), noisy.origins
    boxes, labels = noisy.truths.boxes.clone(), noisy.truths.labels.clone()
    kept = torch.ones(len(errors), dtype=torch.bool)
    looked = torch.tensor(sorted(set(rows)), dtype=torch.int64)
    wrong = looked[errors[looked] != LabelError.NONE]
    kept[wrong[origins[wrong] < 0]] = False
    changed = wrong[origins[wrong] >= 0]
    boxes[changed], labels[changed] = clean.boxes[origins[changed]], clean.labels[origins[changed]]
    errors[changed] = LabelError.NONE
    added = torch.tensor(sorted(set(restored)), dtype=torch.int64)
    mended = TruthRows(
        images=torch.cat((noisy.truths.images[kept], clean.images[added])),
        boxes=torch.cat((boxes[kept], clean.boxes[added])),
        labels=torch.cat((labels[kept], clean.labels[added])),
        ignore=torch.cat((noisy.truths.ignore[kept], clean.ignore[added])),
    )
    still = noisy.missing[~torch.isin(noisy.missing, added)]
    none = torch.zeros(len(added), dtype=torch.int64)
    result = NoisyLabels(mended, torch.cat((errors[kept], none)), torch.cat((origins[kept], added)), still)
    return Reviewed(result, len(wrong) + len(added))


def review_queue(
    suggestions: Sequence[Suggestion], noisy: NoisyLabels, ids: NDArray[np.int64], clean: AnnotationIndex
) -> Reviewed:
    """Labels after the truth has answered suggestions."""
    truths = truths_of(clean)
    row_of = {number: row for row, number in enumerate(ids.tolist())}
    place_of = {number: place for place, number in enumerate(clean.image_ids.tolist())}
    rows, restored = [], []
    for suggestion in suggestions:
        if suggestion.annotation_id is not None:
            rows.append(row_of[suggestion.annotation_id])
            continue
        assert suggestion.after is not None
        found = _left_out(truths, noisy.missing, place_of[suggestion.image_id], torch.tensor(suggestion.after.box))
        restored += [] if found is None else [found]
    return answer(noisy, truths, rows, restored)


def _left_out(truths: TruthRows, missing: Tensor, image: int, box: Tensor) -> int | None:
    """The label that was left out where a box is, or None."""
    own = missing[truths.images[missing] == image]
    if not len(own):
        return None
    overlap, best = box_iou(truths.boxes[own], box[None]).flatten().max(dim=0)
    return int(own[best]) if overlap >= MATCH else None


def trained(folder: Path, labels: Path, options: Sequence[str]) -> dict[str, float]:
    """Test metrics of a detector trained on labels; read where that is done."""
    finished = folder / "test_metrics.json"
    if not finished.is_file():
        logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder)]
        detframe("fit", *options, "--data.train", str(labels.resolve()), *logger, "--trainer.logger.name", "run")
        last = max(folder.glob("run/version_*/test_metrics.json"), key=lambda path: path.stat().st_mtime)
        shutil.copy(last, finished)
    content: dict[str, float] = json.loads(finished.read_text())
    return content


def study(given: argparse.Namespace, of_fit: list[str], seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """``map_50`` by labels, and what the reviews found."""
    folder = given.out / f"seed{seed}"
    clean = sound_labels(read_split(given.data, given.train))
    noisy = corrupt(clean, given.share, seed)
    ids = ids_of(noisy, clean)
    labels = {name: folder / f"{name}.json" for name in LABELS}
    write_coco(clean, labels["clean"])
    write_coco(index_of(noisy, clean), labels["noisy"])
    options = ["--config", str(given.config), "--seed_everything", str(seed)]
    options += ["--data.root", str(given.data), "--data.images", str(clean.image_root), "--data.val", "null"]
    options += of_fit
    crossfit = folder / "crossfit"
    if not (crossfit / "label_errors.jsonl").is_file():
        folds = ["--folds", str(given.folds), "--out", str(crossfit)]
        detframe("crossfit", *options, *folds, "--data.train", str(labels["noisy"].resolve()))
        detframe("label-errors", str(crossfit), "--least", "0")
    budget = round(given.review * len(noisy.errors))
    queue = read_queue(crossfit / "label_errors.jsonl").suggestions[:budget]
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(noisy.errors))[:budget].tolist()
    reviews = {
        "queue": review_queue(queue, noisy, ids, clean),
        "random": answer(noisy, truths_of(clean), drawn, []),
    }
    for name, reviewed in reviews.items():
        write_coco(index_of(reviewed.labels, clean), labels[name])
    wrong = int((noisy.errors > 0).sum()) + len(noisy.missing)
    found = {name: reviewed.mended / wrong for name, reviewed in reviews.items()}
    scores = {name: trained(folder / name, labels[name], options)["map_50"] for name in LABELS}
    return scores, found


def main() -> None:
    """Print a row for each seed, then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="root of the data set")
    parser.add_argument("out", type=Path, help="folder for what is trained")
    parser.add_argument("--config", type=Path, required=True, help="of the training")
    parser.add_argument("--train", default="train", help="split whose labels are made wrong")
    parser.add_argument("--share", type=float, default=0.2, help="of the labels that are made wrong")
    parser.add_argument("--review", type=float, default=0.1, help="of the labels that are looked at")
    parser.add_argument("--folds", type=int, default=3, help="of the cross-fitting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given, options = parser.parse_known_args()
    results = []
    print("seed  " + "".join(f"{name:>9}" for name in LABELS) + "   back: queue   random   mended: queue   random")
    for seed in given.seeds:
        scores, found = study(given, options, seed)
        lost = scores["clean"] - scores["noisy"]
        back = [(scores[name] - scores["noisy"]) / lost for name in ("queue", "random")]
        results.append([*(scores[name] for name in LABELS), found["queue"], found["random"]])
        print(
            f"{seed:<6}" + "".join(f"{scores[name]:>9.4f}" for name in LABELS) + f"{back[0]:>14.0%}{back[1]:>9.0%}"
            f"{found['queue']:>16.0%}{found['random']:>9.0%}",
            flush=True,
        )
    mean, spread = np.mean(results, axis=0), np.std(results, axis=0, ddof=1) if len(results) > 1 else np.zeros(6)
    back = [(score - mean[1]) / (mean[0] - mean[1]) for score in mean[2:4]]
    print("mean  " + "".join(f"{value:>9.4f}" for value in mean[:4]) + f"{back[0]:>14.0%}{back[1]:>9.0%}", end="")
    print(f"{mean[4]:>16.0%}{mean[5]:>9.0%}\n±     " + "".join(f"{value:>9.4f}" for value in spread[:4]))


if __name__ == "__main__":
    main()

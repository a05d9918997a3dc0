"""What `detframe mine` is worth: the same number of images chosen by it and at random, labelled, trained on, compared.

    python tools/mining_study.py DEEPPCB_ROOT --weights WEIGHTS --keep FOLDER

For each seed: a share of the training images is labelled and a detector trained on them (a part held out, for its
failure modes). It looks at the others, as a pool without labels. Of these `mine` chooses as many as the budget allows,
and chance as many. Each choice gets its true labels; a detector begins with the weights of the first and is trained on
everything that is labelled then, as long and with the same seed. What counts is the difference of map_50 on the test
split, which nothing else looked at.

Of each image only a window about one of its objects is taken, which keeps it small enough for a CPU. All stages leave
a file in FOLDER, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import bench_verdict
from bench_verdict import detframe, read_scenes, write_split
from detframe.data.sources import read_split
from detframe.unfinished import unfinished

ARMS = ("mine", "random")
HELD_OUT = 0.2  # of the images labelled first: the failure modes are measured on them


def configuration(folder: Path, given: argparse.Namespace, init_from: Path | None, epochs: int) -> dict[str, Any]:
    """The short training of :mod:`bench_verdict` on ``train.json`` of a folder; nothing is chosen by validation."""
    config = bench_verdict.configuration(folder, (given.window, given.window), init_from, epochs)
    place = given.keep.resolve() / "data"
    del config["data"]["val_fraction"], config["trainer"]["check_val_every_n_epoch"]
    config["data"] |= {"val": "val.json", "test": str(place / "test.json"), "images": str(place)}
    weights = None if init_from or given.weights is None else str(given.weights.resolve())
    config["model"]["backbone"]["init_args"]["weights"] = weights
    config["model"]["optimizer"]["init_args"]["lr"] = 0.001
    config["trainer"]["limit_val_batches"] = 0
    return config | {"last_checkpoint": {"every_n_epochs": 4}}


def stage(file: Path, what: str, action: Callable[[], Any]) -> Any:  # noqa: ANN401 - what JSON holds
    """The outcome of a stage, from its file where an earlier call has written that."""
    if not file.is_file():
        print(f"{datetime.now():%H:%M:%S} {file.parent.name}: {what}", flush=True)
        content = action()
        with unfinished(file) as beside:
            beside.write_text(json.dumps(content))
    return json.loads(file.read_text())


def make_data(given: argparse.Namespace) -> dict[str, int]:
    """Write the windows of both splits; how many there are."""
    counts = {}
    for name, split in (("train", given.train), ("test", given.test)):
        index = read_split(given.data, split)
        scenes = read_scenes(index, given.window, np.random.default_rng(0))
        write_split(scenes, index.class_names, given.keep / "data", name)
        counts[name] = len(scenes)
    return counts


def select(content: dict[str, Any], image_ids: list[int], labels: bool = True) -> dict[str, Any]:
    """The part of a COCO file that is about these images, with or without their boxes."""
    wanted = set(image_ids)
    return content | {
        "images": [image for image in content["images"] if image["id"] in wanted],
        "annotations": [row for row in content["annotations"] if labels and row["image_id"] in wanted],
    }


def train(folder: Path, given: argparse.Namespace, init_from: Path | None, epochs: int, seed: int) -> dict[str, str]:
    """Train on a folder's ``train.json``, or go on where an earlier call was stopped; the checkpoint."""
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(folder.resolve(), given, init_from, epochs)))
    options = ["--config", str(folder / "config.yaml"), "--seed_everything", str(seed)]
    started = last_checkpoint(folder)
    detframe("fit", *options, *(["--ckpt_path", str(started)] if started else []))
    return {"checkpoint": str(last_checkpoint(folder))}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest of a folder's runs."""
    found = (folder / "runs").glob("version_*/checkpoints/last.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def evaluate(folder: Path, checkpoint: str) -> dict[str, Any]:
    """Figures on the test split."""
    options = ["--config", str(folder / "config.yaml"), "--ckpt_path", checkpoint]
    detframe("test", *options, "--trainer.logger.init_args.name", "tests")
    newest = max((folder / "tests").glob("version_*/test_metrics.json"), key=lambda path: path.stat().st_mtime)
    metrics: dict[str, Any] = json.loads(newest.read_text())
    return metrics


def look(folder: Path, checkpoint: str) -> dict[str, str]:
    """Validate with embeddings, and predict the pool; the run and the pool that `mine` reads."""
    options = ["--ckpt_path", checkpoint, "--embeddings.write", "true"]
    limits = ["--trainer.limit_val_batches", "1.0", "--trainer.logger.init_args.name", "validated"]
    detframe("validate", "--config", str(folder / "config.yaml"), *options, *limits)
    run = max((folder / "validated").glob("version_*"), key=lambda path: path.stat().st_mtime)
    sources = ["--data.predict", str(folder / "pool.json"), "--predictions.out", str(folder / "pool")]
    detframe("predict", *options, *sources, "--trainer.logger", "false")
    return {"run": str(run), "pool": str(folder / "pool")}


def choose(folder: Path, arm: str, looked: dict[str, str], budget: int, seed: int) -> list[int]:
    """Ids of the images to label next."""
    pool = [image["id"] for image in json.loads((folder / "pool.json").read_text())["images"]]
    if arm == "random":
        order = np.random.default_rng([seed, 1]).permutation(len(pool))[:budget]
        return sorted(pool[i] for i in order)
    out = folder / "mined"
    options = ["--n", str(budget), "--seed", str(seed), "--out", str(out), "--overwrite"]
    detframe("mine", looked["pool"], "--run", looked["run"], *options)
    return sorted(row["image_id"] for row in json.loads((out / "chosen.json").read_text())["images"])


def study(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All stages of one seed."""
    root = given.keep / f"seed{seed}"
    first = root / "first"
    oracle = json.loads((given.keep / "data" / "train.json").read_text())
    order = np.random.default_rng(seed).permutation([image["id"] for image in oracle["images"]]).tolist()
    labelled, rest = order[: given.labelled], order[given.labelled :]
    held = labelled[: round(HELD_OUT * given.labelled)]
    first.mkdir(parents=True, exist_ok=True)
    parts = {"train": labelled[len(held) :], "val": held}
    for name, ids in parts.items():
        (first / f"{name}.json").write_text(json.dumps(select(oracle, ids)))
    pool = select(oracle, rest, labels=False)
    data = str((given.keep / "data").resolve())
    for image in pool["images"]:
        image["file_name"] = f"{data}/{image['file_name']}"
    (first / "pool.json").write_text(json.dumps(pool))
    base = stage(
        first / "trained.json",
        f"training on {len(parts['train'])} images",
        lambda: train(first, given, None, given.epochs, seed),
    )
    figures = {"first": stage(first / "metrics.json", "testing", lambda: evaluate(first, base["checkpoint"]))}
    looked = stage(first / "looked.json", "looking at the pool", lambda: look(first, base["checkpoint"]))
    boxes = {}
    for arm in ARMS:
        folder = root / arm
        chosen = stage(folder / "chosen.json", "choosing", partial(choose, first, arm, looked, given.budget, seed))
        content = select(oracle, [*labelled, *chosen])
        boxes[arm] = len(content["annotations"])
        (folder / "train.json").write_text(json.dumps(content))
        (folder / "val.json").write_text((first / "val.json").read_text())
        trained = stage(
            folder / "trained.json",
            f"training on {len(content['images'])} images with {boxes[arm]} boxes",
            partial(train, folder, given, Path(base["checkpoint"]), given.more_epochs, seed),
        )
        figures[arm] = stage(
            folder / "metrics.json",
            "testing",
            partial(evaluate, folder, trained["checkpoint"]),
        )
    return {"map_50": {name: 100 * found["map_50"] for name, found in figures.items()}, "boxes": boxes}


def main() -> None:
    """Print a row for each seed, and the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="root of the data set")
    parser.add_argument("--keep", type=Path, required=True, help="folder for data and runs; goes on with what is there")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of tf_efficientnet_lite0")
    parser.add_argument("--train", default="train.json", help="split that is the pool")
    parser.add_argument("--test", default="test.json", help="split to compare on")
    parser.add_argument("--window", type=int, default=256, help="side of what is taken of each image, pixels")
    parser.add_argument("--labelled", type=int, default=100, help="images labelled at first")
    parser.add_argument("--budget", type=int, default=100, help="images to choose")
    parser.add_argument("--epochs", type=int, default=30, help="of the first training")
    parser.add_argument("--more-epochs", type=int, default=12, help="of each further one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    stage(given.keep / "data" / "data.json", "cutting windows", lambda: make_data(given))
    gains = []
    print(f"{'seed':<6}{'first':>8}{'mine':>8}{'random':>8}{'gain':>8}   boxes labelled, mine and random")
    for seed in given.seeds:
        found = study(given, seed)
        score = found["map_50"]
        gains.append(score["mine"] - score["random"])
        columns = "".join(f"{score[name]:>8.2f}" for name in ("first", *ARMS))
        boxes = " and ".join(str(found["boxes"][arm]) for arm in ARMS)
        print(f"{seed:<6}{columns}{gains[-1]:>+8.2f}   {boxes}", flush=True)
    spread = f", standard deviation {np.std(gains, ddof=1):.2f}" if len(gains) > 1 else ""
    print(f"mean gain {np.mean(gains):+.2f} map_50 points{spread}")


if __name__ == "__main__":
    main()

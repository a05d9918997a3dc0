"""YOLO11n, as Ultralytics trains and exports it, beside ours: what both learn in the same time, how quick each file is.

    python tools/bench_yolo.py fit ROOT OUT --image-size 320 --config configs/bccd.yaml ...         # options of `fit`
    python tools/bench_yolo.py latency YOLO_WEIGHTS IMAGES OUR_ARTEFACT ... --image-size 320

`fit` trains ours by the command line and its options, then YOLO11n from random weights by Ultralytics' own recipe, on
the same images for as many minutes as ours took, its start, validation and test included. Both are tested on the same
split, with the intervals of `detframe compare`. Give ours random weights too, which is the same kind of start:
`--model.backbone.init_args.weights null`. A training that OUT has already stays.

`latency` exports YOLO_WEIGHTS to OpenVINO as `yolo export` does and calls it and our artefacts in turn, one image at a
time, from decoded pixels to boxes; "the file alone" is what OpenVINO computes, without Ultralytics' resizing and NMS.

Ultralytics takes one thread less than there are cores: `taskset -c 0 python ...` gives both the same means, one core.
The package `ultralytics` is AGPL-3.0: detframe neither contains nor needs it; who wants the comparison installs it, in
an environment of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench_train import machine, rounds
from detframe.data.images import read_image
from detframe.data.sources import read_splits
from detframe.data.unlabelled import read_images
from detframe.export.runtime import load

NAME = "yolo11n"
YOLO = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", "detect"]
"""The command `yolo detect`, of this environment."""


class Spent(NamedTuple):
    """What a command took."""

    seconds: float
    megabytes: float  # the most resident memory of its process, libraries and all


def run(command: list[str], log: Path) -> Spent:
    """Run a command to its end.

    Raises:
        SystemExit: It failed.
    """
    print(f"{log.stem} runs; what it says is in {log}", file=sys.stderr)
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # or it would be waited for again
    if status:
        raise SystemExit(f"A command failed, its last words are in {log}: {' '.join(command)}")
    return Spent(time.perf_counter() - started, usage.ru_maxrss / 1e3)


def once(outcome: Path, command: list[str]) -> Spent:
    """:func:`run`, with its log beside the outcome, or what is written there of a run before."""
    if not outcome.is_file():
        outcome.parent.mkdir(parents=True, exist_ok=True)
        spent = run(command, outcome.with_suffix(".log"))
        outcome.write_text(json.dumps(spent._asdict()), encoding="utf-8")
    return Spent(**json.loads(outcome.read_text(encoding="utf-8")))


# ---------------------------------------------------------------------------------------------------------------------
# what is learned in the same time


def fit(args: argparse.Namespace, options: list[str]) -> None:
    """Train both and compare them."""
    root, out = args.root.resolve(), args.out.resolve()
    data = out / "yolo_data"
    if not data.is_dir():
        run([sys.executable, "-m", "detframe", "convert", str(root), str(data), "yolo"], out / "convert.log")
    ours = [sys.executable, "-m", "detframe", "fit", *options, "--data.root", str(root)]
    ours += ["--trainer.default_root_dir", str(out), "--seed_everything", str(args.seed)]
    loggers = '[{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "%s", "name": "ours"}}]'
    spent = once(out / "ours.json", [*ours, "--trainer.logger", loggers % out])
    theirs = [*YOLO, "train", f"model={NAME}.yaml", f"data={data / 'data.yaml'}", f"imgsz={args.image_size}"]
    theirs += [f"time={spent.seconds / 3600}", f"batch={args.batch_size}", "workers=0", "device=cpu", "plots=False"]
    theirs += [f"seed={args.seed}", "pretrained=False", f"project={out}", f"name={NAME}", "exist_ok=True"]
    spent_theirs = once(out / f"{NAME}.json", theirs)

    run_folder = sorted((out / "ours").glob("version_*"))[-1]
    results = out / f"{NAME}_results.json"
    write_results(out / NAME / "weights" / "best.pt", root, args.image_size, results)
    compare = [sys.executable, "-m", "detframe", "compare", str(results), str(run_folder), "--data", str(root)]
    compare += ["--measured", "0", "--out", str(out / "comparison"), "--json"]
    lines = json.loads(subprocess.run(compare, check=True, capture_output=True, text=True).stdout)["lines"]
    print(f"{machine()}, seed {args.seed}\n")
    print("| | minutes | peak MB | epochs |\n| --- | ---: | ---: | ---: |")
    for name, one, epochs in (
        ("ours", spent, max(column(run_folder / "metrics.csv", "epoch"))),
        (NAME, spent_theirs, max(column(out / NAME / "results.csv", "epoch"))),
    ):
        print(f"| {name} | {one.seconds / 60:.1f} | {one.megabytes:.0f} | {epochs:.0f} |")
    print(f"\n| | {NAME} | ours | gain | 95 % interval | verdict |\n| --- | ---: | ---: | ---: | --- | --- |")
    for line in lines:
        if line["name"] in ("map", "map_50", "map_75") or line["name"].startswith("ap/"):
            figures = f"{line['base']:.4f} | {line['candidate']:.4f} | {line['gain']:+.4f}"
            print(f"| {line['name']} | {figures} | {line['low']:+.4f} to {line['high']:+.4f} | {line['verdict']} |")


def column(path: Path, name: str) -> list[float]:
    """Figures of a CSV file, where there are any."""
    with path.open(encoding="utf-8", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file, skipinitialspace=True) if row[name]]


def write_results(weights: Path, root: Path, size: int, path: Path) -> None:
    """COCO results of YOLO on the test split, by the thresholds of Ultralytics' own validation."""
    from ultralytics import YOLO

    index = read_splits(root)["test"].index
    model = YOLO(weights)
    rows: list[dict[str, Any]] = []
    for place in rounds(len(index), "Testing"):
        (found,) = model.predict(
            index.path(place), imgsz=size, conf=0.001, iou=0.7, max_det=300, device="cpu", verbose=False
        )
        boxes = (found.boxes.xyxy.tolist(), found.boxes.conf.tolist(), found.boxes.cls.tolist())
        for (x1, y1, x2, y2), score, label in zip(*boxes, strict=True):
            ids = {"image_id": int(index.image_ids[place]), "category_id": index.categories[int(label)].id}
            rows.append({**ids, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    path.write_text(json.dumps(rows), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# how quick the files are


def latency(args: argparse.Namespace) -> None:
    """Export YOLO and call all in turn."""
    index = read_images(str(args.images))
    images = [read_image(index.path(place)).numpy() for place in range(min(len(index), args.rounds))]
    calls = yolo_calls(args.weights, args.image_size)
    for path in args.artefacts:
        calls[path.name] = ours_call(path)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in rounds(args.rounds + 3, "Calls in turn"):
        for name, call in calls.items():
            started = time.perf_counter()
            call(images[turn % len(images)])
            seconds[name].append(time.perf_counter() - started)
    print(f"{machine()}\n\n| | ms, median | 95 % |\n| --- | ---: | ---: |")
    for name, values in seconds.items():
        ms = [1000 * value for value in values[3:]]
        print(f"| {name} | {statistics.median(ms):.1f} | {np.quantile(ms, 0.95):.1f} |")


Call = Callable[[NDArray[np.uint8]], object]
"""Answers an image, RGB ``[3, H, W]``."""


def ours_call(path: Path) -> Call:
    """An artefact of `detframe export`, which resizes and suppresses by itself."""
    artefact = load(path, 1)
    return lambda image: artefact.run(image[None])


def yolo_calls(weights: Path, size: int) -> dict[str, Call]:
    """YOLO in OpenVINO by Ultralytics, and its file alone."""
    from ultralytics import YOLO

    openvino: Any = import_module("openvino")  # it states no types for what it offers
    folder = Path(YOLO(weights).export(format="openvino", imgsz=size, device="cpu"))
    whole = YOLO(folder, task="detect")
    core = openvino.Core()
    compiled = core.compile_model(next(folder.glob("*.xml")), "CPU", {"INFERENCE_NUM_THREADS": 1})
    noise = np.random.default_rng(0).random((1, 3, size, size), np.float32)

    def predict(image: NDArray[np.uint8]) -> object:
        bgr = np.ascontiguousarray(image[::-1].transpose(1, 2, 0))  # as OpenCV would read it
        return whole.predict(bgr, imgsz=size, verbose=False)

    return {
        f"{NAME}, OpenVINO by Ultralytics": predict,
        f"{NAME}, the file alone": lambda image: compiled(noise),
    }


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is left over goes to `fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fitting = verbs.add_parser("fit", help="train both for the same time; further options go to `detframe fit`")
    fitting.add_argument("root", type=Path, help="root of the data set, with train, val and test")
    fitting.add_argument("out", type=Path, help="folder for runs and outcomes")
    fitting.add_argument("--image-size", type=int, default=320, help="YOLO's longest side in pixels; default 320")
    fitting.add_argument("--batch-size", type=int, default=16, help="of YOLO; default 16, as is Ultralytics'")
    fitting.add_argument("--seed", type=int, default=0, help="of both; default 0")
    timing = verbs.add_parser("latency", help="export YOLO to OpenVINO and call it and our artefacts in turn")
    timing.add_argument("weights", type=Path, help="best.pt of a training, or yolo11n.yaml for random weights")
    timing.add_argument("images", type=Path, help="folder of images")
    timing.add_argument("artefacts", type=Path, nargs="*", help="what `detframe export` wrote")
    timing.add_argument("--image-size", type=int, default=320, help="YOLO's longest side in pixels; default 320")
    timing.add_argument("--rounds", type=int, default=50, help="calls of each that count; default 50")
    return parser.parse_known_args()


def main() -> None:
    """Do as the command line says."""
    args, options = parse()
    if args.verb == "fit":
        args.out.mkdir(parents=True, exist_ok=True)
        fit(args, options)
    elif options:
        raise SystemExit(f"{options[0]}: is no option of `latency`.")
    else:
        latency(args)


if __name__ == "__main__":
    main()

"""Time and memory of what grows with the data, at 1,000, 10,000 and 100,000 made-up images, on a log-log plot.

Every part runs at every size in a process of its own, so that its peak memory is its own, imports included (0.7 GB);
of verbs they are in the time too. ``power`` is the exponent by which time grew since the size before: 1 is linear,
n log n comes to 1.1, and 2 would be the quadratic growth that nothing may have.

    python tools/bench_scaling.py                                   # 1,000 and 10,000 images, a few minutes
    python tools/bench_scaling.py --images 1000 10000 100000 --picture docs/images/scaling.png
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image

from bench_map import coco_dictionaries, make_workload, run_detframe

CLASSES, OBJECTS, DETECTIONS = 20, 7, 10  # in all; of an image on average; of an image
SIDE = 96  # of an image, pixels


class Measured(NamedTuple):
    """One part at one size."""

    part: str
    images: int
    seconds: float  # without imports, but for the verbs, which are timed as a user runs them
    peak_bytes: int


def read_index(folder: Path) -> float:
    """The COCO file, from disk to arrays."""
    from detframe.data.sources import read_split

    return _seconds(lambda: read_split(folder, "truth.json"))


def load(folder: Path) -> float:
    """An epoch of training batches, decoded and letterboxed in this process."""
    from torch.utils.data import DataLoader

    from detframe.data.dataset import DetectionDataset, collate
    from detframe.data.sampling import RepeatFactorSampler
    from detframe.data.sources import read_split

    data = DetectionDataset(read_split(folder, "truth.json"), (SIDE, SIDE))
    loader: Any = DataLoader(data, 64, sampler=RepeatFactorSampler(np.ones(len(data))), collate_fn=collate)
    return _seconds(lambda: sum(1 for _ in loader))


def evaluate(folder: Path) -> float:
    """Mean average precision, updates and result."""
    images = sum(1 for _ in (folder / "images").iterdir())
    return _seconds(run_detframe(make_workload(images, DETECTIONS, CLASSES, OBJECTS, 64, 0)))


def check(folder: Path) -> float:
    """The verb; every image is decoded."""
    return _seconds(lambda: _verb("check", str(folder / "truth.json"), accepted=(0, 1)))


def diagnose(folder: Path) -> float:
    """The verb, page and all; leaves the table that `label-errors` reads."""
    given = ("--predictions", str(folder / "found.json"), "--data", str(folder / "truth.json"), "--measured", "0")
    seconds = _seconds(lambda: _verb("diagnose", *given, "--out", str(folder / "run")))
    (folder / "run" / "predictions.parquet").rename(folder / "run" / "test_predictions.parquet")
    return seconds


def find_label_errors(folder: Path) -> float:
    """The verb; after `diagnose`."""
    return _seconds(lambda: _verb("label-errors", str(folder / "run"), "--data", str(folder / "truth.json")))


PARTS: dict[str, Callable[[Path], float]] = {
    "index": read_index,
    "check": check,
    "loader": load,
    "metric": evaluate,
    "diagnose": diagnose,
    "label-errors": find_label_errors,
}


def write_data(folder: Path, images: int) -> None:
    """Annotations, results and image files of different content; decoding one costs as much as decoding another.

    In a process of its own too: what a process holds counts as the peak of those that it starts.
    """
    truth, found = coco_dictionaries(make_workload(images, DETECTIONS, CLASSES, OBJECTS, 1, 0))
    for row in (*truth["annotations"], *found):
        row["bbox"] = [side * SIDE / 1000 for side in row["bbox"]]  # the workload's images are 1,000 pixels wide
    for row in truth["annotations"]:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    (folder / "images").mkdir()
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "jpeg")
    for image in truth["images"]:
        image |= {"file_name": f"{image['id']:06}.jpg", "width": SIDE, "height": SIDE}
        # What follows a JPEG's end is no pixel, but makes each file another.
        (folder / "images" / image["file_name"]).write_bytes(buffer.getvalue() + image["id"].to_bytes(4, "big"))
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))


def measure(part: str, folder: Path, images: int) -> Measured:
    """Run a part in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--images", str(images)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seconds = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # memory of it and of what it started, and of nothing before it
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{part} of {images} images ended with exit code {process.returncode}.")
    return Measured(part, images, float(seconds), usage.ru_maxrss * 1024)


def table(rows: list[Measured]) -> str:
    """A row for each part, a column for each size."""
    sizes = sorted({row.images for row in rows})
    lines = ["| | " + " | ".join(f"{size:,} images" for size in sizes) + " |", "| --- |" + " ---: |" * len(sizes)]
    for part in dict.fromkeys(row.part for row in rows):
        cells, before = [], None
        for row in sorted((row for row in rows if row.part == part), key=lambda row: row.images):
            cell = f"{row.seconds:.2f} s, {row.peak_bytes / 1e9:.2f} GB"
            if before is not None:
                growth = math.log(row.seconds / before.seconds) / math.log(row.images / before.images)
                cell += f", power {growth:.2f}"
            cells.append(cell)
            before = row
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[Measured], path: Path) -> None:
    """Time and memory over images, with a line of n log n beside the times."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    sizes = np.array(sorted({row.images for row in rows}), dtype=float)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for part in dict.fromkeys(row.part for row in rows):
        of_part = sorted((row for row in rows if row.part == part), key=lambda row: row.images)
        left.loglog([row.images for row in of_part], [row.seconds for row in of_part], "o-", label=part)
        right.semilogx([row.images for row in of_part], [row.peak_bytes / 1e9 for row in of_part], "o-")
    fastest = min(row.seconds for row in rows if row.images == sizes[0])
    rule = sizes * np.log(sizes)
    left.loglog(sizes, fastest / 2 * rule / rule[0], "k:", label="n log n")
    left.set(xlabel="images", ylabel="seconds")
    right.set(xlabel="images", ylabel="peak memory, GB")
    for axes in (left, right):
        axes.grid(which="major", alpha=0.3)
    right.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _verb(*arguments: str, accepted: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run([sys.executable, "-m", "detframe", *arguments], stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in accepted:
        sys.exit(f"detframe {arguments[0]} ended with exit code {done.returncode}.")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--part", choices=["write", *PARTS], help=argparse.SUPPRESS)  # what a process of its own runs
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        if given.part == "write":
            print(_seconds(lambda: write_data(given.folder, given.images[0])))
        else:
            print(PARTS[given.part](given.folder))
        return
    rows: list[Measured] = []
    for images in given.images:
        with tempfile.TemporaryDirectory() as name:
            measure("write", Path(name), images)
            for part in PARTS:
                rows.append(measure(part, Path(name), images))
                print(f"{part}, {images:,} images: {rows[-1].seconds:.2f} s", file=sys.stderr)
    print(table(rows))
    if given.picture:
        draw(rows, given.picture)


if __name__ == "__main__":
    main()

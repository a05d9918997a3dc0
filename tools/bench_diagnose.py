"""Time, memory and page of `detframe diagnose` on made-up detections, as a user runs it.

Without images, so that the figures alone are timed.

python tools/bench_diagnose.py                  # 300 images
python tools/bench_diagnose.py --images 5000    # the workload of docs/results.md
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench_map import coco_dictionaries, make_workload


class Measured(NamedTuple):
    """One run of the verb."""

    seconds: float  # from the command to the page
    peak_bytes: int  # of its memory
    page_bytes: int
    map: float


def measure(images: int, detections: int, classes: int, objects: int, seed: int) -> Measured:
    """Write annotations and results, and run the verb on them in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth, found = coco_dictionaries(make_workload(images, detections, classes, objects, 1, seed))
        (folder / "truth.json").write_text(json.dumps(truth))
        (folder / "found.json").write_text(json.dumps(found))
        command = [sys.executable, "-m", "detframe", "diagnose", "--predictions", str(folder / "found.json")]
        command += ["--data", str(folder / "truth.json"), "--out", str(folder / "out"), "--json"]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return Measured(seconds, peak, (folder / "out" / "index.html").stat().st_size, json.loads(done.stdout)["map"])


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=int, default=7, help="of each image, on average")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = measure(**vars(given))
    print(
        f"{given.images} images x {given.detections} detections x {given.classes} classes: {result.seconds:.1f} s, "
        f"{result.peak_bytes / 1e9:.2f} GB, page {result.page_bytes / 1e6:.2f} MB, mAP {result.map:.5f}"
    )


if __name__ == "__main__":
    main()

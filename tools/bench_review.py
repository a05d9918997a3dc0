"""How soon `detframe review` shows the next suggestion after a key, in a headless Chromium, as a user runs it.

The data set is drawn, and the suggestions come of labels that are moved, renamed or dropped.

python tools/bench_review.py                 # 50 decisions on images of 320 x 256 px
python tools/bench_review.py --enlarge 10    # on images of 8 megapixels
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from chromium import Chromium
from detframe.data.label_queue import KINDS, Label, Queue, Suggestion, suggestion_id, write_queue
from detframe.data.sources import read_split
from detframe.data.synthetic import write_dataset

_WATCH = """
  window.measured = [];
  let pressed = 0;
  addEventListener("keydown", (event) => { pressed = event.timeStamp; }, true);
  new MutationObserver(() => requestAnimationFrame(() => { measured.push(performance.now() - pressed); }))
    .observe(document.body, { attributes: true, attributeFilter: ["data-shown"] });
"""


class Measured(NamedTuple):
    """One session."""

    first: float  # seconds from the command to the first suggestion on the page, the browser's own start left out
    shown: list[float]  # ms from each key to the frame that shows the next suggestion
    saved: int  # decisions in the file


def write_parts(folder: Path, images: int, enlarge: int = 1, seed: int = 0) -> Path:
    """Draw a data set, its images enlarged by a whole factor; its folder."""
    root = write_dataset(folder / "parts", train=images, val=1, test=1, seed=seed)
    if enlarge > 1:
        for path in (root / "images").iterdir():
            with Image.open(path) as image:
                larger = image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.BICUBIC)
            larger.save(path, quality=90)
        content = json.loads((root / "train.json").read_text())
        for row in content["images"]:
            row |= {side: row[side] * enlarge for side in ("width", "height")}
        for row in content["annotations"]:
            row |= {"bbox": [side * enlarge for side in row["bbox"]], "area": row["area"] * enlarge**2}
        (root / "train.json").write_text(json.dumps(content))
    return root


def write_suggestions(data: Path, path: Path, count: int, split: str = "train", seed: int = 0) -> Queue:
    """A queue of suggestions about the labels of a data set, of each kind as many; every other one is nonsense."""
    index = read_split(data, split)
    rng = np.random.default_rng(seed)
    image_of_box = index.image_of_box()
    usable = np.flatnonzero((index.boxes[:, 2:] - index.boxes[:, :2] >= 4).all(axis=1))
    suggestions = []
    for i, row in enumerate(rng.choice(usable, count, replace=False).tolist()):
        kind, image, names = KINDS[i % len(KINDS)], int(image_of_box[row]), index.class_names
        x1, y1, x2, y2 = index.boxes[row].tolist()
        label = Label((x1, y1, x2, y2), names[index.labels[row]], bool(index.ignore[row]))
        dx, dy = (rng.uniform(-0.15, 0.15, 2) * (x2 - x1, y2 - y1)).tolist()
        moved = label._replace(box=(max(0.0, x1 + dx), max(0.0, y1 + dy), x2, y2))
        renamed = label._replace(class_name=names[(index.labels[row] + 1) % len(names)])
        after = {"missing": moved, "wrong-class": renamed, "bad-box": moved}.get(kind)
        before = None if kind == "missing" else label
        probability = round(float(rng.beta(5, 2)), 3)
        suggestions.append(
            Suggestion(
                id=suggestion_id(kind, index.file_names[image], before, after),
                kind=kind,
                image_id=int(index.image_ids[image]),
                file_name=index.file_names[image],
                annotation_id=None if before is None else int(index.annotation_ids[row]),
                before=before,
                after=after,
                probability=probability,
                value=round(probability * float(rng.uniform(0.3, 1.2)), 3),
                reason="Made up to try the page.",
            )
        )
    queue = Queue(str(data), split, index.annotations_hash(), index.class_names, suggestions)
    write_queue(queue, path)
    return queue


def start_review(queue: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The verb in a process of its own, and the address that it printed."""
    command = [sys.executable, "-u", "-m", "detframe", "review", str(queue), "--no_browser", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.strip()
    raise RuntimeError(f"no address: {process.communicate()[1]}")


def measure(decisions: int, images: int, enlarge: int, pause: float, seed: int) -> Measured:
    """Decide about suggestions, one key each."""
    with tempfile.TemporaryDirectory() as name, Chromium(Path(name) / "profile") as page:
        folder = Path(name)
        data = write_parts(folder, images, enlarge, seed)
        write_suggestions(data, folder / "queue.jsonl", decisions + 1, seed=seed)
        started = time.perf_counter()
        process, url = start_review(folder / "queue.jsonl")
        page.open(url)
        page.wait("document.body?.dataset.shown", 60)
        first = time.perf_counter() - started
        page.evaluate(_WATCH)
        for i in range(decisions):
            time.sleep(pause)
            page.press("arms"[i % 4])
            page.wait(f"measured.length > {i}")
        page.wait("!unsaved.length")
        shown = page.evaluate("measured")
        process.send_signal(signal.SIGINT)
        process.communicate()
        return Measured(first, shown, len((folder / "fixes.jsonl").read_text().splitlines()))


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=50)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--enlarge", type=int, default=1, help="images are 320 x 256 px times this")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds that are spent on looking")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = measure(**vars(given))
    slowest = sorted(result.shown)[-3:]
    print(
        f"{result.saved} of {given.decisions} decisions saved; from the key to the next suggestion "
        f"{statistics.median(result.shown):.0f} ms (median), the three slowest "
        f"{', '.join(f'{ms:.0f}' for ms in slowest)} ms; first suggestion after {result.first:.1f} s"
    )


if __name__ == "__main__":
    main()

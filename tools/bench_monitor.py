"""How well windows of a detector are told from what they were: false alarms, power, causes, estimated mAP.

    python tools/bench_monitor.py model.onnx DATA OUT --severities 1 3 5

An artefact answers to the validation and test images of DATA, and to the test images under 15 corruptions (after
Hendrycks and Dietterich) at the severities that are named. Signals are kept in OUT, so that a killed run goes on.
Windows are drawn from them without repetition. The mAP that is estimated without labels, from the profile's, is held
against the true one of all images under each corruption, and so is the profile's mAP times the ratio of mean scores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from corruptions import CORRUPTIONS, corrupted
from detframe.data.annotations import AnnotationIndex, require_sound
from detframe.data.images import read_image
from detframe.data.sources import read_splits
from detframe.export.proof_images import split_of
from detframe.export.runtime import Answer, Artefact, load
from detframe.export.verify import metrics
from detframe.monitoring.drift import drift_of
from detframe.monitoring.signals import place_of
from detframe.monitoring.window import Window, limits, moments, scale_of, values_of, window_of

RIGHT_CAUSES = {
    "gaussian noise": ("noisier",),
    "shot noise": ("noisier",),
    "impulse noise": ("noisier",),
    "defocus blur": ("blurred",),
    "glass blur": ("blurred",),
    "motion blur": ("blurred",),
    "zoom blur": ("blurred",),
    "snow": ("brighter", "noisier"),
    "frost": ("brighter", "darker", "less contrast", "more contrast", "another colour"),
    "fog": ("less contrast", "brighter", "darker", "another colour"),
    "brightness": ("brighter",),
    "contrast": ("less contrast",),
    "elastic": ("warped", "blurred"),
    "pixelate": ("blurred", "coarser pixels", "compressed more"),
    "jpeg": ("compressed more", "coarser pixels", "blurred"),
}
"""The first words of what is accepted as the likeliest cause."""

Floats = NDArray[np.float64]


class Looked(NamedTuple):
    """Signals of images, and mAP on them."""

    values: Floats  # [N, S]
    map: float


def look(artefact: Artefact, index: AnnotationIndex, kind: str, severity: int, most: int) -> Looked:
    """At the images of a split, evenly chosen where there are more."""
    names = artefact.metadata.class_names
    split = split_of(index, "looked at", most, names)
    thresholds = limits(artefact.metadata.thresholds, names)
    rows, answers = [], []
    for place in range(len(split.index)):
        image = read_image(split.index.path(place)).numpy()
        if kind:
            rng = np.random.default_rng([place, severity])
            image = np.ascontiguousarray(corrupted(image.transpose(1, 2, 0), kind, severity, rng).transpose(2, 0, 1))
        found = artefact.run(image[None])
        answers.append(found)
        rows.append(values_of(image, found, thresholds))
    return Looked(np.array(rows), metrics(answers, split.truths, split.areas, names)["map"])


def cached(
    folder: Path, name: str, artefact: Artefact, index: AnnotationIndex, kind: str, severity: int, most: int
) -> Looked:
    """What was seen, from OUT where it is there."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        np.savez(path, **look(artefact, index, kind, severity, most)._asdict())
    with np.load(path) as stored:
        return Looked(stored["values"], float(stored["map"]))


def cost(rounds: int = 200) -> float:
    """Median milliseconds that all signals of a 640 x 480 image of noise with 100 detections take, on one thread."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 480, 640), dtype=np.uint8)
    corner = rng.uniform(0, 200, (100, 2))
    boxes, scores, labels = np.hstack([corner, corner + 50]), rng.random(100), rng.integers(0, 3, 100)
    unit = np.full((1, 320), 320**-0.5, np.float32)
    valid = np.ones((1, 100), np.bool_)
    columns = boxes[None].astype(np.float32), scores[None].astype(np.float32), labels[None]
    answer = Answer(*columns, valid, valid, np.ones((1, 3), np.float32), unit)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        values_of(image, answer, np.full(3, 0.3))
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def mean_score(window: Window) -> float:
    """Of the detections from the thresholds on, as a mean over images; 0 where there is none."""
    place = place_of("score", window.class_names)
    return float(np.nan_to_num(moments(window).mean[place]))


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--window", type=int, default=64, help="images")
    parser.add_argument("--images", type=int, default=200, help="of the test split at most, and of validation")
    parser.add_argument("--draws", type=int, default=500, help="windows for false alarms; a tenth for each corruption")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"watching an image: {cost():.2f} ms")
    artefact = load(given.artefact, 1)
    names = artefact.metadata.class_names
    readings = read_splits(given.data)
    test = require_sound(readings["test"])
    clean = cached(given.out, "clean test", artefact, test, "", 0, given.images)
    parts = [clean]
    if "val" in readings:
        parts.append(cached(given.out, "clean val", artefact, require_sound(readings["val"]), "", 0, given.images))
    rng = np.random.default_rng(0)
    everything = np.concatenate([part.values for part in parts])
    alarms = 0
    for _ in track(range(given.draws), "False alarms", transient=True):
        order = rng.permutation(len(everything))
        profile = window_of(names, everything[order[given.window :]], None)
        window = window_of(names, everything[order[: given.window]], scale_of(profile))
        alarms += drift_of(profile, window).alarm
    rest = len(everything) - given.window
    print(f"false alarms: {alarms / given.draws:.1%} of {given.draws} windows of {given.window}, profiles of {rest}")
    profile = window_of(names, parts[-1].values, None)
    scale = scale_of(profile)
    rows, errors = {}, []
    for kind in CORRUPTIONS:
        for severity in given.severities:
            started = time.perf_counter()
            values, true_map = cached(given.out, f"{kind} {severity}", artefact, test, kind, severity, given.images)
            seen, right, said = 0, 0, []
            draws = max(given.draws // 10, 1)
            for _ in range(draws):
                chosen = rng.permutation(len(values))[: given.window]
                drift = drift_of(profile, window_of(names, values[chosen], scale))
                seen += drift.alarm
                cause = drift.causes[0] if drift.causes else "nothing"
                right += cause.startswith(RIGHT_CAUSES[kind])
                said.append(cause)
            whole = window_of(names, values, scale)
            estimate = drift_of(profile, whole, profile_map=parts[-1].map).estimated
            naive = parts[-1].map * mean_score(whole) / mean_score(profile)
            errors.append((estimate.map - true_map, naive - true_map, estimate.low <= true_map <= estimate.high))
            rows[f"{kind} {severity}"] = (seen / draws, right / draws)
            common = max(set(said), key=said.count)
            seconds = time.perf_counter() - started
            line = f"{kind} {severity}: seen {seen / draws:.0%}, right cause {right / draws:.0%} ({common}); "
            line += f"mAP {true_map:.3f}, estimated {estimate.map:.3f} ({estimate.low:.3f} to {estimate.high:.3f}), "
            line += f"by scores {naive:.3f}"
            print(f"{line}, {seconds:.0f} s", flush=True)
    for severity in given.severities:
        powers, causes = zip(*(found for name, found in rows.items() if name.endswith(f" {severity}")), strict=True)
        print(
            f"severity {severity}: power {np.mean(powers):.3f}, at least {min(powers):.2f}; right {np.mean(causes):.3f}"
        )
    ours, by_scores, held = np.array(errors).T
    print(
        f"mAP without labels: RMSE {100 * np.sqrt((ours**2).mean()):.1f} points, by mean scores "
        f"{100 * np.sqrt((by_scores**2).mean()):.1f}; {held.mean():.0%} of the intervals hold the true one"
    )
    (given.out / "found.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

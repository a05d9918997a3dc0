"""How honest and how quick the comparison of two detectors is, on simulated pairs of them.

    python tools/bench_gate.py --pairs 500                    # false alarms, coverage and power at 76 images
    python tools/bench_gate.py --images 5000 --classes 80     # time alone, of 2,000 replicates

Two detectors look at the same images. How hard an image and an object are is shared, what each of them makes of it is
not. Of null pairs both are equally good, and each difference that is called one is a false alarm. For power the
candidate is better by as much as the null pairs could just have shown; its true gain is what 50,000 images say.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from rich.progress import track

from detframe.metrics.average_precision import FALSE_POSITIVE, TRUE_POSITIVE
from detframe.metrics.bootstrap import EvaluatedImages
from detframe.metrics.paired import (
    PairedDifference,
    PairedReplicates,
    paired_average_precision,
    paired_difference,
    power_to_see,
    resamples,
)

_IOUS = 10
_MANY = 50_000  # images that tell a true gain


def simulated(
    rng: np.random.Generator, images: int, classes: int, objects: float, clutter: float, gain: float
) -> tuple[EvaluatedImages, EvaluatedImages]:
    """A base and a candidate that is better by ``gain`` standard deviations of an object's difficulty."""
    owner = np.repeat(np.arange(images), rng.poisson(objects, images))
    labels = rng.integers(0, classes, len(owner))
    difficulty = rng.normal(0, 0.8, images)[owner] + rng.normal(0, 1, len(owner))
    pair = []
    for better in (0.0, gain):
        ease = 1.3 + better - difficulty + rng.normal(0, 0.6, len(owner))
        found = ease > 0
        stray = np.repeat(np.arange(images), rng.poisson(clutter, images))
        quality = (ease[found, None] * 3.2 + rng.normal(0, 1.2, (int(found.sum()), 1))) > np.arange(_IOUS)
        outcomes = np.where(quality, TRUE_POSITIVE, FALSE_POSITIVE)
        logits = np.concatenate([ease[found] * 1.2 + rng.normal(0, 0.7, found.sum()), rng.normal(-1.0, 1, len(stray))])
        pair.append(
            EvaluatedImages(
                scores=1 / (1 + np.exp(-logits)),
                labels=np.concatenate([labels[found], rng.integers(0, classes, len(stray))]),
                images=np.concatenate([owner[found], stray]),
                outcomes=np.concatenate([outcomes, np.full((len(stray), _IOUS), FALSE_POSITIVE)]),
                object_labels=labels,
                object_images=owner,
            )
        )
    return pair[0], pair[1]


def compared(
    pair: tuple[EvaluatedImages, EvaluatedImages], images: int, classes: int, replicates: int, seed: int
) -> PairedDifference:
    """The difference in mAP."""
    found = paired_average_precision(*pair, classes, resamples(images, replicates, seed))
    return paired_difference(PairedReplicates(*(values.mean(axis=(-1, -2)) for values in found)))


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=0, help="simulated pairs, for false alarms and for power each")
    parser.add_argument("--images", type=int, default=76)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--objects", type=float, default=7, help="of an image, on average")
    parser.add_argument("--clutter", type=float, default=10, help="false detections of an image, on average")
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shape = (given.images, given.classes, given.objects, given.clutter)
    rng = np.random.default_rng(given.seed)

    def compare(gain: float, seed: int) -> PairedDifference:
        return compared(simulated(rng, *shape, gain), given.images, given.classes, given.replicates, seed)

    pair = simulated(rng, *shape, 0.0)
    started = time.perf_counter()
    compared(pair, given.images, given.classes, given.replicates, given.seed)
    print(
        f"{given.replicates} replicates, {given.images} images x {given.classes} classes, {len(pair[0].scores)} "
        f"detections: {time.perf_counter() - started:.2f} s"
    )
    if not given.pairs:
        return
    nulls = [compare(0.0, seed) for seed in track(range(given.pairs), "Null pairs", transient=True)]
    alarms = np.mean([null.p_value < 0.05 for null in nulls])
    outside = np.mean([not null.low <= 0 <= null.high for null in nulls])
    error = np.sqrt(np.mean([null.error**2 for null in nulls]))
    spread = np.std([null.difference for null in nulls], ddof=1)
    print(
        f"{given.pairs} null pairs, mAP {np.mean([null.base for null in nulls]):.3f}: false alarms {alarms:.1%} at 5 %"
    )
    print(f"  95 % intervals without 0: {outside:.1%}; standard error {error:.4f} stated, {spread:.4f} observed")

    wanted, low, high = float(np.mean([null.detectable for null in nulls])), 0.0, 2.0
    for _ in range(12):
        gain = (low + high) / 2
        many = simulated(np.random.default_rng(given.seed), _MANY, *shape[1:], gain)
        truth = float(compared(many, _MANY, given.classes, 2, 0).difference)
        low, high = (gain, high) if truth < wanted else (low, gain)
    better = [compare(gain, seed) for seed in track(range(given.pairs), "Better candidates", transient=True)]
    seen = np.mean([one.p_value < 0.05 for one in better])
    stated = np.mean([power_to_see(np.array(truth), one.error, one.critical) for one in better])
    held = np.mean([one.low <= truth <= one.high for one in better])
    print(
        f"A true gain of {truth:.4f} mAP is seen in {seen:.1%}, power stated {stated:.1%}; "
        f"intervals hold it in {held:.1%}"
    )


if __name__ == "__main__":
    main()

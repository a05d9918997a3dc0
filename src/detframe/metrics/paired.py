"""How far two detectors differ on the same images: intervals by a paired bootstrap, p-values by a paired permutation.

Both are made of weights of images, so nothing is matched again. A replicate of the bootstrap draws images with
repetition, the same ones for both detectors. A permutation swaps what the two found in half of the images, chosen at
random: where neither is better, that changes nothing but names, so the share of permutations that differ as much as the
detectors do is a p-value that needs no assumption of how figures scatter (Pesarin and Salmaso, 2010).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from detframe.metrics.bootstrap import EvaluatedImages, bootstrap_weights, weighted_average_precision
from detframe.metrics.columns import check_lengths

Floats = NDArray[np.float64]

POWER = 0.8
"""With which :attr:`PairedDifference.detectable` would have been seen."""


class Resamples(NamedTuple):
    """How images are drawn and swapped: ``B`` times each, of ``I`` images."""

    weights: NDArray[np.int32]  # [B, I], how often each is drawn
    swaps: NDArray[np.bool_]  # [B, I], whether the detectors change places there


class PairedReplicates(NamedTuple):
    """A figure of both detectors, and its difference (the candidate's less the base's) in each replicate."""

    base: Floats  # [...]
    candidate: Floats  # [...]
    drawn: Floats  # [B, ...] of the bootstrap
    swapped: Floats  # [B, ...] of the permutation


class PairedDifference(NamedTuple):
    """What is known of a difference; NaN where there is nothing to measure."""

    base: Floats
    candidate: Floats
    difference: Floats  # candidate - base
    low: Floats
    high: Floats
    error: Floats  # its standard error
    p_value: Floats  # 0..1, that there is none, both sides
    critical: Floats  # from which difference on the p-value is below one less the level
    detectable: Floats  # the smallest difference that would have been seen with a probability of POWER


def resamples(images: int, replicates: int, seed: int, groups: NDArray[np.int64] | None = None) -> Resamples:
    """Draws and swaps of images, or of whole groups of them.

    Args:
        images: ``I``.
        replicates: ``B``.
        seed: The same seed gives the same.
        groups: ``[I]``, 0..: images of one group (frames of a video, tiles of a board) are drawn and swapped together.
    """
    units = images if groups is None else int(groups.max()) + 1
    weights = bootstrap_weights(units, replicates, seed)
    swaps = np.random.default_rng([seed, 1]).random((replicates, units)) < 0.5
    return Resamples(weights, swaps) if groups is None else Resamples(weights[:, groups], swaps[:, groups])


def paired_average_precision(
    base: EvaluatedImages, candidate: EvaluatedImages, classes: int, drawn: Resamples
) -> PairedReplicates:
    """Average precision of two detectors, ``[C, T]``.

    Args:
        base: Detections of the one, and the objects.
        candidate: Detections of the other, and the same objects.
        classes: ``C``.
        drawn: Of the same images.

    Raises:
        ValueError: The objects differ, or as for :func:`~detframe.metrics.bootstrap.weighted_average_precision`.
    """
    same = np.array_equal(base.object_labels, candidate.object_labels)
    if not same or not np.array_equal(base.object_images, candidate.object_images):
        raise ValueError("The two detectors were evaluated on different objects.")
    images = drawn.weights.shape[1]
    both = _side_by_side(base, candidate, images)
    always = np.ones((len(drawn.swaps), 1), dtype=np.int32)
    kept, changed = (~drawn.swaps).astype(np.int32), drawn.swaps.astype(np.int32)
    whole = np.ones((1, images), dtype=np.int32)
    found = [
        weighted_average_precision(evaluated, classes, weights)
        for evaluated, weights in (
            (base, whole),
            (candidate, whole),
            (base, drawn.weights),
            (candidate, drawn.weights),
            (both, np.concatenate([kept, changed, always], axis=1)),
            (both, np.concatenate([changed, kept, always], axis=1)),
        )
    ]
    return PairedReplicates(found[0][0], found[1][0], found[3] - found[2], found[5] - found[4])


def paired_figure(
    base: Floats, candidate: Floats, figure: Callable[[Floats], Floats], drawn: Resamples
) -> PairedReplicates:
    """A figure that is computed from sums over images, such as precision from counts.

    Args:
        base: ``[I, K]``, what each image adds to ``K`` sums.
        candidate: Likewise.
        figure: From sums ``[..., K]`` to the figure ``[...]``.
        drawn: Of the same images.

    Raises:
        ValueError: Lengths differ.
    """
    check_lengths(base=base, candidate=candidate, weights=drawn.weights.T)
    moved = drawn.swaps @ (base - candidate)
    return PairedReplicates(
        figure(base.sum(axis=0)),
        figure(candidate.sum(axis=0)),
        figure(drawn.weights @ candidate) - figure(drawn.weights @ base),
        figure(candidate.sum(axis=0) + moved) - figure(base.sum(axis=0) - moved),
    )


def paired_difference(replicates: PairedReplicates, level: float = 0.95) -> PairedDifference:
    """Interval, p-value and smallest detectable effect of a difference.

    The interval is the basic one, reflected at the difference: ``2 d - quantiles``.

    Args:
        replicates: Of one figure, or of an array of them.
        level: Of the interval; ``1 - level`` is the size of the test that ``detectable`` is for.
    """
    base, candidate, drawn, swapped = replicates
    difference = candidate - base
    error, low, high = (np.full(difference.shape, np.nan) for _ in range(3))
    known = ~np.isnan(difference)
    if known.any():
        with_values = np.where(np.isnan(drawn), np.broadcast_to(difference, drawn.shape), drawn)
        error = np.where(known, with_values.std(axis=0, ddof=1), np.nan)
        ends = np.quantile(with_values, [(1 + level) / 2, (1 - level) / 2], axis=0)
        low, high = (np.where(known, 2 * difference - end, np.nan) for end in ends)
    as_far = np.abs(swapped) >= np.abs(difference) - 1e-12  # sums in another order end in other digits
    p_value = np.where(known, (1 + as_far.sum(axis=0)) / (1 + len(swapped)), np.nan)
    critical = np.full(difference.shape, np.nan)
    critical[known] = np.quantile(np.abs(swapped[:, known]), level, axis=0)
    detectable = critical + ndtri(POWER) * error
    return PairedDifference(base, candidate, difference, low, high, error, p_value, critical, detectable)


def power_to_see(effect: Floats, error: Floats, critical: Floats) -> Floats:
    """With which probability a true difference would be told from none, 0..1.

    Args:
        effect: The difference.
        error: Standard error of its estimate.
        critical: From which estimate on it is.
    """
    unit = np.where(error > 0, error, np.nan)
    return np.asarray(ndtr((np.abs(effect) - critical) / unit) + ndtr((-np.abs(effect) - critical) / unit))


def _side_by_side(base: EvaluatedImages, candidate: EvaluatedImages, images: int) -> EvaluatedImages:
    """Detections of both as those of one detector on ``2 I + 1`` images, objects in the last.

    The weight of image ``i`` is that of the base's detections, of ``I + i`` that of the candidate's.
    """
    return EvaluatedImages(
        scores=np.concatenate([base.scores, candidate.scores]),
        labels=np.concatenate([base.labels, candidate.labels]),
        images=np.concatenate([base.images, candidate.images + images]),
        outcomes=np.concatenate([base.outcomes, candidate.outcomes]),
        object_labels=base.object_labels,
        object_images=np.full(len(base.object_images), 2 * images),
    )

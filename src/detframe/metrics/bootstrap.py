"""Intervals of average precision by an image bootstrap: weighted counts, as drawing images with repetition gives them.

A replicate draws as many images as there are, with repetition. How often each was drawn is its weight, and its
detections and objects count that many times. Nothing is matched again, no image is copied, and no repetition is lost:
turning the draw into a set of images makes intervals 0.76 times too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from detframe.metrics.average_precision import IGNORED, TRUE_POSITIVE
from detframe.metrics.columns import check_labels, check_lengths, mean_of_known
from detframe.metrics.operating_points import best_f1, threshold_curve

Floats = NDArray[np.float64]

RECALLS = np.linspace(0, 1, 101)
"""Recalls that COCO reads precision at."""

VALUES_AT_ONCE = 2**20
"""Hits of a class times replicates that are counted together: 8 MiB an array."""


class EvaluatedImages(NamedTuple):
    """Matched detections and the objects of ``I`` images and ``C`` classes, in any order; ``T`` IoU thresholds."""

    scores: NDArray[Any]  # [D]
    labels: NDArray[Any]  # [D], 0..C-1
    images: NDArray[Any]  # [D], 0..I-1, the image's place, not its id
    outcomes: NDArray[Any]  # [D, T], average_precision's FALSE_POSITIVE, TRUE_POSITIVE or IGNORED
    object_labels: NDArray[Any]  # [G], 0..C-1, of the objects that can be found: not of those set aside
    object_images: NDArray[Any]  # [G], 0..I-1


class Interval(NamedTuple):
    """An estimate with its interval; arrays of one shape, NaN where there is nothing to measure."""

    estimate: Floats
    low: Floats
    high: Floats


class AveragePrecisionIntervals(NamedTuple):
    """Average precision with intervals."""

    per_class_and_iou: Interval  # [C, T]
    per_class: Interval  # [C], mean over the IoUs asked for
    per_iou: Interval  # [T], mean over the classes that have objects
    overall: Interval  # [], mean of these over classes: mAP


class BestF1(NamedTuple):
    """The highest F1 over all classes with one threshold for all, at each of ``T`` IoUs."""

    thresholds: Floats  # [T], NaN where nothing is found
    f1: Interval  # [T]


def bootstrap_weights(images: int, replicates: int, seed: int) -> NDArray[np.int32]:
    """How often each replicate draws each image, ``[B, I]``; rows sum to ``I``.

    Args:
        images: ``I``, at least 1. Where images are not independent (frames of one video, tiles of one board), draw
            groups and give each image its group's weight: ``bootstrap_weights(groups, ...)[:, group_of_image]``.
        replicates: ``B``.
        seed: The same seed gives the same draws.
    """
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(images, np.full(images, 1 / images), size=replicates)
    return np.asarray(draws, dtype=np.int32)


def average_precision_intervals(
    evaluated: EvaluatedImages,
    classes: int,
    weights: NDArray[np.int32],
    level: float = 0.95,
    averaged: Sequence[int] | None = None,
) -> AveragePrecisionIntervals:
    """Average precision of each class and IoU and its means, with bootstrap intervals.

    Args:
        evaluated: Detections within COCO's limit per image and class, and objects.
        classes: ``C``.
        weights: ``[B, I]``, from :func:`bootstrap_weights`.
        level: Share of such intervals that hold the true value, in 0..1.
        averaged: Places of the IoUs that means are taken over; None takes all.

    Raises:
        ValueError: As for :func:`weighted_average_precision`.
    """
    estimate = weighted_average_precision(evaluated, classes, np.ones((1, weights.shape[1]), dtype=np.int32))[0]
    replicates = weighted_average_precision(evaluated, classes, weights)
    columns = list(range(estimate.shape[-1])) if averaged is None else list(averaged)

    def interval(mean: Callable[[Floats], Floats]) -> Interval:
        return basic_interval(mean(estimate), mean(replicates), level)

    return AveragePrecisionIntervals(
        per_class_and_iou=interval(lambda values: values),
        per_class=interval(lambda values: values[..., columns].mean(axis=-1)),
        per_iou=interval(lambda values: mean_of_known(values, axis=-2)),
        overall=interval(lambda values: mean_of_known(values[..., columns], axis=-2).mean(axis=-1)),
    )


def weighted_average_precision(evaluated: EvaluatedImages, classes: int, weights: NDArray[np.int32]) -> Floats:
    """COCO's average precision where each image counts as often as its weight says.

    Args:
        evaluated: As for :func:`average_precision_intervals`.
        classes: ``C``.
        weights: ``[B, I]``, 0 or above; weights of one give
            :func:`detframe.metrics.average_precision.accumulate`'s figures.

    Returns:
        ``[B, C, T]``, 0..1, NaN where a class has no object in what was drawn.

    Raises:
        ValueError: Lengths differ, or a label or an image's place is out of range.
    """
    images = weights.shape[1]
    _check(evaluated, classes, images)
    result = np.full((len(weights), classes, evaluated.outcomes.shape[1]), np.nan)
    order = np.lexsort((-evaluated.scores, evaluated.labels))
    bounds = np.searchsorted(evaluated.labels[order], np.arange(classes + 1))
    ranked: dict[int, _Ranked] = {}
    for c in range(classes):
        rows = order[bounds[c] : bounds[c + 1]]
        objects = evaluated.object_images[evaluated.object_labels == c]
        if len(objects):
            ranked[c] = _rank(evaluated.outcomes[rows], evaluated.images[rows], objects, images)
    step = max(16, VALUES_AT_ONCE // max([1, *(one.counted.shape[0] for one in ranked.values())]))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        drawn = np.ascontiguousarray(weights[part].T, dtype=np.float64)  # [I, B]
        for c, one in ranked.items():
            result[part, c] = _ranked_average_precision(one, drawn).T
    return result


def best_f1_intervals(evaluated: EvaluatedImages, weights: NDArray[np.int32], level: float = 0.95) -> BestF1:
    """F1 of all classes together at the one threshold where it is highest, with bootstrap intervals.

    The threshold is that of all images: a detector is not given another for each sample of what it will meet. The
    estimate is the best of many, and so a little too high for new images.

    Args:
        evaluated: As for :func:`average_precision_intervals`.
        weights: ``[B, I]``, from :func:`bootstrap_weights`.
        level: As for :func:`average_precision_intervals`.
    """
    images, ious = weights.shape[1], evaluated.outcomes.shape[1]
    thresholds, estimate = np.full(ious, np.nan), np.zeros(ious)
    replicates = np.zeros((len(weights), ious))
    objects = np.bincount(evaluated.object_images, minlength=images)
    for t in range(ious):
        counted = evaluated.outcomes[:, t] != IGNORED
        hit = evaluated.outcomes[:, t] == TRUE_POSITIVE
        point = best_f1(threshold_curve(evaluated.scores[counted], hit[counted], len(evaluated.object_images)))
        if point is None:
            continue
        thresholds[t], estimate[t] = point.threshold, point.f1
        kept = counted & (evaluated.scores >= point.threshold)
        hits = weights @ np.bincount(evaluated.images[kept & hit], minlength=images)
        total = weights @ (np.bincount(evaluated.images[kept], minlength=images) + objects)  # F1 is 2 TP / (D + G)
        replicates[:, t] = 2 * hits / np.maximum(total, 1)
    return BestF1(thresholds, basic_interval(estimate, replicates, level))


def basic_interval(estimate: Floats, replicates: Floats, level: float) -> Interval:
    """Basic (reflected) bootstrap interval of a share, on the scale ``arcsin(sqrt(share))``.

    Average precision of a small sample is biased upwards, since interpolation takes maxima, and that of a bootstrap
    sample once more, so percentiles of replicates lie too high; reflecting them at the estimate takes that back (Efron
    and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13). The scale, on which a share's spread does not
    depend on the share, keeps intervals near 1 wide enough and within 0..1. On simulated data of 70 to 1,500 images 91
    to 95 % of 95 % intervals held the true AP, where percentiles gave 86 to 97.

    It knows only the images there are. With fewer than about 50 objects of a class it is too narrow (3 images with 17
    objects: 53 %), and where all replicates equal the estimate it is a point. The bootstrap sees about half of the bias
    upwards: over few classes that is little beside the spread, but a mean over many rare classes averages the spread
    away and keeps the bias, so its interval may end below the estimate and still lie too high (80 classes, most with
    fewer than 100 objects: 55 %).

    Args:
        estimate: ``[...]``, 0..1, of all images.
        replicates: ``[B, ...]``, 0..1; NaN, where a replicate has nothing to measure, is left out.
        level: 0..1.
    """
    centre = np.arcsin(np.sqrt(np.asarray(estimate, dtype=np.float64)))
    flat = np.arcsin(np.sqrt(replicates)).reshape(len(replicates), -1)
    bounds = np.full((2, flat.shape[1]), np.nan)
    for i, value in enumerate(centre.ravel()):
        drawn = flat[~np.isnan(flat[:, i]), i]
        if len(drawn) and not math.isnan(value):
            bounds[:, i] = 2 * value - np.quantile(drawn, [(1 + level) / 2, (1 - level) / 2])
    shares = (np.sin(bounds.clip(0, math.pi / 2)) ** 2).reshape(2, *replicates.shape[1:])
    return Interval(np.asarray(estimate, dtype=np.float64), shares[0, ...], shares[1, ...])


class _Ranked(NamedTuple):
    """What the replicates of a class have in common; ``H`` detections are a hit at one IoU or more."""

    hits: Floats  # [H, T], 1 where the detection is a true positive, by descending score
    images: NDArray[Any]  # [H]
    counted: csr_array  # [H * K, I], detections from each hit back to the one before; K is T, or 1 if none is ignored
    objects: NDArray[Any]  # [G], images


def _rank(outcomes: NDArray[Any], images: NDArray[Any], objects: NDArray[Any], image_count: int) -> _Ranked:
    """Sum up what lies between hits, where precision is never looked at.

    Args:
        outcomes: ``[D, T]`` of one class, by descending score.
        images: ``[D]``.
        objects: ``[G]``.
        image_count: ``I``.
    """
    hits = outcomes == TRUE_POSITIVE
    rows = np.flatnonzero(hits.any(axis=1))
    counts = outcomes[: rows[-1] + 1 if len(rows) else 0] != IGNORED
    if counts.all():
        counts = counts[:, :1]  # all IoUs count alike
    ious = counts.shape[1]
    detections, columns = np.nonzero(counts)
    places = np.searchsorted(rows, detections) * ious + columns
    shape = (len(rows) * ious, image_count)
    counted = csr_array((np.ones(len(places)), (places, images[detections])), shape=shape)
    return _Ranked(hits[rows].astype(np.float64), images[rows], counted, objects)


def _ranked_average_precision(ranked: _Ranked, drawn: Floats) -> Floats:
    """Average precision of one class, ``[T, B]``: the mean of the interpolated precision at :data:`RECALLS`.

    It goes from the last hit to the first, so that the highest precision yet is the interpolated one. Several copies of
    an image have equal scores, so a hit that counts ``w`` times is one step of ``w``. Only its end matters: copies of a
    true positive raise precision one after the other.

    Args:
        ranked: The class.
        drawn: ``[I, B]``, weights.
    """
    hits = ranked.hits
    count, ious = hits.shape
    total = drawn[ranked.objects].sum(axis=0)  # [B]
    weights = drawn[ranked.images]  # [H, B]
    between = (ranked.counted @ drawn).reshape(count, -1 if count else 1, drawn.shape[1])  # [H, K, B]
    counted = between.sum(axis=0)  # [K, B], detections up to the hit, itself included
    found = hits.T @ weights  # [T, B], true positives up to the hit, itself included
    area, envelope, buffer = (np.zeros((ious, drawn.shape[1])) for _ in range(3))
    reached = _recalls_reached(found, total)
    for row in range(count - 1, -1, -1):
        # np.spacing(1) is COCOeval's.
        np.maximum(envelope, np.divide(found, counted + np.spacing(1), out=buffer), out=envelope)
        found -= np.multiply(hits[row, :, None], weights[row], out=buffer)
        counted -= between[row]
        before = _recalls_reached(found, total)
        area += np.multiply(envelope, np.subtract(reached, before, out=buffer), out=buffer)
        reached = before
    area += envelope * reached  # recall 0
    area /= len(RECALLS)
    area[:, total == 0] = np.nan
    return area


def _recalls_reached(found: Floats, total: Floats) -> Floats:
    """How many of :data:`RECALLS` are at most ``found / total``, as float64 compares them; shapes broadcast."""
    recall = found / np.maximum(total, 1)
    nearest = np.rint(recall * 100)
    nearest += nearest * 0.01 <= recall  # np.linspace(0, 1, 101)[n] is n * 0.01
    return nearest


def _check(evaluated: EvaluatedImages, classes: int, images: int) -> None:
    scores, labels, places, outcomes, object_labels, object_images = evaluated
    check_lengths(scores=scores, labels=labels, images=places, outcomes=outcomes)
    check_lengths(object_labels=object_labels, object_images=object_images)
    check_labels("labels", labels, classes)
    check_labels("object_labels", object_labels, classes)
    check_labels("images", places, images)
    check_labels("object_images", object_images, images)

"""Optimal localisation recall precision: one error for bad boxes, false alarms and misses, and its three parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detframe.metrics.columns import check_labels, check_lengths, check_shares, mean_of_known
from detframe.metrics.operating_points import threshold_curves

Floats = NDArray[np.float64]


class OptimalLrp(NamedTuple):
    """The least LRP error of each class over score thresholds, and its parts there; NaN where a class has no objects.

    A class of which nothing was found has an error of 1, all objects missed, and no other part or threshold: NaN.
    """

    error: Floats  # [C], 0..1
    localisation: Floats  # [C], 0..1 - IoU threshold, mean of 1 - IoU over true positives
    false_positive: Floats  # [C], 0..1, 1 - precision
    false_negative: Floats  # [C], 0..1, 1 - recall
    threshold: Floats  # [C], 0..1, the lowest score that is kept


class MeanOptimalLrp(NamedTuple):
    """Means over the classes that have a value; NaN where none has."""

    error: float
    localisation: float
    false_positive: float
    false_negative: float


def optimal_lrp(
    scores: NDArray[Any],
    ious: NDArray[Any],
    true_positive: NDArray[Any],
    labels: NDArray[Any],
    positives: NDArray[Any],
    iou_threshold: float = 0.5,
) -> OptimalLrp:
    """Optimal LRP (oLRP) of each class.

    For the detections from a score threshold on, ``LRP = (sum over TP of (1 - IoU) / (1 - iou_threshold) + FP + FN) /
    (TP + FP + FN)``; oLRP is the least over thresholds.

    Oksuz et al., "One Metric to Measure them All", TPAMI 2022. Only thresholds that exist are tried: equal scores are
    kept together, where the authors' code also splits them.

    Args:
        scores: ``[D]``, 0..1, without detections that were set aside.
        ious: ``[D]``, 0..1, with the object found; of false positives it does not matter.
        true_positive: ``[D]`` bool, matched at ``iou_threshold``.
        labels: ``[D]``, 0..C-1.
        positives: ``[C]``, objects of each class.
        iou_threshold: 0 up to, not including, 1.

    Raises:
        ValueError: Lengths differ, a value or label is out of range, or there are fewer objects than true positives.
    """
    check_lengths(scores=scores, ious=ious, true_positive=true_positive, labels=labels)
    check_shares("ious", ious)
    check_labels("labels", labels, len(positives))
    distance = np.where(true_positive, 1 - np.asarray(ious, dtype=np.float64), 0.0)
    result = OptimalLrp(*(np.full(len(positives), np.nan) for _ in OptimalLrp._fields))
    for c, curve in enumerate(threshold_curves(scores, true_positive, labels, positives)):
        if not curve.positives:
            continue
        result.error[c], result.false_negative[c] = 1.0, 1.0
        if not len(curve.thresholds) or not curve.true_positives[-1]:
            continue
        own = np.flatnonzero(labels == c)
        own = own[np.argsort(-scores[own], kind="stable")]
        kept = curve.true_positives + curve.false_positives
        away = np.cumsum(distance[own])[kept - 1]
        missed = curve.positives - curve.true_positives
        errors = (away / (1 - iou_threshold) + curve.false_positives + missed) / (kept + missed)
        best = int(np.argmin(np.where(curve.true_positives > 0, errors, np.inf)))
        result.error[c] = errors[best]
        result.localisation[c] = away[best] / curve.true_positives[best]
        result.false_positive[c] = 1 - curve.precision[best]
        result.false_negative[c] = 1 - curve.recall[best]
        result.threshold[c] = curve.thresholds[best]
    return result


def mean_optimal_lrp(classes: OptimalLrp) -> MeanOptimalLrp:
    """Means over classes of the error and of each part."""
    return MeanOptimalLrp(*(float(mean_of_known(part)) for part in classes[:4]))

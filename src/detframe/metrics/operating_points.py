"""What a score threshold gives, and the threshold for a stated aim.

A detection is kept where its score is at least the threshold. All functions look at one class, or at detections of all
classes taken for one; detections that the matcher set aside are to be left out first.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detframe.metrics.columns import check_labels, check_lengths, check_shares

Floats = NDArray[np.float64]


class ThresholdCurve(NamedTuple):
    """What each threshold gives, from the highest threshold to the lowest; ``P`` of them."""

    thresholds: Floats  # [P], descending
    true_positives: NDArray[np.int64]  # [P], detections kept that found an object
    false_positives: NDArray[np.int64]  # [P], detections kept that found none
    positives: int  # objects there are

    @property
    def precision(self) -> Floats:
        """``TP / (TP + FP)``, ``[P]``, 0..1, NaN where nothing is kept."""
        kept = self.true_positives + self.false_positives
        return self.true_positives / np.where(kept > 0, kept, np.nan)

    @property
    def recall(self) -> Floats:
        """``TP / objects``, ``[P]``, 0..1, NaN where there are no objects."""
        return self.true_positives / (self.positives or math.nan)

    @property
    def f1(self) -> Floats:
        """``2 TP / (detections kept + objects)``, ``[P]``, 0..1, NaN where there are no objects."""
        return 2 * self.true_positives / (self.true_positives + self.false_positives + (self.positives or math.nan))


class OperatingPoint(NamedTuple):
    """One threshold and what it gives."""

    threshold: float  # 0..1, the lowest score that is kept; infinity where it is best to keep nothing
    precision: float  # 0..1, NaN where nothing is kept
    recall: float  # 0..1
    f1: float  # 0..1
    true_positives: int
    false_positives: int
    false_negatives: int


def threshold_curve(scores: NDArray[Any], true_positive: NDArray[Any], positives: int) -> ThresholdCurve:
    """Counts at every threshold that makes a difference: each score that occurs, equal ones once.

    Args:
        scores: ``[D]``, 0..1.
        true_positive: ``[D]`` bool.
        positives: Objects there are, at least as many as true positives.

    Raises:
        ValueError: Lengths differ, a score is outside 0..1, or there are fewer objects than true positives.
    """
    check_lengths(scores=scores, true_positive=true_positive)
    check_shares("scores", scores)
    hits = int(np.count_nonzero(true_positive))
    if hits > positives:
        raise ValueError(f"positives: {positives} objects cannot be found by {hits} true positives.")
    order = np.argsort(-scores, kind="stable")
    ordered = np.asarray(scores, dtype=np.float64)[order]
    found = np.cumsum(np.asarray(true_positive, dtype=np.int64)[order])
    # Equal scores are kept or dropped together, so only the last of them is a threshold.
    last = np.flatnonzero(np.diff(ordered, append=-1.0))
    return ThresholdCurve(ordered[last], found[last], last + 1 - found[last], positives)


def threshold_curves(
    scores: NDArray[Any], true_positive: NDArray[Any], labels: NDArray[Any], positives: NDArray[Any]
) -> list[ThresholdCurve]:
    """The curve of each class.

    Args:
        scores: As for :func:`threshold_curve`.
        true_positive: As for :func:`threshold_curve`.
        labels: ``[D]``, 0..C-1.
        positives: ``[C]``, objects of each class.

    Raises:
        ValueError: As for :func:`threshold_curve`, or a label is outside 0..C-1.
    """
    check_lengths(scores=scores, true_positive=true_positive, labels=labels)
    check_labels("labels", labels, len(positives))
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(positives) + 1))
    rows = (order[start:end] for start, end in itertools.pairwise(bounds))
    return [
        threshold_curve(scores[own], true_positive[own], int(count)) for own, count in zip(rows, positives, strict=True)
    ]


def at_thresholds(curve: ThresholdCurve, thresholds: Floats) -> ThresholdCurve:
    """The curve read at other thresholds, such as an even grid on which classes are drawn or averaged.

    Args:
        curve: From :func:`threshold_curve`.
        thresholds: ``[P]``, descending, any values.
    """
    kept = np.searchsorted(-curve.thresholds, -np.asarray(thresholds, dtype=np.float64), side="right")
    found, false = (np.append(0, counts)[kept] for counts in (curve.true_positives, curve.false_positives))
    return ThresholdCurve(np.asarray(thresholds, dtype=np.float64), found, false, curve.positives)


def interpolated_precision(curve: ThresholdCurve) -> Floats:
    """The highest precision at this recall or a higher one, ``[P]``: what average precision is the area under."""
    return np.maximum.accumulate(curve.precision[::-1])[::-1]


def best_f1(curve: ThresholdCurve) -> OperatingPoint | None:
    """The threshold with the highest F1, of equal ones the highest.

    Returns:
        None where no threshold has an F1 above 0: there are no objects, or none was found.
    """
    return _best(curve, curve.f1, curve.true_positives > 0)


def most_recall_at_precision(curve: ThresholdCurve, precision: float) -> OperatingPoint | None:
    """The threshold with the most recall among those with at least this precision; of equal ones the highest.

    Args:
        curve: From :func:`threshold_curve`.
        precision: 0..1.

    Returns:
        None where no threshold that finds anything has this precision.
    """
    return _best(curve, curve.recall, (curve.true_positives > 0) & (curve.precision >= precision))


def most_precision_at_recall(curve: ThresholdCurve, recall: float) -> OperatingPoint | None:
    """The threshold with the most precision among those with at least this recall; of equal ones that with more recall.

    Args:
        curve: From :func:`threshold_curve`.
        recall: 0..1.

    Returns:
        None where no threshold that finds anything has this recall: detections are missing, not a lower threshold.
    """
    allowed = np.flatnonzero((curve.true_positives > 0) & (curve.recall >= recall))
    if not len(allowed):
        return None
    # From the lowest threshold, so that of equal precisions the one with more recall comes first.
    backwards = allowed[::-1]
    return _point(curve, int(backwards[np.argmax(curve.precision[backwards])]))


def least_cost(curve: ThresholdCurve, false_positive_cost: float, false_negative_cost: float) -> OperatingPoint | None:
    """The threshold at which false alarms and misses together cost least; of equal ones the highest.

    To keep nothing is a choice too, with the threshold infinity: its cost is that of missing every object.

    Args:
        curve: From :func:`threshold_curve`.
        false_positive_cost: Of one false alarm, in any unit, at least 0.
        false_negative_cost: Of one miss, in the same unit, at least 0.

    Returns:
        None where there are no objects: false alarms alone say nothing about the trade.
    """
    if not curve.positives:
        return None
    missed = curve.positives - curve.true_positives
    costs = false_positive_cost * curve.false_positives + false_negative_cost * missed
    nothing = false_negative_cost * curve.positives
    if not len(costs) or costs.min() >= nothing:
        return OperatingPoint(math.inf, math.nan, 0.0, 0.0, 0, 0, curve.positives)
    return _point(curve, int(np.argmin(costs)))


def _best(curve: ThresholdCurve, values: Floats, allowed: NDArray[np.bool_]) -> OperatingPoint | None:
    """The first, so the highest threshold, with the greatest value among those allowed."""
    rows = np.flatnonzero(allowed)
    return _point(curve, int(rows[np.argmax(values[rows])])) if len(rows) else None


def _point(curve: ThresholdCurve, row: int) -> OperatingPoint:
    found, false = int(curve.true_positives[row]), int(curve.false_positives[row])
    return OperatingPoint(
        threshold=float(curve.thresholds[row]),
        precision=float(curve.precision[row]),
        recall=float(curve.recall[row]),
        f1=float(curve.f1[row]),
        true_positives=found,
        false_positives=false,
        false_negatives=curve.positives - found,
    )

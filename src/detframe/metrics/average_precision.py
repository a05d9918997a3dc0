"""Average precision and recall from matched detections: COCO's accumulation as pure functions on flat arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Curves(NamedTuple):
    """What COCO accumulates; -1 where a class has no object in an area range."""

    precision: NDArray[np.float64]  # [C, R, T, recall thresholds] at the largest number of detections
    recall: NDArray[np.float64]  # [C, R, T, M] for each of M limits on detections per image and class


def accumulate(
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    ranks: NDArray[np.int64],
    matched: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    positives: NDArray[np.int64],
    classes: NDArray[np.int64],
    limits: list[int],
    recall_thresholds: NDArray[np.float64],
) -> Curves:
    """Precision at recall thresholds, and recall, as ``COCOeval.accumulate``.

    Args:
        scores: ``[D]``, detections in the order of their images, which decides between equal scores.
        labels: ``[D]``.
        ranks: ``[D]``, place of a detection among those of its image and class, from 0.
        matched: ``[D, R, T]``, the detection found an object that counts.
        ignored: ``[D, R, T]``, the detection does not count.
        positives: ``[C, R]``, objects that count.
        classes: ``[C]``, labels to report.
        limits: Detections per image and class, ascending.
        recall_thresholds: ``[S]``, 0..1.
    """
    ranges, thresholds = matched.shape[1:]
    precision = np.full((len(classes), ranges, thresholds, len(recall_thresholds)), -1.0)
    recall = np.full((len(classes), ranges, thresholds, len(limits)), -1.0)
    order = np.lexsort((-scores, labels))  # stable: equal scores keep the order of their images
    bounds = np.searchsorted(labels[order], np.stack((classes, classes + 1)))
    for c in range(len(classes)):
        rows = order[bounds[0, c] : bounds[1, c]]
        present = np.flatnonzero(positives[c] > 0)
        recall[c, present] = 0
        precision[c, present] = 0
        if not len(rows) or not len(present):
            continue
        rows = rows[ranks[rows] < limits[-1]]
        true = matched[rows]
        false = ~true & ~ignored[rows]
        for m, limit in enumerate(limits):
            found = true[ranks[rows] < limit].sum(axis=0)  # [R, T]
            recall[c, present, :, m] = found[present] / positives[c, present, None]
        true_sum = np.cumsum(true, axis=0, dtype=np.float64)
        false_sum = np.cumsum(false, axis=0, dtype=np.float64)
        pure = true_sum / (true_sum + false_sum + np.spacing(1))
        envelope = np.maximum.accumulate(pure[::-1], axis=0)[::-1]
        for r in present:
            for t in range(thresholds):
                places = np.searchsorted(true_sum[:, r, t] / positives[c, r], recall_thresholds, side="left")
                reached = places < len(rows)
                precision[c, r, t, reached] = envelope[places[reached], r, t]
    return Curves(precision, recall)


def mean_of_defined(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not -1; -1 where all are."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0

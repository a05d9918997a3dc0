"""What a table of predictions says of a detector: curves, calibration, confusion, error types, the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.prediction_rows import TableRows
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.calibration import ReliabilityBins, detection_ece, localisation_aware_ece, reliability_bins
from detframe.metrics.confusion import confusion_matrix
from detframe.metrics.error_costs import ErrorCosts, error_costs
from detframe.metrics.errors import ErrorTable, count_errors, find_errors
from detframe.metrics.olrp import optimal_lrp
from detframe.metrics.operating_points import OperatingPoint, ThresholdCurve, best_f1, threshold_curve, threshold_curves
from detframe.metrics.rows import match_rows

RELIABILITY_BINS = 10

Floats = NDArray[np.float64]


class WorstImage(NamedTuple):
    """An image and its mistakes at the thresholds of the best F1, IoU 0.5."""

    image_id: int
    missed: int  # objects
    false: int  # detections that found nothing


class Evidence(NamedTuple):
    """Figures of one table, for ``C`` classes; IoU 0.5 where nothing else is said."""

    positives: NDArray[np.int64]  # [C], objects that count
    curves: list[ThresholdCurve]  # C of them
    curves_75: list[ThresholdCurve]  # C of them, at IoU 0.75
    all_classes: ThresholdCurve  # of all detections, taken for one class
    best: list[OperatingPoint | None]  # C of them, the best F1; None where nothing was found
    bins: ReliabilityBins  # of all detections
    d_ece: float  # 0..1, NaN where no detection scores enough
    laece_0: float  # 0..1, of detections from each class's LRP-optimal threshold on; NaN where there is none
    confusion: Tensor  # [C + 1, C + 1] int64, at the thresholds of the best F1; the last index is the background
    errors: Tensor  # [6, C] int64, in the order of ErrorType, of all detections
    costs: ErrorCosts
    worst: list[WorstImage]  # the one with most mistakes first; images without any are not there


def examine(rows: TableRows, class_count: int) -> Evidence:
    """All figures of the rows of a table.

    A class of which nothing was found has no threshold of its own; it takes that of all classes.
    """
    errors = find_errors(rows.detections, rows.truths, class_count)
    positives = torch.bincount(rows.truths.labels[~rows.truths.ignore], minlength=class_count).numpy()
    scores = rows.detections.scores.double().numpy()
    labels = rows.detections.labels.numpy()

    counted = (errors.outcome != IGNORED).numpy()
    hits = (errors.outcome == TRUE_POSITIVE).numpy()[counted]
    curves = threshold_curves(scores[counted], hits, labels[counted], positives)
    all_classes = threshold_curve(scores[counted], hits, int(positives.sum()))
    at_75 = match_rows(rows.detections, rows.truths, 0.75)
    counted_75 = ~at_75.ignored.numpy()
    hits_75 = (at_75.truth >= 0).numpy()[counted_75]

    best = [best_f1(curve) for curve in curves]
    overall = best_f1(all_classes)
    otherwise = overall.threshold if overall else 0.5
    thresholds = torch.tensor([point.threshold if point else otherwise for point in best], dtype=torch.float32)
    return Evidence(
        positives=positives,
        curves=curves,
        curves_75=threshold_curves(scores[counted_75], hits_75, labels[counted_75], positives),
        all_classes=all_classes,
        best=best,
        bins=reliability_bins(scores[counted], hits, RELIABILITY_BINS),
        d_ece=detection_ece(scores[counted], hits),
        laece_0=_laece_0(rows, positives),
        confusion=confusion_matrix(rows.detections, rows.truths, class_count, score_threshold=thresholds).matrix,
        errors=count_errors(errors, class_count),
        costs=error_costs(errors, class_count),
        worst=_worst_images(rows, errors, thresholds),
    )


def _laece_0(rows: TableRows, positives: NDArray[np.int64]) -> float:
    matches = match_rows(rows.detections, rows.truths, 0.0)
    counted = ~matches.ignored
    scores = rows.detections.scores[counted].double().numpy()
    labels = rows.detections.labels[counted].numpy()
    ious = matches.iou[counted].numpy()
    thresholds = optimal_lrp(scores, ious, ious > 0, labels, positives, iou_threshold=0.0).threshold
    kept = scores >= thresholds[labels]
    return localisation_aware_ece(scores[kept], ious[kept], labels[kept], positives).mean


def _worst_images(rows: TableRows, errors: ErrorTable, thresholds: Tensor) -> list[WorstImage]:
    kept = rows.detections.scores >= thresholds[rows.detections.labels]
    # The last entry is for "found by none", -1. A detection that is dropped frees no object for a worse one: that
    # scores lower still.
    missed = ~rows.truths.ignore & ~torch.nn.functional.pad(kept, (0, 1))[errors.found_by]
    false = kept & (errors.outcome == FALSE_POSITIVE)
    count = len(rows.image_ids)
    missed_of_image = torch.bincount(rows.truths.images[missed], minlength=count)
    false_of_image = torch.bincount(rows.detections.images[false], minlength=count)
    mistakes = missed_of_image + false_of_image
    order = (-mistakes).argsort(stable=True)[: int((mistakes > 0).sum())]
    columns = (rows.image_ids[order], missed_of_image[order], false_of_image[order])
    return [WorstImage(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def thinned(curve: ThresholdCurve, points: int) -> NDArray[np.int64]:
    """At most ``points`` rows of a curve, even in recall, each the first to reach its recall, ``[P]``."""
    if not len(curve.thresholds) or not curve.positives:
        return np.zeros(0, dtype=np.int64)
    recall = curve.recall
    return np.unique(np.searchsorted(recall, np.linspace(recall[0], recall[-1], points)))


def with_most_objects(positives: NDArray[np.int64], count: int) -> list[int]:
    """Labels of the ``count`` classes with the most objects, ascending."""
    return sorted(np.argsort(-positives, kind="stable")[:count].tolist())


def lumped(matrix: Tensor, shown: Sequence[int]) -> Tensor:
    """A confusion matrix with the classes that are not shown taken for one, which comes before the background.

    Args:
        matrix: ``[C + 1, C + 1]``, the background last.
        shown: ``S`` labels, ascending.

    Returns:
        ``[S + 2, S + 2]``, or ``[S + 1, S + 1]`` where all are shown.
    """
    place = torch.full((len(matrix),), len(shown))
    place[list(shown)] = torch.arange(len(shown))
    rest = int(len(shown) < len(matrix) - 1)
    place[-1] = len(shown) + rest
    side = len(shown) + rest + 1
    rows = matrix.new_zeros(side, len(matrix)).index_add_(0, place, matrix)
    return matrix.new_zeros(side, side).index_add_(1, place, rows)

"""What a table of predictions says of a detector: curves, calibration, confusion, errors, the worst images.

The report of `diagnose` and the page in W&B show these figures, so that they are the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.prediction_table import TableRows
from detframe.analysis.row_metrics import judge_iou, judge_precision
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED
from detframe.metrics.calibration import (
    ClassErrors,
    ReliabilityBins,
    detection_ece,
    localisation_aware_ace,
    localisation_aware_ece,
    reliability_bins,
    reliability_bins_per_class,
)
from detframe.metrics.confusion import Confusion, confusion_matrix
from detframe.metrics.correction_cost import correction_costs
from detframe.metrics.error_costs import ErrorCosts, error_costs
from detframe.metrics.errors import ErrorTable, find_errors
from detframe.metrics.operating_points import OperatingPoint, ThresholdCurve, best_f1, threshold_curve, threshold_curves
from detframe.metrics.rows import DetectionRows, TruthRows, match_rows

RELIABILITY_BINS = 10

Aim = Callable[[ThresholdCurve], OperatingPoint | None]
"""Chooses an operating point, such as :func:`~detframe.metrics.operating_points.best_f1`."""


class Calibration(NamedTuple):
    """How far scores can be believed, of all detections but those set aside."""

    bins: ReliabilityBins  # [10], score against precision at IoU 0.5, all classes
    class_bins: ReliabilityBins  # [C, 10]
    detection_ece: float  # 0..1, scores from 0.3
    localisation_ece: ClassErrors  # LaECE0
    localisation_ace: ClassErrors  # LaACE0


class OperatingErrors(NamedTuple):
    """What is wrong where each class has its threshold: what a user of the detector meets."""

    rows: Tensor  # [K] int64, the detections that are kept
    errors: ErrorTable  # of these


class WorstImage(NamedTuple):
    """An image and its mistakes at the operating thresholds, IoU 0.5."""

    place: int  # of the image, 0..I-1
    cost: float  # optimal correction cost
    objects: int
    missed: int  # objects
    false: int  # detections that found nothing


class Evidence(NamedTuple):
    """Figures of one table, for ``C`` classes and ``I`` images; IoU 0.5 where nothing else is said."""

    positives: NDArray[np.int64]  # [C], objects that count
    curves: list[ThresholdCurve]  # C of them
    curves_75: list[ThresholdCurve]  # C of them, at IoU 0.75
    all_classes: ThresholdCurve  # of all detections, taken for one class
    points: list[OperatingPoint | None]  # C of them, None where no threshold meets the aim
    thresholds: NDArray[np.float64]  # [C], what is kept in the parts below
    calibration: Calibration
    confusion: Confusion  # at the thresholds
    errors: ErrorTable  # of all detections, as AP counts them
    costs: ErrorCosts
    operating: OperatingErrors
    correction: NDArray[np.float64]  # [I], optimal correction cost


def examine(rows: TableRows, class_count: int, aim: Aim = best_f1) -> Evidence:
    """The figures of the rows of a table.

    A class for which no threshold meets the aim takes that of all classes, or 0.5.
    """
    detections, truths = rows.detections, rows.truths
    positives = torch.bincount(truths.labels[~truths.ignore], minlength=class_count).numpy()
    counted, targets = judge_precision(detections, truths)
    hits = targets > 0
    scores, labels = detections.scores.numpy()[counted], detections.labels.numpy()[counted]
    curves = threshold_curves(scores, hits, labels, positives)
    all_classes = threshold_curve(scores, hits, int(positives.sum()))
    at_75 = match_rows(detections, truths, 0.75)
    counted_75 = ~at_75.ignored.numpy()

    points = [aim(curve) for curve in curves]
    overall = aim(all_classes)
    otherwise = overall.threshold if overall is not None else 0.5
    thresholds = np.array([otherwise if point is None else point.threshold for point in points])
    limits = torch.from_numpy(thresholds)
    kept = (detections.scores.double() >= limits[detections.labels]).nonzero().flatten()
    at_thresholds = find_errors(DetectionRows(*(column[kept] for column in detections)), truths, class_count)
    shown = at_thresholds.outcome != IGNORED
    errors = find_errors(detections, truths, class_count)
    return Evidence(
        positives=positives,
        curves=curves,
        curves_75=threshold_curves(
            detections.scores.numpy()[counted_75],
            (at_75.truth >= 0).numpy()[counted_75],
            detections.labels.numpy()[counted_75],
            positives,
        ),
        all_classes=all_classes,
        points=points,
        thresholds=thresholds,
        calibration=_calibration(detections, truths, hits, scores, labels, positives),
        confusion=confusion_matrix(detections, truths, class_count, score_threshold=limits.to(detections.scores.dtype)),
        errors=errors,
        costs=error_costs(errors, class_count),
        operating=OperatingErrors(kept, at_thresholds),
        correction=correction_costs(
            DetectionRows(*(column[shown] for column in at_thresholds.detections)), truths, len(rows.image_ids)
        ),
    )


def worst_images(evidence: Evidence, most: int) -> list[WorstImage]:
    """The images that are dearest to correct; those that need nothing are not among them."""
    errors = evidence.operating.errors
    counted = ~errors.truths.ignore
    columns = (
        errors.truths.images[counted],
        errors.truths.images[counted & (errors.found_by < 0)],
        errors.detections.images[errors.outcome == FALSE_POSITIVE],
    )
    objects, missed, false = (torch.bincount(images, minlength=len(evidence.correction)) for images in columns)
    order = np.argsort(-evidence.correction, kind="stable")[:most]
    return [
        WorstImage(place, float(evidence.correction[place]), int(objects[place]), int(missed[place]), int(false[place]))
        for place in order.tolist()
        if evidence.correction[place] > 0
    ]


def _calibration(
    detections: DetectionRows,
    truths: TruthRows,
    hits: NDArray[np.bool_],
    scores: NDArray[Any],
    labels: NDArray[Any],
    positives: NDArray[Any],
) -> Calibration:
    rows, ious = judge_iou(detections, truths)
    columns = (detections.scores.numpy()[rows], ious, detections.labels.numpy()[rows])
    return Calibration(
        bins=reliability_bins(scores, hits, RELIABILITY_BINS),
        class_bins=reliability_bins_per_class(scores, hits, labels, len(positives), RELIABILITY_BINS),
        detection_ece=detection_ece(scores, hits),
        localisation_ece=localisation_aware_ece(*columns, positives),
        localisation_ace=localisation_aware_ace(*columns, positives),
    )


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

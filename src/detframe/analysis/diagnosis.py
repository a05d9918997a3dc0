"""All figures of a diagnosis, from the rows of an evaluation and THE matcher: pure, no file and no picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.evaluation import Evaluation
from detframe.analysis.prediction_table import TableRows, rows_of_table
from detframe.analysis.row_metrics import judge_iou, judge_precision, mean_average_precision
from detframe.analysis.slicing import Slice, slices
from detframe.metrics.average_precision import IGNORED, TRUE_POSITIVE
from detframe.metrics.bootstrap import (
    AveragePrecisionIntervals,
    EvaluatedImages,
    average_precision_intervals,
    bootstrap_weights,
)
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
from detframe.metrics.error_costs import ConfusionCost, ErrorCosts, cost_of_rows, error_costs, rank_confusions
from detframe.metrics.errors import ErrorTable, find_errors
from detframe.metrics.olrp import OptimalLrp, optimal_lrp
from detframe.metrics.operating_points import (
    OperatingPoint,
    ThresholdCurve,
    best_f1,
    least_cost,
    most_precision_at_recall,
    most_recall_at_precision,
    threshold_curves,
)
from detframe.metrics.rows import DetectionRows, TruthRows, outcomes_of_rows, within_limit
from detframe.metrics.slices import SliceGaps, slice_gaps

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
LIMIT = 100
"""Detections of an image and class that count in AP, as in COCO."""

FALLBACK_THRESHOLD = 0.5
"""For a class of which no threshold meets the aim."""

Aim = Callable[[ThresholdCurve], OperatingPoint | None]


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


class SliceResult(NamedTuple):
    """One slice at the operating thresholds, and what its errors cost."""

    part: Slice
    cost: float  # AP at 0.5 that the mean over classes would gain if the slice held no error
    recall: dict[str, float]  # fields of SliceGaps: of its objects, found
    precision: dict[str, float]  # of its detections, right


class Diagnosis(NamedTuple):
    """Everything that the report shows."""

    rows: TableRows
    metrics: dict[str, Any]  # the content of a metrics file
    ious: list[float]  # COCO's and others that were asked for, ascending
    ap: AveragePrecisionIntervals  # at `ious`, with means over COCO's
    curves: list[ThresholdCurve]  # by class, at IoU 0.5
    points: list[OperatingPoint | None]  # by class, None where no threshold meets the aim
    thresholds: NDArray[np.float64]  # [C], what is kept in the parts below
    olrp: OptimalLrp
    calibration: Calibration
    confusion: Confusion
    errors: ErrorTable  # of all detections, as AP counts them
    costs: ErrorCosts
    confusions: list[ConfusionCost]
    operating: OperatingErrors
    slices: list[SliceResult]  # the surest to be worse first
    correction: NDArray[np.float64]  # [I], optimal correction cost


def parse_aim(text: str) -> Aim:
    """What an operating threshold is to reach, from ``f1``, ``precision=0.95``, ``recall=0.9`` or ``cost=1:10``.

    A cost is that of a false alarm to that of a miss.

    Raises:
        ValueError: It is none of these.
    """
    name, _, value = text.partition("=")
    try:
        if name == "f1" and not value:
            return best_f1
        if name == "cost":
            alarm, miss = (float(part) for part in value.split(":"))
            if min(alarm, miss) >= 0 and max(alarm, miss) > 0:
                return lambda curve: least_cost(curve, alarm, miss)
        elif name in ("precision", "recall") and 0 < float(value) <= 1:
            reach = most_recall_at_precision if name == "precision" else most_precision_at_recall
            return lambda curve: reach(curve, float(value))
    except ValueError:
        pass
    raise ValueError(f"--aim is {text!r}; give f1, precision=0.95, recall=0.9, or cost=1:10 (a false alarm to a miss).")


def diagnose_rows(
    evaluation: Evaluation,
    aim: Aim,
    ious: Sequence[float],
    of_images: Mapping[str, NDArray[Any]],
    replicates: int,
    seed: int,
) -> Diagnosis:
    """Compute all figures.

    Args:
        evaluation: What was found and what is there.
        aim: Chooses the operating threshold of each class.
        ious: Further IoUs to give AP at, besides COCO's.
        of_images: Properties of the images to slice by, each ``[I]``.
        replicates: Of the bootstrap.
        seed: Of the bootstrap.
    """
    rows = rows_of_table(evaluation.table, evaluation.image_ids)
    detections, truths = rows.detections, rows.truths
    classes, images = len(evaluation.class_names), len(evaluation.image_ids)
    areas = torch.from_numpy(evaluation.table["area"].to_numpy().copy())[rows.truth_rows]
    weights = bootstrap_weights(images, replicates, seed)
    all_ious = sorted({*COCO_IOUS, *ious})

    counted, hits = judge_precision(detections, truths)
    scores, labels = detections.scores.numpy()[counted], detections.labels.numpy()[counted]
    hits = hits > 0
    positives = torch.bincount(truths.labels[~truths.ignore], minlength=classes).numpy()
    curves = threshold_curves(scores, hits, labels, positives)
    points = [aim(curve) for curve in curves]
    thresholds = np.array([FALLBACK_THRESHOLD if point is None else point.threshold for point in points])

    errors = find_errors(detections, truths, classes)
    limits = torch.from_numpy(thresholds)
    kept = (detections.scores.double() >= limits[detections.labels]).nonzero().flatten()
    operating = OperatingErrors(
        kept, find_errors(DetectionRows(*(column[kept] for column in detections)), truths, classes)
    )
    shown = operating.errors.outcome != IGNORED
    return Diagnosis(
        rows=rows,
        metrics=mean_average_precision(rows, areas, evaluation.class_names),
        ious=all_ious,
        ap=_intervals(detections, truths, all_ious, classes, weights),
        curves=curves,
        points=points,
        thresholds=thresholds,
        olrp=optimal_lrp(scores, errors.iou.numpy()[counted], hits, labels, positives),
        calibration=_calibration(detections, truths, hits, scores, labels, positives),
        confusion=confusion_matrix(detections, truths, classes, score_threshold=limits.to(detections.scores.dtype)),
        errors=errors,
        costs=error_costs(errors, classes),
        confusions=rank_confusions(errors, classes),
        operating=operating,
        slices=_slice_results(evaluation, rows, errors, operating, of_images, weights),
        correction=correction_costs(
            DetectionRows(*(column[shown] for column in operating.errors.detections)), truths, images
        ),
    )


def _intervals(
    detections: DetectionRows, truths: TruthRows, ious: list[float], classes: int, weights: NDArray[np.int32]
) -> AveragePrecisionIntervals:
    outcomes = outcomes_of_rows(detections, truths, ious)
    kept = within_limit(detections, LIMIT)
    counted = ~truths.ignore
    evaluated = EvaluatedImages(
        scores=detections.scores[kept].numpy(),
        labels=detections.labels[kept].numpy(),
        images=detections.images[kept].numpy(),
        outcomes=outcomes[kept].numpy(),
        object_labels=truths.labels[counted].numpy(),
        object_images=truths.images[counted].numpy(),
    )
    averaged = [place for place, iou in enumerate(ious) if iou in COCO_IOUS]
    return average_precision_intervals(evaluated, classes, weights, averaged=averaged)


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
        bins=reliability_bins(scores, hits, 10),
        class_bins=reliability_bins_per_class(scores, hits, labels, len(positives), 10),
        detection_ece=detection_ece(scores, hits),
        localisation_ece=localisation_aware_ece(*columns, positives),
        localisation_ace=localisation_aware_ace(*columns, positives),
    )


def _slice_results(
    evaluation: Evaluation,
    rows: TableRows,
    errors: ErrorTable,
    operating: OperatingErrors,
    of_images: Mapping[str, NDArray[Any]],
    weights: NDArray[np.int32],
) -> list[SliceResult]:
    parts = slices(rows.detections, rows.truths, evaluation.sizes, of_images)
    if not parts:
        return []
    classes = len(evaluation.class_names)
    objects = (~rows.truths.ignore).numpy()
    shown = (operating.errors.outcome != IGNORED).numpy()
    kept = operating.rows.numpy()[shown]
    recall = slice_gaps(
        hits=(operating.errors.found_by >= 0).numpy()[objects],
        images=rows.truths.images.numpy()[objects],
        members=np.array([part.truths[objects] for part in parts]),
        weights=weights,
    )
    precision = slice_gaps(
        hits=(operating.errors.outcome == TRUE_POSITIVE).numpy()[shown],
        images=rows.detections.images.numpy()[kept],
        members=np.array([part.detections[kept] for part in parts]),
        weights=weights,
    )
    results = [
        SliceResult(
            part,
            cost_of_rows(errors, classes, torch.from_numpy(part.detections), torch.from_numpy(part.truths)),
            _of_slice(recall, s),
            _of_slice(precision, s),
        )
        for s, part in enumerate(parts)
    ]
    return sorted(results, key=_badness)


def _of_slice(gaps: SliceGaps, s: int) -> dict[str, float]:
    return {name: float(values[s]) for name, values in gaps._asdict().items()}


def _badness(result: SliceResult) -> float:
    """The best that recall or precision of a slice can be, next to the rest, by their intervals."""
    highs = [side["high"] for side in (result.recall, result.precision) if not math.isnan(side["high"])]
    return min(highs, default=math.inf)

"""All figures of a diagnosis, from the rows of an evaluation and THE matcher: pure, no file and no picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detframe.analysis.evaluation import Evaluation
from detframe.analysis.evidence import Aim, Evidence, examine
from detframe.analysis.prediction_table import TableRows, rows_of_table
from detframe.analysis.row_metrics import judge_precision, mean_average_precision
from detframe.analysis.slicing import Slice, slices
from detframe.metrics.average_precision import IGNORED, TRUE_POSITIVE
from detframe.metrics.bootstrap import (
    AveragePrecisionIntervals,
    BestF1,
    EvaluatedImages,
    average_precision_intervals,
    best_f1_intervals,
    bootstrap_weights,
)
from detframe.metrics.error_costs import ConfusionCost, cost_of_rows, rank_confusions
from detframe.metrics.olrp import OptimalLrp, optimal_lrp
from detframe.metrics.operating_points import (
    best_f1,
    least_cost,
    most_precision_at_recall,
    most_recall_at_precision,
)
from detframe.metrics.rows import DetectionRows, TruthRows, outcomes_of_rows, within_limit
from detframe.metrics.slices import SliceGaps, slice_gaps

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
LIMIT = 100
"""Detections of an image and class that count in AP, as in COCO."""


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
    f1: BestF1  # at `ious`
    evidence: Evidence  # what the page in W&B shows as well
    olrp: OptimalLrp
    confusions: list[ConfusionCost]
    slices: list[SliceResult]  # the surest to be worse first


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
    evaluated = evaluated_images(detections, truths, all_ious)
    evidence = examine(rows, classes, aim)
    counted, _ = judge_precision(detections, truths)
    errors = evidence.errors
    return Diagnosis(
        rows=rows,
        metrics=mean_average_precision(rows, areas, evaluation.class_names),
        ious=all_ious,
        ap=average_precision_intervals(
            evaluated, classes, weights, averaged=[all_ious.index(iou) for iou in COCO_IOUS]
        ),
        f1=best_f1_intervals(evaluated, weights),
        evidence=evidence,
        olrp=optimal_lrp(
            detections.scores.numpy()[counted],
            errors.iou.numpy()[counted],
            (errors.outcome == TRUE_POSITIVE).numpy()[counted],
            detections.labels.numpy()[counted],
            evidence.positives,
        ),
        confusions=rank_confusions(errors, classes),
        slices=_slice_results(evaluation, rows, evidence, of_images, weights),
    )


def evaluated_images(detections: DetectionRows, truths: TruthRows, ious: Sequence[float]) -> EvaluatedImages:
    """What average precision at ``T`` IoUs is resampled from: matched detections within the limit, and objects."""
    outcomes = outcomes_of_rows(detections, truths, ious)
    kept = within_limit(detections, LIMIT)
    counted = ~truths.ignore
    return EvaluatedImages(
        scores=detections.scores[kept].numpy(),
        labels=detections.labels[kept].numpy(),
        images=detections.images[kept].numpy(),
        outcomes=outcomes[kept].numpy(),
        object_labels=truths.labels[counted].numpy(),
        object_images=truths.images[counted].numpy(),
    )


def _slice_results(
    evaluation: Evaluation,
    rows: TableRows,
    evidence: Evidence,
    of_images: Mapping[str, NDArray[Any]],
    weights: NDArray[np.int32],
) -> list[SliceResult]:
    parts = slices(rows.detections, rows.truths, evaluation.sizes, of_images)
    if not parts:
        return []
    classes, operating = len(evaluation.class_names), evidence.operating
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
            cost_of_rows(evidence.errors, classes, torch.from_numpy(part.detections), torch.from_numpy(part.truths)),
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

"""Figures that more than one report makes of the rows of a table, so that they are the same in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.prediction_table import TableRows
from detframe.metrics.mean_ap import MeanAveragePrecision, named_results
from detframe.metrics.rows import DetectionRows, TruthRows, match_rows, padded_images


class Judged(NamedTuple):
    """Detections whose outcome is known, those that the matcher set aside left out."""

    rows: NDArray[Any]  # [J] int64, of the D detections
    targets: NDArray[Any]  # [J] float64, 0..1


def judge_precision(detections: DetectionRows, truths: TruthRows) -> Judged:
    """What scores promise as a precision: 1 for a true positive at IoU 0.5, 0 for a false one."""
    matches = match_rows(detections, truths, 0.5)
    return _judged(matches.ignored, (matches.truth >= 0).double())


def judge_iou(detections: DetectionRows, truths: TruthRows) -> Judged:
    """What scores promise as an overlap: the IoU with the object found when matched at an IoU of 0, 0 for none.

    An IoU of 0 reaches a threshold of 0. COCO's rule, and with it fiveai's, would set every false detection of an image
    with an ignore region aside for that; here it has found nothing.
    """
    matches = match_rows(detections, truths, 0.0)
    return _judged(matches.ignored & (matches.iou > 0), matches.iou)


def mean_average_precision(rows: TableRows, areas: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """The content of a metrics file, by the metric of training.

    Args:
        rows: Detections and truths.
        areas: ``[G]`` square pixels, of the truths.
        class_names: By label.
    """
    metric = MeanAveragePrecision(class_metrics=True)
    for padded in padded_images(rows.detections, rows.truths):
        places = torch.arange(len(padded.truth_rows)) + padded.first_image
        of_truths = torch.nn.functional.pad(areas, (0, 1))[padded.truth_rows[:, :-1]]
        metric.update_batch(padded.detections, padded.targets, of_truths, places)
    return named_results(metric.compute(), class_names)[1]


def _judged(set_aside: Tensor, targets: Tensor) -> Judged:
    rows = (~set_aside).nonzero()[:, 0]
    return Judged(rows.numpy(), targets[rows].numpy())

"""Which class was taken for which: the confusion matrix, matched on location before class, with each cell's rows.

Location comes first, else a detection of the wrong class could never meet its object and every confusion would be
counted twice, as an object missed and as a detection of nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detframe.metrics.rows import DetectionRows, TruthRows, check_rows, match_rows_of_any_class


class Confusion(NamedTuple):
    """The matrix of ``C`` classes and the background, which is index ``C``, and the cell of each row behind it.

    Each object that counts is in one cell of its class's row, alone (missed, in the column of the background) or with
    the detection that found it; each detection that counts is in one cell of its class's column, with the object that
    it found or alone (in the row of the background). So rows add up to the objects and columns to the detections.
    """

    matrix: Tensor  # [C + 1, C + 1] int64, row by class of the object, column by class of the detection
    detection_cells: Tensor  # [D, 2] int64, (row, column); (-1, -1) where it scores too low or lies on an ignore region
    truth_cells: Tensor  # [G, 2] int64, (row, column); (-1, -1) where it is ignored
    detection_truth: Tensor  # [D] int64, row of the truth that it found, of any class, -1 for none
    truth_detection: Tensor  # [G] int64, row of the detection that found it, of any class, -1 for none


def confusion_matrix(
    detections: DetectionRows,
    truths: TruthRows,
    class_count: int,
    iou_threshold: float = 0.5,
    score_threshold: float | Tensor = 0.5,
) -> Confusion:
    """Match detections to objects of any class and count what was taken for what.

    The rules are the matcher's: in order of score, each detection takes the object that it overlaps most among those
    free, one to one. A detection that finds no object but lies on an ignore region, of whatever class, counts nowhere:
    who marked the region would not say what is there.

    Args:
        detections: ``D`` rows.
        truths: ``G`` rows.
        class_count: ``C``.
        iou_threshold: 0..1, the least overlap of an object and a detection that found it.
        score_threshold: 0..1, the least score of a detection that counts; one for all or ``[C]``, one for each class.

    Raises:
        ValueError: Columns are of different lengths or a label is out of range; the message names the column or row.
    """
    check_rows(detections, truths, class_count)
    limits = torch.as_tensor(score_threshold, dtype=detections.scores.dtype, device=detections.scores.device)
    rows = (detections.scores >= limits.expand(class_count)[detections.labels]).nonzero().flatten()
    matches = match_rows_of_any_class(DetectionRows(*(column[rows] for column in detections)), truths, iou_threshold)

    found = torch.full_like(detections.labels, -1)
    found[rows] = torch.where(matches.ignored, -1, matches.truth)
    finder = torch.nn.functional.pad(rows, (0, 1), value=-1)[matches.detection]
    finder = torch.where(truths.ignore, -1, finder)

    detection_cells = detections.labels.new_full((len(found), 2), -1)
    counted = rows[~matches.ignored]
    detection_cells[counted, 0] = torch.nn.functional.pad(truths.labels, (0, 1), value=class_count)[found[counted]]
    detection_cells[counted, 1] = detections.labels[counted]
    truth_cells = torch.stack(
        (truths.labels, torch.nn.functional.pad(detections.labels, (0, 1), value=class_count)[finder]), dim=1
    )
    truth_cells = torch.where(truths.ignore[:, None], -1, truth_cells)

    # A found object and its detection share a cell: it counts once, by the object.
    alone = detection_cells[detection_cells[:, 0] == class_count]
    cells = torch.cat((truth_cells[~truths.ignore], alone))
    side = class_count + 1
    matrix = torch.bincount(cells[:, 0] * side + cells[:, 1], minlength=side * side).view(side, side)
    return Confusion(matrix, detection_cells, truth_cells, found, finder)


def rows_of_cell(confusion: Confusion, truth_label: int, detection_label: int) -> tuple[Tensor, Tensor]:
    """The examples of a cell: rows of its detections and rows of its truths, both ``[n]`` int64 ascending.

    Args:
        confusion: Of :func:`confusion_matrix`.
        truth_label: 0..C, the row; C is the background, whose cells hold detections alone.
        detection_label: 0..C, the column; C is the background, whose cells hold truths alone.
    """
    cell = torch.tensor([truth_label, detection_label], device=confusion.matrix.device)
    found, present = ((cells == cell).all(dim=1) for cells in (confusion.detection_cells, confusion.truth_cells))
    return found.nonzero().flatten(), present.nonzero().flatten()

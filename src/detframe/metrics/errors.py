"""What kind of mistake each detection and each object is: TIDE's error types, with the rows that they are counted from.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, and its package ``tidecv``,
whose counts these are, tie for tie, but for two things. What lies on an ignore region is no error here, as in every
figure of detframe; ``tidecv`` leaves it out of the AP and yet counts it by type. And of two objects that a detection
overlaps alike, the later one is meant, as in COCO's matching; ``tidecv`` takes the earlier.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.rows import DetectionRows, RowPairs, TruthRows, check_rows, match_rows, overlapping_rows

NO_ERROR = -1
"""Stands for the error type of a detection that is no false positive."""


class ErrorType(IntEnum):
    """TIDE's six; a false positive has exactly one of the first five, the first that fits in the order below."""

    CLASSIFICATION = 0  # second: an object of another class, overlapped by t_f or more
    LOCALISATION = 1  # first: an object of its class, overlapped by t_b to t_f
    BOTH = 2  # fifth, what is left: an object of another class, overlapped by t_b to t_f
    DUPLICATE = 3  # third: an object of its class that a better detection has found
    BACKGROUND = 4  # fourth: nothing overlapped by more than t_b
    MISSED = 5  # of an object: not found, and no classification or localisation error that would find it if fixed


class ErrorTable(NamedTuple):
    """The error of every row, and the object that it is about: what counts and costs are made of."""

    detections: DetectionRows  # D
    truths: TruthRows  # G
    outcome: Tensor  # [D] uint8, FALSE_POSITIVE, TRUE_POSITIVE or IGNORED, in matching by class at t_f
    error: Tensor  # [D] int64, ErrorType of a false positive, NO_ERROR of others
    truth: Tensor  # [D] int64, row of the truth found, or of the one that the error is about; -1 for none
    iou: Tensor  # [D] float64, 0..1, overlap with it, 0 for none
    repairs: Tensor  # [D] bool, fixing this error would find its object: it is the best of those about it
    found_by: Tensor  # [G] int64, row of the detection that found the truth, -1 for none
    missed: Tensor  # [G] bool, the truth is an ErrorType.MISSED


def find_errors(
    detections: DetectionRows,
    truths: TruthRows,
    class_count: int,
    foreground_iou: float = 0.5,
    background_iou: float = 0.1,
) -> ErrorTable:
    """Give each false positive its error type, and tell objects missed altogether from those nearly found.

    Args:
        detections: ``D`` rows, of any score: a low score is no reason to leave one out, for AP does not.
        truths: ``G`` rows.
        class_count: ``C``.
        foreground_iou: ``t_f``, 0..1, from which a detection finds an object.
        background_iou: ``t_b``, 0..1, up to which an overlap is none.

    Raises:
        ValueError: Columns are of different lengths, a label is out of range, or the thresholds are not
            ``0 < t_b < t_f <= 1``; the message names what.
    """
    check_rows(detections, truths, class_count)
    if not 0 < background_iou < foreground_iou <= 1:
        raise ValueError(f"0 < background_iou < foreground_iou <= 1 is needed, got {background_iou}, {foreground_iou}.")
    matches = match_rows(detections, truths, foreground_iou)
    hit = torch.where(matches.ignored, IGNORED, TRUE_POSITIVE)
    outcome = torch.where(matches.truth < 0, FALSE_POSITIVE, hit).to(torch.uint8)

    pairs = overlapping_rows(detections, truths, background_iou)
    counted = ~truths.ignore[pairs.truth]
    same = detections.labels[pairs.detection] == truths.labels[pairs.truth]
    own, own_iou = _nearest(pairs, counted & same, len(detections.scores))
    other, other_iou = _nearest(pairs, counted & ~same, len(detections.scores))

    # tidecv's order of tests, and its limits: a detection whose overlap with a taken object is t_f to the last bit is
    # one of localisation, not a duplicate. Above t_f an object of the class is always taken, or it would be matched.
    false_positive = outcome == FALSE_POSITIVE
    error = torch.full_like(detections.labels, ErrorType.BOTH)
    error[torch.maximum(own_iou, other_iou) <= background_iou] = ErrorType.BACKGROUND
    error[own_iou >= foreground_iou] = ErrorType.DUPLICATE
    error[other_iou >= foreground_iou] = ErrorType.CLASSIFICATION
    error[(own >= 0) & (own_iou <= foreground_iou)] = ErrorType.LOCALISATION
    error[~false_positive] = NO_ERROR

    of_own = (error == ErrorType.LOCALISATION) | (error == ErrorType.DUPLICATE)
    of_other = (error == ErrorType.CLASSIFICATION) | (error == ErrorType.BOTH)
    meant = torch.where(of_own, own, torch.where(of_other, other, -1))
    meant_iou = torch.where(of_own, own_iou, torch.where(of_other, other_iou, 0.0))
    found_by = torch.where(truths.ignore, -1, matches.detection)
    fixable = (error == ErrorType.LOCALISATION) | (error == ErrorType.CLASSIFICATION)
    best = _best_by_score(detections.scores, meant, fixable, len(truths.labels))
    best = torch.where(found_by >= 0, -1, best)
    repairs = torch.zeros_like(false_positive)
    repairs[best[best >= 0]] = True
    return ErrorTable(
        detections=detections,
        truths=truths,
        outcome=outcome,
        error=error,
        truth=torch.where(false_positive, meant, matches.truth),
        iou=torch.where(false_positive, meant_iou, matches.iou),
        repairs=repairs,
        found_by=found_by,
        missed=~truths.ignore & (found_by < 0) & (best < 0),
    )


def count_errors(table: ErrorTable, class_count: int, images: Tensor | None = None) -> Tensor:
    """Errors of each type and class, ``[6, C]`` int64: by the class of the detection, missed by that of the object.

    Args:
        table: Of :func:`find_errors`.
        class_count: ``C``.
        images: ``[I]`` bool, the images that count; None counts all.
    """
    kept, present = table.error != NO_ERROR, table.missed
    if images is not None:
        kept = kept & images[table.detections.images]
        present = present & images[table.truths.images]
    rows = torch.cat((table.error[kept], torch.full_like(table.truths.labels[present], ErrorType.MISSED)))
    columns = torch.cat((table.detections.labels[kept], table.truths.labels[present]))
    size = len(ErrorType) * class_count
    return torch.bincount(rows * class_count + columns, minlength=size).view(len(ErrorType), class_count)


def _nearest(pairs: RowPairs, counted: Tensor, detection_count: int) -> tuple[Tensor, Tensor]:
    """The truth that each detection overlaps most, of equal ones the last: ``[D]`` int64, -1 for none; overlap ``[D]``.

    Args:
        pairs: In order of detections, then truths.
        counted: ``[P]`` bool, pairs to choose from.
        detection_count: ``D``.
    """
    detection, truth, overlap = (column[counted] for column in pairs)
    order = overlap.argsort(stable=True)
    order = order[detection[order].argsort(stable=True)]
    last = torch.ones_like(order, dtype=torch.bool)
    last[:-1] = detection[order][1:] != detection[order][:-1]
    chosen = order[last]
    nearest = torch.full((detection_count,), -1, dtype=torch.int64, device=overlap.device)
    nearest[detection[chosen]] = truth[chosen]
    nearest_overlap = torch.zeros(detection_count, dtype=torch.float64, device=overlap.device)
    nearest_overlap[detection[chosen]] = overlap[chosen]
    return nearest, nearest_overlap


def _best_by_score(scores: Tensor, truth: Tensor, counted: Tensor, truth_count: int) -> Tensor:
    """Of the detections that name a truth, the one of the highest score, of equal ones the first, ``[G]``; -1 for none.

    Args:
        scores: ``[D]``.
        truth: ``[D]`` int64, row of the truth, -1 for none.
        counted: ``[D]`` bool, detections to choose from, which all have a truth.
        truth_count: ``G``.
    """
    order = (-scores).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    none = len(order)
    best = torch.full((truth_count,), none, dtype=torch.int64, device=order.device)
    best.scatter_reduce_(0, truth[counted], place[counted], "amin")
    return torch.nn.functional.pad(order, (0, 1), value=-1)[best]

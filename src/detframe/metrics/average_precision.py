"""Average precision and recall from matched detections: COCO's accumulation as pure functions on flat tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2
"""What became of a detection in one area range at one IoU threshold."""


class Curves(NamedTuple):
    """What COCO accumulates for ``T`` IoUs, ``R`` recalls, ``C`` classes and ``A`` area ranges.

    All float64, and -1 where a class has no object in an area range.
    """

    precision: Tensor  # [T, R, C, A], 0..1, the highest precision at a recall of at least R
    recall: Tensor  # [T, C, A], 0..1, the highest recall
    scores: Tensor  # [T, R, C, A], score of the detection at which recall reaches R, 0 where it does not


def pack_outcomes(outcomes: Tensor) -> Tensor:
    """Outcomes ``[D, C]`` (0..3) four to a byte, ``[D, ceil(C / 4)]`` uint8."""
    padded = torch.nn.functional.pad(outcomes.to(torch.uint8), (0, -outcomes.shape[1] % 4))
    quads = padded.view(len(padded), padded.shape[1] // 4, 4)
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def unpack_outcomes(packed: Tensor, column: int) -> Tensor:
    """One column of what :func:`pack_outcomes` packed, ``[D]`` uint8."""
    return packed[:, column // 4] >> 2 * (column % 4) & 3


def sort_for_accumulation(class_index: Tensor, scores: Tensor) -> Tensor:
    """Order of detections by class, then descending score, then as they come, ``[D]`` int64; NaN scores last."""
    order = (-scores).argsort(stable=True)
    return order[class_index[order].argsort(stable=True)]


def accumulate(
    packed: Tensor, class_index: Tensor, scores: Tensor, positives: Tensor, iou_count: int, recall_thresholds: Tensor
) -> Curves:
    """Precision and recall of every class, as ``COCOeval.accumulate`` of pycocotools.

    Args:
        packed: ``[D, ...]`` uint8, outcomes from :func:`pack_outcomes`; column ``a * T + t`` is area range a at IoU t.
        class_index: ``[D]`` int64, 0..C-1, ascending; the order is that of :func:`sort_for_accumulation`.
        scores: ``[D]`` float64, descending within a class.
        positives: ``[C, A]`` int64, objects that can be found.
        iou_count: ``T``.
        recall_thresholds: ``[R]`` float64.
    """
    classes, ranges = positives.shape
    recalls = len(recall_thresholds)
    precision = scores.new_full((iou_count, recalls, classes, ranges), -1.0)
    recall = scores.new_full((iou_count, classes, ranges), -1.0)
    at_scores = scores.new_full((iou_count, recalls, classes, ranges), -1.0)
    bounds = torch.searchsorted(class_index, torch.arange(classes + 1, device=class_index.device))
    for a in range(ranges):
        present = positives[:, a] > 0
        needed = true_positives_needed(positives[:, a], recall_thresholds)
        for t in range(iou_count):
            outcomes = unpack_outcomes(packed, a * iou_count + t)
            read, at, found = precision_at_recall(outcomes, class_index, bounds, scores, needed)
            precision[t, :, :, a] = torch.where(present, read.T, -1.0)
            at_scores[t, :, :, a] = torch.where(present, at.T, -1.0)
            recall[t, :, a] = torch.where(present, found.double() / positives[:, a], -1.0)
    return Curves(precision, recall, at_scores)


def true_positives_needed(positives: Tensor, recall_thresholds: Tensor) -> Tensor:
    """The fewest true positives whose recall reaches each threshold, ``[C, R]`` int64.

    Args:
        positives: ``[C]`` int64, objects of each class.
        recall_thresholds: ``[R]`` float64.
    """
    total = positives[:, None].clamp(min=1)
    needed = (recall_thresholds * total).ceil().long().clamp(min=0)
    # The product may round across a whole number; what counts is the quotient in float64, as in COCOeval.
    needed = needed - ((needed > 0) & ((needed - 1) / total.double() >= recall_thresholds)).long()
    return needed + (needed / total.double() < recall_thresholds).long()


def precision_at_recall(
    outcomes: Tensor, class_index: Tensor, bounds: Tensor, scores: Tensor, needed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Interpolated precision of all classes in one area range at one IoU.

    Args:
        outcomes: ``[D]``, in the order of :func:`sort_for_accumulation`.
        class_index: ``[D]`` int64, ascending.
        bounds: ``[C + 1]`` int64, where in that order each class begins, and the end.
        scores: ``[D]`` float64.
        needed: ``[C, R]`` int64, true positives that each recall takes.

    Returns:
        Precision ``[C, R]``, score at that recall ``[C, R]``, both 0 where it is not reached, and the number of true
        positives ``[C]``.
    """
    hits = (outcomes == TRUE_POSITIVE).nonzero().flatten()  # [H]
    hit_class = class_index[hits]
    counted = torch.nn.functional.pad((outcomes != IGNORED).cumsum(0), (1, 0))
    seen = counted[hits + 1] - counted[bounds[hit_class]]
    read, at, found = read_precision(hit_class, seen, needed)
    reached = needed <= found[:, None]
    start = torch.where(needed > 0, torch.nn.functional.pad(hits, (0, 1))[at], bounds[:-1, None])
    begun = (bounds[1:] > bounds[:-1])[:, None]
    padded_scores = torch.nn.functional.pad(scores, (0, 1))
    return read, torch.where(reached & begun, padded_scores[start], 0.0), found


def read_precision(hit_class: Tensor, seen: Tensor, needed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Interpolated precision where the true positives are known: of false ones only their number before each matters.

    Args:
        hit_class: ``[H]`` int64, classes of the true positives, ascending.
        seen: ``[H]`` int64, detections of its class up to each of them and with it, ascending within a class.
        needed: ``[C, R]`` int64, true positives that each recall takes.

    Returns:
        Precision ``[C, R]``, 0 where recall is not reached, which of the true positives it is read at ``[C, R]``, and
        the number of true positives ``[C]``.
    """
    classes = len(needed)
    found = torch.bincount(hit_class, minlength=classes)  # [C]
    first = found.cumsum(0) - found
    number = torch.arange(1, len(seen) + 1, device=seen.device) - first[hit_class]
    precision = number / (seen.double() + torch.finfo(torch.float64).eps)  # np.spacing(1), as COCOeval

    # A running maximum from the end. Classes that come earlier are lifted above all later ones, so that one pass does
    # all of them; its indices, not its values, are used because the lift costs the last digits.
    lifted = (precision + 2.0 * (classes - hit_class)).flip(0)
    source = len(seen) - 1 - lifted.cummax(0).indices.flip(0) if len(seen) else hit_class
    envelope = torch.nn.functional.pad(precision[source], (0, 1))

    at = (first[:, None] + needed.clamp(min=1) - 1).clamp(max=max(len(seen) - 1, 0))
    readable = (needed <= found[:, None]) & (found > 0)[:, None]
    return torch.where(readable, envelope[at], 0.0), at, found


def mean_of_defined(values: Tensor) -> float:
    """Mean of the values that are not -1; -1 where all are."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.numel() else -1.0

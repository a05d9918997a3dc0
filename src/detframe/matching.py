"""THE matcher of detections and ground truth: every figure and every report uses it, so that their counts agree.

The rules are COCO's (``COCOeval.evaluateImg`` of pycocotools): detections in order of score, each takes the object that
it overlaps most among those still free, at an IoU of at least the threshold. Only where it finds none does it take a
set-aside object. Ignore regions may be taken by any number of detections, and the overlap with them is the share of the
detection that lies inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detframe.boxes import box_area
from detframe.structures import Detections, Targets


class Matches(NamedTuple):
    """Which detection found which object at ``T`` IoU thresholds; rows and slots are those of the input.

    From :func:`match_by_range` the tensors have a dimension of ``A`` area ranges before that of the thresholds.
    """

    target: Tensor  # [B, K, T] int64, row of the object that the detection found, -1 for none
    iou: Tensor  # [B, K, T] float64, 0..1, overlap with it, 0 for none
    ignored: Tensor  # [B, K, T] bool, it is set aside: the detection is neither a true nor a false positive
    detection: Tensor  # [B, N, T] int64, slot of the detection that found the object, the first of several; -1 for none


class Pairs(NamedTuple):
    """Detections and objects that overlap, one row per pair, in order of image, slot and row."""

    image: Tensor  # [P] int64
    slot: Tensor  # [P] int64, of the detection
    row: Tensor  # [P] int64, of the object
    overlap: Tensor  # [P] float64, 0..1: IoU, or with an ignore region the share of the detection that lies inside


def match(detections: Detections, targets: Targets, iou_thresholds: Sequence[float] | Tensor) -> Matches:
    """Match detections to objects of their class.

    Args:
        detections: In any order; only their scores decide who comes first, and of equal scores the lower slot.
        targets: Ground truth in the same pixels; ``ignore`` marks what is neither found nor missed.
        iou_thresholds: ``[T]``, 0..1, at least one.
    """
    none = torch.zeros_like(targets.ignore)[..., None]  # [B, N, 1]
    return Matches(*(tensor.squeeze(2) for tensor in match_by_range(detections, targets, iou_thresholds, none)))


def match_any_class(detections: Detections, targets: Targets, iou_thresholds: Sequence[float] | Tensor) -> Matches:
    """Match detections to objects by location alone, for confusion between classes; else as :func:`match`."""
    return match(*_of_one_class(detections, targets), iou_thresholds)


def pairs_of_any_class(detections: Detections, targets: Targets, least: float) -> Pairs:
    """All pairs that overlap by at least ``least``, 0..1, whatever their classes: what the matchers choose from."""
    limit = torch.tensor(least, dtype=torch.float64, device=targets.boxes.device)
    return _candidates(*_of_one_class(detections, targets), limit)


def match_by_range(
    detections: Detections, targets: Targets, iou_thresholds: Sequence[float] | Tensor, set_aside: Tensor
) -> Matches:
    """Match detections to objects of their class, once for each of ``A`` area ranges.

    Args:
        detections: As for :func:`match`.
        targets: As for :func:`match`.
        iou_thresholds: As for :func:`match`.
        set_aside: ``[B, N, A]`` bool, objects out of range. Like ignore regions they yield to those in range; unlike
            ignore regions one detection takes them and the overlap is the IoU.

    Returns:
        Matches of shape ``[B, K, A, T]`` and ``[B, N, A, T]``.
    """
    limits = torch.as_tensor(iou_thresholds, dtype=torch.float64, device=targets.boxes.device)
    limits = limits.clamp(max=1 - 1e-10)  # COCOeval.evaluateImg: an IoU of 1 misses a threshold of 1 by rounding
    batch, slots = detections.scores.shape
    objects = targets.labels.shape[1]
    by_score, place = _score_order(detections)
    candidates = _candidates(detections, targets, limits.amin())
    image, slot, row, overlap = candidates
    pairs = len(overlap)

    # Preferences as whole numbers: in range before set aside, then overlap, then the later row, as COCOeval has it.
    ascending = overlap.argsort(stable=True)
    preference = torch.empty_like(overlap)
    preference[ascending] = torch.arange(pairs, dtype=overlap.dtype, device=overlap.device)
    in_range = ~(set_aside | targets.ignore[..., None])[image, row]  # [P, A]
    preferences = (preference[:, None] + pairs * in_range)[..., None]  # [P, A, 1]
    best, winner = _serve_by_score(
        preferences,
        overlap[:, None, None] >= limits,
        finder=image * slots + slot,
        found=image * objects + row,
        place=place[image, slot].to(overlap.dtype),
        shared=targets.ignore[image, row],
        sizes=(batch * slots, batch * objects),
    )
    best = best.view(batch, slots, *best.shape[1:])  # [B, K, A, T]
    winner = winner.view(batch, objects, *winner.shape[1:])  # [B, N, A, T]

    # One more row than there are pairs stands for "none", so that no lookup needs a mask.
    matched = best >= 0
    at = torch.where(matched, best % max(pairs, 1), pairs).long()
    lookup = torch.nn.functional.pad(ascending, (0, 1), value=pairs)
    pair = lookup[at]
    slot_at = torch.nn.functional.pad(by_score, (0, 1), value=-1)  # [B, K + 1]
    chosen = winner.clamp(max=slots).long().flatten(1)
    return Matches(
        target=torch.nn.functional.pad(row, (0, 1), value=-1)[pair],
        iou=torch.nn.functional.pad(overlap, (0, 1))[pair],
        ignored=matched & (best < pairs),
        detection=slot_at.gather(1, chosen).view(winner.shape),
    )


def class_ranks(detections: Detections) -> Tensor:
    """Place of each detection by score among those of its image and class, ``[B, K]`` int64 from 0."""
    slots = detections.labels.shape[1]
    # Unused slots come last in the order of scores, so they never stand before a used one of their label.
    order = _score_order(detections)[0]
    order = order.gather(1, detections.labels.gather(1, order).argsort(dim=1, stable=True))
    labels = detections.labels.gather(1, order)
    position = torch.arange(slots, device=labels.device).expand_as(labels)
    starts = torch.ones_like(labels, dtype=torch.bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    first = torch.where(starts, position, 0).cummax(dim=1).values if slots else position
    return torch.empty_like(labels, dtype=torch.int64).scatter_(1, order, position - first)


def _of_one_class(detections: Detections, targets: Targets) -> tuple[Detections, Targets]:
    """The same boxes, all of class 0."""
    return (
        detections._replace(labels=torch.zeros_like(detections.labels)),
        targets._replace(labels=torch.zeros_like(targets.labels)),
    )


def _score_order(detections: Detections) -> tuple[Tensor, Tensor]:
    """Slots by descending score, unused ones last, and the place of each slot in that order; both ``[B, K]`` int64."""
    # Ascending order of negated scores puts NaN last, as numpy's does in pycocotools.
    order = torch.where(detections.valid, -detections.scores, torch.nan).argsort(dim=1, stable=True)
    place = torch.empty_like(order)
    place.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return order, place


def _candidates(detections: Detections, targets: Targets, least: Tensor) -> Pairs:
    """Pairs of one label that overlap by at least ``least``, in order of image, slot and row."""
    same = detections.labels[:, :, None] == targets.labels[:, None, :]  # [B, K, N]
    same &= detections.valid[:, :, None] & targets.valid[:, None, :]
    image, slot, row = same.nonzero(as_tuple=True)
    own, other = detections.boxes[image, slot].double(), targets.boxes[image, row].double()
    sides = (torch.min(own[:, 2:], other[:, 2:]) - torch.max(own[:, :2], other[:, :2])).clamp(min=0)
    shared = sides[:, 0] * sides[:, 1]
    area = box_area(own)
    # In float64 and in this order as maskApi.c, `bbIou`: a last bit decides where an overlap equals a threshold.
    whole = torch.where(targets.ignore[image, row], area, area + box_area(other) - shared)
    overlap = torch.where(shared > 0, shared / whole, 0.0)
    near = overlap >= least
    return Pairs(image[near], slot[near], row[near], overlap[near])


def _serve_by_score(
    preferences: Tensor,
    allowed: Tensor,
    finder: Tensor,
    found: Tensor,
    place: Tensor,
    shared: Tensor,
    sizes: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Let detections choose in order of score, all images, ranges and thresholds at once.

    Choosing in turn is the one stable matching when all objects rank the detections alike, so deferred acceptance
    (Gale and Shapley, 1962) gives it in a few rounds over all pairs instead of one turn per detection.

    Args:
        preferences: ``[P, A, 1]``, how much the detection of each pair wants its object, from 0, distinct for each
            detection.
        allowed: ``[P, 1, T]`` bool, the pair reaches the threshold.
        finder: ``[P]`` int64, the detection's number in the batch.
        found: ``[P]`` int64, the object's number in the batch.
        place: ``[P]``, the detection's place in the order of scores.
        shared: ``[P]`` bool, the object takes any number of detections.
        sizes: How many detections and objects the batch has.

    Returns:
        The preference that each detection gets, or -1, ``[detections, A, T]``, and the place of the detection that each
        object gets, or infinity, ``[objects, A, T]``.
    """
    wishes = torch.where(allowed, preferences, -1.0)  # [P, A, T]
    by_finder = finder[:, None, None].expand_as(wishes)
    by_found = found[:, None, None].expand_as(wishes)
    places = place[:, None, None]
    exclusive = ~shared[:, None, None]
    while True:
        best = wishes.new_full((sizes[0], *wishes.shape[1:]), -1.0).scatter_reduce_(0, by_finder, wishes, "amax")
        asks = (wishes >= 0) & (wishes == best.index_select(0, finder))
        bids = torch.where(asks, places, torch.inf)
        winner = wishes.new_full((sizes[1], *wishes.shape[1:]), torch.inf).scatter_reduce_(0, by_found, bids, "amin")
        refused = asks & exclusive & (places > winner.index_select(0, found))
        if not refused.any():
            return best, winner
        wishes = wishes.masked_fill(refused, -1.0)

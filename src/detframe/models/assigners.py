"""Assigners: which prediction learns which object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detframe.boxes import pairwise_iou
from detframe.models.anchors import Cells
from detframe.structures import Targets

MOST_PAIRS = 1 << 23
"""Pairs of object and prediction that are compared at once: a batch is taken image by image where it is crowded, which
bounds the memory (32 MB for each float32 tensor of pairs)."""


class Assignment(NamedTuple):
    """What each of ``A`` predictions of an image is to learn."""

    target: Tensor  # [B, A] int64, row of the object in the targets, 0 where there is none
    quality: Tensor  # [B, A] float32 0..1, the class score to reach: 0 for negatives
    positive: Tensor  # [B, A] bool
    ignored: Tensor  # [B, A] bool, neither positive nor negative: no loss


class Assigner:
    """Assigns the cells of dense predictions to objects. A subclass implements :meth:`assign`.

    Cells whose centre lies in an ignore region and that no object takes are left out of the loss.
    """

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, cells: Cells, targets: Targets) -> Assignment:
        """Assign predictions to objects.

        Args:
            scores: ``[B, A, C]``, 0..1.
            boxes: ``[B, A, 4]``, predicted, xyxy in input pixels.
            cells: The A cells that predict.
            targets: Objects of the batch.
        """

        def some(part: slice) -> Assignment:
            few = Targets(*(field[part] for field in targets))
            target, quality, positive = self.assign(scores[part], boxes[part], cells, few)
            return Assignment(target, quality, positive, in_ignore_region(cells.centres, few) & ~positive)

        return by_images(some, targets, len(cells.strides))

    def assign(self, scores: Tensor, boxes: Tensor, cells: Cells, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """``target``, ``quality`` and ``positive`` of an :class:`Assignment`; there is at least one row of targets."""
        raise NotImplementedError


def by_images(assign: Callable[[slice], Assignment], targets: Targets, anchors: int) -> Assignment:
    """Assign so many images at a time that no more than ``MOST_PAIRS`` pairs are held.

    Args:
        assign: Assigns the images of a slice of the batch.
        targets: Objects of the batch.
        anchors: Predictions of an image.
    """
    batch, count = targets.labels.shape
    if count == 0:
        nothing = torch.zeros(batch, anchors, dtype=torch.bool, device=targets.labels.device)
        return Assignment(nothing.long(), nothing.float(), nothing, nothing)
    step = max(1, MOST_PAIRS // (count * anchors))
    parts = [assign(slice(start, start + step)) for start in range(0, batch, step)]
    return Assignment(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


class TaskAlignedAssigner(Assigner):
    """Task-aligned assignment (TOOD, Feng et al., 2021, section 3.2).

    Each object takes the ``top_k`` points inside it whose prediction is best by ``score^alpha * IoU^beta``; a point
    that two objects want goes to the one that it overlaps more.

    Args:
        top_k: Points per object.
        alpha: Power of the class score.
        beta: Power of the IoU.
    """

    def __init__(self, top_k: int = 10, alpha: float = 0.5, beta: float = 6.0) -> None:
        self.top_k = top_k
        self.alpha = alpha
        self.beta = beta

    def assign(self, scores: Tensor, boxes: Tensor, cells: Cells, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Assign by alignment, see :class:`Assigner`."""
        iou = pairwise_iou(targets.boxes, boxes)  # [B, N, A]
        # An object smaller than a cell would hold no point at all: it takes those within half a cell of its centre.
        inside = points_inside(cells.centres, targets.boxes, at_least=cells.strides[:1] / 2) & _live(targets)
        alignment = _scores_of_objects(scores.pow(self.alpha), targets) * iou.pow(self.beta) * inside

        top = alignment.topk(min(self.top_k, alignment.shape[2]), dim=2).indices
        chosen = torch.zeros_like(inside).scatter_(2, top, True) & inside
        best, owned = _owners(chosen, iou)

        alignment = alignment * owned
        strongest = alignment.amax(dim=2, keepdim=True)
        best_iou = (iou * owned).amax(dim=2, keepdim=True)
        quality = (alignment / strongest.clamp(min=1e-9) * best_iou).amax(dim=1)  # TOOD, eq. 4
        positive = owned.any(dim=1)
        return best, quality, positive


class ATSSAssigner(Assigner):
    """Adaptive training sample selection (Zhang et al., 2020, algorithm 1).

    Of the ``top_k`` cells of each level nearest to an object's centre, those learn it whose square anchor overlaps it
    more than the mean plus the standard deviation of all these candidates. The class score to reach is the IoU of the
    predicted box (Generalized Focal Loss).

    Args:
        top_k: Candidates per level.
        anchor_scale: Side of the square anchor in strides.
    """

    def __init__(self, top_k: int = 9, anchor_scale: float = 8.0) -> None:
        self.top_k = top_k
        self.anchor_scale = anchor_scale

    def assign(self, scores: Tensor, boxes: Tensor, cells: Cells, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Assign by adaptive thresholds, see :class:`Assigner`."""
        half = cells.strides[:, None] * self.anchor_scale / 2
        anchors = torch.cat((cells.centres - half, cells.centres + half), dim=1)
        iou = pairwise_iou(targets.boxes, anchors)  # [B, N, A]
        middle = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
        distance = torch.cdist(middle, cells.centres.expand(len(middle), -1, -1))

        nearest: list[Tensor] = []
        start = 0
        for count in cells.counts:
            near = distance[..., start : start + count].topk(min(self.top_k, count), dim=2, largest=False).indices
            nearest.append(near + start)
            start += count
        candidates = torch.cat(nearest, dim=2)
        overlap = iou.gather(2, candidates)
        threshold = overlap.mean(dim=2, keepdim=True) + overlap.std(dim=2, keepdim=True)
        near_enough = torch.zeros_like(iou, dtype=torch.bool).scatter_(2, candidates, overlap >= threshold)
        inside = points_inside(cells.centres, targets.boxes, at_least=cells.strides[:1] / 2)
        return _with_iou_quality(near_enough & inside & _live(targets), iou, boxes, targets)


class SimOTAAssigner(Assigner):
    """Simplified optimal transport (YOLOX, Ge et al., 2021, section 2.1).

    Each object takes as many cells as its best ``candidates`` predictions overlap it in sum, those of lowest cost:
    class loss plus ``iou_weight`` times the negative logarithm of the IoU, cells that are both inside the object and
    near its centre first. The class score to reach is the IoU of the predicted box.

    Args:
        candidates: Predictions whose IoU is summed, and the most cells of an object.
        centre_radius: Reach of "near its centre" in strides.
        iou_weight: Weight of the IoU in the cost.
    """

    def __init__(self, candidates: int = 10, centre_radius: float = 2.5, iou_weight: float = 3.0) -> None:
        self.candidates = candidates
        self.centre_radius = centre_radius
        self.iou_weight = iou_weight

    def assign(self, scores: Tensor, boxes: Tensor, cells: Cells, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Assign by cost, see :class:`Assigner`."""
        iou = pairwise_iou(targets.boxes, boxes)  # [B, N, A]
        inside = points_inside(cells.centres, targets.boxes)
        middle = (targets.boxes[..., None, :2] + targets.boxes[..., None, 2:]) / 2
        distance = (cells.centres - middle).abs().amax(dim=-1)  # [B, N, A]
        near = distance < self.centre_radius * cells.strides

        probability = scores.clamp(1e-7, 1 - 1e-7)
        absent = -(1 - probability).log()
        own = _scores_of_objects(probability, targets)
        class_cost = absent.sum(dim=2)[:, None] + (1 - own).log() - own.log()
        cost = class_cost - self.iou_weight * iou.clamp(min=1e-8).log() + 1e5 * ~(inside & near)
        eligible = (inside | near) & _live(targets)
        cost = torch.where(eligible, cost, torch.full_like(cost, torch.inf))

        most = min(self.candidates, cost.shape[2])
        wanted = (iou * eligible).topk(most, dim=2).values.sum(dim=2).long().clamp(min=1)
        cheapest = cost.topk(most, dim=2, largest=False)
        taken = (torch.arange(most, device=cost.device) < wanted[..., None]) & cheapest.values.isfinite()
        chosen = torch.zeros_like(inside).scatter_(2, cheapest.indices, taken)
        return _with_iou_quality(chosen, -cost, boxes, targets)


class FCOSAssigner(Assigner):
    """FCOS' assignment (Tian et al., 2019) as torchvision has it, with the same bounds.

    A cell learns the smallest object that it lies in, near the object's centre, and whose farthest side is in the
    range of its level: 4 to 8 strides, open below on the finest and above on the coarsest level.

    Args:
        centre_radius: Reach of "near" in strides.
    """

    def __init__(self, centre_radius: float = 1.5) -> None:
        self.centre_radius = centre_radius

    def assign(self, scores: Tensor, boxes: Tensor, cells: Cells, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Assign by size and place, see :class:`Assigner`."""
        centres = cells.centres
        middle = (targets.boxes[..., None, :2] + targets.boxes[..., None, 2:]) / 2
        near = (centres - middle).abs().amax(dim=-1) < self.centre_radius * cells.strides  # [B, N, A]
        sides = torch.cat((centres - targets.boxes[..., None, :2], targets.boxes[..., None, 2:] - centres), dim=-1)
        least = cells.strides * 4
        most = cells.strides * 8
        least[: cells.counts[0]] = 0
        most[-cells.counts[-1] :] = torch.inf
        farthest = sides.amax(dim=-1)
        wanted = near & (sides.amin(dim=-1) > 0) & (farthest > least) & (farthest < most) & _live(targets)
        area = (targets.boxes[..., 2:] - targets.boxes[..., :2]).prod(dim=-1)
        best, owned = _owners(wanted, -area[..., None].expand_as(wanted))
        positive = owned.any(dim=1)
        return best, positive.float(), positive


def assigned_objects(assigned: Assignment, targets: Targets) -> tuple[Tensor, Tensor]:
    """Boxes ``[B, A, 4]`` and labels ``[B, A]`` that predictions are to learn; zeros where a batch has no row."""
    if targets.boxes.shape[1] == 0:
        return assigned.quality[..., None].expand(-1, -1, 4) * 0, assigned.target
    boxes = targets.boxes.gather(1, assigned.target[..., None].expand(-1, -1, 4))
    return boxes, targets.labels.gather(1, assigned.target)


@torch.no_grad()
def assign_by_iou(
    anchors: Tensor, targets: Targets, positive_iou: float, negative_iou: float, low_quality: bool
) -> Assignment:
    """Assign anchors or proposals to the object that they overlap most (Faster R-CNN, section 3.1.2).

    Args:
        anchors: ``[B, A, 4]``, xyxy in pixels.
        targets: Objects of the batch.
        positive_iou: From here on a box is positive.
        negative_iou: Below it is negative, and between the two ignored.
        low_quality: Whether the boxes that overlap an object most are positive however little that is.
    """

    def some(part: slice) -> Assignment:
        few = Targets(*(field[part] for field in targets))
        iou = pairwise_iou(few.boxes, anchors[part]) * _live(few)  # [B, N, A]
        overlap, target = iou.max(dim=1)
        positive = overlap >= positive_iou
        if low_quality:
            best = iou.amax(dim=2, keepdim=True)
            positive = positive | ((iou == best) & (best > 0)).any(dim=1)
        centres = (anchors[part][..., :2] + anchors[part][..., 2:]) / 2
        ignored = (overlap >= negative_iou) | in_ignore_region(centres, few)
        return Assignment(target, positive.float(), positive, ignored & ~positive)

    return by_images(some, targets, anchors.shape[1])


def in_ignore_region(points: Tensor, targets: Targets) -> Tensor:
    """Which of the points ``[A, 2]`` or ``[B, A, 2]`` lie in an ignore region of each image, ``[B, A]`` bool."""
    region = (targets.valid & targets.ignore)[..., None]
    return (points_inside(points, targets.boxes) & region).any(dim=1)


def points_inside(points: Tensor, boxes: Tensor, at_least: Tensor | float = 0.0) -> Tensor:
    """Which of the points lie inside which of the boxes ``[B, N, 4]``, ``[B, N, A]`` bool.

    Args:
        points: ``[A, 2]`` or ``[B, A, 2]``, (x, y) in pixels.
        boxes: xyxy in pixels.
        at_least: Boxes count as reaching at least this many pixels from their centre.
    """
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    low, high = torch.minimum(boxes[..., :2], centres - at_least), torch.maximum(boxes[..., 2:], centres + at_least)
    # Coordinate by coordinate: a last dimension of two makes every operator several times as slow.
    x, y = points.transpose(-1, -2).contiguous()[..., None, :].unbind(-3)  # [1, A] or [B, 1, A]
    in_x = (x >= low[..., 0, None]) & (x <= high[..., 0, None])
    return in_x & (y >= low[..., 1, None]) & (y <= high[..., 1, None])


def _live(targets: Targets) -> Tensor:
    """Rows that are objects to learn, ``[B, N, 1]``."""
    return (targets.valid & ~targets.ignore)[..., None]


def _scores_of_objects(scores: Tensor, targets: Targets) -> Tensor:
    """Score of every prediction for the class of every object, ``[B, N, A]`` of ``[B, A, C]``."""
    return scores.gather(2, targets.labels[:, None, :].expand(-1, scores.shape[1], -1)).transpose(1, 2)


def _owners(chosen: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
    """Row of the object that a prediction learns, ``[B, A]``, and the pairs that remain, ``[B, N, A]`` bool.

    Where several objects want a prediction, the one of highest preference has it.
    """
    lowest = torch.finfo(preference.dtype).min
    best = torch.where(chosen, preference, torch.full_like(preference, lowest)).argmax(dim=1)
    rows = torch.arange(chosen.shape[1], device=best.device)[:, None]
    return best, chosen & (rows == best[:, None])


def _with_iou_quality(
    chosen: Tensor, preference: Tensor, boxes: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor]:
    """Assigned objects, where the class score to reach is the IoU of the predicted box with its object."""
    best, owned = _owners(chosen, preference)
    positive = owned.any(dim=1)
    quality = (pairwise_iou(targets.boxes, boxes) * owned).amax(dim=1)
    return best, quality, positive

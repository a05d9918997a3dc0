"""Assigners: which prediction learns which object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detframe.boxes import pairwise_iou
from detframe.structures import Targets


class Assignment(NamedTuple):
    """What each of ``A`` predictions of an image is to learn."""

    target: Tensor  # [B, A] int64, row of the object in the targets, 0 where there is none
    quality: Tensor  # [B, A] float32 0..1, the class score to reach: 0 for negatives
    positive: Tensor  # [B, A] bool
    ignored: Tensor  # [B, A] bool, neither positive nor negative: no loss


class TaskAlignedAssigner:
    """Task-aligned assignment (TOOD, Feng et al., 2021, section 3.2).

    Each object takes the ``top_k`` points inside it whose prediction is best by ``score^alpha * IoU^beta``; a point
    that two objects want goes to the one that it overlaps more. Points in an ignore region that no object takes are
    left out of the loss.

    Args:
        top_k: Points per object.
        alpha: Power of the class score.
        beta: Power of the IoU.
    """

    def __init__(self, top_k: int = 10, alpha: float = 0.5, beta: float = 6.0) -> None:
        self.top_k = top_k
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, points: Tensor, strides: Tensor, targets: Targets) -> Assignment:
        """Assign predictions to objects.

        Args:
            scores: ``[B, A, C]``, 0..1.
            boxes: ``[B, A, 4]``, xyxy in input pixels.
            points: ``[A, 2]``, centres of the cells that predict, (x, y) in input pixels.
            strides: ``[A]``, input pixels.
            targets: Objects of the batch.
        """
        batch, anchors, _ = scores.shape
        live = targets.valid & ~targets.ignore
        count = targets.boxes.shape[1]
        if count == 0:
            nothing = torch.zeros(batch, anchors, dtype=torch.bool, device=scores.device)
            return Assignment(nothing.long(), nothing.to(scores.dtype), nothing, nothing)

        iou = pairwise_iou(targets.boxes, boxes)  # [B, N, A]
        index = targets.labels[:, None, :].expand(-1, anchors, -1)
        score = scores.gather(2, index).transpose(1, 2)  # [B, N, A]
        # An object smaller than a cell would hold no point at all: it takes those within half a cell of its centre.
        inside = points_inside(points, targets.boxes, at_least=float(strides.min()) / 2) & live[..., None]
        alignment = score.pow(self.alpha) * iou.pow(self.beta) * inside

        top = alignment.topk(min(self.top_k, anchors), dim=2).indices
        chosen = torch.zeros_like(inside).scatter_(2, top, True) & inside
        # Where several objects want a point, the one that it overlaps most has it.
        best = torch.where(chosen, iou, torch.full_like(iou, -1)).argmax(dim=1)  # [B, A]
        positive = chosen.any(dim=1)
        owned = chosen & (torch.arange(count, device=best.device)[:, None] == best[:, None])

        alignment = alignment * owned
        strongest = alignment.amax(dim=2, keepdim=True)
        best_iou = (iou * owned).amax(dim=2, keepdim=True)
        quality = (alignment / strongest.clamp(min=1e-9) * best_iou).amax(dim=1)  # TOOD, eq. 4

        region = points_inside(points, targets.boxes) & (targets.valid & targets.ignore)[..., None]
        return Assignment(best, quality, positive, region.any(dim=1) & ~positive)


def points_inside(points: Tensor, boxes: Tensor, at_least: float = 0.0) -> Tensor:
    """Which of the points ``[A, 2]`` lie inside which of the boxes ``[B, N, 4]``, ``[B, N, A]`` bool.

    Args:
        points: (x, y) in pixels.
        boxes: xyxy in pixels.
        at_least: Boxes count as reaching at least this many pixels from their centre.
    """
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    reach = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=at_least)
    distance = (points - centres[..., None, :]).abs()  # [B, N, A, 2]
    return (distance <= reach[..., None, :]).all(dim=-1)

"""Losses of detection heads: pure functions that give one value per element, unreduced."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from detframe.boxes import box_area

_EPSILON = 1e-7  # torchvision's


def varifocal_loss(logits: Tensor, quality: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Varifocal loss (Zhang et al., 2021, eq. 2), elementwise.

    Args:
        logits: Class logits, any shape.
        quality: Target quality 0..1, same shape: the IoU-aware score of positives, 0 for negatives.
        alpha: Weight of negatives.
        gamma: Power by which easy negatives are down-weighted.
    """
    probability = logits.detach().sigmoid()
    weight = torch.where(quality > 0, quality, alpha * probability.pow(gamma))
    return weight * functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (Li et al., 2020, eq. 6): cross entropy to the two bins beside the true distance.

    Args:
        logits: ``[P, 4, bins]``, one distribution per side of a box.
        distances: ``[P, 4]``, true distances in bins, 0..bins-1.

    Returns:
        ``[P]``, the mean over the four sides.
    """
    bins = logits.shape[-1]
    distances = distances.clamp(0, bins - 1.01)
    left = distances.floor().long()
    right_weight = distances - left
    return two_bin_cross_entropy(logits, left, right_weight).mean(dim=-1)


def two_bin_cross_entropy(logits: Tensor, left: Tensor, right_weight: Tensor) -> Tensor:
    """Cross entropy of distributions ``[..., bins]`` to a value between two neighbouring bins, ``[...]``.

    Args:
        logits: ``[..., bins]``.
        left: ``[...]`` int64, the bin at or below the value; not the last.
        right_weight: ``[...]`` 0..1, how near it is to the next bin.
    """
    log_probability = logits.log_softmax(dim=-1)
    left_loss = -log_probability.gather(-1, left[..., None])[..., 0]
    right_loss = -log_probability.gather(-1, left[..., None] + 1)[..., 0]
    return left_loss * (1 - right_weight) + right_loss * right_weight


def giou_loss(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """GIoU loss (Rezatofighi et al., 2019) of boxes and theirs, xyxy ``[..., 4]``: ``[...]`` in 0..2.

    torchvision's gathers the pairs that overlap, and the host waits for the device to count them.
    """
    left, top, right, bottom = boxes.unbind(-1)
    target_left, target_top, target_right, target_bottom = target_boxes.unbind(-1)
    width = (torch.minimum(right, target_right) - torch.maximum(left, target_left)).clamp(min=0)
    height = (torch.minimum(bottom, target_bottom) - torch.maximum(top, target_top)).clamp(min=0)
    union = box_area(boxes) + box_area(target_boxes) - width * height
    hull_width = torch.maximum(right, target_right) - torch.minimum(left, target_left)
    hull = hull_width * (torch.maximum(bottom, target_bottom) - torch.minimum(top, target_top))
    return 1 - width * height / (union + _EPSILON) + (hull - union) / (hull + _EPSILON)


def masked_giou_loss(boxes: Tensor, target_boxes: Tensor, positive: Tensor) -> Tensor:
    """:func:`giou_loss` of the positives and a finite value elsewhere, ``[B, A]``.

    Computing all and weighting most by zero keeps shapes fixed, so that nothing waits for the device.

    Args:
        boxes: ``[B, A, 4]``, xyxy in pixels.
        target_boxes: ``[B, A, 4]``.
        positive: ``[B, A]``, whose targets mean something.
    """
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])  # an area for the others, whose GIoU would be 0 / 0
    anything = boxes.detach() + unit
    return giou_loss(boxes, torch.where(positive[..., None], target_boxes, anything))

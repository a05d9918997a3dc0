"""Pure functions on boxes: xyxy, absolute pixels, ``[..., 4]``, wherever the name does not say otherwise.

Conversions between box formats and pairwise IoU are torchvision's (``torchvision.ops.box_convert``, ``box_iou``).
"""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Areas of boxes ``[..., 4]`` in square pixels, ``[...]``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise intersection areas of ``[..., N, 4]`` and ``[..., M, 4]``, ``[..., N, M]`` in square pixels."""
    top_left = torch.max(boxes1[..., :, None, :2], boxes2[..., None, :, :2])
    bottom_right = torch.min(boxes1[..., :, None, 2:], boxes2[..., None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0)
    return overlap[..., 0] * overlap[..., 1]


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise IoU of ``[..., N, 4]`` and ``[..., M, 4]``, ``[..., N, M]`` in 0..1; 0 where both boxes are empty.

    torchvision's ``box_iou`` takes no leading dimensions and divides by zero on padding rows.
    """
    overlap = intersection(boxes1, boxes2)
    union = box_area(boxes1)[..., :, None] + box_area(boxes2)[..., None, :] - overlap
    return overlap / union.clamp(min=torch.finfo(overlap.dtype).tiny)


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``[..., 4]`` cut to an image of ``height`` x ``width`` pixels."""
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)

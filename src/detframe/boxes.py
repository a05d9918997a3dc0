"""Pure functions on boxes: xyxy, absolute pixels, ``[..., 4]``, wherever the name does not say otherwise.

Conversions between box formats and pairwise IoU are torchvision's (``torchvision.ops.box_convert``, ``box_iou``).
"""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Areas of boxes ``[..., 4]`` in square pixels, ``[...]``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def share_left(part: Tensor, whole: Tensor) -> Tensor:
    """Share of the area of boxes ``whole [..., 4]`` that ``part [..., 4]``, what was cut out of them, keeps, 0..1."""
    return box_area(part) / box_area(whole).clamp(min=1e-6)


def intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise intersection areas of ``[..., N, 4]`` and ``[..., M, 4]``, ``[..., N, M]`` in square pixels."""
    # Coordinate by coordinate: a last dimension of two makes every operator several times as slow.
    left1, top1, right1, bottom1 = boxes1[..., :, None, :].unbind(-1)  # [..., N, 1]
    left2, top2, right2, bottom2 = boxes2.transpose(-1, -2).contiguous()[..., None, :].unbind(-3)  # [..., 1, M]
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    return width * height


def overlap_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Pairwise areas of intersection and union of ``[..., N, 4]`` and ``[..., M, 4]``, both ``[..., N, M]``."""
    overlap = intersection(boxes1, boxes2)
    return overlap, box_area(boxes1)[..., :, None] + box_area(boxes2)[..., None, :] - overlap


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise IoU of ``[..., N, 4]`` and ``[..., M, 4]``, ``[..., N, M]`` in 0..1; 0 where both boxes are empty.

    torchvision's ``box_iou`` takes no leading dimensions and divides by zero on padding rows.
    """
    overlap, union = overlap_and_union(boxes1, boxes2)
    return overlap / torch.where(union > 0, union, 1.0)


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``[..., 4]`` cut to an image of ``height`` x ``width`` pixels."""
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def encode_boxes(
    boxes: Tensor, references: Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Boxes as offsets from reference boxes (R-CNN, appendix C), ``[..., 4]``: shift in sizes, logarithm of the ratio.

    Args:
        boxes: ``[..., 4]``, sides of more than 0.
        references: ``[..., 4]``, likewise.
        weights: Factors of the offsets in x, y, width and height.
    """
    size = references[..., 2:] - references[..., :2]
    wanted = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + wanted / 2 - references[..., :2] - size / 2) / size
    return torch.cat((shift, (wanted / size).log()), dim=-1) * _row(weights, boxes)


def decode_boxes(
    offsets: Tensor, references: Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Boxes ``[..., 4]`` of offsets from reference boxes, the way back of :func:`encode_boxes`.

    Growth is held to 62.5 times the reference, as torchvision does it, so that no exponential overflows.
    """
    size = references[..., 2:] - references[..., :2]
    offsets = offsets / _row(weights, offsets)
    centres = references[..., :2] + size / 2 + offsets[..., :2] * size
    half = size * offsets[..., 2:].clamp(max=4.135166556742356).exp() / 2  # log(1000 / 16)
    return torch.cat((centres - half, centres + half), dim=-1)


def _row(values: tuple[float, float, float, float], like: Tensor) -> Tensor:
    return torch.tensor([values[0], values[1], values[2], values[3]], dtype=like.dtype, device=like.device)

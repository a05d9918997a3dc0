"""The tensors that travel through detframe: one file, shapes and units beside the fields.

Postponed annotations (``from __future__ import annotations``) would break TorchScript here, which reads these classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree


class Level(NamedTuple):
    """One feature map as its maker describes it."""

    channels: int
    stride: int  # input pixels per cell


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the most boxes that one of its images has.

    ``ignore`` marks crowd, difficult and ambiguous objects: neither positive nor negative, in augmentation, in the
    loss and in every metric. Padding rows have ``valid`` False, boxes and labels 0.
    """

    boxes: Tensor  # [B, N, 4] float32, xyxy in input pixels, 0 <= x1 < x2 <= W and 0 <= y1 < y2 <= H
    labels: Tensor  # [B, N] int64, 0..C-1
    ignore: Tensor  # [B, N] bool
    valid: Tensor  # [B, N] bool


class Detections(NamedTuple):
    """What a detector found in a batch: K slots per image, filled from the front by descending score."""

    boxes: Tensor  # [B, K, 4] float32, xyxy in pixels, clipped to the image
    scores: Tensor  # [B, K] float32, 0..1, descending
    labels: Tensor  # [B, K] int64, 0..C-1
    valid: Tensor  # [B, K] bool, False in the slots that are not used


# What torch.export needs to write a program that returns them; torch has no public name for it.
_pytree._register_namedtuple(Detections, serialized_type_name="detframe.structures.Detections")


class Batch(NamedTuple):
    """What the data module hands to the task."""

    images: Tensor  # [B, 3, H, W] RGB, uint8 0..255 from the loader and float32 0..1 on the device
    targets: Targets  # in the pixels of `images`
    original_boxes: Tensor  # [B, N, 4] float32, the same objects in pixels of the original image: what metrics compare
    areas: Tensor  # [B, N] float32, square pixels of the original image: the annotation's own, which sizes go by
    annotation_ids: Tensor  # [B, N] int64, the ids of the annotation file
    image_ids: Tensor  # [B] int64, the ids of the annotation file
    original_sizes: Tensor  # [B, 2] int64, (height, width) of the image as decoded
    transforms: Tensor  # [B, 4] float32, (scale_x, scale_y, offset_x, offset_y): input = original * scale + offset


def empty_targets(batch_size: int, boxes: int = 0, device: torch.device | None = None) -> Targets:
    """Targets with ``boxes`` padding rows for each of ``batch_size`` images and no object."""
    return Targets(
        boxes=torch.zeros(batch_size, boxes, 4, device=device),
        labels=torch.zeros(batch_size, boxes, dtype=torch.int64, device=device),
        ignore=torch.zeros(batch_size, boxes, dtype=torch.bool, device=device),
        valid=torch.zeros(batch_size, boxes, dtype=torch.bool, device=device),
    )


class TrainingObjects(NamedTuple):
    """The live objects of a training split, for what must know the data before it changes it; on the CPU."""

    boxes: Tensor  # [N, 4] float32, xyxy in the pixels that training sees; neither ignored nor degenerate
    labels: Tensor  # [N] int64, 0..C-1
    images: Tensor  # [N] int64, the position of each one's image, 0..M-1
    class_names: list[str]  # C
    image_count: int  # M, images without an object included
    read_image: Callable[[int], Tensor]  # position -> [3, H, W] uint8 RGB, in the pixels that `boxes` are in
    read_mask: Callable[[int], Tensor | None]  # object 0..N-1 -> [H, W] bool, None where the data has only its box

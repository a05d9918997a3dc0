"""Kornia's augmentations on a batch: boxes, ignore flags and padding follow the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import kornia.augmentation as K  # noqa: N812 - the name that Kornia's own documentation uses
import torch
from kornia.augmentation import AugmentationBase2D
from torch import Tensor, nn

from detframe.boxes import box_area, clip_boxes
from detframe.structures import Batch


class AugmentationPipeline(nn.Module):
    """Applies Kornia operators to images in 0..1 and moves their boxes along.

    Args:
        operators: Kornia augmentations, applied in order to the whole batch, each image with parameters of its own.
        min_visible: A box that keeps less than this share of its area inside the image becomes an ignore box, so that
            a half-seen object is not taught as background. 0..1.
        min_pixels: So does a box with a side of fewer pixels.
    """

    def __init__(
        self, operators: Sequence[AugmentationBase2D], min_visible: float = 0.3, min_pixels: float = 2.0
    ) -> None:
        super().__init__()
        self.min_visible = min_visible
        self.min_pixels = min_pixels
        self.sequence = (
            K.AugmentationSequential(*operators, data_keys=["input", "bbox_xyxy"]) if len(operators) else None
        )

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """The batch with other pixels and boxes; ``images`` are float 0..1 before and after."""
        if self.sequence is None:
            return batch
        targets = batch.targets
        if targets.boxes.shape[1] == 0:  # Kornia rejects an empty list of boxes
            dummy = torch.zeros(len(batch.images), 1, 4, device=batch.images.device)
            images, _ = self.sequence(batch.images, dummy)
            return batch._replace(images=images.clamp(0, 1))
        # Kornia 0.9 takes xyxy as the first and last pixel: half a pixel less in, half a pixel more out is exact.
        images, moved = self.sequence(batch.images, targets.boxes - 0.5)
        boxes, visible = clip_and_measure(moved.to(targets.boxes.dtype) + 0.5, images.shape[2], images.shape[3])
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = targets.valid & (sides > 0).all(dim=-1)
        hidden = (visible < self.min_visible) | (sides.amin(dim=-1) < self.min_pixels)
        return batch._replace(
            images=images.clamp(0, 1),  # noise and colour operators leave the range
            targets=targets._replace(
                boxes=torch.where(valid[..., None], boxes, 0.0),
                labels=torch.where(valid, targets.labels, 0),
                ignore=(targets.ignore | hidden) & valid,
                valid=valid,
            ),
        )


def clip_and_measure(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes ``[..., 4]`` clipped to the image, and the share of each one's area that this leaves, ``[...]`` 0..1."""
    clipped = clip_boxes(boxes, height, width)
    return clipped, box_area(clipped) / box_area(boxes).clamp(min=1e-6)


def default_augmentations() -> list[AugmentationBase2D]:
    """Mild operators that fit most inspection images: mirror, small affine moves with scale, light colour changes."""
    return [
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(degrees=0.0, translate=(0.1, 0.1), scale=(0.7, 1.3), p=0.8),
        K.ColorJiggle(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, p=0.5),
    ]

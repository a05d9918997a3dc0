"""Erasing with a conscience: holes in the image that leave enough of every object to be found."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from detframe.augment.base import BatchAugmentation
from detframe.augment.facts import DeploymentFacts
from detframe.boxes import box_area, clip_boxes, intersection
from detframe.structures import Batch, Targets, TrainingObjects

Fill = Literal["mean", "grey", "noise"]

_GREY = 0.5
_TILE = 64  # pixels of noise on each side, repeated over the image: drawing them all on the CPU would cost more


class HoleErasing(BatchAugmentation):
    """Erases rectangles, but never too much of an object; derived classes say which rectangles.

    Holes that would erase more than ``max_share`` of a live object together with those before them, or anything of a
    small one, are left out one by one. What the image shows beside the objects and in ignore boxes may go.

    Args:
        max_share: Share of a live object's box that all holes together may erase, 0..1.
        min_object_pixels: Objects with a side below this are not touched.
        fill: What a hole shows: the ``mean`` colour of the image, a ``grey`` that is always the same, or ``noise``.
        p: Share of the images that it changes, 0..1.
    """

    def __init__(
        self, max_share: float = 0.3, min_object_pixels: float = 16.0, fill: Fill = "mean", p: float = 0.5
    ) -> None:
        super().__init__(p)
        self.max_share = max_share
        self.min_object_pixels = min_object_pixels
        self.fill = fill

    @abstractmethod
    def holes(self, count: int, height: int, width: int) -> Tensor:
        """Random holes for ``count`` images, ``[B, K, 4]`` xyxy in whole pixels, on the CPU; some may be empty."""

    @torch.no_grad()
    def augment(self, batch: Batch) -> Batch:
        """The batch with holes in its images; targets stay as they are."""
        images = batch.images
        count, _, height, width = images.shape
        gate = self.forward_parameters(tuple(images.shape))["batch_prob"].to(images.device, non_blocking=True) > 0.5
        holes = clip_boxes(self.holes(count, height, width), height, width).to(images.device, non_blocking=True)
        kept = bearable(holes, batch.targets, self.max_share, self.min_object_pixels) & gate[:, None]
        mask = covered(holes * kept[..., None], height, width)[:, None]  # [B, 1, H, W]
        return batch._replace(images=torch.where(mask, self._filling(images), images))

    def contradictions(self, facts: DeploymentFacts, objects: TrainingObjects | None) -> list[tuple[str, str]]:
        """See :class:`BatchAugmentation`."""
        least = facts.min_object_px
        if least is None or self.min_object_pixels >= 2 * least:
            return []
        wrong = (
            f"it erases parts of objects of {self.min_object_pixels:g} pixels, of which less than `min_object_px` stays"
        )
        return [(f"min_object_px: {least:g}", f"{wrong}; raise its `min_object_pixels` to {2 * least:g}")]

    def _filling(self, images: Tensor) -> Tensor:
        """What holes show, ``[B, 3, H, W]`` or broadcast to it."""
        count, channels, height, width = images.shape
        if self.fill == "mean":
            return images.mean(dim=(2, 3), keepdim=True)
        if self.fill == "grey":
            return images.new_full((), _GREY)
        tile = torch.rand(count, channels, _TILE, _TILE).to(images, non_blocking=True)
        return tile.repeat(1, 1, math.ceil(height / _TILE), math.ceil(width / _TILE))[..., :height, :width]


class Erasing(HoleErasing):
    """Erases a few rectangles from each image (Zhong et al. 2020), never too much of an object.

    Args:
        holes: Rectangles in an image.
        size: Range of the share of the image that each takes, 0..1.
        aspect: Range of its width by its height.
        max_share: Share of a live object's box that all holes together may erase, 0..1.
        min_object_pixels: Objects with a side below this are not touched.
        fill: What a hole shows: the ``mean`` colour of the image, a ``grey`` that is always the same, or ``noise``.
        p: Share of the images that it changes, 0..1.
    """

    def __init__(
        self,
        holes: int = 4,
        size: tuple[float, float] = (0.002, 0.03),
        aspect: tuple[float, float] = (0.5, 2.0),
        max_share: float = 0.3,
        min_object_pixels: float = 16.0,
        fill: Fill = "mean",
        p: float = 0.5,
    ) -> None:
        super().__init__(max_share, min_object_pixels, fill, p)
        self.count = holes
        self.size = size
        self.aspect = aspect

    def holes(self, count: int, height: int, width: int) -> Tensor:
        """Rectangles anywhere, sizes and the logarithm of the aspect uniform in their ranges."""
        draws = torch.rand(4, count, self.count)
        area = (self.size[0] + (self.size[1] - self.size[0]) * draws[0]) * height * width
        low, high = (math.log(aspect) for aspect in self.aspect)
        aspect = (low + (high - low) * draws[1]).exp()
        across = (area * aspect).sqrt().round().clamp(1, width)
        down = (area / aspect).sqrt().round().clamp(1, height)
        x, y = (draws[2] * (width - across + 1)).floor(), (draws[3] * (height - down + 1)).floor()
        return torch.stack((x, y, x + across, y + down), dim=-1)


class GridErasing(HoleErasing):
    """Erases the squares of a regular grid from each image (GridMask, Chen et al. 2020), never too much of an object.

    Args:
        spacing: Range of the distance from square to square, as a share of the image's shorter side, 0..1.
        ratio: Side of a square as a share of that distance, 0..1.
        max_share: Share of a live object's box that all holes together may erase, 0..1.
        min_object_pixels: Objects with a side below this are not touched.
        fill: What a hole shows: the ``mean`` colour of the image, a ``grey`` that is always the same, or ``noise``.
        p: Share of the images that it changes, 0..1.
    """

    def __init__(
        self,
        spacing: tuple[float, float] = (0.1, 0.3),
        ratio: float = 0.4,
        max_share: float = 0.3,
        min_object_pixels: float = 16.0,
        fill: Fill = "mean",
        p: float = 0.5,
    ) -> None:
        super().__init__(max_share, min_object_pixels, fill, p)
        self.spacing = spacing
        self.ratio = ratio

    def holes(self, count: int, height: int, width: int) -> Tensor:
        """The squares of a grid that starts anywhere, in random order, so that none is left out for its place."""
        shorter = min(height, width)
        low, high = (max(side * shorter, 2.0) for side in self.spacing)
        draws = torch.rand(3, count, 1)
        step = (low + (high - low) * draws[0]).round()
        side = (step * self.ratio).round().clamp(min=1)
        columns, rows = math.ceil(width / math.floor(low)) + 1, math.ceil(height / math.floor(low)) + 1
        x = (torch.arange(columns) - draws[1]).mul(step).round()  # [B, columns]
        y = (torch.arange(rows) - draws[2]).mul(step).round()
        x, y = x[:, None].expand(-1, rows, -1).flatten(1), y[:, :, None].expand(-1, -1, columns).flatten(1)
        squares = torch.stack((x, y, x + side, y + side), dim=-1)  # [B, K, 4]
        order = torch.rand(count, rows * columns).argsort(dim=1)
        return squares.take_along_dim(order[..., None], dim=1)


def bearable(holes: Tensor, targets: Targets, max_share: float, min_object_pixels: float) -> Tensor:
    """Which holes may be made, ``[B, K]`` bool, so that all of them leave enough of every live object.

    What is erased of an object is counted as the sum of what its holes erase, which is no less than their union. A hole
    that is too much by itself is left out first; then one is left out where the sum up to it is too much.

    Args:
        holes: ``[B, K, 4]`` xyxy in pixels, inside the image.
        targets: With N rows.
        max_share: Of a live object's box, 0..1.
        min_object_pixels: Objects with a side below this may lose nothing.
    """
    sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
    limit = max_share * box_area(targets.boxes) * (sides.amin(dim=-1) >= min_object_pixels)
    limit = torch.where(targets.valid & ~targets.ignore, limit, torch.inf)[:, None]  # [B, 1, N]
    erased = intersection(holes, targets.boxes)  # [B, K, N]
    alone = ((erased <= limit) | (erased <= 0)).all(dim=-1)
    total = (erased * alone[..., None]).cumsum(dim=1)
    return alone & ((total <= limit) | (erased <= 0)).all(dim=-1)


def covered(boxes: Tensor, height: int, width: int) -> Tensor:
    """Pixels inside any of the boxes ``[B, K, 4]`` in whole pixels, ``[B, height, width]`` bool."""
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    across = (x >= boxes[..., :1]) & (x < boxes[..., 2:3])  # [B, K, width]
    down = (y >= boxes[..., 1:2]) & (y < boxes[..., 3:])
    # A product of matrices, which needs no memory for B x K images.
    return torch.bmm(down.transpose(1, 2).to(boxes.dtype), across.to(boxes.dtype)) > 0

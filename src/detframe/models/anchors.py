"""Where predictions sit: the cells of feature maps, and the anchor boxes around them.

Postponed annotations would break TorchScript here, which reads these classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Cells(NamedTuple):
    """The ``A`` cells of all levels, finest level first, row by row."""

    centres: Tensor  # [A, 2] float32, (x, y) in input pixels
    strides: Tensor  # [A] float32, input pixels
    counts: list[int]  # cells of each level


def grid_cells(features: list[Tensor], strides: list[int], offset: float) -> Cells:
    """Cells of feature maps ``[B, C, H, W]``.

    Args:
        features: Feature maps, of which only sizes and device count.
        strides: Input pixels per cell of each.
        offset: Where in its cell a centre lies, in strides: 0.5 is the middle, 0 the upper left corner, where
            torchvision's detectors have it.
    """
    centres: list[Tensor] = []
    sizes: list[Tensor] = []
    counts: list[int] = []
    for i, stride in enumerate(strides):
        height, width = features[i].shape[2], features[i].shape[3]
        grid = grid_positions(height, width, offset, features[i].device) * stride
        centres.append(grid)
        sizes.append(torch.full_like(grid[:, 0], float(stride)))
        counts.append(height * width)
    return Cells(torch.cat(centres), torch.cat(sizes), counts)


def grid_positions(height: int, width: int, offset: float, device: torch.device) -> Tensor:
    """Places ``[height * width, 2]``, (x, y) in cells, row by row; ``offset`` cells from each upper left corner."""
    x = torch.arange(width, device=device) + offset
    y = torch.arange(height, device=device) + offset
    return torch.stack((x.repeat(height), y[:, None].expand(-1, width).flatten()), dim=-1)


def base_anchors(strides: list[int], scales: list[float], aspect_ratios: list[float]) -> Tensor:
    """Anchor boxes around the origin, torchvision's, whole pixels, ``[levels, scales * aspect_ratios, 4]`` xyxy.

    Args:
        strides: Input pixels per cell of each level.
        scales: Sides of a square anchor in strides.
        aspect_ratios: Heights by widths, at constant area.
    """
    generate = AnchorGenerator().generate_anchors
    return torch.stack([generate([int(stride * scale) for scale in scales], aspect_ratios) for stride in strides])


def grid_anchors(cells: Cells, bases: Tensor) -> Tensor:
    """Anchors ``[A * n, 4]``, xyxy in input pixels, of cells with the ``[levels, n, 4]`` of :func:`base_anchors`."""
    anchors: list[Tensor] = []
    start = 0
    for i, count in enumerate(cells.counts):
        centres = cells.centres[start : start + count]
        anchors.append((torch.cat((centres, centres), dim=1)[:, None] + bases[i]).flatten(0, 1))
        start += count
    return torch.cat(anchors)

"""Multi-scale deformable attention in plain tensor code: it scripts, exports and runs in half precision.

Postponed annotations would break TorchScript here, which reads the types of the buffers and the named tuple.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Grid(NamedTuple):
    """The cells of one level, and how much of them the image covers."""

    height: int  # cells
    width: int
    image_height: float  # the image's height in cells: less than `height` where it is no multiple of the stride
    image_width: float


def deformable_attention(
    value: Tensor, grids: list[Grid], locations: Tensor, weights: Tensor, points: list[int]
) -> Tensor:
    """Weighted sums of values that are read between the cells of a pyramid (Deformable DETR, Zhu et al., 2021, eq. 3).

    Reads like ``grid_sample`` with bilinear interpolation, zeros outside and ``align_corners=False``, which neither
    exports everywhere nor keeps coordinates in float32 where the values are in half precision.

    Args:
        value: ``[B, S, heads, D]``, the cells of all levels, row by row, finest level first.
        grids: One per level; their cells sum to S.
        locations: ``[B, Q, heads, P, 2]`` float32, (x, y) in 0..1 of the image; the first level's points come first.
        weights: ``[B, Q, heads, P]``.
        points: How many of the P points read from each level.

    Returns:
        ``[B, Q, heads * D]``, of the type of ``value``.
    """
    batch, cells, heads, depth = value.shape
    indices: list[Tensor] = []
    shares: list[Tensor] = []
    first_cell, first_point = 0, 0
    for i, grid in enumerate(grids):
        place = locations[:, :, :, first_point : first_point + points[i]]
        x = place[..., 0] * grid.image_width - 0.5  # in cells: whole numbers are their centres
        y = place[..., 1] * grid.image_height - 0.5
        index, share = bilinear_corners(x, y, grid.height, grid.width)
        indices.append(index + first_cell)
        shares.append(share)
        first_cell += grid.height * grid.width
        first_point += points[i]
    index = torch.cat(indices, dim=3).flatten(3)  # [B, Q, heads, P * 4]
    share = (torch.cat(shares, dim=3) * weights[..., None]).flatten(3).to(value.dtype)

    # Whole rows of one flat table: twice as fast on a CPU as `gather`, which wants an index for every channel.
    image = torch.arange(batch, device=value.device)[:, None, None, None]
    head = torch.arange(heads, device=value.device)[:, None]
    rows = ((image * cells + index) * heads + head).flatten()
    read: Tensor = value.reshape(-1, depth).index_select(0, rows).unflatten(0, index.shape)
    return (share[..., None, :] @ read).flatten(2)


def bilinear_corners(x: Tensor, y: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four cells around each place of a map, and what share each has of the value there.

    Args:
        x: Any shape, in cells: 0 is the centre of the first column.
        y: Same shape, likewise for rows.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        Indices ``[..., 4]`` into the map, row by row, and shares ``[..., 4]`` in 0..1, 0 for cells outside the map.
    """
    left, top = x.floor(), y.floor()
    column = torch.stack((left, left + 1, left, left + 1), dim=-1)
    row = torch.stack((top, top, top + 1, top + 1), dim=-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    share = (1 - (x[..., None] - column).abs()) * (1 - (y[..., None] - row).abs()) * inside
    # Clamped as whole numbers, which nothing escapes: a network that diverges gives coordinates that are no numbers,
    # and a read out of bounds would take down the process, where a loss that is no number stops the step with a reason.
    return row.long().clamp(0, height - 1) * width + column.long().clamp(0, width - 1), share


class DeformableAttention(nn.Module):
    """Cross attention from boxes to the few points of a pyramid that each query asks for.

    The points lie around the centre of the query's box, at offsets in units of its sides (RT-DETRv2, Lv et al., 2024).

    Args:
        channels: Channels of queries and of the pyramid.
        heads: Attention heads; divides ``channels``.
        points: Points that a head reads from each level.
    """

    reach: Tensor

    def __init__(self, channels: int, heads: int, points: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.points = list(points)
        self.sampling_offsets = nn.Linear(channels, heads * sum(points) * 2)
        self.attention_weights = nn.Linear(channels, heads * sum(points))
        # An offset of 1 in the last point of a level is half a side of the box.
        reach = torch.tensor([0.5 / count for count in points for _ in range(count)])
        self.register_buffer("reach", reach[:, None], persistent=False)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star(heads, points).flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)

    def forward(self, query: Tensor, boxes: Tensor, memory: Tensor, grids: list[Grid]) -> Tensor:
        """What each query reads.

        Args:
            query: ``[B, Q, channels]``.
            boxes: ``[B, Q, 4]`` float32, cxcywh in 0..1 of the image.
            memory: ``[B, S, channels]``, the cells of all levels, finest level first.
            grids: One per level.

        Returns:
            ``[B, Q, channels]``.
        """
        return self.read(query, boxes, memory, grids)

    def read(self, query: Tensor, boxes: Tensor, memory: Tensor, grids: list[Grid]) -> Tensor:
        """What ``forward`` gives; a method of its own because TorchScript has no ``super``."""
        batch, queries, channels = query.shape
        # Coordinates stay in float32: half precision places nothing finer than a cell on a map of 1,000 cells.
        offsets = self.sampling_offsets(query).float().view(batch, queries, self.heads, -1, 2)
        weights = self.attention_weights(query).float().view(batch, queries, self.heads, -1).softmax(dim=-1)
        locations = boxes[:, :, None, None, :2] + offsets * self.reach * boxes[:, :, None, None, 2:]
        value = memory.reshape(batch, memory.shape[1], self.heads, channels // self.heads)
        return deformable_attention(value, grids, locations, weights, self.points)


class ProjectedDeformableAttention(DeformableAttention):
    """Deformable attention with linear projections of what is read and of what comes out, as in RT-DETR.

    Args:
        channels: Channels of queries and of the pyramid.
        heads: Attention heads; divides ``channels``.
        points: Points that a head reads from each level.
    """

    def __init__(self, channels: int, heads: int, points: Sequence[int]) -> None:
        super().__init__(channels, heads, points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, boxes: Tensor, memory: Tensor, grids: list[Grid]) -> Tensor:
        """What each query reads, see :class:`DeformableAttention`."""
        read: Tensor = self.output_proj(self.read(query, boxes, self.value_proj(memory), grids))
        return read


def star(heads: int, points: Sequence[int]) -> Tensor:
    """First offsets ``[heads, P, 2]``: each head looks in a direction of its own, each point of a level further out."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.cat([torch.arange(1, count + 1) for count in points])
    return directions[:, None] * steps[:, None]

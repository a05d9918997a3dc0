"""Where each pixel of an augmented image comes from, and where the boxes go: pure functions.

Flips, affine moves, perspectives and mosaic tiles are composed into one matrix per tile, and pixels are read once: it
is several times as fast as a pass over the image for each operator, and blurs them once instead of every time.

Coordinates are those of boxes: pixel ``i`` covers ``i`` to ``i + 1``. Kornia's matrices speak of pixel centres instead
(:func:`from_pixel_centres`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor
from torch.nn import functional

from detframe.boxes import clip_boxes, share_left
from detframe.structures import Batch


class Warp(NamedTuple):
    """How the images of a batch are put together from the images of a pool: ``T`` tiles each, moved by homographies.

    The tiles are laid row by row on a canvas of the pool images' size, and the canvas is moved as a whole. Those at the
    border reach on beyond it.
    """

    sources: Tensor  # [B, T] int64, which image of the pool a tile shows
    tiles: Tensor  # [B, T, 3, 3] from the pool image's coordinates to the canvas's
    lines: Tensor  # [B, 2, sqrt(T) - 1] x and y of the lines between the columns and the rows of tiles, on the canvas
    canvas: Tensor  # [B, 3, 3] from the canvas's coordinates to the output's


class Layout(NamedTuple):
    """A batch of which the pixels are still to be read."""

    pool: Tensor  # [3, M, H, W] the images that tiles may show, channels first of all
    warp: Warp
    batch: Batch  # its rows are the boxes of the tiles' images, [B, T * N, ...], in those images' pixels


class Settled(NamedTuple):
    """A batch after its boxes have moved, and what became of them."""

    batch: Batch
    ignored: Tensor  # [B, N] bool, live objects of which too little is left, now ignore regions
    gone: Tensor  # [B, N] bool, live objects of which nothing is left


def lay_out(batch: Batch) -> Layout:
    """A batch as a layout that changes nothing yet."""
    return Layout(batch.images.transpose(0, 1), still(batch.images), batch)


def finish(layout: Layout, min_visible: float, min_pixels: float, fill: float, perspective: bool = True) -> Settled:
    """Read the pixels of a layout and move its boxes; see :func:`resample` and :func:`settle` for the arguments."""
    height, width = layout.pool.shape[2:]
    targets = layout.batch.targets
    count, tiles = layout.warp.sources.shape
    boxes, visible = warp_boxes(targets.boxes.reshape(count, tiles, -1, 4), layout.warp, height, width)
    batch = layout.batch._replace(images=resample(layout.pool, layout.warp, fill, perspective))
    return settle(batch, boxes.reshape(count, -1, 4), visible.reshape(count, -1), min_visible, min_pixels)


def still(images: Tensor) -> Warp:
    """The warp that leaves images ``[B, 3, H, W]`` as they are."""
    count, device = len(images), images.device
    eye = torch.eye(3, device=device).expand(count, 3, 3)
    return Warp(torch.arange(count, device=device)[:, None], eye[:, None], images.new_zeros(count, 2, 0), eye)


def moved(warp: Warp, matrices: Tensor) -> Warp:
    """A warp followed by homographies ``[B, 3, 3]`` of the whole images."""
    return warp._replace(canvas=matrices @ warp.canvas)


def from_pixel_centres(matrices: Tensor) -> Tensor:
    """Homographies ``[..., 3, 3]`` of pixel centres at whole numbers, in coordinates whose pixels end there."""
    return translation(0.5, matrices) @ matrices @ translation(-0.5, matrices)


def drawn_matrices(operator: GeometricAugmentationBase2D, images: Tensor) -> Tensor:
    """Draw a Kornia operator's parameters, and give the homographies ``[B, 3, 3]`` that it would apply to images."""
    parameters = operator.forward_parameters(images.shape)
    return from_pixel_centres(operator.generate_transformation_matrix(images, parameters, operator.flags).float())


def translation(distance: float, like: Tensor) -> Tensor:
    """The matrix ``[3, 3]`` that adds ``distance`` to x and y."""
    matrix = torch.eye(3, dtype=like.dtype, device=like.device)
    matrix[:2, 2] = distance
    return matrix


def resample(pool: Tensor, warp: Warp, fill: float, perspective: bool) -> Tensor:
    """Read the pixels of a warp, bilinearly, in one pass.

    Args:
        pool: ``[3, M, H, W]``, channels first of all: the images as one tall picture, which is what is read from.
        warp: Of M images.
        fill: Brightness where no tile shows anything, 0..1.
        perspective: Whether matrices may have another last row than 0 0 1, which costs a division per pixel and tile.

    Returns:
        ``[B, 3, H, W]``.
    """
    _, count, height, width = pool.shape
    tall = pool.new_full((1, 3, count * height + 2, width), fill)  # its last two rows are what lies outside
    tall[0, :, :-2].view(3, count, height, width).copy_(pool)
    back = torch.linalg.inv(warp.canvas)  # output -> canvas
    through = torch.linalg.inv(warp.tiles) @ back[:, None]  # [B, T, 3, 3] output -> image of the pool
    # On a CPU image by image: the coordinates of one stay in its cache.
    at_once = 1 if pool.device.type == "cpu" else len(warp.canvas)
    parts = zip(*(part.split(at_once) for part in (through, back, warp.lines, warp.sources)), strict=True)
    return torch.cat([_read(tall, height, *part, perspective=perspective) for part in parts])


def _read(
    tall: Tensor, height: int, through: Tensor, back: Tensor, lines: Tensor, sources: Tensor, *, perspective: bool
) -> Tensor:
    """Pixels ``[B, 3, H, W]`` of a part of the images; coordinates stay rows and columns for as long as they can."""
    width, total = tall.shape[3], tall.shape[2]
    x = torch.arange(width, device=tall.device) + 0.5
    y = (torch.arange(height, device=tall.device) + 0.5)[:, None]
    side = lines.shape[2] + 1
    # Of one tile nothing asks where on the canvas it lies.
    canvas_x, canvas_y = _coordinates(back, x, y, perspective) if side > 1 else (x, y)
    found: tuple[Tensor, ...] = ()
    for row in range(side):
        strip: tuple[Tensor, ...] = ()
        for column in range(side):
            tile = row * side + column
            position = (*_coordinates(through[:, tile], x, y, perspective), sources[:, tile, None, None] * height)
            strip = _beyond(canvas_x, lines[:, 0], column, position, strip)
        found = _beyond(canvas_y, lines[:, 1], row, strip, found)
    source_x, source_y, top = found
    seen = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    # Half a pixel from the edge the neighbour would be another image's.
    tall_y = torch.where(seen, source_y.clamp(0.5, height - 0.5) + top, total - 1.0)
    grid = tall.new_empty(1, len(through) * height, width, 2)
    by_image = grid.view(len(through), height, width, 2)
    by_image[..., 0] = source_x.clamp(0.5, width - 0.5) * (2 / width) - 1
    by_image[..., 1] = tall_y * (2 / total) - 1
    pixels = functional.grid_sample(tall, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return pixels.view(3, len(through), height, width).transpose(0, 1)


def _beyond(
    along: Tensor, lines: Tensor, count: int, there: tuple[Tensor, ...], here: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """``there`` beyond line ``count`` (from 1) of a coordinate, ``here`` before it."""
    if count == 0:
        return there
    beyond = along >= lines[:, count - 1, None, None]
    return tuple(torch.where(beyond, new, old) for new, old in zip(there, here, strict=True))


def _coordinates(matrices: Tensor, x: Tensor, y: Tensor, perspective: bool) -> tuple[Tensor, Tensor]:
    """Points ``x [W]``, ``y [H, 1]`` moved by ``[B, 3, 3]``: both coordinates, ``[B, H, W]``, or 1 for H or W."""
    rows = matrices[..., None, None]  # [B, 3, 3, 1, 1]
    # A CPU tells at no cost that nothing is turned: then x goes by the column alone and y by the row.
    if not perspective and matrices.device.type == "cpu" and not bool(matrices[:, (0, 1), (1, 0)].any()):
        return rows[:, 0, 0] * x + rows[:, 0, 2], rows[:, 1, 1] * y + rows[:, 1, 2]
    first, second = (rows[:, i, 0] * x + (rows[:, i, 1] * y + rows[:, i, 2]) for i in range(2))
    if not perspective:
        return first, second
    third = rows[:, 2, 0] * x + (rows[:, 2, 1] * y + rows[:, 2, 2])
    return first / third, second / third


def move_boxes(boxes: Tensor, matrices: Tensor) -> Tensor:
    """The boxes that enclose the corners of boxes ``[..., 4]`` after homographies ``[..., 3, 3]``."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    x = torch.stack((x1, x2, x2, x1), dim=-1)  # [..., 4 corners]
    y = torch.stack((y1, y1, y2, y2), dim=-1)
    first, second, third = (
        matrices[..., i, 0, None] * x + matrices[..., i, 1, None] * y + matrices[..., i, 2, None] for i in range(3)
    )
    first, second = first / third, second / third
    return torch.stack((first.amin(-1), second.amin(-1), first.amax(-1), second.amax(-1)), dim=-1)


def warp_boxes(boxes: Tensor, warp: Warp, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes of each tile's image in the output, and how much of each is to be seen there.

    Args:
        boxes: ``[B, T, N, 4]`` in the coordinates of the tiles' images.
        warp: What the images go through.
        height: Of the output in pixels.
        width: Likewise.

    Returns:
        Clipped boxes ``[B, T, N, 4]``, and the share of each one's area that its tile's window and the output's border
        leave, ``[B, T, N]`` 0..1.
    """
    laid = move_boxes(boxes, warp.tiles[:, :, None])
    window = windows(warp.lines)[:, :, None]
    cut = torch.cat(
        (torch.maximum(laid[..., :2], window[..., :2]), torch.minimum(laid[..., 2:], window[..., 2:])), dim=-1
    )
    cut = torch.cat((cut[..., :2], torch.maximum(cut[..., :2], cut[..., 2:])), dim=-1)  # none is inside out
    placed = move_boxes(cut, warp.canvas[:, None, None])
    clipped = clip_boxes(placed, height, width)
    return clipped, share_left(cut, laid) * share_left(clipped, placed)


def windows(lines: Tensor) -> Tensor:
    """Windows ``[B, T, 4]``, xyxy on the canvas, of the tiles between ``lines [B, 2, side - 1]``; some to infinity."""
    edge = lines.new_full((*lines.shape[:2], 1), torch.inf)
    x, y = torch.cat((-edge, lines, edge), dim=2).unbind(1)  # [B, side + 1]
    side = x.shape[1] - 1
    x1, x2 = (part[:, None].expand(-1, side, -1).flatten(1) for part in (x[:, :-1], x[:, 1:]))
    y1, y2 = (part[:, :, None].expand(-1, -1, side).flatten(1) for part in (y[:, :-1], y[:, 1:]))
    return torch.stack((x1, y1, x2, y2), dim=-1)


def settle(batch: Batch, boxes: Tensor, visible: Tensor, min_visible: float, min_pixels: float) -> Settled:
    """Give the objects of a batch the boxes that an operator left them.

    An object of which too little is left becomes an ignore region, so that half of it is not taught as background;
    one of which nothing is left, or less than a pixel's width, becomes a padding row.

    Args:
        batch: Rows of N boxes.
        boxes: ``[B, N, 4]`` clipped to the image.
        visible: ``[B, N]`` share of each object's area that is still to be seen, 0..1.
        min_visible: Less than this is too little, 0..1.
        min_pixels: So is a side shorter than this.
    """
    targets = batch.targets
    sides = boxes[..., 2:] - boxes[..., :2]
    valid = targets.valid & (visible > 0) & (sides >= 1).all(dim=-1)
    hidden = (visible < min_visible) | (sides.amin(dim=-1) < min_pixels)
    settled = targets._replace(
        boxes=torch.where(valid[..., None], boxes, 0.0),
        labels=torch.where(valid, targets.labels, 0),
        ignore=(targets.ignore | hidden) & valid,
        valid=valid,
    )
    live = targets.valid & ~targets.ignore
    return Settled(batch._replace(targets=settled), live & settled.ignore, live & ~valid)

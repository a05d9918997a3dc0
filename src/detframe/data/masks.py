"""COCO's two ways to outline an object, polygons and run lengths, drawn as the pixels that training sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_FINE = 3  # an odd number, so that one of the finer pixels has the same middle


def rasterise(
    segmentation: Any,  # noqa: ANN401 - a list or an object of the JSON, as read
    size: tuple[int, int],
    transform: Sequence[float] = (1.0, 1.0, 0.0, 0.0),
) -> NDArray[np.bool_] | None:
    """The pixels of an object, ``[H, W]``; None where its runs do not fill the image that they state.

    Args:
        segmentation: Polygons ``[[x, y, x, y, ...], ...]`` in pixels of the original, which cover their union, or runs
            ``{"size": [height, width], "counts": ...}``, plain or compressed as pycocotools does it.
        size: (height, width) of what comes out, in pixels.
        transform: (scale_x, scale_y, offset_x, offset_y): ``input = original * scale + offset``.
    """
    if isinstance(segmentation, dict):
        return _of_runs(segmentation, size, transform)
    mask: NDArray[np.bool_] = np.zeros(size, dtype=np.bool_)
    for polygon in segmentation:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2) * transform[:2] + transform[2:]
        left, top = np.floor(points.min(axis=0)).clip(0).astype(int)
        right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int), (size[1], size[0]))
        if right > left and bottom > top:
            # Pillow also fills pixels that an edge only touches: on thirds of pixels, the middle one is spared that.
            picture = Image.new("1", ((right - left) * _FINE, (bottom - top) * _FINE))
            fine = (points - (left, top)) * _FINE - 0.5  # Pillow's whole numbers are middles, COCO's are corners
            ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in fine], fill=1)
            mask[top:bottom, left:right] |= np.array(picture)[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]
    return mask


def _of_runs(
    segmentation: dict[str, Any], size: tuple[int, int], transform: Sequence[float]
) -> NDArray[np.bool_] | None:
    """The mask at the pixel of the original below the middle of each pixel."""
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    runs = decompress(counts) if isinstance(counts, str) else counts
    if min(runs, default=-1) < 0 or sum(runs) != height * width:
        return None
    original = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T  # column by column
    rows = np.floor((np.arange(size[0]) + 0.5 - transform[3]) / transform[1]).astype(np.int64)
    columns = np.floor((np.arange(size[1]) + 0.5 - transform[2]) / transform[0]).astype(np.int64)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    mask: NDArray[np.bool_] = original[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)] & inside
    return mask


def decompress(counts: str) -> list[int]:
    """Run lengths from the text that pycocotools makes of them (``rleFrString`` in its ``maskApi.c``).

    Five bits a character, the least first, a sixth says that more follow; from the third run on, what is written is the
    difference to the run before the last.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:  # negative
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    return runs

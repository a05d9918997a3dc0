"""Slices of an evaluation: objects and detections by size, shape and place, images by crowding, light and metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.evaluation import Evaluation
from detframe.analysis.profile import SMALLEST_SIDE
from detframe.boxes import box_area
from detframe.data.images import ImageError, read_image
from detframe.image_statistics import blur, brightness, noise_level
from detframe.metrics.rows import DetectionRows, TruthRows

Floats = NDArray[np.float64]

BORDER = 2.0
"""A box that ends within so many pixels of the image's border is cut off by it, or as good as."""

FEWEST_IMAGES = 3
"""A slice of fewer images says more about them than about what they share."""

_MIDDLE = 384  # pixels: blur and noise take longer than all the rest, and need no more

MOST_VALUES = 20
"""Columns of metadata with more different values are left out (names, times), or cut into quarters if they are numbers.
"""


class Slice(NamedTuple):
    """Rows that share a value of a property."""

    property: str
    value: str
    detections: NDArray[np.bool_]  # [D]
    truths: NDArray[np.bool_]  # [G]


class Values(NamedTuple):
    """A property of detections and objects: numbers, NaN where unknown, or names, "" where unknown."""

    name: str
    detections: NDArray[Any]  # [D]
    truths: NDArray[Any]  # [G]


def box_properties(boxes: Tensor, images: NDArray[np.int64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What can be told of boxes alone.

    Args:
        boxes: ``[N, 4]`` xyxy in pixels.
        images: ``[N]``, 0..I-1.
        sizes: ``[I, 2]`` (height, width) of the images.
    """
    corners = boxes.double().numpy()
    width, height = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    extent = sizes[images].astype(np.float64)
    elongation = np.log2(np.maximum(width, 1e-9) / np.maximum(height, 1e-9))
    shape = np.select([elongation < -0.58, elongation > 0.58], ["tall", "wide"], "about square")
    cut = (corners[:, :2] <= BORDER).any(axis=1) | (corners[:, 2:] >= extent[:, ::-1] - BORDER).any(axis=1)
    centre = np.abs((corners[:, :2] + corners[:, 2:]) / 2 / extent[:, ::-1] - 0.5).max(axis=1, initial=0)
    return {
        "object size, px": np.sqrt(box_area(boxes.double()).numpy()),
        "shape": shape,
        "place": np.select([cut, centre < 0.25], ["at the border", "in the middle"], "between"),
    }


def slices(
    detections: DetectionRows,
    truths: TruthRows,
    sizes: NDArray[np.int64],
    of_images: Mapping[str, NDArray[Any]],
) -> list[Slice]:
    """All slices of an evaluation.

    Args:
        detections: ``D`` rows.
        truths: ``G`` rows.
        sizes: ``[I, 2]`` (height, width) of the images.
        of_images: Further properties of the ``I`` images: numbers (NaN where unknown) or names ("" where unknown).
    """
    found, present = detections.images.numpy(), truths.images.numpy()
    counted = truths.images[~truths.ignore].numpy()
    of_images = {"objects in the image": np.bincount(counted, minlength=len(sizes)).astype(np.float64), **of_images}
    own, theirs = box_properties(detections.boxes, found, sizes), box_properties(truths.boxes, present, sizes)
    properties = [Values(name, own[name], theirs[name]) for name in own]
    properties += [Values(name, values[found], values[present]) for name, values in of_images.items()]
    images = len(sizes)
    return [
        part
        for values in properties
        for part in _slices_of(values)
        if len(np.unique(np.concatenate([found[part.detections], present[part.truths]]))) >= min(FEWEST_IMAGES, images)
    ]


def image_properties(evaluation: Evaluation, measured: int) -> dict[str, NDArray[Any]]:
    """Brightness, blur and noise of the images and the columns of their metadata, each ``[I]``.

    Args:
        evaluation: Whose images.
        measured: How many are read at most, evenly spread; the others have NaN.
    """
    columns: dict[str, NDArray[Any]] = dict(metadata_columns(evaluation.metadata))
    count = min(measured, len(evaluation.image_ids)) if evaluation.paths is not None else 0
    if not count or evaluation.paths is None:
        return columns
    places = np.unique(np.linspace(0, len(evaluation.paths) - 1, count).round().astype(np.int64))
    values = np.full((len(evaluation.paths), 3), np.nan)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one image for each thread of the pool
    try:
        with ThreadPoolExecutor() as pool:
            values[places] = list(pool.map(_light_blur_noise, [evaluation.paths[place] for place in places]))
    finally:
        torch.set_num_threads(threads)
    return {name: values[:, i] for i, name in enumerate(("brightness", "blur", "noise"))} | columns


def _light_blur_noise(path: Path) -> tuple[float, float, float]:
    """Brightness of an image, blur and noise in its middle; NaN where it cannot be read or is too small."""
    try:
        image = read_image(path)[None].float() / 255
    except ImageError:
        return math.nan, math.nan, math.nan
    height, width = image.shape[2:]
    if min(height, width) < SMALLEST_SIDE:
        return math.nan, math.nan, math.nan
    top, left = max(height - _MIDDLE, 0) // 2, max(width - _MIDDLE, 0) // 2
    middle = image[:, :, top : top + _MIDDLE, left : left + _MIDDLE]
    return float(brightness(image)), float(blur(middle)), float(noise_level(middle))


def metadata_columns(metadata: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """Columns that the images' metadata ``[I]`` have, as numbers where all values are and as names otherwise.

    Columns of one value, and names of which there are more than :data:`MOST_VALUES`, divide nothing and are left out.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys(key for row in metadata for key in row):
        values = [row.get(name) for row in metadata]
        known = [value for value in values if value is not None and not isinstance(value, (dict, list))]
        number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)
        different = len(set(map(str, known)))
        if different < 2 or (different > MOST_VALUES and not number):
            continue
        if number and different > MOST_VALUES:
            columns[name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        else:
            columns[name] = np.array(["" if value is None else str(value) for value in values])
    return columns


def _slices_of(values: Values) -> list[Slice]:
    """One for each name, or for each quarter of the objects by number."""
    if values.truths.dtype.kind != "f":
        names = sorted(set(values.truths.tolist()) - {""})
        return [Slice(values.name, name, values.detections == name, values.truths == name) for name in names]
    known = values.truths[~np.isnan(values.truths)]
    if not len(known):
        return []
    inner = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    edges = np.concatenate([[-np.inf], inner[(inner > known.min()) & (inner < known.max())], [np.inf]])
    shown = [f"{edge:.3g}" for edge in edges]
    parts = []
    for low, high, first, last in zip(edges[:-1], edges[1:], shown[:-1], shown[1:], strict=True):
        name = f"to {last}" if low == -np.inf else f"above {first}" if high == np.inf else f"{first} to {last}"
        within = [(column > low) & (column <= high) for column in (values.detections, values.truths)]
        parts.append(Slice(values.name, name, within[0], within[1]))
    return parts if len(parts) > 1 else []

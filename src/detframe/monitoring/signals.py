"""What is watched of an image and of what a detector says of it: a number each, quick enough to take along.

Of the pixels a coarse grid and a square in the middle are read, so that the cost does not grow with the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from detframe.image_statistics import contrast, luminance, mean_light, noise_level, tint_of, warmth_of
from detframe.srgb import linear_to_srgb

Floats = NDArray[np.float64]


class Signal(NamedTuple):
    """A number that is watched, and the bins in which it is counted, the same everywhere and for ever."""

    name: str
    edges: Floats  # [E] ascending; values beyond are counted in the outer bins
    meaning: str


class Answered(Protocol):
    """What is read of an artefact's answer, see :class:`detframe.export.runtime.Answer`."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """``[1, K, 4]``, xyxy in pixels of the image."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """``[1, K]``, 0..1, descending."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """``[1, K]``, 0..C-1."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """``[1, K]``, False in the slots that are not used."""

    @property
    def candidates(self) -> NDArray[np.float32]:
        """``[1, C]``, sums of scores before what was found twice is dropped."""

    @property
    def embedding(self) -> NDArray[np.float32]:
        """``[1, E]``, a unit vector."""


_GRID, _MIDDLE = 96, 192  # pixels: of the coarse grid's longer side, and of the square
_BLOCK = 8  # of JPEG


def _signal(name: str, low: float, high: float, bins: int, meaning: str) -> Signal:
    return Signal(name, np.linspace(low, high, bins + 1), meaning)


OF_PIXELS = (
    _signal("brightness", 0, 1, 100, "grey that gives as much light, 0..1"),
    _signal("contrast", 0, 0.5, 100, "standard deviation of grey, 0..0.5"),
    _signal("warmth", -3, 3, 120, "red over blue light, stops"),
    _signal("tint", -2, 2, 120, "green over red and blue light, stops"),
    _signal("noise", -4, -0.5, 105, "logarithm of the standard deviation in flat parts"),
    _signal("sharpness", -2.5, 0.5, 120, "logarithm of the energy from a pixel to the next over that to the fourth"),
    _signal("flatness", 0, 1, 100, "share of neighbours that are equal"),
    _signal("blockiness", -1, 1, 100, "logarithm of steps between JPEG's blocks over those within"),
)
_LOOKS = 8  # directions in which embeddings are watched
OF_NETWORK = (
    _signal("raw", -3, 3, 120, "logarithm of the sum of all scores before what was found twice is dropped"),
    _signal("repeats", -0.5, 2.5, 120, "logarithm of that over the sum of all scores: how often an object is found"),
    *(
        _signal(f"look {place + 1}", -4, 4, 400, "what the image looks like to the backbone, in a direction of its own")
        for place in range(_LOOKS)
    ),
)
OF_DETECTIONS = (
    _signal("candidates", -0.5, 300.5, 301, "detections of any score"),
    _signal("detections", -0.5, 300.5, 301, "detections from the operating thresholds on"),
    _signal("right", 0, 100, 200, "sum of their scores: how many are right, where scores are calibrated"),
    _signal("wrong", 0, 100, 200, "what their scores lack to 1: how many are wrong, where scores are calibrated"),
    _signal("expected", 0, 100, 200, "sum of all scores"),
    _signal("top_score", 0, 1, 100, "the highest score"),
    _signal("score", 0, 1, 100, "mean score of the detections"),
    _signal("box_size", -9, 0, 90, "mean binary logarithm of a box's size over the image's"),
    _signal("centre_x", 0, 1, 50, "mean place of the detections across, 0..1"),
    _signal("centre_y", 0, 1, 50, "mean place of the detections down, 0..1"),
)


def watched(class_names: Sequence[str]) -> tuple[Signal, ...]:
    """All signals of a detector."""
    of_classes = (_signal(f"class {name}", -0.5, 100.5, 101, f"detections of {name}") for name in class_names)
    return (*OF_PIXELS, *OF_NETWORK, *OF_DETECTIONS, *of_classes)


def place_of(name: str, class_names: Sequence[str]) -> int:
    """Of a signal among :func:`watched`."""
    return [signal.name for signal in watched(class_names)].index(name)


def pixel_signals(image: NDArray[np.uint8]) -> Floats:
    """Signals of an image ``[3, H, W]`` RGB, in the order of :data:`OF_PIXELS`; NaN where it is too small."""
    _, height, width = image.shape
    step = max(1, math.ceil(max(height, width) / _GRID))
    first_row, first_column = (min(step // 2, side - 1) for side in (height, width))  # a long image may be narrower
    coarse = torch.from_numpy(image[:, first_row::step, first_column::step].astype(np.float32) / 255)[None]
    light = mean_light(coarse)
    # From a multiple of the block on, where JPEG's are.
    top, left = (max(0, side - _MIDDLE) // 2 // _BLOCK * _BLOCK for side in (height, width))
    middle = image[:, top : top + _MIDDLE, left : left + _MIDDLE]
    return np.array(
        [
            float(linear_to_srgb(luminance(light).clamp(0, 1))),
            float(contrast(coarse)),
            float(warmth_of(light)),
            float(tint_of(light)),
            *_fine_signals(middle),
        ]
    )


def network_signals(candidates: NDArray[Any], embedding: NDArray[Any], found: float) -> Floats:
    """Signals of what the network says before detections are chosen, in the order of :data:`OF_NETWORK`.

    Args:
        candidates: ``[C]``, sums of scores before what was found twice is dropped.
        embedding: ``[E]``, a unit vector.
        found: Sum of the scores of all detections.
    """
    raw = float(candidates.sum())
    directions = _directions(len(embedding))
    return np.array([math.log10(raw + 1e-3), math.log10((raw + 1e-3) / (found + 1e-3)), *(embedding @ directions)])


@lru_cache(maxsize=4)
def _directions(length: int) -> Floats:
    """``[E, 8]``, the same wherever embeddings have E numbers."""
    return np.random.default_rng(0).normal(size=(length, _LOOKS))


def detection_signals(
    boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], thresholds: Floats, size: tuple[int, int]
) -> Floats:
    """Signals of what was found in an image, in the order of :data:`OF_DETECTIONS` and of the classes.

    Args:
        boxes: ``[K, 4]`` xyxy in pixels of the image.
        scores: ``[K]`` 0..1.
        labels: ``[K]`` 0..C-1.
        thresholds: ``[C]``, of the classes.
        size: (height, width) of the image in pixels.
    """
    kept = scores >= thresholds[labels]
    chosen = boxes[kept].astype(np.float64)
    none = not len(chosen)
    height, width = size
    sides = (chosen[:, 2:] - chosen[:, :2]).clip(min=1e-3) / (width, height)
    centres = (chosen[:, :2] + chosen[:, 2:]) / 2 / (width, height)
    return np.array(
        [
            len(scores),
            kept.sum(),
            scores[kept].sum(),
            (1 - scores[kept]).sum(),
            scores.sum(),
            scores.max(initial=0.0),
            np.nan if none else scores[kept].mean(),
            np.nan if none else (np.log2(sides).sum(axis=1) / 2).mean(),
            *((np.nan, np.nan) if none else centres.mean(axis=0)),
            *np.bincount(labels[kept], minlength=len(thresholds)),
        ]
    )


def _fine_signals(middle: NDArray[np.uint8]) -> list[float]:
    """Noise, sharpness, flatness and blockiness of a part ``[3, H, W]``, whose corner is that of a JPEG block."""
    if min(middle.shape[1:]) < 2 * _BLOCK:
        return [math.nan] * 4
    noise = float(noise_level(torch.from_numpy(middle.astype(np.float32) / 255)[None]))
    green = middle[1].astype(np.int32)
    across = green[:, 1:] - green[:, :-1]
    down = green[1:] - green[:-1]
    near = float((across * across).mean() + (down * down).mean())
    far_across, far_down = green[:, 4:] - green[:, :-4], green[4:] - green[:-4]
    far = float((far_across * far_across).mean() + (far_down * far_down).mean())
    flat = float(((across == 0).mean() + (down == 0).mean()) / 2)
    steps = np.abs(across).mean(axis=0), np.abs(down).mean(axis=1)
    # Against the middle of blocks: pixels that were enlarged by 2 or 4 have steps at both.
    at_blocks, elsewhere = (float(np.mean([side[from_::_BLOCK].mean() for side in steps])) for from_ in (7, 3))
    return [
        math.log10(max(noise, 1e-4)),
        math.log10((near + 1e-3) / (far + 1e-3)),
        flat,
        math.log10((at_blocks + 1e-2) / (elsewhere + 1e-2)),
    ]

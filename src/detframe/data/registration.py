"""Lay one small grey image over another: find the window that shows the same, and say how far the two then differ.

A stack of pairs is worked on at once. Images are square whatever shape their files have: a file that was cut or
stretched differs from its origin by a window ``(centre x, width, centre y, height)`` in shares of the sides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]

BLOCKS = 8
"""A difference is looked for in so many blocks each way."""

_MARGIN = 0.5  # pixels at the rim that are left out: there sampling repeats the last pixel
_LONGEST_STEP = 0.05  # shares of a side in one iteration
_DAMPING = 1e-3  # a picture of stripes does not say where along them it lies
_CENTRES, _SIDES = (0.35, 0.65), (0.75, 1.15)  # what a window may become
_TONES = 24  # knots of the curve from one picture's greys to the other's
_LEAST_COVER = 0.3  # of a block; with less of it in both pictures it is not judged


def sampled(images: Images, windows: NDArray[np.float32]) -> Images:
    """What windows of images ``[P, n, n]`` show, at the same size; outside an image its rim is repeated.

    Args:
        images: Grey, of any range.
        windows: ``[P, 4]`` centre x, width, centre y, height, 1 being the side of an image.
    """
    side = images.shape[1]
    columns, right = _places(windows[:, 0], windows[:, 1], side)
    rows, below = _places(windows[:, 2], windows[:, 3], side)
    pair = np.arange(len(images))[:, None]
    upper, lower = images[pair, rows], images[pair, rows + 1]
    lines = upper + (lower - upper) * below[:, :, None]
    lines = np.ascontiguousarray(lines.transpose(0, 2, 1))  # so that columns are taken as rows are
    left, other = lines[pair, columns], lines[pair, columns + 1]
    return np.asarray((left + (other - left) * right[:, :, None]).transpose(0, 2, 1))


def covered(windows: NDArray[np.float32], side: int) -> NDArray[np.bool_]:
    """``[P, n, n]`` which pixels of the window lie in the image."""
    inside = []
    for centre, length in ((windows[:, 0], windows[:, 1]), (windows[:, 2], windows[:, 3])):
        place = (centre[:, None] + length[:, None] * _axis(side)) * side
        inside.append((place > _MARGIN) & (place < side - _MARGIN))
    return np.asarray(inside[1][:, :, None] & inside[0][:, None, :])


def aligned(images: Images, others: Images, windows: NDArray[np.float32], iterations: int) -> NDArray[np.float32]:
    """Windows ``[P, 4]`` of ``images`` moved so that they show ``others``, whatever brightness and contrast.

    Gauss-Newton on the mean of both gradients (Benhimane and Malis 2004, "Real-time image-based tracking of planes
    using efficient second-order minimization"). It finds its way from some two pixels off.

    Args:
        images: ``[P, n, n]``.
        others: ``[P, n, n]``.
        windows: ``[P, 4]`` where to start from.
        iterations: Steps.
    """
    side = images.shape[1]
    axis = _axis(side)
    across, down = _slopes(others)
    slopes = np.empty((len(images), 4, side, side), dtype=np.float32)
    for _ in range(iterations):
        shown, inside = sampled(images, windows), covered(windows, side).astype(np.float32)
        gain, offset = _linear(shown, others, inside)
        shown = shown * gain[:, None, None] + offset[:, None, None]
        missing = (others - shown) * inside
        for place, along, length in zip((0, 2), _slopes(shown), windows[:, 1::2].T, strict=True):
            slopes[:, place] = (along + (across, down)[place // 2]) * (inside / (2 * length[:, None, None]))
        np.multiply(slopes[:, 0], axis, out=slopes[:, 1])
        np.multiply(slopes[:, 2], axis[:, None], out=slopes[:, 3])
        equations = slopes.reshape(len(images), 4, -1)
        square = equations @ equations.transpose(0, 2, 1)
        wanted = equations @ missing.reshape(len(images), -1, 1)
        size = np.trace(square, axis1=1, axis2=2) / 4
        square += (_DAMPING * size + 1e-6)[:, None, None] * np.eye(4, dtype=np.float32)
        step = np.linalg.solve(square, wanted)[:, :, 0]
        windows = (windows + step.clip(-_LONGEST_STEP, _LONGEST_STEP)).astype(np.float32)
        windows[:, 0::2] = windows[:, 0::2].clip(*_CENTRES)
        windows[:, 1::2] = windows[:, 1::2].clip(*_SIDES)
    return windows


def correlations(images: Images, others: Images, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[P]`` correlation, -1..1, of what windows of ``images`` show with ``others``, where both are."""
    shown, inside = sampled(images, windows), covered(windows, images.shape[1])
    one, other = _centred(shown, inside), _centred(others, inside)
    product = (one * other).sum(axis=(1, 2))
    size = np.sqrt(np.square(one).sum(axis=(1, 2)) * np.square(other).sum(axis=(1, 2)))
    return np.asarray(product / (size + 1e-6), dtype=np.float32)


def differences(images: Images, others: Images, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[P]`` how much more pictures differ in their worst block than in the median one, of their whole contrast.

    Greys of one may be any function of those of the other, so that brightness, contrast, gamma and clipping make no
    difference; what is left over is squared, averaged over a block and divided by the variance of the whole picture.
    One defect of a circuit board, on boards alike in all else, fills a good part of a block.

    Args:
        images: ``[P, n, n]``, n a multiple of :data:`BLOCKS`.
        others: ``[P, n, n]``.
        windows: ``[P, 4]`` of ``images``, aligned.
    """
    shown, inside = sampled(images, windows), covered(windows, images.shape[1])
    cover = _of_blocks(inside.astype(np.float32))
    judged = cover > _LEAST_COVER
    found = []
    for source, target in ((shown, others), (others, shown)):
        left = _of_blocks(_unexplained(source, target, inside)) / np.maximum(cover, _LEAST_COVER)
        found.append(np.where(judged, left, 0))
    # Clipping loses what no curve brings back: the clipped picture has to be the one that is explained.
    better = found[0].sum(axis=1) <= found[1].sum(axis=1)
    left = np.where(better[:, None], found[0], found[1])
    usual = np.nanmedian(np.where(judged, left, np.nan), axis=1)  # grain, and what JPEG and sampling leave everywhere
    return np.asarray(np.max(left, axis=1) - usual, dtype=np.float32)


def _axis(side: int) -> NDArray[np.float32]:
    """Centres of the pixels of a side, -0.5..0.5."""
    return ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)


def _places(
    centre: NDArray[np.float32], length: NDArray[np.float32], side: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """``[P, n]`` the pixel before each place that is sampled, and how far it is to the next, 0..1."""
    place = ((centre[:, None] + length[:, None] * _axis(side)) * side - 0.5).clip(0, side - 1)
    before = np.minimum(place.astype(np.int64), side - 2)
    return before, (place - before).astype(np.float32)


def _slopes(images: Images) -> tuple[Images, Images]:
    """How grey changes over a whole side of the picture, across and down, by central differences."""
    side = images.shape[1]
    across, down = np.zeros_like(images), np.zeros_like(images)
    across[:, :, 1:-1] = (images[:, :, 2:] - images[:, :, :-2]) * (side / 2)
    down[:, 1:-1] = (images[:, 2:] - images[:, :-2]) * (side / 2)
    return across, down


def _centred(images: Images, inside: NDArray[np.bool_]) -> Images:
    count = np.maximum(inside.sum(axis=(1, 2)), 1)
    mean = (images * inside).sum(axis=(1, 2)) / count
    return np.asarray((images - mean[:, None, None].astype(np.float32)) * inside)


def _linear(shown: Images, others: Images, inside: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gain and offset ``[P]`` that make ``shown`` most like ``others``; the gain stays away from 0."""
    count = np.maximum(inside.sum(axis=(1, 2)), 1)
    means = [(images * inside).sum(axis=(1, 2)) / count for images in (shown, others)]
    one, other = (images - mean[:, None, None] for images, mean in zip((shown, others), means, strict=True))
    one *= inside
    gain = np.einsum("pij,pij->p", one, other) / (np.einsum("pij,pij->p", one, one) + 1e-6)
    gain = np.maximum(gain, 0.05)
    return gain, means[1] - gain * means[0]


def _unexplained(source: Images, target: Images, inside: NDArray[np.bool_]) -> Images:
    """``[P, n, n]`` squares of what no curve from greys of ``source`` to those of ``target`` explains, of its variance.

    The curve is piecewise linear; each knot is the mean of what is near it, which is as good as the least squares here.
    """
    pairs, pixels = len(source), source.shape[1] ** 2
    shown = source.reshape(pairs, pixels)
    use = inside.reshape(pairs, pixels).astype(np.float32)
    lowest, highest = np.min(shown, axis=1, keepdims=True), np.max(shown, axis=1, keepdims=True)
    place = (shown - lowest) / (highest - lowest + 1e-6) * (_TONES - 1)
    before = np.minimum(place.astype(np.int64), _TONES - 2)
    after = (place - before).astype(np.float32)
    knots = before + np.arange(pairs)[:, None] * _TONES
    wanted = target.reshape(pairs, pixels)
    total, weight = np.zeros(pairs * _TONES), np.zeros(pairs * _TONES)
    for offset, share in ((0, (1 - after) * use), (1, after * use)):
        total += np.bincount((knots + offset).ravel(), (share * wanted).ravel(), pairs * _TONES)
        weight += np.bincount((knots + offset).ravel(), share.ravel(), pairs * _TONES)
    curve = (total / np.maximum(weight, 1e-6)).astype(np.float32)
    explained = curve[knots] * (1 - after) + curve[knots + 1] * after
    variance = np.square(_centred(target, inside)).sum(axis=(1, 2)) / np.maximum(use.sum(axis=1), 1)
    left = np.square(wanted - explained) * use / np.maximum(variance, 1)[:, None]
    return np.asarray(left.reshape(source.shape), dtype=np.float32)


def _of_blocks(values: Images) -> NDArray[np.float32]:
    """Means ``[P, BLOCKS ** 2]`` over the blocks of ``[P, n, n]``."""
    size = values.shape[1] // BLOCKS
    means = values.reshape(len(values), BLOCKS, size, BLOCKS, size).mean(axis=(2, 4))
    return np.asarray(means.reshape(len(values), -1), dtype=np.float32)

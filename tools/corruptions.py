"""Fifteen ways in which images get worse, each at five severities, after Hendrycks and Dietterich (ICLR 2019).

Kinds and strengths are theirs as far as numpy and scipy go; frost is drawn instead of photographed, and lengths are
in shares of an image of 224 pixels, so that larger images are hit as hard.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

ndimage: Any = scipy.ndimage  # it gathers its functions from others when it is loaded, which no type checker sees
Floats = NDArray[np.float64]


def corrupted(image: NDArray[np.uint8], kind: str, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image ``[H, W, 3]`` RGB made worse.

    Args:
        image: Is not changed.
        kind: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        rng: Of what is random.
    """
    worse = CORRUPTIONS[kind](image / 255.0, severity - 1, rng)
    return np.round(worse.clip(0, 1) * 255).astype(np.uint8)


def _scale(image: Floats) -> float:
    return max(1.0, int(min(image.shape[:2])) / 224)


def _gaussian_noise(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    return image + rng.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[s], image.shape)


def _shot_noise(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    photons = (60, 25, 12, 5, 3)[s]
    return np.asarray(rng.poisson(image * photons) / photons, dtype=np.float64)


def _impulse_noise(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    hit, white = rng.random(image.shape) < (0.03, 0.06, 0.09, 0.17, 0.27)[s], rng.random(image.shape) < 0.5
    return np.where(hit, white.astype(np.float64), image)


def _disk(radius: float) -> Floats:
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (radius + 0.5 - np.hypot(x, y)).clip(0, 1)
    return np.asarray(disk / disk.sum(), dtype=np.float64)


def _defocus_blur(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    return _filtered(image, _disk((3, 4, 6, 8, 10)[s] * _scale(image) / 2))


def _filtered(image: Floats, kernel: Floats) -> Floats:
    """Convolved with a kernel of odd sides, the border's pixels repeated beyond it."""
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return np.asarray(scipy.signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)), dtype=np.float64)


def _glass_blur(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[s]
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    height, width = image.shape[:2]
    for _ in range(times):
        y, x = np.mgrid[:height, :width]
        y = (y + rng.integers(-reach, reach + 1, y.shape)).clip(0, height - 1)
        x = (x + rng.integers(-reach, reach + 1, x.shape)).clip(0, width - 1)
        image = image[y, x]
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0)), dtype=np.float64)


def _motion_blur(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    length = (5, 8, 11, 14, 18)[s] * _scale(image)
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    reach = int(np.ceil(length / 2)) + 1
    steps = np.linspace(-length / 2, length / 2, 8 * reach)
    edges = np.arange(-reach, reach + 2) - 0.5
    line = np.histogram2d(steps * np.sin(angle), steps * np.cos(angle), bins=(edges, edges))[0]
    return _filtered(image, line / line.sum())


def _zoom_blur(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    most = (1.06, 1.11, 1.16, 1.21, 1.26)[s]
    height, width = image.shape[:2]
    layers = [image]
    for zoom in np.arange(1.01, most, 0.02):
        matrix, offset = np.array([1 / zoom, 1 / zoom]), np.array([height, width]) / 2 * (1 - 1 / zoom)
        layers.append(
            np.stack([ndimage.affine_transform(image[..., c], matrix, offset, order=1) for c in range(3)], axis=-1)
        )
    return np.asarray(np.mean(layers, axis=0), dtype=np.float64)


def _snow(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    mean, threshold, length, share = (
        (0.1, 0.5, 5, 0.8),
        (0.2, 0.5, 6, 0.7),
        (0.55, 0.9, 8, 0.7),
        (0.55, 0.85, 8, 0.65),
        (0.55, 0.85, 10, 0.55),
    )[s]
    flakes = rng.normal(mean, 0.3, image.shape[:2])
    flakes = ndimage.zoom(flakes, 2, order=1)[: image.shape[0], : image.shape[1]]
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    falling = ndimage.uniform_filter1d(flakes, int(length * _scale(image)), axis=0)[..., None]
    grey = image.mean(axis=2, keepdims=True) * 1.5 + 0.5
    white = share * image + (1 - share) * np.maximum(image, grey)
    return np.asarray(white + falling + falling[::-1, ::-1], dtype=np.float64)


def _clouds(shape: tuple[int, int], rng: np.random.Generator, roughness: float) -> Floats:
    """Noise of all scales, 0..1."""
    total, weight, size = np.zeros(shape), 1.0, 2
    while size < max(shape):
        coarse = rng.random((size + 1, size + 1))
        zoom = (shape[0] / (size + 1) + 0.01, shape[1] / (size + 1) + 0.01)
        total += weight * ndimage.zoom(coarse, zoom, order=1)[: shape[0], : shape[1]]
        weight /= roughness
        size *= 2
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-9), dtype=np.float64)


def _frost(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    keep, add = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[s]
    ice = _clouds((image.shape[0], image.shape[1]), rng, 1.5) ** 2
    return np.asarray(image * keep + (ice * add)[..., None] * np.array([0.9, 0.97, 1.0]), dtype=np.float64)


def _fog(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    dense, roughness = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[s]
    most = image.max()
    veil = dense * _clouds((image.shape[0], image.shape[1]), rng, roughness)[..., None]
    return np.asarray((image + veil) * most / (most + dense), dtype=np.float64)


def _brightness(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    return image + (0.1, 0.2, 0.3, 0.4, 0.5)[s]


def _contrast(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[s] + mean, dtype=np.float64)


def _elastic(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    scale = _scale(image)
    far, smooth = (length * scale for length in ((6, 14), (7, 12), (8, 10), (10, 9), (12, 8))[s])
    height, width = image.shape[:2]
    fields = [ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), smooth) for _ in range(2)]
    dy, dx = (field / max(np.abs(field).max(), 1e-9) * far / 2 for field in fields)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return np.stack(
        [ndimage.map_coordinates(image[..., c], [y + dy, x + dx], order=1, mode="reflect") for c in range(3)], axis=-1
    )


def _pixelate(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[s] / min(_scale(image), 2)
    height, width = image.shape[:2]
    picture = Image.fromarray(np.round(image * 255).astype(np.uint8))
    small = picture.resize((max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST)) / 255.0


def _jpeg(image: Floats, s: int, rng: np.random.Generator) -> Floats:
    buffer = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[s])
    return np.asarray(Image.open(buffer)) / 255.0


CORRUPTIONS: dict[str, Callable[[Floats, int, np.random.Generator], Floats]] = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "defocus blur": _defocus_blur,
    "glass blur": _glass_blur,
    "motion blur": _motion_blur,
    "zoom blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic": _elastic,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}

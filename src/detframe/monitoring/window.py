"""A window: what many images and answers were like, as counts in fixed bins that add up over servers and hours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detframe.monitoring.signals import Answered, detection_signals, network_signals, pixel_signals, watched
from detframe.unfinished import unfinished

Floats = NDArray[np.float64]

FEATURES = 32
"""Random Fourier features, whose means say how two windows differ in all signals at once."""

_FORMAT = "detframe window 1"


class WindowError(ValueError):
    """A file that is no window, or windows that do not go together."""


class Window(NamedTuple):
    """Counts of ``N`` images; two of the same artefact add up."""

    class_names: list[str]
    images: int
    counts: list[NDArray[np.int64]]  # [E + 1] of each signal: below the first edge, between, from the last on
    sums: Floats  # [S] of the signals' values
    squares: Floats  # [S] of their squares
    features: Floats  # [F] sums of the Fourier features; 0 in a window that has no profile to be scaled by
    products: Floats  # [F, F] sums of their products
    artefact: dict[str, Any] | None = None  # whose answers are counted, as it says itself; None in its own profile


def empty_window(class_names: Sequence[str]) -> Window:
    """A window of no image."""
    signals = watched(class_names)
    return Window(
        list(class_names),
        0,
        [np.zeros(len(signal.edges) + 1, dtype=np.int64) for signal in signals],
        np.zeros(len(signals)),
        np.zeros(len(signals)),
        np.zeros(FEATURES),
        np.zeros((FEATURES, FEATURES)),
    )


class Scale(NamedTuple):
    """Means and spreads of the signals in a profile, by which they can be compared with each other."""

    mean: Floats  # [S]
    spread: Floats  # [S]


class Moments(NamedTuple):
    """Means and variances of the signals in a window."""

    number: NDArray[np.int64]  # [S], images of which each is known
    mean: Floats  # [S], NaN where it is known of none
    variance: Floats  # [S], likewise


def moments(window: Window) -> Moments:
    """Of each signal over the images of which it is known."""
    number = np.array([counts.sum() for counts in window.counts])
    some = np.where(number > 0, number, np.nan)
    mean = window.sums / some
    return Moments(number, mean, (window.squares / some - mean**2).clip(min=0))


def values_of(image: NDArray[np.uint8], answer: Answered, thresholds: Floats) -> Floats:
    """All signals ``[S]`` of an image ``[3, H, W]`` and the answer to it alone, NaN where there is nothing to measure.

    Args:
        image: RGB.
        answer: Of an artefact, with a batch axis of 1.
        thresholds: ``[C]``, of :func:`limits`.
    """
    size = (image.shape[1], image.shape[2])
    valid = answer.valid
    scores = answer.scores[valid]
    return np.concatenate(
        [
            pixel_signals(image),
            network_signals(answer.candidates[0], answer.embedding[0], float(scores.sum())),
            detection_signals(answer.boxes[valid], scores, answer.labels[valid], thresholds, size),
        ]
    )


def limits(thresholds: Mapping[str, float], class_names: Sequence[str]) -> Floats:
    """Operating thresholds ``[C]`` of an artefact, 0 where none was chosen."""
    return np.array([thresholds.get(name, 0.0) for name in class_names])


def window_of(class_names: Sequence[str], values: Floats, scale: Scale | None) -> Window:
    """The window of images with the signals ``[N, S]``.

    Args:
        class_names: Of the detector.
        values: Of :func:`values_of`.
        scale: Of the profile; None for what is to become one: it is scaled by itself.
    """
    window = empty_window(class_names)
    known = ~np.isnan(values)
    counts = []
    for column, of, signal in zip(values.T, known.T, watched(class_names), strict=True):
        place = np.searchsorted(signal.edges, column[of], side="right")
        counts.append(np.bincount(place, minlength=len(signal.edges) + 1).astype(np.int64))
    whole = np.where(known, values, 0.0)
    plain = window._replace(
        images=len(values), counts=counts, sums=whole.sum(axis=0), squares=(whole * whole).sum(axis=0)
    )
    phi = fourier_features(values, scale or scale_of(plain))
    return plain._replace(features=phi.sum(axis=0), products=phi.T @ phi)


def scale_of(profile: Window) -> Scale:
    """How signals are scaled to compare windows with a profile."""
    _, mean, variance = moments(profile)
    mean, variance = np.nan_to_num(mean), np.nan_to_num(variance)
    return Scale(mean, np.maximum(np.sqrt(variance), 1e-3 * (1 + np.abs(mean))))


def fourier_features(values: Floats, scale: Scale) -> Floats:
    """``[N, F]`` of signals ``[N, S]``: inner products approximate a Gaussian kernel (Rahimi and Recht, 2007).

    Its width is the distance that two images of the profile have on average. A signal that is NaN counts as the mean.
    """
    scaled = np.nan_to_num((values - scale.mean) / scale.spread, nan=0.0).clip(-8, 8)
    rng = np.random.default_rng(0)
    width = np.sqrt(2 * len(scale.mean))
    directions = rng.normal(0, 1 / width, (FEATURES, len(scale.mean)))
    phases = rng.uniform(0, 2 * np.pi, FEATURES)
    return np.asarray(np.sqrt(2 / FEATURES) * np.cos(scaled @ directions.T + phases), dtype=np.float64)


def merged(windows: Sequence[Window]) -> Window:
    """Windows of one detector as one.

    Raises:
        WindowError: There is none, or classes differ.
    """
    if not windows:
        raise WindowError("There is no window. Name files that the server wrote, or images.")
    first = windows[0]
    for other in windows[1:]:
        if other.class_names != first.class_names:
            raise WindowError("Windows are of detectors with other classes. Compare those of one detector.")
    return first._replace(
        images=sum(window.images for window in windows),
        counts=[np.sum(parts, axis=0) for parts in zip(*(window.counts for window in windows), strict=True)],
        **{
            name: np.sum([getattr(window, name) for window in windows], axis=0)
            for name in ("sums", "squares", "features", "products")
        },
    )


def as_json(window: Window) -> dict[str, Any]:
    """A window as a document; of counts only the bins that hold something."""
    upper = np.triu_indices(FEATURES)
    return {
        "format": _FORMAT,
        **({} if window.artefact is None else {"artefact": window.artefact}),
        "class_names": window.class_names,
        "images": window.images,
        "signals": {
            signal.name: {
                "bins": {int(place): int(counts[place]) for place in np.flatnonzero(counts)},
                "sum": round(float(total), 6),
                "squares": round(float(squares), 6),
            }
            for signal, counts, total, squares in zip(
                watched(window.class_names), window.counts, window.sums, window.squares, strict=True
            )
        },
        "features": [round(float(value), 6) for value in window.features],
        "products": [round(float(value), 6) for value in window.products[upper]],
    }


def from_json(content: Any, where: str) -> Window:  # noqa: ANN401 - what JSON holds
    """A window of a document.

    Raises:
        WindowError: It is none; the message names ``where``.
    """
    try:
        if content["format"] != _FORMAT:
            raise KeyError("format")
        window = empty_window(content["class_names"])
        signals = watched(window.class_names)
        for place, signal in enumerate(signals):
            stored = content["signals"][signal.name]
            for bin_, count in stored["bins"].items():
                window.counts[place][int(bin_)] = count
            window.sums[place], window.squares[place] = stored["sum"], stored["squares"]
        products = np.zeros((FEATURES, FEATURES))
        products[np.triu_indices(FEATURES)] = content["products"]
        products += np.triu(products, 1).T
        features = np.array(content["features"], dtype=np.float64)
        images, artefact = int(content["images"]), content.get("artefact")
        return window._replace(images=images, features=features, products=products, artefact=artefact)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise WindowError(f"{where}: is no window of this version ({error}). Let the server write it anew.") from error


def write_window(window: Window, path: Path) -> None:
    """Write a window, whole or not at all."""
    with unfinished(path) as beside:
        beside.write_text(json.dumps(as_json(window)), encoding="utf-8")


def read_window(path: Path) -> Window:
    """Read a window that a server wrote.

    Raises:
        WindowError: The file cannot be read or is none, or does not say of which artefact it is.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WindowError(f"{path}: cannot be read ({error}). Name a window that `detframe serve` wrote.") from error
    window = from_json(content, str(path))
    if window.artefact is None:
        raise WindowError(f"{path}: does not say of which artefact it is. Remove it and let the server write it anew.")
    return window

"""Whether a window is like the profile, what moved and why that may be: tests of each signal and of all at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc, kolmogorov

from detframe.metrics.slices import holm
from detframe.monitoring.signals import OF_NETWORK, place_of, watched
from detframe.monitoring.window import Window, WindowError, moments

Floats = NDArray[np.float64]

ALPHA = 0.01
"""How often a window that is like the profile raises an alarm, at most."""


MAP_ERROR = 0.1
"""How far :func:`estimated_map` is off beside sampling, as a share of the profile's mAP; measured under corruptions."""


class Moved(NamedTuple):
    """One signal of a window against the profile."""

    signal: str
    distance: float  # 0..1, of Kolmogorov and Smirnov: the most that the shares below a value differ
    p_value: float  # corrected for the number of signals, and for the test of all at once
    before: float  # mean in the profile
    now: float  # mean in the window
    shift: float  # of the mean, in standard deviations of the profile


class Expected(NamedTuple):
    """What calibrated scores promise: the share of the detections from the thresholds on that are right."""

    precision: float  # 0..1, NaN without a detection
    low: float  # of its 95 % interval, over images
    high: float


class EstimatedMap(NamedTuple):
    """mAP as it would be if there were as many objects as in the profile; NaN where that cannot be said."""

    map: float  # 0..1
    low: float  # of its 95 % interval
    high: float


class Drift(NamedTuple):
    """What a window says."""

    images: int
    alarm: bool
    together: float  # p-value of all signals at once, by the maximum mean discrepancy, corrected like the others
    moved: list[Moved]  # all signals, the surest first
    causes: list[str]  # likely, the likeliest first; empty where there is no alarm
    expected: (
        Expected  # in the window; scores that were calibrated on the profile's images are not where there is an alarm
    )
    estimated: EstimatedMap


def drift_of(profile: Window, window: Window, alpha: float = ALPHA, profile_map: float | None = None) -> Drift:
    """Compare a window with a profile.

    Args:
        profile: Of what is usual.
        window: Of what is now.
        alpha: How often a window that is like the profile raises an alarm, at most.
        profile_map: mAP on the profile's images, 0..1; None where it is not known, and then none is estimated.

    Raises:
        WindowError: They are of detectors with other classes, or one is empty.
    """
    if profile.class_names != window.class_names:
        raise WindowError(
            f"The window is of a detector of {', '.join(window.class_names)}, the profile of one of "
            f"{', '.join(profile.class_names)}."
        )
    if not profile.images or not window.images:
        raise WindowError("A window without images cannot be compared.")
    signals = watched(profile.class_names)
    distances, p_values = zip(
        *(_kolmogorov_smirnov(*pair) for pair in zip(profile.counts, window.counts, strict=True)), strict=True
    )
    corrected = holm(np.array([*p_values, _mean_discrepancy(profile, window)]))
    before, now = moments(profile), moments(window)
    step = np.array([np.diff(signal.edges).mean() for signal in signals])  # what is finer than a bin is no shift
    shift = np.nan_to_num((now.mean - before.mean) / np.maximum(np.sqrt(before.variance), step))
    moved = [
        Moved(signal.name, *map(float, figures))
        for signal, *figures in zip(signals, distances, corrected[:-1], before.mean, now.mean, shift, strict=True)
    ]
    known = corrected[~np.isnan(corrected)]
    alarm = bool((known < alpha).any())
    ranked = sorted(moved, key=lambda one: (np.nan_to_num(one.p_value, nan=1.0), -abs(one.shift)))
    causes = causes_of(moved, alpha) if alarm else []
    estimated = estimated_map(profile, window, np.nan if profile_map is None else profile_map, alarm)
    return Drift(window.images, alarm, float(corrected[-1]), ranked, causes, expected_precision(window), estimated)


def expected_precision(window: Window) -> Expected:
    """The precision that scores promise, as a ratio of sums over images, with its interval by the delta method."""
    place = {signal.name: i for i, signal in enumerate(watched(window.class_names))}
    rows = [place[name] for name in ("right", "wrong", "detections")]
    _, mean, variance = (values[rows].tolist() for values in moments(window))
    if not mean[2]:
        return Expected(np.nan, np.nan, np.nan)
    precision = mean[0] / mean[2]
    # detections = right + wrong in each image, which gives the covariance of right with detections.
    covariance = (variance[0] + variance[2] - variance[1]) / 2
    spread = variance[0] + precision**2 * variance[2] - 2 * precision * covariance
    reach = 1.96 * np.sqrt(max(spread, 0.0) / window.images) / mean[2]
    return Expected(precision, max(0.0, precision - reach), min(1.0, precision + reach))


def estimated_map(profile: Window, window: Window, profile_map: float, alarm: bool) -> EstimatedMap:
    """Estimate mAP without labels, from how much is found.

    The sum of all scores is the number of objects that are found, where scores are calibrated, and goes with it where
    they are not. If it is ``r`` times that of the profile, with as many objects there, recall is at most ``min(r, 1)``
    and precision at most ``min(1, 1 / r)`` of what they were, and mAP is taken to fall as their product. Scores do not
    tell whether what is found is right, so that of images unlike the profile's the interval begins at 0: under blur a
    detector of fine defects finds half as many as ever, and few that are there. The interval's width comes from images
    under corruptions, in docs/results.md.

    Args:
        profile: Of images on which mAP is known.
        window: Of the same detector.
        profile_map: 0..1.
        alarm: Whether the window is unlike the profile.
    """
    place = place_of("expected", profile.class_names)
    before, now = moments(profile), moments(window)
    usual = before.mean[place]
    if not usual > 0 or not window.images or np.isnan(profile_map):
        return EstimatedMap(np.nan, np.nan, np.nan)
    ratio = now.mean[place] / usual
    estimate = profile_map * min(ratio, 1 / max(ratio, 1.0))
    sampling = profile_map * np.sqrt(now.variance[place] / window.images) / usual / max(ratio, 1.0) ** 2
    reach = 1.96 * np.hypot(sampling, MAP_ERROR * profile_map)
    low = 0.0 if alarm else max(0.0, estimate - reach)
    return EstimatedMap(float(estimate), float(low), float(min(1.0, estimate + reach)))


def causes_of(moved: list[Moved], alpha: float = ALPHA) -> list[str]:
    """Likely causes in words, of the signals that moved."""
    shift = {one.signal: one.shift if one.p_value < alpha else 0.0 for one in moved}
    classes = [name for name in shift if name.startswith("class ") and shift[name]]
    change = {one.signal: abs(one.now - one.before) for one in moved if one.signal in ("brightness", "contrast")}
    if shift["brightness"] and change["brightness"] >= change["contrast"]:  # light that is clipped takes contrast along
        limit = 0.9 * abs(shift["brightness"])
        shift["contrast"] = max(-limit, min(limit, shift["contrast"]))
    pixels = _pixel_causes(
        **{name: shift[name] for name in ("brightness", "contrast", "noise", "sharpness", "flatness", "blockiness")}
    )
    pixels.append(("another colour of light", max(abs(shift["warmth"]), abs(shift["tint"]))))
    found = sorted(((size, said) for said, size in pixels if size), reverse=True)
    if found:
        return [said for _, said in found]
    said = []
    if shift["centre_x"] or shift["centre_y"]:
        said.append("misaligned camera")
    if classes:
        said.append(f"new class mix: {', '.join(name.removeprefix('class ') for name in classes)}")
    if shift["box_size"]:
        said.append("objects nearer" if shift["box_size"] > 0 else "objects farther away")
    of_objects = ("detections", "expected", "top_score", "score", "candidates", *(signal.name for signal in OF_NETWORK))
    if any(shift[name] for name in of_objects):
        said.append("new objects or scenes")
    return said or ["something that no single signal shows"]


def _pixel_causes(
    brightness: float, contrast: float, noise: float, sharpness: float, flatness: float, blockiness: float
) -> list[tuple[str, float]]:
    """What may have happened to the pixels, and how strongly that shows, 0 for not at all.

    One cause moves several signals: less contrast takes noise along and makes neighbours equal, noise raises contrast,
    and whatever resamples an image wipes out the blocks that JPEG has left. Each cause is as strong as the weakest sign
    that it cannot do without, and what is often but a companion counts less.
    """
    dimmed = contrast < 0
    smoothed = max(-sharpness, 0.0 if dimmed else -noise) if sharpness <= 0 else 0.0
    return [
        ("noisier", max(0.0, min(noise, sharpness))),
        ("blurred", max(0.0, smoothed)),
        ("compressed more", max(0.0, blockiness)),
        ("coarser pixels", 0.0 if dimmed else max(0.0, min(flatness, sharpness))),
        ("darker", max(0.0, -brightness)),
        ("brighter", max(0.0, brightness)),
        ("less contrast, as by fog or a dirty lens", max(0.0, -contrast)),
        ("more contrast", max(0.0, contrast) / 2),
        ("warped, scaled or processed on the way", max(0.0, -blockiness) / 4),
        ("sharper than before", max(0.0, sharpness) / 2 if noise <= 0 and flatness <= 0 else 0.0),
    ]


def tail_shares(profile: Window, values: Floats) -> Floats:
    """How common each signal of an image ``[S]`` is in the profile: the share at least as far out, both sides, 0..1."""
    shares = np.ones(len(values))
    for place, signal in enumerate(watched(profile.class_names)):
        counts = profile.counts[place]
        if np.isnan(values[place]) or not counts.sum():
            continue
        own = int(np.searchsorted(signal.edges, values[place], side="right"))
        below, above = counts[: own + 1].sum(), counts[own:].sum()
        shares[place] = min(1.0, 2 * (min(below, above) + 1) / (counts.sum() + 1))
    return shares


def suspicion(shares: Floats) -> float:
    """How far an image is from the profile, 0 and up: the mean of the three least common signals, in powers of ten.

    Args:
        shares: ``[S]``, of :func:`tail_shares`.
    """
    return float(np.sort(-np.log10(shares))[-3:].mean())


def _kolmogorov_smirnov(before: NDArray[np.int64], now: NDArray[np.int64]) -> tuple[float, float]:
    """Distance and p-value of two rows of counts in the same bins; bins make it err on the side of no alarm."""
    m, n = int(before.sum()), int(now.sum())
    if not m or not n:
        return 0.0, np.nan
    distance = float(np.abs(np.cumsum(before) / m - np.cumsum(now) / n).max())
    root = np.sqrt(m * n / (m + n))
    return distance, float(kolmogorov((root + 0.12 + 0.11 / root) * distance))  # Stephens, 1970, for small samples


def _mean_discrepancy(profile: Window, window: Window) -> float:
    """P-value of the squared distance between the means of Fourier features.

    Under no drift it is a sum of chi-squares weighted by the eigenvalues of the features' covariance; a gamma
    distribution with the same mean and variance stands for it (Gretton et al., 2009).
    """
    m, n = profile.images, window.images
    mean = profile.features / m
    covariance = profile.products / m - np.outer(mean, mean)
    statistic = float(((mean - window.features / n) ** 2).sum()) / (1 / m + 1 / n)
    eigenvalues = np.linalg.eigvalsh(covariance).clip(min=0)
    average, variance = eigenvalues.sum(), 2 * (eigenvalues**2).sum()
    if average <= 0 or variance <= 0:
        return np.nan
    return float(gammaincc(average**2 / variance, statistic * average / variance))

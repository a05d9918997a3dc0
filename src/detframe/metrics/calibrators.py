"""Fits of curves from score to what the score promises: Platt's line and isotonic regression, per class.

The target is 0..1 per detection: true positive or not (then the calibrated score is a precision, which D-ECE measures),
or the IoU with the object found, 0 for none (then it is an expected IoU, which LaECE0 measures). The two differ, so one
curve cannot bring both errors to nothing.

Each curve leans on one with more detections behind it, as far as its own are few: the curve of all classes on the
identity, that of a class on the one of all classes. All of this happens in logits, and every curve rises by at least
:data:`MIN_SLOPE`, so the raw score decides where the fit makes two scores equal and the ranking in a class stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detframe.metrics.columns import check_labels, check_lengths, check_shares
from detframe.score_curves import ScoreCurves, knots

Floats = NDArray[np.float64]

MIN_SLOPE = 0.01
"""Calibrated logits per raw logit at least: a plateau of 4 logits rises by 0.01 of score, which float64 tells apart."""

MAX_LOGIT = 12.0
"""Curves bend to their least slope beyond: no validation set supports a certainty above 1 in 160,000."""

PRIOR_PRECISION = 4.0
"""1 / (0.5 logits) ** 2: a class is expected to lie half a logit from the curve of all, its slope 0.5 from 1."""

PSEUDO_DETECTIONS = 8.0
"""Detections per knot that the curve leant on counts as in isotonic regression."""


def fit_platt(
    scores: NDArray[Any],
    targets: NDArray[Any],
    labels: NDArray[Any],
    classes: int,
    prior_precision: float = PRIOR_PRECISION,
) -> ScoreCurves:
    """Platt's line ``slope * logit + offset`` for each class, by maximum a posteriori.

    The prior of a class is Gaussian around the line of all classes, and that of all classes around the identity. The
    shrinkage that follows is ``n / (n + prior_precision)`` in logits, where ``n = sum p (1 - p)`` is what the class's
    detections tell about its offset (Fisher information): 16 detections of a precision of one half weigh as much as the
    prior, as do 400 of 0.01.

    A line is stiff: the many low scores decide it too. Pass the detections from the lowest score that is used on; below
    that it goes on straight.

    Platt, "Probabilistic outputs for support vector machines", 1999; on the logit as
    in ``fiveai/detection_calibration``.

    Args:
        scores: ``[D]``, 0..1.
        targets: ``[D]``, 0..1.
        labels: ``[D]``, 0..C-1.
        classes: ``C``.
        prior_precision: Of offset and slope, per square logit, above 0.

    Raises:
        ValueError: Lengths differ, or a value or label is out of range.
    """
    raw, target = _columns(scores, targets, labels, classes)
    grid = knots().numpy()
    slope, offset = fit_line(raw, target, (1.0, 0.0), prior_precision)
    lines = [fit_line(raw[rows], target[rows], (slope, offset), prior_precision) for rows in _rows(labels, classes)]
    curves = [rising(own_slope * grid + own_offset, grid) for own_slope, own_offset in lines]
    return _score_curves(curves, labels, classes)


def fit_isotonic(
    scores: NDArray[Any],
    targets: NDArray[Any],
    labels: NDArray[Any],
    classes: int,
    prior_precision: float = PRIOR_PRECISION,
    pseudo_detections: float = PSEUDO_DETECTIONS,
) -> ScoreCurves:
    """Isotonic regression for each class, by pooling adjacent violators.

    At each knot the mean target ``m`` of the ``n`` detections around it (each shared between its two knots) is drawn
    towards a prior curve ``q`` in probability, ``(n m + k q) / (n + k)`` with ``k = pseudo_detections``, then violators
    are pooled with weights ``n + k``. For all classes together, ``q`` is Platt's line. For a class, ``q`` is the curve
    of all classes, stretched and moved in logits as far as the class's detections prove, by :func:`fit_line` around the
    identity. So a class without detections has the curve of all classes, and one with thousands its own.

    Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.

    Args:
        scores: ``[D]``, 0..1.
        targets: ``[D]``, 0..1.
        labels: ``[D]``, 0..C-1.
        classes: ``C``.
        prior_precision: As for :func:`fit_platt`.
        pseudo_detections: ``k``, above 0.

    Raises:
        ValueError: Lengths differ, or a value or label is out of range.
    """
    raw, target = _columns(scores, targets, labels, classes)
    grid = knots().numpy()
    slope, offset = fit_line(raw, target, (1.0, 0.0), prior_precision)
    shared = _isotonic_curve(raw, target, rising(slope * grid + offset, grid), grid, pseudo_detections)
    curves = []
    for rows in _rows(labels, classes):
        stretch, move = fit_line(np.interp(raw[rows], grid, shared), target[rows], (1.0, 0.0), prior_precision)
        prior = rising(stretch * shared + move, grid)
        curves.append(_isotonic_curve(raw[rows], target[rows], prior, grid, pseudo_detections))
    return _score_curves(curves, labels, classes)


def fit_line(
    logits: Floats, targets: Floats, centre: tuple[float, float], prior_precision: float
) -> tuple[float, float]:
    """Slope and offset of a logistic regression on one variable with a Gaussian prior, by Newton's method.

    Args:
        logits: ``[D]``.
        targets: ``[D]``, 0..1, fractions allowed.
        centre: Slope and offset that the prior expects.
        prior_precision: Of both, above 0: the optimum exists also where the targets are all alike.

    Returns:
        Slope, at least :data:`MIN_SLOPE`, and offset.
    """
    middle = np.array(centre)
    line = middle
    free = np.ones(2, dtype=bool)
    loss = _loss(logits, targets, line, middle, prior_precision)
    for _ in range(100):
        gradient, hessian = _derivatives(logits, targets, line, middle, prior_precision)
        # A slope on its bound that wants to fall further stays there, and the offset is fitted alone.
        free[0] = line[0] > MIN_SLOPE or gradient[0] < 0
        step = np.zeros(2)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        # The loss is flat far out, where whole steps overshoot: halve them until they help.
        while np.abs(step).max() > 1e-9:
            tried = np.array([max(line[0] - step[0], MIN_SLOPE), line[1] - step[1]])
            tried_loss = _loss(logits, targets, tried, middle, prior_precision)
            if tried_loss < loss:
                break
            step = step / 2
        else:
            break
        line, loss = tried, tried_loss
    return float(line[0]), float(line[1])


def pool_adjacent_violators(values: Floats, weights: Floats) -> Floats:
    """The non-decreasing sequence nearest to the values in weighted least squares.

    Barlow et al., "Statistical Inference under Order Restrictions", 1972.

    Args:
        values: ``[N]``.
        weights: ``[N]``, above 0.
    """
    means: list[float] = []
    masses: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, length = value, weight, 1
        while means and means[-1] >= mean:
            mean = (means[-1] * masses[-1] + mean * mass) / (masses[-1] + mass)
            mass += masses.pop()
            length += lengths.pop()
            means.pop()
        means.append(mean)
        masses.append(mass)
        lengths.append(length)
    return np.repeat(np.array(means, dtype=np.float64), lengths)


def rising(logits: Floats, grid: Floats) -> Floats:
    """The curve within :data:`MAX_LOGIT`, with a slope of at least :data:`MIN_SLOPE` everywhere.

    Args:
        logits: ``[K]``, non-decreasing.
        grid: ``[K]``, where they stand.
    """
    # Without the least slope what is left must not fall; halfway between the envelopes from both ends moves it least.
    rest = logits.clip(-MAX_LOGIT, MAX_LOGIT) - MIN_SLOPE * grid
    above = np.maximum.accumulate(rest)
    below = np.minimum.accumulate(rest[::-1])[::-1]
    return np.asarray((above + below) / 2 + MIN_SLOPE * grid, dtype=np.float64)


def _isotonic_curve(raw: Floats, targets: Floats, prior: Floats, grid: Floats, pseudo_detections: float) -> Floats:
    """Logits ``[K]`` of the isotonic curve of some detections, drawn towards ``prior`` ``[K]``, logits too."""
    place = ((raw - grid[0]) / (grid[1] - grid[0])).clip(0, len(grid) - 1)
    left = np.minimum(place.astype(np.int64), len(grid) - 2)
    share = place - left
    counts, sums = (
        np.bincount(left, weights=(1 - share) * values, minlength=len(grid))
        + np.bincount(left + 1, weights=share * values, minlength=len(grid))
        for values in (np.ones_like(targets), targets)
    )
    weights = np.asarray(counts + pseudo_detections, dtype=np.float64)
    means = (sums + pseudo_detections * _sigmoid(prior)) / weights
    return rising(_logit(pool_adjacent_violators(means, weights)), grid)


def _loss(logits: Floats, targets: Floats, line: Floats, centre: Floats, prior_precision: float) -> float:
    """Negative log posterior, up to a constant."""
    expected = line[0] * logits + line[1]
    away = line - centre
    return float(np.logaddexp(0, expected).sum() - targets @ expected + prior_precision / 2 * (away @ away))


def _derivatives(
    logits: Floats, targets: Floats, line: Floats, centre: Floats, prior_precision: float
) -> tuple[Floats, Floats]:
    """Gradient ``[2]`` and Hessian ``[2, 2]`` of the negative log posterior in slope and offset."""
    expected = _sigmoid(line[0] * logits + line[1])
    gap = expected - targets
    spread = expected * (1 - expected)
    gradient = np.array([gap @ logits, gap.sum()]) + prior_precision * (line - centre)
    cross = spread @ logits
    hessian = np.array([[spread @ logits**2, cross], [cross, spread.sum()]]) + prior_precision * np.eye(2)
    return gradient, hessian


def _columns(scores: NDArray[Any], targets: NDArray[Any], labels: NDArray[Any], classes: int) -> tuple[Floats, Floats]:
    """Raw logits ``[D]`` and targets ``[D]``, checked."""
    check_lengths(scores=scores, targets=targets, labels=labels)
    check_shares("scores", scores)
    check_shares("targets", targets)
    check_labels("labels", labels, classes)
    limit = knots()[-1].item()
    # Scores of 0 or 1 stand on the outer knots, so that one of them cannot turn a line.
    return _logit(np.asarray(scores, dtype=np.float64)).clip(-limit, limit), np.asarray(targets, dtype=np.float64)


def _rows(labels: NDArray[Any], classes: int) -> list[NDArray[np.int64]]:
    """Rows of each class."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(classes + 1))
    return [order[bounds[c] : bounds[c + 1]] for c in range(classes)]


def _score_curves(curves: list[Floats], labels: NDArray[Any], classes: int) -> ScoreCurves:
    grid = knots()
    logits = torch.tensor(np.array(curves).reshape(classes, len(grid)), dtype=torch.float64)
    return ScoreCurves(grid, logits, torch.tensor(np.bincount(labels, minlength=classes), dtype=torch.int64))


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float64)


def _logit(scores: Floats) -> Floats:
    inside = scores.clip(1e-45, 1 - 1e-16)
    return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float64)

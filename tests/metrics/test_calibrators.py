import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detframe.metrics.average_precision import accumulate, pack_outcomes, sort_for_accumulation
from detframe.metrics.calibration import detection_ece, localisation_aware_ece
from detframe.metrics.calibrators import (
    MAX_LOGIT,
    MIN_SLOPE,
    fit_isotonic,
    fit_line,
    fit_platt,
    pool_adjacent_violators,
    rising,
)
from detframe.score_curves import ScoreCurves, calibrate_scores, knots

# scipy has no types.
minimize: Any = scipy.optimize.minimize

Floats = NDArray[np.float64]
Fit = Callable[[NDArray[np.float32], Floats, NDArray[np.int64], int], ScoreCurves]
FITS = pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])


class Sample(NamedTuple):
    scores: NDArray[np.float32]
    hits: Floats
    ious: Floats
    labels: NDArray[np.int64]


def sample(seed: int, count: int, classes: int = 5, bend: float = 1.0) -> Sample:
    """Over-confident detections: logits stretched, moved by class, and those above 0 by ``bend`` more."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-2, 2.5, count)
    labels = np.minimum(rng.geometric(0.4, count) - 1, classes - 1)
    raw = 1.6 * truth * np.where(truth > 0, bend, 1) + 1 + np.linspace(-0.4, 0.4, classes)[labels]
    hits = rng.random(count) < sigmoid(truth)
    ious = np.where(hits, 0.5 + 0.5 * rng.beta(12, 2.5, count), 0)
    return Sample(sigmoid(raw).astype(np.float32), hits.astype(float), ious, labels.astype(np.int64))


def sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def calibrated(curves: ScoreCurves, part: Sample) -> Floats:
    scores = torch.tensor(part.scores, dtype=torch.float64)
    return calibrate_scores(scores, torch.tensor(part.labels), curves).numpy()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 25))
def test_pooling_equals_the_closed_form(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 6, count) / 5, rng.uniform(0.1, 3, count)
    # Barlow et al.: the greatest over starts of the least over ends of the mean between them.
    mean = [[np.average(values[i : j + 1], weights=weights[i : j + 1]) for j in range(i, count)] for i in range(count)]
    expected = [max(min(mean[i][k - i :]) for i in range(k + 1)) for k in range(count)]
    np.testing.assert_allclose(pool_adjacent_violators(values, weights), expected, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 200), st.floats(0.1, 50))
def test_the_line_is_the_optimum(seed: int, count: int, precision: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 6, count).clip(-18, 18)
    targets = rng.random(count) * (rng.random(count) < rng.random())
    if seed % 3 == 0:
        targets = (logits > 0).astype(float) * (seed % 2)  # separable, or all alike
    line = fit_line(logits, targets, (1.0, 0.5), precision)

    def loss(candidate: Floats) -> float:
        expected = candidate[0] * logits + candidate[1]
        prior = precision / 2 * ((candidate[0] - 1) ** 2 + (candidate[1] - 0.5) ** 2)
        return float((np.logaddexp(0, expected) - targets * expected).sum() + prior)

    best = minimize(loss, [1.0, 0.0], bounds=[(MIN_SLOPE, None), (None, None)], method="L-BFGS-B")
    assert loss(np.array(line)) <= best.fun + 1e-7 * max(1, abs(best.fun))
    assert line[0] >= MIN_SLOPE


@given(st.integers(0, 10**9), st.sampled_from([0.1, 3.0, 40.0]))
def test_rising_curves_rise_and_those_that_do_stay(seed: int, spread: float) -> None:
    grid = knots().numpy()
    values = np.sort(np.random.default_rng(seed).integers(-9, 10, len(grid)) / 9 * spread)
    curve = rising(values, grid)
    assert (np.diff(curve) >= MIN_SLOPE * np.diff(grid) - 1e-12).all()
    assert np.abs(curve).max() <= MAX_LOGIT + MIN_SLOPE * 36
    within = np.abs(curve).max() <= MAX_LOGIT
    np.testing.assert_allclose(rising(curve, grid), curve, rtol=0, atol=1e-12 if within else MIN_SLOPE * 36)


@FITS
def test_nothing_to_learn_from_leaves_scores_as_they_are(fit: Fit) -> None:
    none = np.zeros(0)
    curves = fit(none.astype(np.float32), none, none.astype(np.int64), 3)
    assert curves.detections.tolist() == [0, 0, 0]
    scores = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(
        calibrate_scores(scores, torch.ones(50, dtype=torch.int64), curves), scores, rtol=0, atol=1e-9
    )


@FITS
def test_a_class_leans_on_all_as_far_as_its_own_are_few(fit: Fit) -> None:
    many = sample(1, 20_000, classes=2)
    rng = np.random.default_rng(0)

    def at_half(own: int) -> float:
        """Calibrated 0.5 of a class whose detections are right half as often as the others'."""
        scores = np.concatenate([many.scores, np.full(own, 0.5, dtype=np.float32)])
        hits = np.concatenate([many.hits, (rng.permutation(own) < own * 0.1).astype(float)])
        labels = np.concatenate([many.labels, np.full(own, 2)])
        curves = fit(scores, hits, labels, 4)
        assert curves.detections[3] == 0
        return float(calibrate_scores(torch.tensor([0.5]), torch.tensor([2]), curves))

    none, few, enough = at_half(0), at_half(10), at_half(4000)
    assert none > few > enough
    assert none == pytest.approx(0.36, abs=0.04)
    assert few > 0.15
    assert enough == pytest.approx(0.1, abs=0.01)


@FITS
def test_held_out_errors_fall_and_rank_and_ap_stay(fit: Fit) -> None:
    seen, unseen = sample(1, 4_000), sample(2, 20_000)
    curves = fit(seen.scores, seen.hits, seen.labels, 5)
    after = calibrated(curves, unseen)
    assert detection_ece(unseen.scores, unseen.hits) > 0.1
    assert detection_ece(after, unseen.hits) < 0.4 * detection_ece(unseen.scores, unseen.hits)
    for c in range(5):
        own = unseen.labels == c
        raw, calm = unseen.scores[own], after[own]
        order = np.argsort(raw)
        np.testing.assert_array_equal(np.diff(calm[order]) > 0, np.diff(raw[order]) > 0)
    before, then = (average_precision(scores, unseen) for scores in (unseen.scores, after))
    np.testing.assert_allclose(then, before, rtol=0, atol=1e-12)

    curves = fit(seen.scores, seen.ious, seen.labels, 5)
    positives = np.bincount(unseen.labels[unseen.hits > 0], minlength=5)
    raw_error, error = (
        localisation_aware_ece(scores, unseen.ious, unseen.labels, positives).mean
        for scores in (unseen.scores, calibrated(curves, unseen))
    )
    assert error < 0.4 * raw_error


def test_isotonic_follows_a_bend_that_a_line_cannot() -> None:
    seen, unseen = sample(3, 20_000, bend=2.5), sample(4, 20_000, bend=2.5)
    lines, steps = (fit(seen.scores, seen.hits, seen.labels, 5) for fit in (fit_platt, fit_isotonic))
    line, step = (detection_ece(calibrated(curves, unseen), unseen.hits) for curves in (lines, steps))
    assert step < 0.5 * line
    assert step < 0.025


@FITS
def test_a_hundred_thousand_in_a_second(fit: Fit) -> None:
    part = sample(5, 100_000, classes=80)
    start = time.process_time()
    fit(part.scores, part.hits, part.labels, 80)
    assert time.process_time() - start < 1


@FITS
def test_bad_columns_are_named(fit: Fit) -> None:
    scores, labels = np.array([0.5, np.nan], dtype=np.float32), np.array([0, 1])
    with pytest.raises(ValueError, match=r"scores: values in 0\.\.1 are needed, row 1 has nan"):
        fit(scores, np.array([0.0, 1.0]), labels, 2)
    with pytest.raises(ValueError, match=r"labels in 0\.\.0 are needed, row 1 has 1"):
        fit(np.array([0.5, 0.6], dtype=np.float32), np.array([0.0, 1.0]), labels, 1)


def average_precision(scores: NDArray[np.float32] | Floats, part: Sample) -> Floats:
    values, labels = torch.tensor(scores, dtype=torch.float64), torch.tensor(part.labels)
    order = sort_for_accumulation(labels, values)
    outcomes = torch.tensor(part.hits, dtype=torch.uint8)[order][:, None]
    positives = torch.tensor(np.bincount(part.labels[part.hits > 0], minlength=5) + 7)[:, None]
    recalls = torch.linspace(0, 1, 101, dtype=torch.float64)
    curves = accumulate(pack_outcomes(outcomes), labels[order], values[order], positives, 1, recalls)
    return np.asarray(curves.precision[0, :, :, 0].mean(dim=0).numpy())

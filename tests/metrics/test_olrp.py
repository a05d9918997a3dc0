import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.metrics.olrp import mean_optimal_lrp, optimal_lrp


def test_olrp_by_hand() -> None:
    # Best is to keep the first two of class 0: (0.1 + 0.2) / 0.5 + 0 + 2 missed, over 4.
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    ious = np.array([0.9, 0.8, 0.0, 0.0, 0.55, 0.1])
    hits = np.array([True, True, False, False, True, False])
    labels = np.array([0, 0, 0, 0, 0, 1])
    result = optimal_lrp(scores, ious, hits, labels, np.array([4, 2, 0]))
    np.testing.assert_allclose(result.error, [2.6 / 4, 1, np.nan])
    np.testing.assert_allclose(result.localisation, [0.15, np.nan, np.nan])
    np.testing.assert_allclose(result.false_positive, [0, np.nan, np.nan])
    np.testing.assert_allclose(result.false_negative, [0.5, 1, np.nan])
    np.testing.assert_allclose(result.threshold, [0.8, np.nan, np.nan])
    np.testing.assert_allclose(mean_optimal_lrp(result), [(0.65 + 1) / 2, 0.15, 0, 0.75])
    assert np.isnan(mean_optimal_lrp(optimal_lrp(scores, ious, hits & False, labels, np.zeros(2, int)))).all()


def test_perfect_is_zero() -> None:
    one = np.ones(3)
    result = optimal_lrp(one, one, one.astype(bool), np.zeros(3, int), np.array([3]))
    assert [float(part[0]) for part in result] == [0, 0, 0, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 60), st.sampled_from([0.0, 0.5, 0.75]))
def test_the_error_is_the_least_and_made_of_its_parts(seed: int, count: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    scores, hits = rng.integers(0, 12, count) / 11, rng.random(count) < 0.5
    ious = np.where(hits, rng.uniform(threshold, 1, count), 0)
    positives = int(hits.sum()) + int(rng.integers(1, 5))
    result = optimal_lrp(scores, ious, hits, np.zeros(count, int), np.array([positives]), threshold)
    errors = [1.0]
    for least in set(scores.tolist()):
        kept = scores >= least
        true, false = int(hits[kept].sum()), int((~hits[kept]).sum())
        away = (1 - ious[kept & hits]).sum() / (1 - threshold)
        errors.append((away + false + positives - true) / (positives + false))
    assert result.error[0] == pytest.approx(min(errors), abs=1e-12)
    if hits.any():
        kept = scores >= result.threshold[0]
        true, false = hits[kept].sum(), (~hits[kept]).sum()
        # The parts weighted by what they are shares of.
        parts = true * result.localisation[0] / (1 - threshold) + (true + false) * result.false_positive[0]
        whole = (parts + positives * result.false_negative[0]) / (positives + false)
        assert result.error[0] == pytest.approx(whole, abs=1e-12)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.metrics.calibration import (
    detection_ece,
    error_by_chance,
    expected_calibration_error,
    localisation_aware_ace,
    localisation_aware_ece,
    reliability_bins,
    reliability_bins_per_class,
)


def test_bins_by_hand() -> None:
    scores = np.array([0.0, 0.25, 0.26, 0.5, 1.0])
    bins = reliability_bins(scores, np.array([0, 1, 1, 0, 1]), 4)
    # Closed at the right: 0 and 0.25 share the first, 0.26 and 0.5 the second, the third is empty.
    assert bins.counts.tolist() == [2, 2, 0, 1]
    np.testing.assert_allclose(bins.mean_score, [0.125, 0.38, np.nan, 1])
    np.testing.assert_allclose(bins.mean_target, [0.5, 0.5, np.nan, 1])
    assert float(expected_calibration_error(bins)) == pytest.approx((2 * 0.375 + 2 * 0.12) / 5)


def test_errors_by_hand() -> None:
    scores = np.array([0.9, 0.9, 0.35, 0.2])
    assert detection_ece(scores, np.array([True, False, False, True])) == pytest.approx((2 * 0.4 + 0.35) / 3)
    labels, ious = np.array([0, 0, 1, 3]), np.array([0.8, 0.0, 0.35, 0.0])
    ece = localisation_aware_ece(scores, ious, labels, np.array([2, 1, 4, 0]))
    # Class 1 is right, 2 has no detection, 3 no object: neither of the last two has an error, not even 0.
    np.testing.assert_allclose(ece.per_class, [0.5, 0, np.nan, np.nan], atol=1e-15)
    assert ece.mean == pytest.approx(0.25)
    ace = localisation_aware_ace(scores, ious, labels, np.array([2, 1, 4, 0]))
    np.testing.assert_allclose(ace.per_class, [0.5, 0, np.nan, np.nan], atol=1e-15)


def test_true_scores_show_the_error_of_chance() -> None:
    rng = np.random.default_rng(0)
    scores = rng.beta(1, 2, 1500)
    drawn = [reliability_bins(scores, rng.random(1500) < scores, 15) for _ in range(200)]
    mean = np.mean([expected_calibration_error(bins) for bins in drawn])
    assert mean == pytest.approx(float(error_by_chance(drawn[0])), rel=0.05)
    assert np.isnan(error_by_chance(reliability_bins(np.zeros(0), np.zeros(0), 5)))


def test_nothing_is_not_zero() -> None:
    none = np.zeros(0)
    assert math.isnan(detection_ece(none, none))
    assert math.isnan(detection_ece(np.array([0.2]), np.array([True])))  # below the least score
    assert math.isnan(localisation_aware_ece(none, none, none.astype(int), np.array([3, 1])).mean)
    assert math.isnan(localisation_aware_ace(none, none, none.astype(int), np.array([3, 1])).mean)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 80), st.integers(1, 4), st.integers(1, 30))
def test_errors_equal_loops_as_the_reference_has_them(seed: int, count: int, classes: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 51, count) / 50  # many on the edges of bins
    ious = rng.random(count) * (rng.random(count) < 0.6)
    labels = rng.integers(0, classes, count)
    errors = []
    for c in range(classes):
        own, own_ious = scores[labels == c], ious[labels == c]
        total = 0.0
        for i, (low, high) in enumerate(
            zip(np.linspace(0, 1, bins + 1), np.linspace(0, 1, bins + 1)[1:], strict=False)
        ):
            inside = ((own > low) | ((i == 0) & (own == 0))) & (own <= high)
            if inside.any():
                total += inside.sum() / len(own) * abs(own_ious[inside].mean() - own[inside].mean())
        errors.append(total if len(own) else np.nan)
    positives = np.ones(classes, dtype=int)
    np.testing.assert_allclose(
        localisation_aware_ece(scores, ious, labels, positives, bins).per_class, errors, atol=1e-12
    )
    per_class = reliability_bins_per_class(scores, ious, labels, classes, bins)
    assert per_class.counts.sum() == count
    all_counts = reliability_bins(scores, ious, bins).counts
    np.testing.assert_array_equal(per_class.counts.sum(axis=0), all_counts)
    # One detection a bin is the finest that there is.
    coarse = localisation_aware_ece(scores, ious, labels, positives, bins).per_class
    fine = localisation_aware_ace(scores, ious, labels, positives).per_class
    assert np.all((coarse <= fine + 1e-12) | np.isnan(coarse))


@pytest.mark.parametrize(
    ("scores", "targets", "labels", "message"),
    [
        ([0.5, 1.5], [0, 1], [0, 0], "scores: values in 0..1 are needed, row 1 has 1.5"),
        ([np.nan, 0.5], [0, 1], [0, 0], "row 0 has nan"),
        ([0.5, 0.5], [0, 2], [0, 0], "targets: values in 0..1 are needed, row 1 has 2"),
        ([0.5, 0.5], [0, 1], [0, 3], "labels: labels in 0..1 are needed, row 1 has 3"),
        ([0.5], [0, 1], [0, 0], "Columns of one length are needed"),
    ],
)
def test_bad_columns_are_named(scores: list[float], targets: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reliability_bins_per_class(np.array(scores), np.array(targets), np.array(labels), 2, 10)

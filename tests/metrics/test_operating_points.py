import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.metrics.operating_points import (
    at_thresholds,
    best_f1,
    interpolated_precision,
    least_cost,
    most_precision_at_recall,
    most_recall_at_precision,
    threshold_curve,
    threshold_curves,
)

SCORES = np.array([0.5, 0.9, 0.8, 0.5, 0.6, 0.3])
HITS = np.array([True, True, False, False, True, False])


def test_a_curve_by_hand() -> None:
    curve = threshold_curve(SCORES, HITS, 4)
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.6, 0.5, 0.3]  # the two at 0.5 are kept together
    assert curve.true_positives.tolist() == [1, 1, 2, 3, 3]
    assert curve.false_positives.tolist() == [0, 1, 1, 2, 3]
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 3 / 5, 1 / 2])
    np.testing.assert_allclose(curve.recall, [1 / 4, 1 / 4, 1 / 2, 3 / 4, 3 / 4])
    np.testing.assert_allclose(curve.f1, [2 / 5, 2 / 6, 4 / 7, 6 / 9, 6 / 10])
    np.testing.assert_allclose(interpolated_precision(curve), [1, 2 / 3, 2 / 3, 3 / 5, 1 / 2])
    read = at_thresholds(curve, np.array([0.95, 0.8, 0.55, 0.0]))
    assert read.true_positives.tolist() == [0, 1, 2, 3]
    assert read.false_positives.tolist() == [0, 1, 1, 3]
    assert math.isnan(read.precision[0])


def test_aims_by_hand() -> None:
    curve = threshold_curve(SCORES, HITS, 4)
    best = best_f1(curve)
    assert best is not None
    assert best == (0.5, 3 / 5, 3 / 4, 2 / 3, 3, 2, 1)
    precise, sure = most_recall_at_precision(curve, 0.65), most_recall_at_precision(curve, 0.9)
    assert precise is not None
    assert sure is not None
    assert (precise.threshold, sure.threshold) == (0.6, 0.9)
    found = most_precision_at_recall(curve, 0.25)
    assert found is not None
    assert (found.threshold, found.precision) == (0.9, 1)
    cheap_misses, cheap_alarms = least_cost(curve, 10, 1), least_cost(curve, 1, 10)
    assert cheap_misses is not None
    assert cheap_alarms is not None
    assert (cheap_misses.threshold, cheap_alarms.threshold) == (0.9, 0.5)


def test_what_cannot_be_reached_says_so() -> None:
    curve = threshold_curve(np.array([0.9, 0.8]), np.array([False, True]), 4)
    assert most_recall_at_precision(curve, 0.6) is None
    assert most_precision_at_recall(curve, 0.5) is None
    nothing = least_cost(curve, 10, 1)
    assert nothing is not None
    assert math.isinf(nothing.threshold)
    assert math.isnan(nothing.precision)
    assert nothing.false_negatives == 4
    for empty in (threshold_curve(np.zeros(0), np.zeros(0, bool), 3), threshold_curve(SCORES, HITS & False, 0)):
        assert best_f1(empty) is None
        assert most_recall_at_precision(empty, 0.0) is None
        assert most_precision_at_recall(empty, 0.0) is None
    assert np.isnan(threshold_curve(SCORES, HITS & False, 0).recall).all()
    assert least_cost(threshold_curve(SCORES, HITS & False, 0), 1, 1) is None
    with pytest.raises(ValueError, match="2 objects cannot be found by 3 true positives"):
        threshold_curve(SCORES, HITS, 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 60), st.floats(0, 1), st.floats(0.1, 10))
def test_aims_equal_a_search_over_thresholds(seed: int, count: int, least: float, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    scores, hits = rng.integers(0, 12, count) / 11, rng.random(count) < 0.5
    positives = np.array([np.count_nonzero(hits[labels == c]) + rng.integers(0, 4) for c in range(2)])
    for c, curve in enumerate(threshold_curves(scores, hits, labels, positives)):
        own, own_hits, objects = scores[labels == c], hits[labels == c], int(positives[c])
        rows = []
        for threshold in sorted(set(own.tolist()), reverse=True):
            true = int(own_hits[own >= threshold].sum())
            false = int((own >= threshold).sum()) - true
            rows.append((threshold, true / (true + false), true / max(objects, 1), true, false))
        useful = [row for row in rows if row[3]]
        precise = [row for row in useful if row[1] >= least]
        point = most_recall_at_precision(curve, least)
        assert (point is None) == (not precise)
        if point is not None:
            assert point.recall == max(row[2] for row in precise)
            assert point.precision >= least
        complete = [row for row in useful if row[2] >= least]
        point = most_precision_at_recall(curve, least)
        assert (point is None) == (not complete)
        if point is not None:
            assert point.precision == max(row[1] for row in complete)
        point = best_f1(curve)
        assert (point is None) == (not useful)
        if point is not None:
            assert point.f1 == pytest.approx(max(2 * t / (t + f + objects) for *_, t, f in useful))
        point = least_cost(curve, ratio, 1)
        if point is not None:
            cost = ratio * point.false_positives + point.false_negatives
            assert cost == pytest.approx(min([objects, *(ratio * f + objects - t for *_, t, f in rows)]))

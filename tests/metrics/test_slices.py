"""Gaps of slices against what simulation and hand calculation give."""

from __future__ import annotations

import numpy as np

from detframe.metrics.bootstrap import bootstrap_weights
from detframe.metrics.slices import holm, slice_gaps


def test_shares_are_counts() -> None:
    hits = np.array([True, True, False, True, False])
    images = np.array([0, 0, 1, 2, 2])
    members = np.array([[True, True, True, False, False], [False, False, False, False, True]])
    gaps = slice_gaps(hits, images, members, bootstrap_weights(3, 50, 0))
    np.testing.assert_array_equal(gaps.total, [3, 1])
    np.testing.assert_array_equal(gaps.hits, [2, 0])
    np.testing.assert_allclose(gaps.share, [2 / 3, 0])
    np.testing.assert_allclose(gaps.gap, [2 / 3 - 1 / 2, 0 - 3 / 4])
    assert (gaps.low < gaps.gap).all()
    assert (gaps.gap < gaps.high).all()


def test_a_slice_of_all_or_nothing_has_no_gap() -> None:
    members = np.array([[True] * 4, [False] * 4])
    gaps = slice_gaps(np.array([True, False] * 2), np.arange(4), members, bootstrap_weights(4, 20, 0))
    assert np.isnan(gaps.gap).all()
    assert np.isnan(gaps.p_value).all()
    assert gaps.share[0] == 0.5


def test_without_a_gap_the_intervals_of_all_slices_hold_and_a_gap_is_found() -> None:
    rng = np.random.default_rng(0)
    held = found = 0
    trials = 60
    for _ in range(trials):
        images = np.repeat(np.arange(60), 8)
        difficulty = rng.beta(8, 2, 60)[images]  # objects of an image share their fate
        members = rng.random((20, len(images))) < 0.25
        weak = np.arange(len(images)) % 8 < 2  # a slice that is worse by 0.4
        hits = rng.random(len(images)) < difficulty - 0.4 * weak
        strangers = members & ~weak
        others = ~weak
        gaps = slice_gaps(
            hits[others], images[others], strangers[:, others], bootstrap_weights(60, 100, int(rng.integers(1000)))
        )
        held += bool(((gaps.low <= 0) & (gaps.high >= 0)).all())
        everything = slice_gaps(hits, images, np.vstack([members, weak]), bootstrap_weights(60, 100, 0))
        found += bool(everything.high[-1] < 0 and everything.p_value[-1] < 0.05)
    assert held >= 0.9 * trials  # 95 % wanted, 60 trials
    assert found >= 0.9 * trials


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.04, np.nan, 0.01, 0.03])), [0.06, np.nan, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])

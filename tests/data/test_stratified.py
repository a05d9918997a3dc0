from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detframe.data.stratified import assign_folds


def one_each(count: int) -> list[int]:
    return list(range(count))


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[int], np.ndarray, list[float], int]:
    images, classes, folds = draw(st.integers(6, 40)), draw(st.integers(1, 4)), draw(st.integers(2, 4))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    groups = generator.integers(-5, 20, images)
    groups[:folds] = np.arange(100, 100 + folds)
    shares = [draw(st.floats(0.05, 1)) for _ in range(folds)]
    return groups.tolist(), generator.poisson(0.7, (images, classes)), shares, draw(st.integers(0, 3))


@given(data=data_sets())
def test_groups_stay_whole_and_no_fold_is_empty(data: tuple[list[int], np.ndarray, list[float], int]) -> None:
    groups, counts, shares, seed = data
    folds = assign_folds(groups, counts, shares, seed)
    assert len(folds) == len(groups)
    assert set(folds) == set(range(len(shares)))
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))
    assert folds == assign_folds(groups, counts, shares, seed)


def test_images_that_are_alike_are_dealt_out_evenly() -> None:
    for folds in (2, 3, 5):
        found = assign_folds(one_each(31), np.ones((31, 2), dtype=np.int64), [1.0] * folds, 0)
        sizes = np.bincount(found)
        assert sizes.max() - sizes.min() <= 1


def test_the_best_of_all_assignments_is_found_where_all_can_be_tried() -> None:
    generator = np.random.default_rng(0)
    for seed in range(5):
        counts = generator.poisson(1.0, (9, 2))

        def unevenness(folds: tuple[int, ...], counts: np.ndarray = counts) -> float:
            has = counts > 0
            columns = np.concatenate([np.ones((9, 1)), ~has.any(axis=1, keepdims=True), counts, has], axis=1)
            columns = columns[:, columns.sum(axis=0) > 0]
            held = columns[np.array(folds) == 0].sum(axis=0) / columns.sum(axis=0)
            return float((np.square(held - 2 / 3) * (1 / (2 / 3) + 1 / (1 / 3))).sum())

        best = min(unevenness(folds) for folds in itertools.product((0, 1), repeat=9))
        found = unevenness(tuple(assign_folds(one_each(9), counts, [2, 1], seed)))
        assert found <= best * 1.5 + 1e-9  # a search for the exact one would have to try all


def test_rare_classes_are_spread_and_random_folds_are_not() -> None:
    generator = np.random.default_rng(1)
    counts = generator.poisson([5.0, 0.5, 0.0], (1000, 3))
    counts[generator.random(1000) < 0.1] = 0
    counts[generator.choice(1000, 20, replace=False), 2] = 1
    groups = (np.arange(1000) // 4).tolist()
    shares = np.array([0.8, 0.1, 0.1])

    def deviation(folds: np.ndarray) -> float:
        held = np.stack([counts[folds == fold].sum(axis=0) for fold in range(3)]) / counts.sum(axis=0)
        return float(np.abs(held / shares[:, None] - 1).max())

    random = np.random.default_rng(0).choice(3, 250, p=shares)[np.array(groups)]
    found = np.array(assign_folds(groups, counts, shares.tolist(), 0))
    assert np.bincount(found, counts[:, 2]).tolist() == [16, 2, 2]
    assert deviation(found) < 0.03
    assert deviation(random) > 0.3
    empty = ~counts.any(axis=1)
    assert np.bincount(found, empty) == pytest.approx(shares * empty.sum(), abs=2)
    assert np.bincount(found) == pytest.approx(1000 * shares, abs=4)


def test_the_one_instance_of_a_class_goes_to_the_largest_share() -> None:
    counts = np.zeros((50, 2), dtype=np.int64)
    counts[:, 0] = 1
    counts[17, 1] = 1
    assert assign_folds(one_each(50), counts, [0.1, 0.8, 0.1], 0)[17] == 1


def test_shares_need_not_add_up_to_one() -> None:
    counts = np.random.default_rng(0).poisson(1.0, (60, 3))
    assert assign_folds(one_each(60), counts, [8, 1, 1], 4) == assign_folds(one_each(60), counts, [0.8, 0.1, 0.1], 4)


def test_what_cannot_be_divided_is_said() -> None:
    counts = np.ones((4, 1), dtype=np.int64)
    with pytest.raises(ValueError, match="2 groups cannot fill 3 folds"):
        assign_folds([1, 1, 2, 2], counts, [1, 1, 1], 0)
    with pytest.raises(ValueError, match="above 0"):
        assign_folds([1, 2, 3, 4], counts, [1, 0], 0)


def test_images_without_any_class_can_be_divided() -> None:
    assert np.bincount(assign_folds(one_each(10), np.zeros((10, 0), dtype=np.int64), [1, 1], 0)).tolist() == [5, 5]

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detframe.data.annotations import AnnotationIndex, Category, build_index
from detframe.data.sampling import RepeatFactorSampler, repeat_factors


def index_of(
    labels: list[list[int]], classes: int, ignore: frozenset[tuple[int, int]] = frozenset()
) -> AnnotationIndex:
    """Images with boxes of these labels; those at (image, place) are to be ignored."""
    flat = [label for of_image in labels for label in of_image]
    places = [(image, place) for image, of_image in enumerate(labels) for place in range(len(of_image))]
    return build_index(
        source=Path(),
        image_root=Path(),
        categories=[Category(i, str(i)) for i in range(classes)],
        image_ids=np.arange(len(labels)),
        file_names=[str(i) for i in range(len(labels))],
        image_sizes=np.full((len(labels), 2), 10),
        image_of_box=np.array([image for image, _ in places], dtype=np.int64),
        boxes=np.tile([0.0, 0, 5, 5], (len(flat), 1)),
        labels=np.array(flat, dtype=np.int64),
        ignore=np.array([place in ignore for place in places], dtype=np.bool_),
        areas=np.full(len(flat), np.nan),
        annotation_ids=np.arange(len(flat)),
    )


def test_factors_are_those_of_the_paper() -> None:
    labels = [[0, 0], [0, 1], [0], [], [2, 1], *[[0]] * 5]
    # Of ten images, eight have class 0, two class 1, one class 2, none class 3.
    factors = repeat_factors(index_of(labels, 4), 0.4)
    assert factors.tolist() == pytest.approx([1, 2**0.5, 1, 1, 2, *[1] * 5])
    ignored = repeat_factors(index_of(labels, 4, ignore=frozenset({(4, 0)})), 0.4)
    assert ignored.tolist() == pytest.approx([1, 2**0.5, 1, 1, 2**0.5, *[1] * 5])


FACTORS = st.lists(st.floats(1, 6), min_size=1, max_size=40).map(np.array)


@given(factors=FACTORS, seed=st.integers(0, 100), epoch=st.integers(0, 100))
def test_each_image_comes_floor_or_ceiling_of_times(factors: np.ndarray, seed: int, epoch: int) -> None:
    sampler = RepeatFactorSampler(factors, seed=seed)
    sampler.set_epoch(epoch)
    images = [visit % len(factors) for visit in sampler]
    assert len(images) == len(sampler) == round(factors.sum())
    counts = np.bincount(images, minlength=len(factors))
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()


@given(factors=FACTORS, replicas=st.integers(1, 5), epoch=st.integers(0, 5))
def test_ranks_interleave_to_the_list_of_one_process(factors: np.ndarray, replicas: int, epoch: int) -> None:
    whole = RepeatFactorSampler(factors, seed=3)
    parts = [RepeatFactorSampler(factors, replicas, rank, seed=3) for rank in range(replicas)]
    for sampler in (whole, *parts):
        sampler.set_epoch(epoch)
    lists = [list(part) for part in parts]
    assert {len(images) for images in lists} == {len(parts[0])} == {len(whole) // replicas}
    interleaved = [image for step in zip(*lists, strict=True) for image in step]
    assert interleaved == list(whole)[: len(whole) // replicas * replicas]


def test_frequencies_are_the_factors_over_many_epochs() -> None:
    factors = np.concatenate([np.linspace(1, 3.7, 40), [1.0] * 20])
    sampler = RepeatFactorSampler(factors, seed=0)
    counts = np.zeros(60)
    orders = set()
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        images = [visit % 60 for visit in sampler]
        orders.add(tuple(images))
        counts += np.bincount(images, minlength=60)
    np.testing.assert_allclose(counts / 2000, factors, atol=0.05)
    assert (counts[40:] == 2000).all()
    assert len(orders) == 2000
    sampler.set_epoch(7)
    assert list(sampler) == list(sampler)


def test_no_visit_comes_twice() -> None:
    sampler = RepeatFactorSampler(np.array([1.0, 2.5, 1.0]), seed=0)
    visits = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        visits += list(sampler)
    assert len(set(visits)) == len(visits) == 20 * len(sampler)

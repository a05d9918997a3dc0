"""Comparisons of two detectors: what is paired, what p-values and intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.metrics.bootstrap import EvaluatedImages, weighted_average_precision
from detframe.metrics.paired import (
    PairedReplicates,
    Resamples,
    paired_average_precision,
    paired_difference,
    paired_figure,
    power_to_see,
    resamples,
)

IMAGES, CLASSES = 12, 2


def detector(seed: int, quality: float) -> EvaluatedImages:
    """Random detections on the same objects, which depend on nothing."""
    objects = np.random.default_rng(99)
    owner, label = objects.integers(0, IMAGES, 40), objects.integers(0, CLASSES, 40)
    rng = np.random.default_rng(seed)
    found = rng.random(40) < quality
    strays = rng.integers(0, IMAGES, 15)
    outcomes = np.concatenate([rng.random((int(found.sum()), 2)) < [0.95, 0.6], np.zeros((15, 2))]).astype(np.uint8)
    return EvaluatedImages(
        scores=rng.random(int(found.sum()) + 15),
        labels=np.concatenate([label[found], rng.integers(0, CLASSES, 15)]),
        images=np.concatenate([owner[found], strays]),
        outcomes=outcomes,
        object_labels=label,
        object_images=owner,
    )


def swapped(base: EvaluatedImages, candidate: EvaluatedImages, swap: np.ndarray) -> EvaluatedImages:
    """The base's detections but for the images in which the two change places."""
    stay, come = ~swap[base.images], swap[candidate.images]
    columns = {
        name: np.concatenate([getattr(base, name)[stay], getattr(candidate, name)[come]])
        for name in ("scores", "labels", "images", "outcomes")
    }
    return base._replace(**columns)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_a_permutation_is_average_precision_of_detections_that_changed_places(seed: int) -> None:
    base, candidate = detector(seed, 0.8), detector(seed + 1, 0.7)
    drawn = resamples(IMAGES, 3, seed)
    found = paired_average_precision(base, candidate, CLASSES, drawn)
    whole = np.ones((1, IMAGES), dtype=np.int32)
    for replicate, swap in enumerate(drawn.swaps):
        first = weighted_average_precision(swapped(base, candidate, swap), CLASSES, whole)[0]
        second = weighted_average_precision(swapped(candidate, base, swap), CLASSES, whole)[0]
        np.testing.assert_allclose(found.swapped[replicate], second - first, atol=1e-12)
    ours = weighted_average_precision(candidate, CLASSES, drawn.weights)
    np.testing.assert_allclose(found.drawn, ours - weighted_average_precision(base, CLASSES, drawn.weights), atol=1e-12)
    np.testing.assert_allclose(found.candidate, weighted_average_precision(candidate, CLASSES, whole)[0], atol=0)


def test_a_figure_of_sums_is_drawn_and_swapped_by_image() -> None:
    base, candidate = np.array([[1.0, 2], [0, 3]]), np.array([[2.0, 2], [3, 4]])
    drawn = Resamples(np.array([[2, 0], [1, 1]], dtype=np.int32), np.array([[True, False], [True, True]]))
    found = paired_figure(base, candidate, lambda sums: sums[..., 0] / sums[..., 1], drawn)
    np.testing.assert_allclose([found.base, found.candidate], [1 / 5, 5 / 6])
    np.testing.assert_allclose(found.drawn, [4 / 4 - 2 / 4, 5 / 6 - 1 / 5])
    np.testing.assert_allclose(found.swapped, [4 / 6 - 2 / 5, 1 / 5 - 5 / 6])


def test_detectors_on_other_objects_are_refused() -> None:
    base = detector(0, 0.8)
    other = base._replace(object_images=base.object_images[::-1].copy())
    with pytest.raises(ValueError, match="different objects"):
        paired_average_precision(base, other, CLASSES, resamples(IMAGES, 2, 0))


def test_a_detector_does_not_differ_from_itself() -> None:
    found = paired_average_precision(detector(0, 0.8), detector(0, 0.8), CLASSES, resamples(IMAGES, 50, 0))
    known = paired_difference(found)
    for value in (known.difference, known.low, known.high, known.error, known.detectable):
        np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(known.p_value, 1)


def test_groups_are_drawn_and_swapped_whole() -> None:
    groups = np.array([0, 0, 1, 2, 2, 2])
    drawn = resamples(6, 40, 0, groups)
    for group in range(3):
        members = groups == group
        assert (np.ptp(drawn.weights[:, members], axis=1) == 0).all()
        assert (np.ptp(drawn.swaps[:, members].astype(int), axis=1) == 0).all()
    assert (drawn.weights[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_p_values_and_intervals_of_normal_differences_are_right() -> None:
    """Known answers: a mean of 200 differences of standard deviation 1 has a standard error of 1 / sqrt(200)."""
    rng = np.random.default_rng(0)
    p_values, covered, errors = [], [], []
    for seed in range(300):
        base, candidate = rng.normal(0, 1, (2, 200, 1)) / np.sqrt(2)
        drawn = resamples(200, 400, seed)
        known = paired_difference(paired_figure(base, candidate, lambda sums: sums[..., 0] / 200, drawn))
        p_values.append(float(known.p_value))
        covered.append(float(known.low) <= 0 <= float(known.high))
        errors.append(float(known.error))
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.09)
    assert 0.91 <= np.mean(covered) <= 0.98
    assert np.mean(errors) == pytest.approx(1 / np.sqrt(200), rel=0.03)


def test_the_detectable_difference_is_seen_four_times_in_five() -> None:
    error = np.array(0.01)
    swapped = np.random.default_rng(0).normal(0, 0.01, 20_000)
    known = paired_difference(
        PairedReplicates(np.array(0.5), np.array(0.5), np.array([0.01, -0.01]) / np.sqrt(2), swapped)
    )
    assert float(known.critical) == pytest.approx(0.0196, rel=0.02)
    assert float(power_to_see(known.detectable, error, known.critical)) == pytest.approx(0.8, abs=1e-3)
    assert float(power_to_see(np.array(0.0), error, np.array(0.0196))) == pytest.approx(0.05, abs=1e-3)


def test_what_has_no_objects_has_no_difference() -> None:
    none = np.array([[0.0, 0], [0, 0]])
    found = paired_figure(
        none, none, lambda sums: sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan), resamples(2, 9, 0)
    )
    known = paired_difference(found)
    assert np.isnan([float(value) for value in known]).all()

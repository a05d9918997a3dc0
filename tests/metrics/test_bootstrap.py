import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detframe.metrics.average_precision import accumulate, pack_outcomes, sort_for_accumulation
from detframe.metrics.bootstrap import (
    RECALLS,
    EvaluatedImages,
    average_precision_intervals,
    basic_interval,
    best_f1_intervals,
    bootstrap_weights,
    weighted_average_precision,
)


def some_images(seed: int, images: int, classes: int, ious: int) -> EvaluatedImages:
    """Few scores, so that many are equal, and some detections set aside."""
    rng = np.random.default_rng(seed)
    count, objects = int(rng.integers(0, 8 * images)), int(rng.integers(0, 4 * images))
    labels, owner = rng.integers(0, classes, count), rng.integers(0, images, count)
    outcomes = rng.integers(0, 3, (count, ious)).astype(np.uint8)
    # As many objects as the hits at any IoU take, each in its image.
    hit = (outcomes == 1).any(axis=1)
    return EvaluatedImages(
        scores=rng.integers(0, 6, count) / 5,
        labels=labels,
        images=owner,
        outcomes=outcomes,
        object_labels=np.concatenate([labels[hit], rng.integers(0, classes, objects)]),
        object_images=np.concatenate([owner[hit], rng.integers(0, images, objects)]),
    )


def f1_at(evaluated: EvaluatedImages, t: int, threshold: float, weights: NDArray[np.int32]) -> float:
    """By counting each row as often as its image is drawn."""
    kept = (evaluated.scores >= threshold) & (evaluated.outcomes[:, t] != 2)
    drawn = weights[evaluated.images]
    hits = int(drawn[kept & (evaluated.outcomes[:, t] == 1)].sum())
    total = int(drawn[kept].sum()) + int(weights[evaluated.object_images].sum())
    return 2 * hits / total if total else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_best_f1_is_the_highest_of_all_thresholds(seed: int, images: int) -> None:
    evaluated = some_images(seed, images, classes=3, ious=2)
    weights = bootstrap_weights(images, 5, seed)
    best = best_f1_intervals(evaluated, weights)
    for t in range(2):
        once = np.ones(images, dtype=np.int32)
        each = [f1_at(evaluated, t, threshold, once) for threshold in np.unique(evaluated.scores)]
        assert best.f1.estimate[t] == pytest.approx(max(each, default=0.0))
        if best.f1.estimate[t] > 0:
            assert f1_at(evaluated, t, best.thresholds[t], once) == pytest.approx(best.f1.estimate[t])
            drawn = np.array([[f1_at(evaluated, t, best.thresholds[t], row)] for row in weights])
            expected = basic_interval(best.f1.estimate[[t]], drawn, 0.95)
            assert best.f1.low[t] == pytest.approx(expected.low[0])
            assert best.f1.high[t] == pytest.approx(expected.high[0])


def coco_average_precision(evaluated: EvaluatedImages, classes: int) -> NDArray[np.float64]:
    """``[C, T]``, NaN for -1, by the accumulation that all other figures come from."""
    labels, scores = torch.tensor(evaluated.labels), torch.tensor(evaluated.scores)
    order = sort_for_accumulation(labels, scores)
    packed = pack_outcomes(torch.tensor(evaluated.outcomes)[order])
    positives = torch.tensor(np.bincount(evaluated.object_labels, minlength=classes))[:, None]
    ious = evaluated.outcomes.shape[1]
    curves = accumulate(packed, labels[order], scores[order], positives, ious, torch.tensor(RECALLS))
    ap = curves.precision[..., 0].mean(dim=1).T
    return np.asarray(torch.where(ap < 0, torch.nan, ap).numpy())


def copied(evaluated: EvaluatedImages, weights: NDArray[np.int32]) -> EvaluatedImages:
    """The set of images in which each stands as often as its weight says."""
    rows, objects = weights[evaluated.images], weights[evaluated.object_images]
    columns = zip(evaluated, [rows] * 4 + [objects] * 2, strict=True)
    return EvaluatedImages(*(np.repeat(column, times, axis=0) for column, times in columns))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 12), st.integers(1, 3))
def test_weights_of_one_give_cocos_figures(seed: int, images: int, classes: int) -> None:
    evaluated = some_images(seed, images, classes, 3)
    weighted = weighted_average_precision(evaluated, classes, np.ones((1, images), dtype=np.int32))
    np.testing.assert_allclose(weighted[0], coco_average_precision(evaluated, classes), rtol=0, atol=1e-14)


def test_recalls_are_read_as_coco_reads_them_for_every_count() -> None:
    # 7 of 100 objects are 0.07, less than the recall 0.07000000000000001 of np.linspace: one digit decides.
    for objects in (1, 3, 7, 50, 100, 140, 200):
        hits = np.zeros((objects, 1), dtype=np.uint8)
        hits[::2] = 1
        rows = np.zeros(objects, dtype=int)
        evaluated = EvaluatedImages(np.linspace(1, 0, objects), rows, rows, hits, rows, rows)
        weighted = weighted_average_precision(evaluated, 1, np.ones((1, 1), dtype=np.int32))
        np.testing.assert_allclose(weighted[0], coco_average_precision(evaluated, 1), rtol=0, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 8))
def test_a_weight_counts_as_so_many_copies(seed: int, images: int) -> None:
    evaluated = some_images(seed, images, 2, 2)
    # Distinct scores: among equal ones COCO's figure depends on the order, and copies of an image move it.
    scores = np.random.default_rng(seed).permutation(len(evaluated.scores)) / max(len(evaluated.scores), 1)
    evaluated = evaluated._replace(scores=scores)
    weights = bootstrap_weights(images, 3, seed)
    assert (weights.sum(axis=1) == images).all()
    expected = [coco_average_precision(copied(evaluated, row), 2) for row in weights]
    np.testing.assert_allclose(weighted_average_precision(evaluated, 2, weights), expected, rtol=0, atol=1e-12)


def test_intervals_of_a_class_without_objects_are_nan() -> None:
    evaluated = some_images(3, 20, 2, 2)
    result = average_precision_intervals(evaluated, 3, bootstrap_weights(20, 50, 0))
    for interval in (result.per_class_and_iou, result.per_class):
        assert all(np.isnan(part[2]).all() for part in interval)
        assert (interval.low[:2] < interval.high[:2]).all()
    assert result.per_iou.estimate.shape == (2,)
    assert result.overall.estimate == pytest.approx(np.nanmean(result.per_class.estimate))
    assert result.overall.low < result.overall.estimate < result.overall.high
    none = np.zeros(0, dtype=int)
    empty = EvaluatedImages(none, none, none, np.zeros((0, 2)), none, none)
    assert np.isnan(average_precision_intervals(empty, 2, bootstrap_weights(4, 10, 0)).overall).all()


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    rng = np.random.default_rng(0)
    interval = basic_interval(np.array(0.5), 0.5 + 0.01 * rng.standard_normal(20_000), 0.95)
    assert float(interval.low) == pytest.approx(0.5 - 0.0196, abs=4e-4)
    assert float(interval.high) == pytest.approx(0.5 + 0.0196, abs=4e-4)
    near_one = basic_interval(np.array(0.999), np.full(10, 1.0), 0.95)
    assert 0.99 < near_one.low <= near_one.high < 0.999


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    def draw(seed: int, images: int) -> EvaluatedImages:
        """Images that are easy or hard as a whole, so that detections are not independent."""
        rng = np.random.default_rng(seed)
        owner = np.repeat(np.arange(images), rng.poisson(6, images))
        logits = rng.normal(-0.5, 2.5, len(owner))
        hits = rng.random(len(owner)) < 1 / (1 + np.exp(-1.3 * logits - rng.normal(0, 0.7, images)[owner]))
        missed = np.repeat(np.arange(images), rng.poisson(0.6, images))
        objects = np.concatenate([owner[hits], missed])
        nothing = np.zeros(len(owner), dtype=int)
        return EvaluatedImages(logits, nothing, owner, hits[:, None].astype(np.uint8), objects * 0, objects)

    def estimate(evaluated: EvaluatedImages, images: int) -> float:
        return float(weighted_average_precision(evaluated, 1, np.ones((1, images), dtype=np.int32))[0, 0, 0])

    truth = estimate(draw(10_000, 100_000), 100_000)
    held, runs = 0, 200
    for seed in range(runs):
        interval = average_precision_intervals(draw(seed, 150), 1, bootstrap_weights(150, 200, seed)).overall
        held += int(interval.low <= truth <= interval.high)
    # 95 % of 200 is 190 with a deviation of 3.1; intervals 0.76 times as wide would hold 86 %.
    assert 0.91 <= held / runs <= 0.985


def test_time_grows_with_hits_and_stays_small() -> None:
    rng = np.random.default_rng(0)
    images, count, classes = 500, 20_000, 20
    owner, labels, scores = rng.integers(0, images, count), rng.integers(0, classes, count), rng.random(count)
    outcomes = (rng.random((count, 10)) < 0.1 * scores[:, None]).astype(np.uint8)
    hit = outcomes.any(axis=1)
    evaluated = EvaluatedImages(scores, labels, owner, outcomes, labels[hit], owner[hit])
    start = time.process_time()
    average_precision_intervals(evaluated, classes, bootstrap_weights(images, 200, 0))
    assert time.process_time() - start < 2


def test_bad_columns_are_named() -> None:
    evaluated = some_images(3, 20, 2, 2)
    with pytest.raises(ValueError, match="images: labels in"):
        weighted_average_precision(evaluated, 2, np.ones((1, 10), dtype=np.int32))
    with pytest.raises(ValueError, match="Columns of one length are needed"):
        weighted_average_precision(evaluated._replace(scores=evaluated.scores[1:]), 2, np.ones((1, 20), dtype=np.int32))

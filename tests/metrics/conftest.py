"""Random detections and truths as flat rows, with what makes matching hard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from detframe.metrics.rows import DetectionRows, TruthRows


def _random_rows(seed: int, images: int, classes: int, tied: bool) -> tuple[DetectionRows, TruthRows]:
    """Crowded images, some without a truth or a detection; ignored truths; detections near truths and elsewhere.

    Args:
        seed: Of everything.
        images: How many at most.
        classes: How many; with few truths some may have none.
        tied: Boxes on a coarse grid, so that overlaps tie and meet thresholds, and few different scores. Ignored truths
            stay off the grid: at a threshold, ``tidecv`` and COCO differ on them.
    """
    rng = np.random.default_rng(seed)
    truth_images = np.sort(rng.integers(0, images, images * 5))
    corners = (
        rng.integers(0, 10, (len(truth_images), 2)) * 10.0 if tied else rng.uniform(0, 100, (len(truth_images), 2))
    )
    sides = rng.integers(1, 5, corners.shape) * 10.0 if tied else rng.uniform(10, 50, corners.shape)
    ignore = rng.random(len(truth_images)) < 0.15
    truth = np.concatenate([corners, corners + sides], axis=1)
    truth[ignore] += rng.uniform(0.1, 0.9, (int(ignore.sum()), 4))
    labels = rng.integers(0, classes, len(truth))

    count = images * 12
    near = rng.integers(0, len(truth), count)
    step = rng.integers(-1, 2, (count, 4)) * 5.0 if tied else rng.normal(0, 6, (count, 4))
    boxes = truth[near].round() + step if tied else truth[near] + step
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 5)
    found_images = np.where(rng.random(count) < 0.9, truth_images[near], rng.integers(0, images, count))
    found_labels = np.where(rng.random(count) < 0.6, labels[near], rng.integers(0, classes, count))
    scores = rng.integers(1, 8, count) / 8 if tied else rng.permutation(count) / count
    order = np.argsort(found_images, kind="stable")
    return (
        DetectionRows(
            torch.from_numpy(found_images[order]),
            torch.from_numpy(boxes[order]).float(),
            torch.from_numpy(scores[order]).float(),
            torch.from_numpy(found_labels[order]),
        ),
        TruthRows(
            torch.from_numpy(truth_images),
            torch.from_numpy(truth).float(),
            torch.from_numpy(labels),
            torch.from_numpy(ignore),
        ),
    )


@pytest.fixture(scope="session")
def random_rows() -> Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]:
    return _random_rows

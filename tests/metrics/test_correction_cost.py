"""The optimal correction cost against the transport problem that its paper states, solved as a linear programme."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torchvision.ops import generalized_box_iou

from detframe.metrics.correction_cost import UNMATCHED_COST, correction_costs
from detframe.metrics.rows import DetectionRows, TruthRows

Rows = Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]


def transported(cost: NDArray[np.float64]) -> float:
    """Cost of the cheapest plan between ``n`` and ``m`` unit masses and two dummies of masses ``m`` and ``n``."""
    n, m = cost.shape
    padded = np.full((n + 1, m + 1), UNMATCHED_COST)
    padded[:n, :m] = cost
    supply, demand = np.append(np.ones(n), m), np.append(np.ones(m), n)
    rows = np.kron(np.eye(n + 1), np.ones(m + 1))
    columns = np.kron(np.ones(n + 1), np.eye(m + 1))
    plan = linprog(padded.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.append(supply, demand)).x
    plan[-1] = 0  # from dummy to dummy is free
    return float((plan * padded.ravel()).sum() / plan.sum())


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_linear_programme(seed: int, random_rows: Rows) -> None:
    detections, truths = random_rows(seed, 6, 3, False)
    detections = DetectionRows(*(column[::4] for column in detections))
    costs = correction_costs(detections, truths, 8)
    assert costs[7] == 0  # an image without a row
    for image in range(6):
        found, present = detections.images == image, (truths.images == image) & ~truths.ignore
        if not found.any() or not present.any():
            continue
        score = detections.scores[found].double()[:, None]
        right = detections.labels[found][:, None] == truths.labels[present]
        place = (1 - generalized_box_iou(detections.boxes[found].double(), truths.boxes[present].double())) / 2
        cost = 0.5 * place + 0.5 * torch.where(right, 1 - score, 1 + score) / 2
        assert costs[image] == pytest.approx(transported(cost.numpy()), abs=1e-9)


def test_nothing_to_do_costs_nothing_and_all_to_do_the_most() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    truths = TruthRows(torch.tensor([0, 0]), boxes, torch.tensor([0, 1]), torch.tensor([False, False]))
    found = DetectionRows(torch.tensor([0, 0]), boxes, torch.ones(2), torch.tensor([0, 1]))
    assert correction_costs(found, truths, 1)[0] == pytest.approx(0)
    assert correction_costs(DetectionRows(*(column[:0] for column in found)), truths, 1)[0] == UNMATCHED_COST
    ignored = truths._replace(ignore=torch.tensor([True, True]))
    assert correction_costs(DetectionRows(*(column[:0] for column in found)), ignored, 1)[0] == 0

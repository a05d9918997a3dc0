"""Neighbours and p-values, against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detframe.metrics import neighbours
from detframe.metrics.neighbours import conformal_p_values, nearest_neighbours


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def test_the_nearest_come_first_and_missing_ones_are_named() -> None:
    found = nearest_neighbours(directions(0, 90), directions(80, 10, 30), 4)
    assert found.rows.tolist() == [[1, 2, 0, -1], [0, 2, 1, -1]]
    torch.testing.assert_close(found.distances[0, :3], 1 - torch.deg2rad(torch.tensor([10.0, 30, 80])).cos())
    assert torch.isinf(found.distances[:, 3]).all()


def test_references_of_the_own_group_are_no_neighbours() -> None:
    found = nearest_neighbours(directions(0), directions(0, 5, 50), 2, torch.tensor([7]), torch.tensor([7, 7, 8]))
    assert found.rows.tolist() == [[2, -1]]


def test_nothing_to_compare_with_is_no_error() -> None:
    assert nearest_neighbours(directions(0), directions()[:0], 2).rows.tolist() == [[-1, -1]]
    assert nearest_neighbours(directions()[:0], directions(0), 2).rows.shape == (0, 2)


def test_parts_of_the_work_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    queries, references = (torch.nn.functional.normalize(torch.randn(n, 8, generator=rng), dim=1) for n in (33, 50))
    whole = nearest_neighbours(queries, references, 5)
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", 120)
    parts = nearest_neighbours(queries, references, 5)
    assert torch.equal(whole.rows, parts.rows)


def test_p_values_are_counted() -> None:
    calibration = torch.tensor([0.1, 0.2, 0.2, 0.4])
    assert conformal_p_values(torch.tensor([0.0, 0.2, 0.3, 0.5]), calibration).tolist() == [1.0, 0.8, 0.4, 0.2]
    assert conformal_p_values(torch.tensor([torch.inf]), calibration[:0]).tolist() == [1.0]


def test_of_what_belongs_one_in_twenty_is_below_a_twentieth() -> None:
    rng = np.random.default_rng(0)
    below = [
        float(
            (
                conformal_p_values(torch.from_numpy(rng.gamma(2, size=200)), torch.from_numpy(rng.gamma(2, size=99)))
                <= 0.05
            )
            .float()
            .mean()
        )
        for _ in range(200)
    ]
    assert abs(np.mean(below) - 0.05) < 0.01

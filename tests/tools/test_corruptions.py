"""Fifteen corruptions: each changes an image, more with severity, and as it is called."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.monitoring.test_drift import photograph

sys.path.append(str(Path(__file__).parents[2] / "tools"))
tool: Any = importlib.import_module("corruptions")


def corrupted(kind: str, severity: int) -> NDArray[np.float64]:
    image = np.ascontiguousarray(photograph(0).transpose(1, 2, 0))
    made: NDArray[np.uint8] = tool.corrupted(image, kind, severity, np.random.default_rng(0))
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    return made.astype(np.float64)


ORIGINAL = photograph(0).transpose(1, 2, 0).astype(np.float64)


def detail(image: NDArray[np.float64]) -> float:
    return float(np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean())


@pytest.mark.parametrize("kind", tool.CORRUPTIONS)
def test_severity_five_is_farther_from_the_image_than_one(kind: str) -> None:
    near, far = (np.abs(corrupted(kind, severity) - ORIGINAL).mean() for severity in (1, 5))
    assert 0.5 < near < far


def test_they_do_what_they_are_called() -> None:
    for kind in ("defocus blur", "glass blur", "motion blur", "zoom blur"):
        assert detail(corrupted(kind, 4)) < 0.8 * detail(ORIGINAL)
        assert corrupted(kind, 4).mean() == pytest.approx(ORIGINAL.mean(), rel=0.03)
    for kind in ("gaussian noise", "shot noise", "impulse noise"):
        assert detail(corrupted(kind, 1)) > 2 * detail(ORIGINAL)
    assert corrupted("brightness", 2).mean() == pytest.approx(ORIGINAL.mean() + 51, abs=6)
    assert corrupted("contrast", 1).std() == pytest.approx(0.4 * ORIGINAL.std(), rel=0.12)
    assert corrupted("contrast", 1).mean() == pytest.approx(ORIGINAL.mean(), abs=1)
    assert (corrupted("pixelate", 5)[:, 1:] == corrupted("pixelate", 5)[:, :-1]).all(axis=2).mean() > 0.6

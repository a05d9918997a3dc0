"""The pairs of detectors that the gate's honesty is measured on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))
bench: Any = importlib.import_module("bench_gate")


def test_null_pairs_are_equally_good_and_gains_are_gains() -> None:
    shape = (400, 3, 7.0, 10.0)
    gains = [
        bench.compared(bench.simulated(np.random.default_rng(0), *shape, gain), 400, 3, 2, 0) for gain in (0.0, 0.3)
    ]
    assert float(gains[0].difference) == pytest.approx(0.0, abs=0.02)
    assert float(gains[1].difference) > 0.04


def test_both_detectors_see_the_same_objects_with_noise_of_their_own() -> None:
    base, candidate = bench.simulated(np.random.default_rng(1), 50, 3, 7.0, 10.0, 0.0)
    assert np.array_equal(base.object_labels, candidate.object_labels)
    assert np.array_equal(base.object_images, candidate.object_images)
    assert not np.array_equal(base.scores, candidate.scores)
    assert (np.diff(base.outcomes.astype(int), axis=1) <= 0).all()  # what is found at a high IoU is at a lower one


def test_it_prints_what_it_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pairs", "3", "--images", "10", "--replicates", "20"]
    monkeypatch.setattr(sys, "argv", ["bench_gate.py", *options])
    monkeypatch.setattr(bench, "_MANY", 200)
    bench.main()
    said = capsys.readouterr().out
    assert "20 replicates, 10 images x 3 classes" in said
    assert "3 null pairs" in said
    assert "power stated" in said

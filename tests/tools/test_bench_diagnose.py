"""The benchmark of the diagnosis runs the verb itself."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.slow
def test_it_measures_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    bench = importlib.import_module("bench_diagnose")
    result = bench.measure(images=6, detections=20, classes=3, objects=4, seed=0)
    assert 0 < result.map < 1
    assert result.seconds > 0
    assert result.peak_bytes > 1e8
    assert 1e5 < result.page_bytes < 1e7

"""The benchmark of the review runs the verb and a browser."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.slow
def test_it_measures_each_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    if importlib.import_module("chromium").BROWSER is None:
        pytest.skip("needs Chromium")
    bench = importlib.import_module("bench_review")
    result = bench.measure(decisions=5, images=4, enlarge=2, pause=0.0, seed=0)
    assert result.saved == len(result.shown) == 5
    assert all(0 < ms < 5000 for ms in result.shown)
    assert result.first > 0

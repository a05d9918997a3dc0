"""The benchmark of growth says how it grew, and its parts read what it writes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def test_the_table_gives_the_power_of_growth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    bench = importlib.import_module("bench_scaling")
    rows = [bench.Measured("index", 1000, 0.5, 10**9), bench.Measured("index", 10000, 50.0, 2 * 10**9)]
    assert bench.table(rows).splitlines()[-1] == "| index | 0.50 s, 1.00 GB | 50.00 s, 2.00 GB, power 2.00 |"
    bench.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_parts_run_on_what_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    bench = importlib.import_module("bench_scaling")
    bench.write_data(tmp_path, 12)
    for part in ("index", "loader", "metric"):
        assert bench.PARTS[part](tmp_path) > 0

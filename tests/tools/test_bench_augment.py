import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("bench_augment")


@pytest.mark.filterwarnings("ignore")
def test_every_contender_is_timed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rounds", "1", "--batch-size", "2", "--size", "64", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["bench_augment.py", *arguments])
    bench.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 10
    assert all(float(row.split("|")[2]) > 0 for row in rows)


def test_the_table_compares_with_detframes_usual_policy(bench: ModuleType) -> None:
    table = bench.table({"usual, detframe": [0.5, 0.25, 0.3], "other": [0.6, 0.6, 0.9]}, batch_size=3)
    assert "| usual, detframe | 10.0 | 12.0 | 1.00 |" in table
    assert "| other | 5.0 | 5.0 | 2.00 |" in table

"""What the benchmark of verdicts takes for the truth."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detframe.analysis.verdicts import Judgement, Verdict

sys.path.append(str(Path(__file__).parents[2] / "tools"))
bench: Any = importlib.import_module("bench_verdict")

BOX = [10.0, 10.0, 40.0, 50.0]


def scene() -> Any:  # noqa: ANN401 - of a module that is no package's
    pixels = np.full((64, 80, 3), 200.0)
    pixels[10:50, 10:40] = 50
    return bench.Scene(pixels, {7: (BOX, 1)})


@pytest.mark.parametrize(("history", "centre"), [("faded", (186, 206)), ("strange", (120, 135)), ("label", (50, 50))])
def test_a_history_changes_pixels_or_the_label_and_never_both(history: str, centre: tuple[int, int]) -> None:
    made, histories = bench.with_histories([scene()], {history: 1.0}, bench.chequer, 3, np.random.default_rng(0))
    assert histories[7][:2] == (history, 0)
    assert histories[7].box == BOX
    assert histories[7].label == 1
    assert centre[0] <= made[0].pixels[25:35, 20:30].mean() <= centre[1]
    assert (made[0].pixels[52:] == 200).all()
    assert (made[0].objects == {7: (BOX, 1)}) == (history != "label")


def test_faulty_labels_are_of_three_kinds() -> None:
    rng = np.random.default_rng(0)
    made = [bench.mislabel(BOX, 1, 3, rng) for _ in range(90)]
    assert 20 < made.count(None) < 40
    rest = [label for label in made if label is not None]
    renamed = [label for box, label in rest if box == BOX]
    assert set(renamed) == {0, 2}
    for box, label in rest:
        if box != BOX:
            assert label == 1
            step = abs(np.array(box) - BOX) / [30, 40, 30, 40]
            assert ((step >= 0.25) & (step <= 0.5)).all()


def test_balanced_accuracy_weighs_causes_alike() -> None:
    def outcome(history: str, verdict: Verdict) -> Any:  # noqa: ANN401
        return bench.Outcome(0, history, "missed", Judgement(verdict, 0.9, 0.0, 0.5, 3, 0.5, 0.5, ()))

    right = [outcome(history, verdict) for history, verdict in bench.CAUSES.items()]
    assert bench.balanced_accuracy(bench.table_of(right)) == 1
    wrong = [outcome("faded", Verdict.UNKNOWN)] * 3 + [outcome("faded", Verdict.GAP)] * 4
    assert bench.balanced_accuracy(bench.table_of(right + wrong)) == pytest.approx((1 / 8 + 1 + 1) / 3)

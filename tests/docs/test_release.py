"""The files that docs/release.md shows are what the verbs read."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from detframe.analysis.gate import MustPass, read_gate
from detframe.export.card import read_given

PAGE = Path(__file__).parents[2] / "docs" / "release.md"
GATE, WORKFLOW, CARD = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_gate_and_the_card_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(GATE)
    gate = read_gate(tmp_path / "gate.yaml")
    assert gate.margins == {"map": 0.01, "map_50": 0.03, "recall/*": 0.15}
    assert gate.must_pass == [MustPass("BloodImage_00007.jpg", 3)]
    (tmp_path / "card.yaml").write_text(CARD)
    assert set(read_given(tmp_path / "card.yaml")) == {"intended_use", "limits", "licences"}


def test_the_workflow_asks_the_gate() -> None:
    steps = yaml.safe_load(WORKFLOW)["jobs"]["compare"]["steps"]
    (asked,) = [step["run"] for step in steps if "detframe compare" in step.get("run", "")]
    assert "--gate gate.yaml" in asked
    assert "--out comparison" in asked

"""The files that docs/release.md shows are what the verbs read."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from detframe.analysis.evaluation import read_results
from detframe.analysis.gate import MustPass, read_gate
from detframe.cli import main
from detframe.data.synthetic import write_dataset
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


def test_the_workflow_asks_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a runner: two runs without checkpoints or images, the page's own gate, a benchmark."""
    write_dataset(tmp_path / "data", train=1, val=1, test=6)
    truth = json.loads((tmp_path / "data" / "test.json").read_text())
    (tmp_path / "found.json").write_text(json.dumps([{**one, "score": 0.9} for one in truth["annotations"]]))
    table = read_results(tmp_path / "found.json", tmp_path / "data" / "test.json").table
    rows = table.to_pylist()
    first = next(row for row in rows if row["annotation_id"] == 3)
    for row in rows:
        if row["image_id"] == first["image_id"]:
            row["file_name"] = "BloodImage_00007.jpg"
    for run in ("released", "candidate"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "runs" / run / "test_predictions.parquet"
        )
    speeds = [{"name": name, "single": {"median": 40.0}, "megabytes": 10.0} for name in ("released", "candidate")]
    (tmp_path / "runs" / "benchmark.json").write_text(json.dumps({"contestants": speeds}))
    (tmp_path / "gate.yaml").write_text(GATE)

    monkeypatch.chdir(tmp_path)
    commands = [step["run"] for step in yaml.safe_load(WORKFLOW)["jobs"]["compare"]["steps"] if "run" in step]
    (asked,) = [shlex.split(command) for command in commands if "detframe compare" in command]
    assert asked[:3] == ["python", "-m", "detframe"]
    assert main([*asked[3:], "--replicates", "50"]) == 0
    (comment,) = [shlex.split(command) for command in commands if command.startswith("gh pr comment")]
    assert "`runs/released` against `runs/candidate`" in Path(comment[comment.index("--body-file") + 1]).read_text()

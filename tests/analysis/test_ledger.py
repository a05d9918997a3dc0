"""The ledger: what moved a metric, measured on runs whose levers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from tests.analysis.test_wandb_evidence import detframe, logged
from tests.test_levers import CONFIG, MANIFEST

from detframe.analysis.evaluation import read_results
from detframe.cli import main
from detframe.levers import levers_of


def write_run(
    folder: Path, detected: tuple[Path, Path], keep: float, seed: int, minute: int, **changes: dict[str, Any]
) -> Path:
    """A run that finds a share of what `detected` has, as `fit` and `test` leave it."""
    rng = np.random.default_rng(seed)
    rows = [row for row in json.loads(detected[1].read_text()) if rng.random() < keep]
    folder.mkdir(parents=True)
    (folder / "found.json").write_text(json.dumps(rows))
    pq.write_table(read_results(folder / "found.json", detected[0]).table, folder / "test_predictions.parquet")
    config = {**CONFIG, "seed_everything": seed}
    config |= {part: {**CONFIG[part], **change} for part, change in changes.items() if part != "manifest"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = {"splits": {"train": {**MANIFEST["splits"]["train"], **changes.get("manifest", {})}}}
    (folder / "data_manifest.json").write_text(json.dumps(manifest))
    levers = {name: lever._asdict() for name, lever in levers_of(config, manifest).items()}
    (folder / "levers.json").write_text(json.dumps({"when": f"2026-01-01T00:{minute:02d}:00+00:00", **levers}))
    return folder


@pytest.fixture(scope="module")
def runs(detected: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    new = {"hash": "c" * 64, "boxes": 31}
    write_run(root / "a" / "version_0", detected, 0.5, 0, 0)
    write_run(root / "a" / "version_1", detected, 0.5, 1, 1)
    write_run(root / "a" / "version_2", detected, 0.9, 0, 2, manifest=new)
    write_run(root / "a" / "version_3", detected, 0.95, 0, 3, manifest=new, trainer={"max_epochs": 9})
    both: dict[str, dict[str, Any]] = {
        "trainer": {"max_epochs": 9},
        "data": {"image_size": [96, 96], "augmentation": None},
    }
    write_run(root / "b" / "version_0", detected, 1.0, 0, 4, manifest=new, **both)
    return root


def test_each_step_is_of_the_lever_that_changed(runs: Path, tmp_path: Path) -> None:
    assert main(["ledger", str(runs), "--out", str(tmp_path), "--replicates", "200", "--metric", "map_50"]) == 0
    found = json.loads((tmp_path / "ledger.json").read_text())
    assert [step["lever"] for step in found["steps"]] == ["data", "recipe", "mixed"]
    assert found["steps"][1]["changes"] == {"recipe": ["max_epochs 7 -> 9"]}
    values = [attempt["value"] for attempt in found["attempts"]]
    assert [len(attempt["runs"]) for attempt in found["attempts"]] == [2, 1, 1, 1]
    assert values[0] == pytest.approx(np.mean(found["attempts"][0]["seeds"]))
    steps = [step["value"] for step in found["steps"]]
    assert steps == pytest.approx(np.diff(values).tolist())
    assert found["by_lever"]["data"]["value"] == pytest.approx(steps[0])
    assert steps[0] > 0.05
    for step in found["steps"]:
        assert step["low"] < step["value"] < step["high"]
    spread = float(np.std(found["attempts"][0]["seeds"], ddof=1))
    assert found["seed_spread"] == pytest.approx(spread)
    assert found["steps"][0]["low"] < steps[0] - 1.9 * spread * np.sqrt(1.5)  # of seeds alone
    page = (tmp_path / "index.html").read_text()
    assert "recipe" in page
    assert "<svg" in page


def test_runs_that_are_named_are_taken_as_they_are_named(runs: Path, tmp_path: Path) -> None:
    named = [str(runs / "a" / f"version_{number}") for number in (3, 2)]
    assert main(["ledger", *named, "--out", str(tmp_path), "--replicates", "9"]) == 0
    (step,) = json.loads((tmp_path / "ledger.json").read_text())["steps"]
    assert step["changes"] == {"recipe": ["max_epochs 9 -> 7"]}


def test_runs_of_older_versions_have_levers_too(runs: Path, tmp_path: Path) -> None:
    run = runs / "a" / "version_3"
    (run / "levers.json").rename(tmp_path / "levers.json")
    try:
        assert (
            main(["ledger", str(runs / "a" / "version_2"), str(run), "--out", str(tmp_path), "--replicates", "9"]) == 0
        )
    finally:
        (tmp_path / "levers.json").rename(run / "levers.json")
    assert [step["lever"] for step in json.loads((tmp_path / "ledger.json").read_text())["steps"]] == ["recipe"]


def test_runs_that_cannot_be_compared_are_refused(
    runs: Path, detected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads(detected[0].read_text())
    truth["annotations"][0]["bbox"][2] += 5
    for image in truth["images"]:
        image["file_name"] = str((detected[0].parent / "test" / Path(image["file_name"]).name).resolve())
    (tmp_path / "other.json").write_text(json.dumps(truth))
    other = write_run(tmp_path / "other", (tmp_path / "other.json", detected[1]), 1.0, 0, 5)
    assert main(["ledger", str(runs / "a" / "version_0"), str(other), "--out", str(tmp_path / "out")]) == 2
    assert "were not evaluated on the same data" in capsys.readouterr().err
    assert main(["ledger", str(tmp_path / "nowhere")]) == 2
    assert "holds no run with a test_predictions.parquet" in capsys.readouterr().err
    (other / "data_manifest.json").unlink()
    assert main(["ledger", str(other)]) == 2
    assert "reads runs that `detframe fit` trained" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"null", b"\xff\x00", b'{"when": "", "data": 5}'])
@pytest.mark.parametrize("named", [True, False])
def test_levers_that_are_none_are_named(
    named: bool, content: bytes, detected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs" / "one", detected, 0.1, 0, 5)
    (run / "levers.json").write_bytes(content)
    assert main(["ledger", str(run if named else run.parent), "--out", str(tmp_path / "out")]) == 2
    assert "levers.json: holds no levers of a run of `detframe fit`. Delete it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ledger_is_logged_where_that_is_asked_for(runs: Path, tmp_path: Path) -> None:
    options = [str(runs), "--out", str(tmp_path / "out"), "--replicates", "20", "--wandb"]
    folder, figures, written = logged(detframe(tmp_path, "ledger", *options))
    found = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert figures["ledger/gain/data"] == found["by_lever"]["data"]["value"]
    steps = json.loads((folder / "files" / figures["ledger/steps/path"]).read_text())
    place = steps["columns"].index("lever")
    assert [row[place] for row in steps["data"]] == ["data", "recipe", "mixed"]
    (begun,) = (record.run for record in written if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.job_type) == ("detframe", "ledger")


def test_one_attempt_has_no_steps(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", str(runs / "a" / "version_0"), "--out", str(tmp_path), "--replicates", "9"]) == 0
    assert "in 0 steps, 1 runs" in capsys.readouterr().out
    assert json.loads((tmp_path / "ledger.json").read_text())["by_lever"] == {}

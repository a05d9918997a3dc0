"""`benchmark`: artefacts and checkpoints side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from detframe.cli import main
from detframe.export.contestants import Contestant, Running
from detframe.export.runtime import ArtefactError


@pytest.fixture(scope="module")
def artefact(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    assert main(["export", str(run / "checkpoints" / "best.ckpt"), "--out", str(folder)]) == 0
    return folder / "model.torchscript"


@pytest.mark.slow
def test_a_checkpoint_and_its_artefact_side_by_side(
    run: Path, artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    options = ["--rounds", "2", "--batch", "3", "--compiled", "false", "--out", str(tmp_path / "out")]
    assert main(["benchmark", str(checkpoint), str(artefact.parent), *options]) == 0  # a proof lies there too
    assert "channels_last" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = {row["name"]: row for row in report["contestants"]}
    assert list(rows) == ["best.ckpt eager", "best.ckpt channels_last", "model.torchscript"]
    assert (report["images"], report["batch"]) == (4, 3)
    eager, found = rows["best.ckpt eager"], rows["model.torchscript"]
    assert eager["ratio"] == eager["ratio_batched"] == 1
    assert found["map"] == pytest.approx(eager["map"], abs=1e-6)
    assert found["megabytes"] == pytest.approx(artefact.stat().st_size / 1e6)
    assert 0 < found["single"]["median"] <= found["single"]["p95"]
    assert found["throughput"] == pytest.approx(3000 / found["batched"]["median"])
    assert found["memory"] is None or found["memory"] > 50
    with Image.open(tmp_path / "out" / "benchmark.png") as picture:
        assert picture.width > 600


@pytest.mark.slow
def test_without_data_noise_is_timed(artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(artefact), "--rounds", "1", "--out", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["contestants"]
    assert row["map"] is None
    assert row["single"]["median"] > 0
    below = str(artefact / "below")
    assert main(["benchmark", str(artefact), "--rounds", "1", "--out", below, "--json"]) == 2
    assert "below: cannot be read or written (Not a directory)" in json.loads(capsys.readouterr().out)["error"]


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark"]) == 2
    assert "Name what `detframe export` wrote" in capsys.readouterr().err
    assert main(["benchmark", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx: there is no such file" in capsys.readouterr().err
    broken = tmp_path / "broken.torchscript"
    broken.write_bytes(b"none")
    assert main(["benchmark", str(broken)]) == 2
    error = capsys.readouterr().err
    assert "broken.torchscript: cannot be loaded" in error
    assert error.count("\n") == 1


def test_a_process_that_dies_is_named(artefact: Path) -> None:
    with Running(Contestant(artefact, "artefact"), 1) as running:
        running._process.kill()
        with pytest.raises(ArtefactError, match=r"model\.torchscript: its process ended"):
            running.milliseconds()

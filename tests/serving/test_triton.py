"""A model repository for Triton: its configuration says what the artefact takes and answers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.serving.conftest import NAMES

from detframe.cli import main
from detframe.export.runtime import Artefact


@pytest.fixture
def path(artefact: Artefact, tmp_path: Path) -> Path:
    """An artefact whose file may be changed."""
    return Path(shutil.copy(artefact.path, tmp_path / "shades.torchscript"))


def test_the_repository_holds_the_artefact_and_says_what_it_does(path: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models"
    options = ["--name", "shades", "--batch", "4", "--instances", "2", "--wait", "0.01", "--device", "gpu"]
    assert main(["triton", str(path), str(repo), *options]) == 0
    assert (repo / "shades" / "1" / "model.pt").read_bytes() == path.read_bytes()
    config = (repo / "shades" / "config.pbtxt").read_text()
    fields = dict(re.findall(r"^(\w+): (.*)$", config, re.M))
    assert fields == {"name": '"shades"', "backend": '"pytorch"', "max_batch_size": "4"}
    outputs = re.findall(r'name: "(\S+)" data_type: TYPE_(\w+) dims: \[ (.*) \]', config)
    assert outputs == [
        ("images", "UINT8", "3, -1, -1"),
        ("OUTPUT__0", "FP32", "3, 4"),
        ("OUTPUT__1", "FP32", "3"),
        ("OUTPUT__2", "INT64", "3"),
        ("OUTPUT__3", "BOOL", "3"),
        ("OUTPUT__4", "BOOL", "3"),
        ("OUTPUT__5", "FP32", "3"),
        ("OUTPUT__6", "FP32", "3"),
    ]
    assert "{ count: 2 kind: KIND_GPU }" in config
    assert "max_queue_delay_microseconds: 10000 }" in config
    (names,) = re.findall(r"string_value: (\".*\") }", config)
    assert json.loads(names).split("\n") == NAMES


def test_a_version_is_added_and_never_written_over(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = tmp_path / "models"
    assert main(["triton", str(path), str(repo)]) == 0
    assert main(["triton", str(path), str(repo), "--version", "2"]) == 0
    assert sorted(found.name for found in (repo / "detector").iterdir()) == ["1", "2", "config.pbtxt"]
    path.write_bytes(path.read_bytes() + b"changed")
    capsys.readouterr()
    assert main(["triton", str(path), str(repo)]) == 2
    assert "is there already; give another --version" in capsys.readouterr().err
    assert (repo / "detector" / "1" / "model.pt").read_bytes() != path.read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("model.pt2", [], "Triton takes .torchscript and .onnx"),
        ("none.onnx", [], "there is no such artefact"),
        ("shades.torchscript", ["--name", "a/b"], "--name 'a/b': use letters"),
        ("shades.torchscript", ["--batch", "0"], "--version, --batch and --instances are 1 or more"),
    ],
)
def test_what_triton_cannot_have_is_refused(
    path: Path, name: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton", str(path.with_name(name)), str(path.parent / "models"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (path.parent / "models").exists()

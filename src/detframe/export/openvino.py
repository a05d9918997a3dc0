"""OpenVINO, for Intel's processors: made of the ONNX file, which it reads better than it does a program of torch."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import openvino

from detframe.export.artefact import Artefact
from detframe.export.onnx import write_onnx
from detframe.export.runtime import METADATA, Metadata

_openvino: Any = openvino  # it states no types for what it offers


def write_openvino(artefact: Artefact, metadata: Metadata, path: Path) -> None:
    """Write an artefact as a folder with ``model.xml`` and ``model.bin``, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        write_onnx(artefact, metadata, onnx)
        model = _openvino.Core().read_model(onnx)  # its converter would report to its makers that it was called
        save_openvino(model, metadata, path)


def describe_openvino(metadata: Metadata, path: Path) -> None:
    """Give an artefact that is written other metadata."""
    save_openvino(_openvino.Core().read_model(path / "model.xml"), metadata, path)


def save_openvino(model: Any, metadata: Metadata, path: Path) -> None:  # noqa: ANN401 - openvino's
    """Write a model with its metadata; it may be of the files that stand there, which are not touched but replaced."""
    model.set_rt_info(metadata.to_json(), [METADATA])
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    _openvino.save_model(model, path / "model.xml", compress_to_fp16=False)

"""The verb ``triton``: an artefact as a model repository of NVIDIA's Triton, where one machine is outgrown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detframe.export.runtime import OUTPUTS, Answer, ArtefactError, load
from detframe.refusals import refuse
from detframe.serving.metrics import escaped
from detframe.unfinished import unfinished


class Backend(NamedTuple):
    """How Triton runs a format."""

    name: str
    file: str
    outputs: tuple[str, ...]  # as the backend calls them, in the order of runtime.OUTPUTS


BACKENDS = {
    ".torchscript": Backend("pytorch", "model.pt", tuple(f"OUTPUT__{place}" for place in range(len(OUTPUTS)))),
    ".onnx": Backend("onnxruntime", "model.onnx", OUTPUTS),
}

_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL"}


def triton(
    artefact: Path,
    repo: Path,
    name: str = "detector",
    version: int = 1,
    batch: int = 8,
    wait: float = 0.005,
    instances: int = 1,
    device: Literal["cpu", "gpu"] = "cpu",
) -> int:
    """Write ARTEFACT into a model repository of Triton: REPO/NAME/config.pbtxt and REPO/NAME/VERSION/model.*.

      python -m detframe triton RUN/export/model.onnx models
      tritonserver --model-repository models

    It takes `images`, uint8 [B, 3, H, W] RGB as the camera gives them, and answers with boxes, scores, labels, valid,
    confident, candidates and embedding, each with a first axis of B; the PyTorch backend calls them OUTPUT__0 to
    OUTPUT__6. Class names are in config.pbtxt, under the parameter `class_names`. Triton puts requests with images of
    one size into one batch.

    Exit code: 0; 2 when the artefact cannot be read or has no backend there, or the version is taken.

    Args:
        artefact: A .torchscript or .onnx file of `detframe export`.
        repo: The repository's folder; made where it is missing.
        name: Of the model.
        version: Of the model. One that is there is never written over.
        batch: The most images of a batch.
        wait: Seconds that the first image of a batch waits for others.
        instances: Copies of the model that answer at once, on each device.
        device: What they run on. `export` proves what a CPU answers; a GPU may differ by a grey in the resizing.
    """
    try:
        backend = BACKENDS.get(artefact.suffix)
        if backend is None:
            raise ArtefactError(f"{artefact}: Triton takes {' and '.join(BACKENDS)}; export it as one of them.")
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise ArtefactError(f"--name {name!r}: use letters, digits, dots, dashes and underscores.")
        if min(version, batch, instances) < 1 or not 0 <= wait <= 10:
            raise ArtefactError("--version, --batch and --instances are 1 or more, --wait 0 to 10 seconds.")
        loaded = load(artefact)
        place = repo / name / str(version)
        if place.exists():
            raise ArtefactError(f"{place}: is there already; give another --version or --name.")
        height, width = loaded.metadata.image_size
        answer = loaded.run(np.zeros((1, 3, height, width), np.uint8))
        config = _config(name, backend, answer, loaded.metadata.class_names, batch, wait, instances, device)
        place.mkdir(parents=True)
        shutil.copyfile(artefact, place / backend.file)
        with unfinished(repo / name / "config.pbtxt") as file:
            file.write_text(config, encoding="utf-8")
    except (ArtefactError, ValueError, OSError) as error:
        return refuse(error, out=repo)
    print(f"{place / backend.file}\nStart it with: tritonserver --model-repository {repo}")
    return 0


def _config(
    name: str,
    backend: Backend,
    answer: Answer,
    class_names: list[str],
    batch: int,
    wait: float,
    instances: int,
    device: str,
) -> str:
    """A model's configuration in protobuf's text format, as `model_config.proto` of Triton has it."""
    columns: list[NDArray[Any]] = list(answer)
    lines = []
    for output, column in zip(backend.outputs, columns, strict=True):
        sizes = ", ".join(map(str, column.shape[1:]))
        lines.append(f'  {{ name: "{output}" data_type: {_TYPES[str(column.dtype)]} dims: [ {sizes} ] }}')
    outputs = ",\n".join(lines)
    names = escaped("\n".join(class_names))
    return f"""name: "{name}"
backend: "{backend.name}"
max_batch_size: {batch}
input [
  {{ name: "images" data_type: TYPE_UINT8 dims: [ 3, -1, -1 ] }}
]
output [
{outputs}
]
instance_group [
  {{ count: {instances} kind: KIND_{device.upper()} }}
]
dynamic_batching {{ max_queue_delay_microseconds: {round(wait * 1e6)} }}
parameters {{ key: "class_names" value {{ string_value: "{names}" }} }}
"""

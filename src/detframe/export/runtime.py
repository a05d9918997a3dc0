"""Load an artefact and run it, whatever its format: the one way for serving, proof and measuring.

It needs what the format needs (torch and torchvision, onnxruntime, or openvino) and nothing else of detframe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

METADATA = "detframe.json"
"""Name under which a format's file holds its :class:`Metadata` as JSON."""

OUTPUTS = ("boxes", "scores", "labels", "valid", "confident", "candidates", "embedding")

_FAMILIAR = 3  # calls after which OpenVINO compiles anew for a shape: it takes a second, and 60 MB with its weights
_MOST_FAMILIAR = 2  # shapes: single images and full batches of one camera
_MOST_SEEN = 1000  # shapes that are counted, so that no sender of odd sizes fills the memory


class ArtefactError(ValueError):
    """A file that is no artefact or cannot run here; the message says what to do."""


class Answer(NamedTuple):
    """What an artefact answers: K slots for each image, filled from the front by descending score."""

    boxes: NDArray[np.float32]  # [B, K, 4] xyxy in pixels of the image as it came
    scores: NDArray[np.float32]  # [B, K] 0..1
    labels: NDArray[np.int64]  # [B, K] 0..C-1
    valid: NDArray[np.bool_]  # [B, K] False in the slots that are not used
    confident: NDArray[np.bool_]  # [B, K] valid and from the operating threshold of the class on
    candidates: NDArray[np.float32]  # [B, C] sum of each class's scores before what was found twice is dropped
    embedding: NDArray[np.float32]  # [B, E] unit vectors: what the images look like to the backbone


Images = NDArray[np.uint8]  # [B, 3, H, W] RGB, all of one size
Run = Callable[[Images], Answer]


@dataclass(frozen=True)
class Metadata:
    """What an artefact says of itself.

    Attributes:
        class_names: Names by label.
        image_size: (height, width) of the network's input; images of any size are brought to it inside.
        stretch: Whether they are stretched to it instead of letterboxed.
        thresholds: Operating threshold of each class, by name; empty where none was chosen, and then all are 0.
        calibrated: Whether scores are.
        checkpoint_hash: Of the checkpoint's content.
        dataset_hash: Of the data that it was proven on; "" where there was none.
        versions: Of the libraries that wrote it.
        profile: What its validation data and answers were like, a window of :mod:`detframe.monitoring.window` as JSON;
            None where there were none.
        profile_map: mAP on that data, 0..1, from which `monitor` estimates it on other images; None likewise.
        precision: That the network computes in: float32, float16, bfloat16 or int8.
        outputs: What it answers with, in order.
    """

    class_names: list[str]
    image_size: tuple[int, int]
    stretch: bool
    thresholds: dict[str, float] = field(default_factory=dict)
    calibrated: bool = False
    checkpoint_hash: str = ""
    dataset_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    precision: str = "float32"
    profile: dict[str, Any] | None = None
    profile_map: float | None = None
    outputs: tuple[str, ...] = OUTPUTS

    def said(self) -> dict[str, Any]:
        """All but the profile, which is many numbers, for people to read."""
        return {name: value for name, value in asdict(self).items() if name != "profile"}

    def of_windows(self) -> dict[str, Any]:
        """What has to be the same for windows to add up: all that the profile they are compared with hangs on."""
        names = ("checkpoint_hash", "dataset_hash", "precision", "thresholds")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> str:
        """As a JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Read what :meth:`to_json` has written; keys of later versions are passed over.

        Raises:
            ArtefactError: It is none; the message goes on after the artefact's name.
        """
        try:
            content: Mapping[str, Any] = json.loads(text)
            known = {key: content[key] for key in cls.__dataclass_fields__ if key in content}
            outputs = tuple(content.get("outputs", ()))  # of the first artefacts, which did not say it
            height, width = (int(side) for side in known["image_size"])
            about = cls(**{**known, "image_size": (height, width), "outputs": outputs})
            named = isinstance(about.class_names, list) and all(isinstance(name, str) for name in about.class_names)
            if not named or not isinstance(about.thresholds, dict):
                raise ValueError("its class names or thresholds are none")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError("its metadata are damaged; export it anew.") from error
        return about


class Artefact(NamedTuple):
    """A loaded artefact."""

    metadata: Metadata
    run: Run
    path: Path


def load(path: Path, threads: int = 0) -> Artefact:
    """Load an artefact by the end of its name: .torchscript, .pt2, .onnx, or a folder .openvino.

    Args:
        path: What `detframe export` wrote.
        threads: Of the CPU that one call may use; 0 leaves it to the runtime.

    Raises:
        ArtefactError: There is no such file, it is none of ours, or its runtime is not installed.
    """
    if not path.exists():
        raise ArtefactError(f"{path}: there is no such artefact. Write one with `detframe export CHECKPOINT`.")
    loader = _LOADERS.get(path.suffix)
    if loader is None:
        raise ArtefactError(f"{path}: is no artefact; their names end in {', '.join(_LOADERS)}.")
    try:
        metadata, run = loader(path, threads)
        about = Metadata.from_json(metadata) if metadata else None
    except ModuleNotFoundError as error:
        raise ArtefactError(
            f"{path}: needs {error.name}, which is not installed. Run `pip install {error.name}`."
        ) from error
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from error
    except Exception as error:  # each runtime has errors of its own for files that are none of its
        raise ArtefactError(f"{path}: cannot be loaded ({reason(error)}). Export it anew.") from error
    if about is None:
        raise ArtefactError(f"{path}: holds no {METADATA}; it was not written by `detframe export`.")
    if about.outputs != OUTPUTS:
        raise ArtefactError(f"{path}: is of another version of detframe, with other outputs. Export it anew.")
    return Artefact(about, run, path)


def reason(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def megabytes(path: Path) -> float:
    """Size on disk of a file or of a folder, 10^6 bytes."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) / 1e6


def artefacts_in(folder: Path) -> list[Path]:
    """Artefacts that lie in a folder, by name; none where it is a file or an artefact itself."""
    if folder.suffix in _LOADERS or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in _LOADERS)


def _torchscript(path: Path, threads: int) -> tuple[str, Run]:
    import warnings

    import torch
    import torchvision  # noqa: F401 - brings the operator of non-maximum suppression

    extra = {METADATA: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated and still one of the formats
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    return extra[METADATA], _of_torch(module, threads)


def _program(path: Path, threads: int) -> tuple[str, Run]:
    import torch
    import torchvision  # noqa: F401

    extra = {METADATA: ""}
    program = torch.export.load(str(path), extra_files=extra)
    return extra[METADATA], _of_torch(program.module(), threads)


def _of_torch(module: Callable[..., Any], threads: int) -> Run:
    import torch

    if threads:
        torch.set_num_threads(threads)

    def run(images: Images) -> Answer:
        with torch.inference_mode():
            found = module(torch.from_numpy(images))
        return Answer(*(column.numpy() for column in found))

    return run


def _onnx(path: Path, threads: int) -> tuple[str, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    metadata: str = session.get_modelmeta().custom_metadata_map.get(METADATA, "")

    def run(images: Images) -> Answer:
        found: Any = session.run(list(OUTPUTS), {"images": images})
        return Answer(*found)

    return metadata, run


def _openvino(path: Path, threads: int) -> tuple[str, Run]:
    openvino: Any = import_module("openvino")  # it states no types for what it offers
    core = openvino.Core()
    model = core.read_model(path / "model.xml")
    metadata: str = model.get_rt_info([METADATA]).astype(str) if model.has_rt_info([METADATA]) else ""
    # Left alone, it computes in bfloat16 wherever the CPU can; that is proven for the files alone that say so.
    halved = bool(metadata) and Metadata.from_json(metadata).precision == "bfloat16"
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if halved else "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", settings)
    seen: Counter[tuple[int, ...]] = Counter()
    familiar: dict[tuple[int, ...], Future[Any]] = {}  # compiled for one shape, these need three quarters of the time
    compiler = ThreadPoolExecutor(1)  # so that no request waits for it

    def compiled_for(shape: tuple[int, ...]) -> Any:  # noqa: ANN401
        fixed = model.clone()
        fixed.reshape(list(shape))
        return core.compile_model(fixed, "CPU", settings)

    def run(images: Images) -> Answer:
        shape = images.shape
        if len(familiar) < _MOST_FAMILIAR and shape not in familiar:
            if len(seen) == _MOST_SEEN:
                seen.clear()
            seen[shape] += 1
            if seen[shape] == _FAMILIAR:
                familiar[shape] = compiler.submit(compiled_for, shape)
        own = familiar.get(shape)
        if own is None or not own.done() or own.exception() is not None:
            return openvino_answer(compiled, images)  # it answers the same, to a step of 8 bits, and needs longer
        return openvino_answer(own.result(), images)

    return metadata, run


def openvino_answer(compiled: Any, images: Images) -> Answer:  # noqa: ANN401 - openvino states no types
    """What a compiled model of OpenVINO answers."""
    found = compiled(images)
    return Answer(*(np.array(found[name]) for name in OUTPUTS))


_LOADERS: dict[str, Callable[[Path, int], tuple[str, Run]]] = {
    ".torchscript": _torchscript,
    ".pt2": _program,
    ".onnx": _onnx,
    ".openvino": _openvino,
}

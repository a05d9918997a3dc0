"""The four levers that a run is made of, apart: data, augmentation, model and recipe, each with settings and a hash.

Two runs whose hash of a lever is the same did not differ in it, whatever their folders are called. Where data lie, what
is logged and which machine computes are no lever, nor is the seed: runs that differ in it alone are one attempt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

LEVERS = ("data", "augmentation", "model", "recipe")
LEVERS_FILE = "levers.json"
"""In a run's folder, written by `fit`."""

_MODEL = ("backbone", "neck", "head", "init_from")
_MODEL_DATA = ("image_size", "stretch")
_AUGMENTATION = ("augmentation", "multi_scale")
_RECIPE_DATA = ("crop_size", "repeat_threshold", "batch_size", "on_bad_image")
_NO_RECIPE = (
    *("accelerator", "strategy", "devices", "num_nodes", "logger", "profiler", "default_root_dir", "plugins"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "enable_autolog_hparams"),
    *("log_every_n_steps", "model_registry", "deterministic", "benchmark", "detect_anomaly", "barebones"),
)
_FILES = ("weights", "init_from")  # whose folders differ between machines


class Lever(NamedTuple):
    """One of the four."""

    hash: str  # SHA-256 of the settings
    settings: dict[str, Any]  # flat, by dotted name


def levers_of(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Lever]:
    """The levers of a run.

    Args:
        config: Its whole ``config.yaml``, defaults included.
        manifest: Its ``data_manifest.json``.
    """
    data, model, trainer = config.get("data") or {}, config.get("model") or {}, config.get("trainer") or {}
    data = data.get("init_args", data)
    train = manifest["splits"].get("train", {})
    parts: dict[str, dict[str, Any]] = {
        "data": {
            "train": train.get("hash"),
            "annotations": train.get("annotations_hash"),
            "pictures": train.get("images_hash"),
            "images": train.get("images"),
            "boxes": train.get("boxes"),
        },
        "augmentation": {name: data.get(name) for name in _AUGMENTATION},
        "model": {name: model.get(name) for name in _MODEL} | {name: data.get(name) for name in _MODEL_DATA},
        "recipe": {
            **{name: value for name, value in model.items() if name not in _MODEL},
            **{name: data.get(name) for name in _RECIPE_DATA},
            **recipe_of_trainer(trainer),
            "best_checkpoint": config.get("best_checkpoint"),
        },
    }
    found = {}
    for name, settings in parts.items():
        flat = {key: _without_folder(key, value) for key, value in _flat(settings).items()}
        text = json.dumps(flat, sort_keys=True, default=str)
        found[name] = Lever(hashlib.sha256(text.encode()).hexdigest(), flat)
    return found


def recipe_of_trainer(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings that a detector hangs on: without those of the machine and of what is logged."""
    return {name: value for name, value in trainer.items() if name not in _NO_RECIPE}


def changed(before: Lever, after: Lever) -> list[str]:
    """What two settings of a lever differ in: ``max_epochs 24 -> 42`` or ``RandomRotation90 added``."""
    said = []
    for key in sorted({*before.settings, *after.settings}):
        old, new = before.settings.get(key), after.settings.get(key)
        here, there = (before, after) if key in before.settings else (after, before)
        if old == new or _parents(key) & (here.settings.keys() - there.settings.keys()):
            continue  # the settings of a part that is new, or gone, are no changes of their own
        part = str(new if old is None else old).rpartition(".")[2]
        if key.rpartition(".")[2] == part:  # as `_flat` names the parts of a list
            said.append(f"{part} {'added' if old is None else 'taken out'}")
        else:
            said.append(f"{key} {_short(old)} -> {_short(new)}")
    return said


def _parents(key: str) -> set[str]:
    names = key.split(".")
    return {".".join(names[:count]) for count in range(1, len(names))}


def _flat(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401 - what YAML holds
    """Nested settings by dotted name; ``init_args`` and ``class_path`` do not lengthen it."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            own = name if key in ("init_args", "class_path") else f"{name}.{key}" if name else str(key)
            found |= _flat(inner, own)
        return found
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        found = {}
        for place, inner in enumerate(value):
            kind = str(inner.get("class_path", place)).rpartition(".")[2] if isinstance(inner, Mapping) else str(place)
            found |= _flat(inner, f"{name}.{kind}")
        return found
    return {name: value}


def _without_folder(key: str, value: Any) -> Any:  # noqa: ANN401 - what YAML holds
    return Path(value).name if key.rpartition(".")[2] in _FILES and isinstance(value, str) else value


def _short(value: Any) -> str:  # noqa: ANN401 - what YAML holds
    text = "none" if value is None else str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:8] if is_hash else text.rpartition(".")[2] if text.startswith(("detframe.", "kornia.")) else text

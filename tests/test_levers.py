"""Which change of a configuration is of which lever."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from detframe.levers import LEVERS, changed, levers_of

MANIFEST = {"splits": {"train": {"hash": "a" * 64, "annotations_hash": "b" * 64, "images": 9, "boxes": 30}}}
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 7,
        "logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs"}}],
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}],
        "devices": 1,
    },
    "model": {
        "backbone": {
            "class_path": "detframe.models.backbones.TimmBackbone",
            "init_args": {"name": "resnet18", "weights": "/home/a/w.safetensors"},
        },
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "init_from": None,
    },
    "data": {
        "root": "/home/a/data",
        "image_size": [192, 240],
        "batch_size": 8,
        "num_workers": 2,
        "augmentation": {
            "class_path": "detframe.augment.pipeline.AugmentationPipeline",
            "init_args": {
                "operators": [{"class_path": "kornia.augmentation.RandomHorizontalFlip", "init_args": {"p": 0.5}}]
            },
        },
    },
}


@pytest.mark.parametrize(
    ("path", "value", "lever", "said"),
    [
        (("trainer", "max_epochs"), 9, "recipe", "max_epochs 7 -> 9"),
        (("model", "optimizer", "init_args", "lr"), 0.002, "recipe", "optimizer.lr 0.001 -> 0.002"),
        (("data", "batch_size"), 4, "recipe", "batch_size 8 -> 4"),
        (("trainer", "callbacks"), [], "recipe", "EMAWeightAveraging taken out"),
        (("data", "image_size"), [96, 96], "model", "image_size [192, 240] -> [96, 96]"),
        (("model", "backbone", "init_args", "name"), "resnet34", "model", "backbone.name resnet18 -> resnet34"),
        (("data", "augmentation"), None, "augmentation", "RandomHorizontalFlip taken out"),
        (("data", "root"), "/elsewhere", None, ""),
        (("data", "num_workers"), 8, None, ""),
        (("trainer", "devices"), 4, None, ""),
        (("trainer", "logger"), None, None, ""),
        (("model", "backbone", "init_args", "weights"), "/elsewhere/w.safetensors", None, ""),
        (("seed_everything",), 1, None, ""),
    ],
)
def test_a_change_is_of_one_lever(path: tuple[str, ...], value: object, lever: str | None, said: str) -> None:
    config = copy.deepcopy(CONFIG)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    before, after = levers_of(CONFIG, MANIFEST), levers_of(config, MANIFEST)
    moved = [name for name in LEVERS if before[name].hash != after[name].hash]
    assert moved == ([] if lever is None else [lever])
    if lever is not None:
        assert said in changed(before[lever], after[lever])


def test_data_are_told_by_their_content() -> None:
    other = {"splits": {"train": {**MANIFEST["splits"]["train"], "hash": "c" * 64, "boxes": 29}}}
    before, after = levers_of(CONFIG, MANIFEST)["data"], levers_of(CONFIG, other)["data"]
    assert before.hash != after.hash
    assert changed(before, after) == ["boxes 30 -> 29", "train aaaaaaaa -> cccccccc"]

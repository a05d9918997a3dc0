"""A run whose detector finds something, as `fit` leaves it, without the training."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import nn

from detframe.data.scenes import CLASS_NAMES
from detframe.data.synthetic import write_dataset
from detframe.models.backbones import TimmBackbone
from detframe.models.heads.dense import DenseHead
from detframe.models.necks import FPN
from detframe.training.task import DetectionTask


def save(task: DetectionTask, path: Path) -> Path:
    """Write a checkpoint as training does."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a checkpoint with random weights that is not modest, and its configuration."""
    folder = tmp_path_factory.mktemp("exported")
    write_dataset(folder / "data", train=1, val=4, test=3)
    torch.manual_seed(0)
    task = DetectionTask(
        class_names=list(CLASS_NAMES),
        backbone=partial(TimmBackbone, name="test_resnet"),
        neck=partial(FPN, channels=16),
        head=partial(DenseHead, width=16, depth=1),
        image_size=(96, 128),
    )
    assert isinstance(task.detector.head, DenseHead)
    for branch in task.detector.head.class_branches:
        assert isinstance(branch, nn.Sequential)
        last = branch[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias, -1.0)
        nn.init.normal_(last.weight, std=2.0)
    run = folder / "runs" / "version_0"
    data = {"root": str(folder / "data"), "train": "train.json", "val": "val.json", "test": "test.json"}
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    save(task, run / "checkpoints" / "best.ckpt")
    return run

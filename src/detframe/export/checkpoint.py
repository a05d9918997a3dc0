"""A checkpoint as what is exported, and as what exported files are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from detframe.export.artefact import Artefact
from detframe.export.runtime import Answer, Images, Run, reason

if TYPE_CHECKING:
    from detframe.training.task import DetectionTask


def read_checkpoint(checkpoint: Path) -> DetectionTask:
    """Read a task on the CPU, with averaged weights where there are any.

    Raises:
        CheckpointError: There is no such file, or it is no checkpoint of detframe.
    """
    from detframe.training.task import CheckpointError, DetectionTask

    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such checkpoint. Runs keep theirs in `checkpoints/`.")
    try:
        return DetectionTask.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # files that are no checkpoint make torch.load raise nearly anything
        raise CheckpointError(f"{checkpoint}: is no checkpoint of detframe ({reason(error)}).") from error


def artefact_of(task: DetectionTask, thresholds: Sequence[float]) -> Artefact:
    """What is exported of a task, with an operating threshold for each class, by label."""
    height, width = task.hparams["image_size"]
    return Artefact(task.detector, (height, width), task.hparams["stretch"], thresholds)


def answering(artefact: Artefact) -> Run:
    """The artefact before it is exported, called as :class:`runtime.Artefact` is: images ``[B, 3, H, W]``."""

    def run(images: Images) -> Answer:
        with torch.inference_mode():
            return Answer(*(column.numpy() for column in artefact(torch.from_numpy(images))))

    return run

"""Loggers that suit a first run: no account, and no waiting for a server that does not answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor

from detframe.drawing import Truth
from detframe.wandb_boxes import image_boxes


class Sample(NamedTuple):
    """One image with what was found and what is there."""

    image_id: int
    image: Tensor  # [3, H, W] uint8 RGB
    boxes: Tensor  # [n, 4] xyxy in pixels of the image
    labels: Tensor  # [n] int64
    scores: Tensor  # [n] 0..1
    truth: Truth


class WandbLogger(LightningWandbLogger):
    """Weights & Biases, offline unless asked; a server that cannot be reached costs seconds and no data.

    An offline run lies in ``save_dir/wandb`` and is sent later with ``wandb sync``. Everything that W&B writes stays
    below ``save_dir``, staged artifacts too, which it would put into the home folder.

    Args:
        project: W&B project.
        name: Name of the run; null lets W&B choose one.
        save_dir: Folder for W&B's files.
        offline: Write locally only. With false, the run goes to the server that ``wandb login`` or ``WANDB_BASE_URL``
            names, and falls back to offline where that does not answer in time.
        init_timeout: Seconds to wait for the server.
        log_model: Upload checkpoints as artifacts; needs ``offline: false``.
        kwargs: Lightning's and ``wandb.init``'s own: ``tags``, ``group``, ``entity`` ...
    """

    def __init__(
        self,
        project: str = "detframe",
        name: str | None = None,
        save_dir: str = "runs",
        offline: bool = True,
        init_timeout: float = 15.0,
        log_model: bool = False,
        **kwargs: Any,  # noqa: ANN401 - W&B's own
    ) -> None:
        import wandb  # takes a third of a second, which help needs not wait for

        Path(save_dir).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(save_dir).absolute()))
        settings = wandb.Settings(init_timeout=init_timeout, quiet=True)
        super().__init__(
            name=name,
            save_dir=save_dir,
            offline=offline,
            project=project,
            log_model=log_model,
            settings=settings,
            **kwargs,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - Lightning's
        """The run, begun when it is first asked for."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:  # no answer, no valid key, or its own files in disorder
            reason = str(error).strip().splitlines()[0]
            rank_zero_warn(f"W&B did not begin ({reason}); the run is written offline, send it with `wandb sync`.")
            self._wandb_init["mode"] = "offline"  # the environment was read when W&B began
            return super().experiment

    @rank_zero_only
    def log_detections(self, key: str, samples: Sequence[Sample], class_names: Sequence[str], step: int) -> None:
        """Images with boxes that W&B's page can switch on and off, by class and by score.

        Args:
            key: Name of the panel.
            samples: Images to show.
            class_names: Names by label.
            step: The trainer's step.
        """
        boxes = [image_boxes(s.boxes, s.labels, s.scores, s.truth, class_names) for s in samples]
        images = [sample.image.permute(1, 2, 0).numpy() for sample in samples]
        captions = [f"image {sample.image_id}" for sample in samples]
        self.log_image(key, images, step=step, boxes=boxes, caption=captions)

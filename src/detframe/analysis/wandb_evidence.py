"""The page of a run in Weights & Biases: what its table of predictions says, its data and its best checkpoint."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from detframe.analysis.evidence import examine, with_most_objects
from detframe.analysis.prediction_table import rows_of_table
from detframe.analysis.predictions import positions
from detframe.analysis.wandb_charts import MOST_CLASSES, evidence_panels, lines
from detframe.data.annotations import AnnotationIndex
from detframe.data.coco import write_coco

if TYPE_CHECKING:
    import wandb

MOST_BOXES = 50_000
"""Boxes up to which a split's annotations are stored: some 6 MB without outlines."""


class WandbEvidence(Callback):
    """Shows in W&B what ``test`` and ``validate`` found, and keeps data and checkpoint there as artifacts.

    It does nothing without a ``WandbLogger``. It reads the table and the metrics that ``EvaluationWriter`` and
    ``RunRecorder`` have written into the run's folder, so it comes after them. Under ``test/``, or ``val/``:

    - ``precision_recall_50``, ``precision_recall_75``, ``precision_by_score``, ``recall_by_score``, ``f1_by_score``:
      curves by class;
    - ``reliability``, ``reliability_counts``, ``d_ece``, ``laece_0``: whether scores can be believed;
    - ``operating_points``, ``confusion``: the best F1 of each class, and what is taken for what there;
    - ``error_types``: how many, and what they cost in AP;
    - ``worst_images``: those dearest to correct, with boxes by class and a slider for scores.

    Each split that the run uses is an artifact ``<folder>-<split>`` of type ``dataset``, whose version changes with the
    content of images or annotations and with nothing else. After ``fit``, the tested checkpoint is version ``best`` of
    ``model-<run>``, with its metrics and its data's hashes as metadata.

    Args:
        images: How many of the worst images to show; 0 shows none. One of 640 x 480 px takes 24 kB and 10 ms.
        min_score: Detections below it are not drawn, 0..1.
        checkpoint: Keep the best checkpoint as an artifact. It is hashed but not copied: W&B reads it where it lies,
            offline when the run is sent with ``wandb sync``, and it takes as much of W&B's storage as of the disk.
    """

    def __init__(self, images: int = 16, min_score: float = 0.1, checkpoint: bool = True) -> None:
        self.images = images
        self.min_score = min_score
        self.checkpoint = checkpoint
        self._data: dict[str, dict[str, str]] = {}  # by split, name of the artifact and hash
        self._average_precision: list[tuple[int, dict[str, float]]] = []  # by epoch and class

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the data, and let figures of validation be drawn by epoch."""
        logger = _logger(trainer)
        if logger is None:
            return
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        of_classes = (f"{key}/{name}" for key in ("ap", "ap_50", "ap_75") for name in names)
        for figure in ("map", "map_50", "map_75", *of_classes):
            logger.experiment.define_metric(f"val/{figure}", step_metric="epoch", step_sync=True)
        splits: dict[str, str | None] = trainer.datamodule.splits  # type: ignore[attr-defined]
        for split in ("train", "val", "test"):
            if splits[split] is not None or split == "val":  # which is held out of training where it is not given
                self._log_data(trainer, logger, split)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the classes' AP of the epoch, or show what ``validate`` found."""
        if trainer.state.fn == "validate":
            self._show(trainer, pl_module, "val")
        elif not trainer.sanity_checking:
            names: list[str] = pl_module.class_names  # type: ignore[assignment]
            values = {name: float(trainer.callback_metrics[f"val/ap/{name}"]) for name in names}
            known = {name: value if value >= 0 else math.nan for name, value in values.items()}  # -1: no object
            self._average_precision.append((trainer.current_epoch, known))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw AP by class over epochs in one plot; by itself W&B draws each class apart."""
        logger = _logger(trainer)
        if logger is None or not self._average_precision:
            return
        index: AnnotationIndex = trainer.datamodule.index("val")  # type: ignore[attr-defined]
        counts = np.bincount(index.labels[~index.ignore], minlength=len(index.class_names))
        shown = [index.class_names[label] for label in with_most_objects(counts, MOST_CLASSES)]
        epochs = [epoch for epoch, _ in self._average_precision]
        series = {name: (epochs, [known[name] for _, known in self._average_precision]) for name in shown}
        chart: Any = lines(series, "AP of validation by class", "epoch")
        logger.log_metrics({"val/ap_by_class": chart}, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what ``test`` found, and keep the checkpoint."""
        self._show(trainer, pl_module, "test")

    def _show(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # asks all processes
        logger = _logger(trainer)
        if logger is None or log_dir is None:
            return
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        index: AnnotationIndex = trainer.datamodule.index(stage)  # type: ignore[attr-defined]
        rows = rows_of_table(pq.read_table(Path(log_dir) / f"{stage}_predictions.parquet"))
        evidence = examine(rows, len(names))
        places = positions(index, rows.image_ids)
        shown = evidence_panels(
            evidence, rows, names, lambda place: index.path(int(places[place])), self.images, self.min_score
        )
        logger.log_metrics({f"{stage}/{key}": value for key, value in shown.items()}, trainer.global_step)
        if stage not in self._data:
            self._log_data(trainer, logger, stage)
        if self.checkpoint and _is_own(trainer):
            metrics = json.loads((Path(log_dir) / f"{stage}_metrics.json").read_text())
            self._log_checkpoint(logger, Path(str(trainer.ckpt_path)), {stage: metrics})

    def _log_data(self, trainer: Trainer, logger: WandbLogger, split: str) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        name = re.sub(r"[^\w.-]", "-", f"{Path(datamodule.root).resolve().name}-{split}", flags=re.ASCII)
        hashes: dict[str, str] = datamodule.hashes(split)
        logger.experiment.log_artifact(data_artifact(name, datamodule.index(split), hashes))
        self._data[split] = {"artifact": name, "hash": hashes["hash"]}

    def _log_checkpoint(self, logger: WandbLogger, path: Path, metrics: dict[str, Any]) -> None:
        import wandb

        run = logger.experiment
        artifact = wandb.Artifact(f"model-{run.id}", "model", metadata={**metrics, "data": self._data})
        artifact.add_file(str(path.absolute()), policy="immutable")
        run.log_artifact(artifact, aliases=["best"])


def _logger(trainer: Trainer) -> WandbLogger | None:
    """W&B's logger where there is one, in the process that logs."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return loggers[0] if loggers and trainer.is_global_zero else None


def _is_own(trainer: Trainer) -> bool:
    """Whether the checkpoint that was evaluated is the best of this very run."""
    best = [callback.best_model_path for callback in trainer.checkpoint_callbacks]  # type: ignore[attr-defined]
    return bool(trainer.ckpt_path) and str(trainer.ckpt_path) in best


def data_artifact(name: str, index: AnnotationIndex, hashes: dict[str, str]) -> wandb.Artifact:
    """The data of a split as an artifact: hashes, counts and, up to :data:`MOST_BOXES`, annotations in COCO's format.

    Images are not in it; their hash is. Where the data lies is metadata, which makes no new version.
    """
    import wandb

    content = {
        **hashes,
        "images": len(index),
        "boxes": len(index.boxes),
        "ignored_boxes": int(index.ignore.sum()),
        "instances": {name: int((index.labels == i).sum()) for i, name in enumerate(index.class_names)},
    }
    artifact = wandb.Artifact(name, "dataset", metadata={**content, "source": str(index.source)})
    with tempfile.TemporaryDirectory() as folder:  # W&B makes copies of its own
        manifest = Path(folder) / "manifest.json"
        manifest.write_text(json.dumps(content, indent=2))
        artifact.add_file(str(manifest))
        if len(index.boxes) <= MOST_BOXES:
            annotations = Path(folder) / "annotations.json"
            write_coco(index, annotations)
            artifact.add_file(str(annotations))
    return artifact

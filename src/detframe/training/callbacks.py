"""What a run leaves behind: checkpoints, metrics files, the data manifest, pictures, the table in the terminal."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from detframe.drawing import Truth, contact_sheet, draw_boxes
from detframe.letterbox import to_input
from detframe.levers import LEVERS_FILE, levers_of
from detframe.structures import Batch, Detections
from detframe.training.loggers import Sample, WandbLogger
from detframe.training.task import DetectionTask
from detframe.unfinished import unfinished


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt``, chosen by validation.

    Args:
        monitor: Logged figure that decides, such as ``val/map``, ``val/map_50`` or ``val/ap/<class>``.
        mode: Whether more of it is better, or less.
    """

    def __init__(self, monitor: str = "val/map", mode: Literal["max", "min"] = "max") -> None:
        super().__init__(
            filename="best", monitor=monitor, mode=mode, enable_version_counter=False, save_on_train_epoch_end=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another run ended: what it kept is still to be beaten, and lies in this run's folder from now on.

        Lightning forgets how good it was as soon as the folder is another, and takes whatever comes next for the best.
        """
        best = Path(state_dict["best_model_path"])
        if not best.is_file():
            state_dict = {**state_dict, "dirpath": None, "best_model_path": ""}
        elif self.dirpath is not None and best.parent != Path(self.dirpath):
            kept = Path(self.dirpath) / best.name
            _copy(best, kept)
            score = state_dict["best_model_score"]
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(kept),
                "kth_best_model_path": str(kept),
                "best_k_models": {str(kept): score},
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    with unfinished(target) as path:
        shutil.copyfile(source, path)


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt``, from which ``fit --ckpt_path`` resumes; validated or not.

    Args:
        every_n_epochs: How many epochs of work a killed run may lose.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__(
            filename="last", every_n_epochs=every_n_epochs, enable_version_counter=False, save_on_train_epoch_end=True
        )


class RunRecorder(Callback):
    """Writes what a run was made of and what came out, and prints the final table.

    In the run's folder: ``data_manifest.json``, ``levers.json`` and ``<stage>_metrics.json``.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest of the data and the levers before the first step."""
        log_dir = trainer.log_dir  # asks all processes
        if trainer.is_global_zero and log_dir:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            data = manifest(trainer)
            (folder / "data_manifest.json").write_text(json.dumps(data, indent=2))
            if (folder / "config.yaml").is_file():  # of a run that was not made in Python
                config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
                levers = {name: lever._asdict() for name, lever in levers_of(config, data).items()}
                when = datetime.now(timezone.utc).isoformat(timespec="seconds")
                (folder / LEVERS_FILE).write_text(json.dumps({"when": when, **levers}, indent=2, default=str))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the images that were skipped in the epoch, and log what augmentation did to objects."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        datamodule.report_skipped()
        if datamodule.augmentation is not None:
            counts = {f"train/objects_{name}": float(count) for name, count in datamodule.augmentation.counts().items()}
            pl_module.log_dict(counts, reduce_fx="sum", sync_dist=trainer.world_size > 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of ``detframe validate``."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of the test split."""
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.datamodule.report_skipped()  # type: ignore[attr-defined]
        assert isinstance(pl_module, DetectionTask)
        log_dir = trainer.log_dir  # asks all processes
        if not trainer.is_global_zero or stage not in pl_module.results:
            return
        results = dict(pl_module.results[stage])
        results["dataset_hash"] = trainer.datamodule.hashes(stage)["hash"]  # type: ignore[attr-defined]
        checkpoint = trainer.ckpt_path
        results["checkpoint_hash"] = file_hash(Path(checkpoint)) if checkpoint else None
        Console().print(metrics_table(results, stage))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = [[name, *row.values()] for name, row in results["per_class"].items()]
                columns = ["class", *next(iter(results["per_class"].values()))]
                logger.log_table(f"{stage}/per_class", columns=columns, data=rows)
        if log_dir:
            path = Path(log_dir) / f"{stage}_metrics.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=2))
            Console().print(f"Written to {path}", soft_wrap=True)


class SampleImages(Callback):
    """Shows how the first validation images are detected: ``samples/epoch_0004.jpg`` in the run's folder, and W&B.

    Args:
        count: Images to show; 0 shows none.
        min_score: Detections below it are not shown, 0..1.
    """

    def __init__(self, count: int = 8, min_score: float = 0.3) -> None:
        self.count = count
        self.min_score = min_score
        self._samples: list[Sample] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own type does not know what a step returns
        batch: Batch | None,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images of the epoch."""
        missing = self.count - len(self._samples)
        if missing <= 0 or not trainer.is_global_zero or trainer.sanity_checking or outputs is None or batch is None:
            return
        self._samples += samples(outputs, batch, self.min_score)[:missing]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        shown, self._samples = self._samples, []
        log_dir = trainer.log_dir  # asks all processes
        if not shown:
            return
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        if log_dir:
            path = Path(log_dir) / "samples" / f"epoch_{trainer.current_epoch:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = [
                draw_boxes(s.image, s.boxes, s.labels, s.scores, names, truth=s.truth, min_side=480) for s in shown
            ]
            captions = [f"image {sample.image_id}" for sample in shown]
            contact_sheet(pictures, columns=4, captions=captions).save(path, quality=88)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_detections("val/samples", shown, names, trainer.global_step)


def samples(detections: Detections, batch: Batch, min_score: float) -> list[Sample]:
    """What a batch shows, image by image, in the pixels of the network's input."""
    boxes = to_input(detections.boxes, batch.transforms)
    shown = []
    for i in range(len(batch.images)):
        found = detections.valid[i] & (detections.scores[i] >= min_score)
        real = batch.targets.valid[i]
        shown.append(
            Sample(
                image_id=int(batch.image_ids[i]),
                image=(batch.images[i] * 255).round().to(torch.uint8).cpu(),
                boxes=boxes[i][found].cpu(),
                labels=detections.labels[i][found].cpu(),
                scores=detections.scores[i][found].cpu(),
                truth=Truth(*(field[i][real].cpu() for field in batch.targets[:3])),
            )
        )
    return shown


def manifest(trainer: Trainer) -> dict[str, Any]:
    """Hashes and counts of the splits that a run uses, and the classes."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    splits: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        if datamodule.splits[name] is None and name != "val":  # where that is not given, it is held out of training
            continue
        index = datamodule.index(name)
        splits[name] = {
            "source": str(index.source),
            **datamodule.hashes(name),
            "images": len(index),
            "boxes": len(index.boxes),
            "ignored_boxes": int(index.ignore.sum()),
            "instances": {c: int((index.labels == i).sum()) for i, c in enumerate(index.class_names)},
        }
    return {"class_names": datamodule.class_names, "splits": splits}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def metrics_table(results: dict[str, Any], stage: str) -> Table:
    """Per-class average precision as a table for the terminal; ``-`` where a class has no instance."""
    table = Table(title=f"{stage}: mAP {results['map']:.4f}, mAP@0.5 {results['map_50']:.4f}")
    table.add_column("class")
    for column in ("images", "instances", "AP", "AP@0.5", "AP@0.75"):
        table.add_column(column, justify="right")
    for name, row in results["per_class"].items():
        values = [f"{row[key]:.4f}" if row[key] >= 0 else "-" for key in ("ap", "ap_50", "ap_75")]
        table.add_row(name, str(row["images"]), str(row["instances"]), *values)
    return table

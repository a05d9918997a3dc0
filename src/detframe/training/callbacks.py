"""What a run leaves behind: metrics files, the data manifest and the table in the terminal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from detframe.training.task import DetectionTask


class RunRecorder(Callback):
    """Writes ``<stage>_metrics.json`` and ``data_manifest.json`` into the run's folder and prints the final table."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest of the data before the first step."""
        if trainer.is_global_zero and trainer.log_dir:
            folder = Path(trainer.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "data_manifest.json").write_text(json.dumps(manifest(trainer), indent=2))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the images that were skipped in the epoch."""
        trainer.datamodule.report_skipped()  # type: ignore[attr-defined]

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
        if not trainer.is_global_zero or stage not in pl_module.results:
            return
        results = dict(pl_module.results[stage])
        index = trainer.datamodule.index(stage)  # type: ignore[attr-defined]
        results["dataset_hash"] = index.content_hash()
        checkpoint = trainer.ckpt_path
        results["checkpoint_hash"] = file_hash(Path(checkpoint)) if checkpoint else None
        Console().print(metrics_table(results, stage))
        if trainer.log_dir:
            path = Path(trainer.log_dir) / f"{stage}_metrics.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=2))
            Console().print(f"Written to {path}", soft_wrap=True)


def manifest(trainer: Trainer) -> dict[str, Any]:
    """Hashes and counts of the splits that a run uses."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    splits: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        if datamodule.splits[name] is None and name != "val":
            continue
        index = datamodule.index(name)
        splits[name] = {
            "source": str(index.source),
            "hash": index.content_hash(),
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

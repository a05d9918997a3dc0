"""The best checkpoint is the best of a training, however often that was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from detframe.training.callbacks import BestCheckpoint, LastCheckpoint


class Judged(LightningModule):
    """Its validation figure is the one given for the epoch, and its weight counts the epochs."""

    def __init__(self, figures: Sequence[float]) -> None:
        super().__init__()
        self.figures = figures
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/map", self.figures[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def best_of(run: Path, figures: Sequence[float], resume: Path | None = None) -> tuple[Path, float]:
    """File and epoch of the best checkpoint after so many epochs."""
    best = BestCheckpoint()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=len(figures),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run,
        callbacks=[best, LastCheckpoint()],
    )
    loader: DataLoader[Tensor] = DataLoader(torch.zeros(1, 1))  # type: ignore[arg-type]
    trainer.fit(Judged(figures), loader, loader, ckpt_path=resume)
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]["weight"]
    return Path(best.best_model_path), float(weights)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about a loader without workers and the like
def test_a_resumed_run_keeps_the_best_of_both(tmp_path: Path) -> None:
    _, epoch = best_of(tmp_path / "first", [0.3, 0.9, 0.5])
    assert epoch == 2
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    path, epoch = best_of(tmp_path / "worse", [0.3, 0.9, 0.5, 0.6], last)
    assert (path.parent, epoch) == (tmp_path / "worse" / "checkpoints", 2)
    path, epoch = best_of(tmp_path / "better", [0.3, 0.9, 0.5, 0.95], last)
    assert (path.parent, epoch) == (tmp_path / "better" / "checkpoints", 4)
    assert (tmp_path / "first" / "checkpoints" / "best.ckpt").is_file()
    (tmp_path / "first" / "checkpoints" / "best.ckpt").unlink()  # then what comes is the best that there is
    path, epoch = best_of(tmp_path / "alone", [0.3, 0.9, 0.5, 0.6], last)
    assert (path.parent, epoch) == (tmp_path / "alone" / "checkpoints", 4)

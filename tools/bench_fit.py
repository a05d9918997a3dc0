"""Speed of `fit` against a bare loop, in turn, and where the time of a step of `fit` goes.

    python tools/bench_fit.py --config configs/bccd.yaml --data.root BCCD_ROOT --data.image_size "[320, 320]"
    python tools/bench_fit.py --blocks 20 --block 40 --config ... --trainer.precision bf16-mixed     # on a GPU

Takes the options of `fit`. After each block of its steps the same network, loss and optimizer take as many steps on
the last batch, which is on the device already: no loader, no augmentation, no averaging, no logging, no trainer. The
ratio is the median of the blocks'. Nothing is validated or kept.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import SimpleProfiler

from bench_train import machine, sum_of
from detframe.lightning_cli import run
from detframe.structures import Batch
from detframe.training.task import DetectionTask, parameter_groups

PARTS = {
    "loader": "train_dataloader_next",
    "to the device and augmentation": ".batch_to_device",
    "forward and loss": ".training_step",
    "backward": ".backward",
    "averaging of weights": "EMAWeightAveraging.on_train_batch_end",
}
"""What a step consists of, and how names in Lightning's profile end; the optimizer and the trainer are the rest."""


class BareSteps(Callback):
    """Takes the bare steps after each block of `fit`'s.

    Args:
        block: Steps of each.
        warmup: Blocks that do not count.
    """

    def __init__(self, block: int, warmup: int = 1) -> None:
        self.block = block
        self.warmup = warmup
        self.fit: list[float] = []  # seconds of each block
        self.bare: list[float] = []
        self.steps = 0
        self.images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the network and make its optimizer."""
        assert isinstance(pl_module, DetectionTask)
        self.detector = copy.deepcopy(pl_module.detector)
        groups = parameter_groups(self.detector, pl_module.backbone_lr_factor, pl_module.layer_decay)
        self.optimizer = pl_module.make_optimizer(groups)
        self.started = now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """End a block of `fit`, take one of bare steps and begin the next."""
        self.steps += 1
        if self.steps % self.block:
            return
        self.fit.append(now() - self.started)
        self.images = len(batch.images)
        if len(self.fit) <= self.warmup:
            _durations(trainer).clear()
        started = now()
        for _ in range(self.block):
            self.optimizer.zero_grad()
            with trainer.precision_plugin.forward_context():
                loss = sum_of(self.detector.loss(batch.images, batch.targets).values())
            loss.backward()
            self.optimizer.step()
        self.bare.append(now() - started)
        self.started = now()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the tables."""
        fit, bare = self.fit[self.warmup :], self.bare[self.warmup :]
        per_block = self.block * self.images
        print(f"\n{machine()}, {torch.get_num_threads()} threads, {len(fit)} blocks of {self.block} steps each\n")
        print("| | images/s, median | best block |\n| --- | ---: | ---: |")
        for name, seconds in (("bare loop", bare), ("fit", fit)):
            print(f"| {name} | {per_block / statistics.median(seconds):.2f} | {per_block / min(seconds):.2f} |")
        ratios = [theirs / ours for theirs, ours in zip(bare, fit, strict=True)]
        print(f"\nfit / bare loop: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})\n")
        recorded = _durations(trainer)
        print("| part of a step of fit | ms an image | % |\n| --- | ---: | ---: |")
        whole = sum(fit) / (len(fit) * per_block)
        left = whole
        for part, end in PARTS.items():
            durations = [sum(times) for name, times in recorded.items() if name.endswith(end)]
            share = max(durations, default=0.0) / (len(fit) * per_block)  # hooks are within each other
            left -= share
            print(f"| {part} | {1000 * share:.2f} | {100 * share / whole:.1f} |")
        print(f"| optimizer and the rest | {1000 * left:.2f} | {100 * left / whole:.1f} |")


def _durations(trainer: Trainer) -> dict[str, list[float]]:
    """Seconds of all that Lightning has timed, by name."""
    profiler = vars(trainer)["profiler"]  # which its connector gives it
    assert isinstance(profiler, SimpleProfiler)
    return profiler.recorded_durations


def now() -> float:
    """Seconds, when the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Run `fit` with the callback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10, help="that count, of each; default 10")
    parser.add_argument("--block", type=int, default=3, help="steps in a block; default 3")
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        limits = {
            "max_steps": (given.blocks + 1) * given.block,
            "max_epochs": -1,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "profiler": "lightning.pytorch.profilers.SimpleProfiler",
            "profiler.dirpath": folder,
            "profiler.filename": "profile",
            "logger": "lightning.pytorch.loggers.CSVLogger",
            "logger.save_dir": folder,
        }
        arguments = [f"--trainer.{name}={value}" for name, value in limits.items()]
        arguments += ["--trainer.callbacks+=bench_fit.BareSteps", f"--trainer.callbacks.block={given.block}"]
        sys.argv[1:] = ["fit", *options, *arguments, "--test_after_fit=false"]  # Lightning warns of others than these
        raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

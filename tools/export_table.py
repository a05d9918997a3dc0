"""Exports every model of configs/model to every format, and prints a row for each: is it proven, how long, how large.

    python tools/export_table.py ROOT OUT                               # a quarter of an hour for a scale on one core
    python tools/export_table.py ROOT OUT --only 'dense-*' --to onnx

Weights are random, but such that detections have scores from near 0 to near 1: those of a fresh detector are all about
0.01, and there would be nothing to compare. ROOT is a data set whose validation images the proof is made on. Each row's
outcome is a file in OUT: killed and called again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import nn

from detframe.data.sources import read_splits
from detframe.models.detector import Detector
from model_table import make_task

ROOT = Path(__file__).parents[1]
FORMATS = ("torchscript", "program", "onnx", "openvino")
_MODEST = -4.0  # biases of class scores begin at -4.6, the logit of 0.01
_BOLD, _SPREAD = -2.0, 1.5  # mean and standard deviation of logits


def make_bold(detector: Detector, images: torch.Tensor) -> None:
    """Give batch norms the statistics of some images, and spread the scores of classes over 0 to 1."""
    for module in detector.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain mean
    with torch.no_grad():
        detector.train().features(images)
        for module in detector.eval().modules():
            bias = getattr(module, "bias", None)
            if isinstance(module, nn.Conv2d | nn.Linear) and bias is not None and float(bias.mean()) < _MODEST:
                _spread_at_first_call(module)
        detector(images)


def _spread_at_first_call(module: nn.Conv2d | nn.Linear) -> None:
    def spread(_: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        handle.remove()
        scale = _SPREAD / output.std()
        assert module.bias is not None
        module.weight.mul_(scale)
        module.bias.mul_(scale).add_(_BOLD - output.mean() * scale)
        return (output - output.mean()) * scale + _BOLD

    handle = module.register_forward_hook(spread)


def write_checkpoint(config: Path, class_names: list[str], size: tuple[int, int], path: Path) -> None:
    """A checkpoint of a model with random weights."""
    torch.manual_seed(0)
    task = make_task(config, class_names, image_size=list(size))
    light = torch.tensor([[1.0, 0.0], [0.12, 0.0], [0.12, 0.43]])[:, :, None, None, None]  # bright, dark and grey
    make_bold(task.detector, torch.rand(3, 3, *size) * light[:, 0] + light[:, 1])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)


def exported(checkpoint: Path, to: str, given: argparse.Namespace) -> dict[str, object]:
    """The proof of a format and the seconds that all took; what was said where there is none."""
    command = [sys.executable, "-W", "ignore", "-m", "detframe", "export", str(checkpoint), "--to", to, "--json"]
    command += ["--data", str(given.data), "--images", str(given.images), "--out", str(checkpoint.parent / to)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        report = {"passed": False, "faults": [(done.stderr.strip().splitlines() or ["nothing was said"])[-1][:300]]}
    report.pop("per_image", None)
    return {**report, "seconds": seconds}


def shown(report: dict[str, object]) -> str:
    """A cell of the table."""
    if not report["passed"]:
        faults = report["faults"]
        assert isinstance(faults, list)
        return "; ".join(map(str, faults))
    count = f"all but {report['unmatched']} of {report['detections']}" if report["unmatched"] else report["detections"]
    return f"{count} equal, {report['score']:.0e}; {report['seconds']:.0f} s, {report['megabytes']:.0f} MB"


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="root of the data set")
    parser.add_argument("out", type=Path, help="folder for checkpoints, files and outcomes")
    parser.add_argument("--only", default="*-[ns]*", help="names of models, with * and ?; by default nano and small")
    parser.add_argument("--to", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--images", type=int, default=8, help="of the validation split")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 320], help="height and width of the network's input")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    names = next(iter(read_splits(given.data).values())).index.class_names
    print(f"| model | {' | '.join(given.to)} |\n| --- |{' --- |' * len(given.to)}")
    for config in sorted((ROOT / "configs" / "model").glob("*.yaml")):
        if not fnmatchcase(config.stem, given.only):
            continue
        folder = given.out / config.stem
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "random.ckpt"
        if not checkpoint.is_file():
            write_checkpoint(config, names, tuple(given.size), checkpoint)
        cells = []
        for to in given.to:
            outcome = folder / f"{to}.json"
            if not outcome.is_file():
                outcome.write_text(json.dumps(exported(checkpoint, to, given)), encoding="utf-8")
            cells.append(shown(json.loads(outcome.read_text(encoding="utf-8"))))
        print(f"| {config.stem} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

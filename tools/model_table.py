"""Writes docs/models.md: size, speed and memory of every model of configs/model, beside its peers.

Each row is measured in a process of its own, so that its peak memory is its own, and written at once. Weights are
random; nothing is downloaded.

    python tools/model_table.py                                # all rows; a quarter of an hour on 2 quiet cores
    python tools/model_table.py --only 'dense-*'               # these anew, the others as the file has them
    python tools/model_table.py --missing                      # what a stopped run has not come to, or a new model

Peers are detectors of torchvision and, where the packages `ultralytics` (AGPL-3.0, in an environment of its own) and
`rfdetr` (Apache-2.0) are installed, YOLO11n and RF-DETR.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision.models.detection as torchvision_models
import yaml
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench_map import peak_memory, reset_peak_memory
from bench_train import (
    Contender,
    make_optimizer,
    make_rfdetr,
    make_ultralytics,
    processor,
    random_targets,
    step,
    sum_of,
    torchvision_contender,
)
from detframe.training.task import DetectionTask

ROOT = Path(__file__).parents[1]
CLASSES = 80
BOXES = 10  # random ones in every image of the training step
SCALES = ("nano", "small", "medium", "large")

TEXT = """\
# Models

Size, speed and memory of the models in `configs/model`, and of other libraries' at the same image size. Written by
`python tools/model_table.py`; all weights are random, so the table says nothing about accuracy.

- parameters: with a head for {classes} classes.
- GFLOPs: of the inference of one image, two for each multiply-add in convolutions and matrix products, as
  `torch.utils.flop_counter` counts them; NMS, RoI align and sampling at points are not counted.
- latency: of the inference of one image, eager, from pixels to detections after NMS; a median.
- training memory: the highest resident memory of one training step in float32 with AdamW, {boxes} boxes an image, less
  what the process held after its imports: weights, gradients, the optimizer's state and activations.

{conditions}

| model | image px | parameters M | GFLOPs | latency ms | training memory MB |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}
"""


class Row(NamedTuple):
    """What is measured of a model at an image size."""

    parameters: float  # millions
    gflops: float
    latency_ms: float
    training_mb: float


class Peer(NamedTuple):
    """A detector of another library."""

    package: str
    make: Callable[[int], tuple[Contender, Callable[[Tensor], object]]]  # of the images' side: training and inference
    size: int | None = None  # the only side that it is made for


Key = tuple[str, int]
"""Name of a model and the side of its images in pixels."""


# ---------------------------------------------------------------------------------------------------------------------
# models


def make_task(config: Path, class_names: list[str], **options: Any) -> DetectionTask:  # noqa: ANN401
    """A task from a fragment of configuration, with random weights; options go before it."""
    given = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
    backbone = given.get("backbone", {"class_path": "detframe.models.backbones.TimmBackbone"})
    backbone = {**backbone, "init_args": {**backbone.get("init_args", {}), "weights": None}}
    return instantiate_module(DetectionTask, {**given, "backbone": backbone, "class_names": class_names, **options})


def make_ours(config: Path) -> tuple[Contender, Callable[[Tensor], object]]:
    """A detector from its fragment of configuration, built as a checkpoint builds it."""
    detector = make_task(config, [f"class {i}" for i in range(CLASSES)]).detector
    return Contender(detector, lambda images, targets: sum_of(detector.loss(images, targets).values())), detector


def make_torchvision(name: str, background: int, size: int) -> tuple[Contender, Callable[[Tensor], object]]:
    """A detector of torchvision; ``background`` is how many classes it has for that, 0 or 1."""
    sides = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}  # an SSD knows its size
    make = getattr(torchvision_models, name)
    model: nn.Module = make(weights=None, weights_backbone=None, num_classes=CLASSES + background, **sides)
    return torchvision_contender(model, first_label=background), lambda images: model(list(images))


def make_yolo(name: str, size: int) -> tuple[Contender, Callable[[Tensor], object]]:
    """A detector of Ultralytics, with its own NMS."""
    from ultralytics.utils.nms import non_max_suppression

    contender = make_ultralytics(name, CLASSES, size)
    return contender, lambda images: non_max_suppression(contender.model(images), iou_thres=0.7)


PEERS: dict[str, Peer] = {
    **{
        name: Peer("torchvision", partial(make_torchvision, name, background), 320 if "320" in name else None)
        for name, background in {
            "ssdlite320_mobilenet_v3_large": 1,
            "fasterrcnn_mobilenet_v3_large_fpn": 1,
            "fasterrcnn_resnet50_fpn": 1,
            "retinanet_resnet50_fpn": 0,
            "fcos_resnet50_fpn": 0,
        }.items()
    },
    "yolo11n": Peer("ultralytics", partial(make_yolo, "yolo11n")),
    **{f"rfdetr-{scale}": Peer("rfdetr", partial(make_rfdetr, scale, CLASSES)) for scale in SCALES[:3]},
}
"""In the order of the table, which has ours first."""


def our_configs(folder: Path) -> dict[str, Path]:
    """Fragments by name, kind by kind and each from small to large."""

    def order(path: Path) -> tuple[str, int]:
        kind, _, scale = path.stem.rpartition("-")
        return (kind, SCALES.index(scale)) if scale in SCALES else (path.stem, len(SCALES))

    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=order)}


# ---------------------------------------------------------------------------------------------------------------------
# measurement


def measure(name: str, size: int, args: argparse.Namespace) -> Row:
    """Measure a model in this process, which has measured nothing before."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = our_configs(args.configs).get(name)
    if config is None:
        import_module(PEERS[name].package)
    before = reset_peak_memory()
    contender, infer = make_ours(config) if config else PEERS[name].make(size)
    model = contender.model
    targets = random_targets(args.batch_size, BOXES, CLASSES, size, torch.Generator().manual_seed(0))
    images = torch.rand(args.batch_size, 3, size, size)
    optimizer = make_optimizer(model.train())
    step(contender, optimizer, images, targets)
    training = peak_memory() - before
    optimizer.zero_grad()
    model.eval().requires_grad_(False)  # the counter of operations stumbles over parameters handed to a module
    image = images[:1].clone()
    with torch.inference_mode():
        seconds = [seconds_of(infer, image) for _ in range(args.runs + 3)][3:]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Row(parameters / 1e6, count_gflops(infer, image), statistics.median(seconds) * 1000, training / 2**20)


def seconds_of(infer: Callable[[Tensor], object], images: Tensor) -> float:
    """Time of one inference."""
    start = time.perf_counter()
    infer(images)
    return time.perf_counter() - start


def count_gflops(infer: Callable[[Tensor], object], images: Tensor) -> float:
    """Floating-point operations of one inference, in thousand millions."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Fused attention is one operator that the counter does not know on a CPU; the plain one is matrix products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            infer(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return float(counter.get_total_flops()) / 1e9


def measure_apart(key: Key, args: argparse.Namespace) -> Row | None:
    """Measure a row in a fresh process; None where that failed, its last words being on the error stream."""
    command = [sys.executable, __file__, "--measure", key[0], str(key[1])]
    for name in ("configs", "threads", "batch_size", "runs"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print("\n".join(done.stderr.splitlines()[-5:]), file=sys.stderr)
        return None
    return Row._make(json.loads(done.stdout.splitlines()[-1]))


# ---------------------------------------------------------------------------------------------------------------------
# the file


def conditions(args: argparse.Namespace) -> str:
    """What rows must have in common to stand in one table."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    return (
        f"Measured on {processor()}, {args.threads} threads, no GPU; {libraries}. "
        f"Latency of {args.runs} runs, training steps of {args.batch_size} images."
    )


def read_table(path: Path) -> tuple[str, dict[Key, Row]]:
    """Conditions and rows of a file that this tool wrote; nothing where there is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    stated = re.search(r"^Measured on .*$", text, re.MULTILINE)
    rows = {}
    for name, size, cells in re.findall(r"^\| \[?([\w.-]+)[^|]*\| (\d+) \| (.*) \|$", text, re.MULTILINE):
        rows[name, int(size)] = Row._make(float(cell) for cell in cells.split(" | "))
    return stated[0] if stated else "", rows


def write_table(path: Path, rows: dict[Key, Row], configs: dict[str, Path], args: argparse.Namespace) -> None:
    """Write the file, rows in the order of ``rows``."""
    lines = []
    for (name, size), row in rows.items():
        linked = f"[{name}](../configs/model/{name}.yaml)" if name in configs else name
        cells = (f"{row.parameters:.2f}", f"{row.gflops:.2f}", f"{row.latency_ms:.0f}", f"{row.training_mb:.0f}")
        lines.append(f"| {linked} | {size} | " + " | ".join(cells) + " |")
    text = TEXT.format(boxes=BOXES, classes=CLASSES, conditions=conditions(args), rows="\n".join(lines))
    path.write_text(text, encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="measure models of this name or pattern; default all")
    parser.add_argument("--missing", action="store_true", help="measure only rows that the file does not have")
    parser.add_argument(
        "--image-sizes", nargs="+", type=int, default=[320, 640], help="sides in pixels; default 320 640"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images of the training step; default 4")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--runs", type=int, default=10, help="inferences whose median counts; default 10")
    parser.add_argument("--configs", type=Path, default=ROOT / "configs" / "model", help="folder of our fragments")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "models.md", help="default docs/models.md")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure rows one after the other and keep the file up to date."""
    args = parse()
    if args.measure:
        print(json.dumps(measure(args.measure[0], int(args.measure[1]), args)))
        return
    configs = our_configs(args.configs)
    keys = [(name, size) for size in args.image_sizes for name in configs]
    keys += [(name, size) for name, peer in PEERS.items() for size in ([peer.size] if peer.size else args.image_sizes)]
    keys.sort(key=lambda key: key[1])  # stable: by image size, within it as listed
    stated, before = read_table(args.out)
    wanted = [key for key in keys if fnmatchcase(key[0], args.only or "*") and not (args.missing and key in before)]
    kept = [key for key in keys if key in before and key not in wanted]
    if kept and stated != conditions(args):
        print(
            f"{args.out}: its rows were measured under other conditions ({stated}), now it would be: "
            f"{conditions(args)} Measure all rows anew, or give another --out.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    rows = {key: row for key, row in before.items() if key in keys}
    failed = []
    for number, key in enumerate(wanted, 1):
        what = f"[{number}/{len(wanted)}] {key[0]} at {key[1]} px"
        if key[0] in PEERS and find_spec(PEERS[key[0]].package) is None:
            print(f"{what}: {PEERS[key[0]].package} is not installed, left out", file=sys.stderr)
            continue
        start = time.perf_counter()
        row = measure_apart(key, args)
        if row is None:
            failed.append(what)
            print(f"{what}: failed, see above", file=sys.stderr)
            continue
        figures = f"{row.parameters:.2f} M, {row.gflops:.2f} GFLOPs, {row.latency_ms:.0f} ms, {row.training_mb:.0f} MB"
        print(f"{what}: {figures} ({time.perf_counter() - start:.0f} s)", file=sys.stderr)
        rows[key] = row
        write_table(args.out, {key: rows[key] for key in keys if key in rows}, configs, args)
    if failed:
        print(f"{len(failed)} rows could not be measured.", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()

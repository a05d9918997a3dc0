"""Speed of a training step, side by side, and where the time of detframe's goes.

A step is forward, loss, backward and AdamW. All contenders see the same images and boxes, drawn by detframe and loaded
and augmented as in a training, and take turns step by step, so that whatever else the machine does hits all alike.
Weights are random; nothing is downloaded.

    python tools/bench_train.py                                   # under two minutes on 2 cores
    python tools/bench_train.py --steps 30 --json bench_train.json
    python tools/bench_train.py --only detframe --num-boxes 100   # does the assignment stay cheap in a crowd?

Contenders:

    detframe     the dense nano of configs/model: mobilenetv4_conv_small, FPN of 64 channels, DenseHead
    compiled     the same with backbone and neck compiled, as `--model.compile true` does; minutes before the first step
    bfloat16     the same under automatic mixed precision, as `--trainer.precision bf16-mixed` does
    fcos         torchvision's FCOS on timm's mobilenetv4_conv_small, P3 to P7 of 256 channels as is usual there
    retinanet    torchvision's RetinaNet on the same
    fasterrcnn   torchvision's Faster R-CNN on the same backbone, P2 to P5 and a pooled level
    yolo11n      YOLO11n with its own loss, where the package `ultralytics` is installed. That is AGPL-3.0: detframe
                 neither contains nor needs it; who wants the comparison installs it, in an environment of its own
    rfdetr-nano  RF-DETR's smallest with its own loss, where the package `rfdetr` (Apache-2.0) is installed

The first table holds the median and the least time of a contender's steps. The second follows detframe's step and gives
two shares: of all rows, and of the step alone, which a slow augmentation does not flatter. "network" is backbone, neck
and those modules of the head that hold parameters. All else in the head's loss is "loss and assignment", the joining of
levels and the grid of cells included; its backward pass ends when the first gradient reaches the network.

Drawn images have 320 x 256 pixels: a camera's take the loader longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml
from lightning.pytorch.cli import instantiate_module
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_convert
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detframe.data.datamodule import DetectionDataModule
from detframe.data.synthetic import write_dataset
from detframe.models.backbones import TimmBackbone
from detframe.models.detector import Detector
from detframe.models.heads.dense import DenseHead
from detframe.models.necks import FPN
from detframe.structures import Batch, Targets

BACKBONE = "mobilenetv4_conv_small"
CONFIGS = Path(__file__).parents[1] / "configs"

PARTS = (
    "loader",
    "augmentation",
    "network, forward",
    "loss and assignment, forward",
    "loss and assignment, backward",
    "network, backward",
    "optimizer",
)
STEP_PARTS = PARTS[2:]


class Contender(NamedTuple):
    """A model that trains, and its loss: a scalar, of images ``[B, 3, H, W]`` in 0..1 and targets in their pixels."""

    model: nn.Module
    loss: Callable[[Tensor, Targets], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# contenders


def make_detframe(backbone: str, classes: int, size: int) -> Contender:
    """The dense nano detector."""
    body = TimmBackbone(backbone)
    neck = FPN(body.levels)
    detector = Detector(body, neck, DenseHead(neck.levels, classes))

    def loss(images: Tensor, targets: Targets) -> Tensor:
        return sum_of(detector.loss(images, targets).values())

    return Contender(detector, loss)


def make_compiled(backbone: str, classes: int, size: int) -> Contender:
    """The dense nano detector as :class:`detframe.training.task.DetectionTask` compiles it."""
    contender = make_detframe(backbone, classes, size)
    assert isinstance(contender.model, Detector)
    contender.model.backbone.compile()
    contender.model.neck.compile()
    return contender


def make_bfloat16(backbone: str, classes: int, size: int) -> Contender:
    """The dense nano detector in half precision wherever torch holds that to be safe."""
    model, whole = make_detframe(backbone, classes, size)

    def loss(images: Tensor, targets: Targets) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return whole(images, targets)

    return Contender(model, loss)


def make_fcos(backbone: str, classes: int, size: int) -> Contender:
    """The FCOS of torchvision on the same backbone."""
    pyramid = Pyramid(backbone, (2, 3, 4), LastLevelP6P7(256, 256))
    return torchvision_contender(FCOS(pyramid, classes, min_size=size, max_size=size, _skip_resize=True))


def make_retinanet(backbone: str, classes: int, size: int) -> Contender:
    """The RetinaNet of torchvision on the same backbone."""
    pyramid = Pyramid(backbone, (2, 3, 4), LastLevelP6P7(256, 256))
    return torchvision_contender(RetinaNet(pyramid, classes, min_size=size, max_size=size, _skip_resize=True))


def make_fasterrcnn(backbone: str, classes: int, size: int) -> Contender:
    """The Faster R-CNN of torchvision on the same backbone; there, class 0 is the background."""
    pyramid = Pyramid(backbone, (1, 2, 3, 4), LastLevelMaxPool())
    anchors = AnchorGenerator(tuple((side,) for side in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    model = FasterRCNN(pyramid, classes + 1, size, size, rpn_anchor_generator=anchors, _skip_resize=True)
    return torchvision_contender(model, first_label=1)


def make_ultralytics(name: str, classes: int, size: int) -> Contender:
    """A detector of Ultralytics from its own description, such as yolo11n, with its own loss and its default gains."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    model: Any = DetectionModel(f"{name}.yaml", nc=classes, verbose=False)
    model.args = get_cfg()  # where its loss looks for the gains

    def loss(images: Tensor, targets: Targets) -> Tensor:
        rows = targets.valid.nonzero()[:, 0]
        boxes_cxcywh = box_convert(targets.boxes[targets.valid], "xyxy", "cxcywh") / size
        batch = {
            "img": images,
            "batch_idx": rows,
            "cls": targets.labels[targets.valid][:, None],
            "bboxes": boxes_cxcywh,
        }
        parts, _ = model.loss(batch)
        total: Tensor = parts.sum()
        return total

    return Contender(model, loss)


def make_rfdetr(scale: str, classes: int, size: int) -> tuple[Contender, Callable[[Tensor], object]]:
    """RF-DETR by its own parts, the loss as its training weights it, and its inference; 32 has to divide the size."""
    from rfdetr import config
    from rfdetr.models.lwdetr import build_criterion_from_config, build_model_from_config

    # Naming no weights would load DINOv2's; these are not read here.
    named = getattr(config, f"RFDETR{scale.capitalize()}Config")
    options = named(num_classes=classes, resolution=size, positional_encoding_size=size // 16, device="cpu")
    training = config.TrainConfig(dataset_dir=".", output_dir=".")
    model = build_model_from_config(options, training)
    criterion, decode = build_criterion_from_config(options, training)

    def loss(images: Tensor, targets: Targets) -> Tensor:
        lists = [
            {"boxes": box_convert(boxes[valid], "xyxy", "cxcywh") / size, "labels": labels[valid]}
            for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True)
        ]
        losses = criterion(model(images, lists), lists)
        return sum_of(losses[name] * weight for name, weight in criterion.weight_dict.items() if name in losses)

    sizes = torch.tensor([[size, size]])
    return Contender(model, loss), lambda images: decode(model(images), sizes)


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """Sum of scalars."""
    return torch.stack(list(losses)).sum()


MAKERS: dict[str, tuple[str, Callable[[str, int, int], Contender]]] = {
    "detframe": ("detframe", make_detframe),
    "compiled": ("detframe", make_compiled),
    "bfloat16": ("detframe", make_bfloat16),
    "fcos": ("torchvision", make_fcos),
    "retinanet": ("torchvision", make_retinanet),
    "fasterrcnn": ("torchvision", make_fasterrcnn),
    "yolo11n": ("ultralytics", lambda _, classes, size: make_ultralytics("yolo11n", classes, size)),
    "rfdetr-nano": ("rfdetr", lambda _, classes, size: make_rfdetr("nano", classes, size)[0]),
}
"""What each needs installed, and how it is built from the number of classes and the images' side in pixels."""


class Pyramid(nn.Module):
    """A timm backbone under torchvision's feature pyramid, as its own ``BackboneWithFPN`` is for its own backbones."""

    out_channels = 256

    def __init__(self, backbone: str, out_indices: tuple[int, ...], extra: LastLevelP6P7 | LastLevelMaxPool) -> None:
        super().__init__()
        self.body = timm.create_model(backbone, features_only=True, out_indices=out_indices)
        info: Any = self.body.feature_info
        self.fpn = FeaturePyramidNetwork(info.channels(), self.out_channels, extra_blocks=extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, finest first."""
        maps: dict[str, Tensor] = self.fpn({str(i): feature for i, feature in enumerate(self.body(images))})
        return maps


def torchvision_contender(model: nn.Module, first_label: int = 0) -> Contender:
    """A detector of torchvision, which wants images and targets as lists.

    Args:
        model: Returns its losses by name in training.
        first_label: What it calls our class 0.
    """

    def loss(images: Tensor, targets: Targets) -> Tensor:
        lists = [
            {"boxes": boxes[valid], "labels": labels[valid] + first_label}
            for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True)
        ]
        return sum_of(model(list(images), lists).values())

    return Contender(model, loss)


# ---------------------------------------------------------------------------------------------------------------------
# images and boxes


def make_data(root: Path, images: int, size: int, batch_size: int, config: Path, seed: int) -> DetectionDataModule:
    """Drawn images, loaded by this process as is usual on a CPU, with the augmentation of a training configuration."""
    write_dataset(root, train=images, val=1, test=1, seed=seed)
    augmentation = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["augmentation"]
    options = {"root": str(root), "train": "train.json", "val": "val.json", "image_size": [size, size]}
    return instantiate_module(
        DetectionDataModule, {**options, "batch_size": batch_size, "num_workers": 0, "augmentation": augmentation}
    )


def random_targets(batch_size: int, boxes: int, classes: int, size: int, generator: torch.Generator) -> Targets:
    """Boxes of all shapes and sizes, from an 80th of the image's side up to half of it, ``boxes`` in every image."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch_size, boxes, *shape, generator=generator)

    sides = size / 80 * 40 ** uniform(2)
    corners = uniform(2) * (size - sides)
    labels = (uniform() * classes).long()
    valid = torch.ones(batch_size, boxes, dtype=torch.bool)
    return Targets(torch.cat((corners, corners + sides), dim=-1), labels, ~valid, valid)


class Feed:
    """Batches without end, and the seconds that loading and augmentation took for each.

    Args:
        data: Gives the loader and the augmentation.
        boxes: Random boxes in every image instead of the drawn ones; None keeps those.
        classes: Of random boxes.
        seed: Of random boxes.
    """

    def __init__(self, data: DetectionDataModule, boxes: int | None, classes: int, seed: int) -> None:
        self.loader = data.train_dataloader()
        assert data.augmentation is not None
        self.augment = data.augmentation
        self.boxes = boxes
        self.classes = classes
        self.generator = torch.Generator().manual_seed(seed)
        self.seconds: dict[str, float] = {}  # of the last batch
        self._batches = self._endless()

    def _endless(self) -> Iterator[Batch]:
        while True:
            yield from self.loader

    def next_batch(self) -> Batch:
        """An augmented batch, images float 0..1."""
        start = time.perf_counter()
        batch = next(self._batches)
        loaded = time.perf_counter()
        batch = self.augment(batch._replace(images=batch.images.float() / 255))
        self.seconds = {"loader": loaded - start, "augmentation": time.perf_counter() - loaded}
        if self.boxes is None:
            return batch
        count, _, size, _ = batch.images.shape
        return batch._replace(targets=random_targets(count, self.boxes, self.classes, size, self.generator))


# ---------------------------------------------------------------------------------------------------------------------
# measurement


def step(contender: Contender, optimizer: torch.optim.Optimizer, images: Tensor, targets: Targets) -> float:
    """Train a step and return its seconds."""
    start = time.perf_counter()
    optimizer.zero_grad()
    contender.loss(images, targets).backward()
    optimizer.step()
    return time.perf_counter() - start


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """Alike for all; its rate is so low that random weights stay finite."""
    return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)


def race(contenders: dict[str, Contender], feed: Feed, warmup: int, steps: int) -> dict[str, list[float]]:
    """Seconds of every step of every contender; each round has another one begin."""
    optimizers = {name: make_optimizer(contender.model.train()) for name, contender in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in rounds(warmup + steps, "Steps side by side"):
        batch = feed.next_batch()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(step(contenders[name], optimizers[name], batch.images, batch.targets))
    return {name: values[warmup:] for name, values in seconds.items()}


def dissect(detector: Detector, feed: Feed, warmup: int, steps: int) -> dict[str, list[float]]:
    """Seconds of every part of every step of detframe, loading and augmentation included."""
    optimizer = make_optimizer(detector.train())
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    with watch(detector.head) as clock:
        for _ in rounds(warmup + steps, "Steps in parts"):
            batch = feed.next_batch()
            optimizer.zero_grad()
            clock.reset()
            start = time.perf_counter()
            features = detector.features(batch.images)
            mixed = time.perf_counter()
            size = (batch.images.shape[2], batch.images.shape[3])
            loss = sum_of(detector.head.loss(features, batch.targets, size).values())
            lost = time.perf_counter()
            loss.backward()
            learned = time.perf_counter()
            optimizer.step()
            optimised = time.perf_counter()
            arrived = clock.first_gradient if clock.first_gradient is not None else learned
            times = (*feed.seconds.values(), mixed - start + clock.forward, lost - mixed - clock.forward)
            times += (arrived - lost, learned - arrived, optimised - learned)
            for part, value in zip(PARTS, times, strict=True):
                seconds[part].append(value)
    return {part: values[warmup:] for part, values in seconds.items()}


class HeadClock:
    """What the modules of a head took of a step."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a step."""
        self.forward = 0.0  # seconds inside outermost modules with parameters
        self.first_gradient: float | None = None  # when the first gradient of what one of them gave was there
        self._depth = 0
        self._entered = 0.0

    def enter(self, module: nn.Module, inputs: object) -> None:
        """Forward pre-hook; only the outermost call counts, whatever modules hold modules."""
        if self._depth == 0:
            self._entered = time.perf_counter()
        self._depth += 1

    def leave(self, module: nn.Module, inputs: object, outputs: object) -> None:
        """Forward hook."""
        self._depth -= 1
        if self._depth == 0:
            self.forward += time.perf_counter() - self._entered
            for tensor in tensors_of(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(self._note_gradient)

    def _note_gradient(self, gradient: Tensor) -> None:
        if self.first_gradient is None:
            self.first_gradient = time.perf_counter()


def tensors_of(value: object) -> Iterator[Tensor]:
    """Tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


@contextmanager
def watch(head: nn.Module) -> Iterator[HeadClock]:
    """Time the modules of a head that hold parameters; those that hold none may be losses and assigners."""
    clock = HeadClock()
    handles = []
    for module in head.modules():
        if module is not head and any(True for _ in module.parameters()):
            handles += [module.register_forward_pre_hook(clock.enter), module.register_forward_hook(clock.leave)]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()


def rounds(count: int, what: str) -> Iterator[int]:
    """Count with a progress bar on the error stream."""
    yield from track(range(count), what, console=Console(stderr=True), transient=True)


# ---------------------------------------------------------------------------------------------------------------------
# what comes out


def side_by_side(seconds: dict[str, list[float]], models: dict[str, nn.Module], batch_size: int) -> str:
    """Markdown: speed of every contender, and how many times as long as detframe it takes."""
    lines = [
        "| | parameters M | images/s | s an image, median | least | time / detframe's |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = statistics.median(seconds["detframe"]) if "detframe" in seconds else None
    for name, values in seconds.items():
        median = statistics.median(values)
        millions = sum(parameter.numel() for parameter in models[name].parameters()) / 1e6
        cells = [f"{millions:.2f}", f"{batch_size / median:.2f}", f"{median / batch_size:.4f}"]
        cells += [f"{min(values) / batch_size:.4f}", f"{median / ours:.2f}" if ours else ""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_part(seconds: dict[str, list[float]], batch_size: int) -> str:
    """Markdown: where the time of detframe's step goes, medians."""
    medians = {part: statistics.median(values) * 1000 / batch_size for part, values in seconds.items()}
    everything, of_step = sum(medians.values()), sum(medians[part] for part in STEP_PARTS)
    lines = ["| part | ms an image | % of all | % of the step |", "| --- | ---: | ---: | ---: |"]
    for part, value in medians.items():
        share = f"{100 * value / of_step:.1f}" if part in STEP_PARTS else ""
        lines.append(f"| {part} | {value:.2f} | {100 * value / everything:.1f} | {share} |")
    lines.append(f"| together | {everything:.2f} | 100 | {of_step:.2f} ms |")
    loss = sum(medians[part] for part in PARTS if part.startswith("loss and assignment"))
    lines.append(f"\nLoss and assignment with their backward pass: {100 * loss / of_step:.1f} % of the step.")
    return "\n".join(lines)


def processor() -> str:
    """Name of the processor, for who reads the figures elsewhere."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return named or platform.machine()


def machine() -> str:
    """Processor, version and how busy the machine is."""
    return f"{processor()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=MAKERS, help="contenders; default detframe fcos, and peers if there"
    )
    parser.add_argument(
        "--backbone", default=BACKBONE, help=f"timm's name of it, of ours and torchvision's; default {BACKBONE}"
    )
    parser.add_argument("--image-size", type=int, default=320, help="side in pixels; default 320")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a step; default 8")
    parser.add_argument("--steps", type=int, default=10, help="steps that count; default 10")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them; default 2")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--classes", type=int, default=80, help="of the heads; default 80")
    parser.add_argument("--num-boxes", type=int, help="random boxes in every image; default the drawn ones, 0 to 22")
    parser.add_argument(
        "--augmentation", type=Path, default=CONFIGS / "bccd.yaml", help="configuration to take it from; default bccd's"
    )
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="torchvision's and YOLO's weights too in the memory format that detframe's always have",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and boxes; default 0")
    parser.add_argument("--json", type=Path, help="write every step's seconds here")
    args = parser.parse_args()
    names = args.only or [name for name in ("detframe", "fcos", "yolo11n", "rfdetr-nano") if find_spec(MAKERS[name][0])]
    for name in names:
        if find_spec(MAKERS[name][0]) is None:
            parser.error(f"{name} needs the package {MAKERS[name][0]}, which is not installed.")
    if args.image_size % 32:
        parser.error("--image-size: the coarsest level has 32 pixels a cell; give a multiple of 32.")
    args.only = names
    return args


def main() -> None:
    """Measure and print the tables."""
    args = parse()
    torch.manual_seed(args.seed)
    contenders = {name: MAKERS[name][1](args.backbone, args.classes, args.image_size) for name in args.only}
    if args.channels_last:
        for contender in contenders.values():
            contender.model.to(memory_format=torch.channels_last)
    torch.set_num_threads(args.threads)  # after the peers' imports, one of which sets it too
    print(f"{machine()}, {args.threads} threads, batches of {args.batch_size}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        images, root = 8 * args.batch_size, Path(folder) / "drawn"
        data = make_data(root, images, args.image_size, args.batch_size, args.augmentation, args.seed)
        feed = Feed(data, args.num_boxes, args.classes, args.seed)
        seconds = race(contenders, feed, args.warmup, args.steps)
        print(side_by_side(seconds, {name: c.model for name, c in contenders.items()}, args.batch_size))
        parts: dict[str, list[float]] = {}
        if "detframe" in contenders:
            detector = contenders["detframe"].model
            assert isinstance(detector, Detector)
            parts = dissect(detector, feed, args.warmup, args.steps)
            print(f"\n{by_part(parts, args.batch_size)}")
    if args.json:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        content = {"machine": machine(), "options": options, "step_seconds": seconds, "part_seconds": parts}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

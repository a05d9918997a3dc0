"""How many images a second augmentation handles, beside Kornia's own sequence and torchvision's transforms.

    python tools/bench_augment.py --rounds 5

The same batch goes through each contender in turn, round by round, so that whatever else the machine does hits all
alike. "usual" is a flip, an affine move with scale and a change of colours, for every image; torchvision takes image by
image, in its float path. The rows below it say what mosaic, copy-paste and noise add to it, and what JPEG costs alone.
Times are medians over the rounds; `least` is the quickest round. Everything runs on the CPU unless --device says
otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import kornia.augmentation as K  # noqa: N812
import torch
from kornia.augmentation import AugmentationBase2D
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms import v2

from detframe.augment.color import RandomColorMatrix
from detframe.augment.copy_paste import CopyPaste
from detframe.augment.jpeg import JPEG
from detframe.augment.mosaic import Mosaic
from detframe.augment.pipeline import AugmentationPipeline, Operator
from detframe.augment.sensor import SensorNoise
from detframe.lightning_cli import keep_freed_memory
from detframe.structures import Batch, Targets, TrainingObjects

Contender = Callable[[], object]


def main() -> None:
    """Time the contenders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times that each contender has its turn; default 5")
    parser.add_argument("--batch-size", type=int, default=16, help="default 16")
    parser.add_argument("--size", type=int, default=640, help="side of the images in pixels; default 640")
    parser.add_argument("--boxes", type=int, default=20, help="in each image; default 20")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    parser.add_argument("--device", default="cpu", help="such as cuda; torchvision's codec stays on the CPU")
    parser.add_argument("--seed", type=int, default=0, help="of images, boxes and parameters; default 0")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    keep_freed_memory()
    batch = random_batch(options.batch_size, options.size, options.boxes)
    contenders = make_contenders(batch, torch.device(options.device))
    seconds = {name: [] for name in contenders}  # type: dict[str, list[float]]
    for turn in range(options.rounds + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if options.device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    print(table(seconds, options.batch_size))


def random_batch(count: int, size: int, boxes: int) -> Batch:
    """Smooth random images with boxes from an eightieth to a half of the side, of ten classes, the first one rare."""
    small = torch.rand(count, 3, size // 16, size // 16)
    images = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear")
    sides = size / 80 * 40 ** torch.rand(count, boxes, 2)
    corners = torch.rand(count, boxes, 2) * (size - sides)
    where = torch.cat((corners, corners + sides), dim=-1)
    valid = torch.ones(count, boxes, dtype=torch.bool)
    return Batch(
        images=images,
        targets=Targets(where, (torch.rand(count, boxes) ** 0.5 * 10).long(), ~valid, valid),
        original_boxes=where,
        areas=torch.zeros(count, boxes),
        annotation_ids=torch.arange(count * boxes).view(count, boxes),
        image_ids=torch.arange(count),
        original_sizes=torch.full((count, 2), size),
        transforms=torch.tensor([[1.0, 1, 0, 0]]).expand(count, 4),
    )


def objects_of(batch: Batch) -> TrainingObjects:
    """The batch as if it were the training data."""
    count, boxes = batch.targets.labels.shape
    return TrainingObjects(
        boxes=batch.targets.boxes.flatten(0, 1),
        labels=batch.targets.labels.flatten(),
        images=torch.arange(count).repeat_interleave(boxes),
        class_names=[str(label) for label in range(10)],
        image_count=count,
        read_image=lambda image: (batch.images[image] * 255).to(torch.uint8),
        read_mask=lambda _: None,
    )


def usual() -> list[Operator]:
    """A flip and an affine move, as Kornia has them."""
    affine = K.RandomAffine(degrees=0.0, translate=(0.1, 0.1), scale=(0.7, 1.3), p=1.0)
    return [K.RandomHorizontalFlip(p=0.5), affine]


def make_contenders(batch: Batch, device: torch.device) -> dict[str, Contender]:
    """Functions of no argument by name; each takes the batch through once."""
    objects = objects_of(batch)
    targets = Targets(*(field.to(device) for field in batch.targets))
    fields = {name: field.to(device) for name, field in batch._asdict().items() if isinstance(field, Tensor)}
    batch = batch._replace(targets=targets, **fields)
    geometry: list[AugmentationBase2D] = [operator for operator in usual() if isinstance(operator, AugmentationBase2D)]
    sequence = K.AugmentationSequential(
        *geometry, K.ColorJiggle(0.2, 0.2, 0.2, 0.02, p=1.0), data_keys=["input", "bbox_xyxy"]
    )
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine((0.0, 0.0), (0.1, 0.1), (0.7, 1.3), interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.02),
        ]
    )
    size = (batch.images.shape[2], batch.images.shape[3])

    def by_torchvision() -> None:
        for image, boxes in zip(batch.images, batch.targets.boxes, strict=True):
            transforms(image, tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size))

    def policy(*operators: Operator) -> Contender:
        pipeline = AugmentationPipeline(operators)
        pipeline.show(objects)
        return lambda: pipeline(batch)

    pixels = (batch.images.cpu() * 255).to(torch.uint8)
    kornias_jpeg = K.RandomJPEG((50.0, 90.0), p=1.0)
    color = RandomColorMatrix(p=1.0)
    return {
        "usual, Kornia": lambda: sequence(batch.images, batch.targets.boxes - 0.5),
        "usual, torchvision": by_torchvision,
        "usual, detframe": policy(*usual(), color),
        "usual with mosaic": policy(Mosaic(p=1.0), *usual(), color),
        "usual with copy-paste": policy(*usual(), CopyPaste(), color),
        "usual with noise": policy(*usual(), color, SensorNoise(p=1.0)),
        "usual with all three": policy(Mosaic(p=1.0), *usual(), CopyPaste(), color, SensorNoise(p=1.0)),
        "JPEG, Kornia": lambda: kornias_jpeg(batch.images),
        "JPEG, torchvision's codec": lambda: [decode_jpeg(encode_jpeg(image, quality=70)) for image in pixels],
        "JPEG, detframe": policy(JPEG(p=1.0)),
    }


def table(seconds: dict[str, list[float]], batch_size: int) -> str:
    """Markdown: images a second by the median and by the quickest round, and the time as a multiple of detframe's."""
    own = statistics.median(seconds["usual, detframe"])
    lines = ["| | images/s | best round | time / detframe's usual |", "| --- | ---: | ---: | ---: |"]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(f"| {name} | {batch_size / median:.1f} | {batch_size / min(times):.1f} | {median / own:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Images and boxes as the loader yields them: uint8 tensors of one size and padded targets."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from detframe.boxes import box_area, clip_boxes, share_left
from detframe.data.annotations import AnnotationIndex
from detframe.data.images import ImageError, image_size, read_image
from detframe.data.masks import rasterise
from detframe.letterbox import letterbox, letterbox_size, letterbox_transform, to_input
from detframe.structures import Batch, Targets, TrainingObjects


class Sample(NamedTuple):
    """One image with its ``n`` boxes; what :func:`collate` pads and stacks."""

    image: Tensor  # [3, H, W] uint8 RGB
    boxes: Tensor  # [n, 4] float32, xyxy in the image's pixels
    labels: Tensor  # [n] int64
    ignore: Tensor  # [n] bool
    original_boxes: Tensor  # [n, 4] float32, xyxy in pixels of the original
    areas: Tensor  # [n] float32, square pixels of the original
    annotation_ids: Tensor  # [n] int64
    image_id: int
    original_size: tuple[int, int]  # (height, width)
    transform: Tensor  # [4] float32, see Batch.transforms


class DetectionDataset(Dataset["Sample | None"]):
    """Decodes, crops and resizes the images of an index.

    Degenerate boxes (a side of no length, inside the image, or not a number) are left out and counted in
    ``degenerate``; boxes that reach beyond the image are clipped to it.

    Args:
        index: Images and boxes.
        image_size: (height, width) of what comes out, in pixels.
        stretch: Fill that size instead of keeping the aspect ratio with a grey margin.
        crop_size: (height, width) of a random window, in the pixels of the resized image, that comes out instead. A box
            of which it shows less than ``min_visible`` becomes an ignore box.
        min_visible: Share of a box's area, 0..1.
        on_bad_image: ``error`` raises at an image that cannot be read; ``skip`` yields None and notes the image for
            :meth:`skipped`.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        image_size: tuple[int, int],
        stretch: bool = False,
        crop_size: tuple[int, int] | None = None,
        min_visible: float = 0.3,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        self.index = index
        self.image_size = image_size
        self.stretch = stretch
        self.crop_size = crop_size
        self.min_visible = min_visible
        self.on_bad_image = on_bad_image
        sides = index.boxes[:, 2:] - index.boxes[:, :2]
        self._usable: NDArray[np.bool_] = np.asarray(np.isfinite(index.boxes).all(axis=1) & (sides > 0).all(axis=1))
        self.degenerate = int((~self._usable).sum())
        self._skipped = torch.zeros(len(index), dtype=torch.bool).share_memory_()  # workers are other processes

    def __len__(self) -> int:
        """Count the images."""
        return len(self.index)

    def __getitem__(self, visit: int) -> Sample | None:
        """Sample of the image at the position ``visit % len(self)`` of the index, or None where it was skipped.

        What is random about it is drawn from the visit's own number (see
        :class:`~detframe.data.sampling.RepeatFactorSampler`), whichever process it is that loads it.
        """
        position = visit % len(self)
        path = self.index.path(position)
        try:
            image = read_image(path)
        except ImageError:
            if self.on_bad_image == "error":
                raise
            self._skipped[position] = True
            return None
        height, width = image.shape[1], image.shape[2]
        rows = self.index.rows(position)
        usable = self._usable[rows]
        original_boxes = torch.from_numpy(self.index.boxes[rows][usable]).float().reshape(-1, 4)
        original_boxes = clip_boxes(original_boxes, height, width)
        ignore = torch.from_numpy(self.index.ignore[rows][usable].copy())
        image, transform = self._resized(image)
        boxes = to_input(original_boxes, transform)
        if self.crop_size is not None:
            image, transform, boxes, ignore = _random_crop(
                image, transform, boxes, ignore, self.crop_size, self.min_visible, np.random.default_rng(visit)
            )
        live = box_area(boxes) > 0  # boxes outside the image or the window have no area left
        return Sample(
            image=image,
            boxes=boxes[live],
            labels=torch.from_numpy(self.index.labels[rows][usable].copy())[live],
            ignore=ignore[live],
            original_boxes=original_boxes[live],
            areas=torch.from_numpy(self.index.areas[rows][usable]).float()[live],
            annotation_ids=torch.from_numpy(self.index.annotation_ids[rows][usable])[live],
            image_id=int(self.index.image_ids[position]),
            original_size=(height, width),
            transform=transform,
        )

    def skipped(self) -> list[str]:
        """Files and reasons of the images skipped since the last call, in all worker processes."""
        positions = torch.nonzero(self._skipped).flatten().tolist()
        self._skipped.zero_()
        return [_reason(self.index.path(position)) for position in positions]

    def objects(self) -> TrainingObjects:
        """The objects as training sees them, for operators that must know the data before the first batch.

        Boxes are clipped and resized as :meth:`__getitem__` does it, but whole where that cuts windows. Images
        are read when their pixels are asked for; only of those that have objects but no stated size is the header read
        now. Under ``on_bad_image="skip"`` an image of which that fails is left out.

        Raises:
            ImageError: An image without a stated size cannot be read; of ``read_image``, that image cannot be.
        """
        index = self.index
        owners = index.image_of_box()
        rows = np.flatnonzero(self._usable & ~index.ignore)
        sizes = self._sizes(np.unique(owners[rows]))
        rows = rows[sizes[owners[rows], 0] > 0]
        distinct, kind = np.unique(sizes, axis=0, return_inverse=True)
        # A size of 0 x 0 stands for images that have no object or cannot be read.
        moves = np.array([self._transform(int(h), int(w)) if h else (1, 1, 0, 0) for h, w in distinct]).reshape(-1, 4)
        transforms = moves[kind.reshape(-1)]
        limits = torch.from_numpy(np.tile(sizes[owners[rows]][:, ::-1], 2)).float()  # [N, 4] width, height, ...
        boxes = torch.from_numpy(index.boxes[rows]).float().clamp(min=0)
        boxes = torch.minimum(boxes, limits)
        boxes = to_input(boxes[:, None], torch.from_numpy(transforms[owners[rows]]).float())[:, 0]
        live = box_area(boxes) > 0
        rows = rows[live.numpy()]

        def read_mask(item: int) -> Tensor | None:
            row = int(rows[item])
            outline = index.segmentations[row] if index.segmentations else None
            if outline is None:
                return None
            height, width, _ = self._target(*(int(side) for side in sizes[owners[row]]))
            mask = rasterise(outline, (height, width), transforms[owners[row]].tolist())
            return None if mask is None else torch.from_numpy(mask)

        return TrainingObjects(
            boxes=boxes[live],
            labels=torch.from_numpy(index.labels[rows]),
            images=torch.from_numpy(owners[rows]),
            class_names=index.class_names,
            image_count=len(index),
            read_image=self._read_whole,
            read_mask=read_mask,
        )

    def _read_whole(self, position: int) -> Tensor:
        """One image ``[3, H, W]`` as training sees it, but not cut to a window."""
        return self._resized(read_image(self.index.path(position)))[0]

    def _resized(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """An image as training sees it, but not cut to a window, and its transform."""
        height, width = image.shape[1], image.shape[2]
        target = self._target(height, width)
        if target[:2] == (height, width):  # a copy would cost a quarter of the decoding
            return image, letterbox_transform(height, width, *target)
        images, transform = letterbox(image[None], *target)
        return images[0], transform

    def _target(self, height: int, width: int) -> tuple[int, int, bool]:
        """To which (height, width) an image of this size is resized, and whether it fills that.

        An image that is larger than the window keeps the scale at which validation sees it, and needs no margin.
        """
        if self.crop_size is not None:
            resized = letterbox_size(height, width, self.image_size[0], self.image_size[1], self.stretch)
            if resized[0] > self.crop_size[0] or resized[1] > self.crop_size[1]:
                return *resized, True
        return *(self.crop_size or self.image_size), self.stretch

    def _transform(self, height: int, width: int) -> Sequence[float]:
        """(scale_x, scale_y, offset_x, offset_y) from an original of this size to what training sees, but for crops."""
        return letterbox_transform(height, width, *self._target(height, width)).tolist()

    def _sizes(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(height, width) ``[M, 2]`` of the images at these positions, 0 for others and for what is to be skipped."""
        sizes = np.zeros_like(self.index.image_sizes)
        sizes[positions] = self.index.image_sizes[positions]
        unknown = positions[(sizes[positions] == 0).any(axis=1)]
        with ThreadPoolExecutor() as pool:  # a header costs a wait for the disk, no arithmetic
            sizes[unknown] = np.array(list(pool.map(self._header_size, unknown.tolist()))).reshape(-1, 2)
        return sizes

    def _header_size(self, position: int) -> tuple[int, int]:
        try:
            return image_size(self.index.path(position))
        except ImageError:
            if self.on_bad_image == "error":
                raise
            return 0, 0


def _random_crop(
    image: Tensor,
    transform: Tensor,
    boxes: Tensor,
    ignore: Tensor,
    size: tuple[int, int],
    min_visible: float,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, transform, boxes and ignore flags of a window, centred on grey where the image is smaller than that."""
    top, left = (int(random.integers(max(image.shape[i + 1] - size[i], 0) + 1)) for i in range(2))
    window = image[:, top : top + size[0], left : left + size[1]]
    shifted = boxes - torch.tensor([left, top, left, top], dtype=torch.float32)
    clipped = clip_boxes(shifted, window.shape[1], window.shape[2])
    windows, centred = letterbox(window[None], *size)
    offset = transform[2:] - torch.tensor([left, top], dtype=torch.float32) + centred[2:]
    return (
        windows[0],
        torch.cat((transform[:2], offset)),
        to_input(clipped, centred),
        ignore | (share_left(clipped, shifted) < min_visible),
    )


def _reason(path: Path) -> str:
    """Why an image was skipped, found out again: a worker can only leave a mark."""
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return f"{path}: could not be read, but can be now; look at the disk or the network that it comes from"


def collate(samples: Sequence[Sample | None]) -> Batch | None:
    """Stack samples and pad their boxes to the longest list; skipped ones are left out, None where none is left."""
    present = [sample for sample in samples if sample is not None]
    if not present:
        return None
    count = max(len(sample.boxes) for sample in present)
    pad = torch.nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(sample.boxes) for sample in present])
    return Batch(
        images=torch.stack([sample.image for sample in present]),
        targets=Targets(
            boxes=pad([sample.boxes for sample in present], batch_first=True),
            labels=pad([sample.labels for sample in present], batch_first=True),
            ignore=pad([sample.ignore for sample in present], batch_first=True),
            valid=torch.arange(count) < lengths[:, None],
        ),
        original_boxes=pad([sample.original_boxes for sample in present], batch_first=True),
        areas=pad([sample.areas for sample in present], batch_first=True),
        annotation_ids=pad([sample.annotation_ids for sample in present], batch_first=True),
        image_ids=torch.tensor([sample.image_id for sample in present]),
        original_sizes=torch.tensor([sample.original_size for sample in present]),
        transforms=torch.stack([sample.transform for sample in present]),
    )

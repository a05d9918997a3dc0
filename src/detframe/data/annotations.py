"""The format-neutral index of images and boxes that every reader fills, every writer empties and training reads."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detframe.listing import below

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".j2k", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings, in lower case, by which an image is recognised in a folder."""

UNREADABLE = hashlib.sha256().digest()
"""What stands for the content of a file that cannot be read."""

_OF_IMAGES = ("images-not-found", "missing-image", "unreadable-image")


class DataError(ValueError):
    """A data set that cannot be used; the message says what was found, where, and what to do."""


class Category(NamedTuple):
    """A class as its file names it. Label ``i`` is ``categories[i]``; ``id`` lives only in readers and writers."""

    id: int
    name: str


class Fault(NamedTuple):
    """One thing wrong with a data set, named so that a person finds it."""

    kind: str  # kebab-case, as `detframe check --help` lists them: "missing-image", "degenerate-box", ...
    severity: str  # "error" (training would fail or learn something false) or "warning"
    file: str  # the file to open
    item: str  # "image 17", "annotation 3", "line 4", or "" for the whole file
    message: str  # what was found, and the cure


@dataclass(frozen=True)
class AnnotationIndex:
    """Images and boxes of one split in flat arrays; the boxes of an image are contiguous.

    ``M`` images, ``N`` boxes. Coordinates are float64, xyxy in pixels of the image as displayed (EXIF orientation
    applied), exactly as the file states them: degenerate boxes and boxes outside are kept here, found by
    :mod:`detframe.data.checks` and left out by the data set, which counts them.
    """

    source: Path  # the file or folder the index was read from
    image_root: Path  # file names are relative to it
    categories: tuple[Category, ...]
    image_ids: NDArray[np.int64]  # [M]
    file_names: tuple[str, ...]  # [M]
    image_sizes: NDArray[np.int64]  # [M, 2] (height, width) as stated by the file, 0 where the format does not say
    boxes: NDArray[np.float64]  # [N, 4]
    labels: NDArray[np.int64]  # [N] 0..C-1
    ignore: NDArray[np.bool_]  # [N] crowd, difficult, ignore
    areas: NDArray[np.float64]  # [N] square pixels, the annotation's own where the format has one
    annotation_ids: NDArray[np.int64]  # [N]
    offsets: NDArray[np.int64]  # [M + 1]: the boxes of image i are offsets[i]:offsets[i + 1]
    metadata: tuple[dict[str, Any], ...] = field(default=())  # [M] further columns of an image (board, camera), or ()
    annotation_files: tuple[Path, ...] = ()  # [M] where the format has a file for each image, else () and all in source
    # [N] COCO's own: polygons [[x, y, x, y, ...], ...], a run-length encoded mask {"size", "counts"}, or None; or ()
    segmentations: tuple[Any, ...] = ()

    def __len__(self) -> int:
        """Count the images."""
        return len(self.file_names)

    @property
    def class_names(self) -> list[str]:
        """Names by label, 0..C-1."""
        return [category.name for category in self.categories]

    def path(self, image: int) -> Path:
        """Path of the file of image ``image`` (its position, not its id)."""
        return self.image_root / self.file_names[image]

    def annotation_file(self, image: int) -> Path:
        """The file that the boxes of image ``image`` (its position) are in."""
        return self.annotation_files[image] if self.annotation_files else self.source

    def rows(self, image: int) -> slice:
        """Rows of the box arrays that belong to image ``image`` (its position)."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def image_of_box(self) -> NDArray[np.int64]:
        """``[N]`` position of each box's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def column(self, name: str) -> list[str]:
        """``[M]`` what a column of the images' metadata says of each.

        Raises:
            DataError: An image has no such column.
        """
        missing = [i for i in range(len(self)) if not self.metadata or name not in self.metadata[i]]
        if missing:
            raise DataError(f"{self.source}: image {self.image_ids[missing[0]]} has no {name!r} to group by.")
        return [str(metadata[name]) for metadata in self.metadata]

    def annotations_hash(self) -> str:
        """SHA-256 of names, boxes, labels, flags and outlines where there are, whatever format they were read from."""
        digest = hashlib.sha256()
        digest.update("\n".join((*self.class_names, *self.file_names)).encode())
        for values in (self.image_sizes, self.boxes, self.labels, self.ignore, self.offsets):
            digest.update(np.ascontiguousarray(values).tobytes())
        for segmentation in self.segmentations:
            polygons = segmentation if isinstance(segmentation, list) else []
            for polygon in polygons:  # as numbers: to write them as text takes minutes on a large data set
                digest.update(array("d", polygon))
            digest.update(str(len(polygons)).encode() if polygons else json.dumps(segmentation).encode())
        return digest.hexdigest()

    def images_hash(self) -> str:
        """SHA-256 of the image files' content, in order; a file that cannot be read counts as empty."""
        return _joined(self.image_digests())

    def hashes(self, image_digests: Sequence[bytes]) -> dict[str, str]:
        """SHA-256 of the split: ``hash`` of all of it, and ``annotations_hash`` and ``images_hash`` apart.

        Args:
            image_digests: Of :meth:`image_digests`, which reads all images.
        """
        parts = {"annotations_hash": self.annotations_hash(), "images_hash": _joined(image_digests)}
        return {"hash": hashlib.sha256("".join(parts.values()).encode()).hexdigest(), **parts}

    def image_digests(self) -> list[bytes]:
        """``[M]`` SHA-256 of each image file's content; a file that cannot be read counts as empty."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(_digest_or_empty, map(self.path, range(len(self)))))

    def subset(self, images: Sequence[int] | NDArray[np.int64]) -> AnnotationIndex:
        """The same index with only the images at these positions, in this order."""
        positions = np.asarray(images, dtype=np.int64)
        counts = np.diff(self.offsets)[positions]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.offsets[:-1][positions] - offsets[:-1], counts) + np.arange(offsets[-1])
        return AnnotationIndex(
            source=self.source,
            image_root=self.image_root,
            categories=self.categories,
            image_ids=self.image_ids[positions],
            file_names=tuple(self.file_names[i] for i in positions),
            image_sizes=self.image_sizes[positions],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            ignore=self.ignore[rows],
            areas=self.areas[rows],
            annotation_ids=self.annotation_ids[rows],
            offsets=offsets,
            metadata=tuple(self.metadata[i] for i in positions) if self.metadata else (),
            annotation_files=tuple(self.annotation_files[i] for i in positions) if self.annotation_files else (),
            segmentations=tuple(self.segmentations[i] for i in rows) if self.segmentations else (),
        )


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content.

    Raises:
        OSError: It cannot be read.
        ValueError: No file can have this name.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _joined(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest_or_empty(path: Path) -> bytes:
    try:
        return file_digest(path)
    except (OSError, ValueError):
        return UNREADABLE


@dataclass(frozen=True)
class Reading:
    """What a reader makes of one split: the index of all that could be read, and all that was wrong or left behind.

    Boxes with an error-level fault of their own (unknown class or image, not a number) are not in the index.
    """

    index: AnnotationIndex
    faults: list[Fault]
    uncarried: Counter[str]  # fields of the format that the index has no place for -> how often they hold something


def require_sound(reading: Reading) -> AnnotationIndex:
    """The index of a reading that met no error; warnings, degenerate boxes and boxes outside the image may pass.

    Raises:
        DataError: Naming the first errors and how many there are.
    """
    errors = [fault for fault in reading.faults if fault.severity == "error"]
    if errors:
        named = [f"{fault.file}{', ' + fault.item if fault.item else ''}: {fault.message}" for fault in errors]
        raise DataError(
            f"{reading.index.source}: {len(errors)} errors in the annotations. `detframe check` lists all of them."
            f"{below(named)}"
        )
    return reading.index


def labels_alone(reading: Reading) -> Reading:
    """A reading without the faults that are of its images, for those who can do without them."""
    faults = [fault for fault in reading.faults if fault.kind not in _OF_IMAGES]
    return replace(reading, faults=faults)


def build_index(
    *,
    source: Path,
    image_root: Path,
    categories: Sequence[Category],
    image_ids: NDArray[np.int64],
    file_names: Sequence[str],
    image_sizes: NDArray[np.int64],
    image_of_box: NDArray[np.int64],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    ignore: NDArray[np.bool_],
    areas: NDArray[np.float64],
    annotation_ids: NDArray[np.int64],
    metadata: Sequence[dict[str, Any]] = (),
    annotation_files: Sequence[Path] = (),
    segmentations: Sequence[Any] = (),
) -> AnnotationIndex:
    """Bring boxes of any order into image order; those of one image keep their order.

    Args:
        source: The file or folder read.
        image_root: Folder of the images.
        categories: Classes by label.
        image_ids: ``[M]``.
        file_names: M names relative to ``image_root``.
        image_sizes: ``[M, 2]`` (height, width), 0 where unknown.
        image_of_box: ``[N]`` position of each box's image, 0..M-1.
        boxes: ``[N, 4]`` xyxy in pixels.
        labels: ``[N]`` 0..C-1.
        ignore: ``[N]``.
        areas: ``[N]`` square pixels; NaN takes the box's own.
        annotation_ids: ``[N]``.
        metadata: M further columns, or none.
        annotation_files: M files, or none where all boxes are in ``source``.
        segmentations: N of COCO's own, each None where a box has none; or none at all.
    """
    order = np.argsort(image_of_box, kind="stable")
    boxes = boxes.reshape(-1, 4)[order]
    areas = areas[order]
    areas = np.where(np.isnan(areas), (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), areas)
    counts = np.bincount(image_of_box, minlength=len(file_names))
    return AnnotationIndex(
        source=source,
        image_root=image_root,
        categories=tuple(categories),
        image_ids=image_ids,
        file_names=tuple(file_names),
        image_sizes=image_sizes.reshape(-1, 2),
        boxes=boxes,
        labels=labels[order],
        ignore=ignore[order],
        areas=areas,
        annotation_ids=annotation_ids[order],
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        metadata=tuple(metadata) if any(metadata) else (),
        annotation_files=tuple(annotation_files),
        segmentations=tuple(segmentations[i] for i in order) if any(segmentations) else (),
    )


def number_missing(ids: Sequence[int | None]) -> NDArray[np.int64]:
    """Ids with the missing ones numbered on from the highest, or from 1 where none is stated."""
    highest = max((identity for identity in ids if identity is not None), default=0)
    numbers = iter(range(highest + 1, highest + 1 + len(ids)))
    return np.array([next(numbers) if identity is None else identity for identity in ids], dtype=np.int64)


def repeated(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions, ascending, of values that an earlier position holds already."""
    _, first = np.unique(values, return_index=True)
    later = np.ones(len(values), dtype=np.bool_)
    later[first] = False
    return np.flatnonzero(later)


def repeated_file_faults(source: Path, file_names: Iterable[str], image_ids: NDArray[np.int64]) -> list[Fault]:
    """One error for each image whose file an earlier image of the split has: each would lack the other's boxes."""
    first: dict[str, int] = {}
    faults = []
    for position, name in enumerate(file_names):
        earlier = first.setdefault(name, position)
        if earlier != position:
            message = (
                f"names the file {name}, as image {image_ids[earlier]} does; "
                "move the boxes to one of them and remove the other"
            )
            faults.append(Fault("file-named-twice", "error", str(source), f"image {image_ids[position]}", message))
    return faults

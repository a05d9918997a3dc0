"""The images that an artefact is proven on: those of an annotated split, and strange ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detframe.data.annotations import AnnotationIndex, DataError, require_sound
from detframe.data.held_out import OtherHeldOutError, held_out_of_run
from detframe.data.images import read_image
from detframe.data.sources import read_splits
from detframe.export.runtime import Images
from detframe.export.verify import strange_images
from detframe.metrics.rows import TruthRows


@dataclass(frozen=True)
class AnnotatedSplit:
    """A split to prove on."""

    name: str
    index: AnnotationIndex
    truths: TruthRows
    areas: torch.Tensor  # [G] square pixels
    hash: str  # of its content


def annotated_split(data: Path, images: int, class_names: list[str]) -> AnnotatedSplit:
    """The validation split of a data set, or its test split, or the only one; of a run also what it held out.

    Args:
        data: As `detframe check` takes it.
        images: Take so many of its images, evenly chosen; 0 takes all.
        class_names: Of the detector.

    Raises:
        DataError: It cannot be read, or has other classes.
    """
    held = held_out_of_run(data)
    if held is not None:
        return split_of(held[1], "val", images, class_names)
    readings = read_splits(data)
    name = next((name for name in ("val", "test") if name in readings), next(iter(readings)))
    return split_of(require_sound(readings[name]), name, images, class_names)


def split_of(index: AnnotationIndex, name: str, images: int, class_names: list[str]) -> AnnotatedSplit:
    """An index as a split to prove on.

    Args:
        index: Sound annotations.
        name: Of the split.
        images: As for :func:`annotated_split`.
        class_names: Of the detector.

    Raises:
        DataError: It has other classes.
    """
    if index.class_names != class_names:
        raise DataError(
            f"{index.source}: has the classes {', '.join(index.class_names)}; the detector's are "
            f"{', '.join(class_names)}. Name the data that it was trained on with --data."
        )
    if images and images < len(index):
        index = index.subset(np.linspace(0, len(index) - 1, images).round().astype(np.int64))
    truths = TruthRows(
        images=torch.from_numpy(index.image_of_box()),
        boxes=torch.from_numpy(index.boxes).float(),
        labels=torch.from_numpy(index.labels),
        ignore=torch.from_numpy(index.ignore.copy()),
    )
    areas = torch.from_numpy(index.areas).float()
    return AnnotatedSplit(name, index, truths, areas, index.hashes(index.image_digests())["hash"])


def calibration_paths(data: Path) -> list[Path]:
    """Training images that ranges of activations are read from.

    Args:
        data: As `detframe check` takes it.

    Raises:
        DataError: There is no training split.
    """
    from detframe.export.quantize import calibration_images

    held = held_out_of_run(data)
    if held is not None:
        return calibration_images(held[0])
    readings = read_splits(data)
    if "train" not in readings:
        raise DataError(f"{data}: --precision int8 needs a training split. Name data that has one with --data.")
    return calibration_images(require_sound(readings["train"]))


def split_of_run(data: Path | None, run: Path, images: int, class_names: list[str]) -> AnnotatedSplit | None:
    """The split of data that was named, or of what a run's configuration names.

    Args:
        data: What was named; None takes the run's.
        run: Its folder.
        images: As for :func:`annotated_split`.
        class_names: Likewise.

    Returns:
        None where nothing was named and the run's own cannot be read.

    Raises:
        DataError: What was named cannot be read, or has other classes; or the run may have trained on what it is.
    """
    try:
        return annotated_split(data if data is not None else run / "config.yaml", images, class_names)
    except OtherHeldOutError:
        raise
    except DataError:
        if data is not None:
            raise
        return None


class ProofImages:
    """Annotated images, then strange ones, by name. They are read anew each time, as they may be many.

    Args:
        split: The annotated ones; None where there are none.
        height: Of the network's input in pixels.
        width: Likewise.
    """

    def __init__(self, split: AnnotatedSplit | None, height: int, width: int) -> None:
        self.split = split
        self.strange = strange_images(height, width)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.strange) + (0 if self.split is None else len(self.split.index))

    def __iter__(self) -> Iterator[tuple[str, Images]]:
        """Names and images ``[B, 3, H, W]`` uint8 RGB."""
        if self.split is not None:
            index = self.split.index
            for place, name in enumerate(index.file_names):
                yield name, read_image(index.path(place))[None].numpy()
        yield from self.strange.items()

"""The verb ``split``: a data set dealt out anew, groups whole and classes alike."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from detframe.data.annotations import AnnotationIndex, DataError, build_index, require_sound
from detframe.data.convert import Format, Transfer, require_empty, require_same_classes, write_splits
from detframe.data.fingerprints import fingerprints
from detframe.data.near_duplicates import groups_of, near_duplicates
from detframe.data.sources import read_splits
from detframe.data.stratified import assign_folds
from detframe.refusals import refuse

NAMES = ("train", "val", "test")


def split(
    data: Path,
    out: Path,
    fractions: list[float] | None = None,
    groups: str | None = None,
    to: Format = "coco",
    images: Transfer = "link",
    seed: int = 0,
) -> int:
    """Deal the images of a data set out into train, val and test, alike in classes, with groups in one split.

    All images of DATA are dealt, whatever split they are in now. Each split gets its share of every class, by instances
    and by images, and of the images without boxes, as far as groups allow. Images that are nearly the same, as
    `detframe duplicates` finds them, stay in one split; so do images with the same value in the column --groups of
    their metadata, such as a board, a patient or a camera. DATA stays as it is; what is written is read back and
    compared.

    Exit code: 0 when all is written; 1 when the comparison differs; 2, with nothing written, when the input cannot be
    used.

    Args:
        data: As `detframe check` takes it.
        out: Folder to make. It may exist only if it is empty.
        fractions: Shares of train, val and test; two are of train and val. By default [0.8, 0.1, 0.1].
        groups: Column of the images' metadata.
        to: Format to write.
        images: How the images get there: hard links, `symlink`, or `copy`.
        seed: The same one gives the same splits.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    shares = [0.8, 0.1, 0.1] if fractions is None else fractions
    try:
        if not 2 <= len(shares) <= len(NAMES) or any(not 0 < share < 1 for share in shares):
            raise DataError(f"--fractions has {shares}; give two or three shares above 0, such as '[0.8, 0.1, 0.1]'.")
        require_empty(out)
        readings = read_splits(data)
        whole = pooled({name: require_sound(reading) for name, reading in readings.items()})
        members = image_groups(whole, groups)
        try:
            fold_of = assign_folds(members, instances(whole), shares, seed)
        except ValueError as error:
            raise DataError(f"{data}: {error}. Give fewer fractions, or other --groups.") from error
        parts = {
            name: whole.subset(np.flatnonzero(np.array(fold_of) == fold))
            for fold, name in enumerate(NAMES[: len(shares)])
        }
        uncarried = sum((reading.uncarried for reading in readings.values()), Counter[str]())
        result = write_splits(parts, out, to, images, uncarried, console)
    except (DataError, OSError) as error:
        return refuse(error, out=out)
    console.print(_table(parts))
    console.print(f"{len(whole)} images in {len(set(members))} groups")
    return result


def pooled(indices: dict[str, AnnotationIndex]) -> AnnotationIndex:
    """All splits as one; ids that two of them use are numbered anew.

    Raises:
        DataError: Their classes differ.
    """
    require_same_classes(indices)
    parts = list(indices.values())
    first = parts[0]
    root = Path(os.path.commonpath([index.image_root.resolve() for index in parts]))
    image_ids = _distinct(np.concatenate([index.image_ids for index in parts]))
    starts = np.cumsum([0, *(len(index) for index in parts[:-1])]).tolist()
    owners = [index.image_of_box() + start for index, start in zip(parts, starts, strict=True)]
    return build_index(
        source=first.source,
        image_root=root,
        categories=first.categories,
        image_ids=image_ids,
        file_names=[os.path.relpath(index.path(i).resolve(), root) for index in parts for i in range(len(index))],
        image_sizes=np.concatenate([index.image_sizes for index in parts]),
        image_of_box=np.concatenate(owners),
        boxes=np.concatenate([index.boxes for index in parts]),
        labels=np.concatenate([index.labels for index in parts]),
        ignore=np.concatenate([index.ignore for index in parts]),
        areas=np.concatenate([index.areas for index in parts]),
        annotation_ids=_distinct(np.concatenate([index.annotation_ids for index in parts])),
        metadata=[metadata for index in parts for metadata in index.metadata or [{}] * len(index)],
        segmentations=[s for index in parts for s in index.segmentations or [None] * len(index.boxes)],
    )


def image_groups(index: AnnotationIndex, column: str | None) -> list[int]:
    """The number of each image's group, ``[I]``: images of one picture, and images of one value of a column.

    Raises:
        DataError: An image has no such column.
    """
    pairs = []
    if column is not None:
        _, first, group = np.unique(index.column(column), return_index=True, return_inverse=True)
        pairs.append((np.arange(len(index)), first[group]))
    found = fingerprints([index.path(i) for i in range(len(index))], show_progress=True)
    near = near_duplicates(found, show_progress=True)
    pairs.append((near.first, near.second))
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return groups_of(one, other, len(index))


def instances(index: AnnotationIndex) -> NDArray[np.int64]:
    """How many boxes of each class each image has, ``[I, C]``."""
    counts = np.zeros((len(index), len(index.categories)), dtype=np.int64)
    np.add.at(counts, (index.image_of_box(), index.labels), 1)
    return counts


def _distinct(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids if len(np.unique(ids)) == len(ids) else np.arange(1, len(ids) + 1, dtype=np.int64)


def _table(parts: dict[str, AnnotationIndex]) -> Table:
    """Images and instances of each class by split, with the split's share of them."""
    table = Table("", *parts)
    columns = [[len(index), *instances(index).sum(axis=0).tolist()] for index in parts.values()]
    for row, name in enumerate(["images", *next(iter(parts.values())).class_names]):
        values = [column[row] for column in columns]
        table.add_row(name, *(f"{value} ({value / max(sum(values), 1):.1%})" for value in values))
    return table

"""The verb ``convert``: write a data set in another format, images included, and prove that nothing was lost."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from rich.console import Console

from detframe.data.annotations import AnnotationIndex, DataError, require_sound
from detframe.data.coco import write_coco
from detframe.data.sources import read_splits
from detframe.data.voc import write_voc
from detframe.data.yolo import sayable_in_yolo, write_yolo
from detframe.listing import below
from detframe.refusals import refuse
from detframe.unfinished import unfinished

Format = Literal["coco", "voc", "yolo"]
Transfer = Literal["link", "symlink", "copy"]

_TOLERANCE = 0.01  # pixels
_NAMED = 10


def convert(data: Path, out: Path, to: Format, images: Transfer = "link") -> int:
    """Write all splits of a data set in another format, with their images, into a new folder.

    Boxes agree to 0.01 px; names and ids of classes, ids of images and boxes, ignore boxes, areas, images without boxes
    and further columns of images are kept. What a format has no place for goes into files and tags that other tools
    pass over, so that converting back restores it. The result is read back and compared. Whatever is not carried, such
    as segmentations where OUT is not COCO, is counted in the output.

    Exit code: 0 when all is written; 1 when the comparison differs; 2, with nothing written, when DATA cannot be read,
    its annotations have errors, an image is missing, or OUT is in use.

    Args:
        data: A COCO file, a folder of COCO files, a Pascal VOC root, a YOLO root or data.yaml, or a configuration.
        out: Folder to make. It may exist only if it is empty.
        to: Format to write.
        images: How the images get there: ``link`` makes hard links, which need no space (copies where OUT is on
            another disk); ``symlink`` points to the originals; ``copy`` makes the folder independent.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        return _convert(data, out, to, images, console)
    except (DataError, OSError) as error:
        return refuse(error, out=out)


def _convert(data: Path, out: Path, to: Format, images: Transfer, console: Console) -> int:
    require_empty(out)
    readings = read_splits(data)
    indices = {split: require_sound(reading) for split, reading in readings.items()}
    uncarried = sum((reading.uncarried for reading in readings.values()), Counter[str]())
    return write_splits(indices, out, to, images, uncarried, console)


def require_empty(out: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        DataError: It does, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is not empty, and nothing is ever overwritten. Name a new folder, or empty this one.")


def write_splits(
    indices: dict[str, AnnotationIndex],
    out: Path,
    to: Format,
    images: Transfer,
    uncarried: Counter[str],
    console: Console,
) -> int:
    """Write splits as a data set with their images, read it back, compare, and say in words what was done.

    Args:
        indices: By name.
        out: Folder to make; :func:`require_empty`.
        to: Format to write.
        images: How the images get there.
        uncarried: What the reader had no place for, for the output.
        console: Where that goes.

    Returns:
        0, or 1 where what is read back differs.

    Raises:
        DataError: Classes differ between splits, or an image is missing.
    """
    require_same_classes(indices)
    _require_images(indices)
    if to != "coco":
        indices = {split: _with_sizes(index) for split, index in indices.items()}
        outlines = sum(s is not None for index in indices.values() for s in index.segmentations)
        uncarried += Counter({"annotations: segmentation": outlines})
        indices = {split: dataclasses.replace(index, segmentations=()) for split, index in indices.items()}
    with _whole(out) as folder:
        placed = _placed(indices, folder, to)
        _write(placed, folder, to)
        copied = _transfer(indices, placed, images)
        differences = compare_splits(placed, {split: reading.index for split, reading in read_splits(folder).items()})

    if images == "link" and copied:
        console.print(f"{copied} images were copied: hard links to {out} are impossible")
    for split, index in placed.items():
        empty = int((np.diff(index.offsets) == 0).sum())
        console.print(f"{split}: {len(index)} images ({empty} without boxes), {len(index.boxes)} boxes")
    _report(console, "Files renamed", _renamed(indices, placed))
    if to == "yolo":
        unsaid = sum(int((~sayable_in_yolo(index)).sum()) for index in placed.values())
        if unsaid:
            console.print(
                f"{unsaid} boxes that YOLO cannot say (ignore boxes, boxes outside) are in {out / 'detframe'}"
            )
        if not {"train", "val"} <= set(placed):
            console.print(f"YOLO tools expect `train` and `val`; {out / 'data.yaml'} has {', '.join(placed)}")
    _report(console, "Not carried", [f"{name} ({count} times)" for name, count in sorted(uncarried.items())])
    _report(console, "Reading it back differs", differences)
    if not differences:
        console.print(f"Written to {out}; read back, all boxes agree to {_TOLERANCE} px")
    return 1 if differences else 0


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write into, whose content is in ``out`` when all went well, and gone otherwise."""
    if not out.exists():
        with unfinished(out) as folder:
            folder.mkdir()
            yield folder
        return
    with TemporaryDirectory(dir=out) as name:  # within: where `out` is mounted, nothing can take its name
        yield Path(name)
        for entry in Path(name).iterdir():
            entry.replace(out / entry.name)


def compare_splits(before: dict[str, AnnotationIndex], after: dict[str, AnnotationIndex]) -> list[str]:
    """What two data sets with the same ids differ in, in words; nothing where their boxes agree to 0.01 px."""
    if set(before) != set(after):
        return [f"splits {', '.join(sorted(before))} became {', '.join(sorted(after))}"]
    return [f"{split}: {difference}" for split in before for difference in _differences(before[split], after[split])]


def _differences(before: AnnotationIndex, after: AnnotationIndex) -> list[str]:
    if sorted(before.categories) != sorted(after.categories):
        return ["the classes"]
    first, second = np.argsort(before.image_ids), np.argsort(after.image_ids)
    if not np.array_equal(before.image_ids[first], after.image_ids[second]):
        return ["the image ids"]
    found = []
    if [before.file_names[i] for i in first] != [after.file_names[i] for i in second]:
        found.append("the file names")
    if [_metadata(before, i) for i in first] != [_metadata(after, i) for i in second]:
        found.append("further columns of images")
    rows, other = np.argsort(before.annotation_ids), np.argsort(after.annotation_ids)
    if not np.array_equal(before.annotation_ids[rows], after.annotation_ids[other]):
        return [*found, "the ids of boxes"]
    for name, ours, theirs in (
        ("images of boxes", _image_id_of_box(before), _image_id_of_box(after)),
        ("classes of boxes", _class_id_of_box(before), _class_id_of_box(after)),
        ("ignore flags", before.ignore, after.ignore),
    ):
        if not np.array_equal(ours[rows], theirs[other]):
            found.append(name)
    if (np.abs(before.boxes[rows] - after.boxes[other]) > _TOLERANCE).any():
        found.append("boxes by more than 0.01 px")
    if _segmentations(before, rows.tolist()) != _segmentations(after, other.tolist()):
        found.append("segmentations")
    return found


def _segmentations(index: AnnotationIndex, rows: Sequence[int]) -> list[object]:
    return [index.segmentations[row] for row in rows] if index.segmentations else [None] * len(rows)


def _metadata(index: AnnotationIndex, position: int) -> dict[str, object]:
    return index.metadata[position] if index.metadata else {}


def _image_id_of_box(index: AnnotationIndex) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return index.image_ids[index.image_of_box()]


def _class_id_of_box(index: AnnotationIndex) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([category.id for category in index.categories], dtype=np.int64)[index.labels]


def require_same_classes(indices: dict[str, AnnotationIndex]) -> None:
    """Refuse splits whose classes differ.

    Raises:
        DataError: They do; the message has both lists.
    """
    (first, reference), *others = indices.items()
    for split, index in others:
        if index.categories != reference.categories:
            raise DataError(
                f"{index.source}: the classes of {split} are {_named(index)}, those of {first} {_named(reference)}. "
                "Give all splits the same list of classes, used or not."
            )


def _require_images(indices: dict[str, AnnotationIndex]) -> None:
    missing = [index.path(i) for index in indices.values() for i in range(len(index)) if not index.path(i).is_file()]
    if missing:
        raise DataError(f"{missing[0]}: the image is missing, {len(missing)} in all. `detframe check` lists them.")


def _named(index: AnnotationIndex) -> str:
    return ", ".join(f"{category.id} {category.name}" for category in index.categories)


def _with_sizes(index: AnnotationIndex) -> AnnotationIndex:
    """The index with sizes that its file does not state taken from the images."""
    unknown = np.flatnonzero((index.image_sizes == 0).any(axis=1))
    if not len(unknown):
        return index
    from detframe.data.images import ImageError, image_size  # loads torch, which takes seconds

    sizes = index.image_sizes.copy()
    for position in unknown.tolist():
        try:
            sizes[position] = image_size(index.path(position))
        except ImageError as error:
            raise DataError(
                f"{index.source} states no size of image {index.image_ids[position]}, and {error}"
            ) from error
    return dataclasses.replace(index, image_sizes=sizes)


def _placed(indices: dict[str, AnnotationIndex], out: Path, to: Format) -> dict[str, AnnotationIndex]:
    """The indices with the folders and names that their images get in the new data set."""
    names = {split: _safe_names(index.file_names, distinct_stems=to != "coco") for split, index in indices.items()}
    if to != "voc":
        roots = {split: out / "images" / split for split in indices}
    else:  # has one folder for the images of all splits
        roots = dict.fromkeys(indices, out / "JPEGImages")
        uses = Counter(_stem(name) for split in indices for name in names[split])
        if max(uses.values(), default=0) > 1:
            names = {split: [f"{split}/{name}" for name in names[split]] for split in indices}
    return {
        split: dataclasses.replace(index, file_names=tuple(names[split]), image_root=roots[split], annotation_files=())
        for split, index in indices.items()
    }


def _safe_names(file_names: Sequence[str], distinct_stems: bool) -> list[str]:
    """Names below one folder: absolute ones and those with ``..`` lose their folder, repeated ones get a number."""
    identity: Callable[[str], str] = _stem if distinct_stems else str
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    result = []
    for name in file_names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            path = PurePosixPath(path.name)
        wanted = str(path)
        candidate = wanted
        while identity(candidate) in taken:
            numbers[wanted] += 1
            candidate = str(path.with_name(f"{path.stem}_{numbers[wanted] + 1}{path.suffix}"))
        taken.add(identity(candidate))
        result.append(candidate)
    return result


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _write(placed: dict[str, AnnotationIndex], out: Path, to: Format) -> None:
    if to == "voc":
        write_voc(placed, out)
    elif to == "yolo":
        write_yolo(placed, out)
    else:
        for split, index in placed.items():
            write_coco(index, out / f"{split}.json")


def _transfer(before: dict[str, AnnotationIndex], after: dict[str, AnnotationIndex], how: Transfer) -> int:
    """Bring the images to their new places; how many were copied."""
    copied = 0
    for split, index in before.items():
        after[split].image_root.mkdir(parents=True, exist_ok=True)
        for position in range(len(index)):
            source, target = index.path(position).resolve(), after[split].path(position)
            target.parent.mkdir(parents=True, exist_ok=True)
            if how == "symlink":
                target.symlink_to(source)
            elif how == "copy" or not _hard_link(source, target):
                shutil.copy2(source, target)
                copied += 1
    return copied


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        return False
    return True


def _renamed(before: dict[str, AnnotationIndex], after: dict[str, AnnotationIndex]) -> list[str]:
    return [
        f"{old} -> {new}"
        for split in before
        for old, new in zip(before[split].file_names, after[split].file_names, strict=True)
        if old != new
    ]


def _report(console: Console, title: str, entries: Iterable[str]) -> None:
    """Print a list with its length, of which the first entries are named."""
    entries = list(entries)
    if not entries:
        return
    console.print(f"{title} ({len(entries)}):{below(entries, _NAMED)}")

"""The verb ``check``: every fault of a data set with its file, id and reason, and a summary of each split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from detframe.data.annotations import AnnotationIndex, DataError, Fault, Reading, file_digest
from detframe.data.sources import read_splits
from detframe.refusals import refuse

_OUTSIDE_TOLERANCE = 0.01  # pixels: what a conversion may round
_SMALL_BELOW, _LARGE_FROM = 32.0**2, 96.0**2  # square pixels, COCO's classes of size
_QUANTILES = (0.05, 0.5, 0.95)
_FILES_AT_ONCE = 1024
_SHOWN_PER_KIND = 10


class ImageFile(NamedTuple):
    """What was found at the path of an image."""

    path: Path
    problem: str  # why it cannot be used, "" where it can
    size: tuple[int, int]  # (height, width) as displayed, (0, 0) where it cannot be read
    bytes: int  # -1 where there is no file


def check(data: Path, json: bool = False, headers_only: bool = False, workers: int = 0) -> int:
    """List every fault of a data set with its file, id and reason, and sum up each split.

    Errors, with which training fails or learns something false:
    missing-image, unreadable-image (every image is decoded), images-not-found, size-mismatch (the annotations state
    another size than the image has), malformed, missing-key, missing-annotation, not-a-number, not-normalised,
    unknown-class, unknown-image, duplicate-id, duplicate-class, file-named-twice, degenerate-box (a side of no length:
    the object is left out of training), outside-image (nothing of the box is inside), duplicate-box (same image, class
    and coordinates), class-mismatch (splits with different classes), image-in-two-splits (by content).

    Warnings:
    outside-image (a part is outside and is clipped), class-without-instance, duplicate-image (by content, within a
    split), missing-annotation (an image that counts as one without objects), missing-id, stale-note.

    Exit code: 0 when there is no error, warnings or not; 1 when there is one; 2 when DATA cannot be read at all.

    Args:
        data: A COCO file, a folder of COCO files, a Pascal VOC root, a YOLO root or data.yaml, or a configuration with
            a ``data:`` block.
        json: Print one JSON document with all faults and nothing else; the terminal shows the first of each kind.
        headers_only: Read only the headers of the images: many times as fast, but blind to files that are cut off.
        workers: Threads that read images; 0 takes one for each core.
    """
    console = Console(highlight=False, markup=False)
    try:
        readings = read_splits(data)
    except DataError as error:
        return refuse(error, json, {"data": str(data)})
    faults = find_faults(readings, headers_only, workers, show_progress=not json)
    summaries = {split: summarize(reading.index) for split, reading in readings.items()}
    errors = sum(fault.severity == "error" for fault in faults)
    if json:
        document = {
            "data": str(data),
            "errors": errors,
            "warnings": len(faults) - errors,
            "faults": [fault._asdict() for fault in faults],
            "splits": summaries,
        }
        print(dumps(document))
    else:
        _print_faults(console, faults, data)
        _print_summaries(console, summaries)
        console.print(f"{errors} errors, {len(faults) - errors} warnings in {data}")
    return 1 if errors else 0


def find_faults(
    readings: dict[str, Reading], headers_only: bool = False, workers: int = 0, show_progress: bool = False
) -> list[Fault]:
    """All faults of a data set, errors first, those of a kind together.

    Args:
        readings: Splits by name.
        headers_only: Do not decode the images.
        workers: Threads that read images; 0 takes one for each core.
        show_progress: Draw a progress bar on stderr.
    """
    # Some readers meet images that cannot be read; here every one is opened.
    of_images = ("missing-image", "unreadable-image")
    faults = [fault for reading in readings.values() for fault in reading.faults if fault.kind not in of_images]
    files: dict[str, list[ImageFile]] = {}
    for split, reading in readings.items():
        index = reading.index
        files[split] = list(_image_files(index, split, headers_only, workers, show_progress))
        faults += image_faults(index, files[split])
        faults += box_faults(index, np.array([file.size for file in files[split]], dtype=np.int64).reshape(-1, 2))
        faults += class_faults(index, split)
    faults += split_faults({split: reading.index for split, reading in readings.items()})
    faults += content_faults(files)
    return sorted(faults, key=lambda fault: (fault.severity, fault.kind))


def image_faults(index: AnnotationIndex, files: list[ImageFile]) -> list[Fault]:
    """Images that are missing, cannot be read, or have another size than the annotations state."""
    faults = []
    for position, file in enumerate(files):
        item = f"image {index.image_ids[position]}"
        stated = tuple(index.image_sizes[position].tolist())
        if file.problem:
            kind = "missing-image" if file.bytes < 0 else "unreadable-image"
            faults.append(Fault(kind, "error", str(file.path), item, file.problem))
        elif all(stated) and stated != file.size:
            stated_in = f"as {index.annotation_file(position)} states"
            turned = ", as if its EXIF rotation had been ignored" if stated == file.size[::-1] else ""
            message = (
                f"is {file.size[1]} x {file.size[0]} and not {stated[1]} x {stated[0]} {stated_in}{turned}; "
                "correct the size, and the boxes if they were drawn on the other"
            )
            faults.append(Fault("size-mismatch", "error", str(file.path), item, message))
    return faults


def box_faults(index: AnnotationIndex, sizes: NDArray[np.int64]) -> list[Fault]:
    """Boxes that are degenerate, outside their image or there twice.

    Args:
        index: Images and boxes.
        sizes: ``[M, 2]`` (height, width) of the image files; where 0, the sizes that the index states are taken.
    """
    image_of_box = index.image_of_box()
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    degenerate = np.asarray((sides <= 0).any(axis=1))
    limits = np.where(sizes > 0, sizes, index.image_sizes)[image_of_box][:, ::-1]  # [N, 2] (width, height)
    known = np.asarray((limits > 0).all(axis=1))
    beyond = np.maximum(-index.boxes[:, :2], index.boxes[:, 2:] - limits).max(axis=1, initial=-np.inf)  # [N] pixels
    nothing_inside = np.asarray(((index.boxes[:, 2:] <= 0) | (index.boxes[:, :2] >= limits)).any(axis=1))
    outside = known & ~degenerate & (beyond > _OUTSIDE_TOLERANCE)

    keys = np.column_stack([image_of_box, index.labels, index.boxes])
    order = np.lexsort(keys.T[::-1])
    twice = np.zeros(len(keys), dtype=np.bool_)
    twice[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)

    faults = []
    for row in np.flatnonzero(degenerate).tolist():
        message = f"has the sides {sides[row, 0]:g} x {sides[row, 1]:g}; draw it again or delete it"
        faults.append(_box_fault("degenerate-box", "error", index, image_of_box[row], row, message))
    for row in np.flatnonzero(outside).tolist():
        severity = "error" if nothing_inside[row] else "warning"
        extent = "lies" if nothing_inside[row] else f"reaches {beyond[row]:g} px"
        cure = "delete it or correct the size of the image" if nothing_inside[row] else "it is clipped"
        message = f"{extent} outside the image of {limits[row, 0]} x {limits[row, 1]}; {cure}"
        faults.append(_box_fault("outside-image", severity, index, image_of_box[row], row, message))
    for row in np.flatnonzero(twice).tolist():
        message = "has the class and coordinates of an earlier box; delete one: the other could never be detected"
        faults.append(_box_fault("duplicate-box", "error", index, image_of_box[row], row, message))
    return faults


def class_faults(index: AnnotationIndex, split: str) -> list[Fault]:
    """Classes of which the split has no instance."""
    counts = np.bincount(index.labels[~index.ignore], minlength=len(index.categories))
    message = f"has no instance in {split}, so that it cannot be learnt or measured there; label some or remove it"
    return [
        Fault("class-without-instance", "warning", str(index.source), f"class {category.name} in {split}", message)
        for category, count in zip(index.categories, counts, strict=True)
        if count == 0
    ]


def split_faults(indices: dict[str, AnnotationIndex]) -> list[Fault]:
    """Splits whose classes differ from those of the first one: a label would mean something else in each."""
    (first, reference), *others = indices.items()
    faults = []
    for split, index in others:
        if index.categories != reference.categories:
            different = sorted(set(index.categories) ^ set(reference.categories))
            named = ", ".join(f"{category.id} {category.name}" for category in different)
            message = f"{split} and {first} do not share the classes {named}; give both files the same list"
            faults.append(Fault("class-mismatch", "error", str(index.source), "", message))
    return faults


def content_faults(files: dict[str, list[ImageFile]]) -> list[Fault]:
    """Images that are there more than once, by content: in two splits, or twice in one.

    Only files of the same length are hashed, so that most are never read for it.
    """
    by_length: dict[int, list[tuple[str, ImageFile]]] = defaultdict(list)
    for split, found in files.items():
        for file in found:
            if not file.problem:
                by_length[file.bytes].append((split, file))
    first: dict[bytes, tuple[str, ImageFile]] = {}
    faults = []
    for group in by_length.values():
        for split, file in group if len(group) > 1 else ():
            other_split, other = first.setdefault(file_digest(file.path), (split, file))
            if other is file:
                continue
            if other_split != split:
                message = f"is in {split} and, as {other.path}, in {other_split}; figures of one would be false"
                faults.append(Fault("image-in-two-splits", "error", str(file.path), f"in {split}", message))
            elif other.path != file.path:  # the reader reports a file that is named twice
                message = f"has the content of {other.path}; remove one"
                faults.append(Fault("duplicate-image", "warning", str(file.path), f"in {split}", message))
    return faults


def summarize(index: AnnotationIndex) -> dict[str, Any]:
    """Figures of a split: images, boxes and ignore boxes, instances per class, quantiles of sizes in pixels."""
    real = ~index.ignore & (index.boxes[:, 2:] > index.boxes[:, :2]).all(axis=1)
    areas = index.areas[real]
    counts = np.bincount(index.labels[~index.ignore], minlength=len(index.categories))
    sides = np.quantile(np.sqrt(np.maximum(areas, 0)), _QUANTILES).round(1).tolist() if len(areas) else None
    return {
        "images": len(index),
        "images_without_boxes": int((np.diff(index.offsets) == 0).sum()),
        "boxes": len(index.boxes),
        "ignore": int(index.ignore.sum()),
        "instances": dict(zip(index.class_names, counts.tolist(), strict=True)),
        "small": int((areas < _SMALL_BELOW).sum()),
        "medium": int(((areas >= _SMALL_BELOW) & (areas < _LARGE_FROM)).sum()),
        "large": int((areas >= _LARGE_FROM).sum()),
        "sqrt_area_quantiles": None if sides is None else dict(zip(map(str, _QUANTILES), sides, strict=True)),
    }


def _box_fault(kind: str, severity: str, index: AnnotationIndex, position: int, row: int, message: str) -> Fault:
    x1, y1, x2, y2 = index.boxes[row].tolist()
    name = index.categories[index.labels[row]].name
    # Files for one image each number no boxes; a person counts them.
    one_each = bool(index.annotation_files)
    item = f"object {row - index.offsets[position] + 1}" if one_each else f"annotation {index.annotation_ids[row]}"
    what = f"{name} [{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
    return Fault(kind, severity, str(index.annotation_file(position)), item, f"{what} {message}")


def _image_files(
    index: AnnotationIndex, split: str, headers_only: bool, workers: int, show_progress: bool
) -> Iterator[ImageFile]:
    """Open every image of a split, in order."""
    from detframe.data.images import ImageError, image_size, read_image  # loads torch, which takes seconds

    def inspect(path: Path) -> ImageFile:
        try:
            length = path.stat().st_size
        except (OSError, ValueError):  # the latter at names that no file can have
            length = -1
        try:
            size = image_size(path) if headers_only else tuple(read_image(path).shape[1:])
        except ImageError as error:
            return ImageFile(path, str(error).removeprefix(f"{path}: "), (0, 0), length)
        return ImageFile(path, "", (size[0], size[1]), length)

    console = Console(stderr=True, quiet=not show_progress)
    starts = range(0, len(index), _FILES_AT_ONCE)
    with ThreadPoolExecutor(workers or None) as pool:
        for start in track(starts, f"Reading the images of {split}", console=console, transient=True):
            yield from pool.map(inspect, map(index.path, range(start, min(start + _FILES_AT_ONCE, len(index)))))


def _print_faults(console: Console, faults: list[Fault], data: Path) -> None:
    """The first faults of each kind as a table of their own."""
    for (severity, kind), group in groupby(faults, key=lambda fault: (fault.severity, fault.kind)):
        found = list(group)
        table = Table("file", "item", "found", title=f"{severity}: {kind} ({len(found)})", title_justify="left")
        for fault in found[:_SHOWN_PER_KIND]:
            file = Path(fault.file)
            shown = file.relative_to(data) if file.is_relative_to(data) and file != data else file
            table.add_row(Text(str(shown), overflow="fold"), Text(fault.item), Text(fault.message))
        if len(found) > _SHOWN_PER_KIND:
            table.add_row(f"and {len(found) - _SHOWN_PER_KIND} more", "", "all are in --json")
        console.print(table)


def _print_summaries(console: Console, summaries: dict[str, dict[str, Any]]) -> None:
    """Figures by split, and instances by class and split."""
    table = Table("", *summaries, title="Splits", title_justify="left")
    figures = ("images", "images_without_boxes", "boxes", "ignore", "small", "medium", "large")
    for figure in figures:
        table.add_row(figure.replace("_", " "), *(str(summary[figure]) for summary in summaries.values()))
    for quantile in map(str, _QUANTILES):
        sides = [summary["sqrt_area_quantiles"] for summary in summaries.values()]
        cells = ["-" if side is None else f"{side[quantile]:g}" for side in sides]
        table.add_row(f"sqrt of area, {float(quantile):.0%} quantile, px", *cells)
    for name in dict.fromkeys(name for summary in summaries.values() for name in summary["instances"]):
        counts = [str(summary["instances"].get(name, "-")) for summary in summaries.values()]
        table.add_row(Text(f"instances of {name}"), *counts)
    console.print(table)

"""Read and write COCO JSON: ``images``, ``annotations``, ``categories``; boxes are ``[x, y, width, height]``."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detframe.data.annotations import (
    AnnotationIndex,
    Category,
    DataError,
    Fault,
    Reading,
    build_index,
    repeated,
    repeated_file_faults,
)

_DECIMALS = 6  # of a pixel: hides the noise of x2 - x1, far below what a box is known to
_NO_ID = -(2**63)
_ABSENT_BOX = (np.nan, np.nan, np.nan, np.nan)
_IGNORE_FIELDS = ("iscrowd", "ignore", "difficult")
_IMAGE_FIELDS = frozenset({"id", "file_name", "width", "height"})
_ANNOTATION_FIELDS = frozenset({"id", "image_id", "category_id", "bbox", "area", "segmentation", *_IGNORE_FIELDS})
_CATEGORY_FIELDS = frozenset({"id", "name"})


def read_coco(path: Path, images: Path | None = None) -> Reading:
    """Read one COCO file.

    Labels are numbered by ascending category id, so that the files of one data set agree whatever order they list
    their categories in. ``iscrowd``, ``ignore`` and ``difficult`` make an ignore box. Further fields of an image become
    its metadata; further fields of annotations and categories are counted as uncarried, and so is a ``segmentation``
    that is neither polygons nor a run-length encoded mask.

    Args:
        path: The JSON file.
        images: Folder that ``file_name`` is relative to; by default the one of :func:`image_folders` that has
            the most of them.

    Raises:
        DataError: The file cannot be read, or is no COCO JSON.
    """
    content = _load(path)
    return _read(path, content, images)


def read_coco_images(path: Path, images: Path | None = None) -> AnnotationIndex:
    """The images of a COCO file without their boxes and classes, which it need not have.

    Raises:
        DataError: The file cannot be read, is no COCO JSON, or an image of it is malformed.
    """
    content = {"images": _load(path)["images"], "annotations": [], "categories": []}
    reading = _read(path, content, images)
    if reading.faults:
        fault = reading.faults[0]
        raise DataError(f"{path}, {fault.item}: {fault.message} ({len(reading.faults)} such errors).")
    return reading.index


def write_coco(index: AnnotationIndex, path: Path) -> None:
    """Write one COCO file.

    An ignore box gets ``iscrowd`` 1, which is the one flag that pycocotools leaves out of its figures; ``ignore`` alone
    it overwrites. Sizes are written where they are known.

    Args:
        index: Images and boxes; its ``file_names`` are written as they are.
        path: File to write; its folder is made where needed.
    """
    images = []
    for position, name in enumerate(index.file_names):
        height, width = index.image_sizes[position].tolist()
        size = {"width": width, "height": height} if width and height else {}
        metadata = index.metadata[position] if index.metadata else {}
        images.append({"id": int(index.image_ids[position]), "file_name": name, **size, **metadata})
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    rows = np.concatenate([index.boxes[:, :2], sides], axis=1).round(_DECIMALS)
    category_ids = np.array([category.id for category in index.categories], dtype=np.int64)
    columns = zip(
        index.annotation_ids.tolist(),
        index.image_ids[index.image_of_box()].tolist(),
        category_ids[index.labels].tolist(),
        rows.tolist(),
        index.areas.round(_DECIMALS).tolist(),
        index.ignore.astype(int).tolist(),
        strict=True,
    )
    fields = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    annotations: list[dict[str, Any]] = [dict(zip(fields, row, strict=True)) for row in columns]
    for row, segmentation in enumerate(index.segmentations):
        annotations[row] |= {"segmentation": segmentation} if segmentation is not None else {}
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [category._asdict() for category in index.categories],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def image_folders(path: Path) -> list[Path]:
    """Folders in which the images of a COCO file are looked for, in this order."""
    folder = path.parent
    stems = list(dict.fromkeys([path.stem, path.stem.removeprefix("instances_")]))
    found = [folder / "images"]
    found += [folder / "images" / stem for stem in stems] + [folder / stem for stem in stems] + [folder]
    found += [folder.parent / "images"]
    found += [folder.parent / "images" / stem for stem in stems] + [folder.parent / stem for stem in stems]
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise DataError(f"{path}: is no valid JSON ({error}). Export it again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: has no list `images`, which a COCO file has. Name a COCO detection file.")
    return content


def _read(path: Path, content: dict[str, Any], images: Path | None) -> Reading:
    faults: list[Fault] = []
    uncarried: Counter[str] = Counter()
    categories = _categories(path, _records(path, content, "categories", faults), faults, uncarried)
    image_rows, image_ids = _images(path, _records(path, content, "images", faults), faults)
    file_names = [str(row["file_name"]) for row in image_rows]
    faults += repeated_file_faults(path, file_names, image_ids)
    image_root, looked_in = (images, [images]) if images is not None else _find_images(path, file_names)
    if file_names and not _images_found(image_root, file_names):
        folders = ", ".join(str(folder) for folder in looked_in)
        message = f"none of its images is found, such as {file_names[0]}; looked in {folders}; state the images folder"
        faults.append(Fault("images-not-found", "error", str(path), "", message))
    sizes = [[_whole(row.get(side), 0) for side in ("height", "width")] for row in image_rows]

    annotations = _records(path, content, "annotations", faults)
    for annotation in annotations:
        for key in annotation:
            if key not in _ANNOTATION_FIELDS and annotation[key] not in (None, "", [], {}):
                uncarried[f"annotations: {key}"] += 1
    segmentations = [row["segmentation"] if _is_segmentation(row.get("segmentation")) else None for row in annotations]
    lost = sum(bool(row.get("segmentation")) for row in annotations) - sum(s is not None for s in segmentations)
    uncarried.update({"annotations: segmentation": lost} if lost else {})
    uncarried.update(f"file: {key}" for key in ("info", "licenses") if content.get(key))
    boxes, image_of_box, labels, kept = _boxes(path, annotations, image_ids, categories, faults)
    annotation_ids = _annotation_ids(path, annotations, faults)
    areas = np.fromiter((_number(row.get("area")) for row in annotations), np.float64, len(annotations))
    ignore = np.fromiter((any(map(row.get, _IGNORE_FIELDS)) for row in annotations), np.bool_, len(annotations))
    index = build_index(
        source=path,
        image_root=image_root,
        categories=categories,
        image_ids=image_ids,
        file_names=file_names,
        image_sizes=np.array(sizes, dtype=np.int64),
        image_of_box=image_of_box[kept],
        boxes=boxes[kept],
        labels=labels[kept],
        ignore=ignore[kept],
        areas=areas[kept],
        annotation_ids=annotation_ids[kept],
        metadata=[{key: row[key] for key in row if key not in _IMAGE_FIELDS} for row in image_rows],
        segmentations=[segmentations[row] for row in np.flatnonzero(kept).tolist()],
    )
    return Reading(index, faults, uncarried)


def _records(path: Path, content: dict[str, Any], key: str, faults: list[Fault]) -> list[dict[str, Any]]:
    """The objects of one of the file's lists; anything else in it is a fault."""
    records = content.get(key)
    if not isinstance(records, list):
        faults.append(Fault("missing-key", "error", str(path), "", f"has no list `{key}`; export the file again"))
        return []
    singular = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            message = f"is {json.dumps(record)[:40]} and no object; remove it"
            faults.append(Fault("malformed", "error", str(path), f"{singular} at position {position}", message))
    return [record for record in records if isinstance(record, dict)]


def _categories(
    path: Path, records: list[dict[str, Any]], faults: list[Fault], uncarried: Counter[str]
) -> list[Category]:
    by_id: dict[int, str] = {}
    for position, record in enumerate(records):
        identity, name = _whole(record.get("id"), _NO_ID), record.get("name")
        item = f"category {record.get('id', f'at position {position}')}"
        if identity == _NO_ID or not isinstance(name, str):
            message = "needs a whole number `id` and a text `name`; add them"
            faults.append(Fault("missing-key", "error", str(path), item, message))
        elif identity in by_id:
            message = f"the id belongs to {by_id[identity]!r} already; give {name!r} another"
            faults.append(Fault("duplicate-id", "error", str(path), item, message))
        else:
            if name in by_id.values():
                message = f"{name!r} is the name of an earlier category as well; merge them"
                faults.append(Fault("duplicate-class", "error", str(path), item, message))
            by_id[identity] = name
        uncarried.update(f"categories: {key}" for key in record if key not in _CATEGORY_FIELDS and record[key])
    return [Category(identity, by_id[identity]) for identity in sorted(by_id)]


def _images(
    path: Path, records: list[dict[str, Any]], faults: list[Fault]
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The images that have an id of their own and a file name, and those ids ``[M]``."""
    ids = _whole_numbers((record.get("id") for record in records), len(records))
    sound = ids != _NO_ID
    for position in np.flatnonzero(~sound).tolist():
        message = f"its `id` is {json.dumps(records[position].get('id'))} and no whole number; number the images"
        item = f"image {records[position].get('file_name', f'at position {position}')}"
        faults.append(Fault("missing-key", "error", str(path), item, message))
    for position, record in enumerate(records):
        if not isinstance(name := record.get("file_name"), str) or not name:
            sound[position] = False
            message = "has no `file_name`; add it or remove the image"
            faults.append(Fault("missing-key", "error", str(path), f"image {record.get('id')}", message))
    candidates = np.flatnonzero(sound)
    for position in candidates[repeated(ids[candidates])].tolist():
        sound[position] = False
        message = f"the id is used twice, here for {records[position]['file_name']}; number the images anew"
        faults.append(Fault("duplicate-id", "error", str(path), f"image {ids[position]}", message))
    kept = np.flatnonzero(sound)
    return [records[i] for i in kept.tolist()], ids[kept]


def _boxes(
    path: Path,
    records: list[dict[str, Any]],
    image_ids: NDArray[np.int64],
    categories: Sequence[Category],
    faults: list[Fault],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Boxes ``[N, 4]`` xyxy, positions of their images ``[N]``, labels ``[N]``, and which of them are sound ``[N]``."""
    count = len(records)
    numbers = chain.from_iterable(_four_numbers(record.get("bbox")) for record in records)
    boxes = np.fromiter(numbers, np.float64, 4 * count).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    image_of_box = _lookup(image_ids, _whole_numbers((record.get("image_id") for record in records), count))
    known = np.array([category.id for category in categories], dtype=np.int64)
    labels = _lookup(known, _whole_numbers((record.get("category_id") for record in records), count))
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    kept = finite & (image_of_box >= 0) & (labels >= 0)
    for position in np.flatnonzero(~kept).tolist():
        record = records[position]
        item = f"annotation {record.get('id', f'at position {position}')}"
        for key in ("bbox", "image_id", "category_id"):
            if key not in record:
                faults.append(Fault("missing-key", "error", str(path), item, f"has no `{key}`; add or remove it"))
        if not finite[position] and "bbox" in record:
            message = f"its `bbox` is {json.dumps(record['bbox'])[:80]} and not four finite numbers; correct it"
            faults.append(Fault("not-a-number", "error", str(path), item, message))
        if image_of_box[position] < 0 and "image_id" in record:
            message = f"belongs to image {json.dumps(record['image_id'])}, which the file does not have; remove it"
            faults.append(Fault("unknown-image", "error", str(path), item, message))
        if labels[position] < 0 and "category_id" in record:
            message = f"has the category {json.dumps(record['category_id'])}, which the file does not have; add it"
            faults.append(Fault("unknown-class", "error", str(path), item, message))
    return boxes, image_of_box, labels, kept


def _annotation_ids(path: Path, records: list[dict[str, Any]], faults: list[Fault]) -> NDArray[np.int64]:
    """Ids ``[N]``; those missing are numbered on from the highest."""
    ids = _whole_numbers((record.get("id") for record in records), len(records))
    missing = np.flatnonzero(ids == _NO_ID)
    present = np.flatnonzero(ids != _NO_ID)
    for position in present[repeated(ids[present])].tolist():
        message = f"the id is used twice, here for image {records[position].get('image_id')}; number them anew"
        faults.append(Fault("duplicate-id", "error", str(path), f"annotation {ids[position]}", message))
    if len(missing):
        message = f"{len(missing)} annotations have no whole number `id`, the first at position {missing[0]}; numbered"
        faults.append(Fault("missing-id", "warning", str(path), "", message))
        ids[missing] = max(int(np.max(ids)), 0) + 1 + np.arange(len(missing))
    return ids


def _find_images(path: Path, file_names: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder that has the most of the images; and all folders looked in."""
    folders = [folder for folder in image_folders(path) if folder.is_dir()]
    return max(folders, key=lambda folder: _images_found(folder, file_names)), image_folders(path)


def _images_found(folder: Path, file_names: Sequence[str]) -> int:
    """How many of some twenty images from all over the file the folder has."""
    step = max(len(file_names) // 20, 1)
    return sum((folder / name).is_file() for name in file_names[::step])


def _lookup(keys: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each value among the keys, which are distinct; -1 where it is none of them."""
    if not len(keys):
        return np.full(len(values), -1, dtype=np.int64)
    order = np.argsort(keys)
    positions = order[np.searchsorted(keys, values, sorter=order).clip(max=len(keys) - 1)]
    return np.where(keys[positions] == values, positions, -1)


def _whole_numbers(values: Iterable[Any], count: int) -> NDArray[np.int64]:
    """Values ``[count]`` as integers, ``_NO_ID`` where one is none."""
    return np.fromiter((_whole(value, _NO_ID) for value in values), np.int64, count)


def _whole(value: object, otherwise: int) -> int:
    if isinstance(value, float) and value.is_integer():  # pandas writes ids so
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) < value < 2**63:
        return value
    return otherwise


def _number(value: object) -> float:
    if isinstance(value, float):
        return value
    return float(value) if isinstance(value, int) and _whole(value, _NO_ID) != _NO_ID else np.nan


def _four_numbers(value: object) -> Sequence[float]:
    if isinstance(value, list) and len(value) == 4:
        return [_number(side) for side in value]
    return _ABSENT_BOX


def _is_segmentation(value: object) -> bool:
    """Whether it is a list of polygons, or a mask in runs."""
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        sized = isinstance(size, list) and len(size) == 2 and all(_whole(side, 0) > 0 for side in size)
        plain = isinstance(counts, list) and all(_whole(run, -1) >= 0 for run in counts)
        return sized and bool(counts) and (plain or isinstance(counts, str))
    return isinstance(value, list) and bool(value) and all(map(_is_polygon, value))


def _is_polygon(value: object) -> bool:
    try:
        # A sum finds what is no number, and carries what is not finite, in a tenth of the time of looking at each.
        return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and math.isfinite(sum(value))
    except (TypeError, OverflowError):
        return False

"""COCO files with some of their annotations changed, and every other field as it was."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detframe.curation.mending import Edit
from detframe.curation.rewriting.files import Edits, Version, top_folder
from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.label_queue import Label

_IGNORE_FIELDS = ("iscrowd", "ignore", "difficult")
_DECIMALS = 6  # of a pixel: hides the noise of x2 - x1


def write_coco_version(indices: Mapping[str, AnnotationIndex], edits: Edits, data: Path, version: Version) -> None:
    """Write all splits of a data set of COCO files.

    A file without a change is copied. Annotations that are added are numbered on from the highest id of their file.

    Args:
        indices: Splits as they are read.
        edits: Changes of their labels.
        data: The folder or file that they were read from.
        version: Where to.

    Raises:
        DataError: Two splits are one file, which a folder could not say.
    """
    names: dict[Path, str] = {}
    for split, index in indices.items():
        if names.setdefault(index.source, split) != split:
            raise DataError(
                f"{index.source}: is both {names[index.source]} and {split}, and a new version has a file for each "
                "split. Name this file with --data; the decisions are about its images, whatever their split."
            )
    root = data if data.is_dir() else Path(os.path.commonpath([index.source.parent for index in indices.values()]))
    folders = set()
    for split, index in indices.items():
        name = index.source.relative_to(root)
        folders.add(top_folder(name))
        changed = {image: found for image, found in edits.get(split, {}).items() if found}
        if changed:
            version.write(name, _edited(index, changed, version))
        else:
            version.copy(index.source, name)
        for image, file_name in enumerate(index.file_names):
            if not Path(file_name).is_absolute():
                place = Path(os.path.normpath(_image_folder(index, root, split) / file_name))
                folders.add(top_folder(place))
                version.link(index.path(image), place)
    if data.is_dir():
        version.bring_others(root, folders)


def _image_folder(index: AnnotationIndex, root: Path, split: str) -> Path:
    """Where the images of a split go: as in the old folder, or where they are looked for if they are not in it."""
    if index.image_root.is_relative_to(root):
        return index.image_root.relative_to(root)
    return Path("images") / split


def _edited(index: AnnotationIndex, edits: Mapping[int, list[Edit]], version: Version) -> bytes:
    source = index.source.read_bytes()
    content = json.loads(source)
    rows: dict[int, list[int]] = defaultdict(list)  # rows of the file by image id, as they are in the index
    for row, record in enumerate(content["annotations"]):
        rows[int(record["image_id"])].append(row)
    ids = {category.name: category.id for category in index.categories}
    number = max((int(record["id"]) for record in content["annotations"] if record.get("id") is not None), default=0)
    removed, added = set(), []
    for image, changes in edits.items():
        image_id = int(index.image_ids[image])
        for edit in changes:
            if edit.place < 0:
                assert edit.after is not None
                number += 1
                record = {"id": number, "image_id": image_id, "category_id": ids[edit.after.class_name]}
                added.append(record | _box_fields(edit.after) | {"iscrowd": int(edit.after.ignore)})
                continue
            row = rows[image_id][edit.place]
            if edit.after is None:
                removed.add(row)
                continue
            before = index.boxes[index.rows(image)][edit.place].tolist()
            _change(content["annotations"][row], edit.after, ids, before != list(edit.after.box), version)
    kept = [record for row, record in enumerate(content["annotations"]) if row not in removed]
    content["annotations"] = kept + added
    indent = re.match(rb"\s*\{\r?\n( +)", source)
    text = json.dumps(content, indent=len(indent[1]) if indent else None, ensure_ascii=source.isascii())
    return text.encode() + (b"\n" if source.endswith(b"\n") else b"")


def _change(record: dict[str, Any], after: Label, ids: Mapping[str, int], moved: bool, version: Version) -> None:
    """Make an annotation what it is to be, without touching what stays."""
    record["category_id"] = ids[after.class_name]
    if moved:
        record |= _box_fields(after)
        if record.get("segmentation"):
            record["segmentation"] = []
            version.outlines_dropped += 1
    if after.ignore != any(map(record.get, _IGNORE_FIELDS)):
        record |= {field: 0 for field in _IGNORE_FIELDS if record.get(field)}
        record["iscrowd"] = int(after.ignore)


def _box_fields(label: Label) -> dict[str, Any]:
    x1, y1, x2, y2 = label.box
    sides = [round(value, _DECIMALS) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {"bbox": sides, "area": round(sides[2] * sides[3], _DECIMALS)}

"""A small data set in each format, and decisions about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detframe.curation.fixes import Decision, Fix, append_fix
from detframe.curation.labels import labels_of_image
from detframe.data.annotations import AnnotationIndex, require_sound
from detframe.data.convert import Format, convert
from detframe.data.label_queue import Kind, Label, suggestion_id
from detframe.data.sources import read_splits

CLASSES = ("nut", "bolt", "öse & ring")
FORMATS: tuple[Format, ...] = ("coco", "voc", "yolo")

Make = Callable[[Format], Path]


def write_coco_set(folder: Path) -> Path:
    """Train and val: four images of 100 x 80, three of them with labels, and fields that other tools know."""
    generator = np.random.default_rng(0)
    number = 0
    for split, names in {"train": ["a.png", "sub/b c.png", "empty.png"], "val": ["v.png"]}.items():
        images, annotations = [], []
        for image_id, name in enumerate(names, 10):
            path = folder / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (80, 100, 3), np.uint8)).save(path)
            size = {"width": 100, "height": 80}
            images.append({"id": image_id, "file_name": name, **size, "board": f"group {image_id}", "license": 3})
            for place in range(0 if name == "empty.png" else 3):
                number += 7
                box = [10 + 25 * place, 20.5, 20, 30.25]
                extra = {"iscrowd": 0, "area": 20 * 30.25, "segmentation": [[10.0, 20.5, 30.0, 20.5, 30.0, 50.0]]}
                own = {"id": number, "image_id": image_id, "category_id": 5 * (place + 1), "bbox": box}
                annotations.append({**own, **extra, "attributes": {"lit": place}})
        content = {
            "info": {"description": "é"},
            "licenses": [{"id": 3, "name": "own"}],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 5 * i, "name": name, "supercategory": "part"} for i, name in enumerate(CLASSES, 1)],
        }
        (folder / f"{split}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "LICENSE").write_text("own")
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A data set in a format, in a folder of that name."""

    def made(to: Format) -> Path:
        source = write_coco_set(tmp_path / "coco")
        if to == "coco":
            return source
        assert convert(source, tmp_path / to, to, "copy") == 0
        return tmp_path / to

    return made


def indices(data: Path) -> dict[str, AnnotationIndex]:
    return {split: require_sound(reading) for split, reading in read_splits(data).items()}


def labels(data: Path, split: str = "train") -> dict[str, list[Label]]:
    """Labels by file name."""
    index = indices(data)[split]
    return {name: labels_of_image(index, image) for image, name in enumerate(index.file_names)}


def fix_of(
    data: Path,
    file_name: str,
    before: Label | None,
    after: Label | None,
    decision: Decision = "accept",
    kind: Kind = "wrong-class",
    split: str = "train",
    **changes: Any,  # noqa: ANN401 - fields of a fix
) -> Fix:
    index = indices(data)[split]
    path = index.path(index.file_names.index(file_name))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = suggestion_id(kind, file_name, before, after)
    when = "2026-01-01T00:00:00+00:00"
    fix = Fix(name, decision, "ada", when, kind, "looks so", 0.8, split, file_name, digest, 7, before, after)
    return fix._replace(**changes)


def save_fixes(path: Path, *fixes: Fix) -> Path:
    for fix in fixes:
        append_fix(fix, path)
    return path

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detframe.data.annotations import DataError, require_sound
from detframe.data.coco import read_coco, read_coco_images, write_coco


def content() -> dict[str, Any]:
    """Two images, one of them without boxes; two classes, listed in descending order."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 64, "height": 48, "board": "group1"},
            {"id": 3, "file_name": "b.png", "width": 64, "height": 48, "board": "group2"},
        ],
        "annotations": [
            {"id": 10, "image_id": 3, "category_id": 5, "bbox": [1.5, 2, 10, 20], "area": 150, "iscrowd": 0},
            {"id": 11, "image_id": 3, "category_id": 2, "bbox": [0, 0, 4, 4], "iscrowd": 1},
            {"id": 12, "image_id": 3, "category_id": 2, "bbox": [0, 0, 5, 4], "ignore": 1},
        ],
        "categories": [{"id": 5, "name": "spur"}, {"id": 2, "name": "open"}],
    }


def save(folder: Path, coco: dict[str, Any]) -> Path:
    for image in coco["images"]:
        if isinstance(image, dict) and image.get("file_name"):
            (folder / "images").mkdir(exist_ok=True)
            Image.new("L", (64, 48)).save(folder / "images" / image["file_name"])
    path = folder / "train.json"
    path.write_text(json.dumps(coco))
    return path


def test_reads_boxes_classes_ids_and_columns(tmp_path: Path) -> None:
    reading = read_coco(save(tmp_path, content()))
    index = reading.index
    assert reading.faults == []
    assert index.categories == ((2, "open"), (5, "spur"))
    assert index.image_ids.tolist() == [7, 3]
    assert index.offsets.tolist() == [0, 0, 3]
    assert index.boxes.tolist() == [[1.5, 2, 11.5, 22], [0, 0, 4, 4], [0, 0, 5, 4]]
    assert index.labels.tolist() == [1, 0, 0]
    assert index.ignore.tolist() == [False, True, True]
    assert index.areas.tolist() == [150, 16, 20]
    assert index.annotation_ids.tolist() == [10, 11, 12]
    assert index.image_sizes.tolist() == [[48, 64], [48, 64]]
    assert index.metadata == ({"board": "group1"}, {"board": "group2"})
    assert index.path(0) == tmp_path / "images" / "a.png"


def test_writing_and_reading_gives_the_same(tmp_path: Path) -> None:
    before = read_coco(save(tmp_path, content())).index
    write_coco(before, tmp_path / "new" / "train.json")
    after = read_coco(tmp_path / "new" / "train.json", tmp_path / "images").index
    assert after.annotations_hash() == before.annotations_hash()
    assert after.metadata == before.metadata
    assert after.annotation_ids.tolist() == before.annotation_ids.tolist()


def test_pycocotools_loads_what_is_written(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    write_coco(read_coco(save(tmp_path, content())).index, tmp_path / "out.json")
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = coco.COCO(str(tmp_path / "out.json"))
    assert loaded.getImgIds() == [7, 3]
    assert loaded.loadAnns(loaded.getAnnIds(imgIds=[3], iscrowd=False))[0]["bbox"] == [1.5, 2, 10, 20]
    assert sorted(loaded.getAnnIds(iscrowd=True)) == [11, 12]


def test_counts_what_the_index_has_no_place_for(tmp_path: Path) -> None:
    coco = content() | {"info": {"year": 2026}}
    coco["annotations"][0]["keypoints"] = [1, 1, 2]
    coco["annotations"][1]["keypoints"] = []
    coco["categories"][0]["supercategory"] = "defect"
    uncarried = read_coco(save(tmp_path, coco)).uncarried
    assert uncarried == {"annotations: keypoints": 1, "categories: supercategory": 1, "file: info": 1}


def test_outlines_are_carried_as_they_are(tmp_path: Path) -> None:
    coco = content()
    polygons = [[0, 0, 1.25, 1, 1, 0], [5, 5, 9, 5, 9, 9, 5, 9]]
    coco["annotations"][0]["segmentation"] = polygons
    coco["annotations"][1]["segmentation"] = []
    coco["annotations"][2]["segmentation"] = {"size": [48, 64], "counts": [5, 3, 3064]}
    # Another order of images: the boxes of the second come first in the file.
    coco["annotations"].append({"id": 13, "image_id": 7, "category_id": 2, "bbox": [1, 1, 2, 2]})
    reading = read_coco(save(tmp_path, coco))
    index = reading.index
    assert reading.uncarried == {}
    assert index.annotation_ids.tolist() == [13, 10, 11, 12]
    assert index.segmentations == (None, polygons, None, {"size": [48, 64], "counts": [5, 3, 3064]})
    assert index.subset([1]).segmentations == index.segmentations[1:]
    write_coco(index, tmp_path / "new.json")
    after = read_coco(tmp_path / "new.json", tmp_path / "images").index
    assert after.segmentations == index.segmentations
    assert after.annotations_hash() == index.annotations_hash()
    assert "segmentation" not in json.loads((tmp_path / "new.json").read_text())["annotations"][0]


def test_the_hash_knows_outlines_but_does_not_change_where_there_are_none(tmp_path: Path) -> None:
    plain = read_coco(save(tmp_path, content())).index
    outlines: list[Any] = [
        [[0, 0, 1, 1, 1, 0]],
        [[0, 0, 1, 1, 1, 0.5]],
        [[0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]],
        {"size": [48, 64], "counts": [5, 3, 3064]},
    ]
    hashes = {plain.annotations_hash()}
    for outline in outlines:
        coco = content()
        coco["annotations"][0]["segmentation"] = outline
        hashes.add(read_coco(save(tmp_path, coco)).index.annotations_hash())
    assert len(hashes) == 5
    # As it was before outlines were carried.
    digest = hashlib.sha256(b"open\nspur\na.png\nb.png")
    for values in (plain.image_sizes, plain.boxes, plain.labels, plain.ignore, plain.offsets):
        digest.update(values.tobytes())
    assert plain.annotations_hash() == digest.hexdigest()


@pytest.mark.parametrize(
    "outline",
    [
        "text",
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 1, 0, 5]],
        [[0, 0, 1, 1, 1, "0"]],
        [[0, 0, 1, 1, 1, math.nan]],
        [0, 0, 1, 1, 1, 0],
        {"size": [48, 64]},
        {"size": [48], "counts": [3]},
        {"size": [48, 64], "counts": [5, -3]},
        {"counts": "abc"},
    ],
)
def test_what_is_no_outline_is_counted_and_left(tmp_path: Path, outline: object) -> None:
    coco = content()
    coco["annotations"][0]["segmentation"] = outline
    reading = read_coco(save(tmp_path, coco))
    assert reading.uncarried == {"annotations: segmentation": 1}
    assert reading.index.segmentations == ()


def change(kind: str, **fields: object) -> Callable[[dict[str, Any]], None]:
    """A change that gives the first record of a list other fields; None removes one."""

    def apply(coco: dict[str, Any]) -> None:
        coco[kind][0].update(fields)
        coco[kind][0] = {key: value for key, value in coco[kind][0].items() if value is not None}

    return apply


def append(kind: str, record: object) -> Callable[[dict[str, Any]], None]:
    return lambda coco: coco[kind].append(record)


@pytest.mark.parametrize(
    ("damage", "kind", "item"),
    [
        (change("annotations", category_id=9), "unknown-class", "annotation 10"),
        (change("annotations", image_id=9), "unknown-image", "annotation 10"),
        (change("annotations", bbox=[0, 0, math.nan, 1]), "not-a-number", "annotation 10"),
        (change("annotations", bbox=[0, 0, 1]), "not-a-number", "annotation 10"),
        (change("annotations", bbox=["0", 0, 1, 1]), "not-a-number", "annotation 10"),
        (change("annotations", bbox=None), "missing-key", "annotation 10"),
        (change("annotations", id=11), "duplicate-id", "annotation 11"),
        (change("images", id=3), "duplicate-id", "image 3"),
        (change("images", id="7"), "missing-key", "image a.png"),
        (change("images", file_name=None), "missing-key", "image 7"),
        (change("images", file_name="b.png"), "file-named-twice", "image 3"),
        (change("categories", id=2), "duplicate-id", "category 2"),
        (change("categories", name="open"), "duplicate-class", "category 2"),
        (change("categories", name=None), "missing-key", "category 5"),
        (append("annotations", "nonsense"), "malformed", "annotation at position 3"),
        (lambda coco: coco.pop("categories"), "missing-key", ""),
    ],
)
def test_names_each_error(tmp_path: Path, damage: Callable[[dict[str, Any]], None], kind: str, item: str) -> None:
    coco = content()
    damage(coco)
    path = save(tmp_path, coco)
    reading = read_coco(path)
    assert (kind, "error", str(path), item) in [fault[:4] for fault in reading.faults]
    with pytest.raises(DataError, match=str(path)):
        require_sound(reading)


def test_missing_annotation_ids_are_numbered(tmp_path: Path) -> None:
    coco = content()
    del coco["annotations"][1]["id"]
    reading = read_coco(save(tmp_path, coco))
    assert [fault[:2] for fault in reading.faults] == [("missing-id", "warning")]
    assert require_sound(reading).annotation_ids.tolist() == [10, 13, 12]


def test_says_where_it_looked_for_images(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content()))
    (fault,) = read_coco(path).faults
    assert fault.kind == "images-not-found"
    assert str(tmp_path / "images" / "train") in fault.message


@pytest.mark.parametrize("folder", ["images", "images/train", "train", ".", "../images", "../images/train", "../train"])
def test_finds_images(tmp_path: Path, folder: str) -> None:
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    images = (annotations / folder).resolve()
    images.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("L", (64, 48)).save(images / name)
    path = annotations / "instances_train.json"
    path.write_text(json.dumps(content()))
    reading = read_coco(path)
    assert reading.faults == []
    assert reading.index.path(0).samefile(images / "a.png")


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3}', "\xff"])
def test_a_file_that_is_no_coco_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.json"):
        read_coco(path)


def test_images_alone_need_no_annotations(tmp_path: Path) -> None:
    coco = content()
    del coco["annotations"], coco["categories"]
    index = read_coco_images(save(tmp_path, coco))
    assert index.image_ids.tolist() == [7, 3]
    assert index.boxes.shape == (0, 4)


def test_a_file_of_the_size_of_coco_is_indexed_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    owners = rng.integers(0, 500, 5000)
    annotations = [
        {"id": i, "image_id": owner, "category_id": 1, "bbox": [i, 0, 1, 1]} for i, owner in enumerate(owners.tolist())
    ]
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(500)]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco))
    index = read_coco(path).index
    for position in (0, 250, 499):
        assert index.annotation_ids[index.rows(position)].tolist() == np.flatnonzero(owners == position).tolist()

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detframe.data.annotations import DataError, require_sound
from detframe.data.coco import read_coco
from detframe.data.yolo import label_path, read_yolo, write_yolo, yolo_splits


def make(root: Path, yaml: str, labels: dict[str, str]) -> Path:
    """A YOLO folder whose images, 64 x 48 px, are named by their label files; an empty text writes no label file."""
    for name, text in labels.items():
        image = root / "images" / f"{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 48)).save(image)
        if text:
            label = root / "labels" / f"{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)
    (root / "data.yaml").write_text(yaml)
    return root / "data.yaml"


STANDARD = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"


def test_reads_the_standard_layout(tmp_path: Path) -> None:
    path = make(tmp_path, STANDARD, {"train/a": "1 0.5 0.5 0.25 0.5\n\n", "train/b": "", "val/c": "0 0 0 1 1 1 0\n"})
    assert yolo_splits(path) == ["train", "val"]
    reading = read_yolo(path, "train")
    assert reading.faults == []
    assert reading.index.categories == ((0, "cat"), (1, "dog"))
    assert reading.index.file_names == ("a.png", "b.png")
    assert reading.index.boxes.tolist() == [[24, 12, 40, 36]]
    assert reading.index.labels.tolist() == [1]
    assert reading.index.offsets.tolist() == [0, 1, 1]
    assert reading.index.image_ids.tolist() == [1, 2]
    polygon = read_yolo(path, "val")
    assert polygon.index.boxes.tolist() == [[0, 0, 64, 48]]
    assert polygon.uncarried == {"annotations: polygon": 1}


def test_rotated_images_are_measured_as_displayed(tmp_path: Path) -> None:
    path = make(tmp_path, STANDARD, {"train/a": "0 0.5 0.5 1 1\n", "val/c": ""})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (64, 48)).save(tmp_path / "images" / "train" / "a.png", exif=exif)
    assert read_yolo(path, "train").index.boxes.tolist() == [[0, 0, 48, 64]]


@pytest.mark.parametrize(
    "yaml",
    [
        "path: /nowhere\ntrain: ../images/train\nnames: {7: dog, 3: cat}\nnc: 2",
        "train: [images/train]\nnames: {3: cat, 7: dog}",
        "train: list.txt\nnames: {3: cat, 7: dog}",
    ],
)
def test_reads_what_others_write(tmp_path: Path, yaml: str) -> None:
    path = make(tmp_path, yaml, {"train/a": "7 0.5 0.5 0.25 0.5\n"})
    (tmp_path / "list.txt").write_text("./images/train/a.png\n")
    index = require_sound(read_yolo(path, "train"))
    assert index.categories == ((3, "cat"), (7, "dog"))
    assert index.labels.tolist() == [1]
    assert index.path(0).is_file()


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/a.b.png", "/d/labels/train/a.b.txt"),
        ("/images/x/images/a.png", "/images/x/labels/a.txt"),
        ("/d/train/a.png", "/d/train/a.txt"),
        ("/d/images", "/d/images.txt"),
    ],
)
def test_label_paths(image: str, label: str) -> None:
    assert label_path(Path(image)) == Path(label)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1 0.5 0.5 0.5", "malformed"),
        ("1 0.5 0.5 0.5 0.5 0.9", "malformed"),
        ("dog 0.5 0.5 0.5 0.5", "malformed"),
        ("1.5 0.5 0.5 0.5 0.5", "malformed"),
        ("nan 0.5 0.5 0.5 0.5", "malformed"),
        ("1 nan 0.5 0.5 0.5", "not-a-number"),
        ("2 0.5 0.5 0.5 0.5", "unknown-class"),
        ("-1 0.5 0.5 0.5 0.5", "unknown-class"),
        ("1 32 24 16 16", "not-normalised"),
    ],
)
def test_names_each_bad_line(tmp_path: Path, line: str, kind: str) -> None:
    path = make(tmp_path, STANDARD, {"train/a": f"0 0.5 0.5 0.5 0.5\n{line}\n"})
    reading = read_yolo(path, "train")
    expected = (kind, "error", str(tmp_path / "labels" / "train" / "a.txt"), "line 2")
    assert [fault[:4] for fault in reading.faults] == [expected]
    assert len(reading.index.boxes) == 1


def test_boxes_need_an_image_that_can_be_read(tmp_path: Path) -> None:
    path = make(tmp_path, STANDARD, {"train/a": "0 0.5 0.5 0.5 0.5\n"})
    image = tmp_path / "images" / "train" / "a.png"
    image.write_bytes(b"no image")
    assert [fault[:3] for fault in read_yolo(path, "train").faults] == [("unreadable-image", "error", str(image))]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\nnames: 3", "names"),
        ("train: images/train\nnames: [a, a]", "name twice"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc"),
        ("train: elsewhere\nnames: [a]", "elsewhere"),
        ("val: images/train\nnames: [a]", "no split 'train'"),
        ("- 3", "no YOLO data set"),
        ("a: [", "no valid YAML"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, yaml: str, message: str) -> None:
    path = make(tmp_path, yaml, {"train/a": ""})
    with pytest.raises(DataError, match=message):
        read_yolo(path, "train")


def converted(root: Path) -> Path:
    """A YOLO folder of our own writer: one box that YOLO can say, one ignore box and one that is partly outside."""
    images = [{"id": 9, "file_name": "a.png", "width": 64, "height": 48, "board": "x"}]
    annotations = [
        {"id": 30 + i, "image_id": 9, "category_id": 4, "bbox": box, "iscrowd": int(i == 1), "area": 11}
        for i, box in enumerate([[8, 8, 16, 16], [0, 0, 4, 4], [-70, 0, 71, 4]])
    ]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "cat"}]}
    Image.new("L", (64, 48)).save(root / "a.png")
    (root / "all.json").write_text(json.dumps(coco))
    write_yolo({"all": read_coco(root / "all.json").index}, root / "out")
    (root / "out" / "images" / "all").mkdir(parents=True)
    Image.new("L", (64, 48)).save(root / "out" / "images" / "all" / "a.png")
    return root / "out" / "data.yaml"


def test_what_yolo_cannot_say_is_in_no_text_file(tmp_path: Path) -> None:
    path = converted(tmp_path)
    label = path.parent / "labels" / "all" / "a.txt"
    assert label.read_text() == "0 0.25000000 0.33333333 0.25000000 0.33333333\n"
    index = require_sound(read_yolo(path, "all"))
    np.testing.assert_allclose(index.boxes, [[8, 8, 24, 24], [0, 0, 4, 4], [-70, 0, 1, 4]], atol=1e-4)
    assert index.ignore.tolist() == [False, True, False]
    assert index.annotation_ids.tolist() == [30, 31, 32]
    assert index.areas.tolist() == [11, 11, 11]
    assert index.categories == ((4, "cat"),)
    assert index.image_ids.tolist() == [9]
    assert index.metadata == ({"board": "x"},)


def test_an_edited_text_file_overrules_its_note(tmp_path: Path) -> None:
    path = converted(tmp_path)
    label = path.parent / "labels" / "all" / "a.txt"
    label.write_text("0 0.5 0.5 0.5 0.5\n0 0.25 0.25 0.25 0.25\n")
    reading = read_yolo(path, "all")
    assert [fault[:3] for fault in reading.faults] == [("stale-note", "warning", str(label))]
    assert sorted(reading.index.annotation_ids.tolist()) == [31, 32, 33, 34]
    assert reading.index.areas.tolist()[:2] == [32 * 24, 16 * 12]


def test_a_class_that_was_removed_is_missed_in_the_note(tmp_path: Path) -> None:
    path = converted(tmp_path)
    path.write_text("detframe: {splits: {all: images/all}}\nnames: {5: dog}\n")
    assert {fault.kind for fault in read_yolo(path, "all").faults} == {"unknown-class", "stale-note"}

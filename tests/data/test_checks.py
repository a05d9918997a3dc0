from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detframe.data.checks import check, find_faults
from detframe.data.sources import read_splits

SHARED = Path(__file__).parents[3] / "shared" / "data"


def content(split: str) -> dict[str, Any]:
    """Two images of 64 x 48 px and a box in each."""
    images = [{"id": i, "file_name": f"{split}{i}.png", "width": 64, "height": 48} for i in (1, 2)]
    annotations = [{"id": 10 * i, "image_id": i, "category_id": 1, "bbox": [4, 4, 8, 8]} for i in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


def make(root: Path, damage: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """Splits `train` and `val`, all images different; ``damage`` changes the contents of `train`."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for split in ("train", "val"):
        coco = content(split)
        for image in coco["images"]:
            pixels = rng.integers(0, 256, (48, 64), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / image["file_name"])
        if split == "train" and damage is not None:
            damage(coco)
        (root / f"{split}.json").write_text(json.dumps(coco))
    return root


def found(root: Path) -> list[tuple[str, str, str, str]]:
    return [(fault.kind, fault.severity, Path(fault.file).name, fault.item) for fault in find_faults(read_splits(root))]


def test_a_clean_data_set_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "data")
    assert found(root) == []
    assert check(root) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def box(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda coco: coco["annotations"].append({"id": 30, "image_id": 2, "category_id": 1} | fields)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (box(bbox=[4, 4, 0, 8]), ("degenerate-box", "error", "train.json", "annotation 30")),
        (box(bbox=[4, 4, 9, -2]), ("degenerate-box", "error", "train.json", "annotation 30")),
        (box(bbox=[60, 4, 9, 2]), ("outside-image", "warning", "train.json", "annotation 30")),
        (box(bbox=[-1, 4, 9, 2]), ("outside-image", "warning", "train.json", "annotation 30")),
        (box(bbox=[64, 4, 9, 2]), ("outside-image", "error", "train.json", "annotation 30")),
        (box(bbox=[4, 4, 8, 8]), ("duplicate-box", "error", "train.json", "annotation 30")),
        (box(bbox=[4, 4, float("nan"), 8]), ("not-a-number", "error", "train.json", "annotation 30")),
        (box(bbox=[4, 4, 9, 8], category_id=7), ("unknown-class", "error", "train.json", "annotation 30")),
        (box(bbox=[4, 4, 9, 8], id=20), ("duplicate-id", "error", "train.json", "annotation 20")),
        (
            lambda coco: coco["images"][0].update(width=48, height=64),
            ("size-mismatch", "error", "train1.png", "image 1"),
        ),
        (
            lambda coco: coco["images"][0].update(file_name="train2.png"),
            ("file-named-twice", "error", "train.json", "image 2"),
        ),
        (
            lambda coco: coco["images"][0].update(file_name="gone.png"),
            ("missing-image", "error", "gone.png", "image 1"),
        ),
    ],
)
def test_finds_each_fault_and_nothing_else(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], fault: tuple[str, str, str, str]
) -> None:
    root = make(tmp_path / "data", damage)
    assert found(root) == [fault]
    assert check(root, json=True) == (1 if fault[1] == "error" else 0)


def test_rounding_is_not_outside(tmp_path: Path) -> None:
    assert found(make(tmp_path / "data", box(bbox=[0, 0, 64.004, 48]))) == []


def test_a_class_without_instance(tmp_path: Path) -> None:
    root = make(tmp_path / "data", lambda coco: coco["annotations"].clear())
    assert found(root) == [("class-without-instance", "warning", "train.json", "class cat in train")]


def test_ignore_boxes_are_no_instances(tmp_path: Path) -> None:
    root = make(tmp_path / "data", lambda coco: [row.update(iscrowd=1) for row in coco["annotations"]])
    assert found(root) == [("class-without-instance", "warning", "train.json", "class cat in train")]


def test_splits_with_other_classes(tmp_path: Path) -> None:
    root = make(tmp_path / "data", lambda coco: coco["categories"][0].update(name="dog"))
    assert found(root) == [("class-mismatch", "error", "val.json", "")]


def test_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    cut = root / "images" / "train1.png"
    cut.write_bytes(cut.read_bytes()[:-600])
    (root / "images" / "val2.png").write_bytes(b"")
    assert found(root) == [
        ("unreadable-image", "error", "train1.png", "image 1"),
        ("unreadable-image", "error", "val2.png", "image 2"),
    ]
    headers = find_faults(read_splits(root), headers_only=True)
    assert [Path(fault.file).name for fault in headers] == ["val2.png"]


def test_an_unreadable_yolo_image_is_named_once(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "images" / "a.png").touch()
    kinds = [fault.kind for fault in find_faults(read_splits(tmp_path))]
    assert kinds == ["unreadable-image", "class-without-instance"]


def test_images_by_content(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    images = root / "images"
    for copy in ("train2.png", "val2.png"):
        (images / copy).write_bytes((images / "train1.png").read_bytes())
    assert found(root) == [
        ("image-in-two-splits", "error", "val2.png", "in val"),
        ("duplicate-image", "warning", "train2.png", "in train"),
    ]


def test_a_path_in_two_splits(tmp_path: Path) -> None:
    root = make(tmp_path / "data", lambda coco: coco["images"][0].update(file_name="val1.png"))
    assert found(root) == [("image-in-two-splits", "error", "val1.png", "in val")]


def test_json_is_one_complete_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "data", lambda coco: coco["annotations"].extend(
        {"id": 100 + i, "image_id": 1, "category_id": 1, "bbox": [4, 20, 0, 8]} for i in range(30)
    ))  # fmt: skip
    assert check(root, json=True) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    assert sum(fault["kind"] == "degenerate-box" for fault in document["faults"]) == 30
    assert document["splits"]["train"]["instances"] == {"cat": 32}
    assert document["splits"]["val"]["small"] == 2
    assert document["splits"]["val"]["sqrt_area_quantiles"] == {"0.05": 8, "0.5": 8, "0.95": 8}
    assert check(root) == 1
    assert "and 20 more" in capsys.readouterr().out


def test_bad_input_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "absent") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no such file" in captured.err
    assert check(tmp_path / "absent", json=True) == 2
    assert "no such file" in json.loads(capsys.readouterr().out)["error"]


def test_every_kind_is_in_the_help() -> None:
    source = Path(__file__).parents[2] / "src" / "detframe" / "data"
    text = "".join((source / f"{name}.py").read_text() for name in ("annotations", "coco", "voc", "yolo", "checks"))
    kinds = set(re.findall(r'(?:Fault|_box_fault|return)\(?\s*"([a-z]+(?:-[a-z]+)+)"', text))
    assert {"unknown-class", "not-normalised", "degenerate-box"} <= kinds
    assert [kind for kind in sorted(kinds) if kind not in (check.__doc__ or "")] == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_bccd_has_two_degenerate_boxes() -> None:
    assert sorted(found(SHARED / "bccd")) == [
        ("degenerate-box", "error", "BloodImage_00338.xml", "object 13"),
        ("degenerate-box", "error", "BloodImage_00343.xml", "object 4"),
    ]

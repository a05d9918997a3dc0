from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detframe.data.annotations import DataError
from detframe.data.sources import read_split, read_splits

SHARED = Path(__file__).parents[3] / "shared" / "data"
YAML = "names: [cat]\ntrain: images\n"


def coco(path: Path, *names: str) -> Path:
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)


def lengths(data: Path) -> dict[str, int]:
    return {split: len(reading.index) for split, reading in read_splits(data).items()}


def test_one_coco_file(tmp_path: Path) -> None:
    assert lengths(coco(tmp_path / "holdout.json", "a.png")) == {"holdout": 1}


@pytest.mark.parametrize(
    "layout",
    [
        "{}.json",
        "annotations/instances_{}.json",
        "{}/_annotations.coco.json",
    ],
)
def test_folders_of_coco_files(tmp_path: Path, layout: str) -> None:
    coco(tmp_path / layout.format("test"), "a.png")
    coco(tmp_path / layout.format("train"), "b.png", "c.png")
    (tmp_path / "settings.json").write_text('{"font": 12}')
    assert lengths(tmp_path) == {"train": 2, "test": 1}
    assert list(read_splits(tmp_path)) == ["train", "test"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_split_is_one_in_any_encoding_of_json(encoding: str, tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    path = coco(tmp_path / "val.json", "b.png", "c.png")
    path.write_text(path.read_text(), encoding=encoding)
    assert lengths(tmp_path) == {"train": 1, "val": 2}


@pytest.mark.parametrize("content", [b"", b"\x89PNG\x0d\x0a"])
def test_what_may_have_been_a_split_is_named(content: bytes, tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    assert lengths(tmp_path) == {"train": 1}
    (tmp_path / "test.json").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.json"):
        read_splits(tmp_path)


def test_captions_beside_instances_are_passed_over(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "instances_val2017.json", "a.png")
    coco(tmp_path / "annotations" / "captions_val2017.json", "a.png")
    assert lengths(tmp_path) == {"val2017": 1}


def test_yolo_by_folder_and_by_file(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    (tmp_path / "data.yaml").write_text(YAML)
    assert lengths(tmp_path) == lengths(tmp_path / "data.yaml") == {"train": 1}
    assert len(read_split(tmp_path, "train")) == len(read_split(tmp_path / "data.yaml", "train")) == 1


def test_a_configuration_names_splits_below_its_root(tmp_path: Path) -> None:
    coco(tmp_path / "data" / "a.json", "a.png")
    coco(tmp_path / "data" / "b.json", "a.png")
    image(tmp_path / "pictures" / "a.png")
    block: dict[str, Any] = {"root": str(tmp_path / "data"), "train": "a.json", "val": None, "test": "b"}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"data": block | {"images": str(tmp_path / "pictures")}}))
    readings = read_splits(path)
    assert list(readings) == ["train", "test"]
    assert readings["test"].faults == []
    assert readings["test"].index.source == tmp_path / "data" / "b.json"
    path.write_text(json.dumps({"data": {"class_path": "x.Y", "init_args": block}}))
    assert list(read_splits(path)) == ["train", "test"]


def test_a_split_of_a_root(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    image(tmp_path / "images" / "a.png")
    for split in ("train", "train.json", str(tmp_path / "train.json")):
        assert len(read_split(tmp_path, split)) == 1


@pytest.mark.parametrize(
    "name", ["data.txt", "absent", "absent.json", "empty", "list.yaml", "config.yaml", "synthetic.yaml"]
)
def test_what_is_no_data_set_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "data.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "config.yaml").write_text("data: {root: .}")
    (tmp_path / "synthetic.yaml").write_text("data: {root: absent, synthetic: true, train: train.json}")
    with pytest.raises(DataError, match=name):
        read_splits(tmp_path / name)


def test_a_missing_split_names_those_there_are(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    with pytest.raises(DataError, match="no split 'valid'; there are train"):
        read_split(tmp_path, "valid")
    with pytest.raises(DataError, match=r"valid\.json"):
        read_split(tmp_path, "valid.json")


def test_two_formats_in_one_folder_are_refused(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    image(tmp_path / "images" / "a.png")
    (tmp_path / "data.yaml").write_text(YAML)
    with pytest.raises(DataError, match=r"data\.yaml, COCO"):
        read_splits(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    coco(tmp_path / "annotations" / "train.json", "a.png")
    with pytest.raises(DataError, match="train"):
        read_splits(tmp_path)


def test_errors_in_annotations_stop_training(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png", "a.png")
    image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"train\.json.*1 errors(.|\n)*image 1: names the file a\.png"):
        read_split(tmp_path, "train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_data() -> None:
    assert lengths(SHARED / "bccd") == {"train": 205, "val": 87, "test": 72}
    assert lengths(SHARED / "deeppcb") == {"train": 1000, "test": 500}
    index = read_split(SHARED / "deeppcb", "train.json")
    assert index.boxes.shape == (6873, 4)
    assert index.metadata[0] == {"board": "group20085"}

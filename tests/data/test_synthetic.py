from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detframe.data.scenes import CLASS_NAMES, RARE_CLASS, Scene, draw_scene
from detframe.data.synthetic import write_dataset


def read(root: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / f"{split}.json").read_text())
    return content


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def modified(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "parts", train=72, val=12, test=12)


def test_layout_and_counts(dataset: Path) -> None:
    assert {path.name for path in dataset.iterdir()} == {"train.json", "val.json", "test.json", "images"}
    assert len(list((dataset / "images").iterdir())) == 96
    for split, count in (("train", 72), ("val", 12), ("test", 12)):
        content = read(dataset, split)
        assert len(content["images"]) == count
        assert [category["name"] for category in content["categories"]] == list(CLASS_NAMES)
        assert len({image["id"] for image in content["images"]}) == count
        assert len({box["id"] for box in content["annotations"]}) == len(content["annotations"])


def test_images_have_the_size_that_is_stated(dataset: Path) -> None:
    for image in read(dataset, "val")["images"]:
        with Image.open(dataset / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])


def test_boxes_lie_in_their_images(dataset: Path) -> None:
    content = read(dataset, "train")
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert width >= 8
        assert height >= 8
        assert x + width <= sizes[annotation["image_id"]][0]
        assert y + height <= sizes[annotation["image_id"]][1]
        assert 0 < annotation["area"] <= width * height


def test_classes_are_even_but_for_the_rare_one(dataset: Path) -> None:
    content = read(dataset, "train")
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = Counter(names[box["category_id"]] for box in content["annotations"])
    total = sum(counts.values())
    assert 0.01 <= counts[RARE_CLASS] / total <= 0.07
    for name in CLASS_NAMES:
        if name != RARE_CLASS:
            assert 0.12 <= counts[name] / total <= 0.27


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_empty_and_crowded_images(dataset: Path, split: str) -> None:
    content = read(dataset, split)
    boxes = Counter(box["image_id"] for box in content["annotations"])
    per_image = [boxes[image["id"]] for image in content["images"]]
    assert per_image.count(0) == len(per_image) // 12
    assert max(per_image) >= 12


def test_the_seed_decides_on_every_byte(tmp_path: Path) -> None:
    first = files(write_dataset(tmp_path / "first", 3, 1, 1, seed=5))
    assert files(write_dataset(tmp_path / "again", 3, 1, 1, seed=5)) == first
    other = files(write_dataset(tmp_path / "other", 3, 1, 1, seed=6))
    assert other["images/train_0000.jpg"] != first["images/train_0000.jpg"]
    assert first["images/train_0000.jpg"] != first["images/val_0000.jpg"]
    more = files(write_dataset(tmp_path / "more", 4, 1, 1, seed=5))
    assert all(more[name] == content for name, content in first.items() if name.endswith(".jpg"))


def test_a_complete_data_set_is_not_drawn_again(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "parts", 2, 1, 1)
    before = modified(root)
    assert write_dataset(root, 2, 1, 1) == root
    assert modified(root) == before


@pytest.mark.parametrize("lost", ["images/train_0001.jpg", "val.json"])
def test_an_incomplete_data_set_is_drawn_again(tmp_path: Path, lost: str) -> None:
    root = write_dataset(tmp_path / "parts", 2, 1, 1)
    before = files(root)
    (root / lost).unlink()
    write_dataset(root, 2, 1, 1)
    assert files(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_other_parameters_replace_the_data_set(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "parts", 2, 1, 1)
    write_dataset(root, 3, 1, 1)
    assert len(read(root, "train")["images"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "deep" / "parts").mkdir(parents=True)
    write_dataset(tmp_path / "deep" / "parts", 1, 1, 1)
    assert len(read(tmp_path / "deep" / "parts", "train")["images"]) == 1


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(rng: np.random.Generator, objects: int) -> Scene:
        calls.append(objects)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(rng, objects)

    monkeypatch.setattr("detframe.data.synthetic.draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "parts", 2, 1, 1)
    assert list(tmp_path.iterdir()) == []
    write_dataset(tmp_path / "parts", 2, 1, 1)
    assert len(files(tmp_path / "parts")) == 7


def test_nobody_elses_data_is_replaced(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "train.json").write_text('{"info": {"description": "mine"}}')
    with pytest.raises(ValueError, match=r"foreign: holds other data \(train\.json\); name another folder"):
        write_dataset(foreign, 1, 1, 1)

    root = write_dataset(tmp_path / "parts", 1, 1, 1)
    (root / "notes.txt").write_text("reviewed by hand")
    with pytest.raises(ValueError, match=r"holds other data \(notes\.txt\)"):
        write_dataset(root, 2, 1, 1)

    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        write_dataset(tmp_path / "file", 1, 1, 1)


def test_processes_that_draw_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    root = tmp_path / "parts"
    processes = [context.Process(target=write_dataset, args=(root, 4, 1, 1)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert files(root) == files(write_dataset(tmp_path / "alone", 4, 1, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "parts"]

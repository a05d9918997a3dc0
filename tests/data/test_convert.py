from __future__ import annotations

import json
import tempfile
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detframe.cli import main
from detframe.data.annotations import AnnotationIndex
from detframe.data.convert import Format, compare_splits, convert
from detframe.data.sources import read_splits

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"
FORMATS: tuple[Format, ...] = ("coco", "voc", "yolo")
# Control characters and unassigned code points are no XML, surrogates are no UTF-8.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cn", "Cs")), min_size=1, max_size=8)
JSON_VALUES = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.lists(st.integers(), max_size=2))
IDS = st.integers(0, 2**53)


@st.composite
def splits(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """COCO files by split name: empty images, ignore boxes, boxes outside, inverted and empty, ids with gaps."""
    names = draw(st.lists(TEXT, min_size=1, max_size=4, unique=True))
    class_ids = draw(st.lists(IDS, min_size=len(names), max_size=len(names), unique=True))
    categories = [{"id": identity, "name": name} for identity, name in zip(class_ids, names, strict=True)]
    found = {}
    for split in draw(st.lists(st.sampled_from(["train", "val", "all"]), min_size=1, max_size=2, unique=True)):
        images, annotations = [], []
        image_ids = draw(st.lists(IDS, max_size=4, unique=True))
        annotation_ids = iter(draw(st.lists(IDS, min_size=12, max_size=12, unique=True)))
        for number, identity in enumerate(image_ids):
            width, height = draw(st.tuples(*[st.integers(1, 10_000)] * 2))
            folder, ending = draw(st.sampled_from(["", "sub/", "a b/é/"])), draw(st.sampled_from(["png", "x.PNG"]))
            # Some names differ in nothing but the ending.
            file = {"id": identity, "file_name": f"{folder}{number // 2}.{'jpg' if number % 2 else ending}"}
            columns = draw(st.dictionaries(st.sampled_from(["board", "camera"]), JSON_VALUES))
            images.append(file | {"width": width, "height": height} | columns)
            for _ in range(draw(st.integers(0, 3))):
                reach = [st.floats(-0.1 * side, 1.1 * side) for side in (width, height)]
                x1, y1, x2, y2 = draw(st.tuples(*reach, *reach))
                flag = draw(st.sampled_from(["iscrowd", "ignore"]))
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], flag: draw(st.integers(0, 1))}
                area = draw(st.sampled_from([{}, {"area": 12.25}]))
                owner = {
                    "id": next(annotation_ids),
                    "image_id": identity,
                    "category_id": draw(st.sampled_from(class_ids)),
                }
                annotations.append(owner | box | area)
        found[split] = {"images": images, "annotations": annotations, "categories": categories}
    return found


def save(folder: Path, contents: dict[str, dict[str, Any]]) -> Path:
    """COCO files, and for each image a file; its pixels play no part in a conversion."""
    for split, content in contents.items():
        for image in content["images"]:
            path = folder / "images" / split / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{split} {image['id']}".encode())
        folder.mkdir(exist_ok=True)
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def by_image(index: AnnotationIndex) -> dict[int, list[tuple[Any, ...]]]:
    """Everything of each image that a round trip has to keep, in an order of its own."""
    names = {category.id: category.name for category in index.categories}
    found: dict[int, list[tuple[Any, ...]]] = {}
    for position, image_id in enumerate(index.image_ids.tolist()):
        rows = range(index.offsets[position], index.offsets[position + 1])
        boxes = []
        for row in rows:
            category = index.categories[index.labels[row]]
            ids = (int(index.annotation_ids[row]), category.id, names[category.id], bool(index.ignore[row]))
            boxes.append((ids, index.boxes[row].tolist(), float(index.areas[row])))
        metadata = index.metadata[position] if index.metadata else {}
        size = index.image_sizes[position].tolist()
        found[image_id] = [(index.path(position).read_bytes(), metadata, size), *sorted(boxes)]
    return found


def assert_same(before: AnnotationIndex, after: AnnotationIndex) -> None:
    assert sorted(after.categories) == sorted(before.categories)
    ours, theirs = by_image(before), by_image(after)
    assert ours.keys() == theirs.keys()
    for image_id, (image, *boxes) in ours.items():
        other_image, *others = theirs[image_id]
        assert other_image == image
        assert [ids for ids, *_ in others] == [ids for ids, *_ in boxes]
        for (_, box, area), (_, other_box, other_area) in zip(boxes, others, strict=True):
            np.testing.assert_allclose(other_box, box, atol=0.01)
            if area == 12.25:
                assert other_area == area


@pytest.mark.parametrize(("first", "second"), list(permutations(FORMATS, 2)))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents=splits())
def test_every_way_there_and_back_is_lossless(
    first: Format, second: Format, contents: dict[str, dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        origin = save(Path(folder) / "origin", contents)
        before = {split: reading.index for split, reading in read_splits(origin).items()}
        place = origin
        for step, to in enumerate((first, second, first)):
            out = Path(folder) / str(step)
            assert convert(place, out, to) == 0
            place = out
            after = {split: reading.index for split, reading in read_splits(place).items()}
            assert after.keys() == before.keys()
            for split in before:
                assert_same(before[split], after[split])


def small(folder: Path) -> Path:
    images = [{"id": 1, "file_name": name, "width": 8, "height": 6} for name in ["a.png"]]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "keypoints": [1, 1, 2]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    return save(folder, {"train": content})


def test_never_writes_into_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    assert convert(small(tmp_path / "in"), out, "voc") == 2
    assert f"{out}: is not empty" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["precious"]
    assert convert(small(tmp_path / "in"), out / "precious", "voc") == 2


@pytest.mark.parametrize("there", [False, True])
def test_stopped_it_leaves_nothing_behind(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = small(tmp_path / "data"), tmp_path / "out"
    if there:
        out.mkdir()

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("detframe.data.convert._transfer", stop)
        assert main(["convert", str(data), str(out), "coco"]) == 130
    assert {path.name for path in tmp_path.iterdir()} == ({"data", "out"} if there else {"data"})
    assert not there or not list(out.iterdir())
    assert convert(data, out, "coco") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}
    assert "images" in {path.name for path in out.iterdir()}


def test_says_what_is_not_carried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(small(tmp_path / "in"), tmp_path / "out", "yolo") == 0
    printed = capsys.readouterr().out
    assert "annotations: keypoints (1 times)" in printed
    assert "train: 1 images (0 without boxes), 1 boxes" in printed
    assert "YOLO tools expect `train` and `val`" in printed


def test_outlines_reach_coco_and_are_counted_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small(tmp_path / "in")
    content = json.loads((data / "train.json").read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 3, 1, 3, 3.5]]
    (data / "train.json").write_text(json.dumps(content))
    assert convert(data, tmp_path / "coco", "coco") == 0
    assert "segmentation" not in capsys.readouterr().out
    assert read_splits(tmp_path / "coco")["train"].index.segmentations == ([[1, 1, 3, 1, 3, 3.5]],)
    for to in ("voc", "yolo"):
        assert convert(data, tmp_path / to, to) == 0
        assert "annotations: segmentation (1 times)" in capsys.readouterr().out


@pytest.mark.parametrize("images", ["link", "symlink", "copy"])
def test_images_are_linked_or_copied(tmp_path: Path, images: Any) -> None:  # noqa: ANN401 - Literal of its own
    assert convert(small(tmp_path / "in"), tmp_path / "out", "coco", images) == 0
    original, new = tmp_path / "in/images/train/a.png", tmp_path / "out/images/train/a.png"
    assert new.read_bytes() == original.read_bytes()
    assert new.is_symlink() == (images == "symlink")
    assert new.samefile(original) == (images != "copy")


def test_a_missing_image_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small(tmp_path / "in")
    (data / "images" / "train" / "a.png").unlink()
    (data / "images" / "train" / "b.png").touch()
    assert convert(data, tmp_path / "out", "coco") == 2
    assert "a.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_splits_must_share_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small(tmp_path / "in")
    content = json.loads((data / "train.json").read_text())
    content["categories"][0]["name"] = "dog"
    save(data, {"val": content})
    assert convert(data, tmp_path / "out", "yolo") == 2
    assert "the classes of val are 1 dog, those of train 1 cat" in capsys.readouterr().err


def test_sizes_that_are_not_stated_are_measured(tmp_path: Path) -> None:
    data = small(tmp_path / "in")
    content = json.loads((data / "train.json").read_text())
    del content["images"][0]["width"]
    (data / "train.json").write_text(json.dumps(content))
    assert convert(data, tmp_path / "out", "yolo") == 2  # the file is no image
    Image.new("L", (80, 60)).save(data / "images" / "train" / "a.png")
    assert convert(data, tmp_path / "out", "yolo") == 0
    assert read_splits(tmp_path / "out")["train"].index.image_sizes.tolist() == [[60, 80]]


def test_files_outside_the_image_folder_move_into_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small(tmp_path / "in")
    content = json.loads((data / "train.json").read_text())
    elsewhere = tmp_path / "elsewhere" / "a.png"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"other")
    content["images"].append({"id": 2, "file_name": str(elsewhere), "width": 8, "height": 6})
    (data / "train.json").write_text(json.dumps(content))
    assert convert(data, tmp_path / "out", "coco") == 0
    assert f"{elsewhere} -> a_2.png" in capsys.readouterr().out
    assert (tmp_path / "out" / "images" / "train" / "a_2.png").read_bytes() == b"other"


def test_a_difference_is_found(tmp_path: Path) -> None:
    before = {split: reading.index for split, reading in read_splits(small(tmp_path / "in")).items()}
    moved = json.loads((tmp_path / "in" / "train.json").read_text())
    moved["annotations"][0]["bbox"][0] += 0.02
    after = {split: reading.index for split, reading in read_splits(save(tmp_path / "b", {"train": moved})).items()}
    assert compare_splits(before, after) == ["train: boxes by more than 0.01 px"]
    assert compare_splits(before, {}) == ["splits train became "]


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs ../shared/data/bccd")
def test_bccd(tmp_path: Path) -> None:
    assert convert(BCCD, tmp_path / "yolo", "yolo") == 0
    assert convert(tmp_path / "yolo", tmp_path / "voc", "voc") == 0
    after = read_splits(tmp_path / "voc")
    for split, reading in read_splits(BCCD).items():
        assert_same(reading.index, after[split].index)

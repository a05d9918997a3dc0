"""Data-diff: what it says equals what was changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.curation.conftest import FORMATS, Make, labels, save_fixes, write_coco_set

from detframe.cli import main
from detframe.curation.differences import ChangedLabel, changed_labels
from detframe.data.label_queue import Label

CLASSES = st.sampled_from(["nut", "bolt"])


def edit(path: Path, change: Any) -> None:  # noqa: ANN401 - a function of the content
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def diff(first: Path, second: Path, capsys: pytest.CaptureFixture[str], code: int = 1) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["data-diff", str(first), str(second), "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_in_another_format_and_with_other_ids_is_no_difference(
    to: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make("coco"), tmp_path / "second"

    def renumber(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            row["id"] += 1000
        content["annotations"].reverse()

    assert main(["convert", str(first), str(second), to]) == 0
    if to == "coco":
        edit(second / "train.json", renumber)
    document = diff(first, second, capsys, 0)
    assert (document["images"], document["image_changes"], document["label_changes"]) == ([], {}, {})
    assert main(["data-diff", str(first), str(second)]) == 0
    assert "No difference in 4 images" in capsys.readouterr().out


def test_words_are_what_was_constructed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_coco_set(tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "second"))

    def train(content: dict[str, Any]) -> None:
        rows = content["annotations"]
        rows[0]["category_id"] = 10  # a.png: nut -> bolt
        rows[1]["bbox"][0] += 2  # bolt moved
        rows[2]["iscrowd"] = 1  # made ignore
        rows[3]["bbox"][0] += 0.005  # b c.png: within the tolerance
        rows[4] |= {"category_id": 5, "bbox": [36, 21, 20, 30]}  # bolt -> nut, and moved
        rows[5]["bbox"] = [0, 0, 4, 4]  # no overlap: one gone, another there
        content["images"][1]["file_name"] = "renamed.png"

    (second / "images/train/sub/b c.png").rename(second / "images/train/renamed.png")
    edit(second / "train.json", train)
    document = diff(first, second, capsys)
    assert document["image_changes"] == {"train": {"renamed": 1}}
    assert document["label_changes"] == {
        "train": {
            "nut -> bolt": {"class": 1},
            "bolt": {"box": 1},
            "öse & ring": {"ignore": 1, "removed": 1, "added": 1},
            "bolt -> nut": {"class and box": 1},
        }
    }
    assert document["a"]["splits"]["train"]["images_hash"] == document["b"]["splits"]["train"]["images_hash"]
    assert main(["data-diff", str(first), str(second), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    for line in (
        "train: 1 images renamed",
        "train: 1 labels of another class: 1 nut -> bolt",
        "train: 1 labels of another box: 1 bolt",
        "train: 1 labels made ignore boxes: 1 öse & ring",
        "train: 1 labels added: 1 öse & ring",
    ):
        assert line in said
    assert "was sub/b c.png in train" in re.sub(r"\s*\n?│\s*│\s*│\s*", " ", said)
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 4
    assert "train: renamed.png (was sub/b c.png in train)" in page
    assert "http" not in page


def test_images_that_came_went_moved_and_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_coco_set(tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "second"))

    def train(content: dict[str, Any]) -> None:
        a, _, empty = content["images"]
        content["images"] = [a, {**empty, "id": 99, "file_name": "new.png"}]
        content["annotations"] = content["annotations"][:3]

    def val(content: dict[str, Any]) -> None:
        content["images"].append({"id": 12, "file_name": "empty.png", "width": 100, "height": 80})

    edit(second / "train.json", train)
    edit(second / "val.json", val)
    (second / "images/train/empty.png").rename(second / "images/val/empty.png")
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(second / "images/train/new.png")
    Image.fromarray(np.ones((80, 100, 3), np.uint8)).save(second / "images/train/a.png")
    document = diff(first, second, capsys)
    assert document["image_changes"] == {"train": {"replaced": 1, "removed": 1, "added": 1}, "val": {"moved": 1}}
    assert document["label_changes"] == {
        "train": {"nut": {"removed": 1}, "bolt": {"removed": 1}, "öse & ring": {"removed": 1}}
    }


def test_bad_input_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_coco_set(tmp_path / "d")
    assert main(["data-diff", str(data), str(tmp_path / "none")]) == 2
    assert "none: no such file or folder" in capsys.readouterr().err
    below = data / "LICENSE" / "out"
    assert main(["data-diff", str(data), str(data), "--out", str(below), "--json"]) == 2
    assert "cannot be read or written (Not a directory)" in json.loads(capsys.readouterr().out)["error"]


def test_the_nearest_labels_are_one() -> None:
    crowd = [Label((x, 0.0, x + 10, 10.0), "nut") for x in (0.0, 3.0, 6.0)]
    moved = [label._replace(box=(label.box[0] + 1, *label.box[1:])) for label in crowd]
    assert changed_labels(crowd, moved[::-1]) == tuple(
        ChangedLabel("box", before, after) for before, after in zip(crowd, moved, strict=True)
    )
    # Of two at one place it is the one of the same class.
    two = [Label((0.0, 0.0, 10.0, 10.0), "nut"), Label((0.0, 0.0, 10.0, 10.0), "bolt")]
    grown = [label._replace(box=(0.0, 0.0, 10.0, 11.0)) for label in two]
    assert {one.change for one in changed_labels(two, grown[::-1])} == {"box"}


@settings(max_examples=50, deadline=None)
@given(
    boxes=st.lists(st.tuples(st.integers(0, 9), CLASSES), max_size=8, unique_by=lambda box: box[0]),
    wanted=st.lists(st.sampled_from(["keep", "remove", "class", "box", "ignore"]), min_size=8, max_size=8),
)
def test_changes_are_found_as_they_were_made(boxes: list[tuple[int, str]], wanted: list[str]) -> None:
    before = [Label((40.0 * place, 0.0, 40.0 * place + 20, 30.0), name) for place, name in boxes]
    other = {"nut": "bolt", "bolt": "nut"}
    after = []
    for label, change in zip(before, wanted, strict=False):
        x1, y1, x2, y2 = label.box
        made = {
            "keep": label,
            "class": label._replace(class_name=other[label.class_name]),
            "box": label._replace(box=(x1 + 2, y1, x2, y2)),
            "ignore": label._replace(ignore=True),
        }
        after += [made[change]] if change in made else []
    names = {"remove": "removed"}
    expected = sorted(names.get(change, change) for _, change in zip(before, wanted, strict=False) if change != "keep")
    assert sorted(one.change for one in changed_labels(before, after[::-1])) == expected


def test_what_apply_did_is_what_differs(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.curation.test_apply import five, run

    data = make("voc")
    assert run(save_fixes(tmp_path / "f.jsonl", *five(data)), "--data", data, "--out", tmp_path / "v2") == 0
    document = diff(data, tmp_path / "v2", capsys)
    assert document["image_changes"] == {}
    assert document["label_changes"] == {
        "train": {
            "nut -> bolt": {"class": 1},
            "bolt": {"box": 1},
            "öse & ring": {"removed": 1},
            "nut": {"added": 1},
        }
    }
    assert labels(data) != labels(tmp_path / "v2")


def test_a_badly_placed_label_that_was_mended_is_one() -> None:
    nut = Label((0.0, 0.0, 10.0, 10.0), "nut")
    moved = nut._replace(box=(5.0, 0.0, 15.0, 10.0))  # IoU 1/3
    assert changed_labels([nut], [moved]) == (ChangedLabel("box", nut, moved),)
    other = moved._replace(class_name="bolt")
    assert changed_labels([nut], [other]) == (ChangedLabel("removed", nut, None), ChangedLabel("added", None, other))

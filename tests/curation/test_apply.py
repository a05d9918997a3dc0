"""Apply: a new version with the labels that were decided, and everything else as it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.curation.conftest import FORMATS, Make, fix_of, indices, labels, save_fixes

from detframe.cli import main
from detframe.curation.fixes import Fix
from detframe.data.convert import Format
from detframe.data.label_queue import Kind, Label, Queue, Suggestion, suggestion_id, write_queue

A = "a.png"


def five(data: Path) -> list[Fix]:
    """A class changed, a box moved, a label removed, one added to an empty image, one found right."""
    nut, bolt, ring = labels(data)[A]
    return [
        fix_of(data, A, nut, nut._replace(class_name="bolt")),
        fix_of(data, A, bolt, bolt._replace(box=(36.5, 21.0, 54.0, 50.0)), "edit", "bad-box"),
        fix_of(data, A, ring, None, "accept", "spurious"),
        fix_of(data, "empty.png", None, Label((1.0, 2.0, 30.0, 40.0), "nut"), "accept", "missing"),
        fix_of(data, "v.png", nut, nut, "reject", "duplicate", "val"),
    ]


def run(*arguments: Any) -> int:  # noqa: ANN401 - what a command line is made of
    return main(["apply", *map(str, arguments)])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", FORMATS)
def test_the_new_version_has_what_was_decided_and_the_old_one_stays(to: Format, make: Make, tmp_path: Path) -> None:
    data, new = make(to), tmp_path / "new"
    before, old, val = tree(data), labels(data), labels(data, "val")
    assert run(save_fixes(tmp_path / "f.jsonl", *five(data)), "--data", data, "--out", new) == 0
    assert tree(data) == before
    nut = old[A][0]
    now = labels(new)
    assert [label.class_name for label in now[A]] == ["bolt", "bolt"]
    assert now[A][0].box == pytest.approx(nut.box, abs=0.001)
    assert now[A][1].box == pytest.approx((36.5, 21.0, 54.0, 50.0), abs=0.001)
    assert now["empty.png"][0].box == pytest.approx((1, 2, 30, 40), abs=0.001)
    assert now["sub/b c.png"] == old["sub/b c.png"]
    assert labels(new, "val") == val
    assert indices(new)["train"].categories == indices(data)["train"].categories
    assert not (tmp_path / "new.unfinished").exists()
    # Nothing but the files of the two images differs, and images are the same file.
    after = tree(new)
    changed = {name for name in before if after.get(name) != before[name]}
    stems = ("a.", "empty.", "train.json")
    assert changed
    assert all(Path(name).name.startswith(stems) for name in changed)
    index = indices(new)["train"]
    assert all(index.path(i).stat().st_nlink == 2 for i in range(len(index)))
    assert main(["check", str(new), "--headers_only"]) == 0


def test_coco_keeps_every_other_field_and_id(make: Make, tmp_path: Path) -> None:
    data, new = make("coco"), tmp_path / "new"
    assert run(save_fixes(tmp_path / "f.jsonl", *five(data)), "--data", data, "--out", new) == 0
    old, now = (json.loads((folder / "train.json").read_text()) for folder in (data, new))
    assert {**old, "annotations": 0} == {**now, "annotations": 0}
    by_id = {row["id"]: row for row in now["annotations"]}
    nut, bolt, ring, *rest = old["annotations"]
    assert by_id[nut["id"]] == {**nut, "category_id": 10}  # its outline fits still
    moved = {"bbox": [36.5, 21.0, 17.5, 29.0], "area": 507.5, "segmentation": []}
    assert by_id[bolt["id"]] == {**bolt, **moved}
    assert ring["id"] not in by_id
    assert [by_id[row["id"]] for row in rest] == rest
    highest = max(row["id"] for row in old["annotations"])
    added = {"image_id": 12, "category_id": 5, "bbox": [1, 2, 29, 38], "area": 1102, "iscrowd": 0}
    assert by_id[highest + 1] == {"id": highest + 1, **added}
    assert (new / "train.json").read_text().startswith('{\n  "info"')
    assert "é" in (new / "train.json").read_text(encoding="utf-8")
    assert (new / "val.json").read_bytes() == (data / "val.json").read_bytes()
    assert (new / "LICENSE").read_text() == "own"


def test_an_edited_xml_file_differs_in_what_was_changed_alone(tmp_path: Path) -> None:
    data, new = tmp_path / "voc", tmp_path / "new"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages", "SegmentationClass"):
        (data / folder).mkdir(parents=True)
    (data / "ImageSets/Main/train.txt").write_text("x\n")
    Image.new("RGB", (50, 40)).save(data / "JPEGImages/x.png")
    corners = ("<xmin>{}</xmin>", "<ymin>2</ymin>", "<xmax>9</xmax>", "<ymax>8</ymax>")
    box = "\n\t\t\t".join(["<bndbox>", *corners]) + "\n\t\t</bndbox>"
    object_ = "\t<object>\n\t\t<name>{}</name>\n\t\t<truncated>1</truncated>\n\t\t" + box + "\n\t</object>\n"
    text = "<annotation>\n\t<!-- by hand -->\n\t<source>\n\t\t<database>own</database>\n\t</source>\n{}</annotation>\n"
    path = data / "Annotations/x.xml"
    path.write_text(text.format(object_.format("cat", 1) + object_.format("dog", 2) + object_.format("dog", 3)))
    cat, dog, third = labels(data)["x.png"]
    fixes = [
        fix_of(data, "x.png", cat, cat._replace(class_name="dog")),
        fix_of(data, "x.png", dog, dog._replace(ignore=True), "ambiguous", "spurious"),
        fix_of(data, "x.png", third, None, kind="duplicate"),
    ]
    assert run(save_fixes(tmp_path / "f.jsonl", *fixes), "--data", data, "--out", new) == 0
    ignored = object_.format("dog", 2).replace("\n\t</object>", "\n\t\t<difficult>1</difficult>\n\t</object>")
    assert (new / "Annotations/x.xml").read_text() == text.format(object_.format("dog", 1) + ignored)
    # Its last cat is gone, and cat is a class all the same.
    assert indices(new)["train"].class_names == ["cat", "dog"]
    assert labels(new)["x.png"] == [cat._replace(class_name="dog"), dog._replace(ignore=True)]


@pytest.mark.parametrize("to", ["coco", "voc"])
def test_ambiguous_becomes_an_ignore_box_and_back(to: Format, make: Make, tmp_path: Path) -> None:
    data = make(to)
    nut = labels(data)[A][0]
    ignored = nut._replace(ignore=True)
    first = save_fixes(tmp_path / "1.jsonl", fix_of(data, A, nut, ignored, "ambiguous"))
    assert run(first, "--data", data, "--out", tmp_path / "v2") == 0
    assert labels(tmp_path / "v2")[A][0] == ignored
    second = save_fixes(tmp_path / "2.jsonl", fix_of(data, A, ignored, nut, "edit"))
    assert run(second, "--data", tmp_path / "v2", "--out", tmp_path / "v3") == 0
    assert labels(tmp_path / "v3")[A][0] == nut


def test_yolo_has_no_ignore_boxes(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make("yolo")
    nut = labels(data)[A][0]
    fixes = save_fixes(tmp_path / "1.jsonl", fix_of(data, A, nut, nut._replace(ignore=True), "ambiguous"))
    assert run(fixes, "--data", data, "--out", tmp_path / "v2") == 2
    assert "a.png (train), wrong-class by ada: YOLO has no ignore boxes" in capsys.readouterr().err
    assert not (tmp_path / "v2").exists()


def test_yolo_keeps_polygons_and_needs_no_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "yolo"
    for folder in ("images/train", "labels/train"):
        (data / folder).mkdir(parents=True)
    (data / "data.yaml").write_text(f"path: {data}\ntrain: images/train\nnames: {{3: cat, 7: dog}}  # two\n")
    Image.new("RGB", (100, 50)).save(data / "images/train/x.png")
    (data / "labels/train/x.txt").write_text("3 0.1 0.1 0.5 0.1 0.5 0.9 0.1 0.9\n7 0.5 0.5 0.2 0.2\n")
    cat, dog = labels(data)["x.png"]
    fixes = [
        fix_of(data, "x.png", cat, cat._replace(class_name="dog")),
        fix_of(data, "x.png", None, Label((0.0, 0.0, 10.0, 10.0), "cat"), kind="missing"),
    ]
    assert run(save_fixes(tmp_path / "f.jsonl", *fixes), "--data", data, "--out", tmp_path / "new") == 0
    text = (tmp_path / "new/labels/train/x.txt").read_text()
    added = "3 0.05000000 0.10000000 0.10000000 0.20000000\n"
    assert text == "7 0.1 0.1 0.5 0.1 0.5 0.9 0.1 0.9\n7 0.5 0.5 0.2 0.2\n" + added
    assert (tmp_path / "new/data.yaml").read_text() == "train: images/train\nnames: {3: cat, 7: dog}  # two\n"
    outside = fix_of(data, "x.png", dog, dog._replace(box=(-15.0, 0.0, 10.0, 10.0)), "edit", "bad-box")
    assert run(save_fixes(tmp_path / "g.jsonl", outside), "--data", data, "--out", tmp_path / "no") == 2
    assert "leaves the image of 100 x 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "val"), [("images/all", "images/all"), ("images/all", "val.txt"), ("images/all", "images/../images/link")]
)
def test_yolo_splits_may_share_text_files(train: str, val: str, tmp_path: Path) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    for folder in ("images/all", "labels/all"):
        (data / folder).mkdir(parents=True)
    for folder in ("images", "labels"):
        (data / folder / "link").symlink_to("all")
    (data / "val.txt").write_text("images/all/x.png\n")
    (data / "data.yaml").write_text(f"train: {train}\nval: {val}\nnames: [cat, dog]\n")
    for number, name in enumerate("xy"):
        Image.new("RGB", (100, 50), (number, 0, 0)).save(data / f"images/all/{name}.png")
        (data / f"labels/all/{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.2 0.5 0.2 0.2\n")
    other = next(name for name in labels(data, "val") if name.endswith("x.png"))
    cat, dog = labels(data)["x.png"]
    fixes = [
        fix_of(data, "x.png", cat, cat._replace(class_name="dog")),
        fix_of(data, other, dog, None, kind="spurious", split="val"),
        fix_of(data, other, cat, cat._replace(class_name="dog"), split="val"),  # as is decided in train
        fix_of(data, other, None, Label((1.0, 2.0, 30.0, 40.0), "cat"), kind="missing", split="val"),
    ]
    assert run(save_fixes(tmp_path / "f.jsonl", *fixes), "--data", data, "--out", new) == 0
    written = "1 0.5 0.5 0.2 0.2\n0 0.15500000 0.42000000 0.29000000 0.76000000\n"
    assert (new / "labels/all/x.txt").read_text() == written
    assert [label.class_name for label in labels(new)["x.png"]] == ["dog", "cat"]
    assert labels(new, "val")[other] == labels(new)["x.png"]
    assert labels(new)["y.png"] == [cat, dog]


def test_voc_lists_may_overlap(make: Make, tmp_path: Path) -> None:
    data, new, name = make("voc"), tmp_path / "new", "sub/b c.png"
    with (data / "ImageSets/Main/val.txt").open("a") as file:
        file.write("sub/b c\n")
    nut, bolt, ring = labels(data)[name]
    fixes = [
        fix_of(data, name, nut, nut._replace(class_name="bolt")),
        fix_of(data, name, ring, None, kind="spurious", split="val"),
    ]
    assert run(save_fixes(tmp_path / "f.jsonl", *fixes), "--data", data, "--out", new) == 0
    assert labels(new)[name] == labels(new, "val")[name] == [nut._replace(class_name="bolt"), bolt]


def test_coco_splits_of_one_file_are_refused(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, new, config = make("coco"), tmp_path / "new", tmp_path / "config.yaml"
    config.write_text(json.dumps({"data": {"root": str(data), "train": "train.json", "val": "train.json"}}))
    nut = labels(data)[A][0]
    fixes = [fix_of(config, A, nut, nut._replace(class_name="bolt"), split=split) for split in ("train", "val")]
    path = save_fixes(tmp_path / "f.jsonl", *fixes)
    assert run(path, "--data", config, "--out", new) == 2
    assert "train.json: is both train and val, and a new version has a file for each split" in capsys.readouterr().err
    assert not list(tmp_path.glob("new*"))
    assert run(path, "--data", data / "train.json", "--out", new) == 0
    assert labels(new)[A][0].class_name == "bolt"


def test_lineage_says_what_of_what_and_by_whom(make: Make, tmp_path: Path) -> None:
    data, new = make("coco"), tmp_path / "new"
    fixes = save_fixes(tmp_path / "f.jsonl", *five(data))
    assert run(fixes, "--data", data, "--out", new) == 0
    lineage = json.loads((new / "lineage.json").read_text())
    old, now = indices(data)["train"], indices(new)["train"]
    parent = lineage["parent"]["splits"]["train"]
    assert parent["annotations_hash"] == old.annotations_hash()
    assert parent["images_hash"] == old.images_hash() == now.images_hash()
    assert parent["hash"] == hashlib.sha256((old.annotations_hash() + old.images_hash()).encode()).hexdigest()
    assert lineage["splits"]["train"]["annotations_hash"] == now.annotations_hash() != old.annotations_hash()
    assert lineage["splits"]["val"]["hash"] == lineage["parent"]["splits"]["val"]["hash"]
    assert (lineage["splits"]["train"]["boxes_before"], lineage["splits"]["train"]["boxes"]) == (6, 6)
    assert lineage["counts"]["applied"] == {
        "wrong-class": {"accept": 1},
        "bad-box": {"edit": 1},
        "spurious": {"accept": 1},
        "missing": {"accept": 1},
    }
    assert lineage["counts"]["kept"] == {"duplicate": {"reject": 1}}
    assert lineage["people"] == {"ada": 4}
    assert lineage["decisions"] == [{"file": str(fixes), "sha256": hashlib.sha256(fixes.read_bytes()).hexdigest()}]
    assert lineage["parent"]["lineage"] is None
    assert [entry["reviewed"] for entry in lineage["applied"]] == [True] * 4


@pytest.mark.parametrize("to", FORMATS)
def test_applied_again_everything_is_so_already(
    to: Format, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(to)
    fixes = save_fixes(tmp_path / "f.jsonl", *five(data))
    assert run(fixes, "--data", data, "--out", tmp_path / "v2") == 0
    capsys.readouterr()
    assert run(fixes, "--data", tmp_path / "v2", "--out", tmp_path / "v3", "--json") == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["applied"] == {}
    assert sum(sum(kind.values()) for kind in counts["already"].values()) == 4
    assert labels(tmp_path / "v3") == labels(tmp_path / "v2")
    (tmp_path / "v2/lineage.json").unlink()  # as a new export would be
    assert run(fixes, "--data", tmp_path / "v2", "--out", tmp_path / "v4") == 0
    assert labels(tmp_path / "v4") == labels(tmp_path / "v2")


def test_undo_by_dropping_a_line_or_by_a_line(make: Make, tmp_path: Path) -> None:
    data = make("coco")
    fixes = save_fixes(tmp_path / "f.jsonl", *five(data))
    assert run(fixes, "--data", data, "--out", tmp_path / "v2") == 0
    kept = (tmp_path / "v2/fixes.jsonl").read_text().splitlines(keepends=True)
    dropped = tmp_path / "dropped.jsonl"
    dropped.write_text("".join(line for line in kept if '"spurious"' not in line))
    assert run(dropped, "--data", data, "--out", tmp_path / "v3") == 0
    ring = labels(data)[A][2]
    assert ring in labels(tmp_path / "v3")[A]
    assert ring not in labels(tmp_path / "v2")[A]
    save_fixes(fixes, five(data)[2]._replace(decision="undo", when="2026-01-02T00:00:00+00:00"))
    assert run(fixes, "--data", data, "--out", tmp_path / "v4") == 0
    assert labels(tmp_path / "v4") == labels(tmp_path / "v3")


def test_fixes_survive_new_names_and_ids(make: Make, tmp_path: Path) -> None:
    data = make("coco")
    fixes = save_fixes(tmp_path / "f.jsonl", *five(data))
    assert run(fixes, "--data", data, "--out", tmp_path / "v2") == 0
    export = tmp_path / "export"
    assert main(["convert", str(data), str(export), "voc"]) == 0
    (export / "categories.json").unlink()  # and with it the old ids
    for folder, ending in (("JPEGImages", ".png"), ("Annotations", ".xml")):
        (export / folder / f"a{ending}").rename(export / folder / f"zz{ending}")
    listed = export / "ImageSets/Main/train.txt"
    listed.write_text(listed.read_text().replace("a\n", "zz\n", 1))
    assert run(fixes, "--data", export, "--out", tmp_path / "v3") == 0
    assert labels(tmp_path / "v3")["zz.png"] == labels(tmp_path / "v2")[A]


def test_what_has_changed_since_is_refused_by_name(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make("coco"), tmp_path / "v2"
    nut, bolt, ring = labels(data)[A]
    good = fix_of(data, A, nut, nut._replace(class_name="bolt"))
    other, shifted = ring._replace(class_name="nut"), bolt._replace(box=(33.0, 20.5, 55.0, 50.75))
    fixes = [
        good,
        fix_of(data, A, other, other._replace(class_name="bolt"), "accept"),
        fix_of(data, A, bolt._replace(box=(30.0, 20.5, 55.0, 50.75)), shifted, "edit", "bad-box"),
        fix_of(data, A, Label((0.0, 0.0, 5.0, 5.0), "nut"), nut, "edit", "bad-box"),
        fix_of(data, "sub/b c.png", nut, nut._replace(class_name="screw")),
        fix_of(data, "sub/b c.png", nut, nut._replace(box=(5.0, 5.0, 5.0, 9.0)), "edit", "bad-box"),
        fix_of(data, "v.png", nut, None, kind="spurious", split="val", image_sha256="0" * 64),
        fix_of(data, "v.png", nut, None, kind="duplicate", split="val", image_sha256="0" * 64)._replace(
            file_name="w.png"
        ),
    ]
    path = save_fixes(tmp_path / "f.jsonl", *fixes)
    assert run(path, "--data", data, "--out", out) == 2
    said = capsys.readouterr().err
    assert "7 of 8 decisions are refused, so nothing is written." in said
    for line in (
        "a.png (train), wrong-class by ada: nut [60, 20.5, 80, 50.75] is now öse & ring [60, 20.5, 80, 50.75]",
        "a.png (train), bad-box by ada: bolt [30, 20.5, 55, 50.75] is now bolt [35, 20.5, 55, 50.75]",
        "a.png (train), bad-box by ada: nut [0, 0, 5, 5] is not there any more",
        "sub/b c.png (train), wrong-class by ada: the data set has no class 'screw'",
        "sub/b c.png (train), bad-box by ada: its new box [5.0, 5.0, 5.0, 9.0] has no area",
        "v.png (val), spurious by ada: the image has another content now",
        "w.png (val), duplicate by ada: no image has the content that it was decided on",
    ):
        assert line in said
    assert not out.exists()
    assert run(path, "--data", data, "--out", out, "--allow_refused") == 0
    assert labels(out)[A] == [nut._replace(class_name="bolt"), bolt, ring]
    assert len(json.loads((out / "lineage.json").read_text())["refused"]) == 7


def test_two_decisions_about_one_label(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make("coco")
    nut = labels(data)[A][0]
    box = (11.0, 21.0, 29.0, 49.0)
    classed = fix_of(data, A, nut, nut._replace(class_name="bolt"))
    moved = fix_of(data, A, nut, nut._replace(box=box), kind="bad-box")
    both = save_fixes(tmp_path / "f.jsonl", classed, moved)
    assert run(both, "--data", data, "--out", tmp_path / "v2") == 0
    assert labels(tmp_path / "v2")[A][0] == Label(box, "bolt")
    gone = fix_of(data, A, nut, None, kind="spurious")
    assert run(save_fixes(both, gone), "--data", data, "--out", tmp_path / "v3") == 2
    assert "spurious by ada: another decision changes this label in another way" in capsys.readouterr().err
    # A second round, about what the first one left.
    second = fix_of(data, A, Label(box, "bolt"), None, kind="spurious", when="2026-01-03T00:00:00+00:00")
    rounds = save_fixes(tmp_path / "g.jsonl", classed, moved, second)
    assert run(rounds, "--data", data, "--out", tmp_path / "v4") == 0
    assert labels(tmp_path / "v4")[A] == labels(data)[A][1:]


def test_reviewers_who_disagree_are_named(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make("coco")
    nut = labels(data)[A][0]
    mine = fix_of(data, A, nut, nut._replace(class_name="bolt"))
    later = mine._replace(who="bob", when="2026-01-02T00:00:00+00:00")
    skipped = later._replace(decision="skip")
    first, second = save_fixes(tmp_path / "ada.jsonl", mine), save_fixes(tmp_path / "bob.jsonl", skipped)
    assert run(first, second, "--data", data, "--out", tmp_path / "v2") == 0  # to leave it is no decision
    assert labels(tmp_path / "v2")[A][0].class_name == "bolt"
    save_fixes(second, later._replace(decision="reject", after=nut))
    assert run(first, second, "--data", data, "--out", tmp_path / "v3") == 2
    said = capsys.readouterr().err
    assert "1 decisions differ between reviewers." in said
    assert "a.png, wrong-class: ada says accept (bolt [10, 20.5, 30, 50.75]), bob says reject (nut [10" in said
    assert run(first, second, "--data", data, "--out", tmp_path / "v3", "--latest_wins") == 0
    assert labels(tmp_path / "v3")[A][0] == nut


def queue_of(data: Path, path: Path) -> list[Suggestion]:
    nut, bolt, ring = labels(data)[A]
    index = indices(data)["train"]
    made = [
        (nut, nut._replace(class_name="bolt"), 0.99),
        (bolt, None, 0.96),
        (ring, None, 0.95),
        (ring, ring._replace(class_name="bolt"), 0.97),
        (None, Label((1.0, 1.0, 9.0, 9.0), "nut"), 0.5),
    ]
    suggestions = []
    for before, after, sure in made:
        kind: Kind = "missing" if before is None else "wrong-class"
        name = suggestion_id(kind, A, before, after)
        suggestions.append(Suggestion(name, kind, 10, A, 7, before, after, sure, 1.0, "looks"))
    write_queue(Queue(str(data), "train", index.annotations_hash(), index.class_names, suggestions), path)
    return suggestions


def test_what_is_sure_enough_is_applied_without_review_and_marked(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, queue = make("coco"), tmp_path / "queue.jsonl"
    first, second, *_ = queue_of(data, queue)
    assert run("--queue", queue, "--auto", 0.95, "--out", tmp_path / "v2") == 0
    assert "3 were applied without review" in capsys.readouterr().out
    # Of two suggestions about the ring the surer one is taken.
    assert [label.class_name for label in labels(tmp_path / "v2")[A]] == ["bolt", "bolt"]
    lineage = json.loads((tmp_path / "v2/lineage.json").read_text())
    assert (lineage["without_review"], lineage["people"], lineage["queue"]["auto"]) == (3, {}, 0.95)
    assert {(entry["who"], entry["reviewed"]) for entry in lineage["applied"]} == {("detframe", False)}
    assert lineage["counts"]["left"] == {"wrong-class": {"without review": 1}}

    reject = fix_of(data, A, first.before, first.before, "reject", id=first.id)
    undo = fix_of(data, A, second.before, second.after, "undo", id=second.id)
    fixes = save_fixes(tmp_path / "f.jsonl", reject, undo)
    assert run(fixes, "--queue", queue, "--auto", 0.95, "--out", tmp_path / "v3") == 0
    assert [label.class_name for label in labels(tmp_path / "v3")[A]] == ["nut", "bolt", "bolt"]
    # The file of decisions that a version has makes it again, and a person's word goes before what it holds.
    assert run(tmp_path / "v2/fixes.jsonl", fixes, "--data", data, "--out", tmp_path / "v4") == 0
    assert labels(tmp_path / "v4") == labels(tmp_path / "v3")
    capsys.readouterr()
    assert run("--queue", queue, "--auto", 0.95, "--data", tmp_path / "v2", "--out", tmp_path / "v5") == 2
    assert "its split train is not as it was when the queue was made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["F", "--out", "new"], "Give the data set with --data and a new folder with --out."),
        (["F", "--data", "D"], "Give the data set with --data and a new folder with --out."),
        (["--data", "D", "--out", "new"], "Give files of decisions, or --queue and --auto."),
        (["F", "--data", "D", "--out", "new", "--auto", "0.9"], "Give --queue and --auto together"),
        (["F", "--data", "D", "--out", "old"], "old: exists already, and nothing is ever overwritten."),
        (["F", "--data", "D", "--out", "D/new"], "which would then hold two data sets"),
        (["none.jsonl", "--data", "D", "--out", "new"], "none.jsonl: cannot be read"),
        (["F", "--data", "D", "--out", "F/new"], "cannot be read or written (Not a directory)"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str],
    message: str,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make("coco")
    save_fixes(tmp_path / "F", *five(data))
    data.rename(tmp_path / "D")
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert run(*arguments, "--json") == 2
    assert message in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_killed_leaves_nothing_that_counts(make: Make, tmp_path: Path) -> None:
    data, new = make("coco"), tmp_path / "new"
    (tmp_path / "new.unfinished").mkdir()
    (tmp_path / "new.unfinished" / "half.json").touch()
    assert run(save_fixes(tmp_path / "f.jsonl", *five(data)), "--data", data, "--out", new) == 0
    assert not (new / "half.json").exists()


def test_images_are_linked_symbolically_or_copied_where_they_must(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make("yolo")
    fixes = save_fixes(tmp_path / "f.jsonl", *five(data))

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    assert run(fixes, "--data", data, "--out", tmp_path / "v2") == 0
    index = indices(tmp_path / "v2")["train"]
    assert all(index.path(i).is_symlink() for i in range(len(index)))
    assert run(fixes, "--data", tmp_path / "v2", "--out", tmp_path / "v3") == 0  # links of links
    monkeypatch.setattr(os, "symlink", refuse)
    capsys.readouterr()
    assert run(fixes, "--data", data, "--out", tmp_path / "v4") == 0
    assert "copied" in capsys.readouterr().out
    assert labels(tmp_path / "v4") == labels(tmp_path / "v3") == labels(tmp_path / "v2")


LAYOUTS = {
    "one file": ("train.json", "images/train", "train.json"),
    "coco's own": ("annotations/instances_train.json", "images/train", "."),
    "named by its annotations": ("annotations/train.json", "images/train", "annotations"),
    "roboflow": ("train/_annotations.coco.json", "train", "."),
    "beside": ("train.json", ".", "."),
    "configured": ("labels/train.json", "pictures", "config.yaml"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coco_files_and_images_may_lie_in_many_ways(layout: str, make: Make, tmp_path: Path) -> None:
    source, data, new = make("coco"), tmp_path / "data", tmp_path / "new"
    annotations, images, named = LAYOUTS[layout]
    (data / annotations).parent.mkdir(parents=True)
    (source / "images/train").rename(data / "pictures")
    (source / "train.json").rename(data / annotations)
    config = {"root": str(data), "train": annotations, "images": str(data / "pictures")}
    if named.endswith(".yaml"):
        (data / named).write_text(json.dumps({"data": config}))
    elif images != ".":
        (data / images).parent.mkdir(parents=True, exist_ok=True)
        for path in [*(data / "pictures").iterdir()]:
            (data / images).mkdir(exist_ok=True)
            path.rename(data / images / path.name)
    else:
        for path in [*(data / "pictures").iterdir()]:
            path.rename(data / path.name)
    old = labels(data / named)
    fixes = save_fixes(tmp_path / "f.jsonl", fix_of(data / named, A, old[A][0], None, kind="spurious"))
    assert run(fixes, "--data", data / named, "--out", new) == 0
    assert labels(new) == {**old, A: old[A][1:]}
    index = indices(new)["train"]
    assert all(index.path(i).is_file() and index.path(i).is_relative_to(new) for i in range(len(index)))


def test_names_that_leave_the_folder_are_refused(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make("coco")
    (data / "images/train/a.png").rename(tmp_path / "a.png")
    text = (data / "train.json").read_text()
    (data / "train.json").write_text(text.replace('"a.png"', '"../../../a.png"'))
    nut = labels(data)["../../../a.png"][0]
    fixes = save_fixes(tmp_path / "f.jsonl", fix_of(data, "../../../a.png", nut, None, kind="spurious"))
    assert run(fixes, "--data", data, "--out", tmp_path / "new") == 2
    assert "Bring all of it into one folder with `detframe convert`" in capsys.readouterr().err
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize(
    ("entry", "images"), [("../train/images", "train/images"), ("lists/train.txt", "images"), ("train.txt", "images/b")]
)
def test_yolo_images_may_be_named_in_many_ways(entry: str, images: str, tmp_path: Path) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    labels_at = images.replace("images", "labels")
    (data / images).mkdir(parents=True)
    (data / labels_at).mkdir(parents=True)
    Image.new("RGB", (100, 50)).save(data / images / "x.png")
    (data / labels_at / "x.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    if entry.endswith(".txt"):
        (data / entry).parent.mkdir(exist_ok=True)
        (data / entry).write_text(f"{os.path.relpath(data / images / 'x.png', (data / entry).parent)}\n")
    (data / "data.yaml").write_text(f"path: {data}\ntrain: {entry}\nnames: [cat, dog]\n")
    (name, (cat,)), *_ = labels(data).items()
    fixes = save_fixes(tmp_path / "f.jsonl", fix_of(data, name, cat, cat._replace(class_name="dog")))
    assert run(fixes, "--data", data / "data.yaml", "--out", new) == 0
    assert labels(new) == {name: [cat._replace(class_name="dog")]}
    assert (new / labels_at / "x.txt").read_text() == "1 0.5 0.5 0.2 0.2\n"
    assert (data / labels_at / "x.txt").read_text() == "0 0.5 0.5 0.2 0.2\n"


@pytest.mark.parametrize("by_list", [False, True])
def test_yolo_of_absolute_paths_is_refused(by_list: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    (data / "images").mkdir(parents=True)
    Image.new("RGB", (100, 50)).save(data / "images/x.png")
    (data / "train.txt").write_text(f"{data / 'images/x.png'}\n")
    entry = "train.txt" if by_list else str(data / "images")
    (data / "data.yaml").write_text(f"train: {entry}\nnames: [cat]\n")
    (name,) = labels(data)
    fix = fix_of(data, name, None, Label((1.0, 1.0, 9.0, 9.0), "cat"), kind="missing")
    assert run(save_fixes(tmp_path / "f.jsonl", fix), "--data", data, "--out", new) == 2
    assert "Bring all of it into one folder with `detframe convert`" in capsys.readouterr().err
    assert not list(tmp_path.glob("new*"))

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from detframe.data.annotations import DataError, require_sound
from detframe.data.voc import read_voc, voc_splits, write_voc

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


def xml(*objects: str, filename: str = "a.png") -> str:
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def obj(name: str = "<name>RBC</name>", xmin: str = "1.5", extra: str = "") -> str:
    corners = f"<xmin>{xmin}</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax>"
    return f"<object>{name}{extra}<bndbox>{corners}</bndbox></object>"


def make(root: Path, annotations: dict[str, str], images: tuple[str, ...] = ("a.png",), **lists: str) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, text in annotations.items():
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for name in images:
        Image.new("L", (64, 48)).save(root / "JPEGImages" / name)
    for split, text in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
    return root


def test_coordinates_are_taken_as_written(tmp_path: Path) -> None:
    difficult = obj("<name> WBC </name>", extra="<difficult>1</difficult><pose>Left</pose><truncated>0</truncated>")
    root = make(tmp_path, {"a": xml(obj(), difficult)}, train="a\n")
    reading = read_voc(root, "train")
    index = reading.index
    assert reading.faults == []
    assert reading.uncarried == {"annotations: pose": 1}
    assert index.categories == ((1, "RBC"), (2, "WBC"))
    assert index.boxes.tolist() == [[1.5, 2, 10, 20]] * 2
    assert index.ignore.tolist() == [False, True]
    assert index.image_sizes.tolist() == [[48, 64]]
    assert index.path(0).is_file()
    assert index.annotation_file(0) == root / "Annotations" / "a.xml"


def test_classes_of_all_splits_count(tmp_path: Path) -> None:
    annotations = {"a": xml(obj()), "b": xml(obj("<name>Platelets</name>"), filename="b.png")}
    root = make(tmp_path, annotations, ("a.png", "b.png"), train="a\n", val="b\n")
    assert read_voc(root, "train").index.class_names == ["Platelets", "RBC"]


def test_class_lists_give_order_and_ids(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": xml(obj())}, train="a\n")
    (root / "labels.txt").write_text("WBC\nRBC\n")
    assert read_voc(root, "train").index.categories == ((1, "WBC"), (2, "RBC"))
    (root / "categories.json").write_text(json.dumps([{"id": 40, "name": "WBC"}, {"id": 9, "name": "RBC"}]))
    assert read_voc(root, "train").index.categories == ((9, "RBC"), (40, "WBC"))
    (root / "categories.json").write_text("[1]")
    with pytest.raises(DataError, match=r"categories\.json"):
        read_voc(root, "train")


def test_splits(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": xml()}, train="a\n", val="", trainval="a\n", cat_train="a -1\n", extra="a\n")
    assert voc_splits(root) == ["extra", "train", "val"]
    assert len(read_voc(root, "val").index) == 0
    assert voc_splits(make(tmp_path / "only", {}, trainval="a\n", test="a\n")) == ["test", "trainval"]


def test_without_lists_all_images_are_one_split(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": xml(obj())}, ("a.png", "unlabelled.png"))
    assert voc_splits(root) == ["all"]
    reading = read_voc(root, "all")
    assert reading.index.file_names == ("a.png", "unlabelled.png")
    assert reading.index.offsets.tolist() == [0, 1, 1]
    assert [fault[:2] for fault in reading.faults] == [("missing-annotation", "warning")]


def test_the_image_is_the_one_of_the_xml_files_stem(tmp_path: Path) -> None:
    outdated = xml(filename="old.png")
    renamed = xml(filename="photo.png")
    chosen = xml(filename="c.png")
    annotations = {"a": outdated, "b": renamed, "c": chosen}
    root = make(tmp_path, annotations, ("a.png", "old.png", "photo.png", "c.jpg", "c.png"), train="a\nb\nc\n")
    assert read_voc(root, "train").index.file_names == ("a.png", "photo.png", "c.png")


@pytest.mark.parametrize(
    ("text", "kind", "item"),
    [
        ("<annotation>\n<object>\n</annotation>", "malformed", "line 3"),
        (xml(obj(), obj(xmin="nan")), "not-a-number", "object 2"),
        (xml(obj(xmin="left")), "not-a-number", "object 1"),
        (xml("<object><name>RBC</name></object>"), "missing-key", "object 1"),
        (xml(obj(name="")), "missing-key", "object 1"),
        (xml(obj("<name>Rbc</name>")), "unknown-class", "object 1"),
        (xml(*[obj(extra="<detframe id='5'/>")] * 2), "duplicate-id", "object 2"),
    ],
)  # fmt: skip
def test_names_each_error(tmp_path: Path, text: str, kind: str, item: str) -> None:
    root = make(tmp_path, {"a": text}, train="a\n")
    (root / "labels.txt").write_text("RBC\n")
    reading = read_voc(root, "train")
    assert [fault[:4] for fault in reading.faults] == [(kind, "error", str(root / "Annotations" / "a.xml"), item)]
    with pytest.raises(DataError, match=r"a\.xml"):
        require_sound(reading)


def test_listed_but_absent(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": xml()}, train="a\ngone\n")
    (fault,) = read_voc(root, "train").faults
    assert fault[:3] == ("missing-annotation", "error", str(root / "Annotations" / "gone.xml"))


def test_image_ids_and_files_are_used_once(tmp_path: Path) -> None:
    same_id = "<annotation><detframe id='4'/></annotation>"
    root = make(tmp_path, {"a": same_id, "b": same_id}, ("a.png", "b.png"), train="a\nb\n", val="a\na\n")
    assert [fault[::3] for fault in read_voc(root, "train").faults] == [("duplicate-id", "image 4")]
    assert {fault.kind for fault in read_voc(root, "val").faults} == {"duplicate-id", "file-named-twice"}


def test_writes_what_other_tools_read(tmp_path: Path) -> None:
    root = make(tmp_path / "in", {"a": xml(obj(extra="<difficult>1</difficult>"))}, train="a\n")
    write_voc({"train": read_voc(root, "train").index}, tmp_path / "out")
    text = (tmp_path / "out" / "Annotations" / "a.xml").read_text()
    for part in ("<filename>a.png</filename>", "<xmin>1.5</xmin>", "<xmax>10</xmax>", "<difficult>1</difficult>",
                 "<depth>3</depth>", "<truncated>0</truncated>"):  # fmt: skip
        assert part in text
    assert (tmp_path / "out" / "ImageSets" / "Main" / "train.txt").read_text() == "a\n"
    assert (tmp_path / "out" / "labels.txt").read_text() == "RBC\n"


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs ../shared/data/bccd")
def test_bccd() -> None:
    indices = [require_sound(read_voc(BCCD, split)) for split in voc_splits(BCCD)]
    assert sum(map(len, indices)) == 364
    counts = dict.fromkeys(("Platelets", "RBC", "WBC"), 0)
    for index in indices:
        assert index.class_names == list(counts)
        for label in index.labels.tolist():
            counts[index.class_names[label]] += 1
    assert counts == {"RBC": 4155, "WBC": 372, "Platelets": 361}

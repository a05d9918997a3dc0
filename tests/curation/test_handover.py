"""Hand-over: boxes, ids and names come back as they went, and what a person did becomes decisions."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.curation.conftest import indices, labels, write_coco_set

from detframe.cli import main
from detframe.curation.fixes import Fix, read_fixes
from detframe.curation.handover.coco import write_coco_file
from detframe.curation.handover.cvat import write_cvat
from detframe.curation.handover.hand_over import tool_name
from detframe.curation.handover.label_studio import write_label_studio
from detframe.curation.handover.returning import decisions, pair
from detframe.curation.handover.sent import ReturnedBox, Sent, SentBox, SentImage, Tool, read_sent, write_sent
from detframe.curation.handover.take_back import read_result
from detframe.data.label_queue import Kind, Label, Queue, Suggestion, suggestion_id, write_queue

TOOLS: tuple[Tool, ...] = ("cvat", "label-studio", "coco")
A = "a.png"
WHY = 'looks "odd" & <so>'
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cn", "Cs", "Zl", "Zp")), min_size=1, max_size=12).filter(
    str.isprintable
)


def suggestions_of(data: Path) -> list[Suggestion]:
    """One of each kind about a.png, and one of another image."""
    nut, bolt, ring = labels(data)[A]
    ids = indices(data)["train"].annotation_ids.tolist()
    extra = Label((80.0, 5.0, 95.0, 15.0), "nut")
    made: list[tuple[Kind, str, int | None, Label | None, Label | None]] = [
        ("wrong-class", A, ids[0], nut, nut._replace(class_name="bolt")),
        ("bad-box", A, ids[1], bolt, bolt._replace(box=(36.5, 21.0, 54.0, 50.0))),
        ("spurious", A, ids[2], ring, None),
        ("missing", A, None, None, extra),
        ("spurious", "sub/b c.png", ids[3], nut, None),
    ]
    return [
        Suggestion(suggestion_id(kind, name, before, after), kind, 10, name, number, before, after, 0.8, 1.0, WHY)
        for kind, name, number, before, after in made
    ]


def handed_over(folder: Path, tool: Tool) -> tuple[Path, Path, list[Suggestion]]:
    """A data set, the folder handed over, and the suggestions."""
    data, out = write_coco_set(folder / "data"), folder / "sent"
    index = indices(data)["train"]
    suggestions = suggestions_of(data)
    queue = folder / "queue.jsonl"
    write_queue(Queue(str(data), "train", index.annotations_hash(), index.class_names, suggestions), queue)
    assert main(["hand-over", str(queue), "--tool", tool, "--out", str(out)]) == 0
    return data, out, suggestions


def exported(sent: Path, tool: Tool) -> Path:
    """What the tool exports when nobody did anything, as its documentation and its code have it."""
    return {"cvat": cvat_export, "label-studio": label_studio_export, "coco": coco_export}[tool](sent)


def cvat_export(sent: Path) -> Path:
    """A ZIP with two decimals, metadata, frames in a folder and attributes of a label in CVAT's order."""
    root = ET.parse(sent / "annotations.xml").getroot()
    meta = ET.Element("meta")
    ET.SubElement(ET.SubElement(meta, "job"), "id").text = "12"
    root.insert(1, meta)
    for image in root.iter("image"):
        image.set("name", f"images/{image.get('name')}")
        for box in image:
            for corner in ("xtl", "ytl", "xbr", "ybr"):
                box.set(corner, f"{float(box.get(corner, '')):.2f}")
            box[:] = list(reversed(box))
    path = sent.with_name("export.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.xml", ET.tostring(root, encoding="utf-8"))
        archive.writestr("images/00000_a.png", b"")
    return path


def label_studio_export(sent: Path) -> Path:
    """Submitted tasks: predictions became annotations with the regions' ids; images got the prefix of an upload."""
    tasks = json.loads((sent / "tasks.json").read_text(encoding="utf-8"))
    for number, task in enumerate(tasks, 1):
        result = [{**part, "origin": "prediction"} for part in task["predictions"][0]["result"]]
        person = {"id": 4, "email": "eve@example.org"}
        done = {"id": number, "completed_by": person, "result": result, "was_cancelled": False, "lead_time": 3.1}
        task |= {"id": 70 + number, "annotations": [done], "predictions": [], "project": 3}
        task["data"]["image"] = f"/data/upload/3/0a1b2c3d-{task['data']['detframe']}"
    path = sent.with_name("project-3.json")
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def coco_export(sent: Path) -> Path:
    """A tool that numbers images, classes and boxes anew, prefixes names and knows no attributes."""
    content = json.loads((sent / "annotations.json").read_text(encoding="utf-8"))
    for category in content["categories"]:
        category["id"] = 40 - category["id"]
    for number, image in enumerate(content["images"]):
        image |= {"id": 500 - image["id"], "file_name": f"images\\1/90fbb0c{number}-{image['file_name']}"}
    for number, annotation in enumerate(reversed(content["annotations"])):
        annotation["id"] = number
        annotation["image_id"] = 500 - annotation["image_id"]
        annotation["category_id"] = 40 - annotation["category_id"]
        del annotation["attributes"]
    content["categories"].reverse()
    path = sent.with_name("result.json")
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def taken_back(sent: Path, result: Path, *options: str) -> list[Fix]:
    out = sent.with_name("fixes.jsonl")
    out.unlink(missing_ok=True)
    assert main(["take-back", str(sent), str(result), "--out", str(out), "--who", "ada", *options]) == 0
    return read_fixes([out]) if out.exists() else []


@pytest.mark.parametrize("tool", TOOLS)
def test_what_nobody_touched_decides_nothing_unless_it_was_seen(tool: Tool, tmp_path: Path) -> None:
    data, sent, suggestions = handed_over(tmp_path, tool)
    result = exported(sent, tool)
    if tool != "label-studio":
        assert taken_back(sent, result) == []
    fixes = {fix.id: fix for fix in taken_back(sent, result, "--all_seen")}
    # As it is drawn: class, box and the missing one as suggested, what may have to go still there.
    assert [fixes[one.id].decision for one in suggestions] == ["accept", "accept", "reject", "accept", "reject"]
    assert len(fixes) == 5
    digests = dict(zip(indices(data)["train"].file_names, indices(data)["train"].image_digests(), strict=True))
    for one in suggestions:
        fix = fixes[one.id]
        assert (fix.before, fix.kind, fix.reason, fix.split) == (one.before, one.kind, one.reason, "train")
        assert fix.after == (one.before if one.after is None else one.after)
        assert (fix.image_sha256, fix.annotation_id) == (digests[one.file_name].hex(), one.annotation_id)
        assert fix.who == ("eve@example.org" if tool == "label-studio" else "ada")


def edit_cvat(path: Path, change: Callable[[ET.Element], None]) -> Path:
    with zipfile.ZipFile(path) as archive:
        root = ET.fromstring(archive.read("annotations.xml"))
    change(root)
    edited = path.with_name("annotations.xml")
    edited.write_bytes(ET.tostring(root, encoding="utf-8"))
    return edited


def attribute(box: ET.Element, name: str) -> ET.Element:
    return next(child for child in box if child.get("name") == name)


def test_answers_and_changes_in_cvat(tmp_path: Path) -> None:
    data, sent, suggestions = handed_over(tmp_path, "cvat")

    def annotate(root: ET.Element) -> None:
        image, other = root.findall("image")
        nut, bolt, ring, extra = image.findall("box")
        attribute(nut, "decision").text = "reject"
        bolt.set("xbr", "60.00")  # further than suggested
        attribute(ring, "decision").text = "accept"
        attribute(extra, "decision").text = "ambiguous"
        first, second, third = other.findall("box")
        other.remove(first)  # as suggested
        second.set("label", "nut")  # nobody suggested this
        attribute(third, "ignore").text = "true"
        drawn = {"label": "öse & ring", "xtl": "1.25", "ytl": "2.00", "xbr": "9.50", "ybr": "8.00"}
        ET.SubElement(other, "box", {**drawn, "source": "manual", "occluded": "0"})

    fixes = taken_back(sent, edit_cvat(cvat_export(sent), annotate))
    nut, bolt, ring = labels(data)[A]
    _, second, third = labels(data)["sub/b c.png"]
    extra = suggestions[3].after
    assert extra is not None
    assert [(fix.kind, fix.decision, fix.before, fix.after) for fix in fixes] == [
        ("wrong-class", "reject", nut, nut),
        ("bad-box", "edit", bolt, bolt._replace(box=(36.5, 21.0, 60.0, 50.0))),
        ("spurious", "accept", ring, None),
        ("missing", "ambiguous", None, extra._replace(ignore=True)),
        ("spurious", "accept", nut, None),
        ("wrong-class", "edit", second, second._replace(class_name="nut")),
        ("bad-box", "edit", third, third._replace(ignore=True)),
        ("missing", "edit", None, Label((1.25, 2.0, 9.5, 8.0), "öse & ring")),
    ]
    assert {fix.reason for fix in fixes[5:]} == {"changed in CVAT"}
    # And they apply.
    out = tmp_path / "new"
    assert main(["apply", str(tmp_path / "fixes.jsonl"), "--data", str(data), "--out", str(out)]) == 0
    assert [label.class_name for label in labels(out)["sub/b c.png"]] == ["nut", "öse & ring", "öse & ring"]


def test_a_result_taken_back_twice_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, sent, _ = handed_over(tmp_path, "cvat")
    result, out = cvat_export(sent), tmp_path / "f.jsonl"
    command = ["take-back", str(sent), str(result), "--out", str(out), "--all_seen", "--json"]
    capsys.readouterr()
    assert main(command) == 0
    first = out.read_bytes()
    counts = json.loads(capsys.readouterr().out)
    assert counts["decisions"] == {"accept": 3, "reject": 2}
    assert (counts["known"], counts["undecided"], counts["images_away"]) == (0, 0, 0)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["known"] == 5
    assert out.read_bytes() == first


def drawn_box(xtl: str) -> ET.Element:
    return ET.Element("box", {"label": "nut", "xtl": xtl, "ytl": "2.00", "xbr": "95.00", "ybr": "12.00"})


def test_a_later_result_replaces_what_nobody_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, sent, _ = handed_over(tmp_path, "cvat")
    _, second, third = labels(data)["sub/b c.png"]

    def result(moved_to: str, label: str, *drawn: str) -> Path:
        def annotate(root: ET.Element) -> None:
            image = root.findall("image")[1]
            image.findall("box")[1].set("xbr", moved_to)
            image.findall("box")[2].set("label", label)
            image.extend(map(drawn_box, drawn))

        return edit_cvat(cvat_export(sent), annotate)

    def take_back(path: Path, who: str = "ada") -> dict[str, Any]:
        capsys.readouterr()
        command = ["take-back", str(sent), str(path), "--out", str(tmp_path / "f.jsonl"), "--who", who, "--json"]
        assert main(command) == 0
        counts: dict[str, Any] = json.loads(capsys.readouterr().out)
        return counts

    def applied(name: str) -> list[Label]:
        command = ["apply", str(tmp_path / "f.jsonl"), "--data", str(data), "--out", str(tmp_path / name)]
        assert main(command) == 0
        return labels(tmp_path / name)["sub/b c.png"][1:]

    moved = [second._replace(box=(*second.box[:2], x2, second.box[3])) for x2 in (58.0, 57.0)]
    added = [Label((x1, 2.0, 95.0, 12.0), "nut") for x1 in (80.0, 81.5)]
    assert take_back(result("58.00", "bolt", "80.00"))["decisions"] == {"edit": 3}
    assert applied("v2") == [moved[0], third._replace(class_name="bolt"), added[0]]
    # Moved again, put back, and moved again.
    later = result("57.00", third.class_name, "81.50")
    counts = take_back(later)
    assert (counts["decisions"], counts["known"]) == ({"undo": 3, "edit": 2}, 0)
    assert applied("v3") == [moved[1], third, added[1]]
    written = (tmp_path / "f.jsonl").read_bytes()
    counts = take_back(later)
    assert (counts["decisions"], counts["known"]) == ({}, 2)
    assert (tmp_path / "f.jsonl").read_bytes() == written
    # Deleted again, and once more as it was at first; what another says takes nothing of it back.
    assert take_back(result("57.00", third.class_name))["decisions"] == {"undo": 1}
    assert applied("v4") == [moved[1], third]
    assert take_back(result("57.00", third.class_name, "80.00"))["decisions"] == {"edit": 1}
    assert take_back(result("57.00", third.class_name), "bob")["decisions"] == {"edit": 1}
    assert applied("v5") == [moved[1], third, added[0]]


def test_a_result_of_another_hand_over_takes_nothing_back(tmp_path: Path) -> None:
    _, sent, _ = handed_over(tmp_path, "cvat")
    out, second = tmp_path / "f.jsonl", tmp_path / "second"
    result = edit_cvat(cvat_export(sent), lambda root: root.findall("image")[0].append(drawn_box("80.00")))
    assert main(["take-back", str(sent), str(result), "--out", str(out), "--who", "ada"]) == 0
    written = out.read_bytes()
    assert main(["hand-over", str(tmp_path / "queue.jsonl"), "--out", str(second), "--most", "1"]) == 0
    assert main(["take-back", str(second), str(cvat_export(second)), "--out", str(out), "--who", "ada"]) == 0
    assert out.read_bytes() == written


def test_label_studio_says_who_finished_what(tmp_path: Path) -> None:
    _, sent, suggestions = handed_over(tmp_path, "label-studio")
    path = label_studio_export(sent)
    first, second = json.loads(path.read_text())
    region = {key: first["annotations"][0]["result"][0][key] for key in ("id", "to_name", "value")}
    choice = {**region, "from_name": "decision", "type": "choices", "value": {"choices": ["reject"]}}
    first["annotations"][0]["result"].append(choice)
    other = {"completed_by": 9, "result": first["annotations"][0]["result"][:-1]}
    skipped = {"completed_by": 5, "result": [], "was_cancelled": True}
    first["annotations"] += [other, skipped]
    second["annotations"] = []  # nobody has submitted it
    path.write_text(json.dumps([first, second]))
    fixes = taken_back(sent, path)
    about = [(fix.who, fix.decision) for fix in fixes if fix.id == suggestions[0].id]
    assert about == [("eve@example.org", "reject"), ("9", "accept")]
    assert {fix.file_name for fix in fixes} == {A}


def test_a_moved_box_is_told_by_its_region_and_by_its_id(tmp_path: Path) -> None:
    data, sent, suggestions = handed_over(tmp_path, "label-studio")
    path = label_studio_export(sent)
    tasks = json.loads(path.read_text())
    tasks[0]["annotations"][0]["result"][1]["value"] |= {"x": 0.0, "y": 60.0, "width": 20.0, "height": 30.0}
    path.write_text(json.dumps(tasks))
    moved = next(fix for fix in taken_back(sent, path) if fix.id == suggestions[1].id)
    assert (moved.decision, moved.before) == ("edit", labels(data)[A][1])
    assert moved.after is not None
    assert moved.after.box == pytest.approx((0, 48, 20, 72))


def test_coco_without_attributes_is_told_by_place(tmp_path: Path) -> None:
    data, sent, suggestions = handed_over(tmp_path, "coco")
    path = coco_export(sent)
    content = json.loads(path.read_text())
    nut, bolt, ring, extra = (row for row in content["annotations"] if row["image_id"] == 499)
    bolt["bbox"] = [35, 20.5, 20, 30.25]  # back to where it is labelled
    content["annotations"].remove(ring)
    content["annotations"].remove(extra)
    nut["category_id"] = 37
    path.write_text(json.dumps(content))
    fixes = {fix.id: fix for fix in taken_back(sent, path)}
    assert [fixes[one.id].decision for one in suggestions[:4]] == ["edit", "reject", "accept", "reject"]
    assert fixes[suggestions[0].id].after == labels(data)[A][0]._replace(class_name="öse & ring")
    assert len(fixes) == 4


@st.composite
def sents(draw: st.DrawFn) -> Sent:
    """Images of any size with boxes anywhere in and around them, classes of any name, ignore boxes, any ids."""
    classes = tuple(draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.strip)))
    keys = iter(draw(st.lists(st.integers(0, 2**53), min_size=12, max_size=12, unique=True)))
    images = []
    for order in range(draw(st.integers(1, 3))):
        width, height = draw(st.integers(1, 20_000)), draw(st.integers(1, 20_000))
        boxes = []
        for _ in range(draw(st.integers(1, 4))):
            x1, y1 = draw(st.floats(-0.1 * width, width)), draw(st.floats(-0.1 * height, height))
            x2, y2 = x1 + draw(st.floats(0.1, 1.1 * width)), y1 + draw(st.floats(0.1, 1.1 * height))
            label = Label((x1, y1, x2, y2), draw(st.sampled_from(classes)), draw(st.booleans()))
            boxes.append(SentBox(next(keys), label, label, ()))
        name = draw(NAMES)
        images.append(
            SentImage(tool_name(order, f"{name}.png"), f"{name}.png", order, "0", width, height, tuple(boxes))
        )
    return Sent("cvat", "data", "train", classes, tuple(images))


@pytest.mark.parametrize("tool", TOOLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sent=sents())
def test_every_box_comes_back_with_its_id_and_names(tool: Tool, sent: Sent) -> None:
    sent = sent._replace(tool=tool)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "sent"
        folder.mkdir()
        if tool == "cvat":
            write_cvat(sent, folder)
        elif tool == "label-studio":
            write_label_studio(sent, folder, "http://images/")
        else:
            write_coco_file(sent, folder)
        write_sent(sent, folder)
        assert read_sent(folder) == sent
        result = exported(folder, tool) if tool != "coco" else folder / "annotations.json"
        returned = read_result(result, sent)
        assert [one.image for one in returned] == list(sent.images)
        for one in returned:
            assert {back.key for back in one.boxes} == {box.key for box in one.image.boxes}
            by_key = {back.key: back.label for back in one.boxes}
            for box in one.image.boxes:
                label = by_key[box.key]
                assert (label.class_name, label.ignore) == (box.drawn.class_name, box.drawn.ignore)
                assert np.abs(np.subtract(label.box, box.drawn.box)).max() <= 0.01
            # So nothing is a decision, and nothing was changed.
            assert decisions(one, "train", "ada", "now", tool, "sent", True) == ([], 0)


def test_a_copy_made_in_the_tool_is_another_box(tmp_path: Path) -> None:
    data, sent, _ = handed_over(tmp_path, "cvat")

    def copy(root: ET.Element) -> None:
        image = root.findall("image")[1]
        twin = ET.fromstring(ET.tostring(image.findall("box")[1]))
        twin.set("xtl", "1.00")
        image.insert(0, twin)

    (fix,) = taken_back(sent, edit_cvat(cvat_export(sent), copy))
    bolt = labels(data)["sub/b c.png"][1]
    assert (fix.kind, fix.before, fix.after) == ("missing", None, bolt._replace(box=(1.0, *bolt.box[1:])))


def test_names_are_plain_and_in_the_order_of_the_queue(tmp_path: Path) -> None:
    data, sent, _ = handed_over(tmp_path, "coco")
    record = read_sent(sent)
    assert [(image.name, image.file_name) for image in record.images] == [
        ("00000_a.png", A),
        ("00001_b_c.png", "sub/b c.png"),
    ]
    assert (sent / "images/00001_b_c.png").read_bytes() == (data / "images/train/sub/b c.png").read_bytes()
    content = json.loads((sent / "annotations.json").read_text())
    assert all("track_id" not in row["attributes"] for row in content["annotations"])
    ids = [row["id"] for row in content["annotations"]]
    assert len(set(ids)) == len(ids) == 7
    suggestion = content["annotations"][0]["attributes"]["suggestion"]
    assert suggestion == 'wrong-class 0.80: looks "odd" & <so>; labelled nut [10, 20.5, 30, 50.75]'


def spoil(kind: str, sent: Path) -> Path:
    path = sent.with_name("bad.json")
    content: Any = json.loads((sent / "annotations.json").read_text())
    if kind == "size":
        content["images"][0]["width"] = 50
    elif kind == "image":
        content["images"][0]["file_name"] = "other.png"
    elif kind == "nothing":
        content["annotations"] = []
    elif kind == "min":
        content = [{"image": "a.png", "label": []}]
    else:
        content = {"a": 1}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", "was 100 x 80 when it was handed over and came back as 50 x 80"),
        ("image", "The image other.png was not handed over"),
        ("nothing", "none of the 7 boxes that were drawn for its images came back"),
        ("min", "Export them as JSON, not as JSON-MIN"),
        ("neither", "neither Label Studio's JSON nor COCO"),
    ],
)
def test_a_result_that_cannot_be_used_is_a_sentence(
    kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, sent, _ = handed_over(tmp_path, "coco")
    assert main(["take-back", str(sent), str(spoil(kind, sent)), "--out", str(tmp_path / "f.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "f.jsonl").exists()


def test_what_cannot_be_handed_over_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, sent, _ = handed_over(tmp_path, "coco")
    queue = str(tmp_path / "queue.jsonl")
    assert main(["hand-over", queue, "--out", str(sent)]) == 2
    assert "exists already, and nothing is ever overwritten" in capsys.readouterr().err
    assert main(["hand-over", queue, "--out", f"{queue}/sent", "--json"]) == 2
    assert "cannot be read or written (Not a directory)" in json.loads(capsys.readouterr().out)["error"]
    content = json.loads((data / "train.json").read_text())
    content["annotations"].pop()
    (data / "train.json").write_text(json.dumps(content))
    assert main(["hand-over", queue, "--out", str(tmp_path / "again")]) == 2
    assert "its split train is not as it was when the queue was made" in capsys.readouterr().err
    assert main(["take-back", str(tmp_path), queue]) == 2
    assert "Name the folder that `detframe hand-over` wrote" in capsys.readouterr().err


def test_boxes_of_one_place_are_paired_by_class() -> None:
    nut, bolt = Label((0.0, 0.0, 9.0, 9.0), "nut"), Label((0.0, 0.0, 9.0, 9.0), "bolt")
    sent = [SentBox(1, nut, nut, ()), SentBox(2, bolt, bolt, ())]
    back = [ReturnedBox(label, False, None, False, "undecided") for label in (bolt, nut)]
    assert pair(sent, back) == [1, 0]
    assert pair(sent, back[:1]) == [None, 0]

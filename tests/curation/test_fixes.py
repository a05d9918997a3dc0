"""Fixes written and read: what was cut off is left out, what was taken back does not stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detframe.curation.fixes import Decision, Fix, append_fix, disagreements, read_fixes, standing
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label, Queue, Suggestion, read_queue, suggestion_id, write_queue

BEFORE, AFTER = Label((1.0, 2.0, 30.5, 40.125), "nut"), Label((1.0, 2.0, 31.0, 41.0), "bolt")


def fix(number: int, decision: Decision = "accept", who: str = "ada", suggestion: str = "s1") -> Fix:
    after = {"reject": BEFORE, "ambiguous": BEFORE._replace(ignore=True)}.get(decision, AFTER)
    when = f"2026-01-01T00:00:{number:02d}+00:00"
    return Fix(suggestion, decision, who, when, "wrong-class", "looks", 0.75, "train", "ü.png", "ab", 7, BEFORE, after)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "fixes.jsonl"
    fixes = [fix(0), fix(1, "reject", suggestion="s2")._replace(before=None, after=None)]
    for one in fixes:
        append_fix(one, path)
    assert read_fixes([path]) == fixes


@pytest.mark.parametrize("half", [b'{"id": "s2", "dec', '{"who": "J\u00fcrgen'.encode()[:11]])  # within a character
def test_a_line_that_was_cut_off_loses_no_other(half: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fixes.jsonl"
    append_fix(fix(0), path)
    with path.open("ab") as file:
        file.write(half)
    assert read_fixes([path]) == [fix(0)]
    append_fix(fix(1), path)
    assert read_fixes([path]) == [fix(0), fix(1)]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "fixes.jsonl"
    append_fix(fix(0), path)
    append_fix(fix(1, suggestion="s2"), path)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as an editor leaves it
    assert len(read_fixes([path])) == 2
    append_fix(fix(2, suggestion="s3"), path)
    assert [one.id for one in read_fixes([path])] == ["s1", "s2", "s3"]


def test_a_line_that_is_no_fix_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fixes.jsonl"
    append_fix(fix(0), path)
    append_fix(fix(1)._replace(decision="perhaps"), path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"fixes.jsonl, line 2: .*'perhaps', not one of accept"):
        read_fixes([path])
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: is no JSON object"):
        read_fixes([path])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": ["s"]}, r"its id is \['s'\]"),
        ({"who": 5}, "its who is 5"),
        ({"when": None}, "its when is None"),
        ({"kind": ["missing"]}, r"its kind is \['missing'\], not one of missing"),
        ({"decision": {}}, r"its decision is \{\}, not one of accept"),
        ({"image_sha256": 7}, "its image_sha256 is 7"),
        ({"file_name": ["a"]}, r"its file_name is \['a'\]"),
        ({"annotation_id": True}, "its annotation_id is True"),
        ({"probability": "x"}, "its probability is 'x'"),
        ({"before": [1]}, r"\[1\] is no label"),
        ({"after": {"box": [1, 2, 3, 4], "class_name": None, "ignore": False}}, "class_name is None"),
        ({"colour": 1}, "it has a field 'colour', which is not known"),
    ],
)
def test_a_field_of_another_type_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "fixes.jsonl"
    append_fix(fix(0), path)
    row = json.loads(path.read_text()) | change
    with path.open("a") as file:
        file.write(f"\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=rf"fixes.jsonl, line 3: is malformed \(.*{words}.*\). Mend or drop"):
        read_fixes([path])


def test_the_last_decision_stands_and_undo_takes_it_back() -> None:
    assert standing([fix(0), fix(1, "reject")]) == {"s1": fix(1, "reject")}
    assert standing([fix(0), fix(1, "undo")]) == {}
    assert standing([fix(0), fix(1, "undo"), fix(2, "edit")]) == {"s1": fix(2, "edit")}


def test_undo_takes_back_ones_own_decision_alone() -> None:
    mine, theirs, taken_back = fix(0), fix(1, "reject", "bob"), fix(2, "undo", "bob")
    assert standing([mine, theirs]) == {"s1": theirs}
    assert standing([mine, theirs, taken_back]) == {"s1": mine}
    assert list(standing([mine, theirs, fix(2, suggestion="s2"), fix(3, "undo", "bob")])) == ["s1", "s2"]
    assert standing([mine, theirs, taken_back, fix(3, "undo")]) == {}
    assert standing([mine, fix(1, "skip", "bob")]) == {"s1": mine}  # to leave it for later is no decision
    assert standing([fix(0, "reject", "detframe"), mine, fix(1, "undo")]) == {}  # what a person said goes before
    assert disagreements([fix(0, "reject", "detframe"), mine]) == []


def test_two_people_disagree_where_their_labels_differ(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine.jsonl", tmp_path / "theirs.jsonl"
    for one in (fix(0), fix(2, suggestion="s2"), fix(4, suggestion="s3")):
        append_fix(one, mine)
    for one in (fix(1, "reject", "bob"), fix(3, "accept", "bob", "s2"), fix(5, "skip", "bob", "s3")):
        append_fix(one, theirs)
    fixes = read_fixes([theirs, mine])
    assert [one.when[-8:-6] for one in fixes] == ["00", "01", "02", "03", "04", "05"]
    assert disagreements(fixes) == [(fix(0), fix(1, "reject", "bob"))]


def test_a_queue_is_read_as_it_was_written(tmp_path: Path) -> None:
    name = suggestion_id("bad-box", "a.png", BEFORE, AFTER)
    one = Suggestion(name, "bad-box", 3, "a.png", 7, BEFORE, AFTER, 0.75, 1.5, "it fits badly")
    other = one._replace(id="x", kind="missing", annotation_id=None, before=None)
    queue = Queue("data", "train", "hash", ["nut", "bolt"], [one, other])
    write_queue(queue, tmp_path / "queue.jsonl")
    assert read_queue(tmp_path / "queue.jsonl") == queue
    assert suggestion_id("bad-box", "a.png", BEFORE, None) != name


def test_another_file_is_no_queue(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"images": []}\n')
    with pytest.raises(DataError, match=r"q.jsonl: is no queue of labels to look at. Write one with"):
        read_queue(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("line", "change", "words"),
    [
        (1, {"data": None}, "its data is None"),
        (1, {"split": None}, "its split is None"),
        (1, {"class_names": "nut"}, "its class_names is 'nut'"),
        (2, {"file_name": ["a"]}, r"its file_name is \['a'\]"),
        (2, {"kind": "odd"}, "its kind is 'odd', not one of missing"),
        *((2, {"probability": value}, "its probability is") for value in (None, "x", float("nan"), -0.1, 1.5, 10**400)),
        (2, {"value": float("inf")}, "its value is inf"),
        (2, {"before": None}, "its kind is bad-box, and its before none"),
        (2, {"kind": "missing"}, "its kind is missing, and its before a label"),
        (3, {"after": None}, "its kind is missing, and its after none"),
        (3, {"after": {"box": "abcd", "class_name": "nut", "ignore": False}}, "the box of its label is 'abcd'"),
        (3, {"extra": 1}, "it has a field 'extra', which is not known"),
    ],
)
def test_a_queue_of_other_types_is_refused_by_its_line(
    line: int, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "queue.jsonl"
    one = Suggestion("x", "bad-box", 3, "a.png", 7, BEFORE, AFTER, 0.75, 1.5, "it fits badly")
    other = one._replace(id="y", kind="missing", annotation_id=None, before=None)
    write_queue(Queue("data", "train", "hash", ["nut", "bolt"], [one, other]), path)
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    rows[line - 1] |= change
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=rf"queue.jsonl, line {line}: is malformed \({words}.*\). Write the queue anew"):
        read_queue(path)

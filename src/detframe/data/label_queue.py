"""Suggestions to mend labels, in the order to look at them: what `label-errors` writes, `review` and `apply` read.

A file of JSON lines: the first says what data set they are about, each further one is a suggestion.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from detframe.data.annotations import DataError
from detframe.unfinished import unfinished

Kind = Literal["missing", "wrong-class", "bad-box", "spurious", "duplicate"]
"""An object without a label; a label of another class, of a bad place, of nothing, or of an object that has one."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_FORMAT = "detframe label queue 1"


class Label(NamedTuple):
    """One label of an image."""

    box: tuple[float, float, float, float]  # xyxy in pixels of the image
    class_name: str
    ignore: bool = False  # neither an object nor background: crowd, difficult, ambiguous


class Suggestion(NamedTuple):
    """A label that may be wrong, and what it might be."""

    id: str  # of its content: the same suggestion has the same id wherever it was made
    kind: Kind
    image_id: int
    file_name: str
    annotation_id: int | None  # of the label; None where there is none
    before: Label | None  # as labelled; None: there is no label
    after: Label | None  # as suggested; None: there should be no label
    probability: float  # 0..1, that the label is wrong in this way
    value: float  # what mending it is expected to bring, in matches that training or a figure gets right
    reason: str  # in words


class Queue(NamedTuple):
    """Suggestions about one split of a data set."""

    data: str  # the data set, as `detframe check` takes it
    split: str
    annotations_hash: str  # of the split's index
    class_names: list[str]  # by label
    suggestions: list[Suggestion]  # in the order in which they are to be looked at


def suggestion_id(kind: Kind, file_name: str, before: Label | None, after: Label | None) -> str:
    """Twelve hexadecimal digits of the content."""
    content = json.dumps([kind, file_name, json_of_label(before), json_of_label(after)])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def write_queue(queue: Queue, path: Path) -> None:
    """Write a queue, whole or not at all."""
    header = {"format": _FORMAT, **queue._replace(suggestions=[])._asdict()}
    del header["suggestions"]
    lines = [
        header,
        *(
            {**s._asdict(), "before": json_of_label(s.before), "after": json_of_label(s.after)}
            for s in queue.suggestions
        ),
    ]
    with unfinished(path) as beside:
        beside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def read_queue(path: Path) -> Queue:
    """Read a queue.

    Raises:
        DataError: The file is missing or none; the message names the line.
    """
    rows = read_json_lines(path, "Write one with `detframe label-errors`.")
    if not rows or rows[0].get("format") != _FORMAT:
        raise DataError(f"{path}: is no queue of labels to look at. Write one with `detframe label-errors`.")
    header = rows[0]
    try:
        suggestions = [
            Suggestion(**{**row, "before": label_of_json(row["before"]), "after": label_of_json(row["after"])})
            for row in rows[1:]
        ]
        return Queue(header["data"], header["split"], header["annotations_hash"], header["class_names"], suggestions)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a suggestion is malformed ({error}). Write it anew.") from error


def read_json_lines(path: Path, cure: str) -> list[dict[str, Any]]:
    """Objects of a file that holds one in each line; a last line that was cut off while it was written is left out.

    Raises:
        DataError: The file cannot be read or a line is no JSON object; the message names it and ends with the cure.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). {cure}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            if number == len(lines):  # no line end: the writer was killed, within a character maybe
                break
            raise DataError(f"{path}, line {number}: is no JSON ({error}). {cure}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: is no JSON object. {cure}")
        rows.append(row)
    return rows


def label_of_json(content: Any) -> Label | None:  # noqa: ANN401 - what JSON holds
    """A label from its JSON object, or None."""
    if content is None:
        return None
    x1, y1, x2, y2 = (float(corner) for corner in content["box"])
    return Label((x1, y1, x2, y2), str(content["class_name"]), bool(content["ignore"]))


def json_of_label(label: Label | None) -> dict[str, Any] | None:
    """A label as it is written; to a thousandth of a pixel."""
    return None if label is None else {**label._asdict(), "box": [round(corner, 3) for corner in label.box]}

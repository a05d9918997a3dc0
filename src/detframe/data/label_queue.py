"""Suggestions to mend labels, in the order to look at them: what `label-errors` writes, `review` and `apply` read.

A file of JSON lines: the first says what data set they are about, each further one is a suggestion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from detframe.data.annotations import DataError
from detframe.refusals import is_finite_number
from detframe.unfinished import unfinished

Kind = Literal["missing", "wrong-class", "bad-box", "spurious", "duplicate"]
"""An object without a label; a label of another class, of a bad place, of nothing, or of an object that has one."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_FORMAT = "detframe label queue 1"

Row = TypeVar("Row", bound=tuple[Any, ...])

_hints = cache(get_type_hints)  # nearly all of the time that reading a row would take


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
    if not rows or rows[0][1].get("format") != _FORMAT:
        raise DataError(f"{path}: is no queue of labels to look at. Write one with `detframe label-errors`.")
    number, header = rows[0]
    try:
        queue = _header_of_json(header)
        for number, row in rows[1:]:  # noqa: B007 - the message has it
            queue.suggestions.append(_suggestion_of_json(row))
    except ValueError as error:
        raise DataError(f"{path}, line {number}: is malformed ({error}). Write the queue anew.") from error
    return queue


def _header_of_json(content: Mapping[str, Any]) -> Queue:
    for name in ("data", "split", "annotations_hash"):
        if not isinstance(content.get(name), str):
            raise ValueError(f"its {name} is {content.get(name)!r:.60}")
    names = content.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its class_names is {names!r:.60}")
    return Queue(content["data"], content["split"], content["annotations_hash"], names, [])


def _suggestion_of_json(content: Mapping[str, Any]) -> Suggestion:
    row = row_of_json(Suggestion, content)
    if (row.before is None) != (row.kind == "missing"):
        raise ValueError(f"its kind is {row.kind}, and its before {'none' if row.before is None else 'a label'}")
    if row.before is row.after is None:
        raise ValueError(f"its kind is {row.kind}, and its after none")
    return row


def row_of_json(kind: type[Row], content: Mapping[str, Any]) -> Row:
    """A suggestion or a decision from its JSON object.

    Raises:
        ValueError: It is none; the message names the field.
    """
    hints = _hints(kind)
    if unknown := [name for name in content if name not in hints]:
        raise ValueError(f"it has a field {unknown[0]!r}, which is not known")
    if missing := [name for name in hints if name not in content]:
        raise ValueError(f"it has no {missing[0]}")
    labels = {name: label_of_json(content[name]) for name in ("before", "after")}
    for name, hint in hints.items():
        value = content[name]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise ValueError(f"its {name} is {value!r:.60}, not one of {', '.join(get_args(hint))}")
        elif hint is float:
            if not is_finite_number(value) or (name == "probability" and not 0 <= value <= 1):
                raise ValueError(f"its {name} is {value!r:.60}")
        elif name not in labels and (not isinstance(value, hint) or isinstance(value, bool)):
            raise ValueError(f"its {name} is {value!r:.60}")
    return kind(**{**content, **labels})


def read_json_lines(path: Path, cure: str) -> list[tuple[int, dict[str, Any]]]:
    """Numbers of lines and the objects in them; a last line that was cut off while it was written is left out.

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
        rows.append((number, row))
    return rows


def label_of_json(content: Any) -> Label | None:  # noqa: ANN401 - what JSON holds
    """A label from its JSON object, or None.

    Raises:
        ValueError: It is none.
    """
    if content is None:
        return None
    if not isinstance(content, dict):
        raise ValueError(f"{content!r:.60} is no label")
    box, name, ignore = (content.get(key) for key in ("box", "class_name", "ignore"))
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite_number, box)):
        raise ValueError(f"the box of its label is {box!r:.60}")
    if not isinstance(name, str) or not isinstance(ignore, bool):
        raise ValueError(f"its label's class_name is {name!r:.60} and ignore {ignore!r:.60}")
    x1, y1, x2, y2 = (float(corner) for corner in box)
    return Label((x1, y1, x2, y2), name, ignore)


def json_of_label(label: Label | None) -> dict[str, Any] | None:
    """A label as it is written; to a thousandth of a pixel."""
    return None if label is None else {**label._asdict(), "box": [round(corner, 3) for corner in label.box]}

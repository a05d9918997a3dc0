"""Decisions about labels, as lines of a file that is only ever appended to: ``fixes.jsonl``.

Each line stands for itself: who decided what, when and why, about which image (by its content) and which label, before
and after. So a file of fixes survives a new export of the data set with other ids and names, two reviewers' files are
merged by putting one after the other, and dropping a line undoes it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from detframe.data.annotations import DataError
from detframe.data.label_queue import Kind, Label, json_of_label, read_json_lines, row_of_json

Decision = Literal["accept", "reject", "edit", "ambiguous", "skip", "undo"]
"""Taken as suggested; the label is right; mended by hand; made an ignore box; left for later; taken back."""

DECISIONS: tuple[Decision, ...] = get_args(Decision)

NOBODY = "detframe"
"""Who decides where nobody looked."""


class Fix(NamedTuple):
    """One decision about one suggestion."""

    id: str  # of the suggestion
    decision: Decision
    who: str  # reviewer, or NOBODY
    when: str  # ISO 8601, UTC
    kind: Kind
    reason: str  # why it was suggested, in words
    probability: float  # 0..1, that the label was wrong
    split: str
    file_name: str
    image_sha256: str  # of the image file's content
    annotation_id: int | None  # when it was decided
    before: Label | None  # None: there was no label
    after: Label | None  # None: there is to be no label; as before where nothing changes


def append_fix(fix: Fix, path: Path) -> None:
    """Append one line, and have it on the disk before returning."""
    append_fixes([fix], path)


def append_fixes(fixes: Iterable[Fix], path: Path) -> None:
    """Append a line for each, and have them on the disk before returning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{**fix._asdict(), "before": json_of_label(fix.before), "after": json_of_label(fix.after)} for fix in fixes]
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        last = content.rfind(b"\n") + 1
        if content[last:]:
            try:
                json.loads(content[last:])
                file.write(b"\n")  # a whole line: an editor left it without its end
            except ValueError:  # half a line: a writer was killed in it
                file.truncate(last)
        file.write("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def read_fixes(paths: Iterable[Path]) -> list[Fix]:
    """All lines of files of fixes, in order of time; those of one time in order of file and line.

    Raises:
        DataError: A file cannot be read, or a line is no fix; the message names it.
    """
    cure = "Mend or drop the line; each is one decision of `detframe review`."
    fixes = []
    for path in paths:
        for number, row in read_json_lines(path, cure):
            try:
                fixes.append(row_of_json(Fix, row))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: is malformed ({error}). {cure}") from error
    return sorted(fixes, key=lambda fix: fix.when)


def of_people(fixes: Iterable[Fix]) -> dict[str, dict[str, Fix]]:
    """The last decision of each person about each suggestion, by id and person, without those that were taken back.

    What nobody looked at is left out where a person said anything, and be it that a decision is taken back.

    Args:
        fixes: In order of time.
    """
    fixes = list(fixes)
    looked_at = {fix.id for fix in fixes if fix.who != NOBODY}
    of_each: dict[str, dict[str, Fix]] = defaultdict(dict)
    for fix in fixes:
        people = of_each[fix.id]
        people.pop(fix.who, None)  # so that the order is that of the last decisions
        if fix.decision != "undo" and not (fix.who == NOBODY and fix.id in looked_at):
            people[fix.who] = fix
    return of_each


def standing(fixes: Iterable[Fix]) -> dict[str, Fix]:
    """The decision that counts about each suggestion, by its id, in order of time.

    It is the last one that is not taken back, whoever took it; that it is left for later only where nobody decided.

    Args:
        fixes: In order of time.
    """
    last: list[Fix] = []
    for people in of_people(fixes).values():
        left = list(people.values())
        last += [fix for fix in left if fix.decision != "skip"][-1:] or left[-1:]
    return {fix.id: fix for fix in sorted(last, key=lambda fix: fix.when)}


def disagreements(fixes: Iterable[Fix]) -> list[tuple[Fix, Fix]]:
    """Pairs of standing decisions of two people about one suggestion that do not lead to the same label.

    Args:
        fixes: In order of time.
    """
    decisions = [[fix for fix in people.values() if fix.decision != "skip"] for people in of_people(fixes).values()]
    return [(mine[0], other) for mine in decisions for other in mine[1:] if other.after != mine[0].after]

"""The verb ``take-back``: what came back from a labelling tool, as decisions."""

from __future__ import annotations

import json as json_format
import zipfile
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from json import dumps
from pathlib import Path

from rich.console import Console

from detframe.curation.fixes import Fix, append_fixes, read_fixes
from detframe.curation.handover.coco import read_coco_file
from detframe.curation.handover.cvat import read_cvat
from detframe.curation.handover.label_studio import read_label_studio
from detframe.curation.handover.returning import decisions, pair, withdrawn
from detframe.curation.handover.sent import ReturnedImage, Sent, read_sent, record_file
from detframe.curation.labels import same_label
from detframe.data.annotations import DataError, file_digest
from detframe.refusals import refuse

_TOOLS = {"cvat": "CVAT", "label-studio": "Label Studio", "coco": "another tool"}


def take_back(
    sent: Path,
    result: Path,
    out: Path = Path("fixes.jsonl"),
    who: str = "",
    all_seen: bool = False,
    json: bool = False,
) -> int:
    """Turn what came back from a labelling tool into decisions, and append them to a file for `detframe apply`.

      python -m detframe take-back sent export.zip --who ada --out fixes.jsonl

    A suggestion is decided by the answer that was chosen in the tool, or by what was done to its box: what is as
    suggested is accepted, what is as labelled is rejected, and anything else is an edit. A box that was left as it was
    drawn, without an answer, decides nothing, unless its image is finished: submitted in Label Studio, or --all_seen.
    Changes that nobody suggested become decisions too; those of an earlier result that this one has no longer are taken
    back, with `undo`.

    Boxes that are the same to 0.01 px are taken as they were handed over, to the last digit.

    Exit code: 0 when the decisions are written, none or many; 2, with nothing written, when the result cannot be used.

    Args:
        sent: The folder that `detframe hand-over` wrote.
        result: The tool's export: "CVAT for images 1.1", Label Studio's JSON, or COCO; a ZIP with one of them will do.
        out: File of decisions. It is appended to; a decision that it holds already is not written again.
        who: Reviewer, where the export does not say; by default the name of the tool.
        all_seen: Every image that came back was looked at, so that a box left as it was drawn is right.
        json: Print counts as one JSON document and nothing else.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=json)
    try:
        record = read_sent(sent)
        hand_over = file_digest(record_file(sent)).hex()
        returned = read_result(result, record)
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found, back, undecided = [], set(), 0
        for image in returned:
            person = image.who or who or record.tool
            one = decisions(image, record.split, person, when, _TOOLS[record.tool], hand_over, all_seen)
            found += one.fixes
            back.add((image.image.file_name, person))
            undecided += one.undecided
        known = read_fixes([out]) if out.exists() else []
        taken = _unknown(found, known)
        new = withdrawn(found, known, back, hand_over, when) + taken
        if new:
            append_fixes(new, out)
    except (DataError, OSError) as error:
        return refuse(error, json, out=out)
    by_decision = dict(Counter(fix.decision for fix in new))
    away = len(record.images) - len({image.image.name for image in returned})
    counts = {"decisions": by_decision, "known": len(found) - len(taken), "undecided": undecided, "images_away": away}
    if json:
        print(dumps({"out": str(out), **counts}))
        return 0
    said = ", ".join(f"{number} {decision}" for decision, number in by_decision.items()) or "nothing new"
    console.print(f"{said}; written to {out}" if new else f"Nothing new is decided; {out} is as it was")
    for number, text in (
        (counts["known"], "decisions were there already"),
        (undecided, "suggestions came back undecided; --all_seen takes them as they are drawn"),
        (away, "images did not come back"),
    ):
        if number:
            console.print(f"{number} {text}")
    return 0


def read_result(path: Path, sent: Sent) -> list[ReturnedImage]:
    """Images and boxes of a tool's export, whichever of the three kinds it is.

    Raises:
        DataError: It is none, or nothing of what was drawn is in it.
    """
    try:
        name, content = _content(path)
        if name.lower().endswith(".xml"):
            returned = read_cvat(content, sent)
        else:
            document = json_format.loads(content)
            if isinstance(document, list):
                returned = read_label_studio(document, sent)
            elif isinstance(document, dict) and "images" in document:
                returned = read_coco_file(document, sent)
            else:
                raise DataError(
                    "It is neither Label Studio's JSON nor COCO. Export it as one of these, or as CVAT XML."
                )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read ({error}). Export it again.") from error
    _require_something(path, returned)
    return returned


def _content(path: Path) -> tuple[str, bytes]:
    """Name and content of the one file of annotations."""
    if not zipfile.is_zipfile(path):
        return path.name, path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".xml", ".json"))]
        if len(names) != 1:
            raise DataError(
                f"The archive has {len(names)} files of annotations ({', '.join(names)}). Give the one meant."
            )
        return names[0], archive.read(names[0])


def _require_something(path: Path, returned: Sequence[ReturnedImage]) -> None:
    """Refuse a result that says that all boxes were deleted: then they were never uploaded."""
    drawn = sum(len(image.image.boxes) for image in returned)
    back = sum(place is not None for image in returned for place in pair(image.image.boxes, image.boxes))
    if drawn and not back:
        raise DataError(
            f"{path}: none of the {drawn} boxes that were drawn for its images came back, as if they had never been "
            "uploaded to the tool. Upload the annotations that were handed over."
        )


def _unknown(fixes: Sequence[Fix], known: Sequence[Fix]) -> list[Fix]:
    """Decisions that the same person has not taken already."""
    last = {(fix.id, fix.who): fix for fix in known}
    return [
        fix
        for fix in fixes
        if (fix.id, fix.who) not in last
        or last[fix.id, fix.who].decision != fix.decision
        or not same_label(last[fix.id, fix.who].after, fix.after)
    ]

"""What was handed over, as a file beside it: the exact boxes, ids and names that no tool can be trusted to keep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from detframe.curation.labels import shown
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label, Suggestion, json_of_label, label_of_json

Tool = Literal["cvat", "label-studio", "coco"]

Answer = Literal["undecided", "accept", "reject", "ambiguous"]
"""What a person chose in the tool about a suggestion."""

SENT_FILE = "hand_over.json"
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # of files uploaded to Label Studio
_FORMAT = "detframe hand-over 1"


class SentBox(NamedTuple):
    """A box that was drawn for the tool."""

    key: int  # names it in the tool: the label's id, or a further number for what is only suggested
    labelled: Label | None  # as it is in the data; None: it is only suggested
    drawn: Label  # with what is suggested, except that it be removed
    suggestions: tuple[Suggestion, ...]  # about it, in the order of the queue


class SentImage(NamedTuple):
    """An image that was handed over."""

    name: str  # of its file in the tool: plain letters, and no other has its stem
    file_name: str  # in the data set
    image_id: int
    sha256: str
    width: int
    height: int
    boxes: tuple[SentBox, ...]


class Sent(NamedTuple):
    """All that was handed over."""

    tool: Tool
    data: str
    split: str
    class_names: tuple[str, ...]
    images: tuple[SentImage, ...]


class ReturnedBox(NamedTuple):
    """A box as a tool gives it back."""

    label: Label
    ignore_stated: bool  # the tool says whether it is an ignore box; else the flag is the one that was drawn
    key: int | None  # as the tool carried it along
    certain: bool  # the key was in a field of ours; a tool may number its own anew
    answer: Answer


class ReturnedImage(NamedTuple):
    """An image as a tool gives it back, by one person."""

    image: SentImage
    who: str  # as the tool has it, "" where it does not say
    seen: bool  # the tool says that a person has finished it
    boxes: tuple[ReturnedBox, ...]


def words(box: SentBox) -> str:
    """What is suggested about a box, and how it is labelled where it is drawn otherwise."""
    labelled = "" if box.labelled in (None, box.drawn) else f"; labelled {shown(box.labelled)}"
    text = "; ".join(f"{one.kind} {one.probability:.2f}: {one.reason}" for one in box.suggestions) + labelled
    return "".join(character if character.isprintable() else " " for character in text)


def sent_image(sent: Sent, name: str, size: tuple[int, int] | None) -> SentImage:
    """The image that a tool calls by this name, with folders before it or with the prefix of an upload.

    Args:
        sent: What was handed over.
        name: As the tool has it.
        size: (width, height) that its boxes are of; None where they are shares.

    Raises:
        DataError: There is no such image, or it had another size.
    """
    last = re.split(r"[/\\]", name)[-1]
    by_name = {image.name: image for image in sent.images}
    found = by_name.get(last) or by_name.get(_UPLOAD_PREFIX.sub("", last))
    if found is None:
        raise DataError(f"The image {name} was not handed over. Name the folder that this result belongs to.")
    if size is not None and size != (found.width, found.height):
        raise DataError(
            f"The image {name} was {found.width} x {found.height} when it was handed over and came back as {size[0]} x "
            f"{size[1]}, so its boxes are of other pixels. Give the tool the images that were handed over."
        )
    return found


def answer_of(value: object) -> Answer:
    """What a person chose, whatever the tool made of it."""
    for known in get_args(Answer):
        if value == known:
            return cast("Answer", known)
    return "undecided"


def key_of(value: object) -> int | None:
    """The key that a tool carried along as text or number."""
    text = str(value).strip()
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def write_sent(sent: Sent, folder: Path) -> None:
    """Write the record into the folder that is handed over."""
    content = {"format": _FORMAT, **sent._asdict(), "images": [_json_of_image(image) for image in sent.images]}
    (folder / SENT_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def record_file(folder: Path) -> Path:
    """The record of a folder that was handed over, which may be named itself."""
    return folder / SENT_FILE if folder.is_dir() else folder


def read_sent(folder: Path) -> Sent:
    """Read the record of a folder that was handed over.

    Raises:
        DataError: There is none, or it is broken.
    """
    path = record_file(folder)
    cure = "Name the folder that `detframe hand-over` wrote."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). {cure}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{path}: is no record of what was handed over. {cure}")
    try:
        images = tuple(_image_of_json(image) for image in content["images"])
        return Sent(content["tool"], content["data"], content["split"], tuple(content["class_names"]), images)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}). {cure}") from error


def _json_of_image(image: SentImage) -> dict[str, Any]:
    boxes = [
        {
            "key": box.key,
            "labelled": _exact(box.labelled),
            "drawn": _exact(box.drawn),
            "suggestions": [
                {**one._asdict(), "before": json_of_label(one.before), "after": json_of_label(one.after)}
                for one in box.suggestions
            ],
        }
        for box in image.boxes
    ]
    return {**image._asdict(), "boxes": boxes}


def _image_of_json(content: dict[str, Any]) -> SentImage:
    boxes = []
    for box in content["boxes"]:
        drawn = label_of_json(box["drawn"])
        assert drawn is not None
        suggestions = tuple(
            Suggestion(**{**row, "before": label_of_json(row["before"]), "after": label_of_json(row["after"])})
            for row in box["suggestions"]
        )
        boxes.append(SentBox(int(box["key"]), label_of_json(box["labelled"]), drawn, suggestions))
    return SentImage(**{**content, "boxes": tuple(boxes)})


def _exact(label: Label | None) -> dict[str, Any] | None:
    return None if label is None else label._asdict()

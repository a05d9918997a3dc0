"""CVAT: the XML format "CVAT for images 1.1", its native one, and the labels that a task is made with.

Not COCO, in which CVAT makes tracks of boxes that share a ``track_id`` and moves them (cvat #10885), merges boxes that
share an id, and turns crowds into masks. CVAT writes coordinates with two decimals, so what comes back within 0.01 px
is the box that was sent.
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

from detframe.curation.handover.sent import (
    ReturnedBox,
    ReturnedImage,
    Sent,
    answer_of,
    key_of,
    sent_image,
    words,
)
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label

_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_ID, _DECISION, _IGNORE, _SUGGESTION = "detframe_id", "decision", "ignore", "suggestion"


def write_cvat(sent: Sent, folder: Path) -> None:
    """Write ``annotations.xml`` to upload, and ``labels.json`` to paste as the task's raw labels before that."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    for number, image in enumerate(sent.images):
        size = {"width": str(image.width), "height": str(image.height)}
        element = ET.SubElement(root, "image", {"id": str(number), "name": image.name, **size})
        for box in image.boxes:
            corners = dict(zip(_CORNERS, (f"{corner:.6f}" for corner in box.drawn.box), strict=True))
            own = {"label": box.drawn.class_name, "source": "file", "occluded": "0", **corners, "z_order": "0"}
            shape = ET.SubElement(element, "box", own)
            for name, value in (
                (_ID, str(box.key)),
                (_IGNORE, str(box.drawn.ignore).lower()),
                (_SUGGESTION, words(box)),
                (_DECISION, "undecided"),
            ):
                ET.SubElement(shape, "attribute", {"name": name}).text = value
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    declaration = '<?xml version="1.0" encoding="utf-8"?>\n'
    (folder / "annotations.xml").write_text(f"{declaration}{text}\n", encoding="utf-8")
    labels = [{"name": name, "type": "rectangle", "attributes": _ATTRIBUTES} for name in sent.class_names]
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1), encoding="utf-8")


def read_cvat(content: bytes, sent: Sent) -> list[ReturnedImage]:
    """Images and boxes of an export in the format "CVAT for images 1.1".

    Raises:
        DataError: It is no such file, an image was not handed over, or a box is rotated.
    """
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise DataError(f"The XML is damaged ({error}). Export it again.") from error
    if root.find("track") is not None:
        raise DataError('The export has tracks. Export it as "CVAT for images 1.1", not for video.')
    found = []
    for element in root.iter("image"):
        name = element.get("name", "")
        size = (int(float(element.get("width", 0))), int(float(element.get("height", 0))))
        boxes = tuple(_returned(shape, name) for shape in element.findall("box"))
        found.append(ReturnedImage(sent_image(sent, name, size), "", False, boxes))
    return found


def _returned(shape: ET.Element, name: str) -> ReturnedBox:
    if float(shape.get("rotation", 0)) % 360:
        raise DataError(f"{name}: a {shape.get('label')} is rotated; boxes here are upright. Draw it anew.")
    attributes = {child.get("name"): (child.text or "") for child in shape.findall("attribute")}
    try:
        x1, y1, x2, y2 = (float(shape.attrib[corner]) for corner in _CORNERS)
        label = Label((x1, y1, x2, y2), shape.attrib["label"], attributes.get(_IGNORE, "").lower() == "true")
    except (KeyError, ValueError) as error:
        raise DataError(f"{name}: a box is damaged ({error}). Export it again.") from error
    key = key_of(attributes.get(_ID))
    return ReturnedBox(label, _IGNORE in attributes, key, True, answer_of(attributes.get(_DECISION)))


def _attribute(name: str, kind: str, values: list[str]) -> dict[str, object]:
    return {"name": name, "mutable": False, "input_type": kind, "default_value": values[0], "values": values}


_ATTRIBUTES = [
    _attribute(_SUGGESTION, "text", [""]),
    _attribute(_DECISION, "select", ["undecided", "accept", "reject", "ambiguous"]),
    _attribute(_IGNORE, "checkbox", ["false"]),
    _attribute(_ID, "text", [""]),
]

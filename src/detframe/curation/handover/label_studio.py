"""Label Studio: tasks with predictions in its own JSON, and the labelling interface that they are made for.

Its COCO export numbers classes anew and names images by its internal storage (label-studio #9366), so what is read is
its plain JSON export: classes by name, images by a field of the task, boxes by the id of the region, which Label Studio
keeps when it makes an annotation of a prediction. Shares of the image are written with all of their digits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from detframe.curation.handover.sent import (
    ReturnedBox,
    ReturnedImage,
    Sent,
    SentBox,
    SentImage,
    answer_of,
    key_of,
    sent_image,
    words,
)
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label

_FIELD = "detframe"  # of a task's data: the image's name
_PREFIX = "d"  # of a region's id, before the key
_FARTHEST = 200.0  # percent; beyond it are the shares of a known fault, a hundred times too large


def write_label_studio(sent: Sent, folder: Path, url: str) -> None:
    """Write ``tasks.json`` to import, and ``labels.xml``, the labelling interface, to paste into the settings before.

    Args:
        sent: What is handed over.
        folder: Where to.
        url: What the images' names are appended to.
    """
    tasks = [
        {
            "data": {"image": f"{url}{image.name}", _FIELD: image.name},
            "predictions": [
                {"model_version": "detframe", "result": [part for box in image.boxes for part in _results(box, image)]}
            ],
        }
        for image in sent.images
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    view = ET.Element("View")
    ET.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true", "zoomControl": "true"})
    labels = ET.SubElement(view, "RectangleLabels", {"name": "label", "toName": "image", "canRotate": "false"})
    for number, name in enumerate(sent.class_names, 1):
        ET.SubElement(labels, "Label", {"value": name, "category": str(number)})
    for name, choices in (("decision", ("accept", "reject", "ambiguous")), ("ignore", ("ignore",))):
        kind = "single-radio" if len(choices) > 1 else "multiple"
        control = {"name": name, "toName": "image", "perRegion": "true", "choice": kind}
        element = ET.SubElement(view, "Choices", control)
        for choice in choices:
            ET.SubElement(element, "Choice", {"value": choice})
    ET.indent(view)
    (folder / "labels.xml").write_text(ET.tostring(view, encoding="unicode") + "\n", encoding="utf-8")


def read_label_studio(tasks: list[Any], sent: Sent) -> list[ReturnedImage]:
    """Images and boxes of an export as JSON; a task that nobody submitted comes back as one that nobody has seen.

    Raises:
        DataError: It is another export, an image was not handed over, or a box cannot be one.
    """
    found = []
    for task in tasks:
        if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
            raise DataError("Its tasks have no list `annotations`. Export them as JSON, not as JSON-MIN.")
        data = task.get("data") or {}
        name = str(data.get(_FIELD) or data.get("image") or "")
        image = sent_image(sent, name, None)
        for annotation in task["annotations"]:
            if not annotation.get("was_cancelled"):
                boxes = _boxes(annotation.get("result") or [], image)
                found.append(ReturnedImage(image, _person(annotation.get("completed_by")), True, boxes))
    return found


def _results(box: SentBox, image: SentImage) -> list[dict[str, Any]]:
    x1, y1, x2, y2 = box.drawn.box
    shares = {
        "x": 100 * x1 / image.width,
        "y": 100 * y1 / image.height,
        "width": 100 * (x2 - x1) / image.width,
        "height": 100 * (y2 - y1) / image.height,
        "rotation": 0,
    }
    region = {
        "id": f"{_PREFIX}{box.key}",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
    }
    label: dict[str, Any] = {**region, "from_name": "label", "type": "rectanglelabels"}
    label["value"] = {**shares, "rectanglelabels": [box.drawn.class_name]}
    if box.suggestions:
        label["meta"] = {"text": [words(box)]}
        label["score"] = round(box.suggestions[0].probability, 4)
    flag = {**region, "from_name": "ignore", "type": "choices", "value": {**shares, "choices": ["ignore"]}}
    return [label, flag] if box.drawn.ignore else [label]


def _boxes(results: list[dict[str, Any]], image: SentImage) -> tuple[ReturnedBox, ...]:
    choices: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.get("type") == "choices":
            choices[(str(result.get("id")), str(result.get("from_name")))] = result["value"].get("choices") or []
    found = []
    for result in results:
        if result.get("type") != "rectanglelabels":
            continue
        region, value = str(result.get("id")), result["value"]
        names = value.get("rectanglelabels") or []
        if len(names) != 1:
            raise DataError(f"{image.name}: a box has {len(names)} classes. Give it one.")
        if float(value.get("rotation") or 0) % 360:
            raise DataError(f"{image.name}: a {names[0]} is rotated; boxes here are upright. Draw it anew.")
        x, y, width, height = (float(value[side]) for side in ("x", "y", "width", "height"))
        if max(abs(x), abs(y), width, height) > _FARTHEST:
            raise DataError(f"{image.name}: a {names[0]} lies {x:g} % across and {y:g} % down. Draw it anew.")
        corners = (
            x * image.width / 100,
            y * image.height / 100,
            (x + width) * image.width / 100,
            (y + height) * image.height / 100,
        )
        label = Label(corners, str(names[0]), bool(choices.get((region, "ignore"))))
        key = key_of(region[len(_PREFIX) :]) if region.startswith(_PREFIX) else None
        answer = answer_of(next(iter(choices.get((region, "decision"), [])), None))
        found.append(ReturnedBox(label, True, key, True, answer))
    return tuple(found)


def _person(completed_by: object) -> str:
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return "" if completed_by is None else str(completed_by)

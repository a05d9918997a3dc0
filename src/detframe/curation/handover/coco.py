"""COCO, for any other tool: classes are told by their names and boxes by their place, as tools number both anew.

No annotation has a ``track_id`` and no two share an id, which CVAT would make tracks and unions of (cvat #10885); an
ignore box is marked in ``attributes``, as tools make masks of crowds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detframe.curation.handover.sent import (
    ReturnedBox,
    ReturnedImage,
    Sent,
    SentBox,
    answer_of,
    key_of,
    sent_image,
    words,
)
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label


def write_coco_file(sent: Sent, folder: Path) -> None:
    """Write ``annotations.json``."""
    category_ids = {name: number for number, name in enumerate(sent.class_names, 1)}
    images = [
        {"id": number, "file_name": image.name, "width": image.width, "height": image.height}
        for number, image in enumerate(sent.images, 1)
    ]
    annotations = [
        _annotation(box, number, category_ids) for number, image in enumerate(sent.images, 1) for box in image.boxes
    ]
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in category_ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def read_coco_file(content: dict[str, Any], sent: Sent) -> list[ReturnedImage]:
    """Images and boxes of a COCO file.

    Raises:
        DataError: It is none, or an image was not handed over.
    """
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        boxes: dict[Any, list[ReturnedBox]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            boxes[annotation["image_id"]].append(_returned(annotation, names))
        return [
            ReturnedImage(
                sent_image(sent, str(image["file_name"]), (int(image["width"]), int(image["height"]))),
                "",
                False,
                tuple(boxes[image["id"]]),
            )
            for image in content["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The COCO file lacks something or refers to what it does not have ({error!r}).") from error


def _annotation(box: SentBox, image_id: int, category_ids: dict[str, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = box.drawn.box
    return {
        "id": box.key,
        "image_id": image_id,
        "category_id": category_ids[box.drawn.class_name],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "segmentation": [],
        "iscrowd": 0,
        "attributes": {
            "detframe_id": str(box.key),
            "ignore": box.drawn.ignore,
            "suggestion": words(box),
            "decision": "undecided",
        },
    }


def _returned(annotation: dict[str, Any], names: dict[Any, str]) -> ReturnedBox:
    x, y, width, height = (float(side) for side in annotation["bbox"])
    attributes = annotation.get("attributes") or {}
    flag = attributes.get("ignore", annotation.get("ignore", annotation.get("iscrowd") or None))
    ignore = flag in (True, 1, "true", "True")
    label = Label((x, y, x + width, y + height), names[annotation["category_id"]], ignore)
    carried = key_of(attributes.get("detframe_id"))
    key = carried if carried is not None else key_of(annotation.get("id"))
    return ReturnedBox(label, flag is not None, key, carried is not None, answer_of(attributes.get("decision")))

"""Suspicious images as a data set without labels, and what the detector found in them as suggestions to review."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detframe.data.coco import read_coco
from detframe.data.label_queue import Label, Queue, Suggestion, suggestion_id, write_queue
from detframe.unfinished import unfinished


class Found(NamedTuple):
    """One detection."""

    box: tuple[float, float, float, float]  # xyxy in pixels of the image
    class_name: str
    score: float


class Suspicious(NamedTuple):
    """An image to look at."""

    path: Path
    size: tuple[int, int]  # (height, width)
    suspicion: float
    reason: str
    found: list[Found]  # from the operating thresholds on


def write_review_queue(images: Sequence[Suspicious], class_names: Sequence[str], folder: Path) -> Path:
    """Write ``images.json``, COCO without a label, and ``queue.jsonl``, which `detframe review` and `apply` read.

    Args:
        images: The most suspicious first.
        class_names: Of the detector.
        folder: Is made where needed.

    Returns:
        The queue.
    """
    data = folder / "images.json"
    content: dict[str, Any] = {
        "images": [
            {"id": number, "file_name": str(one.path.resolve()), "height": one.size[0], "width": one.size[1]}
            for number, one in enumerate(images, 1)
        ],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, 1)],
    }
    with unfinished(data) as beside:
        beside.write_text(json.dumps(content), encoding="utf-8")
    index = read_coco(data).index
    suggestions = []
    for number, one in enumerate(images, 1):
        name = index.file_names[number - 1]
        for found in sorted(one.found, key=lambda found: -found.score):
            after = Label(found.box, found.class_name)
            suggestions.append(
                Suggestion(
                    id=suggestion_id("missing", name, None, after),
                    kind="missing",
                    image_id=number,
                    file_name=name,
                    annotation_id=None,
                    before=None,
                    after=after,
                    probability=found.score,
                    value=one.suspicion,
                    reason=f"{one.reason}; the detector sees {found.class_name} with {found.score:.2f}",
                )
            )
    queue = Queue(str(data), data.stem, index.annotations_hash(), index.class_names, suggestions)
    write_queue(queue, folder / "queue.jsonl")
    return folder / "queue.jsonl"

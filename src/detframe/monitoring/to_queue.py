"""Suspicious images as a data set without labels, and what the detector found in them as suggestions to review."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detframe.data.annotations import Category
from detframe.data.coco import read_coco, write_coco
from detframe.data.label_queue import Label, Queue, Suggestion, suggestion_id, write_queue
from detframe.data.unlabelled import without_labels
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
    names = [str(one.path.resolve()) for one in images]
    sizes = np.array([one.size for one in images], dtype=np.int64)
    classes = [Category(number, name) for number, name in enumerate(class_names, 1)]
    with unfinished(data) as beside:
        write_coco(without_labels(data, folder, names, sizes, classes), beside)
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

"""Labels of an image as they are compared here: to a hundredth of a pixel, by class and by flag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from detframe.boxes import pairwise_iou
from detframe.data.annotations import AnnotationIndex
from detframe.data.images import image_size
from detframe.data.label_queue import Label

TOLERANCE = 0.01
"""Pixels by which two boxes of one label may differ: what formats and tools round."""

_SAME_OBJECT, _ALIKE = 0.5, 0.1  # IoU; TIDE's bounds of a badly placed detection


def labels_of_image(index: AnnotationIndex, image: int) -> list[Label]:
    """Labels of the image at a position, in the order of its file."""
    rows = index.rows(image)
    names = index.class_names
    return [
        Label((x1, y1, x2, y2), names[label], ignore)
        for (x1, y1, x2, y2), label, ignore in zip(
            index.boxes[rows].tolist(), index.labels[rows].tolist(), index.ignore[rows].tolist(), strict=True
        )
    ]


def size_of(index: AnnotationIndex, image: int) -> tuple[int, int]:
    """(height, width) of an image, measured where the index does not say.

    Raises:
        ImageError: It has to be measured and cannot be read.
    """
    height, width = index.image_sizes[image].tolist()
    return (height, width) if height and width else image_size(index.path(image))


def same_box(first: Label, second: Label) -> bool:
    """Whether no side of the boxes differs by more than the tolerance."""
    return all(abs(a - b) <= TOLERANCE for a, b in zip(first.box, second.box, strict=True))


def same_label(first: Label | None, second: Label | None) -> bool:
    """Whether class, flag and, within the tolerance, box are the same; or there is neither."""
    if first is None or second is None:
        return first is second
    return first[1:] == second[1:] and same_box(first, second)


def same_labels(first: Sequence[Label], second: Sequence[Label]) -> bool:
    """Whether two images have the same labels, in any order."""
    if len(first) != len(second):
        return False
    rest = list(second)
    for label in first:  # most often the next one
        place = next((place for place, other in enumerate(rest) if same_label(label, other)), -1)
        if place < 0:
            return False
        del rest[place]
    return True


def overlaps(first: list[Label], second: list[Label]) -> NDArray[np.float64]:
    """Pairwise IoU ``[len(first), len(second)]``, 0..1."""
    ours, theirs = (
        torch.tensor([label.box for label in labels], dtype=torch.float64).reshape(-1, 4) for labels in (first, second)
    )
    return np.asarray(pairwise_iou(ours, theirs).numpy(), dtype=np.float64)


def best_pairs(first: list[Label], second: list[Label]) -> list[tuple[int, int]]:
    """Positions of labels that are one object, by the largest sum of overlaps; of equal ones those of one class.

    One object are labels of an IoU of 0.5, as everywhere, and those of one class from 0.1: badly placed, then mended.
    """
    iou = overlaps(first, second)
    alike = np.array([[a.class_name == b.class_name for b in second] for a in first]).reshape(iou.shape)
    worth = np.where(iou >= np.where(alike, _ALIKE, _SAME_OBJECT), iou + 0.01 * alike, 0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if worth[row, column] > 0]


def shown(label: Label) -> str:
    """A label in words: ``ignored nut [1, 2, 30.5, 40]``."""
    corners = ", ".join(f"{corner:.2f}".rstrip("0").rstrip(".") for corner in label.box)
    return f"{'ignored ' if label.ignore else ''}{label.class_name} [{corners}]"

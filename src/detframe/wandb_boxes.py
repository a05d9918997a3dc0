"""Boxes of one image as ``wandb.Image`` takes them: W&B's page switches them on and off by class and by score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detframe.drawing import Truth


def image_boxes(
    boxes: Tensor, labels: Tensor, scores: Tensor, truth: Truth, class_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Predicted and true boxes, as two groups.

    Args:
        boxes: ``[K, 4]`` xyxy in pixels of the image.
        labels: ``[K]`` int64, 0..C-1.
        scores: ``[K]`` 0..1.
        truth: Of the same image.
        class_names: Names by label.
    """
    names = dict(enumerate(class_names))
    predicted = [
        {**_box(box, label, f"{names[label]} {score:.2f}"), "scores": {"score": score}}
        for box, label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True)
    ]
    real = [
        _box(box, label, f"ignore {names[label]}" if ignored else names[label])
        for box, label, ignored in zip(*(field.tolist() for field in truth), strict=True)
    ]
    return {
        "predictions": {"class_labels": names, "box_data": predicted},
        "ground_truth": {"class_labels": names, "box_data": real},
    }


def _box(box: Sequence[float], label: int, caption: str) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {
        "position": {"minX": x1, "maxX": x2, "minY": y1, "maxY": y2},
        "domain": "pixel",
        "class_id": label,
        "box_caption": caption,
    }

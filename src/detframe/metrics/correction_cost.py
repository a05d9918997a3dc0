"""What it would take to correct an image's detections into its truth: one number that says which images are worst."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from detframe.metrics.rows import DetectionRows, TruthRows

BOX_SHARE = 0.5
"""Weight of a wrong place against a wrong class, ``lambda`` of the paper."""

UNMATCHED_COST = 0.6
"""Of a detection to delete or an object to add, ``beta`` of the paper: dearer pairs are not made."""


def correction_costs(detections: DetectionRows, truths: TruthRows, image_count: int) -> NDArray[np.float64]:
    """Optimal correction cost of each image, ``[I]``, 0 (nothing to do) to 0.6.

    Detections are moved onto objects, one to one, at a cost of ``lambda (1 - GIoU) / 2 + (1 - lambda) c`` with ``c = (1
    - score) / 2`` where the class is right and ``(1 + score) / 2`` where it is not; what is left is deleted or added at
    ``beta`` each. The cheapest plan counts, divided by its number of corrections.

    Otani et al., "Optimal Correction Cost for Object Detection Evaluation", CVPR 2022, with its settings. As masses are
    whole, the transport is an assignment: a pair is made where it costs less than ``beta``.

    Args:
        detections: Those that count, so from the operating threshold on, without any that lie on ignore regions.
        truths: Objects; ignored ones are left out.
        image_count: ``I``.
    """
    costs = np.zeros(image_count)
    present = ~truths.ignore
    found, objects = (_by_image(images, image_count) for images in (detections.images, truths.images[present]))
    object_rows = present.nonzero().flatten()
    for image, (slots, rows) in enumerate(zip(found, objects, strict=True)):
        ours, theirs = slots, object_rows[rows]
        if len(ours) or len(theirs):
            costs[image] = _cost(detections, truths, ours, theirs)
    return costs


def _by_image(images: Tensor, count: int) -> tuple[Tensor, ...]:
    """Rows of each image."""
    counts = torch.bincount(images, minlength=count)
    return torch.split(images.argsort(stable=True), counts.tolist())


def _cost(detections: DetectionRows, truths: TruthRows, slots: Tensor, rows: Tensor) -> float:
    scores = detections.scores[slots].double()[:, None]
    place = (1 - generalized_box_iou(detections.boxes[slots].double(), truths.boxes[rows].double())) / 2
    right = detections.labels[slots][:, None] == truths.labels[rows]
    named = torch.where(right, 1 - scores, 1 + scores) / 2
    gain = (BOX_SHARE * place + (1 - BOX_SHARE) * named - UNMATCHED_COST).clamp(max=0).numpy()
    made = gain[linear_sum_assignment(gain)]
    pairs = int((made < 0).sum())
    corrections = len(slots) + len(rows) - pairs
    # Each pair costs its own and spares one of two unmatched.
    return float((made.sum() + UNMATCHED_COST * corrections) / corrections)

"""Errors put into labels on purpose: what a finder of errors learns from and is measured by."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from detframe.metrics.rows import TruthRows

FAR, NEAR = 0.3, 0.7
"""IoU of a moved box with where it was: at least, at most."""

_TRIES, _HALVINGS = 20, 12


class LabelError(IntEnum):
    """What is wrong with a label, or that it is not there."""

    NONE = 0
    MISSING = 1
    WRONG_CLASS = 2
    BAD_BOX = 3
    SPURIOUS = 4
    DUPLICATE = 5


class NoisyLabels(NamedTuple):
    """Labels some of which are wrong, and which."""

    truths: TruthRows  # [N]
    errors: Tensor  # [N] int64, of LabelError
    origins: Tensor  # [N] int64, row of the label that each was made of, -1 for what was added
    missing: Tensor  # [M] int64, rows of the labels that were left out


def with_errors(
    truths: TruthRows,
    sizes: NDArray[np.int64],
    classes: int,
    shares: dict[LabelError, float],
    rng: np.random.Generator,
) -> NoisyLabels:
    """Labels with errors at random; ignore boxes stay as they are, and no label gets two.

    A wrong class is any other; a moved box overlaps with where it was by 0.3 to 0.7; what is added is a box of the size
    of one of its class at a random place where no label of any class overlaps it by more than 0.3; a duplicate overlaps
    the label that it repeats by 0.7 or more.

    Args:
        truths: Labels that are taken as right.
        sizes: ``[I, 2]``, height and width of the images, in pixels.
        classes: How many there are; with one alone no class is wrong.
        shares: Of the labels, 0..1, by kind of error; together at most 1.
        rng: Decides.
    """
    count = len(truths.labels)
    kinds = [kind for kind in shares if kind != LabelError.WRONG_CLASS or classes > 1]
    drawn = rng.choice(
        [LabelError.NONE, *kinds], count, p=[1 - sum(shares[k] for k in kinds), *(shares[k] for k in kinds)]
    )
    errors = torch.from_numpy(drawn.astype(np.int64))
    errors[truths.ignore] = LabelError.NONE
    boxes, labels = truths.boxes.clone(), truths.labels.clone()
    for row in (errors == LabelError.WRONG_CLASS).nonzero().flatten().tolist():
        labels[row] = (labels[row] + int(rng.integers(1, classes))) % classes
    for row in (errors == LabelError.BAD_BOX).nonzero().flatten().tolist():
        boxes[row] = _moved(boxes[row], sizes[truths.images[row]], FAR, NEAR, rng)
    added_images, added_boxes, added_labels, added_errors = [], [], [], []
    for row in ((errors == LabelError.SPURIOUS) | (errors == LabelError.DUPLICATE)).nonzero().flatten().tolist():
        image = int(truths.images[row]) if errors[row] == LabelError.DUPLICATE else int(rng.integers(len(sizes)))
        if errors[row] == LabelError.DUPLICATE:
            box = _moved(truths.boxes[row], sizes[image], NEAR, 0.95, rng)
        else:
            box = _elsewhere(truths.boxes[row], truths.boxes[truths.images == image], sizes[image], rng)
        added_images.append(image)
        added_boxes.append(box)
        added_labels.append(int(truths.labels[row]))
        added_errors.append(int(errors[row]))
    errors[(errors == LabelError.SPURIOUS) | (errors == LabelError.DUPLICATE)] = LabelError.NONE  # the new one is wrong
    kept = errors != LabelError.MISSING
    extra = len(added_images)
    noisy = TruthRows(
        images=torch.cat((truths.images[kept], torch.tensor(added_images, dtype=torch.int64))),
        boxes=torch.cat((boxes[kept], *(box[None] for box in added_boxes))),
        labels=torch.cat((labels[kept], torch.tensor(added_labels, dtype=torch.int64))),
        ignore=torch.cat((truths.ignore[kept], torch.zeros(extra, dtype=torch.bool))),
    )
    return NoisyLabels(
        noisy,
        errors=torch.cat((errors[kept], torch.tensor(added_errors, dtype=torch.int64))),
        origins=torch.cat((kept.nonzero().flatten(), torch.full((extra,), -1))),
        missing=(~kept).nonzero().flatten(),
    )


def _moved(box: Tensor, size: NDArray[np.int64], least: float, most: float, rng: np.random.Generator) -> Tensor:
    """A box that was moved and stretched in a random way, so far that it overlaps the original by a random amount."""
    height, width = size.tolist()
    limits = torch.tensor([width, height] * 2)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    wanted = rng.uniform(least, most)
    for _ in range(_TRIES):
        way = torch.from_numpy(rng.uniform(-1, 1, 4)).float()
        way[:2] *= 2 * half
        nearer, farther = 0.0, 2.0
        for _ in range(_HALVINGS):
            step = (nearer + farther) / 2
            middle, extent = centre + step * way[:2], half * (step * way[2:] / 2).exp()
            found = torch.cat((middle - extent, middle + extent)).clamp(min=0).minimum(limits)
            overlap = float(box_iou(found[None], box[None]))
            nearer, farther = (step, farther) if overlap > wanted else (nearer, step)
        if least <= overlap <= most:
            break
    return found


def _elsewhere(box: Tensor, taken: Tensor, size: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """A box of the same extent at a place of the image that is not taken; the last try if all are."""
    height, width = size.tolist()
    extent = (box[2:] - box[:2]).minimum(torch.tensor([width, height]))
    for _ in range(_TRIES):
        corner = torch.from_numpy(rng.uniform(0, 1, 2)).float() * (torch.tensor([width, height]) - extent)
        found = torch.cat((corner, corner + extent))
        if not len(taken) or float(box_iou(found[None], taken).max()) <= FAR:
            break
    return found

"""Which images to label next: how much a detector would learn from each, and how alike they are.

Uncertainty is weighed by what it is about and summed over an image, then images are taken that are worth much and
unlike those taken already, compared object by object within a class. Both ideas are those of Yang, Huang and Crowley,
"Plug and Play Active Learning for Object Detection" (CVPR 2024): difficulty calibrated uncertainty, and category
conditioned matching similarity. Other than there, uncertainty is that of a place, over classes and background, as
detections of two classes on one object are one doubt and not two; and images are taken one by one, so that any number
of them from the first on is a choice of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from detframe.metrics.rows import DetectionRows, TruthRows, overlapping_rows

Floats = NDArray[np.float64]

PLACE_IOU = 0.5
"""Detections that overlap so far, of any class, are about one object."""

PRIOR_OBJECTS = 10.0
"""Objects that the mean of all classes counts for where the difficulty of one is estimated."""

EXPANSION = 4
"""Images that diversity chooses from, for each that it takes; PPAL's budget expanding ratio."""

SAME_IMAGE = 1e-3
"""One less the cosine of two images, up to which one of them says nothing new."""


class Places(NamedTuple):
    """Detections by the object that they are about; ``P`` places."""

    of_detection: Tensor  # [D] int64, 0..P-1
    leads: Tensor  # [P] int64 ascending, the detection of the highest score


class Objects(NamedTuple):
    """What images are compared by: ``P`` places of ``I`` images."""

    images: Tensor  # [P] int64, 0..I-1
    labels: Tensor  # [P] int64
    weights: Tensor  # [P] float, 0 or more
    vectors: Tensor  # [P, D] unit vectors


def group_places(detections: DetectionRows) -> Places:
    """Group the detections of each image that overlap by more than :data:`PLACE_IOU`, each with the best one near."""
    kept = batched_nms(detections.boxes.float(), detections.scores, detections.images, PLACE_IOU).sort().values
    leads = TruthRows(
        detections.images[kept],
        detections.boxes[kept],
        detections.labels[kept],
        torch.zeros(len(kept), dtype=torch.bool),
    )
    pairs = overlapping_rows(detections, leads, PLACE_IOU)
    of_detection = torch.full((len(detections.scores),), -1)
    order = pairs.overlap.argsort(stable=True)  # the most overlap is written last
    for detection, lead in zip(pairs.detection[order].tolist(), pairs.truth[order].tolist(), strict=True):
        of_detection[detection] = lead
    of_detection[kept] = torch.arange(len(kept))
    return Places(of_detection, kept)


def class_shares(places: Places, probabilities: Tensor, labels: Tensor, classes: int) -> Tensor:
    """What each place may be, ``[P, C]`` 0..1, with what is missing to 1 for background.

    Args:
        places: Of ``D`` detections.
        probabilities: ``[D]``, calibrated: that there is such an object.
        labels: ``[D]`` 0..C-1.
        classes: ``C``.
    """
    flat = torch.zeros(len(places.leads) * classes, dtype=torch.float64)
    flat.scatter_reduce_(0, places.of_detection * classes + labels, probabilities.double(), "amax")
    shares = flat.view(-1, classes)
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=1)


def entropy(shares: Tensor) -> Tensor:
    """Entropy in bits ``[P]`` of classes and background, from the classes' shares ``[P, C]``."""
    whole = torch.cat([shares, (1 - shares.sum(dim=1, keepdim=True)).clamp(min=0)], dim=1)
    return -torch.special.xlogy(whole, whole).sum(dim=1) / np.log(2)


def class_difficulty(average_precision: Floats, objects: NDArray[np.int64]) -> Floats:
    """1 - AP by class, ``[C]`` 0..1, drawn towards the mean as far as there are few objects to tell.

    Args:
        average_precision: ``[C]`` 0..1; NaN or negative where a class has no object.
        objects: ``[C]``, how many the figure rests on.
    """
    known = (objects > 0) & (average_precision >= 0)
    if not known.any():
        return np.ones(len(objects))
    missing = np.where(known, 1 - average_precision, 0.0)
    counts = np.where(known, objects, 0).astype(np.float64)
    mean = float(np.sum(counts * missing) / np.sum(counts))
    return np.asarray((counts * missing + PRIOR_OBJECTS * mean) / (counts + PRIOR_OBJECTS))


def similarity_to(objects: Objects, image: int, images: int) -> Tensor:
    """Category conditioned matching similarity of all images to one of them, ``[I]``.

    From one image to another it is the mean, by weight, over its objects of the cosine with the most similar object of
    the same class in the other, or 0 where that has none; here, the mean of both ways. 0 where an image has no object.

    Args:
        objects: Of all images.
        image: The one.
        images: ``I``.
    """
    own = (objects.images == image).nonzero().flatten()
    if not len(own):
        return torch.zeros(images)
    cosine = (objects.vectors @ objects.vectors[own].T).clamp(min=0)  # [P, o]
    cosine = torch.where(objects.labels[:, None] == objects.labels[own], cosine, 0)
    weights = objects.weights.float().clamp(min=1e-9)
    totals = torch.zeros(images).index_add_(0, objects.images, weights)
    there = torch.zeros(images).index_add_(0, objects.images, weights * cosine.max(dim=1).values)
    there /= totals.clamp(min=1e-9)
    best = torch.zeros(images, len(own))
    best.scatter_reduce_(0, objects.images[:, None].expand(-1, len(own)), cosine, "amax")
    back = best @ weights[own] / weights[own].sum()
    return (there + back) / 2


def distinct(order: Sequence[int], vectors: Tensor, most: int) -> tuple[list[int], dict[int, int]]:
    """The first images that are not nearly the same as an earlier one.

    Args:
        order: Images, the best first.
        vectors: ``[I, D]`` unit vectors of all.
        most: How many to find.

    Returns:
        Up to ``most`` images in order, and, of those passed over on the way, which one each is nearly the same as.
    """
    found: list[int] = []
    twins: dict[int, int] = {}
    held = torch.empty(min(most, len(order)), vectors.shape[1])
    for image in order:
        if len(found) == most:
            break
        if found:
            cosine, place = (held[: len(found)] @ vectors[image]).max(dim=0)
            if 1 - float(cosine) <= SAME_IMAGE:
                twins[image] = found[int(place)]
                continue
        held[len(found)] = vectors[image]
        found.append(image)
    return found, twins


def choose_diverse(values: Tensor, objects: Objects, vectors: Tensor, count: int) -> list[int]:
    """Take images one by one: each time that of the greatest value times distance to the nearest one taken.

    The distance is one less :func:`similarity_to`; of two images without objects, one less the cosine of the images.

    Args:
        values: ``[I]``, 0 or more.
        objects: Of these images.
        vectors: ``[I, D]`` unit vectors of the images.
        count: How many to take, at most I.

    Returns:
        Images in the order in which they were taken.
    """
    images = len(values)
    empty = torch.bincount(objects.images, minlength=images) == 0
    apart = torch.ones(images)
    left = torch.ones(images, dtype=torch.bool)
    taken: list[int] = []
    for _ in range(min(count, images)):
        worth = torch.where(left, values.float().clamp(min=1e-9) * apart.clamp(min=1e-6), -1.0)
        image = int(worth.argmax())
        taken.append(image)
        left[image] = False
        alike = similarity_to(objects, image, images)
        if empty[image]:
            alike = torch.where(empty, (vectors @ vectors[image]).clamp(min=0), 0.0)
        apart = torch.minimum(apart, 1 - alike)
    return taken

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
from torchvision.ops import nms

from detframe.metrics.rows import DetectionRows, TruthRows, overlapping_rows

Floats = NDArray[np.float64]

PLACE_IOU = 0.5
"""Detections that overlap so far, of any class, are about one object."""

PRIOR_OBJECTS = 10.0
"""Objects that the mean of all classes counts for where the difficulty of one is estimated."""

EXPANSION = 4
"""Images that diversity chooses from, for each that it takes; PPAL's budget expanding ratio."""

SAME_GREY = 10
"""Grey levels of 255 that no pixel of two thumbnails differs by where one of the images says nothing new.

The largest difference and not the mean: on parts that always lie alike, all that is new may be a scratch.
"""

_IMAGES_AT_ONCE = 256
_COARSE = 8  # pixels of a thumbnail's side in the first comparison


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
    order = detections.images.argsort(stable=True)
    counts = torch.unique_consecutive(detections.images[order], return_counts=True)[1].tolist()
    # Image by image: torchvision's batched_nms looks at all detections for each of the images.
    best = [
        rows[nms(detections.boxes[rows].float(), detections.scores[rows], PLACE_IOU)] for rows in order.split(counts)
    ]
    kept = torch.cat([order[:0], *best]).sort().values
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
    bits: Tensor = -torch.special.xlogy(whole, whole).sum(dim=1) / np.log(2)
    return bits


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


def nearly_same(queries: NDArray[np.uint8], references: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The first reference that each query is nearly the same as, ``[Q]``, or -1.

    Args:
        queries: ``[Q, T]`` square thumbnails, grey, with sides that are multiples of 8.
        references: ``[R, T]``.
    """
    found = np.full(len(queries), -1, dtype=np.int64)
    if not len(queries) or not len(references):
        return found
    rough, known = _coarse(queries), _coarse(references)
    reach = _COARSE**2 * SAME_GREY**2 + 1.0  # a mean differs by no more than the pixels do
    for query in range(len(queries)):
        near = np.flatnonzero(((known - rough[query]) ** 2).sum(axis=1) <= reach)
        for start in range(0, len(near), 256):
            some = near[start : start + 256]
            apart = np.abs(references[some].astype(np.int16) - queries[query])
            same = np.flatnonzero(np.max(apart, axis=1) <= SAME_GREY)
            if len(same):
                found[query] = some[same[0]]
                break
    return found


def _coarse(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails ``[n, T]`` averaged to ``[n, 64]``."""
    side = round(thumbnails.shape[1] ** 0.5)
    cells = thumbnails.reshape(-1, _COARSE, side // _COARSE, _COARSE, side // _COARSE)
    return np.asarray(cells.mean(axis=(2, 4), dtype=np.float32).reshape(len(thumbnails), -1))


def distinct(order: Sequence[int], thumbnails: NDArray[np.uint8], most: int) -> tuple[list[int], dict[int, int]]:
    """The first images that are not nearly the same as an earlier one.

    Args:
        order: Images, the best first.
        thumbnails: ``[I, T]``, as for :func:`nearly_same`.
        most: How many to find.

    Returns:
        Up to ``most`` images in order, and, of those passed over on the way, which one each is nearly the same as.
    """
    found: list[int] = []
    twins: dict[int, int] = {}
    for start in range(0, len(order), _IMAGES_AT_ONCE):
        if len(found) >= most:
            break
        part = list(order[start : start + _IMAGES_AT_ONCE])
        earlier = nearly_same(thumbnails[part], thumbnails[found])
        own: list[int] = []
        for image, place in zip(part, earlier.tolist(), strict=True):
            among = -1 if place >= 0 else int(nearly_same(thumbnails[[image]], thumbnails[own])[0])
            if place >= 0 or among >= 0:
                twins[image] = found[place] if place >= 0 else own[among]
            else:
                own.append(image)
        found += own
    kept = set(found[:most])
    return found[:most], {twin: image for twin, image in twins.items() if image in kept}


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

"""What accumulation needs of matched images, as flat tensors: made per batch, gathered as one buffer, kept in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detframe.boxes import box_area
from detframe.matching import class_ranks, match_by_range
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, pack_outcomes
from detframe.structures import Detections, Targets

AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's object sizes, in square pixels of the original image, both ends included."""

NO_ID = torch.iinfo(torch.int64).min
"""Stands for the id of an image that came without one."""


class MatchedImages(NamedTuple):
    """Detections and objects of ``I`` images, one image after the other; 26 bytes a detection at 10 thresholds."""

    image_ids: Tensor  # [I] int64, NO_ID where the image came without one
    image_detections: Tensor  # [I] int64, how many of the detections are the image's
    image_targets: Tensor  # [I] int64, how many of the objects are the image's
    detection_scores: Tensor  # [D] float64
    detection_labels: Tensor  # [D] int32
    detection_ranks: Tensor  # [D] int32, place by score among those of the same image and class
    target_labels: Tensor  # [G] int32
    target_ranges: Tensor  # [G] uint8, bit a is set where the object counts in area range a
    detection_outcomes: Tensor  # [D, W] uint8, packed; column a * T + t is area range a at threshold t


def no_images(iou_count: int, device: torch.device) -> MatchedImages:
    """The record of no image at ``iou_count`` thresholds."""
    width = -(-len(AREA_RANGES) * iou_count // 4)
    integers = torch.zeros(0, dtype=torch.int64, device=device)
    return MatchedImages(
        image_ids=integers,
        image_detections=integers,
        image_targets=integers,
        detection_scores=integers.double(),
        detection_labels=integers.int(),
        detection_ranks=integers.int(),
        target_labels=integers.int(),
        target_ranges=integers.to(torch.uint8),
        detection_outcomes=integers.to(torch.uint8)[:, None].expand(0, width),
    )


def match_images(
    detections: Detections,
    targets: Targets,
    areas: Tensor,
    image_ids: Tensor,
    iou_thresholds: Sequence[float],
    max_detections: int,
    one_class: bool = False,
) -> MatchedImages:
    """Match a batch of images and keep what accumulation needs.

    Args:
        detections: In original pixels.
        targets: In original pixels.
        areas: ``[B, N]`` square pixels, by which objects are small, medium or large.
        image_ids: ``[B]`` int64.
        iou_thresholds: ``T`` values in 0..1.
        max_detections: How many detections of an image and class count at most.
        one_class: Match and rank as if all labels were the same; the record keeps them.
    """
    found, truth = detections, targets
    if one_class:
        found = detections._replace(labels=torch.zeros_like(detections.labels))
        truth = targets._replace(labels=torch.zeros_like(targets.labels))
    ranges = torch.tensor(list(AREA_RANGES.values()), dtype=torch.float64, device=targets.boxes.device)  # [A, 2]
    set_aside = outside(areas, ranges) | targets.ignore[..., None]  # [B, N, A]
    matches = match_by_range(found, truth, iou_thresholds, set_aside)
    # A false positive counts only in the range of its own size.
    stray = outside(box_area(detections.boxes.double()), ranges)[..., None]  # [B, K, A, 1]
    missed = torch.where(stray, IGNORED, FALSE_POSITIVE)
    hit = torch.where(matches.ignored, IGNORED, TRUE_POSITIVE)
    outcomes = torch.where(matches.target < 0, missed, hit).to(torch.uint8)  # [B, K, A, T]
    ranks = class_ranks(found)
    kept = detections.valid & (ranks < max_detections)
    bits = 2 ** torch.arange(len(AREA_RANGES), device=areas.device)
    return MatchedImages(
        image_ids=image_ids.long(),
        image_detections=kept.sum(dim=1),
        image_targets=targets.valid.sum(dim=1),
        detection_scores=detections.scores[kept].double(),
        detection_labels=detections.labels[kept].int(),
        detection_ranks=ranks[kept].int(),
        target_labels=targets.labels[targets.valid].int(),
        target_ranges=((~set_aside[targets.valid]) * bits).sum(dim=1).to(torch.uint8),
        detection_outcomes=pack_outcomes(outcomes[kept].flatten(1)),
    )


def concatenate(parts: Sequence[MatchedImages]) -> MatchedImages:
    """Records of several batches as one; at least one is needed."""
    return MatchedImages(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def in_order_of_ids(images: MatchedImages) -> MatchedImages:
    """Images by ascending id, the first of each id only: a distributed sampler may have shown some twice.

    Images without an id keep their order, and come first.
    """
    order = images.image_ids.argsort(stable=True)
    ids = images.image_ids[order]
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[1:] = (ids[1:] == ids[:-1]) & (ids[1:] != NO_ID)
    place = torch.empty_like(order)
    place[order] = torch.where(repeated, -1, torch.arange(len(order), device=order.device))
    kept = order[~repeated]
    found = _by_place(place, images.image_detections)
    objects = _by_place(place, images.image_targets)
    return MatchedImages(
        image_ids=images.image_ids[kept],
        image_detections=images.image_detections[kept],
        image_targets=images.image_targets[kept],
        detection_scores=images.detection_scores[found],
        detection_labels=images.detection_labels[found],
        detection_ranks=images.detection_ranks[found],
        target_labels=images.target_labels[objects],
        target_ranges=images.target_ranges[objects],
        detection_outcomes=images.detection_outcomes[found],
    )


def _by_place(place: Tensor, counts: Tensor) -> Tensor:
    """Order of rows by the place of their image; rows of images at place -1 are left out."""
    places = place.repeat_interleave(counts)
    order = places.argsort(stable=True)
    return order[places[order] >= 0]


def number_by_position(image_ids: Tensor, rank: int, world_size: int) -> Tensor:
    """Give images without an id the place that a distributed sampler drew them from: it deals them out in turn.

    The numbers begin above :data:`NO_ID`, far below any id of an annotation file, so both order and ids stay apart.
    """
    position = torch.arange(len(image_ids), device=image_ids.device) * world_size + rank
    return torch.where(image_ids == NO_ID, NO_ID + 1 + position, image_ids)


def count_positives(images: MatchedImages, classes: Tensor) -> Tensor:
    """Objects of each class that count in each area range, ``[C, A]`` int64; ``classes`` are ascending labels."""
    class_index = torch.searchsorted(classes, images.target_labels)
    columns = [
        torch.bincount(class_index[(images.target_ranges >> a & 1).bool()], minlength=len(classes))
        for a in range(len(AREA_RANGES))
    ]
    return torch.stack(columns, dim=1)


def count_images(images: MatchedImages, classes: Tensor) -> Tensor:
    """Images with an object of each class that counts, ``[C]`` int64; ``classes`` are ascending labels."""
    owner = torch.arange(len(images.image_targets), device=classes.device).repeat_interleave(images.image_targets)
    counts = (images.target_ranges & 1).bool()
    class_index = torch.searchsorted(classes, images.target_labels)
    seen = (owner * len(classes) + class_index)[counts]
    seen = torch.unique(seen)
    return torch.bincount(seen % max(len(classes), 1), minlength=len(classes))


def to_bytes(images: MatchedImages) -> Tensor:
    """The record as one buffer ``[bytes]`` uint8, so that processes exchange it in one collective."""
    sizes = [len(images.image_ids), len(images.detection_scores), len(images.target_labels)]
    head = torch.tensor(sizes, dtype=torch.int64, device=images.image_ids.device)
    return torch.cat([tensor.contiguous().flatten().view(torch.uint8) for tensor in (head, *images)])


def from_bytes(buffer: Tensor, iou_count: int) -> MatchedImages:
    """The record that :func:`to_bytes` packed."""
    images, found, objects = buffer[:24].clone().view(torch.int64).tolist()
    templates = no_images(iou_count, buffer.device)
    lengths = (images, images, images, found, found, found, objects, objects, found)
    shapes = [(length, *template.shape[1:]) for template, length in zip(templates, lengths, strict=True)]
    sizes = [math.prod(shape) * template.element_size() for template, shape in zip(templates, shapes, strict=True)]
    # The fields come from the widest type to the narrowest, so each starts where its type may.
    parts = torch.split(buffer[24:], sizes)
    return MatchedImages(
        *(part.view(t.dtype).view(shape) for part, t, shape in zip(parts, templates, shapes, strict=True))
    )


def outside(areas: Tensor, ranges: Tensor) -> Tensor:
    """Whether areas ``[...]`` lie outside each of the ranges ``[A, 2]``, ``[..., A]`` bool."""
    size = areas.double()[..., None]
    return (size < ranges[:, 0]) | (size > ranges[:, 1])

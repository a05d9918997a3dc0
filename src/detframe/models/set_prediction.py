"""Detection as set prediction (DETR, Carion et al., 2020): which prediction is which object, and the pairs' losses.

Boxes are cxcywh in 0..1 of the image here, the coordinates in which such networks predict, until `corners` makes them
xyxy. A match ``[B, Q]`` holds for every prediction the row of its object, or -1 where it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detframe.boxes import box_area, clip_boxes, intersection, overlap_and_union, pairwise_iou
from detframe.models.losses import giou_loss, varifocal_loss
from detframe.structures import Targets


class Objects(NamedTuple):
    """The objects that a batch is to find, moved to the front: neither ignored ones nor padding are among them."""

    boxes: Tensor  # [B, M, 4] float32, cxcywh in 0..1 of the image
    labels: Tensor  # [B, M] int64, 0..C-1
    counts: list[int]  # how many of the M rows of each image are objects; M is the most of them, and at least 1


def pack_objects(targets: Targets, image_size: tuple[int, int]) -> Objects:
    """The objects of a batch, so that nothing that follows depends on how its targets are padded.

    Args:
        targets: Objects in input pixels.
        image_size: (height, width) of the input in pixels.
    """
    live = targets.valid & ~targets.ignore
    counts: list[int] = live.sum(dim=1).tolist()  # the one wait for the device before the matching
    if max(counts, default=0) == 0:
        boxes = targets.boxes.new_zeros(len(live), 1, 4)
        return Objects(boxes, targets.labels.new_zeros(len(live), 1), counts)
    order = live.int().argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
    boxes = targets.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    height, width = image_size
    centres, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    cxcywh = torch.cat((centres, sides), dim=-1) / boxes.new_tensor([width, height, width, height])
    return Objects(cxcywh, targets.labels.gather(1, order), counts)


def corners(boxes: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` from cxcywh to xyxy; sides below zero, which a network may predict, count as zero."""
    centres, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) / 2
    return torch.cat((centres - half, centres + half), dim=-1)


def in_image(boxes: Tensor, height: int, width: int) -> Tensor:
    """What of boxes ``[..., 4]``, cxcywh in 0..1, lies in an image: xyxy in pixels."""
    xyxy = corners(boxes)
    pixels = torch.stack((xyxy[..., 0::2] * width, xyxy[..., 1::2] * height), dim=-1)  # [..., 2 corners, 2]
    return clip_boxes(pixels.flatten(-2), height, width)


def matching_costs(logits: Tensor, boxes: Tensor, objects: Objects) -> Tensor:
    """What it would cost each prediction to be each object of its image, ``[B, Q, M]``.

    Focal cost of the class, L1 and GIoU of the box, weighted 2, 5 and 2 as in Deformable DETR (Zhu et al., 2021).

    Args:
        logits: ``[B, Q, C]``.
        boxes: ``[B, Q, 4]``, cxcywh in 0..1.
        objects: Objects of the batch.
    """
    labels = objects.labels[:, None].expand(-1, logits.shape[1], -1)
    score = logits.float().sigmoid().gather(2, labels)  # [B, Q, M]
    positive = 0.25 * (1 - score).square() * -(score + 1e-8).log()
    negative = 0.75 * score.square() * -(1 - score + 1e-8).log()
    distance = torch.cdist(boxes.float(), objects.boxes, p=1)
    return 2 * (positive - negative) + 5 * distance - 2 * pairwise_giou(corners(boxes.float()), corners(objects.boxes))


def pairwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise generalised IoU (Rezatofighi et al., 2019) of ``[..., N, 4]`` and ``[..., M, 4]`` xyxy, ``[..., N, M]``.

    In -1..1; -1 where both boxes are empty.
    """
    overlap, union = overlap_and_union(boxes1, boxes2)
    top_left = torch.min(boxes1[..., :, None, :2], boxes2[..., None, :, :2])
    bottom_right = torch.max(boxes1[..., :, None, 2:], boxes2[..., None, :, 2:])
    hull = (bottom_right - top_left).prod(dim=-1)
    tiny = torch.finfo(hull.dtype).tiny
    return overlap / union.clamp(min=tiny) + union / hull.clamp(min=tiny) - 1


@torch.no_grad()
def match_predictions(predictions: Sequence[tuple[Tensor, Tensor]], objects: Objects) -> Tensor:
    """Optimal one-to-one matches of several sets of predictions with the objects (the Hungarian method).

    Args:
        predictions: Logits ``[B, Q, C]`` and boxes ``[B, Q, 4]`` (cxcywh in 0..1) of each set.
        objects: Objects of the batch; each is matched as long as there are predictions left.

    Returns:
        One match for each set, ``[sets, B, Q]`` int64.
    """
    costs = torch.stack([matching_costs(logits, boxes, objects) for logits, boxes in predictions])
    # A network that has diverged is to fail by its loss, which the task reports with the batch, and not in here.
    on_host = costs.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    match = np.full(on_host.shape[:3], -1)
    for i, of_set in enumerate(on_host):
        for j, count in enumerate(objects.counts):
            rows, columns = linear_sum_assignment(of_set[j, :, :count])
            match[i, j, rows] = columns
    return torch.from_numpy(match).to(costs.device)


def vote(matches: Tensor, objects: Objects) -> Tensor:
    """One match out of several: each prediction gets the object that most of them gave it (D-FINE, section 4.2).

    Unlike in the matches themselves several predictions may have the same object.

    Args:
        matches: ``[sets, B, Q]`` int64.
        objects: Objects of the batch.

    Returns:
        ``[B, Q]`` int64.
    """
    candidates = torch.arange(objects.labels.shape[1], device=matches.device)
    votes = torch.zeros((*matches.shape[1:], len(candidates)), dtype=torch.int64, device=matches.device)
    for match in matches:
        votes += match[..., None] == candidates
    most, best = votes.max(dim=-1)
    return torch.where(most > 0, best, -1)


def matched_boxes(match: Tensor, objects: Objects) -> Tensor:
    """Boxes ``[B, Q, 4]`` of the objects in a match; where there is none, the box of any row."""
    return objects.boxes.gather(1, match.clamp(min=0)[..., None].expand(-1, -1, 4))


def matched_iou(boxes: Tensor, match: Tensor, objects: Objects) -> Tensor:
    """IoU ``[B, Q]`` of predicted boxes (cxcywh) with their objects, 0 where there is none, without gradient."""
    iou = pairwise_iou(corners(boxes.detach())[..., None, :], corners(matched_boxes(match, objects))[..., None, :])
    return iou[..., 0, 0] * (match >= 0)


def class_loss(logits: Tensor, boxes: Tensor, match: Tensor, objects: Objects, counted: Tensor) -> Tensor:
    """Varifocal loss of the classes per matched prediction, a scalar: a score is to be the IoU with the object.

    Args:
        logits: ``[B, Q, C]``.
        boxes: ``[B, Q, 4]``, cxcywh in 0..1.
        match: ``[B, Q]``.
        objects: Objects of the batch.
        counted: ``[B, Q]`` bool, False for predictions that are to learn nothing.
    """
    # A positive that touches nothing has no weight, but is no negative either.
    iou = matched_iou(boxes, match, objects).clamp(min=1e-6) * (match >= 0)
    labels = objects.labels.gather(1, match.clamp(min=0))
    quality = torch.zeros_like(logits).scatter(2, labels[..., None], iou[..., None])
    return (varifocal_loss(logits, quality) * counted[..., None]).sum() / pairs(match)


def box_losses(boxes: Tensor, match: Tensor, objects: Objects) -> tuple[Tensor, Tensor]:
    """L1 and GIoU loss per matched prediction, scalars.

    Args:
        boxes: ``[B, Q, 4]``, cxcywh in 0..1.
        match: ``[B, Q]``.
        objects: Objects of the batch.
    """
    truth = matched_boxes(match, objects)
    distance = (boxes - truth).abs().sum(dim=-1) * (match >= 0)
    giou = giou_loss(corners(boxes), corners(truth)) * (match >= 0)
    return distance.sum() / pairs(match), giou.sum() / pairs(match)


def pairs(match: Tensor) -> Tensor:
    """How many predictions have an object, as a scalar to divide by: at least 1."""
    return (match >= 0).sum().clamp(min=1)


def in_ignore_region(boxes: Tensor, targets: Targets, image_size: tuple[int, int]) -> Tensor:
    """Which predictions lie by more than half, as far as they are in the image, in one ignored box, ``[B, Q]`` bool.

    Args:
        boxes: ``[B, Q, 4]``, cxcywh in 0..1.
        targets: With the ignored boxes, in input pixels.
        image_size: (height, width) of the input in pixels.
    """
    xyxy = in_image(boxes.detach(), image_size[0], image_size[1])
    covered = intersection(xyxy, targets.boxes) > box_area(xyxy)[..., None] / 2  # [B, Q, N]
    return (covered & (targets.ignore & targets.valid)[:, None]).any(dim=-1)

"""THE matcher of detections and ground truth: every metric and every report uses it, so that their counts agree.

The rules are COCO's: detections in order of score, each takes the free object of its class that it overlaps most, at
an IoU of at least the threshold; ignore regions are taken only where no object is, by any number of detections, and
against them the overlap is measured by the detection's own area.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detframe.boxes import box_area, intersection
from detframe.structures import Detections, Targets


class Matches(NamedTuple):
    """Which object each detection found, at ``T`` IoU thresholds."""

    target: Tensor  # [B, K, T] int64, row of the targets, -1 where the detection found nothing
    iou: Tensor  # [B, K, T] float64, overlap with it, 0 where it found nothing
    ignored: Tensor  # [B, K, T] bool: what it found is an ignore region


def match(detections: Detections, targets: Targets, iou_thresholds: Tensor) -> Matches:
    """Match detections to objects of their own class.

    For matching on location before class give both sides labels of zeros.

    Args:
        detections: By descending score, in the same pixels as the targets.
        targets: Ground truth; ``ignore`` is neither found nor missed.
        iou_thresholds: ``[T]`` float64, 0..1.
    """
    overlaps = class_overlaps(detections, targets)
    ignore = (targets.ignore & targets.valid)[None]
    target = greedy_match(overlaps, iou_thresholds, ignore, targets.ignore)[0]
    if targets.boxes.shape[1] == 0:
        return Matches(
            target, torch.zeros_like(target, dtype=torch.float64), torch.zeros_like(target, dtype=torch.bool)
        )
    found = target >= 0
    row = target.clamp(min=0)
    ignored = targets.ignore[:, None, :].expand(overlaps.shape).gather(2, row) & found
    return Matches(target, torch.where(found, overlaps.gather(2, row), 0.0), ignored)


def class_overlaps(detections: Detections, targets: Targets) -> Tensor:
    """Overlap of every detection with every object of its class, ``[B, K, N]`` float64; -1 where they cannot match.

    IoU, or for ignore regions the share of the detection that lies in the region.
    """
    found, truth = detections.boxes.double(), targets.boxes.double()
    shared = intersection(found, truth)
    own = box_area(found)[..., None]
    union = torch.where(targets.ignore[:, None, :], own, own + box_area(truth)[:, None, :] - shared)
    possible = detections.valid[..., None] & targets.valid[:, None, :]
    possible &= detections.labels[..., None] == targets.labels[:, None, :]
    return torch.where(possible, shared / union.clamp(min=1e-300), -1.0)


def greedy_match(overlaps: Tensor, iou_thresholds: Tensor, ignore: Tensor, crowd: Tensor) -> Tensor:
    """COCO's greedy matching, batched over images, thresholds and ways to ignore.

    Args:
        overlaps: ``[B, K, N]`` float64, rows by descending score, -1 where two cannot match.
        iou_thresholds: ``[T]`` float64.
        ignore: ``[R, B, N]`` bool, objects that do not count, in each of ``R`` views of the same truth.
        crowd: ``[B, N]`` bool, regions that any number of detections may lie in.

    Returns:
        ``[R, B, K, T]`` int64, the row of the object that a detection takes, or -1.
    """
    views = len(ignore)
    batch, slots, objects = overlaps.shape
    thresholds = iou_thresholds.to(overlaps).clamp(max=1 - 1e-10)  # pycocotools, COCOeval.evaluateImg
    result = torch.full((views, batch, slots, len(thresholds)), -1, dtype=torch.int64, device=overlaps.device)
    if objects == 0 or slots == 0:
        return result
    # Most detections overlap nothing enough. The others go first, by score, and only they need a turn.
    contender = (overlaps >= thresholds.min()).any(dim=2)
    order = contender.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices
    turns = int(contender.sum(dim=1).max())
    free = torch.ones(views, batch, len(thresholds), objects, dtype=torch.bool, device=overlaps.device)
    # Of equal overlaps COCO takes the last object; argmax gives the first, so objects are turned round.
    flipped = overlaps.flip(2)
    counted = ~ignore.flip(2)[:, :, None]  # [R, B, 1, N]
    many = crowd.flip(1)[None, :, None]  # [1, B, 1, N]
    for turn in range(turns):
        slot = order[:, turn]
        overlap = flipped[torch.arange(batch, device=slot.device), slot][None, :, None]  # [1, B, 1, N]
        possible = free & (overlap >= thresholds[:, None])
        # Adding 2 puts every object that counts before every one that does not.
        rank = torch.where(possible, overlap + 2.0 * counted, -1.0)
        best, row = rank.max(dim=3)  # [R, B, T]
        taken = best >= 0
        result.scatter_(
            2,
            slot[None, :, None, None].expand(views, -1, 1, len(thresholds)),
            torch.where(taken, objects - 1 - row, -1)[:, :, None],
        )
        free &= ~torch.zeros_like(free).scatter_(3, row[..., None], taken[..., None]) | many
    return result

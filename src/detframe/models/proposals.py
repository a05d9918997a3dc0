"""What two-stage detectors add to boxes: proposals, sampling of what to learn, and RoIAlign over a pyramid.

All of it has fixed shapes, so that it batches, scripts and exports; torchvision's own loops fail ``torch.export``.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import roi_align

from detframe.models.postprocess import padded_topk, unsuppressed


def select_proposals(
    boxes: Tensor,
    objectness: Tensor,
    counts: list[int],
    smallest: float,
    per_level: int,
    iou_threshold: float,
    proposals: int,
) -> tuple[Tensor, Tensor]:
    """The best proposals of an image after suppression on each level (FPN, section 4.1).

    Args:
        boxes: ``[B, A, 4]``, xyxy in pixels, within the image.
        objectness: ``[B, A]``, 0..1.
        counts: Boxes of each level, in the order of ``boxes``.
        smallest: Boxes narrower or lower than this many pixels are none.
        per_level: How many of a level enter the suppression.
        iou_threshold: A proposal that overlaps a better one of its level more than this is dropped.
        proposals: P, how many come out.

    Returns:
        Proposals ``[B, P, 4]`` by descending objectness, and which of them are any, ``[B, P]`` bool; the rest is zero.
    """
    scores: list[Tensor] = []
    indices: list[Tensor] = []
    levels: list[Tensor] = []
    start = 0
    for i, count in enumerate(counts):
        top, index = padded_topk(objectness[:, start : start + count], per_level)
        scores.append(top)
        indices.append(index + start)
        levels.append(torch.full_like(index, i))
        start += count
    score = torch.cat(scores, dim=1)
    chosen = boxes.gather(1, torch.cat(indices, dim=1)[..., None].expand(-1, -1, 4))
    live = (score > 0) & (chosen[..., 2:] - chosen[..., :2] >= smallest).all(dim=-1)
    keep = unsuppressed(chosen, score, torch.cat(levels, dim=1), live, iou_threshold)
    best, order = padded_topk(torch.where(keep, score, 0.0), proposals)
    valid = best > 0
    return chosen.gather(1, order[..., None].expand(-1, -1, 4)) * valid[..., None], valid


def sample_balanced(positive: Tensor, negative: Tensor, count: int, positive_share: float) -> Tensor:
    """A random choice of at most ``count`` boxes of each image, ``[B, A]`` bool.

    Args:
        positive: ``[B, A]``.
        negative: ``[B, A]``.
        count: How many; fewer where there are fewer.
        positive_share: The most positives by share of ``count``, 0..1; negatives fill up.
    """
    anchors = positive.shape[1]
    noise = 1 + torch.rand(positive.shape, device=positive.device)
    best, index = (noise * positive).topk(min(int(count * positive_share), anchors), dim=1)
    chosen = torch.zeros_like(positive).scatter(1, index, best > 0)
    room = count - chosen.sum(dim=1, keepdim=True)
    best, index = (noise * negative).topk(min(count, anchors), dim=1)
    fits = torch.arange(index.shape[1], device=index.device) < room
    return chosen | torch.zeros_like(negative).scatter(1, index, (best > 0) & fits)


def roi_align_pyramid(features: list[Tensor], strides: list[int], boxes: Tensor, size: int) -> Tensor:
    """RoIAlign of boxes on the level that suits each one's size (FPN, eq. 1), in one call.

    The levels are laid out on one canvas, so that no box has to be sorted by level, which fixed shapes forbid. A border
    that repeats the last row and column gives the values that torchvision's ``MultiScaleRoIAlign`` has there. Only
    boxes narrower than a cell, which RoIAlign widens to one, may reach beyond it and then read other values.

    Args:
        features: Feature maps ``[B, C, H, W]`` of the same C, finest first.
        strides: Input pixels per cell of each.
        boxes: ``[B, P, 4]``, xyxy in input pixels.
        size: Side of the result in cells.

    Returns:
        ``[B * P, C, size, size]``.
    """
    width = features[0].shape[3] + 2
    rows: list[Tensor] = []
    tops: list[int] = []
    top = 0
    for feature in features:
        bordered = pad(pad(feature, [0, 1, 0, 1], mode="replicate"), [0, width - feature.shape[3] - 1, 0, 1])
        rows.append(bordered)
        tops.append(top)
        top += bordered.shape[2]
    canvas = torch.cat(rows, dim=2).contiguous()

    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    wanted = 16 * area.sqrt() / 224 * 2**1e-6  # stride that suits the box; the margin is torchvision's
    level = torch.zeros_like(wanted, dtype=torch.int64)
    for stride in strides[1:]:
        level = level + (wanted >= stride).long()
    scale = torch.tensor(strides, device=boxes.device)[level].to(boxes.dtype)[..., None]
    offset = torch.tensor(tops, device=boxes.device)[level].to(boxes.dtype)
    shift = torch.stack((torch.zeros_like(offset), offset), dim=-1)
    placed = boxes / scale + torch.cat((shift, shift), dim=-1)
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], 1)
    rois = torch.cat((image.to(boxes.dtype), placed), dim=-1).flatten(0, 1)
    return roi_align(canvas, rois.to(canvas.dtype), [size, size], 1.0, 2)

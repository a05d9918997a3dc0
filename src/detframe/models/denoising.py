"""Contrastive denoising: objects with noise on them, handed to the decoder as queries that know their answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detframe.models.set_prediction import Objects, corners


class NoisedQueries(NamedTuple):
    """Queries made of objects, D of them in each image, in groups that do not see each other."""

    labels: Tensor  # [B, D] int64, 0..C-1, C in padding
    boxes: Tensor  # [B, D, 4] float32, cxcywh in 0..1 of the image
    match: Tensor  # [B, D] int64, the row of the object to find again; -1 where the answer is that there is none
    padding: Tensor  # [B, D] bool, rows of images that have fewer objects than others: nothing to learn
    group: Tensor  # [D] int64


def noise_objects(
    objects: Objects, num_classes: int, queries: int, label_noise: float, box_noise: float
) -> NoisedQueries:
    """Noised copies of the objects (DINO, Zhang et al., 2023, section 3.3).

    Each group holds every object twice: moved by less than half its sides, which is to be found, and by more, which is
    to be refused. An image with more than ``queries`` objects has a random choice of them in its one group, so that
    crowded images cost no more than others: there are at most ``2 * queries``.

    Args:
        objects: Objects of the batch.
        num_classes: C.
        queries: Objects in all groups of an image together, at most.
        label_noise: Twice the share of labels that are drawn anew, 0..1.
        box_noise: How far a side moves, in halves of the box's sides.
    """
    rows = torch.arange(objects.labels.shape[1], device=objects.labels.device)
    real = rows < torch.tensor(objects.counts, device=rows.device)[:, None]  # [B, M]
    chosen = rows.expand_as(real)
    if len(rows) > queries:
        chosen = (torch.rand_like(real, dtype=torch.float32) + real).topk(queries, dim=1).indices
        real = real.gather(1, chosen)
    count = chosen.shape[1]
    groups = max(1, queries // count)

    repeats = 2 * groups  # found, refused, found, refused ...
    padding = ~real.repeat(1, repeats)
    refused = (torch.arange(repeats * count, device=rows.device) // count) % 2 == 1  # [D]
    chosen = chosen.repeat(1, repeats)
    match = torch.where(padding | refused, -1, chosen)

    labels = objects.labels.gather(1, chosen)
    redrawn = torch.rand_like(labels, dtype=torch.float32) < label_noise / 2
    labels = torch.where(redrawn, torch.randint_like(labels, num_classes), labels)
    labels = torch.where(padding, num_classes, labels)

    boxes = objects.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    sign = torch.randint_like(boxes, 2) * 2 - 1
    amount = torch.rand_like(boxes) + refused[:, None]
    moved = corners(boxes) + sign * amount * boxes[..., 2:].repeat(1, 1, 2) / 2 * box_noise
    moved = moved.clamp(0, 1)
    centres, sides = (moved[..., :2] + moved[..., 2:]) / 2, moved[..., 2:] - moved[..., :2]
    group = torch.arange(repeats * count, device=rows.device) // (2 * count)
    return NoisedQueries(labels, torch.cat((centres, sides.clamp(min=0)), dim=-1), match, padding, group)


def attention_mask(group: Tensor, queries: int) -> Tensor:
    """Which query must not look at which, ``[D + queries, D + queries]`` bool, the noised ones first.

    The others see no noised query, which would tell them the answer; noised ones see their group and the others.

    Args:
        group: ``[D]``, the group of each noised query.
        queries: How many others there are.
    """
    every = torch.cat((group, group.new_full((queries,), -1)))
    return (every[None, :] >= 0) & (every[None, :] != every[:, None])

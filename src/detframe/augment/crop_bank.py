"""The store of cut-out objects that copy-paste draws from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from detframe.boxes import box_area, intersection
from detframe.letterbox import PAD_VALUE
from detframe.listing import in_a_row
from detframe.structures import TrainingObjects

Blend = Literal["ellipse", "rectangle"]

LARGEST = 0.5
"""Share of an image's side above which an object is not pasted: where would it go without hiding others?"""

_CONTEXT = 0.3  # of the box's sides, cut out around it on each side, for the soft edge
_FEATHER = 0.12  # of the shorter side: how far beyond the outline the soft edge reaches
_FOREIGN = 0.1  # share of a box that another object may cover before the crop shows too much of it
_ENOUGH = 10  # clean crops of a class above which its others are left out
_CANDIDATES = 4  # looked at for each crop kept
_MOST_BYTES = 256 * 2**20  # of all crops, on the device
_RING = ((1.15, 1.3), 24)  # where the surroundings are looked at: multiples of the box, points on each


class CropBank(NamedTuple):
    """K objects with some of what is around them, by ascending label, one behind another in one run of pixels."""

    pixels: Tensor  # [P] int32, the four bytes of one RGBA pixel in each: a gather moves them at once
    starts: Tensor  # [K] int64, of each crop in `pixels`; row by row
    sizes: Tensor  # [K, 2] int64, (height, width)
    boxes: Tensor  # [K, 4] float32, xyxy in the crop's own pixels: what alpha shows at 128 and above
    surroundings: Tensor  # [K, 6] float32, mean and deviation of RGB around the object, 0..1
    labels: Tensor  # [K] int64


class _Crop(NamedTuple):
    rgba: Tensor  # [h, w, 4] uint8
    box: Tensor  # [4] in its pixels
    surroundings: Tensor  # [6]
    cut: bool  # by the edge of the image


def build_bank(objects: TrainingObjects, bank_size: int, blend: Blend) -> tuple[CropBank, list[str]]:
    """Cut out up to ``bank_size`` objects of each class; the same ones on every call and in every process.

    Objects that another one covers, or that the edge of the image cuts, are taken only in classes that have fewer than
    ten better ones. Those larger than half of the image are left out.

    Returns:
        The bank, and sentences on what is not in it.
    """
    generator = torch.Generator().manual_seed(0)
    chosen = _choose(objects, bank_size, generator)
    images = objects.images[chosen].unique()
    images = images[torch.randperm(len(images), generator=generator)]  # so that a full class has them from everywhere
    counts = objects.labels.bincount(minlength=len(objects.class_names))
    budget = _MOST_BYTES // max(int((counts > 0).sum()), 1)
    used = [0] * len(counts)
    crops: list[_Crop] = []
    labels: list[int] = []
    large, full, unread = 0, 0, list[str]()
    for image, items in _read(objects, chosen, images, unread):
        edges = _content(image)
        for item in items:
            crop = _cut_out(image, edges, objects.boxes[item], objects.read_mask(item), blend)
            label = int(objects.labels[item])
            if crop is None:
                large += 1
            elif used[label] and used[label] + crop.rgba.numel() > budget:
                full += 1
            else:
                used[label] += crop.rgba.numel()
                crops.append(crop)
                labels.append(label)
    all_labels = torch.tensor(labels, dtype=torch.int64)
    whole = torch.tensor([not crop.cut for crop in crops], dtype=torch.bool)
    kept = _cleanest(whole, all_labels).nonzero().flatten()
    kept = kept[all_labels[kept].argsort(stable=True)]
    bank = _stacked([crops[i] for i in kept.tolist()], all_labels[kept])
    return bank, _notes(objects, bank, large, full, unread)


def _notes(objects: TrainingObjects, bank: CropBank, large: int, full: int, unread: Sequence[str]) -> list[str]:
    notes = []
    if large:
        notes.append(f"{large} objects larger than {LARGEST:.0%} of their image's side are not pasted.")
    if full:
        notes.append(f"{full} objects are left out to keep the crops of all classes below {_MOST_BYTES >> 20} MiB.")
    if unread:
        notes.append(f"{len(unread)} images could not be read and give no crops, such as {unread[0]}")
    there = set(bank.labels.unique().tolist())
    absent = [name for label, name in enumerate(objects.class_names) if label not in there]
    if absent:
        notes.append(f"No crop of {in_a_row(absent)}; they are not pasted.")
    return notes


def _choose(objects: TrainingObjects, bank_size: int, generator: torch.Generator) -> Tensor:
    """Indices of objects ``[n]``, up to ``bank_size`` random ones of each class; first those that none covers."""
    order = torch.randperm(len(objects.labels), generator=generator)
    order = order[objects.labels[order].argsort(stable=True)]
    order = order[_rank_in_class(objects.labels[order]) < _CANDIDATES * bank_size]
    labels = objects.labels[order]
    clean = _covered_share(objects, order) <= _FOREIGN
    kept = _cleanest(clean, labels)
    order, labels, clean = order[kept], labels[kept], clean[kept]
    by_quality = (labels * 2 + ~clean).argsort(stable=True)
    order, labels = order[by_quality], labels[by_quality]
    return order[_rank_in_class(labels) < bank_size]


def _rank_in_class(labels: Tensor) -> Tensor:
    """How many of the same label come before each of ascending ``labels [n]``."""
    counts = labels.bincount()
    return torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]


def _cleanest(clean: Tensor, labels: Tensor) -> Tensor:
    """Which of ``n`` crops to keep: the clean ones, and the first others of classes that have too few of these."""
    counts = labels[clean].bincount(minlength=int(labels.max()) + 1 if len(labels) else 0)
    order = labels.argsort(stable=True)
    order = order[~clean[order]]
    kept = clean.clone()
    kept[order[_rank_in_class(labels[order]) < _ENOUGH - counts[labels[order]]]] = True
    return kept


def _covered_share(objects: TrainingObjects, items: Tensor) -> Tensor:
    """The largest share of each object's box ``[n]`` that another object of its image covers, 0..1."""
    order = objects.images.argsort(stable=True)
    counts = objects.images.bincount(minlength=objects.image_count)
    first = counts.cumsum(0) - counts
    others = counts[objects.images[items]]
    pair = torch.arange(len(items)).repeat_interleave(others)  # each item with all objects of its image
    within = torch.arange(len(pair)) - (others.cumsum(0) - others)[pair]
    other = order[first[objects.images[items]][pair] + within]
    mine = objects.boxes[items][pair]
    overlap = intersection(mine[:, None], objects.boxes[other][:, None])[:, 0, 0] / box_area(mine)
    overlap = torch.where(other == items[pair], 0.0, overlap)
    return torch.zeros(len(items)).scatter_reduce(0, pair, overlap, "amax")


def _read(
    objects: TrainingObjects, chosen: Tensor, images: Tensor, unread: list[str]
) -> Iterator[tuple[Tensor, list[int]]]:
    """Each image with the chosen objects of it; those that cannot be read are named in ``unread``."""
    items: dict[int, list[int]] = {}
    for item, position in zip(chosen.tolist(), objects.images[chosen].tolist(), strict=True):
        items.setdefault(position, []).append(item)
    for position in track(images.tolist(), "Cutting out objects", console=Console(stderr=True), transient=True):
        try:
            image = objects.read_image(position)
        except ValueError as error:  # a run that is told to skip such images must not end here
            unread.append(str(error))
            continue
        yield image, items[position]


def _content(image: Tensor) -> tuple[int, int, int, int]:
    """Edges (xyxy) of an image ``[3, H, W]`` without its letterbox margin."""
    seen = (image != PAD_VALUE).any(dim=0)
    columns, rows = seen.any(dim=0).nonzero(), seen.any(dim=1).nonzero()
    if not len(columns):
        return 0, 0, image.shape[2], image.shape[1]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cut_out(
    image: Tensor, edges: tuple[int, int, int, int], box: Tensor, mask: Tensor | None, blend: Blend
) -> _Crop | None:
    """One object with its surroundings and its alpha; None where it is too large."""
    if mask is not None:
        mask = _within(mask, box)
        box = _extent(mask) if bool(mask.any()) else box
        mask = mask if bool(mask.any()) else None
    x1, y1, x2, y2 = box.tolist()
    height, width = image.shape[1:]
    if x2 - x1 > LARGEST * width or y2 - y1 > LARGEST * height:
        return None
    across, down = max(_CONTEXT * (x2 - x1), 2), max(_CONTEXT * (y2 - y1), 2)
    left, top = max(math.floor(x1 - across), edges[0]), max(math.floor(y1 - down), edges[1])
    right, bottom = min(math.ceil(x2 + across), edges[2]), min(math.ceil(y2 + down), edges[3])
    inside = box - torch.tensor([left, top, left, top])
    if mask is None:
        alpha = soft_outline(inside, bottom - top, right - left, blend)
    else:
        shape = mask[top:bottom, left:right].float()
        # Halfway to its mean over 3 x 3 pixels: soft, and still above one half exactly where the mask is.
        alpha = (shape + functional.avg_pool2d(shape[None], 3, 1, 1, False, False)[0]) / 2
    pixels = image[:, top:bottom, left:right]
    rgba = torch.cat((pixels, (alpha * 255).round().to(torch.uint8)[None])).permute(1, 2, 0)
    around = ring_pixels(image[None], box[None, None])[0, :, 0].float() / 255  # [3, R]
    surroundings = torch.cat((around.mean(dim=-1), around.std(dim=-1)))
    cut = x1 < edges[0] + 1 or y1 < edges[1] + 1 or x2 > edges[2] - 1 or y2 > edges[3] - 1
    return _Crop(rgba.contiguous(), inside, surroundings, cut)


def _within(mask: Tensor, box: Tensor) -> Tensor:
    """A mask ``[H, W]`` without what is more than two pixels outside its box."""
    left, top, right, bottom = (int(side) for side in (box + torch.tensor([-2.0, -2, 2, 2])).round().clamp(min=0))
    kept = torch.zeros_like(mask)
    kept[top:bottom, left:right] = mask[top:bottom, left:right]
    return kept


def _extent(mask: Tensor) -> Tensor:
    """Box of the pixels of a mask ``[H, W]`` that has some, ``[4]`` float32."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1], dtype=torch.float32)


def soft_outline(box: Tensor, height: int, width: int, blend: Blend) -> Tensor:
    """Alpha ``[height, width]`` 0..1: 1 inside the outline of the box ``[4]``, and falling to 0 beyond it.

    The soft edge lies outside, so that what is opaque is exactly as large as the box.
    """
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    x = torch.arange(width) + 0.5 - centre[0]
    y = (torch.arange(height) + 0.5 - centre[1])[:, None]
    if blend == "ellipse":
        radius = torch.hypot(x / half[0], y / half[1]).clamp(min=1e-6)
        beyond = torch.hypot(x, y) * (1 - 1 / radius)  # pixels from the outline, on the ray from the centre
    else:
        beyond = torch.hypot((x.abs() - half[0]).clamp(min=0), (y.abs() - half[1]).clamp(min=0))
    feather = (2 * _FEATHER * half.min()).clamp(min=1)
    return (1 - beyond / feather).clamp(0, 1)


def ring_pixels(images: Tensor, boxes: Tensor) -> Tensor:
    """Pixels around boxes, ``[B, 3, K, R]``: on two rectangles somewhat larger than each, at the image's edge clamped.

    Args:
        images: ``[B, 3, H, W]``.
        boxes: ``[B, K, 4]`` xyxy in their pixels.
    """
    height, width = images.shape[2:]
    factors, count = _RING
    side = torch.arange(count // 4) * (8.0 / count) - 1 + 4 / count  # -1..1, the middles of equal parts
    edge = torch.ones(count // 4)
    outline = torch.cat((torch.stack((side, edge)), torch.stack((side, -edge)), torch.stack((edge, side)),
                         torch.stack((-edge, side))), dim=1)  # fmt: skip
    points = torch.cat([outline * factor for factor in factors], dim=1).to(images.device)  # [2, R]
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2 + 1
    x = (centre[..., :1] + half[..., :1] * points[0]).long().clamp(0, width - 1)  # [B, K, R]
    y = (centre[..., 1:] + half[..., 1:] * points[1]).long().clamp(0, height - 1)
    index = (y * width + x).flatten(1)[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, index).reshape(len(boxes), 3, boxes.shape[1], -1)


def _stacked(crops: Sequence[_Crop], labels: Tensor) -> CropBank:
    areas = torch.tensor([crop.rgba.shape[0] * crop.rgba.shape[1] for crop in crops], dtype=torch.int64)
    flat = [crop.rgba.reshape(-1) for crop in crops]
    return CropBank(
        pixels=torch.cat([*flat, torch.empty(0, dtype=torch.uint8)]).view(torch.int32),
        starts=areas.cumsum(0) - areas,
        sizes=torch.tensor([crop.rgba.shape[:2] for crop in crops], dtype=torch.int64).reshape(-1, 2),
        boxes=torch.stack([crop.box for crop in crops]) if crops else torch.zeros(0, 4),
        surroundings=torch.stack([crop.surroundings for crop in crops]) if crops else torch.zeros(0, 6),
        labels=labels,
    )

"""Mosaics whose tiles are scaled so that object sizes follow a stated distribution."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detframe.augment.base import BatchAugmentation
from detframe.augment.facts import DeploymentFacts
from detframe.augment.geometry import Layout, Warp, finish, windows
from detframe.boxes import box_area
from detframe.deployment import site_distribution
from detframe.letterbox import PAD_VALUE
from detframe.structures import Batch, Targets, TrainingObjects

_BINS = 48  # of log size
_STEP = 0.05  # of the weights, in a batch
_FIRST_STEPS = torch.linspace(0.5, _STEP, 100).tolist()  # before the first batch
_EXAMPLES = 1024  # training images that these see the boxes of
_TRIED = 64  # mosaics in each of these steps
_LARGEST_WEIGHT = 8.0  # beyond, a size is as good as excluded, and would take long to come back


class Mosaic(BatchAugmentation):
    """Lays images of the batch beside each other, each at a scale that keeps object sizes to a stated distribution.

    The usual mosaic draws each tile's scale from a range, so that objects come out at sizes that the deployment never
    shows, many of them too small to be recognised. Here several scales and crops are drawn for each tile, and one of
    them is taken with a probability proportional to ``exp(sum of weight[size])`` over the objects that it leaves. The
    weights rise for sizes that have been too rare so far and fall for the others. Of all distributions of scales that
    give the wanted object sizes, this form is the one nearest to the range's own (maximum entropy).

    Args:
        grid: Tiles a side, 2 or 3.
        object_sizes: What the square root of the objects' area follows afterwards: ``data`` is the training split's own
            distribution; a range in pixels is logarithmically uniform; null leaves it to chance, as usual mosaics do.
        profile: A file of `detframe profile` whose object sizes are followed instead. They are in the pixels of its
            images, which must be those that training sees, none of them resized.
        scale: Range of the tiles' scale; 1 is the image as the loader gives it.
        cache: So many images of earlier batches may be tiles too, which gives small batches more variety.
        candidates: Scales and crops drawn for each tile.
        p: Share of the images that become a mosaic, 0..1.

    Raises:
        ValueError: ``grid`` is neither 2 nor 3, or a range is not one.
    """

    edges: Tensor  # [_BINS - 1] limits of the bins, log pixels
    target: Tensor  # [_BINS] wanted share of each
    weights: Tensor  # [_BINS]

    def __init__(
        self,
        grid: int = 2,
        object_sizes: Literal["data"] | tuple[float, float] | None = "data",
        profile: Path | None = None,
        scale: tuple[float, float] = (0.4, 1.6),
        cache: int = 0,
        candidates: int = 16,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        if grid not in (2, 3):
            raise ValueError(f"Mosaic: `grid` is {grid}; tiles are laid 2 x 2 or 3 x 3.")
        for name, limits in (("scale", scale), ("object_sizes", object_sizes)):
            if isinstance(limits, tuple) and not 0 < limits[0] < limits[1]:
                raise ValueError(f"Mosaic: `{name}` is {limits}; give a smaller and a larger value above 0.")
        self.grid = grid
        self.object_sizes = object_sizes
        self.profile = profile
        self.scale = scale
        self.candidates = candidates
        self.register_buffer("edges", torch.zeros(_BINS - 1), persistent=False)
        self.register_buffer("target", torch.full((_BINS,), 1 / _BINS), persistent=False)
        self.register_buffer("weights", torch.zeros(_BINS), persistent=False)
        self._pool = _Pool(cache)
        self._examples = torch.zeros(0, 0, 4)
        self._fitted = False
        if profile is not None:
            self._aim_at(site_distribution(profile, "object_size").at(torch.linspace(0, 1, 10_000)).log())
        elif isinstance(object_sizes, tuple):
            self._aim_at(torch.linspace(math.log(object_sizes[0]), math.log(object_sizes[1]), 10_000))

    def prepare(self, objects: TrainingObjects) -> None:
        """Take the wanted sizes from the training data where they are to be the data's own, and boxes to try with."""
        if not len(objects.boxes):
            return
        if self.object_sizes == "data" and self.profile is None:
            self._aim_at(box_area(objects.boxes).sqrt().log())
        images = torch.unique(objects.images)
        images = images[torch.linspace(0, len(images) - 1, min(_EXAMPLES, len(images))).long()]
        boxes = [objects.boxes[objects.images == image] for image in images]
        self._examples = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)  # [M, N, 4]
        self._fitted = False

    def _aim_at(self, log_sizes: Tensor) -> None:
        low, high = float(log_sizes.min()) - math.log(2), float(log_sizes.max()) + math.log(2)
        self.edges = torch.linspace(low, high, _BINS + 1)[1:-1]
        counts = torch.bincount(torch.bucketize(log_sizes, self.edges), minlength=_BINS)
        self.target = counts / counts.sum()
        self.weights = torch.zeros(_BINS)
        self._fitted = False

    def augment(self, batch: Batch) -> Batch:
        """See :class:`BatchAugmentation`; objects of which little is left become ignore regions."""
        return finish(self.lay(batch), min_visible=0.3, min_pixels=2.0, fill=PAD_VALUE / 255, perspective=False).batch

    def lay(self, batch: Batch, min_visible: float = 0.3, min_pixels: float = 2.0) -> Layout:
        """Choose what each tile shows of which image, without reading a pixel.

        Args:
            batch: Images and boxes.
            min_visible: An object of which a tile shows less than this share does not count as one, 0..1.
            min_pixels: Nor does one with a side of fewer pixels.
        """
        device = batch.images.device
        if self.edges.device != device:
            self.to(device)
        count, (height, width) = len(batch.images), batch.images.shape[2:]
        own = self._pool.put(batch)
        gate = self.forward_parameters(batch.images.shape)["batch_prob"] > 0.5
        sources = torch.randint(self._pool.filled, (count, self.grid**2))
        shows_own = torch.arange(self.grid**2) == torch.randint(self.grid**2, (count, 1))  # [B, T], one tile each
        sources = torch.where(shows_own, own[:, None], sources)
        gate, sources, shows_own = (v.to(device, non_blocking=True) for v in (gate, sources, shows_own))
        rows = self._pool.rows(sources)
        shown = (gate[:, None] | shows_own).repeat_interleave(rows.valid.shape[1] // self.grid**2, dim=1)  # [B, T * N]
        rows = rows._replace(valid=rows.valid & shown)
        limits = (min_visible, min_pixels)
        if not self._fitted and self._controls:
            self._fit(height, width, limits)
        boxes = rows.boxes.view(count, self.grid**2, -1, 4)
        live = (rows.valid & ~rows.ignore & gate[:, None]).view(boxes.shape[:3])
        placed, lines = self._place(boxes, live, height, width, limits, _STEP)
        canvas = torch.eye(3, device=device).expand(count, 3, 3)
        warp = _without(Warp(sources, placed, lines, canvas), gate, shows_own)
        return Layout(self._pool.images, warp, _with_rows(batch, rows))

    @property
    def _controls(self) -> bool:
        return self.object_sizes is not None or self.profile is not None

    def _fit(self, height: int, width: int, limits: tuple[float, float]) -> None:
        """Bring the weights near to what they are to be, on boxes alone, before the first pixel is read."""
        for step in _FIRST_STEPS if len(self._examples) else []:
            boxes = self._examples[torch.randint(len(self._examples), (_TRIED, self.grid**2))].to(self.edges.device)
            self._place(boxes, (boxes[..., 2:] > boxes[..., :2]).all(dim=-1), height, width, limits, step)
        self._fitted = True

    def _place(
        self, boxes: Tensor, live: Tensor, height: int, width: int, limits: tuple[float, float], step: float
    ) -> tuple[Tensor, Tensor]:
        """Draw lines and candidates, and take one candidate for each tile.

        Args:
            boxes: ``[B, T, N, 4]`` of the tiles' images.
            live: ``[B, T, N]`` bool, which of them count.
            height: Of the canvas in pixels.
            width: Likewise.
            limits: ``min_visible`` and ``min_pixels``.
            step: By which the weights learn from it.

        Returns:
            Matrices ``[B, T, 3, 3]`` and lines ``[B, 2, grid - 1]``.
        """
        device = boxes.device
        lines = self._lines(len(boxes), height, width)
        bounds = windows(lines).clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        candidates = self._candidates(bounds, height, width).to(device, non_blocking=True)
        bounds, lines = bounds.to(device, non_blocking=True), lines.to(device, non_blocking=True)
        return self._choose(boxes, live, bounds, candidates, limits, step), lines

    def contradictions(self, facts: DeploymentFacts, objects: TrainingObjects | None) -> list[tuple[str, str]]:
        """See :class:`BatchAugmentation`."""
        least = facts.min_object_px
        if least is None or self.object_sizes == "data" or self.profile is not None:
            return []
        if self.object_sizes is None:
            wrong = "its scales make objects of any size; set `object_sizes`"
        elif self.object_sizes[0] < least:
            wrong = f"it makes objects of {self.object_sizes[0]:g} pixels; raise the lower end of `object_sizes`"
        else:
            return []
        return [(f"min_object_px: {least:g}", wrong)]

    def _lines(self, count: int, height: int, width: int) -> Tensor:
        """Lines between tiles, ``[B, 2, grid - 1]``: in the middle two fifths of 2 x 2, about each third of 3 x 3."""
        lines = torch.arange(1, self.grid) / self.grid + (torch.rand(count, 2, self.grid - 1) - 0.5) * 0.8 / self.grid
        return lines * torch.tensor([width, height])[:, None]

    def _candidates(self, bounds: Tensor, height: int, width: int) -> Tensor:
        """Scale and offset ``(scale, x, y)`` of each tile's candidates, ``[B, T, K, 3]``.

        A scaled image that is larger than its window covers it; one that is smaller lies inside.
        """
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        shape = (*bounds.shape[:2], self.candidates)
        scale = (low + torch.rand(shape) * (high - low)).exp()
        x1, y1, x2, y2 = bounds[:, :, None].unbind(-1)  # [B, T, 1]
        x = x1 + torch.rand(shape) * (x2 - x1 - scale * width)
        y = y1 + torch.rand(shape) * (y2 - y1 - scale * height)
        return torch.stack((scale, x, y), dim=-1)

    def _choose(
        self,
        boxes: Tensor,
        live: Tensor,
        bounds: Tensor,
        candidates: Tensor,
        limits: tuple[float, float],
        step: float,
    ) -> Tensor:
        """Matrices ``[B, T, 3, 3]`` of the candidates taken; the weights learn from what they leave."""
        count, tiles = bounds.shape[:2]
        min_visible, min_pixels = limits
        scale, offset = candidates[..., None, :1], candidates[..., None, 1:]  # [B, T, K, 1, ...]
        moved = boxes[:, :, None] * scale + torch.cat((offset, offset), dim=-1)
        x1, y1, x2, y2 = moved.unbind(-1)  # [B, T, K, N]
        area = (x2 - x1) * (y2 - y1)
        left, top, right, bottom = bounds[:, :, None, None].unbind(-1)
        wide = (x2.minimum(right) - x1.maximum(left)).clamp(min=0)
        high = (y2.minimum(bottom) - y1.maximum(top)).clamp(min=0)
        stays = (wide * high >= min_visible * area) & (wide.minimum(high) >= min_pixels) & live[:, :, None]
        bins = torch.bucketize((wide * high).clamp(min=1e-6).sqrt().log(), self.edges)
        merit = (self.weights[bins] * stays).sum(-1)  # [B, T, K]
        luck = -torch.empty(merit.shape).exponential_().log()  # Gumbel: the largest sum is a draw by softmax
        taken = (merit + luck.to(merit.device, non_blocking=True)).argmax(dim=2, keepdim=True)  # [B, T, 1]
        if self._controls:
            expand = taken[..., None].expand(-1, -1, -1, stays.shape[-1])
            self._learn(bins.gather(2, expand), stays.gather(2, expand).float(), step)
        best = candidates.gather(2, taken[..., None].expand(-1, -1, -1, 3))[:, :, 0]  # [B, T, 3]
        matrices = torch.eye(3, device=best.device).repeat(count, tiles, 1, 1)
        matrices[..., 0, 0] = matrices[..., 1, 1] = best[..., 0]
        matrices[..., :2, 2] = best[..., 1:]
        return matrices

    def _learn(self, bins: Tensor, counts: Tensor, step: float) -> None:
        """A step towards the weights of the wanted sizes, by the sizes ``bins`` that a batch came out with."""
        seen = torch.zeros_like(self.weights).scatter_add_(0, bins.flatten(), counts.flatten())
        total = seen.sum()
        a_tile = total / (counts.sum(-1) > 0).sum().clamp(min=1)  # objects that share a tile's scale move together
        lack = (self.target - seen / total.clamp(min=1)) / (self.target + 1 / _BINS)
        change = torch.where(total > 0, step * lack / a_tile.clamp(min=1), 0.0)
        self.weights = (self.weights + change).clamp(-_LARGEST_WEIGHT, _LARGEST_WEIGHT)


class _Rows(NamedTuple):
    """What a batch knows of each of its objects, ``[B, N, ...]``, as in Targets and Batch."""

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    valid: Tensor
    original_boxes: Tensor
    areas: Tensor
    annotation_ids: Tensor


def _rows_of(batch: Batch) -> _Rows:
    return _Rows(*batch.targets, batch.original_boxes, batch.areas, batch.annotation_ids)


def _with_rows(batch: Batch, rows: _Rows) -> Batch:
    boxes, labels, ignore, valid, original_boxes, areas, annotation_ids = rows
    return batch._replace(
        targets=Targets(boxes, labels, ignore, valid),
        original_boxes=original_boxes,
        areas=areas,
        annotation_ids=annotation_ids,
    )


class _Pool:
    """The images that tiles may show: those of the batch, and a ring of ``cache`` earlier ones beside them."""

    def __init__(self, cache: int) -> None:
        self.cache = cache
        self.filled = 0
        self.images = torch.zeros(3, 0, 0, 0)  # [3, M, H, W]
        self._rows: _Rows | None = None
        self._next = 0

    def put(self, batch: Batch) -> Tensor:
        """Take a batch in, and tell the positions of its images, ``[B]`` on the CPU."""
        count = len(batch.images)
        images = batch.images.transpose(0, 1)
        rows = _rows_of(batch)
        if not self.cache:
            self.images, self._rows, self.filled = images, rows, count
            return torch.arange(count)
        slots = self.images.shape[1]
        if self._rows is None or self.images.shape[2:] != images.shape[2:] or slots < count:
            slots, self.filled, self._next = count + self.cache, 0, 0
            self.images = images.new_zeros(3, slots, *images.shape[2:])
            self._rows = _Rows(*(values.new_zeros(slots, *values.shape[1:]) for values in rows))
        most = max(self._rows.boxes.shape[1], rows.boxes.shape[1])
        self._rows = _Rows(*(_padded(values, most) for values in self._rows))
        positions = (self._next + torch.arange(count)) % slots
        self.images[:, positions] = images
        for kept, new in zip(self._rows, rows, strict=True):
            kept[positions] = _padded(new, most)
        self._next = int(positions[-1]) + 1
        self.filled = min(self.filled + count, slots)
        return positions

    def rows(self, sources: Tensor) -> _Rows:
        """The objects of the images ``sources [B, T]``, side by side: ``[B, T * N, ...]``."""
        assert self._rows is not None
        return _Rows(*(v[sources].reshape(len(sources), -1, *v.shape[2:]) for v in self._rows))


def _padded(values: Tensor, rows: int) -> Tensor:
    """``[B, N, ...]`` with padding rows of zeros up to ``rows``."""
    missing = rows - values.shape[1]
    return torch.cat((values, values.new_zeros(len(values), missing, *values.shape[2:])), dim=1) if missing else values


def _without(warp: Warp, gate: Tensor, shows_own: Tensor) -> Warp:
    """The warp where ``gate [B]`` is on; elsewhere the tile that shows the image itself shows it whole and unmoved."""
    count, tiles = shows_own.shape
    side = round(tiles**0.5)
    by_row = shows_own.view(count, side, side)
    passed = torch.stack((by_row.any(1), by_row.any(2)), dim=1).cumsum(2)[..., :-1] > 0  # [B, (x, y), lines]
    lines = torch.where(passed, torch.inf, -torch.inf)
    return warp._replace(
        tiles=torch.where(gate[:, None, None, None], warp.tiles, torch.eye(3, device=gate.device)),
        lines=torch.where(gate[:, None, None], warp.lines, lines),
    )

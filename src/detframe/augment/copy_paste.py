"""Copy-paste that needs no masks: rare objects into images that lack them, where they could have been."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from detframe.augment.base import BatchAugmentation
from detframe.augment.crop_bank import LARGEST, Blend, CropBank, build_bank, ring_pixels
from detframe.augment.facts import DeploymentFacts, PolicyError
from detframe.augment.paste_rate import PasteRate
from detframe.boxes import box_area, intersection
from detframe.structures import Batch, Targets, TrainingObjects

_ONE_BY_ONE = ("cpu",)  # devices where a small window for each is quicker than a large one for all


class CopyPaste(BatchAugmentation):
    """Pastes objects of the training data into other images, the rarest classes most (Ghiasi et al. 2021).

    An object is cut out by its mask where the data has one, otherwise by a soft outline in its box. It keeps about its
    size, goes where the surroundings resemble those it comes from, takes on their brightness, and hides little of what
    is there; where no place will do, it is not pasted. Classes are drawn by inverse frequency. How often is controlled:
    from the class counts at first, and then by counting what comes in and what leaves.

    Pasted objects are rows of the targets like others, with area 0, annotation id -1 and no original box.

    Args:
        share: Of all live boxes that leave, the share that the rarest class of which there are crops is to have, 0..1.
            null is 0.1, but no more than half of what it would have if all classes were alike, nor than half the way
            from what it has to what the slots can reach.
        slots: Most objects pasted into one image.
        scale: Range of a random factor of an object's size.
        mirror: Mirror every second object; only right where the mirror image occurs.
        max_hidden: Share of a live object's box that pastes may hide in all, 0..1. Ignore boxes are not touched.
        max_shift: Most that a channel is made lighter or darker to fit its surroundings, 0..1.
        candidates: Random places looked at for each object.
        bank_size: Most crops kept of each class.
        blend: Outline of objects without a mask: an ``ellipse`` in the box, or the ``rectangle`` itself.
        p: Share of the images that it changes, 0..1.
    """

    def __init__(
        self,
        share: float | None = None,
        slots: int = 4,
        scale: tuple[float, float] = (0.8, 1.25),
        mirror: bool = False,
        max_hidden: float = 0.3,
        max_shift: float = 0.1,
        candidates: int = 16,
        bank_size: int = 200,
        blend: Blend = "ellipse",
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.share = share
        self.slots = slots
        self.scale = scale
        self.mirror = mirror
        self.max_hidden = max_hidden
        self.max_shift = max_shift
        self.candidates = candidates
        self.bank_size = bank_size
        self.blend = blend
        self.rate: PasteRate | None = None
        self._bank: CropBank | None = None
        self._crops: _Drawable | None = None

    def prepare(self, objects: TrainingObjects) -> None:
        """Cut out the crops, with a progress bar, and work out how often to paste.

        Raises:
            PolicyError: ``share`` is more than the slots can reach.
        """
        bank, notes = build_bank(objects, self.bank_size, self.blend)
        for note in notes:
            rank_zero_info(f"Copy-paste: {note}")
        counts = objects.labels.bincount(minlength=len(objects.class_names)).numpy()
        crops = np.bincount(bank.labels.numpy(), minlength=len(counts))
        self._bank = bank
        self._crops = _Drawable.of(bank, counts, crops)
        self.rate = None
        if not crops.any():
            rank_zero_info("Copy-paste: there is no crop, and nothing is pasted.")
            return
        chance = np.diff(self._crops.chances, prepend=0.0)
        rarest = int(np.argmax(chance))
        before, reach = PasteRate.reachable(counts, objects.image_count, rarest, chance[rarest], self.slots * self.p)
        share = self.share
        if share is None:
            share = min(0.1, 0.5 / len(counts), (before + max(before, reach)) / 2)
        name = objects.class_names[rarest]
        if share <= before:
            rank_zero_info(f"Copy-paste: the rarest class, {name}, has {before:.1%} of the boxes; nothing is pasted.")
            return
        if share >= reach:
            raise PolicyError(
                f"CopyPaste: a share of {share:.1%} cannot be reached. With {self.slots} slots and classes drawn by "
                f"inverse frequency, {name} can rise from {before:.1%} to at most {reach:.1%} of the boxes; "
                "ask for less, or raise `slots`."
            )
        self.rate = PasteRate(share, counts, objects.image_count, rarest, chance[rarest], self.slots * self.p)

    @torch.no_grad()
    def augment(self, batch: Batch) -> Batch:
        """The batch with objects pasted in ``slots`` further rows of targets; as it is where nothing can be pasted.

        Raises:
            RuntimeError: It has not seen the training data.
        """
        if self._bank is None or self._crops is None:
            raise RuntimeError("CopyPaste has no crops; call `prepare` with the training objects first.")
        if self.rate is None:
            return batch
        device = batch.images.device
        if self._bank.pixels.device != device:
            self._bank = CropBank(*(part.to(device) for part in self._bank))
        height, width = batch.images.shape[2:]
        draws = self._draw(len(batch.images), height, width)
        plan = _Plan(*(part.to(device, non_blocking=True) for part in draws.plan))

        before = batch.targets
        live = before.valid & ~before.ignore
        rate = self.rate.before(live, before.labels)
        gate = self.forward_parameters(tuple(batch.images.shape))["batch_prob"].to(device, non_blocking=True) > 0.5
        tried = (plan.gates < rate) & gate[:, None]
        targets = _with_rows(before, self.slots)
        images = batch.images.clone(memory_format=torch.contiguous_format)
        hidden = torch.zeros_like(targets.boxes[..., 0])  # [B, N + slots] square pixels
        for slot in range(self.slots):
            crop = plan.crops[:, slot]
            places = plan.places[:, slot]  # [B, C, 4]
            best, shift, overlap, fits = self._choose(images, targets, hidden, places, self._bank.surroundings[crop])
            box = places.take_along_dim(best[:, None, None], dim=1)[:, 0]
            accepted = tried[:, slot] & plan.fit[:, slot] & fits
            hidden += overlap * accepted[:, None]
            row = before.boxes.shape[1] + slot
            targets.boxes[:, row] = box * accepted[:, None]
            targets.labels[:, row] = self._bank.labels[crop] * accepted
            targets.valid[:, row] = accepted
            look = _Look(crop, plan.flips[:, slot], shift, accepted)
            for part in _parts(accepted):
                room = draws.room[part, slot].max(axis=0)
                crops = _Look(*(value[part] for value in look))
                _paste(images[part], self._bank, crops, box[part], (room[0], room[1]), (room[2], room[3]))
        pasted = targets.valid[:, before.boxes.shape[1] :]
        self.rate.after(tried, pasted, targets.labels[:, before.boxes.shape[1] :])
        return batch._replace(
            images=images,
            targets=targets,
            original_boxes=functional.pad(batch.original_boxes, (0, 0, 0, self.slots)),
            areas=functional.pad(batch.areas, (0, self.slots)),
            annotation_ids=functional.pad(batch.annotation_ids, (0, self.slots), value=-1),
        )

    def contradictions(self, facts: DeploymentFacts, objects: TrainingObjects | None) -> list[tuple[str, str]]:
        """See :class:`BatchAugmentation`."""
        if self.mirror and facts.mirror is False:
            return [
                ("mirror: false", "it mirrors objects, which the deployment never shows; set its `mirror` to false")
            ]
        return []

    def _draw(self, count: int, height: int, width: int) -> _Draws:
        """Everything random about a batch, in NumPy: sizes of windows are read from it without asking the device."""
        assert self._crops is not None
        crops = self._crops
        shape = (count, self.slots)
        label = np.searchsorted(crops.chances, _uniform(*shape), side="right").clip(max=len(crops.chances) - 1)
        item = crops.first[label] + (_uniform(*shape) * crops.number[label]).astype(np.int64)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * _uniform(*shape, 1)
        image = np.array([width, height])
        # A crop that is near the largest that may be pasted is not enlarged beyond it.
        factor = np.minimum(factor, (LARGEST * image / crops.objects[item]).min(axis=-1, keepdims=True))
        fit = factor[..., 0] >= self.scale[0]
        # Whole pixels: at a factor of 1 the pixels are the crop's own, and a box is exactly what is seen.
        size = np.minimum(np.maximum((crops.objects[item] * factor).round(), 1), image)
        order = np.argsort(-size.prod(axis=-1), axis=1)  # large first: others then need small windows only
        item, fit = np.take_along_axis(item, order, 1), np.take_along_axis(fit, order, 1)
        size = np.take_along_axis(size, order[..., None], 1)
        corner = np.floor(_uniform(*shape, self.candidates, 2) * (image - size + 1)[:, :, None])
        places = np.concatenate((corner, corner + size[:, :, None]), axis=-1).astype(np.float32)
        flips = _uniform(*shape) < (0.5 if self.mirror else 0.0)
        # Of crops that do not fit nothing is seen, and they need no room.
        reach = np.ceil(crops.sizes[item] * size / crops.objects[item] * fit[..., None]).astype(np.int64) + 2
        canvas = np.maximum(crops.sizes[item] * fit[..., None], 1)
        room = np.concatenate((np.minimum(reach, image)[..., ::-1], canvas[..., ::-1]), axis=-1)
        plan = _Plan(*map(torch.from_numpy, (item, places, flips, _uniform(*shape), fit)))
        return _Draws(plan, room)

    def _choose(
        self, images: Tensor, targets: Targets, hidden: Tensor, places: Tensor, surroundings: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The place for one crop in each image.

        Args:
            images: ``[B, 3, H, W]``.
            targets: With M rows.
            hidden: ``[B, M]`` square pixels of each row's box that earlier pastes hide.
            places: ``[B, C, 4]`` candidates.
            surroundings: ``[B, 6]`` of the crops.

        Returns:
            Which candidate ``[B]``, the shift of its colours ``[B, 3]``, what it hides of each row ``[B, M]`` in square
            pixels, and whether it will do ``[B]``.
        """
        overlap = intersection(places, targets.boxes)  # [B, C, M]
        share = (overlap + hidden[:, None]) / box_area(targets.boxes).clamp(min=1e-6)[:, None]
        limit = torch.where(targets.ignore, 0.0, self.max_hidden)[:, None]
        allowed = (overlap <= 0) | (share <= limit) | ~targets.valid[:, None]
        allowed &= (overlap <= 0) | ~(targets.ignore & targets.valid)[:, None]
        fits = allowed.all(dim=-1)  # [B, C]
        around = ring_pixels(images, places)  # [B, 3, C, R]
        mean, deviation = around.mean(dim=-1).transpose(1, 2), around.std(dim=-1).transpose(1, 2)  # [B, C, 3]
        shift = mean - surroundings[:, None, :3]
        unlike = shift.abs().mean(dim=-1) + (deviation - surroundings[:, None, 3:]).abs().mean(dim=-1)
        best = torch.where(fits, unlike, unlike + 10).argmin(dim=1)  # differences end at 2
        pick = best[:, None, None]
        return (
            best,
            shift.take_along_dim(pick, dim=1)[:, 0].clamp(-self.max_shift, self.max_shift),
            overlap.take_along_dim(pick, dim=1)[:, 0],
            fits.take_along_dim(best[:, None], dim=1)[:, 0],
        )


class _Drawable(NamedTuple):
    """What the draws of crops need to know, in NumPy."""

    chances: NDArray[np.float64]  # [C] the chance of a class with this label or a lower one
    first: NDArray[np.int64]  # [C] in the bank
    number: NDArray[np.int64]  # [C] of crops
    objects: NDArray[np.float64]  # [K, 2] (width, height)
    sizes: NDArray[np.int64]  # [K, 2] (width, height) of the crop, with what is around

    @staticmethod
    def of(bank: CropBank, counts: NDArray[np.int64], crops: NDArray[np.int64]) -> _Drawable:
        """Of a bank with ``crops [C]`` of each class, whose classes have ``counts [C]`` objects."""
        weights = np.where(crops > 0, 1 / counts.clip(min=1), 0.0)
        boxes = bank.boxes.double().numpy()
        return _Drawable(
            chances=np.cumsum(weights) / max(weights.sum(), 1e-300),
            first=np.cumsum(crops) - crops,
            number=crops,
            objects=boxes[:, 2:] - boxes[:, :2],
            sizes=bank.sizes.numpy()[:, ::-1].copy(),
        )


class _Plan(NamedTuple):
    """What is drawn for the slots of a batch, the largest object of an image in its first slot."""

    crops: Tensor  # [B, S] int64
    places: Tensor  # [B, S, C, 4] float32, candidates in whole pixels
    flips: Tensor  # [B, S] bool
    gates: Tensor  # [B, S] float32, 0..1: pasted where it is below the rate
    fit: Tensor  # [B, S] bool, False for crops too large for these images


class _Draws(NamedTuple):
    plan: _Plan  # on the CPU
    room: NDArray[np.int64]  # [B, S, 4] (height, width) of the window that an object needs, and of its crop


class _Look(NamedTuple):
    """What one slot pastes, an object for each image."""

    crops: Tensor  # [B] int64, in the bank
    flips: Tensor  # [B] bool
    shift: Tensor  # [B, 3] added to its colours
    visible: Tensor  # [B] bool


def _parts(accepted: Tensor) -> list[slice]:
    """Which images to paste into together: all, or on a CPU, which is not waited for, each that gets an object."""
    if accepted.device.type not in _ONE_BY_ONE:
        return [slice(0, len(accepted))]
    return [slice(i, i + 1) for i in torch.nonzero(accepted).flatten().tolist()]


def _uniform(*shape: int) -> NDArray[np.float32]:
    """Random numbers 0..1 from torch's global generator."""
    numbers: NDArray[np.float32] = torch.rand(shape).numpy()
    return numbers


def _with_rows(targets: Targets, count: int) -> Targets:
    """Targets with ``count`` more rows of padding."""
    return Targets(
        boxes=functional.pad(targets.boxes, (0, 0, 0, count)),
        labels=functional.pad(targets.labels, (0, count)),
        ignore=functional.pad(targets.ignore, (0, count)),
        valid=functional.pad(targets.valid, (0, count)),
    )


def _paste(
    images: Tensor, bank: CropBank, look: _Look, boxes: Tensor, window: tuple[int, int], canvas: tuple[int, int]
) -> None:
    """Blend an object into each image, in place.

    Args:
        images: ``[B, 3, H, W]``, changed within one window in each.
        bank: Of the crops.
        look: Which of them, and how.
        boxes: ``[B, 4]`` where the objects go.
        window: (height, width) of the part of the image that is read and written.
        canvas: (height, width) that the crops are laid out in.
    """
    height, width = images.shape[2:]
    inside = bank.boxes[look.crops]
    side = inside[:, 2:] - inside[:, :2]
    scale = (boxes[:, 2:] - boxes[:, :2]) / side
    sizes = bank.sizes[look.crops]
    left = torch.where(look.flips, sizes[:, 1] - inside[:, 2], inside[:, 0]) * scale[:, 0]
    top = inside[:, 1] * scale[:, 1]
    columns = _window(boxes[:, 0] - left, window[1], width)  # [B, w]
    rows = _window(boxes[:, 1] - top, window[0], height)  # [B, h]

    across = (columns + 0.5 - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1])  # 0..1 in the object
    across = torch.where(look.flips[:, None], 1 - across, across)
    down = (rows + 0.5 - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2])
    x = (inside[:, :1] + across * side[:, :1]) * (2 / canvas[1]) - 1
    y = (inside[:, 1:2] + down * side[:, 1:]) * (2 / canvas[0]) - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1)  # [B, h, w, 2]
    sampled = functional.grid_sample(_laid_out(bank, look, canvas), grid, align_corners=False)  # [B, 4, h, w]

    index = (rows[:, :, None] * width + columns[:, None]).flatten(1)[:, None].expand(-1, 3, -1)
    flat = images.flatten(2)  # a view
    blended = flat.gather(2, index).unflatten(2, window).mul_(1 - sampled[:, 3:]).add_(sampled[:, :3])
    flat.scatter_(2, index, blended.flatten(2))


def _window(start: Tensor, length: int, limit: int) -> Tensor:
    """``length`` pixels from ``start [B]`` on, or so that they end at ``limit``; ``[B, length]`` int64."""
    first = start.floor().long().clamp(0, limit - length)
    return first[:, None] + torch.arange(length, device=start.device)


def _laid_out(bank: CropBank, look: _Look, canvas: tuple[int, int]) -> Tensor:
    """Crops in the upper left of canvases of one size, ``[B, 4, h, w]``: RGB times alpha, and alpha; 0..1.

    Colours come multiplied by alpha, so that what lies outside a crop does not bleed into its edge.
    """
    row = torch.arange(canvas[0], device=look.crops.device)[:, None]
    column = torch.arange(canvas[1], device=look.crops.device)
    sizes = bank.sizes[look.crops][:, :, None, None]
    there = (row < sizes[:, 0]) & (column < sizes[:, 1])  # [B, h, w]
    index = bank.starts[look.crops][:, None, None] + row * sizes[:, 1] + column
    packed: Tensor = bank.pixels[torch.where(there, index, 0)]
    rgba: Tensor = (
        packed.view(torch.uint8).unflatten(2, (canvas[1], 4)).permute(0, 3, 1, 2).contiguous().float().div_(255)
    )
    # In place, as these are the larger part of what pasting costs on a CPU.
    rgba[:, 3].mul_(there & look.visible[:, None, None])
    rgba[:, :3].add_(look.shift[:, :, None, None]).clamp_(0, 1).mul_(rgba[:, 3:])
    return rgba

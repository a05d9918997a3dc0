"""A policy: Kornia's operators and ours on a batch, with boxes, ignore flags and padding that follow the pixels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import kornia.augmentation as K  # noqa: N812 - the name that Kornia's own documentation uses
import torch
from kornia.augmentation import AugmentationBase2D, GeometricAugmentationBase2D
from torch import Tensor

from detframe.augment.base import BatchAugmentation
from detframe.augment.color import RandomColorMatrix
from detframe.augment.facts import DeploymentFacts, Finding, PolicyError
from detframe.augment.geometry import (
    Layout,
    Settled,
    drawn_matrices,
    finish,
    from_pixel_centres,
    lay_out,
    moved,
    settle,
    still,
    warp_boxes,
)
from detframe.augment.lint import find_contradictions
from detframe.augment.mosaic import Mosaic
from detframe.augment.photometric import PhotometricAugmentation
from detframe.letterbox import PAD_VALUE
from detframe.structures import Batch, TrainingObjects

_log = logging.getLogger(__name__)

Operator = AugmentationBase2D | BatchAugmentation

_COMPOSED = (
    K.RandomAffine,
    K.RandomHorizontalFlip,
    K.RandomPerspective,
    K.RandomRotation,
    K.RandomRotation90,
    K.RandomShear,
    K.RandomTranslate,
    K.RandomVerticalFlip,
)
"""Operators that are a homography of the whole image and keep its size: composed with their neighbours."""

_KEEPS_THE_RANGE = (PhotometricAugmentation, RandomColorMatrix)
"""Operators that give 0..1 by themselves: to clamp once more would cost as much as some of them do."""

_REFUSED = {
    K.RandomThinPlateSpline: "moves pixels and leaves their boxes behind (IoU 0.51)",
    K.RandomFisheye: "moves pixels and leaves their boxes behind (IoU 0.27)",
    K.RandomElasticTransform: "moves pixels and leaves their boxes behind (IoU 0.92)",
    K.RandomErasing: "keeps the boxes of objects that are gone; take detframe.augment.erasing.Erasing",
}


class AugmentationPipeline:
    """Applies operators to the images of a training batch, in order, on the device where they are.

    Neighbouring flips, affine moves and perspectives, and a mosaic before them, read the pixels once, bilinearly; where
    no image shows anything is the grey of the letterbox's margin. An operator with another ``padding_mode`` runs alone.

    Args:
        operators: Kornia's augmentations by class_path, and detframe's, each image with parameters of its own.
        until: Share of the training after which they rest, so that the last epochs see images as they are, 0..1; or the
            same by the operators' class names, where those that are not named go on to the end.
        min_visible: An object that keeps less than this share of its area becomes an ignore region, so that a half-seen
            object is not taught as background, 0..1.
        min_pixels: So does one with a side of fewer pixels.
        deployment: What is known about the images of the deployment; the operators are held against it before training.
        lint: What a contradiction does then: ``error`` stops, ``warn`` names it, ``off`` looks for none.

    Raises:
        ValueError: An operator cannot carry boxes, or ``until`` names one that is not there.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        until: float | dict[str, float] = 0.85,
        min_visible: float = 0.3,
        min_pixels: float = 2.0,
        deployment: DeploymentFacts | None = None,
        lint: Literal["error", "warn", "off"] = "warn",
    ) -> None:
        self.min_visible = min_visible
        self.min_pixels = min_pixels
        self.deployment = deployment
        self.lint = lint
        self.operators = list(operators)
        self.names = _names(operators)
        self._until = _ends(self.names, until)
        self._ignored: dict[str, Tensor] = {}
        self._gone: dict[str, Tensor] = {}
        for operator in operators:
            _refuse_what_moves_no_boxes(operator)

    def prepare(self, objects: TrainingObjects) -> None:
        """Hold the operators against the facts and let them look at the training data, once, before the first batch.

        Raises:
            PolicyError: They contradict the facts, and ``lint`` is ``error``.
        """
        findings = self.findings(objects) if self.lint != "off" else []
        if findings:
            message = "The augmentation contradicts the deployment:" + "".join(f"\n  {finding}" for finding in findings)
            if self.lint == "error":
                raise PolicyError(message)
            _log.warning(message)
        self.show(objects)

    def show(self, objects: TrainingObjects) -> None:
        """Let the operators look at the training data."""
        for operator in self.operators:
            if isinstance(operator, BatchAugmentation):
                operator.prepare(objects)

    def findings(self, objects: TrainingObjects | None = None) -> list[Finding]:
        """What contradicts the declared facts about the deployment; nothing where none are declared."""
        if self.deployment is None:
            return []
        return find_contradictions(list(zip(self.names, self.operators, strict=True)), self.deployment, objects)

    @torch.no_grad()
    def __call__(self, batch: Batch, progress: float = 0.0, seed: int | None = None) -> Batch:
        """The batch with other pixels and boxes.

        Args:
            batch: ``images`` are float 0..1, before and after.
            progress: Share of the training that is done, 0..1.
            seed: Of this batch's random numbers, on every device; None goes on with torch's global generators.
        """
        if seed is None:
            return self._run(batch, progress)
        device = batch.images.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
            torch.manual_seed(seed)
            return self._run(batch, progress)

    def _run(self, batch: Batch, progress: float) -> Batch:
        for _, after in self.steps(batch, progress):
            batch = after
        return batch

    def steps(self, batch: Batch, progress: float = 0.0) -> Iterator[tuple[str, Batch]]:
        """Each step's name and the batch after it; operators that were composed are one step, "A + B"."""
        layout: Layout | None = None
        composed: list[str] = []
        perspective = False
        for name, operator in zip(self.names, self.operators, strict=True):
            if progress >= self._until[name]:
                continue
            joins = isinstance(operator, _COMPOSED) and not _pads_by_itself(operator)
            if layout is not None and not joins:
                batch = self._settle(composed, self._finish(layout, perspective))
                yield " + ".join(composed), batch
                layout, composed, perspective = None, [], False
            if isinstance(operator, Mosaic):
                layout = operator.lay(batch, self.min_visible, self.min_pixels)
                composed.append(name)
            elif isinstance(operator, _COMPOSED) and joins:
                layout = layout if layout is not None else lay_out(batch)
                layout = layout._replace(warp=moved(layout.warp, drawn_matrices(operator, batch.images)))
                perspective = perspective or isinstance(operator, K.RandomPerspective)
                composed.append(name)
            else:
                batch = self._alone(name, operator, batch)
                yield name, batch
        if layout is not None:
            yield " + ".join(composed), self._settle(composed, self._finish(layout, perspective))

    def _finish(self, layout: Layout, perspective: bool) -> Settled:
        return finish(layout, self.min_visible, self.min_pixels, PAD_VALUE / 255, perspective)

    def _alone(self, name: str, operator: Operator, batch: Batch) -> Batch:
        """The batch after one operator that is composed with no other."""
        if isinstance(operator, BatchAugmentation):
            return operator.augment(batch)
        images = operator(batch.images)
        if isinstance(operator, _KEEPS_THE_RANGE):
            return batch._replace(images=images)
        if not isinstance(operator, GeometricAugmentationBase2D):
            return batch._replace(images=images.clamp(0, 1))  # Kornia's noise, for one, leaves the range
        assert operator.transform_matrix is not None
        warp = moved(still(batch.images), from_pixel_centres(operator.transform_matrix.float()))
        boxes, visible = warp_boxes(batch.targets.boxes[:, None], warp, images.shape[2], images.shape[3])
        after = batch._replace(images=images.clamp(0, 1))
        return self._settle([name], settle(after, boxes[:, 0], visible[:, 0], self.min_visible, self.min_pixels))

    def _settle(self, names: Sequence[str], settled: Settled) -> Batch:
        """Count what a step took away, on the device: reading a figure here would wait for it."""
        step = " + ".join(names)
        for counts, flags in ((self._ignored, settled.ignored), (self._gone, settled.gone)):
            counts[step] = counts.get(step, torch.zeros((), dtype=torch.int64, device=flags.device)) + flags.sum()
        return settled.batch

    def counts(self) -> dict[str, int]:
        """Objects turned to ignore regions (``ignored/STEP``) and gone (``gone/STEP``) since the last call."""
        found = {f"ignored/{step}": int(count) for step, count in self._ignored.items()}
        found.update({f"gone/{step}": int(count) for step, count in self._gone.items()})
        self._ignored, self._gone = {}, {}
        return found


def _names(operators: Sequence[Operator]) -> list[str]:
    """Class names, numbered where a class occurs again."""
    seen: Counter[str] = Counter()
    names = []
    for operator in operators:
        name = type(operator).__name__
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}{seen[name]}")
    return names


def _ends(names: Sequence[str], until: float | dict[str, float]) -> dict[str, float]:
    """Share of the training after which each operator rests."""
    if not isinstance(until, dict):
        return dict.fromkeys(names, float(until))
    unknown = sorted(set(until) - set(names))
    if unknown:
        raise ValueError(f"AugmentationPipeline: `until` names {unknown[0]!r}; the operators are {', '.join(names)}.")
    return {name: until.get(name, float("inf")) for name in names}


def _refuse_what_moves_no_boxes(operator: Operator) -> None:
    """Keep out what would teach boxes that are not where the object is; measured by tests/augment/test_geometry.py."""
    for kind, reason in _REFUSED.items():
        if isinstance(operator, kind):
            raise ValueError(f"AugmentationPipeline: {kind.__name__} {reason}. Take it out of the operators.")


def _pads_by_itself(operator: Operator) -> bool:
    """Whether a Kornia operator asks for more than black beyond the border, which the warp would not do."""
    mode = operator.flags.get("padding_mode")
    return mode is not None and mode.name != "ZEROS"


def default_augmentations() -> list[Operator]:
    """Mild operators that fit most inspection images: mirror, small affine moves with scale, light colour changes."""
    return [
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(degrees=0.0, translate=(0.1, 0.1), scale=(0.7, 1.3), p=0.8),
        RandomColorMatrix(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, p=0.5),
    ]

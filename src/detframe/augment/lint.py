"""Holds a policy against what is known about the deployment: each operator is tried and measured, by no list of names.

The geometry is measured on the matrices that an operator draws, colour and blur on small test pictures, so that an
operator written elsewhere is judged like Kornia's.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from kornia.augmentation import AugmentationBase2D, GeometricAugmentationBase2D
from torch import Tensor

from detframe.augment.base import BatchAugmentation
from detframe.augment.facts import DeploymentFacts, Finding
from detframe.augment.geometry import drawn_matrices
from detframe.structures import TrainingObjects

_DRAWS = 256
_SIDE = 64  # of the test pictures, pixels
_TURNED = 2.0  # degrees that no one calls a rotation
_SHEARED = 3.0  # degrees between axes that stay upright
_HUE = 20.0  # degrees; a red that turns orange
_CONTRAST_LEFT = 0.5  # of the smallest object against its background
_SHARE_TOO_SMALL = 0.02  # of objects that may fall below the smallest size


def find_contradictions(
    operators: Sequence[tuple[str, AugmentationBase2D | BatchAugmentation]],
    facts: DeploymentFacts,
    objects: TrainingObjects | None = None,
) -> list[Finding]:
    """Contradictions between a policy and what is known about the deployment.

    Args:
        operators: Names and operators of the policy.
        facts: What is known.
        objects: The training data, for what depends on object sizes.
    """
    findings: list[Finding] = []
    with torch.random.fork_rng([]):  # the training's own numbers stay what they are
        torch.manual_seed(0)
        for name, operator in operators:
            if isinstance(operator, GeometricAugmentationBase2D):
                findings += _geometry(name, operator, facts, objects)
            elif isinstance(operator, AugmentationBase2D):
                findings += _colors(name, operator, facts)
                findings += _blur(name, operator, facts)
            else:
                findings += [Finding(name, *found) for found in operator.contradictions(facts, objects)]
    return findings


def _geometry(
    name: str, operator: GeometricAugmentationBase2D, facts: DeploymentFacts, objects: TrainingObjects | None
) -> Iterator[Finding]:
    images = torch.zeros(_DRAWS, 3, _SIDE, _SIDE)
    motion = measure_motion(drawn_matrices(operator, images), _SIDE)
    turned = float(motion.rotation.abs().max())
    if facts.mirror is False and bool(motion.mirrored.any()):
        yield Finding(name, "mirror: false", "it mirrors images, which the deployment never shows; take it out")
    elif facts.upright and turned > 90:
        yield Finding(name, "upright: true", f"it turns images by up to {turned:.0f} degrees; take it out")
    if facts.upright and bool((motion.mirrored & (motion.rotation.abs() > 90)).any()):
        yield Finding(name, "upright: true", "it turns images upside down; take it out")
    elif facts.max_rotation is not None and turned > facts.max_rotation + _TURNED:
        cure = f"set its `degrees` to {facts.max_rotation:g}, or take it out"
        yield Finding(name, f"max_rotation: {facts.max_rotation:g}", f"it turns by up to {turned:.0f} degrees; {cure}")
    if facts.fixed_viewpoint and float(motion.shear.max()) > _SHEARED:
        seen = f"it shears or tilts images by up to {float(motion.shear.max()):.0f} degrees"
        yield Finding(name, "fixed_viewpoint: true", f"{seen}; take it out, or its `shear`")
    if facts.min_object_px is not None and objects is not None and len(objects.boxes):
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).amin(dim=1)
        smaller = (sides[:, None] * motion.scale[None] < facts.min_object_px).float().mean()
        before = (sides < facts.min_object_px).float().mean()
        if float(smaller - before) > _SHARE_TOO_SMALL:
            seen = (
                f"it scales down to {float(motion.scale.min()):.2f}, which leaves {float(smaller):.0%} of the objects"
            )
            cure = "raise its lower `scale`, or set the pipeline's `min_pixels` to ignore them"
            yield Finding(
                name, f"min_object_px: {facts.min_object_px:g}", f"{seen} smaller, {float(before):.0%} before; {cure}"
            )


class Motion(NamedTuple):
    """What homographies do to the middle of an image, ``[D]`` each."""

    rotation: Tensor  # degrees, -180..180, by which both axes are turned; of mirrored ones, mirrored back
    mirrored: Tensor  # bool
    scale: Tensor  # of lengths, the smaller one
    shear: Tensor  # degrees that a right angle is off, in the worst corner


def measure_motion(matrices: Tensor, side: int) -> Motion:
    """Rotation, mirroring, scale and shear of homographies ``[D, 3, 3]`` of images with ``side`` pixels a side."""
    centre, corners = _jacobians(matrices, side)
    mirrored = torch.linalg.det(centre) < 0
    left_right = torch.tensor([-1.0, 1.0])
    upright = torch.where(mirrored[:, None, None], centre * left_right, centre)  # x mirrored back
    across = torch.atan2(upright[:, 1, 0], upright[:, 0, 0])
    down = torch.atan2(-upright[:, 0, 1], upright[:, 1, 1])
    rotation = torch.where(across.abs() < down.abs(), across, down)
    first, second = corners.unbind(-1)
    cosine = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1)).clamp(min=1e-6)
    return Motion(
        rotation=rotation * 180 / math.pi,
        mirrored=mirrored,
        scale=torch.linalg.svdvals(centre)[:, -1],
        shear=cosine.abs().amax(dim=1).clamp(max=1).asin() * 180 / math.pi,
    )


def _jacobians(matrices: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Derivatives ``[D, 2, 2]`` at the centre and ``[D, 4, 2, 2]`` at the corners of an image."""
    points = torch.tensor([[0.5, 0.5], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) * side
    ahead = torch.cat((points, torch.ones(5, 1)), dim=1) @ matrices.transpose(1, 2)  # [D, 5, 3]
    value, depth = ahead[..., :2], ahead[..., 2:, None]
    linear, last = matrices[:, None, :2, :2], matrices[:, None, 2:, :2]
    derivative = linear / depth - value[..., None] * last / depth**2
    return derivative[:, 0], derivative[:, 1:]


def _colors(name: str, operator: AugmentationBase2D, facts: DeploymentFacts) -> Iterator[Finding]:
    """Turn of the hue of six pure colours, by an operator that sees each of them in a picture of its own."""
    if not facts.color_matters:
        return
    hues = torch.tensor([colorsys.hsv_to_rgb(step / 6, 0.6, 0.6) for step in range(6)])
    swatches = hues.repeat(_DRAWS // 6, 1)[..., None, None].expand(-1, 3, _SIDE, _SIDE).clone()
    after = operator(swatches).mean(dim=(2, 3))
    turned = torch.tensor(
        [_hue_distance(a, b) for a, b in zip(swatches[:, :, 0, 0].tolist(), after.tolist(), strict=True)]
    )
    gray = (after.amax(1) - after.amin(1)) < 0.2 * 0.36  # a fifth of the chroma that was there
    if float(turned[~gray].max() if bool((~gray).any()) else 0.0) > _HUE:
        seen = f"it turns hues by up to {float(turned[~gray].max()):.0f} degrees"
        yield Finding(name, "color_matters: true", f"{seen}; lower its `hue`, or take it out")
    elif bool(gray.any()):
        yield Finding(name, "color_matters: true", "it takes the colour away; lower its `saturation`, or take it out")


def _hue_distance(first: list[float], second: list[float]) -> float:
    distance = abs(colorsys.rgb_to_hsv(*first)[0] - colorsys.rgb_to_hsv(*second)[0])
    return min(distance, 1 - distance) * 360


def _blur(name: str, operator: AugmentationBase2D, facts: DeploymentFacts) -> Iterator[Finding]:
    """Contrast that an operator leaves to the smallest object, a light square on a dark ground."""
    if facts.min_object_px is None:
        return
    half = max(1, round(facts.min_object_px / 2))
    if 2 * half > _SIDE // 2:
        return
    small = _contrast(operator(_square(half)), half)
    large = _contrast(operator(_square(_SIDE // 4), params=operator._params), _SIDE // 4)  # the same draws again
    left = float((small / large.clamp(min=1e-3)).min())  # light and darkness do the same to both, blur does not
    if left < _CONTRAST_LEFT:
        seen = f"it leaves an object of {facts.min_object_px:g} pixels {max(left, 0):.0%} of its contrast"
        yield Finding(
            name, f"min_object_px: {facts.min_object_px:g}", f"{seen}; weaken it, such as by a smaller kernel"
        )


def _square(half: int) -> Tensor:
    """Pictures ``[D, 3, S, S]`` of a light square of ``2 * half`` pixels a side on a dark ground."""
    pictures = torch.full((_DRAWS, 3, _SIDE, _SIDE), 0.3)
    middle = slice(_SIDE // 2 - half, _SIDE // 2 + half)
    pictures[:, :, middle, middle] = 0.7
    return pictures


def _contrast(pictures: Tensor, half: int) -> Tensor:
    """Brightness ``[D]`` of the square less that of the ground at the upper and lower border."""
    middle = slice(_SIDE // 2 - half, _SIDE // 2 + half)
    inside = pictures[:, :, middle, middle].mean(dim=(1, 2, 3))
    return (
        inside
        - (pictures[:, :, : _SIDE // 8].mean(dim=(1, 2, 3)) + pictures[:, :, -_SIDE // 8 :].mean(dim=(1, 2, 3))) / 2
    )

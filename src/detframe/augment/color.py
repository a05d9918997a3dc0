"""Brightness, contrast, saturation and hue as one affine map of each pixel's colour."""

from __future__ import annotations

import math
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# YIQ, where a turn of the last two coordinates changes the hue and leaves the luma (Foley et al., 13.3.3).
_TO_YIQ = ((0.299, 0.587, 0.114), (0.59590059, -0.27455667, -0.32134392), (0.21153661, -0.52273617, 0.31119955))


class RandomColorMatrix(IntensityAugmentationBase2D):
    """Changes brightness, contrast, saturation and hue by one affine map of the colour, ``M @ rgb + offset``.

    Brightness multiplies; contrast stretches about the image's mean luma; saturation blends with the luma, all as
    torchvision's ``ColorJitter`` does; hue turns the chroma plane of YIQ, which is linear where HSV's hue is not. One
    pass over the pixels, where Kornia's ``ColorJiggle`` takes some for each of the four and goes by way of HSV.

    Args:
        brightness: A factor is drawn from 1 - brightness to 1 + brightness.
        contrast: Likewise.
        saturation: Likewise.
        hue: A turn is drawn from -hue to hue, as a share of the circle, 0..0.5.
        p: Share of the images that it changes, 0..1.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        for name, value, most in (
            ("brightness", brightness, 1.0),
            ("contrast", contrast, 1.0),
            ("saturation", saturation, 1.0),
            ("hue", hue, 0.5),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"RandomColorMatrix: `{name}` is {value}; give 0 to {most}.")
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw a factor of each kind for each image, ``[B]``."""
        spread = torch.rand(4, batch_shape[0]) * 2 - 1
        return {
            "brightness": 1 + spread[0] * self.brightness,
            "contrast": 1 + spread[1] * self.contrast,
            "saturation": 1 + spread[2] * self.saturation,
            "hue": spread[3] * self.hue * 2 * math.pi,
        }

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Images ``[B, 3, H, W]`` in other colours, 0..1."""
        factors = {name: params[name].to(input) for name in ("brightness", "contrast", "saturation", "hue")}
        linear = color_matrix(factors["brightness"] * factors["contrast"], factors["saturation"], factors["hue"])
        # Neither saturation nor hue moves the luma, so that the mean about which contrast stretches is known before.
        mean = (input.mean(dim=(2, 3)) @ input.new_tensor(_LUMA)) * factors["brightness"]
        offset = (mean * (1 - factors["contrast"]))[:, None, None].expand(-1, 3, 1)
        changed = torch.baddbmm(offset, linear, input.flatten(2))  # [B, 3, H * W]
        return changed.clamp_(0, 1).view_as(input)


def color_matrix(gain: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Matrices ``[B, 3, 3]`` that multiply a colour by ``gain`` and its chroma by ``saturation``, and turn its hue.

    Args:
        gain: ``[B]``.
        saturation: ``[B]``.
        hue: ``[B]`` turn of the chroma in radians.
    """
    to_yiq = gain.new_tensor(_TO_YIQ)
    zero, one = torch.zeros_like(gain), torch.ones_like(gain)
    cosine, sine = hue.cos() * saturation, hue.sin() * saturation
    turn = torch.stack((one, zero, zero, zero, cosine, -sine, zero, sine, cosine), dim=-1).view(-1, 3, 3)
    matrices: Tensor = gain[:, None, None] * (torch.linalg.inv(to_yiq) @ turn @ to_yiq)
    return matrices

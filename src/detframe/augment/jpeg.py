"""JPEG as cameras and recorders write it, coded and decoded on the device, without its lossless part."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from detframe.augment.photometric import Drawn, PhotometricAugmentation, require_range
from detframe.deployment import site_distribution
from detframe.jpeg_tables import CHROMINANCE_TABLE, LUMINANCE_TABLE

_BLOCK = 8
_UNIT = 2 * _BLOCK  # pixels that a block of the halved colour planes covers


class JPEG(PhotometricAugmentation):
    """Losses of JPEG: 8 x 8 cosine transform, the standard's quantisation tables, colour at half resolution (4:2:0).

    The result is that of libjpeg at the same quality up to rounding. It works on the grid of the image that it is
    given: where images are made smaller after the camera has compressed them, the real losses are finer.

    Args:
        quality: Range of the quality, both ends included, 1..100 as Pillow and libjpeg count it.
        profile: File of `detframe profile`. Qualities are drawn from the site's; ``quality`` is not used.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        quality: tuple[int, int] = (30, 95),
        profile: Path | None = None,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("quality", quality, 1, 100)
        self.quality = quality
        self.site = None if profile is None else site_distribution(profile, "jpeg_quality")

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """``quality``, ``[count]`` whole numbers."""
        if self.site is not None:
            return {"quality": self.site.at(torch.rand(count)).round()}
        return {"quality": torch.randint(self.quality[0], self.quality[1] + 1, (count,)).float()}

    def change(self, images: Tensor, drawn: Drawn, out: Tensor) -> None:
        """Images as they come back from JPEG."""
        height, width = images.shape[2:]
        padding = (0, -width % _UNIT, 0, -height % _UNIT)
        padded = functional.pad(images, padding, mode="replicate") if any(padding) else images
        red, green, blue = (padded * 255).unbind(dim=1)
        luma = (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
        colour = torch.stack([(blue - luma).mul_(0.5 / 0.886), (red - luma).mul_(0.5 / 0.701)], dim=1)
        luma = luma.round_().sub_(128)[:, None]
        colour = functional.avg_pool2d(colour.round_(), 2)
        colour[..., 0::2].add_(0.25).floor_()
        colour[..., 1::2].add_(0.5).floor_()

        luma = _coded(luma, scaled_table(_LUMINANCE, drawn["quality"]))
        colour = _coded(colour, scaled_table(_CHROMINANCE, drawn["quality"]))
        luma = luma.add_(128).round_().clamp_(0, 255)[:, 0, :height, :width]
        colour = colour.round_().clamp_(-128, 127)[..., : math.ceil(height / 2), : math.ceil(width / 2)]
        # Weights 3/4 and 1/4 in both directions: libjpeg's "fancy" upsampling.
        colour = functional.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
        blueness, redness = colour[..., :height, :width].unbind(dim=1)

        torch.add(luma, redness, alpha=1.402, out=out[:, 0])
        torch.add(luma, blueness, alpha=-0.344136, out=out[:, 1]).sub_(redness, alpha=0.714136)
        torch.add(luma, blueness, alpha=1.772, out=out[:, 2])
        out.round_().clamp_(0, 255).div_(255)


def _coded(planes: Tensor, table: Tensor) -> Tensor:
    """Planes ``[N, C, h, w]``, sides multiples of 8, after quantisation by tables ``[N, 64]``."""
    count, channels, height, width = planes.shape
    grid = planes.view(count, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    blocks = grid.permute(0, 1, 2, 4, 3, 5).reshape(count, -1, _BLOCK * _BLOCK)
    transform = _TRANSFORM.to(planes.device, non_blocking=True)
    # The steps are folded into the transform: one product gives the numbers that the file would hold.
    numbers = torch.bmm(blocks, transform.T / table[:, None]).round_()
    blocks = torch.bmm(numbers, transform * table[..., None])
    grid = blocks.view(count, channels, height // _BLOCK, width // _BLOCK, _BLOCK, _BLOCK)
    return grid.permute(0, 1, 2, 4, 3, 5).reshape(count, channels, height, width)


def scaled_table(table: Tensor, quality: Tensor) -> Tensor:
    """Steps at a quality, as the Independent JPEG Group's library scales them.

    Args:
        table: ``[64]`` steps at quality 50.
        quality: ``[N]`` whole numbers 1..100.

    Returns:
        ``[N, 64]`` whole numbers 1..255.
    """
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((table.to(quality.device, non_blocking=True) * scale[:, None] + 50) / 100).floor().clamp(1, 255)


def _cosine_transform() -> Tensor:
    """The orthonormal cosine transform ``[8, 8]``, frequency by position."""
    positions = torch.arange(_BLOCK, dtype=torch.float64)
    rows = torch.cos(math.pi / _BLOCK * (positions + 0.5) * positions[:, None]) * math.sqrt(2 / _BLOCK)
    rows[0] /= math.sqrt(2)
    return rows.float()


_TRANSFORM = torch.kron(_cosine_transform(), _cosine_transform())  # [64, 64], of a block row by row
_LUMINANCE = torch.tensor(LUMINANCE_TABLE, dtype=torch.float32).flatten()
_CHROMINANCE = torch.tensor(CHROMINANCE_TABLE, dtype=torch.float32).flatten()

"""What a sensor does with the light: shot and read noise, bands, defective pixels, steps of its converter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from detframe.augment.photometric import (
    Drawn,
    LinearLightAugmentation,
    PhotometricAugmentation,
    per_image,
    require_range,
    uniform,
)
from detframe.deployment import site_distribution
from detframe.image_statistics import noise_level
from detframe.srgb import srgb_to_linear

# Brooks and others, "Unprocessing images for learned raw denoising" (2019): read noise of cameras by their shot noise.
_READ_SLOPE, _READ_OFFSET, _READ_SPREAD = 2.18, 1.20, 0.26

_GREY_STEP = 8  # every so many pixels are looked at
_GREY_TOLERANCE = 1 / 512


class SensorNoise(LinearLightAugmentation):
    """Shot and read noise in linear light: the variance of a value is ``light * shot + read``.

    ``log read = 2.18 log shot + 1.20 + N(0, 0.26)``, as cameras have it (Brooks and others, "Unprocessing images for
    learned raw denoising", 2019). Channels are independent, except in images without colour, which stay grey.

    The normal numbers are drawn once for a batch and read from random places on, so that the noise of one channel or
    image may be that of another, shifted.

    Args:
        shot: Range of the shot noise's variance at full light, uniform in its logarithm. 1e-4 is a sensor that counts
            10,000 electrons at white, 0.012 one of some 80: a camera in the dark.
        profile: File of `detframe profile`. Each image is given what it lacks of a noise level drawn from the site's;
            one that has as much already stays as it is. ``shot`` is then only the shape of the noise over brightness.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters, and the same noise.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    shared: ClassVar[tuple[str, ...]] = ("normal",)

    def __init__(
        self,
        shot: tuple[float, float] = (1e-4, 0.012),
        profile: Path | None = None,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("shot", shot, 1e-9, 1)
        self.shot = shot
        self.site = None if profile is None else site_distribution(profile, "noise")

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """Variances ``[count]``; normal numbers ``[M]`` and where in them the channels begin, ``[count]`` each."""
        log_shot = uniform(count, (math.log(self.shot[0]), math.log(self.shot[1])))
        log_read = _READ_SLOPE * log_shot + _READ_OFFSET + _READ_SPREAD * torch.randn(count)
        drawn = {"shot": log_shot.exp(), "read": log_read.exp()}
        if self.site is not None:
            drawn["level"] = self.site.at(torch.rand(count))
        places = height * width // 8 + 1
        drawn["first"] = torch.randint(places, (count,))
        drawn["spacing"] = torch.randint(1, places + 1, (count,))
        drawn["normal"] = torch.randn(height * width + 3 * places)
        return drawn

    def fields(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, ...]:
        """Normal numbers ``[N, 3, H, W]`` and the two variances."""
        height, width = images.shape[2:]
        spacing = torch.where(without_colour(images), 0, drawn["spacing"])
        channels = torch.arange(3, device=images.device)
        starts = (drawn["first"][:, None] + channels * spacing[:, None]).flatten()  # [3 N]
        windows = drawn["normal"].unfold(0, height * width, 1)  # [places, H W], a view
        if images.device.type == "cpu":  # one image: three windows at equal distances are a view
            first, second = starts[:2].tolist()
            normal = windows.as_strided((3, height * width), (second - first, 1), first)
        else:
            normal = windows.index_select(0, starts)
        shot, read = per_image(drawn["shot"]), per_image(drawn["read"])
        if self.site is not None:
            scale = self._missing_variance(images, shot, read, drawn["level"])
            shot, read = shot * scale, read * scale
        return normal.view_as(images), shot, read

    def expose(self, light: Tensor, *fields: Tensor) -> Tensor:
        """Light with noise."""
        normal, shot, read = fields
        deviation = torch.mul(light, shot).add_(read).sqrt_()
        return light.addcmul_(deviation, normal)

    def _missing_variance(self, images: Tensor, shot: Tensor, read: Tensor, target: Tensor) -> Tensor:
        """What to multiply the variances with, so that the images' noise comes to the target, ``[N, 1, 1, 1]``."""
        missing = (target**2 - noise_level(images) ** 2).clamp(min=0)
        light = srgb_to_linear(images[:, 1:2, ::4, ::4])
        slope = 1.055 / 2.4 * light.clamp(min=0.0031308) ** (1 / 2.4 - 1)  # of the sRGB curve
        visible = (slope**2 * (light * shot + read)).mean(dim=(1, 2, 3))
        return per_image(missing / visible)


class Banding(LinearLightAugmentation):
    """Bands along rows or columns: lamps that flicker under a rolling shutter, or a read-out that drifts by line.

    Args:
        flicker: Range of the depth of a flicker, the share by which the light of a line swings around its mean, 0..1.
        cycles: Range of how often it swings over the image.
        offset: Range of the standard deviation of a drifting read-out, in linear light (white is 1).
        drift: Share of the images that have the drift; the others flicker. 0..1.
        columns: Share of the images with bands along columns; the others have them along rows. 0..1.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        flicker: tuple[float, float] = (0.02, 0.2),
        cycles: tuple[float, float] = (1.0, 20.0),
        offset: tuple[float, float] = (0.0005, 0.005),
        drift: float = 0.5,
        columns: float = 0.3,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("flicker", flicker, 0, 1)
        require_range("cycles", cycles, 0, 1e4)
        require_range("offset", offset, 0, 1)
        self.flicker = flicker
        self.cycles = cycles
        self.offset = offset
        self.drift = drift
        self.columns = columns

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """What the image has ``[count]``, and a normal number for each line ``[count, L]``."""
        drifts = torch.rand(count) < self.drift
        return {
            "flicker": torch.where(drifts, 0.0, uniform(count, self.flicker)),
            "offset": torch.where(drifts, uniform(count, self.offset), 0.0),
            "cycles": uniform(count, self.cycles),
            "phase": uniform(count, (0.0, 2 * math.pi)),
            "columns": (torch.rand(count) < self.columns).float(),
            "lines": torch.randn(count, max(height, width)),
        }

    def fields(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, ...]:
        """Gain and offset of each line ``[N, 1, H, W]``."""
        height, width = images.shape[2:]
        gains, offsets = [], []
        for length, share in ((height, 1 - drawn["columns"]), (width, drawn["columns"])):
            positions = torch.arange(length, device=images.device) / length
            angle = 2 * math.pi * drawn["cycles"][:, None] * positions + drawn["phase"][:, None]  # [N, L]
            gains.append(1 + (drawn["flicker"] * share)[:, None] * angle.sin())
            offsets.append((drawn["offset"] * share)[:, None] * drawn["lines"][:, :length])
        gain = gains[0][:, None, :, None] * gains[1][:, None, None, :]
        return gain, offsets[0][:, None, :, None] + offsets[1][:, None, None, :]

    def expose(self, light: Tensor, *fields: Tensor) -> Tensor:
        """Light times gain plus offset."""
        gain, offset = fields
        return light.mul_(gain).add_(offset)


class Quantisation(LinearLightAugmentation):
    """A converter of few bits, which counts in linear light: dark areas show steps.

    Args:
        bits: Range of its bits, both ends included. Industrial cameras have 8 to 12; dark parts of an image that was
            brightened afterwards have fewer.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        bits: tuple[int, int] = (6, 10),
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("bits", bits, 1, 16)
        self.bits = bits

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """``steps``: the highest count, ``[count]``."""
        return {"steps": 2.0 ** torch.randint(self.bits[0], self.bits[1] + 1, (count,)) - 1}

    def fields(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, ...]:
        """The highest count."""
        return (per_image(drawn["steps"]),)

    def expose(self, light: Tensor, *fields: Tensor) -> Tensor:
        """Light in whole counts."""
        return light.mul_(fields[0]).round_().div_(fields[0])


class DeadPixels(PhotometricAugmentation):
    """Pixels that are always white or always black, in all three channels.

    Args:
        share: Range of their share among the pixels, uniform in its logarithm; a changed image has at least one.
        hot: Share of white ones among them, 0..1.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        share: tuple[float, float] = (1e-5, 1e-3),
        hot: float = 0.5,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("share", share, 1e-9, 0.5)
        self.share = share
        self.hot = hot

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """Places in the flat image and values there, ``[count, M]``; what is left over repeats the first place."""
        pixels = height * width
        number = uniform(count, (math.log(self.share[0]), math.log(self.share[1]))).exp() * pixels
        most = max(math.ceil(self.share[1] * pixels), 1)
        place = torch.randint(pixels, (count, most))
        value = (torch.rand(count, most) < self.hot).float()
        spare = torch.arange(most) >= number.round().clamp(min=1)[:, None]
        return {"place": torch.where(spare, place[:, :1], place), "value": torch.where(spare, value[:, :1], value)}

    def change(self, images: Tensor, drawn: Drawn, out: Tensor) -> None:
        """Images with the defects."""
        index = drawn["place"][:, None].expand(-1, 3, -1)
        values = drawn["value"][:, None].expand(-1, 3, -1)
        # Of two defects at one place the white one shows; plain scatter() would take either.
        out.copy_(images).flatten(2).scatter_reduce_(2, index, values, "amax", include_self=False)


def without_colour(images: Tensor) -> Tensor:
    """Whether images ``[N, 3, H, W]`` are grey, ``[N]``, by every eighth pixel of every eighth row."""
    few = images[:, :, ::_GREY_STEP, ::_GREY_STEP]
    return ((few - few[:, :1]).abs() < _GREY_TOLERANCE).flatten(1).all(dim=1)

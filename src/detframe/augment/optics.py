"""What happens to the light before it is counted: exposure, colour of the lamps, falloff to the corners, defocus."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from detframe.augment.photometric import (
    Drawn,
    LinearLightAugmentation,
    PhotometricAugmentation,
    per_image,
    require_range,
    uniform,
)
from detframe.deployment import site_distribution
from detframe.image_statistics import blur, blur_under_disk, luminance, mean_light, tint_of, warmth_of
from detframe.srgb import linear_to_srgb, srgb_to_linear

_MAX_GAIN = 64.0  # what a site's value may ask for: six stops
_NEUTRAL = 6504.0  # kelvin, the white of sRGB
_SUBPIXELS = 8
_HALVINGS = 10  # of the range of radii, in search of one


class Exposure(LinearLightAugmentation):
    """More or less light: a gain on linear light, with clipping where the sensor is full.

    Args:
        stops: Range of the gain, uniform in stops: -1 halves the light, 1 doubles it.
        profile: File of `detframe profile`. Each image is brought to a brightness drawn from the site's, from its own;
            ``stops`` is not used.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        stops: tuple[float, float] = (-2.0, 1.0),
        profile: Path | None = None,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("stops", stops, -10, 10)
        self.stops = stops
        self.site = None if profile is None else site_distribution(profile, "brightness")

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """``stops`` or ``brightness``, ``[count]``."""
        if self.site is not None:
            return {"brightness": self.site.at(torch.rand(count))}
        return {"stops": uniform(count, self.stops)}

    def fields(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, ...]:
        """The gain."""
        if self.site is None:
            return (per_image(torch.exp2(drawn["stops"])),)
        own = luminance(mean_light(images))
        gain = srgb_to_linear(drawn["brightness"]) / own.clamp(min=1e-6)
        return (per_image(gain.clamp(1 / _MAX_GAIN, _MAX_GAIN)),)

    def expose(self, light: Tensor, *fields: Tensor) -> Tensor:
        """Light times gain."""
        return light.mul_(fields[0])


class WhiteBalance(LinearLightAugmentation):
    """Lamps of another colour temperature, or a white balance that misses theirs: gains in linear light.

    Kornia's RandomPlanckianJitter multiplies sRGB values by ratios of light: about 1.8 times the effect, in stops, that
    Planck's law has between 3500 and 15000 K, and nearly no blue at 3000 K.

    Args:
        temperature: Range in kelvin, 1667..25000, uniform in its reciprocal, in which equal steps look equal. 6504 is
            neutral, less is warmer.
        profile: File of `detframe profile`. Each image is brought to a warmth and a tint drawn from the site's, from
            its own; ``temperature`` is not used. It takes the site's images for ones of the same things.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        temperature: tuple[float, float] = (4500.0, 9500.0),
        profile: Path | None = None,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("temperature", temperature, 1667, 25000)
        self.temperature = temperature
        self.site = None
        if profile is not None:
            self.site = site_distribution(profile, "warmth"), site_distribution(profile, "tint")

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """``gains`` ``[count, 3]``, or ``warmth`` and ``tint`` ``[count]``."""
        if self.site is not None:
            warmth, tint = self.site
            return {"warmth": warmth.at(torch.rand(count)), "tint": tint.at(torch.rand(count))}
        low, high = self.temperature
        reciprocal = uniform(count, (1 / high, 1 / low))
        return {"gains": planckian_gains(1 / reciprocal)}

    def fields(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, ...]:
        """The gains of the channels."""
        if self.site is None:
            return (drawn["gains"][:, :, None, None],)
        light = mean_light(images)
        warmer, greener = drawn["warmth"] - warmth_of(light), drawn["tint"] - tint_of(light)
        stops = torch.stack([warmer / 2 - greener / 3, greener * 2 / 3, -warmer / 2 - greener / 3], dim=1)
        gains = torch.exp2(stops.clamp(-math.log2(_MAX_GAIN), math.log2(_MAX_GAIN)))
        gains = gains * (luminance(light) / luminance(light * gains).clamp(min=1e-6))[:, None]  # brightness stays
        return (gains[:, :, None, None],)

    def expose(self, light: Tensor, *fields: Tensor) -> Tensor:
        """Light times gains."""
        return light.mul_(fields[0])


class Vignetting(LinearLightAugmentation):
    """Light that falls off from a centre to the corners, as the fourth power of the cosine of a lens's angle.

    With a wide range of centres it is a lamp at one side.

    Args:
        loss: Range of the share of light that is lost at half a diagonal from the centre, 0..1.
        centre: Range of the centre in shares of width and height, drawn for each: 0.5 is the middle.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        loss: tuple[float, float] = (0.1, 0.6),
        centre: tuple[float, float] = (0.4, 0.6),
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("loss", loss, 0, 0.99)
        require_range("centre", centre, -1, 2)
        self.loss = loss
        self.centre = centre

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """``loss``, ``x`` and ``y``, ``[count]``."""
        return {
            name: uniform(count, getattr(self, "loss" if name == "loss" else "centre")) for name in ("loss", "x", "y")
        }

    def fields(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, ...]:
        """Share of the light that is left, ``[N, 1, H, W]``."""
        height, width = images.shape[2:]
        half_diagonal = math.hypot(height, width) / 2
        columns = (torch.arange(width, device=images.device) + 0.5)[None] - drawn["x"][:, None] * width  # [N, W]
        rows = (torch.arange(height, device=images.device) + 0.5)[None] - drawn["y"][:, None] * height  # [N, H]
        # cos^4(atan(d / f)) = 1 / (1 + d^2 / f^2)^2, with f such that the stated share is lost at half a diagonal
        steepness = ((1 - drawn["loss"]) ** -0.5 - 1)[:, None] / half_diagonal**2
        falloff = (steepness * rows**2)[:, None, :, None] + (steepness * columns**2 + 1)[:, None, None, :]
        return (falloff.square_().reciprocal_(),)

    def expose(self, light: Tensor, *fields: Tensor) -> Tensor:
        """Light times what is left of it."""
        return light.mul_(fields[0])


class Defocus(PhotometricAugmentation):
    """A lens out of focus: each point of light becomes a disk.

    Args:
        radius: Range of the disk's radius in pixels of the image that it is given; under half a pixel nothing happens.
        profile: File of `detframe profile`. Each image is given what it lacks of a blur drawn from the site's; one that
            is as soft already stays as it is. ``radius`` is then only the upper limit.
        p: Share of the images that it changes.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    def __init__(
        self,
        radius: tuple[float, float] = (0.5, 4.0),
        profile: Path | None = None,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p, same_on_batch, keepdim)
        require_range("radius", radius, 0, 50)
        self.radius = radius
        self.site = None if profile is None else site_distribution(profile, "blur")

    def draw(self, count: int, height: int, width: int) -> Drawn:
        """``radius`` or ``blur``, ``[count]``."""
        if self.site is not None:
            return {"blur": self.site.at(torch.rand(count))}
        return {"radius": uniform(count, self.radius)}

    def change(self, images: Tensor, drawn: Drawn, out: Tensor) -> None:
        """Linear light under a disk."""
        radius = drawn["radius"] if self.site is None else self._missing_radius(images, drawn["blur"])
        # The largest disk that may come, as its size must be known before the device has computed the radii.
        reach = math.ceil(self.radius[1] - 0.5)
        if images.device.type == "cpu":
            reach = math.ceil(max(float(radius.max()) - 0.5, 0))
        if reach == 0:
            out.copy_(images)
            return
        kernels = disk(radius, reach).repeat_interleave(3, dim=0)[:, None]  # [3 N, 1, K, K]
        light = functional.pad(srgb_to_linear(images), (reach, reach, reach, reach), mode="replicate")
        spread = functional.conv2d(light.flatten(0, 1)[None], kernels, groups=len(kernels))
        linear_to_srgb(spread.view_as(images), out)

    def _missing_radius(self, images: Tensor, target: Tensor) -> Tensor:
        """Radius of the disk that softens images to the target, ``[N]`` pixels."""
        own = blur(images)
        low, high = torch.zeros_like(own), torch.full_like(own, self.radius[1])
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            too_soft = blur_under_disk(own, middle) > target
            low, high = torch.where(too_soft, low, middle), torch.where(too_soft, middle, high)
        return low


def disk(radius: Tensor, reach: int) -> Tensor:
    """How much of each pixel a disk in the middle of the central one covers, its sum made 1.

    Args:
        radius: ``[N]`` in pixels, at most ``reach + 0.5``.
        reach: Pixels on each side of the central one.

    Returns:
        ``[N, 2 reach + 1, 2 reach + 1]``, sampled at 8 x 8 points in each pixel.
    """
    size = (2 * reach + 1) * _SUBPIXELS
    positions = (torch.arange(size, device=radius.device) + 0.5) / _SUBPIXELS - (reach + 0.5)
    distance = torch.hypot(positions[:, None], positions[None])
    covered = ((radius[:, None, None] - distance) * _SUBPIXELS + 0.5).clamp(0, 1)
    # A disk smaller than the central pixel is that pixel, whatever the points hit.
    covered = torch.where(radius[:, None, None] <= 0.5, (distance <= 0.5).to(covered.dtype), covered)
    kernels = functional.avg_pool2d(covered[:, None], _SUBPIXELS)[:, 0]
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def planckian_gains(temperature: Tensor) -> Tensor:
    """Gains of red, green and blue in linear sRGB light under a black body instead of one of 6504 K.

    The locus is the cubic approximation of Kim and others (US patent 7024034, 2002). The luminance of white stays.

    Args:
        temperature: ``[N]`` in kelvin, 1667..25000.

    Returns:
        ``[N, 3]``.
    """
    ratio = _black_body(temperature) / _black_body(torch.full_like(temperature, _NEUTRAL))
    return ratio / luminance(ratio)[:, None]


def _black_body(temperature: Tensor) -> Tensor:
    """Linear sRGB ``[N, 3]`` of a black body, luminance 1."""
    t = 1000 / temperature
    cool = ((-3.0258469 * t + 2.1070379) * t + 0.2226347) * t + 0.240390
    warm = ((-0.2661239 * t - 0.2343589) * t + 0.8776956) * t + 0.179910
    x = torch.where(temperature > 4000, cool, warm)
    low = ((-1.1063814 * x - 1.34811020) * x + 2.18555832) * x - 0.20219683
    middle = ((-0.9549476 * x - 1.37418593) * x + 2.09137015) * x - 0.16748867
    high = ((3.0817580 * x - 5.87338670) * x + 3.75112997) * x - 0.37001483
    y = torch.where(temperature > 4000, high, torch.where(temperature > 2222, middle, low))
    xyz = torch.stack([x / y, torch.ones_like(x), (1 - x - y) / y], dim=1)
    # IEC 61966-2-1; what lies outside the gamut, under 1900 K, has no blue.
    to_rgb = xyz.new_tensor(
        [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
    )
    return (xyz @ to_rgb.T).clamp(min=0)

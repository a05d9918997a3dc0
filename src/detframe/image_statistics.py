"""What an image is like, as one number each: brightness, contrast, colour cast, noise, blur.

Pure functions of images ``[B, 3, H, W]``, float 0..1, to ``[B]``, on the device and without waiting for it. A profile
of a site is made of them, augmentation aims at its values, monitoring watches them: one definition for all three.

Rows and columns of a single colour do not count, as the margin of a letterbox has them, nor those that a shift has left
empty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from detframe.srgb import LUMINANCE, linear_to_srgb, srgb_to_linear

_DARKEST = 1e-4  # linear light under which a ratio of colours says nothing; a 255th is 3e-4

_PATCH = 8  # pixels
_FLAT_SHARE = 0.1  # of the patches
_CLIPPED = 0.02  # of the range, at either end
_STRUCTURED = 0.02  # standard deviation from which a patch tells less about noise than a clipped one

_MEAN_OF_MEDIAN = 1.022  # the median of a patch's variance is below its mean; simulated

_FINE, _COARSE = 1.0, 2.0  # standard deviations in pixels
_ABOVE_MEAN, _OF_STRONGEST = 4.0, (0.04, 0.5)  # squared gradients that make an edge
_SOFTEST = 10.0  # pixels
_ANGLES = 32


def brightness(images: Tensor) -> Tensor:
    """The grey, as sRGB value 0..1, that gives as much light as the image on average, ``[B]``.

    Gain in linear light changes it in a known way, which the mean of sRGB values does not allow.
    """
    return linear_to_srgb(luminance(mean_light(images)).clamp(0, 1))


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the grey values (sRGB, weighted as luminance), ``[B]`` 0..0.5."""
    grey = luminance(images)
    weight = content(images)[:, 0]
    count = weight.sum(dim=(1, 2))
    mean = (grey * weight).sum(dim=(1, 2)) / count
    return (((grey - mean[:, None, None]) ** 2 * weight).sum(dim=(1, 2)) / count).sqrt()


def warmth(images: Tensor) -> Tensor:
    """How much more red light there is than blue, ``[B]`` in stops (1: twice as much), 0 for grey.

    It moves with the colour temperature of the lamps, or with a white balance that misses it.
    """
    return warmth_of(mean_light(images))


def tint(images: Tensor) -> Tensor:
    """How much more green light there is than red and blue, ``[B]`` in stops, 0 for grey, below for magenta."""
    return tint_of(mean_light(images))


def noise_level(images: Tensor) -> Tensor:
    """Standard deviation of the noise in the flat parts of the green channel, ``[B]`` in sRGB values 0..1.

    Green, because a colour sensor has most of it and interpolates it least. Immerkaer's filter ("Fast noise variance
    estimation", 1996) leaves nothing of even slopes; it is read in patches of 8 x 8 px, of which a tenth counts: those
    that vary least at wavelengths beyond the filter's, so that texture is no noise and the choice does not favour low
    noise. Patches near black or white, where noise is clipped, count only where there are no others as flat.

    Noise that was denoised or compressed away is not seen; texture as fine as a pixel all over the image is.

    Args:
        images: ``[B, 3, H, W]`` of at least 16 x 16 px, float 0..1.
    """
    return _noise(images[:, 1:2], content(images))


def blur(images: Tensor) -> Tensor:
    """Standard deviation in pixels of the Gaussian that softens a step as the image's sharpest edges are, ``[B]``.

    A step from one pixel to the next has about 0.4; a lens in focus 0.5 to 1; what is above 2 looks soft. The gradients
    of two blurred copies are compared at strong edges (Zhuo and Sim, "Defocus map estimation from a single image",
    2011): their ratio depends on the width of an edge and not on its contrast. Noise is allowed for.
    It ends at 10, which is also what an image without edges has.

    Args:
        images: ``[B, 3, H, W]`` of at least 16 x 16 px, float 0..1.
    """
    grey = luminance(images)[:, None]
    fine_x, fine_y, coarse_x, coarse_y = _squared_slopes(grey).split(1, dim=1)  # [B, 1, H, W]
    fine, coarse = fine_x + fine_y, coarse_x + coarse_y
    # Edges are chosen by the coarse copy, so that the noise of the fine one is not chosen along.
    across = functional.max_pool2d(coarse, (1, 3), stride=1, padding=(0, 1))
    down = functional.max_pool2d(coarse, (3, 1), stride=1, padding=(1, 0))
    steep = coarse_x > coarse_y
    inside = content(images)
    edges = inside * ((steep & (coarse >= across)) | (~steep & (coarse >= down)))
    mean = (coarse * inside).sum(dim=(2, 3), keepdim=True) / inside.sum(dim=(2, 3), keepdim=True)
    strongest = (coarse * edges).amax(dim=(2, 3), keepdim=True)
    enough = (_ABOVE_MEAN * mean).clamp(min=_OF_STRONGEST[0] * strongest, max=_OF_STRONGEST[1] * strongest)
    edges = edges * (coarse >= enough)
    noise = _noise(grey, inside) ** 2 / (
        4 * math.pi
    )  # white noise has 1 / (4 pi s^4) of its variance in the squared gradient
    count = edges.sum(dim=(1, 2, 3)).clamp(min=1)
    fine_mean = (fine * edges).sum(dim=(1, 2, 3)) / count - noise / _FINE**4
    coarse_mean = (coarse * edges).sum(dim=(1, 2, 3)) / count - noise / _COARSE**4
    return _blur_of_ratio(fine_mean / coarse_mean.clamp(min=1e-12))


def blur_under_disk(own: Tensor, radius: Tensor) -> Tensor:
    """What :func:`blur` says of an image after a lens out of focus, ``[B]`` pixels.

    A disk flattens the middle of an edge, so that this is more than what its standard deviation, half the radius, adds.

    Args:
        own: ``[B]``, what it says before.
        radius: ``[B]`` of the disk in pixels.
    """
    angle = (torch.arange(_ANGLES, device=own.device) + 0.5) * (math.pi / _ANGLES) - math.pi / 2
    # The slope of an edge is the disk's chord, 2 / (pi r^2) sqrt(r^2 - x^2), under the Gaussian; x = r sin(angle).
    chord, place = angle.cos() ** 2, (radius[:, None] * angle.sin()) ** 2
    fine, coarse = own[:, None] ** 2 + _FINE**2, own[:, None] ** 2 + _COARSE**2
    peak_fine = ((-place / (2 * fine)).exp() * chord).sum(dim=1) ** 2 / fine[:, 0]
    peak_coarse = ((-place / (2 * coarse)).exp() * chord).sum(dim=1) ** 2 / coarse[:, 0]
    return _blur_of_ratio(peak_fine / peak_coarse)


def mean_light(images: Tensor) -> Tensor:
    """Mean of each channel in linear light, ``[B, 3]`` 0..1."""
    weight = content(images)
    return (srgb_to_linear(images) * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))


def luminance(colours: Tensor) -> Tensor:
    """Weighted sum of red, green and blue, which are dimension 1: ``[B, 3, ...]`` -> ``[B, ...]``."""
    red, green, blue = LUMINANCE
    return colours[:, 0] * red + colours[:, 1] * green + colours[:, 2] * blue


def warmth_of(light: Tensor) -> Tensor:
    """:func:`warmth` of mean light ``[B, 3]``."""
    stops = light.clamp(min=_DARKEST).log2()
    return stops[:, 0] - stops[:, 2]


def tint_of(light: Tensor) -> Tensor:
    """:func:`tint` of mean light ``[B, 3]``."""
    stops = light.clamp(min=_DARKEST).log2()
    return stops[:, 1] - (stops[:, 0] + stops[:, 2]) / 2


def content(images: Tensor) -> Tensor:
    """1 where neither the row nor the column has a single colour, ``[B, 1, H, W]``; 1 everywhere if that is nowhere."""
    rows = (images.amax(dim=3) > images.amin(dim=3)).any(dim=1)  # [B, H]
    columns = (images.amax(dim=2) > images.amin(dim=2)).any(dim=1)  # [B, W]
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return (inside | ~inside.any(dim=3, keepdim=True).any(dim=2, keepdim=True)).to(images.dtype)


def _blur_of_ratio(ratio: Tensor) -> Tensor:
    """Sigma of the Gaussian under which the squared gradients of the two copies have this ratio, ``[B]``."""
    # At the edge of a step the squared gradient is A^2 / (2 pi (sigma^2 + s^2)).
    softest = (_SOFTEST**2 + _COARSE**2) / (_SOFTEST**2 + _FINE**2)
    ratio = ratio.clamp(softest, _COARSE**2 / _FINE**2)
    return ((_COARSE**2 - ratio * _FINE**2) / (ratio - 1)).sqrt()


def _noise(plane: Tensor, inside: Tensor) -> Tensor:
    """:func:`noise_level` of one channel ``[B, 1, H, W]``, given the :func:`content` ``[B, 1, H, W]``."""
    second = plane[..., 2:, :] - 2 * plane[..., 1:-1, :] + plane[..., :-2, :]
    response = second[..., 2:] - 2 * second[..., 1:-1] + second[..., :-2]  # [B, 1, H - 2, W - 2], 6 sigma
    variance = functional.avg_pool2d(response * response, _PATCH).flatten(1) / 36  # [B, patches]
    halves = functional.avg_pool2d(plane[..., 1:-1, 1:-1], _PATCH // 2)
    means = functional.avg_pool2d(halves, 2)
    structure = (functional.avg_pool2d(halves * halves, 2) - means * means).flatten(1)
    means = means.flatten(1)
    clipped = (means < _CLIPPED) | (means > 1 - _CLIPPED)
    outside = functional.avg_pool2d(1 - inside[..., 1:-1, 1:-1], _PATCH).flatten(1)
    order = (structure + clipped * _STRUCTURED**2 + outside).argsort(dim=1)
    count = max(round(_FLAT_SHARE * variance.shape[1]), 1)
    return variance.gather(1, order[:, :count]).median(dim=1).values.sqrt() * _MEAN_OF_MEDIAN


def _squared_slopes(grey: Tensor) -> Tensor:
    """Squared derivatives along x and y of ``[B, 1, H, W]`` after the fine, then the coarse blur, ``[B, 4, H, W]``."""
    reach = math.ceil(3.5 * _COARSE)
    positions = torch.arange(-reach, reach + 1, device=grey.device, dtype=grey.dtype)
    smooths, slopes = [], []
    for sigma in (_FINE, _COARSE):
        smooth = torch.exp(-0.5 * (positions / sigma) ** 2)
        slope = positions * smooth
        smooths.append(smooth / smooth.sum())
        slopes.append(slope / (slope * positions).sum())  # a ramp of 1 per pixel gives 1
    along_x = torch.stack([slopes[0], smooths[0], slopes[1], smooths[1]])[:, None, None]  # [4, 1, 1, K]
    along_y = torch.stack([smooths[0], slopes[0], smooths[1], slopes[1]])[:, None, :, None]  # [4, 1, K, 1]
    padded = functional.pad(grey, (reach, reach, reach, reach), mode="replicate")
    slopes_xy: Tensor = functional.conv2d(functional.conv2d(padded, along_x), along_y, groups=4)
    return slopes_xy.square_()

"""What operators on the pixels' values share: one image at a time on a CPU, and linear light."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from detframe.srgb import linear_to_srgb, srgb_to_linear

_STRIP = 2**18  # values; with its temporaries a strip stays in the cache, which is a sixth of the time

Drawn = dict[str, Tensor]
"""Random parameters by name, one row for each image."""


class PhotometricAugmentation(IntensityAugmentationBase2D, ABC):
    """An operator on the values of the pixels, to stand in a policy beside Kornia's own.

    It takes and gives float images ``[B, 3, H, W]`` in 0..1, one by one on a CPU, where those that ``p`` leaves out
    cost nothing, and all at once on an accelerator, which is never waited for.

    Args:
        p: Share of the images that it changes, 0..1.
        same_on_batch: Give all images of a batch the same parameters.
        keepdim: Give an image ``[3, H, W]`` back as such and not as a batch of one.
    """

    shared: ClassVar[tuple[str, ...]] = ()
    """Parameters that all images of a batch use together, without a row for each."""

    def __init__(self, p: float = 0.5, same_on_batch: bool = False, keepdim: bool = False) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, p_batch=1.0, keepdim=keepdim)

    @abstractmethod
    def change(self, images: Tensor, drawn: Drawn, out: Tensor) -> None:
        """Write the changed images.

        Args:
            images: ``[N, 3, H, W]``, float 0..1, not to be written to.
            drawn: What :meth:`draw` gave for them, on their device.
            out: ``[N, 3, H, W]``, contiguous, for the result, 0..1.
        """

    @abstractmethod
    def draw(self, count: int, height: int, width: int) -> Drawn:
        """Random parameters of images, from torch's global generator of the CPU.

        Args:
            count: Number of images.
            height: Of the images in pixels.
            width: Of the images in pixels.

        Returns:
            ``[count, ...]`` each, but the :attr:`shared` ones.
        """

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Drawn:
        """Random parameters as Kornia asks for them."""
        count, _, height, width = batch_shape
        if not self.same_on_batch:
            return self.draw(count, height, width)
        return {
            name: value if name in self.shared else value.expand(count, *value.shape[1:])
            for name, value in self.draw(1, height, width).items()
        }

    @torch.no_grad()
    def apply_transform(
        self, input: Tensor, params: Drawn, flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Changed images as Kornia asks for them; those that ``p`` leaves out may come back as they were."""
        kind = input.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return self._changed(input, params)

    def _changed(self, input: Tensor, params: Drawn) -> Tensor:
        own = {name: value for name, value in params.items() if name not in ("batch_prob", "forward_input_shape")}
        images = input.float()
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        if images.device.type != "cpu":
            drawn = {name: value.to(images.device, non_blocking=True) for name, value in own.items()}
            self.change(images, drawn, result)
            return result.to(input.dtype)
        chosen = params["batch_prob"] > 0.5
        if len(chosen) != len(images):  # before version 0.9, which Python 3.10 has, Kornia gives the chosen ones alone
            chosen = torch.ones(len(images), dtype=torch.bool)
        for i in range(len(images)):
            if chosen[i]:
                drawn = {name: value if name in self.shared else value[i : i + 1] for name, value in own.items()}
                self.change(images[i : i + 1], drawn, result[i : i + 1])
            else:
                result[i] = images[i]
        return result.to(input.dtype)


class LinearLightAugmentation(PhotometricAugmentation):
    """An operator that changes each value of linear light for itself, given fields over the image."""

    @abstractmethod
    def fields(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, ...]:
        """What :meth:`expose` needs beside the light, each ``[N, 1 or 3, 1 or H, 1 or W]``."""

    @abstractmethod
    def expose(self, light: Tensor, *fields: Tensor) -> Tensor:
        """Changed linear light.

        Args:
            light: ``[N, 3, R, W]``, all or some rows of the images, 0..1; may be written to.
            fields: The same rows of what :meth:`fields` gave.

        Returns:
            ``[N, 3, R, W]``; what leaves 0..1 is clipped, as a sensor does.
        """

    def change(self, images: Tensor, drawn: Drawn, out: Tensor) -> None:
        """Decode, change, clip and encode, on a CPU some rows at a time."""
        fields = self.fields(images, drawn)
        height, width = images.shape[2:]
        rows = max(_STRIP // (3 * width), 1) if images.device.type == "cpu" else height
        for first in range(0, height, rows):
            strip = slice(first, first + rows)
            parts = [field if field.shape[2] == 1 else field[:, :, strip] for field in fields]
            linear_to_srgb(self.expose(srgb_to_linear(images[:, :, strip]), *parts), out[:, :, strip])


def uniform(count: int, bounds: tuple[float, float]) -> Tensor:
    """``[count]`` values, uniform within the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(count)


def per_image(value: Tensor) -> Tensor:
    """``[N]`` as ``[N, 1, 1, 1]``, to be combined with images."""
    return value[:, None, None, None]


def require_range(name: str, bounds: tuple[float, float], low: float, high: float) -> None:
    """Raise unless ``low <= bounds[0] <= bounds[1] <= high``.

    Raises:
        ValueError: Naming the argument and what it may be.
    """
    if not low <= bounds[0] <= bounds[1] <= high:
        raise ValueError(f"{name} is {bounds}; it needs two numbers in ascending order within {low:g}..{high:g}.")

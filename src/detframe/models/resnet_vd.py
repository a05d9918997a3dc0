"""The small ResNets of RT-DETR, which differ from timm's by one projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from detframe.models.backbones import TimmBackbone


class ResNetVd(TimmBackbone):
    """ResNet-18 and -34 "vd" as PaddlePaddle has them: timm's ``d`` models with a projection in the first shortcut.

    Only the authors' RT-DETR checkpoints need it; without them it starts as timm's model.

    Args:
        name: ``resnet18d`` or ``resnet34d``.
        weights: See :class:`~detframe.models.backbones.TimmBackbone`.
        freeze: Likewise.
        mean: Mean of the images that the weights were trained with, RGB, 0..1; those of RT-DETR know none.
        std: Standard deviation, likewise.

    Raises:
        ValueError: The name is another, or the weights do not fit.
    """

    def __init__(
        self,
        name: str = "resnet18d",
        weights: str | None = None,
        freeze: Sequence[str] = (),
        mean: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    ) -> None:
        if name not in ("resnet18d", "resnet34d"):
            raise ValueError(f"ResNetVd: name is {name!r}; it is resnet18d or resnet34d, others are timm's own.")
        super().__init__(name, weights, freeze=freeze, mean=mean, std=std)
        block: Any = self.body.get_submodule("layer1.0")
        projection = nn.Conv2d(64, 64, 1, bias=False)
        nn.init.dirac_(projection.weight)  # gives what comes in: the shortcut that timm's weights are used to
        projection.requires_grad_(block.conv1.weight.requires_grad)
        norm = nn.BatchNorm2d(64).requires_grad_(block.conv1.weight.requires_grad)
        block.downsample = nn.Sequential(nn.Identity(), projection, norm)

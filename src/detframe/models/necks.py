"""Necks: networks that mix the levels of a feature pyramid."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from detframe.structures import Level


class Neck(nn.Module):
    """What a detector needs of a neck.

    A neck is built from the levels that it is given, ``Callable[[list[Level]], Neck]``, and says in ``levels`` what it
    gives.
    """

    __jit_ignored_attributes__: ClassVar[list[str]] = [
        "levels"
    ]  # TorchScript cannot hold a list of named tuples, nor does it need to
    levels: list[Level]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Feature maps of ``levels``, from the backbone's, finest first."""
        raise NotImplementedError


class FPN(Neck):
    """Feature pyramid network (Lin et al., 2017), torchvision's, with batch norm.

    Args:
        levels: What the backbone gives.
        channels: Channels of every map that comes out.
    """

    def __init__(self, levels: list[Level], channels: int = 64) -> None:
        super().__init__()
        self.levels = [Level(channels, level.stride) for level in levels]
        self.fpn = FeaturePyramidNetwork([level.channels for level in levels], channels, norm_layer=nn.BatchNorm2d)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mixed feature maps, as many and as large as came in."""
        named: dict[str, Tensor] = {}
        for i, feature in enumerate(features):
            named[str(i)] = feature
        mixed: dict[str, Tensor] = self.fpn(named)
        return list(mixed.values())

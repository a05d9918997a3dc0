"""Necks: networks that mix the levels of a feature pyramid, or make one."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

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
    """Feature pyramid network (Lin et al., 2017), torchvision's.

    Args:
        levels: What the backbone gives.
        channels: Channels of every map that comes out.
        norm: Batch norm after each convolution; torchvision's COCO weights were trained without, save
            ``fasterrcnn_resnet50_fpn_v2``.
        extra: Coarser levels beside: ``pool`` subsamples the coarsest (Faster R-CNN); ``convolutions`` makes two from
            it (FCOS, RetinaNet), ``convolutions_of_backbone`` from the backbone's coarsest map (RetinaNet's second
            version in torchvision).

    Raises:
        ValueError: The strides do not grow from level to level.
    """

    def __init__(
        self,
        levels: list[Level],
        channels: int = 64,
        norm: bool = True,
        extra: Literal["pool", "convolutions", "convolutions_of_backbone"] | None = None,
    ) -> None:
        super().__init__()
        require_pyramid(self, levels)
        coarsest = levels[-1]
        strides = [level.stride for level in levels]
        block: ExtraFPNBlock | None = None
        if extra == "pool":
            block = LastLevelMaxPool()
            strides += [2 * coarsest.stride]
        elif extra is not None:
            # torchvision's block reads the pyramid where the channels are equal, and else the backbone.
            source = channels if extra == "convolutions" else coarsest.channels
            block = LastLevelP6P7(source, channels)
            strides += [2 * coarsest.stride, 4 * coarsest.stride]
        self.levels = [Level(channels, stride) for stride in strides]
        self.fpn = FeaturePyramidNetwork(
            [level.channels for level in levels], channels, block, nn.BatchNorm2d if norm else None
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mixed feature maps, see :class:`Neck`."""
        named: dict[str, Tensor] = {}
        for i, feature in enumerate(features):
            named[str(i)] = feature
        mixed: dict[str, Tensor] = self.fpn(named)
        return list(mixed.values())


class PAFPN(Neck):
    """Path aggregation network (Liu et al., 2018): down the pyramid, then up again, mixed by cross-stage blocks.

    Args:
        levels: What the backbone gives.
        channels: Channels of every map that comes out: 64 is light, 256 full.
        depth: Bottlenecks of each block: 1 is light, 3 full.
        depthwise: Depthwise separable 3x3 convolutions, which take a ninth of the arithmetic.

    Raises:
        ValueError: The strides do not double from level to level.
    """

    def __init__(self, levels: list[Level], channels: int = 64, depth: int = 1, depthwise: bool = True) -> None:
        super().__init__()
        require_pyramid(self, levels, doubling=True)
        self.levels = [Level(channels, level.stride) for level in levels]
        self.lateral = nn.ModuleList(_convolution(level.channels, channels, 1) for level in levels)
        steps = len(levels) - 1
        self.top_down = nn.ModuleList(CSPBlock(2 * channels, channels, depth, depthwise) for _ in range(steps))
        self.down = nn.ModuleList(_spatial(channels, channels, depthwise, stride=2) for _ in range(steps))
        self.bottom_up = nn.ModuleList(CSPBlock(2 * channels, channels, depth, depthwise) for _ in range(steps))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mixed feature maps, see :class:`Neck`."""
        maps: list[Tensor] = []
        for i, convolution in enumerate(self.lateral):
            maps.append(convolution(features[i]))
        for step, block in enumerate(self.top_down):
            i = len(maps) - 2 - step
            coarser = functional.interpolate(maps[i + 1], size=maps[i].shape[2:], mode="nearest")
            maps[i] = block(torch.cat((maps[i], coarser), dim=1))
        # One list for each kind of layer, since TorchScript cannot walk two lists of modules at once.
        halved = [maps[0]]
        for i, (convolution, block) in enumerate(zip(self.down, self.bottom_up)):  # noqa: B905 - no strict in TorchScript
            finer = convolution(halved[i])
            halved.append(block(torch.cat((finer, maps[i + 1]), dim=1)))
        return halved


class SimpleFeaturePyramid(Neck):
    """Simple feature pyramid (ViTDet, Li et al., 2022, section 3): every level from a plain backbone's last map.

    Args:
        levels: What the backbone gives; the last is used.
        channels: Channels of every map that comes out.
        strides: Input pixels per cell of the maps, finest first, each a quarter to four times the last level's.

    Raises:
        ValueError: A stride cannot be reached.
    """

    def __init__(self, levels: list[Level], channels: int = 64, strides: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        source = levels[-1]
        unreachable = [s for s in strides if s not in {source.stride * 2**k // 4 for k in range(5)}]
        if unreachable:
            raise ValueError(
                f"SimpleFeaturePyramid makes strides of a quarter to four times the backbone's {source.stride}, by "
                f"powers of two; {unreachable[0]} is none of them."
            )
        self.levels = [Level(channels, stride) for stride in strides]
        self.maps = nn.ModuleList(_rescaled(source, channels, stride) for stride in strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Feature maps of all strides, see :class:`Neck`."""
        maps: list[Tensor] = []
        for convert in self.maps:
            maps.append(convert(features[-1]))
        return maps


class CSPBlock(nn.Module):
    """Cross-stage partial block (Wang et al., 2020): half of the channels pass through bottlenecks.

    Args:
        channels: Of what comes in.
        width: Of what comes out.
        depth: Bottlenecks.
        depthwise: Depthwise separable 3x3 convolutions.
    """

    def __init__(self, channels: int, width: int, depth: int, depthwise: bool) -> None:
        super().__init__()
        half = width // 2
        self.aside = _convolution(channels, half, 1)
        self.through = _convolution(channels, half, 1)
        self.bottlenecks = nn.ModuleList(
            nn.Sequential(_convolution(half, half, 1), _spatial(half, half, depthwise)) for _ in range(depth)
        )
        self.join = _convolution(2 * half, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width, H, W]`` of ``[B, channels, H, W]``."""
        inner = self.through(features)
        for bottleneck in self.bottlenecks:
            inner = inner + bottleneck(inner)
        joined: Tensor = self.join(torch.cat((inner, self.aside(features)), dim=1))
        return joined


def require_pyramid(neck: Neck, levels: list[Level], doubling: bool = False) -> None:
    """Refuse levels whose strides do not grow, as those of a plain vision transformer, or do not double.

    Raises:
        ValueError: They do not.
    """
    strides = [level.stride for level in levels]
    grows = all(b == 2 * a if doubling else b > a for a, b in pairwise(strides))
    if not grows:
        raise ValueError(
            f"{type(neck).__name__} needs levels whose strides {'double' if doubling else 'grow'}; the backbone's are "
            f"{', '.join(map(str, strides))}. For a plain vision transformer take SimpleFeaturePyramid, else other "
            "`out_indices`."
        )


def _convolution(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return Conv2dNormActivation(channels, width, kernel, stride, groups=groups, activation_layer=nn.SiLU)


def _spatial(channels: int, width: int, depthwise: bool, stride: int = 1) -> nn.Module:
    """3x3 convolution, whole or split into a depthwise and a pointwise one."""
    if not depthwise:
        return _convolution(channels, width, 3, stride)
    return nn.Sequential(_convolution(channels, channels, 3, stride, groups=channels), _convolution(channels, width, 1))


def _rescaled(source: Level, channels: int, stride: int) -> nn.Sequential:
    """From the source's map to one of another stride: transposed convolutions up, pooling down; then ViTDet's two."""
    layers: list[nn.Module] = []
    width, at = source.channels, source.stride
    while at > stride:
        layers += [nn.ConvTranspose2d(width, width // 2, 2, 2), LayerNorm2d(width // 2), nn.GELU()]
        width, at = width // 2, at // 2
    while at < stride:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        at *= 2
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)

"""The hybrid encoder of the real-time DETRs: attention on the coarsest level, convolutions that mix the levels.

Postponed annotations would break TorchScript here, which reads the types of the methods.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from detframe.models.necks import Neck
from detframe.structures import Level


class HybridEncoder(Neck):
    """Hybrid encoder of RT-DETR (Zhao et al., 2024, section 4.2), with the layers of RT-DETRv2.

    The coarsest level attends to itself, then the levels are mixed from coarse to fine and back. Any image size works;
    the attention costs the square of the coarsest map's cells.

    Args:
        levels: What the backbone gives, finest first.
        channels: Channels of every map that comes out.
        expansion: Channels inside a fusion block as a share of ``channels``.
        blocks: RepVGG blocks of a fusion block.
        layers: Transformer layers on the coarsest level.
        heads: Attention heads; divides ``channels``.
        feedforward: Channels inside the transformer's feed-forward networks.

    Raises:
        ValueError: ``channels`` does not suit the attention, or the levels are none or not finest first.
    """

    def __init__(
        self,
        levels: list[Level],
        channels: int = 256,
        expansion: float = 1.0,
        blocks: int = 3,
        layers: int = 1,
        heads: int = 8,
        feedforward: int = 1024,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if channels % heads or channels % 4:
            raise ValueError(
                f"{name}: channels is {channels}; its {heads} attention heads and the four parts of its position "
                f"embedding need a multiple of {heads} and of 4."
            )
        strides = [level.stride for level in levels]
        if not levels or any(coarse % fine for fine, coarse in pairwise(strides)):
            raise ValueError(
                f"{name}: the levels have strides {strides}; it takes one or more, finest first, each a multiple of "
                "the one before, so that a finer map can be brought to the size of a coarser one."
            )
        self.levels = [Level(channels, stride) for stride in strides]
        self.input_proj = nn.ModuleList(ConvNorm(level.channels, channels, 1) for level in levels)
        self.encoder = nn.ModuleList(AttentionLayer(channels, heads, feedforward) for _ in range(layers))
        steps = [coarse // fine for fine, coarse in pairwise(strides)]
        self.lateral_convs = nn.ModuleList(self.make_lateral(channels) for _ in steps)
        self.fpn_blocks = nn.ModuleList(self.make_fusion(channels, expansion, blocks) for _ in steps)
        self.downsample_convs = nn.ModuleList(self.make_downsampling(channels, step) for step in steps)
        self.pan_blocks = nn.ModuleList(self.make_fusion(channels, expansion, blocks) for _ in steps)

    @staticmethod
    def make_lateral(channels: int) -> nn.Module:
        """What a coarser map goes through on its way to the finer one."""
        return ConvNorm(channels, channels, 1, activation=True)

    @staticmethod
    def make_fusion(channels: int, expansion: float, blocks: int) -> nn.Module:
        """What mixes two maps, from ``2 * channels`` to ``channels``."""
        return CSPRepLayer(2 * channels, channels, int(channels * expansion), blocks)

    @staticmethod
    def make_downsampling(channels: int, stride: int) -> nn.Module:
        """What brings a finer map to the size of the coarser one."""
        return ConvNorm(channels, channels, 3, stride, activation=True)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mixed feature maps, as many and as large as came in."""
        maps: list[Tensor] = []
        for i, projection in enumerate(self.input_proj):
            maps.append(projection(features[i]))

        coarsest = maps[-1]
        height, width = coarsest.shape[2], coarsest.shape[3]
        position = position_embedding(height, width, coarsest.shape[1], coarsest)
        tokens = coarsest.flatten(2).transpose(1, 2)  # [B, H * W, channels]
        for attention in self.encoder:
            tokens = attention(tokens, position)
        maps[-1] = tokens.transpose(1, 2).unflatten(2, [height, width])

        last = len(maps) - 1
        for i, (lateral, fusion) in enumerate(zip(self.lateral_convs, self.fpn_blocks)):  # noqa: B905 - not scriptable
            maps[last - i] = lateral(maps[last - i])
            finer = maps[last - i - 1]
            maps[last - i - 1] = fusion(torch.cat((resize(maps[last - i], finer), finer), dim=1))
        for i, (downsampling, fusion) in enumerate(zip(self.downsample_convs, self.pan_blocks)):  # noqa: B905
            coarser = maps[i + 1]
            # Backbones round a size that is no multiple of the stride up or down, this convolution always up.
            maps[i + 1] = fusion(torch.cat((resize(downsampling(maps[i]), coarser), coarser), dim=1))
        return maps


class ELANHybridEncoder(HybridEncoder):
    """Hybrid encoder of D-FINE (Peng et al., 2024): fusion by RepNCSPELAN4, downsampling by SCDown.

    Args:
        levels: What the backbone gives, finest first.
        channels: Channels of every map that comes out.
        expansion: Channels inside a fusion block as a share of half of ``channels``.
        blocks: RepVGG blocks of each of the two parts of a fusion block.
        layers: Transformer layers on the coarsest level.
        heads: Attention heads; divides ``channels``.
        feedforward: Channels inside the transformer's feed-forward networks.

    Raises:
        ValueError: ``channels`` does not suit the attention, or the levels are none or not finest first.
    """

    @staticmethod
    def make_lateral(channels: int) -> nn.Module:
        """What a coarser map goes through on its way to the finer one."""
        return ConvNorm(channels, channels, 1)

    @staticmethod
    def make_fusion(channels: int, expansion: float, blocks: int) -> nn.Module:
        """What mixes two maps, from ``2 * channels`` to ``channels``."""
        return RepNCSPELAN4(2 * channels, channels, round(channels * expansion // 2), blocks)

    @staticmethod
    def make_downsampling(channels: int, stride: int) -> nn.Module:
        """What brings a finer map to the size of the coarser one."""
        return SCDown(channels, stride)


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch norm and, where asked for, SiLU.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Side of the kernel in cells.
        stride: Step in cells.
        groups: Groups of the convolution.
        activation: Whether SiLU follows.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = False
    ) -> None:
        parts: list[tuple[str, nn.Module]] = [
            ("conv", nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)),
            ("norm", nn.BatchNorm2d(outputs)),
        ]
        super().__init__(OrderedDict([*parts, ("act", nn.SiLU())] if activation else parts))


class RepVGGBlock(nn.Module):
    """The sum of a 3x3 and a 1x1 convolution, then SiLU (RepVGG, Ding et al., 2021).

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, H, W]`` in and out."""
        return functional.silu(self.conv1(x) + self.conv2(x))


class CSPRepLayer(nn.Module):
    """Two paths that are added, one of them through RepVGG blocks: the fusion block of RT-DETR.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        hidden: Channels of both paths.
        blocks: RepVGG blocks.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, hidden, 1, activation=True)
        self.conv2 = ConvNorm(inputs, hidden, 1, activation=True)
        self.bottlenecks = nn.Sequential(*(RepVGGBlock(hidden) for _ in range(blocks)))
        self.conv3 = nn.Identity() if hidden == outputs else ConvNorm(hidden, outputs, 1, activation=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` in, ``[B, outputs, H, W]`` out."""
        mixed: Tensor = self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))
        return mixed


class RepNCSPELAN4(nn.Module):
    """An ELAN of two CSP layers (YOLOv9, Wang et al., 2024): the fusion block of D-FINE.

    Args:
        inputs: Channels that come in; half of them go past both parts.
        outputs: Channels that go out.
        hidden: Channels of each part.
        blocks: RepVGG blocks of each part.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(inputs, inputs, 1, activation=True)
        self.cv2 = nn.Sequential(
            CSPRepLayer(inputs // 2, hidden, hidden, blocks), ConvNorm(hidden, hidden, 3, activation=True)
        )
        self.cv3 = nn.Sequential(
            CSPRepLayer(hidden, hidden, hidden, blocks), ConvNorm(hidden, hidden, 3, activation=True)
        )
        self.cv4 = ConvNorm(inputs + 2 * hidden, outputs, 1, activation=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` in, ``[B, outputs, H, W]`` out."""
        both = self.cv1(x)
        first = self.cv2(both.chunk(2, dim=1)[1])
        mixed: Tensor = self.cv4(torch.cat((both, first, self.cv3(first)), dim=1))
        return mixed


class SCDown(nn.Module):
    """Channels mixed first, then cells, each channel by itself (YOLOv10, Wang et al., 2024).

    Args:
        channels: Channels in and out.
        stride: Step in cells.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels, channels, 1)
        self.cv2 = ConvNorm(channels, channels, 3, stride, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, H, W]`` in, ``[B, channels, H / stride, W / stride]`` out."""
        smaller: Tensor = self.cv2(self.cv1(x))
        return smaller


class AttentionLayer(nn.Module):
    """A transformer encoder layer, norms last, that adds the position to queries and keys but not to values.

    Args:
        channels: Channels of the tokens.
        heads: Attention heads; divides ``channels``.
        feedforward: Channels inside the feed-forward network.
    """

    def __init__(self, channels: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """``[B, N, channels]`` in and out, with positions ``[1, N, channels]``."""
        placed = tokens + position
        tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens, need_weights=False)[0])
        attended: Tensor = self.norm2(tokens + self.linear2(functional.gelu(self.linear1(tokens))))
        return attended


def position_embedding(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, ``[1, H * W, channels]`` (Attention Is All You Need, section 3.5, in 2D).

    Args:
        height: Rows of the map.
        width: Columns of the map.
        channels: A multiple of 4.
        like: Gives type and device.
    """
    quarter = channels // 4
    frequency = 10000.0 ** (-torch.arange(quarter, device=like.device, dtype=torch.float32) / quarter)
    rows = torch.arange(height, device=like.device, dtype=torch.float32)[:, None] * frequency  # [H, channels / 4]
    columns = torch.arange(width, device=like.device, dtype=torch.float32)[:, None] * frequency
    of_rows = torch.cat((rows.sin(), rows.cos()), dim=1)[:, None].expand(-1, width, -1)  # [H, W, channels / 2]
    of_columns = torch.cat((columns.sin(), columns.cos()), dim=1)[None].expand(height, -1, -1)
    return torch.cat((of_rows, of_columns), dim=2).flatten(0, 1)[None].to(like.dtype)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """A map ``[B, C, H, W]`` in the height and width of another, each cell from the nearest one."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return functional.interpolate(x, [like.shape[2], like.shape[3]])

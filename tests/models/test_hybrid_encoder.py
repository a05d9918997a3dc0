import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from detframe.models.hybrid_encoder import ELANHybridEncoder, HybridEncoder, position_embedding
from detframe.structures import Level

STRIDES = (8, 16, 32, 64)
KINDS = pytest.mark.parametrize("kind", [HybridEncoder, ELANHybridEncoder])


def build(kind: type[HybridEncoder], levels: int = 3) -> HybridEncoder:
    torch.manual_seed(0)
    given = [Level(8 * (i + 1), stride) for i, stride in enumerate(STRIDES[:levels])]
    return kind(given, 16, expansion=0.5, blocks=1, heads=2, feedforward=24).eval()


def features(batch: int, height: int, width: int, levels: int = 3, down: bool = False) -> list[Tensor]:
    """Maps of a backbone that rounds odd sizes up, or down."""
    return [
        torch.rand(batch, 8 * (i + 1), *(s // stride if down else -(-s // stride) for s in (height, width)))
        for i, stride in enumerate(STRIDES[:levels])
    ]


@KINDS
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("down", [False, True])
def test_maps_keep_their_sizes(kind: type[HybridEncoder], levels: int, down: bool) -> None:
    encoder, maps = build(kind, levels), features(2, 150, 217, levels, down)
    with torch.no_grad():
        mixed = encoder(maps)
    assert [m.shape for m in mixed] == [(2, 16, *m.shape[2:]) for m in maps]
    assert encoder.levels == [Level(16, stride) for stride in STRIDES[:levels]]


@KINDS
def test_levels_may_have_strides_in_common_as_a_plain_transformer_gives_them(kind: type[HybridEncoder]) -> None:
    encoder = kind([Level(8, 16), Level(8, 16), Level(8, 16)], 16, blocks=1, heads=2).eval()
    assert [m.shape for m in encoder([torch.rand(1, 8, 5, 7)] * 3)] == [(1, 16, 5, 7)] * 3


@KINDS
def test_the_coarsest_map_reaches_everywhere(kind: type[HybridEncoder]) -> None:
    encoder, maps = build(kind), features(1, 256, 256)
    changed = [m.clone() for m in maps]
    changed[-1][:, :, 0, 0] += 1
    with torch.no_grad():
        moved = [(a - b).abs().amax(dim=(0, 1)) for a, b in zip(encoder(maps), encoder(changed), strict=True)]
    assert all((m > 0).all() for m in moved)


@KINDS
def test_every_parameter_learns(kind: type[HybridEncoder]) -> None:
    encoder = build(kind).train()
    torch.stack([m.square().sum() for m in encoder(features(2, 96, 96))]).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@KINDS
def test_scripted_and_exported_equal_eager(kind: type[HybridEncoder]) -> None:
    encoder, maps, others = build(kind), features(2, 100, 130), features(3, 100, 130)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated and still one of the two formats
        scripted = torch.jit.script(encoder)
    batch = Dim("batch", min=1, max=8)
    program = torch.export.export(encoder, (maps,), dynamic_shapes=([{0: batch}] * 3,)).module()
    with torch.no_grad():
        expected = encoder(others)
        for found in (scripted(others), program(others)):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@KINDS
def test_half_precision_is_near(kind: type[HybridEncoder]) -> None:
    encoder, maps = build(kind), features(1, 96, 128)
    with torch.no_grad():
        expected = encoder(maps)
        found = encoder.bfloat16()([m.bfloat16() for m in maps])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, atol=0.05, rtol=0.05)


def test_positions_are_sines_of_row_and_column() -> None:
    embedding = position_embedding(3, 5, 8, torch.zeros(1)).view(3, 5, 8)
    slow = 10000**-0.5
    row, column = 2, 4
    expected = [f(n * rate) for n in (row, column) for f in (math.sin, math.cos) for rate in (1, slow)]
    torch.testing.assert_close(embedding[row, column], torch.tensor(expected))


@pytest.mark.parametrize(
    ("levels", "channels", "message"),
    [
        ([Level(8, 8)], 20, "HybridEncoder: channels is 20; its 8 attention heads"),
        ([], 16, r"strides \[\]"),
        ([Level(8, 16), Level(8, 8)], 16, r"HybridEncoder: the levels have strides \[16, 8\].*finest first"),
    ],
)
def test_what_cannot_be_built_says_why(levels: list[Level], channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridEncoder(levels, channels)

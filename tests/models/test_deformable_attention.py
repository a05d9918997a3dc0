import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from detframe.models.deformable_attention import (
    DeformableAttention,
    Grid,
    ProjectedDeformableAttention,
    bilinear_corners,
    deformable_attention,
    star,
)

POINTS = [3, 2]
GRIDS = [Grid(7, 9, 7.0, 9.0), Grid(4, 5, 4.0, 5.0)]


def by_grid_sample(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, depth = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([grid.height * grid.width for grid in GRIDS], dim=-1)
    places = (2 * locations - 1).transpose(1, 2).flatten(0, 1).split(POINTS, dim=-2)
    read = torch.cat(
        [
            grid_sample(each.unflatten(-1, (grid.height, grid.width)), place, align_corners=False)
            for each, grid, place in zip(maps, GRIDS, places, strict=True)
        ],
        dim=-1,
    )  # [B * heads, D, Q, P]
    mixed = (read * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
    return mixed.view(batch, heads * depth, -1).transpose(1, 2)


def test_equals_grid_sample_in_value_and_gradients() -> None:
    torch.manual_seed(0)
    value = torch.randn(2, 83, 3, 8, requires_grad=True)
    locations = (torch.rand(2, 6, 3, 5, 2) * 1.4 - 0.2).requires_grad_()  # some of them outside
    weights = torch.rand(2, 6, 3, 5, requires_grad=True)
    ours = deformable_attention(value, GRIDS, locations, weights, POINTS)
    theirs = by_grid_sample(value, locations, weights)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    factor = torch.randn_like(ours)
    inputs = (value, locations, weights)
    for a, b in zip(
        torch.autograd.grad((ours * factor).sum(), inputs),
        torch.autograd.grad((theirs * factor).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_map_that_reaches_past_the_image_is_read_where_the_image_is() -> None:
    value = torch.arange(4.0).view(1, 4, 1, 1)  # a row of 4 cells, of which the image covers 3.5
    locations = torch.tensor([0.5 / 3.5, 1.0]).view(1, 2, 1, 1, 1) * torch.tensor([1.0, 0.0])
    locations[..., 1] = 0.5
    read = deformable_attention(value, [Grid(1, 4, 1.0, 3.5)], locations, torch.ones(1, 2, 1, 1), [1])
    torch.testing.assert_close(read.flatten(), torch.tensor([0.0, 3.0]))  # the first centre, and the image's end


def test_places_that_are_no_numbers_stay_inside() -> None:
    x = torch.tensor([float("nan"), float("inf"), -1e30])
    index, _ = bilinear_corners(x, x, 3, 5)
    assert index.min() >= 0
    assert index.max() < 15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [DeformableAttention, ProjectedDeformableAttention])
def test_half_precision_loses_no_more_than_its_values(kind: type[DeformableAttention], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = kind(16, 2, [4])
    size = 300  # float16 places nothing finer than an eighth of a cell out there
    grids = [Grid(1, size, 1.0, float(size))]
    query = torch.randn(1, 5, 16)
    memory = torch.linspace(0, 1, size)[None, :, None].expand(1, size, 16)
    boxes = torch.tensor([0.9003, 0.5, 0.01, 0.01]).expand(1, 5, 4)
    exact = attention(query, boxes, memory, grids)
    half = attention.to(dtype)(query.to(dtype), boxes, memory.to(dtype), grids)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=1e-2, rtol=1e-2)


def test_first_offsets_look_every_way_and_outwards() -> None:
    expected = [
        [[1.0, 0], [2, 0], [1, 0]],
        [[0, 1], [0, 2], [0, 1]],
        [[-1, 0], [-2, 0], [-1, 0]],
        [[0, -1], [0, -2], [0, -1]],
    ]
    torch.testing.assert_close(star(4, [2, 1]), torch.tensor(expected), atol=1e-6, rtol=0)

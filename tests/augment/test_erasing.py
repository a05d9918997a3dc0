from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detframe.augment.erasing import Erasing, Fill, GridErasing, HoleErasing, bearable, covered
from detframe.structures import Batch, Targets

SIDE = 80


def batch_of(boxes: Tensor, ignore: Tensor | None = None) -> Batch:
    """White images; boxes ``[B, N, 4]`` without area are padding."""
    count, rows = boxes.shape[:2]
    valid = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    return Batch(
        images=torch.ones(count, 3, SIDE, SIDE),
        targets=Targets(
            boxes=boxes,
            labels=torch.zeros(count, rows, dtype=torch.int64),
            ignore=torch.zeros_like(valid) if ignore is None else ignore & valid,
            valid=valid,
        ),
        original_boxes=boxes,
        areas=torch.zeros(count, rows),
        annotation_ids=torch.zeros(count, rows, dtype=torch.int64),
        image_ids=torch.arange(count),
        original_sizes=torch.full((count, 2), SIDE),
        transforms=torch.tensor([[1.0, 1, 0, 0]]).expand(count, 4),
    )


def random_boxes(count: int, rows: int) -> Tensor:
    size = torch.randint(2, 50, (count, rows, 2))
    corner = (torch.rand(count, rows, 2) * (SIDE - size)).floor()
    return torch.cat((corner, corner + size), dim=-1) * (torch.rand(count, rows, 1) < 0.9)


def grey_holes(kind: type[Erasing] | type[GridErasing], share: float) -> HoleErasing:
    if kind is Erasing:
        return Erasing(holes=12, size=(0.005, 0.1), max_share=share, fill="grey", p=1.0)
    return GridErasing(spacing=(0.1, 0.4), ratio=0.6, max_share=share, fill="grey", p=1.0)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([Erasing, GridErasing]),
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.0, 0.1, 0.3, 0.7]),
    rows=st.integers(0, 6),
)
def test_never_erases_more_than_allowed(
    kind: type[Erasing] | type[GridErasing], seed: int, share: float, rows: int
) -> None:
    torch.manual_seed(seed)
    batch = batch_of(random_boxes(4, rows))
    erased = grey_holes(kind, share)(batch).images[:, 0] < 1
    for image, boxes in zip(erased, batch.targets.boxes.int().tolist(), strict=True):
        for x1, y1, x2, y2 in boxes:
            inside = image[y1:y2, x1:x2]
            if inside.numel():
                assert float(inside.float().mean()) <= (share if min(x2 - x1, y2 - y1) >= 16 else 0) + 1e-6


@pytest.mark.parametrize("kind", [Erasing, GridErasing])
def test_erases_freely_where_no_object_is(kind: type[Erasing] | type[GridErasing]) -> None:
    boxes = torch.tensor([[[10.0, 10, 70, 70]]]).repeat(64, 1, 1)
    operator = grey_holes(kind, 0.3)
    shares = {}
    for name, batch in (
        ("empty", batch_of(torch.zeros(64, 0, 4))),
        ("ignored", batch_of(boxes, torch.ones(64, 1, dtype=torch.bool))),
        ("live", batch_of(boxes)),
    ):
        torch.manual_seed(0)
        shares[name] = float((operator(batch).images < 1).float().mean())
    assert 0.2 < shares["empty"] < 0.6
    assert shares["ignored"] == shares["empty"]
    assert 0.05 < shares["live"] < shares["empty"]


def test_targets_and_the_other_images_stay() -> None:
    torch.manual_seed(0)
    batch = batch_of(random_boxes(64, 3))
    after = Erasing(p=0.5)(batch)
    assert after.targets is batch.targets
    changed = (after.images != batch.images).flatten(1).any(dim=1)
    assert not changed.any()  # the mean of white is white
    after = Erasing(p=0.5, fill="grey")(batch)
    changed = (after.images != batch.images).flatten(1).any(dim=1)
    assert 20 < int(changed.sum()) < 44
    assert set(after.images.unique().tolist()) == {0.5, 1.0}


@pytest.mark.parametrize("fill", ["mean", "grey", "noise"])
def test_what_a_hole_shows(fill: Fill) -> None:
    torch.manual_seed(0)
    batch = batch_of(torch.zeros(1, 0, 4))
    batch.images[:] = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    batch.images[..., 1:3] = 0.9
    after = Erasing(holes=1, size=(0.3, 0.3), aspect=(1.0, 1.0), fill=fill, p=1.0)(batch).images
    changed = after[0][:, (after != batch.images)[0, 0]]
    assert changed.shape[1] in range(44 * 40, 44 * 44 + 1)
    if fill == "mean":
        expected = batch.images.mean(dim=(0, 2, 3))[:, None].expand_as(changed)
        torch.testing.assert_close(changed, expected)
    elif fill == "grey":
        assert changed.unique().tolist() == [0.5]
    else:
        assert float(changed.std()) == pytest.approx(12**-0.5, rel=0.05)


def test_holes_are_left_out_one_by_one() -> None:
    targets = batch_of(torch.tensor([[[0.0, 0, 20, 20], [40, 40, 50, 50]]])).targets  # the second is small
    holes = torch.tensor(
        [[[0.0, 0, 20, 10], [0, 0, 10, 10], [15, 15, 20, 20], [10, 10, 14, 14], [60, 0, 80, 20], [49, 49, 52, 52]]]
    )
    # Half of the first object; a quarter; 1/16 more, above 0.3; 1/25, which comes after it; nothing; one pixel.
    assert bearable(holes, targets, 0.3, 16).tolist() == [[False, True, False, False, True, False]]
    assert bearable(holes[:, [3, 1]], targets, 0.3, 16).tolist() == [[True, True]]
    assert bearable(holes, targets, 0.5, 5).tolist() == [[True, False, False, False, True, True]]


def test_pixels_inside_boxes() -> None:
    mask = covered(torch.tensor([[[1.0, 2, 4, 3], [0, 0, 0, 0], [3, 1, 5, 3]]]), 4, 6)
    assert mask[0].int().tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]


def test_a_grid_is_regular() -> None:
    torch.manual_seed(0)
    operator = GridErasing(spacing=(0.25, 0.25), ratio=0.5, fill="grey", p=1.0)
    holes = (operator(batch_of(torch.zeros(3, 0, 4))).images[:, 0] < 1).float()
    torch.testing.assert_close(holes[:, 20:], holes[:, :-20])
    torch.testing.assert_close(holes[:, :, 20:], holes[:, :, :-20])
    assert holes.mean(dim=(1, 2)).tolist() == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("fill", ["mean", "grey", "noise"])
@pytest.mark.parametrize("kind", [Erasing, GridErasing])
@pytest.mark.parametrize("rows", [0, 3])
def test_waits_for_nothing(
    kind: type[Erasing] | type[GridErasing], fill: Fill, rows: int, no_waiting: TorchDispatchMode
) -> None:
    batch = batch_of(random_boxes(4, rows))
    with no_waiting:
        kind(fill=fill, p=0.5)(batch)

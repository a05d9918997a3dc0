"""Assigners against torchvision's and against answers found by hand."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import _utils as reference
from torchvision.ops import box_iou

from detframe.models import assigners
from detframe.models.anchors import Cells, grid_cells
from detframe.models.assigners import (
    Assigner,
    ATSSAssigner,
    FCOSAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
    assign_by_iou,
)
from detframe.structures import Targets, empty_targets

ALL = [TaskAlignedAssigner(), ATSSAssigner(), SimOTAAssigner(), FCOSAssigner()]


def cells() -> Cells:
    return grid_cells([torch.zeros(1, 1, side, side) for side in (16, 8, 4)], [8, 16, 32], 0.5)


def scene(batch: int = 3, count: int = 5) -> tuple[Tensor, Tensor, Targets]:
    """Scores, predicted boxes and targets: objects, an ignore region, a row of padding."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(batch, count, 2, generator=generator) * 80
    boxes = torch.cat((corners, corners + 10 + torch.rand(batch, count, 2, generator=generator) * 38), dim=-1)
    valid = torch.ones(batch, count, dtype=torch.bool)
    valid[:, -1] = False
    ignore = torch.zeros_like(valid)
    ignore[:, 0] = True
    labels = torch.randint(0, 3, (batch, count), generator=generator)
    grid = cells()
    half = 20 * torch.rand(batch, len(grid.strides), 4, generator=generator)
    predicted = torch.cat((grid.centres - half[..., :2], grid.centres + half[..., 2:]), dim=-1)
    scores = torch.rand(batch, len(grid.strides), 3, generator=generator)
    return scores, predicted, Targets(boxes * valid[..., None], labels * valid, ignore, valid)


@pytest.mark.parametrize("assigner", ALL, ids=lambda a: type(a).__name__)
def test_what_every_assigner_keeps(assigner: Assigner) -> None:
    scores, boxes, targets = scene()
    found = assigner(scores, boxes, cells(), targets)
    owner = targets.valid.gather(1, found.target) & ~targets.ignore.gather(1, found.target)
    assert owner[found.positive].all()  # neither padding nor an ignore region is ever learned
    assert found.positive.any(dim=1).all()
    assert (found.quality[~found.positive] == 0).all()
    assert found.quality.max() <= 1
    assert not (found.positive & found.ignored).any()
    assert found.ignored.any(dim=1).all()
    middle = cells().centres[None].expand(3, -1, -1)
    own = targets.boxes.gather(1, found.target[..., None].expand(-1, -1, 4))
    reach = (own[..., 2:] - own[..., :2]) / 2 + 2.5 * cells().strides[:, None]  # SimOTA's cells near a centre
    assert (((own[..., :2] + own[..., 2:]) / 2 - middle).abs() <= reach)[found.positive].all()


@pytest.mark.parametrize("assigner", ALL, ids=lambda a: type(a).__name__)
def test_crowded_batches_are_taken_in_parts_with_the_same_result(
    assigner: Assigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, boxes, targets = scene()
    whole = assigner(scores, boxes, cells(), targets)
    monkeypatch.setattr(assigners, "MOST_PAIRS", 1)
    for a, b in zip(whole, assigner(scores, boxes, cells(), targets), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("assigner", ALL, ids=lambda a: type(a).__name__)
def test_nothing_to_assign(assigner: Assigner) -> None:
    scores, boxes, _ = scene()
    for count in (0, 2):
        found = assigner(scores, boxes, cells(), empty_targets(3, count))
        assert not found.positive.any()
        assert not found.ignored.any()


def test_by_iou_equals_torchvisions_matcher() -> None:
    _, boxes, targets = scene()
    targets = targets._replace(ignore=torch.zeros_like(targets.ignore))
    matcher = reference.Matcher(0.5, 0.3, allow_low_quality_matches=True)
    found = assign_by_iou(boxes, targets, 0.5, 0.3, low_quality=True)
    for image in range(3):
        valid = targets.valid[image]
        expected = matcher(box_iou(targets.boxes[image][valid], boxes[image]))
        assert torch.equal(found.positive[image], expected >= 0)
        assert torch.equal(found.target[image][expected >= 0], expected[expected >= 0])
        assert torch.equal(found.ignored[image], expected == matcher.BETWEEN_THRESHOLDS)


def test_atss_by_hand() -> None:
    """One object of 64 px on one level: of its nine nearest cells, those above mean plus deviation."""
    grid = grid_cells([torch.zeros(1, 1, 16, 16)], [8], 0.5)
    half = torch.full((1, 256, 1), 32.0)
    boxes = torch.cat((grid.centres - half, grid.centres + half), dim=-1)
    targets = Targets(
        torch.tensor([[[36.0, 36, 100, 100]]]), torch.zeros(1, 1).long(), *(torch.tensor([[v]]) for v in (False, True))
    )
    found = ATSSAssigner(top_k=9)(torch.rand(1, 256, 1), boxes, grid, targets)
    nearest = (grid.centres - 68).norm(dim=1).topk(9, largest=False).indices
    overlap = box_iou(targets.boxes[0], boxes[0])[0]
    threshold = overlap[nearest].mean() + overlap[nearest].std()
    expected = sorted(int(i) for i in nearest if overlap[i] >= threshold)
    assert found.positive[0].nonzero()[:, 0].tolist() == expected == [136]
    assert found.quality[0, 136] == overlap[136] == 1


def test_simota_takes_as_many_cells_as_the_predictions_overlap() -> None:
    grid = grid_cells([torch.zeros(1, 1, 16, 16)], [8], 0.5)
    target = torch.tensor([40.0, 40, 72, 72])
    boxes = target.repeat(1, 256, 1)
    boxes[:, :, 2] += 200 * ((grid.centres - 56).norm(dim=1) > 12)  # only the cells about the centre predict well
    targets = Targets(target[None, None], torch.zeros(1, 1).long(), *(torch.tensor([[v]]) for v in (False, True)))
    found = SimOTAAssigner()(torch.full((1, 256, 1), 0.5), boxes, grid, targets)
    near = (grid.centres - 56).norm(dim=1) <= 12
    wanted = int(near.sum()) + int(32 * 32 / (232 * 32) * (10 - near.sum()))
    assert found.positive.sum() == wanted == near.sum()
    assert torch.equal(found.positive[0], near)

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou
from transformers.loss.loss_rt_detr import RTDetrLoss

from detframe.models.set_prediction import (
    Objects,
    box_losses,
    class_loss,
    corners,
    in_ignore_region,
    match_predictions,
    matching_costs,
    pack_objects,
    pairwise_giou,
    vote,
)
from detframe.structures import Targets, empty_targets


def objects_of(*counts: int, classes: int = 4) -> Objects:
    """Random objects, so many in each image."""
    rows = max(*counts, 1)
    boxes = torch.rand(len(counts), rows, 4) * 0.4 + 0.2
    return Objects(boxes, torch.randint(0, classes, (len(counts), rows)), list(counts))


def predictions(batch: int, queries: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, queries, classes), torch.rand(batch, queries, 4) * 0.4 + 0.2


def test_packing_takes_objects_to_the_front_whatever_lies_between() -> None:
    targets = Targets(
        boxes=torch.tensor([[[0.0, 0, 9, 9], [10, 20, 30, 60], [0, 0, 0, 0], [50, 50, 100, 100]]]),
        labels=torch.tensor([[1, 2, 0, 3]]),
        ignore=torch.tensor([[True, False, False, False]]),
        valid=torch.tensor([[True, True, False, True]]),
    )
    packed = pack_objects(targets, (100, 200))
    assert packed.counts == [2]
    assert packed.labels.tolist() == [[2, 3]]
    torch.testing.assert_close(packed.boxes, torch.tensor([[[0.1, 0.4, 0.1, 0.4], [0.375, 0.75, 0.25, 0.5]]]))
    for none in (empty_targets(2), empty_targets(2, 3)):
        assert pack_objects(none, (100, 200)).boxes.shape == (2, 1, 4)
        assert pack_objects(none, (100, 200)).counts == [0, 0]


def test_giou_equals_torchvision() -> None:
    torch.manual_seed(0)
    first, second = (corners(torch.rand(n, 4)) for n in (5, 7))
    torch.testing.assert_close(pairwise_giou(first, second), generalized_box_iou(first, second))
    nothing = torch.zeros(1, 4)
    assert pairwise_giou(nothing, nothing).item() == -1


@pytest.mark.parametrize(("queries", "count"), [(5, 3), (3, 3), (2, 4)])
def test_matching_equals_brute_force(queries: int, count: int) -> None:
    torch.manual_seed(queries)
    objects = objects_of(count, 0, count)
    logits, boxes = predictions(3, queries)
    costs = matching_costs(logits, boxes, objects)
    (match,) = match_predictions([(logits, boxes)], objects)
    assert (match[1] == -1).all()
    pairs = min(queries, count)
    for image in (0, 2):
        best = min(
            float(costs[image, list(rows), list(columns)].sum())
            for rows in itertools.permutations(range(queries), pairs)
            for columns in itertools.combinations(range(count), pairs)
        )
        matched = match[image] >= 0
        assert int(matched.sum()) == pairs
        assert len(set(match[image][matched].tolist())) == pairs
        assert float(costs[image][matched, match[image][matched]].sum()) == pytest.approx(best, rel=1e-5)


def test_matching_survives_a_network_that_has_diverged() -> None:
    objects = objects_of(2)
    logits, boxes = predictions(1, 4)
    (match,) = match_predictions([(logits * torch.nan, boxes)], objects)
    assert int((match >= 0).sum()) == 2


def test_a_vote_gives_what_most_say() -> None:
    matches = torch.tensor([[[0, -1, 1]], [[0, -1, 1]], [[1, -1, 0]], [[-1, -1, -1]]])
    assert vote(matches, objects_of(2)).tolist() == [[0, -1, 1]]


def test_losses_equal_those_of_transformers() -> None:
    torch.manual_seed(0)
    objects = objects_of(3, 1)
    logits, boxes = predictions(2, 8)
    (match,) = match_predictions([(logits, boxes)], objects)
    config = SimpleNamespace(
        num_labels=4,
        matcher_class_cost=2.0,
        matcher_bbox_cost=5.0,
        matcher_giou_cost=2.0,
        use_focal_loss=True,
        matcher_alpha=0.25,
        matcher_gamma=2.0,
        weight_loss_vfl=1.0,
        weight_loss_bbox=5.0,
        weight_loss_giou=2.0,
        eos_coefficient=1e-4,
        focal_loss_alpha=0.75,
        focal_loss_gamma=2.0,
    )
    truth = [
        {"class_labels": objects.labels[i, :count], "boxes": objects.boxes[i, :count]}
        for i, count in enumerate(objects.counts)
    ]
    theirs = RTDetrLoss(config)({"logits": logits, "pred_boxes": boxes}, truth)
    distance, giou = box_losses(boxes, match, objects)
    torch.testing.assert_close(5 * distance, theirs["loss_bbox"])
    torch.testing.assert_close(2 * giou, theirs["loss_giou"])
    everything = torch.ones_like(match, dtype=torch.bool)
    torch.testing.assert_close(class_loss(logits, boxes, match, objects, everything), theirs["loss_vfl"])


def test_only_what_lies_mostly_in_one_ignored_box_is_in_an_ignore_region() -> None:
    targets = Targets(
        boxes=torch.tensor([[[0.0, 0, 50, 100], [60, 0, 100, 100], [0, 0, 100, 100]]]),
        labels=torch.zeros(1, 3, dtype=torch.int64),
        ignore=torch.tensor([[True, False, True]]),
        valid=torch.tensor([[True, True, False]]),
    )
    boxes_xyxy = torch.tensor([[[0.0, 0, 40, 50], [20, 0, 70, 50], [30, 0, 75, 50], [70, 0, 90, 50], [-90, 0, 80, 50]]])
    boxes = box_convert(boxes_xyxy / 100, "xyxy", "cxcywh")
    found = in_ignore_region(boxes, targets, (100, 100))
    assert found.tolist() == [[True, True, False, False, True]]  # the last lies outside of the image for the most part

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from detframe.models.postprocess import suppress, vote
from detframe.structures import Detections


def candidates(images: int, slots: int, seed: int, size: float = 100.0) -> Detections:
    """Boxes of three classes that overlap a good deal, best first, the last tenth of the slots not used."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, slots, 2, generator=draw) * size * 0.4
    sides = (0.2 + 0.4 * torch.rand(images, slots, 2, generator=draw)) * size
    scores = torch.rand(images, slots, generator=draw).sort(dim=1, descending=True).values
    labels = torch.randint(0, 3, (images, slots), generator=draw)
    valid = (torch.arange(slots) < 0.9 * slots).expand(images, -1)
    return Detections(torch.cat((corner, corner + sides), dim=-1), scores, labels, valid)


@given(seed=st.integers(0, 2**31), iou=st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_keeps_what_torchvision_keeps(seed: int, iou: float) -> None:
    raw = candidates(2, 60, seed)
    found = suppress(raw, iou, 60)
    for image in range(2):
        live = raw.valid[image]
        boxes, scores, labels = raw.boxes[image][live], raw.scores[image][live], raw.labels[image][live]
        kept = batched_nms(boxes, scores, labels, iou)
        torch.testing.assert_close(found.boxes[image][found.valid[image]], boxes[kept])
        assert torch.equal(found.labels[image][found.valid[image]], labels[kept])


@given(seed=st.integers(0, 2**31))
def test_a_vote_is_the_mean_of_the_class_by_score_and_overlap(seed: int) -> None:
    raw = candidates(2, 40, seed)
    found = suppress(raw, 0.5, 10)
    voted = vote(found, raw)
    overlaps = [box_iou(kept.double(), boxes.double()) for kept, boxes in zip(found.boxes, raw.boxes, strict=True)]
    for image, slot in zip(*np.nonzero(found.valid.numpy()), strict=True):
        last = float(raw.scores[image].min())
        total, mean = last, last * found.boxes[image, slot].numpy().astype(float)
        columns = (*(column[image] for column in raw), overlaps[image][slot])
        for box, score, label, valid, overlap in zip(*columns, strict=True):
            if valid and label == found.labels[image, slot]:
                weight = (float(score) - last) * np.exp(-((1 - float(overlap)) ** 2) / 0.025)
                total, mean = total + weight, mean + weight * box.numpy().astype(float)
        np.testing.assert_allclose(voted.boxes[image, slot], mean / total, atol=1e-3)
    for before, after in zip(found[1:], voted[1:], strict=True):
        assert torch.equal(before, after)
    assert (voted.boxes[~voted.valid] == 0).all()


@pytest.mark.parametrize("size", [300.0, 4000.0])
def test_a_vote_stays_in_the_image(size: float) -> None:
    boxes = (torch.tensor([0.0, 0.0, size, size]) + torch.randn(1, 500, 4)).clamp(0, size)  # half at its sides
    raw = Detections(boxes, torch.rand(1, 500), torch.zeros(1, 500, dtype=torch.long), torch.ones(1, 500) > 0)
    voted = vote(suppress(raw, 0.5, 3), raw)
    assert torch.equal(voted.valid, torch.tensor([[True, False, False]]))
    assert voted.boxes.min() >= 0
    assert voted.boxes.max() <= size


def test_many_rough_boxes_place_an_object_better_than_the_best_of_them() -> None:
    truth = torch.tensor([40.0, 30.0, 80.0, 90.0])
    boxes = truth + 2 * torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.linspace(0.9, 0.1, 200)[None]
    raw = Detections(boxes, scores, torch.zeros(1, 200, dtype=torch.long), torch.ones(1, 200) > 0)
    found = suppress(raw, 0.5, 1)
    before, after = ((answer.boxes[0, 0] - truth).abs().max() for answer in (found, vote(found, raw)))
    assert before > 2
    assert after < 0.7


@given(seed=st.integers(0, 2**31))
def test_it_does_not_matter_which_of_two_alike_takes_the_last_slot(seed: int) -> None:
    raw = candidates(1, 41, seed)._replace(valid=torch.ones(1, 41, dtype=torch.bool))
    raw.scores[0, -2:] = raw.scores[0, -3] - 1e-6
    one, other = (Detections(*(column[:, list(slots)] for column in raw)) for slots in (range(40), (*range(39), 40)))
    found = suppress(Detections(*(column[:, :39] for column in raw)), 0.5, 10)
    torch.testing.assert_close(vote(found, one).boxes, vote(found, other).boxes, rtol=0, atol=1e-3)


def test_autocast_leaves_places_in_float32() -> None:
    raw = candidates(1, 40, 0, size=4000.0)
    found = suppress(raw, 0.5, 10)
    with torch.autocast("cpu", torch.bfloat16):
        half = vote(found, raw)
    assert torch.equal(half.boxes, vote(found, raw).boxes)

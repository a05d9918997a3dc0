import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

from detframe.models.backbones import TimmBackbone
from detframe.models.calibration import Calibration
from detframe.models.detector import Detector, build_detector
from detframe.models.heads.dense import DenseHead
from detframe.models.necks import FPN
from detframe.score_curves import knots
from detframe.structures import Detections

CLASSES = 3


def bent() -> Calibration:
    """A curve that moves down, a nearly flat one with a step, and one that stays."""
    calibration = Calibration(CLASSES)
    calibration.logits[0] = 0.7 * knots() - 2
    calibration.logits[1] = 0.01 * knots() + torch.where(knots() < 0, -1.0, 1.0)
    return calibration


def found(seed: int, slots: int = 40) -> Detections:
    """Two images with tied and neighbouring scores, the last slots of each unused."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(1, 20, (2, slots), generator=generator) / 20
    scores = torch.where(torch.rand(2, slots, generator=generator) < 0.5, scores, scores.nextafter(torch.tensor(1.0)))
    valid = torch.arange(slots) < torch.randint(0, slots + 1, (2, 1), generator=generator)
    return Detections(
        boxes=torch.rand(2, slots, 4, generator=generator) * valid[..., None],
        scores=scores.sort(dim=1, descending=True).values * valid,
        labels=torch.randint(0, CLASSES, (2, slots), generator=generator) * valid,
        valid=valid,
    )


def detector() -> Detector:
    torch.manual_seed(0)
    head = partial(DenseHead, width=16, depth=1)
    return build_detector(partial(TimmBackbone, "test_resnet"), partial(FPN, channels=16), head, CLASSES).eval()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_slots_are_ordered_anew_and_a_class_keeps_its_order(seed: int) -> None:
    before = found(seed)
    after = bent()(before)
    assert (after.scores.diff(dim=1) <= 0).all()
    assert after.valid.sum(dim=1).tolist() == before.valid.sum(dim=1).tolist()
    assert not after.valid.int().diff(dim=1).gt(0).any()
    assert not after.scores[~after.valid].any()
    for i in range(2):
        for label in range(CLASSES):
            old, new = (d.boxes[i][d.valid[i] & (d.labels[i] == label)] for d in (before, after))
            assert torch.equal(old, new)


def test_a_score_is_read_on_the_curve_of_its_class() -> None:
    one = torch.ones(1, 3, dtype=torch.bool)
    raw = Detections(torch.rand(1, 3, 4), torch.tensor([[0.9, 0.8, 0.5]]), torch.tensor([[0, 2, 1]]), one)
    after = bent()(raw)
    first = float(torch.sigmoid(0.7 * torch.logit(torch.tensor(0.9)) - 2))
    assert after.labels.tolist() == [[2, 1, 0]]
    assert after.scores[0].tolist() == pytest.approx([0.8, float(torch.sigmoid(torch.tensor(1.0))), first], abs=1e-6)


def test_a_new_calibration_changes_nothing_and_without_one_nothing_is_saved() -> None:
    plain = detector()
    assert not [key for key in plain.state_dict() if "calibration" in key]
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        before = plain(images)
        plain.calibration = Calibration(CLASSES)
        after = plain(images)
    torch.testing.assert_close(after.scores, before.scores, atol=1e-7, rtol=1e-6)
    assert torch.equal(after.boxes, before.boxes)


def test_scripted_and_exported_equal_eager_at_another_batch_size() -> None:
    calibrated = detector()
    calibrated.calibration = bent()
    images, others = torch.rand(2, 3, 96, 96), torch.rand(3, 3, 96, 96)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated and still one of the two formats
        scripted = torch.jit.script(calibrated)
        shapes = ({0: Dim("batch", min=1, max=8)},)
        program = torch.export.export(calibrated, (images,), dynamic_shapes=shapes).module()
    with torch.no_grad():
        expected = calibrated(others)
        assert expected.valid.any()
        for other in (scripted(others), program(others)):
            torch.testing.assert_close(Detections(*other), expected, atol=1e-4, rtol=0)

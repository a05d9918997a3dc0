import kornia.augmentation as K  # noqa: N812
import pytest
import torch
from kornia.augmentation import AugmentationBase2D

from detframe.augment.base import BatchAugmentation
from detframe.augment.color import RandomColorMatrix
from detframe.augment.copy_paste import CopyPaste
from detframe.augment.erasing import Erasing, GridErasing
from detframe.augment.facts import DeploymentFacts, PolicyError
from detframe.augment.lint import find_contradictions, measure_motion
from detframe.augment.mosaic import Mosaic
from detframe.augment.pipeline import AugmentationPipeline
from detframe.structures import TrainingObjects

FIXED = DeploymentFacts(
    upright=True, mirror=False, max_rotation=5.0, fixed_viewpoint=True, min_object_px=8.0, color_matters=True
)


def objects(side: float) -> TrainingObjects:
    boxes = torch.tensor([[0.0, 0, side, side]]).expand(10, 4)
    zeros = torch.zeros(10, dtype=torch.int64)
    return TrainingObjects(boxes, zeros, zeros, ["thing"], 1, lambda _: torch.zeros(3, 8, 8), lambda _: None)


@pytest.mark.parametrize(
    ("operator", "facts"),
    [
        (K.RandomHorizontalFlip(p=0.5), {"mirror: false"}),
        (K.RandomVerticalFlip(p=0.5), {"mirror: false", "upright: true"}),
        (K.RandomRotation90(times=(1, 3)), {"upright: true", "max_rotation: 5"}),
        (K.RandomRotation(degrees=20.0), {"max_rotation: 5"}),
        (K.RandomRotation(degrees=4.0), set()),
        (K.RandomAffine(degrees=0.0, translate=(0.1, 0.1), scale=(0.8, 1.2)), set()),
        (K.RandomAffine(degrees=0.0, scale=(0.3, 1.0)), {"min_object_px: 8"}),
        (K.RandomAffine(degrees=0.0, shear=(-20.0, 20.0)), {"fixed_viewpoint: true"}),
        (K.RandomPerspective(0.2), {"fixed_viewpoint: true"}),
        (K.ColorJiggle(hue=0.4), {"color_matters: true"}),
        (K.ColorJiggle(brightness=0.2, contrast=0.2, hue=0.02), set()),
        (K.RandomGrayscale(p=0.5), {"color_matters: true"}),
        (K.RandomChannelShuffle(), {"color_matters: true"}),
        (RandomColorMatrix(), set()),
        (RandomColorMatrix(hue=0.3), {"color_matters: true"}),
        (K.RandomGaussianBlur((3, 3), (0.1, 1.0)), set()),
        (K.RandomGaussianBlur((31, 31), (8.0, 10.0)), {"min_object_px: 8"}),
        (K.RandomGaussianNoise(std=0.05), set()),
        (Mosaic(), set()),
        (CopyPaste(), set()),
        (CopyPaste(mirror=True), {"mirror: false"}),
        (Erasing(min_object_pixels=16.0), set()),
        (GridErasing(min_object_pixels=8.0), {"min_object_px: 8"}),
        (Mosaic(object_sizes=(4.0, 64.0)), {"min_object_px: 8"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_contradicts_the_deployment_is_found(
    operator: AugmentationBase2D | BatchAugmentation, facts: set[str]
) -> None:
    found = find_contradictions([("step", operator)], FIXED, objects(16.0))
    assert {finding.fact for finding in found} - {"max_rotation: 5"} == facts - {"max_rotation: 5"}
    if not isinstance(operator, K.RandomRotation90 | K.RandomVerticalFlip):
        assert {finding.fact for finding in found} == facts


def test_nothing_is_found_where_nothing_is_declared() -> None:
    operators = [("flip", K.RandomVerticalFlip()), ("blur", K.RandomGaussianBlur((31, 31), (8.0, 10.0)))]
    assert find_contradictions(operators, DeploymentFacts()) == []


def test_looking_draws_no_number_of_the_trainings() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    find_contradictions([("turn", K.RandomRotation(20.0))], FIXED)
    torch.testing.assert_close(torch.rand(2), expected)


def test_error_stops_and_names_step_fact_and_cure(caplog: pytest.LogCaptureFixture) -> None:
    flip = [K.RandomHorizontalFlip()]
    with pytest.raises(PolicyError, match=r"RandomHorizontalFlip contradicts `mirror: false`: .*take it out"):
        AugmentationPipeline(flip, deployment=FIXED, lint="error").prepare(objects(16.0))
    AugmentationPipeline(flip, deployment=FIXED, lint="warn").prepare(objects(16.0))
    assert "mirror: false" in caplog.text
    caplog.clear()
    AugmentationPipeline(flip, deployment=FIXED, lint="off").prepare(objects(16.0))
    assert caplog.text == ""


def test_motion_is_measured() -> None:
    turn = torch.tensor([[0.0, -1, 64], [1, 0, 0], [0, 0, 1]])
    flip = torch.tensor([[-0.5, 0.0, 64], [0, 0.5, 0], [0, 0, 1]])
    motion = measure_motion(torch.stack((turn, flip)), 64)
    assert motion.rotation.tolist() == pytest.approx([90, 0])
    assert motion.mirrored.tolist() == [False, True]
    assert motion.scale.tolist() == pytest.approx([1, 0.5])
    assert motion.shear.tolist() == pytest.approx([0, 0], abs=1e-4)

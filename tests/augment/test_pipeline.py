from collections.abc import Callable

import kornia.augmentation as K  # noqa: N812
import pytest
import torch
from torch.utils._pytree import tree_map

from detframe.augment.color import RandomColorMatrix
from detframe.augment.erasing import Erasing
from detframe.augment.jpeg import JPEG
from detframe.augment.mosaic import Mosaic
from detframe.augment.pipeline import AugmentationPipeline, Operator, default_augmentations
from detframe.augment.sensor import SensorNoise
from detframe.structures import Batch, empty_targets

Draw = Callable[..., Batch]


def test_what_leaves_the_image_is_ignored_or_gone(drawn: Draw) -> None:
    shift = K.RandomAffine(degrees=0.0, translate=(0.5, 0.0), p=1.0)
    ignored, gone = 0, 0
    for seed in range(30):
        torch.manual_seed(seed)
        targets = AugmentationPipeline([shift], min_visible=0.5)(drawn([[2, 30, 42, 70]])).targets
        width = float(targets.boxes[0, 0, 2] - targets.boxes[0, 0, 0])
        if not targets.valid[0, 0]:
            gone += 1
            assert targets.boxes.abs().sum() == 0
        elif width < 20 - 1e-3:
            ignored += 1
            assert targets.ignore[0, 0]
        else:
            assert not targets.ignore[0, 0]
    assert ignored > 0
    assert gone > 0


def test_padding_stays_empty_and_images_in_range(drawn: Draw) -> None:
    batch = drawn([[10, 10, 40, 40], [0, 0, 0, 0]])
    batch = batch._replace(targets=batch.targets._replace(valid=torch.tensor([[True, False]])))
    moved = AugmentationPipeline(default_augmentations())(batch)
    assert moved.targets.valid.tolist() == [[True, False]]
    assert moved.targets.boxes[0, 1].abs().sum() == 0
    assert moved.images.min() >= 0
    assert moved.images.max() <= 1


def test_a_batch_without_boxes_passes(drawn: Draw) -> None:
    batch = drawn([[10, 10, 40, 40]])._replace(targets=empty_targets(1))
    moved = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)])(batch)
    torch.testing.assert_close(moved.images, batch.images.flip(3))
    assert moved.targets.boxes.shape == (1, 0, 4)


def policy() -> list[Operator]:
    return [
        Mosaic(p=0.5),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(degrees=0.0, translate=(0.3, 0.3), scale=(0.5, 1.5), p=1.0),
        RandomColorMatrix(p=0.5),
        K.RandomGaussianNoise(std=0.1, p=0.5),
        K.RandomVerticalFlip(p=0.5),
    ]


def several(drawn: Draw) -> Batch:
    one = drawn([[30.0, 34, 58, 66], [0.0, 0, 16, 20]])
    batch: Batch = tree_map(lambda field: field.repeat(4, *[1] * (field.dim() - 1)), one)
    return batch


def test_neighbouring_moves_are_one_step(drawn: Draw) -> None:
    steps = [name for name, _ in AugmentationPipeline(policy()).steps(several(drawn))]
    assert steps == [
        "Mosaic + RandomHorizontalFlip + RandomAffine",
        "RandomColorMatrix",
        "RandomGaussianNoise",
        "RandomVerticalFlip",
    ]


def test_the_seed_decides_and_leaves_the_trainings_numbers_alone(drawn: Draw) -> None:
    batch = several(drawn)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = AugmentationPipeline(policy())(batch, seed=7)
    torch.testing.assert_close(torch.rand(1), expected)
    again = AugmentationPipeline(policy())(batch, seed=7)
    other = AugmentationPipeline(policy())(batch, seed=8)
    assert first.images.equal(again.images)
    assert first.targets.boxes.equal(again.targets.boxes)
    assert not first.images.equal(other.images)


def test_operators_rest_after_their_share_of_the_training(drawn: Draw) -> None:
    batch = several(drawn)
    clean = AugmentationPipeline(policy())(batch, progress=0.85)
    assert clean.images.equal(batch.images)
    assert clean.targets.boxes.equal(batch.targets.boxes)
    some = AugmentationPipeline(policy(), until={"Mosaic": 0.5, "RandomGaussianNoise": 0.2})
    assert [name for name, _ in some.steps(batch, 0.49)][1:] == ["RandomColorMatrix", "RandomVerticalFlip"]
    last = [name for name, _ in some.steps(batch, 1.0)]
    assert last == ["RandomHorizontalFlip + RandomAffine", "RandomColorMatrix", "RandomVerticalFlip"]
    with pytest.raises(ValueError, match=r"`until` names 'Mosaik'; the operators are Mosaic, RandomHorizontalFlip"):
        AugmentationPipeline(policy(), until={"Mosaik": 0.5})


def test_what_is_taken_away_is_counted(drawn: Draw) -> None:
    shift = K.RandomTranslate(translate_x=(0.4, 0.4), p=1.0)  # 38.4 of 96 pixels
    batch = drawn([[30.0, 34, 62, 66], [40.0, 0, 64, 20], [70.0, 0, 90, 20]])
    pipeline = AugmentationPipeline([shift, K.RandomHorizontalFlip(p=0.0)], min_visible=0.9)
    after = pipeline(batch)
    assert after.targets.ignore.tolist() == [[True, True, False]]
    assert after.targets.valid.tolist() == [[True, True, False]]
    step = "RandomTranslate + RandomHorizontalFlip"
    assert pipeline.counts() == {f"ignored/{step}": 2, f"gone/{step}": 1}
    assert pipeline.counts() == {}


@pytest.mark.usefixtures("kornia_that_waits_for_nothing")
def test_nothing_is_read_back_from_the_device(drawn: Draw) -> None:
    # On the meta device there is nothing to read: any wait for a value would fail.
    batch: Batch = tree_map(lambda field: field.to("meta"), several(drawn))
    operators = [*policy(), K.RandomPerspective(), Erasing(p=1.0), SensorNoise(p=1.0), JPEG(p=1.0)]
    after = AugmentationPipeline(operators)(batch, seed=0)
    assert after.images.shape == batch.images.shape
    assert after.targets.boxes.shape == (4, 8, 4)


def test_an_operator_that_pads_otherwise_runs_alone(drawn: Draw) -> None:
    batch = several(drawn)
    mirrored = K.RandomAffine(degrees=0.0, translate=(0.5, 0.5), padding_mode="reflection", p=1.0)
    pipeline = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0), mirrored])
    assert [name for name, _ in pipeline.steps(batch)] == ["RandomHorizontalFlip", "RandomAffine"]
    after = pipeline(batch._replace(images=torch.full_like(batch.images, 0.2))).images
    torch.testing.assert_close(after, torch.full_like(after, 0.2))

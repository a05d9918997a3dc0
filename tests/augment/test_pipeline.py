import kornia.augmentation as K  # noqa: N812
import pytest
import torch

from detframe.augment.pipeline import AugmentationPipeline, default_augmentations
from detframe.structures import Batch, Targets, empty_targets


def drawn(boxes: list[list[float]], side: int = 96) -> Batch:
    """One black image with white rectangles where the boxes are."""
    images = torch.zeros(1, 3, side, side)
    for x1, y1, x2, y2 in boxes:
        images[0, :, int(y1) : int(y2), int(x1) : int(x2)] = 1
    count = len(boxes)
    return Batch(
        images=images,
        targets=Targets(
            boxes=torch.tensor([boxes], dtype=torch.float32),
            labels=torch.arange(count)[None],
            ignore=torch.zeros(1, count, dtype=torch.bool),
            valid=torch.ones(1, count, dtype=torch.bool),
        ),
        original_boxes=torch.tensor([boxes], dtype=torch.float32),
        areas=torch.zeros(1, count),
        annotation_ids=torch.arange(count)[None],
        image_ids=torch.tensor([1]),
        original_sizes=torch.tensor([[side, side]]),
        transforms=torch.tensor([[1.0, 1, 0, 0]]),
    )


@pytest.mark.parametrize(
    ("operator", "tolerance"),
    [
        (K.RandomHorizontalFlip(p=1.0), 0.0),
        (K.RandomVerticalFlip(p=1.0), 0.0),
        (K.RandomAffine(degrees=0.0, translate=(0.1, 0.1), scale=(0.7, 1.4), p=1.0), 1.0),
    ],
)
def test_boxes_follow_the_pixels(operator: K.AugmentationBase2D, tolerance: float) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        moved = AugmentationPipeline([operator])(drawn([[30, 34, 58, 66]]))
        rows, columns = torch.nonzero(moved.images[0, 0] > 0.5, as_tuple=True)
        seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        torch.testing.assert_close(moved.targets.boxes[0, 0], seen, atol=tolerance + 1e-4, rtol=0)


def test_what_leaves_the_image_is_ignored_or_gone() -> None:
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


def test_padding_stays_empty_and_images_in_range() -> None:
    batch = drawn([[10, 10, 40, 40], [0, 0, 0, 0]])
    batch = batch._replace(targets=batch.targets._replace(valid=torch.tensor([[True, False]])))
    moved = AugmentationPipeline(default_augmentations())(batch)
    assert moved.targets.valid.tolist() == [[True, False]]
    assert moved.targets.boxes[0, 1].abs().sum() == 0
    assert moved.images.min() >= 0
    assert moved.images.max() <= 1


def test_a_batch_without_boxes_passes() -> None:
    batch = drawn([[10, 10, 40, 40]])._replace(targets=empty_targets(1))
    moved = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)])(batch)
    torch.testing.assert_close(moved.images, batch.images.flip(3))
    assert moved.targets.boxes.shape == (1, 0, 4)

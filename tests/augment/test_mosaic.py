from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from detframe.augment.geometry import finish
from detframe.augment.mosaic import Mosaic
from detframe.augment.pipeline import AugmentationPipeline
from detframe.structures import Batch, Targets, TrainingObjects

SIDE = 96


def scene(generator: torch.Generator, count: int = 4, objects: int = 5, side: int = SIDE) -> Batch:
    """Images of a brightness of their own, with boxes of 8 to 40 pixels."""
    levels = torch.linspace(0.5, 1, count)[:, None, None, None]
    sizes = 8 * 5 ** torch.rand(count, objects, 1, generator=generator).expand(-1, -1, 2)
    corner = torch.rand(count, objects, 2, generator=generator) * (side - sizes)
    boxes = torch.cat((corner, corner + sizes), dim=-1)
    shape = (count, objects)
    return Batch(
        images=levels.expand(count, 3, side, side).clone(),
        targets=Targets(
            boxes, torch.arange(count)[:, None].expand(shape), torch.zeros(shape) > 0, torch.ones(shape) > 0
        ),
        original_boxes=boxes,
        areas=torch.zeros(shape),
        annotation_ids=torch.arange(count * objects).view(shape),
        image_ids=torch.arange(count),
        original_sizes=torch.full((count, 2), side),
        transforms=torch.tensor([[1.0, 1, 0, 0]]).expand(count, 4),
    )


def training_objects(batches: list[Batch]) -> TrainingObjects:
    boxes = torch.cat([batch.targets.boxes.flatten(0, 1) for batch in batches])
    images = torch.arange(len(boxes)) // batches[0].targets.boxes.shape[1]
    return TrainingObjects(
        boxes, torch.zeros_like(images), images, ["thing"], len(images), lambda _: torch.zeros(3, 8, 8), lambda _: None
    )


def sides(targets: Targets) -> Tensor:
    live = targets.boxes[targets.valid & ~targets.ignore]
    return (live[:, 2:] - live[:, :2]).prod(dim=1).sqrt()


@pytest.mark.parametrize("grid", [2, 3])
def test_boxes_of_tiles_are_where_their_pixels_are(grid: int, drawn: Callable[..., Batch]) -> None:
    square = drawn([[30.0, 34, 66, 70]], SIDE)
    for seed in range(20):
        torch.manual_seed(seed)
        after = Mosaic(grid=grid, object_sizes=None, p=1.0, scale=(0.5, 1.2)).augment(square)
        predicted = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        for x1, y1, x2, y2 in after.targets.boxes[after.targets.valid].round().int().tolist():
            predicted[y1:y2, x1:x2] = True
        bright = after.images[0, 0] > 0.5
        assert int((predicted & bright).sum()) >= 0.93 * int((predicted | bright).sum())
        assert int(bright.sum()) > 100


def test_sizes_follow_the_datas_own_distribution_and_a_usual_mosaic_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [scene(generator) for _ in range(60)]
    own = training_objects(batches)
    wanted = (own.boxes[:, 2:] - own.boxes[:, :2]).prod(dim=1).sqrt().log().numpy()
    distances = {}
    for name, mosaic in (
        ("controlled", Mosaic(p=1.0)),
        ("usual", Mosaic(p=1.0, object_sizes=None, scale=(0.1, 2.0))),
    ):
        torch.manual_seed(0)
        mosaic.prepare(own)
        found = [finish(mosaic.lay(batch, 0.3, 4.0), 0.3, 4.0, 0.0).batch.targets for batch in batches]
        smallest = torch.cat([t.boxes[t.valid & ~t.ignore] for t in found])
        assert float((smallest[:, 2:] - smallest[:, :2]).min()) >= 4.0
        got = np.concatenate([sides(t).log().numpy() for t in found])
        distances[name] = ks_2samp(got, wanted).statistic
    assert distances["controlled"] <= 0.10
    assert distances["usual"] > 0.3


def test_sizes_follow_a_range() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mosaic = Mosaic(p=1.0, object_sizes=(12.0, 24.0), scale=(0.2, 2.0), candidates=32)
    got = torch.cat(
        [sides(finish(mosaic.lay(scene(generator, objects=1)), 0.3, 2.0, 0.0).batch.targets) for _ in range(200)]
    )
    inside = ((got > 11.5) & (got < 25)).float().mean()
    assert inside > 0.85


def test_images_that_are_not_drawn_stay_whole() -> None:
    batch = scene(torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    after = Mosaic(p=0.0).augment(batch)
    torch.testing.assert_close(after.images, batch.images)
    kept = after.targets.valid
    assert kept.sum(1).tolist() == [5, 5, 5, 5]
    torch.testing.assert_close(after.targets.boxes[kept].view(4, 5, 4), batch.targets.boxes)
    assert after.annotation_ids[kept].view(4, 5).equal(batch.annotation_ids)


def test_the_cache_brings_earlier_images() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mosaic = Mosaic(p=1.0, cache=4)
    first = scene(generator, objects=3)
    mosaic.augment(first._replace(annotation_ids=torch.full((4, 3), -7)))
    seen = [mosaic.augment(scene(generator, count=2, objects=5)).annotation_ids for _ in range(2)]
    assert all(bool((ids == -7).any()) for ids in seen)
    assert seen[0].shape == (2, 20)


def test_within_a_policy_an_affine_move_reads_beyond_the_canvas() -> None:
    from kornia.augmentation import RandomAffine

    batch = scene(torch.Generator().manual_seed(0))
    smaller = RandomAffine(degrees=0.0, scale=(0.5, 0.5), p=1.0)
    torch.manual_seed(0)
    after = AugmentationPipeline([Mosaic(p=1.0, scale=(0.9, 1.1)), smaller])(batch).images
    grey = (after - 114 / 255).abs() < 1e-3
    assert grey.float().mean() < 0.5  # of the canvas alone three quarters would be


def test_nothing_is_left_of_what_no_tile_shows(drawn: Callable[..., Batch]) -> None:
    from kornia.augmentation import RandomRotation

    square = drawn([[30.0, 34, 66, 70]], SIDE)
    for seed in range(20):
        torch.manual_seed(seed)
        turned = RandomRotation((20.0, 20.0), p=1.0)
        after = AugmentationPipeline([Mosaic(object_sizes=None, p=1.0, scale=(1.0, 2.0)), turned])(square)
        for x1, y1, x2, y2 in after.targets.boxes[after.targets.valid].round().int().tolist():
            assert (after.images[0, 0, y1:y2, x1:x2] > 0.5).any()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="`grid` is 4"):
        Mosaic(grid=4)
    with pytest.raises(ValueError, match="`scale` is"):
        Mosaic(scale=(1.0, 0.5))

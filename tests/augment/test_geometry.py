"""Every geometric operator is held to drawn pixels: its boxes must enclose what it moved."""

from collections.abc import Callable

import kornia.augmentation as K  # noqa: N812
import pytest
import torch
from kornia.augmentation import AugmentationBase2D
from torch import Tensor

from detframe.augment.geometry import finish, from_pixel_centres, lay_out, move_boxes, moved, still, warp_boxes
from detframe.augment.pipeline import AugmentationPipeline
from detframe.structures import Batch

Draw = Callable[..., Batch]
Enclose = Callable[..., Tensor]

SQUARES = [[24.0, 22, 66, 72]]

ALIGNED = [
    K.RandomHorizontalFlip(p=1.0),
    K.RandomVerticalFlip(p=1.0),
    K.RandomRotation90(times=(1, 3), p=1.0),
    K.RandomTranslate(translate_x=(-0.2, 0.2), translate_y=(-0.2, 0.2), p=1.0),
    K.RandomAffine(degrees=0.0, translate=(0.1, 0.1), scale=(0.7, 1.4), p=1.0),
    K.RandomResizedCrop((96, 96), scale=(0.6, 1.0), p=1.0),
    K.RandomCrop((80, 80), p=1.0),
    K.CenterCrop((80, 80), p=1.0),
    K.Resize((144, 120), p=1.0),
    K.PadTo((112, 120)),
]
ENCLOSING = [
    K.RandomRotation(degrees=30.0, p=1.0),
    K.RandomAffine(degrees=20.0, shear=(-15.0, 15.0), scale=(0.8, 1.2), p=1.0),
    K.RandomShear(shear=(-15.0, 15.0), p=1.0),
    K.RandomPerspective(0.3, p=1.0),
]


@pytest.mark.parametrize("operator", ALIGNED, ids=lambda operator: type(operator).__name__)
def test_boxes_of_axis_aligned_operators_are_where_the_pixels_are(
    operator: AugmentationBase2D, drawn: Draw, enclosing: Enclose
) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        after = AugmentationPipeline([operator])(drawn(SQUARES))
        assert overlap(after.targets.boxes[0, 0], enclosing(after.images[0])) >= 0.95


@pytest.mark.parametrize("operator", ENCLOSING, ids=lambda operator: type(operator).__name__)
def test_boxes_of_turned_objects_enclose_them(operator: AugmentationBase2D, drawn: Draw, enclosing: Enclose) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        after = AugmentationPipeline([operator])(drawn(SQUARES))
        # Of the last pixel at a corner that points outwards less than half is covered.
        torch.testing.assert_close(after.targets.boxes[0, 0], enclosing(after.images[0]), atol=1.5, rtol=0)


# With align_corners=False, its default, Kornia reads up to half a pixel beside where its own matrix says.
@pytest.mark.parametrize(
    "operator",
    [
        *ALIGNED[:3],
        K.RandomAffine(20.0, (0.1, 0.1), (0.7, 1.3), 10.0, align_corners=True, p=1.0),
        K.RandomTranslate((-0.2, 0.2), (-0.2, 0.2), align_corners=True, p=1.0),
        K.RandomRotation(30.0, align_corners=True, p=1.0),
        K.RandomShear((-15.0, 15.0), align_corners=True, p=1.0),
        K.RandomPerspective(0.3, align_corners=True, p=1.0),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_composed_operators_give_kornias_pixels(operator: AugmentationBase2D, drawn: Draw) -> None:
    torch.manual_seed(0)
    batch = drawn(SQUARES)._replace(images=torch.nn.functional.avg_pool2d(torch.rand(1, 3, 96, 96), 9, 1, 4))
    torch.manual_seed(1)
    ours = AugmentationPipeline([operator])(batch).images
    torch.manual_seed(1)
    kornias = operator(batch.images)
    inside = operator(torch.ones_like(batch.images), params=operator._params) > 0.999  # Kornia blends the border
    assert ((ours - kornias).abs() * inside).max() < 1e-3
    assert inside.float().mean() > 0.3


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (K.RandomThinPlateSpline(p=1.0), "leaves their boxes behind"),
        (K.RandomElasticTransform(p=1.0), "leaves their boxes behind"),
        (K.RandomFisheye(torch.tensor([-0.3, 0.3]), torch.tensor([-0.3, 0.3]), torch.tensor([0.9, 1.0])), "behind"),
        (K.RandomErasing(p=1.0), "objects that are gone"),
    ],
)
def test_what_leaves_boxes_behind_is_refused_by_name(operator: AugmentationBase2D, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{type(operator).__name__} .*{reason}"):
        AugmentationPipeline([operator])


def test_composition_reads_once_what_steps_read_twice(drawn: Draw) -> None:
    batch = drawn(SQUARES)
    turn = from_pixel_centres(torch.tensor([[0.0, -1, 95], [1, 0, 0], [0, 0, 1]]))[None]  # a quarter, clockwise
    layout = lay_out(batch)
    layout = layout._replace(warp=moved(moved(layout.warp, turn), turn))
    after = finish(layout, 0.3, 2.0, fill=0.0).batch
    torch.testing.assert_close(after.images, batch.images.flip(2, 3))
    torch.testing.assert_close(after.targets.boxes[0, 0], torch.tensor([30.0, 24, 72, 74]))


def test_visible_share_counts_the_window_and_the_border() -> None:
    warp = still(torch.zeros(1, 3, 100, 100))
    eye = torch.eye(3).expand(1, 4, 3, 3)
    warp = warp._replace(
        sources=torch.zeros(1, 4, dtype=torch.int64), tiles=eye, lines=torch.tensor([[[50.0], [200.0]]])
    )
    shift = torch.tensor([[[1.0, 0, 0], [0, 1, 95], [0, 0, 1]]])
    boxes, visible = warp_boxes(torch.tensor([40.0, 0, 60, 10]).expand(1, 4, 1, 4), moved(warp, shift), 100, 100)
    assert boxes[0, :2, 0].tolist() == [[40, 95, 50, 100], [50, 95, 60, 100]]
    assert visible.flatten().tolist() == pytest.approx([0.25, 0.25, 0, 0])


def test_moved_corners_are_enclosed() -> None:
    half = 0.5**0.5
    turn = torch.tensor([[half, -half, 0], [half, half, 0], [0, 0, 1]])
    root = 2**0.5
    expected = torch.tensor([-root / 2, 0.0, root / 2, root])
    torch.testing.assert_close(move_boxes(torch.tensor([0.0, 0, 1, 1]), turn), expected)


def overlap(first: Tensor, second: Tensor) -> float:
    low, high = torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])
    shared = (high - low).clamp(min=0).prod()
    return float(shared / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - shared))

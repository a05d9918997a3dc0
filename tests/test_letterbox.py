import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.letterbox import letterbox, letterbox_size, resize_batch, to_input, to_original
from detframe.structures import Batch, Targets


@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([(320, 320), (256, 320), (97, 33)]))
def test_the_scaled_image_fits_and_touches_one_side(height: int, width: int, target: tuple[int, int]) -> None:
    new_height, new_width = letterbox_size(height, width, *target)
    assert 1 <= new_height <= target[0]
    assert 1 <= new_width <= target[1]
    assert new_height == target[0] or new_width == target[1]


@settings(deadline=None)  # the first call of all loads what later ones do not
@given(st.integers(2, 200), st.integers(2, 200), st.booleans())
def test_boxes_return_to_the_original_pixels(height: int, width: int, stretch: bool) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    resized, transform = letterbox(image[None], 64, 96, stretch)
    assert resized.shape == (1, 3, 64, 96)
    boxes = torch.tensor([[0.0, 0.0, width, height], [0.5, 0.5, width / 2, height / 2]])
    back = to_original(to_input(boxes, transform), transform, torch.tensor([height, width]))
    torch.testing.assert_close(back, boxes, atol=1e-3, rtol=1e-5)


def test_a_drawn_rectangle_moves_with_its_box() -> None:
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    image[:, 20:60, 40:120] = 255
    (resized,), transform = letterbox(image[None], 160, 160)
    box = to_input(torch.tensor([[40.0, 20.0, 120.0, 60.0]]), transform)[0]
    rows, columns = torch.nonzero(resized[0] > 128, as_tuple=True)
    drawn = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    torch.testing.assert_close(drawn, box, atol=1.0, rtol=0)


def test_the_margin_is_grey() -> None:
    (resized,), _ = letterbox(torch.zeros(1, 3, 10, 20, dtype=torch.uint8), 20, 20)
    assert resized[:, 0].unique().tolist() == [114]
    assert resized[:, 10].unique().tolist() == [0]


@pytest.mark.parametrize("stretch", [False, True])
def test_an_image_of_the_target_size_is_left_alone(stretch: bool) -> None:
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    (resized,), transform = letterbox(image[None], 32, 48, stretch)
    assert torch.equal(resized, image)
    assert transform.tolist() == [1, 1, 0, 0]


def test_a_batch_in_another_size_keeps_boxes_on_what_they_show() -> None:
    images = torch.zeros(1, 3, 64, 96)
    images[:, :, 16:32, 24:48] = 1
    boxes = torch.tensor([[[24.0, 16, 48, 32]]])
    no, one = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.int64)
    transform = torch.tensor([[0.5, 0.5, 4.0, 8.0]])
    batch = Batch(images, Targets(boxes, one, no, ~no), boxes, one.float(), one, one[0], one, transform)
    found = resize_batch(batch, 96, 192)
    assert found.images.shape == (1, 3, 96, 192)
    x1, y1, x2, y2 = found.targets.boxes[0, 0].int().tolist()
    assert (x1, y1, x2, y2) == (48, 24, 96, 48)
    assert found.images[0, 0, y1 + 1 : y2 - 1, x1 + 2 : x2 - 2].min() > 0.9
    assert found.images[0, 0, : y1 - 2].max() == 0
    original = to_original(boxes[0], transform, torch.tensor([[200, 300]]))
    torch.testing.assert_close(
        to_original(found.targets.boxes[0], found.transforms, torch.tensor([[200, 300]])), original
    )


def test_where_torch_resizes_no_whole_numbers_floats_are_resized() -> None:
    shape = letterbox(torch.empty(2, 3, 50, 41, dtype=torch.uint8, device="meta"), 32, 48)[0]
    assert (shape.shape, shape.dtype) == ((2, 3, 32, 48), torch.uint8)
    images = torch.randint(0, 256, (1, 3, 50, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = letterbox(images, 32, 48)[0].float()
    real = letterbox(images.float() / 255, 32, 48)[0] * 255
    assert (whole - real).abs().max() <= 1.01

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detframe.drawing import Truth, _tag_place, class_colour, contact_sheet, draw_boxes, shrunk

NAMES = ["bolt", "nut", "washer"]

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
COLOUR_BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def grey(height: int = 200, width: int = 300) -> Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def truth(*boxes: list[float], ignore: bool = False) -> Truth:
    return Truth(torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.int64), torch.full((len(boxes),), ignore))


def draw(
    image: Tensor, boxes: list[list[float]], labels: list[int], ground_truth: Truth | None = None, min_side: int = 0
) -> NDArray[np.uint8]:
    picture = draw_boxes(
        image,
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.linspace(0.9, 0.1, len(labels)),
        NAMES,
        ground_truth,
        min_side,
    )
    assert picture.mode == "RGB"
    return np.asarray(picture)


def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(first - second))


def test_colours_are_distinct() -> None:
    colours = [np.array(class_colour(label), dtype=np.float64) for label in range(20)]
    assert min(distance(a, b) for a, b in combinations(colours, 2)) > 25
    for colour in colours:
        assert np.min(colour) >= 0
        assert np.max(colour) <= 255
        assert distance(colour, np.full(3, 255.0)) > 60  # white is the truth's


@pytest.mark.parametrize("matrix", COLOUR_BLINDNESS.values(), ids=list(COLOUR_BLINDNESS))
def test_the_first_colours_survive_colour_blindness(matrix: list[list[float]]) -> None:
    linear = (np.array([class_colour(label) for label in range(7)]) / 255) ** 2.2
    seen = (linear @ np.array(matrix).T).clip(0, 1) ** (1 / 2.2) * 255
    assert min(distance(a, b) for a, b in combinations(seen, 2)) > 25


def test_frame_has_the_class_colour_and_leaves_the_object_alone() -> None:
    picture = draw(grey(), [[100, 80, 180, 150]], [1])
    colour = class_colour(1)
    for x, y in ((99, 120), (180, 120), (140, 79), (140, 150), (99, 79), (180, 150)):
        assert tuple(picture[y, x]) == colour
    assert (picture[80:150, 100:180] == 128).all()


def test_frame_of_the_whole_image_moves_inside() -> None:
    picture = draw(grey(), [[0, 0, 300, 200]], [0])
    for x, y in ((0, 100), (299, 100), (200, 0), (150, 199)):
        assert tuple(picture[y, x]) == class_colour(0)


def test_surest_box_is_on_top() -> None:
    picture = draw(grey(), [[100, 80, 180, 150], [100, 60, 180, 150]], [1, 2])
    assert tuple(picture[120, 99]) == class_colour(1)


def test_empty_input_leaves_the_image_as_it_is() -> None:
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(draw(image, [], []), image.permute(1, 2, 0).numpy())
    empty = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    np.testing.assert_array_equal(draw(image, [], [], empty), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("memory", ["planes", "channels together"])
def test_the_image_itself_is_not_drawn_on(memory: str) -> None:
    image = grey() if memory == "planes" else grey().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    draw(image, [[100, 80, 180, 150]], [1], truth([20, 20, 60, 60], ignore=True))
    assert (image == 128).all()


def test_tag_carries_the_class_colour_and_readable_ink() -> None:
    box, score = torch.tensor([[100, 80, 180, 150]]), torch.tensor([0.5])
    for label in range(20):
        picture = np.asarray(draw_boxes(grey(800, 1200), box, torch.tensor([label]), score, NAMES))
        tag = picture[50:75, 97:180]  # large, because the strokes of a small font are all edge
        assert (tag == class_colour(label)).all(axis=-1).mean() > 0.4
        red, green, blue = (np.array(class_colour(label)) / 255) ** 2.2
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        is_white = (tag == 255).all(axis=-1).sum() > (tag == 0).all(axis=-1).sum()
        contrast = 1.05 / (luminance + 0.05) if is_white else (luminance + 0.05) / 0.05
        assert contrast > 4.5  # what WCAG asks of text


def test_tags_stay_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        corners = rng.uniform(-10, 210, (5, 2, 2))
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        left, top = _tag_place(tuple(boxes[0]), (70, 14), (200, 150), boxes, boxes[1:3], line=2)
        assert 0 <= left <= 200 - 70
        assert 0 <= top <= 150 - 14


def test_tag_wider_than_the_image_starts_at_its_border() -> None:
    box = np.array([[5.0, 5, 20, 20]])
    assert _tag_place((5, 5, 20, 20), (70, 14), (40, 150), box, np.zeros((0, 4)), line=1)[0] == 0


def test_tag_of_a_big_box_leaves_a_small_object_free() -> None:
    small = [102.0, 60.0, 118.0, 76.0]  # where the tag would go by preference
    picture = draw(grey(), [[100, 80, 180, 150], small], [0, 1])
    assert (picture[60:76, 102:118] == 128).all()


def test_tags_do_not_cover_each_other() -> None:
    boxes = np.array([[50.0, 50, 120, 120], [50.0, 50, 120, 120], [50.0, 50, 120, 120]])
    placed = np.zeros((0, 4))
    for _ in range(3):
        left, top = _tag_place((50, 50, 120, 120), (60, 12), (300, 200), boxes, placed, line=1)
        assert not (
            (placed[:, 0] < left + 60) & (placed[:, 2] > left) & (placed[:, 1] < top + 12) & (placed[:, 3] > top)
        ).any()
        placed = np.append(placed, [[left, top, left + 60, top + 12]], axis=0)


def test_truth_is_dashed_in_white() -> None:
    picture = draw(grey(), [], [], truth([100, 80, 180, 150]))
    left = picture[80:150, 99]
    white = (left == 255).all(axis=-1).mean()
    assert 0.3 < white < 0.7
    assert (left == 0).all(axis=-1).any()  # the black edge of the dashes, for white backgrounds
    assert (picture[81:149, 101:179] == 128).all()


def test_ignored_truth_is_dotted_and_hatched() -> None:
    picture = draw(grey(), [], [], truth([100, 80, 180, 150], ignore=True))
    inside = picture[82:148, 102:178]
    assert 0.1 < (inside != 128).any(axis=-1).mean() < 0.4
    usual = draw(grey(), [], [], truth([100, 80, 180, 150]))
    dots, dashes = (np.abs(np.diff((p[80:150, 99] == 255).all(axis=-1).astype(int))).sum() for p in (picture, usual))
    assert dots > 1.5 * dashes


def test_boxes_beyond_the_border_are_cut() -> None:
    outside = [[-50.0, -50.0, 400.0, 20.0], [290.0, 190.0, 400.0, 300.0], [500.0, 500.0, 600.0, 600.0]]
    draw(grey(), outside, [0, 1, 2], truth([-20, 150, 20, 400], [500, 500, 600, 600], ignore=True))


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    assert draw(grey(100, 150), [[10, 10, 50, 50]], [0], min_side=250).shape == (300, 450, 3)
    assert draw(grey(100, 150), [], [], min_side=4000).shape == (400, 600, 3)
    assert draw(grey(100, 150), [], [], min_side=100).shape == (100, 150, 3)
    picture = draw(grey(100, 150), [[30, 40, 90, 80]], [2], min_side=200)
    assert tuple(picture[100, 59]) == class_colour(2)
    assert (picture[80:160, 60:180] == 128).all()


def test_labels_without_a_name_show_their_number() -> None:
    draw(grey(), [[100, 80, 180, 150]], [99])


def test_contact_sheet_places_pictures_in_rows() -> None:
    pictures = [Image.new("RGB", (50, 40), class_colour(i)) for i in range(5)]
    sheet = contact_sheet(pictures, columns=3)
    assert sheet.size == (3 * 54 + 4, 2 * 44 + 4)
    for i in range(5):
        assert sheet.getpixel((4 + 54 * (i % 3) + 25, 4 + 44 * (i // 3) + 20)) == class_colour(i)
    assert contact_sheet(pictures[:2], columns=3).size == (2 * 54 + 4, 44 + 4)


def test_contact_sheet_centres_smaller_pictures_and_writes_captions() -> None:
    pictures = [Image.new("RGB", (200, 100), (255, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 255))]
    sheet = contact_sheet(pictures, columns=2, captions=["a", "a name much too long for the width of its cell " * 3])
    assert sheet.getpixel((4 + 204 + 100, 4 + 50)) == (0, 0, 255)
    captions = np.asarray(sheet)[4 + 100 :]
    assert (captions[:, :200] == 0).all(axis=-1).any()
    assert (captions[:, 4 + 204 + 200 :] > 200).all()  # shortened to its cell


def test_contact_sheet_of_nothing_or_with_wrong_captions() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], columns=2)
    with pytest.raises(ValueError, match="2 captions for 1 pictures"):
        contact_sheet([Image.new("RGB", (4, 4))], columns=1, captions=["a", "b"])


def test_large_images_are_shrunk_and_small_ones_are_not() -> None:
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    small, scale = shrunk(image, 40)
    assert small.shape == (3, 30, 40)
    assert scale == pytest.approx(1 / 3)
    assert int(small[0, 0, 0]) == pytest.approx(float(image[0, :3, :3].float().mean()), abs=1)
    same, scale = shrunk(image, 200)
    assert torch.equal(same, image)
    assert scale == 1

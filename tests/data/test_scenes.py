from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from detframe.data.scenes import (
    CLASS_NAMES,
    MIN_VISIBLE,
    RARE_CLASS,
    Floats,
    Scene,
    Sprite,
    draw_part,
    draw_scene,
    paste,
)


def scene(seed: int, objects: int = 12) -> Scene:
    return draw_scene(np.random.default_rng(seed), objects)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_part_alone_changes_the_pixels_of_its_box(name: str) -> None:
    rng = np.random.default_rng(CLASS_NAMES.index(name))
    for size in (18.0, 40.0, 95.0):
        for angle in rng.uniform(0, 360, 4):
            canvas = np.zeros((180, 180, 3), dtype=np.float32) + np.array([1, 0, 1], dtype=np.float32)
            before = canvas.copy()
            sprite = draw_part(name, size, angle, light=1.0, rng=rng)
            mask = paste(canvas, sprite, (30, 20))
            height, width = sprite.alpha.shape
            rows, columns = np.nonzero(np.abs(canvas - before).max(axis=-1) > 0.1)  # coverage shows on magenta
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            overlap = (min(x2, 20 + width) - max(x1, 20)) * (min(y2, 30 + height) - max(y1, 30))
            iou = overlap / ((x2 - x1) * (y2 - y1) + width * height - overlap)
            assert iou >= 0.9
            assert mask.sum() == pytest.approx(len(rows), rel=0.1)
            assert size * 0.6 <= max(width, height) <= size * 1.45  # the diagonal of a bracket


def test_classes_can_be_told_apart() -> None:
    parts = {name: draw_part(name, 60, 0, 1.0, np.random.default_rng(3)) for name in CLASS_NAMES}
    centre = {name: part.alpha[part.alpha.shape[0] // 2, part.alpha.shape[1] // 2] for name, part in parts.items()}
    assert centre["nut"] == centre["washer"] == centre["gear"] == 0  # holes show the surface
    assert centre["bolt"] == centre["fragment"] == 1
    height, width = parts["bolt"].alpha.shape
    assert width > 2 * height
    solid = parts[RARE_CLASS].rgb[parts[RARE_CLASS].alpha == 1]
    assert np.ptp(solid.mean(axis=0)) > 0.2  # coloured plastic


def test_boxes_and_areas_are_valid() -> None:
    for seed in range(12):
        image, boxes, labels, areas, _surface = scene(seed)
        height, width = image.shape[:2]
        assert image.dtype == np.uint8
        assert (width, height) in [(320, 256), (256, 320)]
        assert len(boxes) == len(labels) == len(areas) > 0
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 8).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (areas <= sides.prod(axis=1)).all()
        assert (areas >= 0.1 * sides.prod(axis=1)).all()
        assert ((labels >= 0) & (labels < len(CLASS_NAMES))).all()


def test_some_objects_overlap_and_none_is_mostly_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[float] = []

    def recorded(canvas: Floats, sprite: Sprite, place: tuple[int, int]) -> NDArray[np.bool_]:
        whole.append(float((sprite.alpha >= 0.2).sum()))
        return paste(canvas, sprite, place)

    monkeypatch.setattr("detframe.data.scenes.paste", recorded)
    visible = np.concatenate([scene(seed).areas for seed in range(12)]) / np.array(whole)
    assert visible.min() >= MIN_VISIBLE
    assert visible.max() == 1
    assert 0.1 <= (visible < 1).mean() <= 0.5


def test_empty_scene() -> None:
    drawn = scene(0, objects=0)
    assert drawn.boxes.shape == (0, 4)
    assert drawn.labels.shape == drawn.areas.shape == (0,)
    assert drawn.image.std() > 2  # a textured surface and no flat colour


def test_crowded_scene() -> None:
    assert len(scene(5, objects=20).boxes) >= 14


def test_scenes_vary() -> None:
    scenes = [scene(seed, objects=6) for seed in range(40)]
    assert {drawn.surface for drawn in scenes} == {"steel", "wood", "belt", "concrete", "mat"}
    assert {drawn.image.shape for drawn in scenes} == {(256, 320, 3), (320, 256, 3)}
    sides = np.concatenate([(drawn.boxes[:, 2:] - drawn.boxes[:, :2]).max(axis=1) for drawn in scenes])
    assert sides.min() < 22
    assert sides.max() > 75


def test_the_same_generator_state_gives_the_same_pixels() -> None:
    first, again, other = scene(7), scene(7), scene(8)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()

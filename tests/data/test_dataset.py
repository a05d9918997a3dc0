from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from detframe.data.annotations import AnnotationIndex, Category, DataError, build_index
from detframe.data.dataset import DetectionDataset, collate
from detframe.data.held_out import hold_out
from detframe.data.images import ImageError
from detframe.letterbox import PAD_VALUE, to_original

Box = Sequence[float]


def make(root: Path, boxes: Sequence[Sequence[Box]], size: tuple[int, int] = (60, 80)) -> AnnotationIndex:
    """Black images of (height, width), white where their boxes are."""
    for i, of_image in enumerate(boxes):
        pixels = np.zeros(size, dtype=np.uint8)
        for x1, y1, x2, y2 in of_image:
            pixels[round(max(y1, 0)) : round(y2), round(max(x1, 0)) : round(x2)] = 255
        Image.fromarray(pixels).save(root / f"{i}.png")
    flat = np.array([box for of_image in boxes for box in of_image], dtype=np.float64).reshape(-1, 4)
    return build_index(
        source=root,
        image_root=root,
        categories=(Category(1, "part"),),
        image_ids=np.arange(10, 10 + len(boxes)),
        file_names=[f"{i}.png" for i in range(len(boxes))],
        image_sizes=np.tile(size, (len(boxes), 1)),
        image_of_box=np.repeat(np.arange(len(boxes)), [len(of_image) for of_image in boxes]),
        boxes=flat,
        labels=np.zeros(len(flat), dtype=np.int64),
        ignore=np.zeros(len(flat), dtype=np.bool_),
        areas=np.full(len(flat), np.nan),
        annotation_ids=np.arange(100, 100 + len(flat)),
        metadata=[{"board": f"b{i // 2}"} for i in range(len(boxes))],
    )


def test_boxes_follow_the_pixels_and_the_way_back_is_exact(tmp_path: Path) -> None:
    dataset = DetectionDataset(make(tmp_path, [[(8, 12, 40, 44)]]), (120, 120))
    sample = dataset[0]
    assert sample is not None
    assert sample.image.shape == (3, 120, 120)
    assert sample.boxes.tolist() == [[12, 15 + 18, 60, 15 + 66]]
    rows, columns = torch.nonzero(sample.image[0] == 255, as_tuple=True)
    seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (seen - sample.boxes[0]).abs().max() <= 1  # interpolation softens the edge
    back = to_original(sample.boxes, sample.transform, torch.tensor(sample.original_size))
    torch.testing.assert_close(back, sample.original_boxes)


def test_degenerate_boxes_are_counted_and_left_out_and_others_clipped(tmp_path: Path) -> None:
    boxes = [[(-5, 10, 20, 30), (30, 30, 30, 40), (90, 10, 95, 20), (10, 10, 20, 20)]]
    dataset = DetectionDataset(make(tmp_path, boxes), (60, 80))
    sample = dataset[0]
    assert sample is not None
    assert dataset.degenerate == 1
    assert sample.boxes.tolist() == [[0, 10, 20, 30], [10, 10, 20, 20]]
    assert sample.annotation_ids.tolist() == [100, 103]
    assert sample.areas.tolist() == [500, 100]  # the annotation's own, where the first is 25 wide


@pytest.mark.parametrize("scale", [1, 2])
def test_a_crop_is_of_the_resized_image_and_hides_what_it_cuts(tmp_path: Path, scale: int) -> None:
    image_size, crop_size = (60 * scale, 80 * scale), (32 * scale, 32 * scale)
    dataset = DetectionDataset(make(tmp_path, [[(4, 2, 24, 22)]]), image_size, crop_size=crop_size)
    outcomes = set()
    for visit in range(60):
        sample = dataset[visit]
        assert sample is not None
        assert sample.image.shape == (3, *crop_size)
        white = int((sample.image[0] > (254 if scale == 1 else 127)).sum())  # resizing blurs edges
        area = float((sample.boxes[:, 2:] - sample.boxes[:, :2]).prod())  # an empty product is 1
        assert white == (area if len(sample.boxes) else 0)
        assert sample.ignore.tolist() == ([area < 0.3 * 400 * scale**2] if len(sample.boxes) else [])
        outcomes.add("gone" if not len(sample.boxes) else "ignored" if sample.ignore[0] else "kept")
        if len(sample.boxes) and area == 400 * scale**2:
            back = to_original(sample.boxes, sample.transform, torch.tensor(sample.original_size))
            assert back.tolist() == [[4, 2, 24, 22]]
    assert outcomes == {"gone", "ignored", "kept"}


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_stop_or_are_skipped_and_named(tmp_path: Path, workers: int) -> None:
    index = make(tmp_path, [[(8, 12, 40, 44)]] * 5)
    for broken in (1, 4):
        (tmp_path / f"{broken}.png").write_bytes(b"cut off")
    with pytest.raises(ImageError, match=r"1\.png"):
        DetectionDataset(index, (60, 80))[1]
    dataset = DetectionDataset(index, (60, 80), on_bad_image="skip")
    batches = list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate))
    assert [None if batch is None else batch.image_ids.tolist() for batch in batches] == [[10], [12, 13], None]
    notes = dataset.skipped()
    assert len(notes) == 2
    assert "1.png" in notes[0]
    assert "4.png" in notes[1]
    assert dataset.skipped() == []


def test_a_batch_is_padded_with_rows_that_are_not_valid(tmp_path: Path) -> None:
    boxes = [[(8, 12, 40, 44), (1, 1, 5, 5)], [], [(2, 2, 9, 9)]]
    dataset = DetectionDataset(make(tmp_path, boxes), (60, 80))
    batch = collate([dataset[i] for i in range(3)])
    assert batch is not None
    assert batch.images.dtype == torch.uint8
    assert batch.targets.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert batch.targets.boxes[1].abs().sum() == 0
    assert batch.annotation_ids.tolist() == [[100, 101], [0, 0], [102, 0]]


@pytest.mark.parametrize(
    ("crop_size", "stretch"), [(None, False), (None, True), ((120, 120), False), ((120, 160), True)]
)
def test_objects_are_those_of_the_samples(tmp_path: Path, crop_size: tuple[int, int] | None, stretch: bool) -> None:
    boxes = [[(8, 12, 40, 44), (30, 30, 30, 40)], [], [(-5, 10, 20, 30), (90, 10, 95, 20), (10, 10, 20, 20)]]
    index = make(tmp_path, boxes, (60, 80))
    index.ignore[4] = True
    if crop_size is None:
        index.image_sizes[0] = 0  # to be taken from the header
    dataset = DetectionDataset(index, (120, 120), stretch=stretch, crop_size=crop_size)
    objects = dataset.objects()
    samples = [sample for sample in (dataset[i] for i in range(3)) if sample is not None]
    torch.testing.assert_close(objects.boxes, torch.cat([sample.boxes[~sample.ignore] for sample in samples]))
    assert objects.labels.tolist() == [0, 0]
    assert objects.images.tolist() == [0, 2]
    assert objects.class_names == ["part"]
    assert objects.image_count == 3
    for position, sample in enumerate(samples):
        torch.testing.assert_close(objects.read_image(position), sample.image)
    assert objects.read_mask(0) is None


@pytest.mark.parametrize("scale", [1, 2])
def test_objects_of_crops_are_whole_and_resized(tmp_path: Path, scale: int) -> None:
    index = make(tmp_path, [[(4, 2, 24, 22)]])
    objects = DetectionDataset(index, (60 * scale, 80 * scale), crop_size=(32, 32)).objects()
    assert objects.boxes.tolist() == [[4 * scale, 2 * scale, 24 * scale, 22 * scale]]
    image = objects.read_image(0)
    assert image.shape == (3, 60 * scale, 80 * scale)
    blurred = scale - 1
    inside = image[:, 2 * scale + blurred : 22 * scale - blurred, 4 * scale + blurred : 24 * scale - blurred]
    assert inside.min() == 255


def test_an_image_narrower_than_the_window_keeps_its_scale(tmp_path: Path) -> None:
    dataset = DetectionDataset(make(tmp_path, [[(4, 2, 24, 22)]]), (120, 160), crop_size=(80, 200))
    tops = set()
    for visit in range(20):
        sample = dataset[visit]
        assert sample is not None
        assert sample.image.shape == (3, 80, 200)
        scale_x, scale_y, left, top = sample.transform.tolist()
        assert (scale_x, scale_y, left) == (2, 2, 20)  # 160 of 200 px, centred on grey
        assert (sample.image[:, :, :20] == PAD_VALUE).all()
        tops.add(top)
    assert min(tops) >= -40
    assert max(tops) <= 0
    assert len(tops) > 5


def test_masks_of_objects_cover_their_pixels(tmp_path: Path) -> None:
    index = make(tmp_path, [[(30, 30, 30, 40), (8, 12, 40, 44)], [(1, 1, 5, 5)]])
    square: list[list[float]] = [[8, 12, 40, 12, 40, 44, 8, 44]]
    index = dataclasses.replace(index, segmentations=(None, square, None))
    for size, crop_size in (((120, 120), None), ((60, 80), (32, 32)), ((120, 160), (32, 32)), ((120, 160), None)):
        objects = DetectionDataset(index, size, crop_size=crop_size).objects()
        mask = objects.read_mask(0)
        assert mask is not None
        assert mask.shape == objects.read_image(0).shape[1:]
        rows, columns = torch.nonzero(mask, as_tuple=True)
        seen = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()
        torch.testing.assert_close(seen, objects.boxes[0])
        assert objects.read_mask(1) is None


def test_objects_of_bad_images_stop_or_are_left_out(tmp_path: Path) -> None:
    index = make(tmp_path, [[(8, 12, 40, 44)]] * 3)
    index.image_sizes[:] = 0
    (tmp_path / "1.png").write_bytes(b"cut off")
    with pytest.raises(ImageError, match=r"1\.png"):
        DetectionDataset(index, (60, 80)).objects()
    objects = DetectionDataset(index, (60, 80), on_bad_image="skip").objects()
    assert objects.images.tolist() == [0, 2]


def test_groups_stay_together_when_images_are_held_out(tmp_path: Path) -> None:
    index = make(tmp_path, [[]] * 12)
    for seed in range(10):
        kept, held = hold_out(index, 0.25, "board", seed)
        assert sorted([*kept, *held]) == list(range(12))
        assert {i // 2 for i in kept}.isdisjoint({i // 2 for i in held})
        assert len(held) == 4  # whole pairs: of 2 and 4, as near to 3 as each other, the larger
    with pytest.raises(DataError, match="camera"):
        hold_out(index, 0.25, "camera", 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=8), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_large_group_is_not_held_out_for_a_small_share(sizes: list[int], fraction: float, seed: int) -> None:
    boards = np.repeat(np.arange(len(sizes)), sizes)
    index = build_index(
        source=Path("boards.json"),
        image_root=Path(),
        categories=(Category(1, "part"),),
        image_ids=np.arange(len(boards)),
        file_names=[f"{i}.png" for i in range(len(boards))],
        image_sizes=np.full((len(boards), 2), 64),
        image_of_box=np.empty(0, dtype=np.int64),
        boxes=np.empty((0, 4)),
        labels=np.empty(0, dtype=np.int64),
        ignore=np.empty(0, dtype=np.bool_),
        areas=np.empty(0),
        annotation_ids=np.empty(0, dtype=np.int64),
        metadata=[{"board": board} for board in boards.tolist()],
    )
    kept, held = hold_out(index, fraction, "board", seed)
    assert sorted([*kept, *held]) == list(range(len(boards)))
    assert 0 < len(np.unique(boards[held])) < len(sizes)
    assert set(boards[kept]).isdisjoint(boards[held])
    wanted = fraction * len(boards)
    error = abs(len(held) - wanted)
    # Taking nothing would be off by what is wanted; only where there is no small group may it be more than that.
    assert error <= max(wanted, abs(min(sizes) - wanted)) + 1e-9
    one_each = hold_out(index, fraction, None, seed)[1]
    assert abs(len(one_each) - min(max(wanted, 1), len(boards) - 1)) <= 0.5 + 1e-9


def test_hashes_tell_images_and_annotations_apart(tmp_path: Path) -> None:
    index = make(tmp_path, [[(8, 12, 40, 44)], []])
    annotations, images = index.annotations_hash(), index.images_hash()
    assert index.subset([1, 0]).images_hash() != images
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert index.images_hash() != images
    assert index.annotations_hash() == annotations

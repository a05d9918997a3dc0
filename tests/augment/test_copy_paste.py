from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detframe.augment.copy_paste import CopyPaste
from detframe.augment.crop_bank import Blend, build_bank, soft_outline
from detframe.boxes import box_area, intersection, pairwise_iou
from detframe.structures import Batch, Targets, TrainingObjects, empty_targets

SIDE = 96


def drawn_objects(
    counts: list[int], sides: tuple[int, int] = (8, 20), colour: int = 255, background: int = 0, masks: bool = False
) -> TrainingObjects:
    """One filled rectangle in each of many images of one colour; masks are triangles in the rectangles."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    size = torch.randint(sides[0], sides[1] + 1, (len(labels), 2), generator=generator)
    corner = (torch.rand(len(labels), 2, generator=generator) * (SIDE - 20 - size) + 10).floor()
    boxes = torch.cat((corner, corner + size), dim=1)

    def read_image(position: int) -> Tensor:
        image = torch.full((3, SIDE, SIDE), background, dtype=torch.uint8)
        if position < len(boxes):
            x1, y1, x2, y2 = boxes[position].int().tolist()
            image[:, y1:y2, x1:x2] = colour
        return image

    def read_mask(item: int) -> Tensor | None:
        if not masks:
            return None
        filled = read_image(item)[0] == colour
        rows, columns = torch.nonzero(filled, as_tuple=True)
        across = (torch.arange(SIDE) - columns.min()) / (columns.max() - columns.min())
        down = (torch.arange(SIDE) - rows.min()) / (rows.max() - rows.min())
        return filled & (across <= down[:, None])

    names = [f"class {label}" for label in range(len(counts))]
    return TrainingObjects(boxes, labels, torch.arange(len(labels)), names, len(labels), read_image, read_mask)


def empty_batch(count: int = 4, side: int = SIDE, rows: int = 0, brightness: float = 0.0) -> Batch:
    return Batch(
        images=torch.full((count, 3, side, side), brightness),
        targets=empty_targets(count, rows),
        original_boxes=torch.zeros(count, rows, 4),
        areas=torch.zeros(count, rows),
        annotation_ids=torch.zeros(count, rows, dtype=torch.int64),
        image_ids=torch.arange(count),
        original_sizes=torch.full((count, 2), side),
        transforms=torch.tensor([[1.0, 1, 0, 0]]).expand(count, 4),
    )


def random_batch(count: int, rows: int, chances: list[float], ignored: float = 0.0, side: int = SIDE) -> Batch:
    """Random boxes, which may overlap; about a fifth of the rows is padding."""
    batch = empty_batch(count, side, rows)
    size = torch.randint(4, 30, (count, rows, 2))
    corner = (torch.rand(count, rows, 2) * (side - size)).floor()
    valid = torch.rand(count, rows) < 0.8
    labels = torch.tensor(chances).expand(count * rows + 1, -1).multinomial(1)[1:].view(count, rows)
    targets = Targets(
        boxes=torch.cat((corner, corner + size), dim=-1) * valid[..., None],
        labels=labels * valid,
        ignore=(torch.rand(count, rows) < ignored) & valid,
        valid=valid,
    )
    return batch._replace(images=torch.rand(count, 3, side, side), targets=targets, original_boxes=targets.boxes)


def prepared(objects: TrainingObjects, operator: CopyPaste) -> CopyPaste:
    operator.prepare(objects)
    assert operator.rate is not None
    return operator


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("blend", ["ellipse", "rectangle"])
def test_a_pasted_box_is_what_is_seen(blend: Blend, mirror: bool) -> None:
    operator = prepared(drawn_objects([60, 6]), CopyPaste(share=0.3, slots=1, blend=blend, mirror=mirror))
    seen = 0
    for seed in range(40):
        torch.manual_seed(seed)
        batch = operator(empty_batch())
        pasted = batch.targets.valid[:, 0]
        for image, box in zip(batch.images[pasted], batch.targets.boxes[pasted, 0], strict=True):
            rows, columns = torch.nonzero(image[0] > 0.5, as_tuple=True)
            extent = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()
            assert float(pairwise_iou(extent[None], box[None])) >= 0.95
            seen += 1
    assert seen > 20


def test_a_mask_is_pasted_as_it_is() -> None:
    operator = prepared(
        drawn_objects([60, 6], sides=(20, 24), masks=True), CopyPaste(share=0.3, slots=1, scale=(1.0, 1.0))
    )
    seen = 0
    for seed in range(20):
        torch.manual_seed(seed)
        batch = operator(empty_batch())
        pasted = batch.targets.valid[:, 0]
        for image, box in zip(batch.images[pasted], batch.targets.boxes[pasted, 0], strict=True):
            shape = image[0] > 0.49
            rows, columns = torch.nonzero(shape, as_tuple=True)
            extent = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()
            torch.testing.assert_close(extent, box)
            assert float(shape.sum()) == pytest.approx(float(box_area(box)) / 2, rel=0.12)
            seen += 1
    assert seen > 10


def test_pixels_at_native_size_are_the_crops_own_and_others_stay() -> None:
    objects = drawn_objects([40, 4])
    noise = torch.randint(0, 256, (44, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    objects = objects._replace(read_image=lambda position: noise[position])
    operator = prepared(objects, CopyPaste(share=0.4, slots=1, scale=(1.0, 1.0), max_shift=0.0, blend="rectangle"))
    torch.manual_seed(0)
    before = empty_batch(16)
    after = operator(before)
    assert after.targets.valid.any()
    for image, box, valid in zip(after.images, after.targets.boxes[:, 0], after.targets.valid[:, 0], strict=True):
        x1, y1, x2, y2 = box.int().tolist()
        patch = (image[:, y1:y2, x1:x2] * 255).round()
        found = [
            bool(torch.equal(patch, noise[i][:, b[1] : b[3], b[0] : b[2]].float()))
            for i, b in enumerate(objects.boxes.int().tolist())
            if patch.shape[1:] == (b[3] - b[1], b[2] - b[0])
        ]
        assert any(found) == bool(valid)
        rest = image.clone()
        rest[:, max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4] = 0
        assert rest.abs().max() == 0


def test_rows_are_added_and_nothing_else_changes() -> None:
    operator = prepared(drawn_objects([60, 6]), CopyPaste(share=0.3, slots=3))
    torch.manual_seed(0)
    before = random_batch(8, 5, [0.9, 0.1])
    images = before.images.clone()
    after = operator(before)
    torch.testing.assert_close(before.images, images, rtol=0, atol=0)
    assert after.targets.boxes.shape == (8, 8, 4)
    for field in ("boxes", "labels", "ignore", "valid"):
        torch.testing.assert_close(getattr(after.targets, field)[:, :5], getattr(before.targets, field))
    new = after.targets.valid[:, 5:]
    assert new.any()
    assert not new.all()
    assert after.targets.boxes[:, 5:][~new].abs().sum() == 0
    assert after.targets.labels[:, 5:][~new].abs().sum() == 0
    assert not after.targets.ignore[:, 5:].any()
    assert after.original_boxes[:, 5:].abs().sum() == 0
    assert after.areas[:, 5:].abs().sum() == 0
    assert (after.annotation_ids[:, 5:] == -1).all()
    assert after.images.min() >= 0
    assert after.images.max() <= 1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 12),
    limit=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    slots=st.integers(1, 6),
)
def test_never_hides_more_than_allowed(seed: int, rows: int, limit: float, slots: int) -> None:
    torch.manual_seed(seed)
    operator = prepared(drawn_objects([60, 6]), CopyPaste(share=0.1 + 0.03 * slots, slots=slots, max_hidden=limit))
    for _ in range(3):
        after = operator(random_batch(4, rows, [0.95, 0.05], ignored=0.2)).targets
        covered = torch.zeros(4, rows + slots, SIDE, SIDE, dtype=torch.bool)
        for slot in range(slots):  # a later paste hides earlier ones
            inside = pixels(after.boxes[:, rows + slot : rows + slot + 1])
            covered[:, : rows + slot] |= pixels(after.boxes[:, : rows + slot]) & inside
        hidden = covered.sum(dim=(2, 3)) / box_area(after.boxes).clamp(min=1)
        live = after.valid & ~after.ignore
        assert hidden[live].max() <= limit + 1e-5 if live.any() else True
        overlap = intersection(after.boxes[:, rows:], after.boxes[:, :rows])
        assert (overlap * (after.ignore & after.valid)[:, None, :rows]).sum() == 0


def pixels(boxes: Tensor) -> Tensor:
    """Pixels ``[B, N, SIDE, SIDE]`` inside each of the boxes ``[B, N, 4]``."""
    along = torch.arange(SIDE)
    x = (along >= boxes[..., :1]) & (along < boxes[..., 2:3])
    y = (along >= boxes[..., 1:2]) & (along < boxes[..., 3:])
    return x[:, :, None] & y[..., None]


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.08, 0.12, 0.15]),
    rare=st.sampled_from([0.0, 0.02, 0.05]),  # of what comes in, where the training data has 0.05
    rows=st.integers(2, 10),
)
def test_the_share_is_what_was_asked_for(seed: int, share: float, rare: float, rows: int) -> None:
    torch.manual_seed(seed)
    objects = drawn_objects([65, 30, 5])._replace(image_count=25)
    operator = prepared(objects, CopyPaste(share=share, slots=6))
    live, found = 0, 0
    for _ in range(60):
        targets = operator(random_batch(16, rows, [0.7, 0.3 - rare, rare], side=64)).targets
        live += int(targets.valid.sum())
        found += int((targets.valid & (targets.labels == 2)).sum())
    assert found / live == pytest.approx(share, rel=0.1)


def test_a_share_out_of_reach_names_what_can_be_had() -> None:
    # 66 objects in 66 images, 4 more in each: of 330 in all, 6 + 264 x 10/11 are of the rarest class.
    with pytest.raises(ValueError, match=r"class 1 can rise from 9\.1% to at most 74\.5%"):
        CopyPaste(share=0.8).prepare(drawn_objects([60, 6]))


def test_says_that_there_is_nothing_to_do(caplog: pytest.LogCaptureFixture) -> None:
    operator = CopyPaste(share=0.3)
    with caplog.at_level(logging.INFO):
        operator.prepare(drawn_objects([10, 10]))
    assert "has 50.0% of the boxes; nothing is pasted" in caplog.text
    batch = empty_batch()
    assert operator(batch) is batch


def test_needs_to_see_the_data_first() -> None:
    with pytest.raises(RuntimeError, match="prepare"):
        CopyPaste()(empty_batch())


@pytest.mark.parametrize("rows", [0, 7])
def test_waits_for_nothing(rows: int, no_waiting: TorchDispatchMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detframe.augment.copy_paste._ONE_BY_ONE", ())  # what an accelerator does
    operator = prepared(drawn_objects([60, 6]), CopyPaste(share=0.3, mirror=True, p=0.9))
    torch.manual_seed(0)
    batch = random_batch(16, rows, [0.9, 0.1])
    with no_waiting:
        after = operator(batch)
    assert after.targets.valid[:, rows:].any()


def test_pasting_one_by_one_and_all_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for one_by_one in (("cpu",), ()):
        monkeypatch.setattr("detframe.augment.copy_paste._ONE_BY_ONE", one_by_one)
        operator = prepared(drawn_objects([60, 6]), CopyPaste(share=0.3, mirror=True))
        torch.manual_seed(0)
        results.append(operator(random_batch(16, 7, [0.9, 0.1])))
    torch.testing.assert_close(results[0].images, results[1].images, atol=1e-5, rtol=0)
    assert results[0].targets.boxes.equal(results[1].targets.boxes)


def test_eighty_classes_some_without_objects_and_some_too_large(caplog: pytest.LogCaptureFixture) -> None:
    counts = [0, *range(2, 81)]
    objects = drawn_objects(counts)
    objects.boxes[objects.labels == 1] = torch.tensor([0.0, 10, 90, 40])  # the rarest
    operator = CopyPaste()
    with caplog.at_level(logging.INFO):
        prepared(objects, operator)
    assert "2 objects larger than 50% of their image's side are not pasted" in caplog.text
    assert "No crop of class 0, class 1" in caplog.text
    torch.manual_seed(0)
    found = []
    for _ in range(20):
        targets = operator(random_batch(32, 9, [1.0])).targets
        found.append(targets.labels[:, 9:][targets.valid[:, 9:]])
    labels = torch.cat(found)
    assert labels.min() >= 2
    assert len(labels.unique()) > 10
    assert float((labels == 2).float().mean()) == pytest.approx(1 / 2 / sum(1 / n for n in range(3, 81)), rel=0.5)


def test_crops_larger_than_a_smaller_image_are_left_out() -> None:
    operator = prepared(drawn_objects([60, 6], sides=(20, 24)), CopyPaste(share=0.3))
    for _ in range(5):
        assert not operator(empty_batch(side=32)).targets.valid.any()
        boxes = operator(empty_batch(side=44)).targets.boxes
        assert (boxes[..., 2:] - boxes[..., :2]).max() <= 22


def test_a_dark_object_stays_dark_and_follows_its_surroundings() -> None:
    objects = drawn_objects([60, 6], colour=20, background=128)
    operator = prepared(objects, CopyPaste(share=0.3, slots=1, max_shift=0.1))
    centres = []
    for brightness in (0.45, 0.5, 0.9):
        torch.manual_seed(3)
        batch = operator(empty_batch(16, brightness=brightness))
        boxes, images = batch.targets.boxes[:, 0], batch.images
        middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).long()
        value = images[torch.arange(16), 0, middle[:, 1], middle[:, 0]][batch.targets.valid[:, 0]]
        assert len(value)
        assert float(value.max() - value.min()) < 1e-3
        centres.append(float(value.mean()))
    assert centres == pytest.approx([20 / 255 - 0.052, 20 / 255 - 0.002, 20 / 255 + 0.1], abs=2e-3)


def test_goes_where_the_surroundings_are_alike() -> None:
    operator = prepared(drawn_objects([60, 6], background=64), CopyPaste(share=0.3, slots=1))
    inside = total = 0
    for seed in range(10):
        torch.manual_seed(seed)
        batch = empty_batch(16)
        batch.images[..., : SIDE // 2] = 0.25
        batch.images[..., SIDE // 2 :] = 0.75
        targets = operator(batch).targets
        boxes = targets.boxes[targets.valid]
        total += len(boxes)
        inside += int((boxes[:, 2] <= SIDE // 2).sum())
    assert total > 20
    assert inside / total > 0.95


def test_the_bank_is_bounded_and_prefers_what_is_whole() -> None:
    objects = drawn_objects([300, 20, 3])
    boxes = objects.boxes.clone()
    boxes[300:305] -= boxes[300:305, :2].repeat(1, 2)  # five of the second class at the image's edge
    boxes[320:] -= boxes[320:, :2].repeat(1, 2)  # and all of the third
    read: list[int] = []

    def read_image(position: int) -> Tensor:
        read.append(position)
        return objects.read_image(position)

    bank, notes = build_bank(objects._replace(boxes=boxes, read_image=read_image), 50, "ellipse")
    assert bank.labels.bincount().tolist() == [50, 15, 3]
    assert notes == []
    assert len(read) == len(set(read)) == 73
    again, _ = build_bank(objects._replace(boxes=boxes), 50, "ellipse")
    for part, other in zip(bank, again, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=0)


def test_covered_objects_and_bad_images_give_no_crops() -> None:
    objects = drawn_objects([30])
    boxes = objects.boxes.clone()
    boxes[1] = boxes[0] + 2
    images = objects.images.clone()
    images[1] = 0

    def read_image(position: int) -> Tensor:
        if position == 29:
            raise ValueError("29.png: damaged")
        return objects.read_image(position)

    changed = objects._replace(boxes=boxes, images=images, read_image=read_image)
    bank, notes = build_bank(changed, 50, "ellipse")
    assert len(bank.labels) == 27
    assert notes == ["1 images could not be read and give no crops, such as 29.png: damaged"]


def test_an_outline_is_whole_inside_and_soft_beyond() -> None:
    box = torch.tensor([10.0, 10, 30, 20])
    ellipse, rectangle = (soft_outline(box, 30, 40, blend) for blend in ("ellipse", "rectangle"))
    assert rectangle[10:20, 10:30].min() == 1
    assert ellipse[15, 10:30].min() == 1
    assert ellipse[10:20, 20].min() == 1
    assert ellipse[10, 10] == 0
    for alpha in (ellipse, rectangle):
        assert alpha[15, 9] == pytest.approx(1 - 0.5 / 1.2, abs=0.05)
        assert alpha[15, 8] == 0

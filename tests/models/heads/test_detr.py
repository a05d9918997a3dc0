import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from detframe.models.backbones import TimmBackbone
from detframe.models.denoising import attention_mask
from detframe.models.detector import Detector
from detframe.models.heads.detr import DETRHead, Prediction, make_anchors
from detframe.models.heads.dfine import DFINEHead
from detframe.models.heads.rtdetr import RTDETRHead
from detframe.models.hybrid_encoder import ELANHybridEncoder, HybridEncoder
from detframe.structures import Detections, Level, Targets, empty_targets

CLASSES = 3
LEVELS = [Level(32, 8), Level(32, 16), Level(32, 32)]
SMALL: dict[str, Any] = {"layers": 2, "heads": 4, "feedforward": 64, "queries": 40, "denoising": 20}
HEADS: list[Callable[..., DETRHead]] = [partial(RTDETRHead, **SMALL), partial(DFINEHead, **SMALL)]
each_head = pytest.mark.parametrize("make_head", HEADS, ids=["rtdetr", "dfine"])

MakeHead = Callable[..., DETRHead]


def build(make_head: MakeHead) -> Detector:
    """A whole detector; the smallest backbone that timm has for tests."""
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet")
    encoder = ELANHybridEncoder if make_head is HEADS[1] else HybridEncoder
    neck = encoder(backbone.levels, 32, expansion=0.5, blocks=1, heads=4, feedforward=64)
    return Detector(backbone, neck, make_head(neck.levels, CLASSES))


def maps(batch: int = 2, height: int = 128, width: int = 160, channels: int = 32) -> list[Tensor]:
    return [torch.randn(batch, channels, -(-height // s), -(-width // s)) for _, s in LEVELS]


def objects(count: int = 2, padding: int = 1) -> Targets:
    """As many objects in each of two images, of 128 x 128 pixels, and rows of padding."""
    generator = torch.Generator().manual_seed(1)
    near = torch.rand(2, count, 2, generator=generator) * 60
    boxes = torch.cat((near, near + 16 + torch.rand(2, count, 2, generator=generator) * 40), dim=-1)
    labels = torch.randint(0, CLASSES, (2, count), generator=generator)
    valid = torch.ones(2, count, dtype=torch.bool)
    boxes, labels, valid = (
        torch.nn.functional.pad(x, [0, 0] * (x.ndim - 2) + [0, padding]) for x in (boxes, labels, valid)
    )
    return Targets(boxes, labels, torch.zeros_like(valid), valid)


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


@each_head
def test_boxes_are_learnt_in_30_steps(make_head: MakeHead) -> None:
    """Not the whole loss: that of classes and distributions is weighted by IoU and rises while boxes get better."""
    detector = build(make_head)
    images, targets = torch.rand(2, 3, 128, 128), objects()

    def box_loss() -> float:
        with torch.no_grad():
            parts = detector.eval().loss(images, targets)
        return float(parts["box"] + parts["giou"])

    before = box_loss()
    optimizer = torch.optim.AdamW(detector.parameters(), 4e-3)
    for _ in range(30):
        loss = total(detector.train().loss(images, targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    assert box_loss() < 0.6 * before


@each_head
@pytest.mark.parametrize("training", [True, False])
def test_any_targets_give_a_finite_loss_and_every_parameter_a_gradient(make_head: MakeHead, training: bool) -> None:
    torch.manual_seed(0)
    head = make_head(LEVELS, CLASSES).train(training)
    some = objects(3)
    for targets in (
        some,
        empty_targets(2),
        empty_targets(2, 3),
        some._replace(ignore=some.valid.clone()),
        objects(300),  # more than there are queries
    ):
        head.zero_grad()
        loss = total(head.loss(maps(2, 104, 88), targets, (104, 88)))
        loss.backward()
        assert loss.isfinite()
        without = {name for name, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
        assert without == (set() if training else {"denoising_class_embed.weight"})


@each_head
def test_without_objects_only_classes_learn(make_head: MakeHead) -> None:
    torch.manual_seed(0)
    parts = make_head(LEVELS, CLASSES).train().loss(maps(), empty_targets(2, 1), (128, 160))
    assert parts.pop("class") > 0
    assert {float(value.detach()) for value in parts.values()} == {0.0}


@each_head
@pytest.mark.parametrize("training", [True, False])
def test_padding_does_not_change_the_loss(make_head: MakeHead, training: bool) -> None:
    torch.manual_seed(0)
    head, features, targets = make_head(LEVELS, CLASSES).train(training), maps(), objects(4, padding=5)
    trimmed = Targets(*(field[:, :4] for field in targets))
    # The same objects behind rows of padding and an ignored box, which is too small to hold any query's box.
    ahead = torch.tensor([[[0.0, 0, 1e-3, 1e-3]]]).expand(2, 1, 4)
    moved = Targets(
        torch.cat((targets.boxes[:, 4:], ahead, targets.boxes[:, :4]), dim=1),
        torch.cat((targets.labels[:, 4:], targets.labels[:, :1], targets.labels[:, :4]), dim=1),
        torch.tensor([[False] * 5 + [True] + [False] * 4]).expand(2, -1),
        torch.tensor([[False] * 5 + [True] * 5]).expand(2, -1),
    )
    losses = []
    for each in (targets, trimmed, moved):
        torch.manual_seed(3)  # of the noise
        losses.append(head.loss(features, each, (128, 160)))
    for other in losses[1:]:
        for name, value in losses[0].items():
            torch.testing.assert_close(other[name], value)


@each_head
@pytest.mark.parametrize("training", [True, False])
def test_an_image_that_is_one_ignore_region_adds_no_loss(make_head: MakeHead, training: bool) -> None:
    torch.manual_seed(0)
    head = make_head(LEVELS, CLASSES).train(training)
    yes = torch.tensor([[True]])
    everything = Targets(torch.tensor([[[0.0, 0, 160, 128]]]), torch.tensor([[1]]), yes, yes)
    assert {float(v.detach()) for v in head.loss(maps(1), everything, (128, 160)).values()} == {0.0}


@each_head
def test_an_ignored_object_is_no_object(make_head: MakeHead) -> None:
    """A region that covers no prediction for the most part changes nothing: it is neither matched nor denoised."""
    torch.manual_seed(0)
    head, features, targets = make_head(LEVELS, CLASSES).train(), maps(), objects(2, padding=0)
    tiny = torch.tensor([[[100.0, 100, 100.01, 100.01]]]).expand(2, 1, 4)
    more = Targets(
        torch.cat((tiny, targets.boxes), dim=1),
        torch.cat((targets.labels[:, :1], targets.labels), dim=1),
        torch.tensor([[True, False, False]] * 2),
        torch.ones(2, 3, dtype=torch.bool),
    )
    losses = []
    for each in (targets, more):
        torch.manual_seed(3)
        losses.append(head.loss(features, each, (128, 160)))
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value)


@each_head
def test_what_noised_queries_say_reaches_only_their_group(make_head: MakeHead) -> None:
    torch.manual_seed(0)
    head = make_head(LEVELS, CLASSES).eval()
    for parameter in head.parameters():  # those that begin at zero would hide what comes through
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
    memory, grids = head.embed(maps(1), (128, 160))
    group = torch.tensor([0, 0, 1, 1])
    content, boxes = torch.randn(1, 10, 32), torch.rand(1, 10, 4) * 0.5 + 0.2

    def decode(query: Tensor) -> Prediction:
        return head.decode(query, boxes, memory, grids, attention_mask(group, 6))[-1]

    changed = content.clone()
    changed[:, 0] += 1  # of the first group
    before, after = decode(content), decode(changed)
    moved = (before.logits - after.logits).abs().amax(dim=-1)[0] > 0
    assert moved.tolist() == [True, True] + [False] * 8
    assert torch.equal(before.boxes[:, 2:], after.boxes[:, 2:])


@each_head
@pytest.mark.parametrize(("height", "width"), [(96, 96), (75, 120), (33, 20)])
def test_detections_keep_their_contract_at_any_size(make_head: MakeHead, height: int, width: int) -> None:
    detector = build(make_head).eval()
    with torch.no_grad():
        found = detector(torch.rand(3, 3, height, width))
    assert found.boxes.shape == (3, 100, 4)
    assert (found.scores.diff(dim=1) <= 0).all()
    live = found.boxes[found.valid]
    assert len(live)
    assert (live[:, 2:] > live[:, :2]).all()
    assert live.min() >= 0
    assert live[:, 2].max() <= width
    assert live[:, 3].max() <= height
    assert not found.boxes[~found.valid].any()
    assert not found.scores[~found.valid].any()
    assert found.labels.max() < CLASSES


@each_head
def test_fewer_cells_than_queries_and_more_slots_than_pairs(make_head: MakeHead) -> None:
    torch.manual_seed(0)
    head = make_head([Level(32, 32)], CLASSES, score_threshold=0.0).eval()
    with torch.no_grad():
        found = head([torch.randn(2, 32, 2, 3)], (64, 96))
    assert found.scores.shape == (2, 100)
    assert found.valid.sum(dim=1).tolist() == [18, 18]


@each_head
def test_levels_of_any_channels_are_taken(make_head: MakeHead) -> None:
    head = make_head([Level(8, 8), Level(24, 16)], CLASSES).eval()
    assert head.channels == 256
    assert head([torch.rand(1, 8, 8, 8), torch.rand(1, 24, 4, 4)], (64, 64)).boxes.shape == (1, 100, 4)


@each_head
def test_scripted_and_exported_equal_eager_at_another_batch_size(make_head: MakeHead) -> None:
    detector = build(make_head).eval()
    images, others = torch.rand(2, 3, 100, 128), torch.rand(3, 3, 100, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated and still one of the two formats
        scripted = torch.jit.script(detector)
        program = torch.export.export(detector, (images,), dynamic_shapes=({0: Dim("batch", min=1, max=8)},)).module()
    with torch.no_grad():
        expected = detector(others)
        assert expected.valid.any()
        assert_same_detections(scripted(others), expected)
        assert_same_detections(program(others), expected)


def assert_same_detections(found: Detections, expected: Detections) -> None:
    """Equal to 1e-4 as sets: where scores are nearly the same, their order may differ."""
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    assert torch.equal(found.valid, expected.valid)
    gap = torch.cdist(found.boxes, expected.boxes, p=torch.inf)
    gap += 1e3 * (found.scores[:, :, None] - expected.scores[:, None]).abs()
    gap += 1e3 * (found.labels[:, :, None] != expected.labels[:, None])
    last = expected.scores[:, -1:]
    for nearest in (gap.amin(dim=1), gap.amin(dim=2)):
        assert (nearest[expected.scores > last + 1e-4] < 0.1).all()


@each_head
def test_automatic_half_precision_trains_and_detects(make_head: MakeHead) -> None:
    detector = build(make_head).train()
    images, targets = torch.rand(2, 3, 96, 96), objects()
    with torch.autocast("cpu", torch.bfloat16):
        parts = detector.loss(images, targets)
        found = detector.eval()(images)
    assert all(part.dtype == torch.float32 for part in parts.values())
    total(parts).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert found.boxes.dtype == found.scores.dtype == torch.float32


@each_head
def test_a_whole_head_in_half_precision_is_near(make_head: MakeHead) -> None:
    torch.manual_seed(0)
    head, features = make_head(LEVELS, CLASSES, queries=400).eval(), maps()
    with torch.no_grad():
        expected = head(features, (128, 160))
        found = head.bfloat16()([m.bfloat16() for m in features], (128, 160))
    assert found.scores.dtype == torch.float32
    torch.testing.assert_close(found.scores, expected.scores, atol=0.05, rtol=0)


def test_anchors_lie_on_their_cells_within_the_image() -> None:
    head = RTDETRHead([Level(8, 8), Level(8, 16)], 1, heads=4)
    _, grids = head.embed([torch.rand(1, 8, 3, 2), torch.rand(1, 8, 2, 1)], (20, 16))
    anchors, usable = make_anchors(grids, torch.device("cpu"))
    boxes = anchors.sigmoid()
    assert usable.tolist() == [True, True, True, True, False, False, True, False]  # the last rows reach past 20 pixels
    torch.testing.assert_close(boxes[0], torch.tensor([0.25, 0.2, 0.05, 0.05]))
    torch.testing.assert_close(boxes[6], torch.tensor([0.5, 0.4, 0.1, 0.1]))


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ([], {}, r"RTDETRHead: the levels \(none\)"),
        (LEVELS, {"points": [4, 4]}, r"RTDETRHead.*32 channels at stride 8.*`points` for each.*\[4, 4\]"),
        ([Level(30, 8)], {}, r"RTDETRHead.*30 channels at stride 8.*in 8 equal parts"),
    ],
)
def test_levels_that_do_not_suit_are_refused(levels: list[Level], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RTDETRHead(levels, CLASSES, **options)  # type: ignore[arg-type]

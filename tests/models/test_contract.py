"""What every detector keeps, whatever its parts: backbone family x neck x head."""

import itertools
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.func import functional_call

from detframe.boxes import pairwise_iou
from detframe.models.assigners import ATSSAssigner, SimOTAAssigner
from detframe.models.backbones import TimmBackbone
from detframe.models.detector import Detector, build_detector
from detframe.models.heads.base import Head
from detframe.models.heads.dense import DenseHead
from detframe.models.heads.dfine import DFINEHead
from detframe.models.heads.fcos import FCOSHead
from detframe.models.heads.retina import RetinaHead
from detframe.models.heads.rtdetr import RTDETRHead
from detframe.models.heads.two_stage import TwoStageHead
from detframe.models.hybrid_encoder import ELANHybridEncoder, HybridEncoder
from detframe.models.necks import FPN, PAFPN, Neck, SimpleFeaturePyramid
from detframe.structures import Detections, Level, Targets, empty_targets

NeckFactory = Callable[[list[Level]], Neck]
HeadFactory = Callable[[list[Level], int], Head]

CLASSES = 3
FAMILIES = {
    "resnet": "test_resnet",
    "mobilenetv4": "mobilenetv4_conv_small_035",
    "efficientnet_lite": "test_efficientnet",  # same blocks; lite0 itself is in test_detector.py
    "convnext": "test_convnext",
    "regnet": "regnetx_002",
    "hgnetv2": "hgnetv2_b0",
    "swin": "swin_tiny_patch4_window7_224",
    "vit": "test_vit",
}
NECKS: dict[str, NeckFactory] = {
    "fpn": partial(FPN, channels=64),
    "fpn_extra": partial(FPN, channels=64, norm=False, extra="convolutions"),
    "pafpn": partial(PAFPN, channels=64),
    "pafpn_full": partial(PAFPN, channels=64, depth=2, depthwise=False),
    "simple": partial(SimpleFeaturePyramid, channels=64),
    "hybrid": partial(HybridEncoder, channels=64, blocks=1, feedforward=64),
    "hybrid_elan": partial(ELANHybridEncoder, channels=64, blocks=1, feedforward=64),
}
HEADS: dict[str, HeadFactory] = {
    "dense": partial(DenseHead, width=32),
    "dense_atss": partial(DenseHead, width=32, assigner=ATSSAssigner),
    "dense_simota": partial(DenseHead, width=32, assigner=SimOTAAssigner),
    "retina": partial(RetinaHead, anchor_scale=2.0),
    "fcos": partial(FCOSHead, depth=2),
    "two_stage": partial(TwoStageHead, hidden=64, proposals=100, anchor_scale=4.0),
    "rtdetr": partial(RTDETRHead, queries=50, layers=2, feedforward=64, denoising=10),
    "dfine": partial(DFINEHead, queries=50, layers=2, feedforward=64, denoising=10),
}
# Every family with every head, on the neck that suits it; and every neck with every head, on the smallest family.
OF_FAMILIES = [
    (family, "simple" if family == "vit" else "fpn", head)
    for family, head in itertools.product(FAMILIES, ("dense", "retina", "fcos", "two_stage", "rtdetr", "dfine"))
]
OF_NECKS = [("resnet", neck, head) for neck, head in itertools.product(NECKS, HEADS)]
PAIRS = list(dict.fromkeys(OF_FAMILIES + OF_NECKS))
# Parts are exported one by one, so each is looked at once; the other pairs are left to `pytest -m grid`.
EXPORTED = [pair for pair in PAIRS if pair[2] == "dense" or (pair[0] == "resnet" and pair[1] == "fpn")]
OTHERS = [pair for pair in OF_FAMILIES if pair not in EXPORTED]
# Of these there is no tiny model: the suite takes them with two kinds of head, `pytest -m grid` with the others.
LARGE = ("hgnetv2", "swin")
USUAL = [
    pytest.param(pair, marks=pytest.mark.grid) if pair[0] in LARGE and pair[2] not in ("dense", "dfine") else pair
    for pair in PAIRS
]
SMALL = [pair for pair in PAIRS if pair[0] in ("resnet", "vit")]


def build(pair: tuple[str, str, str]) -> Detector:
    torch.manual_seed(0)
    family, neck, head = pair
    return build_detector(partial(TimmBackbone, FAMILIES[family]), NECKS[neck], HEADS[head], CLASSES)


def objects(count: int = 2) -> Targets:
    """As many objects in each of two images, and a row of padding."""
    torch.manual_seed(1)
    corners = torch.rand(2, count, 2) * 60
    boxes = torch.cat((corners, corners + 16 + torch.rand(2, count, 2) * 40), dim=-1)
    padding = torch.zeros(2, 1, 4)
    valid = torch.ones(2, count + 1, dtype=torch.bool)
    valid[:, -1] = False
    labels = torch.randint(0, CLASSES, (2, count + 1)) * valid
    return Targets(torch.cat((boxes, padding), dim=1), labels, torch.zeros_like(valid), valid)


def total(detector: Detector, images: Tensor, targets: Targets) -> Tensor:
    return torch.stack(list(detector.loss(images, targets).values())).sum()


class Loss(nn.Module):
    """The summed loss of a detector as a forward pass, of images and the fields of targets."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, *targets: Tensor) -> Tensor:
        return total(self.detector, images, Targets(*targets))


def name(pair: tuple[str, str, str]) -> str:
    return "-".join(pair)


@pytest.mark.parametrize("head", ["dense", "dense_atss", "dense_simota", "retina", "fcos"])
def test_a_loss_reads_nothing_back_from_the_device(head: str) -> None:
    """Tensors without values raise when one is asked for, and so wherever a GPU would be waited for.

    The others need to by nature: a two-stage head's NMS, the matching of a DETR head.
    """
    mode = FakeTensorMode()
    detector = build(("resnet", "fpn", head)).train()
    values = [mode.from_tensor(tensor) for tensor in (torch.rand(2, 3, 96, 96), *objects())]
    state = [*detector.named_parameters("detector"), *detector.named_buffers("detector")]
    valueless: dict[str, Tensor] = {key: mode.from_tensor(tensor) for key, tensor in state}
    with mode:
        functional_call(Loss(detector), valueless, tuple(values)).backward()


@pytest.mark.parametrize("pair", USUAL, ids=name)
def test_a_pair_learns(pair: tuple[str, str, str]) -> None:
    """Levels agree with features, every parameter gets a gradient, and the loss falls."""
    detector = build(pair).train()
    images, targets = torch.rand(2, 3, 96, 96), objects()
    features = detector.features(images)
    described = [(level.channels, -(-96 // level.stride)) for level in detector.neck.levels]
    assert [(f.shape[1], f.shape[2]) for f in features] == described

    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    losses: list[float] = []
    # Of the highest, not the first: an assigner that goes by predictions asks little while they are poor.
    while len(losses) < 30 and (not losses or losses[-1] > 0.75 * max(losses)):
        loss = total(detector, images, targets)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            without = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
            assert without == []
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] <= 0.75 * max(losses)


@pytest.mark.parametrize("pair", SMALL, ids=name)
def test_any_targets_give_a_finite_loss_and_gradients(pair: tuple[str, str, str]) -> None:
    detector = build(pair).train()
    images = torch.rand(2, 3, 104, 88)  # no multiple of the strides
    ignored = objects(3)
    for targets in (
        empty_targets(2),
        empty_targets(2, 3),
        ignored._replace(ignore=ignored.valid.clone()),
        objects(300),
    ):
        detector.zero_grad()
        loss = total(detector, images, targets)
        loss.backward()
        assert loss.isfinite()
        assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("pair", SMALL, ids=name)
def test_an_image_that_is_one_ignore_region_adds_no_loss(pair: tuple[str, str, str]) -> None:
    whole = torch.tensor([[[0.0, 0, 96, 96]]])
    yes = torch.tensor([[True]])
    detector, targets = build(pair).eval(), Targets(whole, torch.tensor([[1]]), yes, yes)
    assert total(detector, torch.rand(1, 3, 96, 96), targets).item() == 0


@pytest.mark.parametrize("pair", SMALL, ids=name)
def test_padding_does_not_change_the_loss(pair: tuple[str, str, str]) -> None:
    detector, images, targets = build(pair).eval(), torch.rand(2, 3, 128, 128), objects(4)
    losses = []
    for padded in (targets, Targets(*(field[:, :-1] for field in targets))):
        torch.manual_seed(3)  # of what a head samples
        losses.append(total(detector, images, padded).detach())
    # Heads that sample draw from rows of another number, so their losses agree only in kind.
    torch.testing.assert_close(losses[0], losses[1], rtol=0.2 if pair[2] == "two_stage" else 1e-5, atol=0)


@pytest.mark.parametrize("pair", USUAL, ids=name)
def test_detections_keep_their_contract_at_any_size(pair: tuple[str, str, str]) -> None:
    detector = build(pair).eval()
    for batch, height, width in ((1, 96, 96), (3, 75, 120)):
        with torch.no_grad():
            found = detector(torch.rand(batch, 3, height, width))
        assert found.boxes.shape == (batch, 100, 4)
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert (found.scores.diff(dim=1) <= 0).all()
        live = found.boxes[found.valid]
        assert len(live)
        assert (live[:, 2:] > live[:, :2]).all()
        assert live.min() >= 0
        assert live[:, 2].max() <= width
        assert live[:, 3].max() <= height
        assert not found.boxes[~found.valid].any()
        assert found.labels.max() < CLASSES


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", [*EXPORTED, *(pytest.param(pair, marks=pytest.mark.grid) for pair in OTHERS)], ids=name
)
def test_scripted_and_exported_equal_eager_at_another_batch_size(pair: tuple[str, str, str]) -> None:
    detector = build(pair).eval()
    size = 128
    images, others = torch.rand(2, 3, size, size), torch.rand(3, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated and still one of the two formats
        # timm's plain transformers give their features by a function that TorchScript cannot type: trace them.
        scripted = torch.jit.trace(detector, images) if pair[0] == "vit" else torch.jit.script(detector)
        batch = Dim("batch", min=1, max=8)
        program = torch.export.export(detector, (images,), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        expected = detector(others)
        assert expected.valid.any()
        assert_same_detections(Detections(*scripted(others)), expected)
        assert_same_detections(Detections(*program(others)), expected)


def assert_same_detections(found: Detections, expected: Detections) -> None:
    """Equal to 1e-4 as sets: where scores are nearly the same, their order may differ."""
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    for image in range(len(expected.boxes)):
        a, b = found.boxes[image][found.valid[image]], expected.boxes[image][expected.valid[image]]
        same_class = found.labels[image][found.valid[image]][:, None] == expected.labels[image][expected.valid[image]]
        score_gap = (
            found.scores[image][found.valid[image]][:, None] - expected.scores[image][expected.valid[image]]
        ).abs()
        near = (torch.cdist(a, b, p=torch.inf) < 1e-2) & same_class & (score_gap < 1e-4)
        lowest = expected.scores[image][expected.valid[image]].min() + 1e-4  # a tie at the end may fall either way
        assert near.any(dim=1)[found.scores[image][found.valid[image]] > lowest].all()
        assert pairwise_iou(a, b).max() > 0.99


def test_what_cannot_work_says_so_and_names_both() -> None:
    with pytest.raises(ValueError, match=r"backbone test_vit: FPN needs levels whose strides grow.*SimpleFeature"):
        build_detector(partial(TimmBackbone, "test_vit", out_indices=(0, 1)), FPN, DenseHead, 3)
    with pytest.raises(ValueError, match=r"PAFPN needs levels whose strides double"):
        build_detector(partial(TimmBackbone, "test_resnet", out_indices=(1, 4)), PAFPN, DenseHead, 3)
    with pytest.raises(ValueError, match=r"neck FPN on the backbone test_resnet: FCOSHead needs 64 channels or"):
        build_detector(partial(TimmBackbone, "test_resnet"), partial(FPN, channels=48), FCOSHead, 3)
    with pytest.raises(ValueError, match="SimpleFeaturePyramid makes strides of a quarter"):
        build_detector(partial(TimmBackbone, "test_vit"), partial(SimpleFeaturePyramid, strides=(2, 16)), DenseHead, 3)

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detframe.boxes import pairwise_iou
from detframe.models.backbones import TimmBackbone
from detframe.models.detector import Detector
from detframe.models.heads.dense import DenseHead
from detframe.models.necks import FPN
from detframe.models.postprocess import suppress, vote
from detframe.structures import empty_targets

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"


def build(name: str = "resnet18", classes: int = 3, **options: object) -> Detector:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, **options)  # type: ignore[arg-type]
    neck = FPN(backbone.levels, 32)
    return Detector(backbone, neck, DenseHead(neck.levels, classes, width=32))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv4_conv_small"])  # the default, and the preset
def test_nano_is_small_enough_for_a_cpu(name: str) -> None:
    backbone = TimmBackbone(name)
    neck = FPN(backbone.levels)
    detector = Detector(backbone, neck, DenseHead(neck.levels, 80)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(torch.rand(1, 3, 320, 320))
    assert counter.get_total_flops() <= 3e9
    assert sum(parameter.numel() for parameter in detector.parameters()) <= 6e6


def test_detections_keep_their_contract() -> None:
    found, raw, _ = build().eval().look(torch.rand(2, 3, 96, 128))
    assert found.boxes.shape == (2, 100, 4)
    assert (found.scores.diff(dim=1) <= 0).all()
    live = found.boxes[found.valid]
    assert (live[:, 2:] > live[:, :2]).all()
    assert live.min() >= 0
    assert live[:, 2].max() <= 128
    assert live[:, 3].max() <= 96
    kept = suppress(raw, 0.6, 100)
    for label in range(3):  # suppressed: no two of a class overlap more than the threshold, until votes move them
        mine = kept.boxes[0][kept.valid[0] & (kept.labels[0] == label)]
        assert (pairwise_iou(mine, mine).fill_diagonal_(0) <= 0.6 + 1e-5).all()
    assert all(map(torch.equal, found, vote(kept, raw)))


def test_what_detections_come_from_is_seen_too() -> None:
    detector = build().eval()
    images = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        found, raw, embedding = detector.look(images)
        features = detector.backbone(detector.normalised(images))[-1]
        assert all(map(torch.equal, found, detector(images)))
    assert raw.scores.shape == (2, 500)
    assert raw.valid.sum() > found.valid.sum()
    best = raw.valid[0].nonzero()[0]  # nothing suppresses it
    kept = suppress(raw, 0.6, 1)
    assert torch.equal(raw.boxes[0, best], kept.boxes[0])
    assert torch.equal(vote(kept, raw).boxes[0], found.boxes[0, :1])
    assert torch.equal(raw.scores[0, best], found.scores[0, :1])
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(
        embedding * features.mean(dim=(2, 3)).norm(dim=1, keepdim=True), features.mean(dim=(2, 3))
    )


def test_an_image_is_found_alike_alone_and_in_a_batch() -> None:
    detector = build().eval()
    images = torch.rand(3, 3, 96, 96)
    with torch.no_grad():
        together, alone = detector(images), detector(images[1:2])
    torch.testing.assert_close(together.boxes[1], alone.boxes[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(together.scores[1], alone.scores[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("slots", [0, 3])
def test_no_object_gives_a_class_loss_alone(slots: int) -> None:
    parts = build().train().loss(torch.rand(2, 3, 96, 96), empty_targets(2, slots))
    assert parts["class"] > 0
    assert float(parts["box"].detach()) == 0
    assert float(parts["distribution"].detach()) == 0


def test_frozen_stages_do_not_train() -> None:
    detector = build(freeze=("conv1", "bn1", "layer1")).train()
    assert not detector.backbone.body.conv1.weight.requires_grad  # type: ignore[union-attr]
    assert not detector.backbone.body.bn1.training  # type: ignore[union-attr]
    assert detector.backbone.body.layer2[0].bn1.training  # type: ignore[union-attr, index]


def test_a_frozen_block_is_not_another_whose_number_begins_alike() -> None:
    body = TimmBackbone("vit_tiny_patch16_224", freeze=["blocks.1"]).body
    frozen = {name.split(".")[2] for name, parameter in body.named_parameters() if not parameter.requires_grad}
    assert frozen == {"1"}


def test_a_download_that_fails_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def offline(name: str, **options: Any) -> nn.Module:  # noqa: ANN401
        if options.get("pretrained"):
            asked.append(name)
            raise FileNotFoundError("no such host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"weights: timm's download for 'resnet18' failed \(no such host\)\. Give a"):
        TimmBackbone("resnet18", weights="imagenet")
    assert asked == ["resnet18"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet1800"}, "no model 'resnet1800'"),
        ({"weights": "/nowhere/weights.pth"}, "no file"),
        ({"freeze": ("layer9",)}, "no parameter lies in"),
    ],
)
def test_bad_arguments_say_what_and_how(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)  # type: ignore[arg-type]


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the shared weights are not here")
def test_imagenet_weights_are_read() -> None:
    fresh, loaded = (TimmBackbone("efficientnet_lite0", weights=w) for w in (None, str(WEIGHTS)))
    assert not torch.equal(fresh.state_dict()["body.conv_stem.weight"], loaded.state_dict()["body.conv_stem.weight"])
    with pytest.raises(ValueError, match="does not fit"):
        TimmBackbone("resnet18", weights=str(WEIGHTS))

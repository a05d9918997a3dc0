"""torchvision's weights in our detectors, and weights that move between sets of classes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as reference

from detframe.models.backbones import TimmBackbone
from detframe.models.detector import Detector, build_detector
from detframe.models.heads.base import Head, NMSHead
from detframe.models.heads.dense import DenseHead
from detframe.models.heads.fcos import FCOSHead
from detframe.models.heads.retina import RetinaHead
from detframe.models.heads.two_stage import TwoStageHead
from detframe.models.necks import FPN
from detframe.models.postprocess import suppress
from detframe.models.transfer import Pretrained, fitted, from_torchvision, initialise, read_pretrained
from detframe.structures import Level

SIDE = 128
RESIZE = {"min_size": SIDE, "max_size": SIDE}  # torchvision's models resize images themselves: to what they are already


PREDICTORS = ("cls_logits", "cls_score", "bbox_pred", "bbox_reg", "bbox_ctrness")


def randomised(model: nn.Module, images: Tensor) -> nn.Module:
    """Random statistics of the norms, and last layers whose outputs spread as those of a trained model do."""
    torch.manual_seed(0)
    for name, statistic in model.named_buffers():
        if name.endswith("running_mean"):
            statistic.normal_(std=0.1)
        elif name.endswith("running_var"):
            statistic.uniform_(0.5, 1.5)
    predictors = [module for name, module in model.named_modules() if name.split(".")[-1] in PREDICTORS]
    for module in predictors:
        module.register_forward_hook(calibrated)
    with torch.no_grad():
        model.eval()(list(images))
    for module in predictors:
        module._forward_hooks.clear()
    return model


def calibrated(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The output with a mean of 0 and a spread of 1, and the layer so that it gives it from now on."""
    mean, spread = output.mean(), output.std().clamp(min=1e-9)
    if not hasattr(layer, "is_calibrated"):  # on the first of the levels that share it
        layer.is_calibrated = True  # type: ignore[assignment]
        layer.bias.data.sub_(mean).div_(spread)  # type: ignore[operator]
        layer.weight.data.div_(spread)  # type: ignore[operator]
        return (output - mean) / spread
    return output


def faster_rcnn() -> tuple[nn.Module, Detector]:
    model = reference.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, box_score_thresh=0.05, **RESIZE
    )
    head = partial(
        TwoStageHead, hidden=1024, proposals=1000, proposals_per_level=1000, score_threshold=0.05, candidates=3000
    )
    return model, resnet50(partial(FPN, channels=256, norm=False, extra="pool"), head, 3, strides=4)


def faster_rcnn_v2() -> tuple[nn.Module, Detector]:
    model = reference.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=4, **RESIZE)
    head = partial(
        TwoStageHead,
        hidden=1024,
        rpn_depth=2,
        box_depth=4,
        proposals=1000,
        proposals_per_level=1000,
        score_threshold=0.05,
        candidates=3000,
    )
    return model, resnet50(partial(FPN, channels=256, extra="pool"), head, 3, strides=4)


def retinanet() -> tuple[nn.Module, Detector]:
    model = reference.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, **RESIZE)
    head = partial(RetinaHead, group_norm=False, score_threshold=0.05, candidates=5000, detections=300)
    return model, resnet50(partial(FPN, channels=256, norm=False, extra="convolutions"), head, 4)


def retinanet_v2() -> tuple[nn.Module, Detector]:
    model = reference.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=4, **RESIZE)
    head = partial(RetinaHead, score_threshold=0.05, candidates=5000, detections=300)
    return model, resnet50(partial(FPN, channels=256, norm=False, extra="convolutions_of_backbone"), head, 4)


def fcos() -> tuple[nn.Module, Detector]:
    model = reference.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, **RESIZE)
    head = partial(FCOSHead, score_threshold=0.2, candidates=5000)
    return model, resnet50(partial(FPN, channels=256, norm=False, extra="convolutions"), head, 4)


def resnet50(
    neck: Callable[[list[Level]], FPN], head: Callable[[list[Level], int], Head], classes: int, strides: int = 3
) -> Detector:
    backbone = partial(TimmBackbone, "resnet50", out_indices=(1, 2, 3, 4)[-strides:])
    return build_detector(backbone, neck, head, classes).eval()


MODELS = {
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_v2": faster_rcnn_v2,
    "retinanet": retinanet,
    "retinanet_v2": retinanet_v2,
    "fcos": fcos,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_torchvision_weights_give_torchvisions_detections(name: str) -> None:
    torch.manual_seed(0)
    model, detector = MODELS[name]()
    if name.startswith("faster_rcnn"):
        # RoIAlign reads other values beyond the border, which only proposals narrower than a cell reach.
        detector.head.smallest_proposal = 32.0  # type: ignore[assignment]
        model.rpn.min_size = 32.0  # type: ignore[union-attr]
    images = torch.rand(2, 3, SIDE, SIDE)
    randomised(model, images)
    names = ["a", "b", "c", "d"][: detector.head.class_rows(4).popitem()[1].shape[0]]
    state, transfer = fitted(
        detector, names, Pretrained("", from_torchvision("", model.state_dict(), None).state, None)
    )
    assert transfer.remade == []
    assert transfer.left == []
    detector.load_state_dict(state)

    with torch.no_grad():
        expected, raw = model(list(images)), detector.look(images).raw
    head = cast("NMSHead", detector.head)
    found = suppress(raw, head.nms_iou, head.detections)  # without box voting, which torchvision has not
    shift = 1 if name.startswith("faster_rcnn") else 0  # where torchvision's background is a class of its own
    for i, image in enumerate(expected):
        # torchvision's dense detectors also report boxes that clipping left without width or height.
        real = (image["boxes"][:, 2:] - image["boxes"][:, :2] >= 1e-2).all(dim=1)
        count = int(real.sum())
        assert count > 20
        torch.testing.assert_close(found.scores[i][:count], image["scores"][real], atol=1e-4, rtol=0)
        # As sets, since scores that are nearly the same may come in either order; the last may fall out by a tie.
        last = image["scores"][real][-1]
        same = (torch.cdist(found.boxes[i], image["boxes"][real], p=torch.inf) < 1e-2) & found.valid[i][:, None]
        same &= found.labels[i][:, None] + shift == image["labels"][real]
        same &= (found.scores[i][:, None] - image["scores"][real]).abs() < 1e-4
        assert same.any(dim=0)[image["scores"][real] > last + 1e-4].all()


def small(names: list[str], head: Callable[[list[Level], int], Head] = DenseHead) -> Detector:
    return build_detector(partial(TimmBackbone, "test_resnet"), partial(FPN, channels=64), head, len(names))


@pytest.mark.parametrize("head", [DenseHead, RetinaHead, FCOSHead, partial(TwoStageHead, hidden=32)])
def test_classes_keep_their_weights_wherever_their_label_moves(head: Callable[[list[Level], int], Head]) -> None:
    """A detector of other classes, with a class more, one less and the rest in another order."""
    before, after = ["ant", "bee", "cat"], ["cat", "dog", "ant", "eel"]
    old, new = small(before, head), small(after, head)
    state, transfer = fitted(new, after, Pretrained("", old.state_dict(), before))
    assert transfer.kept_classes == ["cat", "ant"]
    assert transfer.new_classes == ["dog", "eel"]
    assert transfer.remade == []
    new.load_state_dict(state)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        if isinstance(new.head, TwoStageHead) and isinstance(old.head, TwoStageHead):
            boxes = torch.tensor([[[5.0, 5, 60, 60]]])
            theirs, own = (d.head.predict_boxes(d.eval().features(images), boxes)[0] for d in (old, new))  # type: ignore[operator]
            order, columns = [0, 3, 1], [0, 1, 3]  # the background stays in front
        else:
            theirs, own = (d.head.predict(d.eval().features(images))[0] for d in (old, new))  # type: ignore[operator]
            order, columns = [2, 0], [0, 2]
    torch.testing.assert_close(own[..., columns], theirs[..., order])


def test_the_same_classes_need_no_names() -> None:
    old, new = small(["a", "b"]), small(["c", "d"])
    state, transfer = fitted(new, ["c", "d"], Pretrained("", old.state_dict(), None))
    assert transfer.remade == []
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in state.items())


def test_other_classes_without_names_are_made_anew() -> None:
    old, new = small(["a", "b"]), small(["c", "d", "e"])
    _, transfer = fitted(new, ["c", "d", "e"], Pretrained("", old.state_dict(), None))
    assert transfer.remade == [f"head.{key}" for key in new.head.class_rows(3)]


def test_files_of_older_versions_of_torchvision_are_read() -> None:
    """torchvision's own loading of the older names is the reference."""
    model = reference.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    old = {
        key.replace("_blocks.0.0.", "_blocks.0.").replace("rpn.head.conv.0.0.", "rpn.head.conv."): value + 1
        for key, value in model.state_dict().items()
    }
    assert "rpn.head.conv.weight" in old
    renamed = from_torchvision("", old, None).state
    model.load_state_dict(dict(old))
    assert renamed.keys() == from_torchvision("", model.state_dict(), None).state.keys()
    assert torch.equal(renamed["head.rpn.conv.0.0.weight"], model.state_dict()["rpn.head.conv.0.0.weight"])


def test_torchvisions_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its download is asked for by name, its classes known, and its norms without epsilon made ours."""
    state = {"roi_heads.box_head.fc6.bias": torch.zeros(1), "backbone.body.bn1.running_var": torch.ones(1)}
    asked: list[str] = []

    def download(url: str, *args: object, **kwargs: object) -> dict[str, Tensor]:
        asked.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    found = read_pretrained("FasterRCNN_ResNet50_FPN_Weights.COCO_V1")
    assert asked[0].endswith("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    assert found.class_names is not None
    assert found.class_names[:2] == ["person", "bicycle"]
    assert len(found.class_names) == 90
    variance = found.state["backbone.body.bn1.running_var"]
    torch.testing.assert_close(1 / (variance + 1e-5).sqrt(), torch.ones(1))

    def offline(url: str, *args: object, **kwargs: object) -> dict[str, Tensor]:
        raise URLError("no such host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"torchvision's download of Faster.*no such host.*Give a local file"):
        read_pretrained("FasterRCNN_ResNet50_FPN_Weights.COCO_V1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file, nor weights"),
        (b"nonsense", "cannot read"),
        ({"x": torch.zeros(1)}, "is neither a checkpoint"),
    ],
)
def test_what_is_no_detector_is_named(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        initialise(small(["a"]), ["a"], str(path))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"roi_heads.box_predictor.cls_score.bias": torch.zeros(9)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"nothing in .* fits this detector"):
        initialise(small(["a"]), ["a"], str(tmp_path / "other.pth"))

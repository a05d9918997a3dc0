"""Parity with transformers, through the authors' key names: both the networks and the renaming are held to it."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DFineConfig, DFineForObjectDetection, RTDetrV2Config, RTDetrV2ForObjectDetection
from transformers.models.hgnet_v2 import HGNetV2Config
from transformers.models.rt_detr import RTDetrResNetConfig

from detframe.models.backbones import Backbone, TimmBackbone
from detframe.models.detector import Detector
from detframe.models.heads.dfine import DFINEHead
from detframe.models.heads.rtdetr import RTDETRHead
from detframe.models.hybrid_encoder import ELANHybridEncoder, HybridEncoder
from detframe.models.official_keys import from_dfine, from_rtdetrv2
from detframe.models.resnet_vd import ResNetVd
from detframe.structures import Detections

CLASSES, WIDTH, QUERIES = 5, 32, 40
NO_MEAN, NO_DEVIATION = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

TRANSFORMER: dict[str, Any] = {
    "encoder_hidden_dim": WIDTH,
    "d_model": WIDTH,
    "decoder_in_channels": [WIDTH] * 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_layers": 2,
    "num_labels": CLASSES,
    "num_queries": QUERIES,
    "hidden_expansion": 0.5,
}

COMMON = (
    (r"^model\.backbone\.model\.", "backbone."),
    (r"^model\.encoder_input_proj\.(\d)\.0\.", r"encoder.input_proj.\1.conv."),
    (r"^model\.encoder_input_proj\.(\d)\.1\.", r"encoder.input_proj.\1.norm."),
    (r"^model\.encoder\.aifi\.", "encoder.encoder."),
    (r"^model\.encoder\.", "encoder."),
    (r"^model\.decoder\.class_embed\.", "decoder.dec_score_head."),
    (r"^model\.decoder\.bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.decoder\.(layers|lqe_layers)\.", r"decoder.decoder.\1."),
    (r"^model\.decoder\.", "decoder."),
    (r"^model\.decoder_input_proj\.(\d)\.0\.", r"decoder.input_proj.\1.conv."),
    (r"^model\.decoder_input_proj\.(\d)\.1\.", r"decoder.input_proj.\1.norm."),
    (r"^model\.enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^model\.enc_output\.1\.", "decoder.enc_output.norm."),
    (r"^model\.", "decoder."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.n_points_scale$", ".num_points_scale"),
    (r"\.mlp\.(layers\.0|fc1)\.", ".linear1."),
    (r"\.mlp\.(layers\.1|fc2)\.", ".linear2."),
    (r"^(encoder.*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(encoder.*)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
)

DFINE = (
    (r"^backbone\.embedder\.", "backbone.stem."),
    (r"^backbone\.encoder\.stages\.", "backbone.stages."),
    (r"^(backbone.*)\.convolution\.", r"\1.conv."),
    (r"^(backbone.*)\.normalization\.", r"\1.bn."),
    (r"^(encoder\.downsample_convs\.\d)\.conv(\d)\.", r"\1.0.cv\2."),
    (r"^(encoder\.\w+_blocks\.\d)\.conv1\.", r"\1.cv1."),
    (r"^(encoder\.\w+_blocks\.\d)\.csp_rep1\.", r"\1.cv2.0."),
    (r"^(encoder\.\w+_blocks\.\d)\.conv2\.", r"\1.cv2.1."),
    (r"^(encoder\.\w+_blocks\.\d)\.csp_rep2\.", r"\1.cv3.0."),
    (r"^(encoder\.\w+_blocks\.\d)\.conv3\.", r"\1.cv3.1."),
    (r"^(encoder\.\w+_blocks\.\d)\.conv4\.", r"\1.cv4."),
)

RTDETR = (
    *((rf"^backbone\.embedder\.embedder\.{i}\.", f"backbone.conv1.conv1_{i + 1}.") for i in range(3)),
    (r"^backbone\.encoder\.stages\.(\d)\.layers\.", r"backbone.res_layers.\1.blocks."),
    *((rf"^(backbone.*)\.layer\.{i}\.", rf"\1.branch2{letter}.") for i, letter in enumerate("abc")),
    (r"^(backbone.*)\.shortcut\.1\.", r"\1.short.conv."),
    (r"^(backbone.*)\.shortcut\.", r"\1.short."),
    (r"^(backbone.*)\.convolution\.", r"\1.conv."),
    (r"^(backbone.*)\.normalization\.", r"\1.norm."),
)


def official(model: nn.Module, rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The state of a transformers model under the names of the authors' files, as its conversion scripts have them."""
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key.startswith("model."):  # the others are the same tensors a second time
            for pattern, replacement in (*COMMON, *rules):
                key = re.sub(pattern, replacement, key)
            state[key] = value
    for key in [key for key in state if ".self_attn.q_proj." in key]:
        parts = [state.pop(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        state[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    state["decoder.anchors"] = state["decoder.valid_mask"] = torch.zeros(1)
    return state


def randomise(model: nn.Module) -> nn.Module:
    """Weights and statistics that leave no part without effect."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith(("up", "reg_scale", "points_scale", "num_batches_tracked")):
            continue
        noise = torch.rand(value.shape, generator=generator)
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.copy_(0.7 + 0.6 * noise)
        elif value.ndim > 1:
            fan_in = value[0].numel()
            value.copy_((noise - 0.5) * (12 / fan_in) ** 0.5)
        else:
            value.copy_((noise - 0.5) / 5)
    return model.eval()


def load(detector: Detector, state: Mapping[str, Tensor]) -> Detector:
    """Strictly, apart from what frozen batch norms do not count and what a file does not need to hold."""
    missing, unexpected = detector.load_state_dict(state, strict=False)
    assert [key for key in missing if not key.endswith("num_batches_tracked") and key not in ("mean", "std")] == []
    assert unexpected == []
    return detector.eval()


def assert_same(found: Detections, logits: Tensor, boxes_cxcywh: Tensor, width: int, height: int) -> None:
    scores = logits.sigmoid().flatten(1)
    top, index = scores.topk(found.scores.shape[1], dim=1)
    centres, sides = boxes_cxcywh.split(2, dim=-1)
    boxes = torch.cat((centres - sides / 2, centres + sides / 2), dim=-1).clamp(0, 1)
    boxes = (boxes * torch.tensor([width, height, width, height])).gather(
        1, (index // CLASSES)[..., None].expand(-1, -1, 4)
    )
    assert found.valid.all()
    torch.testing.assert_close(found.scores, top, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.labels, index % CLASSES)
    torch.testing.assert_close(found.boxes, boxes, atol=1e-4 * width, rtol=0)


def test_dfine_detects_what_transformers_detects() -> None:
    options: dict[str, Any] = {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "stage_out_channels": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, True, True],
        "stage_kernel_size": [3, 3, 5, 5],
        "hidden_sizes": [64, 256, 512, 1024],
        "use_learnable_affine_block": True,
        "out_indices": [2, 3, 4],
    }
    config = DFineConfig(
        backbone_config=HGNetV2Config(**options),
        encoder_in_channels=[256, 512, 1024],
        decoder_n_points=[3, 6, 3],
        depth_mult=0.34,
        **TRANSFORMER,
    )
    theirs = randomise(DFineForObjectDetection(config))
    backbone = TimmBackbone("hgnetv2_b0", out_indices=(1, 2, 3), mean=NO_MEAN, std=NO_DEVIATION)
    neck = ELANHybridEncoder(backbone.levels, WIDTH, expansion=0.5, blocks=1, heads=4, feedforward=48)
    head = DFINEHead(
        neck.levels,
        CLASSES,
        layers=2,
        queries=QUERIES,
        heads=4,
        points=[3, 6, 3],
        feedforward=48,
        detections=30,
        score_threshold=0,
    )
    state = official(theirs, DFINE)
    state["decoder.decoder.up"] = state["decoder.up"]
    ours = load(Detector(backbone, neck, head), from_dfine({"model": state}))
    images = torch.rand(2, 3, 128, 160)
    with torch.no_grad():
        expected = theirs(images)
        assert_same(ours(images), expected.logits, expected.pred_boxes, 160, 128)


@pytest.mark.parametrize(
    ("depths", "kind", "hidden", "name"),
    [
        ([2, 2, 2, 2], "basic", [64, 128, 256, 512], "resnet18d"),
        ([3, 4, 6, 3], "bottleneck", [256, 512, 1024, 2048], "resnet50d"),
    ],
)
def test_rtdetrv2_detects_what_transformers_detects(depths: list[int], kind: str, hidden: list[int], name: str) -> None:
    options: dict[str, Any] = {
        "embedding_size": 64,
        "hidden_sizes": hidden,
        "depths": depths,
        "layer_type": kind,
        "out_indices": [2, 3, 4],
    }
    config = RTDetrV2Config(
        backbone_config=RTDetrResNetConfig(**options), encoder_in_channels=hidden[1:], **TRANSFORMER
    )
    theirs = randomise(RTDetrV2ForObjectDetection(config))
    backbone: Backbone = ResNetVd(name) if kind == "basic" else TimmBackbone(name, mean=NO_MEAN, std=NO_DEVIATION)
    neck = HybridEncoder(backbone.levels, WIDTH, expansion=0.5, heads=4, feedforward=48)
    head = RTDETRHead(
        neck.levels, CLASSES, layers=2, queries=QUERIES, heads=4, feedforward=48, detections=30, score_threshold=0
    )
    ours = load(Detector(backbone, neck, head), from_rtdetrv2({"ema": {"module": official(theirs, RTDETR)}}))
    images = torch.rand(2, 3, 128, 160)
    with torch.no_grad():
        expected = theirs(images)
        assert_same(ours(images), expected.logits, expected.pred_boxes, 160, 128)


def test_what_depends_on_the_classes_has_a_row_for_each() -> None:
    few, many = (
        {name: value.shape for name, value in DFINEHead(ELANHybridEncoder(levels, 32).levels, c).state_dict().items()}
        for levels in [TimmBackbone("hgnetv2_b0", out_indices=(1, 2, 3)).levels]
        for c in (3, 7)
    )
    differ = {name: (few[name][0], many[name][0]) for name in few if few[name] != many[name]}
    scores = ["enc_score_head", *(f"dec_score_head.{i}" for i in range(3))]
    assert differ == {
        **{f"{score}.{part}": (3, 7) for score in scores for part in ("weight", "bias")},
        "denoising_class_embed.weight": (4, 8),
    }


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no D-FINE checkpoint.*conv1\.weight"):
        from_dfine({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no RT-DETRv2 checkpoint"):
        from_rtdetrv2({"model": {"backbone.stages.0.weight": torch.zeros(1)}})

"""Checkpoints of RT-DETRv2 and D-FINE as their authors publish them, under the keys of our detectors.

The detectors are ``Detector(backbone, neck, head)`` with these parts and, where nothing is said, their defaults:

============  ==============  =============================  =================================
D-FINE        TimmBackbone    ELANHybridEncoder              DFINEHead
============  ==============  =============================  =================================
N (strides    ``hgnetv2_b0``  channels 128, expansion 0.34,  layers 3, points [6, 6],
16 and 32)                    blocks 2, feedforward 512      feedforward 512
S             ``hgnetv2_b0``  expansion 0.5, blocks 1        layers 3, points [3, 6, 3]
M             ``hgnetv2_b2``  blocks 2                       layers 4, points [3, 6, 3]
L             ``hgnetv2_b4``                                 layers 6, points [3, 6, 3]
X             ``hgnetv2_b5``  channels 384,                  layers 6, points [3, 6, 3],
                              feedforward 2048               channels 256
============  ==============  =============================  =================================

============  ==============  =============================  =================================
RT-DETRv2     Backbone        HybridEncoder                  RTDETRHead
============  ==============  =============================  =================================
r18vd         ``ResNetVd``    expansion 0.5                  layers 3
r34vd         ``ResNetVd``    expansion 0.5                  layers 4
r50vd_m       ``resnet50d``   expansion 0.5                  layers 6
r50vd         ``resnet50d``                                  layers 6
r101vd        ``resnet101d``  channels 384,                  layers 6, channels 256
                              feedforward 2048
============  ==============  =============================  =================================

Both were trained on images in 0..1 that nothing was subtracted from: the backbone wants mean 0 and deviation 1. What
depends on the number of classes C is ``head.enc_score_head`` and ``head.dec_score_head.*`` (C rows of weight and bias)
and ``head.denoising_class_embed.weight`` (C + 1 rows, the last one zeros). Batch norms that the authors froze come
without ``num_batches_tracked``, which nothing reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_LEFT_OUT = re.compile(
    r"(encoder\.pos_embed\d+|decoder\.(anchors|valid_mask)|decoder\.decoder\.(up|reg_scale)|.*\.num_points_scale)$"
)  # made anew for every size of image, or held a second time under another name

_NECK_AND_HEAD = (
    (r"^encoder\.encoder\.0\.layers\.", "neck.encoder."),
    (r"^encoder\.downsample_convs\.(\d+)\.0\.", r"neck.downsample_convs.\1."),
    (r"^encoder\.", "neck."),
    (r"^decoder\.decoder\.", "head."),
    (r"^decoder\.", "head."),
)

_HGNET = (
    (r"^backbone\.stages\.", "backbone.body.stages_"),
    (r"^backbone\.stem\.", "backbone.body.stem."),
)

_RESNET = (
    (r"^backbone\.conv1\.conv1_1\.conv\.", "backbone.body.conv1.0."),
    (r"^backbone\.conv1\.conv1_1\.norm\.", "backbone.body.conv1.1."),
    (r"^backbone\.conv1\.conv1_2\.conv\.", "backbone.body.conv1.3."),
    (r"^backbone\.conv1\.conv1_2\.norm\.", "backbone.body.conv1.4."),
    (r"^backbone\.conv1\.conv1_3\.conv\.", "backbone.body.conv1.6."),
    (r"^backbone\.conv1\.conv1_3\.norm\.", "backbone.body.bn1."),
    *((rf"^backbone\.res_layers\.{i}\.blocks\.", f"backbone.body.layer{i + 1}.") for i in range(4)),
    *((rf"\.branch2{letter}\.conv\.", f".conv{i}.") for i, letter in enumerate("abc", 1)),
    *((rf"\.branch2{letter}\.norm\.", f".bn{i}.") for i, letter in enumerate("abc", 1)),
    (r"\.short\.(conv\.)?norm\.", ".downsample.2."),
    (r"\.short\.(conv\.)?conv\.", ".downsample.1."),
)


def from_rtdetrv2(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """State of a detector from a file of https://github.com/lyuwenyu/RT-DETR (``rtdetrv2_pytorch``, with a ResNet).

    Args:
        checkpoint: What ``torch.load`` gives.

    Raises:
        ValueError: It holds no weights of such a network.
    """
    return _rename(_weights(checkpoint, "RT-DETRv2", "backbone.res_layers."), (*_RESNET, *_NECK_AND_HEAD))


def from_dfine(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """State of a detector from a file of https://github.com/Peterande/D-FINE.

    Args:
        checkpoint: What ``torch.load`` gives.

    Raises:
        ValueError: It holds no weights of such a network.
    """
    return _rename(_weights(checkpoint, "D-FINE", "backbone.stages."), (*_HGNET, *_NECK_AND_HEAD))


def _weights(checkpoint: Mapping[str, Any], name: str, landmark: str) -> Mapping[str, Tensor]:
    """The averaged weights where there are any, else the others."""
    state: Mapping[str, Any] = checkpoint.get("ema", {}).get("module") or checkpoint.get("model") or checkpoint
    if not any(key.startswith(landmark) for key in state):
        found = ", ".join(sorted(map(str, state))[:3]) or "nothing"
        raise ValueError(f"This is no {name} checkpoint: no key begins with {landmark!r}, it holds {found} ...")
    return state


def _rename(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        if not _LEFT_OUT.match(key):
            for pattern, replacement in rules:
                key = re.sub(pattern, replacement, key)
            renamed[key] = value
    return renamed

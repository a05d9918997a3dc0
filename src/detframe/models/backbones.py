"""Backbones: networks that turn an image into a pyramid of feature maps and describe what they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import freeze_batch_norm_2d
from timm.models import group_parameters, load_state_dict
from torch import Tensor, nn
from torch.nn.functional import pad

from detframe.structures import Level


class Backbone(nn.Module):
    """What a detector needs of a backbone: features from ``forward``, and attributes that describe them.

    Attributes:
        name: How messages call it.
        levels: Channels and stride of every feature map, finest first.
        mean: Per-channel mean of the images that the weights expect, RGB, 0..1.
        std: Per-channel standard deviation, likewise.
    """

    __jit_ignored_attributes__: ClassVar[list[str]] = [
        "name",
        "levels",
        "mean",
        "std",
    ]  # of no use in TorchScript, which cannot type them
    name: str
    levels: list[Level]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps ``[B, channels, H / stride, W / stride]`` of normalised images ``[B, 3, H, W]``."""
        raise NotImplementedError

    @torch.jit.unused
    def parameter_depths(self) -> dict[str, int]:
        """How deep each parameter lies, 0 first: by that the learning rate may decay towards the input.

        Raises:
            ValueError: The network does not say.
        """
        raise ValueError(f"The backbone {self.name} does not say how deep its layers lie: leave `layer_decay` at 1.")


class TimmBackbone(Backbone):
    """Any timm model that has ``features_only``: convolutional, hierarchical or a plain vision transformer.

    Images of any size are taken: where the model itself wants whole cells or patches, they are padded to the right and
    at the bottom with the mean of its training images.

    Args:
        name: timm's name of the model, ``timm.list_models()`` lists them. Names that begin with ``tf_`` pad
            dynamically, which makes export take minutes; their weights fit the same model without the prefix.
        weights: ``imagenet`` downloads timm's default weights of the model; a path reads a local ``.safetensors`` or
            ``.pth`` file of the model (its classifier is left out); null starts from random weights.
        out_indices: Which of the model's feature stages to give, finest first. null takes those of stride 8, 16 and 32
            by the model's own word, or its last where it has none of them, as a plain vision transformer may.
        freeze: Parts of the model that do not train and whose batch norms keep their statistics, for example
            ``[conv_stem, bn1, blocks.0]``. ``[""]`` freezes the whole backbone.
        mean: Mean of the images that the weights were trained with, RGB, 0..1; null takes the model's own from timm.
        std: Standard deviation, likewise.
        drop_path_rate: Stochastic depth of the model, 0..1.
        freeze_norm: Batch norms keep the statistics and factors that they came with, which small batches would spoil.
            For batch norms over all processes set the trainer's ``sync_batchnorm``.
        grad_checkpointing: Compute features again on the way back instead of keeping them: less memory, more time.

    Raises:
        ValueError: The name is unknown to timm, has no such feature stages, or the weights do not fit.
    """

    def __init__(
        self,
        name: str = "efficientnet_lite0",
        weights: str | None = None,
        out_indices: Sequence[int] | None = None,
        freeze: Sequence[str] = (),
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        drop_path_rate: float = 0.0,
        freeze_norm: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        if not timm.is_model(name):
            similar = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            hint = f" Similar: {', '.join(similar)}." if similar else ""
            raise ValueError(f"timm {timm.__version__} has no model {name!r}.{hint} `timm.list_models()` lists all.")
        options: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        if out_indices is None:
            out_indices = usual_stages(name)
        self.body = _create(name, pretrained=weights == "imagenet", out_indices=tuple(out_indices), **options)
        info: Any = self.body.feature_info
        self.levels = [
            Level(channels, stride) for channels, stride in zip(info.channels(), info.reduction(), strict=True)
        ]
        config = timm.get_pretrained_cfg(name)
        self.mean = _three(mean or (config.mean if config else IMAGENET_DEFAULT_MEAN))
        self.std = _three(std or (config.std if config else IMAGENET_DEFAULT_STD))
        if weights is not None and weights != "imagenet":
            load_weights(self.body, Path(weights))
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")  # Swin
        self.multiple = 1 if _rounds_up(self.body, self.levels) else max(level.stride for level in self.levels)
        self._frozen = tuple(_canonical(prefix) for prefix in freeze)
        self._freeze()
        if freeze_norm:
            self.body = freeze_batch_norm_2d(self.body)
        if grad_checkpointing:
            _checkpoint_gradients(self.body, name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images, see :class:`Backbone`."""
        over_height, over_width = images.shape[2] % self.multiple, images.shape[3] % self.multiple
        if over_height or over_width:
            below, right = (self.multiple - over_height) % self.multiple, (self.multiple - over_width) % self.multiple
            images = pad(images, [0, right, 0, below])
        features: list[Tensor] = self.body(images)
        if self.channels_last:
            return [feature.permute(0, 3, 1, 2) for feature in features]
        return features

    @torch.jit.unused
    def parameter_depths(self) -> dict[str, int]:
        """Depths as timm's model groups its layers, see :class:`Backbone`."""
        model = getattr(self.body, "model", None)  # only extractors of transformers keep the whole model
        if model is None or not hasattr(model, "group_matcher"):
            return super().parameter_depths()
        groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        return {f"body.model.{name}": int(depth) for name, depth in groups.items()}

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switch to training, frozen batch norms excepted."""
        super().train(mode)
        for name, module in self.body.named_modules():
            if mode and name and _is_within(name, self._frozen):
                module.train(False)
        return self

    def _freeze(self) -> None:
        for prefix in self._frozen:
            if not any(_is_within(name, (prefix,)) for name, _ in self.body.named_parameters()):
                top = sorted({name.removeprefix("model.").split(".")[0] for name, _ in self.body.named_parameters()})
                raise ValueError(f"freeze: no parameter lies in {prefix!r}; the model has {', '.join(top)}.")
        for name, parameter in self.body.named_parameters():
            if _is_within(name, self._frozen):
                parameter.requires_grad_(False)


def usual_stages(name: str) -> tuple[int, ...]:
    """Indices of a timm model's feature stages with stride 8, 16 and 32, or of its last where it has none of them."""
    try:
        with torch.device("meta"):  # its description alone is wanted
            info: Any = timm.create_model(name, features_only=True).feature_info
    except (AssertionError, AttributeError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(f"timm's {name!r} gives no feature maps, so it cannot be a backbone: {error}") from error
    last_of = dict(zip(info.reduction(), info.out_indices, strict=True))  # a plain transformer repeats its stride
    return tuple(last_of[stride] for stride in (8, 16, 32) if stride in last_of) or (info.out_indices[-1],)


def _create(name: str, **options: Any) -> nn.Module:  # noqa: ANN401 - timm's own
    """A timm feature extractor that takes any image size where the model has a switch for that."""
    any_size: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})  # ViT, Swin
    for switch in any_size:
        try:
            model: nn.Module = timm.create_model(name, features_only=True, **options, **switch)
            return model
        except OSError as error:  # of a download, which is not to be tried again with another switch
            raise ValueError(
                f"weights: timm's download for {name!r} failed ({' '.join(str(error).split())[:200]}). Give a local "
                "file, or null for random weights."
            ) from error
        except (AssertionError, IndexError, TypeError, RuntimeError) as error:
            if not switch:
                given = list(options["out_indices"])
                raise ValueError(f"timm cannot build {name!r} with out_indices {given}: {error}") from error
    raise AssertionError


def _rounds_up(body: nn.Module, levels: list[Level]) -> bool:
    """Whether feature maps cover images whose sides are no multiple of the strides; some models refuse or cut those."""
    side = max(level.stride for level in levels) * 3 // 2 + 1
    training = body.training
    try:
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError):
        return False
    finally:
        body.train(training)
    return all(max(f.shape[2:]) == -(-side // level.stride) for f, level in zip(features, levels, strict=True))


def _canonical(name: str) -> str:
    """A parameter's name as timm's whole model has it; extractors say ``blocks_0`` or ``model.blocks.0``."""
    return name.removeprefix("model.").replace("_", ".")


def _is_within(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a parameter or module is one of the parts or lies in it; ``blocks.1`` does not hold ``blocks.10``."""
    own = _canonical(name)
    return any(part in ("", own) or own.startswith(f"{part}.") for part in parts)


def _checkpoint_gradients(body: nn.Module, name: str) -> None:
    switch: Any = getattr(body, "set_grad_checkpointing", None) or getattr(
        getattr(body, "model", None), "set_grad_checkpointing", None
    )
    if switch is None:
        raise ValueError(f"grad_checkpointing: timm's {name!r} has no switch for it.")
    switch(True)


def load_weights(body: nn.Module, path: Path) -> None:
    """Load a local weights file into a timm ``features_only`` model.

    Args:
        body: The feature extractor.
        path: ``.safetensors`` or ``.pth`` file with the keys of the whole timm model; what the extractor does not
            have, as the classifier, is left out.

    Raises:
        ValueError: The file is missing, unreadable, or lacks or misfits a tensor that the extractor has.
    """
    if not path.is_file():
        raise ValueError(f"weights: no file {path}. Give a local file, `imagenet` (timm's download) or null.")
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and pickle each raise their own kinds
        raise ValueError(f"weights: cannot read {path}: {error}") from error
    own = body.state_dict()
    # The extractor's names for the tensors of the whole model.
    names = {_canonical(key): key for key in own}
    renamed = {names.get(_canonical(key), key): value for key, value in state.items()}
    missing = [key for key in own if key not in renamed]
    misfits = [key for key in own if key in renamed and own[key].shape != renamed[key].shape]
    if missing or misfits:
        first = (missing + misfits)[0]
        raise ValueError(
            f"weights: {path} does not fit the backbone: {len(missing)} tensors missing, {len(misfits)} of another "
            f"shape, the first is {first!r}. Is `name` the model the file was saved from?"
        )
    body.load_state_dict({key: renamed[key] for key in own})


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)

"""Backbones: networks that turn an image into a pyramid of feature maps and describe what they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_state_dict
from torch import Tensor, nn

from detframe.structures import Level


class Backbone(nn.Module):
    """What a detector needs of a backbone: features from ``forward``, and attributes that describe them.

    Attributes:
        levels: Channels and stride of every feature map, finest first.
        mean: Per-channel mean of the images that the weights expect, RGB, 0..1.
        std: Per-channel standard deviation, likewise.
    """

    __jit_ignored_attributes__: ClassVar[list[str]] = [
        "levels",
        "mean",
        "std",
    ]  # of no use in TorchScript, which cannot type them
    levels: list[Level]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps ``[B, channels, H / stride, W / stride]`` of normalised images ``[B, 3, H, W]``."""
        raise NotImplementedError


class TimmBackbone(Backbone):
    """Any timm model that has ``features_only``.

    Args:
        name: timm's name of the model, ``timm.list_models()`` lists them. Names that begin with ``tf_`` pad
            dynamically, which makes export take minutes; their weights fit the same model without the prefix.
        weights: ``imagenet`` downloads timm's default weights of the model; a path reads a local ``.safetensors`` or
            ``.pth`` file of the model (its classifier is left out); null starts from random weights.
        out_indices: Which of the model's feature stages to give, finest first: index i commonly has stride 2^(i+1).
        freeze: Parameters whose name begins with one of these do not train and their batch norms keep their
            statistics, for example ``[conv_stem, bn1, blocks.0]``. ``[""]`` freezes the whole backbone.
        mean: Mean of the images that the weights were trained with, RGB, 0..1; null takes the model's own from timm.
        std: Standard deviation, likewise.
        drop_path_rate: Stochastic depth of the model, 0..1.

    Raises:
        ValueError: The name is unknown to timm, has no such feature stages, or the weights do not fit.
    """

    def __init__(
        self,
        name: str = "efficientnet_lite0",
        weights: str | None = None,
        out_indices: Sequence[int] = (2, 3, 4),
        freeze: Sequence[str] = (),
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            similar = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            hint = f" Similar: {', '.join(similar)}." if similar else ""
            raise ValueError(f"timm {timm.__version__} has no model {name!r}.{hint} `timm.list_models()` lists all.")
        options: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        try:
            self.body = timm.create_model(
                name, pretrained=weights == "imagenet", features_only=True, out_indices=tuple(out_indices), **options
            )
        except (AssertionError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"timm cannot build {name!r} with out_indices {list(out_indices)}: {error}") from error
        info: Any = self.body.feature_info
        self.levels = [
            Level(channels, stride) for channels, stride in zip(info.channels(), info.reduction(), strict=True)
        ]
        config = timm.get_pretrained_cfg(name)
        self.mean = _three(mean or (config.mean if config else IMAGENET_DEFAULT_MEAN))
        self.std = _three(std or (config.std if config else IMAGENET_DEFAULT_STD))
        if weights is not None and weights != "imagenet":
            load_weights(self.body, Path(weights))
        self._frozen = tuple(freeze)
        self._freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images, see :class:`Backbone`."""
        features: list[Tensor] = self.body(images)
        return features

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switch to training, frozen batch norms excepted."""
        super().train(mode)
        for name, module in self.body.named_modules():
            if mode and name and name.replace("_", ".").startswith(tuple(p.replace("_", ".") for p in self._frozen)):
                module.train(False)
        return self

    def _freeze(self) -> None:
        # A features_only model names blocks.0 either so or blocks_0, depending on how timm wraps it.
        prefixes = tuple(prefix.replace("_", ".") for prefix in self._frozen)
        for prefix in prefixes:
            names = [name for name, _ in self.body.named_parameters() if name.replace("_", ".").startswith(prefix)]
            if not names:
                top = sorted({name.split(".")[0] for name, _ in self.body.named_parameters()})
                raise ValueError(f"freeze: no parameter begins with {prefix!r}; the model has {', '.join(top)}.")
        for name, parameter in self.body.named_parameters():
            if prefixes and name.replace("_", ".").startswith(prefixes):
                parameter.requires_grad_(False)


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
    # timm flattens `blocks.0.` to `blocks_0.` where it wraps a model with nested stages.
    renamed = {key if key in own else key.replace(".", "_", 1): value for key, value in state.items()}
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


def weights_licence(name: str) -> str | None:
    """Licence of timm's default weights of a model as timm records it, or None where it does not."""
    config = timm.get_pretrained_cfg(name)
    return config.license if config else None

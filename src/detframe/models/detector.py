"""A detector: backbone, neck and head, with the normalisation that the backbone expects inside.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from detframe.models.backbones import Backbone
from detframe.models.calibration import Calibration
from detframe.models.heads.base import Head
from detframe.models.necks import Neck
from detframe.structures import Detections, Level, Targets


class Sight(NamedTuple):
    """All that a detector says of images."""

    detections: Detections
    raw: Detections  # in as many slots as the head has, several of one object among them, not calibrated
    embedding: Tensor  # [B, E] float32, unit vectors: the backbone's last features, averaged over the image


class Detector(nn.Module):
    """Images in, detections out; losses apart.

    Args:
        backbone: Gives features, and the mean and standard deviation that its weights expect.
        neck: Built for the backbone's levels.
        head: Built for the neck's levels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, neck: Neck, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.calibration: Calibration | None = None  # until `detframe calibrate`, so that nothing of it is saved
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1))
        self.to(memory_format=torch.channels_last)  # 1.3 to 2 times as fast for convolutions on CPU and tensor cores

    def forward(self, images: Tensor) -> Detections:
        """Detections of images ``[B, 3, H, W]``, RGB float 0..1, in their pixels."""
        return self.look(images).detections

    def look(self, images: Tensor) -> Sight:
        """What ``forward`` answers, and what it comes from, of the same images."""
        levels: list[Tensor] = self.backbone(self.normalised(images))
        raw: Detections = self.head.raw_detections(self.neck(levels), (images.shape[2], images.shape[3]))
        detections: Detections = self.head.select(raw)
        if self.calibration is not None:
            detections = self.calibration(detections)
        embedding = functional.normalize(levels[-1].float().mean(dim=(2, 3)), dim=1)
        return Sight(detections, raw, embedding)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps that the head reads, of images ``[B, 3, H, W]`` in 0..1."""
        features: list[Tensor] = self.neck(self.backbone(self.normalised(images)))
        return features

    def normalised(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in 0..1 as the backbone expects them."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @torch.jit.unused
    def loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named parts of the loss of images ``[B, 3, H, W]`` in 0..1, with targets in their pixels."""
        return self.head.loss(self.features(images), targets, (images.shape[2], images.shape[3]))


def build_detector(
    backbone: Callable[[], Backbone],
    neck: Callable[[list[Level]], Neck],
    head: Callable[[list[Level], int], Head],
    num_classes: int,
) -> Detector:
    """Build the three parts of a detector, each for what the one before it gives.

    Args:
        backbone: Makes the backbone.
        neck: Makes the neck from the backbone's levels.
        head: Makes the head from the neck's levels and the number of classes.
        num_classes: C.

    Raises:
        ValueError: Two parts do not go together; the message names both and says why.
    """
    body = backbone()
    try:
        mixer = neck(body.levels)
    except ValueError as error:
        raise ValueError(f"This neck does not go with the backbone {body.name}: {error}") from error
    try:
        return Detector(body, mixer, head(mixer.levels, num_classes))
    except ValueError as error:
        raise ValueError(
            f"This head does not go with the neck {type(mixer).__name__} on the backbone {body.name}: {error}"
        ) from error

"""Half precision, for accelerators: backbone and neck compute in it, all that follows stays in float32.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from detframe.models.detector import Detector
from detframe.structures import Detections

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class HalfDetector(nn.Module):
    """A detector with its convolutions in half precision; images and detections stay float32.

    The head is not touched: what it computes are coordinates in pixels and, in DETR, sigmoids and their inverses near 0
    and 1, for which half precision has too few digits.

    Args:
        detector: Is copied.
        precision: torch.float16 or torch.bfloat16.
    """

    mean: Tensor
    std: Tensor
    like: Tensor  # its type is what counts

    def __init__(self, detector: Detector, precision: torch.dtype) -> None:
        super().__init__()
        own = deepcopy(detector)
        self.backbone = own.backbone.to(precision)
        self.neck = own.neck.to(precision)
        self.head = own.head
        self.calibration = own.calibration
        self.register_buffer("mean", own.mean)
        self.register_buffer("std", own.std)
        self.register_buffer("like", torch.zeros((), dtype=precision))

    def forward(self, images: Tensor) -> Detections:
        """Detections of images ``[B, 3, H, W]``, RGB float 0..1, in their pixels."""
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        levels: list[Tensor] = self.neck(self.backbone(normalised.type_as(self.like)))
        features = [level.float() for level in levels]
        detections: Detections = self.head(features, (images.shape[2], images.shape[3]))
        if self.calibration is not None:
            detections = self.calibration(detections)
        return detections

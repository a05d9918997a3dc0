"""Half precision, for accelerators: backbone and neck compute in it, all that follows stays in float32.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from detframe.models.detector import Detector

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def half_detector(detector: Detector, precision: torch.dtype) -> Detector:
    """A copy of a detector with its convolutions in half precision; images and detections stay float32.

    The head is not touched: what it computes are coordinates in pixels and, in DETR, sigmoids and their inverses near 0
    and 1, for which half precision has too few digits.

    Args:
        detector: Is left as it is.
        precision: torch.float16 or torch.bfloat16.
    """
    half = deepcopy(detector)
    # Set as modules: of a backbone and a neck nothing but `forward` is asked from here on.
    half.set_submodule("backbone", _HalfBackbone(half.backbone, precision))
    half.set_submodule("neck", _HalfNeck(half.neck, precision))
    return half


class _HalfBackbone(nn.Module):
    """From float32 images to levels of half precision."""

    like: Tensor  # its type is what counts

    def __init__(self, backbone: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        self.body = backbone.to(precision)
        self.register_buffer("like", torch.zeros((), dtype=precision))

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.body(images.type_as(self.like))
        return levels


class _HalfNeck(nn.Module):
    """From levels of half precision to float32."""

    def __init__(self, neck: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        self.neck = neck.to(precision)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [level.float() for level in self.neck(levels)]

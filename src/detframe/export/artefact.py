"""What every exported file is made of: a detector with all that stands before and after it.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detframe.letterbox import letterbox, to_original
from detframe.models.detector import Detector


class Findings(NamedTuple):
    """What an artefact answers: K slots for each image, filled from the front by descending score."""

    boxes: Tensor  # [B, K, 4] float32, xyxy in pixels of the image as it came, clipped to it
    scores: Tensor  # [B, K] float32, 0..1, calibrated where the checkpoint is
    labels: Tensor  # [B, K] int64, 0..C-1
    valid: Tensor  # [B, K] bool, False in the slots that are not used
    confident: Tensor  # [B, K] bool, valid and from the operating threshold of the class on: what is to be acted on
    candidates: Tensor  # [B, C] float32, sum of each class's scores before what was found twice is dropped
    embedding: Tensor  # [B, E] float32, a unit vector: what the image looks like to the backbone


class Artefact(nn.Module):
    """From images as a camera gives them to boxes in their pixels.

    Args:
        detector: Trained, with averaged weights and calibration where there are any.
        image_size: (height, width) of the network's input in pixels.
        stretch: Whether images are stretched to it instead of letterboxed.
        thresholds: C operating thresholds, 0..1, by label.
    """

    thresholds: Tensor

    def __init__(
        self, detector: Detector, image_size: tuple[int, int], stretch: bool, thresholds: Sequence[float]
    ) -> None:
        super().__init__()
        self.detector = detector
        self.height, self.width = image_size
        self.stretch = stretch
        self.register_buffer("thresholds", torch.tensor(list(thresholds), dtype=torch.float32))
        self.eval()

    def forward(self, images: Tensor) -> Findings:
        """Detections of RGB images ``[B, 3, H, W]`` of one size, uint8 0..255 or float 0..1."""
        resized, transform = letterbox(images, self.height, self.width, self.stretch)
        if resized.dtype == torch.uint8:
            resized = resized.float() / 255
        found, raw, embedding = self.detector.look(resized)
        size = torch.tensor([images.shape[2], images.shape[3]]).to(images.device)
        boxes = to_original(found.boxes, transform.to(images.device)[None], size[None]) * found.valid[..., None]
        confident = found.valid & (found.scores >= self.thresholds[found.labels])
        of_class = raw.labels[..., None] == torch.arange(self.thresholds.shape[0], device=images.device)  # [B, M, C]
        candidates = (of_class * (raw.scores * raw.valid)[..., None]).sum(dim=1)
        return Findings(boxes, found.scores, found.labels, found.valid, confident, candidates, embedding)

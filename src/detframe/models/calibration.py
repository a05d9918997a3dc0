"""Scores that can be believed: fitted curves as the last step of a detector, in every artefact made of it.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

import torch
from torch import Tensor, nn

from detframe.score_curves import ScoreCurves, calibrate_scores, knots
from detframe.structures import Detections


class Calibration(nn.Module):
    """Replaces scores by those on the curve of their class. `detframe calibrate` fits the curves.

    They are buffers and so part of the checkpoint, under the names of :class:`~detframe.score_curves.ScoreCurves`. A
    new one has curves that change nothing, for a checkpoint to fill.

    Args:
        num_classes: C.
    """

    knots: Tensor
    logits: Tensor
    detections: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("knots", knots())
        self.register_buffer("logits", knots().repeat(num_classes, 1))
        self.register_buffer("detections", torch.zeros(num_classes, dtype=torch.int64))

    def forward(self, found: Detections) -> Detections:
        """The same detections with calibrated scores, in the order of these.

        Detections of a class keep their order: it is taken from float64 scores, which curves never make equal, and the
        sort leaves scores that were equal before as they stood.
        """
        curves = ScoreCurves(self.knots, self.logits, self.detections)
        exact = calibrate_scores(found.scores.double(), found.labels, curves)  # [B, K]
        order = torch.where(found.valid, exact, -1.0).sort(dim=1, descending=True, stable=True).indices
        scores = torch.where(found.valid, exact, 0.0).to(found.scores.dtype)
        return Detections(
            boxes=found.boxes.gather(1, order[..., None].expand(-1, -1, 4)),
            scores=scores.gather(1, order),
            labels=found.labels.gather(1, order),
            valid=found.valid.gather(1, order),
        )

"""Curves from the score that a detector gives to the score that can be believed, one per class, in tensor code.

They lie below metrics, which fit them, and models, which apply them. There are no postponed annotations here:
TorchScript cannot read the fields of a NamedTuple through them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

KNOT_LIMIT = 18.0
"""Logit of the last knot, beyond that of the largest float32 score below 1 (16.6)."""

KNOT_STEP = 0.25
"""Logits between knots: at most 0.06 of score."""


class ScoreCurves(NamedTuple):
    """A rising, piecewise linear curve for each of ``C`` classes, from raw logit to calibrated logit.

    Plain tensors: ``curves._asdict()`` goes into a checkpoint that loads with ``weights_only=True``.
    """

    knots: Tensor  # [K] float64, raw logits, equally spaced
    logits: Tensor  # [C, K] float64, calibrated logits at the knots, ascending
    detections: Tensor  # [C] int64, how many of its own detections each curve rests on


def knots() -> Tensor:
    """The logits that curves are stored at, ``[K]`` float64."""
    count = int(2 * KNOT_LIMIT / KNOT_STEP) + 1
    return torch.linspace(-KNOT_LIMIT, KNOT_LIMIT, count, dtype=torch.float64)


def calibrate_scores(scores: Tensor, labels: Tensor, curves: ScoreCurves) -> Tensor:
    """Scores read on the curve of their class; beyond the outer knots a logit adds 0.01.

    Computed in float64. There the order of float32 scores of a class is kept strictly, and with it AP, as long as the
    curves rise everywhere, as those of :mod:`detframe.metrics.calibrators` do. Rounded to float32 the order is kept but
    neighbours may become equal: where that matters, pass ``scores.double()``.

    Args:
        scores: ``[...]``, 0..1.
        labels: ``[...]`` int64, 0..C-1.
        curves: Of ``C`` classes.

    Returns:
        ``[...]`` in the type of the scores, 0..1.
    """
    # 1e-45 is below all float32 above 0, and 1 - 1e-16 above all below 1, so that 0 and 1 keep their places too.
    raw = torch.logit(scores.double().clamp(1e-45, 1 - 1e-16))
    inside = raw.clamp(curves.knots[0], curves.knots[-1])
    place = (inside - curves.knots[0]) / (curves.knots[1] - curves.knots[0])
    left = place.floor().clamp(max=len(curves.knots) - 2).long()
    low = curves.logits[labels, left]
    high = curves.logits[labels, left + 1]
    # The end segment may be a step, which would run into 0 or 1 if it went on.
    outside = 0.01 * (raw - inside)
    return torch.sigmoid(low + (high - low) * (place - left) + outside).to(scores.dtype)

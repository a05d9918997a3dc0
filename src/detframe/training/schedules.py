"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, cycles: int = 1, final: float = 0.01) -> float:
    """Factor 0..1 of the learning rate: a linear rise, then half cosines down to ``final`` (SGDR, eq. 5).

    Args:
        step: Optimizer steps taken.
        total_steps: Steps of the whole training.
        warmup_steps: Steps of the rise.
        cycles: Half cosines, each as long as the others; after each but the last the rate is at its height again.
        final: Factor at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    within = 1.0 if progress == 1 else progress * cycles % 1
    return final + (1 - final) * (1 + math.cos(math.pi * within)) / 2

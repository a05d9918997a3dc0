"""How often copy-paste has to paste, so that the rarest class has the share of the boxes that is asked for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_HALF_LIFE = 2048  # images after which what was counted has half its weight, so that a changed policy is noticed
_PRIOR = 256  # images that the counts of the training data stand for at first
_HORIZON = 128  # images within which a surplus or a deficit is made up for


class PasteRate:
    """The chance of each slot to paste, from the class counts at first and then from what is counted on the device.

    Of ``n`` live boxes in ``M`` images ``n_r`` are of the rarest class. Pasting ``x`` objects in each image, a share
    ``q`` of them of that class, gives it ``(n_r + M x q) / (n + M x)`` of the boxes; that is the share ``s`` asked for
    at ``x = (s n - n_r) / (M (q - s))``. Later on ``n``, ``n_r`` and ``q`` are those counted, with older images
    counting less, and ``x`` also pays back, over some more images, what has been pasted too much or too little.

    Args:
        share: ``s``, 0..1; more than there is, and less than :meth:`reachable`.
        counts: ``[C]`` live objects of each class.
        image_count: ``M``.
        rarest: The class, 0..C-1.
        chance: ``q``, of it in each draw.
        slots: Objects pasted into an image at most, on average.
    """

    def __init__(
        self, share: float, counts: NDArray[np.int64], image_count: int, rarest: int, chance: float, slots: float
    ) -> None:
        self.share = share
        self.rarest = rarest
        self.slots = slots
        self.gain = chance - share  # rare boxes beyond their share that a paste brings
        live, rare = counts.sum() / image_count, counts[rarest] / image_count
        self.pastes = float((share * live - rare) / self.gain)  # in an image
        start = [1.0, live, rare, self.pastes, self.pastes, self.pastes * chance]
        # Images, live and rare boxes that came in, pastes tried, done, and done with the rarest class.
        self._tally = _PRIOR * torch.tensor(start, dtype=torch.float32)

    @staticmethod
    def reachable(
        counts: NDArray[np.int64], image_count: int, rarest: int, chance: float, slots: float
    ) -> tuple[float, float]:
        """The share that the rarest class has, and that which it gets when every slot pastes."""
        live, rare = float(counts.sum()), float(counts[rarest])
        pastes = slots * image_count
        return rare / live, (rare + pastes * chance) / (live + pastes)

    def before(self, live: Tensor, labels: Tensor) -> Tensor:
        """The chance of a slot, 0..1, for a batch with these ``live`` boxes and ``labels``, both ``[B, N]``."""
        tally = self._tally.to(live.device)
        deficit = self._short(tally[1] + tally[4], tally[2] + tally[5])
        count = len(live)
        nothing = tally.new_zeros(3)
        seen = torch.stack((live.sum(), (live & (labels == self.rarest)).sum())).to(tally)
        tally = tally * 0.5 ** (count / _HALF_LIFE) + torch.cat((tally.new_full((1,), float(count)), seen, nothing))
        need = self._short(tally[1], tally[2]) / tally[0] + deficit / max(_HORIZON, 2 * count)
        gain = (tally[5] - self.share * tally[4] + self.gain) / (tally[3] + 1)  # of a try, done or not
        self._tally = tally
        chance: Tensor = need / (gain.clamp(min=0.1 * self.gain) * self.slots)
        return chance.clamp(0, 1)

    def after(self, tried: Tensor, pasted: Tensor, labels: Tensor) -> None:
        """Count what was tried, what was done, and of which class, all ``[B, S]``."""
        rare = pasted & (labels == self.rarest)
        done = torch.stack((tried.sum(), pasted.sum(), rare.sum())).to(self._tally)
        self._tally = self._tally + torch.cat((torch.zeros_like(done), done))

    def _short(self, boxes: Tensor, rare: Tensor) -> Tensor:
        return self.share * boxes - rare

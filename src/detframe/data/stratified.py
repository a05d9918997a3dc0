"""Shares of a data set that are alike in classes and keep groups whole: the maths of splits and of folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SWEEPS = 20
_VISITED = 2000  # groups a sweep tries to place better; a larger data set is even after the first pass
_PARTNERS = 128  # groups that one is tried to be exchanged with
_WORTH_A_SWEEP = 0.01  # share of the unevenness that a sweep has to take away for another to follow
_GAIN = 1e-12  # what counts as better


def assign_folds(groups: list[int], counts: NDArray[np.int64], shares: Sequence[float], seed: int) -> list[int]:
    """Put each image into a fold, groups whole, so that folds have like shares of everything.

    Balanced are, each as its share of the whole and all of them alike: images, images without boxes, and for each class
    its instances and the images that have it. A greedy pass takes what is hardest to place first, as iterative
    stratification does (Sechidis et al. 2011, "On the stratification of multi-label data"), but by squares of what is
    missing; then single groups are moved and pairs exchanged while that helps.

    Args:
        groups: ``[I]`` of each image the number of its group, any integers.
        counts: ``[I, C]`` instances of each class in each image; an image with none counts as one without boxes.
        shares: Of each fold, above 0; they need not add up to 1.
        seed: Of ties and of the order of the search: the same one gives the same folds.

    Returns:
        ``[I]`` the fold of each image, 0..len(shares)-1. None is empty.

    Raises:
        ValueError: There are fewer groups than folds, or a share is not above 0.
    """
    wanted = np.asarray(shares, dtype=np.float64)
    names, group_of = np.unique(np.asarray(groups, dtype=np.int64), return_inverse=True)
    if not len(wanted) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise ValueError(f"the shares are {list(shares)}; each has to be a number above 0")
    if len(names) < len(wanted):
        raise ValueError(f"{len(names)} groups cannot fill {len(wanted)} folds")
    state = _Folds(_amounts(group_of, len(names), counts), wanted / wanted.sum(), np.random.default_rng(seed))
    state.fill()
    for _ in range(_SWEEPS):
        before = state.unevenness()
        state.improve()
        if state.unevenness() > (1 - _WORTH_A_SWEEP) * before:
            break
    return [int(fold) for fold in state.fold_of[group_of]]


def _amounts(group_of: NDArray[np.int64], groups: int, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[G, K]`` of each group its share of all that is to be balanced; each column adds up to 1."""
    has = counts > 0
    columns = [np.ones((len(counts), 1)), ~has.any(axis=1, keepdims=True), counts, has]
    of_image = np.concatenate([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    amounts = np.zeros((groups, of_image.shape[1]))
    np.add.at(amounts, group_of, of_image)
    totals = amounts.sum(axis=0)
    return np.asarray(amounts[:, totals > 0] / totals[totals > 0], dtype=np.float64)


class _Folds:
    """Groups on their way into folds, whose unevenness is made small."""

    def __init__(
        self, amounts: NDArray[np.float64], shares: NDArray[np.float64], generator: np.random.Generator
    ) -> None:
        self.amounts = amounts  # [G, K]
        self.shares = shares  # [F]
        self.generator = generator
        self.excess = np.repeat(-shares[:, None], amounts.shape[1], axis=1)  # [F, K] held less share
        self.fold_of = np.full(len(amounts), -1, dtype=np.int64)
        self.sizes = np.zeros(len(shares), dtype=np.int64)

    def fill(self) -> None:
        """Place every group, what is hardest to place first, and leave no fold empty."""
        weight = np.square(self.amounts).sum(axis=1)
        for group in np.lexsort((self.generator.random(len(weight)), -weight)).tolist():
            self._put(group, int(np.argmin(self._cost_of_adding(self.amounts[group]))))
        for fold in np.flatnonzero(self.sizes == 0).tolist():
            movable = np.flatnonzero(self.sizes[self.fold_of] > 1)
            self._put(int(movable[np.argmin(weight[movable])]), fold)

    def unevenness(self) -> float:
        """The sum over folds and columns of ``(held - share)^2 / share``.

        Divided by the share, because a tenth too much matters as much to a small fold as to a large one.
        """
        return float((np.square(self.excess).sum(axis=1) / self.shares).sum())

    def improve(self) -> None:
        """Move or exchange groups wherever that makes the folds more alike."""
        for group in self.generator.permutation(len(self.amounts))[:_VISITED].tolist():
            if not self._move(group):
                self._exchange(group)

    def _cost_of_adding(self, amount: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[F]`` what the unevenness grows by when a fold gets more; negative where it was short."""
        return np.asarray((2 * self.excess @ amount + amount @ amount) / self.shares, dtype=np.float64)

    def _move(self, group: int) -> bool:
        here, amount = int(self.fold_of[group]), self.amounts[group]
        if self.sizes[here] == 1:
            return False
        gain = self._cost_of_adding(amount) + self._cost_of_adding(-amount)[here]
        gain[here] = 0.0
        best = int(np.argmin(gain))
        if gain[best] > -_GAIN:
            return False
        self._put(group, best)
        return True

    def _exchange(self, group: int) -> None:
        here = int(self.fold_of[group])
        others = np.flatnonzero(self.fold_of != here)
        if len(others) > _PARTNERS:
            others = self.generator.choice(others, _PARTNERS, replace=False)
        if not len(others):
            return
        there = self.fold_of[others]
        change = self.amounts[others] - self.amounts[group]  # [P, K] what this fold would gain and the other lose
        square = np.square(change).sum(axis=1)
        gain = (2 * change @ self.excess[here] + square) / self.shares[here]
        gain += (square - 2 * (change * self.excess[there]).sum(axis=1)) / self.shares[there]
        best = int(np.argmin(gain))
        if gain[best] > -_GAIN:
            return
        partner, fold = int(others[best]), int(there[best])
        self._put(group, fold)
        self._put(partner, here)

    def _put(self, group: int, fold: int) -> None:
        before = int(self.fold_of[group])
        if before >= 0:
            self.excess[before] -= self.amounts[group]
            self.sizes[before] -= 1
        self.excess[fold] += self.amounts[group]
        self.sizes[fold] += 1
        self.fold_of[group] = fold

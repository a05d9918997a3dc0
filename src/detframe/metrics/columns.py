"""Checks of the flat columns that the figures of this folder are made from, one value per detection or object."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_lengths(**columns: Sized) -> None:
    """Columns of one table have one length.

    Raises:
        ValueError: They do not; the message names each and its length.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Columns of one length are needed, got {lengths}.")


def check_shares(name: str, values: NDArray[Any]) -> None:
    """Scores, targets and IoUs lie in 0..1.

    Raises:
        ValueError: One does not, or is NaN; the message names its row.
    """
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        raise ValueError(f"{name}: values in 0..1 are needed, row {wrong[0]} has {values[wrong[0]]}.")


def check_labels(name: str, labels: NDArray[Any], classes: int) -> None:
    """Labels lie in 0..C-1.

    Raises:
        ValueError: One does not; the message names its row.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(f"{name}: labels in 0..{classes - 1} are needed, row {wrong[0]} has {labels[wrong[0]]}.")


def mean_of_known(values: NDArray[np.float64], axis: int | None = None) -> NDArray[np.float64]:
    """Mean of the values that are not NaN, of all or along an axis; NaN where all are, without numpy's warning."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(total / np.where(count > 0, count, np.nan), dtype=np.float64)

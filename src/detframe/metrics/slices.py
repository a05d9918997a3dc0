"""Whether a slice of the data is worse than the rest: shares in it and outside, with intervals.

The spread is that of an image bootstrap, as objects of an image are not independent; the interval is corrected for the
number of slices that are looked at, else of 40 slices two look worse by chance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from detframe.metrics.columns import check_lengths

Floats = NDArray[np.float64]


class SliceGaps(NamedTuple):
    """Shares of hits within ``S`` slices and outside; NaN where there is nothing on one side."""

    total: NDArray[np.int64]  # [S], rows in the slice
    hits: NDArray[np.int64]  # [S], of which are hits
    share: Floats  # [S], 0..1
    gap: Floats  # [S], -1..1, less the share outside; below 0 the slice is worse
    low: Floats  # [S], the gap's interval, for all slices at once
    high: Floats  # [S]
    p_value: Floats  # [S], 0..1, that there is no gap, corrected by Holm's method


def slice_gaps(
    hits: NDArray[np.bool_],
    images: NDArray[Any],
    members: NDArray[np.bool_],
    weights: NDArray[np.int32],
    level: float = 0.95,
) -> SliceGaps:
    """Compare each slice with the rows outside it.

    Args:
        hits: ``[N]``, found or not, right or not.
        images: ``[N]``, 0..I-1.
        members: ``[S, N]``, rows of each slice.
        weights: ``[B, I]``, of :func:`detframe.metrics.bootstrap.bootstrap_weights`.
        level: Share of such sets of intervals in which all hold the true gap, at least.

    Raises:
        ValueError: Lengths differ.
    """
    check_lengths(hits=hits, images=images, members=members.T)
    shape = (len(members), weights.shape[1])
    within_hits, within = np.zeros(shape), np.zeros(shape)
    for s, rows in enumerate(members):
        within[s] = np.bincount(images[rows], minlength=shape[1])
        within_hits[s] = np.bincount(images[rows & hits], minlength=shape[1])
    everything = np.bincount(images, minlength=shape[1]), np.bincount(images[hits], minlength=shape[1])
    sides = [(within, within_hits), (everything[0] - within, everything[1] - within_hits)]
    shares, variances = [], []
    for total, found in sides:
        counts, of_which = total.sum(axis=1), found.sum(axis=1)
        shares.append(_quotient(of_which, counts))
        drawn = _quotient(weights @ found.T, weights @ total.T)  # [B, S]
        # Where all rows are hits a bootstrap sees no spread at all; a binomial of one hit and one miss more does.
        smooth = (of_which + 1) / (counts + 2)
        variances.append(np.maximum(_variance(drawn), smooth * (1 - smooth) / (counts + 2)))
    gap = shares[0] - shares[1]
    error = np.sqrt(variances[0] + variances[1])
    known = ~np.isnan(gap)
    looks = max(int(known.sum()), 1)
    reach = ndtri(1 - (1 - level) / (2 * looks)) * error
    p = np.where(known, 2 * ndtr(-np.abs(gap) / error), np.nan)
    count, hit = (np.rint(values.sum(axis=1)).astype(np.int64) for values in (within, within_hits))
    return SliceGaps(count, hit, shares[0], gap, gap - reach, gap + reach, holm(p))


def holm(p_values: Floats) -> Floats:
    """P-values ``[S]`` corrected for their number by Holm's step-down method; NaN is left out and stays.

    Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _quotient(part: Floats, whole: Floats) -> Floats:
    return np.asarray(part / np.where(whole > 0, whole, np.nan), dtype=np.float64)


def _variance(drawn: Floats) -> Floats:
    """Variance over replicates ``[B, S]``, without those that have nothing to measure; 0 where none has."""
    known = ~np.isnan(drawn)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, drawn, 0).sum(axis=0) / count
    return np.asarray((np.where(known, drawn - mean, 0) ** 2).sum(axis=0) / count, dtype=np.float64)

"""How like a reference set something is: nearest neighbours in an embedding, and what their distance is worth.

A distance alone says nothing, since embeddings differ in scale from network to network and from class to class. Its
place among the distances that the references have to each other does: a conformal p-value (Vovk et al., "Algorithmic
Learning in a Random World", 2005), which of instances like the references is as often below 0.05 as it says.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PAIRS_AT_ONCE = 2**24
"""Distances held at a time: what bounds the memory."""


class Neighbours(NamedTuple):
    """The ``k`` nearest references of each query, the nearest first."""

    rows: Tensor  # [Q, k] int64, -1 where there are fewer references
    distances: Tensor  # [Q, k] float32, 0..2, one less the cosine; infinite where there are fewer


def nearest_neighbours(
    queries: Tensor,
    references: Tensor,
    count: int,
    query_groups: Tensor | None = None,
    reference_groups: Tensor | None = None,
) -> Neighbours:
    """Find the nearest references of other groups.

    Args:
        queries: ``[Q, D]`` unit vectors.
        references: ``[R, D]`` unit vectors.
        count: ``k``.
        query_groups: ``[Q]`` int64; a reference of a query's own group, such as its image, is no neighbour of it.
        reference_groups: ``[R]`` int64; None of both lets all references be neighbours.
    """
    rows = torch.full((len(queries), count), -1)
    distances = torch.full((len(queries), count), torch.inf)
    held = min(count, len(references))
    step = max(1, PAIRS_AT_ONCE // max(len(references), 1))
    for start in range(0, len(queries) if held else 0, step):
        part = slice(start, start + step)
        distance = 1 - queries[part] @ references.T  # [q, R]
        if query_groups is not None and reference_groups is not None:
            distance[query_groups[part, None] == reference_groups] = torch.inf
        distances[part, :held], rows[part, :held] = distance.topk(held, dim=1, largest=False)
    return Neighbours(torch.where(torch.isinf(distances), -1, rows), distances)


def conformal_p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """Share of the calibration scores that are as high as each score or higher, itself counted: ``[Q]``, above 0 to 1.

    Args:
        scores: ``[Q]``, higher for what is stranger.
        calibration: ``[n]``, scores of instances that belong.
    """
    ordered = calibration.sort().values
    higher = len(ordered) - torch.searchsorted(ordered, scores.contiguous())  # with the equal ones
    return (1 + higher).double() / (1 + len(ordered))

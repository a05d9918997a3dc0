"""Which images are one picture: re-encoded, cut by up to a tenth, brighter or darker, mirrored or turned.

Pairs that may be (:mod:`~detframe.data.fingerprints`) are laid over each other (:mod:`~detframe.data.registration`),
from coarse to fine; what is left is told by the block in which the two differ most, so that boards that differ in a
single defect, or cells that have moved on, are two pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from detframe.data.fingerprints import DETAIL, Candidates, Fingerprints, candidates, oriented
from detframe.data.registration import Images, aligned, correlations, differences

MOST_DIFFERENT = 0.096
"""Share of a picture's variance by which its worst block may differ more than its median one.

Of pairs planted in blood smears the worst had 0.010, the nearest of others 0.124; on circuit boards 0.095 and 0.100.
"""

_ALIKE = ((32, 6, 0.85), (64, 5, 0.9))  # side in pixels, iterations, least correlation
_SAME = (
    (128, 1, 0.2),
    (DETAIL, 3, MOST_DIFFERENT),
)  # side, iterations, most difference; of copies at 128 the worst had 0.11
_PIXELS_AT_ONCE = 2**18


class Pairs(NamedTuple):
    """Images that are one picture."""

    first: NDArray[np.int64]  # [P] positions, below those of the second
    second: NDArray[np.int64]  # [P]
    difference: NDArray[np.float32]  # [P] 0 for files of one content


def near_duplicates(found: Fingerprints, splits: NDArray[np.int64] | None = None, show_progress: bool = False) -> Pairs:
    """All pairs of images that are one picture, files of one content included.

    Args:
        found: Of M images; those that cannot be read, or show nothing, are equal to files of the same content alone.
        splits: ``[M]``; where given, only pairs of different splits are sought.
        show_progress: Draw progress bars on stderr.
    """
    pairs = _equal_files(found.digests, splits)
    live = np.flatnonzero(~found.plain())
    _, unique = np.unique([found.digests[i] for i in live], return_index=True)
    if splits is None:  # of files of one content one is enough to look for others
        live = live[np.sort(unique)]
    close = candidates(found.thumbnails[live], None if splits is None else splits[live], show_progress)
    pictures = found.pictures[live]
    for first, second, difference in _verified(found.thumbnails[live], pictures, close, show_progress):
        low, high = sorted((int(live[first]), int(live[second])))
        pairs.setdefault((low, high), difference)
    ordered = sorted(pairs)
    return Pairs(
        np.array([low for low, _ in ordered], dtype=np.int64),
        np.array([high for _, high in ordered], dtype=np.int64),
        np.array([pairs[pair] for pair in ordered], dtype=np.float32),
    )


def groups_of(first: NDArray[np.int64], second: NDArray[np.int64], images: int) -> list[int]:
    """The number of each image's group, ``[M]``: the lowest position that pairs ``[P]`` of positions lead to."""
    edges = np.ones(len(first)), (first, second)
    graph = coo_array(edges, (images, images))
    _, members = connected_components(graph, directed=False)
    _, lowest = np.unique(members, return_index=True)
    return [int(position) for position in lowest[members]]


def _equal_files(digests: list[bytes], splits: NDArray[np.int64] | None) -> dict[tuple[int, int], float]:
    same: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        if digest:
            same.setdefault(digest, []).append(position)
    pairs = [(one, other) for members in same.values() for i, one in enumerate(members) for other in members[i + 1 :]]
    return {pair: 0.0 for pair in pairs if splits is None or splits[pair[0]] != splits[pair[1]]}


def _verified(
    thumbnails: NDArray[np.uint8], pictures: NDArray[np.uint8], close: Candidates, show_progress: bool
) -> list[tuple[int, int, float]]:
    """Pairs of positions that differ little enough, and by how much."""
    windows, rows = close.windows.copy(), np.arange(len(close.first))
    left = np.zeros(0, dtype=np.float32)
    with ThreadPoolExecutor() as pool:
        for side, iterations, least in _ALIKE:
            scores = _laid_over(thumbnails, side, close, windows, rows, iterations, correlations, pool, None)
            rows = _best(close, rows, scores, least)
        for side, iterations, most in _SAME:
            console = Console(stderr=True, quiet=not show_progress)
            left = _laid_over(pictures, side, close, windows, rows, iterations, differences, pool, console)
            rows, left = rows[left <= most], left[left <= most]
    return list(zip(close.first[rows].tolist(), close.second[rows].tolist(), left.tolist(), strict=True))


def _laid_over(
    images: NDArray[np.uint8],
    side: int,
    close: Candidates,
    windows: NDArray[np.float32],
    rows: NDArray[np.int64],
    iterations: int,
    judge: Callable[[Images, Images, NDArray[np.float32]], NDArray[np.float32]],
    pool: ThreadPoolExecutor,
    console: Console | None,
) -> NDArray[np.float32]:
    """What ``judge`` says of each of ``rows``, ``[R]``, of images of so many pixels a side; moves their ``windows``."""
    count = _PIXELS_AT_ONCE // side**2
    parts = [rows[start : start + count] for start in range(0, len(rows), count)]

    def lay(part: NDArray[np.int64]) -> NDArray[np.float32]:
        ones, others = _smaller(images[close.second[part]], side), _smaller(images[close.first[part]], side)
        for orientation in np.unique(close.orientation[part]).tolist():
            turned = close.orientation[part] == orientation
            others[turned] = oriented(others[turned], orientation)
        windows[part] = aligned(ones, others, windows[part], iterations)
        return judge(ones, others, windows[part])

    steps = pool.map(lay, parts)
    if console is not None:
        steps = iter(track(steps, "Looking closer", len(parts), console=console, transient=True))
    return np.concatenate([np.zeros(0, dtype=np.float32), *steps])


def _smaller(images: NDArray[np.uint8], side: int) -> Images:
    """Images ``[P, n, n]`` at ``[P, side, side]``."""
    step = images.shape[1] // side
    total = np.zeros((len(images), side, side), dtype=np.float32)
    for row in range(step):  # ten times as fast as a mean over two axes that do not lie together
        for column in range(step):
            total += images[:, row::step, column::step]
    return np.asarray(total / np.float32(step * step), dtype=np.float32)


def _best(close: Candidates, rows: NDArray[np.int64], scores: NDArray[np.float32], least: float) -> NDArray[np.int64]:
    """The best row of each pair, where it is good enough."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        first, second = sorted((int(close.first[row]), int(close.second[row])))
        best[first, second] = max(best.get((first, second), (least, -1)), (score, row))
    return np.array(sorted(row for _, row in best.values() if row >= 0), dtype=np.int64)

"""Fingerprints of images, of their pixels alone, and which images may be one picture.

A fingerprint is a grey picture of 256 x 256, a thumbnail of 64 x 64 and a digest of the file. Which pairs are worth a
closer look is read from low frequencies: one image whole against windows of the other, whole and cut by 7 %, in all
eight orientations, as one matrix product. :mod:`detframe.data.near_duplicates` looks closer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from detframe.data.annotations import file_digest

SIDE, DETAIL = 64, 256
"""Pixels of a thumbnail's side, and of that of the picture that has the last word."""

ORIENTATIONS = (
    "as it is",
    "mirrored",
    "upside down",
    "turned by 180 degrees",
    "transposed",
    "turned by 90 degrees to the left",
    "turned by 90 degrees to the right",
    "transposed along the other diagonal",
)
"""Bit 2 transposes, then bit 1 puts the last row first and bit 0 the last column."""

_INTERVALS = ((0.5, 1.0), (0.465, 0.93), (0.5, 0.93), (0.535, 0.93))  # centre and length, in shares of a side
_WINDOWS = np.array([across + down for down in _INTERVALS for across in _INTERVALS], dtype=np.float32)  # [16, 4]
_COARSE, _FINE = 5, 8  # frequencies each way
_COARSE_LEAST, _FINE_LEAST = 0.9, 0.88  # correlations that a pair has to reach
_NEIGHBOURS = 32  # candidates of an image at most; frames of one video have hundreds
_STARTS = 3  # windows that a pair is looked at in
_PLAIN_BELOW = 2.0  # grey levels, standard deviation of a thumbnail
_ROWS_AT_ONCE = 256
_FILES_AT_ONCE = 256


class Fingerprints(NamedTuple):
    """What images are recognised by."""

    pictures: NDArray[np.uint8]  # [M, DETAIL, DETAIL] grey, whatever shape the image has
    thumbnails: NDArray[np.uint8]  # [M, SIDE, SIDE] the same, smaller
    digests: list[bytes]  # [M] of the file's content, b"" where it cannot be read
    problems: dict[int, str]  # position -> why the image cannot be read

    def plain(self) -> NDArray[np.bool_]:
        """``[M]`` which thumbnails show so little that all of their kind look alike; unreadable ones are among them."""
        return np.asarray(self.thumbnails.std(axis=(1, 2)) < _PLAIN_BELOW)


class Candidates(NamedTuple):
    """Pairs that may be one picture, and where in each other they may lie."""

    first: NDArray[np.int64]  # [P] position of an image that is turned and whole
    second: NDArray[np.int64]  # [P] of the one that it is a window of
    orientation: NDArray[np.int64]  # [P] of the first, as in ORIENTATIONS
    windows: NDArray[np.float32]  # [P, 4] of the second: centre x, width, centre y, height


def fingerprints(paths: Sequence[Path], workers: int = 0, show_progress: bool = False) -> Fingerprints:
    """Read images; one that cannot be read is noted and has a black thumbnail.

    Args:
        paths: M files.
        workers: Threads that read; 0 takes one for each core.
        show_progress: Draw a progress bar on stderr.
    """
    from detframe.data.images import ImageError, read_thumbnail  # loads torch, which takes seconds

    def read(path: Path) -> tuple[NDArray[np.uint8], bytes, str]:
        try:
            return read_thumbnail(path, DETAIL), file_digest(path), ""
        except ImageError as error:
            return np.zeros((DETAIL, DETAIL), dtype=np.uint8), b"", str(error).removeprefix(f"{path}: ")

    pictures = np.zeros((len(paths), DETAIL, DETAIL), dtype=np.uint8)
    digests: list[bytes] = []
    problems: dict[int, str] = {}
    console = Console(stderr=True, quiet=not show_progress)
    starts = range(0, len(paths), _FILES_AT_ONCE)
    with ThreadPoolExecutor(workers or None) as pool:
        for start in track(starts, "Reading images", console=console, transient=True):
            for picture, digest, problem in pool.map(read, paths[start : start + _FILES_AT_ONCE]):
                if problem:
                    problems[len(digests)] = problem
                pictures[len(digests)] = picture
                digests.append(digest)
    size = DETAIL // SIDE
    thumbnails = (
        pictures.reshape(-1, SIDE, size, SIDE, size).mean(axis=(2, 4), dtype=np.float32).round().astype(np.uint8)
    )
    return Fingerprints(pictures, thumbnails, digests, problems)


def oriented(images: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """Images ``[P, n, n]`` in an orientation, as in :data:`ORIENTATIONS`."""
    turned = images.transpose(0, 2, 1) if orientation & 4 else images
    turned = turned[:, ::-1] if orientation & 2 else turned
    return turned[:, :, ::-1] if orientation & 1 else turned


def candidates(
    thumbnails: NDArray[np.uint8], splits: NDArray[np.int64] | None = None, show_progress: bool = False
) -> Candidates:
    """Pairs that may be one picture, each from a few windows; the work grows with the square of their number.

    Args:
        thumbnails: ``[M, SIDE, SIDE]``, none of them plain.
        splits: ``[M]``; where given, only pairs of different splits are sought.
        show_progress: Draw a progress bar on stderr.
    """
    images = thumbnails.astype(np.float32)
    windows = _Spectra(_spectra(images, _WINDOWS, _COARSE), _spectra(images, _WINDOWS, _FINE))
    turned = [oriented(images, orientation) for orientation in range(len(ORIENTATIONS))]
    wholes = [_Spectra(*(_spectra(images, _WINDOWS[:1], f)[:, 0] for f in (_COARSE, _FINE))) for images in turned]
    work = []
    for split in [None] if splits is None else np.unique(splits).tolist():
        rows = np.arange(len(images)) if split is None else np.flatnonzero(splits == split)
        others = np.arange(len(images)) if split is None else np.flatnonzero(splits != split)
        work += [(rows[start : start + _ROWS_AT_ONCE], others) for start in range(0, len(rows), _ROWS_AT_ONCE)]
    console = Console(stderr=True, quiet=not show_progress)
    found = [
        _alike(rows, others, wholes, windows)
        for rows, others in track(work, "Comparing images", console=console, transient=True)
    ]
    pairs = np.concatenate(found) if found else np.zeros((0, 4), dtype=np.int64)
    scores = np.empty(len(pairs), dtype=np.float32)
    for orientation, whole in enumerate(wholes):
        of_this = pairs[:, 2] == orientation
        first, second, _, window = pairs[of_this].T
        scores[of_this] = (whole.fine[first] * windows.fine[second, window]).sum(axis=1)
    kept = np.flatnonzero(scores > _FINE_LEAST)
    kept = kept[_best(pairs[kept], scores[kept], len(images))]
    first, second, orientation_of, window = pairs[kept].T
    return Candidates(first, second, orientation_of, _WINDOWS[window])


class _Spectra(NamedTuple):
    """Low frequencies of images, as unit vectors."""

    coarse: NDArray[np.float32]
    fine: NDArray[np.float32]


def _spectra(images: NDArray[np.float32], windows: NDArray[np.float32], frequencies: int) -> NDArray[np.float32]:
    """``[M, windows, frequencies ** 2 - 1]`` cosine transforms of windows, without the mean, of length 1."""
    across = np.stack([_transform(centre, length, frequencies) for centre, length in windows[:, :2]])
    down = np.stack([_transform(centre, length, frequencies) for centre, length in windows[:, 2:]])
    lines = np.tensordot(images, across, axes=(2, 2)).transpose(2, 0, 3, 1)  # [windows, M, frequencies, SIDE]
    spectra = (lines @ down.transpose(0, 2, 1)[:, None]).transpose(1, 0, 2, 3).reshape(len(images), len(windows), -1)
    spectra = spectra[:, :, 1:]
    return np.asarray(spectra / (np.linalg.norm(spectra, axis=2, keepdims=True) + 1e-6), dtype=np.float32)


def _transform(centre: float, length: float, frequencies: int) -> NDArray[np.float32]:
    """``[frequencies, SIDE]`` from a line of pixels to the cosine transform of a window of it."""
    cells = SIDE // 2
    edges = (centre + length * (np.arange(cells + 1) / cells - 0.5)) * SIDE
    pixel = np.arange(SIDE)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    cosines = np.cos(np.pi * np.arange(frequencies)[:, None] * (np.arange(cells) + 0.5) / cells)
    return np.asarray(cosines @ overlap.clip(min=0), dtype=np.float32)


def _alike(
    rows: NDArray[np.int64], others: NDArray[np.int64], wholes: Sequence[_Spectra], windows: _Spectra
) -> NDArray[np.int64]:
    """``[P, 4]`` first image, second, orientation of the first, window of the second: all that are alike enough."""
    found = []
    targets = [np.ascontiguousarray(windows.coarse[others, window].T) for window in range(len(_WINDOWS))]
    for orientation, whole in enumerate(wholes):
        queries = whole.coarse[rows]
        for window, target in enumerate(targets):
            row, other = np.divmod(np.flatnonzero(queries @ target > _COARSE_LEAST), len(others))
            first, second = rows[row], others[other]
            of_two = first != second
            columns = (first, second, np.full(len(first), orientation), np.full(len(first), window))
            found.append(np.stack(columns, axis=1)[of_two])
    return np.concatenate(found)


def _best(pairs: NDArray[np.int64], scores: NDArray[np.float32], images: int) -> NDArray[np.int64]:
    """Which rows of ``pairs`` to look at: the best windows of each pair, of the best pairs of each image."""
    low, high = np.min(pairs[:, :2], axis=1, initial=images), np.max(pairs[:, :2], axis=1, initial=0)
    key = low * images + high
    order = np.lexsort((-scores, key))
    rank = _rank_in_runs(key[order])
    order, rank = order[rank < _STARTS], rank[rank < _STARTS]
    best = order[rank == 0]
    near = np.zeros(len(best), dtype=np.bool_)
    for side in (low, high):
        by_image = np.lexsort((-scores[best], side[best]))
        near[by_image] |= _rank_in_runs(side[best][by_image]) < _NEIGHBOURS
    return order[np.isin(key[order], key[best[near]])]


def _rank_in_runs(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each value its place, from 0, among the equal ones that stand together."""
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    lengths = np.diff(np.append(starts, len(values)))
    return np.arange(len(values)) - np.repeat(starts, lengths)

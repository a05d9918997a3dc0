"""Detections and truths of many images as flat rows, as the table of predictions has them, and the matcher on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detframe.matching import Matches, match, match_any_class, pairs_of_any_class
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.structures import Detections, Targets

PAIRS_AT_ONCE = 2**16
"""Detection slots times object rows that are matched together: few enough to stay in the processor's cache."""


class DetectionRows(NamedTuple):
    """One row per detection. Rows of equal score count in their order, so images should come in order of their ids."""

    images: Tensor  # [D] int64, 0..I-1, the place of each one's image
    boxes: Tensor  # [D, 4] float32, xyxy in pixels
    scores: Tensor  # [D] float32, 0..1
    labels: Tensor  # [D] int64, 0..C-1


class TruthRows(NamedTuple):
    """One row per ground-truth box."""

    images: Tensor  # [G] int64, 0..I-1, places as in the rows of detections
    boxes: Tensor  # [G, 4] float32, xyxy in the same pixels
    labels: Tensor  # [G] int64, 0..C-1
    ignore: Tensor  # [G] bool, crowd, difficult or ambiguous: neither found nor missed


class RowMatches(NamedTuple):
    """Which detection found which truth at one IoU threshold, by row."""

    truth: Tensor  # [D] int64, row of the truth that the detection found, -1 for none
    iou: Tensor  # [D] float64, 0..1, overlap with it, 0 for none
    ignored: Tensor  # [D] bool, it is set aside: the detection is neither a true nor a false positive
    detection: Tensor  # [G] int64, row of the detection that found the truth, the first of several; -1 for none


class RowPairs(NamedTuple):
    """Detections and truths that overlap, one row per pair."""

    detection: Tensor  # [P] int64
    truth: Tensor  # [P] int64
    overlap: Tensor  # [P] float64, 0..1


class PaddedRows(NamedTuple):
    """Some images as the matcher takes them, and the rows that they are made of."""

    detections: Detections  # [B, K]
    targets: Targets  # [B, N]
    detection_rows: Tensor  # [B, K + 1] int64, -1 in unused slots and the last
    truth_rows: Tensor  # [B, N + 1] int64, -1 in padding rows and the last
    first_image: int  # place of the first of the images, which follow each other


def check_rows(detections: DetectionRows, truths: TruthRows, class_count: int) -> None:
    """Check that columns are of one length and labels in range.

    Raises:
        ValueError: They are not; the message names the column, or the row.
    """
    for name, rows in (("detections", detections), ("truths", truths)):
        lengths = {column: len(values) for column, values in rows._asdict().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name}: the columns have lengths that differ: {lengths}.")
        for column, end in (("labels", class_count), ("images", None)):
            values = getattr(rows, column)
            wrong = (values < 0) if end is None else (values < 0) | (values >= end)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                limit = "from 0" if end is None else f"0..{end - 1}"
                raise ValueError(f"{name}: row {row} has {column[:-1]} {int(values[row])}, {limit} is needed.")


def match_rows(detections: DetectionRows, truths: TruthRows, iou_threshold: float) -> RowMatches:
    """Match detections to truths of their image and class, by :func:`detframe.matching.match`."""
    return _match_rows(detections, truths, iou_threshold, match)


def match_rows_of_any_class(detections: DetectionRows, truths: TruthRows, iou_threshold: float) -> RowMatches:
    """Match detections to truths of their image by location alone, by :func:`detframe.matching.match_any_class`."""
    return _match_rows(detections, truths, iou_threshold, match_any_class)


def outcomes_of_rows(detections: DetectionRows, truths: TruthRows, iou_thresholds: Sequence[float]) -> Tensor:
    """What becomes of each detection at ``T`` IoUs, ``[D, T]`` uint8: :mod:`~detframe.metrics.average_precision`'s."""
    result = torch.full((len(detections.scores), len(iou_thresholds)), FALSE_POSITIVE, dtype=torch.uint8)
    for padded in padded_images(detections, truths):
        matches = match(padded.detections, padded.targets, iou_thresholds)
        hit = torch.where(matches.ignored, IGNORED, TRUE_POSITIVE)
        used = padded.detections.valid
        found = torch.where(matches.target < 0, FALSE_POSITIVE, hit).to(torch.uint8)
        result[padded.detection_rows[:, :-1][used]] = found[used]
    return result


def within_limit(detections: DetectionRows, limit: int) -> Tensor:
    """Which detections are among the ``limit`` best of their image and class, as COCO counts them, ``[D]`` bool."""
    order = (-detections.scores).argsort(stable=True)
    order = order[detections.labels[order].argsort(stable=True)]
    order = order[detections.images[order].argsort(stable=True)]
    groups = torch.stack((detections.images[order], detections.labels[order]), dim=1)
    _, counts = torch.unique_consecutive(groups, dim=0, return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order] = torch.arange(len(order)) - first < limit
    return kept


def overlapping_rows(detections: DetectionRows, truths: TruthRows, least: float) -> RowPairs:
    """Pairs of one image that overlap by at least ``least``, 0..1, whatever their classes, in order of both rows."""
    none = detections.images.new_zeros(0)
    parts = [RowPairs(none, none, none.double())]
    for padded in padded_images(detections, truths):
        pairs = pairs_of_any_class(padded.detections, padded.targets, least)
        parts.append(
            RowPairs(
                padded.detection_rows[pairs.image, pairs.slot], padded.truth_rows[pairs.image, pairs.row], pairs.overlap
            )
        )
    unsorted = RowPairs(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    order = unsorted.truth.argsort(stable=True)
    order = order[unsorted.detection[order].argsort(stable=True)]
    return RowPairs(*(tensor[order] for tensor in unsorted))


def _match_rows(
    detections: DetectionRows,
    truths: TruthRows,
    iou_threshold: float,
    matcher: Callable[[Detections, Targets, Sequence[float]], Matches],
) -> RowMatches:
    result = RowMatches(
        truth=torch.full_like(detections.images, -1),
        iou=torch.zeros_like(detections.images, dtype=torch.float64),
        ignored=torch.zeros_like(detections.images, dtype=torch.bool),
        detection=torch.full_like(truths.images, -1),
    )
    for padded in padded_images(detections, truths):
        matches = Matches(
            *(tensor.squeeze(-1) for tensor in matcher(padded.detections, padded.targets, [iou_threshold]))
        )
        used = padded.detections.valid
        rows = padded.detection_rows[:, :-1][used]
        # -1 for "none" looks up the last column, which holds -1.
        result.truth[rows] = padded.truth_rows.gather(1, matches.target % padded.truth_rows.shape[1])[used]
        result.iou[rows] = matches.iou[used]
        result.ignored[rows] = matches.ignored[used]
        finder = padded.detection_rows.gather(1, matches.detection % padded.detection_rows.shape[1])
        present = padded.targets.valid
        result.detection[padded.truth_rows[:, :-1][present]] = finder[present]
    return result


def padded_images(detections: DetectionRows, truths: TruthRows) -> Iterator[PaddedRows]:
    """All images up to the last with a row, as many at once as :data:`PAIRS_AT_ONCE` allows."""
    images = torch.cat((detections.images, truths.images))
    count = int(images.max()) + 1 if len(images) else 0
    sides = [(rows.argsort(stable=True), rows.bincount(minlength=count)) for rows in (detections.images, truths.images)]
    widths = torch.stack([counts for _, counts in sides], dim=1).tolist()
    for start, end in _spans(widths):
        found, present = (_padded_rows(order, counts, start, end) for order, counts in sides)
        slots, rows = found[:, :-1].clamp(min=0), present[:, :-1].clamp(min=0)
        yield PaddedRows(
            Detections(detections.boxes[slots], detections.scores[slots], detections.labels[slots], found[:, :-1] >= 0),
            Targets(truths.boxes[rows], truths.labels[rows], truths.ignore[rows], present[:, :-1] >= 0),
            found,
            present,
            start,
        )


def _spans(widths: list[list[int]]) -> Iterator[tuple[int, int]]:
    """Runs of images whose padded pairs stay within the limit; ``widths`` are detections and truths of each image."""
    start, most = 0, (0, 0)
    for i, (slots, rows) in enumerate(widths):
        wider = max(most[0], slots), max(most[1], rows)
        if i > start and (i + 1 - start) * wider[0] * wider[1] > PAIRS_AT_ONCE:
            yield start, i
            start, wider = i, (slots, rows)
        most = wider
    if widths:
        yield start, len(widths)


def _padded_rows(order: Tensor, counts: Tensor, start: int, end: int) -> Tensor:
    """Rows of images ``start`` to ``end``, padded with -1 and one column more, ``[B, most + 1]`` int64.

    Args:
        order: ``[D]`` int64, rows in order of images.
        counts: ``[I]`` int64, rows of each image.
        start: The first image.
        end: The one after the last.
    """
    first = (counts.cumsum(0) - counts)[start:end, None]
    counts = counts[start:end, None]
    place = torch.arange(int(counts.max()) + 1, device=order.device)
    lookup = torch.nn.functional.pad(order, (0, 1), value=-1)
    return lookup[torch.where(place < counts, first + place, len(order))]

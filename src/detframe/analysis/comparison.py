"""All figures of a comparison of two detectors on the same images: pure, no file and no picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detframe.analysis.diagnosis import COCO_IOUS, evaluated_images
from detframe.analysis.evaluation import Evaluation, on_same_images
from detframe.analysis.evidence import Aim, OperatingErrors, examine
from detframe.analysis.prediction_table import TableRows, rows_of_table
from detframe.analysis.row_metrics import judge_precision
from detframe.analysis.slicing import slices
from detframe.data.annotations import DataError
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.calibration import reliability_bins_per_class
from detframe.metrics.columns import mean_of_known
from detframe.metrics.paired import (
    PairedReplicates,
    Resamples,
    paired_average_precision,
    paired_difference,
    paired_figure,
    resamples,
)
from detframe.metrics.rows import DetectionRows, TruthRows, match_rows
from detframe.metrics.slices import holm

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Size of the tests, and one less the level of the intervals."""

_BINS, _LEAST_SCORE = 10, 0.3  # of D-ECE, as detection_ece has them


_AT_50, _AT_75 = COCO_IOUS.index(0.5), COCO_IOUS.index(0.75)
MEANS: dict[str, Callable[[Floats], Floats]] = {
    "map": lambda values: mean_of_known(values, axis=-2).mean(axis=-1),
    "map_50": lambda values: mean_of_known(values[..., _AT_50], axis=-1),
    "map_75": lambda values: mean_of_known(values[..., _AT_75], axis=-1),
}
"""Headline figures, of average precision ``[..., C, T]`` at :data:`~detframe.analysis.diagnosis.COCO_IOUS`."""


class Verdict(Enum):
    """What a comparison says of a figure."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same within margin"
    UNKNOWN = "cannot tell"


class Line(NamedTuple):
    """One figure of both detectors."""

    name: str  # such as map, ap/nut, recall/brightness=to 0.3
    family: str  # overall, class or slice: p-values are corrected within the latter two
    lower_is_better: bool
    base: float
    candidate: float
    gain: float  # of the candidate: above 0 it is better
    low: float  # of the gain's interval
    high: float
    p_value: float  # 0..1, that there is no difference, corrected by Holm's method
    detectable: float  # the smallest gain or loss that is seen with a power of 80 %; NaN where nothing scatters
    margin: float
    verdict: Verdict


class Change(NamedTuple):
    """An object or detection that only one of the two gets right."""

    kind: str  # fixed, broken, new false alarm or gone false alarm
    image: int  # its place
    label: int
    row: int  # of the truths, or of the detections of the one that has it


class Compared(NamedTuple):
    """One side of a comparison."""

    evaluation: Evaluation
    rows: TableRows
    thresholds: Floats  # [C]
    operating: OperatingErrors  # at these


class Comparison(NamedTuple):
    """Two detectors on the same ``I`` images."""

    base: Compared
    candidate: Compared
    lines: list[Line]
    changes: list[Change]


def compare_evaluations(
    base: Evaluation,
    candidate: Evaluation,
    aim: Aim,
    margins: Mapping[str, float],
    of_images: Mapping[str, NDArray[Any]],
    replicates: int,
    seed: int,
    groups: str | None = None,
) -> Comparison:
    """Compute all figures.

    Args:
        base: What is in use.
        candidate: What is to replace it, on the same images and objects.
        aim: Chooses the operating threshold of each class, for each detector by itself.
        margins: By pattern of a line's name, as :func:`fnmatch.fnmatchcase` has it; the first that fits decides,
            and one has to, such as ``*``.
        of_images: Properties of the images to slice by, each ``[I]``.
        replicates: Of the bootstrap and of the permutation.
        seed: Of both.
        groups: Column of the images' metadata whose images are drawn and swapped together.

    Raises:
        DataError: The two were not evaluated on the same data.
    """
    base, candidate = on_same_images([base, candidate])
    require_same_data(base, candidate)
    sides = [_compared(evaluation, aim) for evaluation in (base, candidate)]
    drawn = resamples(len(base.image_ids), replicates, seed, _groups(base, groups))
    figures = {
        **_average_precisions(sides, drawn),
        **_at_thresholds(sides, drawn),
        **_of_slices(sides, drawn, of_images),
    }
    return Comparison(sides[0], sides[1], _lines(figures, margins), _changes(sides[0], sides[1]))


class _Figure(NamedTuple):
    family: str
    replicates: PairedReplicates  # of one figure
    lower_is_better: bool = False


def margin_of(name: str, margins: Mapping[str, float]) -> float:
    """The margin of a line: that of the first pattern that fits."""
    return next(margin for pattern, margin in margins.items() if fnmatchcase(name, pattern))


def verdict_of(gain: float, low: float, high: float, p_value: float, margin: float) -> Verdict:
    """What a gain, its interval and its p-value say.

    An interval within the margin says that there is no difference to speak of, however surely there is a small one.
    """
    if low >= -margin and high <= margin:
        return Verdict.SAME
    if p_value < ALPHA:
        return Verdict.BETTER if gain > 0 else Verdict.WORSE
    return Verdict.UNKNOWN


def _compared(evaluation: Evaluation, aim: Aim) -> Compared:
    rows = rows_of_table(evaluation.table, evaluation.image_ids)
    evidence = examine(rows, len(evaluation.class_names), aim)
    return Compared(evaluation, rows, evidence.thresholds, evidence.operating)


def require_same_data(base: Evaluation, candidate: Evaluation) -> None:
    """Raise unless two evaluations have the same images, classes and objects.

    Raises:
        DataError: They have not; the message names what differs.
    """
    where = f"{base.source} and {candidate.source} were not evaluated on the same data"
    cure = "Evaluate both on one test set with `detframe test`."
    if base.class_names != candidate.class_names:
        named = [", ".join(evaluation.class_names) for evaluation in (base, candidate)]
        raise DataError(f"{where}: the classes are {named[0]} and {named[1]}. {cure}")
    if not np.array_equal(base.image_ids, candidate.image_ids):
        alone = sorted(set(base.image_ids.tolist()) ^ set(candidate.image_ids.tolist()))
        raise DataError(f"{where}: {len(alone)} images are in one alone, such as image {alone[0]}. {cure}")
    truths = [rows_of_table(evaluation.table, base.image_ids).truths for evaluation in (base, candidate)]
    if all(torch.equal(one, other) for one, other in zip(*truths, strict=True)):
        return
    boxes = [
        {(int(image), *box.tolist(), int(label)) for image, box, label, _ in zip(*rows, strict=True)} for rows in truths
    ]
    differ = sorted(boxes[0] ^ boxes[1])
    place = base.file_names[differ[0][0]] if differ else "their order"
    raise DataError(f"{where}: {len(differ)} objects differ, as in {place}. {cure}")


def _groups(evaluation: Evaluation, column: str | None) -> NDArray[np.int64] | None:
    if column is None:
        return None
    values = [str(row.get(column, "")) for row in evaluation.metadata]
    if "" in values:
        known = ", ".join(sorted({key for row in evaluation.metadata for key in row})) or "no column"
        raise DataError(
            f"--groups {column}: image {evaluation.file_names[values.index('')]} has {known}. Name another."
        )
    return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.int64)


def _average_precisions(sides: list[Compared], drawn: Resamples) -> dict[str, _Figure]:
    names = sides[0].evaluation.class_names
    evaluated = [evaluated_images(side.rows.detections, side.rows.truths, COCO_IOUS) for side in sides]
    found = paired_average_precision(evaluated[0], evaluated[1], len(names), drawn)  # [C, T]

    def reduced(reduce: Callable[[Floats], Floats]) -> PairedReplicates:
        return PairedReplicates(*(reduce(values) for values in found))

    figures = {name: _Figure("overall", reduced(mean)) for name, mean in MEANS.items()}
    by_class = reduced(lambda values: values.mean(axis=-1)), reduced(lambda values: values[..., _AT_50])
    for kind, replicates in zip(("ap", "ap_50"), by_class, strict=True):
        for c, name in enumerate(names):
            figures[f"{kind}/{name}"] = _Figure("class", PairedReplicates(*(values[..., c] for values in replicates)))
    return figures


class _Counts(NamedTuple):
    """What a detector keeps at its thresholds, and the objects that count."""

    objects: TruthRows
    found: NDArray[np.bool_]  # whether each is
    object_rows: NDArray[np.int64]  # of all truths
    kept: DetectionRows
    right: NDArray[np.bool_]  # whether each is
    kept_rows: NDArray[np.int64]  # of all detections


def _counts(side: Compared) -> _Counts:
    errors = side.operating.errors
    shown = errors.outcome != IGNORED
    objects = (~side.rows.truths.ignore).nonzero().flatten()
    return _Counts(
        TruthRows(*(column[objects] for column in side.rows.truths)),
        (errors.found_by[objects] >= 0).numpy(),
        objects.numpy(),
        DetectionRows(*(column[shown] for column in errors.detections)),
        (errors.outcome[shown] == TRUE_POSITIVE).numpy(),
        side.operating.rows[shown].numpy(),
    )


def _at_thresholds(sides: list[Compared], drawn: Resamples) -> dict[str, _Figure]:
    names, images = sides[0].evaluation.class_names, drawn.weights.shape[1]
    counts = [_counts(side) for side in sides]
    figures = {}
    for label, name in ((None, ""), *enumerate(names)):
        precision, recall, f1 = [], [], []
        for count in counts:
            everything = np.ones(1, dtype=bool)
            mine = everything if label is None else count.kept.labels.numpy() == label
            theirs = everything if label is None else count.objects.labels.numpy() == label
            kept, objects = count.kept.images.numpy(), count.objects.images.numpy()
            precision.append(_shares(kept, count.right & mine, mine, images))
            recall.append(_shares(objects, count.found & theirs, theirs, images))
            f1.append(precision[-1] + recall[-1])  # 2 true positives to detections and objects
        family = "overall" if label is None else "class"
        for kind, columns in (("precision", precision), ("recall", recall), ("f1", f1)):
            title = kind if label is None else f"{kind}/{name}"
            figures[title] = _Figure(family, paired_figure(columns[0], columns[1], _quotient, drawn))
    bins = [_reliability_sums(side, images) for side in sides]
    figures["d_ece"] = _Figure("overall", paired_figure(bins[0], bins[1], _calibration_error, drawn), True)
    return figures


def _of_slices(sides: list[Compared], drawn: Resamples, of_images: Mapping[str, NDArray[Any]]) -> dict[str, _Figure]:
    images = drawn.weights.shape[1]
    counts = [_counts(side) for side in sides]
    parts = [
        {
            (part.property, part.value): part
            for part in slices(side.rows.detections, side.rows.truths, side.evaluation.sizes, of_images)
        }
        for side in sides
    ]
    figures = {}
    for key in [key for key in parts[0] if key in parts[1]]:
        recall, precision = [], []
        for count, part in zip(counts, parts, strict=True):
            objects, kept = part[key].truths[count.object_rows], part[key].detections[count.kept_rows]
            recall.append(_shares(count.objects.images.numpy(), count.found & objects, objects, images))
            precision.append(_shares(count.kept.images.numpy(), count.right & kept, kept, images))
        title = f"{key[0]}={key[1]}"
        figures[f"recall/{title}"] = _Figure("slice", paired_figure(recall[0], recall[1], _quotient, drawn))
        figures[f"precision/{title}"] = _Figure("slice", paired_figure(precision[0], precision[1], _quotient, drawn))
    return figures


def _shares(images: NDArray[Any], hits: NDArray[np.bool_], rows: NDArray[np.bool_], count: int) -> Floats:
    """How many of some rows each image has that are hits, and how many at all, ``[I, 2]``."""
    rows = np.broadcast_to(rows, images.shape)
    columns = [np.bincount(images[chosen], minlength=count) for chosen in (hits & rows, rows)]
    return np.stack(columns, axis=1).astype(np.float64)


def _quotient(sums: Floats) -> Floats:
    """Share of hits, ``[...]``, of sums ``[..., 2]``; NaN where there is nothing."""
    return np.asarray(sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan), dtype=np.float64)


def _reliability_sums(side: Compared, images: int) -> Floats:
    """Of each bin of scores its detections, hits and scores in each image, ``[I, 3 * bins]``.

    Images stand in the place of classes.
    """
    judged = judge_precision(side.rows.detections, side.rows.truths)
    scores = side.rows.detections.scores.numpy()[judged.rows].astype(np.float64)
    kept = scores >= _LEAST_SCORE
    scores, hits = scores[kept], judged.targets[kept]
    place = side.rows.detections.images.numpy()[judged.rows][kept]
    bins = reliability_bins_per_class(scores, hits, place, images, _BINS)
    sums = [np.nan_to_num(mean) * bins.counts for mean in (bins.mean_target, bins.mean_score)]
    return np.concatenate([bins.counts, *sums], axis=1)


def _calibration_error(sums: Floats) -> Floats:
    """D-ECE of the sums that :func:`_reliability_sums` gives."""
    counts, hits, scores = np.split(sums, 3, axis=-1)
    return _quotient(np.stack([np.abs(hits - scores).sum(axis=-1), counts.sum(axis=-1)], axis=-1))


def _lines(figures: Mapping[str, _Figure], margins: Mapping[str, float]) -> list[Line]:
    found = {name: paired_difference(figure.replicates, 1 - ALPHA) for name, figure in figures.items()}
    known = [name for name, difference in found.items() if not math.isnan(float(difference.difference))]
    p_values = {name: float(found[name].p_value) for name in known}
    for family in ("class", "slice"):
        members = [name for name in known if figures[name].family == family]
        corrected = holm(np.array([p_values[name] for name in members]))
        p_values |= dict(zip(members, corrected.tolist(), strict=True))
    lines = []
    for name in known:
        one, lower = found[name], figures[name].lower_is_better
        gain, low, high = float(one.difference), float(one.low), float(one.high)
        if lower:
            gain, low, high = -gain, -high, -low
        margin = margin_of(name, margins)
        lines.append(
            Line(
                name,
                figures[name].family,
                lower,
                float(one.base),
                float(one.candidate),
                gain,
                low,
                high,
                p_values[name],
                float(one.detectable) or math.nan,
                margin,
                verdict_of(gain, low, high, p_values[name], margin),
            )
        )
    return lines


def _changes(base: Compared, candidate: Compared) -> list[Change]:
    """What only one of the two gets right, broken before fixed, by image."""
    truths = base.rows.truths
    found = [side.operating.errors.found_by >= 0 for side in (base, candidate)]
    changes = []
    for kind, rows in (("broken", found[0] & ~found[1]), ("fixed", found[1] & ~found[0])):
        for row in (rows & ~truths.ignore).nonzero().flatten().tolist():
            changes.append(Change(kind, int(truths.images[row]), int(truths.labels[row]), row))
    for kind, side, other in (("new false alarm", candidate, base), ("gone false alarm", base, candidate)):
        changes += [Change(kind, *place) for place in _false_alarms_of_one(side.operating, other.operating)]
    return changes


def _false_alarms_of_one(side: OperatingErrors, other: OperatingErrors) -> list[tuple[int, int, int]]:
    """Image, label and row of the false detections of one that the other has none like, by IoU 0.5 and class."""
    mine = (side.errors.outcome == FALSE_POSITIVE).nonzero().flatten()
    theirs = other.errors.outcome == FALSE_POSITIVE
    as_truths = TruthRows(
        images=other.errors.detections.images[theirs],
        boxes=other.errors.detections.boxes[theirs],
        labels=other.errors.detections.labels[theirs],
        ignore=torch.zeros(int(theirs.sum()), dtype=torch.bool),
    )
    alarms = DetectionRows(*(column[mine] for column in side.errors.detections))
    alone = match_rows(alarms, as_truths, 0.5).truth < 0
    return [
        (int(side.errors.detections.images[row]), int(side.errors.detections.labels[row]), row)
        for row in mine[alone].tolist()
    ]

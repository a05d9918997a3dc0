"""What calibration changes, in figures: errors before and after, on images that the curves were not fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from detframe.analysis.prediction_table import TableRows, rows_of_table
from detframe.analysis.row_metrics import Judged, judge_iou, judge_precision, mean_average_precision
from detframe.metrics.calibration import (
    detection_ece,
    error_by_chance,
    localisation_aware_ace,
    localisation_aware_ece,
    reliability_bins,
    reliability_bins_per_class,
)
from detframe.metrics.calibrators import fit_isotonic, fit_platt
from detframe.metrics.columns import mean_of_known
from detframe.score_curves import ScoreCurves, calibrate_scores

Floats = NDArray[np.float64]
Promise = Literal["precision", "iou"]
Target = Literal["precision", "iou", "both"]
Method = Literal["isotonic", "platt"]

FITS: dict[Method, Callable[[NDArray[Any], NDArray[Any], NDArray[Any], int], ScoreCurves]] = {
    "isotonic": fit_isotonic,
    "platt": fit_platt,
}
FOLDS = 5
"""Parts of the validation images, each of which is judged by curves that the others gave."""

SHARES = np.linspace(0, 1, 21)
"""Of the curve to precision that are tried where a score is to be near both promises."""

D_ECE_BINS, D_ECE_MIN_SCORE, LAECE_BINS = 10, 0.3, 25  # fiveai/detection_calibration


class Split(NamedTuple):
    """The table of a split and what each detection found in it."""

    rows: TableRows
    areas: torch.Tensor  # [G] float32, square pixels, of the truths
    precision: Judged  # a true positive at IoU 0.5 is 1, a false one 0
    iou: Judged  # IoU with the object found when matched at an IoU of 0, 0 for none


def split_of_table(table: pa.Table) -> Split:
    """Match the detections of a table of :data:`detframe.analysis.prediction_table.SCHEMA` with its truths."""
    rows = rows_of_table(table)
    areas = torch.from_numpy(table["area"].to_numpy()[rows.truth_rows.numpy()])
    found, present = rows.detections, rows.truths
    return Split(rows, areas, precision=judge_precision(found, present), iou=judge_iou(found, present))


def promises(target: Target) -> tuple[Promise, ...]:
    """What calibrated scores are to be near."""
    return ("precision", "iou") if target == "both" else (target,)


def judged(split: Split, promise: Promise) -> Judged:
    """What a promise is held against."""
    return split.precision if promise == "precision" else split.iou


def mean_ap(split: Split, scores: Floats, names: Sequence[str]) -> float:
    """COCO's mAP of a split's detections with these scores ``[D]``; ``names`` are the classes'."""
    found = split.rows.detections._replace(scores=torch.from_numpy(scores).float())
    mean: float = mean_average_precision(split.rows._replace(detections=found), split.areas, names)["map"]
    return mean


def raw_scores(split: Split) -> Floats:
    """Scores of a split's detections, ``[D]``."""
    return np.asarray(split.rows.detections.scores, dtype=np.float64)


def fit(split: Split, target: Target, method: Method, classes: int, images: NDArray[np.bool_]) -> ScoreCurves:
    """Curves from the detections of some images.

    Args:
        split: Detections and what they found.
        target: What scores are to promise. Those to be near both lie between the two curves, where the larger part
            that is left of D-ECE or of LaECE0 is smallest on these images.
        method: Of fitting.
        classes: C.
        images: ``[I]``, which of the split's images.
    """
    ends = [_fit(split, promise, method, classes, images) for promise in promises(target)]
    if len(ends) == 1:
        return ends[0]
    to_precision, to_iou = ends
    # In logits, as there a mean of curves that rise by MIN_SLOPE does so too.
    between = [to_iou._replace(logits=torch.lerp(to_iou.logits, to_precision.logits, share)) for share in SHARES]
    before = _both_errors(split, raw_scores(split), classes, images)
    left = [(_both_errors(split, calibrated(split, curves), classes, images) / before).max() for curves in between]
    return between[int(np.argmin(left))]


def _fit(split: Split, promise: Promise, method: Method, classes: int, images: NDArray[np.bool_]) -> ScoreCurves:
    rows, targets = _among(judged(split, promise), split, images)
    found = split.rows.detections
    return FITS[method](found.scores.numpy()[rows], targets, found.labels.numpy()[rows], classes)


def _among(judged: Judged, split: Split, images: NDArray[np.bool_]) -> Judged:
    used = images[split.rows.detections.images.numpy()[judged.rows]]
    return Judged(judged.rows[used], judged.targets[used])


def _both_errors(split: Split, scores: Floats, classes: int, images: NDArray[np.bool_]) -> Floats:
    """D-ECE and LaECE0 of some images, ``[2]``; the least number above 0 where there is none or nothing to judge."""
    labels, present = split.rows.detections.labels.numpy(), split.rows.truths
    hit, near = _among(split.precision, split, images), _among(split.iou, split, images)
    asked = ~present.ignore.numpy() & images[present.images.numpy()]
    positives = np.bincount(present.labels.numpy()[asked], minlength=classes)
    d_ece = detection_ece(scores[hit.rows], hit.targets, D_ECE_BINS, D_ECE_MIN_SCORE)
    laece = localisation_aware_ece(scores[near.rows], near.targets, labels[near.rows], positives, LAECE_BINS)
    both: Floats = np.nan_to_num(np.array([d_ece, laece.mean]))
    return both.clip(min=np.finfo(np.float64).tiny)


def calibrated(split: Split, curves: ScoreCurves) -> Floats:
    """Scores as the calibrated detector gives them, rounded to float32, ``[D]``."""
    found = split.rows.detections
    return np.asarray(calibrate_scores(found.scores.double(), found.labels, curves).float(), dtype=np.float64)


def cross_calibrated(split: Split, target: Target, method: Method, classes: int, seed: int = 0) -> Floats:
    """Each image's scores on curves from the other parts of the images, ``[D]``.

    Args:
        split: At least :data:`FOLDS` images.
        target: As for :func:`fit`.
        method: As for :func:`fit`.
        classes: As for :func:`fit`.
        seed: Of how images are dealt out.
    """
    images = len(split.rows.image_ids)
    fold = np.random.default_rng(seed).permutation(images) % FOLDS
    fold_of_row = fold[split.rows.detections.images.numpy()]
    scores = raw_scores(split)
    for k in range(FOLDS):
        mine = fold_of_row == k
        scores[mine] = calibrated(split, fit(split, target, method, classes, fold != k))[mine]
    return scores


def errors(split: Split, scores: Floats, names: Sequence[str]) -> dict[str, Any]:
    """Calibration errors of a split.

    Args:
        split: Detections and what they found.
        scores: ``[D]``, 0..1, to judge.
        names: Of the classes.

    Returns:
        ``d_ece``, ``laece0``, ``laace0``; ``d_ece_by_chance`` and ``laece0_by_chance`` (an upper bound), which true
        scores would show in bins so filled; and ``per_class``. None where there is nothing to judge.
    """
    labels = split.rows.detections.labels.numpy()
    positives = np.bincount(split.rows.truths.labels[~split.rows.truths.ignore].numpy(), minlength=len(names))
    hit, near = split.precision, split.iou
    near_scores, near_labels = scores[near.rows], labels[near.rows]
    laece = localisation_aware_ece(near_scores, near.targets, near_labels, positives, LAECE_BINS)
    laace = localisation_aware_ace(near_scores, near.targets, near_labels, positives)
    high = hit.rows[scores[hit.rows] >= D_ECE_MIN_SCORE]
    chance = error_by_chance(reliability_bins_per_class(near_scores, near.targets, near_labels, len(names), LAECE_BINS))
    d_ece_chance = error_by_chance(reliability_bins(scores[high], np.zeros(len(high)), D_ECE_BINS))

    def d_ece(mine: NDArray[np.bool_]) -> float | None:
        error = detection_ece(scores[hit.rows][mine], hit.targets[mine], D_ECE_BINS, D_ECE_MIN_SCORE)
        return _known(error)

    return {
        "d_ece": d_ece(np.ones(len(hit.rows), dtype=bool)),
        "d_ece_by_chance": _known(float(d_ece_chance)),
        "laece0": _known(laece.mean),
        "laece0_by_chance": _known(float(mean_of_known(np.where(positives > 0, chance, np.nan)))),
        "laace0": _known(laace.mean),
        "per_class": {
            name: {
                "detections": int((labels == c).sum()),
                "objects": int(positives[c]),
                "d_ece": d_ece(labels[hit.rows] == c),
                "laece0": _known(float(laece.per_class[c])),
                "laace0": _known(float(laace.per_class[c])),
            }
            for c, name in enumerate(names)
        },
    }


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value

"""How far scores can be believed: reliability bins and the calibration errors of detectors.

All functions take one value per detection. Detections that the matcher set aside (``ignored``) are to be left out
first: they are neither right nor wrong. Where there is no detection there is no error either, so the result is NaN,
never 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detframe.metrics.columns import check_labels, check_lengths, check_shares, mean_of_known

Floats = NDArray[np.float64]


class ReliabilityBins(NamedTuple):
    """Detections by score, in ``n`` bins of equal width; with a class dimension ``C`` where they are per class.

    Bins are open at the left and closed at the right, the first one closed on both sides, as in
    ``fiveai/detection_calibration``.
    """

    edges: Floats  # [n + 1], 0..1
    counts: NDArray[np.int64]  # [n] or [C, n]
    mean_score: Floats  # [n] or [C, n], 0..1, NaN in an empty bin
    mean_target: Floats  # [n] or [C, n], 0..1, precision or mean IoU of the bin, NaN in an empty bin


class ClassErrors(NamedTuple):
    """A calibration error by class."""

    per_class: Floats  # [C], 0..1, NaN for a class without detections or without objects
    mean: float  # 0..1, over the classes that have one; NaN where none has


def reliability_bins(scores: NDArray[Any], targets: NDArray[Any], bins: int) -> ReliabilityBins:
    """Reliability bins of all detections, whatever their class.

    Args:
        scores: ``[D]``, 0..1.
        targets: ``[D]``, what the score promises: true positive or not, or the IoU with the object found, 0..1.
        bins: How many, ``n``.

    Raises:
        ValueError: Lengths differ, or a value is outside 0..1.
    """
    labels = np.zeros(len(scores), dtype=np.int64)
    edges, counts, mean_score, mean_target = reliability_bins_per_class(scores, targets, labels, 1, bins)
    return ReliabilityBins(edges, counts[0], mean_score[0], mean_target[0])


def reliability_bins_per_class(
    scores: NDArray[Any], targets: NDArray[Any], labels: NDArray[Any], classes: int, bins: int
) -> ReliabilityBins:
    """Reliability bins of each class.

    Args:
        scores: As for :func:`reliability_bins`.
        targets: As for :func:`reliability_bins`.
        labels: ``[D]``, 0..C-1.
        classes: ``C``.
        bins: As for :func:`reliability_bins`.

    Raises:
        ValueError: As for :func:`reliability_bins`, or a label is outside 0..C-1.
    """
    check_lengths(scores=scores, targets=targets, labels=labels)
    check_shares("scores", scores)
    check_shares("targets", targets)
    check_labels("labels", labels, classes)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges, scores, side="left").clip(1, bins) - 1
    cell = np.asarray(labels, dtype=np.int64) * bins + bin_of
    counts = np.bincount(cell, minlength=classes * bins)
    divisor = np.where(counts > 0, counts, np.nan)
    mean_score, mean_target = (
        (np.bincount(cell, weights=values, minlength=classes * bins) / divisor).reshape(classes, bins)
        for values in (scores, targets)
    )
    return ReliabilityBins(edges, counts.reshape(classes, bins), mean_score, mean_target)


def expected_calibration_error(bins: ReliabilityBins) -> Floats:
    """Mean of ``|mean target - mean score|`` over the bins, weighted by their detections.

    Returns:
        ``[]``, or ``[C]`` for bins per class; 0..1, NaN where there is no detection.
    """
    total = bins.counts.sum(axis=-1)
    gaps = np.where(bins.counts > 0, np.abs(bins.mean_target - bins.mean_score), 0.0)
    error = (gaps * bins.counts).sum(axis=-1) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, error, np.nan), dtype=np.float64)


def error_by_chance(bins: ReliabilityBins) -> Floats:
    """The calibration error that a detector with true scores would show all the same, in bins so filled.

    Precision of a bin of ``n`` detections with mean score ``s`` scatters with a variance of ``s (1 - s) / n``, so its
    mean distance from ``s`` is ``sqrt(2 s (1 - s) / (pi n))``. An error near this one cannot be told from none. For IoU
    as the target it is an upper bound, since IoUs scatter less than hits and misses.

    Returns:
        ``[]``, or ``[C]`` for bins per class; NaN where there is no detection.
    """
    scatter = np.sqrt(2 / np.pi * bins.mean_score * (1 - bins.mean_score) / np.maximum(bins.counts, 1))
    return expected_calibration_error(bins._replace(mean_target=bins.mean_score + scatter))


def detection_ece(scores: NDArray[Any], true_positive: NDArray[Any], bins: int = 10, min_score: float = 0.3) -> float:
    """D-ECE: how far precision is from the mean score, over all classes together.

    With detections of a score of at least ``min_score`` in bins ``b`` of equal width over 0..1:
    ``sum_b |D_b| / |D| * |precision(D_b) - mean score(D_b)|``.

    Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR-W 2020, with the settings of
    ``fiveai/detection_calibration``: an IoU of 0.5, 10 bins, scores from 0.3.

    Args:
        scores: ``[D]``, 0..1.
        true_positive: ``[D]`` bool, matched at IoU 0.5.
        bins: Over all of 0..1, not only from ``min_score``.
        min_score: Lower scores are left out: the bulk of them is false and known to be.

    Returns:
        0..1, NaN where no detection reaches ``min_score``.
    """
    check_lengths(scores=scores, true_positive=true_positive)
    kept = scores >= min_score
    return float(expected_calibration_error(reliability_bins(scores[kept], true_positive[kept], bins)))


def localisation_aware_ece(
    scores: NDArray[Any], ious: NDArray[Any], labels: NDArray[Any], positives: NDArray[Any], bins: int = 25
) -> ClassErrors:
    """LaECE0: how far the mean IoU is from the mean score, per class, then averaged over classes.

    For class ``c`` with bins ``b`` of equal width over 0..1: ``sum_b |D_cb| / |D_c| * |mean IoU(D_cb) - mean
    score(D_cb)|``, where a detection that found nothing has IoU 0.

    Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024, as in
    ``fiveai/detection_calibration`` (``compute_single_errors`` with ``tau=0``), but for one thing: an error of exactly
    0 counts as one, where the repository takes it for a class to leave out. The paper measures the detections from each
    class's LRP-optimal threshold on (:func:`detframe.metrics.olrp.optimal_lrp`); pass those to compare with it.

    Args:
        scores: ``[D]``, 0..1.
        ious: ``[D]``, 0..1, with the object that the detection found when matched at an IoU threshold of 0.
        labels: ``[D]``, 0..C-1.
        positives: ``[C]``, objects of each class; a class without one is left out, as there.
        bins: Of each class.

    Raises:
        ValueError: Lengths differ, or a value or label is out of range.
    """
    cells = reliability_bins_per_class(scores, ious, labels, len(positives), bins)
    return _of_known_classes(expected_calibration_error(cells), positives)


def localisation_aware_ace(
    scores: NDArray[Any], ious: NDArray[Any], labels: NDArray[Any], positives: NDArray[Any]
) -> ClassErrors:
    """LaACE0: LaECE0 with a bin for each detection, ``mean |IoU - score|`` per class, then averaged over classes.

    The adaptive form of :func:`localisation_aware_ece` in the limit of one detection a bin, from the same paper and as
    in the same repository. It does not reach 0 by calibration: IoUs scatter around any function of the score, so it
    falls to their mean absolute deviation.

    Args:
        scores: As for :func:`localisation_aware_ece`.
        ious: As for :func:`localisation_aware_ece`.
        labels: As for :func:`localisation_aware_ece`.
        positives: As for :func:`localisation_aware_ece`.

    Raises:
        ValueError: As for :func:`localisation_aware_ece`.
    """
    check_lengths(scores=scores, ious=ious, labels=labels)
    check_shares("scores", scores)
    check_shares("ious", ious)
    check_labels("labels", labels, len(positives))
    gaps = np.abs(np.asarray(ious, dtype=np.float64) - scores)
    counts = np.bincount(labels, minlength=len(positives))
    errors = np.bincount(labels, weights=gaps, minlength=len(positives)) / np.where(counts > 0, counts, np.nan)
    return _of_known_classes(errors, positives)


def _of_known_classes(errors: Floats, positives: NDArray[Any]) -> ClassErrors:
    per_class = np.where(np.asarray(positives) > 0, errors, np.nan)
    return ClassErrors(per_class, float(mean_of_known(per_class)))

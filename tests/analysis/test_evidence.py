"""Figures of a table small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from detframe.analysis.evidence import examine, lumped, thinned, with_most_objects, worst_images
from detframe.analysis.prediction_table import TableRows
from detframe.metrics.errors import ErrorType, count_errors
from detframe.metrics.operating_points import interpolated_precision, threshold_curve
from detframe.metrics.rows import DetectionRows, TruthRows


def table_rows() -> TableRows:
    """A hit, an object of class 1 taken for class 0, a loose box, one of nothing, and one on an ignore region."""
    return TableRows(
        DetectionRows(
            images=torch.tensor([0, 0, 1, 1, 2]),
            boxes=torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70], [0, 0, 20, 14], [90, 90, 99, 99], [0, 0, 30, 30]]),
            scores=torch.tensor([0.95, 0.85, 0.75, 0.15, 0.65]),
            labels=torch.tensor([0, 0, 0, 1, 1]),
        ),
        TruthRows(
            images=torch.tensor([0, 0, 1, 2]),
            boxes=torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70], [0, 0, 20, 20], [0, 0, 30, 30]]),
            labels=torch.tensor([0, 1, 0, 1]),
            ignore=torch.tensor([False, False, False, True]),
        ),
        image_ids=torch.tensor([10, 20, 30]),
        detection_rows=torch.arange(5),
        truth_rows=torch.arange(5, 9),
    )


def test_figures_are_those_counted_by_hand() -> None:
    evidence = examine(table_rows(), 2)
    assert evidence.positives.tolist() == [2, 1]
    assert evidence.curves[0].true_positives.tolist() == [1, 1, 2]
    assert evidence.curves_75[0].true_positives.tolist() == [1, 1, 1]
    assert evidence.all_classes.false_positives.tolist() == [0, 1, 1, 2]
    first, second = evidence.points
    assert first is not None
    assert (first.threshold, first.true_positives, first.false_positives) == (0.75, 2, 1)
    assert second is None
    assert evidence.confusion.matrix.tolist() == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert count_errors(evidence.errors, 2).sum(dim=1).tolist() == [
        {ErrorType.CLASSIFICATION: 1, ErrorType.BACKGROUND: 1}.get(kind, 0) for kind in ErrorType
    ]
    assert evidence.costs.ap == pytest.approx((51 + 50 * 2 / 3) / 101 / 2)
    assert evidence.calibration.bins.counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    assert evidence.calibration.detection_ece == pytest.approx((0.05 + 0.85 + 0.25) / 3)
    # The loose box counts by its IoU, 0.7; that on the ignore region of class 1 not at all.
    assert evidence.calibration.localisation_ece.per_class == pytest.approx([(0.05 + 0.85 + 0.05) / 3, 0.15])
    # The detection of nothing scores too low to count; the loose box has to be moved.
    worst = worst_images(evidence, 9)
    assert [(image.place, image.objects, image.missed, image.false) for image in worst] == [(0, 2, 1, 1), (1, 1, 0, 0)]


def test_a_table_without_rows_has_no_figures() -> None:
    rows = table_rows()
    none = TableRows(
        DetectionRows(*(column[:0] for column in rows.detections)),
        TruthRows(*(column[:0] for column in rows.truths)),
        *(column[:0] for column in rows[2:]),
    )
    evidence = examine(none, 2)
    assert evidence.points == [None, None]
    assert worst_images(evidence, 9) == []
    assert math.isnan(evidence.calibration.detection_ece)
    assert math.isnan(evidence.calibration.localisation_ece.mean)
    assert thinned(evidence.curves[0], 10).tolist() == []


def test_a_thinned_curve_keeps_the_area_that_is_average_precision() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    curve = threshold_curve(scores, rng.random(20_000) < scores**3, 7000)
    rows = thinned(curve, 200)
    assert 190 < len(rows) <= 200
    assert curve.recall[rows[-1]] == curve.recall[-1]
    precision = interpolated_precision(curve)
    area = trapezoid(precision, curve.recall)
    assert trapezoid(precision[rows], curve.recall[rows]) == pytest.approx(area, abs=1e-3)


def test_classes_that_are_not_shown_are_taken_for_one() -> None:
    positives = np.array([5, 1, 9, 0])
    shown = with_most_objects(positives, 2)
    assert shown == [0, 2]
    matrix = torch.arange(25).view(5, 5)
    expected = [[0, 2, 1 + 3, 4], [10, 12, 24, 14], [5 + 15, 7 + 17, 6 + 8 + 16 + 18, 9 + 19], [20, 22, 44, 24]]
    assert lumped(matrix, shown).tolist() == expected
    assert lumped(matrix, range(4)).equal(matrix)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from detframe.metrics import error_costs as module
from detframe.metrics.error_costs import cost_of_rows, error_costs, rank_confusions
from detframe.metrics.errors import ErrorTable, ErrorType, find_errors
from detframe.metrics.mean_ap import MeanAveragePrecision
from detframe.metrics.rows import DetectionRows, TruthRows

Draw = Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]


def mean_ap(detections: DetectionRows, truths: TruthRows, images: int) -> dict[str, torch.Tensor]:
    metric = MeanAveragePrecision(class_metrics=True)
    preds, target = [], []
    for i in range(images):
        own, present = detections.images == i, truths.images == i
        found = {"boxes": detections.boxes, "scores": detections.scores, "labels": detections.labels}
        there = {"boxes": truths.boxes, "labels": truths.labels, "iscrowd": truths.ignore}
        preds.append({name: column[own] for name, column in found.items()})
        target.append({name: column[present] for name, column in there.items()})
    metric.update(preds, target)
    return metric.compute()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_the_mean_average_precision(random_rows: Draw, seed: int, tied: bool) -> None:
    detections, truths = random_rows(seed, 8, 3, tied)
    costs = error_costs(find_errors(detections, truths, 3), 3)
    figures = mean_ap(detections, truths, 8)
    assert costs.ap == pytest.approx(float(figures["map_50"]), abs=1e-6)
    assert figures["classes"].tolist() == [0, 1, 2]
    torch.testing.assert_close(costs.ap_per_class.float(), figures["map_50_per_class"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_slice_costs_as_if_there_were_no_other_images(random_rows: Draw, tied: bool) -> None:
    detections, truths = random_rows(2, 10, 3, tied)
    images = torch.arange(10) % 3 == 1
    found, present = images[detections.images], images[truths.images]
    alone = find_errors(DetectionRows(*(c[found] for c in detections)), TruthRows(*(c[present] for c in truths)), 3)
    table = find_errors(detections, truths, 3)
    for whole, part in zip(error_costs(table, 3, images), error_costs(alone, 3), strict=True):
        torch.testing.assert_close(torch.as_tensor(whole), torch.as_tensor(part), atol=1e-12, rtol=0)
    assert rank_confusions(table, 3, images) == rank_confusions(alone, 3)


def test_costs_by_hand() -> None:
    # Two objects of class 0, one of 1. The better detection of class 0 is on the object of 1; the other is right.
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    detections = DetectionRows(torch.tensor([0, 0]), boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    truths = TruthRows(
        images=torch.tensor([0, 0, 1]),
        boxes=torch.cat((boxes, boxes[:1])),
        labels=torch.tensor([1, 0, 0]),
        ignore=torch.zeros(3, dtype=torch.bool),
    )
    costs = error_costs(find_errors(detections, truths, 3), 3)
    half = 51 / 101  # recalls 0 to 0.5
    assert costs.ap_per_class.tolist() == pytest.approx([half / 2, 0, -1])
    assert costs.ap == pytest.approx(half / 4)
    by_class = costs.by_type_and_class
    assert by_class[ErrorType.CLASSIFICATION].tolist() == pytest.approx([half / 2, 1, 0])
    assert by_class[ErrorType.MISSED].tolist() == pytest.approx([0.5 - half / 2, 0, 0])
    assert costs.by_type.tolist() == pytest.approx([(half / 2 + 1) / 2, 0, 0, 0, 0, (0.5 - half / 2) / 2])
    assert costs.false_positives_per_class.tolist() == pytest.approx([half / 2, 0, 0])
    # Class 1 is left with neither object nor detection, so the mean is that of class 0 alone.
    assert costs.false_negatives_per_class.tolist() == pytest.approx([0.5 - half / 2, 0, 0])
    assert costs.false_negatives == pytest.approx(0.5 - half / 4)
    (pair,) = rank_confusions(find_errors(detections, truths, 3), 3)
    assert pair[:4] == (1, 0, 1, 1)
    assert pair.cost == pytest.approx((half / 2 + 1) / 2)


def one_pair(table: ErrorTable, truth_label: int, detection_label: int) -> ErrorTable:
    """The same with classification errors of one pair alone; all others are called background."""
    of_pair = (table.truths.labels[table.truth] == truth_label) & (table.detections.labels == detection_label)
    other = (table.error == ErrorType.CLASSIFICATION) & ~of_pair
    return table._replace(error=torch.where(other, ErrorType.BACKGROUND, table.error))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_a_pair_costs_what_its_errors_alone_cost(
    random_rows: Draw, monkeypatch: pytest.MonkeyPatch, tied: bool, limit: int
) -> None:
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", limit)
    table = find_errors(*random_rows(7, 12, 4, tied), 4)
    ranking = rank_confusions(table, 4)
    assert len(ranking) > 6
    assert [pair.cost for pair in ranking] == sorted((pair.cost for pair in ranking), reverse=True)
    assert sum(pair.errors for pair in ranking) == int((table.error == ErrorType.CLASSIFICATION).sum())
    for pair in ranking:
        alone = error_costs(one_pair(table, pair.truth_label, pair.detection_label), 4)
        assert pair.cost == pytest.approx(float(alone.by_type[ErrorType.CLASSIFICATION]), abs=1e-12)


def test_nothing_to_measure(random_rows: Draw) -> None:
    detections, truths = random_rows(0, 2, 3, False)
    none, nothing = DetectionRows(*(c[:0] for c in detections)), TruthRows(*(c[:0] for c in truths))
    assert error_costs(find_errors(detections, nothing, 3), 3).ap == -1
    costs = error_costs(find_errors(none, truths, 3), 3)
    assert costs.ap == 0
    assert costs.by_type.tolist() == [0] * 6
    assert rank_confusions(find_errors(none, nothing, 3), 3) == []


def test_a_slice_of_everything_costs_all_that_is_missing_and_one_of_nothing_nothing(random_rows: Draw) -> None:
    detections, truths = random_rows(2, 8, 3, False)
    table = find_errors(detections, truths, 3)
    every = torch.ones(len(detections.labels), dtype=torch.bool), torch.ones(len(truths.labels), dtype=torch.bool)
    assert cost_of_rows(table, 3, *every) == pytest.approx(1 - error_costs(table, 3).ap)
    assert cost_of_rows(table, 3, ~every[0], ~every[1]) == 0
    # Only misses, only false positives: as tidecv has the two.
    costs = error_costs(table, 3)
    assert cost_of_rows(table, 3, every[0], ~every[1]) == pytest.approx(costs.false_positives)
    assert cost_of_rows(table, 3, ~every[0], every[1]) == pytest.approx(costs.false_negatives)

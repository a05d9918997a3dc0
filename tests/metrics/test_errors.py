from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.errors import NO_ERROR, ErrorType, count_errors, find_errors
from detframe.metrics.rows import DetectionRows, TruthRows

Draw = Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]


def by_hand() -> tuple[DetectionRows, TruthRows]:
    """One image, two classes, one detection of each kind; truth 3 is missed, truth 4 a region."""
    boxes = [
        [0.0, 0, 10, 10],  # right
        [0, 0, 10, 9],  # duplicate of it
        [20, 0, 30, 4],  # badly placed, IoU 0.4
        [20, 0, 30, 3],  # so is this, behind the one before
        [40, 0, 50, 10],  # wrong class
        [0, 6, 10, 16],  # both: IoU 0.25 with an object of another class
        [70, 70, 80, 80],  # background
        [92, 92, 96, 96],  # in the region
    ]
    labels = [0, 0, 0, 0, 0, 1, 0, 0]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    detections = DetectionRows(
        torch.zeros(8, dtype=torch.int64), torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels)
    )
    truths = TruthRows(
        images=torch.zeros(5, dtype=torch.int64),
        boxes=torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 80, 9, 89], [90, 90, 99, 99]]),
        labels=torch.tensor([0, 0, 1, 1, 0]),
        ignore=torch.tensor([False, False, False, False, True]),
    )
    return detections, truths


def test_each_type_by_hand() -> None:
    table = find_errors(*by_hand(), 2)
    kinds = ErrorType
    assert table.error.tolist() == [
        NO_ERROR,
        kinds.DUPLICATE,
        kinds.LOCALISATION,
        kinds.LOCALISATION,
        kinds.CLASSIFICATION,
        kinds.BOTH,
        kinds.BACKGROUND,
        NO_ERROR,
    ]
    assert table.outcome.tolist() == [TRUE_POSITIVE, *[FALSE_POSITIVE] * 6, IGNORED]
    assert table.truth.tolist() == [0, 0, 1, 1, 2, 0, -1, 4]
    assert table.iou.tolist() == pytest.approx([1, 0.9, 0.4, 0.3, 1, 0.25, 0, 1])
    assert table.repairs.tolist() == [False, False, True, False, True, False, False, False]
    assert table.found_by.tolist() == [0, -1, -1, -1, -1]
    assert table.missed.tolist() == [False, False, False, True, False]
    assert count_errors(table, 2).tolist() == [[1, 0], [2, 0], [0, 1], [1, 0], [1, 0], [0, 1]]
    assert int(count_errors(table, 2, torch.tensor([False])).sum()) == 0


@pytest.mark.parametrize("tied", [False, True])
def test_a_slice_is_as_if_there_were_no_other_images(random_rows: Draw, tied: bool) -> None:
    detections, truths = random_rows(2, 10, 3, tied)
    images = torch.arange(10) % 3 == 1
    found, present = images[detections.images], images[truths.images]
    alone = find_errors(DetectionRows(*(c[found] for c in detections)), TruthRows(*(c[present] for c in truths)), 3)
    table = find_errors(detections, truths, 3)
    assert torch.equal(count_errors(table, 3, images), count_errors(alone, 3))
    assert torch.equal(count_errors(table, 3, images) + count_errors(table, 3, ~images), count_errors(table, 3))
    assert torch.equal(table.error[found], alone.error)
    assert torch.equal(table.missed[present], alone.missed)


def test_thresholds_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 < background_iou < foreground_iou <= 1 is needed, got 0\.6, 0\.5"):
        find_errors(*by_hand(), 2, 0.5, 0.6)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detframe.metrics.confusion import confusion_matrix, rows_of_cell
from detframe.metrics.rows import DetectionRows, TruthRows

Draw = Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]


def by_hand() -> tuple[DetectionRows, TruthRows]:
    """Two images, two classes."""
    detections = DetectionRows(
        images=torch.tensor([0, 0, 0, 0, 0, 1]),
        boxes=torch.tensor(
            [
                [0.0, 0, 10, 10],  # says 1 of an object of 0
                [0.0, 0, 10, 9],  # right, but the object is taken
                [50.0, 50, 60, 60],  # right
                [82.0, 82, 88, 88],  # in a region of another class
                [0.0, 80, 10, 90],  # of nothing
                [0.0, 0, 10, 10],  # where the other image has an object
            ]
        ),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
        labels=torch.tensor([1, 0, 1, 0, 1, 0]),
    )
    truths = TruthRows(
        images=torch.tensor([0, 0, 0, 1]),
        boxes=torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 100, 100], [40, 40, 50, 50]]),
        labels=torch.tensor([0, 1, 1, 0]),
        ignore=torch.tensor([False, False, True, False]),
    )
    return detections, truths


def test_cells_by_hand() -> None:
    detections, truths = by_hand()
    confusion = confusion_matrix(detections, truths, 2, 0.5, score_threshold=0.3)
    assert confusion.matrix.tolist() == [[0, 1, 1], [0, 1, 0], [2, 1, 0]]
    assert confusion.detection_cells.tolist() == [[0, 1], [2, 0], [1, 1], [-1, -1], [2, 1], [2, 0]]
    assert confusion.truth_cells.tolist() == [[0, 1], [1, 1], [-1, -1], [0, 2]]
    assert confusion.detection_truth.tolist() == [0, -1, 1, -1, -1, -1]
    assert confusion.truth_detection.tolist() == [0, 2, -1, -1]
    found, present = rows_of_cell(confusion, 0, 1)
    assert (found.tolist(), present.tolist()) == ([0], [0])
    found, present = rows_of_cell(confusion, 2, 0)
    assert (found.tolist(), present.tolist()) == ([1, 5], [])


def test_a_score_at_the_threshold_counts_and_classes_may_have_their_own() -> None:
    detections, truths = by_hand()
    # 0.7 in float32 is below 0.7 in float64.
    assert confusion_matrix(detections, truths, 2, 0.5, 0.7).matrix.tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 0]]
    limits = torch.tensor([0.8, 0.95])
    # Without the detection of class 1 the one of class 0 finds the object.
    confusion = confusion_matrix(detections, truths, 2, 0.5, limits)
    assert confusion.matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert confusion.truth_detection.tolist() == [1, -1, -1, -1]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_count_opens_its_rows(random_rows: Draw, seed: int, tied: bool) -> None:
    detections, truths = random_rows(seed, 8, 4, tied)
    confusion = confusion_matrix(detections, truths, 4, 0.5, 0.4)
    opened = 0
    for i in range(5):
        for j in range(5):
            found, present = rows_of_cell(confusion, i, j)
            count = int(confusion.matrix[i, j])
            assert len(found) == (0 if j == 4 else count)
            assert len(present) == (0 if i == 4 else count)
            assert torch.equal(detections.labels[found], torch.full_like(found, j))
            assert torch.equal(truths.labels[present], torch.full_like(present, i))
            if i < 4 and j < 4:  # the two sides are the same pairs
                assert torch.equal(confusion.detection_truth[found].sort().values, present)
                assert torch.equal(confusion.truth_detection[present].sort().values, found)
            opened += len(found) + len(present)
    aside = ((confusion.detection_cells < 0).sum() + (confusion.truth_cells < 0).sum()) // 2
    assert opened + int(aside) == len(detections.labels) + len(truths.labels)


def test_no_rows() -> None:
    detections, truths = by_hand()
    none, nothing = DetectionRows(*(c[:0] for c in detections)), TruthRows(*(c[:0] for c in truths))
    assert confusion_matrix(none, truths, 2).matrix.tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]
    assert confusion_matrix(detections, nothing, 2).matrix.tolist() == [[0, 0, 0], [0, 0, 0], [2, 3, 0]]
    assert int(confusion_matrix(none, nothing, 2).matrix.sum()) == 0


def test_a_label_without_a_class_is_named() -> None:
    detections, truths = by_hand()
    with pytest.raises(ValueError, match=r"detections: row 0 has label 1, 0\.\.0 is needed"):
        confusion_matrix(detections, truths, 1)


@pytest.mark.parametrize("seed", range(6))
def test_equals_hotcoco(random_rows: Draw, seed: int) -> None:
    # Without ignored truths, which in hotcoco set aside detections of their class only.
    hotcoco: Any = pytest.importorskip("hotcoco")
    detections, truths = random_rows(seed, 8, 3, False)
    truths = TruthRows(*(column[~truths.ignore] for column in truths))
    annotations = [
        {"id": row + 1, "image_id": image, "category_id": label, "bbox": _xywh(box), "area": 1.0, "iscrowd": 0}
        for row, (image, box, label, _) in enumerate(zip(*(c.tolist() for c in truths), strict=True))
    ]
    images = [{"id": i, "width": 200, "height": 200, "file_name": str(i)} for i in range(8)]
    categories = [{"id": i, "name": str(i)} for i in range(3)]
    coco = hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})
    results = [
        {"image_id": image, "category_id": label, "bbox": _xywh(box), "score": score}
        for image, box, score, label in zip(*(c.tolist() for c in detections), strict=True)
    ]
    evaluation = hotcoco.COCOeval(coco, coco.load_res(results), "bbox")
    theirs = evaluation.confusion_matrix(iou_thr=0.5, min_score=0.4, max_det=1000)["matrix"]
    assert confusion_matrix(detections, truths, 3, 0.5, 0.4).matrix.tolist() == theirs.tolist()


def _xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchvision.ops import box_iou

from detframe.matching import match, match_any_class
from detframe.metrics import rows
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.rows import (
    DetectionRows,
    TruthRows,
    check_rows,
    match_rows,
    match_rows_of_any_class,
    outcomes_of_rows,
    overlapping_rows,
    within_limit,
)
from detframe.structures import Detections, Targets

Draw = Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]


@pytest.mark.parametrize("limit", [1, 200, 2**20])
@pytest.mark.parametrize("matcher", [match, match_any_class])
def test_rows_match_as_each_image_does(
    random_rows: Draw, monkeypatch: pytest.MonkeyPatch, limit: int, matcher: Callable[..., object]
) -> None:
    monkeypatch.setattr(rows, "PAIRS_AT_ONCE", limit)
    detections, truths = random_rows(3, 9, 3, True)
    shuffled = torch.randperm(len(detections.labels), generator=torch.Generator().manual_seed(0))
    detections = DetectionRows(*(column[shuffled] for column in detections))
    by_row = (match_rows if matcher is match else match_rows_of_any_class)(detections, truths, 0.5)
    found = 0
    for image in range(9):
        own = (detections.images == image).nonzero().flatten()
        present = (truths.images == image).nonzero().flatten()
        boxes, scores, labels = (column[own][None] for column in detections[1:])
        found_here = Detections(boxes, scores, labels, torch.ones_like(labels, dtype=torch.bool))
        boxes, labels, ignore = (column[present][None] for column in truths[1:])
        truth_here = Targets(boxes, labels, ignore, torch.ones_like(ignore))
        matches = (match if matcher is match else match_any_class)(found_here, truth_here, [0.5])
        for k, row in enumerate(own.tolist()):
            target = int(matches.target[0, k, 0])
            assert int(by_row.truth[row]) == (int(present[target]) if target >= 0 else -1)
            assert float(by_row.iou[row]) == float(matches.iou[0, k, 0])
            assert bool(by_row.ignored[row]) == bool(matches.ignored[0, k, 0])
            found += target >= 0
        for n, row in enumerate(present.tolist()):
            slot = int(matches.detection[0, n, 0])
            assert int(by_row.detection[row]) == (int(own[slot]) if slot >= 0 else -1)
    assert found > 20


@pytest.mark.parametrize("limit", [1, 2**20])
def test_overlapping_rows_are_all_that_overlap(random_rows: Draw, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(rows, "PAIRS_AT_ONCE", limit)
    detections, truths = random_rows(5, 6, 3, False)
    pairs = overlapping_rows(detections, truths, 0.3)
    iou = box_iou(detections.boxes.double(), truths.boxes.double())
    near = (iou >= 0.3) & (detections.images[:, None] == truths.images) & ~truths.ignore
    counted = ~truths.ignore[pairs.truth]
    expected = near.nonzero()
    assert len(expected) > 20
    assert torch.equal(torch.stack((pairs.detection, pairs.truth), dim=1)[counted], expected)
    torch.testing.assert_close(pairs.overlap[counted], iou[near], atol=1e-12, rtol=0)


def test_nothing_matches_nothing(random_rows: Draw) -> None:
    detections, truths = random_rows(0, 2, 3, False)
    none, nothing = DetectionRows(*(c[:0] for c in detections)), TruthRows(*(c[:0] for c in truths))
    assert set(match_rows(detections, nothing, 0.5).truth.tolist()) == {-1}
    assert set(match_rows(none, truths, 0.5).detection.tolist()) == {-1}
    assert all(len(column) == 0 for column in match_rows(none, nothing, 0.5))
    assert len(overlapping_rows(none, truths, 0.1).overlap) == len(overlapping_rows(none, nothing, 0.1).overlap) == 0


def test_rows_that_cannot_be_are_named(random_rows: Draw) -> None:
    detections, truths = random_rows(0, 2, 3, False)
    check_rows(detections, truths, 3)
    labels = truths.labels.clone()
    labels[4] = 3
    with pytest.raises(ValueError, match=r"truths: row 4 has label 3, 0\.\.2 is needed"):
        check_rows(detections, truths._replace(labels=labels), 3)
    with pytest.raises(ValueError, match="detections: row 0 has image -1, from 0 is needed"):
        check_rows(detections._replace(images=detections.images - detections.images[0] - 1), truths, 3)
    with pytest.raises(ValueError, match=r"detections: the columns have lengths that differ: .*'scores': 1"):
        check_rows(detections._replace(scores=detections.scores[:1]), truths, 3)


def test_outcomes_at_many_ious_are_those_of_each(random_rows: Draw) -> None:
    detections, truths = random_rows(5, 9, 3, True)
    ious = [0.1, 0.5, 0.75]
    outcomes = outcomes_of_rows(detections, truths, ious)
    for t, iou in enumerate(ious):
        matches = match_rows(detections, truths, iou)
        assert outcomes[:, t].tolist() == [
            FALSE_POSITIVE if truth < 0 else IGNORED if ignored else TRUE_POSITIVE
            for truth, ignored in zip(matches.truth.tolist(), matches.ignored.tolist(), strict=True)
        ]
    assert len(outcomes.unique()) == 3


def test_the_limit_keeps_the_best_of_each_image_and_class(random_rows: Draw) -> None:
    detections, _ = random_rows(6, 9, 3, True)
    kept = within_limit(detections, 2)
    seen: dict[tuple[int, int], int] = {}
    for row in (-detections.scores).argsort(stable=True).tolist():
        key = int(detections.images[row]), int(detections.labels[row])
        seen[key] = seen.get(key, 0) + 1
        assert kept[row] == (seen[key] <= 2)
    assert not kept.all()

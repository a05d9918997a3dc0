import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detframe.matching import class_ranks, match, match_any_class, match_by_range
from detframe.structures import Detections, Targets, empty_targets

THRESHOLDS = [0.0, 0.3, 0.5, 0.75, 1.0]


def detections_of(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    """One image."""
    return Detections(
        torch.tensor([boxes]).view(1, -1, 4),
        torch.tensor([scores]),
        torch.tensor([labels], dtype=torch.int64),
        torch.ones(1, len(scores), dtype=torch.bool),
    )


def targets_of(boxes: list[list[float]], labels: list[int], ignore: list[bool]) -> Targets:
    """One image."""
    return Targets(
        torch.tensor([boxes]).view(1, -1, 4),
        torch.tensor([labels], dtype=torch.int64),
        torch.tensor([ignore]),
        torch.ones(1, len(labels), dtype=torch.bool),
    )


def random_batch(seed: int, batch: int, slots: int, objects: int) -> tuple[Detections, Targets, Tensor]:
    """Boxes on a coarse grid, so that overlaps and scores tie; unused slots anywhere, scores in any order."""
    rng = np.random.default_rng(seed)

    def boxes(*shape: int) -> Tensor:
        corners = rng.integers(0, 4, (*shape, 2)) * 5
        return torch.tensor(np.concatenate([corners, corners + rng.integers(0, 4, (*shape, 2)) * 5], -1)).float()

    detections = Detections(
        boxes(batch, slots),
        torch.tensor(rng.integers(0, 5, (batch, slots)) / 4).float(),
        torch.tensor(rng.integers(0, 2, (batch, slots))),
        torch.tensor(rng.random((batch, slots)) < 0.8),
    )
    targets = Targets(
        boxes(batch, objects),
        torch.tensor(rng.integers(0, 2, (batch, objects))),
        torch.tensor(rng.random((batch, objects)) < 0.2),
        torch.tensor(rng.random((batch, objects)) < 0.8),
    )
    return detections, targets, torch.tensor(rng.random((batch, objects, 2)) < 0.3)


def overlap_of(box: list[float], other: list[float], ignore: bool) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    own = (box[2] - box[0]) * (box[3] - box[1])
    whole = own if ignore else own + (other[2] - other[0]) * (other[3] - other[1]) - width * height
    return width * height / whole


def one_by_one(
    detections: Detections, targets: Targets, threshold: float, set_aside: Tensor
) -> tuple[list[list[int]], list[list[int]]]:
    """The same rules as loops, after COCOeval.evaluateImg: what each detection finds, and who finds each object."""
    batch, slots = detections.scores.shape
    objects = targets.labels.shape[1]
    found = [[-1] * slots for _ in range(batch)]
    finder = [[-1] * objects for _ in range(batch)]
    for b in range(batch):
        aside = (targets.ignore[b] | set_aside[b]).tolist()
        for k in sorted(range(slots), key=lambda slot: -float(detections.scores[b, slot])):
            best, least = -1, min(threshold, 1 - 1e-10)
            for n in sorted(range(objects), key=lambda row: aside[row]):
                possible = detections.valid[b, k] and targets.valid[b, n]
                if not possible or detections.labels[b, k] != targets.labels[b, n]:
                    continue
                if finder[b][n] >= 0 and not targets.ignore[b, n]:
                    continue
                if best >= 0 and not aside[best] and aside[n]:
                    break
                overlap = overlap_of(
                    detections.boxes[b, k].tolist(), targets.boxes[b, n].tolist(), bool(targets.ignore[b, n])
                )
                if overlap >= least:
                    best, least = n, overlap
            if best >= 0:
                found[b][k] = best
                if finder[b][best] < 0:
                    finder[b][best] = k
    return found, finder


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 3), st.integers(0, 12), st.integers(0, 8))
def test_equals_matching_one_by_one(seed: int, batch: int, slots: int, objects: int) -> None:
    detections, targets, set_aside = random_batch(seed, batch, slots, objects)
    matches = match_by_range(detections, targets, THRESHOLDS, set_aside)
    assert matches.target.shape == matches.iou.shape == matches.ignored.shape == (batch, slots, 2, len(THRESHOLDS))
    assert matches.detection.shape == (batch, objects, 2, len(THRESHOLDS))
    for a in range(2):
        for t, threshold in enumerate(THRESHOLDS):
            found, finder = one_by_one(detections, targets, threshold, set_aside[..., a])
            assert matches.target[:, :, a, t].tolist() == found
            assert matches.detection[:, :, a, t].tolist() == finder


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_match_is_one_range_with_nothing_set_aside(seed: int) -> None:
    detections, targets, set_aside = random_batch(seed, 2, 10, 6)
    matches = match(detections, targets, torch.tensor(THRESHOLDS, dtype=torch.float64))
    by_range = match_by_range(detections, targets, THRESHOLDS, torch.zeros_like(set_aside))
    for one, many in zip(matches, by_range, strict=True):
        assert torch.equal(one, many[:, :, 0])


def test_one_image_by_hand() -> None:
    # The second detection is nearer to the object, but comes later; the third lies in the ignore region.
    detections = detections_of(
        [[0, 0, 10, 8], [0, 0, 10, 10], [22, 22, 26, 26], [60, 60, 70, 70]], [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0]
    )
    targets = targets_of([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 0], [False, True])
    matches = match(detections, targets, [0.5, 0.9])
    assert matches.target[0].tolist() == [[0, -1], [-1, 0], [1, 1], [-1, -1]]
    assert matches.iou[0].tolist() == [[0.8, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert matches.ignored[0].tolist() == [[False, False], [False, False], [True, True], [False, False]]
    assert matches.detection[0].tolist() == [[0, 1], [2, 2]]


def test_an_ignore_region_yields_to_an_object_and_takes_many() -> None:
    box: list[float] = [0, 0, 10, 10]
    detections = detections_of([box] * 3, [0.9, 0.8, 0.7], [0] * 3)
    targets = targets_of([[-50, -50, 50, 50], [0, 0, 10, 14]], [0, 0], [True, False])
    matches = match(detections, targets, [0.5])
    assert matches.target.flatten().tolist() == [1, 0, 0]
    assert matches.detection.flatten().tolist() == [1, 0]  # the first of the two that lie in the region
    assert matches.iou.flatten().tolist() == pytest.approx([10 / 14, 1, 1])


def test_an_overlap_that_equals_the_threshold_counts() -> None:
    detections = detections_of([[0, 0, 10, 5], [20.1, 20.3, 30.7, 33.3]], [0.9, 0.8], [0, 0])
    targets = targets_of([[0, 0, 10, 10], [20.1, 20.3, 30.7, 33.3]], [0, 0], [False, False])
    assert match(detections, targets, [0.5, 1.0]).target[0].tolist() == [[0, -1], [1, 1]]


def test_any_class_matches_what_match_does_not() -> None:
    box: list[float] = [0, 0, 10, 10]
    detections, targets = detections_of([box], [0.9], [3]), targets_of([box], [5], [False])
    assert match(detections, targets, [0.5]).target.item() == -1
    assert match_any_class(detections, targets, [0.5]).target.item() == 0


def test_a_chain_of_contests_is_resolved_by_score() -> None:
    # Each detection prefers the object that the one before it takes.
    boxes = [[10.0 * i, 0.0, 10.0 * i + 30, 10.0] for i in range(30)]
    shifted = [[x1 - 4, y1, x2 - 4, y2] for x1, y1, x2, y2 in boxes]
    detections = detections_of(shifted, [1 - i / 100 for i in range(30)], [0] * 30)
    targets = targets_of(boxes, [0] * 30, [False] * 30)
    found, finder = one_by_one(detections, targets, 0.3, torch.zeros(1, 30, dtype=torch.bool))
    matches = match(detections, targets, [0.3])
    assert matches.target[..., 0].tolist() == found
    assert matches.detection[..., 0].tolist() == finder


def test_no_object_and_no_detection() -> None:
    detections = detections_of([[0, 0, 10, 10]], [0.9], [0])
    matches = match(detections, empty_targets(1), [0.5])
    assert matches.target.tolist() == [[[-1]]]
    assert matches.detection.shape == (1, 0, 1)
    nothing = Detections(*(tensor[:, :0] for tensor in detections))
    targets = targets_of([[0, 0, 10, 10]], [0], [False])
    assert match(nothing, targets, [0.5]).detection.tolist() == [[[-1]]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 12))
def test_class_ranks_count_those_before(seed: int, slots: int) -> None:
    detections, _, _ = random_batch(seed, 2, slots, 1)
    ranks = class_ranks(detections)
    for b in range(2):
        for label in (0, 1):
            used = [k for k in range(slots) if detections.valid[b, k] and detections.labels[b, k] == label]
            by_score = sorted(used, key=lambda slot: -float(detections.scores[b, slot]))
            assert [int(ranks[b, k]) for k in by_score] == list(range(len(used)))


def test_equal_scores_choose_by_slot() -> None:
    # The first slot that reaches the threshold takes the object, however well the others fit.
    detections = detections_of([[0, 0, 10, 6], [0, 0, 10, 10], [0, 0, 10, 9]], [0.5] * 3, [0] * 3)
    matches = match(detections, targets_of([[0, 0, 10, 10]], [0], [False]), [0.5, 0.8, 0.95])
    assert matches.detection.flatten().tolist() == [0, 1, 1]

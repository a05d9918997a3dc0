from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from detframe.metrics.label_evidence import SCENE, gather_evidence
from detframe.metrics.label_noise import LabelError, NoisyLabels, with_errors
from detframe.metrics.label_quality import candidate_rows, judge_labels, learn_label_errors, left_out, real_odds
from detframe.metrics.rows import DetectionRows, TruthRows

CLASSES = 3
SHARES = {
    LabelError.MISSING: 0.06,
    LabelError.WRONG_CLASS: 0.06,
    LabelError.BAD_BOX: 0.06,
    LabelError.SPURIOUS: 0.06,
    LabelError.DUPLICATE: 0.03,
}


def scenes(seed: int, images: int = 60) -> tuple[TruthRows, NDArray[np.int64]]:
    """Nine objects of three sizes in each image, on a grid, so that they do not overlap."""
    rng = np.random.default_rng(seed)
    sizes = np.tile(np.array([[300, 360]], dtype=np.int64), (images, 1))
    centres = np.stack(np.meshgrid([60, 180, 300], [50, 150, 250]), axis=-1).reshape(-1, 2)
    labels = rng.integers(0, CLASSES, (images, 9))
    middle = centres + rng.uniform(-8, 8, (images, 9, 2))
    half = (18 + 8 * labels)[..., None] * rng.uniform(0.85, 1.15, (images, 9, 2)) / 2
    boxes = np.concatenate([middle - half, middle + half], axis=-1).reshape(-1, 4)
    owners = torch.arange(images).repeat_interleave(9)
    flat = torch.from_numpy(labels.reshape(-1))
    return TruthRows(owners, torch.from_numpy(boxes).float(), flat, torch.zeros(len(flat), dtype=torch.bool)), sizes


def detector(truths: TruthRows, seed: int) -> DetectionRows:
    """Detections a little off, with scores about 0.85 and a second class now and then; and false alarms, less sure."""
    generator = torch.Generator().manual_seed(seed)
    count = len(truths.labels)
    sides = (truths.boxes[:, 2:] - truths.boxes[:, :2]).repeat(1, 2)
    boxes = truths.boxes + 0.04 * sides * torch.randn(count, 4, generator=generator)
    scores = (0.85 + 0.07 * torch.randn(count, generator=generator)).clamp(0.3, 0.99)
    alarms = torch.rand(count, generator=generator) < 0.1
    away = truths.boxes[alarms] + torch.tensor([0.0, 40.0, 0.0, 40.0])
    weak = 0.3 * torch.rand(int(alarms.sum()), generator=generator)
    found = DetectionRows(
        images=torch.cat((truths.images, truths.images[alarms])),
        boxes=torch.cat((boxes, away)),
        scores=torch.cat((scores, weak)),
        labels=torch.cat((truths.labels, truths.labels[alarms])),
    )
    order = found.images.argsort(stable=True)
    return DetectionRows(*(column[order] for column in found))


@pytest.fixture(scope="module")
def noisy() -> tuple[TruthRows, NoisyLabels, DetectionRows, NDArray[np.int64]]:
    truths, sizes = scenes(0)
    return truths, with_errors(truths, sizes, CLASSES, SHARES, np.random.default_rng(1)), detector(truths, 2), sizes


def test_errors_are_what_they_are_called(
    noisy: tuple[TruthRows, NoisyLabels, DetectionRows, NDArray[np.int64]],
) -> None:
    truths, labels, _, sizes = noisy
    rows = labels.truths
    for error, share in SHARES.items():
        count = len(labels.missing) if error is LabelError.MISSING else int((labels.errors == error).sum())
        assert count == pytest.approx(share * len(truths.labels), rel=0.6)
    kept = labels.origins >= 0
    overlap = torch.zeros(len(rows.labels))
    overlap[kept] = torch.diagonal(box_iou(rows.boxes[kept], truths.boxes[labels.origins[kept]]))
    same = torch.zeros(len(rows.labels), dtype=torch.bool)
    same[kept] = rows.labels[kept] == truths.labels[labels.origins[kept]]
    right, flipped, moved = (labels.errors == e for e in (LabelError.NONE, LabelError.WRONG_CLASS, LabelError.BAD_BOX))
    assert (overlap[right] == 1).all()
    assert same[right].all()
    assert (overlap[flipped] == 1).all()
    assert not same[flipped].any()
    assert ((overlap[moved] >= 0.3) & (overlap[moved] <= 0.7)).all()
    assert same[moved].all()
    for row in (labels.errors == LabelError.SPURIOUS).nonzero().flatten():
        own = truths.boxes[truths.images == rows.images[row]]
        assert box_iou(rows.boxes[row][None], own).max() <= 0.3
    for row in (labels.errors == LabelError.DUPLICATE).nonzero().flatten():
        own = (truths.images == rows.images[row]) & (truths.labels == rows.labels[row])
        assert box_iou(rows.boxes[row][None], truths.boxes[own]).max() >= 0.7
    assert sorted([*labels.origins[kept].tolist(), *labels.missing.tolist()]) == list(range(len(truths.labels)))
    inside = rows.boxes.numpy() <= np.tile(sizes[rows.images.numpy()][:, ::-1], 2)
    assert inside.all()


def test_ignore_boxes_keep_their_labels_and_one_class_has_no_wrong_one() -> None:
    truths, sizes = scenes(3, images=8)
    ignored = truths._replace(ignore=torch.ones_like(truths.ignore), labels=torch.zeros_like(truths.labels))
    untouched = with_errors(ignored, sizes, 1, SHARES, np.random.default_rng(0))
    assert not untouched.errors.any()
    assert torch.equal(untouched.truths.boxes, ignored.boxes)
    single = with_errors(ignored._replace(ignore=truths.ignore), sizes, 1, SHARES, np.random.default_rng(0))
    assert not (single.errors == LabelError.WRONG_CLASS).any()
    assert (single.errors == LabelError.BAD_BOX).any()


def test_each_kind_of_error_is_told(noisy: tuple[TruthRows, NoisyLabels, DetectionRows, NDArray[np.int64]]) -> None:
    truths, labels, detections, sizes = noisy
    model = learn_label_errors(detections, labels.truths, sizes, CLASSES, seed=0)
    quality = judge_labels(model, detections, labels.truths, sizes, CLASSES)
    assert torch.allclose(quality.labels.sum(dim=1), torch.ones(len(quality.labels)))
    best = quality.labels.argmax(dim=1)
    for error in SHARES:
        if error is not LabelError.MISSING:
            assert (best[labels.errors == error] == error).float().mean() >= 0.7, error
    assert (best[labels.errors == LabelError.NONE] == LabelError.NONE).float().mean() >= 0.98
    wanted = left_out(detections, truths, labels)
    assert len(labels.missing) == int(wanted.sum())
    assert (
        quality.missing[wanted].min() > quality.missing[candidate_rows(detections, quality.evidence) & ~wanted].mean()
    )
    assert float(quality.missing.sum()) == pytest.approx(len(labels.missing), rel=0.4)


def test_suggestions_point_at_the_detection_that_is_right(
    noisy: tuple[TruthRows, NoisyLabels, DetectionRows, NDArray[np.int64]],
) -> None:
    truths, labels, detections, sizes = noisy
    evidence = gather_evidence(detections, labels.truths, torch.from_numpy(sizes).float(), CLASSES)
    flipped = labels.errors == LabelError.WRONG_CLASS
    right = truths.labels[labels.origins[flipped]]
    assert torch.equal(detections.labels[evidence.other_class[flipped]], right)
    moved = labels.errors == LabelError.BAD_BOX
    theirs = detections.boxes[evidence.same_class[moved]]
    assert torch.diagonal(box_iou(theirs, truths.boxes[labels.origins[moved]])).min() > 0.6
    repeated = (labels.errors == LabelError.DUPLICATE).nonzero().flatten()
    assert (evidence.twin[repeated] >= 0).all()
    assert torch.equal(labels.truths.labels[evidence.twin[repeated]], labels.truths.labels[repeated])


def test_odds_of_errors_that_were_there() -> None:
    # Of labels that look alike 50 have an error put in, 100 had one, and 30 are right: p = 50 / 180. Elsewhere the
    # network meets only errors, where it can be no surer than 50 / 150.
    odds = real_odds(torch.tensor([50 / 180]), torch.tensor(50 / 150), torch.tensor(0.05))
    assert float(odds) == pytest.approx(100 / 30, rel=1e-4)
    # All that it finds was put in: what is left is the share before anything is known.
    assert float(real_odds(torch.tensor([0.5]), torch.tensor(1.0), torch.tensor(0.05))) == pytest.approx(0.2, rel=0.01)
    assert float(real_odds(torch.tensor([0.5]), torch.tensor(0.0), torch.tensor(0.05))) == 0


def test_too_little_to_learn_from_is_said(
    noisy: tuple[TruthRows, NoisyLabels, DetectionRows, NDArray[np.int64]],
) -> None:
    truths, _, detections, sizes = noisy
    none = DetectionRows(*(column[:0] for column in detections))
    with pytest.raises(ValueError, match=r"540 labels in 60 images.* are too few"):
        learn_label_errors(none, truths, sizes, CLASSES, seed=0)


def test_a_detection_knows_how_much_of_its_class_has_no_label() -> None:
    places = torch.tensor([[0.0, 0, 20, 20], [40, 0, 60, 20], [80, 0, 100, 20], [120, 0, 140, 20], [160, 0, 180, 20]])
    found = DetectionRows(
        images=torch.tensor([0, 0, 0, 0, 0, 1]),
        boxes=torch.cat((places, places[:1])),
        scores=torch.tensor([0.9, 0.8, 0.6, 0.5, 0.7, 0.4]),
        labels=torch.tensor([0, 0, 0, 0, 1, 0]),
    )
    one_label = TruthRows(torch.tensor([0]), places[:1], torch.tensor([0]), torch.tensor([False]))
    evidence = gather_evidence(found, one_label, torch.full((2, 2), 200.0), 2)
    assert evidence.unlabelled.tolist() == [False, True, True, True, True, True]
    without = evidence.detections[1:, SCENE].expm1()
    assert without.tolist() == pytest.approx([0.6 + 0.5, 0.8 + 0.5, 0.8 + 0.6, 0.0, 0.0], abs=1e-6)

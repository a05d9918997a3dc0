"""What detections say about labels: a row of figures for each label, and for each detection that has none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detframe.boxes import pairwise_iou
from detframe.metrics.rows import DetectionRows, PaddedRows, TruthRows, padded_images

NEAR = 0.5
"""IoU from which a detection and a label are about one object."""

LABEL_FIGURES = 26
"""Of each label; ``_label_figures`` says what they are."""

DETECTION_FIGURES = 11
"""Of each detection; ``_detection_figures`` says what they are."""

NEAREST_LABEL, SCENE = 2, DETECTION_FIGURES - 1
"""Which figures of a detection are its largest IoU with a label, and how much else of its class has none there."""

_SURE = 0.3  # score from which a detection shows where an object is, whatever its class
_EDGE = 2.0  # pixels from the image's edge to a box that is cut off by it
_MOST = 10.0  # deviations of a class's sizes beyond which a box is no stranger


class Evidence(NamedTuple):
    """Figures about labels and about detections, and the detections that a correction would be made of."""

    labels: Tensor  # [G, LABEL_FIGURES] float32
    detections: Tensor  # [D, DETECTION_FIGURES] float32
    unlabelled: Tensor  # [D] bool, near no label, and the surest of those that are near each other
    same_class: Tensor  # [G] int64, detection of the label's class that agrees best, -1 for none
    other_class: Tensor  # [G] int64, detection of another class that agrees best, -1 for none
    twin: Tensor  # [G] int64, the other label of its class that overlaps it most, -1 for none


class _Usual(NamedTuple):
    """What the boxes and scores of each class are like."""

    area: Tensor  # [C, 2] middle and spread of the logarithm of a class's areas
    shape: Tensor  # [C, 2] the same of the ratio of width to height
    score: Tensor  # [C] median of as many of the surest detections as there are labels


def gather_evidence(
    detections: DetectionRows, truths: TruthRows, sizes: Tensor, classes: int, scene: Tensor | None = None
) -> Evidence:
    """Compare every label with the detections and labels of its image.

    Args:
        detections: Of a detector that has not learned from these labels.
        truths: The labels in question.
        sizes: ``[I, 2]`` float32, height and width of each image.
        classes: ``C``.
        scene: ``[D]``, the figure :data:`SCENE` of other labels of these images; None takes that of these.
    """
    evidence = Evidence(
        labels=torch.zeros(len(truths.labels), LABEL_FIGURES),
        detections=torch.zeros(len(detections.labels), DETECTION_FIGURES),
        unlabelled=torch.zeros(len(detections.labels), dtype=torch.bool),
        same_class=torch.full_like(truths.labels, -1),
        other_class=torch.full_like(truths.labels, -1),
        twin=torch.full_like(truths.labels, -1),
    )
    usual = _usual(detections, truths, classes)
    for padded in padded_images(detections, truths):
        _compare(padded, sizes[padded.first_image : padded.first_image + len(padded.targets.boxes)], usual, evidence)
    evidence.detections[:, SCENE] = _scene(detections, evidence.unlabelled, classes) if scene is None else scene
    return evidence


def _compare(padded: PaddedRows, sizes: Tensor, usual: _Usual, evidence: Evidence) -> None:
    """Fill in the rows of some images."""
    detections, targets = padded.detections, padded.targets
    used, present = detections.valid, targets.valid
    detection_rows, truth_rows = padded.detection_rows[:, :-1][used], padded.truth_rows[:, :-1][present]
    overlap = pairwise_iou(detections.boxes, targets.boxes) * (used[:, :, None] & present[:, None])  # [B, K, N]
    limits = sizes.flip(1)[:, None]  # [B, 1, 2] width, height
    order = torch.arange(used.shape[1])
    score = detections.scores
    surer = (score[:, None] > score[:, :, None]) | ((score[:, None] == score[:, :, None]) & (order < order[:, None]))
    surer &= used[:, :, None] & used[:, None]
    with_surer = pairwise_iou(detections.boxes, detections.boxes).mul_(surer)  # [B, K, K]
    free = (_largest(overlap, 2) < NEAR) & used
    blocked = ((with_surer >= NEAR) & free[:, None]).any(dim=2)
    evidence.unlabelled[detection_rows] = (free & ~blocked)[used]
    figures = _detection_figures(padded, overlap, with_surer, limits, usual)
    evidence.detections[detection_rows] = figures[used]
    if not overlap.shape[2]:
        return
    twins = pairwise_iou(targets.boxes, targets.boxes) * (present[:, :, None] & present[:, None])  # [B, N, N]
    twins.diagonal(dim1=1, dim2=2).zero_()
    evidence.labels[truth_rows] = _label_figures(padded, overlap, twins, limits, usual)[present]
    own_twins = (twins * (targets.labels[:, :, None] == targets.labels[:, None])).max(dim=2)
    evidence.twin[truth_rows] = _rows(padded.truth_rows, own_twins.indices, own_twins.values)[present]
    if not overlap.shape[1]:
        return
    alike = detections.labels[:, :, None] == targets.labels[:, None]
    agreement = score[:, :, None] * overlap
    for rows, best in ((evidence.same_class, agreement * alike), (evidence.other_class, agreement * ~alike)):
        rows[truth_rows] = _rows(padded.detection_rows, best.max(dim=1).indices, best.amax(dim=1))[present]


def _label_figures(padded: PaddedRows, overlap: Tensor, twins: Tensor, limits: Tensor, usual: _Usual) -> Tensor:
    """``[B, N, LABEL_FIGURES]`` of overlaps ``[B, K, N]`` with detections and ``[B, N, N]`` with other labels.

    An agreement is a detection's score times its IoU with the label.
    """
    targets = padded.targets
    slot = torch.nn.functional.pad(overlap, (0, 0, 0, 1))  # one slot more, that of no detection
    scores = torch.nn.functional.pad(padded.detections.scores, (0, 1))
    boxes = torch.nn.functional.pad(padded.detections.boxes, (0, 0, 0, 1))
    labels = torch.nn.functional.pad(padded.detections.labels, (0, 1), value=-1)
    alike = labels[:, :, None] == targets.labels[:, None]
    agreement = scores[:, :, None] * slot
    of_class, of_others = agreement * alike, agreement * ~alike
    same, other = of_class.max(dim=1), of_others.max(dim=1)  # [B, N], slots of detections
    near = scores[:, :, None] * (slot >= NEAR)
    near_of_class, near_of_others = near * alike, near * ~alike
    best_fit = (slot * alike).amax(dim=2, keepdim=True)  # [B, K, 1]: the label that each detection fits best
    fitting = slot >= best_fit.clamp(min=1e-6)

    sides = _sides(targets.boxes)
    theirs = boxes.gather(1, same.indices[..., None].expand(-1, -1, 4))
    centres, others = ((b[..., :2] + b[..., 2:]) / 2 for b in (targets.boxes, theirs))
    found = same.values > 0
    away = torch.cat(((others - centres).abs() / sides, (_sides(theirs) / sides).log().abs()), dim=-1).clamp(max=2)
    away = torch.where(found[..., None], away, 1.0)

    area, shape = sides.prod(dim=-1).log(), (sides[..., 0] / sides[..., 1]).log()
    of_classes = ((area[..., None] - usual.area[:, 0]) / usual.area[:, 1]).abs()  # [B, N, C]
    own_area = of_classes.gather(2, targets.labels[..., None]).squeeze(2).clamp(max=_MOST)
    other_area = of_classes.scatter(2, targets.labels[..., None], torch.inf).amin(dim=2).clamp(max=_MOST)
    usual_shape = usual.shape[targets.labels]
    own_shape = ((shape - usual_shape[..., 0]) / usual_shape[..., 1]).abs().clamp(max=_MOST)

    def of_best(values: Tensor, best: Tensor) -> Tensor:
        return values.gather(1, best[:, None]).squeeze(1)

    return torch.stack(
        (
            same.values,
            other.values,
            (of_class * fitting).amax(dim=1),  # by those that fit no other label better
            scores.gather(1, same.indices) * found,
            of_best(slot, same.indices),
            scores.gather(1, other.indices) * (other.values > 0),
            of_best(slot, other.indices),
            near_of_class.amax(dim=1),  # the surest near it
            near_of_others.amax(dim=1),
            near_of_class.sum(dim=1).clamp(max=3),  # all that are near it together
            near_of_others.sum(dim=1).clamp(max=3),
            of_best(best_fit - slot, same.indices) * found,  # how much better another label fits that detection
            *away.unbind(dim=-1),  # place and size beside that detection's
            (twins * (targets.labels[:, :, None] == targets.labels[:, None])).amax(dim=2),
            twins.amax(dim=2),
            own_area,
            own_shape,
            other_area - own_area,
            _at_edge(targets.boxes, limits),
            same.values / usual.score[targets.labels],
            _crowd(targets.valid).expand(-1, overlap.shape[2]),
            torch.maximum(same.values, other.values),
            (slot * (scores[:, :, None] >= _SURE)).amax(dim=1),
        ),
        dim=-1,
    )


def _detection_figures(padded: PaddedRows, overlap: Tensor, surer: Tensor, limits: Tensor, usual: _Usual) -> Tensor:
    """``[B, K, DETECTION_FIGURES]`` of overlaps ``[B, K, N]`` with labels and ``[B, K, K]`` with surer detections."""
    found = padded.detections
    alike = found.labels[:, :, None] == padded.targets.labels[:, None]
    sides = _sides(found.boxes)
    area, shape = sides.prod(dim=-1).log(), (sides[..., 0] / sides[..., 1]).log()
    usual_area, usual_shape = usual.area[found.labels], usual.shape[found.labels]
    return torch.stack(
        (
            found.scores,
            found.scores.logit(eps=1e-4),
            _largest(overlap, 2),
            _largest(overlap * alike, 2),
            _largest(surer, 2),
            ((area - usual_area[..., 0]) / usual_area[..., 1]).abs().clamp(max=_MOST),
            ((shape - usual_shape[..., 0]) / usual_shape[..., 1]).abs().clamp(max=_MOST),
            _at_edge(found.boxes, limits),
            found.scores / usual.score[found.labels],
            _crowd(padded.targets.valid).expand(-1, overlap.shape[1]),
            torch.zeros_like(found.scores),  # SCENE, which is known when all images are
        ),
        dim=-1,
    )


def _scene(detections: DetectionRows, unlabelled: Tensor, classes: int) -> Tensor:
    """How much else of its class has no label in each detection's image, ``[D]``: logarithm of 1 + the sum of scores.

    What a detector takes for objects over and over is part of the scene, as holes are of a circuit board; labels are
    forgotten one at a time.
    """
    alone = detections.scores * unlabelled
    key = detections.images * classes + detections.labels
    total = alone.new_zeros(int(key.max()) + 1 if len(key) else 0).scatter_add_(0, key, alone)
    return (total[key] - alone).clamp(min=0).log1p()


def _usual(detections: DetectionRows, truths: TruthRows, classes: int) -> _Usual:
    sides = _sides(truths.boxes)
    area, shape = sides.prod(dim=1).log(), (sides[:, 0] / sides[:, 1]).log()
    middle = torch.tensor([0.0, 1.0]).repeat(classes, 1)
    usual = _Usual(middle, middle.clone(), torch.ones(classes))
    for label in range(classes):
        own = truths.labels == label
        scores = detections.scores[detections.labels == label]
        if own.any():
            usual.area[label], usual.shape[label] = _middle_and_spread(area[own]), _middle_and_spread(shape[own])
        if own.any() and len(scores):
            usual.score[label] = scores.topk(min(len(scores), int(own.sum()))).values.median().clamp(min=0.05)
    return usual


def _middle_and_spread(values: Tensor) -> Tensor:
    """Median, and the deviation by the median absolute one: wrong labels change neither much."""
    middle = values.median()
    return torch.stack((middle, 1.48 * (values - middle).abs().median().clamp(min=0.05)))


def _sides(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)


def _at_edge(boxes: Tensor, limits: Tensor) -> Tensor:
    return (torch.minimum(boxes[..., :2], limits - boxes[..., 2:]).amin(dim=-1) <= _EDGE).float()


def _crowd(valid: Tensor) -> Tensor:
    return valid.sum(dim=1, keepdim=True).float().log1p()


def _largest(values: Tensor, dim: int) -> Tensor:
    """Maximum, 0 of none."""
    return values.amax(dim=dim) if values.shape[dim] else values.sum(dim=dim)


def _rows(rows: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Rows at places ``[B, N]`` of a padded ``[B, n + 1]``; -1 where the value is none."""
    return torch.where(values > 0, rows.gather(1, places), -1)

"""How likely each label is wrong, and how: learned from errors put into the very labels that are in question.

A detector that has not learned from the labels says where it sees objects. What its detections look like beside a
wrong label, no rule knows: it depends on the detector and the data. So errors are put into the labels at random, a
small network learns to tell them by :mod:`detframe.metrics.label_evidence`, and then looks at the labels as they are.
Some of those are wrong from the beginning and stand among the examples of right ones. How many follows from how sure
the network is of the errors that were put in (Elkan and Noto, KDD 2008); what looks wrong by that is no example of a
right label any more when the network learns a second time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.metrics.error_model import FOLDS, ErrorModel, Examples, fit_error_model, predict_errors
from detframe.metrics.label_evidence import NEAR, SCENE, Evidence, gather_evidence
from detframe.metrics.label_noise import LabelError, NoisyLabels, with_errors
from detframe.metrics.rows import DetectionRows, TruthRows, match_rows_of_any_class

LEAST_SCORE = 0.05
"""A detection below is no sign of an object that has no label."""

SHARES = {
    LabelError.MISSING: 0.05,
    LabelError.WRONG_CLASS: 0.05,
    LabelError.BAD_BOX: 0.05,
    LabelError.SPURIOUS: 0.05,
    LabelError.DUPLICATE: 0.02,
}
"""Of the labels, put in to learn from."""

_PUT_IN = torch.tensor([SHARES.get(kind, 0.0) for kind in LabelError])

_ROUNDS, _ENOUGH = 8, 40_000  # times that errors are put in, as one time shows few of each kind; labels seen by then
_FEWEST = 8  # examples of each kind to learn from
_LEAST_SHARE = 0.01  # of labels that are wrong in each way, before anything is known
_DOUBTFUL = 0.5  # probability of an error from which a label is no example of a right one
_SMALL = 1e-4


class LabelModel(NamedTuple):
    """What was learned about errors of labels and about detections without one."""

    of_labels: ErrorModel  # classes of LabelError
    of_detections: ErrorModel  # 1: an object whose label was left out
    shares: Tensor  # [K] float32, of all labels, by LabelError: that are wrong, beside those put in
    folds: Tensor  # [I] int64, 0..FOLDS-1, of the images


class LabelQuality(NamedTuple):
    """Probabilities, and what they rest on."""

    labels: Tensor  # [G, K] float32, of each LabelError; rows sum to 1
    missing: Tensor  # [D] float32, that the detection is an object without a label; 0 where it has one
    evidence: Evidence


class _Lessons(NamedTuple):
    """Examples, and which label or detection each is of."""

    labels: Examples
    label_rows: Tensor  # [n] int64, -1 for a label that was added
    detections: Examples
    detection_rows: Tensor  # [m] int64


def learn_label_errors(
    detections: DetectionRows, truths: TruthRows, sizes: NDArray[np.int64], classes: int, seed: int
) -> LabelModel:
    """Put errors into labels and learn to find them.

    Args:
        detections: Of a detector that has not learned from these labels.
        truths: The labels in question.
        sizes: ``[I, 2]``, height and width of each image, in pixels.
        classes: ``C``.
        seed: Of the errors, the folds and the networks.

    Raises:
        ValueError: There are too few labels or detections to learn from.
    """
    rng = np.random.default_rng(seed)
    folds = torch.from_numpy(rng.permutation(np.arange(len(sizes)) % FOLDS))
    lessons = _lessons(detections, truths, sizes, classes, folds, rng)
    first = _fit(lessons.labels, lessons.detections, folds, seed)
    chances = predict_errors(first.of_labels, lessons.labels.figures, lessons.labels.folds)
    of_found = predict_errors(first.of_detections, lessons.detections.figures, lessons.detections.folds)[:, 1]
    sureness = torch.stack([_mean(chances[lessons.labels.targets == kind, kind]) for kind in LabelError])
    sureness[LabelError.MISSING] = _mean(of_found[lessons.detections.targets == 1])

    evidence = gather_evidence(detections, truths, torch.from_numpy(sizes).float(), classes)
    chances = predict_errors(first.of_labels, evidence.labels, folds[truths.images])
    asked = candidate_rows(detections, evidence)
    of_found = predict_errors(first.of_detections, evidence.detections[asked], folds[detections.images[asked]])[:, 1]
    labels = _probabilities(real_odds(chances, sureness, _PUT_IN), truths.ignore)
    odds = real_odds(of_found, sureness[LabelError.MISSING], _PUT_IN[LabelError.MISSING])
    missing = torch.zeros(len(detections.labels)).masked_scatter_(asked, odds / (1 + odds))

    shares = labels.mean(dim=0)
    shares[LabelError.MISSING] = missing.sum() / len(truths.labels)
    wrong = torch.nn.functional.pad(labels[:, LabelError.NONE] < 1 - _DOUBTFUL, (0, 1))  # the last is asked for by -1
    known = (lessons.labels.targets != LabelError.NONE) | ~wrong[lessons.label_rows]
    sure = (lessons.detections.targets == 1) | (missing[lessons.detection_rows] <= _DOUBTFUL)
    second = _fit(_some(lessons.labels, known), _some(lessons.detections, sure), folds, seed)
    return second._replace(shares=shares.clamp(min=_LEAST_SHARE))


def judge_labels(
    model: LabelModel, detections: DetectionRows, truths: TruthRows, sizes: NDArray[np.int64], classes: int
) -> LabelQuality:
    """Probabilities of all errors of all labels, by networks that have not seen their images.

    Args:
        model: Learned from these labels.
        detections: As there.
        truths: As there.
        sizes: ``[I, 2]``, height and width of each image, in pixels.
        classes: ``C``.
    """
    evidence = gather_evidence(detections, truths, torch.from_numpy(sizes).float(), classes)
    chances = predict_errors(model.of_labels, evidence.labels, model.folds[truths.images])
    ratio = model.shares / _PUT_IN.clamp(min=_SMALL)  # as many as are there, in the place of as many as were put in
    labels = _probabilities(ratio * chances / chances[:, :1].clamp(min=_SMALL), truths.ignore)
    asked = candidate_rows(detections, evidence)
    found = predict_errors(model.of_detections, evidence.detections[asked], model.folds[detections.images[asked]])
    odds = ratio[LabelError.MISSING] * found[:, 1] / found[:, 0].clamp(min=_SMALL)
    missing = torch.zeros(len(detections.labels)).masked_scatter_(asked, odds / (1 + odds))
    return LabelQuality(labels, missing, evidence)


def real_odds(chances: Tensor, sureness: Tensor, shares: Tensor) -> Tensor:
    """Odds of an error that was there, from the probability of one that was put in, where both stand among the right.

    Of ``a`` labels with an error put in and ``r`` that had one, which look the same, the network can be no surer than
    ``c = a / (a + r)``, which it is on average of those put in: that tells ``r``. With ``f`` and ``g`` how often wrong
    and right labels look like this one, it says ``p = a f / ((a + r) f + g)``; the odds sought are
    ``r f / g = r / a * p / (1 - p / c)``.

    Args:
        chances: ``p``, 0..1.
        sureness: ``c``, 0..1, that broadcasts; 0 for what was not learned.
        shares: ``a``, 0..1, of all labels.
    """
    highest = sureness.clamp(min=1e-3, max=1 - 1e-3)
    ratio = ((1 - highest) / highest).clamp(min=_LEAST_SHARE / shares.clamp(min=1e-6))
    odds = ratio * chances / (1 - chances / highest).clamp(min=1e-3)
    return torch.where(sureness > 0, odds, 0.0)


def candidate_rows(detections: DetectionRows, evidence: Evidence) -> Tensor:
    """Detections that may be objects without a label, ``[D]`` bool."""
    return evidence.unlabelled & (detections.scores >= LEAST_SCORE)


def left_out(detections: DetectionRows, truths: TruthRows, noisy: NoisyLabels) -> Tensor:
    """Detections of an object whose label was left out, ``[D]`` bool."""
    rows = TruthRows(*(column[noisy.missing] for column in truths))
    return match_rows_of_any_class(detections, rows, NEAR).truth >= 0


def _lessons(
    detections: DetectionRows,
    truths: TruthRows,
    sizes: NDArray[np.int64],
    classes: int,
    folds: Tensor,
    rng: np.random.Generator,
) -> _Lessons:
    """What labels and detections look like after errors were put in several times."""
    extents = torch.from_numpy(sizes).float()
    # Of the labels as they are: errors put in would make scenes of themselves.
    scene = gather_evidence(detections, truths, extents, classes).detections[:, SCENE]
    of_labels, label_rows, of_detections, detection_rows = [], [], [], []
    rounds = min(_ROUNDS, 1 + _ENOUGH // max(len(truths.labels), 1))
    for _ in range(rounds):
        noisy = with_errors(truths, sizes, classes, SHARES, rng)
        evidence = gather_evidence(detections, noisy.truths, extents, classes, scene)
        live = ~noisy.truths.ignore
        of_labels.append(Examples(evidence.labels[live], noisy.errors[live], folds[noisy.truths.images[live]]))
        label_rows.append(noisy.origins[live])
        asked = candidate_rows(detections, evidence)
        targets = left_out(detections, truths, noisy)[asked].long()
        of_detections.append(Examples(evidence.detections[asked], targets, folds[detections.images[asked]]))
        detection_rows.append(asked.nonzero().flatten())
    labels, found = (
        Examples(*(torch.cat(parts) for parts in zip(*examples, strict=True)))
        for examples in (of_labels, of_detections)
    )
    right, missing = int((labels.targets == LabelError.NONE).sum()), int(found.targets.sum())
    if min(right, missing) < _FEWEST or len(sizes) < FOLDS:
        raise ValueError(
            f"{len(truths.labels)} labels in {len(sizes)} images, and detections of {missing} objects whose label was "
            f"left out {rounds} times, are too few to learn from what wrong labels look like."
        )
    return _Lessons(labels, torch.cat(label_rows), found, torch.cat(detection_rows))


def _fit(labels: Examples, detections: Examples, folds: Tensor, seed: int) -> LabelModel:
    of_labels = fit_error_model(labels, len(LabelError), seed)
    return LabelModel(of_labels, fit_error_model(detections, 2, seed), torch.zeros(len(LabelError)), folds)


def _some(examples: Examples, wanted: Tensor) -> Examples:
    return Examples(*(column[wanted] for column in examples))


def _mean(values: Tensor) -> Tensor:
    """The mean, 0 of too few to believe it."""
    return values.mean() if len(values) >= _FEWEST else values.new_zeros(())


def _probabilities(odds: Tensor, ignore: Tensor) -> Tensor:
    """Of each LabelError, ``[G, K]``, from the odds to none; a label that is there is not missing."""
    odds[:, LabelError.MISSING] = 0
    odds[ignore] = 0
    odds[:, LabelError.NONE] = 1
    return odds / odds.sum(dim=1, keepdim=True)

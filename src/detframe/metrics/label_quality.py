"""How likely each label is wrong, and how: learned from errors put into the very labels that are in question.

A detector that has not learned from the labels says where it sees objects. What its detections look like beside a
wrong label, no rule knows: it depends on the detector and the data. So errors are put into the labels at random, a
small network learns to tell them by :mod:`detframe.metrics.label_evidence`, and then looks at the labels as they are.
Some of those are wrong from the beginning, and stand among the examples of right ones; how many follows from how sure
the network is of the errors that were put in (Elkan and Noto, KDD 2008).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.metrics.error_model import FOLDS, ErrorModel, Examples, fit_error_model, predict_errors
from detframe.metrics.label_evidence import NEAR, Evidence, gather_evidence
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

_ROUNDS, _ENOUGH = 8, 40_000  # times that errors are put in, as one time shows few of each kind; labels seen by then
_FEWEST = 8  # examples of each kind to learn from
_LEAST_SHARE = 0.01  # of labels that are wrong in each way before anything is known


class LabelModel(NamedTuple):
    """What was learned about errors of labels and about detections without one."""

    of_labels: ErrorModel  # classes of LabelError
    of_detections: ErrorModel  # 1: an object whose label was left out
    sureness: Tensor  # [K] float32, 0..1, by LabelError: mean probability of those put in; 0 where nothing was learned
    folds: Tensor  # [I] int64, 0..FOLDS-1, of the images


class LabelQuality(NamedTuple):
    """Probabilities, and what they rest on."""

    labels: Tensor  # [G, K] float32, of each LabelError; rows sum to 1
    missing: Tensor  # [D] float32, that the detection is an object without a label; 0 where it has one
    evidence: Evidence


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
    extents = torch.from_numpy(sizes).float()
    of_labels, of_detections = [], []
    rounds = min(_ROUNDS, 1 + _ENOUGH // max(len(truths.labels), 1))
    for _ in range(rounds):
        noisy = with_errors(truths, sizes, classes, SHARES, rng)
        evidence = gather_evidence(detections, noisy.truths, extents, classes)
        asked = ~noisy.truths.ignore
        of_labels.append(Examples(evidence.labels[asked], noisy.errors[asked], folds[noisy.truths.images[asked]]))
        asked = candidate_rows(detections, evidence)
        targets = left_out(detections, truths, noisy)[asked].long()
        of_detections.append(Examples(evidence.detections[asked], targets, folds[detections.images[asked]]))
    rows, candidates = (
        Examples(*(torch.cat(parts) for parts in zip(*e, strict=True))) for e in (of_labels, of_detections)
    )
    counts = rows.targets.bincount(minlength=len(LabelError))
    counts[LabelError.MISSING] = int(candidates.targets.sum())
    if counts[LabelError.NONE] < _FEWEST or counts[LabelError.MISSING] < _FEWEST or len(sizes) < FOLDS:
        raise ValueError(
            f"{len(truths.labels)} labels in {len(sizes)} images, and detections of {int(counts[LabelError.MISSING])} "
            f"objects whose label was left out {rounds} times, are too few to learn from what wrong labels look like."
        )
    labels = fit_error_model(rows, len(LabelError), seed)
    missing = fit_error_model(candidates, 2, seed)
    sureness = torch.zeros(len(LabelError))
    chances = predict_errors(labels, rows.figures, rows.folds)
    for kind in SHARES:
        if kind != LabelError.MISSING and counts[kind] >= _FEWEST:
            sureness[kind] = chances[rows.targets == kind, kind].mean()
    chances = predict_errors(missing, candidates.figures, candidates.folds)
    sureness[LabelError.MISSING] = chances[candidates.targets == 1, 1].mean()
    return LabelModel(labels, missing, sureness, folds)


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
    shares = torch.tensor([SHARES.get(kind, 0.0) for kind in LabelError])
    odds = real_odds(chances, model.sureness, shares)
    odds[:, [LabelError.NONE, LabelError.MISSING]] = 0
    odds[truths.ignore] = 0
    odds[:, LabelError.NONE] = 1
    missing = torch.zeros(len(detections.labels))
    asked = candidate_rows(detections, evidence)
    chances = predict_errors(model.of_detections, evidence.detections[asked], model.folds[detections.images[asked]])
    share, sureness = shares[LabelError.MISSING], model.sureness[LabelError.MISSING]
    of_missing = real_odds(chances[:, 1], sureness, share)
    missing[asked] = of_missing / (1 + of_missing)
    return LabelQuality(odds / odds.sum(dim=1, keepdim=True), missing, evidence)


def real_odds(chances: Tensor, sureness: Tensor, shares: Tensor) -> Tensor:
    """Odds of an error that was there, from the probability of one that was put in.

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

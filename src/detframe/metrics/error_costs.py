"""What each kind of mistake costs in average precision: AP with it fixed, less AP as it is.

The AP is COCO's at one IoU, the foreground threshold of the error table: precision at 101 recalls, mean over classes,
with no limit of detections per image but the table's own. It equals ``map_50`` of
:class:`detframe.metrics.mean_ap.MeanAveragePrecision` at 0.5. What a fix does is as in ``tidecv`` (Bolya et al., 2020,
section 2.3); costs equal its delta-AP, which is in percent, to the last digits, where

- ``recall_thresholds`` are its own, ``i / 100``; ten of COCO's 101, made by ``linspace``, are a last bit higher;
- every class has an object: as in COCO, a class without is not in the mean, while ``tidecv`` counts it with AP 0;
- detections of a class do not tie in score: those that tie keep their order here, while ``tidecv`` moves true positives
  behind the others whenever it fixes anything.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detframe.metrics.average_precision import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    precision_at_recall,
    read_precision,
    sort_for_accumulation,
    true_positives_needed,
)
from detframe.metrics.errors import ErrorTable, ErrorType

COCO_RECALLS: tuple[float, ...] = tuple(np.linspace(0, 1, 101).tolist())
"""Recalls at which COCO reads precision; numpy's, as torch's ``linspace`` rounds otherwise."""

PAIRS_AT_ONCE = 2**9
"""Pairs of classes that are looked at together: what bounds the memory."""


class ErrorCosts(NamedTuple):
    """AP, 0..1, and what fixing brings, in the same unit: 0.01 is one AP point.

    A class's cost is the change of its own AP, overall costs are changes of the mean. An overall cost is the mean of
    the classes' except where a fix leaves a class with neither object nor detection: the class then leaves the mean.
    """

    ap: float  # mean over classes with an object, -1 where there is none
    ap_per_class: Tensor  # [C] float64, -1 where the class has no object
    by_type: Tensor  # [6] float64, in the order of ErrorType
    by_type_and_class: Tensor  # [6, C] float64, 0 where the class has no object
    false_positives: float  # no false positive of any type, recall as it is
    false_positives_per_class: Tensor  # [C] float64
    false_negatives: float  # objects that no detection found are not asked for, precision as it is
    false_negatives_per_class: Tensor  # [C] float64


class ConfusionCost(NamedTuple):
    """What detections of one class on objects of another cost."""

    truth_label: int  # the class that the objects are of
    detection_label: int  # the class that the detections say
    errors: int  # classification errors of the pair
    found: int  # objects that would be found with it fixed; the rest of the errors have a better detection
    cost: float  # AP, 0..1, that the fix brings to the mean over classes


class _Scored(NamedTuple):
    """What AP is computed of."""

    labels: Tensor  # [D] int64
    scores: Tensor  # [D]
    outcome: Tensor  # [D] uint8
    positives: Tensor  # [C] int64, objects


class _Ranked(NamedTuple):
    """Detections of one class by score."""

    places: Tensor  # [n] int64 ascending, among those of all classes
    hits: Tensor  # [h] int64 ascending, of the true positives
    seen: Tensor  # [h] int64 ascending, detections of the class up to each of them


def error_costs(
    table: ErrorTable,
    class_count: int,
    images: Tensor | None = None,
    recall_thresholds: tuple[float, ...] = COCO_RECALLS,
) -> ErrorCosts:
    """AP and the AP that each type of error costs, overall and by class.

    Fixed are, one type at a time: for classification and localisation, the best detection about an object that nothing
    else found becomes a true positive (of the object's class), the others vanish; duplicates, background and both
    vanish; missed objects are not asked for. Costs of several types overlap and do not add up to 1 - AP.

    Args:
        table: Of :func:`detframe.metrics.errors.find_errors`.
        class_count: ``C``.
        images: ``[I]`` bool, a slice: only these images count, as if there were no others; None counts all.
        recall_thresholds: Where precision is read, 0..1.
    """
    scored = _scored(table, class_count, images)
    recalls = torch.tensor(recall_thresholds, dtype=torch.float64, device=scored.positives.device)
    present = scored.positives > 0
    ap = _average_precision(scored, recalls)
    mean = _mean(scored, ap, present, 0.0)

    fixes = [_fix_type(table, scored, kind, images) for kind in ErrorType]
    fixes.append(scored._replace(outcome=torch.where(scored.outcome == FALSE_POSITIVE, IGNORED, scored.outcome)))
    hits = scored.labels[scored.outcome == TRUE_POSITIVE]
    fixes.append(scored._replace(positives=torch.bincount(hits, minlength=class_count)))
    fixed = torch.stack([_average_precision(fix, recalls) for fix in fixes])  # [8, C]
    per_class = torch.where(present, fixed - ap, 0.0)
    overall = [_mean(fix, values, present, mean) - mean for fix, values in zip(fixes, fixed, strict=True)]
    return ErrorCosts(
        ap=mean if present.any() else -1.0,
        ap_per_class=torch.where(present, ap, -1.0),
        by_type=ap.new_tensor(overall[:6]),
        by_type_and_class=per_class[:6],
        false_positives=overall[6],
        false_positives_per_class=per_class[6],
        false_negatives=overall[7],
        false_negatives_per_class=per_class[7],
    )


def cost_of_rows(
    table: ErrorTable,
    class_count: int,
    detections: Tensor,
    truths: Tensor,
    recall_thresholds: tuple[float, ...] = COCO_RECALLS,
) -> float:
    """AP, 0..1, that the mean over classes would gain if these rows held no error: what a slice costs.

    False positives among the detections vanish, and objects among the truths that nothing found are not asked for.

    Args:
        table: Of :func:`detframe.metrics.errors.find_errors`.
        class_count: ``C``.
        detections: ``[D]`` bool, rows whose false positives are fixed.
        truths: ``[G]`` bool, rows whose misses are fixed.
        recall_thresholds: As for :func:`error_costs`.
    """
    scored = _scored(table, class_count, None)
    recalls = torch.tensor(recall_thresholds, dtype=torch.float64, device=scored.positives.device)
    present = scored.positives > 0
    wrong = detections & (scored.outcome == FALSE_POSITIVE)
    lost = truths & ~table.truths.ignore & (table.found_by < 0)
    fixed = scored._replace(
        outcome=torch.where(wrong, IGNORED, scored.outcome).to(torch.uint8),
        positives=scored.positives - torch.bincount(table.truths.labels[lost], minlength=class_count),
    )
    mean = _mean(scored, _average_precision(scored, recalls), present, 0.0)
    return _mean(fixed, _average_precision(fixed, recalls), present, mean) - mean


def rank_confusions(
    table: ErrorTable,
    class_count: int,
    images: Tensor | None = None,
    recall_thresholds: tuple[float, ...] = COCO_RECALLS,
) -> list[ConfusionCost]:
    """Pairs of classes by the AP that telling them apart would bring, the dearest first: what to collect images of.

    A pair's fix is that of its classification errors alone: one class loses false positives, the other gains true ones.
    The opposite direction is a pair of its own. Equal costs go by errors, then by labels.

    Args:
        table: Of :func:`detframe.metrics.errors.find_errors`.
        class_count: ``C``.
        images: As for :func:`error_costs`.
        recall_thresholds: As for :func:`error_costs`.
    """
    scored = _scored(table, class_count, images)
    recalls = torch.tensor(recall_thresholds, dtype=torch.float64, device=scored.positives.device)
    present = scored.positives > 0
    ap = _average_precision(scored, recalls)
    confused = (table.error == ErrorType.CLASSIFICATION) & (scored.outcome == FALSE_POSITIVE)
    rows = confused.nonzero().flatten()
    keys = table.truths.labels[table.truth[rows]] * class_count + scored.labels[rows]
    order = keys.argsort(stable=True)
    pairs, counts = torch.unique_consecutive(keys[order], return_counts=True)
    groups = list(torch.split(rows[order], counts.tolist()))
    gains = _gains_of_pairs(table, scored, pairs, groups, ap, recalls)
    costs = [
        ConfusionCost(
            truth_label=pair // class_count,
            detection_label=pair % class_count,
            errors=len(group),
            found=int(table.repairs[group].sum()),
            cost=gain / int(present.sum()),
        )
        for pair, group, gain in zip(pairs.tolist(), groups, gains, strict=True)
    ]
    return sorted(costs, key=lambda cost: (-cost.cost, -cost.errors, cost.truth_label, cost.detection_label))


def _gains_of_pairs(
    table: ErrorTable, scored: _Scored, pairs: Tensor, groups: list[Tensor], ap: Tensor, recalls: Tensor
) -> list[float]:
    """Sum over classes of the AP that fixing each pair brings.

    Only two classes change, and of their detections only how many come before each true positive, so a pair costs no
    more than its true positives: with 80 classes there are 6,320 pairs.

    Args:
        table: The errors.
        scored: What counts of it.
        pairs: ``[P]`` int64, object's label times ``C`` plus detection's.
        groups: Rows of the classification errors of each pair.
        ap: ``[C]``, as it is.
        recalls: ``[R]``.
    """
    order = (-scored.scores).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    classes = [_ranked(scored, place, label) for label in range(len(ap))]
    needed = true_positives_needed(scored.positives, recalls)
    gains: list[float] = []
    seen: list[Tensor] = []  # of the true positives of each of the two classes of each pair
    labels: list[int] = []
    for i, (pair, group) in enumerate(zip(pairs.tolist(), groups, strict=True)):
        loser, winner = classes[pair % len(ap)], classes[pair // len(ap)]
        lost = place[group].sort().values
        gained = place[group[table.repairs[group]]].sort().values
        added = torch.arange(1, len(gained) + 1, device=gained.device)
        seen += [
            loser.seen - torch.searchsorted(lost, loser.hits),
            torch.cat(
                (
                    winner.seen + torch.searchsorted(gained, winner.hits),
                    torch.searchsorted(winner.places, gained) + added,
                )
            )
            .sort()
            .values,
        ]
        labels += [pair % len(ap), pair // len(ap)]
        if len(labels) >= 2 * PAIRS_AT_ONCE or i + 1 == len(groups):
            which = torch.tensor(labels, device=ap.device)
            lengths = torch.tensor([len(hits) for hits in seen], device=ap.device)
            variant = torch.arange(len(labels), device=ap.device).repeat_interleave(lengths)
            precision, _, _ = read_precision(variant, torch.cat(seen), needed[which])
            fixed = torch.where(scored.positives[which] > 0, precision.mean(dim=1), 0.0)
            gains += (fixed - ap[which]).view(-1, 2).sum(dim=1).tolist()
            seen, labels = [], []
    return gains


def _ranked(scored: _Scored, place: Tensor, label: int) -> _Ranked:
    """The detections of a class that count; ``place`` ``[D]`` is theirs among all by score."""
    rows = ((scored.labels == label) & (scored.outcome != IGNORED)).nonzero().flatten()
    places, order = place[rows].sort()
    seen = (scored.outcome[rows[order]] == TRUE_POSITIVE).nonzero().flatten()
    return _Ranked(places, places[seen], seen + 1)


def _scored(table: ErrorTable, class_count: int, images: Tensor | None) -> _Scored:
    """What AP is computed of as things are; detections of images that do not count are set aside."""
    outcome, counted = table.outcome, ~table.truths.ignore
    if images is not None:
        outcome = torch.where(images[table.detections.images], outcome, IGNORED).to(torch.uint8)
        counted = counted & images[table.truths.images]
    positives = torch.bincount(table.truths.labels[counted], minlength=class_count)
    return _Scored(table.detections.labels, table.detections.scores, outcome, positives)


def _fix_type(table: ErrorTable, scored: _Scored, kind: ErrorType, images: Tensor | None) -> _Scored:
    """The same without errors of one type."""
    if kind == ErrorType.MISSED:
        missed = table.missed if images is None else table.missed & images[table.truths.images]
        gone = torch.bincount(table.truths.labels[missed], minlength=len(scored.positives))
        return scored._replace(positives=scored.positives - gone)
    wrong = (table.error == kind) & (scored.outcome != IGNORED)
    repaired = wrong & table.repairs
    outcome = torch.where(repaired, TRUE_POSITIVE, torch.where(wrong, IGNORED, scored.outcome)).to(torch.uint8)
    labels = scored.labels.clone()
    labels[repaired] = table.truths.labels[table.truth[repaired]]
    return scored._replace(labels=labels, outcome=outcome)


def _average_precision(scored: _Scored, recalls: Tensor) -> Tensor:
    """AP of each class, ``[C]`` float64, 0 where it has no object."""
    counted = scored.outcome != IGNORED
    labels, scores, outcome = scored.labels[counted], scored.scores[counted], scored.outcome[counted]
    order = sort_for_accumulation(labels, scores)
    labels = labels[order]
    bounds = torch.searchsorted(labels, torch.arange(len(scored.positives) + 1, device=labels.device))
    needed = true_positives_needed(scored.positives, recalls)
    precision, _, _ = precision_at_recall(outcome[order], labels, bounds, scores[order].double(), needed)  # [C, R]
    return torch.where(scored.positives > 0, precision.mean(dim=1), 0.0)


def _mean(scored: _Scored, ap: Tensor, present: Tensor, none: float) -> float:
    """Mean over the classes that had objects before any fix and still have objects or detections; else ``none``."""
    found = torch.bincount(scored.labels[scored.outcome != IGNORED], minlength=len(ap)) > 0
    counted = present & ((scored.positives > 0) | found)
    return float(ap[counted].mean()) if counted.any() else none

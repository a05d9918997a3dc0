"""Why a mistake happened: a faulty label, nothing like it in training, or a detector that cannot do better.

Of each mistake three shares are found, which add up to 1; the largest is the verdict and its value the confidence.

- *annotation issue*: ``right * agreement * p / (LIMIT + p)`` of the detection. ``right`` is the share, of the training
  detections of its class that it looks like, that were right; ``agreement`` that of the training objects of any class
  that it looks like, that are of its class: a detector that is trained to its end is right about all of its training.
  None where ``agreement * p / (LIMIT + p)`` of the label is more than that: training speaks for the label. And none
  where no detection is near: a label of nothing at all is a data gap here, as the places that it looks like in training
  are no objects.
- *data gap*: of what is left, ``LIMIT / (LIMIT + p)``.
- *model limitation*: the rest. There are such objects in training, the label looks right, and still.

``p`` is the harmonic mean of two conformal p-values (Wilson, PNAS 2019, combines dependent ones so): the shares of
training objects that lie as far apart from the others as the box in question does. One is of its class, and how far is
by the measure of those around it, as in the local outlier factor (Breunig et al., SIGMOD 2000), since a class may have
looks that differ little and looks that differ a lot. The other is of all classes by plain distance: what stands apart
from everything is strange, however scattered those around it are. At ``LIMIT``, 1 in 20, a gap is as likely as not.

Nothing is fitted to what is evaluated: all that is compared with comes from the training split.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from detframe.analysis.diagnosis import Diagnosis
from detframe.analysis.embeddings import read_embeddings
from detframe.analysis.evaluation import Evaluation
from detframe.analysis.mistakes import Mistake, mistakes
from detframe.analysis.prediction_table import rows_of_table
from detframe.data.annotations import DataError
from detframe.data.sources import read_splits
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.errors import ErrorType, find_errors
from detframe.metrics.neighbours import Neighbours, conformal_p_values, nearest_neighbours

LIMIT = 0.05
"""Of the p-value: where a data gap is as likely as not."""

SURE = 0.5
"""Least confidence of a verdict; below, the evidence cannot tell."""

LIKE, AROUND, JUDGED, OF_ANY, SHOWN = 3, 20, 10, 5, 3
"""Objects that a distance goes to and that it is measured by; training detections that are asked how they ended, and
objects that are asked of which class they are; neighbours shown.

To the third nearest, because one stray instance in training, or two, are a gap still. By the usual distance of 20, as
that of three is mostly chance."""

_MOST = 10_000  # training objects of a class that are compared with, spread evenly, and of all; more say nothing new
_NEAR = 0.1  # IoU from which a detection may be meant for an object, as in TIDE


class Verdict(Enum):
    """Why a mistake happened."""

    ANNOTATION = "annotation issue"
    GAP = "data gap"
    LIMITATION = "model limitation"
    UNKNOWN = "cannot tell"


class Judgement(NamedTuple):
    """The verdict on one mistake, and what it rests on."""

    verdict: Verdict
    confidence: float  # 0..1, the largest of the three shares
    suspicion: float  # 0..1, share of an annotation issue
    typicality: float  # 0..1, p-value of the distances to the training objects, of the class and of all
    alike: int  # training objects of the class that are no further away than those are from each other
    right: float  # 0..1, share of the training detections like the one in question that were right; NaN for none
    agreement: float  # 0..1, share of the training objects like that one that are of the class it says; NaN for none
    nearest: tuple[int, ...]  # rows of the training table, the nearest first


class Training(NamedTuple):
    """What the training split looks like to the backbone."""

    table: pa.Table  # of prediction_table.SCHEMA
    objects: Tensor  # [G, D] unit vectors of its live objects
    object_labels: Tensor  # [G] int64
    object_rows: Tensor  # [G] int64, rows of the table
    spacing: Tensor  # [G] distance to the LIKE-th nearest of the class in another image
    apartness: Tensor  # [G] the same, of that of those around it
    of_any: Tensor  # [A] int64, places of objects that stand for all classes
    loneliness: Tensor  # [A] their distance to the LIKE-th nearest of them in another image
    detections: Tensor  # [D, D'] unit vectors of its detections
    detection_labels: Tensor  # [D] int64
    detection_right: Tensor  # [D] float, 1 for those that found an object


class Verdicts(NamedTuple):
    """Why the mistakes of a run happened."""

    judgements: dict[Mistake, Judgement]  # of those that have a vector
    training: Training
    training_images: Path | None  # the folder that its file names are relative to; None where it is not known


def judge_run(evaluation: Evaluation, diagnosis: Diagnosis, data: Path) -> Verdicts | None:
    """Verdicts on all mistakes of a run; None where it has no embeddings, of the evaluated split or of training.

    Args:
        evaluation: Of the run, with its embeddings beside its predictions.
        diagnosis: Of the evaluation.
        data: The data set with its training split, or the run's configuration.

    Raises:
        DataError: A file of embeddings is none.
    """
    predictions = Path(evaluation.source)
    own = predictions.with_name(predictions.name.replace("_predictions", "_embeddings"))
    others = predictions.with_name("train_embeddings.parquet")
    if own == predictions or not own.is_file() or not others.is_file():
        return None
    training = read_training(others, diagnosis.evidence.thresholds)
    every = mistakes(diagnosis)
    judged = judge(diagnosis, every, vectors_of_rows(evaluation, own), training)
    known = {mistake: judgement for mistake, judgement in zip(every, judged, strict=True) if judgement is not None}
    return Verdicts(known, training, _training_images(data))


def count_verdicts(verdicts: Verdicts) -> dict[str, int]:
    """How many mistakes have each verdict."""
    said = [judgement.verdict for judgement in verdicts.judgements.values()]
    return {verdict.value: said.count(verdict) for verdict in Verdict}


def _training_images(data: Path) -> Path | None:
    try:
        readings = read_splits(data)
    except DataError:
        return None
    return readings["train"].index.image_root if "train" in readings else None


def read_training(path: Path, thresholds: NDArray[np.float64]) -> Training:
    """The training split from a file of :class:`~detframe.analysis.embeddings.EmbeddingWriter`.

    Raises:
        DataError: It is no such file.
    """
    table, array = read_embeddings(path)
    vectors = torch.from_numpy(array)
    rows = rows_of_table(table)
    classes = len(thresholds)
    errors = find_errors(rows.detections, rows.truths, classes)
    limits = torch.from_numpy(thresholds)[rows.detections.labels]
    counted = (errors.outcome != IGNORED) & (rows.detections.scores.double() >= limits)
    live = _some_of_each(rows.truths.labels, ~rows.truths.ignore, _MOST)
    objects, labels, images = vectors[rows.truth_rows[live]], rows.truths.labels[live], rows.truths.images[live]
    spacing, apartness = _apart(objects, labels, images)
    of_any = _some_of_each(labels, torch.ones_like(labels, dtype=torch.bool), _MOST // max(len(labels.unique()), 1))
    everything = objects[of_any]
    lonely = nearest_neighbours(everything, everything, LIKE, images[of_any], images[of_any]).distances[:, -1]
    detections = vectors[rows.detection_rows]
    return Training(
        table=table,
        objects=objects,
        object_labels=labels,
        object_rows=rows.truth_rows[live],
        spacing=spacing,
        apartness=apartness,
        of_any=of_any,
        loneliness=lonely,
        detections=detections[counted],
        detection_labels=rows.detections.labels[counted],
        detection_right=(errors.outcome[counted] == TRUE_POSITIVE).float(),
    )


def vectors_of_rows(evaluation: Evaluation, path: Path) -> Tensor:
    """Vectors of the evaluation's table, ``[rows, D]``; NaN where a row has none, as of detections of a low score.

    Raises:
        DataError: The file is none of embeddings.
    """
    table, vectors = read_embeddings(path)
    places = {key: i for i, key in enumerate(_keys(table))}
    found = np.array([places.get(key, -1) for key in _keys(evaluation.table)], dtype=np.int64)
    known = np.concatenate([vectors, np.full((1, vectors.shape[1]), np.nan, dtype=np.float32)])
    return torch.from_numpy(known[found])


def judge(
    diagnosis: Diagnosis, found: Sequence[Mistake], vectors: Tensor, training: Training
) -> list[Judgement | None]:
    """The verdict on each mistake; None where it has no vector.

    Args:
        diagnosis: Its operating errors are what the mistakes are of.
        found: Of :func:`~detframe.analysis.mistakes.mistakes`.
        vectors: Of :func:`vectors_of_rows`.
        training: What to compare with.
    """
    errors = diagnosis.evidence.operating.errors
    wrong = (errors.outcome == FALSE_POSITIVE).nonzero().flatten()
    partners = [_partner(diagnosis, mistake, wrong) for mistake in found]
    detection_rows = diagnosis.rows.detection_rows[diagnosis.evidence.operating.rows]
    objects = [mistake.truth >= 0 for mistake in found]
    own = torch.tensor(
        [
            int(diagnosis.rows.truth_rows[mistake.truth] if known else detection_rows[mistake.detection])
            for mistake, known in zip(found, objects, strict=True)
        ],
        dtype=torch.int64,
    )
    labels = torch.tensor(
        [
            int(errors.truths.labels[mistake.truth] if known else errors.detections.labels[mistake.detection])
            for mistake, known in zip(found, objects, strict=True)
        ],
        dtype=torch.int64,
    )
    beside = torch.tensor(partners, dtype=torch.int64)
    known = ~vectors[own].isnan().any(dim=1)
    place = _among_objects(vectors[own], labels, training)
    right = torch.full((len(found),), torch.nan, dtype=torch.float64)
    agreement = right.clone()
    suspicion = torch.zeros_like(right)  # of an object that no detection is near, nothing speaks against the label
    with_detection = beside >= 0
    rows = detection_rows[beside[with_detection]]
    detected = errors.detections.labels[beside[with_detection]]
    right[with_detection] = _right(vectors[rows], detected, training)
    of_detection = _among_objects(vectors[rows], detected, training)
    agreement[with_detection] = of_detection.agreement
    suspicion[with_detection] = right[with_detection] * _support(of_detection)
    support = torch.where(torch.tensor(objects, dtype=torch.bool), _support(place), 0.0)
    doubled = torch.tensor([m.kind == ErrorType.DUPLICATE for m in found], dtype=torch.bool)
    suspicion[doubled | (support > suspicion)] = 0.0  # of a duplicate, the label is what made the other one right
    suspicion = suspicion.nan_to_num(0.0)
    gap = (1 - suspicion) * LIMIT / (LIMIT + place.typicality)
    shares = torch.stack((suspicion, gap, 1 - suspicion - gap), dim=1)
    confidence, best = shares.max(dim=1)
    names = (Verdict.ANNOTATION, Verdict.GAP, Verdict.LIMITATION)
    return [
        Judgement(
            verdict=names[int(best[i])] if confidence[i] >= SURE else Verdict.UNKNOWN,
            confidence=float(confidence[i]),
            suspicion=float(suspicion[i]),
            typicality=float(place.typicality[i]),
            alike=int(place.alike[i]),
            right=float(right[i]),
            agreement=float(agreement[i]),
            nearest=tuple(int(training.object_rows[row]) for row in place.nearest[i].tolist() if row >= 0),
        )
        if known[i]
        else None
        for i in range(len(found))
    ]


def _keys(table: pa.Table) -> list[tuple[str, int, int]]:
    """What identifies a row: a detection's slot, a truth's annotation."""
    kinds, images = table["kind"].to_pylist(), table["image_id"].to_pylist()
    slots, annotations = table["slot"].to_pylist(), table["annotation_id"].to_pylist()
    return [
        (kind, image, slot if kind == "detection" else annotation)
        for kind, image, slot, annotation in zip(kinds, images, slots, annotations, strict=True)
    ]


def _some_of_each(labels: Tensor, wanted: Tensor, most: int) -> Tensor:
    """Places of the wanted objects, of each class at most so many, spread evenly, in order."""
    chosen = []
    for label in labels.unique():
        places = (wanted & (labels == label)).nonzero().flatten()
        chosen.append(places[torch.linspace(0, max(len(places) - 1, 0), min(len(places), most)).long()])
    return torch.cat([*chosen, torch.empty(0, dtype=torch.int64)]).sort().values


def _apart(objects: Tensor, labels: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Spacing and apartness of training objects, ``[G]`` each; what an image holds itself is not compared with."""
    spacing, apartness = torch.full((2, len(objects)), torch.inf)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        found = nearest_neighbours(objects[own], objects[own], AROUND, images[own], images[own])
        spacing[own] = found.distances[:, LIKE - 1]
        apartness[own] = _of_nearest(found, spacing[own])
    return spacing, apartness


def _of_nearest(found: Neighbours, spacing: Tensor) -> Tensor:
    """Distance to the LIKE-th nearest, of the mean spacing of those around; infinite where there are too few."""
    distance = found.distances[:, LIKE - 1]
    at = torch.nn.functional.pad(spacing, (0, 1), value=torch.nan)  # where there is none: -1
    usual = at[found.rows].nanmean(dim=1).clamp(min=1e-6)
    return torch.where(distance.isinf(), torch.inf, distance / usual)


def _partner(diagnosis: Diagnosis, mistake: Mistake, wrong: Tensor) -> int:
    """Place of the detection that is, or may have been meant for, what a mistake is about; -1 for none."""
    if mistake.detection >= 0:
        return mistake.detection
    errors = diagnosis.evidence.operating.errors
    near = wrong[errors.detections.images[wrong] == mistake.image]
    if not len(near):
        return -1
    overlap = box_iou(errors.truths.boxes[mistake.truth][None], errors.detections.boxes[near])[0]
    best = int(overlap.argmax())
    return int(near[best]) if overlap[best] >= _NEAR else -1


class _Place(NamedTuple):
    """Where boxes lie among the training objects."""

    typicality: Tensor  # [M] p-values, as of Judgement
    alike: Tensor  # [M] int64, as of Judgement
    agreement: Tensor  # [M] 0..1, share of the OF_ANY most alike, of any class, that are of the box's class
    nearest: Tensor  # [M, SHOWN] int64, places of the most alike of the class, -1 for none


def _among_objects(vectors: Tensor, labels: Tensor, training: Training) -> _Place:
    typicality = torch.zeros(len(vectors), dtype=torch.float64)
    alike = torch.zeros(len(vectors), dtype=torch.int64)
    nearest = torch.full((len(vectors), SHOWN), -1)
    for label in labels.unique().tolist():
        asked = (labels == label).nonzero().flatten()
        of_class = (training.object_labels == label).nonzero().flatten()
        found = nearest_neighbours(vectors[asked], training.objects[of_class], AROUND)
        spacing = training.spacing[of_class]
        if len(of_class):
            apart = _of_nearest(found, spacing)
            p_values = conformal_p_values(apart, training.apartness[of_class])
            typicality[asked] = torch.where(apart.isinf(), 0.0, p_values)  # of a class of too few
            radius = spacing[spacing.isfinite()].quantile(1 - LIMIT) if spacing.isfinite().any() else 0.0
            alike[asked] = (1 - vectors[asked] @ training.objects[of_class].T <= radius).sum(dim=1)
            nearest[asked] = torch.where(found.rows >= 0, of_class[found.rows.clamp(min=0)], -1)[:, :SHOWN]
    found = nearest_neighbours(vectors, training.objects[training.of_any], max(LIKE, OF_ANY))
    of_all = conformal_p_values(found.distances[:, LIKE - 1], training.loneliness)
    classes = torch.nn.functional.pad(training.object_labels[training.of_any], (0, 1), value=-1)  # at -1
    agreement = (classes[found.rows[:, :OF_ANY]] == labels[:, None]).double().mean(dim=1)
    return _Place(2 * typicality * of_all / (typicality + of_all), alike, agreement, nearest)


def _right(vectors: Tensor, labels: Tensor, training: Training) -> Tensor:
    """Of the training detections of the class that are most alike, the share that were right, ``[M]``; NaN for none."""
    share = torch.full((len(vectors),), torch.nan, dtype=torch.float64)
    for label in labels.unique().tolist():
        asked = labels == label
        of_class = training.detection_labels == label
        found = nearest_neighbours(vectors[asked], training.detections[of_class], JUDGED).rows
        ended = torch.nn.functional.pad(training.detection_right[of_class], (0, 1), value=torch.nan)  # at -1
        share[asked] = ended[found].nanmean(dim=1).double()
    return share


def _support(place: _Place) -> Tensor:
    """How much training speaks for each box being of its class, ``[M]`` 0..1."""
    return place.agreement * place.typicality / (place.typicality + LIMIT)

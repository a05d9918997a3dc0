"""What a detector fails at, by its own evaluation, and how far each place of a pool is a case of it.

A failure mode has a cost in AP, 0..1, as the diagnosis prices it: of a class what it lacks to an AP of 1; of two
classes what taking one for the other costs; of a slice, where it is surely worse than the rest, its mistakes; of gaps
in the training data the share of the mistakes that the verdicts put down to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.diagnosis import Diagnosis, SliceResult, diagnose_rows, parse_aim
from detframe.analysis.embeddings import ImageEmbeddings, read_image_embeddings
from detframe.analysis.evaluation import Evaluation, read_run
from detframe.analysis.mistakes import mistakes, row_of_mistake
from detframe.analysis.pool import Pool
from detframe.analysis.slicing import image_properties, metadata_columns, slices
from detframe.analysis.verdicts import LIKE, Verdict, Verdicts, judge_run, vectors_of_rows
from detframe.data.annotations import DataError
from detframe.metrics.acquisition import class_difficulty
from detframe.metrics.neighbours import nearest_neighbours
from detframe.metrics.rows import DetectionRows

PAIRS = 10
"""Confused pairs that count at most, the dearest."""

_OF_PIXELS = ("brightness", "blur", "noise")  # properties that the images have to be read for


class Findings(NamedTuple):
    """What a run says about its detector."""

    folder: Path
    evaluation: Evaluation
    diagnosis: Diagnosis
    of_images: Mapping[str, NDArray[Any]]  # properties of the evaluated images, as the slices have them
    verdicts: Verdicts | None
    known_images: dict[str, ImageEmbeddings]  # by split: of training, and of what was evaluated
    checkpoint_hash: str  # "" where it is not known


class FailureMode(NamedTuple):
    """One thing that the detector fails at, among the ``P`` places of a pool."""

    kind: str  # "class", "confusion", "slice" or "data gap"
    name: str  # in words
    cost: float  # AP, 0..1, of the mean over classes
    degrees: Tensor  # [P] 0..1, how far each place is a case of it


def read_findings(run: Path, data: Path | None, aim: str, measured: int, seed: int) -> Findings:
    """Diagnose a run as `detframe diagnose` does.

    Args:
        run: Its folder.
        data: Where its images are; None looks in its configuration.
        aim: Of the operating thresholds.
        measured: Images that are read for their brightness, blur and noise.
        seed: Of the bootstrap.

    Raises:
        DataError: It holds no table of predictions, or what it holds does not go together.
        ValueError: The aim is none.
    """
    evaluation = read_run(run, data)
    of_images = image_properties(evaluation, measured)
    diagnosis = diagnose_rows(evaluation, parse_aim(aim), [], of_images, 200, seed)
    verdicts = judge_run(evaluation, diagnosis, data or run / "config.yaml")
    stage = Path(evaluation.source).name.removesuffix("_predictions.parquet")
    known: dict[str, ImageEmbeddings] = {}
    hashes: set[str] = set()
    for split in ("train", stage):
        path = run / f"{split}_image_embeddings.parquet"
        if path.is_file():
            known[split] = read_image_embeddings(path)
            hashes.add(known[split].checkpoint_hash)
    if len(hashes) > 1:
        raise DataError(f"{run}: its embeddings are of several checkpoints. Run `detframe test` again.")
    return Findings(run, evaluation, diagnosis, of_images, verdicts, known, next(iter(hashes), ""))


def failure_modes(findings: Findings, pool: Pool, leads: Tensor, shares: Tensor, expected: Tensor) -> list[FailureMode]:
    """All failure modes, the dearest first, with how far each place of the pool is a case of each.

    Args:
        findings: Of the run.
        pool: The pool.
        leads: ``[P]`` the detection that stands for each place.
        shares: ``[P, C]`` what each place may be.
        expected: ``[I]`` objects that each image of the pool is expected to hold.
    """
    sums = shares.sum(dim=1, keepdim=True).clamp(min=1e-9)
    found = [
        *_classes(findings, shares / sums),
        *_confusions(findings, shares / sums),
        *_slices(findings, pool, leads, expected),
        *_gaps(findings, pool, leads),
    ]
    return sorted((mode for mode in found if mode.cost > 0), key=lambda mode: -mode.cost)


def _classes(findings: Findings, parts: Tensor) -> Iterator[FailureMode]:
    ap = np.array([row["ap_50"] for row in findings.diagnosis.metrics["per_class"].values()], dtype=np.float64)
    objects = findings.diagnosis.evidence.positives
    difficulty = class_difficulty(ap, objects)
    for label, name in enumerate(findings.evaluation.class_names):
        several = f"{objects[label]} object{'' if objects[label] == 1 else 's'}"
        known = f"AP@0.5 {ap[label]:.2f} on {several}" if ap[label] >= 0 else "never measured"
        yield FailureMode("class", f"{name} ({known})", float(difficulty[label]) / len(ap), parts[:, label])


def _confusions(findings: Findings, parts: Tensor) -> Iterator[FailureMode]:
    costs: dict[tuple[int, int], float] = {}
    for confusion in findings.diagnosis.confusions:
        pair = sorted((confusion.truth_label, confusion.detection_label))
        costs[pair[0], pair[1]] = costs.get((pair[0], pair[1]), 0.0) + max(confusion.cost, 0.0)
    names = findings.evaluation.class_names
    for (one, other), cost in sorted(costs.items(), key=lambda item: -item[1])[:PAIRS]:
        name = f"{names[one]} or {names[other]}"
        yield FailureMode("confusion", name, cost, 4 * parts[:, one] * parts[:, other])


def _slices(findings: Findings, pool: Pool, leads: Tensor, expected: Tensor) -> Iterator[FailureMode]:
    weak = [result for result in findings.diagnosis.slices if _surely_worse(result)]
    if not weak:
        return
    evaluation, rows = findings.evaluation, findings.diagnosis.rows
    images = len(evaluation.image_ids)
    properties = {result.part.property for result in weak}
    of_pool = _pool_properties(findings, pool, properties)
    counted = np.bincount(rows.truths.images[~rows.truths.ignore].numpy(), minlength=images)
    columns = {name: np.concatenate([values, of_pool[name]]) for name, values in findings.of_images.items()}
    columns["objects in the image"] = np.concatenate([counted, expected.numpy()]).astype(np.float64)
    places = DetectionRows(*(column[leads] for column in pool.detections))
    # Edges between slices are quantiles of the objects, here as in the diagnosis; the pool stands behind its images.
    parts = {
        (part.property, part.value): part.detections
        for part in slices(
            places._replace(images=places.images + images),
            rows.truths,
            np.concatenate([evaluation.sizes, pool.sizes]),
            columns,
        )
    }
    for result in weak:
        members = parts.get((result.part.property, result.part.value))
        if members is not None:
            name = f"{result.part.property}: {result.part.value}"
            yield FailureMode("slice", name, result.cost, torch.from_numpy(members).double())


def _surely_worse(result: SliceResult) -> bool:
    return result.recall["high"] < 0 or result.precision["high"] < 0


def _pool_properties(findings: Findings, pool: Pool, wanted: set[str]) -> dict[str, NDArray[Any]]:
    """The evaluated images' properties of the pool's images; only those that are wanted are measured."""
    images = len(pool.image_ids)
    alone = findings.evaluation._replace(
        image_ids=pool.image_ids, file_names=pool.file_names, sizes=pool.sizes, paths=pool.paths, metadata=[{}] * images
    )
    measured = image_properties(alone, images) if wanted & set(_OF_PIXELS) else {}
    columns = dict(metadata_columns(findings.evaluation.metadata))
    for name, values in columns.items():
        own = [row.get(name) for row in pool.metadata]
        if values.dtype.kind == "f":
            number = [float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else np.nan for v in own]
            columns[name] = np.array(number)
        else:
            columns[name] = np.array(["" if value is None else str(value) for value in own])
    unknown = np.full(images, np.nan)
    return {name: columns.get(name, measured.get(name, unknown)) for name in findings.of_images}


def _gaps(findings: Findings, pool: Pool, leads: Tensor) -> Iterator[FailureMode]:
    verdicts = findings.verdicts
    if verdicts is None or not len(leads):
        return
    said = {mistake: judgement.verdict for mistake, judgement in verdicts.judgements.items()}
    gaps = [mistake for mistake in mistakes(findings.diagnosis) if said.get(mistake) == Verdict.GAP]
    if not gaps:
        return
    path = Path(findings.evaluation.source)
    vectors = vectors_of_rows(findings.evaluation, path.with_name(path.name.replace("_predictions", "_embeddings")))
    strange = vectors[[row_of_mistake(findings.diagnosis, mistake) for mistake in gaps]]
    own = pool.vectors[leads]
    if own.shape[1] != strange.shape[1]:
        raise DataError(f"{pool.folder}: its vectors are of another network than those of {findings.folder}.")
    to_gap = nearest_neighbours(own, strange, 1).distances[:, 0].double()
    to_training = nearest_neighbours(own, verdicts.training.objects, LIKE).distances[:, -1].double()
    degrees = (1 - to_gap / to_training.clamp(min=1e-6)).clamp(min=0)
    missing = 1 - max(float(findings.diagnosis.metrics["map_50"]), 0.0)
    yield FailureMode(
        "data gap", "like mistakes that training has nothing for", missing * len(gaps) / len(said), degrees
    )

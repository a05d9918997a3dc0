"""The choice of images to label next, from a pool and what a run says of its detector: no file and no picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.calibration_figures import fit, split_of_table
from detframe.analysis.failure_modes import FailureMode, Findings, failure_modes
from detframe.analysis.pool import Pool
from detframe.analysis.verdicts import LIKE, LIMIT
from detframe.data.annotations import DataError
from detframe.metrics.acquisition import (
    EXPANSION,
    Objects,
    choose_diverse,
    class_shares,
    distinct,
    entropy,
    group_places,
    nearly_same,
)
from detframe.metrics.neighbours import conformal_p_values, nearest_neighbours
from detframe.score_curves import calibrate_scores

NOVEL = "unlike any training image"

_DOUBTED = 0.5  # bits from which a place is named as a reason: of a detection, probabilities of 0.11 to 0.89


class Reason(NamedTuple):
    """What an image was chosen for."""

    kind: str  # of the failure mode, "new image" or "uncertain"
    name: str  # of the failure mode, in words
    places: int  # of the image that are a case of it


class Chosen(NamedTuple):
    """One image to label."""

    image: int  # its place in the pool
    score: float  # bits of doubt, each counted as often as its failure modes say
    objects: float  # expected
    reasons: list[Reason]  # up to three, the one that brought most first
    twins: list[int]  # places of images that are nearly the same and were passed over for it


class ModeSummary(NamedTuple):
    """What was called for, and what was got."""

    kind: str
    name: str
    cost: float  # AP, 0..1
    objects: float  # expected in the chosen images, of this failure mode
    by_chance: float  # in as many images of the pool at random


class Selection(NamedTuple):
    """The choice."""

    chosen: list[Chosen]  # in the order in which they were taken: the first of them are a choice too
    modes: list[ModeSummary]  # the dearest first
    left_out: dict[str, list[int]]  # places of images that nearly are ones of the run's split, by its name


class _Worth(NamedTuple):
    """What the places and images of a pool are worth."""

    leads: Tensor  # [P]
    images: Tensor  # [P], 0..I-1
    objects: Tensor  # [P], expected, 0..1
    doubt: Tensor  # [P] bits
    modes: list[FailureMode]
    strengths: Tensor  # [M] 0..1, of the dearest
    places: Tensor  # [P] bits, weighed
    novelty: Tensor  # [I] bits, for being unlike the training images
    values: Tensor  # [I] bits, all in all


def select(findings: Findings, pool: Pool, count: int, seed: int) -> Selection:
    """Choose images.

    Args:
        findings: Of the run whose detector looked at the pool.
        pool: The pool.
        count: How many to choose; fewer where the pool has no more that differ.
        seed: Decides between images of the same worth.

    Raises:
        DataError: Run and pool do not belong together.
    """
    _require_same_detector(findings, pool)
    left_out = {
        name: np.flatnonzero(nearly_same(pool.thumbnails, known.thumbnails) >= 0).tolist()
        for name, known in findings.known_images.items()
    }
    worth = _worth(findings, pool)
    known = {image for images in left_out.values() for image in images}
    order = np.random.default_rng(seed).permutation(len(pool.image_ids))
    order = order[np.argsort(-worth.values.numpy()[order], kind="stable")]
    candidates, twins = distinct(
        [image for image in order.tolist() if image not in known], pool.thumbnails, EXPANSION * count
    )
    place_of = torch.full((len(pool.image_ids),), -1)
    place_of[candidates] = torch.arange(len(candidates))
    inside = place_of[worth.images] >= 0
    objects = Objects(
        place_of[worth.images[inside]],
        pool.detections.labels[worth.leads[inside]],
        worth.places[inside],
        pool.vectors[worth.leads[inside]],
    )
    taken = choose_diverse(worth.values[candidates], objects, pool.image_vectors[candidates], count)
    images = [candidates[place] for place in taken]
    passed: dict[int, list[int]] = {}
    for twin, image in twins.items():
        passed.setdefault(image, []).append(twin)
    chosen = [_chosen(image, worth, passed.get(image, [])) for image in images]
    return Selection(chosen, _summaries(worth, images, len(pool.image_ids)), left_out)


def _require_same_detector(findings: Findings, pool: Pool) -> None:
    names = findings.evaluation.class_names
    for label, name in pool.class_names.items():
        if label >= len(names) or names[label] != name:
            raise DataError(
                f"{pool.folder}: its label {label} is {name}; the classes of {findings.folder} are {', '.join(names)}. "
                "Let the run's own detector look at the pool."
            )
    if findings.checkpoint_hash and pool.checkpoint_hash and findings.checkpoint_hash != pool.checkpoint_hash:
        raise DataError(
            f"{pool.folder}: was looked at by another checkpoint than {findings.folder} was tested with, and their "
            "vectors cannot be compared. Run `detframe predict` and `detframe test` with the same --ckpt_path."
        )
    for known in findings.known_images.values():
        if known.vectors.shape[1] != pool.image_vectors.shape[1]:
            raise DataError(f"{pool.folder}: its vectors are of another network than those of {findings.folder}.")


def _worth(findings: Findings, pool: Pool) -> _Worth:
    found, images = pool.detections, len(pool.image_ids)
    split = split_of_table(findings.evaluation.table)
    classes = len(findings.evaluation.class_names)
    curves = fit(split, "precision", "isotonic", classes, np.ones(len(split.rows.image_ids), dtype=bool))
    places = group_places(found)
    shares = class_shares(places, calibrate_scores(found.scores.double(), found.labels, curves), found.labels, classes)
    objects, doubt = shares.sum(dim=1), entropy(shares)
    of_place = found.images[places.leads]
    expected = torch.zeros(images, dtype=torch.float64).index_add_(0, of_place, objects)
    modes = failure_modes(findings, pool, places.leads, shares, expected)
    costs = torch.tensor([mode.cost for mode in modes], dtype=torch.float64)
    strengths = costs / costs.max() if len(costs) else costs
    factor = torch.ones_like(doubt)
    for mode, strength in zip(modes, strengths, strict=True):
        factor += strength * mode.degrees
    of_images = torch.zeros(images, dtype=torch.float64).index_add_(0, of_place, doubt * factor)
    novelty = of_images.mean() * _novelty(findings, pool)
    return _Worth(
        leads=places.leads,
        images=of_place,
        objects=objects,
        doubt=doubt,
        modes=modes,
        strengths=strengths,
        places=doubt * factor,
        novelty=novelty,
        values=of_images + novelty,
    )


def _novelty(findings: Findings, pool: Pool) -> Tensor:
    """How surely each image ``[I]`` is unlike those of training, 0..1 as in the verdict of a data gap; 0 without them.

    So an image that the detector finds nothing in can be chosen too: what it misses altogether has no other sign.
    """
    known = findings.known_images.get("train")
    if known is None or len(known.vectors) <= LIKE:
        return torch.zeros(len(pool.image_ids), dtype=torch.float64)
    training = torch.from_numpy(known.vectors)
    own = torch.arange(len(training))
    usual = nearest_neighbours(training, training, LIKE, own, own).distances[:, -1]
    p_values = conformal_p_values(nearest_neighbours(pool.image_vectors, training, LIKE).distances[:, -1], usual)
    return LIMIT / (LIMIT + p_values)


def _chosen(image: int, worth: _Worth, twins: list[int]) -> Chosen:
    own = (worth.images == image).nonzero().flatten()
    brought = [
        (
            float(strength * (worth.doubt[own] * mode.degrees[own]).sum()),
            Reason(mode.kind, mode.name, int(((mode.degrees[own] >= 0.5) & (worth.doubt[own] >= _DOUBTED)).sum())),
        )
        for mode, strength in zip(worth.modes, worth.strengths, strict=True)
    ]
    brought = [row for row in brought if row[1].places]
    brought.append((float(worth.novelty[image]), Reason("new image", NOVEL, 0)))
    brought = sorted((row for row in brought if row[0] > 0), key=lambda row: -row[0])
    most = brought[0][0] if brought else 0.0
    reasons = [reason for value, reason in brought[:3] if value >= most / 3]
    return Chosen(
        image,
        float(worth.values[image]),
        float(worth.objects[own].sum()),
        reasons or [Reason("uncertain", "many faint doubts", len(own))],
        twins,
    )


def _summaries(worth: _Worth, images: list[int], pool: int) -> list[ModeSummary]:
    inside = torch.from_numpy(np.isin(worth.images.numpy(), np.array(images, dtype=np.int64)))
    return [
        ModeSummary(
            mode.kind,
            mode.name,
            mode.cost,
            float((worth.objects * mode.degrees)[inside].sum()),
            float((worth.objects * mode.degrees).sum()) * len(images) / pool,
        )
        for mode in worth.modes
    ]


def in_words(reason: Reason) -> str:
    """A reason as a person reads it."""
    several = f"{reason.places} {'place' if reason.places == 1 else 'places'}"
    return {
        "class": f"{reason.name}: {several}",
        "confusion": f"{reason.name}? {several}",
        "slice": f"weak slice {reason.name}: {several}",
        "data gap": f"{reason.name}: {several}",
        "new image": reason.name,
        "uncertain": reason.name,
    }[reason.kind]


def by_kind(selection: Selection) -> dict[str, int]:
    """How many images were chosen for each kind of failure mode in the first place."""
    kinds = [chosen.reasons[0].kind for chosen in selection.chosen]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def detections_of(pool: Pool, image: int, thresholds: NDArray[np.float64]) -> Tensor:
    """Rows of the detections of an image from the operating threshold of their class on."""
    found = pool.detections
    limits = torch.from_numpy(thresholds)[found.labels]
    return ((found.images == image) & (found.scores.double() >= limits)).nonzero().flatten()

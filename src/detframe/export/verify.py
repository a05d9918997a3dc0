"""Proof that an artefact answers as its checkpoint does: the same detections on real images and on strange ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from detframe.analysis.prediction_table import TableRows
from detframe.analysis.row_metrics import mean_average_precision
from detframe.export.runtime import Answer, Images, Run
from detframe.metrics.rows import DetectionRows, TruthRows

MOST_PIXELS_APART, MOST_SCORE_APART = 0.5, 1e-3
"""Up to which two detections are the same one."""

MOST_MAP_APART = 5e-4
MOST_UNMATCHED = 1e-3
"""Share of detections without a partner that near ties may leave: which of two equal boxes suppresses the other."""

ONE_TIE = 2
"""Detections without a partner that a single tie leaves, one on each side; of few detections it is a large share."""

LEAST_SCORE = 0.05
"""Detections below it are not compared one by one; mAP counts them."""


class Difference(NamedTuple):
    """How far two answers to the same images are apart."""

    detections: int  # of the expected answer, of a score that is compared
    unmatched: int  # of both answers, without a partner within the limits
    box: float  # pixels, the most that a side of a pair is apart
    score: float  # 0..1, the most that the scores of a pair are apart


class Proof(NamedTuple):
    """What the comparison of an artefact with its checkpoint came to."""

    images: dict[str, Difference]  # by name of the image
    map_expected: float | None  # of the checkpoint; None where there was no annotated image
    map_found: float | None  # of the artefact
    milliseconds_expected: float  # median of an image, the checkpoint in eager mode
    milliseconds_found: float

    @property
    def total(self) -> Difference:
        """Counts of all images, and the worst of all pairs."""
        every = list(self.images.values())
        return Difference(
            sum(difference.detections for difference in every),
            sum(difference.unmatched for difference in every),
            max((difference.box for difference in every), default=0.0),
            max((difference.score for difference in every), default=0.0),
        )

    @property
    def worst(self) -> str:
        """Name of the image with the most unmatched detections, then the one furthest apart."""
        return max(self.images, key=lambda name: (self.images[name].unmatched, self.images[name].score))

    def faults(self, max_drop: float | None = None) -> list[str]:
        """What speaks against the artefact, in words; nothing where it passed.

        Args:
            max_drop: Of mAP, all that is asked of one of reduced precision; None asks for equality.
        """
        found, total = [], self.total
        if max_drop is not None:
            assert self.map_expected is not None
            assert self.map_found is not None
            if not self.map_expected - self.map_found <= max_drop:
                found.append(f"mAP falls from {self.map_expected:.4f} to {self.map_found:.4f}, by more than {max_drop}")
            return found
        if total.unmatched > max(ONE_TIE, MOST_UNMATCHED * total.detections):
            found.append(
                f"{total.unmatched} of {total.detections} detections have no partner within {MOST_PIXELS_APART} pixels "
                f"and {MOST_SCORE_APART} of the score"
            )
        if self.map_expected is not None and self.map_found is not None:
            apart = abs(self.map_expected - self.map_found)
            if not apart <= MOST_MAP_APART:
                found.append(f"mAP is {self.map_found:.5f} instead of {self.map_expected:.5f}")
        return found


def difference(expected: Answer, found: Answer) -> Difference:
    """Compare two answers as sets: detections of equal scores may stand in any order.

    Pairs are formed within an image and a class so that as many as can be are within the limits.
    """
    count, unmatched, box, score = 0, 0, 0.0, 0.0
    for image in range(len(expected.boxes)):
        one = expected.valid[image] & (expected.scores[image] >= LEAST_SCORE)
        # One that is near the limit is not held against the other for being just below it.
        other = found.valid[image] & (found.scores[image] >= LEAST_SCORE - MOST_SCORE_APART)
        boxes = np.abs(expected.boxes[image][one][:, None] - found.boxes[image][other][None]).max(axis=2)  # [n, m]
        scores = np.abs(expected.scores[image][one][:, None] - found.scores[image][other][None])
        same = expected.labels[image][one][:, None] == found.labels[image][other][None]
        apart = np.maximum(boxes / MOST_PIXELS_APART, scores / MOST_SCORE_APART)
        apart = np.where(same & (apart <= 1), apart, 2.0 + len(apart))  # a pair too many costs more than all others
        rows, columns = linear_sum_assignment(apart)
        paired = apart[rows, columns] <= 1
        surely = found.scores[image][other] >= LEAST_SCORE + MOST_SCORE_APART
        surely[columns[paired]] = False
        count += int(one.sum())
        unmatched += int(one.sum()) - int(paired.sum()) + int(surely.sum())
        box = max(box, float(np.max(boxes[rows, columns][paired], initial=0)))
        score = max(score, float(np.max(scores[rows, columns][paired], initial=0)))
    return Difference(count, unmatched, box, score)


def strange_images(height: int, width: int) -> dict[str, Images]:
    """Images that cameras and their users come up with, by name.

    Args:
        height: Of the network's input in pixels.
        width: Likewise.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, height, width)).astype(np.uint8)
    huge = noise.repeat(5, axis=2).repeat(5, axis=3)
    return {
        "dark": noise // 32,  # not all of one value, as no camera gives it
        "grey": 110 + noise // 32,
        "one pixel high": noise[:, :, :1, :7].copy(),  # of one pixel alone, every place would be as good as any other
        "one pixel wide": noise[:, :, :7, :1].copy(),
        "wide": noise[:, :, : max(2, height // 8)].copy(),
        "tall": noise[:, :, :, : max(2, width // 8)].copy(),
        "huge": huge[:, :, 1:, 3:].copy(),
        "of the network's size, two at once": np.concatenate([noise, noise[:, :, ::-1]]),
    }


def prove(
    expected: Mapping[str, Answer],
    images: Iterable[tuple[str, Images]],
    artefact: Run,
    checkpoint: Run,
    map_expected: float | None,
    measure: Callable[[Sequence[Answer]], float | None],
) -> Proof:
    """Let an artefact answer and compare.

    Args:
        expected: The checkpoint's answers by name of the image.
        images: The same images, in the same order.
        artefact: What is proven.
        checkpoint: For its time.
        map_expected: What ``measure`` gave for the checkpoint's answers.
        measure: mAP of answers to these images, 0..1; None where none of them is annotated.
    """
    answers, differences = [], {}
    times: list[tuple[float, float]] = []
    for name, image in images:
        started = time.perf_counter()
        answers.append(artefact(image))
        between = time.perf_counter()
        differences[name] = difference(expected[name], answers[-1])
        if len(times) < 20:  # both in turn, so that what else the machine does hits both
            again = time.perf_counter()
            checkpoint(image)
            times.append((time.perf_counter() - again, between - started))
    slow, quick = (1000 * float(np.median([pair[place] for pair in times])) for place in (0, 1))
    return Proof(differences, map_expected, measure(answers), slow, quick)


def rows_of_answers(answers: Sequence[Answer], truths: TruthRows) -> TableRows:
    """Answers to single images and their annotations as the rows that all figures are made of."""
    valid = [answer.valid[0] for answer in answers]
    places = np.repeat(np.arange(len(answers)), [int(kept.sum()) for kept in valid])

    def column(name: str) -> torch.Tensor:
        return torch.from_numpy(
            np.concatenate([getattr(answer, name)[0][kept] for answer, kept in zip(answers, valid, strict=True)])
        )

    detections = DetectionRows(torch.from_numpy(places), column("boxes"), column("scores"), column("labels"))
    ids = torch.arange(len(answers))
    return TableRows(detections, truths, ids, torch.arange(len(places)), torch.arange(len(truths.labels)))


def metrics(
    answers: Sequence[Answer], truths: TruthRows, areas: torch.Tensor, class_names: Sequence[str]
) -> dict[str, Any]:
    """The content of a metrics file, of answers to single images."""
    return mean_average_precision(rows_of_answers(answers, truths), areas, class_names)

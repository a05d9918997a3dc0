"""The mistakes of a detector at its operating thresholds, one by one, and a choice of them to look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from detframe.analysis.diagnosis import Diagnosis
from detframe.metrics.average_precision import FALSE_POSITIVE
from detframe.metrics.errors import ErrorType


class Mistake(NamedTuple):
    """One detection that is wrong, or one object that was missed, at the operating thresholds."""

    image: int  # place of the image
    kind: ErrorType
    detection: int  # place among the detections that are kept, -1 for an object missed
    truth: int  # row of the truth that it is about, -1 for none
    cell: tuple[int, int]  # of the confusion matrix
    score: float  # 0..1, how sure the detection is; of an object missed, how far from sure the best one was


def mistakes(diagnosis: Diagnosis) -> list[Mistake]:
    """All mistakes at the operating thresholds: wrong detections, and objects that no detection of any class found."""
    errors, kept, confusion = (
        diagnosis.evidence.operating.errors,
        diagnosis.evidence.operating.rows,
        diagnosis.evidence.confusion,
    )
    found = [
        Mistake(
            image=int(errors.detections.images[row]),
            kind=ErrorType(int(errors.error[row])),
            detection=row,
            truth=int(errors.truth[row]),
            cell=(int(confusion.detection_cells[kept[row], 0]), int(confusion.detection_cells[kept[row], 1])),
            score=float(errors.detections.scores[row]),
        )
        for row in (errors.outcome == FALSE_POSITIVE).nonzero().flatten().tolist()
    ]
    classes = len(confusion.matrix) - 1
    lost = ((confusion.truth_cells[:, 1] == classes) & ~errors.truths.ignore).nonzero().flatten().tolist()
    return found + [
        Mistake(
            image=int(errors.truths.images[row]),
            kind=ErrorType.MISSED,
            detection=-1,
            truth=row,
            cell=(int(errors.truths.labels[row]), classes),
            score=1 - best_score(diagnosis, row),
        )
        for row in lost
    ]


def row_of_mistake(diagnosis: Diagnosis, mistake: Mistake) -> int:
    """Row of the evaluation's table: that of the wrong detection, or of the object missed."""
    if mistake.detection < 0:
        return int(diagnosis.rows.truth_rows[mistake.truth])
    return int(diagnosis.rows.detection_rows[diagnosis.evidence.operating.rows[mistake.detection]])


def choose(found: Sequence[Mistake], most: int) -> list[Mistake]:
    """The surest mistakes of every kind and cell in turn, so that the rare ones are shown as well.

    Args:
        found: All of them.
        most: How many to keep.
    """
    groups: dict[tuple[ErrorType, tuple[int, int]], list[Mistake]] = defaultdict(list)
    for mistake in sorted(found, key=lambda m: -m.score):
        groups[mistake.kind, mistake.cell].append(mistake)
    for group in groups.values():
        seen: Counter[int] = Counter()
        turn = {id(mistake): _count(seen, mistake.image) for mistake in group}
        group.sort(key=lambda m: turn[id(m)])  # another image each time, as long as there are any
    chosen: list[Mistake] = []
    depth = 0
    while len(chosen) < min(most, len(found)):
        layer = [group[depth] for group in groups.values() if len(group) > depth]
        chosen += layer[: most - len(chosen)]
        depth += 1
    return sorted(chosen, key=lambda m: (m.kind != ErrorType.MISSED, m.kind, m.cell, -m.score))


def _count(seen: Counter[int], image: int) -> int:
    seen[image] += 1
    return seen[image]


def best_score(diagnosis: Diagnosis, truth: int) -> float:
    """Score of the detection that found an object when all are counted, 0 where none did."""
    finder = int(diagnosis.evidence.errors.found_by[truth])
    return float(diagnosis.rows.detections.scores[finder]) if finder >= 0 else 0.0

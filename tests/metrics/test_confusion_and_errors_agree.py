"""What must hold between the matcher, the confusion matrix and the error types, on the same rows at the same IoU.

With ``t`` the IoU, ``s`` the score threshold, ``M`` the matrix, ``b`` its background, ``c`` a class:

1. ``sum(M[c, :])`` is the number of objects of ``c``; ``sum(M[:, c])`` that of detections of ``c`` that score ``s`` and
   do not lie on an ignore region by location.
2. Matching by location: its true positives are ``sum(M[:b, :b])``, its false ones ``sum(M[b, :])``, its missed objects
   ``sum(M[:, b])``.
3. With one class, matching by class is matching by location: the matrix has the mAP's true positives, false positives
   and missed objects.
4. With several, objects that a detection of another class took, and detections that took an object of another class,
   are out of the diagonal; each can change the count of matches of a class by one at most (a stable matching gains or
   loses one by one agent): ``M[c, c] <= TP[c] <= M[c, c] + sum of the rest of row c and of column c within classes``.
5. The first five error types of a class add up to its false positives, at any ``s``; the type of a detection depends
   on no detection below it.
6. Objects = found + missed (type) + those that the fix of a classification or localisation error would find.
7. A detection off the diagonal overlaps an object of another class by ``t``: by class it is a true positive, ignored,
   or an error of classification or localisation. One on the diagonal overlaps one of its own: a true positive, or an
   error of classification or a duplicate, or, where the overlap is ``t`` to the last bit, of localisation.
8. Errors of background and of both overlap nothing by ``t``: they are in the background's row, or set aside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.confusion import confusion_matrix
from detframe.metrics.errors import NO_ERROR, ErrorType, count_errors, find_errors
from detframe.metrics.rows import DetectionRows, TruthRows, match_rows, match_rows_of_any_class

Draw = Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]
CLASSES = 3
cases = given(st.integers(0, 10**9), st.integers(1, 6), st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
quick = settings(max_examples=40, deadline=None)


def by_class(labels: torch.Tensor) -> torch.Tensor:
    return torch.bincount(labels, minlength=CLASSES)


@quick
@cases
def test_confusion_and_the_matcher(random_rows: Draw, seed: int, images: int, tied: bool, score: float) -> None:
    detections, truths = random_rows(seed, images, CLASSES, tied)
    confusion = confusion_matrix(detections, truths, CLASSES, 0.5, score)
    matrix = confusion.matrix
    kept = DetectionRows(*(column[detections.scores >= score] for column in detections))
    located = match_rows_of_any_class(kept, truths, 0.5)
    labelled = match_rows(kept, truths, 0.5)
    objects = by_class(truths.labels[~truths.ignore])
    assert torch.equal(matrix[:-1].sum(dim=1), objects)  # 1
    assert torch.equal(matrix[:, :-1].sum(dim=0), by_class(kept.labels[~located.ignored]))
    assert int(matrix[:-1, :-1].sum()) == int(((located.truth >= 0) & ~located.ignored).sum())  # 2
    assert int(matrix[-1].sum()) == int((located.truth < 0).sum())
    assert int(matrix[:, -1].sum()) == int(((located.detection < 0) & ~truths.ignore).sum())

    diagonal = matrix[:-1, :-1].diagonal()
    true_positives = by_class(kept.labels[(labelled.truth >= 0) & ~labelled.ignored])
    confused = matrix[:-1, :-1].sum(dim=0) + matrix[:-1, :-1].sum(dim=1) - 2 * diagonal
    assert bool((diagonal <= true_positives).all())  # 4
    assert bool((true_positives <= diagonal + confused).all())


@quick
@cases
def test_one_class(random_rows: Draw, seed: int, images: int, tied: bool, score: float) -> None:
    detections, truths = random_rows(seed, images, 1, tied)
    kept = DetectionRows(*(column[detections.scores >= score] for column in detections))
    table = find_errors(kept, truths, 1)
    missed = int(((table.found_by < 0) & ~truths.ignore).sum())
    counts = [int((table.outcome == outcome).sum()) for outcome in (TRUE_POSITIVE, FALSE_POSITIVE)]
    matrix = confusion_matrix(detections, truths, 1, 0.5, score).matrix
    assert matrix.tolist() == [[counts[0], missed], [counts[1], 0]]  # 3
    errors = count_errors(table, 1).flatten().tolist()
    assert errors[ErrorType.CLASSIFICATION] == errors[ErrorType.BOTH] == 0
    assert errors[ErrorType.LOCALISATION] + errors[ErrorType.DUPLICATE] + errors[ErrorType.BACKGROUND] == counts[1]


@quick
@cases
def test_errors_and_the_matcher(random_rows: Draw, seed: int, images: int, tied: bool, score: float) -> None:
    detections, truths = random_rows(seed, images, CLASSES, tied)
    table = find_errors(detections, truths, CLASSES)
    reached = detections.scores >= score
    kept = DetectionRows(*(column[reached] for column in detections))
    above = find_errors(kept, truths, CLASSES)
    matches = match_rows(kept, truths, 0.5)
    assert torch.equal(count_errors(above, CLASSES)[:5].sum(dim=0), by_class(kept.labels[matches.truth < 0]))  # 5
    assert torch.equal(above.error, table.error[reached])
    assert torch.equal(above.outcome, table.outcome[reached])
    assert torch.equal(above.error == NO_ERROR, above.outcome != FALSE_POSITIVE)

    found = (matches.detection >= 0) & ~truths.ignore
    nearly = torch.zeros_like(found)
    nearly[above.truth[above.repairs]] = True
    assert int(above.repairs.sum()) == int(nearly.sum())  # one detection for each object
    assert torch.equal(found.int() + nearly.int() + above.missed.int(), (~truths.ignore).int())  # 6


@quick
@cases
def test_confusion_and_errors(random_rows: Draw, seed: int, images: int, tied: bool, score: float) -> None:
    detections, truths = random_rows(seed, images, CLASSES, tied)
    table = find_errors(detections, truths, CLASSES)
    confusion = confusion_matrix(detections, truths, CLASSES, 0.5, score)
    row, column = confusion.detection_cells.unbind(dim=1)
    took = confusion.detection_truth >= 0
    hit, aside = table.outcome == TRUE_POSITIVE, table.outcome == IGNORED
    classification, localisation, both, duplicate, background = (table.error == kind for kind in list(ErrorType)[:5])
    off = took & (row != column)
    assert bool((hit | aside | classification | localisation)[off].all())  # 7
    at_limit = localisation & (table.iou == 0.5)
    assert bool((hit | classification | duplicate | at_limit)[took & ~off].all())
    assert not bool((took & (both | background)).any())  # 8
    assert set(row[(both | background) & (detections.scores >= score)].tolist()) <= {CLASSES, -1}
    # Each object off the diagonal has a detection of another class there, whatever its own error is called.
    assert int(off.sum()) == int(confusion.matrix[:-1, :-1].sum() - confusion.matrix[:-1, :-1].diagonal().sum())

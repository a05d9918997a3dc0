"""The verb ``label-errors``: predictions on data that the detector has not learned from tell which labels are wrong."""

from __future__ import annotations

from collections import Counter
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.ops import box_iou

from detframe.analysis.diagnosis import COCO_IOUS
from detframe.analysis.evaluation import Evaluation, read_run
from detframe.analysis.prediction_table import TableRows, rows_of_table
from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.label_queue import KINDS, Kind, Label, Queue, Suggestion, suggestion_id, write_queue
from detframe.data.sources import find_split
from detframe.metrics.label_evidence import NEAREST_LABEL
from detframe.metrics.label_noise import LabelError
from detframe.metrics.label_quality import LabelQuality, judge_labels, learn_label_errors
from detframe.refusals import refuse

KIND_OF: dict[LabelError, Kind] = {
    LabelError.MISSING: "missing",
    LabelError.WRONG_CLASS: "wrong-class",
    LabelError.BAD_BOX: "bad-box",
    LabelError.SPURIOUS: "spurious",
    LabelError.DUPLICATE: "duplicate",
}
"""What the queue calls each error."""

_SAME = 0.5  # pixels that a label may be off in the table, which has been through the network's size
_NEVER = 1e-6


class Source(NamedTuple):
    """Labels in question and what a detector says of their images."""

    evaluation: Evaluation
    annotations: AnnotationIndex  # of the whole split
    data: Path  # as `detframe check` takes it
    split: str
    rows: TableRows
    label_rows: NDArray[np.int64]  # [G], row in the annotations of each truth


def label_errors(
    run: Path,
    data: Path | None = None,
    out: Path | None = None,
    least: float = 0.1,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Find labels that are likely wrong, and say how to mend each, the likeliest first.

    RUN is a folder of `detframe crossfit`, whose predictions cover the training split, or that of `fit`, `test` or
    `validate`, for the split that was evaluated: the detector must not have learned from the labels in question.

    Errors are put into the labels at random, a small network learns to tell them by the detections beside them, and
    then judges the labels as they are. Every label gets a probability of being of a wrong class, of a bad box,
    of nothing, or of an object that has one already; every detection without a label that of being an object.

    Written to OUT: the queue that `detframe review` shows and `detframe apply` applies, JSON lines; and beside it, with
    the suffix .parquet, the probabilities of all labels and detections.

    Exit code: 0 when they are written; 2 when the input cannot be used.

    Args:
        run: Folder with predictions.
        data: The data set, as `detframe check` takes it; by default the run's own.
        out: The queue to write; by default label_errors.jsonl in RUN.
        least: Probability from which an error is suggested.
        seed: Of the errors put in and the networks.
        json: Print the counts as JSON and nothing else.
    """
    console = Console(stderr=True, quiet=json, highlight=False)
    path = out or run / "label_errors.jsonl"
    try:
        if not 0 <= least <= 1:
            raise DataError(f"--least has {least}; give a probability, 0..1.")
        with console.status("Reading predictions") as status:
            source = read_source(run, data)
            status.update("Learning what wrong labels look like")
            detections, truths = source.rows.detections, source.rows.truths
            facts = source.evaluation.sizes, len(source.evaluation.class_names)
            quality = judge_labels(learn_label_errors(detections, truths, *facts, seed), detections, truths, *facts)
            suggestions = suggest(source, quality, least)
            # Not by value: training gets more back where more of the labels looked at are wrong (docs/results.md).
            suggestions.sort(key=lambda suggestion: -suggestion.probability)
            write_queue(
                Queue(
                    data=str(source.data.resolve()),
                    split=source.split,
                    annotations_hash=source.annotations.annotations_hash(),
                    class_names=source.annotations.class_names,
                    suggestions=suggestions,
                ),
                path,
            )
            write_probabilities(source, quality, path.with_suffix(".parquet"))
    except (DataError, ValueError, OSError) as error:
        return refuse(error, json)
    if json:
        print(dumps({"queue": str(path), "labels": len(truths.labels), **_counts(suggestions)}))
    else:
        _print(suggestions, len(truths.labels), path)
    return 0


def read_source(run: Path, data: Path | None = None) -> Source:
    """Predictions of a run and the split that they are of.

    Raises:
        DataError: There are none, the data set has no split of their images, or its labels have changed since.
    """
    evaluation = read_run(run, data)
    images = dict(zip(evaluation.table["image_id"].to_pylist(), evaluation.table["file_name"].to_pylist(), strict=True))
    stage = Path(evaluation.source).name.split("_")[0]
    place, split, index = find_split(data or run / "config.yaml", images, stage)
    if index.class_names != evaluation.class_names:
        raise DataError(
            f"{evaluation.source}: its classes are {', '.join(evaluation.class_names)}, those of {index.source} are "
            f"{', '.join(index.class_names)}. Give the data set that was evaluated."
        )
    rows = rows_of_table(evaluation.table, evaluation.image_ids)
    ids = evaluation.table["annotation_id"].take(pa.array(rows.truth_rows.numpy())).to_numpy()
    order = np.argsort(index.annotation_ids, kind="stable")
    found = order[np.searchsorted(index.annotation_ids[order], ids).clip(max=len(order) - 1)]
    limits = np.tile(evaluation.sizes[rows.truths.images.numpy()][:, ::-1], 2)
    away = np.abs(index.boxes[found].clip(0, limits) - rows.truths.boxes.numpy()).max(axis=1)
    same = (index.annotation_ids[found] == ids) & (index.labels[found] == rows.truths.labels.numpy()) & (away < _SAME)
    if not same.all():
        raise DataError(
            f"{evaluation.source}: label {ids[np.flatnonzero(~same)[0]]} is not in {index.source} any more as it was "
            "evaluated. Run `detframe test` or `crossfit` again."
        )
    return Source(evaluation, index, place, split, rows, found)


def suggest(source: Source, quality: LabelQuality, least: float) -> list[Suggestion]:
    """How to mend each label and detection whose most likely error is at least so likely."""
    labels = quality.labels.clone()
    # A label is of another class, or in another place, where a detection says of which, or where.
    labels[quality.evidence.other_class < 0, LabelError.WRONG_CLASS] = 0
    labels[quality.evidence.same_class < 0, LabelError.BAD_BOX] = 0
    labels[:, LabelError.DUPLICATE] *= _worse_twins(labels[:, LabelError.DUPLICATE], quality.evidence.twin)
    chances, kinds = labels[:, 1:].max(dim=1)
    of_labels = [
        _of_label(source, quality, row, LabelError(int(kinds[row]) + 1), float(chances[row]))
        for row in (chances >= max(least, _NEVER)).nonzero().flatten().tolist()
    ]
    missing = (quality.missing >= max(least, _NEVER)).nonzero().flatten().tolist()
    return of_labels + [_of_detection(source, quality, row) for row in missing]


def _worse_twins(chances: Tensor, twin: Tensor) -> Tensor:
    """Labels, ``[G]`` bool, that are likelier than their twin to be the one too many: of two, one has to stay."""
    rows = torch.arange(len(twin))
    theirs = chances[twin]
    mutual = (twin >= 0) & (twin[twin] == rows)
    return (twin >= 0) & ~(mutual & ((theirs > chances) | ((theirs == chances) & (twin < rows))))


def write_probabilities(source: Source, quality: LabelQuality, path: Path) -> None:
    """A table of all labels and all detections that are near none: the probability of each error."""
    rows = source.rows
    asked = quality.missing > 0
    at = torch.cat((rows.truth_rows, rows.detection_rows[asked]))
    table = source.evaluation.table.take(pa.array(at.numpy()))
    none = torch.zeros(int(asked.sum()))
    for error, kind in KIND_OF.items():
        column = torch.cat((quality.labels[:, error], quality.missing[asked] if kind == "missing" else none))
        table = table.append_column(kind, pa.array(column.numpy()))
    pq.write_table(table, path)


def _of_label(source: Source, quality: LabelQuality, row: int, error: LabelError, probability: float) -> Suggestion:
    """What to do about one label."""
    names, truths, found = source.annotations.class_names, source.rows.truths, source.rows.detections
    place = int(source.label_rows[row])
    before = Label(_corners(source.annotations.boxes[place]), names[int(source.annotations.labels[place])])
    same, other, twin = (int(rows[row]) for rows in quality.evidence[3:])
    own = "nothing"
    if same >= 0:
        overlap = _overlap(found.boxes[same], truths.boxes[row])
        own = f"{before.class_name} with a score of {found.scores[same]:.2f} and an IoU with the label of {overlap:.2f}"
    after = None
    if error is LabelError.WRONG_CLASS:
        after = before._replace(class_name=names[int(found.labels[other])])
        overlap = _overlap(found.boxes[other], truths.boxes[row])
        reason = (
            f"The detector sees {after.class_name} here with a score of {found.scores[other]:.2f} and an IoU with the "
            f"label of {overlap:.2f}, and {own}."
        )
    elif error is LabelError.BAD_BOX:
        after = before._replace(box=_corners(found.boxes[same].numpy()))
        reason = f"The detector sees {own}."
    elif error is LabelError.SPURIOUS:
        reason = f"The detector sees {own} here."
    else:
        number = int(source.annotations.annotation_ids[source.label_rows[twin]])
        overlap = _overlap(truths.boxes[twin], truths.boxes[row])
        reason = f"Label {number} of the same class overlaps it by an IoU of {overlap:.2f}; the detector sees {own}."
    image = int(truths.images[row])
    return _suggestion(
        source, image, error, int(source.annotations.annotation_ids[place]), before, after, probability, reason
    )


def _of_detection(source: Source, quality: LabelQuality, row: int) -> Suggestion:
    """The label that a detection lacks."""
    found = source.rows.detections
    after = Label(_corners(found.boxes[row].numpy()), source.annotations.class_names[int(found.labels[row])])
    nearest = float(quality.evidence.detections[row, NEAREST_LABEL])
    beside = f"no label overlaps it by more than an IoU of {nearest:.2f}" if nearest else "no label touches it"
    reason = f"The detector sees {after.class_name} here, with a score of {found.scores[row]:.2f}, and {beside}."
    image = int(found.images[row])
    return _suggestion(source, image, LabelError.MISSING, None, None, after, float(quality.missing[row]), reason)


def _suggestion(
    source: Source,
    image: int,
    error: LabelError,
    annotation_id: int | None,
    before: Label | None,
    after: Label | None,
    probability: float,
    reason: str,
) -> Suggestion:
    name = source.evaluation.file_names[image]
    return Suggestion(
        id=suggestion_id(KIND_OF[error], name, before, after),
        kind=KIND_OF[error],
        image_id=int(source.evaluation.image_ids[image]),
        file_name=name,
        annotation_id=annotation_id,
        before=before,
        after=after,
        probability=round(probability, 4),
        value=round(probability * matches_mended(before, after), 4),
        reason=reason,
    )


def matches_mended(before: Label | None, after: Label | None) -> float:
    """How many matches of a right detection a mended label changes, on average over the IoUs of COCO's mAP.

    One where a label comes or goes; two where its class changes, one of each class; of a box that moves, two at each
    IoU that the wrong box would not reach: the detection is false and the label is missed.
    """
    if before is None or after is None:
        return 1.0
    if before.class_name != after.class_name:
        return 2.0
    overlap = _overlap(torch.tensor(before.box), torch.tensor(after.box))
    return 2 * float(np.mean(np.array(COCO_IOUS) > overlap))


def _overlap(box: Tensor, other: Tensor) -> float:
    return float(box_iou(box[None].float(), other[None].float()))


def _corners(box: NDArray[np.floating[Any]]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (round(float(corner), 3) for corner in box)
    return x1, y1, x2, y2


def _counts(suggestions: list[Suggestion]) -> dict[str, Any]:
    counts = Counter(suggestion.kind for suggestion in suggestions)
    expected = sum(suggestion.probability for suggestion in suggestions)
    return {"suggestions": len(suggestions), "expected_errors": round(expected, 1), **{k: counts[k] for k in KINDS}}


def _print(suggestions: list[Suggestion], labels: int, path: Path) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table("error", "suggested", "expected", "surest")
    for kind in KINDS:
        chances = [suggestion.probability for suggestion in suggestions if suggestion.kind == kind]
        table.add_row(kind, str(len(chances)), f"{sum(chances):.0f}", f"{max(chances):.2f}" if chances else "-")
    console.print(table)
    console.print(
        f"Of {labels} labels. Written to {path}, the likeliest first. Look at them with `detframe review {path}`."
    )

"""What a diagnosis reads: the table of predictions and what is known of its images, of a run or of any detector."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from detframe.analysis.prediction_table import MATCH_IOU, SCHEMA, image_by_image, schema_table
from detframe.boxes import box_area
from detframe.data.annotations import AnnotationIndex, DataError, labels_alone, require_sound
from detframe.data.images import image_size
from detframe.data.sources import read_splits
from detframe.metrics.rows import DetectionRows, TruthRows, match_rows

STAGES = ("test", "val", "train")


class Evaluation(NamedTuple):
    """Detections and truths of ``I`` images; file paths only where the images are at hand."""

    source: str
    table: pa.Table  # of prediction_table.SCHEMA
    class_names: list[str]
    image_ids: NDArray[np.int64]  # [I] ascending, also of images without any row where that is known
    file_names: list[str]  # [I]
    sizes: NDArray[np.int64]  # [I, 2] (height, width) in pixels, 0 where unknown
    paths: list[Path] | None  # [I]; None where the images cannot be found
    metadata: list[dict[str, Any]]  # [I]


def read_run(run: Path, data: Path | None = None) -> Evaluation:
    """The evaluation that a run left behind, of the test split or else of validation, or of training by cross-fitting.

    Args:
        run: Folder with ``test_predictions.parquet``, ``val_predictions.parquet`` or ``train_predictions.parquet``, as
            `test`, `validate` and `crossfit` write them.
        data: Where its images are; None looks in the run's ``config.yaml``, and does without where that fails.

    Raises:
        DataError: There is no such table, or the data are others.
    """
    stage = next((name for name in STAGES if (run / f"{name}_predictions.parquet").is_file()), None)
    if stage is None:
        raise DataError(
            f"{run}: holds no test_predictions.parquet. Name the folder of a run that `detframe test` or `fit` wrote, "
            "such as runs/quickstart/version_0, or another detector's file of COCO results (`diagnose --predictions`, "
            "`compare`) together with --data."
        )
    path = run / f"{stage}_predictions.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: is no Parquet table ({str(error).splitlines()[0]}). Run `detframe test` again."
        ) from error
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise DataError(f"{path}: has no column {missing[0]!r}. Write it anew with this version's `detframe test`.")
    for field in SCHEMA:
        if (found := table.schema.field(field.name).type) != field.type:
            raise DataError(
                f"{path}: its column {field.name!r} is of {found}, not of {field.type}. Write it anew with this "
                "version's `detframe test`."
            )
    if not table.num_rows:
        raise DataError(f"{path}: is empty: nothing was detected and there was nothing to detect.")
    if table["label"].null_count or (table["label"].to_numpy() < 0).any():
        raise DataError(f"{path}: has a label that is none, or below 0. Write it anew with `detframe test`.")
    names = _class_names(run / f"{stage}_metrics.json", table)
    try:
        index = _split(data if data is not None else run / "config.yaml", stage)
    except DataError:
        if data is not None:
            raise
        return _without_images(path, table, names)
    return _with_images(path, table, names, index)


def read_results(predictions: Path, data: Path) -> Evaluation:
    """The evaluation of any detector's results on a data set.

    Args:
        predictions: COCO results with the ids of ``data``: a JSON list of ``{"image_id": .., "category_id": .., "bbox":
            [x, y, width, height], "score": ..}``.
        data: As `detframe check` takes it; its test split where it has several.

    Raises:
        DataError: The file cannot be read, a row of it does not belong to the data, or holds no detection.
    """
    index = _split(data, "test")
    try:
        rows = json.loads(predictions.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{predictions}: cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise DataError(f"{predictions}: is no valid JSON ({error}). Write COCO results.") from error
    if not isinstance(rows, list) or not rows:
        what = "an empty list" if rows == [] else "no list"
        raise DataError(f"{predictions}: is {what}. COCO results are a list of detections, with one row at least.")
    sizes = image_sizes(index)
    detections, labels = _detections(predictions, rows, index, sizes)
    table = _table(index, sizes, detections, labels)
    return _with_images(predictions, table, index.class_names, index)


def on_same_images(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations whose data were not found, with the images of the others.

    Such a one knows the images that it has a row of; one with neither object nor detection may be in another's alone.
    """
    known: dict[int, tuple[str, NDArray[np.int64]]] = {}
    for one in evaluations:
        for place, image_id in enumerate(one.image_ids.tolist()):
            known.setdefault(image_id, (one.file_names[place], one.sizes[place]))
    ids = np.array(sorted(known), dtype=np.int64)
    names, sizes = [known[i][0] for i in ids.tolist()], np.stack([known[i][1] for i in ids.tolist()])
    return [
        one
        if one.paths is not None
        else one._replace(image_ids=ids, file_names=names, sizes=sizes, metadata=[{} for _ in names])
        for one in evaluations
    ]


def _class_names(metrics: Path, table: pa.Table) -> list[str]:
    """Names by label: those of the metrics file, which has also the classes without a row."""
    labels, named = table["label"].to_numpy(), table["class_name"].to_pylist()
    known = dict(zip(labels.tolist(), named, strict=True))
    if metrics.is_file():
        try:
            names = list(dict(json.loads(metrics.read_text(encoding="utf-8"))["per_class"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{metrics}: holds no metrics of `detframe test`. Run it again, or delete the file."
            ) from error
        if all(label < len(names) and names[label] == name for label, name in known.items()):
            return names
        raise DataError(f"{metrics}: has other classes than the table beside it. Run `detframe test` again.")
    return [known.get(label, f"class {label}") for label in range(max(known) + 1)]


def _split(data: Path, stage: str) -> AnnotationIndex:
    """The split of a data set that is called as the stage, or its only one."""
    readings = read_splits(data)
    name = stage if stage in readings else next(iter(readings))
    if stage not in readings and len(readings) > 1:
        raise DataError(f"{data}: has no split {stage!r}; there are {', '.join(readings)}. Name the file of one.")
    return require_sound(labels_alone(readings[name]))


def _without_images(path: Path, table: pa.Table, names: list[str]) -> Evaluation:
    ids, first = np.unique(table["image_id"].to_numpy(), return_index=True)
    rows = table.take(pa.array(first))
    sizes = np.stack([rows["image_height"].to_numpy(), rows["image_width"].to_numpy()], axis=1).astype(np.int64)
    return Evaluation(str(path), table, names, ids, rows["file_name"].to_pylist(), sizes, None, [{} for _ in ids])


def _with_images(path: Path, table: pa.Table, names: list[str], index: AnnotationIndex) -> Evaluation:
    order = np.argsort(index.image_ids, kind="stable")
    ids = index.image_ids[order]
    alone = _without_images(path, table, names)
    place = np.searchsorted(ids, alone.image_ids).clip(max=len(ids) - 1)
    for i, (image_id, file_name) in enumerate(zip(alone.image_ids.tolist(), alone.file_names, strict=True)):
        if ids[place[i]] != image_id or index.file_names[order[place[i]]] != file_name:
            raise DataError(
                f"{path}: image {image_id} is {file_name}, which {index.source} does not have. Give the data set that "
                "was evaluated."
            )
    sizes = index.image_sizes[order].copy()
    sizes[place] = alone.sizes
    return Evaluation(
        source=str(path),
        table=table,
        class_names=names,
        image_ids=ids,
        file_names=[index.file_names[i] for i in order],
        sizes=sizes,
        paths=[index.path(i) for i in order] if index.path(0).is_file() else None,
        metadata=[index.metadata[i] if index.metadata else {} for i in order],
    )


def image_sizes(index: AnnotationIndex) -> NDArray[np.int64]:
    """Sizes ``[I, 2]`` of all images; where the format does not state them, the files do."""
    sizes: NDArray[np.int64] = index.image_sizes.copy()
    for i in np.flatnonzero((sizes == 0).any(axis=1)).tolist():
        sizes[i] = image_size(index.path(i))
    return sizes


def _detections(
    path: Path, rows: list[Any], index: AnnotationIndex, sizes: NDArray[np.int64]
) -> tuple[DetectionRows, NDArray[np.int64]]:
    """The file's rows in order of images, then of score, and the category ids.

    Raises:
        DataError: One of them is wrong; the message names it.
    """

    def fail(row: int, what: str, cure: str) -> DataError:
        return DataError(f"{path}: row {row} (counted from 0) {what}. {cure}")

    def require(sound: NDArray[np.bool_] | np.bool_, what: Callable[[int], str], cure: str) -> None:
        wrong = np.flatnonzero(~sound)
        if len(wrong):
            raise fail(int(wrong[0]), what(int(wrong[0])), cure)

    malformed = next((i for i, row in enumerate(rows) if not _is_result(row)), None)
    if malformed is not None:
        raise fail(malformed, "has no image_id, category_id, bbox of four numbers and score", "Write COCO results.")
    positions = {image_id: i for i, image_id in enumerate(index.image_ids.tolist())}
    labels = {category.id: label for label, category in enumerate(index.categories)}
    image = np.array([positions.get(row["image_id"], -1) for row in rows], dtype=np.int64)
    label = np.array([labels.get(row["category_id"], -1) for row in rows], dtype=np.int64)
    box = np.array([row["bbox"] for row in rows], dtype=np.float64)
    score = np.array([row["score"] for row in rows], dtype=np.float64)
    absent = f"which {index.source} does not have"
    known = ", ".join(f"{category.id} {category.name}" for category in index.categories[:10])
    belongs = "Give the data that the detector saw."
    require(image >= 0, lambda i: f"is of image {rows[i]['image_id']!r}, {absent}", belongs)
    require(label >= 0, lambda i: f"is of category {rows[i]['category_id']!r}, {absent}", f"It has: {known}.")
    require((score >= 0) & (score <= 1), lambda i: f"has a score of {score[i]}", "Scores in 0..1 are needed.")
    require(
        np.isfinite(box).all(axis=1) & (box[:, 2:] > 0).all(axis=1),
        lambda i: f"has the box {rows[i]['bbox']}",
        "Boxes are x, y, width and height in pixels, with sides above 0.",
    )
    extent = sizes[image][:, ::-1]
    require(
        (box[:, :2] < extent).all(axis=1) & (box[:, :2] + box[:, 2:] > 0).all(axis=1),
        lambda i: f"has the box {rows[i]['bbox']}, outside of its image of {extent[i, 0]} x {extent[i, 1]} pixels",
        belongs,
    )
    order = np.lexsort((-score, index.image_ids[image]))
    corners = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)[order]
    found = DetectionRows(
        images=torch.from_numpy(image[order]),
        boxes=torch.from_numpy(corners.astype(np.float32)),
        scores=torch.from_numpy(score[order].astype(np.float32)),
        labels=torch.from_numpy(label[order]),
    )
    ids = np.array([category.id for category in index.categories], dtype=np.int64)
    return found, ids


def _is_result(row: Any) -> bool:  # noqa: ANN401 - what JSON holds
    """Whether a row has the keys of COCO results, with numbers where they belong."""
    try:
        box, score = row["bbox"], row["score"]
        return (
            len(box) == 4
            and all(isinstance(value, (int, float)) for value in (*box, score))
            and isinstance(row["image_id"], (int, str))
            and isinstance(row["category_id"], (int, str))
        )
    except (TypeError, KeyError):
        return False


def _table(
    index: AnnotationIndex, sizes: NDArray[np.int64], detections: DetectionRows, category_ids: NDArray[np.int64]
) -> pa.Table:
    """Detections and objects, matched, as `detframe test` writes them."""
    owners = index.image_of_box()
    limits = torch.from_numpy(np.tile(sizes[owners][:, ::-1], 2)).float()  # [N, 4] width, height, width, height
    boxes = torch.minimum(torch.from_numpy(index.boxes).float().clamp(min=0), limits)
    live = (box_area(boxes) > 0).numpy()
    truths = TruthRows(
        images=torch.from_numpy(owners[live]),
        boxes=boxes[live],
        labels=torch.from_numpy(index.labels[live]),
        ignore=torch.from_numpy(index.ignore[live].copy()),
    )
    matches = match_rows(detections, truths, MATCH_IOU)
    truth_ids = index.annotation_ids[live]
    found, present = detections.images.numpy(), truths.images.numpy()
    slot = np.arange(len(found)) - np.searchsorted(index.image_ids[found], index.image_ids[found])

    def columns(kind: str, images: NDArray[np.int64], rows: DetectionRows | TruthRows) -> dict[str, Any]:
        labels, corners = rows.labels.numpy(), rows.boxes.numpy()
        return {
            "kind": np.full(len(images), kind),
            "image_id": index.image_ids[images],
            "file_name": np.array(index.file_names, dtype=object)[images],
            "image_height": sizes[images, 0],
            "image_width": sizes[images, 1],
            "label": labels,
            "category_id": category_ids[labels],
            "class_name": np.array(index.class_names, dtype=object)[labels],
            **{name: corners[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))},
        }

    found_truth, finder = matches.truth.numpy(), matches.detection.numpy()
    alone, unfound = found_truth < 0, finder < 0
    ignored, ignore = matches.ignored.numpy(), truths.ignore.numpy()
    iou_of_truth = np.where(unfound, 0.0, matches.iou.numpy()[finder]) if len(found) else np.zeros(len(present))
    ours = columns("detection", found, detections) | {
        "area": box_area(detections.boxes).numpy(),
        "score": detections.scores.numpy(),
        "slot": slot,
        "annotation_id": pa.array(truth_ids[found_truth] if len(truth_ids) else found_truth, mask=alone),
        "iou": pa.array(matches.iou.numpy(), mask=alone),
        "outcome": np.select([alone, ignored], ["false_positive", "ignored"], "true_positive"),
    }
    theirs = columns("truth", present, truths) | {
        "area": index.areas[live],
        "ignore": ignore,
        "slot": pa.array(slot[finder] if len(slot) else finder, mask=unfound),
        "annotation_id": truth_ids,
        "iou": pa.array(iou_of_truth, mask=unfound),
        "outcome": np.select([ignore, unfound], ["ignored", "missed"], "found"),
    }
    table = pa.concat_tables([schema_table(ours, len(found)), schema_table(theirs, len(present))])
    return image_by_image(table)

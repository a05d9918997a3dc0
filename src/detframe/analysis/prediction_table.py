"""The table of predictions: its columns, and the flat rows of it that every figure is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.metrics.rows import DetectionRows, TruthRows

MATCH_IOU = 0.5
"""IoU from which the table says that a detection found an object; boxes are there to match at any other."""

SCHEMA = pa.schema(
    [
        ("kind", pa.string()),  # "detection" or "truth"
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("image_height", pa.int32()),  # pixels, as decoded
        ("image_width", pa.int32()),
        ("label", pa.int32()),  # 0..C-1
        ("category_id", pa.int64()),  # of the annotation file, or label + 1 where it has no such class
        ("class_name", pa.string()),
        *((corner, pa.float32()) for corner in ("x1", "y1", "x2", "y2")),  # original pixels
        ("area", pa.float32()),  # square pixels: the annotation's own, or the detection's box
        ("score", pa.float32()),  # 0..1, null for truth
        ("ignore", pa.bool_()),  # of a truth: crowd, difficult or ambiguous; null for detections
        ("slot", pa.int32()),  # place of the detection in its image; of a truth: of the one that found it, or null
        ("annotation_id", pa.int64()),  # of the truth; of a detection: of the truth that it found, or null
        ("iou", pa.float32()),  # of the two, null where there is no match
        # of a detection "true_positive", "false_positive" or "ignored"; of a truth "found", "missed" or "ignored";
        # null where the images have no annotations
        ("outcome", pa.string()),
    ]
)
"""Columns of the table: one row per detection and one per ground-truth box, image by image."""


class TableRows(NamedTuple):
    """Detections and truths of a table, and where each stands in it."""

    detections: DetectionRows
    truths: TruthRows
    image_ids: Tensor  # [I] int64 ascending, of the places in `images`
    detection_rows: Tensor  # [D] int64, rows of the table
    truth_rows: Tensor  # [G] int64, rows of the table


def rows_of_table(table: pa.Table, image_ids: NDArray[np.int64] | None = None) -> TableRows:
    """Rows of a table of :data:`SCHEMA`.

    Args:
        table: Of detections and truths.
        image_ids: ``[I]`` ascending, of all images; None takes those of the table, without images that have no row.
    """
    found = _column(table, "kind") == "detection"
    if image_ids is None:
        image_ids = np.unique(_column(table, "image_id"))
    images = np.searchsorted(image_ids, _column(table, "image_id"))
    boxes = np.stack([_column(table, corner) for corner in ("x1", "y1", "x2", "y2")], axis=1)
    labels = _column(table, "label").astype(np.int64)
    detection_rows, truth_rows = found.nonzero()[0], (~found).nonzero()[0]
    return TableRows(
        DetectionRows(
            images=torch.from_numpy(images[detection_rows]),
            boxes=torch.from_numpy(boxes[detection_rows]),
            scores=torch.from_numpy(_column(table, "score").astype(np.float32)[detection_rows]),
            labels=torch.from_numpy(labels[detection_rows]),
        ),
        TruthRows(
            images=torch.from_numpy(images[truth_rows]),
            boxes=torch.from_numpy(boxes[truth_rows]),
            labels=torch.from_numpy(labels[truth_rows]),
            ignore=torch.from_numpy(_column(table, "ignore")[truth_rows].astype(bool)),
        ),
        image_ids=torch.from_numpy(image_ids),
        detection_rows=torch.from_numpy(detection_rows),
        truth_rows=torch.from_numpy(truth_rows),
    )


def image_by_image(table: pa.Table) -> pa.Table:
    """The rows in order of their images' ids; those of one image keep their order."""
    return table.take(pa.array(np.argsort(table["image_id"].to_numpy(), kind="stable")))


def schema_table(columns: dict[str, Any], rows: int) -> pa.Table:
    """A table of the schema; columns that are not given are null."""
    arrays = []
    for field in SCHEMA:
        values = columns.get(field.name)
        array = pa.nulls(rows) if values is None else values
        arrays.append((array if isinstance(array, pa.Array) else pa.array(array)).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def box_of_row(table: pa.Table, row: int) -> Tensor:
    """Box ``[4]`` xyxy, in pixels of the original, of one row."""
    return torch.tensor([table[corner][row].as_py() for corner in ("x1", "y1", "x2", "y2")])


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    values: NDArray[Any] = table[name].to_numpy()
    return values

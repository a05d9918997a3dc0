"""The table of predictions as the flat rows that confusion and error types are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.metrics.rows import DetectionRows, TruthRows


class TableRows(NamedTuple):
    """Detections and truths of a table, and where each stands in it."""

    detections: DetectionRows
    truths: TruthRows
    image_ids: Tensor  # [I] int64 ascending, of the places in `images`
    detection_rows: Tensor  # [D] int64, rows of the table
    truth_rows: Tensor  # [G] int64, rows of the table


def rows_of_table(table: pa.Table) -> TableRows:
    """Rows of a table of :data:`detframe.analysis.predictions.SCHEMA`; images without any row do not appear."""
    found = _column(table, "kind") == "detection"
    image_ids, images = np.unique(_column(table, "image_id"), return_inverse=True)
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


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    values: NDArray[Any] = table[name].to_numpy()
    return values

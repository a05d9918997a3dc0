"""A pool of images without labels, as `detframe predict --embeddings.write true` leaves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.embeddings import read_embeddings, read_image_embeddings
from detframe.analysis.prediction_table import rows_of_table
from detframe.data.annotations import DataError
from detframe.metrics.rows import DetectionRows


class Pool(NamedTuple):
    """``I`` images and the ``D`` detections in them."""

    folder: Path
    image_ids: NDArray[np.int64]  # [I] ascending
    file_names: list[str]  # [I], as `predict` was given them
    paths: list[Path]  # [I]
    sizes: NDArray[np.int64]  # [I, 2] (height, width) in pixels
    metadata: list[dict[str, Any]]  # [I]
    image_vectors: Tensor  # [I, E] unit vectors
    thumbnails: NDArray[np.uint8]  # [I, T]
    checkpoint_hash: str  # of the detector that looked, "" where it is not known
    detections: DetectionRows  # D, images by place
    vectors: Tensor  # [D, F] unit vectors
    class_names: dict[int, str]  # by label, of the classes that were found
    category_ids: dict[int, int]  # likewise


def read_pool(folder: Path) -> Pool:
    """Read what `predict` wrote.

    Raises:
        DataError: It wrote no embeddings, or there is no image.
    """
    boxes, whole = folder / "embeddings.parquet", folder / "image_embeddings.parquet"
    if not boxes.is_file() or not whole.is_file():
        missing = whole if boxes.is_file() else boxes
        raise DataError(
            f"{missing}: is not there. Name the folder that `detframe predict --ckpt_path BEST --data.predict IMAGES "
            f"--predictions.out {folder} --embeddings.write true` wrote."
        )
    embedded = read_image_embeddings(whole)
    images = embedded.table
    if not images.num_rows:
        raise DataError(f"{whole}: has no image. Give `predict` some, and look at what it says of those skipped.")
    table, vectors = read_embeddings(boxes)
    ids: NDArray[np.int64] = images["image_id"].to_numpy().copy()
    rows = rows_of_table(table, ids)
    stranger = set(table["image_id"].to_pylist()) - set(ids.tolist())
    if stranger:
        raise DataError(f"{boxes}: image {min(stranger)} is not in {whole.name} beside it. Run `predict` again.")
    names, categories = (table[column].to_pylist() for column in ("class_name", "category_id"))
    labels = table["label"].to_pylist()
    return Pool(
        folder=folder,
        image_ids=ids,
        file_names=images["file_name"].to_pylist(),
        paths=[Path(path) for path in images["path"].to_pylist()],
        sizes=np.stack([images[f"image_{side}"].to_numpy() for side in ("height", "width")], axis=1).astype(np.int64),
        metadata=[json.loads(text) for text in images["metadata"].to_pylist()],
        image_vectors=torch.from_numpy(embedded.vectors),
        thumbnails=embedded.thumbnails,
        checkpoint_hash=embedded.checkpoint_hash,
        detections=rows.detections,
        vectors=torch.from_numpy(vectors),
        class_names=dict(zip(labels, names, strict=True)),
        category_ids=dict(zip(labels, categories, strict=True)),
    )

"""What `predict` has found so far, in parts: a run over very many images can stop and go on, and be shared out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detframe.analysis.prediction_table import SCHEMA, image_by_image
from detframe.data.annotations import AnnotationIndex, DataError
from detframe.unfinished import unfinished

_KEY = b"detframe.part"


class ImageState(NamedTuple):
    """What tells an image from a later one of its name."""

    file_name: str
    bytes: int
    modified: int  # nanoseconds


def image_states(index: AnnotationIndex) -> list[ImageState]:
    """Of each image, in order; one that is missing has no bytes."""
    states = []
    for place, name in enumerate(index.file_names):
        try:
            found = index.path(place).stat()
        except OSError:
            states.append(ImageState(name, 0, 0))
        else:
            states.append(ImageState(name, found.st_size, found.st_mtime_ns))
    return states


class PredictionParts:
    """A folder of tables of detections, each with the images that it covers, those without detections included.

    Any number of processes may add to it. A part is there whole or not at all.

    Args:
        folder: Where they are.
        origin: What the detections depend on beside the image.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self.folder = folder
        self._origin = dict(origin)

    def covered(self) -> set[ImageState]:
        """Images that are done.

        Raises:
            DataError: A part has another origin, or cannot be read.
        """
        return {image for path in self._paths() for image in self._images(path)}

    def add(self, table: pa.Table, images: Iterable[ImageState]) -> None:
        """Write a part.

        Args:
            table: Detections, with :data:`SCHEMA`.
            images: Those that were looked at.
        """
        listed = sorted(images)
        content = json.dumps({"origin": self._origin, "images": listed})
        name = hashlib.sha256(content.encode()).hexdigest()[:16]
        with unfinished(self.folder / f"{name}.parquet") as path:
            pq.write_table(table.replace_schema_metadata({_KEY: content}), path)

    def clear(self) -> None:
        """Forget them all."""
        for path in self._paths():
            path.unlink()

    def merged(self, index: AnnotationIndex, states: Iterable[ImageState]) -> pa.Table:
        """Detections in images of an index, in the order of their ids, which are the index's.

        Args:
            index: The images as they are now.
            states: Theirs; what was found in an earlier state is left out.
        """
        left = set(states)
        tables = [SCHEMA.empty_table()]
        for path in self._paths():
            images = self._images(path)
            names = [image.file_name for image in images if image in left]
            left.difference_update(images)
            table = pq.read_table(path, schema=SCHEMA)
            kept = np.isin(table["file_name"].to_numpy(zero_copy_only=False).astype(str), names)
            tables.append(table.filter(pa.array(kept)))
        table = pa.concat_tables(tables)
        id_of = dict(zip(index.file_names, index.image_ids.tolist(), strict=True))
        ids = pa.array([id_of[name] for name in table["file_name"].to_pylist()], pa.int64())
        place = table.schema.get_field_index("image_id")
        return image_by_image(
            table.set_column(place, SCHEMA.field("image_id"), ids.cast(SCHEMA.field("image_id").type))
        )

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _images(self, path: Path) -> list[ImageState]:
        try:
            content = json.loads((pq.read_schema(path).metadata or {})[_KEY])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: is no part of `detframe predict`. Delete it.") from error
        if content["origin"] != self._origin:
            other = ", ".join(key for key, value in self._origin.items() if content["origin"].get(key) != value)
            raise DataError(
                f"{self.folder}: holds what was found with another {other}. Name another folder with "
                "--predictions.out, or delete this one."
            )
        return [ImageState(*image) for image in content["images"]]

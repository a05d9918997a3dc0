"""Parts of predictions: what is done is known again, and put together it is as if it had been done at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from detframe.analysis.prediction_parts import ImageState, PredictionParts, image_states
from detframe.analysis.prediction_table import SCHEMA, schema_table
from detframe.data.annotations import DataError
from detframe.data.unlabelled import read_images

ORIGIN = {"checkpoint": "c0ffee", "predictions.min_score": 0.05}


def rows(*found: tuple[int, str, float]) -> pa.Table:
    """Detections of (image id, file name, score)."""
    ids, names, scores = zip(*found, strict=True)
    columns = {"kind": ["detection"] * len(ids), "image_id": list(ids), "file_name": list(names), "score": list(scores)}
    return schema_table(columns, len(ids))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "c.png", "d.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path


def found_in(table: pa.Table) -> list[tuple[int, str, float]]:
    columns = (table[name].to_pylist() for name in ("image_id", "file_name", "score"))
    return [(number, name, round(score, 3)) for number, name, score in zip(*columns, strict=True)]


def test_parts_are_put_together_by_name_as_the_images_are_now(folder: Path) -> None:
    states = {state.file_name: state for state in image_states(read_images(str(folder / "images")))}
    parts = PredictionParts(folder / "parts", ORIGIN)
    assert parts.covered() == set()
    parts.add(rows((3, "d.png", 0.9), (1, "b.png", 0.8), (1, "b.png", 0.7)), [states["d.png"], states["b.png"]])
    parts.add(SCHEMA.empty_table(), [states["c.png"]])
    assert PredictionParts(folder / "parts", dict(ORIGIN)).covered() == set(states.values())
    (folder / "images" / "a.png").write_bytes(b"new")  # so that the others have later ids
    (folder / "images" / "d.png").write_bytes(b"changed")
    index = read_images(str(folder / "images"))
    now = image_states(index)
    assert {state.file_name for state in now if state not in parts.covered()} == {"a.png", "d.png"}
    assert found_in(parts.merged(index, now)) == [(2, "b.png", 0.8), (2, "b.png", 0.7)]
    parts.add(rows((1, "a.png", 0.6), (4, "d.png", 0.5)), [state for state in now if state not in parts.covered()])
    assert found_in(parts.merged(index, now)) == [
        (1, "a.png", 0.6), (2, "b.png", 0.8), (2, "b.png", 0.7), (4, "d.png", 0.5),
    ]  # fmt: skip
    parts.clear()
    assert parts.covered() == set()


def test_an_image_that_two_parts_have_counts_once(folder: Path) -> None:
    index = read_images(str(folder / "images"))
    states = image_states(index)
    parts = PredictionParts(folder / "parts", ORIGIN)
    parts.add(rows((1, "b.png", 0.8)), states[:1])
    parts.add(rows((1, "b.png", 0.8), (2, "c.png", 0.4)), states[:2])
    assert found_in(parts.merged(index, states)) == [(1, "b.png", 0.8), (2, "c.png", 0.4)]


def test_parts_of_another_origin_and_files_that_are_none_are_refused(folder: Path) -> None:
    PredictionParts(folder / "parts", ORIGIN).add(SCHEMA.empty_table(), [ImageState("b.png", 1, 2)])
    other = PredictionParts(folder / "parts", {**ORIGIN, "predictions.min_score": 0.2})
    with pytest.raises(DataError, match=r"another predictions\.min_score\. Name another folder"):
        other.covered()
    (folder / "none" / "x.parquet").parent.mkdir()
    (folder / "none" / "x.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match=r"x\.parquet: is no part"):
        PredictionParts(folder / "none", ORIGIN).covered()


def test_a_missing_image_has_a_state_too(folder: Path) -> None:
    index = read_images(str(folder / "images"))
    (folder / "images" / "c.png").unlink()
    states = image_states(index)
    assert states[1] == ImageState("c.png", 0, 0)
    assert states[0].bytes == 5
    assert np.all([state.modified > 0 for state in (states[0], states[2])])

"""Any detector's results become the table that a run writes; what does not belong to the data is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detframe.analysis.evaluation import read_results, read_run
from detframe.analysis.prediction_table import SCHEMA
from detframe.analysis.predictions import coco_results
from detframe.data.annotations import DataError


def test_results_become_the_table_and_the_table_the_same_results(detected: tuple[Path, Path]) -> None:
    truth, found = detected
    evaluation = read_results(found, truth)
    assert evaluation.table.schema == SCHEMA
    assert len(evaluation.image_ids) == 14
    assert evaluation.paths is not None
    assert all(path.is_file() for path in evaluation.paths)
    assert {row["camera"] for row in evaluation.metadata} == {"left", "right"}

    def plain(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
        numbers = np.array([[row["image_id"], row["category_id"], row["score"], *row["bbox"]] for row in rows])
        return numbers[np.lexsort(numbers[:, :3].round(4).T)]

    np.testing.assert_allclose(
        plain(coco_results(evaluation.table)), plain(json.loads(found.read_text())), rtol=1e-5, atol=1e-3
    )


def test_outcomes_are_those_of_pycocotools(detected: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = detected
    rows = [row for row in read_results(found, truth).table.to_pylist() if row["kind"] == "detection"]
    coco = COCO(str(truth))
    reference = COCOeval(coco, coco.loadRes(str(found)), "bbox")
    reference.params.iouThrs = np.array([0.5])
    reference.evaluate()
    hits = 0
    for image in (image for image in reference.evalImgs if image is not None and image["aRng"][1] > 1e9):
        hits += int(((image["dtMatches"][0] > 0) & ~image["dtIgnore"][0]).sum())
    capsys.readouterr()
    assert sum(row["outcome"] == "true_positive" for row in rows) == hits > 20


def test_a_run_is_read_with_and_without_its_images(detected: tuple[Path, Path], tmp_path: Path) -> None:
    truth, found = detected
    evaluation = read_results(found, truth)
    pq.write_table(evaluation.table, tmp_path / "test_predictions.parquet")
    alone = read_run(tmp_path)
    assert alone.paths is None
    assert alone.table.equals(evaluation.table)
    again = read_run(tmp_path, truth)
    assert again.paths == evaluation.paths
    assert again.class_names[: len(alone.class_names)] == alone.class_names


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "image": (lambda row: row.update(image_id=9999), "row 5 .* is of image 9999"),
    "class": (lambda row: row.update(category_id=77), "row 5 .* is of category 77"),
    "score": (lambda row: row.update(score=float("nan")), "row 5 .* has a score of nan"),
    "certainty": (lambda row: row.update(score=1.5), "row 5 .* has a score of 1.5"),
    "outside": (lambda row: row.update(bbox=[5000, 5000, 10, 10]), "row 5 .* outside of its image"),
    "flat": (lambda row: row.update(bbox=[5, 5, 0, 10]), "row 5 .* has the box"),
    "infinite": (lambda row: row.update(bbox=[5, 5, float("inf"), 10]), "row 5 .* has the box"),
    "short": (lambda row: row.update(bbox=[5, 5, 10]), "row 5 .* bbox of four numbers"),
    "key": (lambda row: row.pop("score"), "row 5 .* score"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_does_not_belong_is_named(case: str, detected: tuple[Path, Path], tmp_path: Path) -> None:
    truth, found = detected
    rows = json.loads(found.read_text())
    change, words = BAD[case]
    change(rows[5])
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=words):
        read_results(tmp_path / "bad.json", truth)


@pytest.mark.parametrize(("content", "words"), [("[]", "an empty list"), ("{}", "no list"), ("[{", "no valid JSON")])
def test_a_file_of_something_else_is_named(
    content: str, words: str, detected: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=words):
        read_results(tmp_path / "bad.json", detected[0])
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "nowhere.json", detected[0])


def test_other_data_is_refused_and_data_without_images_is_not(detected: tuple[Path, Path], tmp_path: Path) -> None:
    truth, found = detected
    content = json.loads(truth.read_text())
    (tmp_path / "moved.json").write_text(json.dumps(content))
    for image in content["images"]:
        image["id"] += 1000
    for annotation in content["annotations"]:
        annotation["image_id"] += 1000
    (tmp_path / "other.json").write_text(json.dumps(content))
    pq.write_table(read_results(found, truth).table, tmp_path / "test_predictions.parquet")
    with pytest.raises(DataError, match="does not have"):
        read_run(tmp_path, tmp_path / "other.json")
    evaluation = read_results(found, tmp_path / "moved.json")  # images are elsewhere
    assert evaluation.paths is None
    assert evaluation.table.equals(read_results(found, truth).table)
    with pytest.raises(DataError, match="holds no test_predictions"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"null", b"\xff\x00", b'{"per_class": 5}'])
def test_metrics_that_are_none_are_named(content: bytes, detected: tuple[Path, Path], tmp_path: Path) -> None:
    pq.write_table(read_results(detected[1], detected[0]).table, tmp_path / "test_predictions.parquet")
    (tmp_path / "test_metrics.json").write_bytes(content)
    with pytest.raises(DataError, match=r"test_metrics.json: holds no metrics of `detframe test`. Run it again"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("score", pa.array(["x"]), "its column 'score' is of string, not of float"),
        ("label", pa.array([0.5]), "its column 'label' is of double, not of int32"),
        ("label", pa.array([-1], pa.int32()), "has a label that is none, or below 0"),
        ("label", pa.array([None], pa.int32()), "has a label that is none, or below 0"),
    ],
)
def test_a_column_of_something_else_is_named(
    column: str, values: pa.Array, words: str, detected: tuple[Path, Path], tmp_path: Path
) -> None:
    table = read_results(detected[1], detected[0]).table.slice(0, 1)
    table = table.set_column(table.schema.get_field_index(column), column, values)
    pq.write_table(table, tmp_path / "test_predictions.parquet")
    with pytest.raises(DataError, match=f"test_predictions.parquet: {words}.* Write it anew"):
        read_run(tmp_path)

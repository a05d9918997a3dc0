from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from detframe.analysis.evaluation import read_results
from detframe.analysis.label_errors import label_errors, matches_mended
from detframe.cli import main
from detframe.data.annotations import DataError
from detframe.data.label_queue import KINDS, Label, read_queue
from detframe.data.sources import find_split

IMAGES, LEFT, FLIPPED, MOVED = 40, 7, 11, 17  # every so manieth label gets the error


def _write_labels(path: Path, annotations: list[dict[str, Any]]) -> None:
    categories = [{"id": 7, "name": "bolt"}, {"id": 3, "name": "nut"}]
    images = [{"id": 100 + i, "file_name": f"{i}.png", "width": 400, "height": 300} for i in range(IMAGES)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with detections of twelve objects an image, and labels of which some are wrong."""
    folder = tmp_path_factory.mktemp("label_errors")
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number in range(IMAGES * 12):
        image, place = divmod(number, 12)
        category = (7, 3)[int(rng.integers(2))]
        side = 30.0 if category == 7 else 44.0
        box = [20 + 95.0 * (place % 4) + rng.uniform(0, 10), 20 + 90.0 * (place // 4) + rng.uniform(0, 10), side, side]
        seen = [float(v) for v in np.array(box) + rng.normal(0, 0.8, 4)]
        score = float(rng.uniform(0.75, 0.95))
        results.append({"image_id": 100 + image, "category_id": category, "bbox": seen, "score": score})
        row = {"id": number + 1, "image_id": 100 + image, "category_id": category, "bbox": box, "iscrowd": 0}
        if number % LEFT == 0:
            continue
        if number % FLIPPED == 0:
            row["category_id"] = 10 - category
        elif number % MOVED == 0:
            angle, width, height = rng.uniform(0, 2 * np.pi), *rng.uniform(0.7, 1.4, 2)
            x, y = rng.uniform(0.2, 0.4) * side * np.array([np.cos(angle), np.sin(angle)])
            row["bbox"] = [box[0] + x, box[1] + y, side * width, side * height]
        annotations.append(row)
    _write_labels(folder / "test.json", annotations)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(f"data:\n  root: {folder}\n  test: test.json\n")
    pq.write_table(
        read_results(folder / "results.json", folder / "test.json").table, folder / "test_predictions.parquet"
    )
    return folder


def test_the_queue_says_what_is_wrong_and_how_to_mend_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label-errors", str(run), "--least", "0.5", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    queue = read_queue(run / "label_errors.jsonl")
    _, _, index = find_split(run / "test.json", {100: "0.png"}, "test")
    assert (queue.data, queue.split) == (str(run.resolve()), "test")
    assert queue.annotations_hash == index.annotations_hash()
    assert counts["suggestions"] == len(queue.suggestions) == sum(counts[kind] for kind in KINDS)
    chances = [suggestion.probability for suggestion in queue.suggestions]
    assert chances == sorted(chances, reverse=True)
    boxes = {int(number): tuple(box) for number, box in zip(index.annotation_ids, index.boxes.round(3), strict=True)}
    wrong = {kind: [s for s in queue.suggestions if s.kind == kind] for kind in KINDS}
    flipped = {n + 1 for n in range(IMAGES * 12) if n % FLIPPED == 0 and n % LEFT}
    moved = {n + 1 for n in range(IMAGES * 12) if n % MOVED == 0 and n % LEFT and n % FLIPPED}
    assert {s.annotation_id for s in wrong["wrong-class"]} == flipped
    found = {s.annotation_id for s in wrong["bad-box"]}
    assert found <= moved
    assert len(found) >= 0.6 * len(moved)  # a detector that is a little off itself cannot tell all of them
    left_out = len(range(0, IMAGES * 12, LEFT))  # more than are put in to learn from: that makes it careful
    assert 0.5 * left_out <= len(wrong["missing"]) <= left_out
    assert not wrong["spurious"]
    assert not wrong["duplicate"]
    for suggestion in wrong["wrong-class"]:
        assert suggestion.before is not None
        assert suggestion.after is not None
        assert suggestion.annotation_id is not None
        assert suggestion.before.box == boxes[suggestion.annotation_id]
        assert {suggestion.before.class_name, suggestion.after.class_name} == {"bolt", "nut"}
        assert f"sees {suggestion.after.class_name} here with a score of 0." in suggestion.reason
    for suggestion in wrong["missing"]:
        assert suggestion.before is None
        assert suggestion.annotation_id is None
        assert "no label touches it" in suggestion.reason
    table = pq.read_table(run / "label_errors.parquet").to_pylist()
    assert sum(row["kind"] == "truth" for row in table) == len(index.labels)
    of_id = {row["annotation_id"]: row for row in table if row["kind"] == "truth"}
    assert all(of_id[number]["wrong-class"] > 0.5 for number in flipped)


def test_the_same_seed_gives_the_same_queue(run: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert label_errors(run, out=tmp_path / f"{name}.jsonl", json=True) == 0
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()


def test_labels_that_changed_since_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((run / "test.json").read_text())
    content["annotations"][4]["bbox"][0] += 3
    (tmp_path / "test.json").write_text(json.dumps(content))
    assert main(["label-errors", str(run), "--data", str(tmp_path / "test.json"), "--out", str(tmp_path / "q")]) == 2
    assert f"label {content['annotations'][4]['id']} is not in" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(("options", "message"), [(["--least", "2"], "--least has 2.0"), ([], "holds no test_pred")])
def test_bad_input_gets_a_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label-errors", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_split_of_some_images_is_found(run: Path, tmp_path: Path) -> None:
    place, split, index = find_split(run / "config.yaml", {100: "0.png", 139: "39.png"}, "val")
    assert (place, split, len(index)) == (run, "test", IMAGES)
    with pytest.raises(DataError, match=r"no split of it holds the 1 images"):
        find_split(run / "config.yaml", {100: "1.png"}, "test")


def test_matches_that_a_mended_label_brings() -> None:
    label = Label((0.0, 0.0, 10.0, 10.0), "bolt")
    assert matches_mended(None, label) == matches_mended(label, None) == 1
    assert matches_mended(label, label._replace(class_name="nut")) == 2
    # An IoU of 0.625 reaches three of the ten thresholds: 0.5, 0.55 and 0.6.
    assert matches_mended(label, label._replace(box=(0.0, 0.0, 10.0, 6.25))) == pytest.approx(2 * 0.7)

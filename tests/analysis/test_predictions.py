"""The table of predictions holds what the metric saw, no more and no less."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detframe.analysis.prediction_table import rows_of_table
from detframe.analysis.predictions import PredictionWriter, coco_results, detection_rows, gather, truth_rows
from detframe.data.annotations import AnnotationIndex, Category, build_index
from detframe.data.coco import write_coco
from detframe.data.datamodule import DetectionDataModule
from detframe.matching import Matches, match
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.error_costs import error_costs
from detframe.metrics.errors import find_errors
from detframe.metrics.mean_ap import MeanAveragePrecision
from detframe.models.backbones import TimmBackbone
from detframe.structures import Batch, Detections, Targets
from detframe.training.task import DetectionTask

NAMES = ["nut", "bolt"]
IMAGES = 12


def make_index() -> AnnotationIndex:
    """Images with ids in no order, an image without boxes, and ignore boxes; category ids are not labels."""
    rng = np.random.default_rng(0)
    counts = [0 if i == 3 else int(rng.integers(1, 8)) for i in range(IMAGES)]
    image_of_box = np.repeat(np.arange(IMAGES), counts)
    corners = rng.uniform(0, 150, (len(image_of_box), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 120, corners.shape)], axis=1).astype(np.float32)
    return build_index(
        source=Path("drawn"),
        image_root=Path(),
        categories=(Category(7, "nut"), Category(4, "bolt")),
        image_ids=rng.permutation(100)[:IMAGES],
        file_names=[f"{i}.png" for i in range(IMAGES)],
        image_sizes=np.full((IMAGES, 2), 300),
        image_of_box=image_of_box,
        boxes=boxes.astype(np.float64),
        labels=rng.integers(0, 2, len(boxes)),
        ignore=rng.random(len(boxes)) < 0.15,
        areas=np.full(len(boxes), np.nan),
        annotation_ids=rng.permutation(1000)[: len(boxes)],
    )


def make_batch(index: AnnotationIndex) -> tuple[Detections, Batch]:
    """The index as one batch, and detections near its boxes and elsewhere, with tied scores."""
    rows = [index.rows(i) for i in range(IMAGES)]

    def pad(values: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
        parts = [torch.from_numpy(values[row].copy()).to(dtype) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    lengths = torch.tensor([row.stop - row.start for row in rows])
    boxes = pad(index.boxes, torch.float32)
    valid = torch.arange(boxes.shape[1]) < lengths[:, None]
    targets = Targets(boxes, pad(index.labels, torch.int64), pad(index.ignore, torch.bool), valid)
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(0, boxes.shape[1], (IMAGES, 20), generator=generator)
    shift = torch.randn(IMAGES, 20, 4, generator=generator) * 6
    found = boxes.gather(1, which[..., None].expand(-1, -1, 4)) + shift
    found[..., 2:] = torch.maximum(found[..., 2:], found[..., :2] + 1)
    scores = torch.randint(1, 9, (IMAGES, 20), generator=generator).div(10).sort(dim=1, descending=True).values
    detections = Detections(
        boxes=found,
        scores=scores,
        labels=targets.labels.gather(1, which),
        valid=torch.rand(IMAGES, 20, generator=generator) < 0.8,
    )
    batch = Batch(
        images=torch.zeros(IMAGES, 3, 1, 1),
        targets=targets,
        original_boxes=boxes,
        areas=pad(index.areas, torch.float32),
        annotation_ids=pad(index.annotation_ids, torch.int64),
        image_ids=torch.from_numpy(index.image_ids),
        original_sizes=torch.full((IMAGES, 2), 300),
        transforms=torch.tensor([1.0, 1, 0, 0]).expand(IMAGES, 4),
    )
    return detections, batch


@pytest.fixture(scope="module")
def index() -> AnnotationIndex:
    return make_index()


@pytest.fixture(scope="module")
def table(index: AnnotationIndex) -> pa.Table:
    detections, batch = make_batch(index)
    truth = batch.targets
    matches = Matches(*(tensor.squeeze(-1) for tensor in match(detections, truth, [0.5])))
    return gather(
        [detection_rows(detections, batch, matches, index, NAMES), truth_rows(truth, batch, matches, index, NAMES)]
    )


def rows_of(table: pa.Table, kind: str) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["kind"] == kind]


def test_every_detection_and_every_object_has_a_row(table: pa.Table, index: AnnotationIndex) -> None:
    detections, _ = make_batch(index)
    assert len(rows_of(table, "detection")) == int(detections.valid.sum())
    truth = rows_of(table, "truth")
    assert sorted(row["annotation_id"] for row in truth) == sorted(index.annotation_ids.tolist())
    ids = table["image_id"].to_pylist()
    assert ids == sorted(ids)
    by_id = dict(zip(index.annotation_ids.tolist(), range(len(index.boxes)), strict=True))
    for row in truth:
        i = by_id[row["annotation_id"]]
        assert [row[corner] for corner in ("x1", "y1", "x2", "y2")] == index.boxes[i].tolist()
        assert row["class_name"] == NAMES[index.labels[i]]
        assert row["category_id"] == index.categories[index.labels[i]].id
        assert row["ignore"] == bool(index.ignore[i])


def test_both_sides_of_a_match_name_each_other(table: pa.Table) -> None:
    found = {(row["image_id"], row["slot"]): row for row in rows_of(table, "detection")}
    truth = {row["annotation_id"]: row for row in rows_of(table, "truth")}
    pairs = 0
    for row in truth.values():
        assert (row["outcome"] == "ignored") == row["ignore"]
        if row["outcome"] == "missed":
            assert row["slot"] is None
        if row["outcome"] == "found":
            other = found[row["image_id"], row["slot"]]
            assert other["annotation_id"] == row["annotation_id"]
            assert other["outcome"] == "true_positive"
            assert other["iou"] == row["iou"] >= 0.5
            assert other["label"] == row["label"]
            pairs += 1
    assert pairs == sum(row["outcome"] == "true_positive" for row in found.values()) > 5
    for row in found.values():
        assert (row["annotation_id"] is None) == (row["outcome"] == "false_positive")
        if row["outcome"] == "ignored":
            assert truth[row["annotation_id"]]["ignore"]


def test_results_of_the_table_have_the_figures_of_pycocotools(
    table: pa.Table, index: AnnotationIndex, tmp_path: Path
) -> None:
    write_coco(index, tmp_path / "truth.json")
    (tmp_path / "found.json").write_text(json.dumps(coco_results(table)))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metric = MeanAveragePrecision()
    detections, batch = make_batch(index)
    metric.update_batch(detections, batch.targets, batch.areas, batch.image_ids)
    assert 0.1 < float(metric.compute()["map"]) < 0.9
    assert float(metric.compute()["map"]) == pytest.approx(evaluation.stats[0], abs=1e-6)


def test_without_annotations_nothing_is_said_of_matches(index: AnnotationIndex) -> None:
    detections, batch = make_batch(index)
    for row in detection_rows(detections, batch, None, index, ["nut", "screw"]).to_pylist():
        assert row["outcome"] is row["iou"] is row["annotation_id"] is None
        assert row["category_id"] == row["label"] + 1  # the file has no screw


def test_errors_of_the_table_have_its_outcomes_and_the_ap_of_the_metric(
    table: pa.Table, index: AnnotationIndex
) -> None:
    rows = rows_of_table(table)
    errors = find_errors(rows.detections, rows.truths, 2)
    names = {FALSE_POSITIVE: "false_positive", TRUE_POSITIVE: "true_positive", IGNORED: "ignored"}
    outcomes = table["outcome"].to_pylist()
    annotations = table["annotation_id"].to_pylist()
    for i, row in enumerate(rows.detection_rows.tolist()):
        outcome = int(errors.outcome[i])
        assert outcomes[row] == names[outcome]
        if outcome != FALSE_POSITIVE:
            assert annotations[row] == annotations[int(rows.truth_rows[errors.truth[i]])]
    for i, row in enumerate(rows.truth_rows.tolist()):
        found = int(errors.found_by[i]) >= 0
        assert outcomes[row] == ("ignored" if rows.truths.ignore[i] else "found" if found else "missed")
    image_ids = table["image_id"].to_numpy()
    assert rows.image_ids[rows.truths.images].tolist() == image_ids[rows.truth_rows.numpy()].tolist()
    metric = MeanAveragePrecision()
    detections, batch = make_batch(index)
    metric.update_batch(detections, batch.targets, batch.areas, batch.image_ids)
    assert error_costs(errors, 2).ap == pytest.approx(float(metric.compute()["map_50"]), abs=1e-6)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about a loader without workers and the like
def test_pictures_are_drawn_beside_the_images_and_never_over_them(tmp_path: Path) -> None:
    """Neither where a glob names images by their whole path, nor where two differ in nothing but the suffix."""
    torch.manual_seed(0)
    task = DetectionTask(class_names=NAMES, backbone=partial(TimmBackbone, name="test_resnet"), image_size=(64, 64))
    camera = tmp_path / "camera"
    camera.mkdir()
    for name in ("a.jpg", "a.png", "b[1].png"):
        Image.new("RGB", (64, 48), (90, 120, 150)).save(camera / name)
    before = {path.name: path.read_bytes() for path in camera.iterdir()}

    def predict(source: Path, draw: bool) -> set[str]:
        writer = PredictionWriter(tmp_path / "found", draw=draw, min_score=0.0)
        options = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
        one = Trainer(accelerator="cpu", callbacks=[writer], **options)  # type: ignore[arg-type]
        one.predict(task, datamodule=DetectionDataModule(predict=str(source), image_size=(64, 64)))
        assert {path.name: path.read_bytes() for path in camera.iterdir()} == before
        assert len(pa.parquet.read_table(tmp_path / "found" / "predictions.parquet")) > 0
        return {path.name for path in (tmp_path / "found" / "images").rglob("*.jpg")}

    assert predict(camera / "*.*", draw=False) == set()
    assert predict(camera / "*.*", draw=True) == {"a.jpg", "a.png.jpg", "b[1].png.jpg"}  # asked for later
    assert predict(camera / "b[1].png", draw=True) == {"a.jpg", "a.png.jpg", "b[1].png.jpg"}

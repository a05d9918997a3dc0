"""What a run in W&B holds, read back from the files of an offline run."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import wandb
import yaml
from PIL import Image
from wandb.proto import wandb_internal_pb2

from detframe.analysis.evaluation import read_results
from detframe.analysis.evidence import WorstImage, examine
from detframe.analysis.prediction_table import TableRows
from detframe.analysis.wandb_charts import MOST_CLASSES, charts, panel
from detframe.analysis.wandb_evidence import data_artifact
from detframe.cli import main
from detframe.data.annotations import AnnotationIndex
from detframe.data.coco import read_coco
from detframe.data.scenes import CLASS_NAMES
from detframe.data.synthetic import write_dataset
from detframe.metrics.rows import DetectionRows, TruthRows

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
CHARTS = (
    *("precision_recall_50", "precision_recall_75", "precision_by_score", "recall_by_score", "f1_by_score"),
    *("reliability", "reliability_counts", "confusion", "error_types"),
)


@pytest.fixture(autouse=True)
def _staged_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))


def many_classes(count: int) -> TableRows:
    """An image of two objects for each class, of which one is found, at a score that falls with the label."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    labels = torch.arange(count)
    return TableRows(
        DetectionRows(labels, boxes[:1].expand(count, 4), 0.99 - labels / count / 2, labels),
        TruthRows(
            labels.repeat_interleave(2),
            boxes.repeat(count, 1),
            labels.repeat_interleave(2),
            torch.zeros(2 * count, dtype=torch.bool),
        ),
        image_ids=labels,
        detection_rows=labels,
        truth_rows=labels,
    )


def test_charts_say_what_the_evidence_says_of_as_many_classes_as_a_page_can_show() -> None:
    names = [f"class {i}" for i in range(25)]
    made = charts(examine(many_classes(25), 25), names)
    tables = {name: chart if isinstance(chart, wandb.Table) else chart.table for name, chart in made.items()}
    assert set(tables) == {*CHARTS, "operating_points"}
    assert tables["precision_recall_50"].data == [[name, 0.5, 1.0] for name in names[:MOST_CLASSES]]
    lines = tables["recall_by_score"].data
    assert {line for _, line, _ in lines} == {"all classes", *names[:MOST_CLASSES]}
    assert [recall for score, line, recall in lines if line == "class 0" and score > 0.9] == [0.0] + [0.5] * 9
    assert tables["operating_points"].data[0][:2] == ["class 0", 2]
    assert tables["operating_points"].data[0][3:] == [1.0, 0.5, pytest.approx(2 / 3), 1, 0, 1]
    assert len(tables["operating_points"].data) == 25
    cells = {(actual, predicted): count for actual, predicted, count in tables["confusion"].data if count}
    diagonal = {(name, name): 1 for name in names[:MOST_CLASSES]} | {("other classes", "other classes"): 5}
    missed = {(name, "background"): 1 for name in names[:MOST_CLASSES]} | {("other classes", "background"): 5}
    assert cells == diagonal | missed
    assert {row[0]: row[1] for row in tables["error_types"].data}["missed"] == 25
    assert sum(count for _, count in tables["reliability_counts"].data) == 25


def test_a_large_image_is_shown_small_and_its_boxes_with_it(tmp_path: Path) -> None:
    Image.new("RGB", (2048, 1024)).save(tmp_path / "large.png")
    Image.new("RGB", (300, 800)).save(tmp_path / "tall.png")
    worst = [WorstImage(1, 0.3, 2, 1, 0), WorstImage(0, 0.2, 2, 1, 0)]
    paths = [tmp_path / "large.png", tmp_path / "tall.png"]
    shown, other = panel(worst, paths, many_classes(3), ["nut", "bolt", "ring"], 0.5)
    assert other._path is not None
    with Image.open(other._path) as content:
        assert content.size == (1024, 800)  # the panel has one size
    assert shown._path is not None
    assert shown._boxes is not None
    with Image.open(shown._path) as content:
        assert (content.size, content.format) == ((1024, 800), "JPEG")
    groups = {name: boxes._val for name, boxes in shown._boxes.items()}
    (found,) = groups["predictions"]
    assert found["position"] == {"minX": 0, "minY": 0, "maxX": 5, "maxY": 5}
    assert found["scores"]["score"] == pytest.approx(0.99 - 1 / 6)
    assert [box["box_caption"] for box in groups["ground_truth"]] == ["bolt", "bolt"]
    assert shown._caption == "image 1: 1 missed, 0 false"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wandb") / "parts"
    write_dataset(folder, train=16, val=8, test=9)
    return folder


def test_a_version_of_the_data_is_its_content_wherever_it_lies(data: Path) -> None:
    index = read_coco(data / "test.json").index

    def digest(index: AnnotationIndex, images: str = "b") -> str:
        return str(data_artifact("parts-test", index, {"annotations_hash": "a", "images_hash": images}).digest)

    moved = dataclasses.replace(index, source=Path("elsewhere"), image_root=Path("elsewhere"))
    assert digest(index) == digest(moved)
    assert digest(index) != digest(index, images="c")
    assert digest(index) != digest(dataclasses.replace(index, boxes=index.boxes + 1))
    metadata = data_artifact("parts-test", index, {}).metadata
    assert metadata["images"] == 9
    assert sum(metadata["instances"].values()) == metadata["boxes"] == len(index.boxes)


Record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # made when it is imported


def records(run: Path) -> Iterator[Any]:
    """Records of an offline run: LevelDB's log format, in blocks of 32 KiB, behind 7 bytes of W&B's own."""
    data = next(run.glob("*.wandb")).read_bytes()
    place, content = 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of it
            yield Record.FromString(content)
            content = b""


def row(record: Any) -> dict[str, Any]:  # noqa: ANN401
    """A row of the history; parts of a value by the path to them."""
    return {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def detframe(folder: Path, *arguments: str) -> str:
    """What the real command line prints, called in a folder."""
    # Of W&B's own nothing is handed on: a process that finds its parent's service leaves its files to that.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "_WANDB_"))}
    environment |= {"WANDB_MODE": "offline"}
    command = [sys.executable, "-W", "ignore", "-m", "detframe", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A folder with a run of two epochs by the real command line, below it W&B's."""
    config = yaml.safe_load(CONFIG.read_text())
    config["data"] |= {"synthetic": False, "root": str(data), "image_size": [64, 80]}
    config["trainer"] |= {"max_epochs": 2, "check_val_every_n_epoch": 1, "log_every_n_steps": 1}
    folder = data.parent
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    detframe(folder, "fit", "--config", "config.yaml")
    return folder / "runs"


@pytest.mark.slow
def test_an_offline_run_holds_its_page_its_data_and_its_checkpoint(run: Path) -> None:
    folder = next((run / "wandb").glob("offline-run-*"))
    written = list(records(folder))
    rows = [row(record) for record in written if record.WhichOneof("record_type") == "history"]
    keys = set().union(*rows)
    for name in CHARTS:
        assert f"test/{name}_table/path" in keys, name
    assert {"test/operating_points/path", "test/per_class/path", "test/worst_images/count"} <= keys
    assert {"val/ap_by_class_table/path", "val/samples/count", "test/d_ece", "test/laece_0"} <= keys
    for path in {values[key] for values in rows for key in values if key.endswith("table/path")}:
        assert (folder / "files" / path).is_file()
    assert len(list((folder / "files" / "media" / "images" / "test").glob("worst_images_*.jpg"))) == 9
    drawn = "/".join(("_wandb", "visualize", "test/confusion"))
    assert drawn in {"/".join(item.nested_key) for record in written for item in record.config.update}

    axes = {record.metric.name: record.metric.step_metric for record in written if record.HasField("metric")}
    assert axes["val/map"] == axes["val/ap/nut"] == "epoch"
    assert [values["epoch"] for values in rows if "val/ap/nut" in values] == [0, 1]

    artifacts = {
        record.artifact.name: record.artifact
        for record in written
        if record.HasField("artifact") and record.artifact.type != "run_table"
    }
    model = next(artifacts.pop(name) for name in list(artifacts) if name.startswith("model-"))
    assert set(artifacts) == {"parts-train", "parts-val", "parts-test"}
    ours = run / "quickstart" / "version_0"
    metrics = json.loads((ours / "test_metrics.json").read_text())
    data = json.loads(artifacts["parts-test"].metadata)
    assert data["hash"] == metrics["dataset_hash"]
    files = {entry.path: Path(entry.local_path) for entry in artifacts["parts-test"].manifest.contents}
    assert set(files) == {"manifest.json", "annotations.json"}
    assert run in files["annotations.json"].parents
    assert len(json.loads(files["annotations.json"].read_text())["images"]) == 9

    assert set(model.aliases) == {"best", "latest"}
    metadata = json.loads(model.metadata)
    assert metadata["test"]["checkpoint_hash"] == metrics["checkpoint_hash"]
    assert metadata["data"]["test"] == {"artifact": "parts-test", "hash": data["hash"]}
    (entry,) = model.manifest.contents
    assert Path(entry.local_path).samefile(ours / "checkpoints" / "best.ckpt")

    confusion = next((folder / "files" / "media" / "table" / "test").glob("confusion_table_*"))
    cells = json.loads(confusion.read_text())["data"]
    assert {actual for actual, _, _ in cells} == {*CLASS_NAMES, "background"}
    objects = np.sum([count for actual, _, count in cells if actual != "background"])
    assert objects == data["boxes"] - data["ignored_boxes"]


def logged(output: str) -> tuple[Path, dict[str, Any], list[Any]]:
    """Folder, figures and records of the W&B run that `diagnose` names in what it prints."""
    folder = Path(output.strip().rpartition("Logged to W&B in ")[2])
    written = list(records(folder))
    (figures,) = (row(record) for record in written if record.WhichOneof("record_type") == "history")
    return folder, figures, written


@pytest.mark.slow
def test_a_diagnosis_goes_where_its_run_went(run: Path, tmp_path: Path) -> None:
    ours = run / "quickstart" / "version_0"
    options = [str(ours), "--replicates", "10"]
    folder, figures, written = logged(detframe(tmp_path, "diagnose", *options))
    assert folder.parent == run / "wandb"
    assert not list(tmp_path.iterdir())
    report = json.loads((ours / "diagnosis" / "report.json").read_text())
    assert figures["test/map"] == report["map"]
    for name in CHARTS:
        assert (folder / "files" / figures[f"test/{name}_table/path"]).is_file(), name
    first = json.loads((folder / "files" / figures["test/what_to_do_first/path"]).read_text())
    assert [dict(zip(first["columns"], cells, strict=True)) for cells in first["data"]] == report["what_to_do_first"]
    classes = json.loads((folder / "files" / figures["test/per_class/path"]).read_text())
    cells = dict(zip(classes["columns"], classes["data"][0], strict=True))
    told = report["per_class"][cells["class"]]
    assert [cells["ap_interval_low"], cells["olrp_localisation"]] == [
        told["ap_interval"][0],
        told["olrp"]["localisation"],
    ]
    page = folder / "files" / figures["test/page/path"]
    assert page.read_text() == (ours / "diagnosis" / "index.html").read_text()
    (begun,) = (record.run for record in written if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.job_type) == ("detframe", "diagnosis")
    assert begun.display_name == "diagnosis of quickstart/version_0"
    (artifact,) = (r.artifact for r in written if r.HasField("artifact") and r.artifact.type == "diagnosis")
    kept = {entry.path for entry in artifact.manifest.contents}
    assert kept == {"index.html", "report.json", "images.parquet", "predictions.parquet", "slices.parquet"}

    assert "W&B" not in detframe(tmp_path, "diagnose", *options, "--wandb", "false")


@pytest.mark.slow
def test_any_detector_is_logged_where_that_is_asked_for(detected: tuple[Path, Path], tmp_path: Path) -> None:
    given = ["--predictions", str(detected[1]), "--data", str(detected[0]), "--out", str(tmp_path / "out")]
    quick = ["--replicates", "10", "--measured", "0"]
    folder, figures, _ = logged(detframe(tmp_path, "diagnose", *given, *quick, "--wandb"))
    assert folder.parent == tmp_path / "out" / "wandb"
    assert figures["test/worst_images/count"] > 0


def test_a_logger_that_cannot_be_made_is_named(
    detected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = read_results(detected[1], detected[0])
    pq.write_table(evaluation.table, tmp_path / "test_predictions.parquet")
    logger = {"class_path": "elsewhere.WandbLogger", "init_args": {"project": "parts"}}
    config = {"trainer": {"logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger"}, logger]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["diagnose", str(tmp_path), "--replicates", "2"]) == 2
    error = capsys.readouterr().err
    assert "elsewhere.WandbLogger: cannot be made" in error
    assert len(error.splitlines()) == 1

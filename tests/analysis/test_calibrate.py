"""A made-up run: a tiny checkpoint and tables whose scores promise too much."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from detframe.analysis.calibration_figures import (
    FITS,
    Method,
    Target,
    calibrated,
    cross_calibrated,
    errors,
    fit,
    mean_ap,
    raw_scores,
    split_of_table,
)
from detframe.analysis.prediction_table import SCHEMA
from detframe.cli import main
from detframe.models.backbones import TimmBackbone
from detframe.models.heads.dense import DenseHead
from detframe.models.necks import FPN
from detframe.score_curves import ScoreCurves, calibrate_scores
from detframe.training.task import DetectionTask

NAMES = ["nut", "bolt"]
IMAGES = 200
pytestmark = pytest.mark.filterwarnings("ignore")  # jsonargparse's and Lightning's own


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def box(x: float, y: float, side: float = 20.0) -> dict[str, float]:
    return {"x1": x, "y1": y, "x2": x + side, "y2": y + side, "area": side * side}


def made_up(seed: int, images: int = IMAGES, names: list[str] = NAMES) -> pa.Table:
    """Objects on a grid, each perhaps found, and false detections between; true in half as many cases as they say."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for image in range(images):
        for place in range(8):
            label = int(rng.random() < 0.2)
            common = {"image_id": image, "label": label, "class_name": names[label], "category_id": label + 1}
            x, y = 50.0 * (place % 4), 50.0 * (place // 4)
            score = float(rng.beta(1.2, 1.0))
            true = rng.random() < score**2
            if true:
                rows.append({"kind": "truth", "ignore": bool(rng.random() < 0.1), **box(x, y), **common})
            shift = rng.uniform(-3, 3) if true else 100 + 50 * place
            rows.append({"kind": "detection", "score": score, **box(x + shift, y), **common})
    return table_of(rows)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its checkpoint and, beside it, what `validate` and `test` would have written."""
    folder = tmp_path_factory.mktemp("runs")
    run = folder / "version_0"
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "backbone": partial(TimmBackbone, name="test_resnet"),
        "neck": partial(FPN, channels=16),
        "head": partial(DenseHead, width=16, depth=1),
    }
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(DetectionTask(class_names=NAMES, **parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.save_checkpoint(run / "checkpoints" / "best.ckpt")
    splits = {stage: {"hash": f"data of {stage}"} for stage in ("val", "test")}
    (run / "data_manifest.json").write_text(json.dumps({"splits": splits}))
    write_tables(folder / "version_1", run, "val", made_up(0))
    write_tables(folder / "version_2", run, "test", made_up(1))
    return folder


def write_tables(folder: Path, run: Path, stage: str, table: pa.Table, data: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    checkpoint = hashlib.sha256((run / "checkpoints" / "best.ckpt").read_bytes()).hexdigest()
    hashes = {"checkpoint_hash": checkpoint, "dataset_hash": data or f"data of {stage}"}
    (folder / f"{stage}_metrics.json").write_text(json.dumps(hashes))
    pq.write_table(table, folder / f"{stage}_predictions.parquet")


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "runs")
    return tmp_path / "runs" / "version_0"


def test_errors_fall_map_stays_and_the_checkpoint_gives_the_new_scores(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "checkpoints" / "best.ckpt").read_bytes()
    assert main(["calibrate", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run / "calibration.json").read_text())
    assert printed["fit_seconds"] < 1
    for stage in ("val", "test"):
        old, new = printed[stage]["before"], printed[stage]["after"]
        assert old["d_ece"] > 0.1
        assert new["d_ece"] < 0.4 * old["d_ece"]
        assert new["map"] == pytest.approx(old["map"], abs=1e-6)
        assert sum(row["objects"] for row in new["per_class"].values()) > 50
    assert (run / "calibration.html").read_text().count("<svg") == 3

    path = run / "checkpoints" / "calibrated.ckpt"
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before
    content = torch.load(path, weights_only=True)
    assert content["calibration"]["source_hash"] == hashlib.sha256(before).hexdigest()
    task = DetectionTask.load_from_checkpoint(path, weights_only=True).eval()
    plain = DetectionTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True).eval()
    assert task.detector.calibration is not None
    split = split_of_table(made_up(0))
    curves = fit(split, "precision", "isotonic", 2, np.ones(IMAGES, dtype=bool))
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        raw, found = plain(images), task(images)
    expected = torch.where(raw.valid, calibrate_scores(raw.scores, raw.labels, curves), 0.0)
    torch.testing.assert_close(found.scores, expected.sort(dim=1, descending=True).values)


def test_a_score_can_promise_an_iou_instead(run: Path) -> None:
    out = run / "other" / "iou.v1.ckpt"
    assert main(["calibrate", str(run), "--target", "iou", "--out", str(out)]) == 0
    figures = json.loads((out.parent / "iou.v1.json").read_text())
    assert figures["test"]["after"]["laece0"] < 0.4 * figures["test"]["before"]["laece0"]
    assert (out.parent / "iou.v1.html").is_file()
    assert not (run / "calibration.json").exists()


def test_a_score_can_be_near_both_promises(run: Path) -> None:
    found = {}
    for target in ("precision", "iou", "both"):
        out = run / f"{target}.ckpt"
        assert main(["calibrate", str(run), "--target", target, "--out", str(out)]) == 0
        figures = json.loads(out.with_suffix(".json").read_text())
        assert figures["fit_seconds"] < 1
        before, after = figures["test"]["before"], figures["test"]["after"]
        found[target] = {key: after[key] / before[key] for key in ("d_ece", "laece0")}
    assert max(found["both"].values()) < 0.4
    assert max(found["both"].values()) < min(max(found[target].values()) for target in ("precision", "iou"))
    page = run / "both.html"
    assert "between the precision at IoU 0.5 and the IoU with the object found" in page.read_text()
    assert page.read_text().count("<svg") == 5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["isotonic", "platt"]), st.sampled_from(["precision", "iou", "both"]))
def test_map_stays(seed: int, method: Method, target: Target) -> None:
    split = split_of_table(made_up(seed, images=12))
    curves = fit(split, target, method, 2, np.ones(12, dtype=bool))
    before = mean_ap(split, raw_scores(split), NAMES)
    assert mean_ap(split, calibrated(split, curves), NAMES) == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("method", FITS)
def test_an_image_has_no_part_in_the_curves_that_judge_it(method: Method) -> None:
    table = made_up(3)
    before = cross_calibrated(split_of_table(table), "precision", method, 2)
    other = pa.Table.from_pylist(
        [row for row in table.to_pylist() if row["image_id"] != 7 or row["kind"] == "detection"], SCHEMA
    )
    after = cross_calibrated(split_of_table(other), "precision", method, 2)
    same = before == after
    found = split_of_table(table).rows.detections.images == 7
    assert same[found].all()
    assert not same[~found].all()


def test_figures_of_three_detections() -> None:
    def detection(x: float, score: float, label: int) -> dict[str, Any]:
        return {"kind": "detection", "score": score, "image_id": 1, "label": label, **box(x, 0)}

    truth = {"kind": "truth", "image_id": 1, "label": 0, "ignore": False, **box(0, 0)}
    crowd = {"kind": "truth", "image_id": 1, "label": 0, "ignore": True, **box(500, 0)}
    table = table_of([truth, crowd, detection(0, 0.9, 0), detection(90, 0.25, 0), detection(500, 0.7, 0)])
    split = split_of_table(table)
    found = errors(split, raw_scores(split), NAMES)
    assert found["d_ece"] == pytest.approx(0.1)  # 0.25 is too low to count, 0.7 lies in the crowd
    assert found["laece0"] == pytest.approx((0.1 + 0.25) / 2)
    assert found["laace0"] == pytest.approx((0.1 + 0.25) / 2)
    assert found["per_class"]["bolt"] == {
        "detections": 0,
        "objects": 0,
        "d_ece": None,
        "laece0": None,
        "laace0": None,
    }
    assert mean_ap(split, raw_scores(split), NAMES) == pytest.approx(1)


def without_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()


def without_table(run: Path) -> None:
    shutil.rmtree(run.parent / "version_1")


def of_other_data(run: Path) -> None:
    write_tables(run.parent / "version_1", run, "val", made_up(0), data="of another site")


def calibrated_already(run: Path) -> None:
    assert main(["calibrate", str(run)]) == 0
    (run / "checkpoints" / "calibrated.ckpt").replace(run / "checkpoints" / "best.ckpt")


def written_already(run: Path) -> None:
    (run / "calibration.html").write_text("mine")


def of_other_classes(run: Path) -> None:
    write_tables(run.parent / "version_1", run, "val", made_up(0, names=["bolt", "nut"]))


def without_detections(run: Path) -> None:
    table = made_up(0)
    only = table.filter(pa.array([kind == "truth" for kind in table["kind"].to_pylist()]))
    write_tables(run.parent / "version_1", run, "val", only)


def of_few_images(run: Path) -> None:
    write_tables(run.parent / "version_1", run, "val", made_up(0, images=4))


def broken_table(run: Path) -> None:
    (run.parent / "version_1" / "val_predictions.parquet").write_text("nonsense")


def other_columns(run: Path) -> None:
    write_tables(run.parent / "version_1", run, "val", made_up(0).drop_columns(["score"]))


def no_change(run: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (without_checkpoint, [], "best.ckpt: cannot be read"),
        (without_table, [], "detframe validate --config"),
        (of_other_data, [], "detframe validate --config"),
        (of_other_classes, [], "label 0 is bolt; the checkpoint's classes are nut, bolt"),
        (without_detections, [], "holds no detections"),
        (of_few_images, [], "is of 4 images; 5 at least"),
        (broken_table, [], "is no table of predictions"),
        (other_columns, [], "is no table of predictions"),
        (calibrated_already, ["--overwrite"], "is calibrated already"),
        (written_already, [], "calibration.html: exists already"),
        (
            no_change,
            ["--out", "version_0/checkpoints/best.ckpt", "--overwrite"],
            "is the checkpoint that is calibrated",
        ),
        (no_change, ["--validation", "version_2"], "is not of"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_cannot_be_calibrated_is_one_sentence_and_exit_code_2(
    change: Callable[[Path], None],
    options: list[str],
    words: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    change(run)
    files = sorted(run.rglob("*"))
    capsys.readouterr()
    assert main(["calibrate", str(run), *options]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) == 1
    assert sorted(run.rglob("*")) == files


@pytest.mark.parametrize(
    "out", ["version_0/config.yaml/c.ckpt", "/proc/c.ckpt"]
)  # below a file; in a folder of no files
def test_where_nothing_can_be_written_is_json_too(
    out: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    (run / "config.yaml").touch()
    assert main(["calibrate", str(run), "--out", out, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["run"] == str(run)
    assert "c.ckpt" in document["error"]
    assert "cannot be read or written (" in document["error"]


def test_another_sites_table_is_taken_where_it_is_named(run: Path) -> None:
    of_other_data(run)
    assert main(["calibrate", str(run), "--validation", str(run.parent / "version_1")]) == 0


def test_curves_in_a_checkpoint_are_those_that_were_fitted(run: Path) -> None:
    assert main(["calibrate", str(run)]) == 0
    state = torch.load(run / "checkpoints" / "calibrated.ckpt", weights_only=True)["state_dict"]
    kept = ScoreCurves(*(state[f"detector.calibration.{name}"] for name in ScoreCurves._fields))
    expected = fit(split_of_table(made_up(0)), "precision", "isotonic", 2, np.ones(IMAGES, dtype=bool))
    assert all(torch.equal(a, b) for a, b in zip(kept, expected, strict=True))

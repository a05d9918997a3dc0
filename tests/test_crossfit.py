"""Cross-fitting as a user has it: real processes, two folds of a tiny data set."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from detframe.analysis.evaluation import read_run
from detframe.cli import main
from detframe.crossfit import Plan, plan_folds, predictions_of
from detframe.data.annotations import DataError
from detframe.data.sources import read_split
from detframe.data.synthetic import write_dataset

CONFIG: dict[str, Any] = {
    "data": {"train": "train.json", "val": "val.json", "image_size": [64, 64], "batch_size": 2, "num_workers": 0},
    "model": {
        "backbone": {
            "class_path": "detframe.models.backbones.TimmBackbone",
            "init_args": {"name": "test_resnet", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        }
    },
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose images come in pairs from one camera, and a configuration."""
    folder = tmp_path_factory.mktemp("crossfit")
    write_dataset(folder / "data", train=8, val=2, test=2)
    path = folder / "data" / "train.json"
    content = json.loads(path.read_text())
    for number, image in enumerate(content["images"]):
        image["camera"] = f"c{number // 2}"
    path.write_text(json.dumps(content))
    config = CONFIG | {"data": CONFIG["data"] | {"root": str(folder / "data")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.slow
def test_every_image_is_judged_by_a_detector_that_has_not_seen_it(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    command = ["crossfit", "--config", str(folder / "config.yaml"), "--folds", "2", "--out", str(out)]
    assert main([*command, "--groups", "camera"]) == 0
    index = read_split(folder / "data", "train.json")
    evaluation = read_run(out)
    assert evaluation.image_ids.tolist() == sorted(index.image_ids.tolist())
    rows = evaluation.table.to_pylist()
    labels = [row for row in rows if row["kind"] == "truth"]
    assert sorted(row["annotation_id"] for row in labels) == sorted(index.annotation_ids.tolist())
    cameras = {
        int(number): metadata["camera"] for number, metadata in zip(index.image_ids, index.metadata, strict=True)
    }
    seen_by = []
    for fold in (0, 1):
        place = out / f"fold{fold}"
        held, train = (read_split(place, f"{name}.json", index.image_root) for name in ("held_out", "train"))
        own = set(held.image_ids.tolist())
        assert own | set(train.image_ids.tolist()) == set(index.image_ids.tolist())
        assert not {cameras[i] for i in own} & {cameras[i] for i in train.image_ids.tolist()}
        table = pq.read_table(next(place.glob("run/version_*/test_predictions.parquet")))
        assert set(table["image_id"].to_pylist()) == own
        seen_by.append(own)
    assert len(seen_by[0]) == len(seen_by[1]) == 4
    assert np.isfinite(json.loads((out / "train_metrics.json").read_text())["map"])

    before = {path: path.stat().st_mtime_ns for path in out.glob("fold*/run/**/*.parquet")}
    (out / "train_predictions.parquet").unlink()
    assert main([*command, "--groups", "camera"]) == 0  # goes on where it was: no fold is trained again
    assert {path: path.stat().st_mtime_ns for path in out.glob("fold*/run/**/*.parquet")} == before
    assert read_run(out).table.equals(evaluation.table)

    capfd.readouterr()
    assert main([*command, "--groups", "camera", "--seed", "2", "--folds", "3"]) == 2
    assert "is of other data, folds or options" in capfd.readouterr().err


def test_a_fold_that_is_done_has_the_predictions_of_its_last_run(folder: Path, tmp_path: Path) -> None:
    for number in (10, 9, 2):
        path = tmp_path / "fold0" / "run" / f"version_{number}" / "test_predictions.parquet"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (number, number))
    plan = Plan({}, read_split(folder / "data", "train.json"), [0, 1] * 4, 2, tmp_path)
    assert predictions_of(plan, 0).parent.name == "version_10"


@pytest.mark.parametrize(
    ("part", "change", "same"),
    [
        ("trainer", {"max_epochs": 50}, False),
        ("trainer", {"precision": "16-mixed"}, False),
        ("best_checkpoint", {"monitor": "val/map_50"}, False),
        ("trainer", {"devices": 4, "accelerator": "gpu", "logger": True, "enable_progress_bar": True}, True),
    ],
)
def test_what_is_there_is_kept_for_the_same_recipe_alone(
    part: str, change: dict[str, Any], same: bool, folder: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"best_checkpoint": {"monitor": "val/map"}}
    given = Namespace(folds=2, out=tmp_path, groups="camera", seed=0)
    before = plan_folds(config, given)
    changed = config | {part: config[part] | change}
    if same:
        assert plan_folds(changed, given).fold_of == before.fold_of
    else:
        with pytest.raises(DataError, match="is of other data, folds or options"):
            plan_folds(changed, given)


@pytest.mark.slow
def test_bad_input_gets_a_sentence(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["crossfit", "--config", str(folder / "config.yaml"), "--out", str(folder / "other")]
    assert main([*command, "--folds", "9"]) == 2
    assert "--folds 9: 8 groups of images allow 2 to 8 folds" in capfd.readouterr().err

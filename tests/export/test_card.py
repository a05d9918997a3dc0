"""A model card says what run, data and proofs know, and nothing that they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from detframe.analysis.evaluation import read_results
from detframe.cli import main
from detframe.data.scenes import CLASS_NAMES
from detframe.export.card import as_markdown, card_of, read_given

PROOF = {
    "artefact": "model.onnx",
    "images": 4,
    "data": "data",
    "map": 0.51,
    "map_checkpoint": 0.512,
    "detections": 30,
    "unmatched": 1,
    "milliseconds": 5.0,
    "milliseconds_checkpoint": 10.0,
    "megabytes": 3.25,
    "per_image": {"a.jpg": {}},
    "metadata": {
        "class_names": list(CLASS_NAMES),
        "image_size": [96, 128],
        "thresholds": {"nut": 0.25},
        "calibrated": True,
        "precision": "float32",
        "checkpoint_hash": "f" * 64,
        "versions": {"torch": "2.0"},
    },
}


@pytest.fixture
def tested(run: Path, tmp_path: Path) -> Path:
    """A run with a table, a manifest and an exported file, whose detector finds each object with a score of 0.9."""
    data = run.parents[1] / "data"
    truth = json.loads((data / "test.json").read_text())
    rows = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for one in truth["annotations"]
    ]
    folder = tmp_path / "runs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "found.json").write_text(json.dumps(rows))
    pq.write_table(read_results(folder / "found.json", data / "test.json").table, folder / "test_predictions.parquet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    backbone = {"init_args": {"name": "resnet50", "weights": "imagenet"}}
    config |= {"seed_everything": 7, "model": {"backbone": backbone, "init_from": "old/best.ckpt"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    split = {"images": 3, "boxes": len(rows), "hash": "d" * 64, "source": "test.json"}
    (folder / "data_manifest.json").write_text(json.dumps({"splits": {"test": split}}))
    (folder / "export").mkdir()
    for name in ("model.onnx", "model.torchscript"):
        (folder / "export" / f"{name}.proof.json").write_text(json.dumps({**PROOF, "artefact": name}))
    (folder / "export" / "model.onnx").touch()
    return folder


def test_what_the_run_knows_is_in_the_card(tested: Path, tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("intended_use: Sorting.\nlicences: {data: CC0-1.0}\n")
    card = card_of(tested, tested / "export", read_given(tmp_path / "card.yaml"))
    assert card["metrics"]["map"] == 1.0
    assert card["metrics"]["per_class"]["nut"]["ap"] == 1.0
    assert [one["artefact"] for one in card["artefacts"]] == ["model.onnx"]  # the other file is not there
    assert "per_image" not in card["artefacts"][0]
    assert card["data"]["faults"] is not None
    assert card["licences"]["data"] == "CC0-1.0"
    assert card["licences"]["weights of resnet50"] == "apache-2.0"
    assert card["licences"]["weights of best.ckpt"].startswith("Not stated")
    text = as_markdown(card)
    for said in ("Sorting.", "| model.onnx | float32 | 0.51000 | 0.51200 | 29 of 30 | 0.50 | 3.2 | yes |", "Seed 7."):
        assert said in text
    assert "## Limits\n\nNot stated." in text
    assert json.loads(json.dumps(card)) == card


def test_what_nobody_knows_is_said(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    text = as_markdown(card_of(tmp_path, tmp_path / "export", {}))
    assert "Not known: the run has no data_manifest.json." in text
    assert "Not known: the run has no table of test predictions." in text
    assert "Not known: the run has no config.yaml." in text


def test_a_card_stands_beside_every_export(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run / "checkpoints" / "best.ckpt"), "--out", str(tmp_path)]) == 0
    assert "| model.torchscript | float32 |" in (tmp_path / "MODEL_CARD.md").read_text()
    assert json.loads((tmp_path / "model_card.json").read_text())["class_names"] == list(CLASS_NAMES)


def test_a_person_says_no_figures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card.yaml").write_text("map: 0.99\n")
    arguments = ["export", str(run / "checkpoints" / "best.ckpt"), "--out", str(tmp_path)]
    assert main([*arguments, "--card", str(tmp_path / "card.yaml")]) == 2
    assert "has 'map'. A card is given intended_use, limits, licences" in capsys.readouterr().err

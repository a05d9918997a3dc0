import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from detframe.analysis.augment_report import distance
from detframe.cli import main
from detframe.data.synthetic import write_dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # jsonargparse's own, about how Lightning calls it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, train=12, val=1, test=1)
    return root


def written(path: Path, root: Path, **policy: object) -> Path:
    operators = [
        {"class_path": "kornia.augmentation.RandomHorizontalFlip", "init_args": {"p": 1.0}},
        {"class_path": "kornia.augmentation.RandomTranslate", "init_args": {"translate_x": [0.4, 0.4], "p": 1.0}},
        {"class_path": "kornia.augmentation.RandomGaussianNoise", "init_args": {"std": 0.2, "p": 1.0}},
    ]
    block = {
        "class_path": "detframe.augment.pipeline.AugmentationPipeline",
        "init_args": {"operators": operators, **policy},
    }
    data = {"root": str(root), "train": "train.json", "val": "val.json", "image_size": [96, 96], "batch_size": 4}
    path.write_text(yaml.safe_dump({"data": {**data, "augmentation": block}}))
    return path


def test_page_and_figures(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path / "c.yaml", data, deployment={"mirror": False}, lint="warn")
    out = tmp_path / "deep" / "report.html"
    assert main(["augment-report", str(config), "--out", str(out), "--samples", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 12
    step = "RandomHorizontalFlip + RandomTranslate"
    assert set(figures["milliseconds"]) == {step, "RandomGaussianNoise"}
    ignored, gone = (figures["taken"][f"{kind}/{step}"] for kind in ("ignored", "gone"))
    assert ignored + gone == figures["objects"]["before"] - figures["objects"]["after"]
    assert min(ignored, gone) > 0
    assert sum(share["before"] for share in figures["class_shares"].values()) == pytest.approx(1, abs=1e-3)
    assert [finding["fact"] for finding in figures["contradictions"]] == ["mirror: false"]
    page = out.read_text()
    assert page.count("<svg") == 4
    assert page.count("data:image/jpeg;base64,") == 2
    assert "which the deployment never shows" in page


def test_exit_codes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path / "c.yaml", data, deployment={"mirror": False}, lint="error")
    out = ["--out", str(tmp_path / "r.html"), "--images", "4", "--samples", "1"]
    assert main(["augment-report", str(config), *out]) == 1
    assert "RandomHorizontalFlip contradicts `mirror: false`" in " ".join(capsys.readouterr().out.split())
    assert main(["augment-report", str(tmp_path / "none.yaml"), *out]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    assert main(["augment-report", str(written(tmp_path / "d.yaml", tmp_path / "nowhere")), *out]) == 2
    assert "nowhere" in capsys.readouterr().err
    plain = tmp_path / "plain.yaml"
    plain.write_text("data: {train: train.json}")
    assert main(["augment-report", str(plain), "--root", str(data), *out]) == 2
    assert "has no `augmentation`" in capsys.readouterr().err
    below = str(config / "r.html")
    assert main(["augment-report", str(config), *out, "--out", below, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["config"] == str(config)
    assert "cannot be read or written (Not a directory)" in document["error"]


def test_distance_is_of_cumulative_shares() -> None:
    assert distance(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == pytest.approx(0.5)

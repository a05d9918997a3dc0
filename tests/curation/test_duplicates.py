from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from detframe.cli import main
from detframe.data.annotations import DataError
from detframe.data.datamodule import DetectionDataModule
from detframe.data.sources import read_split
from detframe.data.synthetic import write_dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of being run from a test


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three splits of different pictures."""
    write_dataset(tmp_path / "data", train=6, val=3, test=3)
    return tmp_path / "data"


def copy_into(data: Path, source: int, target: int, quality: int | None = None) -> tuple[Path, Path]:
    """Put a training picture in the place of a test picture, re-encoded where a quality is given."""
    ours = read_split(data, "train.json").path(source)
    theirs = read_split(data, "test.json").path(target)
    if quality is None:
        theirs.write_bytes(ours.read_bytes())
    else:
        with Image.open(ours) as image:
            image.convert("RGB").save(theirs, format="JPEG", quality=quality)
    return ours, theirs


def test_different_pictures_are_none(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", str(data)]) == 0
    assert "12 images, 0 of them unreadable: 0 pictures are there more than once" in capsys.readouterr().out


def test_groups_across_splits_are_named_drawn_and_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = copy_into(data, 1, 0, quality=70)
    assert main(["duplicates", str(data), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "nearly the same, labelled differently" in said
    assert ours.name in said
    assert theirs.name in said
    document = json.loads((tmp_path / "out" / "duplicates.json").read_text())
    assert [image["split"] for image in document["groups"][0]["images"]] == ["train", "test"]
    assert document["groups"][0]["across_splits"]
    assert not document["groups"][0]["labels_agree"]
    with Image.open(tmp_path / "out" / "duplicates.jpg") as drawn:
        assert drawn.size == (400, 218)
    assert main(["duplicates", str(data), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == document


def test_bad_input_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", str(tmp_path / "nothing")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_leakage_is_an_error_at_fit_unless_it_is_allowed(data: Path) -> None:
    ours, theirs = copy_into(data, 1, 0)
    module = partial(DetectionDataModule, data, "train.json", "val.json", "test.json")
    with pytest.raises(DataError, match=r"1 of the 3 images of test are in the training split as well") as refusal:
        module().setup("fit")
    assert ours.name in str(refusal.value)
    assert theirs.name in str(refusal.value)
    module(allow_leakage=True).setup("fit")
    module().setup("test")
    DetectionDataModule(root=data, train="train.json", val="train.json").setup("fit")  # asked for


def test_fit_ends_with_exit_code_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_into(data, 2, 1)
    command = ["fit", "--data.root", str(data), "--data.train", "train.json", "--data.val", "val.json"]
    command += ["--data.test", "test.json", "--trainer.logger", "false", "--trainer.max_epochs", "1"]
    command += ["--model.backbone", "detframe.models.backbones.TimmBackbone", "--model.backbone.name", "test_resnet"]
    assert main([*command, "--trainer.default_root_dir", str(tmp_path)]) == 2
    assert "--data.allow_leakage true" in capsys.readouterr().err

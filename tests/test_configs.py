"""Every shipped YAML trains a step, on drawn images in the format that it asks for."""

from pathlib import Path

import pytest
import yaml

from detframe.cli import main
from detframe.data.convert import convert
from detframe.data.synthetic import write_dataset

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny data set as COCO and as Pascal VOC."""
    folder = tmp_path_factory.mktemp("data")
    coco = write_dataset(folder / "coco", train=12, val=4, test=4)
    assert convert(coco, folder / "voc", "voc") == 0
    return {"coco": coco, "voc": folder / "voc"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own, about a loader without workers and the like
@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_configuration_trains_and_tests(
    name: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "configs" / name).read_text())
    root = data["coco" if str(config["data"]["train"]).endswith(".json") else "voc"]
    arguments = ["fit", "--config", str(ROOT / "configs" / name), "--data.root", str(root), "--data.batch_size", "2"]
    arguments += ["--data.synthetic", "false", "--data.image_size", "[64, 64]", "--data.group_by", "null"]
    if config["data"].get("crop_size"):
        arguments += ["--data.crop_size", "[64, 64]"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    arguments += ["--trainer.check_val_every_n_epoch", "1", "--trainer.enable_progress_bar", "false"]
    assert main(arguments) == 0
    run = next((tmp_path / "runs").glob("*/version_0"))
    assert (run / "test_metrics.json").is_file()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

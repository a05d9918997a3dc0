import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from detframe.data.scenes import CLASS_NAMES
from detframe.data.synthetic import write_dataset

ROOT = Path(__file__).parents[1]


def detframe(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "detframe", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_help_is_quick_and_lists_every_verb(tmp_path: Path) -> None:
    start = time.perf_counter()
    done = detframe("--help", folder=tmp_path)
    assert time.perf_counter() - start < 5  # under a second on a quiet machine
    assert done.returncode == 0
    assert all(f"  {verb}" in done.stdout for verb in ("fit", "validate", "test", "predict"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "unknown verb 'fly'"),
        (["fit", "--data.root", "nowhere", "--data.train", "train.json"], "nowhere"),
        (["fit", "--model.class_names", "[a]"], "comes from the data"),
        (["fit", "--trainer.max_epoch", "3"], "max_epoch"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = detframe(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set and a run of one epoch on it by the shipped quickstart configuration."""
    folder = tmp_path_factory.mktemp("run")
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config["data"] |= {"synthetic": False, "root": "data", "image_size": [64, 80]}
    config["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1}
    write_dataset(folder / "data", train=16, val=8, test=8)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = detframe("fit", "--config", "config.yaml", folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_fit_leaves_a_whole_run_behind(run: Path) -> None:
    version = run / "runs" / "quickstart" / "version_0"
    for name in ("config.yaml", "metrics.csv", "data_manifest.json", "test_metrics.json"):
        assert (version / name).is_file(), name
    assert {p.name for p in (version / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    metrics = json.loads((version / "test_metrics.json").read_text())
    assert list(metrics["per_class"]) == list(CLASS_NAMES)
    assert -1 <= metrics["map"] <= 1
    assert len(metrics["dataset_hash"]) == len(metrics["checkpoint_hash"]) == 64
    manifest = json.loads((version / "data_manifest.json").read_text())
    assert manifest["splits"]["train"]["images"] == 16
    assert manifest["splits"]["test"]["hash"] == metrics["dataset_hash"]


@pytest.mark.slow
def test_predict_needs_the_checkpoint_and_images_alone(run: Path) -> None:
    checkpoint = run / "runs" / "quickstart" / "version_0" / "checkpoints" / "best.ckpt"
    done = detframe(
        *(
            "predict",
            "--ckpt_path",
            str(checkpoint),
            "--data.predict",
            "data/test.json",
            "--data.image_size",
            "[64,80]",
        ),
        *("--predictions.out", "found", "--predictions.draw", "true", "--predictions.min_score", "0"),
        folder=run,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = pq.read_table(run / "found" / "predictions.parquet").to_pylist()
    results = json.loads((run / "found" / "predictions.json").read_text())
    assert len(results) == len(table) > 0
    assert {row["class_name"] for row in table} <= set(CLASS_NAMES)
    assert len(list((run / "found" / "images").glob("*.jpg"))) == 8

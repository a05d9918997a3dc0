"""The command line as a user has it: real processes on a tiny data set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from detframe.cli import main
from detframe.data.scenes import CLASS_NAMES
from detframe.data.synthetic import write_dataset
from detframe.training.task import DetectionTask

ROOT = Path(__file__).parents[1]
RUN = Path("runs") / "quickstart"
WRONG = {
    "a key": ({"model": {"backbon": 3}}, "model.backbon"),
    "a class": ({"model": {"head": {"class_path": "detframe.models.heads.dense.DensHead"}}}, "Similar: DenseHead"),
    "a type": ({"data": {"batch_size": "many"}}, "data.batch_size"),
    "a file": ({"data": {"train": "trian.json"}}, "trian.json"),
    "a backbone": ({"model": {"backbone": {"init_args": {"name": "resnet1800"}}}}, "resnet1800"),
    "a linked value": ({"model": {"class_names": ["nut"]}}, "model.class_names comes from the data"),
    "an argument": ({"model": {"head": {"init_args": {"widht": 3}}}}, "widht"),
}


def start(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "detframe", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process that finds the W&B service of an earlier test's leaves its files to that.
        env={key: value for key, value in os.environ.items() if "WANDB_SERVICE" not in key} | environment,
        start_new_session=True,
    )


def detframe(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, folder=folder, **environment)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fit(folder: Path, *arguments: str, **environment: str) -> Path:
    """Train from the folder's configuration; the run's folder."""
    done = detframe("fit", "--config", "config.yaml", *arguments, folder=folder, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return newest(folder)


def newest(folder: Path) -> Path:
    return max((folder / RUN).glob("version_*"), key=lambda path: int(path.name.removeprefix("version_")))


def read(run: Path, stage: str = "test") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / f"{stage}_metrics.json").read_text())
    return content


def assert_same_figures(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one["per_class"].keys() == other["per_class"].keys()
    for name in ("map", "map_50", "map_75", "mar_100"):
        assert one[name] == pytest.approx(other[name], abs=tolerance), name
    for name, row in one["per_class"].items():
        assert row == pytest.approx(other["per_class"][name], abs=tolerance), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set and the shipped quickstart configuration cut down to it."""
    folder = tmp_path_factory.mktemp("run")
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config["data"] |= {"synthetic": False, "root": "data", "image_size": [64, 80]}
    config["model"]["backbone"]["init_args"]["name"] = "resnet10t"
    config["trainer"] |= {
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "check_val_every_n_epoch": 1,
        "logger": config["trainer"]["logger"][0],
    }
    write_dataset(folder / "data", train=16, val=8, test=9)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run of one epoch."""
    return fit(folder)


def test_help_is_quick_and_lists_every_verb(tmp_path: Path) -> None:
    started = time.perf_counter()
    done = detframe("--help", folder=tmp_path)
    assert time.perf_counter() - started < 5  # under a second on a quiet machine
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in ("check", "convert", "fit", "validate", "test", "predict"))


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """In this process: starting one for each would take most of the suite's time."""
    code = main(arguments)
    assert_refused(code, capsys.readouterr().err, words)


@pytest.mark.filterwarnings("ignore")  # jsonargparse, about Lightning's call of it
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "unknown verb 'fly'"),
        (["check"], "data"),
        (["check", "nowhere"], "no such file or folder"),
        (["convert", "nowhere", "out", "yolo9"], "yolo9"),
        (["fit", "--data.root", "nowhere", "--data.train", "train.json"], "nowhere"),
        (["fit", "--model.class_names", "[a]"], "cannot be given"),
        (["fit", "--trainer.max_epoch", "3"], "max_epoch"),
        (["test", "--ckpt_path", "nowhere.ckpt"], "no such checkpoint"),
        (["predict", "--data.predict", "nowhere"], "--ckpt_path"),
        (["test", "--config", f"{ROOT}/configs/quickstart.yaml"], "random weights. Give one with --ckpt_path"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_exit_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, arguments, words)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_bare_weights_are_no_checkpoint(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "bare.ckpt")
    monkeypatch.chdir(tmp_path)
    refused(capsys, [verb, "--ckpt_path", "bare.ckpt"], "bare.ckpt: is no checkpoint of detframe")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_ends_with_a_sentence_and_exit_code_2(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = WRONG[case]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(folder)
    refused(capsys, ["fit", "--config", "config.yaml", "--config", str(tmp_path / "wrong.yaml")], words)


def assert_refused(code: int, stderr: str, words: str) -> None:
    assert code == 2
    assert words in stderr
    assert "Traceback" not in stderr
    assert len(stderr) < 1000


def test_check_and_convert_exit_with_what_they_found(folder: Path, tmp_path: Path) -> None:
    checked = detframe("check", "data", "--json", folder=folder)
    assert checked.returncode == 0
    assert json.loads(checked.stdout)["splits"]["train"]["images"] == 16
    converted = detframe("convert", "data", str(tmp_path / "voc"), "voc", folder=folder)
    assert converted.returncode == 0, converted.stderr
    image = tmp_path / "voc" / "JPEGImages" / "train_0003.jpg"
    image.unlink()  # a hard link to the original
    image.write_bytes(b"cut off")
    checked = detframe("check", str(tmp_path / "voc"), "--json", folder=folder)
    assert checked.returncode == 1
    assert "train_0003.jpg" in checked.stdout


@pytest.mark.slow
def test_fit_leaves_a_whole_run_behind(folder: Path, run: Path) -> None:
    names = [
        "config.yaml",
        "metrics.csv",
        "data_manifest.json",
        "levers.json",
        "test_metrics.json",
        "test_predictions.parquet",
    ]
    for name in [*names, "samples/epoch_0000.jpg"]:
        assert (run / name).is_file(), name
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    metrics = read(run)
    assert list(metrics["per_class"]) == list(CLASS_NAMES)
    assert len(metrics["dataset_hash"]) == len(metrics["checkpoint_hash"]) == 64
    manifest = json.loads((run / "data_manifest.json").read_text())
    assert manifest["splits"]["train"]["images"] == 16
    assert manifest["splits"]["test"]["hash"] == metrics["dataset_hash"]
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/map", "val/map_50", "val/ap/nut", "val/ap_50/nut", "train/loss_class"} <= set(header)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures_and_the_checkpoint_the_same_again(folder: Path, run: Path) -> None:
    again = fit(folder)
    assert again != run
    assert_same_figures(read(run), read(again), 0)
    # In a process of its own, which knows no averaging: the figures after `fit` were the averaged weights' as well.
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    done = detframe("test", "--config", "config.yaml", "--ckpt_path", checkpoint, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_figures(read(run), read(newest(folder)), 0)
    assert read(newest(folder))["checkpoint_hash"] == read(run)["checkpoint_hash"]


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(folder: Path, run: Path) -> None:
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    arguments = ["--config", "config.yaml", "--ckpt_path", checkpoint, "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    done = detframe("test", *arguments, folder=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_figures(read(run), read(newest(folder)), 1e-6)
    tables = [pq.read_table(path / "test_predictions.parquet") for path in (run, newest(folder))]
    assert (
        tables[0]
        .select(["kind", "image_id", "label", "outcome"])
        .equals(tables[1].select(["kind", "image_id", "label", "outcome"]))
    )
    done = detframe("fit", *arguments[:2], *arguments[4:], folder=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((newest(folder) / "checkpoints").iterdir())) == 2


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(folder: Path) -> None:
    earlier = newest(folder)
    process = start("fit", "--config", "config.yaml", "--trainer.max_epochs", "40", folder=folder)
    last = None
    for _ in range(600):
        last = next((path for path in newest(folder).glob("checkpoints/last.ckpt") if newest(folder) != earlier), None)
        if last or process.poll() is not None:
            break
        time.sleep(0.1)
    assert last is not None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = fit(folder, "--trainer.max_epochs", "4", "--ckpt_path", str(last))
    epochs = {line.split(",")[0] for line in (resumed / "metrics.csv").read_text().splitlines()[1:]}
    assert "3" in epochs
    assert "0" not in epochs
    assert read(resumed)["checkpoint_hash"]


@pytest.mark.slow
def test_predict_needs_the_checkpoint_and_images_alone(folder: Path, run: Path) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    arguments = ["--ckpt_path", str(checkpoint), "--data.predict", "data/test.json", "--predictions.out", "found"]
    arguments += ["--predictions.draw", "true", "--predictions.min_score", "0", "--data.batch_size", "8"]
    done = detframe("predict", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((folder / "found" / "images").glob("*.jpg"))) == 9
    # At the image size of the training, which nobody stated here, it finds what the test found.
    found = pq.read_table(folder / "found" / "predictions.parquet")
    tested = pq.read_table(run / "test_predictions.parquet", filters=[("kind", "=", "detection")])
    columns = ["image_id", "category_id", "x1", "y1", "x2", "y2", "score"]
    ours, theirs = (np.column_stack([table[name].to_numpy() for name in columns]) for table in (found, tested))
    assert len(ours) == len(theirs) > 0
    # As sets: scores of a detector that has learnt nothing nearly tie.
    assert np.abs(ours[:, None] - theirs).max(axis=2).min(axis=1).max() < 0.01
    results = json.loads((folder / "found" / "predictions.json").read_text())
    assert len(results) == len(found) > 0
    # Some images are there already and two processes share the others: it comes out the same.
    images = [Path(image["file_name"]) for image in json.loads((folder / "data" / "test.json").read_text())["images"]]
    (folder / "some").mkdir()
    for chosen in (images[:4], images):
        for image in chosen[-5:]:
            (folder / "some" / image.name).symlink_to(next((folder / "data").rglob(image.name)))
        shared = ["--ckpt_path", str(checkpoint), "--data.predict", "some", "--predictions.out", "shared"]
        shared += ["--predictions.min_score", "0", "--predictions.part_images", "2", "--data.batch_size", "2"]
        shared += ["--trainer.strategy", "ddp", "--trainer.devices", "2"] if chosen is images else []
        done = detframe("predict", *shared, folder=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "4 of 9 images are in shared/parts already" in done.stderr + done.stdout
    together = pq.read_table(folder / "shared" / "predictions.parquet")
    assert len(list((folder / "shared" / "parts").glob("*.parquet"))) >= 5
    names, columns = together["file_name"].to_pylist(), ["x1", "y1", "x2", "y2", "score"]
    assert [Path(name).name for name in found["file_name"].to_pylist()] == names
    ours, theirs = (np.column_stack([table[name].to_numpy() for name in columns]) for table in (together, found))
    assert np.abs(ours[:, None] - theirs).max(axis=2).min(axis=1).max() < 0.01
    done = detframe("predict", *shared, folder=folder)
    assert "9 of 9 images" in done.stderr + done.stdout
    assert done.returncode == 0
    assert pq.read_table(folder / "shared" / "predictions.parquet").equals(together)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # jsonargparse, about Lightning's call of it
def test_a_run_is_calibrated_by_what_validation_found(folder: Path, run: Path) -> None:
    best = str(run / "checkpoints" / "best.ckpt")
    options = ("--config", "config.yaml")
    assert detframe("validate", *options, "--ckpt_path", best, folder=folder).returncode == 0
    done = detframe("calibrate", str(run), "--json", folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["val"]["images"] == 8
    assert figures["val"]["before"]["map"] == pytest.approx(read(newest(folder), "val")["map"], abs=1e-6)
    done = detframe("test", *options, "--ckpt_path", figures["checkpoint"], folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    tested = newest(folder)
    assert_same_figures(read(tested), read(run), 5e-4)
    highest = [
        max(pq.read_table(f / "test_predictions.parquet")["score"].drop_null().to_pylist()) for f in (run, tested)
    ]
    assert highest[0] != highest[1]


def test_a_checkpoint_loads_without_a_configuration_and_without_running_code(run: Path) -> None:
    task = DetectionTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert task.class_names == list(CLASS_NAMES)
    assert tuple(task.hparams["image_size"]) == (64, 80)


@pytest.mark.slow
def test_a_checkpoint_of_other_classes_is_refused(folder: Path, run: Path) -> None:
    content = json.loads((folder / "data" / "test.json").read_text())
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], reversed(names), strict=True):
        category["name"] = name
    (folder / "data" / "renamed.json").write_text(json.dumps(content))
    arguments = [
        "--config",
        "config.yaml",
        "--data.test",
        "renamed.json",
        "--data.train",
        "null",
        "--data.val",
        "null",
    ]
    done = detframe("test", *arguments, "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), folder=folder)
    assert_refused(done.returncode, done.stderr, "classes")


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_costs_seconds(folder: Path) -> None:
    logger = {
        "class_path": "detframe.training.loggers.WandbLogger",
        "init_args": {"save_dir": "wandb-runs", "offline": False, "init_timeout": 5},
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["logger"] = [config["trainer"]["logger"], logger]
    (folder / "wandb.yaml").write_text(yaml.safe_dump(config))
    started = time.perf_counter()
    arguments = ["--config", "wandb.yaml", "--trainer.limit_train_batches", "1", "--test_after_fit", "false"]
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
    done = detframe("fit", *arguments, folder=folder, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert time.perf_counter() - started < 60
    run = next((folder / "wandb-runs" / "wandb").glob("offline-run-*"))
    assert len(list(run.rglob("samples_*.png"))) == 8


def test_what_a_constructor_refuses_is_one_sentence() -> None:
    from detframe.lightning_cli import short

    message = (
        "Does not validate against any of the Union subtypes\nErrors:\n  - Policy: RandomX leaves boxes behind. Take "
        "it out.\n  - Expected a <class 'NoneType'>\nGiven value type: <class 'Namespace'>"
    )
    assert short(message) == "Policy: RandomX leaves boxes behind. Take it out."


@pytest.mark.filterwarnings("ignore")  # of W&B
def test_each_run_has_a_folder_whatever_it_logs_to(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    from detframe.lightning_cli import folder_first
    from detframe.training.loggers import WandbLogger

    def wandb() -> WandbLogger:
        return WandbLogger(save_dir=str(tmp_path))

    for version in range(2):  # the second run does not find the first one's files
        own, logger = folder_first(wandb())
        assert isinstance(own, CSVLogger)
        assert isinstance(logger, WandbLogger)
        assert Path(own.log_dir) == tmp_path / "detframe" / f"version_{version}"
        Path(own.log_dir).mkdir(parents=True)
    given = [wandb(), CSVLogger(tmp_path, "named")]
    assert folder_first(given) == given[::-1]
    assert folder_first(given[1]) == given[1:]
    assert folder_first([]) == []

"""``crossfit``: predictions on every training image by a detector that has not seen it."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console
from rich.rule import Rule

from detframe.analysis.prediction_table import image_by_image, rows_of_table
from detframe.analysis.row_metrics import mean_average_precision
from detframe.curation.split import image_groups, instances
from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.coco import write_coco
from detframe.data.sources import read_split
from detframe.data.stratified import assign_folds
from detframe.levers import recipe_of_trainer

DESCRIPTION = """\
Train a detector for each of k folds of the training split and let it predict the fold that it has not seen: what
`detframe label-errors` judges labels by, and `detframe diagnose` reads as it does a run.

  python -m detframe crossfit --config CONFIG --out runs/crossfit

Options that are not listed here are those of `detframe fit`, such as --data.root or --trainer.max_epochs. The folds are
alike in classes; images that are nearly the same, and images of one group, stay in one. Killed and called again, it
goes on where it was.

Written to OUT: train_predictions.parquet, the table of all folds; train_metrics.json; config.yaml, the configuration of
all; fold0, fold1 ..., each with a run's folder. Data sets stay where they are.

Exit code: 0 when the table is written; 2 when the input cannot be used."""

TABLE = "train_predictions.parquet"
_CONFIG = "config.yaml"


class CrossfitError(ValueError):
    """A fold that could not be trained; its own process has said why."""


class Plan(NamedTuple):
    """What is trained on what."""

    config: dict[str, Any]  # of `fit`, resolved
    train: AnnotationIndex
    fold_of: list[int]  # [I] of each image of the training split
    folds: int
    out: Path


def run(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: What follows it.

    Returns:
        Exit code: 0, or 2 where the input was bad.
    """
    parser = ArgumentParser(
        prog="python -m detframe crossfit",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, action="append", required=True, help="as for `detframe fit`")
    parser.add_argument("--folds", type=int, default=5, help="how many detectors; each learns from all other folds")
    parser.add_argument("--out", type=Path, default=Path("runs/crossfit"), help="folder to write (%(default)s)")
    parser.add_argument(
        "--groups",
        help="column of the images' metadata whose images stay together, such as board (default: data.group_by)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    given, of_fit = parser.parse_known_args(arguments)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        plan = plan_folds(resolved([*_repeated("--config", given.config), *of_fit]), given)
        tables = []
        for fold in range(plan.folds):
            console.print(Rule(f"Fold {fold + 1} of {plan.folds}"))
            tables.append(pq.read_table(predictions_of(plan, fold)))
        path = write_table(plan, image_by_image(pa.concat_tables(tables)))
    except CrossfitError:
        return 2
    except (DataError, ValueError, OSError) as error:
        print(f"detframe crossfit: {error}", file=sys.stderr)
        return 2
    console.print(f"Written to {path}. Judge the labels with `detframe label-errors {plan.out}`.")
    return 0


def resolved(options: Sequence[str]) -> dict[str, Any]:
    """The whole configuration that `fit` would run with, defaults included.

    Raises:
        CrossfitError: `fit` refuses the options, and has said why.
    """
    done = subprocess.run(
        [sys.executable, "-m", "detframe", "fit", *options, "--print_config"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CrossfitError
    config: dict[str, Any] = yaml.safe_load(done.stdout)
    return config


def plan_folds(config: dict[str, Any], given: Any) -> Plan:  # noqa: ANN401 - argparse's namespace
    """Read the training split and deal its images out.

    Raises:
        DataError: The split cannot be read, there are too few groups, or OUT belongs to other folds.
    """
    data = config["data"]
    if data.get("train") is None:
        raise DataError("The configuration names no data.train to make folds of. Name the split.")
    train = _split(data, "train")
    groups = image_groups(train, given.groups or data.get("group_by"))
    if not 2 <= given.folds <= len(set(groups)):
        raise DataError(
            f"--folds {given.folds}: {len(set(groups))} groups of images allow 2 to {len(set(groups))} folds."
        )
    fold_of = assign_folds(groups, instances(train), [1.0] * given.folds, given.seed)
    plan = Plan(config, train, fold_of, given.folds, given.out)
    note = {"annotations_hash": train.annotations_hash(), "fold_of_image": plan.fold_of, "config": _comparable(config)}
    path = given.out / "folds.json"
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(note, default=str)):
            raise DataError(f"{path}: is of other data, folds or options. Name another folder with --out.")
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(note, default=str), encoding="utf-8")
    return plan


def predictions_of(plan: Plan, fold: int) -> Path:
    """The table of a fold, trained where that is not done yet.

    Raises:
        CrossfitError: It cannot be trained.
    """
    folder = plan.out / f"fold{fold}"
    done = _latest(folder, "test_predictions.parquet")
    if done is not None:
        return done
    positions = np.arange(len(plan.train))
    held = np.array(plan.fold_of) == fold
    write_coco(plan.train.subset(positions[~held]), folder / "train.json")
    write_coco(plan.train.subset(positions[held]), folder / "held_out.json")
    data = dict(plan.config["data"])
    if data.get("val"):
        write_coco(_with_whole_names(_split(data, "val")), folder / "val.json")
        data["val"] = "val.json"
    data |= {"root": str(folder.resolve()), "images": str(plan.train.image_root.resolve())}
    data |= {"train": "train.json", "test": "held_out.json", "synthetic": False}
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder), "name": "run"},
    }
    config = plan.config | {"data": data, "test_after_fit": True}
    config["trainer"] = plan.config["trainer"] | {"logger": logger}
    (folder / _CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "detframe", "fit", "--config", str(folder / _CONFIG)]
    begun = _latest(folder, "checkpoints/last.ckpt")
    if begun is not None:
        command += ["--ckpt_path", str(begun)]
    if subprocess.run(command, check=False).returncode:
        raise CrossfitError
    done = _latest(folder, "test_predictions.parquet")
    assert done is not None
    return done


def _latest(folder: Path, name: str) -> Path | None:
    """The file that was written last of those that the runs of a fold call ``name``; by name, version_9 is after 10."""
    return max(folder.glob(f"run/version_*/{name}"), key=lambda path: path.stat().st_mtime, default=None)


def write_table(plan: Plan, table: pa.Table) -> Path:
    """Write table, metrics and configuration, as a run's folder has them."""
    rows = rows_of_table(table)
    areas = torch.from_numpy(table["area"].to_numpy(zero_copy_only=False)[rows.truth_rows.numpy()].copy())
    results = mean_average_precision(rows, areas, plan.train.class_names)
    (plan.out / "train_metrics.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    (plan.out / _CONFIG).write_text(yaml.safe_dump(plan.config, sort_keys=False), encoding="utf-8")
    pq.write_table(table, plan.out / TABLE)
    return plan.out / TABLE


def _split(data: dict[str, Any], name: str) -> AnnotationIndex:
    """A split that the configuration's `data` names."""
    return read_split(Path(data["root"]), str(data[name]), data.get("images") and Path(data["images"]))


def _with_whole_names(index: AnnotationIndex) -> AnnotationIndex:
    """With absolute file names, as another split may have its images in another folder."""
    return replace(index, file_names=tuple(str(index.path(i).resolve()) for i in range(len(index))))


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What decides about the folds' detectors; devices and loggers may be others when it goes on."""
    whole = {key: config[key] for key in ("data", "model", "seed_everything", "best_checkpoint") if key in config}
    return whole | {"trainer": recipe_of_trainer(config["trainer"])}


def _repeated(option: str, values: Sequence[Path]) -> list[str]:
    return [text for value in values for text in (option, str(value))]

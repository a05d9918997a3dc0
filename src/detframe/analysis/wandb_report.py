"""A diagnosis in Weights & Biases: a run of its own, with the figures, tables, pictures and the page of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.loggers import WandbLogger

from detframe.analysis.diagnosis import Diagnosis
from detframe.analysis.evaluation import STAGES, Evaluation
from detframe.analysis.wandb_charts import evidence_panels
from detframe.data.annotations import DataError
from detframe.data.yaml_files import read_yaml

if TYPE_CHECKING:
    import wandb

WANDB_LOGGER = "detframe.training.loggers.WandbLogger"
_IMAGES, _MIN_SCORE = 16, 0.1  # of the worst images, as `test` shows them


def logger_settings(run: Path) -> dict[str, Any] | None:
    """``class_path`` and ``init_args`` of the W&B logger that a run's ``config.yaml`` names; None where it has none."""
    path = run / "config.yaml"
    if not path.is_file():
        return None
    config = read_yaml(path)
    trainer = config.get("trainer") if isinstance(config, dict) else None
    loggers = trainer.get("logger") if isinstance(trainer, dict) else None
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and str(logger.get("class_path", "")).rpartition(".")[2] == "WandbLogger":
            return logger
    return None


def log_diagnosis(
    settings: dict[str, Any] | None,
    run: Path | None,
    folder: Path,
    evaluation: Evaluation,
    diagnosis: Diagnosis,
    figures: dict[str, Any],
) -> Path:
    """Log a diagnosis as a W&B run of job type ``diagnosis``.

    Under ``test/``, or the split that was evaluated, stand the panels that ``test`` makes too, so that W&B lays runs
    and diagnoses side by side; besides, AP with its intervals, ``what_to_do_first``, ``slices``, ``verdicts`` where
    there are any, and ``page``: the whole report. Its files are an artifact ``diagnosis-<id>``.

    Args:
        settings: Of the logger, as :func:`logger_settings` gives them; None is offline, in the project ``detframe``.
        run: Folder of the run that is diagnosed. What is written goes beside W&B's files of the run, where they are
            found; else, and for other detectors, into ``folder``.
        folder: With the report's files, written already.
        evaluation: What was diagnosed.
        diagnosis: Its figures.
        figures: The content of ``report.json``.

    Returns:
        W&B's folder of the run that was logged.

    Raises:
        DataError: The settings make no logger.
    """
    import wandb

    logger = logger_beside(settings, run, folder, f"diagnosis of {_name(evaluation.source)}", "diagnosis")
    experiment = logger.experiment
    experiment.config.update({"source": evaluation.source, "aim": figures["aim"]})
    names, rows, paths = evaluation.class_names, diagnosis.rows, evaluation.paths
    shown = evidence_panels(
        diagnosis.evidence, rows, names, None if paths is None else paths.__getitem__, _IMAGES, _MIN_SCORE
    )
    shown |= {key: figures[key] for key in ("map", "map_50", "map_75")}
    shown |= {
        "per_class": table([{"class": name, **_flat(row)} for name, row in figures["per_class"].items()]),
        "what_to_do_first": table(figures["what_to_do_first"]),
        "slices": table([_flat(row) for row in figures["slices"]]),
        "page": wandb.Html((folder / "index.html").read_text(encoding="utf-8"), inject=False),
    }
    if figures["verdicts"] is not None:
        counts = figures["verdicts"].items()
        shown["verdicts"] = table([{"verdict": verdict, "mistakes": count} for verdict, count in counts])
    stage = next((name for name in STAGES if Path(evaluation.source).name.startswith(f"{name}_")), "test")
    logger.log_metrics({f"{stage}/{key}": value for key, value in shown.items()}, 0)
    artifact = wandb.Artifact(f"diagnosis-{experiment.id}", "diagnosis", metadata={"source": evaluation.source})
    for path in (folder / "index.html", folder / "report.json", *sorted(folder.glob("*.parquet"))):
        artifact.add_file(str(path))
    experiment.log_artifact(artifact)
    written = Path(experiment.dir).parent
    experiment.finish()
    return written


def logger_beside(
    settings: dict[str, Any] | None, run: Path | None, folder: Path, name: str, job_type: str
) -> WandbLogger:
    """A logger of a W&B run of its own, beside W&B's files of a run where they are found, else in ``folder``.

    Raises:
        DataError: The settings make no logger.
    """
    given = settings or {"class_path": WANDB_LOGGER}
    near = [] if run is None else [parent for parent in run.resolve().parents if (parent / "wandb").is_dir()]
    own = {
        "save_dir": str(near[0] if near else folder),
        "name": name,
        "job_type": job_type,
        **dict.fromkeys(("id", "version", "experiment", "dir")),  # the run's own, which is over
    }
    arguments = {**given.get("init_args", {}), **given.get("dict_kwargs", {}), **own}
    try:
        logger = instantiate_class((), {"class_path": given["class_path"], "init_args": arguments})
    except (ImportError, AttributeError, TypeError) as error:
        raise DataError(f"{given['class_path']}: cannot be made as the run's config.yaml says ({error}).") from error
    assert isinstance(logger, WandbLogger)
    return logger


def _name(source: str) -> str:
    """What a person calls the evaluation: ``bccd/version_0``, or the file of another detector's results."""
    path = Path(source)
    return path.name if path.suffix == ".json" else "/".join(path.resolve().parts[-3:-1])


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Figures that stand alone; those of a part, such as ``recall``, by its name and theirs. Lists are left out."""
    parts = {f"{part}_{key}": value for part, of in row.items() if isinstance(of, dict) for key, value in of.items()}
    low_high = {
        f"{key}_{end}": value
        for key in row
        if key.endswith("_interval")
        for end, value in zip(("low", "high"), row[key], strict=True)
    }
    return {key: value for key, value in row.items() if not isinstance(value, dict | list)} | low_high | parts


def table(rows: Sequence[dict[str, Any]]) -> wandb.Table:
    """A row for each, a column for each key that any has."""
    import wandb

    columns: dict[str | int, None] = dict.fromkeys(key for row in rows for key in row)
    return wandb.Table(columns=list(columns), data=[[row.get(str(column)) for column in columns] for row in rows])

"""How far each lever moved a metric over a row of runs: data, augmentation, model and recipe, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from detframe.analysis.comparison import MEANS, require_same_data
from detframe.analysis.diagnosis import COCO_IOUS, evaluated_images
from detframe.analysis.evaluation import Evaluation, on_same_images, read_run
from detframe.analysis.prediction_table import rows_of_table
from detframe.data.annotations import DataError
from detframe.data.yaml_files import read_yaml
from detframe.levers import LEVERS, LEVERS_FILE, Lever, changed, levers_of
from detframe.metrics.bootstrap import bootstrap_weights, weighted_average_precision

Floats = NDArray[np.float64]

MIXED, REPEATED = "mixed", "none"
"""What moved where two levers changed at once, and where none did."""

_TABLE = "test_predictions.parquet"
_LEVEL = 0.95


class Recorded(NamedTuple):
    """A run as it was recorded."""

    folder: Path
    when: str  # ISO 8601, UTC, of the start
    seed: int | None
    levers: dict[str, Lever]
    evaluation: Evaluation


class Attempt(NamedTuple):
    """Runs that differ in nothing but the seed."""

    runs: list[Recorded]
    values: Floats  # [S], of each
    drawn: Floats  # [B], of the bootstrap, their mean

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(self.values.mean())


class Gain(NamedTuple):
    """How far a metric moved."""

    value: float
    low: float
    high: float


class Step(NamedTuple):
    """From one attempt to the next."""

    before: Attempt
    after: Attempt
    lever: str  # of LEVERS, or MIXED, or REPEATED
    changes: dict[str, list[str]]  # what changed, by lever
    gain: Gain


class Ledger(NamedTuple):
    """The road from the first attempt to the last."""

    metric: str
    attempts: list[Attempt]
    steps: list[Step]
    by_lever: dict[str, Gain]  # sums over steps, of levers that moved
    seed_spread: float | None  # standard deviation between seeds; None where no attempt has two


def find_runs(places: Iterable[Path]) -> list[Path]:
    """Folders of runs with a table of test predictions: those named, or all below a folder as they began, each once.

    Raises:
        DataError: There is none at a place.
    """
    found: dict[Path, None] = {}
    for place in places:
        inside = (
            [place] if (place / _TABLE).is_file() else sorted((path.parent for path in place.rglob(_TABLE)), key=_began)
        )
        if not inside:
            raise DataError(f"{place}: holds no run with a {_TABLE}. Name runs that `detframe fit` trained and tested.")
        found |= dict.fromkeys(path.resolve() for path in inside)
    if not found:
        raise DataError("Name folders of runs, such as runs/bccd.")
    return list(found)


def read_recorded(run: Path, data: Path | None) -> Recorded:
    """Read a run; of one that is older than the ledger, levers are found out from its configuration.

    Raises:
        DataError: It has no configuration or manifest, or its table cannot be read.
    """
    recorded = run / LEVERS_FILE
    config_path, manifest_path = run / "config.yaml", run / "data_manifest.json"
    for path in (config_path, manifest_path):
        if not path.is_file():
            raise DataError(
                f"{path}: is not there. The ledger reads runs that `detframe fit` trained, not tests alone."
            )
    config = read_yaml(config_path)
    if recorded.is_file():
        levers = _levers(recorded)[1]
    else:
        levers = levers_of(config, json.loads(manifest_path.read_text(encoding="utf-8")))
    seed = config.get("seed_everything")
    return Recorded(run, _began(run), seed if isinstance(seed, int) else None, levers, read_run(run, data))


def _began(run: Path) -> str:
    """When a run was started, ISO 8601, UTC; "" where nothing tells."""
    if (run / LEVERS_FILE).is_file():
        return _levers(run / LEVERS_FILE)[0]
    config = run / "config.yaml"
    if not config.is_file():
        return ""
    return datetime.fromtimestamp(config.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")


def _levers(path: Path) -> tuple[str, dict[str, Lever]]:
    """When a run was started and its levers, as it wrote them.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        levers = {name: Lever(str(content[name]["hash"]), dict(content[name]["settings"])) for name in LEVERS}
        return str(content["when"]), levers
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: holds no levers of a run of `detframe fit`. Delete it: they are then found out from config.yaml."
        ) from error


def ledger_of(runs: Sequence[Recorded], metric: str, replicates: int, seed: int) -> Ledger:
    """The ledger of runs.

    Args:
        runs: One at least, in the order of the road.
        metric: Of :data:`~detframe.analysis.comparison.MEANS`.
        replicates: Of the bootstrap, the same draws of images for all.
        seed: Of the bootstrap.

    Raises:
        DataError: They were tested on different data.
    """
    aligned = on_same_images([run.evaluation for run in runs])
    runs = [run._replace(evaluation=one) for run, one in zip(runs, aligned, strict=True)]
    for run in runs[1:]:
        require_same_data(runs[0].evaluation, run.evaluation)
    weights = bootstrap_weights(len(runs[0].evaluation.image_ids), replicates, seed)
    whole = np.ones((1, weights.shape[1]), dtype=np.int32)

    def figures(run: Recorded) -> tuple[float, Floats]:
        rows = rows_of_table(run.evaluation.table, run.evaluation.image_ids)
        evaluated = evaluated_images(rows.detections, rows.truths, COCO_IOUS)
        classes = len(run.evaluation.class_names)
        value, drawn = (
            MEANS[metric](weighted_average_precision(evaluated, classes, drawn)) for drawn in (whole, weights)
        )
        return float(value[0]), drawn

    with ThreadPoolExecutor() as pool:
        found = dict(zip((run.folder for run in runs), pool.map(figures, runs), strict=True))
    grouped: dict[tuple[str, ...], list[Recorded]] = {}
    for run in runs:
        grouped.setdefault(tuple(run.levers[name].hash for name in LEVERS), []).append(run)
    attempts = [
        Attempt(
            group,
            np.array([found[run.folder][0] for run in group]),
            np.mean([found[run.folder][1] for run in group], axis=0),
        )
        for group in grouped.values()
    ]
    spread = _seed_spread(attempts)
    steps = [_step(before, after, spread) for before, after in pairwise(attempts)]
    moved = [name for name in (*LEVERS, MIXED) if any(step.lever == name for step in steps)]
    by_lever = {name: _gain([step for step in steps if step.lever == name], spread) for name in moved}
    return Ledger(metric, attempts, steps, by_lever, spread)


def _seed_spread(attempts: Sequence[Attempt]) -> float | None:
    """Standard deviation between seeds, pooled over attempts that have several."""
    several = [attempt.values for attempt in attempts if len(attempt.values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    return float(np.sqrt(sum(((values - values.mean()) ** 2).sum() for values in several) / freedom))


def _step(before: Attempt, after: Attempt, spread: float | None) -> Step:
    old, new = before.runs[0].levers, after.runs[0].levers
    changes = {name: changed(old[name], new[name]) for name in LEVERS if old[name].hash != new[name].hash}
    lever = next(iter(changes), REPEATED) if len(changes) < 2 else MIXED
    step = Step(before, after, lever, changes, Gain(0, 0, 0))
    return step._replace(gain=_gain([step], spread))


def _gain(steps: Sequence[Step], spread: float | None) -> Gain:
    """The sum of steps, with the spread of images and, where it is known, that of seeds."""
    value = sum(step.after.value - step.before.value for step in steps)
    drawn = np.sum([step.after.drawn - step.before.drawn for step in steps], axis=0)
    variance = float(np.var(drawn, ddof=1))
    if spread is not None:
        variance += spread**2 * sum(1 / len(step.before.runs) + 1 / len(step.after.runs) for step in steps)
    reach = float(ndtri((1 + _LEVEL) / 2)) * variance**0.5
    return Gain(value, value - reach, value + reach)

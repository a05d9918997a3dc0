"""The verb ``ledger``: how far data, augmentation, model and recipe each moved a metric, over a folder of runs."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from detframe.refusals import refuse

if TYPE_CHECKING:
    from markupsafe import Markup

    from detframe.analysis.ledger_steps import Gain, Ledger, Step

_COLOURS = {
    "data": "#009e73",
    "augmentation": "#e69f00",
    "model": "#0072b2",
    "recipe": "#cc79a7",
    "mixed": "#777777",
    "none": "#bbbbbb",
}
_MOST_CHANGES = 4  # settings that a step names in the table
_COLUMNS = ("step", "lever", "what changed", "before", "after", "gain", "95 % interval")


def ledger(
    runs: list[Path] | None = None,
    metric: Literal["map", "map_50", "map_75"] = "map",
    out: Path | None = None,
    data: Path | None = None,
    replicates: int = 1000,
    seed: int = 0,
    wandb: bool = False,
    json: bool = False,
) -> int:
    """Say what moved a metric: data, augmentation, model or recipe, each with its interval.

    `detframe ledger runs/bccd` reads every run below a folder, in the order in which they were started;
    `detframe ledger FIRST SECOND THIRD` those that are named, as they are named. `fit` records the four levers of each
    run apart, in levers.json. Runs that differ in their seed alone are one attempt; from one attempt to the next is a
    step, of the lever that changed, or mixed where several did.

    Intervals are of the test images (bootstrap, the same draws for all runs) and, where an attempt has several seeds,
    of these too.

    Written to OUT: index.html, with the road as a picture; ledger.json.

    Exit code: 0 when they are written; 2 when the input cannot be used, such as runs that were tested on other data.

    Args:
        runs: Folders of runs, or folders that have some below.
        metric: Of the test split.
        out: Folder to write; by default `ledger` in the first of RUNS.
        data: Where the test images are described, where the runs' own configurations do not find them.
        replicates: Of the bootstrap.
        seed: Of the bootstrap.
        wandb: Log it to W&B as well, as a run of job type `ledger`, with the settings of the last run's logger.
        json: Print the ledger as JSON and nothing else.
    """
    from detframe.analysis.ledger_steps import find_runs, ledger_of, read_recorded
    from detframe.data.annotations import DataError

    console = Console(stderr=True, quiet=json, highlight=False)
    try:
        folders = find_runs(runs or [])
        recorded = [read_recorded(run, data) for run in track(folders, "Reading runs", console=console, transient=True)]
        folder = out or (runs or folders)[0] / "ledger"
        with console.status("Counting"):
            found = ledger_of(recorded, metric, replicates, seed)
        document = as_json(found)
        folder.mkdir(parents=True, exist_ok=True)
        _write_page(folder / "index.html", found)
        (folder / "ledger.json").write_text(dumps(document, indent=1), encoding="utf-8")
        logged = _log(found, document, folder) if wandb else None
    except (DataError, ValueError, OSError) as error:
        return refuse(error, json)
    if json:
        print(dumps(document))
        return 0
    printer = Console(highlight=False, markup=False)
    for columns, rows in ((_COLUMNS, _step_rows(found)), (_LEVER_COLUMNS, _lever_rows(found))):
        table = Table(*(Column(name, overflow="fold") for name in columns), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for row in rows:
            table.add_row(*row)
        printer.print(table)
    said = "" if logged is None else f"\nLogged to W&B in {logged}"
    printer.print(f"{_spread(found)}\nWritten to {folder / 'index.html'}{said}", soft_wrap=True)
    return 0


_LEVER_COLUMNS = ("lever", "gain", "95 % interval", "share of the way")


def as_json(found: Ledger) -> dict[str, Any]:
    """The ledger as a document."""
    return {
        "metric": found.metric,
        "attempts": [
            {
                "value": attempt.value,
                "seeds": attempt.values.tolist(),
                "runs": [{"run": str(run.folder), "when": run.when, "seed": run.seed} for run in attempt.runs],
                "levers": {name: lever._asdict() for name, lever in attempt.runs[0].levers.items()},
            }
            for attempt in found.attempts
        ],
        "steps": [{"lever": step.lever, "changes": step.changes, **step.gain._asdict()} for step in found.steps],
        "by_lever": {name: gain._asdict() for name, gain in found.by_lever.items()},
        "seed_spread": found.seed_spread,
    }


def _step_rows(found: Ledger) -> list[list[str]]:
    return [
        [
            str(number),
            step.lever,
            _changes(step),
            f"{step.before.value:.4f}",
            f"{step.after.value:.4f}",
            f"{step.gain.value:+.4f}",
            _interval(step.gain),
        ]
        for number, step in enumerate(found.steps, 1)
    ]


def _lever_rows(found: Ledger) -> list[list[str]]:
    way = found.attempts[-1].value - found.attempts[0].value
    return [
        [name, f"{gain.value:+.4f}", _interval(gain), f"{gain.value / way:.0%}" if way else "-"]
        for name, gain in found.by_lever.items()
    ]


def _changes(step: Step) -> str:
    said = [change for changes in step.changes.values() for change in changes]
    more = f"; {len(said) - _MOST_CHANGES} more" if len(said) > _MOST_CHANGES else ""
    return ("; ".join(said[:_MOST_CHANGES]) or "nothing") + more


def _interval(gain: Gain) -> str:
    return f"{gain.low:+.4f} to {gain.high:+.4f}"


def _spread(found: Ledger) -> str:
    first, last = found.attempts[0], found.attempts[-1]
    runs = sum(len(attempt.runs) for attempt in found.attempts)
    said = f"{found.metric} {first.value:.4f} -> {last.value:.4f} in {len(found.steps)} steps, {runs} runs."
    if found.seed_spread is None:
        return f"{said} No attempt has two seeds, so intervals do not know how seeds differ."
    return f"{said} Seeds differ by {found.seed_spread:.4f} (standard deviation), which intervals count."


def _write_page(path: Path, found: Ledger) -> None:
    from detframe.analysis.page import Rows, Section, write_page

    runs = [
        [
            str(number),
            f"{attempt.value:.4f}",
            ", ".join(f"{run.folder.parent.name}/{run.folder.name}" for run in attempt.runs),
        ]
        for number, attempt in enumerate(found.attempts)
    ]
    sections = [
        Section("By lever", table=Rows(_LEVER_COLUMNS, _lever_rows(found)), pictures=[_road(found)]),
        Section("Steps", table=Rows(_COLUMNS, _step_rows(found), numbers=False)),
        Section("Attempts", table=Rows(["attempt", found.metric, "runs"], runs, numbers=False)),
    ]
    write_page(path, f"What moved {found.metric}", _spread(found), sections)


def _road(found: Ledger) -> Markup:
    """From attempt to attempt: each step as a bar from where it began to where it ended."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from detframe.analysis.page import plot

    figure = Figure(figsize=(8.4, 3.6))
    axes = figure.add_subplot()
    axes.plot(0, found.attempts[0].value, "o", color="#222222", markersize=5)
    for number, step in enumerate(found.steps, 1):
        start, end = step.before.value, step.after.value
        axes.bar(number, end - start, bottom=start, width=0.6, color=_COLOURS[step.lever])
        reach = (step.gain.high - step.gain.low) / 2
        axes.errorbar(number, end, yerr=reach, color="#222222", capsize=3, linewidth=1)
        axes.plot([number - 1, number], [start, start], color="#999999", linewidth=0.8)
    for attempt, place in zip(found.attempts, range(len(found.attempts)), strict=True):
        axes.plot([place] * len(attempt.values), attempt.values, "_", color="#222222", markersize=9)
    axes.set_xticks(range(len(found.attempts)), ["start", *(step.lever for step in found.steps)], rotation=20)
    axes.set_ylabel(found.metric)
    axes.spines[["top", "right"]].set_visible(False)
    kinds: Sequence[str] = list(dict.fromkeys(step.lever for step in found.steps))
    patches = [Patch(color=_COLOURS[kind], label=kind) for kind in kinds]
    axes.legend(handles=patches, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return plot(figure)


def _log(found: Ledger, document: dict[str, Any], folder: Path) -> Path:
    """Log tables, sums and the page as a run of its own; W&B's folder of it."""
    import wandb

    from detframe.analysis.wandb_report import logger_beside, logger_settings, table

    last = found.attempts[-1].runs[-1].folder
    logger = logger_beside(logger_settings(last), last, folder, f"ledger of {found.metric}", "ledger")
    steps = [dict(zip(_COLUMNS, row, strict=True)) for row in _step_rows(found)]
    levers = [{"lever": name, **gain} for name, gain in document["by_lever"].items()]
    shown: dict[str, Any] = {"ledger/steps": table(steps), "ledger/by_lever": table(levers)} if steps else {}
    shown |= {f"ledger/gain/{name}": gain["value"] for name, gain in document["by_lever"].items()}
    shown["ledger/page"] = wandb.Html((folder / "index.html").read_text(encoding="utf-8"), inject=False)
    logger.log_metrics(shown, 0)
    experiment = logger.experiment
    written = Path(experiment.dir).parent
    experiment.finish()
    return written

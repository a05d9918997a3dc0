"""The verb ``calibrate``: curves that make a run's scores believable, put into a checkpoint with proof beside it."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from detframe.analysis.calibration_figures import (
    D_ECE_BINS,
    FOLDS,
    Floats,
    Method,
    Promise,
    Split,
    Target,
    calibrated,
    cross_calibrated,
    errors,
    fit,
    judged,
    mean_ap,
    promises,
    raw_scores,
    split_of_table,
)
from detframe.metrics.calibration import reliability_bins
from detframe.refusals import refuse
from detframe.score_curves import ScoreCurves
from detframe.unfinished import unfinished

if TYPE_CHECKING:
    from markupsafe import Markup

_PREFIX = "detector.calibration."  # where a task's checkpoint has the buffers of models.calibration.Calibration
_BEFORE, _AFTER = "#0072b2", "#d55e00"  # told apart by the colour-blind too
_COLUMNS = ["", "before", "after", "change", "by chance"]
_READ = ["kind", "image_id", "label", "class_name", "x1", "y1", "x2", "y2", "area", "score", "ignore"]
_VERBS = {"val": "validate", "test": "test"}
_ERRORS = {"d_ece": "D-ECE", "laece0": "LaECE0", "laace0": "LaACE0"}
_PROMISES: dict[Promise, str] = {"precision": "precision at IoU 0.5", "iou": "IoU with the object found"}


class CalibrationError(ValueError):
    """What a run lacks for its calibration; the message says what was found and what to do."""


class Source(NamedTuple):
    """The checkpoint to calibrate."""

    path: Path
    hash: str  # SHA-256 of the file
    content: dict[str, Any]
    class_names: list[str]


class Result(NamedTuple):
    """A split and the scores that its errors after calibration are of."""

    table: Path
    split: Split
    after: Floats  # [D], 0..1; of the validation split by curves that the image had no part in


def calibrate(
    run: Path,
    target: Target = "precision",
    method: Method = "isotonic",
    out: Path | None = None,
    overwrite: bool = False,
    validation: Path | None = None,
    test: Path | None = None,
    json: bool = False,
) -> int:
    """Fit curves that make a run's scores believable, per class, and put them into a copy of its best checkpoint.

    Curves are fitted on the validation split, from the table that `detframe validate` writes:

      python -m detframe validate --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
      python -m detframe calibrate RUN

    The table is found in RUN or in a folder beside it, by the hashes of checkpoint and data in its val_metrics.json;
    that of the test split likewise, for figures only. A class with few detections leans on the curve of all classes.
    The order of scores in a class stays, and with it average precision.

    Written are RUN/checkpoints/calibrated.ckpt, which test, predict and every export take like any other, and
    RUN/calibration.json and calibration.html: D-ECE, LaECE0, LaACE0 and mAP before and after. Those of the validation
    split are of images that the curves judging them were not fitted on.

    Exit code: 0 when the files are written; 2 when RUN has no such checkpoint or table, or a file exists.

    Args:
        run: A run's folder, with checkpoints/best.ckpt.
        target: What a score is to promise: `precision`, the share of true positives at IoU 0.5 (D-ECE), or `iou`, the
            expected IoU with the object found (LaECE0). One curve cannot be both; `both` lies between the two, where
            the larger part that is left of either error is smallest.
        method: `isotonic` follows any shape; `platt` is a line in logits, for few detections.
        out: The checkpoint to write instead; figures and page then take its name.
        overwrite: Replace files of an earlier calibration.
        validation: Folder that `detframe validate` wrote with this checkpoint, where it is not beside RUN or of other
            data, as of a new site.
        test: Folder that `detframe test` wrote, likewise.
        json: Print the figures as one JSON document and nothing else.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        written = out or run / "checkpoints" / "calibrated.ckpt"
        report = out.with_suffix("") if out is not None else run / "calibration"
        sheet, page = (report.with_name(f"{report.name}.{kind}") for kind in ("json", "html"))
        source = read_source(run)
        _require_free(source.path, [written, sheet, page], overwrite)
        tables = {"val": _table(source, run, "val", validation)}
        path, split = tables["val"]
        images = len(split.rows.image_ids)
        if images < FOLDS:
            raise CalibrationError(
                f"{path}: is of {images} images; {FOLDS} at least are needed to judge curves fairly."
            )
        if test is not None or _found(source, run, "test") is not None:
            tables["test"] = _table(source, run, "test", test)
        classes = len(source.class_names)
        started = time.perf_counter()
        curves = fit(split, target, method, classes, np.ones(images, dtype=bool))
        seconds = time.perf_counter() - started
        facts: dict[str, Any] = {
            "target": target,
            "method": method,
            "source": str(source.path),
            "source_hash": source.hash,
            "dataset_hash": _metrics(path.parent, "val").get("dataset_hash"),
        }
        results = {"val": Result(path, split, cross_calibrated(split, target, method, classes))}
        if "test" in tables:
            path, split = tables["test"]
            results["test"] = Result(path, split, calibrated(split, curves))
        _save_checkpoint(source, curves, facts, written)
        document = {"checkpoint": str(written), **facts, "fit_seconds": round(seconds, 3), "folds": FOLDS}
        document |= {stage: _summary(result, curves, source.class_names) for stage, result in results.items()}
        sheet.write_text(dumps(document, indent=2), encoding="utf-8")
        _write_page(page, document, results, curves, source.class_names)
    except (CalibrationError, OSError) as error:
        return refuse(error, json, {"run": str(run)}, written)
    if json:
        print(dumps(document))
    else:
        _print(console, document)
        console.print(f"Written to {written}, {sheet} and {page}")
    return 0


def read_source(run: Path) -> Source:
    """The run's best checkpoint.

    Raises:
        CalibrationError: There is none, it is no checkpoint of detframe's, or it is calibrated already.
    """
    path = run / "checkpoints" / "best.ckpt"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}). Name a run's folder.") from error
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        names = list(content["hyper_parameters"]["class_names"])
        state = content["state_dict"]
    except Exception as error:  # zip and pickle each raise their own kinds
        raise CalibrationError(f"{path}: is no checkpoint of detframe's.") from error
    if any(key.startswith(_PREFIX) for key in state):
        earlier = content.get("calibration", {}).get("source", "the checkpoint that it was made of")
        raise CalibrationError(
            f"{path}: is calibrated already, and a second curve would bend the first. Calibrate {earlier} again."
        )
    return Source(path, hashlib.sha256(data).hexdigest(), content, names)


def _require_free(source: Path, files: Sequence[Path], overwrite: bool) -> None:
    for file in files:
        if file.resolve() == source.resolve():
            raise CalibrationError(f"--out {file}: is the checkpoint that is calibrated. Name another file.")
        if file.exists() and not overwrite:
            raise CalibrationError(f"{file}: exists already. Name another file with --out, or add --overwrite.")


def _table(source: Source, run: Path, stage: str, folder: Path | None) -> tuple[Path, Split]:
    """The table of a split, from a folder or from where RUN's evaluations lie, and what it holds.

    Raises:
        CalibrationError: There is none, or it is of another checkpoint or other classes, or it says nothing.
    """
    verb = _VERBS[stage]
    command = f"`detframe {verb} --config {run / 'config.yaml'} --ckpt_path {source.path}`"
    folder = folder or _found(source, run, stage)
    if folder is None:
        raise CalibrationError(
            f"{run}: neither it nor a folder beside it holds what {source.path.name} finds on the run's validation "
            f"split. Make it with {command}."
        )
    path = folder / f"{stage}_predictions.parquet"
    if _metrics(folder, stage).get("checkpoint_hash") != source.hash:
        raise CalibrationError(
            f"{path}: by the {stage}_metrics.json beside it, it is not of {source.path} as that file is now. Make it "
            f"with {command}."
        )
    try:
        table = pq.read_table(path, columns=_READ)
    except (OSError, pa.ArrowInvalid) as error:
        raise CalibrationError(f"{path}: is no table of predictions. Make it with {command}.") from error
    _require_content(path, table, source.class_names)
    return path, split_of_table(table)


def _require_content(path: Path, table: pa.Table, names: Sequence[str]) -> None:
    """Refuse a table of other classes, or without detections or objects."""
    for row in table.group_by(["label", "class_name"], use_threads=False).aggregate([]).to_pylist():
        label, name = row["label"], row["class_name"]
        if not 0 <= label < len(names) or names[label] != name:
            raise CalibrationError(
                f"{path}: its label {label} is {name}; the checkpoint's classes are {', '.join(names)}. Take the table "
                "that this checkpoint gave."
            )
    kinds = table["kind"].unique().to_pylist()
    for kind, plural in (("detection", "detections"), ("truth", "objects")):
        if kind not in kinds:
            raise CalibrationError(f"{path}: holds no {plural}, so there is nothing to learn from.")


def _found(source: Source, run: Path, stage: str) -> Path | None:
    """RUN or the folder beside it with the table of this checkpoint on the run's own data, by their hashes."""
    data = _json(run / "data_manifest.json").get("splits", {}).get(stage, {}).get("hash")
    wanted = {"checkpoint_hash": source.hash, "dataset_hash": data}
    for folder in [run, *sorted(run.resolve().parent.iterdir())]:
        whole = (folder / f"{stage}_predictions.parquet").is_file()
        if whole and wanted.items() <= _metrics(folder, stage).items():
            return folder
    return None


def _metrics(folder: Path, stage: str) -> dict[str, Any]:
    return _json(folder / f"{stage}_metrics.json")


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing or broken."""
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _save_checkpoint(source: Source, curves: ScoreCurves, facts: dict[str, Any], path: Path) -> None:
    """A copy with the curves in it, whole or not at all."""
    state = source.content["state_dict"] | {_PREFIX + name: value for name, value in curves._asdict().items()}
    with unfinished(path) as beside, beside.open("wb") as file:  # what torch opens itself ends in a RuntimeError
        torch.save({**source.content, "state_dict": state, "calibration": facts}, file)


def _summary(result: Result, curves: ScoreCurves, names: Sequence[str]) -> dict[str, Any]:
    split = result.split
    raw = raw_scores(split)
    return {
        "table": str(result.table),
        "images": len(split.rows.image_ids),
        "detections": len(raw),
        "before": {"map": mean_ap(split, raw, names), **errors(split, raw, names)},
        # Of the curves that are kept, on validation too: scores of several sets of curves have no common order.
        "after": {
            "map": mean_ap(split, calibrated(split, curves), names),
            **errors(split, result.after, names),
        },
    }


def _title(stage: str) -> str:
    return "test" if stage == "test" else f"validation, by curves from the other {FOLDS - 1} of {FOLDS} parts"


def _shown(value: float | None, places: int = 4) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _rows(summary: dict[str, Any]) -> list[list[str]]:
    """Errors and mAP of a split as a table: before, after, change, and what chance alone would show."""
    before, after = summary["before"], summary["after"]
    rows = []
    for key, name in _ERRORS.items():
        change = "-"
        if before[key] and after[key] is not None:
            change = f"{after[key] / before[key] - 1:+.0%}"
        rows.append([name, _shown(before[key]), _shown(after[key]), change, _shown(after.get(f"{key}_by_chance"))])
    change = f"{after['map'] - before['map']:+.5f}"
    return [*rows, ["mAP", _shown(before["map"], 5), _shown(after["map"], 5), change, "-"]]


def _print(console: Console, document: dict[str, Any]) -> None:
    for stage in _VERBS:
        if stage not in document:
            continue
        summary = document[stage]
        table = Table(*_COLUMNS, title=_title(stage), title_justify="left")
        for row in _rows(summary):
            table.add_row(*row)
        console.print(table)
        console.print(f"{summary['images']} images, {summary['detections']} detections of {summary['table']}")
    console.print(f"Fitted in {document['fit_seconds']:.2f} s ({document['method']}, {document['target']})")


def _write_page(
    path: Path, document: dict[str, Any], results: dict[str, Result], curves: ScoreCurves, names: Sequence[str]
) -> None:
    from detframe.analysis.page import Rows, Section, write_page

    target = document["target"]
    sections = []
    for stage, result in results.items():
        per_class = [
            [
                name,
                *(str(document[stage]["after"]["per_class"][name][key]) for key in ("detections", "objects")),
                *(
                    _shown(document[stage][when]["per_class"][name][key])
                    for key in _ERRORS
                    for when in ("before", "after")
                ),
            ]
            for name in names
        ]
        columns = [f"{error} {when}" for error in _ERRORS.values() for when in ("before", "after")]
        sections += [
            Section(
                _title(stage).capitalize(),
                "By chance: what true scores would show all the same, of so few detections; for LaECE0 an upper bound. "
                "LaACE0 falls to the scatter of IoUs, not to 0.",
                table=Rows(_COLUMNS, _rows(document[stage])),
                plots=[_reliability(result, promise) for promise in promises(target)],
            ),
            Section("By class", table=Rows(["class", "detections", "objects", *columns], per_class)),
        ]
    sections.append(
        Section(
            "Curves",
            "From the score of the network to the calibrated one. A class with few detections leans on all.",
            plots=[_curves(curves, names)],
        )
    )
    subtitle = f"{document['source']}: {document['method']}, a score is to be {_said(target)}"
    write_page(path, "What calibration does to the scores", subtitle, sections)


def _said(target: Target) -> str:
    said = " and the ".join(_PROMISES[promise] for promise in promises(target))
    return f"between the {said}" if target == "both" else f"the {said}"


def _reliability(result: Result, promise: Promise) -> Markup:
    """Mean target over mean score by bin, and how many detections each bin has."""
    from matplotlib.figure import Figure

    from detframe.analysis.page import plot

    rows, targets = judged(result.split, promise)
    figure = Figure(figsize=(5.6, 5.6))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--")
    for when, marker, color, scores in (
        ("before", "s", _BEFORE, raw_scores(result.split)),
        ("after", "o", _AFTER, result.after),
    ):
        bins = reliability_bins(scores[rows], targets, D_ECE_BINS)
        upper.plot(bins.mean_score, bins.mean_target, marker=marker, color=color, label=when, clip_on=False)
        lower.stairs(bins.counts, bins.edges, color=color)
    upper.set(ylabel=_PROMISES[promise], xlim=(0, 1), ylim=(0, 1))
    upper.legend(frameon=False, loc="upper left")
    lower.set(xlabel="score", ylabel="detections", yscale="log")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return plot(figure)


def _curves(curves: ScoreCurves, names: Sequence[str]) -> Markup:
    """The curve of each class; beyond ten of them one colour for all."""
    from matplotlib.figure import Figure

    from detframe.analysis.page import plot

    figure = Figure(figsize=(5.6, 4.2))
    axes = figure.subplots()
    few = len(names) <= 10
    for i, name in enumerate(names):
        axes.plot(
            torch.sigmoid(curves.knots),
            torch.sigmoid(curves.logits[i]),
            color=f"C{i}" if few else _AFTER,
            linestyle=("-", "--", "-.", ":")[i % 4] if few else "-",
            alpha=1 if few else 0.3,
            label=f"{name} ({int(curves.detections[i])})",
        )
    axes.set(xlabel="score of the network", ylabel="calibrated score", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    if few:
        axes.legend(frameon=False, loc="upper left")
    return plot(figure)

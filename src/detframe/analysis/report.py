"""A diagnosis as files to query: ``report.json`` and Parquet tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from detframe.analysis.diagnosis import Diagnosis
from detframe.analysis.diagnosis_page import collect
from detframe.analysis.evaluation import Evaluation
from detframe.analysis.mistakes import row_of_mistake
from detframe.analysis.plain import plain
from detframe.analysis.verdicts import Verdicts, count_verdicts
from detframe.metrics.average_precision import FALSE_POSITIVE
from detframe.metrics.errors import NO_ERROR, ErrorType, count_errors


def report(evaluation: Evaluation, diagnosis: Diagnosis, verdicts: Verdicts | None, aim: str) -> dict[str, Any]:
    """All figures as plain JSON; null where there is nothing to measure."""
    names, classes = evaluation.class_names, len(evaluation.class_names)
    calibration, costs = diagnosis.evidence.calibration, diagnosis.evidence.costs
    counts = count_errors(diagnosis.evidence.errors, classes)
    kept = count_errors(diagnosis.evidence.operating.errors, classes)
    per_class = {
        name: row
        | {
            "ap_interval": [diagnosis.ap.per_class.low[i], diagnosis.ap.per_class.high[i]],
            "ap_by_iou": diagnosis.ap.per_class_and_iou.estimate[i],
            "olrp": {key: values[i] for key, values in diagnosis.olrp._asdict().items()},
            "operating_point": point._asdict() if point is not None else None,
            "localisation_ece": calibration.localisation_ece.per_class[i],
            "localisation_ace": calibration.localisation_ace.per_class[i],
        }
        for i, ((name, row), point) in enumerate(
            zip(diagnosis.metrics["per_class"].items(), diagnosis.evidence.points, strict=True)
        )
    }
    content = {
        "source": evaluation.source,
        "images": len(evaluation.image_ids),
        "objects": int((~diagnosis.rows.truths.ignore).sum()),
        "detections": len(diagnosis.rows.detections.scores),
        "aim": aim,
        **diagnosis.metrics,
        "map_interval": [diagnosis.ap.overall.low, diagnosis.ap.overall.high],
        "ious": diagnosis.ious,
        "ap_by_iou": diagnosis.ap.per_iou.estimate,
        "ap_by_iou_interval": [diagnosis.ap.per_iou.low, diagnosis.ap.per_iou.high],
        "f1_by_iou": diagnosis.f1.f1.estimate,
        "f1_by_iou_interval": [diagnosis.f1.f1.low, diagnosis.f1.f1.high],
        "f1_by_iou_threshold": diagnosis.f1.thresholds,
        "per_class": per_class,
        "calibration": {
            "detection_ece": calibration.detection_ece,
            "localisation_ece": calibration.localisation_ece.mean,
            "localisation_ace": calibration.localisation_ace.mean,
            "bins": calibration.bins._asdict(),
        },
        "confusion": {"class_names": [*names, "background"], "matrix": diagnosis.evidence.confusion.matrix.numpy()},
        "errors": {
            kind.name.lower(): {
                "cost": costs.by_type[kind],
                "count": counts[kind].sum(),
                "count_at_thresholds": kept[kind].sum(),
                "per_class": {
                    name: {"cost": costs.by_type_and_class[kind, i], "count": counts[kind, i]}
                    for i, name in enumerate(names)
                },
            }
            for kind in ErrorType
        },
        "verdicts": None if verdicts is None else count_verdicts(verdicts),
        "confused_pairs": [
            pair._asdict() | {"truth": names[pair.truth_label], "detection": names[pair.detection_label]}
            for pair in diagnosis.confusions
        ],
        "what_to_do_first": [
            {"what": what, "cure": cure, "mistakes": count, "cost": cost}
            for cost, count, what, cure in collect(evaluation, diagnosis)
        ],
        "slices": [
            {
                "property": result.part.property,
                "value": result.part.value,
                "cost": result.cost,
                "recall": result.recall,
                "precision": result.precision,
            }
            for result in diagnosis.slices
        ],
    }
    figures: dict[str, Any] = plain(content)
    return figures


def write_tables(
    folder: Path,
    evaluation: Evaluation,
    diagnosis: Diagnosis,
    verdicts: Verdicts | None,
    of_images: dict[str, NDArray[Any]],
) -> None:
    """Write ``predictions.parquet``, ``images.parquet`` and ``slices.parquet``.

    The first is the evaluation's table with two columns more: ``error`` (of a detection, among all; of an object
    "missed" where nothing was near to finding it) and ``error_at_threshold`` (the same among those from the operating
    thresholds on; null for detections below); and, where there are verdicts, ``verdict`` and ``verdict_confidence`` of
    every mistake.
    """
    rows, operating = diagnosis.rows, diagnosis.evidence.operating
    count = evaluation.table.num_rows
    everywhere = np.full(count, None, dtype=object)
    everywhere[rows.detection_rows.numpy()] = _names_of(diagnosis.evidence.errors.error.numpy())
    everywhere[rows.truth_rows.numpy()[diagnosis.evidence.errors.missed.numpy()]] = "missed"
    kept = np.full(count, None, dtype=object)
    kept[rows.detection_rows[operating.rows].numpy()] = _names_of(operating.errors.error.numpy())
    kept[rows.truth_rows.numpy()[operating.errors.missed.numpy()]] = "missed"
    table = evaluation.table.append_column("error", pa.array(everywhere, pa.string()))
    table = table.append_column("error_at_threshold", pa.array(kept, pa.string()))
    if verdicts is not None:
        table = _with_verdicts(table, diagnosis, verdicts)
    pq.write_table(table, folder / "predictions.parquet")

    images = len(evaluation.image_ids)
    errors = operating.errors
    objects = ~errors.truths.ignore
    pictures = {
        "image_id": evaluation.image_ids,
        "file_name": evaluation.file_names,
        "image_height": evaluation.sizes[:, 0],
        "image_width": evaluation.sizes[:, 1],
        "correction_cost": diagnosis.evidence.correction,
        "objects": np.bincount(errors.truths.images[objects].numpy(), minlength=images),
        "missed": np.bincount(errors.truths.images[objects & (errors.found_by < 0)].numpy(), minlength=images),
        "wrong": np.bincount(errors.detections.images[errors.outcome == FALSE_POSITIVE].numpy(), minlength=images),
        **of_images,
    }
    pq.write_table(pa.table({name: pa.array(values) for name, values in pictures.items()}), folder / "images.parquet")

    flat = [
        {"property": result.part.property, "value": result.part.value, "cost": result.cost}
        | {f"{side}_{key}": value for side in ("recall", "precision") for key, value in getattr(result, side).items()}
        for result in diagnosis.slices
    ]
    pq.write_table(pa.Table.from_pylist(flat), folder / "slices.parquet")


def _with_verdicts(table: pa.Table, diagnosis: Diagnosis, verdicts: Verdicts) -> pa.Table:
    said = np.full(table.num_rows, None, dtype=object)
    confidence = np.full(table.num_rows, None, dtype=object)
    for mistake, judgement in verdicts.judgements.items():
        row = row_of_mistake(diagnosis, mistake)
        said[row], confidence[row] = judgement.verdict.value, judgement.confidence
    table = table.append_column("verdict", pa.array(said, pa.string()))
    return table.append_column("verdict_confidence", pa.array(confidence, pa.float32()))


def summary_tables(evaluation: Evaluation, diagnosis: Diagnosis) -> list[Table]:
    """What the terminal shows: the classes, and what to do first."""
    table = Table("class", "AP", "95 % interval", "threshold", "precision", "recall", title_justify="left")
    for label, name in enumerate(evaluation.class_names):
        point, interval = diagnosis.evidence.points[label], diagnosis.ap.per_class
        numbers = (point.threshold, point.precision, point.recall) if point else (math.nan,) * 3
        between = f"{interval.low[label]:.3f} to {interval.high[label]:.3f}"
        table.add_row(
            name,
            *(
                "-" if math.isnan(interval.estimate[label]) else text
                for text in (f"{interval.estimate[label]:.3f}", between)
            ),
            *("-" if math.isnan(number) else f"{number:.3f}" for number in numbers),
        )
    first = Table("what to do first", "mistakes", "AP points", title_justify="left")
    for cost, count, what, cure in collect(evaluation, diagnosis, 5):
        first.add_row(f"{what}: {cure}", str(count), f"{100 * cost:.2f}")
    return [table, first]


def _names_of(errors: NDArray[np.int64]) -> NDArray[Any]:
    """Names of error types, None for what is no error."""
    names = np.array([*(kind.name.lower() for kind in ErrorType), None], dtype=object)
    return names[np.where(errors == NO_ERROR, len(ErrorType), errors)]

"""Evidence as W&B's own plots, tables and image panels, in sizes that a page can draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detframe.analysis.evidence import Evidence, WorstImage, lumped, thinned, with_most_objects, worst_images
from detframe.analysis.prediction_table import TableRows
from detframe.data.images import read_image
from detframe.drawing import Truth
from detframe.metrics.errors import ErrorType, count_errors
from detframe.metrics.operating_points import Floats, ThresholdCurve, at_thresholds, interpolated_precision
from detframe.wandb_boxes import image_boxes

if TYPE_CHECKING:
    from pathlib import Path

    import wandb
    from wandb.plot.custom_chart import CustomChart

MOST_CLASSES = 20
"""Classes that a plot shows, those with the most objects: no page can tell more lines apart."""

MOST_POINTS = 200
"""Points of a class's curve: 20 classes fit into the 10,000 rows that W&B keeps of a table."""

MOST_PIXELS = 1024
"""Longer side of an image that is shown, at most."""

_GROUND = (114, 114, 114)
_SCORES: Floats = np.linspace(1, 0, 101)


def evidence_panels(
    evidence: Evidence,
    rows: TableRows,
    class_names: Sequence[str],
    path_of: Callable[[int], Path] | None,
    images: int,
    min_score: float,
) -> dict[str, Any]:
    """Everything that W&B shows of an evaluation: charts, calibration errors and the images dearest to correct.

    Args:
        evidence: What is shown.
        rows: Detections and objects of all images.
        class_names: Names by label.
        path_of: File of the image at a place in ``rows.image_ids``; None where the images are not at hand.
        images: How many images to show, at most.
        min_score: Detections below it are not drawn, 0..1.
    """
    shown: dict[str, Any] = charts(evidence, class_names)
    calibration = evidence.calibration
    shown |= {"d_ece": calibration.detection_ece, "laece_0": calibration.localisation_ece.mean}
    worst = [] if path_of is None else worst_images(evidence, images)
    if path_of is not None and worst:
        paths = [path_of(image.place) for image in worst]
        shown["worst_images"] = panel(worst, paths, rows, class_names, min_score)
    return shown


def charts(evidence: Evidence, class_names: Sequence[str]) -> dict[str, CustomChart | wandb.Table]:
    """Plots and tables by name; curves are of the classes with the most objects."""
    import wandb

    shown = with_most_objects(evidence.positives, MOST_CLASSES)
    curves = {class_names[label]: evidence.curves[label] for label in shown}
    curves_75 = {class_names[label]: evidence.curves_75[label] for label in shown}
    by_score = {
        name: at_thresholds(curve, _SCORES) for name, curve in {"all classes": evidence.all_classes, **curves}.items()
    }
    points: list[Iterable[Any]] = [
        [name, int(count), *point]
        for name, count, point in zip(class_names, evidence.positives, evidence.points, strict=True)
        if point is not None
    ]
    columns: list[str | int] = [
        "class",
        "objects",
        "threshold",
        "precision",
        "recall",
        "F1",
        "found",
        "false",
        "missed",
    ]
    return {
        "precision_recall_50": _precision_recall(curves, "Precision by recall, IoU 0.5"),
        "precision_recall_75": _precision_recall(curves_75, "Precision by recall, IoU 0.75"),
        "precision_by_score": _by_score({name: curve.precision for name, curve in by_score.items()}, "Precision"),
        "recall_by_score": _by_score({name: curve.recall for name, curve in by_score.items()}, "Recall"),
        "f1_by_score": _by_score({name: curve.f1 for name, curve in by_score.items()}, "F1"),
        "reliability": _reliability(evidence),
        "reliability_counts": _bin_counts(evidence),
        "operating_points": wandb.Table(columns=columns, data=points),
        "confusion": _confusion(evidence, class_names, shown),
        "error_types": _error_types(evidence),
    }


def lines(series: Mapping[str, tuple[Iterable[float], Iterable[float]]], title: str, x_name: str) -> CustomChart:
    """A line for each name, through its points x and y; points without a value are left out."""
    import wandb

    known = {
        name: [(float(x), float(y)) for x, y in zip(xs, ys, strict=True) if not np.isnan(y)]
        for name, (xs, ys) in series.items()
    }
    return wandb.plot.line_series(
        xs=[[x for x, _ in points] for points in known.values()],
        ys=[[y for _, y in points] for points in known.values()],
        keys=list(known),
        title=title,
        xname=x_name,
    )


def _precision_recall(curves: Mapping[str, ThresholdCurve], title: str) -> CustomChart:
    """Interpolated precision, whose area average precision is, on the chart of ``wandb.plot.pr_curve``."""
    import wandb

    rows: list[Iterable[Any]] = []
    for name, curve in curves.items():
        # Precision is interpolated first: from the points that are left it would come out too low.
        every = interpolated_precision(curve)
        for row in thinned(curve, MOST_POINTS).tolist():
            rows.append([name, float(curve.recall[row]), float(every[row])])
    return wandb.plot_table(
        vega_spec_name="wandb/area-under-curve/v0",
        data_table=wandb.Table(columns=["class", "recall", "precision"], data=rows),
        fields={"x": "recall", "y": "precision", "class": "class"},
        string_fields={"title": title, "x-axis-title": "Recall", "y-axis-title": "Precision"},
    )


def _by_score(values: Mapping[str, Floats], name: str) -> CustomChart:
    series = {key: (_SCORES, column) for key, column in values.items()}
    return lines(series, f"{name} of detections from a score on, IoU 0.5", "score")


def _reliability(evidence: Evidence) -> CustomChart:
    bins = evidence.calibration.bins
    ideal = np.array([0.0, 1.0])
    series = {"detector": (bins.mean_score, bins.mean_target), "scores that are true": (ideal, ideal)}
    return lines(series, "Precision of detections by score, IoU 0.5", "mean score")


def _bin_counts(evidence: Evidence) -> CustomChart:
    import wandb

    edges = evidence.calibration.bins.edges
    data: list[Iterable[Any]] = [
        [f"{low:.1f}-{high:.1f}", int(count)]
        for low, high, count in zip(edges[:-1], edges[1:], evidence.calibration.bins.counts, strict=True)
    ]
    table = wandb.Table(columns=["score", "detections"], data=data)
    return wandb.plot.bar(table, label="score", value="detections", title="Detections by score")


def _confusion(evidence: Evidence, class_names: Sequence[str], shown: Sequence[int]) -> CustomChart:
    """The chart of ``wandb.plot.confusion_matrix``, which itself counts labels and knows no background."""
    import wandb

    matrix = lumped(evidence.confusion.matrix, shown).tolist()
    names = [*(class_names[label] for label in shown), "other classes", "background"]
    if len(matrix) < len(names):
        names.remove("other classes")
    data: list[Iterable[Any]] = [
        [actual, predicted, count]
        for actual, row in zip(names, matrix, strict=True)
        for predicted, count in zip(names, row, strict=True)
    ]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=data),
        fields={name: name for name in ("Actual", "Predicted", "nPredictions")},
        string_fields={"title": "Objects by class and what they are found as, at each class's best F1"},
    )


def _error_types(evidence: Evidence) -> CustomChart:
    import wandb

    counts = count_errors(evidence.errors, len(evidence.positives)).sum(dim=1).tolist()
    costs = evidence.costs.by_type.tolist()
    data: list[Iterable[Any]] = [[kind.name.lower(), counts[kind], costs[kind]] for kind in ErrorType]
    table = wandb.Table(columns=["error", "count", "AP"], data=data)
    return wandb.plot.bar(table, label="error", value="AP", title="AP@0.5 that fixing each type of error would bring")


def panel(
    worst: Sequence[WorstImage], paths: Sequence[Path], rows: TableRows, class_names: Sequence[str], min_score: float
) -> list[wandb.Image]:
    """Images with their detections and objects, none larger than :data:`MOST_PIXELS`.

    W&B shows all images of a panel at one size, so smaller ones are set on a grey ground.

    Args:
        worst: Which images, and their mistakes for the captions.
        paths: Their files.
        rows: Detections and objects of all images.
        class_names: Names by label.
        min_score: Detections below it are left out, 0..1.
    """
    import wandb

    pictures, scales = zip(*(_shrunk(path) for path in paths), strict=True)
    size = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    shown = []
    for image, picture, scale in zip(worst, pictures, scales, strict=True):
        ground = Image.new("RGB", size, _GROUND)
        ground.paste(picture)
        found, real = rows.detections, rows.truths
        drawn = (found.images == image.place) & (found.scores >= min_score)
        present = real.images == image.place
        boxes = image_boxes(
            found.boxes[drawn] * scale,
            found.labels[drawn],
            found.scores[drawn],
            Truth(real.boxes[present] * scale, real.labels[present], real.ignore[present]),
            class_names,
        )
        caption = f"image {int(rows.image_ids[image.place])}: {image.missed} missed, {image.false} false"
        shown.append(wandb.Image(ground, caption=caption, boxes=boxes, file_type="jpg"))
    return shown


def _shrunk(path: Path) -> tuple[Image.Image, float]:
    """A file's picture of at most :data:`MOST_PIXELS`, and its pixels for one of the file's."""
    picture = Image.fromarray(np.ascontiguousarray(read_image(path).permute(1, 2, 0).numpy()))
    scale = min(1.0, MOST_PIXELS / max(picture.size))
    if scale < 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), reducing_gap=2.0)
    return picture, scale

"""The page of a diagnosis: what the detector gets wrong, what it costs, and where to look."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detframe.analysis.diagnosis import Diagnosis, SliceResult
from detframe.analysis.evaluation import Evaluation
from detframe.analysis.examples import BACKGROUND, LEGEND, examples_of_images, examples_of_mistakes
from detframe.analysis.gallery import SCRIPT, STYLE, gallery
from detframe.analysis.mistakes import choose, mistakes
from detframe.analysis.page import Rows, Section, plot, write_page
from detframe.analysis.verdicts import Verdicts, count_verdicts
from detframe.metrics.calibration import expected_calibration_error
from detframe.metrics.errors import ErrorType, count_errors
from detframe.metrics.operating_points import ThresholdCurve, interpolated_precision

MISTAKES, IMAGES = 160, 24
"""Pictures on a page: about 4 MB."""

SHOWN_CLASSES = 12
"""Classes that plots and the matrix show, those with the lowest AP; tables and files have all."""

MEANINGS = {
    ErrorType.CLASSIFICATION: "the place is right, the class is not",
    ErrorType.LOCALISATION: "the class is right, the place is not (IoU 0.1 to 0.5)",
    ErrorType.BOTH: "neither is",
    ErrorType.DUPLICATE: "an object that was found already",
    ErrorType.BACKGROUND: "nothing is labelled there",
    ErrorType.MISSED: "an object that nothing was near to finding",
}

_INK, _MEAN, _F1 = "#0072b2", "#222222", "#777777"
_POINTS = 200


def write_diagnosis(
    path: Path,
    evaluation: Evaluation,
    diagnosis: Diagnosis,
    verdicts: Verdicts | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        evaluation: What was found and what is there.
        diagnosis: The figures.
        verdicts: Why the mistakes happened, where that can be said.
        progress: Told what is being drawn.
    """
    metrics = diagnosis.metrics
    low, high = float(diagnosis.ap.overall.low), float(diagnosis.ap.overall.high)
    subtitle = (
        f"{evaluation.source}: {len(evaluation.image_ids)} images, "
        f"{int((~diagnosis.rows.truths.ignore).sum())} objects, {len(diagnosis.rows.detections.scores)} detections. "
        f"mAP {metrics['map']:.3f} (95 % interval {low:.3f} to {high:.3f}), mAP@0.5 {metrics['map_50']:.3f}, "
        f"mAP@0.75 {metrics['map_75']:.3f}."
    )
    progress("plots")
    sections = [
        _classes(evaluation, diagnosis),
        _collect(evaluation, diagnosis),
        _errors(evaluation, diagnosis),
        _confusion(evaluation, diagnosis),
        _curves(evaluation, diagnosis),
        _calibration(evaluation, diagnosis),
        _slices(diagnosis),
    ]
    if evaluation.paths is None:
        sections.append(Section("Mistakes", "The images are not at hand; give them with --data to see them here."))
    else:
        progress("pictures")
        sections += [_mistakes(evaluation, diagnosis, verdicts), _worst(evaluation, diagnosis)]
    sections[-1] = sections[-1]._replace(markup=STYLE + sections[-1].markup + SCRIPT)
    write_page(path, "What the detector gets wrong", subtitle, sections)


def _shown(diagnosis: Diagnosis) -> list[int]:
    """Labels of the classes to plot: those with objects and the lowest AP."""
    ap = diagnosis.ap.per_class.estimate
    known = np.flatnonzero(~np.isnan(ap))
    return sorted(known[np.argsort(ap[known], kind="stable")][:SHOWN_CLASSES].tolist())


def _classes(evaluation: Evaluation, diagnosis: Diagnosis) -> Section:
    rows = []
    errors = expected_calibration_error(diagnosis.evidence.calibration.class_bins)
    for label, name in enumerate(evaluation.class_names):
        row, point = diagnosis.metrics["per_class"][name], diagnosis.evidence.points[label]
        low, high = diagnosis.ap.per_class.low[label], diagnosis.ap.per_class.high[label]
        lrp = diagnosis.olrp
        parts = (lrp.error, lrp.localisation, lrp.false_positive, lrp.false_negative)
        rows.append(
            [
                name,
                str(row["images"]),
                str(row["instances"]),
                _number(row["ap"]),
                "-" if math.isnan(low) else f"{low:.2f} to {high:.2f}",
                _number(row["ap_50"]),
                _number(row["ap_75"]),
                *(_number(part[label]) for part in parts),
                *([_number(v) for v in (point.threshold, point.precision, point.recall)] if point else ["-"] * 3),
                _number(errors[label]),
            ]
        )
    columns = ["class", "images", "objects", "AP", "95 %", "@0.5", "@0.75"]
    columns += ["oLRP", "place", "false", "missed", "threshold", "precision", "recall", "ECE"]
    sizes = ", ".join(f"{size} {_number(diagnosis.metrics[f'map_{size}'])}" for size in ("small", "medium", "large"))
    return Section(
        "Classes",
        f"mAP by COCO's object sizes: {sizes}. AP has bootstrap intervals over images, too narrow for classes of few "
        "objects. oLRP is an error: 0 is best; its parts are 1 - IoU of what was found, 1 - precision and 1 - recall "
        "at its best threshold. The threshold is the one for the aim that was asked for, with what it gives. ECE is "
        "the mean distance of score and precision. F1 in the picture counts all classes together, at the one threshold "
        "that is best at this IoU.",
        table=Rows(columns, rows),
        plots=[_by_iou(evaluation, diagnosis)],
    )


def _by_iou(evaluation: Evaluation, diagnosis: Diagnosis) -> Markup:
    figure, axes = _axes("IoU that counts as found", "AP, F1")
    by_iou, f1, ious = diagnosis.ap, diagnosis.f1.f1, diagnosis.ious
    axes.fill_between(ious, by_iou.per_iou.low, by_iou.per_iou.high, color=_MEAN, alpha=0.15, lw=0)
    for label in _shown(diagnosis):
        axes.plot(ious, by_iou.per_class_and_iou.estimate[label], label=evaluation.class_names[label], lw=1.2)
    axes.plot(ious, by_iou.per_iou.estimate, color=_MEAN, lw=2.5, label="mean AP, 95 %")
    axes.fill_between(ious, f1.low, f1.high, color=_F1, alpha=0.12, lw=0)
    axes.plot(ious, f1.estimate, "--", color=_F1, lw=1.6, label="F1, one threshold, 95 %")
    axes.set_title("Found, but badly placed: the fall to the right", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return plot(figure)


def _collect(evaluation: Evaluation, diagnosis: Diagnosis) -> Section:
    """Kinds of mistakes by class and pairs of classes, the dearest first."""
    table = [[what, why, str(count), f"{100 * cost:.2f}"] for cost, count, what, why in collect(evaluation, diagnosis)]
    return Section(
        "What to do first",
        "AP points (at IoU 0.5, of the mean over classes) that would be gained if the mistake did not happen. Gains "
        "overlap and do not add up.",
        table=Rows(["what", "and so", "mistakes", "AP points"], table, numbers=False),
    )


def collect(evaluation: Evaluation, diagnosis: Diagnosis, most: int = 12) -> list[tuple[float, int, str, str]]:
    """Cost in AP (0..1), number of mistakes, what happens and what to do, the dearest first.

    Args:
        evaluation: For the class names.
        diagnosis: The figures.
        most: How many at most.
    """
    names, classes = evaluation.class_names, len(evaluation.class_names)
    counts = count_errors(diagnosis.evidence.errors, classes)
    present = int((diagnosis.evidence.costs.ap_per_class >= 0).sum())
    cures = {
        ErrorType.LOCALISATION: ("{} is found, but badly placed", "check how its boxes are drawn; label more of them"),
        ErrorType.DUPLICATE: ("{} is found twice", "lower the NMS threshold"),
        ErrorType.BACKGROUND: ("{} is seen where nothing is labelled", "look for missing labels; add such images"),
        ErrorType.MISSED: ("{} is missed", "label more like those that are missed"),
    }
    found = [
        (
            float(diagnosis.evidence.costs.by_type_and_class[kind, label]) / max(present, 1),
            int(counts[kind, label]),
            text.format(name),
            cure,
        )
        for kind, (text, cure) in cures.items()
        for label, name in enumerate(names)
    ]
    found += [
        (
            pair.cost,
            pair.errors,
            f"{names[pair.truth_label]} is taken for {names[pair.detection_label]}",
            "check the labels of both; add images of the two side by side",
        )
        for pair in diagnosis.confusions
    ]
    return sorted((row for row in found if row[0] > 0), key=lambda row: (-row[0], row[2]))[:most]


def _errors(evaluation: Evaluation, diagnosis: Diagnosis) -> Section:
    counts = count_errors(diagnosis.evidence.errors, len(evaluation.class_names)).sum(dim=1)
    at_threshold = count_errors(diagnosis.evidence.operating.errors, len(evaluation.class_names)).sum(dim=1)
    rows = [
        [
            kind.name.lower(),
            meaning,
            str(int(counts[kind])),
            str(int(at_threshold[kind])),
            f"{100 * float(diagnosis.evidence.costs.by_type[kind]):.2f}",
        ]
        for kind, meaning in MEANINGS.items()
    ]
    figure, axes = _axes("AP points", "")
    axes.barh(
        [kind.name.lower() for kind in MEANINGS][::-1],
        [100 * float(diagnosis.evidence.costs.by_type[kind]) for kind in MEANINGS][::-1],
        color=_INK,
    )
    axes.set_title("What each kind of mistake costs", loc="left", fontsize=10)
    return Section(
        "Kinds of mistakes",
        "TIDE's kinds (Bolya et al., 2020), each detection and object counted once: of all detections, as AP counts "
        "them, and of those from the operating thresholds on.",
        table=Rows(["kind", "meaning", "all", "at the thresholds", "AP points"], rows, numbers=False),
        plots=[plot(figure)],
    )


def _confusion(evaluation: Evaluation, diagnosis: Diagnosis) -> Section:
    """The matrix as a table of links to the examples of each cell."""
    matrix = diagnosis.evidence.confusion.matrix.numpy()
    classes = len(matrix) - 1
    labels = list(range(classes))
    if classes > SHOWN_CLASSES:
        wrong = matrix[:classes].sum(axis=1) + matrix[:, :classes].sum(axis=0) - 2 * np.diag(matrix)[:classes]
        labels = sorted(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES].tolist())
    labels.append(classes)
    names = [*evaluation.class_names, BACKGROUND]
    most = max(int(matrix[np.ix_(labels, labels)].max()), 1)
    head = Markup("").join(Markup('<th class="number">{}</th>').format(names[label]) for label in labels)
    lines = [Markup("<tr><th>labelled, detected as</th>{}</tr>").format(head)]
    for row in labels:
        cells = []
        for column in labels:
            count = int(matrix[row, column])
            colour = "0 114 178" if row == column else "213 94 0"
            text: Markup | str = str(count) if count else ""
            if count and row != column and evaluation.paths is not None:
                wanted = json.dumps({"truth": names[row], "detected": names[column]})
                text = Markup('<a href="#mistakes" data-filter="{}">{}</a>').format(wanted, count)
            shade = 0.6 * math.sqrt(count / most)
            cells.append(
                Markup('<td class="number" style="background: rgb({} / {:.2f})">{}</td>').format(colour, shade, text)
            )
        lines.append(Markup("<tr><td>{}</td>{}</tr>").format(names[row], Markup("").join(cells)))
    cut = (
        f" The {SHOWN_CLASSES} classes with the most confusion; report.json has all." if classes > SHOWN_CLASSES else ""
    )
    return Section(
        "What is taken for what",
        "At the operating thresholds, matched by place (IoU 0.5) before class. The last column holds objects that "
        f"were missed, the last row detections of nothing. A number opens its examples.{cut}",
        markup=Markup('<div class="wide"><table>{}</table></div>').format(Markup("").join(lines)),
    )


def _curves(evaluation: Evaluation, diagnosis: Diagnosis) -> Section:
    """Precision by recall, and precision, recall and F1 by score."""

    def draw(x: str, y: str, read: Callable[[ThresholdCurve], tuple[Any, Any]], mark: bool = False) -> Markup:
        figure, axes = _axes(x, y)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        for label in _shown(diagnosis):
            curve = diagnosis.evidence.curves[label]
            across, up = read(curve)
            (line,) = axes.plot(*_thinned(across, up), label=evaluation.class_names[label], lw=1.2)
            point = diagnosis.evidence.points[label]
            if mark and point is not None:
                axes.plot(point.recall, point.precision, "o", color=line.get_color(), ms=5)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        return plot(figure)

    return Section(
        "Curves",
        "At IoU 0.5. Dots are the operating thresholds.",
        plots=[
            draw("recall", "precision", lambda c: (c.recall, interpolated_precision(c)), mark=True),
            draw("score threshold", "F1", lambda c: (c.thresholds, c.f1)),
            draw("score threshold", "precision", lambda c: (c.thresholds, c.precision)),
            draw("score threshold", "recall", lambda c: (c.thresholds, c.recall)),
        ],
    )


def _thinned(across: Any, up: Any) -> tuple[Any, Any]:  # noqa: ANN401 - arrays of numbers
    """Some 200 points of a curve: what a page can show."""
    rows = np.unique(np.linspace(0, len(across) - 1, min(len(across), _POINTS)).round().astype(int))
    return across[rows], up[rows]


def _calibration(evaluation: Evaluation, diagnosis: Diagnosis) -> Section:
    calibration = diagnosis.evidence.calibration
    shown = _shown(diagnosis)
    panels = [("all classes", calibration.bins)]
    panels += [
        (evaluation.class_names[label], calibration.class_bins._replace(**_of_class(calibration.class_bins, label)))
        for label in shown
    ]
    if len(panels) == 2:  # one class is all classes
        panels = panels[:1]
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.7 * columns, 2.8 * lines))
    figure.subplots_adjust(wspace=0.25, hspace=0.45)
    for i, (name, bins) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, i + 1)
        centre = (bins.edges[1:] + bins.edges[:-1]) / 2
        share = bins.counts / max(int(bins.counts.sum()), 1)
        axes.bar(centre, share, 0.1, color="#bbbbbb", alpha=0.6, label="share of detections")
        axes.plot([0, 1], [0, 1], color=_MEAN, lw=0.8, ls=":")
        axes.plot(bins.mean_score, bins.mean_target, "o-", color=_INK, ms=3.5, lw=1.4, label="precision")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score")
        axes.set_title(name, fontsize=9)
        if not i:
            axes.legend(frameon=False, fontsize=7, loc="upper left")
    note = (
        f"D-ECE {_number(calibration.detection_ece)} (all classes, scores from 0.3), "
        f"LaECE0 {_number(calibration.localisation_ece.mean)} and LaACE0 {_number(calibration.localisation_ace.mean)} "
        "(score against IoU, mean over classes); 0 is best. Below the dotted line the detector is surer than it is "
        "right. `detframe calibrate` mends scores without changing what is found."
    )
    return Section("Can scores be believed?", note, plots=[plot(figure)])


def _of_class(bins: Any, label: int) -> dict[str, Any]:  # noqa: ANN401 - ReliabilityBins of all classes
    return {name: getattr(bins, name)[label] for name in ("counts", "mean_score", "mean_target")}


def _slices(diagnosis: Diagnosis) -> Section:
    rows = []
    for result in diagnosis.slices:
        rows.append(
            [
                f"{result.part.property}: {result.part.value}",
                f"{result.recall['total']:.0f}",
                *_side(result, "recall"),
                *_side(result, "precision"),
                f"{100 * result.cost:.2f}",
            ]
        )
    columns = ["slice", "objects", "recall", "less the rest's", "precision", "less the rest's", "AP points"]
    return Section(
        "Slices",
        "At the operating thresholds, those that are most surely worse than the rest first. Intervals hold for all "
        f"{len(rows)} slices at once (95 %); bold where even the interval's end is on one side. AP points are what the "
        "slice's mistakes cost, so a large slice has more.",
        table=Rows(columns, rows),
    )


def _side(result: SliceResult, name: str) -> list[Markup | str]:
    side = getattr(result, name)
    if math.isnan(side["share"]):
        return ["-", "-"]
    if math.isnan(side["gap"]):
        return [f"{side['share']:.3f}", "-"]
    text = f"{side['gap']:+.3f} ({side['low']:+.2f} to {side['high']:+.2f})"
    sure = side["high"] < 0 or side["low"] > 0
    return [f"{side['share']:.3f}", Markup("<b>{}</b>").format(text) if sure else text]


def _mistakes(evaluation: Evaluation, diagnosis: Diagnosis, verdicts: Verdicts | None) -> Section:
    found = mistakes(diagnosis)
    chosen = choose(found, MISTAKES)
    filters = {"kind": "kind", "truth": "labelled", "detected": "detected as"}
    if verdicts is None:
        why = "To see why each happened, test with `--embeddings.write true` and diagnose that run."
    else:
        filters["verdict"] = "verdict"
        counts = ", ".join(f"{count} {verdict}" for verdict, count in count_verdicts(verdicts).items())
        why = f"Why all happened: {counts}. At the right of each, the most similar training objects."
    shown = list(examples_of_mistakes(evaluation, diagnosis, chosen, verdicts))
    return Section(
        "Mistakes",
        f"{len(shown)} of {len(found)}, of every kind and pair of classes in turn, the surest first. {why} {LEGEND}",
        markup=gallery("mistakes", shown, filters),
    )


def _worst(evaluation: Evaluation, diagnosis: Diagnosis) -> Section:
    return Section(
        "Worst images",
        "By optimal correction cost (Otani et al., 2022): moving, deleting and adding boxes until the image is right, "
        f"0 to 0.6. {LEGEND}",
        markup=gallery("worst", list(examples_of_images(evaluation, diagnosis, IMAGES)), {}, large=True),
    )


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.4))
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) and value >= 0 else "-"

"""A comparison as JSON, as Markdown for a pull request and as one page with what was fixed and what broke."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from detframe.analysis.comparison import Change, Compared, Comparison, Line, Verdict
from detframe.analysis.examples import LEGEND, crop_around, pixels_of
from detframe.analysis.gallery import SCRIPT, STYLE, Example, gallery
from detframe.analysis.gate import Judgement, Speed
from detframe.analysis.markdown import markdown_table
from detframe.analysis.page import Rows, Section, plot, write_page
from detframe.analysis.plain import plain

SHOWN = 120
"""Pictures of a page at most: more make it too heavy for a browser."""

_COLUMNS = ("figure", "base", "candidate", "gain", "95 % interval", "p", "detectable", "margin", "verdict")
_CONDITIONS = ("condition", "holds", "found")
_COLOURS = {
    Verdict.BETTER: "#0072b2",
    Verdict.WORSE: "#d55e00",
    Verdict.SAME: "#444444",
    Verdict.UNKNOWN: "#999999",
}
_FAMILIES = {
    "overall": "Overall",
    "class": "By class",
    "slice": "By slice of the data",
}
_MOST_CONDITIONS = 20  # of a pull request's comment; where there are more, those that fail
_GAP = 6  # pixels between the two halves of a picture


def headline(comparison: Comparison, judgements: Sequence[Judgement] | None) -> str:
    """The outcome in a sentence."""
    line = comparison.lines[0]
    said = f"{line.name} {line.base:.4f} -> {line.candidate:.4f}: {line.verdict.value}"
    if judgements is None:
        return said
    failed = sum(not judgement.holds for judgement in judgements)
    outcome = (
        f"The gate is closed, {failed} of {len(judgements)} conditions do not hold" if failed else "The gate is open"
    )
    return f"{outcome}. {said}"


def as_json(
    comparison: Comparison,
    judgements: Sequence[Judgement] | None,
    speed: Speed | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The figures as a document; ``facts`` are hashes, the command and what else is known of the two."""
    counts = Counter(change.kind for change in comparison.changes)
    return {
        **facts,
        "passed": None if judgements is None else all(judgement.holds for judgement in judgements),
        "gate": None if judgements is None else [judgement._asdict() for judgement in judgements],
        "lines": [plain({**line._asdict(), "verdict": line.verdict.value}) for line in comparison.lines],
        "changes": {kind: counts[kind] for kind in ("fixed", "broken", "new false alarm", "gone false alarm")},
        "instances": [_instance(comparison, change) for change in comparison.changes],
        "thresholds": {
            side: dict(zip(one.evaluation.class_names, one.thresholds.tolist(), strict=True))
            for side, one in (("base", comparison.base), ("candidate", comparison.candidate))
        },
        "speed": None if speed is None else speed._asdict(),
    }


def as_markdown(
    comparison: Comparison, judgements: Sequence[Judgement] | None, speed: Speed | None, facts: dict[str, Any]
) -> str:
    """A comment for a pull request: the gate, figures overall and by class, and slices that got worse or better."""
    images, objects = len(comparison.base.evaluation.image_ids), int((~comparison.base.rows.truths.ignore).sum())
    parts = [
        f"## {headline(comparison, judgements)}",
        f"`{facts['base']}` against `{facts['candidate']}`, on the same {images} images with {objects} objects.",
    ]
    if judgements is not None:
        rows = _condition_rows(judgements, "**no**")
        short = rows if len(rows) <= _MOST_CONDITIONS else [row for row in rows if row[1] != "yes"]
        parts.append(markdown_table(_CONDITIONS, short) if short else "")
        parts.append(f"{len(rows) - len(short)} conditions hold." if len(short) < len(rows) else "")
    told = [line for line in comparison.lines if line.family != "slice"]
    told += [line for line in comparison.lines if line.family == "slice" and line.verdict in _DECIDED]
    parts.append(markdown_table(_COLUMNS, [_cells(line) for line in told]))
    if speed is not None:
        parts.append(markdown_table(["", "base", "candidate", "ratio"], _speed_rows(speed)))
    counts = Counter(change.kind for change in comparison.changes)
    parts.append(
        f"Objects: {counts['fixed']} fixed, {counts['broken']} broken. False alarms: {counts['new false alarm']} new, "
        f"{counts['gone false alarm']} gone."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


_DECIDED = (Verdict.BETTER, Verdict.WORSE)


def write_comparison_page(
    path: Path,
    comparison: Comparison,
    judgements: Sequence[Judgement] | None,
    speed: Speed | None,
    progress: Callable[[str], object],
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: HTML file.
        comparison: What it shows.
        judgements: Of the gate, None where there is none.
        speed: Of both, where it was measured.
        progress: Told what is being drawn.
    """
    sections = []
    if judgements is not None:
        rows = _condition_rows(judgements, "NO")
        sections.append(Section("Gate", table=Rows(_CONDITIONS, rows, numbers=False)))
    if speed is not None:
        table = Rows(["", "base", "candidate", "ratio"], _speed_rows(speed))
        sections.append(Section("Speed and size", f"{speed.names[0]} and {speed.names[1]}.", table=table))
    notes = {
        "overall": "Above 0 the candidate is better, of d_ece too. Detectable: the smallest true difference "
        "that this test set shows with a probability of 80 %.",
        "class": "P-values are corrected for the number of these lines by Holm's method; intervals are not.",
        "slice": "Recall of the objects and precision of the detections in a slice, at the operating thresholds.",
    }
    for family, title in _FAMILIES.items():
        lines = [line for line in comparison.lines if line.family == family]
        if not lines:
            continue
        plots = [_forest(lines)] if len(lines) <= 40 else []
        sections.append(Section(title, notes[family], Rows(_COLUMNS, [_cells(line) for line in lines]), pictures=plots))
    sections.append(_changes_section(comparison, progress))
    base, candidate = comparison.base.evaluation, comparison.candidate.evaluation
    subtitle = f"{base.source} (base) and {candidate.source} (candidate), on the same {len(base.image_ids)} images"
    write_page(path, headline(comparison, judgements), subtitle, sections)


def _changes_section(comparison: Comparison, progress: Callable[[str], object]) -> Section:
    shown = _spread(comparison.changes)
    examples = []
    for number, change in enumerate(shown, 1):
        progress(f"picture {number} of {len(shown)}")
        example = _example(comparison, change)
        if example is not None:
            examples.append(example)
    counts = Counter(change.kind for change in comparison.changes)
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing"
    note = f"At the operating thresholds: {said}. Left the base, right the candidate. {LEGEND}"
    if len(examples) < len(comparison.changes):
        note += f" {len(examples)} of {len(comparison.changes)} are shown; compare.json has all."
    markup = STYLE + gallery("changes", examples, {"kind": "kind", "class": "class"}, large=True) + SCRIPT
    return Section("What was fixed and what broke", note, markup=markup if examples else Markup(""))


def _spread(changes: Sequence[Change]) -> list[Change]:
    """At most :data:`SHOWN`, a like number of each kind."""
    kinds = {change.kind for change in changes}
    left = {kind: SHOWN // len(kinds) for kind in kinds}
    chosen = []
    for change in changes:
        if left[change.kind]:
            left[change.kind] -= 1
            chosen.append(change)
    return chosen


def _example(comparison: Comparison, change: Change) -> Example | None:
    pixels = pixels_of(comparison.base.evaluation, change.image)
    if pixels is None:
        return None
    side = comparison.candidate if change.kind == "new false alarm" else comparison.base
    box = _box(side, change)
    names = side.evaluation.class_names
    halves = [
        crop_around(one.operating.errors, names, change.image, pixels, box)
        for one in (comparison.base, comparison.candidate)
    ]
    both = Image.new("RGB", (halves[0].width + _GAP + halves[1].width, halves[0].height), (250, 250, 248))
    both.paste(halves[0])
    both.paste(halves[1], (halves[0].width + _GAP, 0))
    name = names[change.label]
    return Example(
        both,
        f"{name}: {change.kind}",
        side.evaluation.file_names[change.image],
        {"kind": change.kind, "class": name},
    )


def _box(side: Compared, change: Change) -> Tensor:
    errors = side.operating.errors
    return (errors.detections if "alarm" in change.kind else errors.truths).boxes[change.row]


def _instance(comparison: Comparison, change: Change) -> dict[str, Any]:
    side = comparison.candidate if change.kind == "new false alarm" else comparison.base
    evaluation = side.evaluation
    found: dict[str, Any] = {
        "kind": change.kind,
        "image": evaluation.file_names[change.image],
        "class": evaluation.class_names[change.label],
        "box": [round(value, 2) for value in _box(side, change).tolist()],
    }
    if "alarm" not in change.kind:
        row = int(side.rows.truth_rows[change.row])
        found["annotation"] = evaluation.table["annotation_id"][row].as_py()
    return found


def _forest(lines: Sequence[Line]) -> Markup:
    """Gains with their intervals, and margins as a band."""
    figure = Figure(figsize=(8.4, 0.9 + 0.26 * len(lines)))
    axes = figure.add_subplot()
    for place, line in enumerate(reversed(lines)):
        colour = _COLOURS[line.verdict]
        axes.fill_betweenx([place - 0.42, place + 0.42], -line.margin, line.margin, color="#e8e8e2", linewidth=0)
        axes.plot([line.low, line.high], [place, place], color=colour, linewidth=1.6)
        axes.plot(line.gain, place, "o", color=colour, markersize=5)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)], fontsize=8)
    axes.set_ylim(-0.7, len(lines) - 0.3)
    axes.set_xlabel("gain of the candidate, with its 95 % interval; grey: within the margin")
    axes.spines[["top", "right"]].set_visible(False)
    return plot(figure)


def _cells(line: Line) -> list[str]:
    return [
        line.name,
        f"{line.base:.4f}",
        f"{line.candidate:.4f}",
        f"{line.gain:+.4f}",
        f"{line.low:+.4f} to {line.high:+.4f}",
        f"{line.p_value:.3f}" if line.p_value >= 0.001 else f"{line.p_value:.4f}",
        "-" if math.isnan(line.detectable) else f"{line.detectable:.4f}",
        f"{line.margin:g}",
        line.verdict.value,
    ]


def _condition_rows(judgements: Sequence[Judgement], failed: str) -> list[list[str]]:
    return [[one.condition, "yes" if one.holds else failed, one.found] for one in judgements]


def _speed_rows(speed: Speed) -> list[list[str]]:
    return [
        [name, f"{pair[0]:.1f}", f"{pair[1]:.1f}", f"{pair[1] / pair[0]:.2f}"]
        for name, pair in (("ms at batch 1", speed.milliseconds), ("MB", speed.megabytes))
    ]

"""What a window says, as JSON and as one page with a picture of each signal that moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from detframe.analysis.gallery import SCRIPT, STYLE, Example, gallery
from detframe.analysis.page import Rows, Section, plot, write_page
from detframe.analysis.plain import plain
from detframe.monitoring.drift import ALPHA, Drift
from detframe.monitoring.signals import place_of, watched
from detframe.monitoring.window import Window

_COLUMNS = ("signal", "before", "now", "moved by, deviations", "distance", "p")
_PLOTS = 8


def headline(drift: Drift) -> str:
    """The outcome in a sentence."""
    if not drift.alarm:
        return f"{drift.images} images are as they were."
    return f"{drift.images} images are not as they were: {drift.causes[0]}."


def promised(drift: Drift, calibrated: bool) -> str:
    """The precision that scores promise, and whether that can be believed, in a sentence."""
    precision, low, high = drift.expected
    if np.isnan(precision):
        return "Nothing was detected, so that no precision can be expected."
    said = f"By their scores {precision:.1%} of the detections are right ({low:.1%} to {high:.1%})"
    if not calibrated:
        return f"{said}, which cannot be trusted: scores are not calibrated. Run `detframe calibrate` before exporting."
    if drift.alarm:
        return f"{said}, which cannot be trusted: scores were calibrated on images that are unlike these."
    return f"{said}."


def estimated(drift: Drift) -> str:
    """The estimate of mAP without labels, and what it takes for granted, in sentences."""
    value, low, high = drift.estimated
    if np.isnan(value):
        return "mAP cannot be estimated: the artefact does not say what it was on the profile's images. Export it anew."
    if drift.alarm:
        return (
            f"mAP is hardly above {high:.3f}, if there are as many objects as usual: so often is each class found. "
            "Whether what is found is right cannot be told of images that are unlike the profile's."
        )
    return f"mAP is about {value:.3f} ({low:.3f} to {high:.3f}), if there are as many objects as usual."


def as_json(drift: Drift, suspicious: Sequence[tuple[str, float]], calibrated: bool) -> dict[str, Any]:
    """The outcome as a document."""
    trusted = calibrated and not drift.alarm
    document: dict[str, Any] = plain(
        {
            "alarm": drift.alarm,
            "images": drift.images,
            "causes": drift.causes,
            "expected_precision": drift.expected._asdict(),
            "trusted": trusted,
            "estimated_map": drift.estimated._asdict(),
            "together_p_value": drift.together,
            "signals": {
                one.signal: {name: value for name, value in one._asdict().items() if name != "signal"}
                for one in drift.moved
            },
            "suspicious": [{"image": name, "suspicion": round(value, 4)} for name, value in suspicious],
        }
    )
    return document


def write_drift_page(
    path: Path, drift: Drift, profile: Window, window: Window, examples: Sequence[Example], calibrated: bool
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: HTML file.
        drift: What it shows.
        profile: What is normal.
        window: What was seen.
        examples: The most suspicious images, where images are at hand.
        calibrated: Whether scores are.
    """
    meanings = {signal.name: signal.meaning for signal in watched(profile.class_names)}
    rows = [
        [
            f"{one.signal}: {meanings[one.signal]}",
            f"{one.before:.3f}",
            f"{one.now:.3f}",
            f"{one.shift:+.1f}",
            f"{one.distance:.2f}",
            f"{one.p_value:.4f}",
        ]
        for one in drift.moved
    ]
    moved = [one.signal for one in drift.moved if one.p_value < ALPHA] or [one.signal for one in drift.moved[:2]]
    plots = [_histograms(name, profile, window) for name in moved[:_PLOTS]]
    said = "; ".join(drift.causes) if drift.causes else "nothing moved that chance does not explain"
    note = (
        f"Likely: {said}. P-values are corrected for all signals and for the test of all at once, whose own is "
        f"{drift.together:.4f}; an alarm is a p below {ALPHA:g}. Distances are Kolmogorov's and Smirnov's."
    )
    sections = [Section("Signals", note, Rows(_COLUMNS, rows), plots=plots)]
    if examples:
        markup = STYLE + gallery("suspicious", examples, {"signal": "least common"}, large=True) + SCRIPT
        text = "Those whose signals are the least common in the profile."
        sections.append(Section("The most suspicious images", text, markup=markup))
    subtitle = f"Against a profile of {profile.images} images. {promised(drift, calibrated)} {estimated(drift)}"
    write_page(path, headline(drift), subtitle, sections)


def _histograms(name: str, profile: Window, window: Window) -> Markup:
    """The profile in grey and the window in colour, as shares of images."""
    place = place_of(name, profile.class_names)
    edges = watched(profile.class_names)[place].edges
    figure = Figure(figsize=(5.0, 2.6))
    axes = figure.add_subplot()
    sides = [of.counts[place] / max(int(of.counts[place].sum()), 1) for of in (profile, window)]
    occupied = np.flatnonzero(sides[0] + sides[1])
    low, high = int(occupied.min(initial=1)), int(occupied.max(initial=1))
    centres = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
    width = float(np.diff(edges).mean())
    axes.bar(centres, sides[0], width=width, color="#bbbbb5", label="profile")
    axes.step(centres, sides[1], where="mid", color="#d55e00", label="window")
    reach = max((high - low) * 0.1, 3) * width
    axes.set_xlim(centres[low] - reach, centres[high] + reach)
    axes.set_title(name, fontsize=10)
    axes.set_ylabel("share of images", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return plot(figure)

"""The contact sheet of the images that ``mine`` chose, as one page that works offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detframe.analysis.failure_modes import Findings
from detframe.analysis.gallery import SCRIPT, STYLE, Example, gallery
from detframe.analysis.mining import Chosen, Selection, detections_of, in_words
from detframe.analysis.page import Rows, Section, write_page
from detframe.analysis.pool import Pool
from detframe.data.images import ImageError, read_image
from detframe.drawing import draw_boxes, shrunk

SHOWN = 200
"""Images on the page at most; more make it too heavy for a browser."""

_SIDE = 480  # pixels of a picture


def write_contact_sheet(
    path: Path, findings: Findings, pool: Pool, selection: Selection, progress: Callable[[str], object]
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        findings: For class names and thresholds.
        pool: The pool.
        selection: What was chosen from it.
        progress: Told what is being drawn.
    """
    shown, unreadable = [], []
    for rank, chosen in enumerate(selection.chosen[:SHOWN], 1):
        progress(f"image {rank} of {min(len(selection.chosen), SHOWN)}")
        try:
            shown.append(_example(rank, chosen, findings, pool))
        except ImageError as error:
            unreadable.append(str(error))
    rows = [
        [
            mode.kind,
            mode.name,
            f"{100 * mode.cost:.2f}",
            f"{mode.objects:.1f}",
            f"{mode.by_chance:.1f}",
        ]
        for mode in selection.modes
    ]
    note = "In the order in which they were taken, with the detections from the operating thresholds on."
    if len(selection.chosen) > SHOWN:
        note += f" The first {SHOWN} of {len(selection.chosen)}; chosen.csv has all."
    if unreadable:
        note += f" {len(unreadable)} cannot be read, such as {unreadable[0]}"
    sections = [
        Section(
            "What was called for",
            "Failure modes of the detector by what they cost in AP, and how many objects of each are expected in the "
            "chosen images and in as many at random.",
            table=Rows(["kind", "failure mode", "AP points", "chosen", "by chance"], rows, numbers=False),
        ),
        Section(
            "Chosen images", note, markup=STYLE + gallery("chosen", shown, {"kind": "chosen for"}, large=True) + SCRIPT
        ),
    ]
    subtitle = f"{len(selection.chosen)} of {len(pool.image_ids)} images of {pool.folder}, for {findings.folder}"
    write_page(path, "Images to label next", subtitle, sections)


def _example(rank: int, chosen: Chosen, findings: Findings, pool: Pool) -> Example:
    rows = detections_of(pool, chosen.image, findings.diagnosis.evidence.thresholds)
    found = pool.detections
    pixels, scale = shrunk(read_image(pool.paths[chosen.image]), _SIDE)
    picture = draw_boxes(
        pixels,
        found.boxes[rows] * scale,
        found.labels[rows],
        found.scores[rows],
        findings.evaluation.class_names,
        min_side=_SIDE // 2,
    )
    name = Path(pool.file_names[chosen.image])
    return Example(
        picture,
        f"{rank}. {name.name if name.is_absolute() else name}",
        f"{'; '.join(map(in_words, chosen.reasons))} (score {chosen.score:.1f})",
        {"kind": chosen.reasons[0].kind},
    )

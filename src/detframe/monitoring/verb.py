"""The verb ``monitor``: are a released detector's images and answers still what they were, and if not, why."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from detframe.refusals import refuse

if TYPE_CHECKING:
    from detframe.analysis.gallery import Example
    from detframe.export.runtime import Artefact
    from detframe.monitoring.to_queue import Suspicious
    from detframe.monitoring.window import Window

_SHOWN = 24  # suspicious images of a page
_SIDE = 480  # pixels of their pictures


def monitor(
    artefact: Path,
    windows: Path | None = None,
    images: str | None = None,
    out: Path | None = None,
    to_queue: int = 0,
    json: bool = False,
) -> int:
    """Say whether images and answers are still what they were when ARTEFACT was exported, without any label.

    An exported file carries a profile of its validation data: of each image its brightness, contrast, colour of light,
    noise, sharpness and compression, what it looks like to the network, and how many detections of which class, score,
    size and place there were. Windows are counts of the same, which `detframe serve --windows DIR` writes; several add
    up, of one server or of many. Those of another artefact, such as the release before, are counted and left out.

      detframe monitor model.onnx --windows windows      # of one server or of many
      detframe monitor model.onnx --images site/today    # or let ARTEFACT look at images now

    Each signal is compared by Kolmogorov's and Smirnov's test and all together by the maximum mean discrepancy, with
    Holm's correction: a window that is like the profile raises an alarm in at most one of 100 cases. A window of 64
    images is enough for a change that a person sees.

    Written to OUT: index.html, with what moved, by how much, the likely cause and the most suspicious images;
    monitor.json. With --to_queue also images.json and queue.jsonl, for `detframe review` and `apply`: what is odd today
    is labelled tomorrow.

    Exit code: 0 when nothing moved; 1 when something did; 2 when the input cannot be used.

    Args:
        artefact: What `detframe export` wrote.
        windows: A file, or a folder with such files in it or below, as of several servers.
        images: A folder of images, a glob in quotes, or a COCO file.
        out: Folder to write; by default `monitor` beside ARTEFACT.
        to_queue: So many of the most suspicious of --images go to a queue of labels to review.
        json: Print the outcome as JSON and nothing else.
    """
    from detframe.data.annotations import DataError
    from detframe.data.images import ImageError
    from detframe.export.runtime import ArtefactError, load
    from detframe.monitoring.drift import drift_of
    from detframe.monitoring.report import as_json, estimated, headline, promised, write_drift_page
    from detframe.monitoring.to_queue import write_review_queue
    from detframe.monitoring.window import WindowError, from_json, scale_of, window_of

    console = Console(stderr=True, quiet=json, highlight=False)
    folder = out or artefact.parent / "monitor"
    try:
        if (windows is None) == (images is None) or (to_queue and images is None):
            raise WindowError(
                "Give either --windows or --images; --to_queue needs images, as windows hold counts alone."
            )
        running = load(artefact)
        if running.metadata.profile is None:
            raise WindowError(f"{artefact}: carries no profile. Export it anew, with validation data.")
        profile = from_json(running.metadata.profile, str(artefact))
        looked: list[_Looked] = []
        left_out = 0
        if windows is not None:
            window, left_out = _own_windows(windows, running)
        else:
            assert images is not None
            looked = _look(running, images, console)
            window = window_of(profile.class_names, np.array([one.values for one in looked]), scale_of(profile))
        drift = drift_of(profile, window, profile_map=running.metadata.profile_map)
        suspects = _suspects(profile, looked)
        folder.mkdir(parents=True, exist_ok=True)
        shown = [_example(one) for one in track(suspects[:_SHOWN], "Drawing", console=console, transient=True)]
        calibrated = running.metadata.calibrated
        write_drift_page(folder / "index.html", drift, profile, window, shown, calibrated)
        document = as_json(drift, [(str(one.looked.path), one.suspicion) for one in suspects], calibrated)
        document["windows_left_out"] = left_out
        (folder / "monitor.json").write_text(dumps(document, indent=1), encoding="utf-8")
        queue = None
        if to_queue:
            queue = write_review_queue([_suspicious(one) for one in suspects[:to_queue]], profile.class_names, folder)
    except (ArtefactError, DataError, ImageError, WindowError, OSError) as error:
        return refuse(error, json)
    if json:
        print(dumps(document))
        return int(drift.alarm)
    printer = Console(highlight=False, markup=False)
    if drift.alarm:
        table = Table("signal", "before", "now", "deviations", "p")
        for one in drift.moved[:8]:
            table.add_row(one.signal, f"{one.before:.3f}", f"{one.now:.3f}", f"{one.shift:+.1f}", f"{one.p_value:.4f}")
        printer.print(table)
    lines = [headline(drift), promised(drift, calibrated), estimated(drift)]
    lines += [f"Windows of other artefacts, left out: {left_out}."] if left_out else []
    printer.print("\n".join([*lines, f"Written to {folder / 'index.html'}"]), soft_wrap=True)
    if queue is not None:
        printer.print(f"Review them with `detframe review {queue}`.", soft_wrap=True)
    return int(drift.alarm)


class _Looked(NamedTuple):
    """An image, what is watched of it and what was found."""

    path: Path
    size: tuple[int, int]
    values: NDArray[np.float64]  # [S]
    boxes: NDArray[Any]  # [K, 4] from the operating thresholds on
    scores: NDArray[Any]  # [K]
    labels: NDArray[Any]  # [K]


class _Suspect(NamedTuple):
    looked: _Looked
    suspicion: float
    signal: str  # the least common of its signals
    class_names: list[str]


def _own_windows(place: Path, artefact: Artefact) -> tuple[Window, int]:
    """The windows of an artefact in a file, or in a folder and below it, as one; and how many there are of others.

    Raises:
        WindowError: There is none of its own, or a file is no window.
    """
    from detframe.monitoring.window import WindowError, merged, read_window

    found = [read_window(path) for path in (sorted(place.rglob("*.window.json")) if place.is_dir() else [place])]
    own = [window for window in found if window.artefact == artefact.metadata.of_windows()]
    if found and not own:
        raise WindowError(
            f"{place}: holds windows of other artefacts alone. Name the one that was served, or serve {artefact.path}."
        )
    return merged(own), len(found) - len(own)


def _look(artefact: Artefact, images: str, console: Console) -> list[_Looked]:
    from detframe.data.images import read_image
    from detframe.data.unlabelled import read_images
    from detframe.monitoring.window import limits, values_of

    index = read_images(images)
    thresholds = limits(artefact.metadata.thresholds, artefact.metadata.class_names)
    looked = []
    for place in track(range(len(index)), "Looking", console=console, transient=True):
        image = read_image(index.path(place)).numpy()
        found = artefact.run(image[None])
        values = values_of(image, found, thresholds)
        chosen = (column[found.confident] for column in (found.boxes, found.scores, found.labels))
        looked.append(_Looked(index.path(place), (image.shape[1], image.shape[2]), values, *chosen))
    return looked


def _suspects(profile: Window, looked: list[_Looked]) -> list[_Suspect]:
    """All images, the most suspicious first."""
    from detframe.monitoring.drift import suspicion, tail_shares
    from detframe.monitoring.signals import watched

    names = [signal.name for signal in watched(profile.class_names)]
    found = []
    for one in looked:
        shares = tail_shares(profile, one.values)
        found.append(_Suspect(one, suspicion(shares), names[int(np.argmin(shares))], profile.class_names))
    return sorted(found, key=lambda suspect: -suspect.suspicion)


def _example(suspect: _Suspect) -> Example:
    import torch

    from detframe.analysis.gallery import Example
    from detframe.data.images import read_image
    from detframe.drawing import draw_boxes, shrunk

    one = suspect.looked
    pixels, scale = shrunk(read_image(one.path), _SIDE)
    boxes, labels, scores = (torch.from_numpy(column) for column in (one.boxes * scale, one.labels, one.scores))
    picture = draw_boxes(pixels, boxes, labels, scores, suspect.class_names, min_side=_SIDE // 2)
    return Example(
        picture, one.path.name, f"{suspect.signal} is odd ({suspect.suspicion:.1f})", {"signal": suspect.signal}
    )


def _suspicious(suspect: _Suspect) -> Suspicious:
    from detframe.monitoring.to_queue import Found, Suspicious

    one = suspect.looked
    found = [
        Found(tuple(box), suspect.class_names[label], score)
        for box, score, label in zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
    ]
    return Suspicious(one.path, one.size, suspect.suspicion, f"its {suspect.signal} is odd", found)

"""The verb ``benchmark``: how quick, small and right artefacts and their checkpoint are, in one interleaved run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from detframe.data.annotations import DataError
from detframe.data.images import ImageError, image_size, read_image
from detframe.export.contestants import About, Contestant, Running
from detframe.export.proof_images import AnnotatedSplit, split_of_run
from detframe.export.runtime import ArtefactError, Images, artefacts_in, megabytes
from detframe.export.verify import metrics
from detframe.refusals import refuse

_WARM_UPS = 3  # TorchScript profiles at the first call and compiles at the second
_WIDTH = 110  # columns of the table, which names of files are to fit into
_SIZES_LOOKED_AT = 200  # images of the split, among which those of a batch are sought


class Timing(NamedTuple):
    """Of calls with a number of images."""

    median: float  # milliseconds
    p95: float


class Measured(NamedTuple):
    """What was found of a contestant."""

    name: str
    megabytes: float  # on disk
    memory: float | None  # the most resident memory of its process, 10^6 bytes
    single: Timing
    batched: Timing
    throughput: float  # images/s in batches
    ratio: float  # to the first contestant's time for a single image in the same round; a median
    ratio_batched: float
    map: float | None
    map_50: float | None


def benchmark(
    artefacts: list[Path] | None = None,
    data: Path | None = None,
    images: int = 0,
    batch: int = 8,
    threads: int = 1,
    rounds: int = 30,
    compiled: bool = True,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Compare artefacts, and checkpoints, in one interleaved run: latency, throughput, memory, size and mAP.

      python -m detframe benchmark RUN/checkpoints/best.ckpt RUN/export

    A folder stands for the artefacts in it, and a checkpoint counts for three: eager, in channels_last, and compiled.
    All take the images as the camera gives them and answer with final boxes, so the times hold everything from resizing
    to suppression. Each is in a process of its own, and in every round each is called once, so that what else the
    machine does hits all of them alike. Ratios are to the first one named, of the same round. Memory is the most that a
    process had, in MB, libraries and all. Writes benchmark.json and a picture, benchmark.png.

    Exit code: 0; 2 when one of them or the data cannot be read.

    Args:
        artefacts: What `detframe export` wrote, and checkpoints.
        data: Annotated images, as `detframe check` takes them: the `val` split, or `test`, or the only one. By default
            those of the run that the first one named lies in; where there are none, noise is timed and no mAP told.
        images: mAP of so many of them, evenly chosen; 0 takes all.
        batch: Images of a batch, for the second timing.
        threads: Of the CPU for each.
        rounds: Calls of each that are timed.
        compiled: Whether checkpoints are run with their backbone and neck compiled too, which needs a C++ compiler.
        out: Folder to write to; by default that of the first artefact.
        json: Print the figures as JSON and nothing else.
    """
    console = Console(stderr=True, quiet=json, highlight=False)
    try:
        contestants = _contestants(artefacts or [], compiled)
        if batch < 1 or threads < 1 or rounds < 1:
            raise DataError("--batch, --threads and --rounds are 1 or more.")
        with ExitStack() as stack:
            with console.status("Loading"):
                running = [stack.enter_context(Running(contestant, threads)) for contestant in contestants]
            about = _common(running)
            # Of the run whose `checkpoints` or `export` the first one lies in, where none is named.
            split = split_of_run(data, contestants[0].path.parent.parent, images, about.class_names)
            found = _measured(running, about, split, batch, rounds, console)
        folder = out or next((one for one in contestants if one.how == "artefact"), contestants[0]).path.parent
        report = {
            "data": None if split is None else str(split.index.source),
            "images": 0 if split is None else len(split.index),
            "batch": batch,
            "threads": threads,
            "rounds": rounds,
            "contestants": [
                row._asdict() | {"single": row.single._asdict(), "batched": row.batched._asdict()} for row in found
            ],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").write_text(dumps(report, indent=1), encoding="utf-8")
        _picture(found, batch, threads, folder / "benchmark.png")
    except (DataError, ImageError, ArtefactError, ValueError, OSError) as error:
        return refuse(error, json, out=out)
    if json:
        print(dumps(report))
        return 0
    if split is None:
        console.print("Timed with noise, without mAP: name annotated images with --data.")
    Console(highlight=False, width=max(console.width, _WIDTH)).print(_table(found, batch))
    Console(highlight=False, markup=False).print(f"Picture: {folder / 'benchmark.png'}", soft_wrap=True)
    return 0


def _contestants(paths: Sequence[Path], compiled: bool) -> list[Contestant]:
    """Artefacts as they are, and checkpoints in each way that torch has.

    Raises:
        ArtefactError: There are none, or one does not exist.
    """
    if not paths:
        raise ArtefactError("Name what `detframe export` wrote, and the checkpoint beside it.")
    found: list[Contestant] = []
    for path in paths:
        if not path.exists():
            raise ArtefactError(f"{path}: there is no such file.")
        if path.suffix != ".ckpt":
            inside = artefacts_in(path)
            found += [Contestant(artefact, "artefact") for artefact in inside or [path]]
            continue
        found += [Contestant(path, "eager"), Contestant(path, "channels_last")]
        if compiled:
            found.append(Contestant(path, "compiled"))
    return found


def _common(running: Sequence[Running]) -> About:
    """What all say of themselves.

    Raises:
        ArtefactError: They have different classes.
    """
    first = running[0]
    for other in running[1:]:
        if other.about.class_names != first.about.class_names:
            raise ArtefactError(
                f"{other.contestant.path}: has other classes than {first.contestant.path}; compare detectors of one "
                "data set."
            )
    return first.about


def _measured(
    running: Sequence[Running],
    about: About,
    split: AnnotatedSplit | None,
    batch: int,
    rounds: int,
    console: Console,
) -> list[Measured]:
    several = _pictures(split, batch, about)
    calls = (_WARM_UPS + rounds) * 2 + (0 if split is None else len(split.index))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Measuring", total=calls)
        times: list[NDArray[np.float64]] = []
        for pictures in (several[:1], several):
            for one in running:
                one.answer(pictures)
            taken = np.zeros((rounds, len(running)))
            for turn in range(-_WARM_UPS, rounds):
                for place in np.roll(np.arange(len(running)), turn).tolist():
                    taken[max(turn, 0), place] = running[place].milliseconds()
                progress.advance(task)
            times.append(taken)
        answers: list[list[Any]] = [[] for _ in running]
        if split is not None:
            for place in range(len(split.index)):
                picture = read_image(split.index.path(place))[None].numpy()
                for one, own in zip(running, answers, strict=True):
                    own.append(one.answer(picture))
                progress.advance(task)
    timings = [[Timing(*np.percentile(of, (50, 95)).tolist()) for of in taken.T] for taken in times]
    found = []
    for place, one in enumerate(running):
        figures = None if split is None else metrics(answers[place], split.truths, split.areas, about.class_names)
        alone, together = timings[0][place], timings[1][place]
        found.append(
            Measured(
                name=_name(one.contestant, [other.contestant for other in running]),
                megabytes=megabytes(one.contestant.path),
                memory=one.peak_megabytes(),
                single=alone,
                batched=together,
                throughput=1000 * batch / together.median,
                ratio=float(np.median(times[0][:, place] / times[0][:, 0])),
                ratio_batched=float(np.median(times[1][:, place] / times[1][:, 0])),
                map=None if figures is None else float(figures["map"]),
                map_50=None if figures is None else float(figures["map_50"]),
            )
        )
    return found


def _pictures(split: AnnotatedSplit | None, count: int, about: About) -> Images:
    """So many images of one size: the size that most have, and noise of the network's where there is no split."""
    if split is None:
        return np.random.default_rng(0).integers(0, 256, (count, 3, *about.image_size)).astype(np.uint8)
    index = split.index
    looked = range(min(len(index), _SIZES_LOOKED_AT))
    sizes = [image_size(index.path(place)) for place in looked]
    usual = Counter(sizes).most_common(1)[0][0]
    alike = [place for place in looked if sizes[place] == usual]
    images = [read_image(index.path(alike[number % len(alike)])).numpy() for number in range(count)]
    return np.ascontiguousarray(np.stack(images))


def _name(contestant: Contestant, others: Sequence[Contestant]) -> str:
    """The file's name, with as much of its folders as tells it from others."""
    path = contestant.path.resolve()
    parts = 1
    alike = {other.path.resolve() for other in others} - {path}
    while parts < len(path.parts) and any(other.parts[-parts:] == path.parts[-parts:] for other in alike):
        parts += 1
    shown = str(Path(*path.parts[-parts:]))
    return shown if contestant.how == "artefact" else f"{shown} {contestant.how}"


def _table(found: Sequence[Measured], batch: int) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    alone, together = ("ms", "p95", "ratio"), (f"ms of {batch}", "p95", "ratio", "images/s")
    for column in (*alone, *together, "MB", "memory", "mAP"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            row.name,
            f"{row.single.median:.1f}",
            f"{row.single.p95:.1f}",
            f"{row.ratio:.2f}",
            f"{row.batched.median:.0f}",
            f"{row.batched.p95:.0f}",
            f"{row.ratio_batched:.2f}",
            f"{row.throughput:.1f}",
            f"{row.megabytes:.1f}",
            "-" if row.memory is None else f"{row.memory:.0f}",
            "-" if row.map is None else f"{row.map:.4f}",
        )
    return table


def _picture(found: Sequence[Measured], batch: int, threads: int, path: Path) -> None:
    """Milliseconds an image, single and in batches, with mAP beside."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.55 * len(found)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found))
    for offset, color, label, values, late in (
        (-0.19, "#0072b2", "one at a time", [r.single.median for r in found], [r.single.p95 for r in found]),
        (
            0.19,
            "#e69f00",
            f"in batches of {batch}",
            [r.batched.median / batch for r in found],
            [r.batched.p95 / batch for r in found],
        ),
    ):
        axes.barh(places + offset, values, height=0.36, color=color, label=label)
        beyond = np.maximum(0, np.subtract(late, values))
        axes.errorbar(values, places + offset, xerr=[np.zeros(len(found)), beyond], fmt="none", color="#333333", lw=1)
        for place, value, end in zip(places, values, np.maximum(values, late), strict=True):
            axes.text(end, place + offset, f" {value:.1f}", va="center", fontsize=8)
    names = [row.name if row.map is None else f"{row.name}\nmAP {row.map:.4f}, {row.megabytes:.1f} MB" for row in found]
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"milliseconds an image, {threads} thread{'s' * (threads > 1)}; whiskers to the 95th percentile")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)

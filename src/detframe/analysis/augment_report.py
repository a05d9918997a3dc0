"""``detframe augment-report``: what a policy makes of the real data, on one page with pictures and plots."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from detframe.refusals import refuse

if TYPE_CHECKING:
    from markupsafe import Markup

    from detframe.augment.facts import Finding
    from detframe.augment.pipeline import AugmentationPipeline
    from detframe.data.datamodule import DetectionDataModule
    from detframe.deployment import DeploymentProfile
    from detframe.structures import Batch

_BEFORE, _AFTER, _SITE = "#0072b2", "#d55e00", "#009e73"  # told apart by the colour-blind too


class Seen(NamedTuple):
    """What a set of batches holds."""

    sizes: NDArray[np.float64]  # square root of the area of every live object, pixels
    sides: NDArray[np.float64]  # the shorter side of the same, pixels
    labels: NDArray[np.int64]  # of the same
    brightness: NDArray[np.float64]  # of every image
    noise: NDArray[np.float64]


class Trial(NamedTuple):
    """A policy tried on data."""

    before: Seen
    after: Seen
    milliseconds: dict[str, float]  # an image, by step
    taken: dict[str, int]  # objects ignored/STEP and gone/STEP
    pictures: list[Any]  # PIL images, before and after side by side


def augment_report(
    config: Path,
    out: Path = Path("augment_report.html"),
    policy: Path | None = None,
    root: Path | None = None,
    images: int = 256,
    samples: int = 6,
    profile: Path | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Try a training configuration's augmentation on its own data, and write one page that shows what it does.

    The page has images before and after with their boxes (ignore regions are hatched), object sizes, class shares,
    brightness and noise before and after and, with ``--profile``, of the deployment; objects that turned to ignore
    regions or were lost, by step; milliseconds by step; and what contradicts the facts that the policy's ``deployment``
    block declares.

    Exit code: 0; 1 when something contradicts these facts and the policy's ``lint`` is ``error``; 2 when the
    configuration or the data cannot be used.

    Args:
        config: A training configuration whose ``data:`` block has an ``augmentation``.
        out: The page to write.
        policy: A file such as those in ``configs/augment/``, whose ``data:`` block goes over the configuration's.
        root: Where the data is, instead of the configuration's own ``data.root``.
        images: So many images are tried, in the order that a training would take them.
        samples: So many of them are shown.
        profile: A file of `detframe profile`, to compare with.
        seed: Of the order of the images and of all that is drawn.
        json: Print the figures as one JSON document instead of a summary.
    """
    from detframe.data.annotations import DataError
    from detframe.data.images import ImageError
    from detframe.deployment import ProfileError, read_profile

    try:
        site = read_profile(profile) if profile is not None else None
        data, pipeline = _configured(config, policy, root)
        objects = data.dataset("train").objects()
        findings = pipeline.findings(objects)
        pipeline.show(objects)
        trial = try_policy(data, pipeline, images, samples, seed, show_progress=not json)
        figures = summary(trial, data.class_names)
        _write(out, config, trial, figures, site, findings, data.class_names)
    except (DataError, ImageError, ProfileError, ValueError, OSError) as error:
        return refuse(error, json, {"config": str(config)}, out)
    if json:
        found = [finding._asdict() for finding in findings]
        print(dumps({"config": str(config), "page": str(out), **figures, "contradictions": found}))
    else:
        _print(figures, findings, out)
    return 1 if findings and pipeline.lint == "error" else 0


def _configured(
    config: Path, policy: Path | None, root: Path | None
) -> tuple[DetectionDataModule, AugmentationPipeline]:
    """The data module and the policy of a training configuration.

    Raises:
        DataError: The file cannot be read, or it has no policy.
    """
    from lightning.pytorch.cli import instantiate_module

    from detframe.augment.pipeline import AugmentationPipeline
    from detframe.data.annotations import DataError
    from detframe.data.datamodule import DetectionDataModule

    try:
        block: dict[str, Any] = {}
        for path in [config, *([policy] if policy is not None else [])]:
            block.update(yaml.safe_load(path.read_text(encoding="utf-8"))["data"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Name a training configuration.") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is no training configuration with a `data:` block. Name one.") from error
    if root is not None:
        block["root"] = str(root)
    block["num_workers"] = 0
    try:
        data = instantiate_module(DetectionDataModule, block)
    except Exception as error:  # jsonargparse names what is wrong in exceptions of several kinds
        raise DataError(f"{config}: its `data:` block is not valid: {' '.join(str(error).split())[:400]}") from error
    if not isinstance(data.augmentation, AugmentationPipeline):
        raise DataError(f"{config}: its `data:` block has no `augmentation` of detframe's to report on.")
    return data, data.augmentation


def try_policy(
    data: DetectionDataModule, policy: AugmentationPipeline, images: int, samples: int, seed: int, show_progress: bool
) -> Trial:
    """Run a policy over training batches, step by step.

    Args:
        data: Where they come from.
        policy: As for the first epoch of a training.
        images: How many, at least one batch.
        samples: How many are shown.
        seed: Of everything that is drawn.
        show_progress: Show a bar.
    """
    import torch

    torch.manual_seed(seed)
    loader = data.train_dataloader()
    batches = max(1, min(images // data.batch_size, len(loader)))
    before, after = _Collector(), _Collector()
    seconds: dict[str, float] = defaultdict(float)
    pictures: list[Any] = []
    count = 0
    rounds = track(
        zip(range(batches), loader, strict=False),
        "Augmenting",
        batches,
        console=Console(stderr=True, quiet=not show_progress),
    )
    with torch.no_grad():
        for _, loaded in rounds:
            if loaded is None:
                continue
            batch = first = loaded._replace(images=loaded.images.float() / 255)
            start = time.perf_counter()
            for step, after_step in policy.steps(first):
                batch = after_step
                seconds[step] += time.perf_counter() - start
                start = time.perf_counter()
            count += len(first.images)
            before.add(first)
            after.add(batch)
            pictures += _pairs(first, batch, data.class_names)[: samples - len(pictures)]
    milliseconds = {step: value * 1000 / max(count, 1) for step, value in seconds.items()}
    return Trial(before.seen(), after.seen(), milliseconds, policy.counts(), pictures)


class _Collector:
    """Gathers what batches hold."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.float64], ...]] = []

    def add(self, batch: Batch) -> None:
        from detframe.boxes import box_area
        from detframe.image_statistics import brightness, noise_level

        live = batch.targets.valid & ~batch.targets.ignore
        boxes = batch.targets.boxes[live]
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)
        values = (
            box_area(boxes).sqrt(),
            sides,
            batch.targets.labels[live],
            brightness(batch.images),
            noise_level(batch.images),
        )
        self._parts.append(tuple(value.double().numpy() for value in values))

    def seen(self) -> Seen:
        sizes, sides, labels, bright, noise = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return Seen(sizes, sides, labels.astype(np.int64), bright, noise)


def _pairs(first: Batch, after: Batch, names: Sequence[str]) -> list[Any]:
    """Each image before and after the policy, side by side, with its boxes."""
    import torch

    from detframe.drawing import Truth, contact_sheet, draw_boxes

    def drawn(batch: Batch, i: int) -> Any:  # noqa: ANN401 - a PIL image, which is imported late
        targets = batch.targets
        valid = targets.valid[i]
        live, ignored = valid & ~targets.ignore[i], valid & targets.ignore[i]
        image = (batch.images[i] * 255).round().to(torch.uint8)
        regions = Truth(targets.boxes[i][ignored], targets.labels[i][ignored], targets.ignore[i][ignored])
        return draw_boxes(
            image, targets.boxes[i][live], targets.labels[i][live], None, names, truth=regions, min_side=480
        )

    return [
        contact_sheet([drawn(first, i), drawn(after, i)], columns=2, captions=["before", "after"])
        for i in range(len(first.images))
    ]


def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov distance of two samples, 0..1: the largest difference of their cumulative shares."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(first, second).statistic) if len(first) and len(second) else float("nan")


def summary(trial: Trial, names: Sequence[str]) -> dict[str, Any]:
    """The figures of a trial, as numbers and text."""
    shares = {when: np.bincount(seen.labels, minlength=len(names)) for when, seen in _times(trial).items()}
    return {
        "images": len(trial.before.brightness),
        "objects": {when: len(seen.sizes) for when, seen in _times(trial).items()},
        "class_shares": {
            name: {when: round(float(counts[i] / max(int(counts.sum()), 1)), 4) for when, counts in shares.items()}
            for i, name in enumerate(names)
        },
        "object_size_distance": round(distance(trial.before.sizes, trial.after.sizes), 4),
        "shortest_side": {
            when: round(float(np.min(seen.sides)), 2) for when, seen in _times(trial).items() if len(seen.sides)
        },
        "milliseconds": {step: round(value, 3) for step, value in trial.milliseconds.items()},
        "taken": trial.taken,
    }


def _times(trial: Trial) -> dict[str, Seen]:
    return {"before": trial.before, "after": trial.after}


def _write(
    out: Path,
    config: Path,
    trial: Trial,
    figures: dict[str, Any],
    site: DeploymentProfile | None,
    findings: Sequence[Finding],
    names: Sequence[str],
) -> None:
    from detframe.analysis.page import Rows, Section, picture, write_page

    lost = [
        [step, f"{value:.2f}", *(str(trial.taken.get(f"{kind}/{step}", "-")) for kind in ("ignored", "gone"))]
        for step, value in trial.milliseconds.items()
    ]
    contradictions = [[f.step, f.fact, f.message] for f in findings]
    sections = [
        Section(
            "What contradicts the deployment",
            "Nothing." if not findings else "Declared facts that a step of the policy does not respect.",
            table=Rows(["step", "fact", "what, and the cure"], contradictions, numbers=False) if findings else None,
        ),
        Section(
            "Steps",
            "Time for an image on this machine, and the objects of which too little was left, which became ignore "
            "regions, or nothing. A mosaic counts what its tiles cut off.",
            table=Rows(["step", "ms", "objects ignored", "objects gone"], lost),
        ),
        Section(
            "Distributions",
            f"Kolmogorov-Smirnov distance of object sizes before and after: {figures['object_size_distance']:.3f}.",
            plots=_plots(trial, site, names),
        ),
        Section("Samples", pictures=[picture(p, "an image before and after the policy") for p in trial.pictures]),
    ]
    subtitle = f"{config}: {figures['images']} images, {figures['objects']['before']} objects before"
    write_page(out, "What the augmentation does", f"{subtitle}, {figures['objects']['after']} after", sections)


def _plots(trial: Trial, site: DeploymentProfile | None, names: Sequence[str]) -> list[Markup]:
    """Sizes, class shares, brightness and noise."""
    from matplotlib.figure import Figure

    from detframe.analysis.page import plot

    plots = []
    for label, attribute, logarithmic, statistic in (
        ("square root of object area, px", "sizes", True, "object_size"),
        ("brightness of an image, 0..1", "brightness", False, "brightness"),
        ("noise of an image, standard deviation, 0..1", "noise", False, "noise"),
    ):
        figure = Figure(figsize=(5.6, 3.2))
        axes = figure.subplots()
        for when, color in (("before", _BEFORE), ("after", _AFTER)):
            values = np.sort(getattr(_times(trial)[when], attribute))
            if len(values):
                axes.step(values, np.arange(1, len(values) + 1) / len(values), color=color, label=when, where="post")
        distribution = getattr(site, statistic) if site is not None else None
        if distribution is not None:
            from detframe.deployment import LEVELS

            axes.plot(distribution.quantiles, LEVELS, "o--", color=_SITE, label="deployment")
        if logarithmic:
            axes.set_xscale("log")
        axes.set(xlabel=label, ylabel="share up to here", ylim=(0, 1))
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, loc="lower right")
        plots.append(plot(figure))
    shown = np.argsort(-np.bincount(trial.before.labels, minlength=len(names)))[:30][::-1]
    figure = Figure(figsize=(5.6, max(3.2, 0.3 * len(shown) + 1)))
    axes = figure.subplots()
    for when, color, shift in (("before", _BEFORE, 0.2), ("after", _AFTER, -0.2)):
        counts = np.bincount(_times(trial)[when].labels, minlength=len(names))
        shares = counts[shown] / np.maximum(counts.sum(), 1)
        axes.barh(np.arange(len(shown)) + shift, shares, 0.4, color=color, label=when)
    axes.set_yticks(np.arange(len(shown)), [names[i] for i in shown])
    axes.set(xlabel="share of the objects" + (", the 30 most frequent classes" if len(names) > 30 else ""))
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False, loc="lower right")
    plots.append(plot(figure))
    return plots


def _print(figures: dict[str, Any], findings: Sequence[Finding], out: Path) -> None:
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table("step", "ms an image", "ignored", "gone", title=f"{figures['images']} images", title_justify="left")
    for step, value in figures["milliseconds"].items():
        taken = figures["taken"]
        row = (str(taken.get(f"{kind}/{step}", "-")) for kind in ("ignored", "gone"))
        table.add_row(step, f"{value:.2f}", *row)
    console.print(table)
    shares = Table("class", "share before", "after", title_justify="left")
    for name, share in figures["class_shares"].items():
        shares.add_row(name, f"{share['before']:.1%}", f"{share['after']:.1%}")
    console.print(shares)
    sides = ", ".join(f"{side:g} {when}" for when, side in figures["shortest_side"].items())
    console.print(f"Kolmogorov-Smirnov distance of object sizes: {figures['object_size_distance']:.3f}")
    console.print(f"Shortest side of an object, pixels: {sides}")
    for finding in findings:
        console.print(str(finding), style="yellow")
    console.print(f"Written to {out}", soft_wrap=True)

"""The verb ``profile``: what the images of a site are like, as a small file that augmentation and monitoring read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from json import dumps
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.sources import NoDataSetError, read_splits
from detframe.data.unlabelled import read_images
from detframe.deployment import LEVELS, DeploymentProfile, Distribution, ProfileError, write_profile
from detframe.jpeg_tables import estimated_quality
from detframe.refusals import refuse

SMALLEST_SIDE = 16  # pixels, which the statistics need
_SKIPPED_SHOWN = 10
_ROWS = {
    "brightness": "brightness, 0..1",
    "contrast": "contrast, 0..0.5",
    "warmth": "warmth: red over blue, stops",
    "tint": "tint: green over red and blue, stops",
    "noise": "noise, standard deviation of 0..1",
    "blur": "blur of sharp edges, px",
    "jpeg_quality": "JPEG quality",
    "width": "width, px",
    "height": "height, px",
    "object_size": "object size: square root of the box, px",
}


class Measured(NamedTuple):
    """The figures of one image, or why there are none."""

    path: Path
    problem: str = ""  # "" where the image was measured
    brightness: float = 0.0
    contrast: float = 0.0
    warmth: float = 0.0
    tint: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    width: int = 0
    height: int = 0
    orientation: int = 1  # EXIF, 1..8
    jpeg_quality: int = 0  # 0: is no JPEG


def profile(
    images: str,
    out: Path = Path("site.yaml"),
    overwrite: bool = False,
    sample: int = 400,
    seed: int = 0,
    workers: int = 0,
    json: bool = False,
) -> int:
    """Measure what the images of a site are like, and write it down.

    The file that it writes holds the 5, 25, 50, 75 and 95 % quantiles of
    brightness (the sRGB grey that gives as much light), contrast (standard deviation of grey),
    warmth (red light over blue, in stops) and tint (green light over red and blue, in stops),
    noise (its standard deviation in flat parts, of the range 0..1),
    blur (the Gaussian in pixels that softens a step as the sharpest edges are),
    JPEG quality, width, height, and where there are boxes their sizes; further the counts of orientations.

    Give it to an augmentation as ``profile``, and training images get the site's light, noise, blur and compression.
    Take images from the cameras as they are, not ones that were cleaned up for training; a few hundred are enough.

    Exit code: 0 when the file is written; 2 when IMAGES cannot be read or OUT exists.

    Args:
        images: A folder of images, with all below it; a glob in quotes; or a data set as `detframe check` takes it.
        out: File to write.
        overwrite: Replace the file if it exists.
        sample: How many images are measured at most, chosen at random.
        seed: Of the choice: the same one gives the same images.
        workers: Threads that measure; 0 takes one for each core.
        json: Print the profile as one JSON document and nothing else.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        if sample < 1:
            raise DataError(f"--sample is {sample}; measure at least one image.")
        if out.exists() and not overwrite:  # known before the work, not after it
            raise ProfileError(f"{out}: exists already. Name another file with --out, or add --overwrite.")
        found = measure(images, sample, seed, workers, show_progress=not json)
        write_profile(found, out, overwrite)
    except (DataError, ProfileError) as error:
        return refuse(error, json, {"images": images})
    if json:
        print(dumps(found.as_dict()))
    else:
        _print(console, found, out)
    return 0


def measure(
    images: str, sample: int = 400, seed: int = 0, workers: int = 0, show_progress: bool = False
) -> DeploymentProfile:
    """Measure a sample of images.

    Args:
        images: As :func:`profile` takes it.
        sample: How many at most.
        seed: Of the choice.
        workers: Threads; 0 takes one for each core.
        show_progress: Draw a progress bar on stderr.

    Raises:
        DataError: There are no images, or none of the sample can be read.
    """
    indices = _indices(images)
    paths = list(dict.fromkeys(index.path(position) for index in indices for position in range(len(index))))
    if not paths:
        raise DataError(f"{images}: names no images. Add some.")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(paths))[:sample])
    results = list(_measured([paths[i] for i in chosen], workers, show_progress))
    sound = [result for result in results if not result.problem]
    skipped = {str(result.path): result.problem for result in results if result.problem}
    if not sound:
        path, problem = next(iter(skipped.items()))
        raise DataError(f"{images}: none of {len(results)} images can be used, such as {path}: {problem}")
    qualities = [result.jpeg_quality for result in sound if result.jpeg_quality]
    sizes = np.concatenate([_object_sizes(index) for index in indices])
    shapes = Counter(_shape(result.width, result.height) for result in sound)
    return DeploymentProfile(
        source=images,
        images=len(paths),
        sampled=len(results),
        seed=seed,
        brightness=_distribution([result.brightness for result in sound]),
        contrast=_distribution([result.contrast for result in sound]),
        warmth=_distribution([result.warmth for result in sound]),
        tint=_distribution([result.tint for result in sound]),
        noise=_distribution([result.noise for result in sound]),
        blur=_distribution([result.blur for result in sound]),
        width=_distribution([result.width for result in sound]),
        height=_distribution([result.height for result in sound]),
        jpeg_quality=_distribution(qualities) if qualities else None,
        object_size=Distribution.of(sizes) if len(sizes) else None,
        orientation={shape: shapes[shape] for shape in ("landscape", "portrait", "square")},
        exif_orientation=dict(sorted(Counter(result.orientation for result in sound).items())),
        skipped=skipped,
    )


def measure_image(path: Path) -> Measured:
    """The figures of one image file; they are those of its full resolution."""
    import torch

    from detframe import image_statistics
    from detframe.data.images import ImageError, read_header, read_image

    try:
        header, pixels = read_header(path), read_image(path)
    except ImageError as error:
        return Measured(path, str(error).removeprefix(f"{path}: "))
    height, width = pixels.shape[1:]
    if min(height, width) < SMALLEST_SIDE:
        return Measured(path, f"is {width} x {height}, smaller than {SMALLEST_SIDE} px")
    with torch.no_grad():
        image = pixels[None].float() / 255
        light = image_statistics.mean_light(image)
        return Measured(
            path,
            brightness=float(image_statistics.brightness(image)),
            contrast=float(image_statistics.contrast(image)),
            warmth=float(image_statistics.warmth_of(light)),
            tint=float(image_statistics.tint_of(light)),
            noise=float(image_statistics.noise_level(image)),
            blur=float(image_statistics.blur(image)),
            width=width,
            height=height,
            orientation=header.orientation,
            jpeg_quality=estimated_quality(header.quantisation) if header.quantisation else 0,
        )


def _indices(images: str) -> list[AnnotationIndex]:
    """The splits of a data set, or all images of a folder or glob as one."""
    path = Path(images)
    if not path.is_dir() and path.suffix.lower() not in (".json", ".yaml", ".yml"):
        return [read_images(images)]
    try:
        return [reading.index for reading in read_splits(path).values()]
    except NoDataSetError:
        return [read_images(images)]


def _measured(paths: Sequence[Path], workers: int, show_progress: bool) -> Iterator[Measured]:
    import torch

    console = Console(stderr=True, quiet=not show_progress)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one image for each thread of the pool
    try:
        with ThreadPoolExecutor(workers or None) as pool:
            measured = pool.map(measure_image, paths)
            yield from track(measured, "Measuring", total=len(paths), console=console, transient=True)
    finally:
        torch.set_num_threads(threads)


def _object_sizes(index: AnnotationIndex) -> NDArray[np.float64]:
    """Square roots of the areas of all boxes that can be learnt, in pixels."""
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    real = ~index.ignore & (sides > 0).all(axis=1)
    return np.asarray(np.sqrt(sides[real].prod(axis=1)), dtype=np.float64)


def _distribution(values: Sequence[float]) -> Distribution:
    return Distribution.of(np.array(values, dtype=np.float64))


def _shape(width: int, height: int) -> str:
    if width == height:
        return "square"
    return "landscape" if width > height else "portrait"


def _print(console: Console, found: DeploymentProfile, out: Path) -> None:
    table = Table("", *(f"{level:.0%}" for level in LEVELS), title="Quantiles", title_justify="left")
    for name, title in _ROWS.items():
        distribution: Distribution | None = getattr(found, name)
        values = ["-"] * len(LEVELS) if distribution is None else [f"{value:.3g}" for value in distribution.quantiles]
        if name in ("width", "height") and distribution is not None:
            values = [f"{value:.0f}" for value in distribution.quantiles]
        table.add_row(title, *values)
    console.print(table)
    console.print(", ".join(f"{count} {shape}" for shape, count in found.orientation.items() if count))
    turned = {number: count for number, count in found.exif_orientation.items() if number != 1}
    if turned:
        named = ", ".join(f"{number} ({count} images)" for number, count in turned.items())
        console.print(f"Turned by EXIF orientation {named}")
    if found.skipped:
        console.print(f"Skipped ({len(found.skipped)}):")
        for path, problem in list(found.skipped.items())[:_SKIPPED_SHOWN]:
            console.print(f"  {path}: {problem}")
        if len(found.skipped) > _SKIPPED_SHOWN:
            console.print(f"  and {len(found.skipped) - _SKIPPED_SHOWN} more, which {out} names")
    of = f"a sample of {found.sampled} (seed {found.seed}) of" if found.sampled < found.images else "all"
    console.print(f"Measured {of} {found.images} images; written to {out}")

"""Writes a copy of a data set with dark and noisy images: a test that training has never seen.

    python tools/corrupt.py path/to/data out --split test --stops 3 --electrons 200 --read-noise 4

A camera is simulated, photon by photon, in numpy and double precision. Nothing of it is shared with the operators of
detframe.augment, so that a detector trained with those is not tested on their own errors. Boxes, classes, ids and
further columns stay as they are; images become PNG, which loses nothing, and their names end so. What was asked for is
written beside them, as `corruption.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.coco import write_coco
from detframe.data.images import ImageError, read_image
from detframe.data.sources import read_split


class Camera(NamedTuple):
    """What takes the picture."""

    stops: float  # how much darker it is, each one halves the light
    electrons: float  # that a white pixel of the original light gives; fewer are more noise
    read_noise: float  # standard deviation in electrons
    bits: int  # of the converter, which counts linear light


def take(image: NDArray[np.uint8], camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image as the camera would have taken it in less light, without brightening it afterwards.

    Args:
        image: ``[H, W, 3]`` sRGB. An image without colour gets the same noise in all channels.
        camera: What takes it.
        rng: Source of the noise.

    Returns:
        ``[H, W, 3]`` sRGB.
    """
    grey = bool((image == image[..., :1]).all())
    encoded = (image[..., :1] if grey else image) / 255.0
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    expected = light * 0.5**camera.stops * camera.electrons
    counted = rng.poisson(expected) + rng.normal(0.0, camera.read_noise, expected.shape)
    highest = 2**camera.bits - 1
    seen = np.clip(np.round(counted / camera.electrons * highest), 0, highest) / highest
    shown = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    result = np.round(shown * 255).astype(np.uint8)
    return np.repeat(result, 3, axis=2) if grey else result


def corrupt(index: AnnotationIndex, out: Path, split: str, camera: Camera, seed: int) -> None:
    """Write the images, then the annotations.

    Args:
        index: Split to copy.
        out: Folder to make: ``SPLIT.json``, ``images/SPLIT/`` and ``corruption.json``.
        split: Its name there.
        camera: What takes the pictures.
        seed: Together with an image's id it decides about its noise, whatever other images there are.

    Raises:
        DataError: ``out`` is in use, or two images would get one name.
        ImageError: An image cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is not empty, and nothing is ever overwritten. Name a new folder, or empty this one.")
    names = [str(PurePosixPath(name).with_suffix(".png")) for name in index.file_names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{index.source}: more than one image would be called {twice[0]}. Rename one of them.")
    outside = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise DataError(f"{index.source}: {outside[0]} is outside the image folder. Move it inside.")
    root = out / "images" / split
    sizes = np.zeros_like(index.image_sizes)
    for position in track(range(len(index)), "Taking pictures", console=Console(stderr=True), transient=True):
        original = read_image(index.path(position)).permute(1, 2, 0).numpy()
        sizes[position] = original.shape[:2]
        target = root / names[position]
        target.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, int(index.image_ids[position])])
        Image.fromarray(take(original, camera, rng)).save(target)
    copy = dataclasses.replace(index, file_names=tuple(names), image_root=root, image_sizes=sizes, annotation_files=())
    write_coco(copy, out / f"{split}.json")
    content = {"source": str(index.source), "split": split, "seed": seed, **camera._asdict()}
    (out / "corruption.json").write_text(json.dumps(content), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and write the copy.

    Returns:
        0, or 2 where the input is bad.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="root of the data set: COCO, Pascal VOC or YOLO")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--split", default="test", help="split to copy: its name, or a COCO file (default: test)")
    parser.add_argument("--stops", type=float, default=2.0, help="darker by so many stops, 0 or more (default: 2)")
    parser.add_argument(
        "--electrons", type=float, default=1000.0, help="of a white pixel before darkening; fewer are more noise (1000)"
    )
    parser.add_argument("--read-noise", type=float, default=3.0, help="standard deviation in electrons (default: 3)")
    parser.add_argument("--bits", type=int, default=12, help="of the converter, 1 to 16 (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    given = parser.parse_args(arguments)
    if not (0 <= given.stops <= 20 and given.electrons > 0 and given.read_noise >= 0 and 1 <= given.bits <= 16):
        parser.error("--stops are 0 to 20, --electrons above 0, --read-noise 0 or more, --bits 1 to 16")
    if given.seed < 0:
        parser.error("--seed is 0 or more")
    camera = Camera(given.stops, given.electrons, given.read_noise, given.bits)
    try:
        split = Path(given.split).stem
        corrupt(read_split(given.data, given.split), given.out, split, camera, given.seed)
    except (DataError, ImageError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

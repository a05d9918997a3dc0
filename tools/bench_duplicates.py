"""How surely copies of images are found, and how fast: copies planted in a data set, beside a plain perceptual hash.

    python tools/bench_duplicates.py IMAGES... [--seeds 0 1 2]

To the images of the folders 5 % are added that are copies, in turn: saved as JPEG of quality 50 to 80, cut by a tenth
of each side at a random place, brighter or darker by 20 to 30 %, mirrored or upside down. Counted are pairs of a copy
and its original: recall, and precision over all pairs that are named. `pHash`: 64 bits of a cosine transform of 32 x 32
pixels, at the distance up to which its F1 is the best, which nobody knows beforehand.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.fft import dctn

from detframe.data.annotations import IMAGE_SUFFIXES
from detframe.data.fingerprints import fingerprints
from detframe.data.near_duplicates import near_duplicates

SHARE = 0.05
KINDS = ("jpeg", "crop", "brightness", "flip")
_BITS = 64


def altered(image: Image.Image, kind: str, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """A copy and the JPEG quality to save it with."""
    if kind == "jpeg":
        return image, int(rng.integers(50, 81))
    if kind == "crop":
        width, height = image.size
        left, top = rng.uniform(0, 0.1 * width), rng.uniform(0, 0.1 * height)
        box = (round(left), round(top), round(left + 0.9 * width), round(top + 0.9 * height))
        return image.crop(box), 95
    if kind == "brightness":
        factor = 1 + rng.uniform(0.2, 0.3) * rng.choice([-1, 1])
        return ImageEnhance.Brightness(image).enhance(float(factor)), 95
    return (ImageOps.mirror if rng.random() < 0.5 else ImageOps.flip)(image), 95


def plant(paths: list[Path], folder: Path, rng: np.random.Generator) -> tuple[list[Path], list[int], list[str]]:
    """Write copies; their files, the positions of their originals, and what was done."""
    chosen = rng.permutation(len(paths))[: round(SHARE * len(paths))].tolist()
    copies, kinds = [], []
    for number, position in enumerate(chosen):
        kind = KINDS[number % len(KINDS)]
        with Image.open(paths[position]) as image:
            copy, quality = altered(image.convert("RGB"), kind, rng)
        copies.append(folder / f"{number}.jpg")
        copy.save(copies[-1], quality=quality)
        kinds.append(kind)
    return copies, chosen, kinds


def hashes(pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """``[M, 64]`` signs of the low frequencies against their median."""
    small = pictures.reshape(len(pictures), 32, pictures.shape[1] // 32, 32, -1).mean(axis=(2, 4))
    low = dctn(small, axes=(1, 2))[:, :8, :8].reshape(len(pictures), -1)
    return np.asarray(low > np.median(low[:, 1:], axis=1, keepdims=True))


def best_hash(pictures: NDArray[np.uint8], planted: set[tuple[int, int]]) -> tuple[float, float]:
    """Recall and precision of the hash at its best distance."""
    bits = hashes(pictures).astype(np.float32)
    distance = bits @ (1 - bits).T
    distance += distance.T
    first, second = np.triu_indices(len(bits), 1)
    apart = distance[first, second]
    right = np.array([distance[pair] for pair in planted])
    best = (0.0, 0.0, 0.0)
    for limit in range(_BITS // 2):
        found, hits = int((apart <= limit).sum()), int((right <= limit).sum())
        recall, precision = hits / len(planted), hits / max(found, 1)
        best = max(best, (2 * recall * precision / max(recall + precision, 1e-9), recall, precision))
    return best[1], best[2]


def main() -> None:
    """Print a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", help="folders of images, taken to be different pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    paths = sorted(
        path for folder in given.images for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
    )
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            copies, originals, kinds = plant(paths, Path(folder), np.random.default_rng(seed))
            started = time.perf_counter()
            found = fingerprints([*paths, *copies])
            read = time.perf_counter()
            pairs = near_duplicates(found)
            done = time.perf_counter()
        wanted = [(original, len(paths) + number) for number, original in enumerate(originals)]
        named, planted = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)), set(wanted)
        missed = [kind for pair, kind in zip(wanted, kinds, strict=True) if pair not in named]
        recall, precision = len(planted & named) / len(planted), len(planted & named) / max(len(named), 1)
        by_hash = best_hash(found.pictures, planted)
        print(
            f"seed {seed}: {len(paths)} images, {len(planted)} copies: recall {recall:.3f}, precision {precision:.3f}, "
            f"missed {missed}; pHash {by_hash[0]:.3f}, {by_hash[1]:.3f}; "
            f"read {read - started:.1f} s, compared {done - read:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

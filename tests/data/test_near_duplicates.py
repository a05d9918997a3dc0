from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from detframe.data.fingerprints import ORIENTATIONS, fingerprints, oriented
from detframe.data.near_duplicates import groups_of, near_duplicates
from detframe.data.registration import aligned, correlations, differences, sampled
from detframe.data.sources import read_split
from detframe.data.synthetic import write_dataset

IMAGES = 24


def _crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(0.08 * width), round(0.02 * height), round(0.98 * width), round(0.92 * height)))


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG": lambda image: image,
    "crop": _crop,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.75),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("near_duplicates")
    write_dataset(folder, train=IMAGES, val=1, test=1)
    index = read_split(folder, "train.json")
    for i in range(IMAGES):  # a lens; what is drawn is sharper than 256 pixels can say
        with Image.open(index.path(i)) as image:
            seen = image.convert("RGB").filter(ImageFilter.GaussianBlur(2))
        seen.save(index.path(i))
    return [index.path(i) for i in range(IMAGES)]


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_copy_is_found_and_no_other_image(name: str, images: list[Path], tmp_path: Path) -> None:
    copies = []
    for path in images[:6]:
        with Image.open(path) as image:
            ALTERED[name](image.convert("RGB")).save(tmp_path / f"{path.stem}.jpg", quality=60)
        copies.append(tmp_path / f"{path.stem}.jpg")
    pairs = near_duplicates(fingerprints([*images, *copies]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(i, IMAGES + i) for i in range(6)]
    assert (pairs.difference > 0).all()


def test_a_changed_object_makes_another_picture(images: list[Path], tmp_path: Path) -> None:
    with Image.open(images[0]) as image:
        changed = image.convert("RGB")
    width, height = changed.size
    changed.paste((250, 30, 30), (width // 3, height // 3, width // 3 + width // 6, height // 3 + height // 6))
    changed.save(tmp_path / "changed.png")
    assert not len(near_duplicates(fingerprints([images[0], tmp_path / "changed.png"])).first)


def test_equal_files_unreadable_and_plain_ones(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "same.bin").write_bytes(images[2].read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name, grey in (("black", 0), ("grey", 128)):
        Image.new("L", (64, 64), grey).save(tmp_path / f"{name}.png")
    names = ("same.bin", "broken.png", "black.png", "grey.png")
    found = fingerprints([images[2], *(tmp_path / name for name in names)])
    assert list(found.problems) == [2]
    assert found.plain().tolist() == [False, False, True, True, True]
    pairs = near_duplicates(found)
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.difference.tolist()) == ([0], [1], [0.0])


def test_only_pairs_across_splits_are_sought_where_splits_are_given(images: list[Path]) -> None:
    found = fingerprints([images[0], images[0], images[0]])
    pairs = near_duplicates(found, np.array([0, 0, 1]))
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == {(0, 2), (1, 2)}


def test_groups_are_what_pairs_lead_to() -> None:
    assert groups_of(np.array([0, 1, 3]), np.array([1, 4, 5]), 7) == [0, 0, 2, 3, 0, 3, 6]


def test_orientations_are_all_eight_and_each_its_name() -> None:
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    turned = [oriented(image, orientation)[0] for orientation in range(len(ORIENTATIONS))]
    assert len({tuple(one.ravel().tolist()) for one in turned}) == 8
    assert np.array_equal(turned[1], image[0, :, ::-1])
    assert np.array_equal(turned[5], np.rot90(image[0], -1))
    assert np.array_equal(turned[6], np.rot90(image[0]))


def test_a_window_is_found_again() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(1, 8, 8)).repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)
    image = np.asarray(Image.fromarray(smooth[0]).resize((64, 64), Image.Resampling.BICUBIC))[None]
    image = sum(np.roll(image, (dy, dx), (1, 2)) for dy in range(4) for dx in range(4)) / 16  # type: ignore[assignment]
    true = np.array([[0.52, 0.94, 0.49, 0.95]], dtype=np.float32)
    shown = sampled(image, true) * 1.3 + 0.2
    found = aligned(image, shown, np.array([[0.5, 1.0, 0.5, 1.0]], dtype=np.float32), 12)
    assert found[0] == pytest.approx(true[0], abs=0.01)
    assert correlations(image, shown, found)[0] > 0.999
    assert differences(image, shown, found)[0] < 0.01
    assert differences(image, shown[:, ::-1].copy(), found)[0] > 0.2

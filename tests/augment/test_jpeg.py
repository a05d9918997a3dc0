from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from detframe.augment.jpeg import JPEG, scaled_table
from detframe.deployment import DeploymentProfile, Distribution, ProfileError, write_profile
from detframe.jpeg_tables import LUMINANCE_TABLE, estimated_quality, luminance_steps

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "JPEGImages"


def drawing(height: int, width: int) -> NDArray[np.uint8]:
    """Waves, edges in colour, and some noise, ``[H, W, 3]``."""
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(columns / 17 + rows / 23), 128 + 80 * np.cos(columns / 31), 120 + 70 * np.sin(rows / 19)]
    image = np.stack(waves, axis=-1)
    image[height // 3 : height // 2, width // 4 : width // 2] = (200, 40, 60)
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def by_pillow(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(file))


def by_us(image: NDArray[np.uint8], quality: int) -> NDArray[np.float32]:
    changed = JPEG(quality=(quality, quality), p=1.0)(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    return np.asarray((changed[0] * 255).permute(1, 2, 0).numpy())


def psnr(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    if (first == second).all():
        return 99.0
    return float(10 * np.log10(255**2 / np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)))


@pytest.mark.parametrize("size", [(160, 208), (97, 131), (16, 9)])
@pytest.mark.parametrize("quality", [10, 40, 75, 95])
def test_it_is_pillow_s_result(quality: int, size: tuple[int, int]) -> None:
    image = drawing(*size)
    theirs, ours = by_pillow(image, quality), by_us(image, quality)
    assert ours.shape == theirs.shape
    assert psnr(ours, theirs) > 43
    assert psnr(ours, theirs) > psnr(image, theirs) + 6  # much nearer to it than to the original


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs ../shared/data/bccd")
@pytest.mark.parametrize("quality", [10, 30, 50, 80, 95])
def test_it_is_pillow_s_result_on_a_photograph(quality: int) -> None:
    image = np.array(Image.open(sorted(BCCD.glob("*.jpg"))[0]))
    assert psnr(by_us(image, quality), by_pillow(image, quality)) > 42


@pytest.mark.parametrize("quality", [1, 7, 25, 49, 50, 63, 90, 100])
def test_tables_are_libjpeg_s_and_give_the_quality_back(quality: int) -> None:
    file = io.BytesIO()
    Image.fromarray(drawing(16, 16)).save(file, "JPEG", quality=quality)
    image = Image.open(file)
    assert isinstance(image, JpegImageFile)
    theirs = image.quantization[0]
    assert sorted(theirs) == sorted(luminance_steps(quality))
    ours = scaled_table(torch.tensor(LUMINANCE_TABLE).flatten().float(), torch.tensor([float(quality)]))
    assert ours[0].tolist() == luminance_steps(quality)
    assert estimated_quality(theirs) == quality


def test_qualities_come_from_the_range_or_the_site(tmp_path: Path) -> None:
    torch.manual_seed(0)
    drawn = JPEG(quality=(40, 43)).draw(200, 8, 8)["quality"]
    assert set(drawn.tolist()) == {40, 41, 42, 43}
    names = ("brightness", "contrast", "warmth", "tint", "noise", "blur", "width", "height")
    anything: dict[str, Any] = dict.fromkeys(names, Distribution((0.0, 0.1, 0.2, 0.3, 0.4)))
    quality = Distribution((60.0, 65.0, 70.0, 80.0, 90.0))
    site = DeploymentProfile(source="", images=1, sampled=1, seed=0, **anything, jpeg_quality=quality)
    write_profile(site, tmp_path / "site.yaml")
    drawn = JPEG(profile=tmp_path / "site.yaml").draw(500, 8, 8)["quality"]
    assert (drawn == drawn.round()).all()
    assert 60 <= drawn.min() < 62
    assert 88 < drawn.max() <= 90
    assert float(drawn.median()) == pytest.approx(70, abs=1.5)
    write_profile(DeploymentProfile(source="", images=1, sampled=1, seed=0, **anything), tmp_path / "png.yaml")
    with pytest.raises(ProfileError, match=r"png\.yaml: has no jpeg_quality.*State a range"):
        JPEG(profile=tmp_path / "png.yaml")

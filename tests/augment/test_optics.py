from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detframe.augment.optics import Defocus, Exposure, Vignetting, WhiteBalance, planckian_gains
from detframe.deployment import DeploymentProfile, Distribution, write_profile
from detframe.image_statistics import blur, brightness, tint, warmth


def picture(side: int = 96) -> Tensor:
    """Two different pictures with smooth parts and edges, ``[2, 3, side, side]``."""
    rng = np.random.default_rng(0)
    images = np.empty((2, 3, side, side), dtype=np.float32)
    rows, columns = np.mgrid[:side, :side] / side
    for image in images:
        for channel in image:
            channel[:] = 0.3 + 0.2 * np.sin(5 * rows + rng.uniform(0, 6)) * np.cos(4 * columns)
        y, x = rng.integers(10, side // 2, 2)
        image[:, y : y + side // 3, x : x + side // 4] += 0.3
    return torch.from_numpy(images)


def to_linear(images: Tensor) -> Tensor:
    x = images.double()
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def site(folder: Path, **statistics: float) -> Path:
    """A profile in which the given statistics have one value and all others another."""
    names = ("brightness", "contrast", "warmth", "tint", "noise", "blur", "width", "height")
    values: dict[str, Any] = {name: Distribution((statistics.get(name, 0.1),) * 5) for name in names}
    quality = Distribution((statistics.get("jpeg_quality", 50),) * 5)
    path = folder / "site.yaml"
    write_profile(
        DeploymentProfile(source="camera", images=1, sampled=1, seed=0, **values, jpeg_quality=quality), path, True
    )
    return path


def test_exposure_doubles_the_light_for_each_stop() -> None:
    images = picture() * 0.6
    changed = Exposure(stops=(1.0, 1.0), p=1.0)(images)
    torch.testing.assert_close(to_linear(changed), (2 * to_linear(images)).clamp(max=1), atol=2e-4, rtol=0)
    darker = Exposure(stops=(-3.0, -3.0), p=1.0)(images)
    torch.testing.assert_close(to_linear(darker), to_linear(images) / 8, atol=1e-4, rtol=0)


def test_exposure_reaches_the_site_s_brightness(tmp_path: Path) -> None:
    for target in (0.1, 0.3, 0.5):
        changed = Exposure(profile=site(tmp_path, brightness=target), p=1.0)(picture())
        torch.testing.assert_close(brightness(changed), torch.full((2,), target), atol=3e-3, rtol=0)


def planck(temperature: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Linear sRGB of a black body by Planck's law and the CIE 1931 observer as fitted by Wyman and others (2013)."""
    wavelength = np.arange(380.0, 781.0)
    metres = wavelength * 1e-9
    power = metres**-5 / (np.exp(0.01438777 / (metres * temperature)) - 1)

    def lobe(peak: float, below: float, above: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.asarray(np.exp(-0.5 * ((wavelength - peak) * np.where(wavelength < peak, below, above)) ** 2))

    x = 0.362 * lobe(442.0, 0.0624, 0.0374) + 1.056 * lobe(599.8, 0.0264, 0.0323) - 0.065 * lobe(501.1, 0.0490, 0.0382)
    y = 0.821 * lobe(568.8, 0.0213, 0.0247) + 0.286 * lobe(530.9, 0.0613, 0.0322)
    z = 1.217 * lobe(437.0, 0.0845, 0.0278) + 0.681 * lobe(459.0, 0.0385, 0.0725)
    to_rgb = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    return np.asarray(to_rgb @ [(power * curve).sum() for curve in (x, y, z)])


@pytest.mark.parametrize("temperature", [2500.0, 3500.0, 5000.0, 6504.0, 9000.0, 15000.0])
def test_white_balance_follows_planck_s_law(temperature: float) -> None:
    expected = planck(temperature) / planck(6504.0)
    gains = planckian_gains(torch.tensor([temperature]))[0].double().numpy()
    np.testing.assert_allclose(gains / gains[1], expected / expected[1], rtol=0.04)
    assert gains @ [0.2126, 0.7152, 0.0722] == pytest.approx(1, abs=1e-5)


def test_white_balance_multiplies_light() -> None:
    images = picture() * 0.5
    changed = WhiteBalance(temperature=(4000.0, 4000.0), p=1.0)(images)
    gains = planckian_gains(torch.tensor([4000.0])).double()[:, :, None, None]
    torch.testing.assert_close(to_linear(changed), to_linear(images) * gains, atol=1e-4, rtol=0)
    torch.testing.assert_close(WhiteBalance(temperature=(6504.0, 6504.0), p=1.0)(images), images, atol=5e-4, rtol=0)


def test_white_balance_reaches_the_site_s_cast_and_keeps_the_brightness(tmp_path: Path) -> None:
    images = picture()
    changed = WhiteBalance(profile=site(tmp_path, warmth=0.5, tint=-0.2), p=1.0)(images)
    torch.testing.assert_close(warmth(changed), torch.full((2,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(tint(changed), torch.full((2,), -0.2), atol=0.01, rtol=0)
    torch.testing.assert_close(brightness(changed), brightness(images), atol=2e-3, rtol=0)


def test_vignetting_loses_the_stated_share_at_half_a_diagonal() -> None:
    images = torch.full((1, 3, 61, 81), 0.7)
    changed = Vignetting(loss=(0.5, 0.5), centre=(0.5, 0.5), p=1.0)(images)
    left = (to_linear(changed) / to_linear(images))[0, 0]
    assert float(left[30, 40]) == pytest.approx(1, abs=1e-3)
    assert float(left[0, 0]) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(changed, changed.flip(2, 3)) or (changed - changed.flip(2, 3)).abs().max() < 1e-5
    # cos^4: 1 / (1 + k d^2)^2 with k from the corner
    steepness = 2**0.5 - 1
    assert float(left[30, 0]) == pytest.approx((1 + steepness * (40 / np.hypot(30.5, 40.5)) ** 2) ** -2, abs=2e-3)


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.3, 4.0])
def test_defocus_is_the_convolution_with_a_disk(radius: float) -> None:
    images = picture()
    changed = Defocus(radius=(radius, radius), p=1.0)(images)
    fine = 64  # points along a pixel's side
    size = 2 * 5 + 1
    positions = (np.arange(size * fine) + 0.5) / fine - size / 2
    covered = positions[:, None] ** 2 + positions**2 <= radius**2
    kernel = covered.reshape(size, fine, size, fine).mean(axis=(1, 3))
    kernel /= kernel.sum()
    light = np.pad(to_linear(images).numpy(), ((0, 0), (0, 0), (5, 5), (5, 5)), mode="edge")
    side = images.shape[-1]
    places = [(y, x) for y in range(size) for x in range(size)]
    expected = sum(kernel[y, x] * light[..., y : y + side, x : x + side] for y, x in places)
    np.testing.assert_allclose(to_linear(changed).numpy(), expected, atol=1.5e-3)
    if radius == 0.5:
        torch.testing.assert_close(changed, images)


def test_defocus_adds_what_an_image_lacks_of_the_site_s_blur(tmp_path: Path) -> None:
    sharp = picture(192)
    operator = Defocus(radius=(0.0, 8.0), profile=site(tmp_path, blur=2.0), p=1.0)
    softened = operator(sharp)
    torch.testing.assert_close(blur(softened), torch.full((2,), 2.0), atol=0.2, rtol=0)
    soft = Defocus(radius=(6.0, 6.0), p=1.0)(sharp)
    torch.testing.assert_close(operator(soft), soft)  # is softer than the site already

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detframe.data.images import read_image
from detframe.image_statistics import blur, brightness, contrast, noise_level, tint, warmth

BCCD = Path(__file__).parents[2] / "shared" / "data" / "bccd" / "JPEGImages"
Statistic = Callable[[Tensor], Tensor]
STATISTICS: tuple[Statistic, ...] = (brightness, contrast, warmth, tint, noise_level, blur)


def squares(sigma: float, strength: float = 1.0, oversampling: int = 4, side: int = 192) -> Tensor:
    """Overlapping squares and disks, softened by a Gaussian of ``sigma`` pixels, as pixels average them."""
    rng = np.random.default_rng(3)
    size = side * oversampling
    image = np.full((size, size), 0.5)
    rows, columns = np.mgrid[:size, :size]
    for _ in range(10):
        x, y = rng.integers(0, size * 3 // 4, 2)
        reach = rng.integers(size // 12, size // 4)
        image[y : y + reach, x : x + reach] = 0.5 + strength * rng.uniform(-0.5, 0.5)
        x, y = rng.integers(size // 8, size, 2)
        image[(rows - y) ** 2 + (columns - x) ** 2 < (reach // 2) ** 2] = 0.5 + strength * rng.uniform(-0.5, 0.5)
    frequency = np.fft.fftfreq(size)
    response = np.exp(-2 * (np.pi * sigma * oversampling * frequency) ** 2)  # a Gaussian's, of frequency
    image = np.fft.ifft2(np.fft.fft2(image) * response[:, None] * response).real
    pixels = image.reshape(side, oversampling, side, oversampling).mean(axis=(1, 3))
    return torch.from_numpy(pixels).float()[None, None].expand(1, 3, -1, -1)


def noisy(image: Tensor, deviation: float) -> Tensor:
    torch.manual_seed(0)
    return (image + deviation * torch.randn(image.shape)).clamp(0, 1)


def photograph(number: int) -> Tensor:
    return read_image(sorted(BCCD.glob("*.jpg"))[number])[None].float() / 255


def test_colours_have_the_figures_of_their_light() -> None:
    image = torch.tensor([0.5, 0.25, 0.75])[None, :, None, None].expand(1, 3, 16, 16)
    light = ((image[0, :, 0, 0].double() + 0.055) / 1.055) ** 2.4
    grey = float(light @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64))
    assert float(brightness(image)) == pytest.approx(1.055 * grey ** (1 / 2.4) - 0.055, abs=2e-4)
    assert float(warmth(image)) == pytest.approx(float((light[0] / light[2]).log2()), abs=2e-3)
    assert float(tint(image)) == pytest.approx(float((light[1] / (light[0] * light[2]).sqrt()).log2()), abs=2e-3)
    assert float(contrast(image)) == pytest.approx(0, abs=1e-4)
    halves = torch.cat([torch.zeros(1, 3, 16, 8), torch.ones(1, 3, 16, 8)], dim=3)
    assert float(contrast(halves)) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_images_of_a_batch_do_not_mix_and_a_margin_does_not_count(statistic: Statistic) -> None:
    first, second = noisy(squares(0.5) * 0.8 + 0.1, 0.01), noisy(squares(2.0) * 0.3, 0.03)
    alone = torch.cat([statistic(first), statistic(second)])
    torch.testing.assert_close(statistic(torch.cat([first, second])), alone)
    letterboxed = torch.nn.functional.pad(first, (0, 0, 32, 32), value=114 / 255)
    torch.testing.assert_close(statistic(letterboxed), alone[:1], atol=1e-4, rtol=0.03)


@pytest.mark.parametrize("deviation", [0.005, 0.02, 0.06])
def test_noise_is_found_beside_edges_and_slopes(deviation: float) -> None:
    slope = torch.linspace(-0.1, 0.1, 192)
    image = squares(0.7) * 0.5 + 0.25 + slope
    assert float(noise_level(noisy(image, deviation))) == pytest.approx(deviation, rel=0.05)
    assert float(noise_level(image)) < 2e-4


def test_a_drawing_has_no_noise() -> None:
    drawing = (squares(0.0, oversampling=1) > 0.5).float()
    assert float(noise_level(drawing)) == 0


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs ../shared/data/bccd")
@pytest.mark.parametrize("deviation", [0.005, 0.02, 0.06])
def test_noise_added_to_photographs_is_found(deviation: float) -> None:
    for number in (0, 100, 250):
        image = photograph(number)
        own = float(noise_level(image))
        found = float(noise_level(noisy(image, deviation)))
        assert found == pytest.approx((own**2 + deviation**2) ** 0.5, rel=0.05)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("deviation", [0.0, 0.01])
def test_blur_is_the_gaussian_s_in_pixels_at_any_contrast(strength: float, deviation: float) -> None:
    sigmas = [0.0, 0.5, 0.8, 1.2, 2.0, 3.0]
    found = [float(blur(noisy(squares(sigma, strength), deviation))) for sigma in sigmas]
    assert found == sorted(found)
    for sigma, value in zip(sigmas, found, strict=True):
        # A pixel averages over its own area, which adds 1 / 12 to the variance.
        assert value == pytest.approx((sigma**2 + 1 / 12) ** 0.5, abs=0.25)


def test_blur_of_fine_patterns_and_of_nothing_stays_within_its_range() -> None:
    stripes = (torch.arange(128) // 4 % 2).float().expand(1, 3, 128, 128)
    assert float(blur(stripes)) < 1
    assert float(blur(torch.full((1, 3, 64, 64), 0.5))) == pytest.approx(10)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_nothing_waits_for_the_device(statistic: Statistic) -> None:
    # A meta tensor has no values: whatever would read one back fails.
    assert statistic(torch.rand(2, 3, 64, 48, device="meta")).shape == (2,)

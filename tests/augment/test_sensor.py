from __future__ import annotations

from pathlib import Path
from typing import Any

import kornia.augmentation as K  # noqa: N812
import pytest
import torch
from jsonargparse import ArgumentParser
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from detframe.augment.jpeg import JPEG
from detframe.augment.optics import Defocus, Exposure, Vignetting, WhiteBalance
from detframe.augment.photometric import PhotometricAugmentation
from detframe.augment.sensor import Banding, DeadPixels, Quantisation, SensorNoise
from detframe.deployment import DeploymentProfile, Distribution, write_profile
from detframe.image_statistics import noise_level

OPERATORS = (Exposure, WhiteBalance, Vignetting, Defocus, SensorNoise, Banding, DeadPixels, Quantisation, JPEG)
SITED = (Exposure, WhiteBalance, Defocus, SensorNoise, JPEG)
Operator = type[PhotometricAugmentation]
CASES = [(operator, False) for operator in OPERATORS] + [(operator, True) for operator in SITED]


def gradient(count: int = 4, height: int = 48, width: int = 64) -> Tensor:
    """Images ``[count, 3, height, width]`` in colour with edges, all different."""
    columns = torch.linspace(0, 1, width)[None].expand(height, -1)
    rows = torch.linspace(0, 1, height)[:, None].expand(-1, width)
    image = torch.stack([columns, rows, 1 - columns * rows])
    image = torch.where((columns > 0.5) & (rows > 0.5), image, image * 0.5)
    return torch.stack([image * (1 - 0.1 * number) for number in range(count)])


def linear(images: Tensor) -> Tensor:
    x = images.double()
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def encoded(light: float) -> float:
    return light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


@pytest.fixture
def site(tmp_path: Path) -> Path:
    quantiles = {
        "brightness": (0.2, 0.3, 0.4, 0.5, 0.6),
        "contrast": (0.1, 0.1, 0.1, 0.1, 0.1),
        "warmth": (-0.5, -0.2, 0.0, 0.2, 0.5),
        "tint": (-0.2, -0.1, 0.0, 0.1, 0.2),
        "noise": (0.03, 0.03, 0.03, 0.03, 0.03),
        "blur": (0.5, 0.7, 0.9, 1.2, 2.0),
        "width": (64, 64, 64, 64, 64),
        "height": (48, 48, 48, 48, 48),
        "jpeg_quality": (60, 70, 75, 80, 90),
    }
    values: dict[str, Any] = {name: Distribution(tuple(map(float, value))) for name, value in quantiles.items()}
    path = tmp_path / "site.yaml"
    write_profile(DeploymentProfile(source="", images=1, sampled=1, seed=0, **values), path)
    return path


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_seed_decides_and_p_gates_each_image(operator: Operator) -> None:
    images = gradient(16, 32, 32)
    before = images.clone()
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(operator(p=0.5)(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(images, before)
    changed = (results[0] != images).flatten(1).any(dim=1)
    assert 2 < changed.sum() < 14
    torch.manual_seed(5)
    gate = (torch.rand(16) < 0.5).tolist()  # as Kornia draws it, before anything else
    assert all(chosen for chosen, different in zip(gate, changed.tolist(), strict=True) if different)
    for p, everything in ((0.0, False), (1.0, True)):
        torch.manual_seed(0)
        differs = (operator(p=p)(images) != images).flatten(1).any(dim=1)
        assert differs.any() == everything


@pytest.mark.parametrize(("operator", "sited"), CASES)
def test_results_stay_images_of_their_kind(operator: Operator, sited: bool, site: Path) -> None:
    augmentation = operator(p=1.0, **({"profile": site} if sited else {}))  # type: ignore[arg-type]  # some have it
    torch.manual_seed(0)
    extremes = torch.stack([torch.zeros(3, 40, 50), torch.ones(3, 40, 50), (torch.rand(3, 40, 50) > 0.5).float()])
    for images in (gradient(), gradient()[:, :, :33, :41], extremes, gradient().half(), gradient()[:0]):
        result = augmentation(images)
        assert result.shape == images.shape
        assert result.dtype == images.dtype
        assert torch.isfinite(result).all()
        assert ((result >= 0) & (result <= 1)).all()
    strided = gradient().to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    expected = augmentation(gradient())
    torch.manual_seed(1)
    torch.testing.assert_close(augmentation(strided), expected)
    single = operator(p=1.0, keepdim=True)(gradient()[0])
    assert single.shape == (3, 48, 64)


@pytest.mark.parametrize("operator", OPERATORS)
def test_images_of_a_batch_share_what_they_are_told_to(operator: Operator) -> None:
    images = gradient(1).expand(5, -1, -1, -1)
    torch.manual_seed(2)
    same = operator(p=1.0, same_on_batch=True)(images)
    assert all(torch.equal(image, same[0]) for image in same)
    different = operator(p=1.0)(images)
    assert not all(torch.equal(image, different[0]) for image in different)


@pytest.mark.parametrize("operator", OPERATORS)
def test_it_stands_in_a_sequence_beside_a_flip(operator: Operator) -> None:
    sequence = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=1.0), operator(p=1.0), data_keys=["input", "bbox_xyxy"]
    )
    boxes = torch.tensor([[[3.5, 4.5, 19.5, 29.5]]]).expand(4, -1, -1)
    torch.manual_seed(0)
    images, moved = sequence(gradient(), boxes)
    torch.testing.assert_close(moved[0, 0], torch.tensor([43.5, 4.5, 59.5, 29.5]))
    again, _ = sequence(gradient(), boxes, params=sequence._params)
    assert torch.equal(images, again)
    assert not torch.equal(images, gradient().flip(3))


@pytest.mark.usefixtures("kornia_that_waits_for_nothing")
@pytest.mark.parametrize(("operator", "sited"), CASES)
def test_nothing_waits_for_the_device(operator: Operator, sited: bool, site: Path) -> None:
    # A meta tensor has no values: whatever would read one back fails. All images go through at once, as on a GPU.
    augmentation = operator(p=0.5, **({"profile": site} if sited else {}))  # type: ignore[arg-type]  # some have it
    assert augmentation(torch.rand(3, 3, 48, 64, device="meta")).shape == (3, 3, 48, 64)


@pytest.mark.parametrize(("operator", "sited"), CASES)
def test_all_at_once_is_one_by_one(operator: Operator, sited: bool, site: Path) -> None:
    augmentation = operator(p=1.0, **({"profile": site} if sited else {}))  # type: ignore[arg-type]  # some have it
    images = gradient()
    torch.manual_seed(3)
    params = augmentation.forward_parameters(images.shape)
    one_by_one = augmentation(images, params=params)
    if operator is not SensorNoise:  # takes one image at a time on a CPU
        own = {name: value for name, value in params.items() if name not in ("batch_prob", "forward_input_shape")}
        together = torch.empty_like(images)
        augmentation.change(images, own, together)
        torch.testing.assert_close(together, one_by_one, atol=1e-3, rtol=0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_configuration_can_name_it(operator: Operator) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--operator", type=IntensityAugmentationBase2D)
    path = f"{operator.__module__}.{operator.__name__}"
    parsed = parser.parse_object({"operator": {"class_path": path, "init_args": {"p": 0.25}}})
    built = parser.instantiate(parsed).operator
    assert isinstance(built, operator)
    assert built.p == 0.25


@pytest.mark.parametrize(
    ("operator", "argument", "bounds"),
    [
        (Exposure, "stops", (1.0, -1.0)),
        (WhiteBalance, "temperature", (500.0, 6000.0)),
        (Vignetting, "loss", (0.2, 1.0)),
        (Defocus, "radius", (-1.0, 2.0)),
        (SensorNoise, "shot", (0.0, 0.1)),
        (Banding, "flicker", (0.5, 1.5)),
        (DeadPixels, "share", (0.0, 0.1)),
        (Quantisation, "bits", (0, 8)),
        (JPEG, "quality", (0, 50)),
    ],
)
def test_a_range_that_cannot_be_is_refused(operator: Operator, argument: str, bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"{argument} is \({bounds[0]}, {bounds[1]}\); it needs"):
        operator(**{argument: bounds})  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("light", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("shot", [1e-4, 2e-3])
def test_noise_has_the_variance_of_shot_and_read(light: float, shot: float) -> None:
    images = torch.full((1, 3, 256, 256), encoded(light))
    images[:, 0] += 0.01  # colour, so that channels are independent
    operator = SensorNoise(shot=(shot, shot), p=1.0)
    torch.manual_seed(0)
    params = operator.forward_parameters(images.shape)
    assert float(params["shot"]) == pytest.approx(shot, rel=1e-4)
    seen = linear(operator(images, params=params))[0, 1:]
    variance = light * float(params["shot"]) + float(params["read"])
    assert float(seen.mean()) == pytest.approx(light, rel=0.01)
    assert float(seen.var()) == pytest.approx(variance, rel=0.05)
    correlation = torch.corrcoef(seen.flatten(1))[0, 1]
    assert abs(float(correlation)) < 0.02
    neighbours = torch.corrcoef(torch.stack([seen[0, :, 1:].flatten(), seen[0, :, :-1].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 0.02


def test_read_noise_follows_shot_noise_as_in_cameras() -> None:
    torch.manual_seed(0)
    drawn = SensorNoise().draw(4000, 1, 1)
    log_shot, log_read = drawn["shot"].log(), drawn["read"].log()
    assert float(drawn["shot"].min()) >= 1e-4 * 0.999
    assert float(drawn["shot"].max()) <= 0.012 * 1.001
    rest = log_read - 2.18 * log_shot - 1.20
    assert float(rest.mean()) == pytest.approx(0, abs=0.02)
    assert float(rest.std()) == pytest.approx(0.26, abs=0.02)
    assert float(log_shot.mean()) == pytest.approx(float(torch.tensor([1e-4, 0.012]).log().mean()), abs=0.1)


def test_grey_images_stay_grey_under_noise() -> None:
    grey = gradient()[:, :1].expand(-1, 3, -1, -1)
    result = SensorNoise(p=1.0)(grey)
    assert torch.equal(result[:, 0], result[:, 1])
    assert torch.equal(result[:, 0], result[:, 2])
    assert not torch.equal(result, grey)


def test_noise_comes_to_the_site_s_level_from_below_only(site: Path) -> None:
    operator = SensorNoise(profile=site, p=1.0)
    clean = torch.full((2, 3, 192, 192), 0.4) + torch.linspace(0, 0.2, 192)
    clean[:, 0] += 0.1
    torch.manual_seed(0)
    noisy = operator(clean)
    torch.testing.assert_close(noise_level(noisy), torch.full((2,), 0.03), atol=0, rtol=0.12)
    half = clean + 0.02 * torch.randn(clean.shape)
    torch.testing.assert_close(noise_level(operator(half)), torch.full((2,), 0.03), atol=0, rtol=0.12)
    worse = clean + 0.06 * torch.randn(clean.shape)
    torch.testing.assert_close(operator(worse), worse.clamp(0, 1), atol=1e-3, rtol=0)


def test_lamps_flicker_by_the_stated_depth_along_lines() -> None:
    images = torch.full((6, 3, 64, 80), 0.6)
    torch.manual_seed(0)
    bands = Banding(flicker=(0.2, 0.2), cycles=(3.0, 3.0), drift=0.0, columns=0.5, p=1.0)(images)
    light = linear(bands) / linear(images)
    along_rows = 0
    for image in light[:, 0]:
        of_rows = (image - image[:, :1]).abs().max() < 1e-4
        of_columns = (image - image[:1]).abs().max() < 1e-4
        assert of_rows != of_columns
        along_rows += int(of_rows)
        line = image[:, 0] if of_rows else image[0]
        length = len(line)
        expected = torch.fft.rfft(line - line.mean()).abs() / length * 2
        assert int(expected.argmax()) == 3
        assert float(expected[3]) == pytest.approx(0.2, abs=0.005)
    assert 0 < along_rows < 6


def test_a_drifting_read_out_has_the_stated_deviation() -> None:
    images = torch.full((1, 3, 600, 16), 0.6)
    torch.manual_seed(0)
    bands = Banding(offset=(0.01, 0.01), drift=1.0, columns=0.0, p=1.0)(images)
    offsets = (linear(bands) - linear(images))[0, 0]
    assert float((offsets - offsets[:, :1]).abs().max()) < 1e-4
    assert float(offsets[:, 0].std()) == pytest.approx(0.01, rel=0.1)


def test_defects_have_the_stated_share_and_kind() -> None:
    images = torch.full((8, 3, 100, 100), 0.5)
    torch.manual_seed(0)
    result = DeadPixels(share=(0.01, 0.01), hot=0.25, p=1.0)(images)
    assert torch.equal(result[:, 0], result[:, 1])
    hot, dead = (result[:, 0] == 1).flatten(1).sum(1), (result[:, 0] == 0).flatten(1).sum(1)
    assert ((hot + dead > 90) & (hot + dead <= 100)).all()  # some fall on the same place
    assert float(hot.sum() / (hot + dead).sum()) == pytest.approx(0.25, abs=0.05)
    assert (result.unique() == torch.tensor([0.0, 0.5, 1.0])).all()
    few = DeadPixels(share=(1e-6, 1e-6), p=1.0)(images)
    assert ((few != 0.5)[:, 0].flatten(1).sum(1) == 1).all()


@pytest.mark.parametrize("bits", [2, 5])
def test_a_converter_of_few_bits_gives_steps_of_light(bits: int) -> None:
    ramp = torch.linspace(0, 1, 4096).expand(1, 3, 1, 4096)
    values = linear(Quantisation(bits=(bits, bits), p=1.0)(ramp))[0, 0, 0]
    steps = 2**bits - 1
    torch.testing.assert_close(values * steps, (values * steps).round(), atol=0.01, rtol=0)
    assert float((values - linear(ramp)[0, 0, 0]).abs().max()) < 0.5 / steps + 2e-4

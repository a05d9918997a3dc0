import numpy as np
import torch
from numpy.typing import NDArray

from detframe.srgb import linear_to_srgb, srgb_to_linear


def decoded(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve as IEC 61966-2-1 states it."""
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def encoded(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)


def test_both_ways_are_the_standard_s_within_what_is_stated() -> None:
    x = np.concatenate([np.linspace(0, 1, 200_001), np.linspace(0, 0.05, 50_001)])
    values = torch.from_numpy(x).float()
    assert np.abs(srgb_to_linear(values).numpy() - decoded(x)).max() < 2.8e-5
    assert np.abs(linear_to_srgb(values).numpy() - encoded(x)).max() < 4.6e-5
    assert (linear_to_srgb(srgb_to_linear(values)) - values).abs().max() < 0.1 / 255


def test_the_ends_are_kept_and_what_is_beyond_is_clipped() -> None:
    beyond = torch.tensor([-0.5, 0.0, 1.0, 1.5])
    for curve in (srgb_to_linear, linear_to_srgb):
        torch.testing.assert_close(curve(beyond), torch.tensor([0.0, 0.0, 1.0, 1.0]), atol=1e-6, rtol=0)
        assert (beyond == torch.tensor([-0.5, 0.0, 1.0, 1.5])).all()
    out = torch.empty(4)
    assert linear_to_srgb(beyond, out) is out

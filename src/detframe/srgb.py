"""The sRGB curve, both ways: light adds up and noise obeys physics in linear values, files hold encoded ones.

IEC 61966-2-1. The powers are polynomials here, several times as fast on a CPU, and the straight pieces near black are
exact. The pieces are clamped and added, because a choice by comparison costs a CPU more than all the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in the luminance of linear sRGB (Rec. 709)."""

_TOE_SRGB = 0.04045
_TOE_LINEAR = 0.0031308
_SLOPE = 12.92
# Minimax fits by linear programming, exact at both ends, the highest power first: of ((x + 0.055) / 1.055)^2.4 in x,
# and of 1.055 x^(1 / 2.4) - 0.055 in the fourth root of x, in which it is nearly straight.
_DECODE = (0.0608788941, -0.245402798, 0.61686926, 0.535875672, 0.0308114654, 0.000967503338)
_ENCODE = (0.0821428018, -0.338818778, 1.12683109, 0.194140988, -0.0642961062)


def srgb_to_linear(encoded: Tensor) -> Tensor:
    """Linear light of sRGB values.

    Args:
        encoded: ``[...]``, float 0..1; what lies outside is clipped.

    Returns:
        ``[...]``, off by at most 2.8e-5.
    """
    upper = encoded.clamp(_TOE_SRGB, 1)
    linear = _polynomial(_DECODE, upper, -_TOE_SRGB / _SLOPE)
    return linear.add_(torch.clamp(encoded, 0, _TOE_SRGB, out=upper), alpha=1 / _SLOPE)


def linear_to_srgb(linear: Tensor, out: Tensor | None = None) -> Tensor:
    """Encode linear light as sRGB values.

    Args:
        linear: ``[...]``, float; what lies outside 0..1 is clipped.
        out: ``[...]`` to write the result into; by default a new tensor.

    Returns:
        ``[...]`` 0..1, off by at most 4.6e-5, a hundredth of a grey level.
    """
    upper = linear.clamp(_TOE_LINEAR, 1)
    encoded = _polynomial(_ENCODE, upper.rsqrt_().rsqrt_(), -_TOE_LINEAR * _SLOPE, out)
    return encoded.add_(torch.clamp(linear, 0, _TOE_LINEAR, out=upper), alpha=_SLOPE).clamp_(0, 1)


def _polynomial(coefficients: tuple[float, ...], x: Tensor, shift: float, out: Tensor | None = None) -> Tensor:
    """The polynomial at ``x``, plus a shift, by Horner's rule without temporaries."""
    first, *others, last = coefficients
    value = torch.mul(x, first, out=out)
    for coefficient in others:
        value.add_(coefficient).mul_(x)
    return value.add_(last + shift)

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
# Minimax fits by linear programming, the highest power first: of ((x + 0.055) / 1.055)^2.4 in x, and of
# 1.055 x^(1 / 2.4) - 0.055 in the fourth root of x, in which it is nearly straight.
_DECODE = (0.0597832659, -0.241179719, 0.611396112, 0.538856285, 0.0301545023, 0.00101054523)
_ENCODE = (0.0813360609, -0.335517931, 1.12269675, 0.196130334, -0.0646108625)


def srgb_to_linear(encoded: Tensor) -> Tensor:
    """Linear light of sRGB values.

    Args:
        encoded: ``[...]``, float 0..1; what lies outside is clipped.

    Returns:
        ``[...]``, off by at most 2.2e-5.
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
        ``[...]``, off by at most 3.5e-5, a hundredth of a grey level.
    """
    upper = linear.clamp(_TOE_LINEAR, 1)
    encoded = _polynomial(_ENCODE, upper.rsqrt_().rsqrt_(), -_TOE_LINEAR * _SLOPE, out)
    return encoded.add_(torch.clamp(linear, 0, _TOE_LINEAR, out=upper), alpha=_SLOPE)


def _polynomial(coefficients: tuple[float, ...], x: Tensor, shift: float, out: Tensor | None = None) -> Tensor:
    """The polynomial at ``x``, plus a shift, by Horner's rule without temporaries."""
    first, *others, last = coefficients
    value = torch.mul(x, first, out=out)
    for coefficient in others:
        value.add_(coefficient).mul_(x)
    return value.add_(last + shift)

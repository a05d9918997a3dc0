"""The quantisation tables of JPEG, and the quality that a table stands for."""

from __future__ import annotations

from collections.abc import Sequence

# ITU-T T.81, tables K.1 and K.2, row by row.
LUMINANCE_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Steps of the brightness at quality 50, vertical frequency by horizontal."""

CHROMINANCE_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
"""Steps of the two colour planes at quality 50."""


def luminance_steps(quality: int) -> list[int]:
    """The 64 steps of the brightness, row by row, as the Independent JPEG Group's library scales them.

    Args:
        quality: 1..100.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [min(max((step * scale + 50) // 100, 1), 255) for row in LUMINANCE_TABLE for step in row]


def estimated_quality(steps: Sequence[int]) -> int:
    """The quality 1..100 whose steps are nearest to those of a file.

    It is exact for files of libjpeg, hence of Pillow and OpenCV. Cameras and Photoshop use tables of their own: for
    them it is the quality that loses about as much.

    Args:
        steps: The 64 steps of the brightness in any fixed order: they are compared by their sum, which grows with every
            loss of quality.
    """
    total = sum(steps)
    # Of equals the highest: what is saved at quality 100 has no higher one.
    return min(range(100, 0, -1), key=lambda quality: abs(sum(luminance_steps(quality)) - total))

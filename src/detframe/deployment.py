"""What the images of a site are like, as quantiles in a small YAML file: written once, read wherever the site matters.

`detframe profile` writes it (:mod:`detframe.analysis.profile`). Augmentation draws from it, so that training images
look like the site's; monitoring compares with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor

from detframe.refusals import is_finite_number

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Which quantiles a distribution is described by."""

_VERSION = 1
_HEADER = """\
# What the images of a site are like, written by `detframe profile`. Lists are the quantiles named in `levels`.
# Operators of detframe.augment draw from it (`profile: this file`).
"""


class ProfileError(ValueError):
    """A profile that cannot be used; the message names the file, what was found and the cure."""


@dataclass(frozen=True)
class Distribution:
    """A distribution by its quantiles at :data:`LEVELS`, ascending."""

    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Distribution:
        """The distribution of measured values ``[N]``, N >= 1; quantiles between two values are interpolated."""
        return cls(tuple(np.quantile(values, LEVELS).tolist()))

    def at(self, level: Tensor) -> Tensor:
        """Values ``[...]`` at levels ``[...]`` 0..1, linear between the quantiles.

        Nothing is known beyond the outermost two, so that 0 and 1 are them: a uniform level gives values of the inner
        nine tenths, in their shares.
        """
        first, last = LEVELS[0], LEVELS[-1]
        level = first + level * (last - first)
        value = level * 0 + self.quantiles[0]
        steps = zip(LEVELS, LEVELS[1:], self.quantiles, self.quantiles[1:], strict=False)
        for low, high, value_low, value_high in steps:
            value = value + (value_high - value_low) * ((level - low) / (high - low)).clamp(0, 1)
        return value


@dataclass(frozen=True)
class DeploymentProfile:
    """Statistics of the images of a site, one distribution each; :mod:`detframe.image_statistics` says what they are.

    Attributes:
        source: What was profiled, as it was named.
        images: How many images there were.
        sampled: How many of them were looked at.
        seed: Of the choice among them.
        brightness: 0..1.
        contrast: 0..0.5.
        warmth: Stops of red over blue.
        tint: Stops of green over red and blue.
        noise: Standard deviation, 0..1.
        blur: Pixels.
        width: Pixels, as displayed.
        height: Pixels, as displayed.
        jpeg_quality: 1..100, of the images that are JPEG; None where none is.
        object_size: Square root of the boxes' areas in pixels; None where there are no boxes.
        orientation: Counts of landscape, portrait and square images, as displayed.
        exif_orientation: Counts of EXIF orientations 1..8; 1 also where an image states none.
        skipped: Images that were chosen and could not be read, with the reason.
    """

    source: str
    images: int
    sampled: int
    seed: int
    brightness: Distribution
    contrast: Distribution
    warmth: Distribution
    tint: Distribution
    noise: Distribution
    blur: Distribution
    width: Distribution
    height: Distribution
    jpeg_quality: Distribution | None = None
    object_size: Distribution | None = None
    orientation: dict[str, int] = field(default_factory=dict)
    exif_orientation: dict[int, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers, text, lists and dictionaries."""
        content: dict[str, Any] = {"version": _VERSION, "levels": list(LEVELS)}
        for name, value in asdict(self).items():
            content[name] = _rounded(value["quantiles"]) if name in _DISTRIBUTIONS and value is not None else value
        return content


_DISTRIBUTIONS = tuple(f.name for f in fields(DeploymentProfile) if "Distribution" in str(f.type))
_OPTIONAL = ("jpeg_quality", "object_size")


def write_profile(profile: DeploymentProfile, path: Path, overwrite: bool = False) -> None:
    """Write a profile as YAML; numbers are rounded to six digits.

    Args:
        profile: What to write.
        path: File to write; its folder is made where needed.
        overwrite: Replace a file that is there.

    Raises:
        ProfileError: The file exists and is not to be replaced, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise ProfileError(f"{path}: exists already. Name another file, or allow it to be overwritten (--overwrite).")
    text = _HEADER + yaml.safe_dump(profile.as_dict(), sort_keys=False, default_flow_style=None, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written ({error.strerror}). Name another file.") from error


def read_profile(path: Path) -> DeploymentProfile:
    """Read a profile.

    Raises:
        ProfileError: There is no such file, it is none of ours, or a value of it is not what it should be.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror}). Write it with `detframe profile`.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ProfileError(f"{path}: is no valid YAML. Write it anew with `detframe profile`.") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION or content.get("levels") != list(LEVELS):
        raise ProfileError(
            f"{path}: is no profile of version {_VERSION} with the levels {', '.join(map(str, LEVELS))}. "
            "Write it anew with `detframe profile`."
        )
    values = {f.name: _value(path, content, f.name) for f in fields(DeploymentProfile)}
    return DeploymentProfile(**values)


def site_distribution(path: Path, statistic: str) -> Distribution:
    """The distribution of one statistic, by its name in :class:`DeploymentProfile`, from a profile's file.

    Raises:
        ProfileError: The profile cannot be read, or it has none of this statistic.
    """
    found = getattr(read_profile(path), statistic)
    if not isinstance(found, Distribution):
        raise ProfileError(
            f"{path}: has no {statistic}, as none of its images had one. State a range instead of the profile."
        )
    return found


def _value(path: Path, content: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - of the field's own type
    """The value of a field, checked."""
    value = content.get(name)
    if name in _DISTRIBUTIONS:
        if value is None and name in _OPTIONAL:
            return None
        if (
            not isinstance(value, list)
            or len(value) != len(LEVELS)
            or not all(map(is_finite_number, value))
            or sorted(value) != value
        ):
            raise ProfileError(
                f"{path}: `{name}` is {value!r} and not {len(LEVELS)} ascending numbers. Correct it, or write the "
                "profile anew with `detframe profile`."
            )
        return Distribution(tuple(map(float, value)))
    expected: type = {"source": str, "orientation": dict, "exif_orientation": dict, "skipped": dict}.get(name, int)
    if not isinstance(value, expected):
        raise ProfileError(
            f"{path}: `{name}` is {value!r} and not of the type {expected.__name__}. Correct it, or write the profile "
            "anew with `detframe profile`."
        )
    return value


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]

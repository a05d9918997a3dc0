from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.deployment import (
    LEVELS,
    DeploymentProfile,
    Distribution,
    ProfileError,
    read_profile,
    site_distribution,
    write_profile,
)

NUMBERS = st.floats(-1e4, 1e4).map(lambda value: float(f"{value:.6g}"))
DISTRIBUTIONS = st.lists(NUMBERS, min_size=5, max_size=5).map(lambda values: Distribution(tuple(sorted(values))))
COUNTS = st.integers(0, 10**6)


def site() -> DeploymentProfile:
    names = ("brightness", "contrast", "warmth", "tint", "noise", "blur", "width", "height")
    values: dict[str, Any] = {name: Distribution((0.1, 0.2, 0.3, 0.4, 0.5)) for name in names}
    return DeploymentProfile(source="camera", images=9, sampled=5, seed=0, **values)


@settings(max_examples=50)
@given(
    profile=st.builds(
        DeploymentProfile,
        source=st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20),
        images=COUNTS,
        sampled=COUNTS,
        seed=COUNTS,
        **dict.fromkeys(
            ("brightness", "contrast", "warmth", "tint", "noise", "blur", "width", "height"), DISTRIBUTIONS
        ),
        jpeg_quality=st.none() | DISTRIBUTIONS,
        object_size=st.none() | DISTRIBUTIONS,
        orientation=st.dictionaries(st.sampled_from(["landscape", "portrait", "square"]), COUNTS),
        exif_orientation=st.dictionaries(st.integers(1, 8), COUNTS),
        skipped=st.dictionaries(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1), st.just("why")),
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, profile: DeploymentProfile) -> None:
    path = tmp_path_factory.mktemp("profile") / "site.yaml"
    write_profile(profile, path)
    again = read_profile(path)
    assert again == profile
    write_profile(again, path, overwrite=True)
    assert read_profile(path) == profile


def test_a_level_between_the_quantiles_is_interpolated() -> None:
    distribution = Distribution((0.0, 1.0, 2.0, 4.0, 8.0))
    levels = (torch.tensor([0.05, 0.25, 0.375, 0.5, 0.75, 0.85, 0.95]) - 0.05) / 0.9
    torch.testing.assert_close(distribution.at(levels), torch.tensor([0.0, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0]))
    torch.testing.assert_close(distribution.at(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 8.0]))


def test_uniform_levels_give_back_the_values_that_were_measured() -> None:
    values = np.random.default_rng(0).gamma(2.0, 1.0, 20_000)
    torch.manual_seed(0)
    drawn = Distribution.of(values).at(torch.rand(20_000)).numpy()
    inner = np.quantile(values, 0.05 + 0.9 * np.array([0.25, 0.5, 0.75]))
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), inner, rtol=0.05)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("precious")
    with pytest.raises(ProfileError, match=r"site\.yaml: exists already.*--overwrite"):
        write_profile(site(), path)
    assert path.read_text() == "precious"
    with pytest.raises(ProfileError, match="cannot be written"):
        write_profile(site(), path / "below.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 0}, "no profile of version 1"),
        ({"levels": [0.5]}, "no profile of version 1"),
        ({"noise": [1, 2, 3]}, "`noise` is .* and not 5 ascending numbers"),
        ({"noise": [5, 4, 3, 2, 1]}, "`noise` is"),
        ({"noise": [1, 2, 3, 4, float("nan")]}, "`noise` is"),
        ({"noise": [1, 2, 3, 4, 10**400]}, "`noise` is"),
        ({"blur": None}, "`blur` is None"),
        ({"images": "many"}, "`images` is 'many' and not of the type int"),
    ],
)
def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "site.yaml"
    write_profile(site(), path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(ProfileError, match=f"site.yaml: .*{words}.*"):
        read_profile(path)


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(path)
    path.write_text("a: [")
    with pytest.raises(ProfileError, match="no valid YAML"):
        read_profile(path)
    write_profile(site(), path, overwrite=True)
    assert site_distribution(path, "noise").quantiles == (0.1, 0.2, 0.3, 0.4, 0.5)
    with pytest.raises(ProfileError, match="has no jpeg_quality"):
        site_distribution(path, "jpeg_quality")
    assert len(LEVELS) == 5

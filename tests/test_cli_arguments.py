"""How the parameters of a typed function become arguments of a verb."""

from __future__ import annotations

from pathlib import Path

from detframe.cli import with_name


def many(files: list[Path] | None = None, out: Path | None = None) -> int:
    return 0 if files == [] and out is None else 1


def one(run: Path | None = None) -> int:
    return 0 if run is None else 1


def needed(data: Path) -> int:
    return len(data.parts)


def test_the_first_parameter_may_be_given_bare() -> None:
    assert with_name(one, ["runs", "--json"]) == ["--run", "runs", "--json"]
    assert with_name(one, ["--json"]) == ["--json"]
    assert with_name(needed, ["data"]) == ["data"]


def test_a_list_takes_all_that_stands_before_the_first_option() -> None:
    assert with_name(many, ["a", "b c", "--out", "d"]) == ["--files+=a", "--files+=b c", "--out", "d"]
    assert with_name(many, ["--out", "d"]) == ["--out", "d"]

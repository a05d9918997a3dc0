"""How the parameters of a typed function become arguments of a verb."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from detframe.cli import LEAST, VERBS, in_place, main, with_name


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


def test_what_is_positional_may_be_given_by_name() -> None:
    def two(artefact: Path, repo: Path, batch: int = 8) -> int:
        return 0

    for given in (
        ["a", "--repo", "b", "--batch", "4"],
        ["--repo=b", "a", "--batch", "4"],
        ["--batch", "4", "--artefact", "a", "--repo", "b"],
        ["a", "b", "--batch", "4"],
    ):
        assert in_place(two, given) == ["a", "b", "--batch", "4"]
    assert in_place(two, ["a", "b", "c"]) == ["a", "b", "c"]
    assert in_place(two, ["--repo", "b", "--batch", "4"]) == ["--batch", "4"]  # for the parser to refuse
    assert in_place(one, ["--run", "a"]) == ["--run", "a"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["convert", "a", "b", "png"], "to: Expected coco, voc or yolo. Got value: png."),
        (["compare", "a", "b", "--replicates", "many"], "replicates: Expected int. Got value: many."),
        (["serve", "x", "--prt", "3"], "unrecognized arguments: --prt 3. Similar: --port."),
        (["check"], "the following arguments are required: data."),
    ],
)
def test_a_wrong_argument_is_told_in_words_with_its_cure(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"detframe {given[0]}: {said} `python -m detframe {given[0]} --help` explains all.\n"


def test_an_option_of_a_training_that_does_not_exist_is_told_with_one_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["detframe", "fit", "--trainer.max_epoch", "3"])
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith("detframe: unrecognized arguments: --trainer.max_epoch 3. Similar: --trainer.max_epochs")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["compare", "a", "b", "--replicates", "0"], "--replicates is 0; give 1 or more."),
        (["compare", "a", "b", "--margin", ".nan"], "--margin is nan; give 0 or more."),
        (["check", "a", "--workers", "-1"], "--workers is -1; give 0 or more."),
        (["profile", "a", "--seed=-1"], "--seed is -1; give 0 or more."),
        (["hand-over", "a", "--tool", "coco", "--out", "b", "--most", "-1"], "--most is -1; give 0 or more."),
        (["export", "a", "--images", "-1"], "--images is -1; give 0 or more."),
        (["export", "a", "--max_drop", "-1"], "--max_drop is -1.0; give 0 or more."),
        (["augment-report", "a", "--images", "0"], "--images is 0; give 1 or more."),
    ],
)
def test_a_number_below_its_least_is_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    assert capsys.readouterr().err == f"detframe {given[0]}: {said}\n"


def test_every_least_value_is_of_a_parameter() -> None:
    names = set()
    for verb, (_, path) in VERBS.items():
        if path:
            module, function = path.split(":")
            found = inspect.signature(getattr(import_module(module), function)).parameters
            names |= {*found, *(f"{verb} {name}" for name in found)}
            # Whoever has a default has a valid one.
            numbers = {name: p.default for name, p in found.items() if isinstance(p.default, int | float)}
            assert all(value >= LEAST.get(f"{verb} {name}", LEAST.get(name, 0)) for name, value in numbers.items())
    assert names >= LEAST.keys()

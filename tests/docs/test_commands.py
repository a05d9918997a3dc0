"""Every command that README and docs show has a verb and options that exist."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from detframe.cli import VERBS, main

ROOT = Path(__file__).parents[2]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Verb and arguments, of a block, which may be continued by backslashes, or of a sentence, which may break it."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        shown = re.findall(r"python -m detframe ([^\n`]+)", text)
        shown += re.findall(r"`python -m detframe ([^`]+\n[^`]+)`", text)
        for command in shown:
            verb, *arguments = shlex.split(command.partition(" && ")[0])
            if verb != "VERB" and not verb.startswith("-"):
                yield verb, arguments


@pytest.fixture(scope="module")
def options_of_fit() -> set[str]:
    """As its help lists them."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["detframe", "fit", "--help"])
        patch.setattr("sys.stdout.write", said.append)
        with pytest.raises(SystemExit):
            main()
    return set(re.findall(r"--([\w.]+)", "".join(said)))


def exists(option: str, verb: str, options_of_fit: set[str]) -> bool:
    function = VERBS[verb].function
    if function:
        module, name = function.split(":")
        return option in inspect.signature(getattr(import_module(module), name)).parameters
    if option in ("folds", "out") and verb == "crossfit":
        return True
    section, *names = option.partition(".init_args.")[0].split(".")
    return ".".join((section, *names[:1])) in options_of_fit  # what a class there takes, its own help lists


def test_options_of_shown_commands_exist(options_of_fit: set[str]) -> None:
    checked = 0
    for verb, arguments in commands():
        assert verb in VERBS
        for argument in arguments:
            if argument.startswith("--") and argument != "--help":
                option = argument[2:].partition("=")[0]
                assert exists(option, verb, options_of_fit), f"{verb} {argument}"
                checked += 1
    assert checked > 150

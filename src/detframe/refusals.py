"""How a verb ends that cannot do its work: one sentence, where a person or a program looks for it, and exit code 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from json import dumps
from pathlib import Path


def refuse(
    error: Exception, json: bool = False, facts: Mapping[str, str] | None = None, out: Path | None = None
) -> int:
    """Say why: on the error stream, or, where JSON was asked for, as a document on the output.

    Args:
        error: Its message is what, where and the cure; one of the file system is put into such words.
        json: Whether JSON was asked for.
        facts: What else the document says, before the error.
        out: What was being written, for an error that names no file, as of a full disk.

    Returns:
        The exit code.
    """
    said = str(error)
    if isinstance(error, OSError) and error.strerror and (place := error.filename or out):
        said = f"{place}: cannot be read or written ({error.strerror}). Correct that, or name another place."
    print(dumps({**(facts or {}), "error": said}) if json else said, file=sys.stdout if json else sys.stderr)
    return 2


def is_finite_number(value: object) -> bool:
    """Whether a value of a JSON or YAML file is a number, as no boolean, NaN, infinity or endless row of digits is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def explain_argument(message: str, options: Iterable[str]) -> str:
    """What is wrong with an argument, as a person says it: without Python's types, and with what may have been meant.

    Args:
        message: The parser's, such as ``Parser key "to": Expected a typing.Literal['coco', 'voc']. Got value: yolo``.
        options: All that there are, such as ``--data.root``.
    """
    text = re.sub(r'Parser key "([^"]+)": ', r"\1: ", " ".join(message.split()))
    text = re.sub(r"Expected a <class '(?:\w+\.)*(\w+)'>", r"Expected \1", text)
    text = re.sub(r"Expected a (?:typing\.)?Literal\[(.+?)\]", lambda found: f"Expected {_choices(found[1])}", text)
    unknown = re.match(r"unrecognized arguments: (--[\w.-]+)", text)
    return f"{text.rstrip('.')}.{similar(unknown[1], options) if unknown else ''}"


def similar(name: str, known: Iterable[str]) -> str:
    """A sentence with names that resemble one which does not exist, after a space; nothing where none does."""
    close = get_close_matches(name, set(known), n=3)
    return f" Similar: {', '.join(close)}." if close else ""


def _choices(quoted: str) -> str:
    *others, last = [word.strip(" '") for word in quoted.split(",")]
    return f"{', '.join(others)} or {last}" if others else last

"""How a verb ends that cannot do its work: one sentence, where a person or a program looks for it, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from json import dumps
from pathlib import Path


def refuse(error: Exception, json: bool = False, facts: Mapping[str, str] | None = None) -> int:
    """Say why: on the error stream, or, where JSON was asked for, as a document on the output.

    Args:
        error: Its message is what, where and the cure.
        json: Whether JSON was asked for.
        facts: What else the document says, before the error.

    Returns:
        The exit code.
    """
    document = dumps({**(facts or {}), "error": str(error)})
    print(document if json else error, file=sys.stdout if json else sys.stderr)
    return 2


def refuse_unwritable(error: OSError, out: Path | None) -> int:
    """Say that OUT, or a file of it, cannot be written; the exit code."""
    print(f"{error.filename or out}: cannot be written ({error.strerror}). Name another folder.", file=sys.stderr)
    return 2

"""The command line: ``python -m detframe VERB``. Verbs are imported when they are called, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence

VERBS = {
    "fit": "train a detector, then test its best checkpoint",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "detect objects in images and write them as COCO results, Parquet and pictures",
}

USAGE = """usage: python -m detframe VERB [options]

Object detection from research to production. A first run, on a data set that the project draws itself:

  python -m detframe fit --config configs/quickstart.yaml

verbs:
{verbs}

`python -m detframe VERB --help` explains a verb; every option may stand in a YAML file given with --config."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: What follows ``python -m detframe``; None takes the process's own.

    Returns:
        Exit code: 0, or 2 where the input was bad.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        print(USAGE.format(verbs="\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())))
        return 0
    if given[0] == "--version":
        from detframe import __version__

        print(__version__)
        return 0
    if given[0] not in VERBS:
        print(f"detframe: unknown verb {given[0]!r}. Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    from detframe.lightning_cli import run

    return run(given)

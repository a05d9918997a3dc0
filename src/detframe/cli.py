"""The command line: ``python -m detframe VERB``. Verbs are imported when they are called, so that help is quick."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise, takewhile
from typing import NamedTuple


class Verb(NamedTuple):
    """A verb and where it is implemented."""

    summary: str
    function: str  # "module:function" of a typed function, "" for Lightning's verbs


VERBS = {
    "check": Verb("list every fault of a data set and sum it up", "detframe.data.checks:check"),
    "convert": Verb("write a data set as COCO, Pascal VOC or YOLO", "detframe.data.convert:convert"),
    "duplicates": Verb(
        "find images that are one picture, within and across splits", "detframe.curation.duplicates:duplicates"
    ),
    "split": Verb(
        "deal a data set out into splits that are alike in classes and keep groups whole",
        "detframe.curation.split:split",
    ),
    "profile": Verb(
        "measure what the images of a site are like, for augmentation and monitoring",
        "detframe.analysis.profile:profile",
    ),
    "augment-report": Verb(
        "show what a configuration's augmentation does to its data",
        "detframe.analysis.augment_report:augment_report",
    ),
    "fit": Verb("train a detector, then test its best checkpoint", ""),
    "validate": Verb("evaluate a checkpoint on the validation split", ""),
    "test": Verb("evaluate a checkpoint on the test split", ""),
    "diagnose": Verb(
        "show what a detector gets wrong, why, and what to do about it", "detframe.analysis.diagnose:diagnose"
    ),
    "compare": Verb(
        "say what a change brought on the same test images, and gate it: better, worse, same, or cannot tell",
        "detframe.analysis.compare:compare",
    ),
    "ledger": Verb(
        "say how far data, augmentation, model and recipe each moved a metric, over a folder of runs",
        "detframe.analysis.ledger:ledger",
    ),
    "calibrate": Verb(
        "make a run's scores believable: fit a curve per class on validation, into a checkpoint",
        "detframe.analysis.calibrate:calibrate",
    ),
    "crossfit": Verb("predict every training image by a detector that has not seen it", ""),
    "label-errors": Verb(
        "find labels that are likely wrong and say how to mend each", "detframe.analysis.label_errors:label_errors"
    ),
    "review": Verb(
        "decide about suggested fixes of labels on a local web page, one key each",
        "detframe.curation.review.verb:review",
    ),
    "apply": Verb(
        "write a new version of a data set with its labels mended as was decided", "detframe.curation.apply:apply"
    ),
    "data-diff": Verb(
        "show in words and pictures what two versions of a data set differ in",
        "detframe.curation.data_diff:data_diff",
    ),
    "hand-over": Verb(
        "write a queue of suspicious labels for CVAT, Label Studio or as COCO",
        "detframe.curation.handover.hand_over:hand_over",
    ),
    "take-back": Verb(
        "turn what came back from a labelling tool into decisions for `apply`",
        "detframe.curation.handover.take_back:take_back",
    ),
    "mine": Verb(
        "choose from unlabelled images those that the detector would learn most from", "detframe.analysis.mine:mine"
    ),
    "export": Verb(
        "write a checkpoint as one proven file, from the camera's pixels to final boxes", "detframe.export.verb:export"
    ),
    "benchmark": Verb(
        "compare exported files and their checkpoint: speed, memory, size and mAP in one run",
        "detframe.export.benchmark:benchmark",
    ),
    "predict": Verb("detect objects in images and write them as COCO results, Parquet and pictures", ""),
    "serve": Verb(
        "answer HTTP requests with an exported detector, with a page to try it", "detframe.serving.verb:serve"
    ),
    "monitor": Verb(
        "say without labels whether a released detector's images and answers are still what they were, and why not",
        "detframe.monitoring.verb:monitor",
    ),
    "triton": Verb(
        "write an exported detector as a model repository of Triton, for more than one machine",
        "detframe.serving.triton:triton",
    ),
}

LEAST = {
    "auto": 0,
    "images": 0,
    "augment-report images": 1,
    "margin": 0,
    "max_drop": 0,
    "measured": 0,
    "most": 0,
    "pictures": 0,
    "replicates": 1,
    "samples": 0,
    "seed": 0,
    "to_queue": 0,
    "workers": 0,
    "serve workers": 1,
}
"""Least values of numbers by parameter, or by verb and parameter; what else a verb asks of a number it says itself."""

USAGE = """usage: python -m detframe VERB [options]

Object detection from research to production. A first run, on a data set that the project draws itself:

  python -m detframe fit --config configs/quickstart.yaml

verbs:
{verbs}

`python -m detframe VERB --help` explains a verb; every option of fit, validate, test and predict may stand in a YAML
file given with --config."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: What follows ``python -m detframe``; None takes the process's own.

    Returns:
        Exit code: 0, 1 where a verb that judges found faults, 2 where the input was bad, or 130 where it was stopped.
    """
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("detframe: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what reads the output has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(given: list[str]) -> int:
    if not given or given[0] in {"-h", "--help"}:
        print(USAGE.format(verbs="\n".join(f"  {name:<16}{verb.summary}" for name, verb in VERBS.items())))
        return 0
    if given[0] == "--version":
        from detframe import __version__

        print(__version__)
        return 0
    if given[0] not in VERBS:
        print(f"detframe: unknown verb {given[0]!r}. Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    verb = VERBS[given[0]]
    if verb.function:
        return run_function(given[0], verb.function, given[1:])
    if given[0] == "crossfit":
        from detframe.crossfit import run as crossfit

        return crossfit(given[1:])
    from detframe.lightning_cli import run

    return run(given)


def run_function(verb: str, path: str, arguments: list[str]) -> int:
    """Run a typed function as a verb: what has no default is positional, and so may the first be; a bool is a flag.

    What is positional may be given by its name too.

    Args:
        verb: Its name on the command line.
        path: ``module:function``.
        arguments: What follows the verb.

    Returns:
        The function's exit code, or 2 where an argument is wrong.
    """
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

    from detframe.refusals import explain_argument

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the paragraphs of the docstring."""

    module, called = path.split(":")
    function: Callable[..., int] = getattr(import_module(module), called)
    parser = ArgumentParser(
        prog=f"python -m detframe {verb}", formatter_class=Formatter, exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(function, as_group=False, as_positional=True, fail_untyped=True)
    parser.description = inspect.cleandoc(function.__doc__ or "").split("\n\nArgs:")[0]
    try:
        parsed = parser.parse_args(with_flags(function, with_name(function, in_place(function, arguments))))
    except ArgumentError as error:
        options = {name for action in parser._actions for name in action.option_strings} - {"--help"}
        print(
            f"detframe {verb}: {explain_argument(str(error), options)} `{parser.prog} --help` explains all.",
            file=sys.stderr,
        )
        return 2
    given = parser.instantiate(parsed).as_dict()
    for name, value in given.items():
        least = LEAST.get(f"{verb} {name}", LEAST.get(name))
        # Only numbers: `images` is a folder for some verbs. `not >=` refuses NaN too.
        if least is not None and isinstance(value, int | float) and not value >= least:
            print(f"detframe {verb}: --{name} is {value}; give {least} or more.", file=sys.stderr)
            return 2
    return function(**given)


def in_place(function: Callable[..., int], arguments: Sequence[str]) -> list[str]:
    """Arguments with ``--repo DIR`` as the bare ``DIR`` at its place, where the function's ``repo`` has no default."""
    needed = [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]
    named: dict[str, str] = {}
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option.startswith("--") and option[2:] in needed:
            named[option[2:]] = value if equals else next(rest, "")
        else:
            others.append(argument)
    bare = list(takewhile(lambda argument: not argument.startswith("-"), others))
    options, places = others[len(bare) :], iter(bare)
    if len(bare) + len(named) < len(needed):
        return others  # for the parser to say what it needs
    return [*(named[name] if name in named else next(places) for name in needed), *places, *options]


def with_name(function: Callable[..., int], arguments: Sequence[str]) -> list[str]:
    """Arguments with the name of the function's first parameter where that may be left out: given first, and bare.

    Where it is a list, all bare arguments before the first option are of it.
    """
    first = next(iter(inspect.signature(function).parameters.values()))
    bare = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    if not bare or first.default is first.empty:
        return list(arguments)
    if str(first.annotation).startswith("list["):
        return [*(f"--{first.name}+={argument}" for argument in bare), *arguments[len(bare) :]]
    return [f"--{first.name}", *arguments]


def with_flags(function: Callable[..., int], arguments: Sequence[str]) -> list[str]:
    """Arguments with ``--name true`` where a bool of the function is given as the flag ``--name``."""
    flags = {
        f"--{name}"
        for name, p in inspect.signature(function).parameters.items()
        if p.annotation in (bool, "bool", "bool | None")
    }
    return [
        f"{argument}=true" if argument in flags and after not in ("true", "false") else argument
        for argument, after in pairwise([*arguments, ""])
    ]

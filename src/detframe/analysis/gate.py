"""A gate: what a candidate must not fall short of to replace what is in use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detframe.analysis.comparison import Compared, Comparison, Line, Verdict
from detframe.analysis.evaluation import Evaluation
from detframe.data.annotations import DataError
from detframe.data.yaml_files import read_yaml
from detframe.metrics.average_precision import FALSE_POSITIVE

_KEYS = ("margins", "must_improve", "must_pass", "slower", "larger")


class MustPass(NamedTuple):
    """An image, or one object of it, that the candidate has to get right at its operating thresholds."""

    image: str  # file name
    annotation: int | None  # id of the object that must be found; None asks for no mistake in the whole image


class Gate(NamedTuple):
    """Conditions; all have to hold."""

    margins: dict[str, float]  # by pattern of a line's name: by less than this it may be worse, surely
    must_improve: list[str]  # names of lines whose verdict has to be "better"
    must_pass: list[MustPass]
    slower: float | None  # the candidate's latency, at most so many times the base's
    larger: float | None  # the candidate's size likewise


class Speed(NamedTuple):
    """Of two artefacts that took turns in one run of `detframe benchmark`."""

    names: tuple[str, str]  # base, candidate
    milliseconds: tuple[float, float]  # median at batch 1
    megabytes: tuple[float, float]


class Judgement(NamedTuple):
    """One condition and whether it holds."""

    condition: str
    holds: bool
    found: str


def read_gate(path: Path) -> Gate:
    """Read a gate's YAML file.

    Raises:
        DataError: It cannot be read, or says something that no gate has.
    """
    content = read_yaml(path) or {}
    unknown = [key for key in content if key not in _KEYS] if isinstance(content, dict) else [str(content)]
    if unknown:
        raise DataError(f"{path}: has {unknown[0]!r}; a gate has {', '.join(_KEYS)}.")
    for key, kind, such in (
        ("margins", dict, '{map: 0.01, "ap/*": 0.03}'),
        ("must_improve", list, "[map]"),
        ("must_pass", (list, str), "[a.jpg], or the name of a JSON file with such a list"),
    ):
        if content.get(key) is not None and not isinstance(content[key], kind):
            raise DataError(f"{path}: {key} is {content[key]!r}. Write it like {such}.")
    margins = content.get("margins") or {}
    wrong = [name for name, value in margins.items() if not _is_number(value) or not value >= 0]  # NaN
    if wrong:
        raise DataError(f"{path}: the margin of {wrong[0]} is {margins[wrong[0]]!r}. A number from 0 on is needed.")
    for key in ("slower", "larger"):
        if content.get(key) is not None and not (_is_number(content[key]) and content[key] > 0):
            raise DataError(f"{path}: {key} is {content[key]!r}. Give a factor, such as 1.1 for a tenth more.")
    asked = content.get("must_pass") or []
    if isinstance(asked, str):
        listed = path.parent / asked
        try:
            asked = json.loads(listed.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{listed}: cannot be read as JSON ({error}). {path} names it as must_pass.") from error
        if not isinstance(asked, list):
            raise DataError(f'{listed}: is no list. {path} names it as must_pass; write it like ["a.jpg"].')
    return Gate(
        {str(name): float(value) for name, value in margins.items()},
        [str(name) for name in content.get("must_improve") or []],
        [_must_pass(path, entry) for entry in asked],
        content.get("slower"),
        content.get("larger"),
    )


def read_speed(path: Path) -> Speed:
    """Read what `detframe benchmark BASE CANDIDATE` wrote.

    Raises:
        DataError: It cannot be read, or compares more or fewer than two.
    """
    try:
        contestants = json.loads(path.read_text(encoding="utf-8"))["contestants"]
        pairs = [(one["name"], one["single"]["median"], one["megabytes"]) for one in contestants]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no benchmark.json of `detframe benchmark` ({error}).") from error
    if len(pairs) != 2:
        raise DataError(
            f"{path}: compares {len(pairs)}. Run `detframe benchmark BASE_FILE CANDIDATE_FILE`, in this order."
        )
    names, milliseconds, megabytes = zip(*pairs, strict=True)
    return Speed(names, milliseconds, megabytes)


def require_answerable(gate: Gate, candidate: Evaluation, speed: Speed | None) -> None:
    """Refuse what can be refused before anything is counted, which takes long.

    Raises:
        DataError: A condition is about an image, an object or a speed that is not known.
    """
    id_of = dict(zip(candidate.file_names, candidate.image_ids, strict=True))
    objects = set(zip(*(candidate.table[name].to_pylist() for name in ("image_id", "annotation_id")), strict=True))
    for image, annotation in gate.must_pass:
        if image not in id_of:
            raise DataError(f"The gate's must_pass names {image!r}, which {candidate.source} does not have.")
        if annotation is not None and (id_of[image], annotation) not in objects:
            raise DataError(f"The gate's must_pass names annotation {annotation} of {image}, which has no such.")
    for limit, what in ((gate.slower, "slower"), (gate.larger, "larger")):
        if limit is not None and speed is None:
            raise DataError(f"The gate limits how much {what} the candidate may be. Give --benchmark, or take it out.")


def judge(gate: Gate, comparison: Comparison, speed: Speed | None) -> list[Judgement]:
    """Whether each condition of a gate that :func:`require_answerable` let pass holds.

    Raises:
        DataError: A condition is about a line that there is not.
    """
    found = [judgement for pattern in gate.margins for judgement in _within_margins(pattern, gate, comparison.lines)]
    for name in gate.must_improve:
        line = next((line for line in comparison.lines if line.name == name), None)
        if line is None:
            raise _no_line(name, comparison.lines)
        found.append(Judgement(f"{name} improves", line.verdict is Verdict.BETTER, _said(line)))
    found += _passed(gate.must_pass, comparison.candidate)
    if speed is not None:
        for limit, what, (base, ours) in (
            (gate.slower, "slower", speed.milliseconds),
            (gate.larger, "larger", speed.megabytes),
        ):
            if limit is not None:
                said = f"{ours / base:.2f} times"
                found.append(Judgement(f"at most {limit:g} times {what}", ours <= limit * base, said))
    return found


def _within_margins(pattern: str, gate: Gate, lines: Sequence[Line]) -> list[Judgement]:
    """One judgement for each line that a pattern is the first to fit."""
    earlier = list(gate.margins)[: list(gate.margins).index(pattern)]
    fitting = [line for line in lines if fnmatchcase(line.name, pattern)]
    if not fitting:
        raise _no_line(pattern, lines)
    return [
        Judgement(f"{line.name} at most {line.margin:g} worse", line.low >= -line.margin, _said(line))
        for line in fitting
        if not any(fnmatchcase(line.name, other) for other in earlier)
    ]


def _no_line(name: str, lines: Sequence[Line]) -> DataError:
    return DataError(f"The gate names {name!r}, which nothing is called. There are {', '.join(x.name for x in lines)}.")


def _said(line: Line) -> str:
    return f"{line.verdict.value}: {line.gain:+.4f}, between {line.low:+.4f} and {line.high:+.4f}"


def _passed(asked: Sequence[MustPass], candidate: Compared) -> list[Judgement]:
    """Whether the images and objects that must pass do."""
    evaluation, errors = candidate.evaluation, candidate.operating.errors
    place_of = {name: place for place, name in enumerate(evaluation.file_names)}
    ids = evaluation.table["annotation_id"].to_numpy(zero_copy_only=False)[candidate.rows.truth_rows.numpy()]
    missed = (errors.found_by < 0) & ~errors.truths.ignore
    false = errors.outcome == FALSE_POSITIVE
    judgements = []
    for image, annotation in asked:
        own = errors.truths.images == place_of[image]
        if annotation is not None:
            found = not bool(missed[own & torch.from_numpy(ids == annotation)].any())
            said = "found" if found else "missed"
            judgements.append(Judgement(f"object {annotation} of {image} is found", found, said))
            continue
        misses = int((own & missed).sum())
        alarms = int((false & (errors.detections.images == place_of[image])).sum())
        said = f"{misses} missed, {alarms} false"
        judgements.append(Judgement(f"{image} has no mistake", not misses and not alarms, said))
    return judgements


def _must_pass(path: Path, entry: Any) -> MustPass:  # noqa: ANN401 - what YAML holds
    if isinstance(entry, str):
        return MustPass(entry, None)
    if isinstance(entry, Mapping) and isinstance(entry.get("image"), str):
        annotation = entry.get("annotation")
        if annotation is None or isinstance(annotation, int):
            return MustPass(entry["image"], annotation)
    raise DataError(f"{path}: must_pass has {entry!r}. Give a file name, or {{image: NAME, annotation: ID}}.")


def _is_number(value: Any) -> bool:  # noqa: ANN401 - what YAML holds
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""What a version of a data set was made of, as a file in its folder: ``lineage.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detframe import __version__
from detframe.curation.fixes import NOBODY
from detframe.curation.mending import STATES, Outcome
from detframe.data.annotations import AnnotationIndex
from detframe.data.sources import LINEAGE_FILE

_FORMAT = "detframe lineage 1"


def lineage_of(
    data: Path,
    before: Mapping[str, AnnotationIndex],
    after: Mapping[str, AnnotationIndex],
    digests: Mapping[str, Sequence[bytes]],
    outcomes: Sequence[Outcome],
    when: str,
) -> dict[str, Any]:
    """What there is to say about a version, as JSON can hold it.

    Args:
        data: The data set that it was made of.
        before: Its splits.
        after: Those of the version.
        digests: SHA-256 of the images of each split, in the order of ``before``.
        outcomes: What became of each decision.
        when: ISO 8601, UTC.
    """
    applied = [outcome for outcome in outcomes if outcome.state == "applied"]
    return {
        "format": _FORMAT,
        "when": when,
        "detframe": __version__,
        "parent": {
            "data": str(data),
            "splits": {split: index.hashes(digests[split]) for split, index in before.items()},
            "lineage": read_lineage(data),
        },
        "splits": {
            split: {
                **index.hashes(_in_order_of(index, before[split], digests[split])),
                "boxes_before": len(before[split].boxes),
                "boxes": len(index.boxes),
            }
            for split, index in after.items()
        },
        "counts": {state: _counts(outcomes, state) for state in STATES},
        "without_review": sum(outcome.fix.who == NOBODY for outcome in applied),
        "people": dict(Counter(outcome.fix.who for outcome in applied if outcome.fix.who != NOBODY)),
        "applied": [_described(outcome) | {"reviewed": outcome.fix.who != NOBODY} for outcome in applied],
        "refused": [_described(o) | {"reason": o.reason} for o in outcomes if o.state == "refused"],
    }


def write_lineage(document: dict[str, Any], folder: Path) -> None:
    """Write it into the folder of the version."""
    (folder / LINEAGE_FILE).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lineage(data: Path) -> dict[str, Any] | None:
    """The lineage of a data set; None where it is no version, or its file is broken."""
    folder = data if data.is_dir() else data.parent
    try:
        document = json.loads((folder / LINEAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("format") == _FORMAT else None


def applied_before(data: Path) -> frozenset[str]:
    """Ids of the decisions that a data set follows already, or one of those that it was made of."""
    found: set[str] = set()
    document = read_lineage(data)
    while document is not None:
        found |= {entry["id"] for entry in document["applied"]}
        document = document["parent"]["lineage"]
    return frozenset(found)


def _in_order_of(index: AnnotationIndex, before: AnnotationIndex, digests: Sequence[bytes]) -> list[bytes]:
    of_name = dict(zip(before.file_names, digests, strict=True))
    return [of_name[name] for name in index.file_names]


def _counts(outcomes: Sequence[Outcome], state: str) -> dict[str, dict[str, int]]:
    """By kind and decision; what nobody looked at is apart."""
    counts: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        if outcome.state == state:
            decision = "without review" if outcome.fix.who == NOBODY else outcome.fix.decision
            of_kind = counts.setdefault(outcome.fix.kind, {})
            of_kind[decision] = of_kind.get(decision, 0) + 1
    return counts


def _described(outcome: Outcome) -> dict[str, Any]:
    fix = outcome.fix
    return {
        "id": fix.id,
        "kind": fix.kind,
        "decision": fix.decision,
        "who": fix.who,
        "split": fix.split,
        "file_name": fix.file_name,
    }

"""What decisions make of the labels of one image: pure functions, whatever format the labels are in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from detframe.curation.fixes import NOBODY, Fix, disagreements, standing
from detframe.curation.labels import overlaps, same_box, same_label, shown
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label, Queue
from detframe.listing import below

State = Literal["applied", "already", "kept", "left", "refused"]
"""The label was mended; it is so already; it was found right; nothing is decided; it cannot be applied."""

STATES: tuple[State, ...] = ("applied", "already", "kept", "left", "refused")

_SAME_OBJECT = 0.5  # IoU
_NAMED = 20


class Outcome(NamedTuple):
    """What became of a decision."""

    fix: Fix
    state: State
    reason: str = ""  # why it was refused or left, in words


class Edit(NamedTuple):
    """A change of one image's labels."""

    place: int  # of the label among those of its image, in the order of the file; -1: a label is added
    after: Label | None  # None: the label is removed


@dataclass
class _Slot:
    place: int
    original: Label | None  # None: it was added
    current: Label | None  # None: it was removed
    touched: bool = False


def decided(fixes: Sequence[Fix], latest_wins: bool) -> list[Fix]:
    """The decision that stands about each suggestion, in order of time; those that nobody looked at come last.

    What a person said of a suggestion, and be it that a decision is taken back, goes before what was decided without
    review.

    Args:
        fixes: In order of time.
        latest_wins: Of two people who disagree, the later is followed.

    Raises:
        DataError: Two people disagree, and the later is not to be followed; the message names them.
    """
    pairs = disagreements(fixes)
    if pairs and not latest_wins:
        named = [
            f"{one.file_name}, {one.kind}: {one.who} says {_said(one)}, {other.who} says {_said(other)}"
            for one, other in pairs
        ]
        raise DataError(
            f"{len(pairs)} decisions differ between reviewers. Let one of them decide again, or follow the later with "
            f"--latest_wins.{below(named, _NAMED)}"
        )
    return sorted(standing(fixes).values(), key=lambda fix: fix.who == NOBODY)


def unreviewed(queue: Queue, least: float, fixes: Iterable[Fix], when: str, digests: dict[str, str]) -> list[Fix]:
    """Suggestions that are sure enough to be taken without review, the surest first.

    Args:
        queue: Suggestions.
        least: Probability, 0..1, from which on one is taken.
        fixes: Decisions of people: what they said anything about is left to them.
        when: ISO 8601, UTC.
        digests: SHA-256 of the images, by the names in the queue.
    """
    about = {fix.id for fix in fixes if fix.who != NOBODY}
    sure = [one for one in queue.suggestions if one.probability >= least and one.id not in about]
    return [
        Fix(
            one.id,
            "accept",
            NOBODY,
            when,
            one.kind,
            one.reason,
            one.probability,
            queue.split,
            one.file_name,
            digests[one.file_name],
            one.annotation_id,
            one.before,
            one.after,
        )
        for one in sorted(sure, key=lambda one: -one.probability)
    ]


def mend(
    labels: Sequence[Label], fixes: Sequence[Fix], earlier: frozenset[str] = frozenset()
) -> tuple[list[Edit], list[Outcome]]:
    """Follow decisions about the labels of one image, one after the other.

    A decision finds its label by box, class and flag, as it is in the data or as an earlier decision left it. Where two
    decisions are about one label, both are followed where they change different things of it, its class and its box.

    Args:
        labels: As they are in the data.
        fixes: In order; each is about this image.
        earlier: Ids of decisions that a version before this one has followed.
    """
    slots = [_Slot(place, label, label) for place, label in enumerate(labels)]
    outcomes = [_follow(slots, fix, earlier) for fix in fixes]
    edits = [Edit(slot.place, slot.current) for slot in slots if not same_label(slot.original, slot.current)]
    return edits, outcomes


def merged(before: Label, one: Label | None, other: Label | None) -> Label | None:
    """The label with what either of two changes it to; None where both change the same of it."""
    if one is None or other is None:
        return None
    box_kept, box_wanted = same_box(before, one), same_box(before, other)
    class_kept, class_wanted = before.class_name == one.class_name, before.class_name == other.class_name
    if not (box_kept or box_wanted or same_box(one, other)):
        return None
    if not (class_kept or class_wanted or one.class_name == other.class_name):
        return None
    return Label(
        other.box if box_kept else one.box,
        other.class_name if class_kept else one.class_name,
        other.ignore if before.ignore == one.ignore else one.ignore,
    )


def _said(fix: Fix) -> str:
    return f"{fix.decision} ({'no label' if fix.after is None else shown(fix.after)})"


def _follow(slots: list[_Slot], fix: Fix, earlier: frozenset[str]) -> Outcome:
    if fix.decision == "skip":
        return Outcome(fix, "left", "left for later")
    if same_label(fix.before, fix.after):
        return Outcome(fix, "kept")
    if fix.before is None:
        return _add(slots, fix, earlier)
    alone = fix.who == NOBODY
    found = next((slot for slot in slots if same_label(slot.current, fix.before)), None)
    if found is not None:
        if alone and found.touched:
            return Outcome(fix, "left", "another decision about this label comes first")
        found.current, found.touched = fix.after, True
        return Outcome(fix, "applied")
    mended = next((slot for slot in slots if slot.touched and same_label(slot.original, fix.before)), None)
    if mended is not None:
        if same_label(mended.current, fix.after):
            return Outcome(fix, "applied")
        both = merged(fix.before, mended.current, fix.after)
        if both is None:
            return Outcome(fix, "left" if alone else "refused", "another decision changes this label in another way")
        mended.current = both
        return Outcome(fix, "applied")
    return _missing(slots, fix, earlier)


def _add(slots: list[_Slot], fix: Fix, earlier: frozenset[str]) -> Outcome:
    assert fix.after is not None
    if any(same_label(slot.current, fix.after) for slot in slots) or fix.id in earlier:
        return Outcome(fix, "already")
    slots.append(_Slot(-1, None, fix.after, touched=True))
    return Outcome(fix, "applied")


def _missing(slots: list[_Slot], fix: Fix, earlier: frozenset[str]) -> Outcome:
    """What a decision comes to whose label is not there."""
    assert fix.before is not None
    present = [slot.current for slot in slots if slot.current is not None]
    if fix.id in earlier or any(fix.after is not None and same_label(label, fix.after) for label in present):
        return Outcome(fix, "already")
    near = overlaps([fix.before], present)[0] if present else []
    place = max(range(len(present)), key=lambda place: float(near[place]), default=-1)
    if place >= 0 and near[place] >= _SAME_OBJECT:
        return Outcome(fix, "refused", f"{shown(fix.before)} is now {shown(present[place])}")
    if fix.after is None:
        return Outcome(fix, "already")
    return Outcome(fix, "refused", f"{shown(fix.before)} is not there any more")

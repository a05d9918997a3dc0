"""What a person did to the boxes of an image, as decisions: pure functions, whatever tool it was done in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from detframe.curation.fixes import Decision, Fix
from detframe.curation.handover.sent import Answer, ReturnedBox, ReturnedImage, SentBox
from detframe.curation.labels import best_pairs, overlaps, same_box, same_label
from detframe.data.label_queue import Kind, Label, Suggestion, suggestion_id


class Returned(NamedTuple):
    """Decisions about an image, and suggestions about which nothing was decided."""

    fixes: list[Fix]
    undecided: int


def decisions(
    returned: ReturnedImage, split: str, who: str, when: str, tool: str, hand_over: str, all_seen: bool
) -> Returned:
    """What came back of an image, as decisions.

    A box that was changed is a decision, and so is an answer. A box that is as it was drawn says that it is right where
    a person has finished the image, and nothing otherwise. Changes that nobody suggested become decisions too.

    Args:
        returned: The image.
        split: Its split.
        who: Reviewer.
        when: ISO 8601, UTC.
        tool: In words, for the reason of what nobody suggested.
        hand_over: What tells the hand-over from others, for the id of what nobody suggested.
        all_seen: A person has finished every image.
    """
    image, seen = returned.image, returned.seen or all_seen
    of_sent = pair(image.boxes, returned.boxes)
    fixes: list[Fix] = []
    undecided = 0

    def fix(about: Suggestion, decision: Decision, before: Label | None, after: Label | None, key: int | None) -> Fix:
        return Fix(
            about.id,
            decision,
            who,
            when,
            about.kind,
            about.reason,
            about.probability,
            split,
            image.file_name,
            image.sha256,
            key,
            before,
            after,
        )

    def unasked(before: Label | None, after: Label | None, key: int | None) -> Fix:
        kind = _kind(before, after)
        name = change_id(hand_over, kind, image.file_name, before, after)
        about = Suggestion(
            name, kind, image.image_id, image.file_name, key, before, after, 1.0, 0.0, f"changed in {tool}"
        )
        return fix(about, "edit", before, after, key)

    for place, box in enumerate(image.boxes):
        back = None if of_sent[place] is None else returned.boxes[of_sent[place] or 0]
        now = None if back is None else _snapped(back, box)
        key = None if box.labelled is None else box.key
        if not box.suggestions:
            if not same_label(now, box.labelled):
                fixes.append(unasked(box.labelled, now, key))
            continue
        settled, after = _settled(box, now, "undecided" if back is None else back.answer, seen)
        for suggestion in box.suggestions:
            if settled == "undecided":
                undecided += 1
                continue
            decision = "ambiguous" if settled == "ambiguous" else _decision(suggestion, after)
            fixes.append(fix(suggestion, decision, suggestion.before, after, key))
    known = {place for place in of_sent if place is not None}
    fixes += [unasked(None, back.label, None) for place, back in enumerate(returned.boxes) if place not in known]
    return Returned(fixes, undecided)


def withdrawn(
    found: Iterable[Fix], known: Iterable[Fix], back: Collection[tuple[str, str]], hand_over: str, when: str
) -> list[Fix]:
    """That changes are taken back which nobody suggested, and which are not in the result any more.

    A box that was moved once more is another such change, and one that was put back is none: neither replaces what an
    earlier result of the hand-over said.

    Args:
        found: Decisions of the result.
        known: Those that were taken before, in order of time.
        back: File name and reviewer of the images in the result.
        hand_over: What tells the hand-over from others, whose changes of the same images stay.
        when: ISO 8601, UTC.
    """
    still = {(fix.id, fix.who) for fix in found}
    last = {(fix.id, fix.who): fix for fix in known}
    return [
        fix._replace(decision="undo", when=when, after=fix.before)
        for one, fix in last.items()
        if fix.decision != "undo"
        and one not in still
        and (fix.file_name, fix.who) in back
        and fix.id == change_id(hand_over, fix.kind, fix.file_name, fix.before, fix.after)
    ]


def change_id(hand_over: str, kind: Kind, file_name: str, before: Label | None, after: Label | None) -> str:
    """Of a change that nobody suggested: the same in each result of a hand-over, and another in those of others."""
    return suggestion_id(kind, f"{hand_over} {file_name}", before, after)


def pair(sent: Sequence[SentBox], returned: Sequence[ReturnedBox]) -> list[int | None]:
    """Which returned box, by its place, each sent box is; None where it was deleted.

    Boxes are told apart by the key in a field of ours, then by place and class, then by a key that the tool may have
    given anew, and last by their overlap. Of boxes with one key, as of a copy made in the tool, the nearest is the one.
    """
    partner: list[int | None] = [None] * len(sent)
    iou = overlaps([box.drawn for box in sent], [box.label for box in returned])

    def take(candidates: Iterable[tuple[int, int]]) -> None:
        taken = {place for place in partner if place is not None}
        for ours, theirs in sorted(candidates, key=lambda both: -iou[both]):
            if partner[ours] is None and theirs not in taken:
                partner[ours] = theirs
                taken.add(theirs)

    both = [(i, j) for i in range(len(sent)) for j in range(len(returned))]
    take((i, j) for i, j in both if returned[j].certain and returned[j].key == sent[i].key)
    exact = [(i, j) for i, j in both if same_box(sent[i].drawn, returned[j].label)]
    take((i, j) for i, j in exact if sent[i].drawn.class_name == returned[j].label.class_name)
    take(exact)
    take((i, j) for i, j in both if returned[j].key == sent[i].key and iou[i, j] > 0)
    ours = [i for i, place in enumerate(partner) if place is None]
    theirs = [j for j in range(len(returned)) if j not in partner]
    pairs = best_pairs([sent[i].drawn for i in ours], [returned[j].label for j in theirs])
    take((ours[i], theirs[j]) for i, j in pairs)
    return partner


def _snapped(back: ReturnedBox, box: SentBox) -> Label:
    """The label that came back, with the exact box that it is to 0.01 px, and the flag where the tool lost it."""
    label = back.label if back.ignore_stated else back.label._replace(ignore=box.drawn.ignore)
    exact = [box.drawn, *([] if box.labelled is None else [box.labelled])]
    known = next((one for one in exact if same_box(one, label)), label)
    return label._replace(box=known.box)


def _settled(box: SentBox, now: Label | None, answer: Answer, seen: bool) -> tuple[Answer, Label | None]:
    """What was decided about a box, and the label that it is to be."""
    if now is None:
        return "accept", None
    if answer == "ambiguous":
        return "ambiguous", now._replace(ignore=True)
    if answer == "reject":
        return "reject", box.labelled
    if not same_label(now, box.drawn):
        return "accept", now
    if answer == "accept":  # what may have to go is drawn as it is labelled
        return "accept", None if box.suggestions[0].after is None else now
    return ("accept", now) if seen else ("undecided", None)


def _decision(suggestion: Suggestion, after: Label | None) -> Decision:
    if same_label(after, suggestion.after):
        return "accept"
    return "reject" if same_label(after, suggestion.before) else "edit"


def _kind(before: Label | None, after: Label | None) -> Kind:
    if before is None:
        return "missing"
    if after is None:
        return "spurious"
    return "wrong-class" if before.class_name != after.class_name else "bad-box"

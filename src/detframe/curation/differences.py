"""What two versions of a data set differ in: images by their content, labels by place; ids and order do not count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from detframe.curation.labels import best_pairs, labels_of_image, same_box, same_label, shown
from detframe.data.annotations import AnnotationIndex
from detframe.data.label_queue import Label

ImageChange = Literal["added", "removed", "renamed", "moved", "replaced"]
"""Only in the second; only in the first; of another name; in another split; of other content under its name."""

LabelChange = Literal["added", "removed", "class", "box", "class and box", "ignore", "not ignore"]
"""Only in the second; only in the first; another class; another place; both; an ignore box now; no longer one."""

LABEL_CHANGES: tuple[LabelChange, ...] = (
    "added",
    "removed",
    "class",
    "box",
    "class and box",
    "ignore",
    "not ignore",
)


class Version(NamedTuple):
    """A data set as it is compared."""

    splits: Mapping[str, AnnotationIndex]
    digests: Mapping[str, Sequence[bytes]]  # SHA-256 of the images, by split


class Place(NamedTuple):
    """An image by where it is."""

    split: str
    image: int  # its position


class ChangedLabel(NamedTuple):
    """One label that differs."""

    change: LabelChange
    before: Label | None
    after: Label | None


class Pair(NamedTuple):
    """An image and what it is in the other version."""

    before: Place | None
    after: Place | None
    changes: tuple[ImageChange, ...]
    labels: tuple[ChangedLabel, ...]  # of an image that is in both


def compare(first: Version, second: Version) -> list[Pair]:
    """Every image of either version that differs or whose labels do, in the order of the first, then of the second.

    Labels that are the same to 0.01 px, in class and in flag are paired first; then those that are one object by their
    overlap.
    """
    pairs = []
    for before, after in pair_images(first, second):
        changes = _image_changes(before, after, first, second)
        labels: tuple[ChangedLabel, ...] = ()
        if before is not None and after is not None:
            ours = labels_of_image(first.splits[before.split], before.image)
            theirs = labels_of_image(second.splits[after.split], after.image)
            labels = changed_labels(ours, theirs)
        if changes or labels:
            pairs.append(Pair(before, after, changes, labels))
    return pairs


def pair_images(first: Version, second: Version) -> list[tuple[Place | None, Place | None]]:
    """Which image is which: by content, then of what is left by split and name.

    Of images with the same content those of the same split and name are paired first, then those of the same name.
    """
    ours, theirs = _places(first), _places(second)
    partner: dict[Place, Place] = {}
    taken: set[Place] = set()
    for keys in (
        ("content", "split", "name"),
        ("content", "name"),
        ("content", "split"),
        ("content",),
        ("split", "name"),
    ):
        waiting: dict[tuple[object, ...], list[Place]] = defaultdict(list)
        for place, facts in theirs.items():
            if place not in taken:
                waiting[tuple(facts[key] for key in keys)].append(place)
        for place, facts in ours.items():
            found = waiting.get(tuple(facts[key] for key in keys), [])
            if place not in partner and found:
                partner[place] = found.pop(0)
                taken.add(partner[place])
    pairs: list[tuple[Place | None, Place | None]] = [(place, partner.get(place)) for place in ours]
    return pairs + [(None, place) for place in theirs if place not in taken]


def changed_labels(first: Sequence[Label], second: Sequence[Label]) -> tuple[ChangedLabel, ...]:
    """What labels of one image became."""
    ours, theirs = list(first), []
    for label in second:
        same = next((place for place, other in enumerate(ours) if same_label(label, other)), -1)
        if same >= 0:
            del ours[same]
        else:
            theirs.append(label)
    matched = dict(best_pairs(ours, theirs))
    found = [
        ChangedLabel("removed", label, None)
        if place not in matched
        else ChangedLabel(_label_change(label, theirs[matched[place]]), label, theirs[matched[place]])
        for place, label in enumerate(ours)
    ]
    known = set(matched.values())
    found += [ChangedLabel("added", None, label) for place, label in enumerate(theirs) if place not in known]
    return tuple(found)


def _places(version: Version) -> dict[Place, dict[str, object]]:
    return {
        Place(split, image): {"content": version.digests[split][image], "split": split, "name": name}
        for split, index in version.splits.items()
        for image, name in enumerate(index.file_names)
    }


def _image_changes(
    before: Place | None, after: Place | None, first: Version, second: Version
) -> tuple[ImageChange, ...]:
    if before is None:
        return ("added",)
    if after is None:
        return ("removed",)
    found: list[ImageChange] = []
    if name_of(before, first) != name_of(after, second):
        found.append("renamed")
    if before.split != after.split:
        found.append("moved")
    if first.digests[before.split][before.image] != second.digests[after.split][after.image]:
        found.append("replaced")
    return tuple(found)


def name_of(place: Place, version: Version) -> str:
    """File name of an image."""
    return version.splits[place.split].file_names[place.image]


def in_words(label: ChangedLabel) -> str:
    """A changed label as ``nut [1, 2, 3, 4] -> bolt [1, 2, 3, 4]``."""
    if label.before is None:
        return f"added {shown(label.after)}" if label.after is not None else ""
    return f"removed {shown(label.before)}" if label.after is None else f"{shown(label.before)} -> {shown(label.after)}"


def _label_change(before: Label, after: Label) -> LabelChange:
    """What is different of a label that is one object; that it became an ignore box says more than where it moved."""
    if before.ignore != after.ignore:
        return "ignore" if after.ignore else "not ignore"
    if before.class_name == after.class_name:
        return "box"
    return "class" if same_box(before, after) else "class and box"

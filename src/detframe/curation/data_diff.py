"""The verb ``data-diff``: what two versions of a data set differ in, in words and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from detframe.curation.diff_page import write_diff_page
from detframe.curation.differences import LABEL_CHANGES, ChangedLabel, Pair, Version, compare, in_words, name_of
from detframe.curation.labels import labels_of_image
from detframe.data.annotations import DataError, require_sound
from detframe.data.label_queue import json_of_label
from detframe.data.sources import read_splits
from detframe.refusals import refuse

_NAMED = 10


class Counts(NamedTuple):
    """Changes of images and labels, by split of the second version, or of the first for what is only there."""

    images: dict[str, dict[str, int]]  # by split, then by change
    labels: dict[str, dict[str, dict[str, int]]]  # by split, by class (``nut -> bolt`` where it changes), by change


def data_diff(a: Path, b: Path, out: Path | None = None, pictures: int = 100, json: bool = False) -> int:
    """Show what two versions of a data set differ in, whatever their formats.

      python -m detframe data-diff OLD NEW --out difference

    Images are the same if their content is, whatever their names; ids and the order of labels do not count. Labels are
    the same within 0.01 px; others are one label that changed from an IoU of 0.5 on, and of one class from 0.1.

    With --out, OUT/index.html shows every changed image before and after, and works offline.

    Exit code: 0 when there is no difference; 1 when there is; 2 when a data set cannot be read.

    Args:
        a: The older data set, as `detframe check` takes it.
        b: The newer one.
        out: Folder for index.html. An index.html in it is replaced.
        pictures: The most images that are shown there, those with the most changes first.
        json: Print all changes as one JSON document and nothing else.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        with Console(stderr=True, quiet=json).status("Reading both data sets"):
            first, second = _read(a), _read(b)
        pairs = compare(first, second)
        counts = count(pairs, first, second)
        if out is not None:
            write_diff_page(out / "index.html", pairs, first, second, (str(a), str(b)), words(counts), pictures)
    except (DataError, OSError) as error:
        return refuse(error, json, out=out)
    if json:
        print(dumps(_document(a, b, first, second, pairs, counts)))
    else:
        _print(console, pairs, first, second, counts)
        if out is not None:
            console.print(f"Written to {out / 'index.html'}")
    return 1 if pairs or _classes(first) != _classes(second) else 0


def count(pairs: Sequence[Pair], first: Version, second: Version) -> Counts:
    """How many images and labels changed in which way; the labels of an image that came or went count with it."""
    images: dict[str, dict[str, int]] = {}
    labels: dict[str, dict[str, dict[str, int]]] = {}
    for pair in pairs:
        place = pair.after or pair.before
        assert place is not None
        for change in pair.changes:
            of_split = images.setdefault(place.split, {})
            of_split[change] = of_split.get(change, 0) + 1
        for label in labels_of_pair(pair, first, second):
            of_class = labels.setdefault(place.split, {}).setdefault(_class_of(label), {})
            of_class[label.change] = of_class.get(label.change, 0) + 1
    return Counts(images, labels)


def labels_of_pair(pair: Pair, first: Version, second: Version) -> list[ChangedLabel]:
    """Changed labels of an image, all of them where it came or went."""
    if pair.after is None and pair.before is not None:
        gone = labels_of_image(first.splits[pair.before.split], pair.before.image)
        return [ChangedLabel("removed", label, None) for label in gone]
    if pair.before is None and pair.after is not None:
        new = labels_of_image(second.splits[pair.after.split], pair.after.image)
        return [ChangedLabel("added", None, label) for label in new]
    return list(pair.labels)


def words(counts: Counts) -> list[str]:
    """The counts as sentences, one for each split and change."""
    found = []
    for split in dict.fromkeys([*counts.images, *counts.labels]):
        of_images = counts.images.get(split, {})
        if of_images:
            found.append(f"{split}: " + ", ".join(f"{number} images {change}" for change, number in of_images.items()))
        of_labels = counts.labels.get(split, {})
        for change in LABEL_CHANGES:
            numbers = {name: of_class[change] for name, of_class in of_labels.items() if change in of_class}
            if numbers:
                parts = ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()))
                found.append(f"{split}: {sum(numbers.values())} labels {_VERBS[change]}: {parts}")
    return found


_VERBS = {
    "added": "added",
    "removed": "removed",
    "class": "of another class",
    "box": "of another box",
    "class and box": "of another class and box",
    "ignore": "made ignore boxes",
    "not ignore": "no longer ignore boxes",
}


def _read(data: Path) -> Version:
    splits = {split: require_sound(reading) for split, reading in read_splits(data).items()}
    return Version(splits, {split: index.image_digests() for split, index in splits.items()})


def _class_of(label: ChangedLabel) -> str:
    names = dict.fromkeys(one.class_name for one in (label.before, label.after) if one is not None)
    return " -> ".join(names)


def _classes(version: Version) -> dict[str, list[str]]:
    return {split: index.class_names for split, index in version.splits.items()}


def _document(
    a: Path, b: Path, first: Version, second: Version, pairs: Sequence[Pair], counts: Counts
) -> dict[str, Any]:
    hashes = [
        {split: index.hashes(version.digests[split]) for split, index in version.splits.items()}
        for version in (first, second)
    ]
    images = [
        {
            "before": pair.before and {"split": pair.before.split, "file_name": name_of(pair.before, first)},
            "after": pair.after and {"split": pair.after.split, "file_name": name_of(pair.after, second)},
            "changes": pair.changes,
            "labels": [
                {"change": one.change, "before": json_of_label(one.before), "after": json_of_label(one.after)}
                for one in labels_of_pair(pair, first, second)
            ],
        }
        for pair in pairs
    ]
    return {
        "a": {"data": str(a), "splits": hashes[0], "class_names": _classes(first)},
        "b": {"data": str(b), "splits": hashes[1], "class_names": _classes(second)},
        "image_changes": counts.images,
        "label_changes": counts.labels,
        "images": images,
    }


def _print(console: Console, pairs: Sequence[Pair], first: Version, second: Version, counts: Counts) -> None:
    if _classes(first) != _classes(second):
        console.print(f"The classes differ: {_classes(first)} and {_classes(second)}")
    if not pairs:
        total = sum(len(index) for index in second.splits.values())
        console.print(f"No difference in {total} images and their labels")
        return
    for sentence in words(counts):
        console.print(sentence)
    for title, wanted in (("labels", True), ("images", False)):
        chosen = [pair for pair in pairs if bool(pair.labels) == wanted and (wanted or pair.changes)]
        if not chosen:
            continue
        table = Table("split", "image", "what", title=f"{len(chosen)} images whose {title} differ" if wanted else None)
        for pair in sorted(chosen, key=lambda pair: -len(pair.labels))[:_NAMED]:
            place, version = (pair.after, second) if pair.after is not None else (pair.before, first)
            assert place is not None
            table.add_row(place.split, name_of(place, version), "\n".join(_lines(pair, first)))
        if len(chosen) > _NAMED:
            table.add_row("", f"and {len(chosen) - _NAMED} more", "all are in --json, pictures in --out")
        console.print(table)


def _lines(pair: Pair, first: Version) -> list[str]:
    was = "" if pair.before is None else f", was {name_of(pair.before, first)} in {pair.before.split}"
    found = [" and ".join(pair.changes) + (was if {"renamed", "moved"} & set(pair.changes) else "")]
    changes = Counter(label.change for label in pair.labels)
    if len(pair.labels) > _NAMED:
        found += [f"{number} {_VERBS[change]}" for change, number in changes.items()]
    else:
        found += [in_words(label) for label in pair.labels]
    return [line for line in found if line]

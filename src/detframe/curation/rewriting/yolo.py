"""YOLO data sets with lines of some text files changed, and all others as they were."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detframe.curation.labels import size_of
from detframe.curation.mending import Edit
from detframe.curation.rewriting.files import Edits, Version, top_folder
from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.label_queue import Label
from detframe.data.yolo import label_path

_OWN_KEY = "detframe"


def write_yolo_version(indices: Mapping[str, AnnotationIndex], edits: Edits, version: Version) -> None:
    """Write all splits of a YOLO data set; text files without a change are copied.

    `path` is left out of the new `data.yaml`: it would point to the old folder.

    Args:
        indices: Splits as they are read.
        edits: Changes of their labels.
        version: Where to.

    Raises:
        DataError: An image lies outside the data set's folder, or is named by an absolute path.
    """
    source = next(iter(indices.values())).source
    content = yaml.safe_load(source.read_text(encoding="utf-8"))
    root = _root(source, content, indices)
    folders = {_OWN_KEY}
    for split, index in indices.items():
        paths = [_absolute(index.path(image)) for image in range(len(index))]
        for path in paths:
            folders |= {top_folder(file.relative_to(root)) for file in (path, label_path(path))}
            version.link(path, path.relative_to(root))
        _write_labels(
            index, split, paths, {i: found for i, found in edits.get(split, {}).items() if found}, version, root
        )
    for entry in _entries(content, indices):
        if Path(entry).suffix == ".txt" and (root / entry).is_file():
            version.copy(root / entry, Path(os.path.normpath(entry)))
    if (source.parent / _OWN_KEY).is_dir():
        version.copy_tree(source.parent / _OWN_KEY, Path(_OWN_KEY))
    version.write(Path(source.name), re.sub(rb"(?m)^path:.*\r?\n?", b"", source.read_bytes()))
    if source.parent.resolve() == root.resolve():
        version.bring_others(root, folders)


def sayable_in_line(label: Label, width: int, height: int) -> bool:
    """Whether a line can say a label of an image of this size: no ignore box, and none that leaves the image."""
    return _Frame([], {}, width, height).can_say(label)


def _write_labels(
    index: AnnotationIndex,
    split: str,
    paths: Sequence[Path],
    edits: Mapping[int, list[Edit]],
    version: Version,
    root: Path,
) -> None:
    """Write the text files of a split, and the notes on them where there are."""
    notes = _notes(index.source, split)
    new_ids = count(1 + max((identity for note in notes.values() for identity in _ids(note)), default=0))
    classes = _class_numbers(index)
    for image, path in enumerate(paths):
        file, name = label_path(path), index.file_names[image]
        if image not in edits:
            if file.exists():
                version.copy(file, file.relative_to(root))
            continue
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        height, width = size_of(index, image)
        frame = _Frame(index.boxes[index.rows(image)].tolist(), classes, width, height)
        lines, note = _edited(text, notes.get(name), edits[image], frame, new_ids)
        version.write(file.relative_to(root), lines.encode())
        if note is not None:
            notes[name] = note
    if notes and edits:
        version.write(Path(_OWN_KEY) / f"{split}.json", json.dumps(notes).encode())


def _root(source: Path, content: Mapping[str, Any], indices: Mapping[str, AnnotationIndex]) -> Path:
    """The folder that everything lies in."""
    images = [_absolute(index.path(image)) for index in indices.values() for image in range(len(index))]
    stated = str(content.get("path") or ".")
    if not any(Path(entry).is_absolute() for entry in _entries(content, indices)):
        for folder in (source.parent, source.parent / stated, Path(stated)):
            place = _absolute(folder)
            if all(image.is_relative_to(place) for image in images):
                return place
    raise DataError(
        f"{source}: its images are named by absolute paths or lie outside its folder, so that a new version would use "
        "the old files. Bring all of it into one folder with `detframe convert`."
    )


def _absolute(path: Path) -> Path:
    """The path from the root, without following links: a version's images may be such."""
    return Path(os.path.normpath(path.absolute()))


def _entries(content: Mapping[str, Any], splits: Iterable[str]) -> list[str]:
    """Folders and lists that the splits are said to be in."""
    values = [content[split] for split in splits if split in content]
    return [str(entry) for value in values for entry in (value if isinstance(value, list) else [value])]


def _class_numbers(index: AnnotationIndex) -> dict[str, int]:
    """Numbers of the classes in the text files, by name."""
    names = yaml.safe_load(index.source.read_text(encoding="utf-8"))["names"]
    numbers = sorted(int(number) for number in (names if isinstance(names, dict) else range(len(names))))
    return dict(zip(index.class_names, numbers, strict=True))


def _notes(source: Path, split: str) -> dict[str, dict[str, Any]]:
    """What `detframe convert` noted about the images of a split, by file name."""
    file = source.parent / _OWN_KEY / f"{split}.json"
    notes: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return notes


class _Frame(NamedTuple):
    """What the lines of an image are written with."""

    boxes: list[list[float]]  # xyxy in pixels, as they are read
    classes: Mapping[str, int]  # numbers in the text files
    width: int
    height: int

    def numbers(self, label: Label) -> tuple[float, float, float, float]:
        """Centre and sides as shares of the image."""
        x1, y1, x2, y2 = label.box
        return (
            (x1 + x2) / 2 / self.width,
            (y1 + y2) / 2 / self.height,
            (x2 - x1) / self.width,
            (y2 - y1) / self.height,
        )

    def can_say(self, label: Label) -> bool:
        """Whether a line can say it: no ignore box, and all numbers in 0..1."""
        return not label.ignore and all(0 <= number <= 1 for number in self.numbers(label))

    def line(self, label: Label) -> str:
        """Its line."""
        return " ".join([str(self.classes[label.class_name]), *(f"{number:.8f}" for number in self.numbers(label))])


def _ids(note: dict[str, Any]) -> list[int]:
    return [*note.get("annotation_ids", ()), *(box["id"] for box in note.get("boxes", ()))]


class _Line(NamedTuple):
    """A line of a text file and what the note says of it."""

    text: str
    id: int | None
    area: float | None


def _edited(
    text: str, note: dict[str, Any] | None, edits: Iterable[Edit], frame: _Frame, new_ids: Iterator[int]
) -> tuple[str, dict[str, Any] | None]:
    """The new text of an image, and the new note where there was one.

    Args:
        text: The old text.
        note: The old note.
        edits: Changes; the boxes of the note come after those of the text.
        frame: Of the image.
        new_ids: For boxes that are added.
    """
    words = [line for line in text.splitlines() if line.split()]
    known = note or {}
    ids, areas = known.get("annotation_ids", ()), known.get("areas", ())
    if zlib.crc32(text.encode()) != known.get("text", 0) or len(ids) != len(
        words
    ):  # changed since, as the reader has it
        ids, areas = [None] * len(words), ()
    lines = {i: _Line(words[i], ids[i], areas[i] if areas else None) for i in range(len(words))}
    noted = {len(words) + i: box for i, box in enumerate(known.get("boxes", ()))}
    for edit in edits:
        line, box, after = lines.pop(edit.place, None), noted.pop(edit.place, None), edit.after
        if after is None:
            continue
        if line is not None and frame.boxes[edit.place] == list(after.box):
            numbers = line.text.split(maxsplit=1)[1]
            lines[edit.place] = line._replace(text=f"{frame.classes[after.class_name]} {numbers}")
            continue
        x1, y1, x2, y2 = after.box
        area = (x2 - x1) * (y2 - y1)
        if frame.can_say(after):
            identity = line.id if line is not None else box["id"] if box is not None else next(new_ids)
            place = edit.place if line is not None else len(lines) + len(frame.boxes)
            lines[place] = _Line(frame.line(after), identity, area if areas else None)
        else:
            assert box is not None, "only a box of the note is refused by a line"
            changed = {"class": frame.classes[after.class_name], "xyxy": list(after.box), "ignore": after.ignore}
            noted[edit.place] = {**box, **changed, "area": area}
    rows = [lines[place] for place in sorted(lines)]
    written = "".join(f"{row.text}\n" for row in rows)
    if note is None:
        return written, None
    kept = {key: value for key, value in note.items() if key not in ("annotation_ids", "areas", "boxes")}
    kept["text"] = zlib.crc32(written.encode())
    if rows and all(row.id is not None for row in rows):
        kept["annotation_ids"] = [row.id for row in rows]
        kept |= {"areas": [row.area for row in rows]} if areas else {}
    return written, kept | ({"boxes": [noted[place] for place in sorted(noted)]} if noted else {})

"""Read and write YOLO: ``data.yaml`` with folders of images, and a text file of boxes for each image.

A line is ``class cx cy w h``, divided by the size of the image, which the reader takes from the image's header. A line
with a polygon (``class x1 y1 x2 y2 x3 y3 ...``) gives the box around it.

The format has no ids, ignore boxes, areas and free columns, and other tools discard all boxes of an image when one of
them has a number outside 0..1. The writer keeps what it cannot say under the key ``detframe`` of ``data.yaml`` and in
``detframe/<split>.json``, both of which other tools pass over. Boxes there are in pixels and are in no text file.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from detframe.data.annotations import (
    IMAGE_SUFFIXES,
    AnnotationIndex,
    Category,
    DataError,
    Fault,
    Reading,
    build_index,
    number_missing,
    repeated,
    repeated_file_faults,
)
from detframe.data.yaml_files import read_yaml

_OWN_KEY = "detframe"
_STANDARD_SPLITS = ("train", "val", "test")
_PIXELS_ABOVE = 10.0  # no box is ten times as large as its image: such a number is a pixel


def yolo_splits(path: Path) -> list[str]:
    """Names of the splits of a ``data.yaml``.

    Raises:
        DataError: The file cannot be read.
    """
    return list(_entries(_load(path)))


def read_yolo(path: Path, split: str) -> Reading:
    """Read one split of a YOLO data set.

    An image without a text file is a negative. Category ids are the class numbers, image ids the order of the file
    names from 1, where no note of our writer says otherwise.

    Args:
        path: The ``data.yaml``.
        split: One of :func:`yolo_splits`.

    Raises:
        DataError: The file cannot be read, or names no images for the split.
    """
    content = _load(path)
    image_root, file_names = _images(path, content, split)
    notes = _notes(path, split)
    # Our writer knows in which order the images were; those that came later follow by name.
    order = {name: position for position, name in enumerate(notes)}
    file_names.sort(key=lambda name: (order.get(name, len(order)), name))
    table = _Table(path, image_root, _categories(path, content))
    for name in file_names:
        table.add(name, notes.get(name, {}))
    return table.reading()


def write_yolo(splits: Mapping[str, AnnotationIndex], root: Path) -> None:
    """Write splits into a YOLO folder, without the images.

    ``path`` is not written into ``data.yaml``: then every tool takes the folder that the file is in. Eight decimals
    hold 0.0001 px at 10,000 px.

    Args:
        splits: Indices by split name, with the same classes and known sizes. The names of their files are relative
            to ``images/<split>`` and differ in more than the ending.
        root: Folder to write ``data.yaml``, ``labels`` and ``detframe`` into.
    """
    categories = next(iter(splits.values())).categories
    folders = {split: f"images/{split}" for split in splits}
    own: dict[str, Any] = {"category_ids": [category.id for category in categories]}
    own["splits"] = {split: folder for split, folder in folders.items() if split not in _STANDARD_SPLITS}
    content: dict[str, Any] = {split: folder for split, folder in folders.items() if split in _STANDARD_SPLITS}
    content["names"] = {label: category.name for label, category in enumerate(categories)}
    content[_OWN_KEY] = own
    (root / _OWN_KEY).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")
    for split, index in splits.items():
        notes = {}
        sayable = sayable_in_yolo(index)
        for position, name in enumerate(index.file_names):
            lines, notes[name] = _to_lines(index, position, sayable)
            path = label_path(root / folders[split] / name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(lines, encoding="utf-8")
        (root / _OWN_KEY / f"{split}.json").write_text(json.dumps(notes), encoding="utf-8")


def sayable_in_yolo(index: AnnotationIndex) -> NDArray[np.bool_]:
    """Which boxes ``[N]`` a YOLO line can say: no ignore box, and all of its numbers in 0..1."""
    sizes = index.image_sizes[index.image_of_box()]
    numbers = _normalised(index.boxes, sizes)
    return ((numbers >= 0) & (numbers <= 1)).all(axis=1) & ~index.ignore


def label_path(image: Path) -> Path:
    """Text file of an image: the last folder ``images`` in its path becomes ``labels``."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


@dataclass
class _Table:
    """Rows of images and boxes as the text files are read."""

    source: Path
    image_root: Path
    classes: dict[int, Category]  # by the number in the text files
    file_names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    image_ids: list[int | None] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    image_of_box: list[int] = field(default_factory=list)
    boxes: list[Sequence[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    annotation_ids: list[int | None] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    uncarried: Counter[str] = field(default_factory=Counter)

    @cached_property
    def label_by_class(self) -> dict[int, int]:
        """Labels by the number in the text files."""
        return {number: label for label, number in enumerate(sorted(self.classes))}

    def add(self, name: str, note: dict[str, Any]) -> None:
        """Read the boxes of an image; ``note`` is what our writer put down about it."""
        self.file_names.append(name)
        self.image_ids.append(note.get("id"))
        self.metadata.append(note.get("metadata", {}))
        path = label_path(self.image_root / name)
        text = self._text(path)
        height, width = note["size"] if "size" in note else self._measure(name) if text else (0, 0)
        self.sizes.append((height, width))
        before = len(self.boxes)
        if width and height:
            for number, line in enumerate(text.splitlines(), start=1):
                self._add_line(line, f"line {number}", path, (width, height))
        added = len(self.boxes) - before
        ids, areas = note.get("annotation_ids", ()), note.get("areas", ())
        if zlib.crc32(text.encode()) != note.get("text", 0) or len(ids) != added:
            if areas:
                message = "was changed after its conversion; the areas noted then are replaced by those of the boxes"
                self.faults.append(Fault("stale-note", "warning", str(path), "", message))
            ids, areas = (), ()
        self.annotation_ids += ids or [None] * added
        self.areas += areas or [np.nan] * added
        for box in note.get("boxes", ()):
            if box["class"] not in self.label_by_class:
                message = f"its note has a box of class {box['class']}, which {self.source} does not name; add it there"
                self.faults.append(Fault("unknown-class", "error", str(path), "", message))
                continue
            self._add_box(box["xyxy"], box["class"], box["ignore"])
            self.areas.append(box["area"])
            self.annotation_ids.append(box["id"])

    def _add_line(self, line: str, item: str, path: Path, size: tuple[int, int]) -> None:
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            numbers = [np.nan]
        if not numbers:
            return
        problem = _problem(numbers)
        if problem is None and int(numbers[0]) not in self.label_by_class:
            known = ", ".join(map(str, list(self.label_by_class)[:20]))
            problem = "unknown-class", f"has the class {numbers[0]:g}; {self.source} names {known}; add it there"
        if problem is not None:
            kind, message = problem
            self.faults.append(Fault(kind, "error", str(path), item, f"{line.strip()[:80]!r} {message}"))
            return
        if len(numbers) > 5:
            self.uncarried["annotations: polygon"] += 1
        self._add_box(_corners(numbers[1:], size), int(numbers[0]), False)

    def _add_box(self, box: Sequence[float], number: int, ignore: bool) -> None:
        self.image_of_box.append(len(self.file_names) - 1)
        self.boxes.append(box)
        self.labels.append(self.label_by_class[number])
        self.ignore.append(ignore)

    def _text(self, path: Path) -> str:
        """Lines of an image; none where it has no text file, which makes it a negative."""
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            self.faults.append(Fault("malformed", "error", str(path), "", f"cannot be read ({error}); write it again"))
            return ""

    def _measure(self, name: str) -> tuple[int, int]:
        """(height, width) of an image file, 0 where it cannot be read and so its boxes cannot either."""
        from detframe.data.images import ImageError, image_size  # loads torch, which takes seconds

        path = self.image_root / name
        try:
            return image_size(path)
        except ImageError as error:
            kind = "unreadable-image" if path.is_file() else "missing-image"
            self.faults.append(Fault(kind, "error", str(path), "", str(error).removeprefix(f"{path}: ")))
            return 0, 0

    def reading(self) -> Reading:
        """The index of all rows, and what was wrong."""
        image_ids = number_missing(self.image_ids)
        for position in repeated(image_ids).tolist():
            message = f"image {image_ids[position]} is noted twice; number the images anew"
            path = self.image_root / self.file_names[position]
            self.faults.append(Fault("duplicate-id", "error", str(path), f"image {image_ids[position]}", message))
        self.faults += repeated_file_faults(self.source, self.file_names, image_ids)
        index = build_index(
            source=self.source,
            image_root=self.image_root,
            categories=[self.classes[number] for number in self.label_by_class],
            image_ids=image_ids,
            file_names=self.file_names,
            image_sizes=np.array(self.sizes, dtype=np.int64),
            image_of_box=np.array(self.image_of_box, dtype=np.int64),
            boxes=np.array(self.boxes, dtype=np.float64),
            labels=np.array(self.labels, dtype=np.int64),
            ignore=np.array(self.ignore, dtype=np.bool_),
            areas=np.array(self.areas, dtype=np.float64),
            annotation_ids=number_missing(self.annotation_ids),
            metadata=self.metadata,
            annotation_files=[label_path(self.image_root / name) for name in self.file_names],
        )
        return Reading(index, self.faults, self.uncarried)


def _problem(numbers: Sequence[float]) -> tuple[str, str] | None:
    """Kind and message of what is wrong with the numbers of a line."""
    if (len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0)) or not float(numbers[0]).is_integer():
        return "malformed", "is neither `class cx cy w h` nor a class and a polygon; correct it"
    if not np.isfinite(numbers).all():
        return "not-a-number", "has a number that is not finite; correct it"
    if max(map(abs, numbers[1:])) > _PIXELS_ABOVE:
        return "not-normalised", "is in pixels; divide by the width and height of the image"
    return None


def _corners(numbers: Sequence[float], size: tuple[int, int]) -> Sequence[float]:
    """The xyxy box in pixels of a line's normalised numbers; ``size`` is (width, height)."""
    width, height = size
    if len(numbers) == 4:
        cx, cy, w, h = numbers
        return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height


def _normalised(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """``cx cy w h`` ``[N, 4]`` as shares of the images' sizes ``[N, 2]`` (height, width)."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    scale = np.tile(sizes[:, ::-1], 2)
    return np.concatenate([centres, sides], axis=1) / scale + 0.0  # the sum makes -0.0 positive


def _to_lines(index: AnnotationIndex, position: int, sayable: NDArray[np.bool_]) -> tuple[str, dict[str, Any]]:
    """The text file of an image, and the note of all that it cannot say."""
    rows = np.arange(index.offsets[position], index.offsets[position + 1])
    said, unsaid = rows[sayable[rows]], rows[~sayable[rows]]
    size = index.image_sizes[position]
    numbers = _normalised(index.boxes[said], np.tile(size, (len(said), 1)))
    lines = "".join(
        f"{label} {cx:.8f} {cy:.8f} {w:.8f} {h:.8f}\n"
        for label, (cx, cy, w, h) in zip(index.labels[said].tolist(), numbers.tolist(), strict=True)
    )
    note: dict[str, Any] = {
        "id": int(index.image_ids[position]),
        "size": size.tolist(),
        "text": zlib.crc32(lines.encode()),
    }
    if index.metadata and index.metadata[position]:
        note["metadata"] = index.metadata[position]
    if len(said):
        note["annotation_ids"] = index.annotation_ids[said].tolist()
        sides = index.boxes[said, 2:] - index.boxes[said, :2]
        if (np.abs(index.areas[said] - sides[:, 0] * sides[:, 1]) > 0.01).any():
            note["areas"] = index.areas[said].tolist()
    if len(unsaid):
        note["boxes"] = [
            {
                "class": int(index.labels[row]),
                "xyxy": index.boxes[row].tolist(),
                "ignore": bool(index.ignore[row]),
                "area": float(index.areas[row]),
                "id": int(index.annotation_ids[row]),
            }
            for row in unsaid.tolist()
        ]
    return lines, note


def _load(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get(_OWN_KEY, {}), dict):
        raise DataError(f"{path}: is no YOLO data set. It needs `names`, and `train`, `val` or `test`.")
    return content


def _entries(content: dict[str, Any]) -> dict[str, Any]:
    """Where the images of each split are: a folder, a list in a text file, or several of these."""
    own = content.get(_OWN_KEY, {}).get("splits") or {}
    return {split: content[split] for split in _STANDARD_SPLITS if content.get(split)} | own


def _categories(path: Path, content: dict[str, Any]) -> dict[int, Category]:
    """Classes by their number in the text files."""
    names = content.get("names") or {}
    try:
        numbered = dict(names if isinstance(names, dict) else enumerate(names))
        by_number = {int(number): str(name) for number, name in numbered.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: `names` is no list of classes and no mapping of numbers to them.") from error
    ids = content.get(_OWN_KEY, {}).get("category_ids", sorted(by_number))
    count = len(set(by_number.values()))
    if count == 0 or count < len(by_number) or content.get("nc", count) != count:
        raise DataError(f"{path}: `names` is empty, has a name twice, or other than `nc` of them. Correct it.")
    if len(ids) != len(by_number):
        raise DataError(f"{path}: `detframe.category_ids` has {len(ids)} ids for {len(by_number)} names. Remove it.")
    return {number: Category(int(ids[label]), by_number[number]) for label, number in enumerate(sorted(by_number))}


def _notes(path: Path, split: str) -> dict[str, dict[str, Any]]:
    """What our writer noted about the images of a split, by file name."""
    file = path.parent / _OWN_KEY / f"{split}.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: is no valid JSON ({error}). Convert the data set again.") from error
    if not isinstance(content, dict) or not all(isinstance(note, dict) for note in content.values()):
        raise DataError(f"{file}: holds no notes by file name. Convert the data set again.")
    return content


def _images(path: Path, content: dict[str, Any], split: str) -> tuple[Path, list[str]]:
    """The folder that the images of a split are in, and their names in it."""
    entries = _entries(content).get(split)
    if entries is None:
        raise DataError(f"{path}: has no split {split!r}; there are {', '.join(_entries(content))}.")
    stated = str(content.get("path") or ".")
    # Files move to other machines, and their `path` with them: the folder of the file itself is the last resort.
    bases = [base for base in (path.parent / stated, Path(stated), path.parent) if base.is_dir()]
    places = [_resolve(path, str(entry), bases) for entry in (entries if isinstance(entries, list) else [entries])]
    if len(places) == 1 and places[0].is_dir():
        return places[0], [file.relative_to(places[0]).as_posix() for file in _image_files(places[0])]
    found = [file for place in places for file in (_image_files(place) if place.is_dir() else _listed(place, bases))]
    base = bases[0]
    return base, [str(file.relative_to(base)) if file.is_relative_to(base) else str(file.absolute()) for file in found]


def _resolve(path: Path, entry: str, bases: Sequence[Path]) -> Path:
    """The folder or file of an entry; Roboflow writes ``../train/images`` for the ``train/images`` beside the file."""
    for candidate in (entry, entry.removeprefix("../")):
        for base in bases:
            if (base / candidate).exists():
                return base / candidate
    looked_in = ", ".join(str(base / entry) for base in bases)
    raise DataError(f"{path}: the images {entry!r} are not there; looked for {looked_in}. Correct the path.")


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)


def _listed(place: Path, bases: Sequence[Path]) -> list[Path]:
    """Images of a text file with a path in each line, or the one image that the place is."""
    if place.suffix.lower() != ".txt":
        return [place]
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    roots = [place.parent, *bases]
    root = next((root for root in roots if any((root / line).is_file() for line in lines[:20])), place.parent)
    return [root / line for line in lines]

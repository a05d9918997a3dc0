"""Read and write Pascal VOC: an XML file per image in ``Annotations``, lists of them in ``ImageSets/Main``.

Coordinates are taken as they are written. The devkit of 2007 counted pixels from 1 to the last one included; LabelImg,
CVAT and the data sets made with them write continuous coordinates from 0, and a shift would move all of those.

The format has no numbers for classes, images and boxes, no areas and no free columns. The writer keeps them in
``categories.json`` and in a tag of its own, which other tools pass over: ``<detframe id="7" metadata="{...}"/>`` of an
image and ``<detframe id="9" area="12.5"/>`` of an object.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np

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

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_PER_CLASS_LINE = re.compile(r"\S+\s+(-1|0|1)")
_NOTHING = {"pose": ("", "Unspecified"), "truncated": ("", "0"), "occluded": ("", "0")}
_OWN_TAG = "detframe"
_KNOWN_TAGS = frozenset({"name", "difficult", "bndbox", _OWN_TAG})


def voc_splits(root: Path) -> list[str]:
    """Names of the splits of a VOC folder: the files of ``ImageSets/Main``, or ``all`` where there are none.

    ``trainval`` is left out where both of its parts are there, and so are the lists per class (``cat_train.txt``).
    """
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    names = [path.stem for path in lists if not _is_per_class(path)]
    if {"train", "val", "trainval"} <= set(names):
        names.remove("trainval")
    return names or ["all"]


def read_voc(root: Path, split: str) -> Reading:
    """Read one split of a VOC folder.

    Classes are those of ``categories.json`` (a list of id and name) or ``labels.txt`` (a name per line) in the root;
    where there is neither, all names in ``Annotations`` in alphabetical order, numbered from 1. The image of an XML
    file is the one with its stem in ``JPEGImages``, as other tools have it; ``filename``, which is often out of date,
    decides where there are several or none. ``difficult`` makes an ignore box.

    Args:
        root: Folder with ``Annotations`` and ``JPEGImages``.
        split: One of :func:`voc_splits`.

    Raises:
        DataError: The list of the split or the class list cannot be read.
    """
    table = _Table(root, _stated_categories(root))
    for stem in _stems(root, split):
        table.add(stem)
    return table.reading()


def write_voc(splits: Mapping[str, AnnotationIndex], root: Path) -> None:
    """Write splits into a VOC folder, without the images.

    Args:
        splits: Indices by split name, with the same classes and known sizes. The names of their files are relative
            to ``JPEGImages`` and differ, between splits too, in more than the ending.
        root: Folder to write ``Annotations``, ``ImageSets``, ``categories.json`` and ``labels.txt`` into.
    """
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    for split, index in splits.items():
        stems = [str(PurePosixPath(name).with_suffix("")) for name in index.file_names]
        for position, stem in enumerate(stems):
            path = root / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            tree = _to_xml(index, position)
            ET.indent(tree)
            path.write_text(ET.tostring(tree, encoding="unicode") + "\n", encoding="utf-8")
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    categories = next(iter(splits.values())).categories
    (root / "categories.json").write_text(json.dumps([category._asdict() for category in categories], indent=1))
    (root / "labels.txt").write_text("".join(f"{category.name}\n" for category in categories), encoding="utf-8")


class _Object(NamedTuple):
    """One box of an XML file."""

    name: str
    box: tuple[float, ...]
    difficult: bool
    area: float  # NaN where not stated
    id: int | None
    position: int  # from 1, in its file


@dataclass
class _Table:
    """Rows of images and boxes as the XML files are read."""

    root: Path
    stated: list[Category] | None  # None where the folder has no class list
    stems: list[str] = field(default_factory=list)
    file_names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    image_ids: list[int | None] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    objects: list[_Object] = field(default_factory=list)
    image_of_box: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    uncarried: Counter[str] = field(default_factory=Counter)
    _names_by_stem: dict[Path, dict[str, str]] = field(default_factory=dict)

    def add(self, stem: str) -> None:
        """Read the XML file of a stem, and its image's name."""
        path = self._xml(stem)
        annotation = ET.Element("annotation")
        try:
            annotation = ET.fromstring(path.read_bytes())
        except OSError as error:
            if self._image(stem, "") is None:
                message = "neither this file nor its image is there; restore them or take it off the list"
                self.faults.append(Fault("missing-annotation", "error", str(path), "", message))
                return
            message = f"cannot be read ({error.strerror}); its image counts as one without objects"
            self.faults.append(Fault("missing-annotation", "warning", str(path), "", message))
        except (ET.ParseError, ValueError, LookupError) as error:  # the latter two: encodings
            line = f"line {error.position[0]}" if isinstance(error, ET.ParseError) else ""
            self.faults.append(
                Fault("malformed", "error", str(path), line, f"is no valid XML ({error}); save it again")
            )
        stated = PurePosixPath(_text(annotation, "filename")).name
        place = PurePosixPath(stem)
        self.stems.append(stem)
        self.file_names.append(self._image(stem, stated) or str(place.with_name(stated or f"{place.name}.jpg")))
        self.sizes.append((_size(annotation, "height"), _size(annotation, "width")))
        self.image_ids.append(_integer(_own(annotation, "id")))
        self.metadata.append(self._metadata(annotation, path))
        if _text(annotation, "segmented") not in ("", "0"):
            self.uncarried["images: segmented"] += 1
        for position, element in enumerate(annotation.findall("object"), start=1):
            self._add_object(element, path, position)

    def _add_object(self, element: ET.Element, path: Path, position: int) -> None:
        item = f"object {position}"
        for child in element:
            empty = _NOTHING.get(child.tag, ("",))
            if child.tag not in _KNOWN_TAGS and (len(child) or (child.text or "").strip() not in empty):
                self.uncarried[f"annotations: {child.tag}"] += 1
        name = self._class_name(element)
        if not name:
            self.faults.append(Fault("missing-key", "error", str(path), item, "has no `name`; state its class"))
            return
        corners = [_text(element, f"bndbox/{corner}") for corner in _CORNERS]
        if "" in corners:
            message = f"has no `bndbox` with {', '.join(_CORNERS)}; add what is missing"
            self.faults.append(Fault("missing-key", "error", str(path), item, message))
            return
        box = tuple(_decimal(corner) for corner in corners)
        if not np.isfinite(box).all():
            message = f"its corners are {', '.join(corners)} and not four finite numbers; correct them"
            self.faults.append(Fault("not-a-number", "error", str(path), item, message))
            return
        if self.stated is not None and name not in self._stated_names:
            message = f"has the class {name!r}, which the class list does not have; correct it or add the class"
            self.faults.append(Fault("unknown-class", "error", str(path), item, message))
            return
        difficult = _text(element, "difficult").lower() in ("1", "true")
        area, identity = _decimal(_own(element, "area")), _integer(_own(element, "id"))
        self.objects.append(_Object(name, box, difficult, area, identity, position))
        self.image_of_box.append(len(self.stems) - 1)

    @cached_property
    def _stated_names(self) -> frozenset[str]:
        return frozenset(category.name for category in self.stated or ())

    def _class_name(self, element: ET.Element) -> str:
        raw = element.findtext("name") or ""
        return raw if raw in self._stated_names else raw.strip()

    def _metadata(self, annotation: ET.Element, path: Path) -> dict[str, Any]:
        text = _own(annotation, "metadata")
        try:
            metadata = json.loads(text) if text else {}
        except ValueError:
            metadata = None
        if isinstance(metadata, dict):
            return metadata
        self.faults.append(Fault("malformed", "warning", str(path), "metadata", "is no JSON object; left out"))
        return {}

    def _xml(self, stem: str) -> Path:
        return self.root / "Annotations" / f"{stem}.xml"

    def _image(self, stem: str, stated: str) -> str | None:
        """Name, relative to ``JPEGImages``, of the image of a stem whose XML file states this name."""
        place = PurePosixPath(stem)
        folder = self.root / "JPEGImages" / place.parent
        if folder not in self._names_by_stem:
            names = _image_names(folder)
            self._names_by_stem[folder] = {PurePosixPath(name).stem: name for name in names} | {
                name: name for name in names
            }
        known = self._names_by_stem[folder]
        exact = known.get(stated) if PurePosixPath(stated).stem == place.name else None
        name = exact or known.get(place.name) or known.get(stated)
        return None if name is None else str(place.parent / name)

    def reading(self) -> Reading:
        """The index of all rows, and what was wrong."""
        categories = self.stated if self.stated is not None else _alphabetical(self.root)
        label_by_name = {category.name: label for label, category in enumerate(categories)}
        image_ids = number_missing(self.image_ids)
        annotation_ids = number_missing([box.id for box in self.objects])
        for position in repeated(image_ids).tolist():
            message = f"its id {image_ids[position]} is used twice; number the images anew"
            path = self._xml(self.stems[position])
            self.faults.append(Fault("duplicate-id", "error", str(path), f"image {image_ids[position]}", message))
        for row in repeated(annotation_ids).tolist():
            path = self._xml(self.stems[self.image_of_box[row]])
            message = f"its id {annotation_ids[row]} is used twice; number the objects anew"
            item = f"object {self.objects[row].position}"
            self.faults.append(Fault("duplicate-id", "error", str(path), item, message))
        self.faults += repeated_file_faults(self.root, self.file_names, image_ids)
        index = build_index(
            source=self.root,
            image_root=self.root / "JPEGImages",
            categories=categories,
            image_ids=image_ids,
            file_names=self.file_names,
            image_sizes=np.array(self.sizes, dtype=np.int64),
            image_of_box=np.array(self.image_of_box, dtype=np.int64),
            boxes=np.array([box.box for box in self.objects], dtype=np.float64),
            labels=np.array([label_by_name[box.name] for box in self.objects], dtype=np.int64),
            ignore=np.array([box.difficult for box in self.objects], dtype=np.bool_),
            areas=np.array([box.area for box in self.objects], dtype=np.float64),
            annotation_ids=annotation_ids,
            metadata=self.metadata,
            annotation_files=[self._xml(stem) for stem in self.stems],
        )
        return Reading(index, self.faults, self.uncarried)


def _is_per_class(path: Path) -> bool:
    lines = _lines(path)
    return bool(lines) and all(_PER_CLASS_LINE.fullmatch(line) for line in lines)


def _stems(root: Path, split: str) -> list[str]:
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    if listed.is_file() or split != "all":
        return _lines(listed)
    annotated = {_relative_stem(path, root / "Annotations") for path in (root / "Annotations").rglob("*.xml")}
    stated = {_text(_parsed(root / "Annotations" / f"{stem}.xml"), "filename") for stem in annotated}
    images = (path for path in (root / "JPEGImages").rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    unannotated = {_relative_stem(path, root / "JPEGImages") for path in images if path.name not in stated}
    return sorted(annotated | unannotated)


def _relative_stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the name of the split.") from error
    except ValueError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error}). Save it as such.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _stated_categories(root: Path) -> list[Category] | None:
    """Classes by label as the folder lists them; None where it does not."""
    path = root / "categories.json"
    if not path.is_file():
        listed = root / "labels.txt"
        return [Category(i, name) for i, name in enumerate(_lines(listed), start=1)] if listed.is_file() else None
    try:
        categories = [Category(int(row["id"]), str(row["name"])) for row in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: is no list of {{"id": 1, "name": "cell"}}. Correct or remove it.') from error
    if len({row.id for row in categories}) < len(categories) or len({row.name for row in categories}) < len(categories):
        raise DataError(f"{path}: uses an id or a name twice. Give each class its own.")
    return sorted(categories)


def _alphabetical(root: Path) -> list[Category]:
    """Classes of all splits, numbered from 1: one split alone may lack a class."""
    names = {(element.findtext("name") or "").strip() for element in _all_objects(root)}
    return [Category(i, name) for i, name in enumerate(sorted(names - {""}), start=1)]


def _all_objects(root: Path) -> Iterator[ET.Element]:
    for path in (root / "Annotations").rglob("*.xml"):
        yield from _parsed(path).findall("object")


def _parsed(path: Path) -> ET.Element:
    """The root of an XML file; an empty one where it cannot be read, which is reported with its split."""
    try:
        return ET.fromstring(path.read_bytes())
    except (OSError, ET.ParseError, ValueError, LookupError):
        return ET.Element("annotation")


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _text(element: ET.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _own(element: ET.Element, attribute: str) -> str:
    """What our own writer noted about an image or object."""
    tag = element.find(_OWN_TAG)
    return "" if tag is None else tag.get(attribute, "")


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def _size(annotation: ET.Element, side: str) -> int:
    return max(_integer(_text(annotation, f"size/{side}")) or 0, 0)


def _to_xml(index: AnnotationIndex, position: int) -> ET.Element:
    name = PurePosixPath(index.file_names[position])
    height, width = index.image_sizes[position].tolist()
    root = ET.Element("annotation")
    _add(root, "folder", str("JPEGImages" / name.parent))
    _add(root, "filename", name.name)
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, str(value))
    _add(root, "segmented", "0")
    noted = {"id": str(index.image_ids[position])}
    if index.metadata and index.metadata[position]:
        noted["metadata"] = json.dumps(index.metadata[position])
    ET.SubElement(root, _OWN_TAG, noted)
    rows = index.rows(position)
    for row in range(rows.start, rows.stop):
        element = ET.SubElement(root, "object")
        _add(element, "name", index.categories[index.labels[row]].name)
        for tag, text in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", str(int(index.ignore[row])))):
            _add(element, tag, text)
        corners = ET.SubElement(element, "bndbox")
        for tag, value in zip(_CORNERS, index.boxes[row].tolist(), strict=True):
            _add(corners, tag, _plain(value))
        noted = {"id": str(index.annotation_ids[row])}
        x1, y1, x2, y2 = index.boxes[row].tolist()
        if abs(index.areas[row] - (x2 - x1) * (y2 - y1)) > 0.01:
            noted["area"] = _plain(index.areas[row])
        ET.SubElement(element, _OWN_TAG, noted)
    return root


def _add(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = text


def _plain(value: float) -> str:
    """A number with up to four decimals and none where it is whole: some VOC tools read integers only."""
    return f"{value:.4f}".rstrip("0").rstrip(".")

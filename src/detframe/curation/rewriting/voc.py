"""Pascal VOC folders with the objects of some XML files changed, and all else of these as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from detframe.curation.mending import Edit
from detframe.curation.rewriting.files import Edits, Version, files_below
from detframe.data.annotations import AnnotationIndex
from detframe.data.label_queue import Label

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OWN_TAG = "detframe"


def write_voc_version(indices: Mapping[str, AnnotationIndex], edits: Edits, root: Path, version: Version) -> None:
    """Write a VOC folder with all of its splits, lists and images; XML files without a change are copied.

    Where the folder has no list of classes, `labels.txt` is added, so that a class that loses its last object stays.

    Args:
        indices: Splits as they are read.
        edits: Changes of their labels.
        root: The folder that they were read from.
        version: Where to.
    """
    for split, index in indices.items():
        for image, changes in edits.get(split, {}).items():
            if changes:
                version.write(index.annotation_file(image).relative_to(root), _edited(index, image, changes))
    version.copy_tree(root / "Annotations", Path("Annotations"))
    version.copy_tree(root / "ImageSets", Path("ImageSets"))
    for file in files_below(root / "JPEGImages"):
        version.link(file, file.relative_to(root))
    if not any((root / name).exists() for name in ("categories.json", "labels.txt")):
        names = next(iter(indices.values())).class_names
        version.write(Path("labels.txt"), "".join(f"{name}\n" for name in names).encode())
    version.bring_others(root, ("Annotations", "ImageSets", "JPEGImages"))


def _edited(index: AnnotationIndex, image: int, edits: Iterable[Edit]) -> bytes:
    """The new XML file of an image, indented as the old one is."""
    source = index.annotation_file(image)
    content = source.read_bytes() if source.exists() else _new(index, image)
    tree = ET.fromstring(content, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))
    objects = tree.findall("object")
    boxes = index.boxes[index.rows(image)]
    for edit in edits:
        if edit.place < 0:
            assert edit.after is not None
            tree.append(_object(edit.after))
        elif edit.after is None:
            tree.remove(objects[edit.place])
        else:
            _change(objects[edit.place], edit.after, boxes[edit.place].tolist() != list(edit.after.box))
    opening = tree.text or ""
    if opening.startswith("\n") and not opening.strip():
        ET.indent(tree, opening.strip("\n"))
    declared = content.lstrip().startswith(b"<?xml")
    edited: bytes = ET.tostring(tree, encoding="utf-8", xml_declaration=declared)
    edited += b"\n" if content.endswith(b"\n") else b""
    return edited.replace(b"\n", b"\r\n") if b"\r\n" in content else edited


def _change(element: ET.Element, after: Label, moved: bool) -> None:
    _set(element, "name", after.class_name)
    if moved:
        corners = element.find("bndbox")
        assert corners is not None
        for tag, value in zip(_CORNERS, after.box, strict=True):
            _set(corners, tag, _plain(value))
        own = element.find(_OWN_TAG)
        if own is not None:
            own.attrib.pop("area", None)  # of the box as it was
    if after.ignore != ((element.findtext("difficult") or "").strip().lower() in ("1", "true")):
        _set(element, "difficult", str(int(after.ignore)))


def _set(parent: ET.Element, tag: str, text: str) -> None:
    element = parent.find(tag)
    if element is None:
        element = ET.Element(tag)
        parent.append(element)
    if (element.text or "").strip() != text:
        element.text = text


def _object(label: Label) -> ET.Element:
    element = ET.Element("object")
    for tag, text in (
        ("name", label.class_name),
        ("pose", "Unspecified"),
        ("truncated", "0"),
        ("difficult", str(int(label.ignore))),
    ):
        ET.SubElement(element, tag).text = text
    corners = ET.SubElement(element, "bndbox")
    for tag, value in zip(_CORNERS, label.box, strict=True):
        ET.SubElement(corners, tag).text = _plain(value)
    return element


def _new(index: AnnotationIndex, image: int) -> bytes:
    """An XML file for an image that had none."""
    from detframe.data.images import image_size  # loads torch, which takes seconds

    height, width = image_size(index.path(image))
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "JPEGImages"
    ET.SubElement(root, "filename").text = PurePosixPath(index.file_names[image]).name
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=False)
    return written + b"\n"


def _plain(value: float) -> str:
    """A number with up to four decimals and none where it is whole: some VOC tools read integers only."""
    return f"{value:.4f}".rstrip("0").rstrip(".")

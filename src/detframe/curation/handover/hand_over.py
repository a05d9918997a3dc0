"""The verb ``hand-over``: the images of a queue with their labels, for a tool that a team has already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from json import dumps
from pathlib import Path, PurePosixPath

from rich.console import Console

from detframe.curation.handover.coco import write_coco_file
from detframe.curation.handover.cvat import write_cvat
from detframe.curation.handover.label_studio import write_label_studio
from detframe.curation.handover.sent import Sent, SentBox, SentImage, Tool, write_sent
from detframe.curation.labels import labels_of_image, same_label, size_of
from detframe.curation.mending import merged
from detframe.curation.rewriting.files import Version
from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.images import ImageError
from detframe.data.label_queue import Label, Suggestion, read_queue
from detframe.data.sources import read_split
from detframe.refusals import refuse
from detframe.unfinished import unfinished

_NEXT = {
    "cvat": "In CVAT: make a task of the images in {images}, with {folder}/labels.json as its raw labels, and upload "
    '{folder}/annotations.xml as "CVAT 1.1"',
    "label-studio": "In Label Studio: paste {folder}/labels.xml as the labelling interface and import "
    "{folder}/tasks.json; it looks for the images at {url}",
    "coco": "Upload the images in {images} and {folder}/annotations.json",
}


def hand_over(
    queue: Path,
    tool: Tool = "cvat",
    out: Path = Path("handed_over"),
    data: Path | None = None,
    most: int = 0,
    url: str = "",
    json: bool = False,
) -> int:
    """Write the images of a queue, with their labels as pre-annotations, for another labelling tool.

      python -m detframe hand-over queue.jsonl --tool cvat --out sent
      python -m detframe take-back sent export.zip --who ada --out fixes.jsonl

    All labels of an image are drawn, with what is suggested about them: another class or box, and objects that may be
    missing. What may have to go stays for the person to delete. The suggestion stands beside its box in words, with a
    choice of accept, reject and ambiguous. Images come in the order of the queue.

    OUT/hand_over.json keeps exact boxes, ids and names, so that no tool has to; `take-back` needs it.

    Exit code: 0 when OUT is written; 2, with nothing written, when the queue or its data cannot be used.

    Args:
        queue: Suggestions of `detframe label-errors`.
        tool: `cvat` (CVAT for images 1.1), `label-studio` (JSON with predictions) or `coco` for any other.
        out: Folder to make. It must not exist.
        data: The data set, where it is no longer where the queue says.
        most: So many images at most, those of the first suggestions; 0 takes all.
        url: What Label Studio finds the images at, their names appended; by default its local storage, with OUT's
            parent as the document root.
        json: Print counts as one JSON document and nothing else.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=json)
    try:
        sent, index, undrawn = _sent(queue, tool, data, most)
        url = url or f"/data/local-files/?d={out.resolve().name}/images/"
        _write(sent, index, out, url)
    except (DataError, ImageError, OSError) as error:
        return refuse(error, json, out=out)
    boxes = [box for image in sent.images for box in image.boxes]
    suggestions = sum(len(box.suggestions) for box in boxes)
    console.print(f"{len(sent.images)} images with {len(boxes)} boxes and {suggestions} suggestions in {out}")
    if undrawn:
        console.print(f"{undrawn} labels without an area are not drawn, and stay as they are")
    console.print(_NEXT[tool].format(folder=out, images=out / "images", url=url))
    if json:
        counts = {"images": len(sent.images), "boxes": len(boxes), "suggestions": suggestions, "undrawn": undrawn}
        print(dumps({"out": str(out), "tool": tool, **counts}))
    return 0


def _sent(queue_file: Path, tool: Tool, data: Path | None, most: int) -> tuple[Sent, AnnotationIndex, int]:
    """What to hand over, the split that it is of, and how many labels cannot be drawn."""
    queue = read_queue(queue_file)
    place = data or Path(queue.data)
    index = read_split(place, queue.split)
    if index.annotations_hash() != queue.annotations_hash:
        raise DataError(
            f"{place}: its split {queue.split} is not as it was when the queue was made. Write the queue anew with "
            "`detframe label-errors`."
        )
    bad = [name for name in index.class_names if not name.isprintable()]
    if bad:
        raise DataError(f"{place}: the class {bad[0]!r} has a character that no tool can show. Rename it.")
    about: dict[str, list[Suggestion]] = {}
    for suggestion in queue.suggestions:
        about.setdefault(suggestion.file_name, []).append(suggestion)
    chosen = list(about)[: most or None]
    positions = {name: position for position, name in enumerate(index.file_names)}
    missing = [name for name in chosen if name not in positions]
    if missing:
        raise DataError(f"{queue_file}: {missing[0]} is no image of {place}. Write the queue anew.")
    digests = index.subset([positions[name] for name in chosen]).image_digests()
    numbers = count(1 + max(index.annotation_ids.tolist(), default=0))
    images, undrawn = [], 0
    for order, (name, digest) in enumerate(zip(chosen, digests, strict=True)):
        position = positions[name]
        labels = labels_of_image(index, position)
        ids = index.annotation_ids[index.rows(position)].tolist()
        boxes = _boxes(labels, ids, about[name], numbers)
        shown = tuple(box for box in boxes if _has_area(box.drawn))
        undrawn += len(boxes) - len(shown)
        height, width = size_of(index, position)
        image_id = int(index.image_ids[position])
        images.append(SentImage(tool_name(order, name), name, image_id, digest.hex(), width, height, shown))
    return Sent(tool, str(place), queue.split, tuple(index.class_names), tuple(images)), index, undrawn


def tool_name(order: int, file_name: str) -> str:
    """A name that every tool keeps as it is and sorts as here."""
    path = PurePosixPath(file_name)
    return f"{order:05d}_{re.sub(r'[^A-Za-z0-9._-]', '_', path.stem)[:80]}{path.suffix.lower()}"


def _boxes(
    labels: Sequence[Label], ids: Sequence[int], suggestions: Sequence[Suggestion], numbers: count[int]
) -> list[SentBox]:
    """Labels as they are drawn, and objects that may be missing."""
    of_label: dict[int, list[Suggestion]] = {}
    added = []
    for suggestion in suggestions:
        if suggestion.before is None:
            assert suggestion.after is not None
            added.append(SentBox(next(numbers), None, suggestion.after, (suggestion,)))
            continue
        same = [place for place, label in enumerate(labels) if same_label(label, suggestion.before)]
        if not same:
            raise DataError(f"{suggestion.file_name}: the label of a suggestion is not there. Write the queue anew.")
        place = next((place for place in same if ids[place] == suggestion.annotation_id), same[0])
        of_label.setdefault(place, []).append(suggestion)
    boxes = []
    for place, label in enumerate(labels):
        found = of_label.get(place, [])
        drawn = label
        for suggestion in found if found and found[0].after is not None else ():
            drawn = merged(label, drawn, suggestion.after) or drawn
        boxes.append(SentBox(int(ids[place]), label, drawn, tuple(found)))
    return boxes + added


def _has_area(label: Label) -> bool:
    x1, y1, x2, y2 = label.box
    return x2 > x1 and y2 > y1


def _write(sent: Sent, index: AnnotationIndex, out: Path, url: str) -> None:
    """Write the folder, whole or not at all."""
    if out.exists():
        raise DataError(f"{out}: exists already, and nothing is ever overwritten. Name a new folder.")
    with unfinished(out) as folder:
        folder.mkdir()
        version = Version(folder)
        for image in sent.images:
            version.link(index.image_root / image.file_name, Path("images") / image.name)
        if sent.tool == "cvat":
            write_cvat(sent, folder)
        elif sent.tool == "label-studio":
            write_label_studio(sent, folder, url)
        else:
            write_coco_file(sent, folder)
        write_sent(sent, folder)

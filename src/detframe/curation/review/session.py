"""What a review knows and does: a queue, its data set, and the decisions, each written as it is made."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detframe.curation.fixes import Decision, Fix, append_fix, of_people, read_fixes, standing
from detframe.curation.labels import labels_of_image, same_box
from detframe.data.annotations import AnnotationIndex, DataError, file_digest
from detframe.data.images import ImageError, image_size, read_image, web_media_type
from detframe.data.label_queue import Label, Queue, Suggestion, json_of_label, read_queue
from detframe.data.sources import read_split

_SMALLEST_SIDE = 1.0  # pixels, of a box that was drawn by hand


class RefusalError(Exception):
    """A request that cannot be carried out; nothing was written."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status  # of HTTP


class Place(NamedTuple):
    """Where a suggestion is in the data set."""

    image: int  # position of the image in the index
    row: int | None  # of the label, counted within its image; None where there is none


@dataclass
class Session:
    """A queue under review by one person; threads may share it."""

    queue: Queue
    index: AnnotationIndex  # of the queue's split
    places: list[Place]  # of each suggestion
    out: Path  # the file of fixes
    who: str
    made: list[Fix] = field(default_factory=list)  # in this session, the latest last
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Index the suggestions by what pages call them by."""
        self._by_id = {
            suggestion.id: (suggestion, place)
            for suggestion, place in zip(self.queue.suggestions, self.places, strict=True)
        }

    def decide(self, identity: str, decision: Decision, drawn: Label | None) -> Fix:
        """Write a decision; on return it is on the disk.

        Args:
            identity: Of the suggestion.
            decision: What was decided.
            drawn: The label as drawn by hand: needed by ``edit``, taken by ``ambiguous``.

        Raises:
            RefusalError: There is no such suggestion, its image cannot be read, the box is none of the image, or the
                file cannot be written.
        """
        if identity not in self._by_id:
            raise RefusalError(404, f"The queue has no suggestion {identity!r}. Reload the page.")
        suggestion, place = self._by_id[identity]
        path = self.index.path(place.image)
        try:
            digest = file_digest(path).hex()
            drawn = None if drawn is None else within(drawn, image_size(path))
        except OSError as error:
            raise RefusalError(409, f"{path}: cannot be read ({error.strerror}). Put the image back.") from error
        except ImageError as error:
            raise RefusalError(409, str(error)) from error
        after = decided(suggestion, decision, drawn)
        with self.lock:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            when = max(now, self.made[-1].when) if self.made else now  # a clock may be set back
            fix = Fix(
                id=suggestion.id,
                decision=decision,
                who=self.who,
                when=when,
                kind=suggestion.kind,
                reason=suggestion.reason,
                probability=suggestion.probability,
                split=self.queue.split,
                file_name=suggestion.file_name,
                image_sha256=digest,
                annotation_id=suggestion.annotation_id,
                before=suggestion.before,
                after=after,
            )
            try:
                append_fix(fix, self.out)
            except OSError as error:
                message = f"{self.out}: cannot be written ({error.strerror}). Make room for it, then try again."
                raise RefusalError(507, message) from error
            self.made.append(fix)
        return fix

    def fixes(self) -> list[Fix]:
        """All decisions of the file about this queue, also those of others and of earlier sessions, in order of time.

        Raises:
            DataError: The file is malformed.
        """
        with self.lock:
            if not self.out.exists():
                return []
            return [fix for fix in read_fixes([self.out]) if fix.id in self._by_id]

    def state(self) -> dict[str, Any]:
        """All that the page begins with, as JSON.

        Raises:
            DataError: The file of fixes is malformed.
        """
        fixes = self.fixes()
        last = standing(fixes)
        others = [fix for people in of_people(fixes).values() for who, fix in people.items() if who != self.who]
        return {
            "who": self.who,
            "data": self.queue.data,
            "split": self.queue.split,
            "out": str(self.out),
            "class_names": self.queue.class_names,
            "suggestions": [
                {
                    **suggestion._asdict(),
                    "before": json_of_label(suggestion.before),
                    "after": json_of_label(suggestion.after),
                    "image": place.image,
                    "row": place.row,
                }
                for suggestion, place in zip(self.queue.suggestions, self.places, strict=True)
            ],
            "decisions": {
                fix.id: {"decision": fix.decision, "who": fix.who, "after": json_of_label(fix.after)}
                for fix in last.values()
            },
            "others": [  # of one suggestion in order of time
                {"id": fix.id, "decision": fix.decision, "who": fix.who, "after": json_of_label(fix.after)}
                for fix in others
            ],
            "mine": [fix.id for fix in last.values() if fix.who == self.who],  # the order that undo goes back in
        }

    def labels(self, image: int) -> list[dict[str, Any] | None]:
        """The labels of the image at a position of the index, as JSON, in order of the data set.

        Raises:
            RefusalError: There is no such image.
        """
        return [json_of_label(label) for label in labels_of_image(self.index, self._position(image))]

    def picture(self, image: int) -> tuple[str, bytes]:
        """Media type and content of the image at a position of the index, in a form that browsers show.

        Raises:
            RefusalError: There is no such image, or it cannot be read.
        """
        path = self.index.path(self._position(image))
        try:
            kind = web_media_type(path)
            return (kind, path.read_bytes()) if kind else ("image/png", _as_png(path))
        except (ImageError, OSError) as error:
            raise RefusalError(409, f"The image cannot be shown: {error}") from error

    def _position(self, image: int) -> int:
        if not 0 <= image < len(self.index):
            raise RefusalError(404, f"The data set has no image {image}; there are {len(self.index)}.")
        return image


def open_session(queue: Path, data: Path | None, out: Path, who: str) -> Session:
    """Read a queue and its data set, and see that the one is about the other.

    Args:
        queue: File of suggestions.
        data: Where the data set is, if not where the queue says.
        out: File of fixes; it need not exist.
        who: Reviewer.

    Raises:
        DataError: A file cannot be read, or the queue is not about the labels as they are.
    """
    read = read_queue(queue)
    where = Path(read.data) if data is None else data
    if not where.exists():
        raise DataError(f"{where}: no such file or folder; {queue} is about it. Say with --data where it is now.")
    index = read_split(where, read.split)
    if index.annotations_hash() != read.annotations_hash:
        raise DataError(
            f"{where}: the labels of {read.split} are not those that {queue} was made from. Take the data set as it "
            "was then, with --data, or make a queue of this one with `detframe label-errors`."
        )
    session = Session(read._replace(data=str(where)), index, places_of(read, index, queue), out, who)
    session.fixes()  # a malformed file is known before the work
    return session


def places_of(queue: Queue, index: AnnotationIndex, source: Path) -> list[Place]:
    """Where each suggestion is in the data set.

    Args:
        queue: Suggestions.
        index: Of the data set.
        source: The queue's file, for the message.

    Raises:
        DataError: The data set does not have the image or the label of a suggestion.
    """
    positions = {name: position for position, name in enumerate(index.file_names)}
    places = []
    for suggestion in queue.suggestions:
        position = positions.get(suggestion.file_name)
        row = None if position is None else _row(index, position, suggestion)
        if position is None or (row is None and suggestion.before is not None):
            label = "" if position is None else f"label {suggestion.annotation_id} of "
            raise DataError(
                f"{source}: suggestion {suggestion.id} is about {label}{suggestion.file_name}, which the data set does "
                "not have. Write it anew with `detframe label-errors`."
            )
        places.append(Place(position, row))
    return places


def _row(index: AnnotationIndex, position: int, suggestion: Suggestion) -> int | None:
    """The label of a suggestion, counted within its image: of its id, as far as several have its box and class."""
    before = suggestion.before
    if before is None:
        return None
    alike = [
        row
        for row, label in enumerate(labels_of_image(index, position))
        if label.class_name == before.class_name and same_box(label, before)
    ]
    ids = index.annotation_ids[index.rows(position)]
    return next((row for row in alike if ids[row] == suggestion.annotation_id), alike[0] if alike else None)


def decided(suggestion: Suggestion, decision: Decision, drawn: Label | None) -> Label | None:
    """The label that a decision leads to; None where there is to be none.

    Args:
        suggestion: What was suggested.
        decision: What was decided.
        drawn: The label as drawn by hand.

    Raises:
        RefusalError: An edit without a label.
    """
    if decision == "accept":
        return suggestion.after
    if decision == "edit":
        if drawn is None:
            raise RefusalError(400, "An edit needs the label as it was drawn.")
        return drawn
    if decision == "ambiguous":
        label = drawn or suggestion.before or suggestion.after
        return None if label is None else label._replace(ignore=True)
    return suggestion.before


def within(label: Label, size: Sequence[int]) -> Label:
    """The label with its box clipped to the image.

    Args:
        label: Its box in pixels of the image.
        size: (height, width).

    Raises:
        RefusalError: The box is not finite, or less than a pixel of it is inside.
    """
    if not all(map(math.isfinite, label.box)):
        raise RefusalError(400, f"The box {label.box} is not finite.")
    height, width = size
    x1, x2 = (min(max(x, 0.0), float(width)) for x in label.box[0::2])
    y1, y2 = (min(max(y, 0.0), float(height)) for y in label.box[1::2])
    if x2 - x1 < _SMALLEST_SIDE or y2 - y1 < _SMALLEST_SIDE:
        raise RefusalError(400, f"The box {label.box} has less than a pixel within the image of {width} x {height}.")
    return label._replace(box=(x1, y1, x2, y2))


def _as_png(path: Path) -> bytes:
    pixels = read_image(path).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)  # it goes no further than here
    return buffer.getvalue()

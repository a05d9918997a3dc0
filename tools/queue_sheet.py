"""Draws the first suggestions of a queue of labels on one sheet, to look at and judge one by one.

    python tools/queue_sheet.py queue.jsonl sheet.jpg --count 100

The label in question is orange, what is suggested is blue; other labels of the image are thin and white. Who has judged
them gives the numbers of those that are right as they are, or cannot be told, and their captions become red.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from detframe.data.annotations import AnnotationIndex
from detframe.data.images import read_image
from detframe.data.label_queue import Suggestion, read_queue
from detframe.data.sources import read_splits

SIDE, CAPTION, COLUMNS = 112, 13, 10
BEFORE, AFTER, OTHER = "#E69F00", "#56B4E9", "#FFFFFF"
_CONTEXT = 1.1  # of the box's longer side, on each side of it
_LEAST = 40  # pixels about a small box


def tile(suggestion: Suggestion, index: AnnotationIndex, number: int, refuted: bool) -> Image.Image:
    """One suggestion in its context, with a caption."""
    position = index.image_ids.tolist().index(suggestion.image_id)
    picture = Image.fromarray(read_image(index.path(position)).permute(1, 2, 0).numpy())
    corners = [label.box for label in (suggestion.before, suggestion.after) if label is not None]
    x1, y1 = (min(box[i] for box in corners) for i in (0, 1))
    x2, y2 = (max(box[i] for box in corners) for i in (2, 3))
    half = max(x2 - x1, y2 - y1, _LEAST) * (0.5 + _CONTEXT / 2)
    left, top = (x1 + x2) / 2 - half, (y1 + y2) / 2 - half
    scale = SIDE / (2 * half)
    view = picture.transform((SIDE, SIDE), Image.Transform.EXTENT, (left, top, left + 2 * half, top + 2 * half), 2)
    pen = ImageDraw.Draw(view)

    def outline(box: tuple[float, ...], colour: str, width: int) -> None:
        pen.rectangle(
            [((v - o) * scale) for v, o in zip(box, (left, top) * 2, strict=True)], outline=colour, width=width
        )

    for row in range(index.rows(position).start, index.rows(position).stop):
        outline(tuple(index.boxes[row]), OTHER, 1)
    if suggestion.before is not None:
        outline(suggestion.before.box, BEFORE, 3)
    if suggestion.after is not None:
        outline(suggestion.after.box, AFTER, 2)
    result = Image.new("RGB", (SIDE, SIDE + CAPTION), "#A00000" if refuted else "#222222")
    result.paste(view, (0, CAPTION))
    text = f"{number} {suggestion.kind} {suggestion.probability:.2f}"
    ImageDraw.Draw(result).text((2, 2), text, fill="#FFFFFF", font=ImageFont.load_default(10))
    return result


def main() -> None:
    """Draw a sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", type=Path)
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--first", type=int, default=1, help="number of the suggestion to begin with")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--refuted", type=int, nargs="*", default=[], help="numbers of those that are no errors")
    given = parser.parse_args()
    queue = read_queue(given.queue)
    index = read_splits(Path(queue.data))[queue.split].index
    chosen = queue.suggestions[given.first - 1 : given.first - 1 + given.count]
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 2), rows * (SIDE + CAPTION + 2)), "#000000")
    for i, suggestion in enumerate(chosen):
        place = (i % COLUMNS * (SIDE + 2), i // COLUMNS * (SIDE + CAPTION + 2))
        number = given.first + i
        sheet.paste(tile(suggestion, index, number, number in given.refuted), place)
    sheet.save(given.out, quality=70)


if __name__ == "__main__":
    main()

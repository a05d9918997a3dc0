"""A page with the images that differ, before and after, side by side; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from detframe.curation.differences import ChangedLabel, Pair, Place, Version, in_words, name_of
from detframe.curation.labels import labels_of_image
from detframe.data.images import ImageError, read_image
from detframe.data.label_queue import Label
from detframe.drawing import Colour, Mark, draw_marks
from detframe.unfinished import unfinished

_ADDED, _REMOVED, _CHANGED, _SAME = (240, 228, 66), (213, 94, 0), (86, 180, 233), (255, 255, 255)
"""Okabe and Ito's yellow, vermilion and blue, and white."""

_MARGIN = 0.5  # of the changed region's sides, around it
_LEAST_SIDE = 200  # pixels of the image that are shown at least
_WIDEST = 640  # pixels of a picture in the page
_NAMED = 6  # labels of an image
_SIDE = 480  # pixels that a picture is enlarged to, or made smaller to

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fafaf8; margin: 2rem auto; max-width: 68rem;
         padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin-bottom: 0.2rem; }
  h2 { font-size: 1rem; margin: 2rem 0 0.3rem; border-top: 1px solid #ccc; padding-top: 0.8rem; }
  p, ul { margin: 0.3rem 0; }
  .note { color: #555; }
  .pair { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 0.5rem 0; }
  figure { margin: 0; flex: 1 1 20rem; max-width: 33rem; }
  figcaption { color: #555; font-size: 0.85rem; }
  img { width: 100%; height: auto; display: block; }
  b { padding: 0 0.3rem; color: #000; font-weight: normal; }
  b.added { background: #f0e442; } b.removed { background: #d55e00; } b.changed { background: #56b4e9; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<ul>{% for sentence in sentences %}<li>{{ sentence }}</li>{% else %}<li>No difference.</li>{% endfor %}</ul>
<p class="note"><b class="added">Yellow</b> labels were added, <b class="removed">vermilion</b> ones removed,
<b class="changed">blue</b> ones changed; dashed white ones are the same in both, and hatched ones are ignore boxes.
{% if hidden %}{{ hidden }} more images differ; --pictures shows more.{% endif %}</p>
{% for entry in entries %}
<h2>{{ entry.title }}</h2>
{% if entry.note %}<p class="note">{{ entry.note }}</p>{% endif %}
<div class="pair">{% for picture in entry.pictures %}
<figure><img src="data:image/jpeg;base64,{{ picture.data }}" alt="{{ picture.caption }}: {{ entry.title }}">
<figcaption>{{ picture.caption }}</figcaption></figure>{% endfor %}
</div>
{% endfor %}
</body>
</html>
"""


class _Picture(NamedTuple):
    data: str  # JPEG, base64
    caption: str


class _Entry(NamedTuple):
    title: str
    note: str
    pictures: list[_Picture]


def write_diff_page(
    path: Path,
    pairs: Sequence[Pair],
    first: Version,
    second: Version,
    names: tuple[str, str],
    sentences: Sequence[str],
    most: int,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: HTML file; its folder is made where needed.
        pairs: Images that differ.
        first: The older data set.
        second: The newer one.
        names: What they are called.
        sentences: What they differ in.
        most: So many images are shown at most, those with the most changed labels first.
    """
    seen = sorted((pair for pair in pairs if pair.labels), key=lambda pair: -len(pair.labels))
    seen += [pair for pair in pairs if not pair.labels]
    console = Console(stderr=True)
    entries = [_entry(pair, first, second) for pair in track(seen[:most], "Drawing", console=console, transient=True)]
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    title = f"{names[0]} and {names[1]}"
    text = template.render(title=title, sentences=sentences, entries=entries, hidden=max(len(seen) - most, 0))
    with unfinished(path) as beside:
        beside.write_text(text, encoding="utf-8")


def before_and_after(
    image: Tensor, first: Sequence[Label], second: Sequence[Label], changes: Sequence[ChangedLabel]
) -> tuple[Image.Image, Image.Image]:
    """The part of an image where its labels differ, as it was labelled and as it is.

    Args:
        image: ``[3, H, W]`` uint8 RGB.
        first: All labels before.
        second: All labels after.
        changes: What differs.
    """
    window = _window([label for one in changes for label in one[1:] if label is not None], image)
    removed = [(one.before, _REMOVED if one.after is None else _CHANGED) for one in changes if one.before is not None]
    added = [(one.after, _ADDED if one.before is None else _CHANGED) for one in changes if one.after is not None]
    return _drawn(image, first, removed, window), _drawn(image, second, added, window)


def _entry(pair: Pair, first: Version, second: Version) -> _Entry:
    versions = [
        (place, version) for place, version in ((pair.before, first), (pair.after, second)) if place is not None
    ]
    place, version = versions[-1]
    title = f"{place.split}: {name_of(place, version)}"
    if pair.before is not None and {"renamed", "moved"} & set(pair.changes):
        title += f" (was {name_of(pair.before, first)} in {pair.before.split})"
    labels = [labels_of_image(version.splits[place.split], place.image) for place, version in versions]
    try:
        images = [_pixels(place, version) for place, version in versions]
    except ImageError as error:
        return _Entry(title, str(error), [])
    if len(images) == 1:
        colour = _ADDED if pair.before is None else _REMOVED
        whole = (0, 0, images[0].shape[2], images[0].shape[1])
        picture = _drawn(images[0], labels[0], [(label, colour) for label in labels[0]], whole)
        return _Entry(title, f"The image was {pair.changes[0]}.", [_encoded(picture, pair.changes[0])])
    note = f"The image was {' and '.join(pair.changes)}. " if pair.changes else ""
    if not pair.labels:
        return _Entry(title, f"{note}Its labels are the same.", [])
    note += "; ".join(in_words(label) for label in pair.labels[:_NAMED])
    note += f"; and {len(pair.labels) - _NAMED} more" if len(pair.labels) > _NAMED else ""
    before, after = before_and_after(images[0], labels[0], labels[1], pair.labels)
    if "replaced" in pair.changes:
        after = before_and_after(images[1], labels[0], labels[1], pair.labels)[1]
    return _Entry(title, note, [_encoded(before, "before"), _encoded(after, "after")])


def _pixels(place: Place, version: Version) -> Tensor:
    return read_image(version.splits[place.split].path(place.image))


def _window(labels: Sequence[Label], image: Tensor) -> tuple[int, int, int, int]:
    """The part of the image that has all of the labels, with a margin: xyxy in whole pixels."""
    boxes = torch.tensor([label.box for label in labels], dtype=torch.float64)
    low, high = boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)
    size = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float64)
    sides = torch.minimum(((high - low) * (1 + 2 * _MARGIN)).clamp(min=_LEAST_SIDE), size)
    corner = torch.minimum(((low + high - sides) / 2).clamp(min=0), size - sides)
    left, top = (int(value) for value in corner.floor())
    right, bottom = (int(value) for value in (corner + sides).ceil())
    return left, top, min(right, image.shape[2]), min(bottom, image.shape[1])


def _drawn(
    image: Tensor, labels: Sequence[Label], marked: Sequence[tuple[Label, Colour]], window: tuple[int, int, int, int]
) -> Image.Image:
    """A part of an image with its labels, those that differ in their colours and with their classes."""
    left, top, right, bottom = window
    scale = min(1.0, _SIDE / max(right - left, bottom - top))
    crop = image[:, top:bottom, left:right]
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in crop.shape[1:])
        floats = crop[None].float()
        resized = torch.nn.functional.interpolate(floats, (height, width), mode="bilinear", antialias=True)
        crop = resized[0].round().clamp(0, 255).to(torch.uint8)
    corner = torch.tensor([left, top, left, top], dtype=torch.float64)

    def placed(label: Label) -> Tensor:
        return (torch.tensor(label.box, dtype=torch.float64) - corner) * scale

    limits = torch.tensor([crop.shape[2], crop.shape[1]])
    solid = [Mark(placed(label), label.class_name, colour) for label, colour in marked if not label.ignore]
    different = [label for label, _ in marked]
    dashed = [Mark(placed(label), f"ignore {label.class_name}", colour) for label, colour in marked if label.ignore]
    ignored = [True] * len(dashed)
    for label in labels:
        box = placed(label)
        if label not in different and bool((box[2:] > 0).all() and (box[:2] < limits).all()):
            dashed.append(Mark(box, "", _SAME))
            ignored.append(label.ignore)
    return draw_marks(crop, solid, dashed, torch.tensor(ignored, dtype=torch.bool), _SIDE)


def _encoded(picture: Image.Image, caption: str) -> _Picture:
    picture.thumbnail((_WIDEST, _WIDEST))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return _Picture(base64.b64encode(buffer.getvalue()).decode(), caption)

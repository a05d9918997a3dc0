"""Pictures for people: detections and ground truth drawn on an image, and sheets of such pictures.

Detections are solid lines in the colour of their class with a tag; ground truth is dashed in white, with a
black tag; what is to be ignored is dotted and hatched.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_WHITE: Colour = (255, 255, 255)
_BLACK: Colour = (0, 0, 0)
_PAPER: Colour = (246, 246, 244)
_MAX_ENLARGEMENT = 4


class Truth(NamedTuple):
    """Ground truth of one image."""

    boxes: Tensor  # [G, 4] xyxy in pixels of the image
    labels: Tensor  # [G] int64, 0..C-1
    ignore: Tensor  # [G] bool


class Mark(NamedTuple):
    """A box to draw."""

    box: Tensor  # [4] xyxy in pixels of the image
    text: str  # "" for none
    colour: Colour


class _Tag(NamedTuple):
    text: str
    box: tuple[float, float, float, float]  # that it belongs to, xyxy in pixels of the picture
    background: Colour


class _Style(NamedTuple):
    """Sizes that suit one picture, in its pixels."""

    line: int
    font: Font
    padding: int


def class_colour(label: int) -> Colour:
    """RGB 0..255 of class ``label``: Okabe and Ito's for the first seven, which survive colour blindness.

    Black, their eighth, would drown in dark images. Later classes take golden steps in hue with three lightnesses.
    """
    if label < len(_OKABE_ITO):
        return _OKABE_ITO[label]
    step = label - len(_OKABE_ITO)
    hue = (0.93 + step * (math.sqrt(5) - 1) / 2) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, (0.38, 0.72, 0.55)[step % 3], 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    class_names: Sequence[str],
    truth: Truth | None = None,
    min_side: int = 0,
) -> Image.Image:
    """Draw detections, and ground truth where it is given, on a copy of one image.

    Lines run just outside their boxes, so that they hide nothing of small objects. Tags stay inside the picture, where
    they cover the least of other boxes and tags.

    Args:
        image: ``[3, H, W]`` uint8 RGB.
        boxes: ``[K, 4]`` xyxy in pixels of ``image``; only those to be drawn, so without padding.
        labels: ``[K]`` int64, 0..C-1.
        scores: ``[K]`` 0..1; None for boxes that have none.
        class_names: Names by label; a label beyond them shows its number.
        truth: Ground truth of the image.
        min_side: Enlarge the picture by a whole factor of up to 4 until its shorter side has this many pixels, so that
            tags on a small image can be read.

    Returns:
        RGB, of the size of ``image`` times the factor.
    """
    order = torch.arange(len(boxes)) if scores is None else torch.argsort(scores)
    found = []
    for i in order.tolist():
        label = int(labels[i])
        score = "" if scores is None else f" {float(scores[i]):.2f}"
        found.append(Mark(boxes[i], _name(class_names, label) + score, class_colour(label)))
    if truth is None:
        return draw_marks(image, found, (), None, min_side)
    present = [
        Mark(box, f"ignore {_name(class_names, label)}" if ignored else _name(class_names, label), _WHITE)
        for box, label, ignored in zip(truth.boxes, truth.labels.tolist(), truth.ignore.tolist(), strict=True)
    ]
    return draw_marks(image, found, present, truth.ignore, min_side)


def draw_marks(
    image: Tensor, solid: Sequence[Mark], dashed: Sequence[Mark], ignored: Tensor | None = None, min_side: int = 0
) -> Image.Image:
    """Draw boxes with their texts on a copy of one image, detections as solid lines and truths as dashed ones.

    Args:
        image: ``[3, H, W]`` uint8 RGB.
        solid: Detections, the most important last: it is on top, and its tag has the first choice of place.
        dashed: Truths.
        ignored: ``[len(dashed)]`` bool, truths that are dotted and hatched.
        min_side: As for :func:`draw_boxes`.

    Returns:
        RGB, of the size of ``image`` times the factor.
    """
    picture, factor = _enlarged(image, min_side)
    style = _style(picture)
    hatched = [False] * len(dashed) if ignored is None else ignored.tolist()
    regions = [mark.box * factor for mark, region in zip(dashed, hatched, strict=True) if region]
    picture = _hatched(picture, regions, style)
    pen = ImageDraw.Draw(picture)
    tags: list[_Tag] = []
    for mark in solid:
        box = _corners(mark.box * factor)
        _solid(pen, _around(box, style.line, picture), mark.colour, style.line)
        tags.append(_Tag(mark.text, box, mark.colour))
    tags.reverse()
    for mark, region in zip(dashed, hatched, strict=True):
        box = _corners(mark.box * factor)
        _dashed(pen, _around(box, style.line, picture), style.line, 1.2 if region else 4, mark.colour)
        tags.append(_Tag(mark.text, box, _BLACK if mark.colour == _WHITE else mark.colour))
    _draw_tags(pen, [tag for tag in tags if tag.text], picture.size, style)
    return picture


def shrunk(image: Tensor, longest: int) -> tuple[Tensor, float]:
    """An image ``[3, H, W]`` uint8 whose longer side is at most so many pixels, and its scale, 0..1."""
    height, width = image.shape[1:]
    scale = min(1.0, longest / max(height, width))
    if scale == 1:
        return image, scale
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1), scale


def contact_sheet(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Pictures in rows of ``columns``, in cells as large as the largest of them, with captions below where given.

    Raises:
        ValueError: there is no picture, or the captions are not as many as the pictures.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} pictures; give one for each")
    width, height = max(image.width for image in images), max(image.height for image in images)
    gap = max(4, round(0.02 * max(width, height)))
    font = _font(max(12, round(0.032 * max(width, height))))
    band = 0 if captions is None else round(font.getbbox("Ag")[3] * 1.4)
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + band + gap) + gap), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x = gap + (i % columns) * (width + gap)
        y = gap + (i // columns) * (height + band + gap)
        sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
        if captions is not None:
            pen.text((x, y + height + band * 0.1), _shortened(captions[i], font, width), _BLACK, font)
    return sheet


@lru_cache(maxsize=32)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _shortened(text: str, font: Font, width: int) -> str:
    """The text with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if label < len(class_names) else f"class {label}"


def _enlarged(image: Tensor, min_side: int) -> tuple[Image.Image, int]:
    """The image as a picture and the factor it was enlarged by."""
    height, width = image.shape[-2:]
    factor = max(1, min(_MAX_ENLARGEMENT, math.ceil(min_side / min(height, width))))
    picture = Image.fromarray(np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()))
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    return picture, factor


def _style(picture: Image.Image) -> _Style:
    side = math.sqrt(picture.width * picture.height)
    line, font, padding = max(1, round(side / 260)), max(10, round(side / 42)), max(1, round(side / 300))
    return _Style(line, _font(font), padding)


def _corners(box: Tensor) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


def _around(box: tuple[float, float, float, float], line: int, picture: Image.Image) -> tuple[int, int, int, int]:
    """Outer pixel corners, both inclusive, of a line around the box, moved inwards at the border of the picture."""
    x1, y1, x2, y2 = box
    left, top = max(0, round(x1) - line), max(0, round(y1) - line)
    right, bottom = min(picture.width, round(x2) + line) - 1, min(picture.height, round(y2) + line) - 1
    return min(left, picture.width - 1), min(top, picture.height - 1), max(right, left), max(bottom, top)


def _solid(pen: ImageDraw.ImageDraw, outer: tuple[int, int, int, int], colour: Colour, line: int) -> None:
    """A frame in one colour with a dark hairline inside and outside, which sets it off from any background."""
    x1, y1, x2, y2 = outer
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BLACK)
    pen.rectangle(outer, outline=colour, width=line)


def _dashed(pen: ImageDraw.ImageDraw, outer: tuple[int, int, int, int], line: int, dash: float, colour: Colour) -> None:
    """A frame of dashes, ``dash`` times the line's width long, edged in black, with see-through gaps."""
    x1, y1, x2, y2 = outer
    length = max(2, round(dash * line))
    inner_x, inner_y = max(x2 - line + 1, x1), max(y2 - line + 1, y1)
    dashes = [
        (x, y, min(x + length - 1, x2), y + line - 1) for x in range(x1, x2 + 1, 2 * length) for y in (y1, inner_y)
    ]
    dashes += [
        (x, y, x + line - 1, min(y + length - 1, y2)) for y in range(y1, y2 + 1, 2 * length) for x in (x1, inner_x)
    ]
    for left, top, right, bottom in dashes:
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=_BLACK)
    for place in dashes:
        pen.rectangle(place, fill=colour)


def _hatched(picture: Image.Image, boxes: Sequence[Tensor], style: _Style) -> Image.Image:
    """The picture with thin diagonals over the boxes ``[4]``, through which it can still be seen."""
    pixels = np.array(picture)
    for box in boxes:
        x1, y1, x2, y2 = (max(0, round(value)) for value in _corners(box))
        region = pixels[y1:y2, x1:x2]
        phase = np.add.outer(np.arange(region.shape[0]), np.arange(region.shape[1])) % (8 * style.line)
        region[phase < 2 * style.line] //= 2  # light and dark side by side show on any background
        region[phase < style.line] += 127
    return Image.fromarray(pixels)


def _draw_tags(pen: ImageDraw.ImageDraw, tags: Sequence[_Tag], size: tuple[int, int], style: _Style) -> None:
    """Draw the tags, the first of them with the first choice of place."""
    boxes = np.array([tag.box for tag in tags], dtype=np.float64).reshape(-1, 4)
    placed = np.zeros((0, 4))
    for tag in tags:
        x1, y1, x2, y2 = pen.textbbox((0, 0), tag.text, style.font)
        width, height = x2 - x1 + 2 * style.padding, y2 - y1 + 2 * style.padding
        left, top = _tag_place(tag.box, (width, height), size, boxes, placed, style.line)
        placed = np.append(placed, [[left, top, left + width, top + height]], axis=0)
        pen.rectangle((left, top, left + width - 1, top + height - 1), fill=tag.background)
        pen.text((left + style.padding - x1, top + style.padding - y1), tag.text, _ink(tag.background), style.font)


def _tag_place(
    box: tuple[float, float, float, float],
    tag: tuple[float, float],
    size: tuple[int, int],
    boxes: NDArray[np.float64],
    placed: NDArray[np.float64],
    line: int,
) -> tuple[int, int]:
    """Left top corner for a tag: outside its box, inside the picture, over as little of anything else as can be."""
    (x1, y1, x2, y2), (width, height) = box, tag
    over, under = y1 - height - line, y2 + line
    corners = np.array(
        [
            (x1 - line, over),
            (x1 - line, under),
            (x2 + line - width, over),
            (x2 + line - width, under),
            (x2 + line, y1 - line),
            (x1 - line - width, y1 - line),
            (x1, y1),
        ]
    )
    extent = np.array([width, height])
    corners = corners.round().clip(0, np.maximum(size - extent, 0))
    places = np.concatenate([corners, corners + extent], axis=1)
    hidden = _covered_share(places, boxes).sum(axis=1) + 3 * _covered_share(places, placed).sum(axis=1)
    best = int(np.argmin(hidden + 0.02 * np.arange(len(places))))  # among equals the earlier place
    return int(corners[best, 0]), int(corners[best, 1])


def _covered_share(places: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each of ``boxes [M, 4]`` each of ``places [P, 4]`` would cover, ``[P, M]`` 0..1."""
    overlap = np.minimum(places[:, None, 2:], boxes[:, 2:]) - np.maximum(places[:, None, :2], boxes[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).clip(1)
    share: NDArray[np.float64] = overlap.clip(0).prod(axis=2) / area
    return share


def _ink(background: Colour) -> Colour:
    """Black or white, whichever reads better on the background (by its WCAG luminance)."""
    red, green, blue = ((value / 255) ** 2.2 for value in background)
    return _BLACK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else _WHITE

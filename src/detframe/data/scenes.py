"""Scenes drawn by code with exact boxes: metal parts on workshop surfaces, as an inspection camera sees them.

Five classes of parts and, rare as in life, a foreign ``fragment``. Scenes vary in surface, light, scale, crowding and
overlap; a generator in the same state gives the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float32]

CLASS_NAMES = ("bolt", "nut", "washer", "gear", "bracket", "fragment")
RARE_CLASS = "fragment"
RARE_SHARE = 0.05
"""Share of the rare class among the boxes."""

MIN_VISIBLE = 0.7
"""Least share of an object's pixels that other objects and the image border leave visible."""

DRAWING_VERSION = 2
"""Part of a data set's identity: raise it whenever the drawn pixels change."""

_OVERLAP_SHARE = 0.35  # of the objects may lie on others
_SUPERSAMPLING = 2
_EDGE_ALPHA = 0.2  # from this coverage on, an antialiased edge pixel belongs to the object


class Scene(NamedTuple):
    """One drawn image with its ground truth."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    boxes: NDArray[np.float64]  # [N, 4] xyxy in pixels, around the visible pixels of each object
    labels: NDArray[np.int64]  # [N] positions in CLASS_NAMES
    areas: NDArray[np.float64]  # [N] visible pixels of the object itself
    surface: str


class Sprite(NamedTuple):
    """One object by itself, cut to its pixels."""

    rgb: Floats  # [h, w, 3] 0..1
    alpha: Floats  # [h, w] 0..1


# ---------------------------------------------------------------------------------------------------------------------
# parts: each draws a height map, 0 where there is no part, into a square that it fills from side to side


def _circle(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, height: int) -> None:
    x, y = centre
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=height)


def _ring_of_points(centre: float, radii: list[float], angles: list[float]) -> list[tuple[float, float]]:
    return [(centre + r * math.cos(a), centre + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _draw_bolt(pen: ImageDraw.ImageDraw, side: float, rng: np.random.Generator) -> None:
    middle = side / 2
    shaft = side * rng.uniform(0.085, 0.12)  # half widths
    head = shaft * rng.uniform(1.8, 2.2)
    head_end = side * rng.uniform(0.16, 0.22)
    pen.rectangle((head_end, middle - shaft, side - 1, middle + shaft), fill=150)
    pitch = side * 0.06
    for step in range(int((side - head_end) * 0.7 / pitch)):
        x = side - 1 - step * pitch
        pen.line((x, middle - shaft, x - 0.6 * pitch, middle + shaft), fill=85, width=max(1, round(pitch * 0.42)))
    pen.rounded_rectangle((0, middle - head, head_end, middle + head), radius=head * 0.25, fill=190)
    pen.rectangle((head_end * 0.15, middle - head * 0.45, head_end * 0.9, middle + head * 0.45), fill=225)


def _draw_nut(pen: ImageDraw.ImageDraw, side: float, rng: np.random.Generator) -> None:
    middle = side / 2
    pen.polygon(_ring_of_points(middle, [middle] * 6, [math.pi / 3 * i for i in range(6)]), fill=150)
    _circle(pen, (middle, middle), middle * 0.84, 205)
    bore = middle * rng.uniform(0.40, 0.48)
    _circle(pen, (middle, middle), bore * 1.18, 130)
    _circle(pen, (middle, middle), bore, 0)


def _draw_washer(pen: ImageDraw.ImageDraw, side: float, rng: np.random.Generator) -> None:
    middle = side / 2
    _circle(pen, (middle, middle), middle, 170)
    _circle(pen, (middle, middle), middle * rng.uniform(0.56, 0.7), 0)


def _draw_gear(pen: ImageDraw.ImageDraw, side: float, rng: np.random.Generator) -> None:
    middle = side / 2
    teeth = int(rng.integers(9, 15))
    step = 2 * math.pi / teeth
    angles = [step * i + step * part for i in range(teeth) for part in (-0.3, -0.16, 0.16, 0.3)]
    pen.polygon(_ring_of_points(middle, [0.78 * middle, middle, middle, 0.78 * middle] * teeth, angles), fill=180)
    _circle(pen, (middle, middle), middle * 0.62, 135)
    if rng.random() < 0.5:
        for hole in _ring_of_points(0, [0.43 * middle] * 5, [2 * math.pi / 5 * i for i in range(5)]):
            _circle(pen, (middle + hole[0], middle + hole[1]), middle * 0.12, 0)
    _circle(pen, (middle, middle), middle * 0.28, 205)
    _circle(pen, (middle, middle), middle * 0.15, 0)


def _draw_bracket(pen: ImageDraw.ImageDraw, side: float, rng: np.random.Generator) -> None:
    end = side - 1
    arm = side * rng.uniform(0.26, 0.36)
    length = side * rng.uniform(0.7, 1.0)
    radius = arm * 0.3
    pen.rounded_rectangle((0, 0, end, arm), radius=radius, fill=150)
    pen.rounded_rectangle((0, 0, arm, min(length, end)), radius=radius, fill=185)
    for x, y in ((side - arm * 0.6, arm / 2), (side * 0.55, arm / 2), (arm / 2, length - arm * 0.6)):
        _circle(pen, (x, y), arm * 0.22, 0)


def _draw_fragment(pen: ImageDraw.ImageDraw, side: float, rng: np.random.Generator) -> None:
    middle = side / 2
    corners = int(rng.integers(5, 8))
    angles = [2 * math.pi * (i + rng.uniform(-0.25, 0.25)) / corners for i in range(corners)]
    radii = [middle * rng.uniform(0.55, 1.0) for _ in range(corners)]
    points = _ring_of_points(middle, radii, angles)
    for i in range(corners):
        pen.polygon([(middle, middle), points[i - 1], points[i]], fill=int(rng.integers(90, 230)))


class _Part(NamedTuple):
    draw: Callable[[ImageDraw.ImageDraw, float, np.random.Generator], None]
    sizes: tuple[float, float]  # pixels, of the longest side before rotation


_PARTS = {
    "bolt": _Part(_draw_bolt, (38, 100)),
    "nut": _Part(_draw_nut, (24, 60)),
    "washer": _Part(_draw_washer, (22, 60)),
    "gear": _Part(_draw_gear, (32, 92)),
    "bracket": _Part(_draw_bracket, (34, 88)),
    "fragment": _Part(_draw_fragment, (22, 52)),
}
_METALS = ((0.74, 0.76, 0.79), (0.64, 0.66, 0.68), (0.83, 0.68, 0.36), (0.78, 0.50, 0.36), (0.24, 0.24, 0.27))
_METAL_SHARES = (0.36, 0.24, 0.18, 0.12, 0.10)
_PLASTICS = ((0.82, 0.16, 0.14), (0.14, 0.34, 0.78), (0.12, 0.58, 0.30), (0.90, 0.45, 0.10), (0.55, 0.20, 0.60))


def draw_part(name: str, size: float, angle: float, light: float, rng: np.random.Generator) -> Sprite:
    """Draw one object on nothing.

    Args:
        name: One of :data:`CLASS_NAMES`.
        size: Longest side before rotation, in pixels.
        angle: Rotation in degrees.
        light: Direction that the light comes from, in radians, 0 to the right and a quarter turn down.
        rng: Decides on proportions and material.
    """
    side = round(size * _SUPERSAMPLING)
    upright = Image.new("L", (side, side))
    _PARTS[name].draw(ImageDraw.Draw(upright), side, rng)
    margin = 2 * _SUPERSAMPLING
    turned = upright.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    width, height = (math.ceil((s + 2 * margin) / _SUPERSAMPLING) * _SUPERSAMPLING for s in turned.size)
    heights = Image.new("L", (width, height))
    heights.paste(turned, (margin, margin))

    is_plastic = name == RARE_CLASS
    base = rng.choice(_PLASTICS) if is_plastic else rng.choice(_METALS, p=_METAL_SHARES)
    base = np.clip(base * rng.uniform(0.88, 1.1) + rng.uniform(-0.03, 0.03, 3), 0.05, 0.95).astype(np.float32)
    rgb = _shade(heights, base, light, 0.25 if is_plastic else 0.5)
    rgb *= 1 + 0.05 * rng.standard_normal((height, 1, 1), dtype=np.float32)  # the grain that machining leaves

    mask = heights.point(lambda value: 255 if value >= 45 else 0)
    alpha = np.asarray(mask.reduce(_SUPERSAMPLING))
    colours = np.asarray(Image.fromarray((rgb.clip(0, 1) * 255).astype(np.uint8)).reduce(_SUPERSAMPLING))
    rows, columns = _extent(alpha >= _EDGE_ALPHA * 255)
    return Sprite(_unit(colours[rows, columns]), _unit(alpha[rows, columns]))


def _unit(values: NDArray[np.uint8]) -> Floats:
    """0..255 as 0..1."""
    scaled: Floats = values.astype(np.float32) / np.float32(255)
    return scaled


def _shade(heights: Image.Image, base: Floats, light: float, gloss: float) -> Floats:
    """Colour ``[h, w, 3]`` of a height map lit from one side: Lambert and Blinn-Phong on its blurred slopes."""
    bevel = np.asarray(
        heights.filter(ImageFilter.GaussianBlur(min(0.7 + 0.01 * max(heights.size), 3.0))), dtype=np.float32
    )
    slope_y, slope_x = np.gradient(bevel * (0.014 * _SUPERSAMPLING))
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    light_x, light_y, light_z = 0.62 * math.cos(light), 0.62 * math.sin(light), 0.78
    diffuse = (light_z - slope_x * light_x - slope_y * light_y) / length
    norm = math.sqrt(light_x**2 + light_y**2 + (light_z + 1) ** 2)  # of the vector halfway to the camera
    halfway = (light_z + 1 - slope_x * light_x - slope_y * light_y) / (length * norm)
    specular = halfway.clip(0, 1)
    for _ in range(4):  # ** 16, several times as fast as numpy's power
        specular = specular * specular
    lit = base * (0.25 + 0.85 * diffuse.clip(0, None))[..., None] + (0.28 * gloss * specular)[..., None]
    return np.asarray(lit, dtype=np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# surfaces: [H, W, 3] 0..1


def _noise(rng: np.random.Generator, height: int, width: int, cell_height: float, cell_width: float) -> Floats:
    """Smooth noise ``[height, width]`` of about -1..1 with cells of the given size in pixels."""
    shape = (max(2, round(height / cell_height)), max(2, round(width / cell_width)))
    coarse = Image.fromarray(rng.uniform(-1, 1, shape).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _tinted(value: Floats, colour: tuple[float, float, float]) -> Floats:
    return value[..., None] * np.array(colour, dtype=np.float32)


def _steel(rng: np.random.Generator, height: int, width: int) -> Floats:
    grain = _noise(rng, height, width, 1, 60) * 0.05 + _noise(rng, height, width, 2, 25) * 0.03
    value = rng.uniform(0.40, 0.60) + grain + _noise(rng, height, width, 90, 90) * 0.05
    return _tinted(value, (0.97, 1.0, 1.04))


def _wood(rng: np.random.Generator, height: int, width: int) -> Floats:
    rows = np.arange(height, dtype=np.float32)[:, None]
    warp = _noise(rng, height, width, 40, 160) * 9 + _noise(rng, height, width, 12, 90) * 2
    rings = np.sin((rows + warp) * rng.uniform(0.25, 0.45))
    fibre = _noise(rng, height, width, 1, 18) * 0.05
    value = rng.uniform(0.62, 0.80) + 0.06 * rings + fibre + _noise(rng, height, width, 64, 200) * 0.05
    return _tinted(value, (0.98, rng.uniform(0.70, 0.78), rng.uniform(0.42, 0.55)))


def _belt(rng: np.random.Generator, height: int, width: int) -> Floats:
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)
    pitch = rng.uniform(0.55, 0.9)
    weave = np.sin((x + y) * pitch) * np.sin((x - y) * pitch)
    value = rng.uniform(0.22, 0.34) + 0.025 * weave + _noise(rng, height, width, 50, 50) * 0.04
    return _tinted(value + _noise(rng, height, width, 2, 2) * 0.02, (0.92, rng.uniform(1.0, 1.12), 1.05))


def _concrete(rng: np.random.Generator, height: int, width: int) -> Floats:
    value = np.full((height, width), rng.uniform(0.48, 0.66), dtype=np.float32)
    for cell, weight in ((70, 0.07), (20, 0.04), (5, 0.035), (2, 0.04)):
        value += weight * _noise(rng, height, width, cell, cell)
    return _tinted(value, (1.02, 1.0, 0.95))


def _mat(rng: np.random.Generator, height: int, width: int) -> Floats:
    value = 1 + _noise(rng, height, width, 60, 60) * 0.06 + _noise(rng, height, width, 2, 2) * 0.03
    pitch = int(rng.integers(26, 40))
    start_x, start_y = rng.integers(0, pitch, 2)
    value[start_y::pitch] *= 1.22
    value[:, start_x::pitch] *= 1.22
    colours = ((0.16, 0.40, 0.34), (0.20, 0.32, 0.50), (0.34, 0.36, 0.40))
    return _tinted(value, colours[rng.integers(len(colours))])


_SURFACES = {"steel": _steel, "wood": _wood, "belt": _belt, "concrete": _concrete, "mat": _mat}


# ---------------------------------------------------------------------------------------------------------------------
# scenes


def draw_scene(rng: np.random.Generator, objects: int) -> Scene:
    """Draw one image with up to ``objects`` objects; those that find no place where they would be seen are left out.

    Landscape 320 x 256 pixels, one in seven portrait. Boxes enclose the visible pixels of their objects.
    """
    height, width = (320, 256) if rng.random() < 1 / 7 else (256, 320)
    surface = str(rng.choice(list(_SURFACES)))
    canvas = _SURFACES[surface](rng, height, width).astype(np.float32)
    light = rng.uniform(0, 2 * math.pi)
    scale = rng.uniform(0.72, 0.9) if objects > 12 else rng.uniform(0.85, 1.2)
    owner = np.full((height, width), -1, dtype=np.int64)
    labels: list[int] = []
    full_areas: list[int] = []
    for _ in range(objects):
        name = _random_class(rng)
        low, high = _PARTS[name].sizes
        size = max(16.0, min(100.0, scale * math.exp(rng.uniform(math.log(low), math.log(high)))))
        sprite = draw_part(name, size, rng.uniform(0, 360), light, rng)
        place = _find_place(owner, full_areas, sprite, rng)
        if place is not None:
            _cast_shadow(canvas, sprite, place, light)
            owner[paste(canvas, sprite, place)] = len(labels)
            labels.append(CLASS_NAMES.index(name))
            full_areas.append(int((sprite.alpha >= _EDGE_ALPHA).sum()))
    boxes = np.zeros((len(labels), 4))
    areas = np.zeros(len(labels))
    for i in range(len(labels)):
        rows, columns = _extent(owner == i)
        boxes[i] = columns.start, rows.start, columns.stop, rows.stop
        areas[i] = (owner == i).sum()
    return Scene(_photograph(canvas, rng), boxes, np.array(labels, dtype=np.int64), areas, surface)


def _random_class(rng: np.random.Generator) -> str:
    if rng.random() < RARE_SHARE:
        return RARE_CLASS
    return str(rng.choice([name for name in CLASS_NAMES if name != RARE_CLASS]))


def _extent(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns that the True pixels of a mask reach over."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _overlap(shape: tuple[int, ...], sprite: Sprite, place: tuple[int, int]) -> tuple[tuple[slice, slice], Sprite]:
    """Part of a canvas that a sprite at ``place`` (row, column of its corner) covers, and that part of the sprite."""
    (height, width), (top, left) = sprite.alpha.shape, place
    up, down = max(0, -top), min(height, shape[0] - top)
    start, stop = max(0, -left), min(width, shape[1] - left)
    cut = (slice(up, down), slice(start, stop))
    window = (slice(top + up, top + down), slice(left + start, left + stop))
    return window, Sprite(sprite.rgb[cut], sprite.alpha[cut])


def _find_place(
    owner: NDArray[np.int64], full_areas: list[int], sprite: Sprite, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Corner (row, column) where the sprite and all objects below it stay visible enough, or None after 20 tries."""
    (rows, columns), (height, width) = owner.shape, sprite.alpha.shape
    may_overlap = rng.random() < _OVERLAP_SHARE
    visible = np.bincount(owner[owner >= 0], minlength=len(full_areas))
    for _ in range(20):
        top = int(rng.integers(-height // 5, rows - height + height // 5 + 1))
        left = int(rng.integers(-width // 5, columns - width + width // 5 + 1))
        window, seen = _overlap(owner.shape, sprite, (top, left))
        mask = seen.alpha >= _EDGE_ALPHA
        covered = owner[window][mask]
        remaining = visible - np.bincount(covered[covered >= 0], minlength=len(full_areas))
        enough = mask.sum() >= MIN_VISIBLE * (sprite.alpha >= _EDGE_ALPHA).sum()
        least = MIN_VISIBLE * np.array(full_areas) if may_overlap else visible
        if enough and (remaining >= least).all():
            return top, left
    return None


def _cast_shadow(canvas: Floats, sprite: Sprite, place: tuple[int, int], light: float) -> None:
    """Darken the canvas on the far side of an object, in place."""
    pad = 8
    shape = Image.fromarray((np.pad(sprite.alpha, pad) * 255).astype(np.uint8))
    soft = _unit(np.asarray(shape.filter(ImageFilter.GaussianBlur(2.2))))
    top = place[0] - pad - round(3 * math.sin(light))
    left = place[1] - pad - round(3 * math.cos(light))
    window, seen = _overlap(canvas.shape, Sprite(np.zeros((*soft.shape, 3), dtype=np.float32), soft), (top, left))
    canvas[window] *= 1 - 0.5 * seen.alpha[..., None]


def paste(canvas: Floats, sprite: Sprite, place: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw a sprite into the canvas, in place, and return the mask ``[H, W]`` of the pixels that are now its own."""
    window, seen = _overlap(canvas.shape, sprite, place)
    alpha = seen.alpha[..., None]
    canvas[window] = canvas[window] * (1 - alpha) + seen.rgb * alpha
    mask = np.zeros(canvas.shape[:2], dtype=np.bool_)
    mask[window] = seen.alpha >= _EDGE_ALPHA
    return mask


def _photograph(canvas: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a camera makes of a scene: uneven light, white balance, exposure, a little blur, noise and 8 bits."""
    height, width = canvas.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    direction = rng.uniform(0, 2 * math.pi)
    light = 1 + rng.uniform(0, 0.16) * (x * math.cos(direction) + y * math.sin(direction))
    light *= 1 - rng.uniform(0, 0.14) * (x**2 + y**2) / 2
    light *= rng.uniform(0.85, 1.12)
    lit = canvas * light[..., None] * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    image = Image.fromarray((lit.clip(0, 1) * 255).astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7))), dtype=np.float32)
    noisy = blurred + rng.uniform(1.5, 5.5) * rng.standard_normal(blurred.shape, dtype=np.float32)
    return np.asarray(np.rint(noisy.clip(0, 255)), dtype=np.uint8)

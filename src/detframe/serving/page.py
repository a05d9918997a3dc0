"""The page that shows what is found in an image, and the headers that keep it and all else where they belong."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from starlette.responses import Response

from detframe.drawing import class_colour

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Of every answer: the page loads nothing from elsewhere, and no answer is kept on the way."""

_COLOURS = 80
"""More classes than that begin anew; nobody tells them apart by colour."""


@cache
def page() -> Response:
    """The page, with the colours that pictures have."""
    content = files("detframe.serving").joinpath("page.html").read_text(encoding="utf-8")
    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in map(class_colour, range(_COLOURS))]
    return Response(content.replace('"COLOURS"', json.dumps(colours)), media_type="text/html; charset=utf-8")

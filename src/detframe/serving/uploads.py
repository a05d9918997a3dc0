"""What a request to /predict asks: the images in its body, their headers looked at, nothing decoded."""

from __future__ import annotations

import base64
import binascii
import json
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from detframe.data.images import ImageError, ImageTooLargeError, SentImage, image_size
from detframe.serving.limits import Limits, Refusal

_SAMPLE = 'Send images as files of multipart/form-data, or {"images": ["<base64>", ...]} as application/json.'


class Job(NamedTuple):
    """What one request asks."""

    images: list[SentImage]
    pixels: int  # of all of them together
    all: bool  # every valid detection, and not only the confident ones


async def read_images(request: Request, limits: Limits) -> list[SentImage]:
    """The images of a body, still encoded.

    Raises:
        Refusal: The body is of another type, is malformed, or has no image or too many.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = await _of_form(request, limits)
    elif kind == "application/json":
        images = await run_in_threadpool(_of_json, await request.body())
    else:
        raise Refusal(415, f"The body is {kind or 'of no stated type'}. {_SAMPLE}")
    if not images:
        raise Refusal(400, f"The body has no image. {_SAMPLE}")
    if len(images) > limits.batch:
        raise Refusal(413, _too_many(len(images), limits))
    return images


async def _of_form(request: Request, limits: Limits) -> list[SentImage]:
    _, options = parse_options_header(request.headers["content-type"])
    # Of a form without an end, Starlette would drop the last part in silence.
    if b"--%b--" % options.get(b"boundary", b"\n") not in (await request.body())[-1024:]:
        raise Refusal(400, f"The form is cut off, or its boundary is not the one that the header states. {_SAMPLE}")
    try:
        # One more than is taken, so that the refusal is ours.
        async with request.form(max_files=limits.batch + 1, max_fields=limits.batch + 1) as form:
            parts = form.multi_items()
            files = [part for _, part in parts if isinstance(part, UploadFile)]
            if len(files) < len(parts):
                names = ", ".join(repr(name) for name, part in parts if not isinstance(part, UploadFile))
                raise Refusal(400, f"The parts {names} are fields and no files; give each image a filename.")
            return [
                SentImage(await file.read(), _name(number, len(files), file.filename or ""))
                for number, file in enumerate(files, 1)
            ]
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise Refusal(413, _too_many(limits.batch + 1, limits)) from error
        raise Refusal(400, f"The form is malformed ({error.message.rstrip('.')}). {_SAMPLE}") from error


def _of_json(body: bytes) -> list[SentImage]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is no JSON ({error}). {_SAMPLE}") from error
    encoded = content.get("images") if isinstance(content, dict) else None
    if not isinstance(encoded, list) or not all(isinstance(text, str) for text in encoded):
        raise Refusal(400, f'The JSON has no list "images" of texts. {_SAMPLE}')
    images = []
    for number, text in enumerate(encoded, 1):
        name = _name(number, len(encoded), "")
        try:
            images.append(SentImage(base64.b64decode(text, validate=True), name))
        except (binascii.Error, ValueError) as error:  # a character beyond ASCII is the latter
            raise Refusal(
                400, f"{name}: is no base64 ({error}); encode the file's bytes, with no data: before them."
            ) from error
    return images


def check_headers(images: list[SentImage], everything: bool, limits: Limits) -> Job:
    """The job, if the images' headers are sound and small enough: what would fill the memory is never decoded.

    Raises:
        Refusal: An image is none, or all together have too many pixels.
    """
    pixels = 0
    for image in images:
        try:
            height, width = image_size(image)
        except ImageTooLargeError as error:
            raise Refusal(413, f"{error}.") from error
        except ImageError as error:
            raise Refusal(400, f"{error}.") from error
        pixels += height * width
    if pixels > limits.pixels:
        one = f"{images[0]}: has" if len(images) == 1 else f"The {len(images)} images together have"
        cure = "send it smaller or cut it into tiles" if len(images) == 1 else "send fewer at a time"
        raise Refusal(413, f"{one} {pixels} pixels, more than the limit of {limits.pixels}; {cure}.")
    return Job(images, pixels, everything)


def _name(number: int, count: int, file_name: str) -> str:
    """What messages call an image; a name from outside is shortened and cannot break a line."""
    place = "image" if count == 1 else f"image {number} of {count}"
    shown = "".join(character for character in file_name if character.isprintable())[-80:]
    return f"{place} ({shown})" if shown else place


def _too_many(count: int, limits: Limits) -> str:
    return f"The request has {count} images or more, over the limit of {limits.batch}; send fewer at a time."

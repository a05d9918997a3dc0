"""Read image files: any bit depth, palette, alpha and EXIF orientation to one uint8 RGB tensor, or one clear error.

Pillow decodes: torchvision's decoder is 1.7 times as fast on colour JPEG, slower on grey, and reads neither TIFF nor
16 bits to uint8, and CMYK in wrong colours.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

# Named, because Pillow would otherwise try every plugin that it has, of which EPS runs Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")

BACKGROUND = (255, 255, 255)
"""RGB colour behind transparent pixels: what a labelling page in a browser shows."""

_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0


class ImageError(ValueError):
    """An image file that cannot be used; the message names the file, what is wrong and what to do."""


class ImageTooLargeError(ImageError):
    """More pixels than Pillow's limit, by the header alone: nothing has been decoded."""


class SentImage(NamedTuple):
    """The content of an image file that came by another way than the disk, such as a request."""

    content: bytes
    name: str  # for messages

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The content as a file; the mode is that of a path's ``open``."""
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        """Its name."""
        return self.name


def read_image(path: Path | SentImage) -> Tensor:
    """Decode the first frame of an image file to uint8 RGB ``[3, H, W]``, turned as its EXIF orientation says.

    * Grey of 9 to 16 bits is scaled by its range and rounded, 65535 to 255, never by its content: a picture keeps its
      brightness relative to the others. Only the 12-bit mode of TIFF has 4095 as white.
    * Integers of 32 bits are read as 16-bit values, floats as 0..1; values outside are an error and no guess.
    * Alpha, also that of palettes and of a transparent colour, is composited over :data:`BACKGROUND`, so that pixels
      nobody saw when labelling stay unseen. Opaque pixels keep their exact colour.
    * CMYK is converted without a colour profile; inverted CMYK as Adobe writes it into JPEG is recognised.

    Raises:
        ImageError: the file is missing, empty, cut off, damaged, too large (:class:`ImageTooLargeError`), or has pixels
            of no defined brightness.
    """
    with _opened(path) as image:
        image.load()
        return _to_rgb(_upright(image), path)


def image_size(path: Path | SentImage) -> tuple[int, int]:
    """``(height, width)`` in pixels as :func:`read_image` returns it, from the header without decoding.

    Pixels are decoded in one case: a PNG that has its orientation behind its pixels.

    Raises:
        ImageError: the file is missing, empty, too large (:class:`ImageTooLargeError`) or no image. Damage behind the
            header is not seen.
    """
    with _opened(path) as image:
        if image.format == "PNG" and _has_late_orientation(path):
            image.load()
        width, height = image.size
        # Pillow swaps the size of a TIFF by itself when it opens it.
        if image.format != "TIFF" and _orientation(image) in _SWAPS_SIDES:
            width, height = height, width
    return height, width


def read_thumbnail(path: Path, side: int) -> NDArray[np.uint8]:
    """Decode an image file to grey ``[side, side]`` pixels, whatever its shape, upright and otherwise as read_image.

    A large JPEG is decoded at a fraction of its size, three times as fast.

    Raises:
        ImageError: As of :func:`read_image`.
    """
    with _opened(path) as image:
        image.draft("L", (side * 3 // 2, side * 3 // 2))  # Pillow takes the next larger of 1/1, 1/2, 1/4 and 1/8
        image.load()
        image = _upright(image)
        if image.mode not in ("1", "L", "RGB") or image.has_transparency_data:
            image = Image.fromarray(_to_rgb(image, path).permute(1, 2, 0).numpy())
        return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX))


class ImageHeader(NamedTuple):
    """What an image file says of itself before its pixels."""

    format: str  # one of FORMATS
    orientation: int  # EXIF, 1..8; 1 where none is stated
    quantisation: tuple[int, ...]  # the 64 steps of a JPEG's brightness, () of other formats


def read_header(path: Path) -> ImageHeader:
    """Format, orientation and JPEG tables of an image file, without decoding its pixels.

    Raises:
        ImageError: the file is missing, empty, too large or no image.
    """
    with _opened(path) as image:
        tables = image.quantization if isinstance(image, JpegImageFile) else {}
        return ImageHeader(image.format or "", _orientation(image), tuple(tables.get(0, ())))


def web_media_type(path: Path) -> str:
    """Media type of a file that web browsers show as :func:`read_image` reads it, "" of one that has to be converted.

    JPEG but in CMYK and PNG but for greys of 16 bits and stated orientations, which not every browser heeds there.

    Raises:
        ImageError: the file is missing, empty, too large or no image.
    """
    with _opened(path) as image:
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            return "image/jpeg"
        plain = image.format == "PNG" and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA")
        return "image/png" if plain and _orientation(image) == 1 and not _has_late_orientation(path) else ""


@contextmanager
def _opened(path: Path | SentImage) -> Iterator[Image.Image]:
    """Open an image and turn everything that goes wrong until it is closed into an :class:`ImageError`."""
    try:
        # Given a path, Pillow maps uncompressed files into memory, and then garbles a TIFF of orientation 5 to 8.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            # Pillow only warns up to twice its limit. Its filter for warnings is global, hence not safe in threads.
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            yield image
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        cure = "" if isinstance(path, SentImage) else ", or raise PIL.Image.MAX_IMAGE_PIXELS if the file can be trusted"
        limit = Image.MAX_IMAGE_PIXELS
        raise ImageTooLargeError(
            f"{path}: more pixels than the limit of {limit} ({error}); cut the image into tiles{cure}"
        ) from error
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        raise ImageError(f"{path}: {_explanation(path, error)}") from error


def _explanation(path: Path | SentImage, error: Exception) -> str:
    """What went wrong and the cure, for a person who has the file name but not the traceback."""
    again = "send it again" if isinstance(path, SentImage) else "copy it again or remove it from the annotations"
    if isinstance(error, UnidentifiedImageError):
        if _is_empty(path):
            return f"the file is empty (0 bytes); {again}"
        return (
            f"not an image, or its header is damaged; readable are {', '.join(FORMATS)}, convert other formats to PNG"
        )
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOENT:
            return "no such file; check the image folder and the file name in the annotations"
        return f"cannot be opened ({error.strerror}); check that it is a file and that you may read it"
    return f"damaged or cut off ({error}); {again}"


def _is_empty(path: Path | SentImage) -> bool:
    with path.open("rb") as file:
        return not file.read(1)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8, from what has been read of the file so far."""
    try:
        # PNG's own getexif() decodes the pixels to reach metadata behind them.
        exif = Image.Image.getexif(image)
    except Exception:  # broken EXIF beside sound pixels: every viewer shows them as stored
        return 1
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in _TRANSPOSE_BY_ORIENTATION else 1


def _upright(image: Image.Image) -> Image.Image:
    """The decoded image turned as a viewer shows it (a TIFF has been turned by Pillow and states no orientation)."""
    method = _TRANSPOSE_BY_ORIENTATION.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _has_late_orientation(path: Path | SentImage) -> bool:
    """Whether a PNG has metadata that may state an orientation behind its pixels, as ImageMagick and ExifTool do."""
    with path.open("rb") as file:
        file.seek(8)
        pixels_seen = False
        for kind, start in _png_chunks(file):
            if kind == b"IDAT":
                pixels_seen = True
            elif pixels_seen and (
                kind == b"eXIf" or start.startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"))
            ):
                return True
    return False


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Type and up to 22 bytes of the content of each chunk of a PNG, from the position of the file onward."""
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        start = file.read(min(length, 22))
        yield head[4:], start
        file.seek(length - len(start) + 4, 1)  # the rest of the content and its checksum


def _to_rgb(image: Image.Image, path: Path | SentImage) -> Tensor:
    """A decoded image of any mode as uint8 RGB ``[3, H, W]``."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _repeat_grey(_to_8_bit(image, path))
    if image.has_transparency_data:
        visible = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", visible.size, (*BACKGROUND, 255)), visible)
    if image.mode in ("1", "L"):
        return _repeat_grey(np.asarray(image.convert("L")))
    # Channels stay together in memory, as torchvision leaves them: resizing from there is 1.4 times as fast.
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]


def _repeat_grey(grey: NDArray[np.uint8]) -> Tensor:
    """Grey ``[H, W]`` as ``[3, H, W]``, plane by plane in memory: 2.7 times as fast as by way of Pillow's RGB."""
    return torch.from_numpy(np.repeat(grey[None], 3, axis=0))


def _to_8_bit(image: Image.Image, path: Path | SentImage) -> NDArray[np.uint8]:
    """Grey pixels of more than 8 bits, integer or float, scaled by their range to 0..255 ``[H, W]`` and rounded."""
    values = np.asarray(image)
    white = 1 if image.mode == "F" else 65535
    inverted = False
    if isinstance(image, TiffImageFile):  # Pillow leaves both of these to the caller above 8 bits
        white = 4095 if image.tag_v2.get(_TIFF_BITS_PER_SAMPLE) == (12,) else white
        inverted = image.tag_v2.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # in this form NaN fails too
        raise ImageError(
            f"{path}: {'float' if image.mode == 'F' else 'integer'} pixels of {low:g} to {high:g} have no defined "
            f"brightness; scale them to 0..{white} or store the image with 8 or 16 bits"
        )
    if inverted:
        values = white - values
    if image.mode == "F":
        scaled = np.floor(values * np.float32(255) + np.float32(0.5))
    else:
        scaled = (values.astype(np.uint32) * 255 + white // 2) // white
    return np.asarray(scaled, dtype=np.uint8)

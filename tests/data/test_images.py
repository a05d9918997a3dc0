from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin

from detframe.data.images import (
    BACKGROUND,
    ImageError,
    ImageTooLargeError,
    SentImage,
    image_size,
    read_image,
    web_media_type,
)

# From the EXIF standard, independently of Pillow's transpositions: how the picture as seen becomes the stored one.
STORED_BY_ORIENTATION: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}


@pytest.fixture
def colours() -> NDArray[np.uint8]:
    """RGB noise [5, 7, 3], no two rows or columns alike."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def pixels(path: Path) -> NDArray[np.uint8]:
    """The file as [H, W, 3], after checks that hold for every file."""
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert tuple(image.shape[1:]) == image_size(path)
    image += 0  # the memory is the caller's own
    return image.permute(1, 2, 0).numpy()


def grey(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, axis=-1)


def tiff(bits: int, photometric: int, width: int, height: int, strip: bytes) -> bytes:
    """A minimal uncompressed little-endian grey TIFF."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 279: len(strip)}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + strip


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_rgb_is_read_exactly(tmp_path: Path, colours: NDArray[np.uint8], suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(colours).save(path, lossless=True)  # an option of WebP, which others leave aside
    np.testing.assert_array_equal(pixels(path), colours)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit_and_grey(tmp_path: Path, colours: NDArray[np.uint8], suffix: str) -> None:
    shades = colours[..., 0]
    Image.fromarray(shades).save(tmp_path / f"grey.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"grey.{suffix}"), grey(shades))

    bits = shades > 127
    Image.fromarray(bits).save(tmp_path / f"bits.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"bits.{suffix}"), grey(bits.astype(np.uint8) * 255))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_by_its_range_and_rounded(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257], [385, 386, 32768, 65535]], dtype=np.uint16)
    expected = np.array([[0, 0, 1, 1], [1, 2, 128, 255]], dtype=np.uint8)  # value / 257, to the nearest
    Image.fromarray(values).save(tmp_path / f"image.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"image.{suffix}"), grey(expected))


def test_all_16_bit_values_round_to_the_nearest(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "all.png")
    np.testing.assert_array_equal(pixels(tmp_path / "all.png")[..., 1], np.rint(values / 257).astype(np.uint8))


def test_big_endian_16_bit_tiff(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x00\x00\x80\x80")
    image.save(tmp_path / "image.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "image.tif")[..., 0], [[0, 128]])


def test_12_bit_tiff_has_its_own_white(tmp_path: Path) -> None:
    (tmp_path / "image.tif").write_bytes(tiff(12, 1, 2, 1, b"\xff\xf8\x00"))  # 4095, 2048
    np.testing.assert_array_equal(pixels(tmp_path / "image.tif")[..., 0], [[255, 128]])


def test_16_bit_tiff_with_white_as_zero_is_inverted(tmp_path: Path) -> None:
    (tmp_path / "image.tif").write_bytes(tiff(16, 0, 2, 1, struct.pack("<HH", 0, 65535)))
    np.testing.assert_array_equal(pixels(tmp_path / "image.tif")[..., 0], [[255, 0]])


def test_32_bit_integers_are_16_bit_values(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.int32)).save(tmp_path / "image.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "image.tif")[..., 0], [[0, 128, 255]])


def test_floats_are_0_to_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "image.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "image.tif")[..., 0], [[0, 128, 255]])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[0, 65536]], dtype=np.int32), "integer pixels of 0 to 65536 .* scale them to 0..65535"),
        (np.array([[-1, 5]], dtype=np.int32), "integer pixels of -1 to 5"),
        (np.array([[0, 200]], dtype=np.float32), r"float pixels of 0 to 200 .* scale them to 0\.\.1 "),
        (np.array([[0, np.nan]], dtype=np.float32), "float pixels of nan"),
    ],
)
def test_pixels_without_defined_brightness_are_refused(
    tmp_path: Path, values: NDArray[np.int32] | NDArray[np.float32], found: str
) -> None:
    Image.fromarray(values).save(tmp_path / "image.tif")
    with pytest.raises(ImageError, match=rf"image\.tif: {found}"):
        read_image(tmp_path / "image.tif")


def test_palette(tmp_path: Path, colours: NDArray[np.uint8]) -> None:
    image = Image.frombytes("P", (3, 1), bytes([2, 0, 1]))
    image.putpalette(colours[0, :3].tobytes())
    for suffix in ("png", "gif", "bmp"):
        image.save(tmp_path / f"image.{suffix}")
        np.testing.assert_array_equal(pixels(tmp_path / f"image.{suffix}"), colours[:1, [2, 0, 1]])


def test_transparent_palette_entry_shows_the_background(tmp_path: Path, colours: NDArray[np.uint8]) -> None:
    image = Image.frombytes("P", (3, 1), bytes([2, 0, 1]))
    image.putpalette(colours[0, :3].tobytes())
    for suffix in ("png", "gif"):
        image.save(tmp_path / f"image.{suffix}", transparency=1)
        np.testing.assert_array_equal(
            pixels(tmp_path / f"image.{suffix}"), [[colours[0, 2], colours[0, 0], np.array(BACKGROUND)]]
        )


def test_alpha_shows_the_background_through(tmp_path: Path) -> None:
    rgba = np.array([[[10, 200, 30, 255], [10, 200, 30, 0], [0, 100, 255, 51]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "image.png")
    # 51 / 255 = 0.2 of the colour and 0.8 of white
    expected = [[[10, 200, 30], [255, 255, 255], [204, 224, 255]]]
    np.testing.assert_array_equal(pixels(tmp_path / "image.png"), expected)


def test_opaque_alpha_changes_nothing(tmp_path: Path, colours: NDArray[np.uint8]) -> None:
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "image.png")
    np.testing.assert_array_equal(pixels(tmp_path / "image.png"), colours)


def test_grey_with_alpha_and_transparent_colours(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[70, 255], [70, 0]]], dtype=np.uint8)).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(pixels(tmp_path / "alpha.png")[..., 0], [[70, 255]])

    Image.fromarray(np.array([[70, 80]], dtype=np.uint8)).save(tmp_path / "key.png", transparency=80)
    np.testing.assert_array_equal(pixels(tmp_path / "key.png")[..., 0], [[70, 255]])

    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png", transparency=0)
    np.testing.assert_array_equal(pixels(tmp_path / "bit.png")[..., 0], [[255, 255]])


def test_jpeg_and_grey_jpeg(tmp_path: Path) -> None:
    smooth = np.zeros((32, 48, 3), dtype=np.uint8)
    smooth[...] = np.linspace(0, 255, 48)[:, None]
    smooth[:16, :, 2] = 128
    Image.fromarray(smooth).save(tmp_path / "colour.jpg", quality=95, subsampling=0)
    assert np.abs(pixels(tmp_path / "colour.jpg").astype(int) - smooth).max() <= 6

    Image.fromarray(smooth[..., 0]).save(tmp_path / "grey.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "grey.jpg").astype(int) - smooth[..., :1]).max() <= 4


def test_cmyk_tiff_is_exact(tmp_path: Path) -> None:
    Image.frombytes("CMYK", (2, 1), bytes([0, 255, 0, 0, 0, 0, 0, 255])).save(tmp_path / "image.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "image.tif"), [[[255, 0, 255], [0, 0, 0]]])


def test_inverted_cmyk_jpeg_as_adobe_writes_it(tmp_path: Path) -> None:
    # Pillow writes CMYK as Adobe does, inverted and with the marker that says so.
    Image.new("CMYK", (16, 16), (0, 255, 0, 0)).save(tmp_path / "image.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "image.jpg").read_bytes()
    assert np.abs(pixels(tmp_path / "image.jpg").astype(int) - np.array([255, 0, 255])).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_shows_the_same_picture(tmp_path: Path, orientation: int, suffix: str) -> None:
    seen = np.zeros((32, 48, 3), dtype=np.uint8)
    seen[:16, :16] = (250, 20, 20)  # one corner red, the next green: no symmetry left
    seen[:16, 32:] = (20, 250, 20)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED_BY_ORIENTATION[orientation](seen)))
    path = tmp_path / f"image.{suffix}"
    if suffix == "jpg":
        stored.save(path, exif=exif, quality=100, subsampling=0)
    else:
        stored.save(path, exif=exif, lossless=True)
    assert image_size(path) == (32, 48)
    assert np.abs(pixels(path).astype(int) - seen).max() <= (4 if suffix == "jpg" else 0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("depth", [8, 16])
def test_exif_orientation_of_grey(tmp_path: Path, suffix: str, depth: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    values = np.array([[0, 1, 2], [10, 11, 12]])
    stored = values.astype(np.uint8) if depth == 8 else (values * 257).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / f"image.{suffix}", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / f"image.{suffix}")[..., 0], [[10, 0], [11, 1], [12, 2]])


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path, colours: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(colours, -1))).save(encoded, "PNG")
    end = io.BytesIO()
    PngImagePlugin.putchunk(end, b"eXIf", exif.tobytes()[6:])
    content = encoded.getvalue()
    (tmp_path / "image.png").write_bytes(content[:-12] + end.getvalue() + content[-12:])
    np.testing.assert_array_equal(pixels(tmp_path / "image.png"), colours)


def test_senseless_orientation_and_broken_exif_are_no_reason_to_lose_an_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 9
    image = Image.new("RGB", (7, 5), (1, 2, 3))
    image.save(tmp_path / "nine.png", exif=exif)
    image.save(tmp_path / "broken.png", exif=b"Exif\0\0nonsense")
    for name in ("nine.png", "broken.png"):
        assert image_size(tmp_path / name) == (5, 7)
        assert (pixels(tmp_path / name) == (1, 2, 3)).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif"])
def test_cut_off_files_are_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"image\.{suffix}: .*(cut off|not an image).*"):
        read_image(path)


def test_no_image_is_read_by_halves(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "JPEG", quality=90)
    path = tmp_path / "image.jpg"
    for length in range(0, len(content.getvalue()) - 2, 7):  # the last two bytes are the end marker
        path.write_bytes(content.getvalue()[:length])
        with pytest.raises(ImageError):
            read_image(path)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.png").mkdir()
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"empty\.png: the file is empty \(0 bytes\)"):
            read(tmp_path / "empty.png")
        with pytest.raises(ImageError, match=r"text\.jpg: not an image.*JPEG, PNG"):
            read(tmp_path / "text.jpg")
        with pytest.raises(ImageError, match=r"none\.png: no such file"):
            read(tmp_path / "none.png")
        with pytest.raises(ImageError, match=r"folder\.png: cannot be opened"):
            read(tmp_path / "folder.png")


def test_postscript_is_never_run(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "image.eps")
    shutil.copy(tmp_path / "image.eps", tmp_path / "image.jpg")
    for name in ("image.eps", "image.jpg"):
        with pytest.raises(ImageError, match="not an image"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("limit", [30, 12])  # Pillow warns above its limit and raises above twice the limit
def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("L", (7, 5)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=rf"image\.png: more pixels than the limit of {limit} .*tiles"):
            read(tmp_path / "image.png")


def test_size_comes_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (70, 50)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    assert image_size(path) == (50, 70)


def test_what_browsers_show_alike_needs_no_conversion(tmp_path: Path, colours: NDArray[np.uint8]) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    image, deep = Image.fromarray(colours), Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    image.save(tmp_path / "rgb.jpg")
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "rgb.png")
    image.convert("1").save(tmp_path / "bit.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.save(tmp_path / "turned.png", exif=turned)
    deep.save(tmp_path / "deep.png")
    image.save(tmp_path / "rgb.tif")
    found = {path.name: web_media_type(path) for path in tmp_path.iterdir()}
    assert found == {
        "rgb.jpg": "image/jpeg",
        "turned.jpg": "image/jpeg",
        "cmyk.jpg": "",
        "rgb.png": "image/png",
        "bit.png": "image/png",
        "palette.png": "image/png",
        "turned.png": "",
        "deep.png": "",
        "rgb.tif": "",
    }
    (tmp_path / "text.png").write_text("secret")
    with pytest.raises(ImageError, match=r"text.png: not an image"):
        web_media_type(tmp_path / "text.png")


def test_content_that_was_sent_is_read_as_its_file(tmp_path: Path, colours: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(colours).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800).save(tmp_path / "deep.png")
    for path in tmp_path.iterdir():
        sent = SentImage(path.read_bytes(), "sent.jpg")
        assert torch.equal(read_image(sent), read_image(path))
        assert image_size(sent) == image_size(path)
    assert image_size(SentImage((tmp_path / "turned.jpg").read_bytes(), "")) == (7, 5)


def test_content_that_was_sent_is_to_be_sent_again(
    tmp_path: Path, colours: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(colours).save(tmp_path / "image.png")
    content = (tmp_path / "image.png").read_bytes()
    with pytest.raises(ImageError, match=r"^upload: damaged or cut off \(.*\); send it again$"):
        read_image(SentImage(content[:-40], "upload"))
    with pytest.raises(ImageError, match=r"^upload: the file is empty \(0 bytes\); send it again$"):
        image_size(SentImage(b"", "upload"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 34)
    cure = r"^upload: more pixels than the limit of 34 \(.*\); cut the image into tiles$"
    with pytest.raises(ImageTooLargeError, match=cure):
        image_size(SentImage(content, "upload"))

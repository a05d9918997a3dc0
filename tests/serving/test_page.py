"""The page of `detframe serve` in a real Chromium: an image is dropped, its boxes are seen."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import Served, encoded

from detframe.drawing import class_colour

TOOLS = Path(__file__).parents[2] / "tools"
DROP = """
(() => {
  const bytes = Uint8Array.from(atob("CONTENT"), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "NAME"));
  delete document.body.dataset.state;
  document.getElementById("stage").dispatchEvent(
    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        module = importlib.import_module("chromium")
        if module.BROWSER is None:
            pytest.skip("needs Chromium")
        with module.Chromium(tmp_path_factory.mktemp("profile"), 1000, 700) as page:
            yield page


@pytest.fixture
def page(chromium: Any, served: Served) -> Iterator[Any]:  # noqa: ANN401
    chromium.open(served.url)
    chromium.wait("document.body?.dataset.state === 'ready'")
    yield chromium
    chromium.console.clear()
    chromium.open("about:blank")


def drop(page: Any, content: bytes, name: str) -> None:  # noqa: ANN401
    page.evaluate(DROP.replace("CONTENT", base64.b64encode(content).decode()).replace("NAME", name))
    page.wait("['shown', 'refused'].includes(document.body.dataset.state)")


def shades(red: int, green: int, blue: int) -> bytes:
    """A PNG of one colour, 40 x 24 pixels."""
    return encoded(np.full((24, 40, 3), (red, green, blue), np.uint8))


def listed(page: Any) -> list[str]:  # noqa: ANN401
    return [str(text) for text in page.evaluate("[...document.querySelectorAll('li')].map((row) => row.innerText)")]


def text(page: Any, name: str) -> str:  # noqa: ANN401
    return str(page.evaluate(f"document.getElementById({name!r}).innerText"))


def test_a_dropped_image_shows_its_boxes(page: Any) -> None:  # noqa: ANN401
    assert text(page, "classes") == "red, green, blue"
    drop(page, shades(204, 153, 51), "a.png")
    assert page.evaluate("document.body.dataset.state") == "shown"
    assert [" ".join(row.split()) for row in listed(page)] == ["red 0.80", "green 0.60"]
    assert text(page, "count") == "2 found, 1 below"

    # Lines have the colours of detframe.drawing, at the right sides of the boxes that were found.
    drawn = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    left, top, width, height = page.evaluate(
        "(({ x, y, width, height }) => [x, y, width, height])(canvas.getBoundingClientRect())"
    )
    assert width / height == pytest.approx(40 / 24, rel=0.01)
    for label, score in ((0, 0.8), (1, 0.6)):
        x, y = round(left + score * width), round(top + 0.4 * score * height)
        side = drawn[y, x - 6 : x + 7].reshape(-1, 3).astype(int)
        assert (np.abs(side - class_colour(label)).max(axis=1) <= 2).any(), (label, side)
    assert page.console == []


def test_the_slider_chooses_the_score(page: Any) -> None:  # noqa: ANN401
    drop(page, shades(204, 153, 51), "a.png")
    for value, names in (("0.1", ["red", "green", "blue"]), ("0.7", ["red"]), ("0.95", [])):
        page.evaluate(f"at('score').value = {value}; at('score').dispatchEvent(new Event('input'))")
        assert [row.split()[0] for row in listed(page)] == names
        assert text(page, "from") == f"{float(value):.2f}"
    page.evaluate("at('chosen').click()")
    assert [row.split()[0] for row in listed(page)] == ["red", "green"]
    assert page.console == []


def test_what_is_no_image_is_said(page: Any) -> None:  # noqa: ANN401
    drop(page, b"hello", "note.txt")
    assert page.evaluate("document.body.dataset.state") == "refused"
    assert text(page, "notice").startswith("image (note.txt): not an image, or its header is damaged;")
    assert listed(page) == []
    drop(page, shades(204, 0, 0), "a.png")
    assert len(listed(page)) == 1


def test_a_format_that_browsers_do_not_show_has_its_boxes(page: Any) -> None:  # noqa: ANN401
    file = io.BytesIO()
    Image.open(io.BytesIO(shades(204, 153, 51))).save(file, "tiff")
    drop(page, file.getvalue(), "a.tiff")
    assert page.evaluate("document.body.dataset.state") == "shown"
    assert len(listed(page)) == 2
    assert text(page, "notice").startswith("The browser cannot show this format")


def test_nothing_is_loaded_from_elsewhere(page: Any, served: Served) -> None:  # noqa: ANN401
    drop(page, shades(204, 153, 51), "a.png")
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded
    assert all(address.startswith((served.url, "data:", "blob:")) for address in loaded)

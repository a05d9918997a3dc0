"""The page of the review in a real Chromium: keys, dragging, filters, and what they leave in the file."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detframe.curation.fixes import Fix, read_fixes
from detframe.curation.review.server import ReviewServer
from detframe.curation.review.session import open_session
from detframe.data.label_queue import Label, Queue, Suggestion

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tools() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("bench_review")


@pytest.fixture(scope="module")
def queue(tools: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Queue]:
    folder = tmp_path_factory.mktemp("review")
    data = tools.write_parts(folder, 8)
    queue: Queue = tools.write_suggestions(data, folder / "queue.jsonl", 12)
    return folder / "queue.jsonl", queue


class Review:
    """A review that runs, and the page that shows it."""

    def __init__(self, queue: tuple[Path, Queue], fixes: Path, page: Any, url: str) -> None:  # noqa: ANN401
        self.suggestions = queue[1].suggestions
        self.page = page
        self.fixes = fixes
        self.url = url
        self.open()

    def open(self) -> None:
        self.page.open(self.url)
        self.page.wait("document.body?.dataset.shown")

    @property
    def shown(self) -> Suggestion:
        identity = self.page.evaluate("document.body.dataset.shown")
        return next(suggestion for suggestion in self.suggestions if suggestion.id == identity)

    def press(self, keys: str) -> None:
        """Press keys that lead to another suggestion, one after the other."""
        for key in keys.split():
            before = self.shown.id
            self.page.press(key)
            self.page.wait(f"document.body.dataset.shown && document.body.dataset.shown !== {before!r}")

    def saved(self) -> list[Fix]:
        self.page.wait("!unsaved.length")
        return read_fixes([self.fixes])

    def text(self, name: str) -> str:
        return str(self.page.evaluate(f"document.getElementById({name!r}).innerText"))

    def corner(self, box: tuple[float, ...], across: int, along: int) -> tuple[float, float]:
        """Where a corner of a box is on the page; 0 is the left or the top one, 2 the right or the bottom one."""
        left, top, *_ = self.page.evaluate("Object.values(canvas.getBoundingClientRect().toJSON())")
        on_screen = self.page.evaluate(f"onScreen({list(box)})")
        return left + on_screen[across], top + on_screen[1 + along]


@pytest.fixture(scope="module")
def chromium(tools: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    module = importlib.import_module("chromium")
    if module.BROWSER is None:
        pytest.skip("needs Chromium")
    with module.Chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def review(chromium: Any, queue: tuple[Path, Queue], tmp_path: Path) -> Iterator[Review]:  # noqa: ANN401
    chromium.resize(1280, 800)
    session = open_session(queue[0], None, tmp_path / "fixes.jsonl", "ada")
    with ReviewServer(session, "t0ken", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            review = Review(queue, session.out, chromium, server.url)
            yield review
            review.page.wait("!unsaved.length")
            assert chromium.console == []
        finally:
            chromium.console.clear()
            chromium.open("about:blank")
            server.shutdown()
            thread.join()


def test_a_key_decides_and_the_next_suggestion_is_there(review: Review) -> None:
    first, second, third, fourth, fifth = review.suggestions[:5]
    assert review.shown == first
    assert review.text("progress") == "0 of 12 decided"
    review.press("a r m s")
    assert review.shown == fifth
    assert [(fix.id, fix.decision) for fix in review.saved()] == [
        (first.id, "accept"),
        (second.id, "reject"),
        (third.id, "ambiguous"),
        (fourth.id, "skip"),
    ]
    assert review.text("progress") == "3 of 12 decided"
    total = sum(suggestion.value for suggestion in review.suggestions)
    share = sum(suggestion.value for suggestion in (first, second, third)) / total
    assert review.text("value").startswith(f"{round(100 * share)} % of the value done, ")
    assert review.text("counts") == "So far: 1 accept, 1 reject, 1 ambiguous, 1 skip"

    review.press("u u")  # the one that was skipped, then the ambiguous one
    assert review.shown == third
    assert [fix.decision for fix in review.saved()][4:] == ["undo", "undo"]
    review.press("ArrowLeft")
    assert review.shown == second
    assert review.text("standing") == "Decided: reject, by ada."
    review.press("a")  # another decision replaces it, and the next one is the first that is undecided
    assert (review.shown, review.saved()[-1].decision) == (third, "accept")

    review.open()  # begins where it ended
    assert review.shown == third
    assert review.text("progress") == "2 of 12 decided"
    review.press("u")
    assert review.shown == second


def test_undo_leaves_the_decision_of_another(review: Review, queue: tuple[Path, Queue]) -> None:
    first = review.shown
    other = open_session(queue[0], None, review.fixes, "bob")
    other.decide(first.id, "accept", None)
    review.open()
    review.press("ArrowLeft r u")
    assert review.shown == first
    assert review.text("standing") == "Decided: accept, by bob."
    assert review.text("progress") == "1 of 12 decided"


def test_a_key_that_is_held_decides_once(review: Review) -> None:
    review.page.key_down("a")
    review.page.wait(f"document.body.dataset.shown === {review.suggestions[1].id!r}")
    for _ in range(3):
        review.page.key_down("a", repeated=True)
    review.page.key_up("a")
    assert review.shown == review.suggestions[1]
    assert len(review.saved()) == 1


def test_a_box_is_edited_by_dragging_and_by_keys(review: Review) -> None:
    suggestion = next(s for s in review.suggestions if s.kind == "bad-box")
    while review.shown != suggestion:
        review.press("ArrowRight")
    assert suggestion.after
    x1, y1, x2, y2 = suggestion.after.box
    review.page.press("e")
    scale = review.page.evaluate("view.scale")
    x, y = review.corner(suggestion.after.box, 2, 2)
    review.page.drag((x, y), (x - 3 * scale, y + 4 * scale))
    edited = review.page.evaluate("edit.box")
    assert edited == pytest.approx([x1, y1, x2 - 3, y2 + 4], abs=0.01)
    x, y = review.corner(tuple(edited), 0, 0)
    review.page.drag((x, y + 20), (x + 2 * scale, y + 20))  # the left edge
    x, y = review.corner(tuple(edited), 0, 0)
    review.page.drag((x + 20 + 2 * scale, y + 20), (x + 20 + 3 * scale, y + 20 + scale))  # the inside
    for key, shift in [("ArrowLeft", False), ("ArrowUp", False), ("ArrowUp", False), ("ArrowRight", True)]:
        review.page.press(key, shift=shift)
    review.page.press("2")
    before = review.saved() if review.fixes.exists() else []
    review.press("Enter")
    fixes = review.saved()
    assert len(fixes) == len(before) + 1
    after = fixes[-1].after
    assert after is not None
    expected = [x1 + 2 + 1 - 1, y1 + 1 - 2, x2 - 3 + 1 - 1 + 1, y2 + 4 + 1 - 2]
    assert after.box == pytest.approx(expected, abs=0.01)
    names = review.page.evaluate("state.class_names")
    assert (after.class_name, after.ignore, fixes[-1].decision) == (names[1], False, "edit")
    assert fixes[-1].before == suggestion.before


def test_a_box_is_drawn_anew_and_made_an_ignore_box(review: Review) -> None:
    suggestion = review.shown
    review.page.press("e")
    review.page.press("Escape")
    assert review.page.evaluate("edit") is None
    review.page.press("e")
    review.page.press("0")  # the whole image
    start, stop = review.corner((10, 20, 10, 20), 0, 0), review.corner((60, 50, 60, 50), 0, 0)
    review.page.drag(stop, start, shift=True)
    review.press("m")
    after = review.saved()[-1].after
    assert after is not None
    assert (review.saved()[-1].id, review.saved()[-1].decision, after.ignore) == (suggestion.id, "ambiguous", True)
    assert after.box == pytest.approx((10, 20, 60, 50), abs=1)


def test_filters_choose_what_is_shown(review: Review) -> None:
    choose = "(() => {{ const s = document.getElementById({!r}); s.value = {!r}; s.onchange(); }})()"
    review.page.evaluate(choose.format("of-kind", "missing"))
    missing = [suggestion for suggestion in review.suggestions if suggestion.kind == "missing"]
    review.page.wait(f"document.body.dataset.shown === {missing[0].id!r}")
    assert len(missing) == 3
    review.press("a a")
    assert review.shown == missing[2]
    review.page.press("r")
    review.page.wait("!document.body.dataset.shown")
    assert "under these filters. In all, 9 of 12 are left, 0 of them skipped." in review.text("notice")
    review.page.evaluate(choose.format("of-state", "done"))
    review.page.wait("document.body.dataset.shown")
    assert review.shown == missing[0]
    review.page.evaluate(choose.format("of-kind", ""))
    name = missing[0].after.class_name if missing[0].after else ""
    review.page.evaluate(choose.format("of-state", ""))
    review.page.evaluate(choose.format("of-class", name))
    for _ in range(3):
        review.press("ArrowRight")
        assert name in {label.class_name for label in (review.shown.before, review.shown.after) if label}


def test_a_decision_that_is_not_saved_stops_the_page(review: Review) -> None:
    first, second = review.suggestions[:2]
    review.fixes.mkdir()
    review.press("a")
    review.page.wait("document.getElementById('failure').open")
    assert "cannot be written" in review.text("failure-text")
    review.page.press("a")  # decides nothing
    assert review.shown == second
    review.page.evaluate("document.getElementById('drop').click()")
    review.page.wait(f"document.body.dataset.shown === {first.id!r}")
    assert review.text("progress") == "0 of 12 decided"
    review.press("a")
    review.page.wait("document.getElementById('failure').open")
    review.fixes.rmdir()
    review.page.evaluate("document.getElementById('again').click()")
    assert [fix.id for fix in review.saved()] == [first.id]
    assert all("507" in line for line in review.page.console)
    review.page.console.clear()


def test_it_fits_windows_of_every_size(review: Review) -> None:
    for width, height in [(1280, 800), (600, 900), (360, 640)]:
        review.page.resize(width, height)
        review.page.wait(f"innerWidth === {width} && canvas.clientWidth > 300")
        assert review.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert review.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(250, 250, 248)"
        review.page.wait("""(() => {
          const [x1, y1, x2, y2] = onScreen(boxInQuestion());
          return 0 <= x1 && x1 < x2 && x2 <= canvas.clientWidth && 0 <= y1 && y1 < y2 && y2 <= canvas.clientHeight;
        })()""")
    review.page.resize(1280, 800, dark=True)
    assert review.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(25, 26, 28)"
    review.page.press("?")
    assert review.page.evaluate("document.getElementById('help').open")
    review.page.press("a")
    assert not review.fixes.exists()
    review.page.press("Escape")
    assert not review.page.evaluate("document.getElementById('help').open")


def test_the_boxes_are_where_the_labels_are(review: Review) -> None:
    suggestion = next(s for s in review.suggestions if s.kind == "bad-box")
    while review.shown != suggestion:
        review.press("ArrowRight")

    def share(label: Label | None, colour: tuple[int, int, int]) -> float:
        """Of the upper side of a label's box, how much has a colour on the screen."""
        assert label
        (left, top), (right, _) = (review.corner(label.box, across, 0) for across in (0, 2))
        pixels = np.asarray(Image.open(io.BytesIO(review.page.screenshot())).convert("RGB")).astype(int)
        side = pixels[round(top), round(left) : round(right)]
        return float((abs(side - colour) < 8).all(axis=1).mean())

    assert share(suggestion.after, (86, 180, 233)) > 0.8  # solid
    assert 0.4 < share(suggestion.before, (230, 159, 0)) < 0.8  # dashed
    review.page.key_down(" ")
    assert share(suggestion.after, (86, 180, 233)) == share(suggestion.before, (230, 159, 0)) == 0
    review.page.key_up(" ")
    assert share(suggestion.after, (86, 180, 233)) > 0.8

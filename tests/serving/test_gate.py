"""What is let in and what is refused, without a socket or a worker."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from PIL import Image
from starlette.types import Message, Receive, Scope, Send
from tests.serving.conftest import as_json, encoded, form, picture

from detframe.serving import gate as gate_module
from detframe.serving.answers import json_response
from detframe.serving.gate import Gate
from detframe.serving.limits import Limits
from detframe.serving.metrics import Metrics
from detframe.serving.uploads import Job

LIMITS = Limits(bytes=20_000, pixels=4_000, batch=3, queue=5)
GOOD = encoded(picture())  # 24 x 40 pixels


class Inside:
    """In LitServe's place: says what came, once it is let."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/predict":
            self.jobs.append(scope["state"]["job"])
            await self.go.wait()
        response = json_response({"path": scope["path"]}, 200)
        response.headers["X-Batch-Images"] = "2"
        await response(scope, receive, send)


class Answered(NamedTuple):
    status: int
    content: Any
    headers: dict[str, str]


class Door:
    """A gate and what asks it."""

    def __init__(self, limits: Limits = LIMITS, key: str = "") -> None:
        self.inside = Inside()
        self.metrics = Metrics({"artefact": 'a"b'}, limits.queue)
        self.gate = Gate(self.inside, limits=limits, metrics=self.metrics, key=key)
        self.left = 0  # parts of the last body that nobody has read

    async def ask(
        self,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        headers: dict[str, str] | None = None,
        method: str = "POST",
        pause: float = 0,
    ) -> Answered:
        parts = [body] if isinstance(body, bytes) else list(body)
        given = {"content-length": str(len(body))} if isinstance(body, bytes) else {}
        sent = [(k.lower().encode(), v.encode()) for k, v in (given | (headers or {})).items()]
        bare, _, query = path.partition("?")
        scope: Scope = {"type": "http", "method": method, "path": bare, "query_string": query.encode(), "headers": sent}
        scope.update({"http_version": "1.1", "scheme": "http", "server": ("testserver", 80)})
        messages: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(pause)
            part = parts.pop(0) if parts else b""
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Message) -> None:
            messages.append(message)

        await self.gate(scope, receive, send)
        self.left = len(parts)
        names = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        content = b"".join(message.get("body", b"") for message in messages[1:])
        kind = names.get("content-type", "")
        return Answered(messages[0]["status"], json.loads(content) if kind == "application/json" else content, names)


def ask(path: str, body: bytes = b"", headers: dict[str, str] | None = None, method: str = "POST") -> Answered:
    return asyncio.run(Door().ask(path, body, headers, method))


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("encode", [form, as_json])
def test_images_come_in_as_a_form_or_as_json(encode: Any) -> None:  # noqa: ANN401
    async def run() -> None:
        door = Door()
        other = encoded(picture(30, 20), "jpeg")
        assert (await door.ask("/predict", *encode(GOOD))).status == 200
        assert (await door.ask("/predict?all=true", *encode(GOOD, other))).status == 200
        one, two = door.inside.jobs
        assert ([image.content for image in one.images], one.pixels, one.all) == ([GOOD], 24 * 40, False)
        assert ([image.content for image in two.images], two.pixels, two.all) == ([GOOD, other], 24 * 40 + 600, True)
        assert door.metrics.waiting == 0

    asyncio.run(run())


JSON = {"Content-Type": "application/json"}
FORM = form()[1]
GARBAGE: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "nothing": (b"", {}, 415, "The body is of no stated type"),
    "text": (b"hello", {"Content-Type": "text/plain"}, 415, "The body is text/plain"),
    "a bare image": (GOOD, {"Content-Type": "image/png"}, 415, "multipart/form-data"),
    "no JSON": (b"{", JSON, 400, "The body is no JSON"),
    "JSON of bytes": (b"\xff\xfe\xfa", JSON, 400, "The body is no JSON"),
    "deep JSON": (b"[" * 19_000, JSON, 400, "The body is no JSON"),
    "another JSON": (b'{"image": "aaaa"}', JSON, 400, 'no list "images"'),
    "JSON of numbers": (b'{"images": [1]}', JSON, 400, 'no list "images"'),
    "a JSON list": (b"[]", JSON, 400, 'no list "images"'),
    "no image in JSON": (b'{"images": []}', JSON, 400, "The body has no image"),
    "no base64": (b'{"images": ["aaaa", "a*aa"]}', JSON, 400, "image 2 of 2: is no base64"),
    "no ASCII": ('{"images": ["ä"]}'.encode(), JSON, 400, "image: is no base64"),
    "an image that is none": (*as_json(b"hello"), 400, "image: not an image"),
    "an empty image": (*as_json(b""), 400, "image: the file is empty (0 bytes); send it again"),
    "a form without a boundary": (b"x", {"Content-Type": "multipart/form-data"}, 400, "The form is cut off"),
    "another boundary": (form(GOOD)[0], {"Content-Type": "multipart/form-data; boundary=x"}, 400, "its boundary"),
    "a form without names": (b"--frontier\r\n\r\nx\r\n--frontier--", FORM, 400, "The form is malformed"),
    "a form that is cut off": (form(GOOD, GOOD)[0][:-600], FORM, 400, "The form is cut off"),
    "a form without files": (b"--frontier--\r\n", FORM, 400, "The body has no image"),
    "a form with a field": (
        b'--frontier\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--frontier--\r\n',
        FORM,
        400,
        "The parts 'image' are fields",
    ),
    "a text in a form": (*form(b"hello", names=["a.jpg"]), 400, "image (a.jpg): not an image"),
    "a header alone": (*form(GOOD[:20]), 400, "image (0.png): "),
    "a PDF": (*form(b"%PDF-1.7\n%\xe2\xe3"), 400, "not an image"),
    "PostScript": (*form(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 400, "not an image"),
    "SVG": (*form(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), 400, "not an image"),
    "too many images": (*form(*[GOOD] * 4), 413, "over the limit of 3"),
    "far too many images": (*form(*[b""] * 90), 413, "over the limit of 3"),
    "too many in JSON": (*as_json(*[GOOD[:9]] * 4), 413, "4 images or more, over the limit of 3"),
    "too many bytes": (b" " * 20_001, JSON, 413, "more than 20000 bytes"),
    "a large image": (*form(encoded(picture(1, 4001), "jpeg")), 413, "limit of 4000 (4001 x 1 pixels)"),
    "a bomb": (*form(png(30_000, 30_000, bytes(60_000))), 413, "cut the image into tiles"),
    "large together": (*form(*[encoded(picture(1, 1400), "jpeg")] * 3), 413, "3 images together have 4200 pixels"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_refused_in_a_sentence(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMITS.pixels)
    body, headers, status, text = GARBAGE[case]
    answered = ask("/predict", body, headers)
    assert answered.status == status, answered.content
    sentence = answered.content["error"]
    assert text in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_file_name_cannot_break_the_sentence() -> None:
    answered = ask("/predict", *form(b"hello", names=["a%0A\x1b[31m" + "b" * 300]))
    assert answered.status == 400
    assert answered.content["error"].startswith(f"image ({'b' * 80}): not an image")


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/predict", 405, "/predict takes POST alone."),
        ("POST", "/health", 405, "/health takes GET alone."),
        ("GET", "/docs", 404, "There is nothing at this address"),
        ("GET", "/../etc/passwd", 404, "There is nothing"),
        ("POST", "/predict?all=perhaps", 400, "The query is 'all=perhaps'"),
        ("POST", "/predict?al=true", 400, "The query is 'al=true'"),
    ],
)
def test_other_addresses(method: str, path: str, status: int, text: str) -> None:
    answered = asyncio.run(Door().ask(path, *form(GOOD), method=method))
    assert answered.status == status
    assert text in answered.content["error"]


def test_a_long_body_is_read_to_its_end_and_dropped() -> None:
    async def run() -> None:
        door = Door()
        parts = [b"x" * 5_000] * 9
        answered = await door.ask("/predict", parts, JSON)  # of no stated length
        assert (answered.status, door.left) == (413, 0)
        answered = await door.ask("/predict", parts, {**JSON, "content-length": "45000"})
        assert (answered.status, door.left) == (413, 0)
        # Who waits to be told sends nothing, and is told no.
        answered = await door.ask("/predict", parts, {**JSON, "content-length": "45000", "expect": "100-continue"})
        assert (answered.status, door.left) == (413, 9)

    asyncio.run(run())


def test_a_body_that_does_not_come_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_BODY_SECONDS", 0.05)
    monkeypatch.setattr(gate_module, "_DRAIN_SECONDS", 0.01)

    async def run() -> None:
        door = Door()
        body, headers = form(GOOD)
        answered = await door.ask("/predict", [body[:50], body[50:]], headers, pause=0.04)
        assert answered.status == 408
        assert door.metrics.waiting == 0

    asyncio.run(run())


def test_an_answer_that_does_not_come_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_ANSWER_SECONDS", 0.05)

    async def run() -> None:
        door = Door()
        door.inside.go.clear()
        answered = await door.ask("/predict", *form(GOOD))
        assert answered.status == 504
        assert door.metrics.waiting == 0

    asyncio.run(run())


def test_a_full_queue_turns_away() -> None:
    async def run() -> None:
        door = Door()
        door.inside.go.clear()
        two = form(GOOD, GOOD)
        held = [asyncio.create_task(door.ask("/predict", *two)) for _ in range(2)]
        while len(door.inside.jobs) < 2:
            await asyncio.sleep(0.001)
        assert door.metrics.waiting == 4
        answered = await door.ask("/predict", *two)  # one image would fit
        assert answered.status == 429
        assert answered.headers["retry-after"] == "1"
        assert answered.content["error"] == "5 images wait, of at most 5; try again in a second."
        held.append(asyncio.create_task(door.ask("/predict", *form(GOOD))))
        while len(door.inside.jobs) < 3:
            await asyncio.sleep(0.001)
        assert (await door.ask("/predict", *form(GOOD))).status == 429
        door.inside.go.set()
        assert [(await each).status for each in held] == [200, 200, 200]
        assert door.metrics.waiting == 0
        assert (await door.ask("/predict", *two)).status == 200

    asyncio.run(run())


def test_the_key_is_asked_for_but_at_the_page_and_for_health() -> None:
    async def run() -> None:
        door = Door(key="s3cret")
        for path, method in (("/predict", "POST"), ("/info", "GET"), ("/metrics", "GET"), ("/none", "GET")):
            missing = await door.ask(path, *form(GOOD), method=method)
            assert (missing.status, missing.content["error"].partition(";")[0]) == (
                401,
                "The header X-API-Key is missing",
            )
            wrong = await door.ask(path, form(GOOD)[0], {**FORM, "X-API-Key": "s3cre"}, method=method)
            assert (wrong.status, wrong.content["error"][:29]) == (401, "The header X-API-Key is wrong")
        assert door.inside.jobs == []
        assert (await door.ask("/predict", form(GOOD)[0], {**FORM, "X-API-Key": "s3cret"})).status == 200
        assert (await door.ask("/health", method="GET")).status == 200
        assert (await door.ask("/", method="GET")).headers["content-type"] == "text/html; charset=utf-8"

    asyncio.run(run())


def test_a_stop_is_announced_to_clients_that_keep_their_connection() -> None:
    async def run() -> None:
        door = Door()
        assert "connection" not in (await door.ask("/predict", *form(GOOD))).headers
        door.gate.stopping = True
        answered = await door.ask("/predict", *form(GOOD))
        assert (answered.status, answered.headers["connection"]) == (200, "close")

    asyncio.run(run())


def test_a_client_that_leaves_is_no_fault() -> None:
    door = Door()

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json")]
    asyncio.run(door.gate(scope, gone, send))
    assert 'status="499"} 1' in door.metrics.text()
    assert door.metrics.waiting == 0


def test_metrics_are_prometheus_text() -> None:
    async def run() -> None:
        door = Door()
        await door.ask("/predict", *form(GOOD, GOOD))
        await door.ask("/predict", *form(b"hello"))
        answered = await door.ask("/metrics", method="GET")
        assert answered.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = answered.content.decode().splitlines()
        for line in (
            r'detframe_artefact_info{artefact="a\"b"} 1',
            'detframe_requests_total{status="200"} 1',
            'detframe_requests_total{status="400"} 1',
            "detframe_images_total 2",
            "detframe_waiting_images 0",
            "detframe_waiting_images_limit 5",
            'detframe_request_seconds_bucket{le="+Inf"} 1',
            "detframe_request_seconds_count 1",
            'detframe_batch_images_bucket{le="1"} 0',
            'detframe_batch_images_bucket{le="2"} 1',
            "detframe_batch_images_sum 2.0",
        ):
            assert line in lines
        for line in lines:
            assert line.startswith(("# HELP ", "# TYPE ")) or len(line.split(" ")) == 2

    asyncio.run(run())

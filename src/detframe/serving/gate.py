"""What stands before LitServe's app: key, limits, the queue's length, counts, and how a stop is announced."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detframe.serving.answers import json_response
from detframe.serving.limits import Limits, Refusal
from detframe.serving.metrics import CONTENT_TYPE, Metrics
from detframe.serving.page import HEADERS, page
from detframe.serving.uploads import check_headers, read_images
from detframe.serving.worker import BATCH_HEADER

T = TypeVar("T")

KEY_HEADER = "X-API-Key"

_OPEN = ("/", "/health")
"""What needs no key: a page that shows nothing by itself, and what a load balancer asks."""

_BODY_SECONDS = 30.0
"""For a body to arrive; whoever is slower would hold a place in the queue."""

_ANSWER_SECONDS = 120.0
"""For a worker to answer: more than the longest wait in the queue, so that whoever has had none since is lost."""

_DRAIN_SECONDS = 10.0
_DRAIN_BYTES = 1 << 30
"""Of a refused body that are read and dropped: a client that is still sending does not look for an answer."""


class Gate:
    """An ASGI app around LitServe's that lets in what can be answered, and answers the rest itself."""

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, key: str) -> None:
        """Stand before an app.

        Args:
            app: LitServe's.
            limits: What is taken.
            metrics: Counts all that is asked of /predict.
            key: Without which nothing but the page and /health is answered; "" asks for none.
        """
        self._app = app
        self.limits = limits
        self._metrics = metrics
        self._key = key
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        waits = Headers(scope=scope).get("expect", "").lower() == "100-continue"
        body = _Body(receive, self.limits.bytes, waits)
        answer = _Answer(send, self)
        started = time.monotonic()
        try:
            await self._answer(scope, body, answer)
        except ClientDisconnect:
            return
        except Refusal as refusal:
            await body.drain()
            response = json_response({"error": refusal.message}, refusal.status)
            if refusal.status == 429:
                response.headers["Retry-After"] = "1"
            await response(scope, receive, answer.send)
        finally:
            if scope["path"] == "/predict":
                self._metrics.answered(answer.status, time.monotonic() - started)

    async def _answer(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        if path not in _OPEN:
            self._require_key(headers)
        wanted = {"/predict": "POST", "/": "GET", "/health": "GET", "/info": "GET", "/metrics": "GET"}.get(path)
        if wanted is None:
            raise Refusal(404, "There is nothing at this address; images go to /predict.")
        if method != wanted and not (wanted == "GET" and method == "HEAD"):
            raise Refusal(405, f"{path} takes {wanted} alone.")
        if path == "/predict":
            await self._predict(scope, headers, body, answer)
        elif path == "/":
            await page()(scope, body.receive, answer.send)
        elif path == "/metrics":
            await Response(self._metrics.text(), media_type=CONTENT_TYPE)(scope, body.receive, answer.send)
        else:
            await self._app({**scope, "method": "GET"}, body.receive, answer.send)

    def _require_key(self, headers: Headers) -> None:
        given = headers.get(KEY_HEADER, "")
        if self._key and not secrets.compare_digest(given.encode(), self._key.encode()):
            state = "wrong" if given else "missing"
            raise Refusal(401, f"The header {KEY_HEADER} is {state}; send the key that the server was started with.")

    async def _predict(self, scope: Scope, headers: Headers, body: _Body, answer: _Answer) -> None:
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self.limits.bytes:
            raise Refusal(413, _too_long(self.limits.bytes))
        place = _Place(self._metrics, self.limits)
        try:
            place.take(1)  # before the body, which then cannot fill the memory
            request = Request(scope, body.receive)
            everything = _flag(request, "all")
            late = f"The body was not here within {_BODY_SECONDS:g} s; send less at a time."
            images = await _within(_BODY_SECONDS, read_images(request, self.limits), 408, late)
            place.take(len(images) - 1)
            request.state.job = await run_in_threadpool(check_headers, images, everything, self.limits)
            del images
            lost = f"No worker has answered within {_ANSWER_SECONDS:g} s; send the request again."
            await _within(_ANSWER_SECONDS, self._app(scope, body.receive, answer.send), 504, lost)
            if answer.status == 200:
                self._metrics.predicted(place.images, answer.batch)
        finally:
            place.leave()


class _Place:
    """Of a request in the queue."""

    def __init__(self, metrics: Metrics, limits: Limits) -> None:
        self._metrics = metrics
        self._most = limits.queue
        self.images = 0

    def take(self, images: int) -> None:
        """Room for so many more images.

        Raises:
            Refusal: There is none.
        """
        if self._metrics.waiting + images > self._most:
            raise Refusal(429, f"{self._metrics.waiting} images wait, of at most {self._most}; try again in a second.")
        self._metrics.waiting += images
        self.images += images

    def leave(self) -> None:
        """Make room for others."""
        self._metrics.waiting -= self.images


class _Body:
    """The body of a request as it comes, up to a limit."""

    def __init__(self, receive: Receive, most: int, waits: bool) -> None:
        self._receive = receive
        self._most = most
        self._waits = waits  # the client sends nothing before it is told to, which the first receive does
        self._size = 0
        self._ended = False

    async def receive(self) -> Message:
        """The next part.

        Raises:
            Refusal: It is one too many.
        """
        message = await self._next()
        if self._size > self._most:
            raise Refusal(413, _too_long(self._most))
        return message

    async def _next(self) -> Message:
        self._waits = False
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read and drop what is still to come, within reason."""

        async def read() -> None:
            while not self._ended and self._size < _DRAIN_BYTES:
                await self._next()

        if self._waits:
            return
        try:
            await asyncio.wait_for(read(), _DRAIN_SECONDS)
        except asyncio.TimeoutError:
            return


class _Answer:
    """An answer on its way out: what it was is noted, and what every one needs is added."""

    def __init__(self, send: Send, gate: Gate) -> None:
        self._send = send
        self._gate = gate
        self.status = 499  # nobody was there to take one
        self.batch = 0

    async def send(self, message: Message) -> None:
        """The next part."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            self.batch = int(headers.get(BATCH_HEADER, 0))
            for name, value in HEADERS.items():
                headers[name] = value
            if self._gate.stopping:  # else a client sends its next request into a closing connection
                headers["Connection"] = "close"
        await self._send(message)


async def _within(seconds: float, work: Awaitable[T], status: int, message: str) -> T:
    """The result of some work, if it is there in time; what never comes would keep its place in the queue for good.

    Raises:
        Refusal: It is not.
    """
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as error:
        raise Refusal(status, message) from error


def _flag(request: Request, name: str) -> bool:
    """Whether the query says ``name=true``.

    Raises:
        Refusal: It says something else, or asks for what there is not.
    """
    unknown = sorted(set(request.query_params) - {name})
    value = request.query_params.get(name, "false").lower()
    if unknown or value not in ("true", "false", "1", "0"):
        raise Refusal(400, f"The query is {request.url.query[:100]!r}; it takes {name}=true or {name}=false alone.")
    return value in ("true", "1")


def _too_long(most: int) -> str:
    return f"The body has more than {most} bytes; send fewer or smaller images at a time."

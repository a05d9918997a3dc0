"""What is answered to each request: a pure router, so that who may ask for what is tested without a socket."""

from __future__ import annotations

import json
import secrets
from importlib.resources import files
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from detframe.curation.fixes import DECISIONS, Decision
from detframe.curation.review.session import RefusalError, Session
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label

MOST_BYTES = 65536
"""Of a request's body; a decision has a few hundred."""

_HOSTS = ("127.0.0.1", "localhost")
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "Content-Security-Policy": _CONTENT_POLICY,  # were a label's name a script, it could neither run nor call out
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Of every answer."""


class Request(NamedTuple):
    """What of a request decides about its answer."""

    method: str
    path: str  # with the query, as it was sent
    host: str  # the header, "" where there is none
    content_type: str = ""
    body: bytes = b""


class Response(NamedTuple):
    """An answer."""

    status: int
    content_type: str
    body: bytes


def respond(session: Session, token: str, request: Request) -> Response:
    """Answer a request: ``/TOKEN/`` is the page, below it lie what the page asks for and where it sends decisions.

    No part of the path names a file: images are asked for by their position in the data set.

    Args:
        session: The review.
        token: Without which nothing is answered.
        request: What was asked.
    """
    try:
        return _answer(session, token, request)
    except RefusalError as refusal:
        return _json({"error": str(refusal)}, refusal.status)
    except DataError as error:
        return _json({"error": str(error)}, 409)


def _answer(session: Session, token: str, request: Request) -> Response:
    # A page from elsewhere can make its own name lead to this address, and reach the server past the browser's rules.
    if _host_name(request.host) not in _HOSTS:
        raise RefusalError(403, "This page answers to 127.0.0.1 and localhost alone.")
    given, _, rest = urlsplit(request.path).path.removeprefix("/").partition("/")
    if not secrets.compare_digest(given.encode(), token.encode()):
        raise RefusalError(403, "The token is missing or wrong. Open the address that `detframe review` printed.")
    name, _, number = rest.partition("/")
    if rest == "decisions":
        _require(request, "POST")
        return _decide(session, request)
    _require(request, "GET")
    if rest == "":
        page = files("detframe.curation.review").joinpath("page.html").read_bytes()
        return Response(200, "text/html; charset=utf-8", page)
    if rest == "state":
        return _json(session.state())
    if name in ("images", "labels") and number.isascii() and number.isdigit() and len(number) < 10:
        image = int(number)
        return Response(200, *session.picture(image)) if name == "images" else _json(session.labels(image))
    raise RefusalError(404, "There is nothing at this address.")


def _host_name(host: str) -> str:
    """The host's name without the port; "" where it is malformed."""
    name, colon, port = host.partition(":")
    return name.lower() if not colon or port.isdigit() else ""


def _require(request: Request, method: str) -> None:
    if request.method != method:
        raise RefusalError(405, f"This address takes {method} alone.")


def _decide(session: Session, request: Request) -> Response:
    if request.content_type.partition(";")[0].strip().lower() != "application/json":
        raise RefusalError(415, "A decision is sent as application/json.")
    try:
        content = json.loads(request.body)
        identity, decision, label = content["id"], content["decision"], content.get("label")
        if not isinstance(identity, str) or decision not in DECISIONS:
            raise ValueError(f"the decision is {decision!r}")
        drawn = None if label is None else _label(label, session.queue.class_names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusalError(400, f"The decision is malformed ({error}).") from error
    fix = session.decide(identity, cast(Decision, decision), drawn)
    return _json({"id": fix.id, "decision": fix.decision, "when": fix.when})


def _label(content: Any, class_names: list[str]) -> Label:  # noqa: ANN401 - what JSON holds
    x1, y1, x2, y2 = (float(corner) for corner in content["box"])
    name = content["class_name"]
    if name not in class_names:
        raise ValueError(f"there is no class {name!r}")
    return Label((x1, y1, x2, y2), name)


def _json(content: Any, status: int = 200) -> Response:  # noqa: ANN401 - what JSON holds
    return Response(status, "application/json", json.dumps(content).encode())

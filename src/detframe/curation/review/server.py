"""The router behind a socket of this machine."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from detframe.curation.review.routes import HEADERS, MOST_BYTES, Request, Response, respond
from detframe.curation.review.session import Session

ADDRESS = "127.0.0.1"


class ReviewServer(ThreadingHTTPServer):
    """Serves one session to whoever on this machine has the token."""

    daemon_threads = True

    def __init__(self, session: Session, token: str, port: int) -> None:
        """Listen, without answering yet.

        Args:
            session: The review.
            token: Part of the address.
            port: To listen at; 0 takes a free one.

        Raises:
            OSError: The port is taken.
        """
        super().__init__((ADDRESS, port), _Handler)
        self.session = session
        self.token = token

    @property
    def url(self) -> str:
        """The address of the page, token included."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the library has it
        """Say nothing of a browser that left before its answer came."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Turns bytes into requests and answers into bytes."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"  # keeps the connection, which spares a hundred decisions a hundred greetings
    server_version = "detframe"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 600  # seconds, after which an idle connection is let go

    def do_GET(self) -> None:
        """Answer a GET."""
        self._send(self._respond(b""))

    def do_POST(self) -> None:
        """Answer a POST, once its body is whole."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BYTES:
            self.close_connection = True  # what follows is the body, and no request
            error = {"error": f"A decision has a Content-Length of at most {MOST_BYTES}."}
            self._send(Response(413, "application/json", json.dumps(error).encode()))
            return
        body = self.rfile.read(int(length))
        if len(body) == int(length):  # else it was cut off, and is no decision
            self._send(self._respond(body))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - as the library has it
        """Leave the terminal to the address and the summary."""

    def _respond(self, body: bytes) -> Response:
        headers = self.headers
        request = Request(self.command, self.path, headers.get("Host", ""), headers.get("Content-Type", ""), body)
        return respond(self.server.session, self.server.token, request)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)

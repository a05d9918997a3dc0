"""What a server takes of one request and of all of them, and how it says no."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What is taken."""

    bytes: int  # of the body of one request
    pixels: int  # of all images of one request together, before anything is decoded
    batch: int  # images of one request, and of one call of the artefact
    queue: int  # images that were taken and are not answered yet, over all requests


class Refusal(Exception):  # noqa: N818 - an answer, and no fault of the server
    """A request that gets no detections; the message says what, and the cure."""

    def __init__(self, status: int, message: str) -> None:
        """Say no.

        Args:
            status: Of HTTP, 4xx or 5xx.
            message: One sentence.
        """
        super().__init__(message)
        self.status = status
        self.message = message


class StartError(RuntimeError):
    """A server that cannot start; the message says why, and the cure."""

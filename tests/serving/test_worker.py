"""How jobs are gathered into a batch."""

from __future__ import annotations

import time
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from litserve.transport.base import MessageTransport

from detframe.data.images import SentImage
from detframe.serving.limits import Limits
from detframe.serving.uploads import Job
from detframe.serving.worker import END, Batches, DetectorAPI


class Nowhere(MessageTransport):
    def send(self, item: Any, consumer_id: int) -> None:  # noqa: ANN401
        raise AssertionError(item)

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> dict[Any, Any]:
        raise AssertionError((timeout, consumer_id))

    def close(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Nothing to close."""


def gathered(
    *jobs: tuple[int, int], wait: float = 0, age: float = 0, end: bool = False
) -> tuple[list[int], list[int], int]:
    """Numbers of the jobs of (images, pixels) that were taken, those that are late, and how many were left."""
    api = DetectorAPI(Path("none.torchscript"), 1, Limits(1, pixels=1000, batch=4, queue=9), wait)
    api.request_timeout = 60
    queue: Queue[Any] = Queue()
    for number, (images, pixels) in enumerate(jobs):
        queue.put((0, number, time.monotonic() - age, Job([SentImage(b"", "")] * images, pixels, False)))
    if end:
        queue.put(END)
    taken, late = Batches().get_batch_requests(api, queue, Nowhere())  # type: ignore[no-untyped-call]
    return [number for _, number, _ in taken], [number for _, number in late], queue.qsize()


def test_what_is_there_is_taken_up_to_the_batch() -> None:
    assert gathered((1, 9), (1, 9)) == ([0, 1], [], 0)
    assert gathered((1, 9), (2, 9), (1, 9), (1, 9)) == ([0, 1, 2], [], 1)
    assert gathered((3, 9), (3, 9), (1, 9)) == ([0, 1], [], 1)  # a request stays whole
    assert gathered((4, 9), (1, 9)) == ([0], [], 1)


def test_large_images_end_a_batch_early() -> None:
    assert gathered((1, 900), (1, 900), (1, 900)) == ([0, 1], [], 1)


def test_what_waited_for_too_long_is_told_so() -> None:
    assert gathered((1, 9), (1, 9), age=61) == ([], [0, 1], 0)


def test_the_first_waits_for_others_no_longer_than_it_is_told() -> None:
    started = time.monotonic()
    assert gathered((1, 9), wait=0.1) == ([0], [], 0)
    assert 0.1 <= time.monotonic() - started < 5


@pytest.mark.parametrize("age", [0, 61])
def test_the_end_comes_after_what_was_taken(age: float) -> None:
    taken, late, left = gathered((1, 9), age=age, end=True)
    assert (taken + late, left) == ([0], 1)

"""What runs in a worker's process: a loop that gathers batches, and the artefact that answers them."""

# No `from __future__ import annotations`: LitServe reads the types of decode_request and encode_response.

import os
import signal
import time
from collections.abc import Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from queue import Empty, Queue
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request
from litserve import LitAPI
from litserve.loops.simple_loops import BatchedLoop
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType
from PIL import Image
from starlette.responses import Response

from detframe.export.runtime import Artefact, ArtefactError, Metadata, load
from detframe.monitoring.window import WindowError
from detframe.serving.answers import Predicted, answer_jobs, json_response
from detframe.serving.limits import Limits, Refusal
from detframe.serving.uploads import Job
from detframe.serving.windows import WindowWriter

BATCH_HEADER = "X-Batch-Images"
"""How many images were in the call of the artefact that a request's first image was part of."""

_START: Any = LitAPIStatus.START  # texts, which LitServe's own annotations take for members of an enum

_SLEEP = 0.1
"""Seconds at a time that a worker waits for a job; one that dies meanwhile may take a job along unheard."""

END = (None, None, None, None)
"""In the queue, for a worker to end once all before it is done; LitServe's own word for it."""


def job_of(request: Request) -> Job:
    """The job that the gate has made of a request."""
    job: Job = request.state.job
    return job


class Batches(BatchedLoop):
    """Sleeps until a job is there, and then waits a moment for others.

    LitServe's own loop asks the queue a thousand times a second while nothing comes, counts requests where one may hold
    many images, and begins to wait before the first has come.
    """

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: "Queue[Any]", transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        """Jobs for one round, and those that have waited for too long.

        The process ends here when the server says that no more will come, or has ended itself.

        Args:
            lit_api: Whose limits hold.
            request_queue: Of (consumer, id, time, job).
            transport: The way back.
        """
        assert isinstance(lit_api, DetectorAPI)
        taken: list[Any] = []
        late: list[Any] = []
        images = pixels = 0
        until: float | None = None
        while images < lit_api.limits.batch and pixels < lit_api.limits.pixels:
            try:
                left = _SLEEP if until is None else until - time.monotonic()
                entry = request_queue.get(timeout=left) if left > 0 else request_queue.get_nowait()
            except Empty:
                parent = parent_process()
                if parent is not None and not parent.is_alive():
                    os.kill(lit_api.queue_process, signal.SIGKILL)  # it heeds no signal but this, and would stay
                    os._exit(1)
                break
            except (EOFError, ConnectionError):  # the process that holds the queue is gone
                os._exit(1)
            if entry == END:
                if not taken and not late:
                    lit_api.finish()
                    os._exit(0)  # torch takes seconds to tidy up, and every answer is with the queue's process by now
                request_queue.put(END)  # for the next round
                break
            consumer, identity, sent, job = entry
            # Tells the server who has the job, for when this process dies over it.
            self.put_response(transport, consumer, identity, (), _START, LoopResponseType.REGULAR)
            now = time.monotonic()
            until = until or now + lit_api.batch_timeout
            if now - sent > lit_api.request_timeout:
                late.append((consumer, identity))
                continue
            taken.append((consumer, identity, job))
            images += len(job.images)
            pixels += job.pixels
        return taken, late


class Start:
    """The way from workers to the server's process while they load: LitServe's own says only that one has failed."""

    def __init__(self) -> None:
        """Open it, for processes that are spawned."""
        context = get_context("spawn")
        self.reports: SimpleQueue[Metadata | str] = context.SimpleQueue()  # a text is what went wrong
        self.wanted = context.Event()  # nobody reads what a worker says that is started later
        self.wanted.set()


class DetectorAPI(LitAPI):
    """An artefact as LitServe runs it: images are decoded here, so that the server's process is free to listen."""

    def __init__(
        self,
        path: Path,
        threads: int,
        limits: Limits,
        wait: float,
        windows: Path | None = None,
        window_images: int = 64,
    ) -> None:
        """Say what is to be served; it is loaded in each worker.

        Args:
            path: Of the artefact.
            threads: Of the CPU for one worker; 0 leaves it to the runtime.
            limits: That batches keep to.
            wait: Seconds that the first job of a batch waits for others.
            windows: Folder for windows that `detframe monitor` reads; None writes none.
            window_images: Of a window.
        """
        super().__init__(max_batch_size=limits.batch, batch_timeout=wait, api_path="/predict")
        self.loop = Batches()  # type: ignore[no-untyped-call]
        self.limits = limits
        self.path = path
        self.start = Start()
        self.queue_process = 0  # its number, set before workers are started
        self._threads = threads
        self._artefact: Artefact | None = None
        self._windows = windows
        self._window_images = window_images
        self._writer: WindowWriter | None = None

    def authorize(self) -> None:
        """Let everybody in: the gate has asked for the key, in constant time."""

    def setup(self, device: str) -> None:
        """Load the artefact, and run it once, for what a runtime does at its first call only.

        Args:
            device: Of LitServe; the artefact's runtime knows its own.
        """
        Image.MAX_IMAGE_PIXELS = self.limits.pixels
        try:
            self._artefact = load(self.path, self._threads)
            if self._windows is not None:
                self._writer = WindowWriter(self._windows, self._window_images, self._artefact.metadata)
        except (ArtefactError, WindowError) as error:
            if self.start.wanted.is_set():
                self.start.reports.put(str(error))
            raise SystemExit(2) from error  # no traceback
        height, width = self._artefact.metadata.image_size
        for _ in range(2):  # TorchScript profiles at the first and compiles at the second
            self._artefact.run(np.zeros((1, 3, height, width), np.uint8))
        if self.start.wanted.is_set():
            self.start.reports.put(self._artefact.metadata)

    def decode_request(self, request: Annotated[Job, Depends(job_of)]) -> Job:  # type: ignore[override]
        """The job as it is: were an image's fault raised here, LitServe would fail the whole batch for it."""
        return request

    def predict(self, x: Sequence[Job]) -> list[Predicted | Refusal]:  # type: ignore[override]
        """Answer jobs; what is wrong with one leaves the others alone."""
        assert self._artefact is not None
        if self._writer is None:
            return answer_jobs(self._artefact, x, self.limits.batch)
        return answer_jobs(self._artefact, x, self.limits.batch, self._writer.add)

    def finish(self) -> None:
        """Write the window that has begun."""
        if self._writer is not None:
            self._writer.flush()

    def encode_response(self, output: Predicted | Refusal) -> Response:  # type: ignore[override]
        """The answer as JSON."""
        if isinstance(output, Refusal):
            return json_response({"error": output.message}, output.status)
        response = json_response({"images": output.images}, 200)
        response.headers[BATCH_HEADER] = str(output.batch)
        return response

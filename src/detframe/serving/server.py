"""LitServe's app, queue and workers behind a gate and a socket of ours.

``LitServer.run`` is left aside for what it does to processes (litserve 0.2.19). A SIGTERM ends the first one and leaves
the others behind with the port. While requests are finished, the first and the queue's process still hold the socket,
so that new connections hang where they should be refused. When a worker dies, requests that it had are marked in the
first process, where nobody waits for them. With the app in the first process, all three go away.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.managers import SyncManager
from types import FrameType

from litserve import LitServer
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from detframe.export.runtime import Metadata
from detframe.serving.answers import json_response
from detframe.serving.gate import Gate
from detframe.serving.limits import StartError
from detframe.serving.listening import bound, listen, url
from detframe.serving.metrics import Metrics
from detframe.serving.worker import END, DetectorAPI

ANSWER_SECONDS = 60
"""After which a job that still waits is answered with 504."""


def run(api: DetectorAPI, workers: int, key: str, host: str, port: int, ready: Callable[[str, Metadata], None]) -> None:
    """Serve until SIGTERM or SIGINT; what has been taken by then is answered first.

    Args:
        api: What is served.
        workers: Processes.
        key: That requests need, or "".
        host: Name or address to listen at.
        port: To listen at; 0 takes a free one.
        ready: Called once it listens, with its address and what the artefact says of itself.

    Raises:
        StartError: The address cannot be had, or a worker cannot load the artefact.
        KeyboardInterrupt: The signal came before the server was ready.
    """
    server = LitServer(
        api,
        accelerator="cpu",
        workers_per_device=workers,
        timeout=ANSWER_SECONDS,
        disable_openapi_url=True,  # its page loads scripts from elsewhere
        restart_workers=True,
    )
    server.app.add_exception_handler(HTTPException, _refused)
    server.app.add_exception_handler(Exception, _failed)
    Image.MAX_IMAGE_PIXELS = api.limits.pixels
    with (
        _signals(_interrupt),
        _queue(server) as manager,
        bound(host, port) as listener,  # after the queue's process, which would keep it open, and before slow workers
        _workers(server, api, manager) as metadata,
        _signals(_ignore),  # uvicorn listens to them itself, and in the end sends itself those that it heard
    ):
        server.model_metadata = {"artefact": api.path.name, **metadata.said(), "limits": api.limits._asdict()}
        metrics = Metrics({"artefact": api.path.name, "checkpoint_hash": metadata.checkpoint_hash}, api.limits.queue)
        gate = Gate(server.app, limits=api.limits, metrics=metrics, key=key)
        listen(listener, gate, lambda: ready(url(listener), metadata), ANSWER_SECONDS + 5)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 504:
        message = f"The request waited for {ANSWER_SECONDS} s in the queue; try again when there is less to do."
        return json_response({"error": message}, 504)
    return json_response({"error": f"{error.detail}."}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return json_response({"error": "The server failed on this request; its log says why."}, 500)


@contextmanager
def _queue(server: LitServer) -> Iterator[SyncManager]:
    """The process that holds LitServe's queues.

    A signal to all processes, as Ctrl-C and systemd send it, is for the first alone: the others end when that says so.
    """
    server.app.response_queue_id = 0  # type: ignore[attr-defined]
    server.mcp_server = _NoTools()  # type: ignore[assignment]
    with _signals(signal.SIG_IGN):
        manager = server._init_manager(1)
    try:
        yield manager
    finally:
        manager.shutdown()


class _NoTools:
    """In the place of LitServe's MCP tools, which its app asks for where that library is installed."""

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        yield


@contextmanager
def _workers(server: LitServer, api: DetectorAPI, manager: SyncManager) -> Iterator[Metadata]:
    """LitServe's workers, which it starts anew when one dies; at the end they finish what they have.

    Yields:
        What the artefact says of itself.

    Raises:
        StartError: One cannot load the artefact.
    """
    api.queue_process = manager._process.pid  # type: ignore[attr-defined]
    with _signals(signal.SIG_IGN):
        server.inference_workers = server.launch_inference_worker(api)
    try:
        loaded = [_loaded(server, api) for _ in server.inference_workers]
        api.start.wanted.clear()
        server._start_worker_monitoring(manager, {})
        yield loaded[0]
    finally:
        assert server._shutdown_event is not None
        server._shutdown_event.set()  # or those that end would be started anew
        for _ in server.inference_workers:
            server._get_request_queue(api.api_path).put(END)
        for worker in server.inference_workers:
            worker.join(10)
            if worker.is_alive():
                worker.kill()
                worker.join()


def _loaded(server: LitServer, api: DetectorAPI) -> Metadata:
    """What the next worker reports.

    Raises:
        StartError: It cannot load the artefact, or has ended without a word.
    """
    while api.start.reports.empty():
        if not all(worker.is_alive() for worker in server.inference_workers):
            raise StartError(f"{api.path}: a worker ended while it loaded it, perhaps for want of memory.")
        time.sleep(0.02)
    report = api.start.reports.get()
    if isinstance(report, str):
        raise StartError(report)
    return report


Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def _signals(handler: Handler) -> Iterator[None]:
    """What SIGTERM and SIGINT do meanwhile, here and in processes that are started."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Go on: the server is ending already."""

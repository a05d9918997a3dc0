"""The verb ``serve``: an artefact behind HTTP, with a page to try it on."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from detframe.export.runtime import Metadata
from detframe.refusals import refuse
from detframe.serving.limits import Limits, StartError

KEY = "DETFRAME_API_KEY"
"""The environment variable that holds the key: on the command line every user of the machine could read it."""

_NEEDED = {"litserve": "litserve", "python_multipart": "python-multipart"}


def serve(
    artefact: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    threads: int = 0,
    batch: int = 8,
    wait: float = 0.005,
    queue: int = 64,
    megabytes: float = 32.0,
    megapixels: float = 50.0,
    windows: Path | None = None,
    window_images: int = 64,
) -> int:
    """Answer HTTP requests with what ARTEFACT finds in their images, and show it on a page.

    POST /predict takes images as files of multipart/form-data, or {"images": ["<base64>", ...]} as JSON, and answers
    {"images": [{"detections": [{"box": [x1, y1, x2, y2], "score", "label", "class_name"}, ...], "width", "height"}]} in
    their order: the detections from the operating thresholds on, with ?all=true all of them. GET / is a page to drop an
    image on, /health, /metrics (Prometheus) and /info say how it is and what it is. Images of several requests go
    through the artefact together. No upload is written anywhere.

    What is wrong with a request is said in one sentence, {"error": ...}, with a status of 4xx: 413 over a limit, 429
    with a full queue. Where DETFRAME_API_KEY is set, requests need it in the header X-API-Key. SIGTERM and Ctrl-C
    refuse new connections, answer what was taken, and end.

    Exit code: 0 when it was ended, 2 when it cannot start.

    Args:
        artefact: What `detframe export` wrote.
        host: Address to listen at; the default answers this machine alone, 0.0.0.0 every one that reaches it.
        port: To listen at; 0 takes a free one.
        workers: Processes with the artefact loaded in each.
        threads: Of the CPU for each worker; 0 shares the cores out.
        batch: The most images of a request, and of one call of the artefact.
        wait: Seconds that the first image of a batch waits for others.
        queue: Images that may wait or be worked on, over all requests.
        megabytes: The most of one request's body.
        megapixels: The most of all images of a request together, looked up before anything is decoded.
        windows: Folder for windows of counts, which `detframe monitor` compares with the artefact's profile; no image
            and nothing of any single one is in them.
        window_images: After so many images a worker writes a window.
    """
    limits = Limits(round(megabytes * 1e6), round(megapixels * 1e6), batch, queue)
    try:
        _check(artefact, limits, port, workers, threads, wait, window_images)
        key = _key()
        # Of the extra `serve`, and of no use to any other verb.
        from detframe.serving.server import run
        from detframe.serving.worker import DetectorAPI

        if windows is not None:
            try:
                windows.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StartError(
                    f"--windows {windows}: cannot be made ({error.strerror}). Name another folder."
                ) from error
        api = DetectorAPI(
            artefact, threads or max(1, (os.cpu_count() or 1) // workers), limits, wait, windows, window_images
        )
        run(api, workers, key, host, port, partial(_greet, artefact, not key))
    except StartError as error:
        return refuse(error)
    except KeyboardInterrupt:  # before it was ready
        return 0
    return 0


def _check(
    artefact: Path, limits: Limits, port: int, workers: int, threads: int, wait: float, window_images: int
) -> None:
    """Refuse what cannot be served, and a missing library.

    Raises:
        StartError: With the option or the command.
    """
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise StartError(
            f"`detframe serve` needs {' and '.join(missing)}, not installed here. Run `pip install 'detframe[serve]'`."
        )
    if not artefact.exists():
        raise StartError(f"{artefact}: there is no such artefact. Write one with `detframe export CHECKPOINT`.")
    low = {"workers": workers, "batch": limits.batch, "megabytes": limits.bytes, "megapixels": limits.pixels}
    for name, value in low.items():
        if value < 1:
            raise StartError(f"--{name}: is too low; give at least 1.")
    if limits.queue < limits.batch:
        raise StartError(
            f"--queue {limits.queue}: is less than --batch {limits.batch}; raise it, or a full request never fits."
        )
    if window_images < 1:
        raise StartError("--window_images: is too low; give at least 1.")
    if threads < 0 or not 0 <= wait <= 10 or not 0 <= port <= 65535:
        raise StartError("--threads is 0 or more, --wait 0 to 10 seconds, --port 0 to 65535.")


def _key() -> str:
    """The key that is asked for, "" for none.

    Raises:
        StartError: No header could hold it.
    """
    key = os.environ.get(KEY, "")
    if key != key.strip() or not (key.isascii() and key.isprintable()):
        raise StartError(f"{KEY}: has blanks at an end or characters that no header holds; use ASCII.")
    if KEY in os.environ and not key:
        raise StartError(f"{KEY}: is empty; unset it to ask for no key.")
    return key


def _greet(artefact: Path, keyless: bool, url: str, metadata: Metadata) -> None:
    print(f"{artefact.name}: {', '.join(metadata.class_names)}")
    if keyless and not url.startswith(("http://127.", "http://[::1]")):
        print(f"Whoever reaches this machine may use it: set {KEY} to ask for a key.")
    print(f"{url}  Ctrl-C ends it.", flush=True)

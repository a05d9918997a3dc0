"""What `detframe serve` makes of an artefact's speed, and whether it stays right, small and gentle under load.

It measures, one after the other: images/s of the artefact alone, in full batches of decoded images; images/s of the
server with as many clients as it is given; latency at half that rate, from the moment that a request was due; many
requests with garbage among them, every good answer compared with the artefact's own, and the memory of the server's
processes before and after; and what clients see when SIGTERM comes under load.

python tools/bench_serve.py model.torchscript IMAGES                                 # as the issue has it
python tools/bench_serve.py model.torchscript IMAGES --seconds 10 --requests 300     # short
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detframe.data.images import read_image
from detframe.export.runtime import Artefact, load
from detframe.serving.answers import as_json

_HEADERS = {"Content-Type": "multipart/form-data; boundary=frontier"}
_HEAD = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
_TOLERANCE = 1e-3  # of scores and, times 100, of pixels: a batch of another size adds up in another order


class Picture(NamedTuple):
    """A request and its answer."""

    body: bytes
    expected: dict[str, Any]


class Server:
    """`detframe serve` in a process of its own."""

    def __init__(self, artefact: Path, options: list[str]) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-W", "ignore", "-m", "detframe", "serve", str(artefact), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("http://"):
                self.port = int(line.split()[0].rstrip("/").rpartition(":")[2])
                return
        raise RuntimeError("The server did not start.")

    def connect(self) -> http.client.HTTPConnection:
        """A connection that stays."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def memory(self) -> float:
        """MB of all its processes, shared pages counted for each."""
        listed = subprocess.run(
            ["ps", "-o", "rss=", "--pid", str(self.process.pid), "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        return sum(map(int, listed.stdout.split())) / 1000


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, Any]:
    """Status and content."""
    connection.request("POST", "/predict", body, _HEADERS)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def pictures(artefact: Artefact, paths: list[Path]) -> list[Picture]:
    """Requests of one image each, and what the artefact itself says of it."""
    found = []
    for path in paths:
        image = np.ascontiguousarray(read_image(path).numpy()[None])
        answer = as_json(artefact.run(image), artefact.metadata.class_names, False, *image.shape[2:])
        found.append(Picture(_HEAD + path.read_bytes() + b"\r\n--frontier--\r\n", answer))
    return found


def garbage(picture: Picture, rng: random.Random) -> bytes:
    """A body that cannot be answered."""
    cut = picture.body[: len(picture.body) // 2]
    return rng.choice([b"", b"\0" * 5000, cut, cut + b"\r\n--frontier--\r\n", _HEAD + b"hello\r\n--frontier--\r\n"])


def is_same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether each detection of one has a twin in the other."""
    left = list(answer["detections"])
    for wanted in expected["detections"]:
        twin = next((found for found in left if _are_twins(found, wanted)), None)
        if twin is None:
            return False
        left.remove(twin)
    return not left and (answer["width"], answer["height"]) == (expected["width"], expected["height"])


def _are_twins(one: dict[str, Any], other: dict[str, Any]) -> bool:
    apart = max(abs(a - b) for a, b in zip(one["box"], other["box"], strict=True))
    alike = one["label"] == other["label"] and abs(one["score"] - other["score"]) < _TOLERANCE
    return bool(alike and apart < 100 * _TOLERANCE)


@contextmanager
def clients(number: int, work: Callable[[], None]) -> Iterator[None]:
    """Threads that work until they are done; what one of them raises is raised here."""
    with ThreadPoolExecutor(number) as threads:
        working = [threads.submit(work) for _ in range(number)]
        yield
        for thread in working:
            thread.result()


def alone(artefact: Artefact, paths: list[Path], batch: int, seconds: float) -> float:
    """Images/s of the artefact in full batches of one size."""
    image = read_image(paths[0]).numpy()
    images = np.ascontiguousarray(np.stack([image] * batch))
    for _ in range(2):
        artefact.run(images)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        artefact.run(images)
        done += batch
    return done / (time.perf_counter() - started)


def throughput(server: Server, asked: list[Picture], number: int, seconds: float) -> float:
    """Images/s of so many clients that each ask again at once."""
    done: list[float] = []
    end = time.perf_counter() + seconds

    def work() -> None:
        connection, rng = server.connect(), random.Random(threading.get_ident())
        while time.perf_counter() < end:
            if ask(connection, rng.choice(asked).body)[0] == 200:
                done.append(time.perf_counter())
        connection.close()

    with clients(number, work):
        pass
    return sum(at < end for at in done) / seconds


def latency(server: Server, asked: list[Picture], number: int, rate: float, seconds: float) -> list[float]:
    """Seconds from when a request was due to its answer, at a rate of requests/s."""
    times: list[float] = []
    started, numbers, lock = time.perf_counter(), count(), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                turn = next(numbers)
            due = started + turn / rate
            if due > started + seconds:
                break
            time.sleep(max(0.0, due - time.perf_counter()))
            connection = server.connect()  # one that waits for its turn would be closed meanwhile
            assert ask(connection, asked[turn % len(asked)].body)[0] == 200
            times.append(time.perf_counter() - due)
            connection.close()

    with clients(number, work):
        pass
    return sorted(times)


def mixed(server: Server, asked: list[Picture], number: int, requests: int, share: float, seed: int) -> Counter[str]:
    """How requests with a share of garbage were answered."""
    answers: Counter[str] = Counter()
    rng, numbers, lock = random.Random(seed), iter(range(requests)), threading.Lock()

    def work() -> None:
        connection = server.connect()
        while True:
            with lock:
                if next(numbers, None) is None:
                    break
                picture, bad = rng.choice(asked), rng.random() < share
                body = garbage(picture, rng) if bad else picture.body
            status, content = ask(connection, body)
            if bad:
                answers["garbage refused" if 400 <= status < 500 and "error" in content else "garbage missed"] += 1
            elif status != 200:
                answers[f"good refused with {status}"] += 1
            else:
                answers["good, equal" if is_same(content["images"][0], picture.expected) else "good, DIFFERENT"] += 1
        connection.close()

    with clients(number, work):
        pass
    return answers


def stopped(server: Server, asked: list[Picture], number: int, seconds: float) -> tuple[Counter[str], float, int]:
    """What clients saw that ask anew on a connection each, seconds that the stop took, and the exit code."""
    seen: Counter[str] = Counter()

    def work() -> None:
        rng = random.Random(threading.get_ident())
        while True:
            connection = server.connect()
            try:
                connection.connect()
            except OSError:
                seen["not let in"] += 1
                return
            try:
                seen[str(ask(connection, rng.choice(asked).body)[0])] += 1
            except (OSError, http.client.HTTPException):
                seen["LOST"] += 1
                return
            finally:
                connection.close()

    with clients(number, work):
        time.sleep(seconds)
        started = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(120)
        took = time.perf_counter() - started
    return seen, took, code


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("images", type=Path, help="folder of JPEG files")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    parser.add_argument("--requests", type=int, default=10_000, help="with garbage among them")
    parser.add_argument("--garbage", type=float, default=0.05, help="its share")
    parser.add_argument("--different", type=int, default=40, help="images that are asked about")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    paths = sorted(given.images.glob("*.jp*g"))[: given.different]
    if not paths:
        parser.error(f"{given.images}: holds no JPEG file. Name the folder with the images.")
    artefact = load(given.artefact, given.workers * given.threads)
    own = alone(artefact, paths, given.batch, given.seconds)
    print(f"alone, batches of {given.batch}, {given.workers * given.threads} threads: {own:.1f} images/s", flush=True)
    asked = pictures(artefact, paths)
    options = [f"--workers={given.workers}", f"--threads={given.threads}", f"--batch={given.batch}"]
    server = Server(given.artefact, options)
    try:
        throughput(server, asked, given.clients, given.seconds / 4)  # the first calls are slow
        rate = throughput(server, asked, given.clients, given.seconds)
        print(f"served, {given.clients} clients: {rate:.1f} images/s, {rate / own:.0%} of it", flush=True)
        latency(server, asked, given.clients, rate / 2, given.seconds / 4)  # batches of other sizes: slow at first too
        times = latency(server, asked, given.clients, rate / 2, given.seconds)
        last = times[min(len(times) - 1, round(0.99 * len(times)))]
        print(
            f"at half of that, {len(times)} requests: p50 {1000 * statistics.median(times):.0f} ms, "
            f"p99 {1000 * last:.0f} ms",
            flush=True,
        )
        before = server.memory()
        answers = mixed(server, asked, given.clients, given.requests, given.garbage, given.seed)
        told = ", ".join(f"{answers[kind]} {kind}" for kind in sorted(answers))
        print(
            f"{given.requests} requests: {told}; memory {before:.0f} MB before, {server.memory():.0f} after", flush=True
        )
        seen, took, code = stopped(server, asked, given.clients, min(5.0, given.seconds))
        told = ", ".join(f"{seen[kind]} x {kind}" for kind in sorted(seen))
        print(f"SIGTERM under load: {told}; ended after {took:.1f} s with {code}; load {os.getloadavg()[0]:.1f}")
    finally:
        server.process.kill()
        server.process.wait()


if __name__ == "__main__":
    main()

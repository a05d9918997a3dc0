# No `from __future__ import annotations`: TorchScript reads the types of the module below.

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from detframe.export.runtime import METADATA, Artefact, Metadata, load

NAMES = ["red", "green", "blue"]
SLOW, FAILS = 7, 13
"""Of the first pixel's red: an image that takes a while, and one that the artefact cannot do."""


class Shades(nn.Module):
    """A detector of colours: the brighter a channel, the larger its box and the higher its score."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        first = int(images[:, 0, 0, 0].max())
        if first == 13:
            raise RuntimeError("thirteen brings bad luck")
        shades = images.float().mean(dim=[2, 3]) / 255  # [B, 3]
        if first == 7:
            burnt = torch.rand(256, 256)
            for _ in range(300):
                burnt = torch.mm(burnt, burnt).clamp(0, 1)
            shades = shades + burnt.sum() * 0
        scores, labels = shades.sort(dim=1, descending=True)
        height, width = images.shape[2], images.shape[3]
        far = torch.stack([scores * width, scores * height], dim=2)
        boxes = torch.cat([torch.zeros_like(far), far], dim=2)
        return boxes, scores, labels, scores > 0, scores >= 0.5, shades, nn.functional.normalize(shades, dim=1)


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    path = tmp_path_factory.mktemp("artefact") / "shades.torchscript"
    metadata = Metadata(NAMES, (32, 48), stretch=False, thresholds=dict.fromkeys(NAMES, 0.5), checkpoint_hash="c0ffee")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated and still one of the formats
        torch.jit.save(torch.jit.script(Shades()), path, _extra_files={METADATA: metadata.to_json()})
    return load(path, 1)


def picture(height: int = 24, width: int = 40, first: int = 0, seed: int = 0) -> NDArray[np.uint8]:
    """Noise [H, W, 3] of a colour by its seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 256, (height, width, 3)) * rng.uniform(0.2, 1, 3)
    pixels[0, 0, 0] = first
    return pixels.astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def expected(artefact: Artefact, pixels: NDArray[np.uint8], everything: bool = False) -> dict[str, Any]:
    """What is to be answered for an image, from the artefact's own answer."""
    answer = artefact.run(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    shown = (answer.valid if everything else answer.confident)[0]
    return {
        "detections": [
            {"box": box.tolist(), "score": float(score), "label": int(label), "class_name": NAMES[label]}
            for box, score, label in zip(*(column[0][shown] for column in answer[:3]), strict=True)
        ],
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }


def as_float32(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with the shortest decimals taken for the 32 bits that they stand for."""
    return answer | {
        "detections": [
            found
            | {"box": [float(np.float32(side)) for side in found["box"]], "score": float(np.float32(found["score"]))}
            for found in answer["detections"]
        ]
    }


def form(*files: bytes, names: list[str] | None = None) -> tuple[bytes, dict[str, str]]:
    """A multipart body and its header."""
    body = b""
    for number, content in enumerate(files):
        name = names[number] if names else f"{number}.png"
        head = f'--frontier\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + b"--frontier--\r\n", {"Content-Type": "multipart/form-data; boundary=frontier"}


def as_json(*files: bytes) -> tuple[bytes, dict[str, str]]:
    """A JSON body and its header."""
    content = {"images": [base64.b64encode(file).decode() for file in files]}
    return json.dumps(content).encode(), {"Content-Type": "application/json"}


class Served:
    """`detframe serve` in a process of its own."""

    def __init__(self, artefact: Artefact, log: Path, *options: str, **environment: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "detframe", "serve", str(artefact.path)]
        self.folder = log.parent
        self._log = log.open("w+")
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        self.url = ""
        for line in self.process.stdout:
            self.said += line
            if line.startswith("http://"):
                self.url = line.split()[0]
                return
        raise RuntimeError(f"no address: {self.log()}")

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any]:
        """Status and content: of JSON what it holds, of all else the text."""
        request = urllib.request.Request(self.url + path, body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, content, kind = response.status, response.read(), response.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            with error:
                status, content, kind = error.code, error.read(), error.headers["Content-Type"]
        return status, json.loads(content) if kind == "application/json" else content.decode()

    def metric(self, name: str) -> float:
        text: str = self.ask("metrics")[1]
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")))

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric is at least so high."""
        end = time.monotonic() + 30
        while self.metric(name) < value:
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)


@pytest.fixture(scope="session")
def served(artefact: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with small limits that keeps its temporary files, if it had any, in a folder of its own."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "tmp").mkdir()
    options = ["--batch", "4", "--queue", "64", "--megabytes", "2", "--megapixels", "1", "--wait", "0.05"]
    with Served(artefact, folder / "log", *options, TMPDIR=str(folder / "tmp")) as server:
        yield server
        assert set(server.log().splitlines()) <= {"Invalid HTTP request received."}


@pytest.fixture
def temporary(served: Served) -> Path:
    """Where the server's temporary files would be."""
    return served.folder / "tmp"

"""A headless Chromium driven by its DevTools protocol over two pipes: no port, no driver, no dependency.

For the tests and benchmarks of pages that answer to keys.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)

# Chromium reads commands at 3 and writes answers at 4; the pipes have other numbers, perhaps each other's.
_LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, pipe in zip((3, 4), high):
    os.dup2(pipe, number)
    os.close(pipe)
os.execv(sys.argv[3], sys.argv[3:])
"""

_CODES = {"Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Chromium:
    """One page in a window of its own; a context manager."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 800) -> None:
        """Start the browser.

        Args:
            profile: Folder for its files.
            width: Of the window, CSS pixels.
            height: Of the window, CSS pixels.

        Raises:
            RuntimeError: There is no Chromium.
        """
        if BROWSER is None:
            raise RuntimeError("There is no Chromium on the PATH.")
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(read), str(write), BROWSER, "--headless"]
        command += ["--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        command += [f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.console: list[str] = []  # errors and warnings of the page
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Chromium:
        """The browser itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it."""
        os.close(self._write)  # which it takes as the order to go
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Give the page a size in CSS pixels and the light or the dark of its reader's system."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401 - what JSON holds
        """Value of an expression in the page, awaited if it is a promise.

        Raises:
            RuntimeError: It throws.
        """
        done = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until an expression in the page holds.

        Raises:
            TimeoutError: It does not.
        """
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}: does not come true; console: {self.console}")
            time.sleep(0.01)

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key as a person does, and let it go: a character, or a name such as Enter."""
        self.key_down(key, shift)
        self.key_up(key)

    def key_down(self, key: str, shift: bool = False, repeated: bool = False) -> None:
        """Press a key; repeated: as the keyboard does by itself while it is held."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        event = {"key": key, "windowsVirtualKeyCode": _code(key), "modifiers": 8 if shift else 0}
        self._call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeated, **event, **text)

    def key_up(self, key: str) -> None:
        """Let a key go."""
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=_code(key))

    def drag(self, start: tuple[float, float], end: tuple[float, float], shift: bool = False) -> None:
        """Press the mouse at a point of the page, move it to another in steps, and let it go."""
        mouse = {"button": "left", "clickCount": 1, "modifiers": 8 if shift else 0}
        (x, y), (to_x, to_y) = start, end
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self._call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
        for share in (0.25, 0.5, 0.75, 1.0):
            at = {"x": x + share * (to_x - x), "y": y + share * (to_y - y)}
            self._call("Input.dispatchMouseEvent", type="mouseMoved", **at, **{**mouse, "buttons": 1})
        self._call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, **mouse)

    def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - what JSON holds
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            self._note(answer)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _receive(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], seconds)[0]:
                raise TimeoutError("Chromium does not answer.")
            block = os.read(self._read, 1 << 20)
            if not block:
                raise RuntimeError("Chromium has ended.")
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page's console says."""
        content = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(content["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{content['entry']['text']} {content['entry'].get('url', '')}")
        elif event.get("method") == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning"):
            self.console.append(str(content["args"]))


def _code(key: str) -> int:
    return _CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)

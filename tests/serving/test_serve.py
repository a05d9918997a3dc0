"""`detframe serve` as a process: what it answers, what it survives, how it ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.serving.conftest import (
    FAILS,
    SLOW,
    Served,
    as_float32,
    as_json,
    encoded,
    expected,
    form,
    picture,
)

from detframe.cli import main
from detframe.export.runtime import Artefact


@pytest.mark.parametrize("encode", [form, as_json])
def test_answers_are_the_artefacts(served: Served, artefact: Artefact, encode: object) -> None:
    assert callable(encode)
    images = [picture(seed=1), picture(30, 20, seed=2), picture(seed=3)]
    for query, everything in (("", False), ("?all=true", True)):
        status, content = served.ask(f"predict{query}", *encode(*map(encoded, images)))
        assert status == 200, content
        assert list(content) == ["images"]
        assert [as_float32(image) for image in content["images"]] == [
            expected(artefact, image, everything) for image in images
        ]


def test_requests_that_come_together_share_calls_and_no_fault(served: Served, artefact: Artefact) -> None:
    calls = served.metric("detframe_batch_images_count"), served.metric("detframe_batch_images_sum")
    images = [picture(seed=seed) for seed in range(24)]
    damaged = encoded(images[0])[:-60]

    def ask(place: int) -> tuple[int, object]:
        return served.ask("predict", *form(damaged if place % 6 == 5 else encoded(images[place])))

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(ask, range(24)))
    for place, (status, content) in enumerate(answers):
        assert status == (400 if place % 6 == 5 else 200)
        if status == 200:
            assert isinstance(content, dict)
            assert as_float32(content["images"][0]) == expected(artefact, images[place])
    count = served.metric("detframe_batch_images_count") - calls[0]
    assert count == 20
    assert (served.metric("detframe_batch_images_sum") - calls[1]) / count > 1.5


def test_garbage_on_the_wire_leaves_it_as_it_was(served: Served) -> None:
    good = form(encoded(picture()))
    assert served.ask("predict", b"\0" * 2_000_001, form()[1])[0] == 413
    wide = encoded(np.zeros((1000, 1001, 3), np.uint8))
    status, content = served.ask("predict", *form(wide))
    assert status == 413
    assert content["error"].startswith("image (0.png): more pixels than the limit of 1000000 (1001 x 1000 pixels);")
    host, port = served.url.removeprefix("http://").strip("/").split(":")
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00",  # a greeting of TLS
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
        b"GET /" + b"a" * 100_000,
    ):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(raw)
    assert served.ask("predict", *good)[0] == 200
    assert served.metric("detframe_waiting_images") == 0
    assert served.ask("health") == (200, "ok")


def test_no_upload_is_kept(served: Served, temporary: Path) -> None:
    assert served.ask("predict", *form(encoded(picture(500, 600), "bmp")))[0] == 200  # 0.9 MB
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_info_is_what_the_artefact_says_of_itself(served: Served) -> None:
    status, content = served.ask("info")
    assert status == 200
    model = content["model"]
    assert (model["artefact"], model["class_names"], model["checkpoint_hash"]) == (
        "shades.torchscript",
        ["red", "green", "blue"],
        "c0ffee",
    )
    assert model["limits"] == {"bytes": 2_000_000, "pixels": 1_000_000, "batch": 4, "queue": 64}


def test_it_listens_to_this_machine_alone(served: Served) -> None:
    assert served.url.startswith("http://127.0.0.1:")


def running(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, _, process_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            found.append(int(folder.name))
    return found


def wait_for_none(group: int) -> None:
    """Wait until all processes of a group have ended; multiprocessing's tracker of resources is the last."""
    end = time.monotonic() + 10
    while running(group):
        assert time.monotonic() < end, [_command(process) for process in running(group)]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_queue_key_and_a_stop_under_load(artefact: Artefact, tmp_path: Path) -> None:
    options = ["--workers", "2", "--threads", "1", "--batch", "2", "--queue", "6"]
    slow, headers = form(encoded(picture(first=SLOW)))
    headers = headers | {"X-API-Key": "s3cret"}
    answers: Counter[int] = Counter()
    refused: Counter[str] = Counter()
    stop = threading.Event()

    with Served(artefact, tmp_path / "log", *options, DETFRAME_API_KEY="s3cret") as server:
        assert server.ask("predict", *form(encoded(picture())))[0] == 401
        assert server.ask("health")[0] == 200

        def client() -> None:
            while not stop.is_set():
                try:
                    status, _ = server.ask("predict", slow, headers)
                    answers[status] += 1
                except urllib.error.URLError as error:
                    refused[type(error.reason).__name__] += 1
                    return

        clients = [threading.Thread(target=client) for _ in range(12)]
        for each in clients:
            each.start()
        end = time.monotonic() + 60
        while not (answers[200] > 3 and answers[429] > 3):
            assert time.monotonic() < end, answers
            time.sleep(0.01)
        # As systemd does it, to all processes.
        os.killpg(server.process.pid, signal.SIGTERM)
        for each in clients:
            each.join(60)
        stop.set()
        assert server.process.wait(30) == 0
        assert set(answers) == {200, 429}
        # Whoever came later found the door closed, and nobody was left without an answer inside.
        assert refused == {"ConnectionRefusedError": 12}
        assert server.log() == ""
        wait_for_none(server.process.pid)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_dies_is_replaced(artefact: Artefact, tmp_path: Path) -> None:
    slow, fails = form(encoded(picture(first=SLOW))), form(encoded(picture(first=FAILS)))
    with Served(artefact, tmp_path / "log", "--threads", "1") as server:
        status, content = server.ask("predict", *fails)
        assert status == 500
        assert "thirteen brings bad luck" in content["error"]
        workers = [pid for pid in running(server.process.pid) if "spawn_main" in _command(pid)]
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(server.ask, "predict", *slow)
            server.wait_for("detframe_waiting_images", 1)
            time.sleep(0.1)
            os.kill(workers[0], signal.SIGKILL)
            assert answer.result(30)[0] in (200, 500)  # 200: it was quicker
        time.sleep(0.2)  # by when nothing waits for a job on its behalf
        end = time.monotonic() + 60
        while server.ask("health")[0] != 200 or workers == [
            pid for pid in running(server.process.pid) if "spawn_main" in _command(pid)
        ]:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert server.ask("predict", *form(encoded(picture())))[0] == 200
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        wait_for_none(server.process.pid)


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["nothing.torchscript"], "nothing.torchscript: there is no such artefact"),
        (["ARTEFACT", "--batch", "0"], "--batch: is too low"),
        (["ARTEFACT", "--queue", "3"], "--queue 3: is less than --batch 8"),
        (["ARTEFACT", "--port", "70000"], "--port 0 to 65535"),
        pytest.param(["NONE"], "none.torchscript: cannot be loaded (", marks=pytest.mark.slow),
        (["ARTEFACT", "--windows", "NONE"], "none.torchscript: cannot be made (File exists). Name another folder."),
        (["ARTEFACT", "--windows", "NONE/below"], "below: cannot be made (Not a directory). Name another folder."),
        pytest.param(["ARTEFACT", "--windows", "FOLDER"], "carries no profile", marks=pytest.mark.slow),
        (["ARTEFACT", "--host", "203.0.113.9"], "--host 203.0.113.9 --port 8000: cannot be had"),
    ],
)
def test_what_cannot_be_served(
    artefact: Artefact, options: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "none.torchscript").write_bytes(b"hello")
    paths = {"ARTEFACT": str(artefact.path), "NONE": str(tmp_path / "none.torchscript"), "FOLDER": str(tmp_path)}
    paths["NONE/below"] = f"{paths['NONE']}/below"
    arguments = [paths.get(option, option) for option in options]
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


def test_a_port_that_is_taken(artefact: Artefact, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(artefact.path), "--port", str(port)]) == 2
    assert f"--port {port}: cannot be had ([Errno " in capsys.readouterr().err


def test_without_the_extra(
    artefact: Artefact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr("detframe.serving.verb.find_spec", lambda name: None if name == "litserve" else present(name))
    assert main(["serve", str(artefact.path)]) == 2
    assert "needs litserve, not installed here. Run `pip install 'detframe[serve]'`." in capsys.readouterr().err


def test_the_verb_is_imported_without_the_extra() -> None:
    code = "import sys; import detframe.serving.verb; print({'litserve', 'fastapi', 'starlette'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

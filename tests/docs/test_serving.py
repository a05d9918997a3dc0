"""docs/serving.md does what it says: its client and its curl get their answers, its tables are the program's."""

import inspect
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import Served, artefact, encoded, served

from detframe.serving.verb import serve

__all__ = ["artefact", "served"]  # fixtures

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8000/"


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.open(io.BytesIO(encoded(np.full((24, 40, 3), (0, 204, 0), np.uint8)))).save("cell.jpg", quality=95)


@pytest.mark.usefixtures("cell")
def test_the_client(served: Served) -> None:
    (client,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert ADDRESS in client
    code = client.replace(ADDRESS, served.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, score, *box = done.stdout.split()
    assert name == "green"
    assert float(score) == pytest.approx(0.8, abs=0.01)
    assert len(box) == 4


@pytest.mark.usefixtures("cell")
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(served: Served) -> None:
    (line,) = re.findall(r"^    (curl .*)$", PAGE, re.M)
    command = line.replace(ADDRESS, served.url).split()
    done = subprocess.run([*command, "-sS"], capture_output=True, text=True, check=True)
    assert '"class_name": "green"' in done.stdout


def test_the_limits_are_those_of_the_verb() -> None:
    stated = dict(re.findall(r"\| `--(\w+)` \| ([\d.]+) \|", PAGE))
    parameters = inspect.signature(serve).parameters
    assert set(stated) == {"megabytes", "megapixels", "batch", "queue"}
    for name, value in stated.items():
        assert float(value) == parameters[name].default

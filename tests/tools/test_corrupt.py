import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from detframe.data.sources import read_split

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("corrupt")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A split with gaps between its ids, an ignore box, a folder, and a column of its own."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    images = [
        {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48, "camera": "left"},
        {"id": 3, "file_name": "night/b.png", "width": 64, "height": 48, "camera": "right"},
    ]
    for image in images:
        path = root / "images" / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    boxes = [
        {"id": 20, "image_id": 3, "category_id": 5, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "area": 14},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [10, 2, 30, 40], "iscrowd": 1, "area": 9},
    ]
    categories = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]
    (root / "test.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return root


def test_everything_but_the_pixels_stays(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    assert tool.main([str(data), str(tmp_path / "out"), "--split", "test.json"]) == 0
    before, after = read_split(data, "test"), read_split(tmp_path / "out", "test")
    assert after.file_names == ("a.png", "night/b.png")
    assert after.categories == before.categories
    assert after.metadata == before.metadata
    for name in ("image_ids", "image_sizes", "boxes", "labels", "ignore", "areas", "annotation_ids", "offsets"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert json.loads((tmp_path / "out" / "corruption.json").read_text())["electrons"] == 1000


def test_an_image_s_noise_depends_on_seed_and_id_alone(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    def pixels(out: str, *arguments: str) -> bytes:
        assert tool.main([str(data), str(tmp_path / out), *arguments]) == 0
        return Image.open(tmp_path / out / "images" / "test" / "night" / "b.png").tobytes()

    first = pixels("first")
    assert pixels("other seed", "--seed", "1") != first
    content = json.loads((data / "test.json").read_text())
    content["images"].pop(0)
    content["annotations"].pop(1)
    (data / "test.json").write_text(json.dumps(content))
    assert pixels("fewer images") == first


def test_light_and_noise_are_the_camera_s(tool: ModuleType) -> None:
    image = np.full((300, 300, 3), 128, dtype=np.uint8)
    image[..., 0] = 200
    camera = tool.Camera(stops=1.0, electrons=2000.0, read_noise=5.0, bits=16)
    shown = tool.take(image, camera, np.random.default_rng(0)).astype(np.float64) / 255
    light = ((shown + 0.055) / 1.055) ** 2.4
    for channel, value in ((0, 200), (1, 128)):
        expected = ((value / 255 + 0.055) / 1.055) ** 2.4 / 2
        assert light[..., channel].mean() == pytest.approx(expected, rel=0.01)
        deviation = (expected * 2000 + 5**2) ** 0.5 / 2000
        assert light[..., channel].std() == pytest.approx(deviation, rel=0.03)
    assert abs(np.corrcoef(light[..., 1].ravel(), light[..., 2].ravel())[0, 1]) < 0.02


def test_grey_stays_grey_and_few_bits_show_steps(tool: ModuleType) -> None:
    image = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (64, 1))[..., None], 3, axis=2)
    shown = tool.take(image, tool.Camera(0.0, 100.0, 2.0, 4), np.random.default_rng(0))
    assert (shown == shown[..., :1]).all()
    assert len(np.unique(shown)) == 16


def test_bad_input_ends_with_a_sentence(
    tool: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(data), str(data)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert tool.main([str(data), str(tmp_path / "out"), "--split", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    content = (data / "test.json").read_text().replace("night/b.png", "a.png")
    (data / "test.json").write_text(content)
    assert tool.main([str(data), str(tmp_path / "out")]) == 2
    assert "more than one image would be called a.png" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(data), str(tmp_path / "out"), "--electrons", "0"])
    assert "--electrons above 0" in capsys.readouterr().err

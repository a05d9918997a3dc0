from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detframe.analysis.profile import measure, profile
from detframe.cli import main
from detframe.deployment import read_profile

DEEPPCB = Path(__file__).parents[3] / "shared" / "data" / "deeppcb"


def save(path: Path, grey: float, size: tuple[int, int] = (64, 48), quality: int | None = None) -> None:
    """An image of a grey level 0..1 with a little texture; as JPEG where a quality is given."""
    rng = np.random.default_rng(0)
    pixels = (np.full((size[1], size[0], 3), grey) * 255 + rng.normal(0, 4, (size[1], size[0], 3))).clip(0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    if quality is None:
        image.save(path)
    else:
        image.save(path, quality=quality)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number, grey in enumerate((0.2, 0.3, 0.4, 0.5, 0.6)):
        save(root / f"{number}.jpg", grey, quality=60 + 5 * number)
    return root


def test_the_file_holds_what_the_images_are_like(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder / "more" / "tall.png", 0.5, size=(48, 64))
    out = tmp_path / "site.yaml"
    assert profile(str(folder), out) == 0
    found = read_profile(out)
    assert (found.images, found.sampled, found.skipped) == (6, 6, {})
    assert found.orientation == {"landscape": 5, "portrait": 1, "square": 0}
    assert found.jpeg_quality is not None
    assert found.jpeg_quality.quantiles == pytest.approx((61, 65, 70, 75, 79))
    assert found.brightness.quantiles[2] == pytest.approx(0.45, abs=0.01)
    assert found.width.quantiles[2] == 64
    assert found.object_size is None
    printed = capsys.readouterr().out
    assert "Measured all 6 images" in printed
    assert "5 landscape, 1 portrait" in printed
    assert "JPEG quality" in printed


def test_a_rotation_in_the_file_is_counted_and_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = measure(str(tmp_path))
    assert found.exif_orientation == {6: 1}
    assert found.orientation == {"landscape": 0, "portrait": 1, "square": 0}


def test_what_cannot_be_measured_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    save(folder / "tiny.png", 0.5, size=(8, 8))
    out = tmp_path / "site.yaml"
    assert profile(str(folder), out) == 0
    assert {Path(path).name for path in read_profile(out).skipped} == {"broken.jpg", "tiny.png"}
    printed = capsys.readouterr().out
    assert "Skipped (2):" in printed
    assert "broken.jpg: not an image" in printed
    assert "tiny.png: is 8 x 8, smaller than 16 px" in printed


def test_a_sample_is_chosen_by_the_seed_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = [measure(str(folder), sample=2, seed=seed) for seed in (0, 0, 1, 2)]
    assert profiles[0] == profiles[1]
    assert len({found.brightness for found in profiles}) > 1
    assert profile(str(folder), tmp_path / "site.yaml", sample=2) == 0
    assert "a sample of 2 (seed 0) of 5 images" in capsys.readouterr().out


def test_a_data_set_has_object_sizes_too(folder: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(5)]
    boxes = [{"id": n, "image_id": 0, "category_id": 1, "bbox": [0, 0, 4 * n, 9 * n]} for n in range(4)]
    ignored = {"id": 9, "image_id": 0, "category_id": 1, "bbox": [0, 0, 40, 40], "iscrowd": 1}
    content = {"images": images, "annotations": [*boxes, ignored], "categories": [{"id": 1, "name": "cat"}]}
    path = folder.parent / "train.json"
    path.write_text(json.dumps(content))
    for source in (path, folder.parent):
        found = measure(str(source))
        assert found.object_size is not None
        assert found.object_size.quantiles == pytest.approx((6.6, 9, 12, 15, 17.4))  # of 6, 12 and 18
        assert found.images == 5


def test_the_command_exits_with_what_happened(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "site.yaml"
    assert main(["profile", str(folder / "*.jpg"), "--out", str(out), "--json"]) == 0
    printed, written = json.loads(capsys.readouterr().out), read_profile(out).as_dict()
    assert printed.keys() == written.keys()
    assert all(printed[name] == written[name] for name in ("brightness", "jpeg_quality", "images", "object_size"))
    for arguments, words in (
        ([str(folder)], "exists already"),
        ([str(tmp_path / "nowhere"), "--overwrite"], "no image there"),
        ([str(tmp_path / "nowhere.json"), "--overwrite"], "no such file"),
        ([str(folder), "--overwrite", "--sample", "0"], "--sample is 0"),
    ):
        assert main(["profile", *arguments, "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert words in captured.err
        assert len(captured.err.splitlines()) == 1
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").touch()
    assert main(["profile", str(tmp_path / "broken"), "--out", str(tmp_path / "b.yaml"), "--json"]) == 2
    assert "a.png: the file is empty" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "b.yaml").exists()
    assert main(["profile", str(folder), "--out", str(out), "--overwrite"]) == 0


@pytest.mark.skipif(not DEEPPCB.is_dir(), reason="needs ../shared/data/deeppcb")
def test_boards_of_one_bit_have_no_noise_and_sharp_edges() -> None:
    found = measure(str(DEEPPCB), sample=10)
    assert found.images == 1500
    assert max(found.noise.quantiles) == 0
    assert 0.2 < found.blur.quantiles[2] < 0.6
    assert found.jpeg_quality is None
    assert found.object_size is not None

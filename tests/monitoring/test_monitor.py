"""`monitor` on files that an artefact looks at and on windows that its server wrote."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.monitoring.test_drift import photograph
from tests.serving.conftest import NAMES, Served, Shades, as_json, encoded

from detframe.cli import main
from detframe.data.label_queue import read_queue
from detframe.export.runtime import METADATA, OUTPUTS, Artefact, ArtefactError, Metadata, load
from detframe.monitoring.window import WindowError, read_window, values_of, window_of
from detframe.monitoring.window import as_json as window_as_json
from detframe.serving.windows import WindowWriter


def write_artefact(path: Path, metadata: Metadata) -> Artefact:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated and still one of the formats
        torch.jit.save(torch.jit.script(Shades()), path, _extra_files={METADATA: metadata.to_json()})
    return load(path, 1)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """An artefact that carries a profile of 60 photographs."""
    folder = tmp_path_factory.mktemp("watched")
    plain = Metadata(NAMES, (32, 48), stretch=False, thresholds=dict.fromkeys(NAMES, 0.5))
    artefact = write_artefact(folder / "plain.torchscript", plain)
    rows = []
    for seed in range(60):
        image = photograph(seed)
        rows.append(values_of(image, artefact.run(image[None]), np.full(3, 0.5)))
    profile = window_as_json(window_of(NAMES, np.array(rows), None))
    return write_artefact(folder / "model.torchscript", dataclasses.replace(plain, profile=profile, profile_map=0.7))


def write_images(folder: Path, seeds: range, light: float) -> Path:
    folder.mkdir(parents=True)
    for seed in seeds:
        pixels = (photograph(seed) * light).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{seed}.png")
    return folder


def test_images_like_those_of_the_profile_and_darker_ones(
    watched: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = write_images(tmp_path / "usual", range(100, 130), 1.0)
    arguments = ["monitor", str(watched.path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--images", str(usual)]) == 0
    said = capsys.readouterr().out
    assert "30 images are as they were" in said
    assert "cannot be trusted: scores are not calibrated" in said
    assert "mAP is about 0." in said

    dark = write_images(tmp_path / "dark", range(100, 130), 0.5)
    assert main([*arguments, "--images", str(dark), "--to_queue", "5"]) == 1
    said = capsys.readouterr().out
    assert "30 images are not as they were: darker." in said
    document = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert document["alarm"]
    assert document["causes"][0] == "darker"
    assert len(document["suspicious"]) == 30
    assert document["estimated_map"]["low"] == 0
    assert document["estimated_map"]["map"] < document["estimated_map"]["high"] < 0.7
    assert f"mAP is hardly above {document['estimated_map']['high']:.3f}" in said
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/jpeg") == 24
    assert "<svg" in page

    queue = read_queue(tmp_path / "out" / "queue.jsonl")
    shown = {suggestion.file_name for suggestion in queue.suggestions}
    assert shown <= {str(Path(one["image"]).resolve()) for one in document["suspicious"][:5]}
    assert all(suggestion.kind == "missing" for suggestion in queue.suggestions)
    assert main(["check", str(tmp_path / "out" / "images.json"), "--headers_only"]) == 0


def test_the_queue_can_be_applied(watched: Artefact, tmp_path: Path) -> None:
    images = write_images(tmp_path / "bright", range(6), 1.3)
    arguments = ["monitor", str(watched.path), "--images", str(images), "--out", str(tmp_path / "out")]
    main([*arguments, "--to_queue", "6"])
    queue = read_queue(tmp_path / "out" / "queue.jsonl")
    assert queue.suggestions
    options = ["--queue", str(tmp_path / "out" / "queue.jsonl"), "--auto", "0", "--out", str(tmp_path / "labelled")]
    assert main(["apply", *options]) == 0
    (made,) = (tmp_path / "labelled").glob("images.json")
    assert len(json.loads(made.read_text())["annotations"]) == len(queue.suggestions)


@pytest.mark.slow
def test_a_server_writes_windows_that_say_the_same(
    watched: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = tmp_path / "windows"
    options = ("--windows", str(windows), "--window_images", "8", "--threads", "1")
    with Served(watched, tmp_path / "log", *options) as server:
        for seed in range(100, 120):
            pixels = (photograph(seed) * 0.5).astype(np.uint8).transpose(1, 2, 0)
            assert server.ask("predict", *as_json(encoded(np.ascontiguousarray(pixels))))[0] == 200
        assert "profile" not in server.ask("info")[1]["model"]
    files = sorted(windows.iterdir())
    assert [read_window(path).images for path in files] == [8, 8, 4]  # the last when it ended
    assert main(["monitor", str(watched.path), "--windows", str(windows), "--out", str(tmp_path / "out")]) == 1
    assert "20 images are not as they were: darker." in capsys.readouterr().out


def test_a_writer_counts_what_it_is_told(watched: Artefact, tmp_path: Path) -> None:
    writer = WindowWriter(tmp_path, 3, watched.metadata)
    for seed in range(4):
        image = photograph(seed)
        writer.add(image, watched.run(image[None]))
    assert [read_window(path).images for path in tmp_path.glob("*.window.json")] == [3]
    writer.flush()
    writer.flush()
    assert sorted(read_window(path).images for path in tmp_path.iterdir()) == [1, 3]


def test_what_cannot_be_written_waits_for_the_next_window(
    watched: Artefact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "windows"
    folder.touch()  # as good as a full disk
    writer = WindowWriter(folder, 2, watched.metadata)
    counted = []
    for seed in range(5):
        image = photograph(seed)
        answer = watched.run(image[None])
        writer.add(image, answer)
        counted.append(values_of(image, answer, np.full(3, 0.5)))
    assert [record.message.split("; ")[1] for record in caplog.records] == [
        "its counts are kept for the next window"
    ] * 2
    folder.unlink()
    writer.flush()
    writer.flush()
    (path,) = folder.iterdir()
    written = read_window(path)
    assert written.images == 5
    np.testing.assert_allclose(written.sums, np.nansum(counted, axis=0), atol=1e-5)


def test_a_server_without_a_profile_writes_no_windows(watched: Artefact, tmp_path: Path) -> None:
    with pytest.raises(WindowError, match=r"carries no profile .*Export it anew, with validation data"):
        WindowWriter(tmp_path, 3, dataclasses.replace(watched.metadata, profile=None))


def write_windows(folder: Path, artefact: Artefact, seeds: range, light: float) -> None:
    writer = WindowWriter(folder, 8, artefact.metadata)
    for seed in seeds:
        image = (photograph(seed) * light).astype(np.uint8)
        writer.add(image, artefact.run(image[None]))
    writer.flush()


def test_windows_of_another_artefact_are_left_out_and_counted(
    watched: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = dataclasses.replace(watched.metadata, checkpoint_hash="of the next release")
    after = write_artefact(tmp_path / "next.torchscript", release)
    windows = tmp_path / "windows"
    write_windows(windows, watched, range(100, 124), 0.5)
    arguments = ["monitor", str(after.path), "--windows", str(windows), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "windows: holds windows of other artefacts alone" in capsys.readouterr().err
    write_windows(windows, after, range(100, 120), 1.0)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "20 images are as they were" in said
    assert "Windows of other artefacts, left out: 3" in said
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["windows_left_out"] == 3
    assert main(["monitor", str(watched.path), "--windows", str(windows), "--out", str(tmp_path / "out")]) == 1
    assert "24 images are not as they were: darker." in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"precision": "int8"}, {"dataset_hash": "b"}, {"thresholds": {}}])
def test_a_profile_of_other_answers_has_windows_of_its_own(watched: Artefact, change: dict[str, Any]) -> None:
    other = dataclasses.replace(watched.metadata, **change)
    assert other.of_windows() != watched.metadata.of_windows()


def test_a_window_says_of_which_artefact_it_is(watched: Artefact, tmp_path: Path) -> None:
    write_windows(tmp_path, watched, range(2), 1.0)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content.pop("artefact") == watched.metadata.of_windows()
    path.write_text(json.dumps(content))
    with pytest.raises(WindowError, match="does not say of which artefact it is"):
        read_window(path)


def test_an_artefact_of_another_version_is_refused(watched: Artefact, tmp_path: Path) -> None:
    old = dataclasses.replace(watched.metadata, outputs=OUTPUTS[:5])
    with pytest.raises(ArtefactError, match=r"old\.torchscript: is of another version .*Export it anew"):
        write_artefact(tmp_path / "old.torchscript", old)


def test_bad_input_is_one_sentence(watched: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write_artefact(tmp_path / "bare.torchscript", dataclasses.replace(watched.metadata, profile=None))
    for arguments, words in (
        ([str(watched.path)], "Give either --windows or --images"),
        ([str(watched.path), "--windows", str(tmp_path), "--to_queue", "3"], "--to_queue needs images"),
        ([str(watched.path), "--windows", str(tmp_path)], "There is no window"),
        ([str(bare.path), "--images", str(tmp_path)], "carries no profile. Export it anew"),
        ([str(tmp_path / "no.onnx"), "--images", str(tmp_path)], "no such artefact"),
    ):
        assert main(["monitor", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1

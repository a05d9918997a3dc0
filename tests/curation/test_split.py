from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from detframe.cli import main
from detframe.curation.split import image_groups, instances, pooled
from detframe.data.annotations import AnnotationIndex, require_sound
from detframe.data.sources import read_splits
from detframe.data.synthetic import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits that use the same ids; cameras in threes; one image is in both splits under two names."""
    folder = tmp_path_factory.mktemp("split") / "data"
    write_dataset(folder, train=24, val=12, test=2)
    (folder / "test.json").unlink()
    shutil.rmtree(folder / "images" / "test", ignore_errors=True)
    for split in ("train", "val"):
        path = folder / f"{split}.json"
        content = json.loads(path.read_text())
        for number, image in enumerate(content["images"]):
            image["camera"] = f"{split}{number // 3}"
        path.write_text(json.dumps(content))
    splits = indices(folder)
    shutil.copy(splits["train"].path(0), splits["val"].path(0))
    return folder


def indices(folder: Path) -> dict[str, AnnotationIndex]:
    return {name: require_sound(reading) for name, reading in read_splits(folder).items()}


def boxes_by_content(splits: dict[str, AnnotationIndex]) -> list[tuple[bytes, list[list[float]], list[str]]]:
    """What each image shows and how it is labelled, whatever its name, id or split."""
    rows = []
    for index in splits.values():
        for i, digest in enumerate(index.image_digests()):
            own = index.rows(i)
            names = [index.class_names[label] for label in index.labels[own]]
            rows.append((digest, index.boxes[own].round(2).tolist(), names))
    return sorted(rows)


@pytest.mark.parametrize("to", ["coco", "voc", "yolo"])
def test_every_image_is_dealt_once_with_its_boxes(data: Path, to: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["split", str(data), str(out), "--to", to, "--fractions", "[0.6, 0.2, 0.2]"]) == 0
    dealt = indices(out)
    assert set(dealt) == {"train", "val", "test"}
    assert [len(dealt[name]) for name in ("train", "val", "test")] == pytest.approx([21.6, 7.2, 7.2], abs=2)
    assert boxes_by_content(dealt) == boxes_by_content(indices(data))
    whole = instances(pooled(indices(data))).sum(axis=0)
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert instances(dealt[name]).sum(axis=0) == pytest.approx(share * whole, rel=0.5)


def test_groups_and_equal_files_stay_together(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["split", str(data), str(out), "--groups", "camera"]) == 0
    assert "36 images in 11 groups" in capsys.readouterr().out  # of twelve cameras two share a picture
    cameras = [{metadata["camera"] for metadata in index.metadata} for index in indices(out).values()]
    assert len(set.union(*cameras)) == sum(len(own) for own in cameras) == 12
    digests = [set(index.image_digests()) for index in indices(out).values()]
    assert len(set.union(*digests)) == sum(len(own) for own in digests) == 35


def test_the_same_seed_deals_the_same(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["split", str(data), str(tmp_path / name), "--seed", "3"]) == 0
    for split in ("train", "val", "test"):
        one, two = (json.loads((tmp_path / name / f"{split}.json").read_text()) for name in ("one", "two"))
        assert one == two


def test_groups_join_by_content_and_column(data: Path) -> None:
    index = pooled(indices(data))
    assert len(np.unique(index.image_ids)) == len(index) == 36
    alone, by_camera = image_groups(index, None), image_groups(index, "camera")
    assert alone[0] == alone[24]
    assert len(set(alone)) == 35
    assert len(set(by_camera[:3]) | set(by_camera[24:27])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fractions", "[1.0]"], "--fractions has [1.0]"),
        (["--groups", "line"], "has no 'line' to group by"),
        (["--fractions", "[0.5, 0.0, 0.5]"], "--fractions has"),
    ],
)
def test_bad_input_gets_a_sentence(
    data: Path, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["split", str(data), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", str(data), str(data)]) == 2
    assert "nothing is ever overwritten" in capsys.readouterr().err

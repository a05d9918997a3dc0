"""What the study of mining splits, and that it goes on where it was stopped."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "tools"))
study: Any = importlib.import_module("mining_study")

CONTENT: dict[str, Any] = {
    "images": [{"id": number, "file_name": f"{number}.png"} for number in range(4)],
    "annotations": [{"id": number, "image_id": number % 4} for number in range(8)],
    "categories": [{"id": 1, "name": "nut"}],
}


def test_a_part_has_the_boxes_of_its_images_and_a_pool_none() -> None:
    part = study.select(CONTENT, [3, 1])
    assert [image["id"] for image in part["images"]] == [1, 3]
    assert [row["id"] for row in part["annotations"]] == [1, 3, 5, 7]
    assert part["categories"] == CONTENT["categories"]
    assert study.select(CONTENT, [3, 1], labels=False)["annotations"] == []
    assert len(CONTENT["annotations"]) == 8


def test_a_stage_that_left_its_file_is_not_run_again(tmp_path: Path) -> None:
    file = tmp_path / "seed0" / "first.json"
    runs: list[int] = []

    def action() -> dict[str, int]:
        runs.append(1)
        return {"map_50": 7}

    assert study.stage(file, "training", action) == {"map_50": 7}
    assert study.stage(file, "training", action) == {"map_50": 7}
    assert len(runs) == 1
    assert [path.name for path in file.parent.iterdir()] == ["first.json"]


def test_chance_chooses_by_the_seed_alone(tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text(json.dumps(CONTENT))
    one, again, other = (study.choose(tmp_path, "random", {}, 2, seed) for seed in (0, 0, 2))
    assert one == again
    assert len(set(one)) == len(set(other)) == 2
    assert set(one) <= {0, 1, 2, 3}


def test_a_training_that_was_stopped_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    assert study.last_checkpoint(tmp_path) is None
    for version in (0, 1):
        path = tmp_path / "runs" / f"version_{version}" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (version, version))
    assert study.last_checkpoint(tmp_path).parts[-3] == "version_1"

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from detframe.data.sources import read_splits
from detframe.data.synthetic import write_dataset

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("bench_yolo")


def test_what_yolo_finds_becomes_results_with_the_ids_of_the_data(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "data", train=1, val=1, test=3, seed=0)
    index = read_splits(tmp_path / "data")["test"].index
    places = {index.path(place): place for place in range(len(index))}

    class Oracle:
        """Answers with the labels, as a model of Ultralytics does."""

        def __init__(self, weights: Path) -> None:
            assert weights == tmp_path / "best.pt"

        def predict(self, path: Path, imgsz: int, conf: float, **_: object) -> list[SimpleNamespace]:
            assert (imgsz, conf) == (64, 0.001)
            rows = slice(index.offsets[places[path]], index.offsets[places[path] + 1])
            boxes, labels = torch.from_numpy(index.boxes[rows]), torch.from_numpy(index.labels[rows])
            found = SimpleNamespace(xyxy=boxes.float(), cls=labels.float(), conf=torch.full((len(boxes),), 0.5))
            return [SimpleNamespace(boxes=found)]

    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(YOLO=Oracle))
    tool.write_results(tmp_path / "best.pt", tmp_path / "data", 64, tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text())
    truth = json.loads((tmp_path / "data" / "test.json").read_text())["annotations"]
    expected = sorted((one["image_id"], one["category_id"], *one["bbox"]) for one in truth)
    found = sorted((one["image_id"], one["category_id"], *one["bbox"]) for one in rows)
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    assert {one["score"] for one in rows} == {0.5}


def test_a_command_runs_once_and_one_that_fails_says_where_its_words_are(tool: ModuleType, tmp_path: Path) -> None:
    count = tmp_path / "count"
    command = [sys.executable, "-c", f"open({str(count)!r}, 'a').write('x')"]
    first = tool.once(tmp_path / "run" / "ours.json", command)
    assert tool.once(tmp_path / "run" / "ours.json", command) == first
    assert count.read_text() == "x"
    assert first.seconds > 0
    assert first.megabytes > 1
    with pytest.raises(SystemExit, match=r"last words are in .*other\.log"):
        tool.once(tmp_path / "run" / "other.json", [sys.executable, "-c", "import sys; sys.exit('no')"])
    assert (tmp_path / "run" / "other.log").read_text() == "no\n"
    assert not (tmp_path / "run" / "other.json").exists()


def test_figures_of_a_csv_file_leave_out_rows_without_one(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("  epoch, val/map\n0,0.5\n,0.6\n3,\n")
    assert tool.column(path, "epoch") == [0.0, 3.0]

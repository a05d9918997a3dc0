import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from detframe.data.synthetic import write_dataset
from detframe.models.backbones import TimmBackbone
from detframe.models.detector import Detector
from detframe.models.heads.base import Head
from detframe.models.necks import FPN
from detframe.structures import Batch, Targets, empty_targets

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("bench_train")


class Sleeper(nn.Module):
    """Takes a known time forward and backward, with a parameter or without."""

    def __init__(self, seconds: float, learns: bool, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.seconds = seconds
        self.inner = inner
        self.weight = nn.Parameter(torch.ones(())) if learns else None

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        x = x if self.inner is None else self.inner(x)
        return x if self.weight is None else x * self.weight


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        time.sleep(0.08)
        return gradients[0]


class SleepingHead(Head):
    def __init__(self) -> None:
        super().__init__()
        self.branch = Sleeper(0.05, learns=True, inner=Sleeper(0.05, learns=True))
        self.criterion = Sleeper(0.05, learns=False)

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        found = [self.branch(feature) for feature in features[:2]]
        time.sleep(0.03)
        return {"one": Slow.apply(self.criterion(found[0]).mean()), "other": found[1].mean()}


class StillFeed:
    seconds = {"loader": 0.5, "augmentation": 0.25}  # noqa: RUF012

    def next_batch(self) -> Batch:
        rows = torch.zeros(2, 0)
        nothing = empty_targets(2)
        sizes = torch.full((2, 2), 32)
        return Batch(torch.rand(2, 3, 32, 32), nothing, nothing.boxes, rows, rows.long(), rows[:, 0:1], sizes, rows)


def test_parts_hold_what_they_are_named_after(bench: ModuleType) -> None:
    backbone = TimmBackbone("test_resnet")
    detector = Detector(backbone, FPN(backbone.levels, 16), SleepingHead())
    seconds = bench.dissect(detector, StillFeed(), warmup=1, steps=3)
    least = {part: min(values) for part, values in seconds.items()}
    assert least["loader"] == 0.5
    assert least["augmentation"] == 0.25
    assert 0.2 <= least["network, forward"] < 0.29  # a module within a module is not counted twice
    assert 0.08 <= least["loss and assignment, forward"] < 0.18
    assert 0.08 <= least["loss and assignment, backward"] < 0.18
    assert least["network, backward"] < 0.08
    assert all(len(values) == 3 for values in seconds.values())
    assert not detector.head.branch._forward_hooks  # type: ignore[union-attr]


def test_random_boxes_lie_in_the_image(bench: ModuleType) -> None:
    targets = bench.random_targets(3, 500, 7, 320, torch.Generator().manual_seed(0))
    sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
    assert targets.boxes.min() >= 0
    assert targets.boxes.max() <= 320
    assert 3.9 < sides.min() < 4.5
    assert 150 < sides.max() <= 160.1
    assert set(targets.labels.flatten().tolist()) == set(range(7))
    assert targets.valid.all()
    assert not targets.ignore.any()


def test_peers_get_the_same_boxes(bench: ModuleType) -> None:
    class Recorder(nn.Module):
        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            self.seen = images, targets
            return {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}

    model = Recorder()
    targets = bench.random_targets(2, 3, 5, 64, torch.Generator().manual_seed(0))
    targets.valid[1, 2] = False
    images = torch.rand(2, 3, 64, 64)
    assert float(bench.torchvision_contender(model, first_label=1).loss(images, targets)) == 3
    seen_images, seen = model.seen
    assert torch.equal(torch.stack(seen_images), images)
    assert [len(one["boxes"]) for one in seen] == [3, 2]
    assert torch.equal(seen[1]["boxes"], targets.boxes[1, :2])
    assert torch.equal(seen[1]["labels"], targets.labels[1, :2] + 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of a loader without workers, and jsonargparse's own
def test_the_command_measures_side_by_side(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    options = ["--only", "detframe", "fcos", "--image-size", "64", "--batch-size", "2", "--steps", "2", "--warmup", "1"]
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["bench_train.py", *options, "--threads", str(threads), "--json", str(out)])
    monkeypatch.setattr(bench, "write_dataset", lambda root, train, val, test, seed: write_dataset(root, 4, 1, 1, seed))
    bench.main()
    table = capsys.readouterr().out
    assert "| detframe | 1.92 |" in table
    assert "| fcos | 9.42 |" in table
    content = json.loads(out.read_text())
    assert {name: len(values) for name, values in content["step_seconds"].items()} == {"detframe": 2, "fcos": 2}
    assert list(content["part_seconds"]) == list(bench.PARTS)

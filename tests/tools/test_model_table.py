import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

TOOLS = Path(__file__).parents[2] / "tools"
FRAGMENT = """\
model:
  backbone:
    class_path: detframe.models.backbones.TimmBackbone
    init_args: {name: test_resnet, weights: imagenet}
  neck:
    class_path: detframe.models.necks.FPN
    init_args: {channels: 16}
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("model_table")


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("dense-small", "dense-nano", "detr-large", "detr-medium"):
        (folder / f"{name}.yaml").write_text(FRAGMENT)
    return folder


def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, configs: Path, *options: str) -> str:
    out = configs.parent / "models.md"
    arguments = ["model_table.py", "--configs", str(configs), "--out", str(out), "--image-sizes", "64", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    tool.main()
    return out.read_text()


def test_operations_are_two_for_each_multiply_add(tool: ModuleType) -> None:
    image = torch.rand(1, 3, 8, 8)
    assert tool.count_gflops(nn.Conv2d(3, 5, 3, padding=1), image) == 2 * 3 * 5 * 9 * 64 / 1e9

    def attention(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]  # [1, 1, 64, 3]
        return functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert tool.count_gflops(attention, image) == 2 * 2 * 64 * 64 * 3 / 1e9
    encoder = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True).eval()
    expected = 2 * 16 * (4 * 4 * 4 + 2 * 16 * 4 + 2 * 4 * 8)  # projections, attention, feed-forward
    assert tool.count_gflops(encoder, torch.rand(1, 16, 4)) == expected / 1e9


def test_models_come_kind_by_kind_and_small_to_large(tool: ModuleType, configs: Path) -> None:
    assert list(tool.our_configs(configs)) == ["dense-nano", "dense-small", "detr-medium", "detr-large"]


@pytest.mark.filterwarnings("ignore")  # jsonargparse's own
def test_a_fragment_is_built_without_a_download_and_trains(tool: ModuleType, configs: Path) -> None:
    contender, infer = tool.make_ours(configs / "dense-nano.yaml")
    targets = tool.random_targets(2, 4, 80, 64, torch.Generator().manual_seed(0))
    assert tool.step(contender, tool.make_optimizer(contender.model.train()), torch.rand(2, 3, 64, 64), targets) > 0
    assert infer(torch.rand(1, 3, 64, 64)).labels.shape == (1, 100)
    assert contender.model.head.class_branches[0][-1].out_channels == 80


def test_rows_that_were_not_asked_for_stay(
    tool: ModuleType, configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Any] = []

    def pretend(key: Any, args: Any) -> Any:  # noqa: ANN401
        measured.append(key)
        return tool.Row(1.25, 2.5, float(len(measured)), 99.0)

    monkeypatch.setattr(tool, "measure_apart", pretend)
    monkeypatch.setattr(tool, "find_spec", lambda package: None if package == "rfdetr" else package)
    first = run(tool, monkeypatch, configs)
    assert measured[:4] == [(name, 64) for name in ("dense-nano", "dense-small", "detr-medium", "detr-large")]
    peers = [name for name, peer in tool.PEERS.items() if peer.package != "rfdetr"]  # as if that were not installed
    assert sorted(name for name, _ in measured[4:]) == sorted(peers)
    assert "| [dense-small](../configs/model/dense-small.yaml) | 64 | 1.25 | 2.50 | 2 | 99 |" in first

    measured[:] = [None] * 40
    second = run(tool, monkeypatch, configs, "--only", "dense-s*")
    assert measured[40:] == [("dense-small", 64)]
    assert second == first.replace("| 2 | 99 |", "| 41 | 99 |")

    measured.clear()
    (configs / "dense-large.yaml").write_text(FRAGMENT)
    (configs / "detr-large.yaml").unlink()
    third = run(tool, monkeypatch, configs, "--missing")
    assert measured == [("dense-large", 64)]
    assert "detr-large" not in third
    assert third.index("dense-small") < third.index("dense-large") < third.index("detr-medium")

    with pytest.raises(SystemExit) as stopped:
        run(tool, monkeypatch, configs, "--only", "dense-*", "--batch-size", "2")
    assert stopped.value.code == 2
    assert "other conditions" in capsys.readouterr().err
    assert (configs.parent / "models.md").read_text() == third


@pytest.mark.slow
def test_a_row_is_measured_in_a_process_of_its_own(
    tool: ModuleType, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--only", "dense-nano", "--threads", "1", "--runs", "2", "--batch-size", "2")
    run(tool, monkeypatch, configs, *options)
    _, rows = tool.read_table(configs.parent / "models.md")
    row = rows["dense-nano", 64]
    assert 0.3 < row.parameters < 2
    assert row.gflops > 0
    assert row.training_mb > 4 * 4 * row.parameters  # weights, gradients and two moments

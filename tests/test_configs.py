"""Every shipped YAML trains a step, on drawn images in the format that it asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import instantiate_module
from torchvision.models import detection

from detframe.cli import main
from detframe.data.convert import convert
from detframe.data.synthetic import write_dataset
from detframe.models.assigners import ATSSAssigner
from detframe.models.heads.dense import DenseHead
from detframe.models.transfer import initialise
from detframe.structures import empty_targets
from detframe.training.task import DetectionTask

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
POLICIES = sorted(path.name for path in (ROOT / "configs" / "augment").glob("*.yaml"))
MODELS = sorted(path.name for path in (ROOT / "configs" / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny data set as COCO and as Pascal VOC."""
    folder = tmp_path_factory.mktemp("data")
    coco = write_dataset(folder / "coco", train=12, val=4, test=4)
    assert convert(coco, folder / "voc", "voc") == 0
    return {"coco": coco, "voc": folder / "voc"}


def train_a_step(arguments: list[str]) -> None:
    """Train two steps, validate and test, in the current folder."""
    arguments = ["fit", *arguments, "--data.synthetic", "false", "--data.image_size", "[64, 64]"]
    arguments += ["--data.batch_size", "2", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    arguments += ["--trainer.check_val_every_n_epoch", "1", "--trainer.enable_progress_bar", "false"]
    assert main(arguments) == 0
    run = next(Path("runs").glob("*/version_0"))
    assert (run / "test_metrics.json").is_file()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own, about a loader without workers and the like
@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_configuration_trains_and_tests(
    name: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "configs" / name).read_text())
    root = data["coco" if str(config["data"]["train"]).endswith(".json") else "voc"]
    arguments = ["--config", str(ROOT / "configs" / name), "--data.root", str(root), "--data.group_by", "null"]
    if config["data"].get("crop_size"):
        arguments += ["--data.crop_size", "[64, 64]"]
    train_a_step(arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-nano.yaml")])
def test_a_shipped_model_goes_into_a_configuration(
    name: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = [str(ROOT / "configs" / "quickstart.yaml"), str(ROOT / "configs" / "model" / name)]
    train_a_step(["--config", configs[0], "--config", configs[1], "--data.root", str(data["coco"])])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", POLICIES)
def test_a_shipped_policy_goes_into_a_configuration(
    name: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = [str(ROOT / "configs" / "quickstart.yaml"), str(ROOT / "configs" / "augment" / name)]
    train_a_step(["--config", configs[0], "--config", configs[1], "--data.root", str(data["coco"])])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("-nano.yaml")])
def test_a_larger_shipped_model_learns_from_a_batch(name: str) -> None:
    config = yaml.safe_load((ROOT / "configs" / "model" / name).read_text())["model"]
    task = instantiate_module(DetectionTask, {"class_names": ["a", "b"], **config})
    targets = empty_targets(2, 1)._replace(boxes=torch.tensor([[[8.0, 8, 40, 48]]] * 2), valid=torch.ones(2, 1).bool())
    loss = torch.stack(list(task.train().detector.loss(torch.rand(2, 3, 64, 64), targets).values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("two_stage-medium", detection.fasterrcnn_resnet50_fpn),
        ("two_stage-large", detection.fasterrcnn_resnet50_fpn_v2),
        ("retina-medium", detection.retinanet_resnet50_fpn),
        ("retina-large", detection.retinanet_resnet50_fpn_v2),
        ("fcos-medium", detection.fcos_resnet50_fpn),
    ],
)
def test_a_shipped_model_takes_the_weights_that_it_names(
    name: str, build: Callable[..., torch.nn.Module], tmp_path: Path
) -> None:
    """Every parameter but the rows of the classes, from a file as torchvision would download it."""
    config = yaml.safe_load((ROOT / "configs" / "model" / f"{name}.yaml").read_text())["model"]
    task = instantiate_module(DetectionTask, {"class_names": ["a", "b"], **config})
    torch.save(build(weights=None, weights_backbone=None).state_dict(), tmp_path / "weights.pth")
    transfer = initialise(task.detector, ["a", "b"], str(tmp_path / "weights.pth"))
    assert [key for key in transfer.left if not key.endswith("num_batches_tracked")] == []  # frozen norms have none
    assert transfer.remade == [f"head.{key}" for key in task.detector.head.class_rows(2)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_recipe_is_a_matter_of_configuration(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe: dict[str, Any] = {
        "data": {"multi_scale": [0.5, 1.5]},
        "model": {"cycles": 2, "layer_decay": 0.8, "head": {"class_path": "detframe.models.heads.dense.DenseHead"}},
        "trainer": {
            "accumulate_grad_batches": 2,
            "callbacks": [
                {"class_path": "BatchSizeFinder", "init_args": {"max_trials": 1, "steps_per_trial": 1}},
                {"class_path": "LearningRateFinder", "init_args": {"num_training_steps": 20}},
                {"class_path": "EMAWeightAveraging"},
            ],
        },
    }
    recipe["model"]["backbone"] = {
        "class_path": "detframe.models.backbones.TimmBackbone",
        "init_args": {"name": "test_vit", "grad_checkpointing": True, "drop_path_rate": 0.1},
    }
    recipe["model"]["neck"] = {"class_path": "detframe.models.necks.SimpleFeaturePyramid"}
    recipe["model"]["head"]["init_args"] = {
        "assigner": {"class_path": "detframe.models.assigners.ATSSAssigner", "init_args": {"top_k": 5}}
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    train_a_step(
        ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--config", str(path), "--data.root", str(data["coco"])]
    )
    run = next(Path("runs").glob("*/version_0"))
    task = DetectionTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
    assert isinstance(task.detector.head, DenseHead)
    assert isinstance(task.detector.head.assigner, ATSSAssigner)
    assert task.detector.head.assigner.top_k == 5

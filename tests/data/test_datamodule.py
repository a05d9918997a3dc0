"""What training batches go through, seen by a module that only looks at them."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DistributedSampler

from detframe.augment.facts import DeploymentFacts, PolicyError
from detframe.augment.mosaic import Mosaic
from detframe.augment.pipeline import AugmentationPipeline, default_augmentations
from detframe.data.annotations import DataError
from detframe.data.datamodule import DetectionDataModule
from detframe.data.sampling import RepeatFactorSampler
from detframe.data.synthetic import write_dataset
from detframe.structures import Batch

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about loaders without workers and the like


class Onlooker(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[int, Tensor, Tensor]] = []  # epoch, images, boxes
        self.validated: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained.append((self.current_epoch, batch.images.clone(), batch.targets.boxes.clone()))
        return self.weight + torch.rand(())  # draws from the global generator, as dropout does

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(batch.images.clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, train=10, val=4, test=1)
    return folder


def watched(
    root: Path,
    workers: int = 0,
    epochs: int = 2,
    resume: Path | None = None,
    multi_scale: tuple[float, float] | None = None,
    **policy: object,
) -> Onlooker:
    seed_everything(3)
    augmentation = AugmentationPipeline([Mosaic(p=0.5), *default_augmentations()], **policy)  # type: ignore[arg-type]
    data = DetectionDataModule(
        root,
        "train.json",
        "val.json",
        image_size=(64, 64),
        batch_size=4,
        num_workers=workers,
        multi_scale=multi_scale,
        augmentation=augmentation,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
    )
    module = Onlooker()
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    if resume is None and epochs == 1:
        trainer.save_checkpoint(root / "one.ckpt")
    return module


def test_batches_are_the_same_with_any_number_of_workers(root: Path) -> None:
    alone, helped = watched(root), watched(root, workers=2)
    assert len(alone.trained) == 4
    for (_, images, boxes), (_, others, other_boxes) in zip(alone.trained, helped.trained, strict=True):
        assert images.equal(others)
        assert boxes.equal(other_boxes)
    assert not alone.trained[0][1].equal(alone.trained[2][1])


def test_validation_sees_images_as_they_are(root: Path) -> None:
    module = watched(root)
    assert all(first.equal(second) for first, second in zip(module.validated[:1], module.validated[1:], strict=True))


def test_the_last_epochs_are_clean_by_default(root: Path) -> None:
    module = watched(root, epochs=8)
    sides = [boxes.shape[1] for epoch, _, boxes in module.trained]
    tiles = [epoch for (epoch, _, _), side in zip(module.trained, sides, strict=True) if side > max(sides) // 2]
    assert max(tiles) == 6  # 7 / 8 is beyond 0.85
    assert [epoch for epoch, _, _ in module.trained][-1] == 7


def test_what_contradicts_the_deployment_stops_before_the_first_step(root: Path) -> None:
    with pytest.raises(PolicyError, match="RandomHorizontalFlip contradicts `mirror: false`"):
        watched(root, deployment=DeploymentFacts(mirror=False), lint="error")


def test_images_of_rare_classes_are_repeated(root: Path) -> None:
    data = DetectionDataModule(root, "train.json", "val.json", batch_size=4, repeat_threshold=1.0)
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, RepeatFactorSampler)
    assert isinstance(loader.sampler, DistributedSampler)  # or Lightning would share it out a second time
    assert len(list(loader.sampler)) > 10


def test_what_is_held_out_is_told(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.loads((root / "train.json").read_text())
    for place, image in enumerate(content["images"]):
        image["site"] = "north" if place < 7 else f"south{place}"
    (tmp_path / "sites.json").write_text(json.dumps(content))
    data = DetectionDataModule(
        tmp_path, "sites.json", images=root / "images", val=None, val_fraction=0.1, group_by="site"
    )
    with caplog.at_level(logging.INFO):
        assert len(data.index("val")) == 1
    assert re.search(r"1 of 10 training images are held out for validation, site south[789]\.", caplog.text)


def test_sizes_go_on_after_a_resumption_as_if_nothing_had_been(root: Path) -> None:
    scales = (0.25, 2.0)
    whole = [images.shape for _, images, _ in watched(root, epochs=4, multi_scale=scales).trained]
    watched(root, epochs=1, multi_scale=scales)
    resumed = watched(root, epochs=4, resume=root / "one.ckpt", multi_scale=scales)
    assert [images.shape for _, images, _ in resumed.trained] == whole[2:]
    assert len(set(whole)) > 2


def test_splits_of_other_classes_are_refused(root: Path, tmp_path: Path) -> None:
    """A label would mean another class in each, as where an exporter lists the classes that a split has."""
    content = json.loads((root / "val.json").read_text())
    kept = content["categories"][::2]
    content["categories"] = kept
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in [c["id"] for c in kept]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "train.json").write_text((root / "train.json").read_text())
    data = DetectionDataModule(tmp_path, "train.json", "val.json", images=root / "images")
    names = ", ".join(category["name"] for category in kept)
    for _ in range(2):  # asked again it is no other
        with pytest.raises(DataError, match=rf"val\.json: the classes of val are {names}; those of train are"):
            data.index("val")
    assert data.index("train").class_names == data.class_names


def test_each_process_has_a_batch_where_images_are_few(root: Path) -> None:
    data = DetectionDataModule(root, "train.json", "val.json", batch_size=8, num_workers=0)
    assert len(data.train_dataloader()) == 1  # of 10 images; the batch of two is left out
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)  # type: ignore[assignment]
    assert [len(batch.images) for batch in data.train_dataloader()] == [5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; give 1 or more."),
        ({"num_workers": -1}, "data.num_workers is -1; give 0 or more."),
        ({"image_size": (0, 320)}, "data.image_size is [0, 320]; give sides of 1 pixel or more."),
        ({"crop_size": (64, -1)}, "data.crop_size is [64, -1]; give sides of 1 pixel or more."),
        ({"val_fraction": 15}, "data.val_fraction is 15; give a share, 0 to 1."),
        ({"repeat_threshold": float("nan")}, "data.repeat_threshold is nan; give a share, 0 to 1."),
        ({"multi_scale": (1.25, 0.75)}, "data.multi_scale is [1.25, 0.75]; give two factors above 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        DetectionDataModule(**options)

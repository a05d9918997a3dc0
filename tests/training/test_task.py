from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch.optim import SGD
from torch.utils.data import DataLoader

from detframe.models.backbones import TimmBackbone
from detframe.models.calibration import Calibration
from detframe.models.heads.dense import DenseHead
from detframe.models.necks import FPN, SimpleFeaturePyramid
from detframe.structures import Batch, Targets
from detframe.training.schedules import warmup_cosine
from detframe.training.task import CheckpointError, DetectionTask, class_path_of, parameter_groups


def make_task(**options: Any) -> DetectionTask:  # noqa: ANN401
    torch.manual_seed(0)
    return DetectionTask(
        class_names=["nut", "bolt"],
        backbone=partial(TimmBackbone, name="test_resnet"),
        neck=partial(FPN, channels=16),
        head=partial(DenseHead, width=16, depth=1),
        **options,
    )


def make_batch(value: float = 0.5) -> Batch:
    boxes = torch.tensor([[[8.0, 8, 40, 40]]]).repeat(2, 1, 1)
    flags = torch.zeros(2, 1, dtype=torch.bool)
    return Batch(
        images=torch.full((2, 3, 64, 64), value),
        targets=Targets(boxes, torch.zeros(2, 1, dtype=torch.int64), flags, ~flags),
        original_boxes=boxes,
        areas=torch.full((2, 1), 1024.0),
        annotation_ids=torch.tensor([[1], [2]]),
        image_ids=torch.tensor([17, 23]),
        original_sizes=torch.tensor([[64, 64], [64, 64]]),
        transforms=torch.tensor([[1.0, 1, 0, 0]]).repeat(2, 1),
    )


def loader(*batches: Batch) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


def trainer(folder: Path, **options: Any) -> Trainer:  # noqa: ANN401
    usual: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(default_root_dir=folder, **{**usual, **options})


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about a loader without workers and the like
def test_a_loss_that_is_not_finite_stops_and_names_the_images(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"\[17, 23\]"):
        trainer(tmp_path, max_steps=2).fit(make_task(), loader(make_batch(float("nan"))))


@pytest.mark.filterwarnings("ignore")
def test_it_stops_when_it_logs_and_before_it_saves(tmp_path: Path) -> None:
    batches = loader(make_batch(0.5), make_batch(float("nan")), *[make_batch(0.5)] * 4)
    task = make_task()
    with pytest.raises(FloatingPointError, match=r"at step 1:.* \[17, 23\]"):
        trainer(tmp_path, max_epochs=1, log_every_n_steps=4).fit(task, batches)
    assert task.trainer.global_step == 3
    task = make_task()
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2)
    options = {"max_epochs": 1, "log_every_n_steps": 50, "callbacks": [saving], "enable_checkpointing": True}
    with pytest.raises(FloatingPointError, match="at step 1:"):
        trainer(tmp_path, **options).fit(task, batches)
    assert not list((tmp_path / "saved").glob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_bfloat16_and_accumulated_gradients_train(tmp_path: Path) -> None:
    task = make_task()
    before = [parameter.detach().clone() for parameter in task.detector.parameters()]
    trainer(tmp_path, max_epochs=2, precision="bf16-mixed", accumulate_grad_batches=2).fit(
        task, loader(make_batch(0.2), make_batch(0.7))
    )
    assert task.trainer.global_step == 2
    moved = [not torch.equal(a, b) for a, b in zip(before, task.detector.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)  # levels without an object teach their box branch nothing
    assert all(torch.isfinite(parameter).all() for parameter in task.detector.parameters())


@pytest.mark.filterwarnings("ignore")
def test_what_an_image_shows_is_found_in_its_own_pixels(tmp_path: Path) -> None:
    batch = make_batch()
    moved = batch._replace(
        original_sizes=torch.tensor([[32, 64], [32, 64]]), transforms=torch.tensor([[1.0, 1, 0, 16]]).repeat(2, 1)
    )
    outputs = trainer(tmp_path).predict(make_task(), loader(batch, moved))
    assert outputs is not None
    straight, shifted = outputs
    assert straight.valid.any()  # type: ignore[union-attr]
    expected = (straight.boxes - torch.tensor([0.0, 16, 0, 16])).clamp(min=0)  # type: ignore[union-attr]
    expected[..., 1::2].clamp_(max=32)
    torch.testing.assert_close(shifted.boxes, expected * shifted.valid[..., None])  # type: ignore[union-attr]


def test_norms_and_biases_do_not_decay_and_the_backbone_is_slower() -> None:
    task = make_task(optimizer=partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01), backbone_lr_factor=0.5)
    groups = parameter_groups(task.detector, 0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(task.detector.parameters()))
    for group in groups:
        decays = {parameter.ndim > 1 for parameter in group["params"]}
        assert decays == {"weight_decay" not in group}
    backbone = {id(parameter) for parameter in task.detector.backbone.parameters()}
    assert all((group["lr_factor"] == 0.5) == (id(group["params"][0]) in backbone) for group in groups)


def test_the_learning_rate_falls_layer_by_layer_in_a_transformer() -> None:
    backbone, neck = partial(TimmBackbone, name="test_vit"), partial(SimpleFeaturePyramid, channels=16)
    task = DetectionTask(class_names=["nut"], backbone=backbone, neck=neck, layer_decay=0.5)
    factors = {
        id(p): group["lr_factor"] for group in parameter_groups(task.detector, 0.3, 0.5) for p in group["params"]
    }
    named = {name: factors[id(parameter)] for name, parameter in task.detector.named_parameters()}
    body = "backbone.body.model."
    first, last = (named[f"{body}blocks.{i}.attn.qkv.weight"] for i in (0, 1))
    assert first < last <= 0.3
    assert first == last * 0.5
    assert named[f"{body}patch_embed.proj.weight"] == first * 0.5
    assert {factor for name, factor in named.items() if not name.startswith("backbone.")} == {1.0}
    with pytest.raises(ValueError, match="test_resnet does not say how deep"):
        parameter_groups(make_task().detector, 0.3, 0.5)


def test_cycles_restart_at_the_height() -> None:
    factors = [warmup_cosine(step, 100, 0, cycles=4) for step in range(101)]
    assert [step for step in range(100) if factors[step] == 1] == [0, 25, 50, 75]
    assert factors[100] == pytest.approx(0.01)


def test_a_found_learning_rate_reaches_the_schedule(tmp_path: Path) -> None:
    """Lightning's finder sets the attribute after the schedule was made, which would else keep its own."""
    task = make_task(backbone_lr_factor=0.5, warmup_steps=0)
    one = trainer(tmp_path, max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Tuner(one).lr_find(task, loader(*[make_batch()] * 25), num_training=20, min_lr=1e-5)
        assert found is not None
        one.fit(task, loader(*[make_batch()] * 25))
    assert task.learning_rate == found.suggestion()
    schedule = task.lr_schedulers()
    assert sorted(set(schedule.base_lrs)) == pytest.approx([task.learning_rate / 2, task.learning_rate])  # type: ignore[operator, union-attr]


def test_warm_up_rises_and_the_cosine_ends_low() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(101)]
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.505)
    assert factors[100] == pytest.approx(0.01)


def test_a_checkpoint_made_in_python_remembers_every_part(tmp_path: Path) -> None:
    task = make_task(optimizer=partial(SGD, lr=0.1), image_size=(64, 96))
    path = tmp_path / "task.ckpt"
    one = trainer(tmp_path)
    one.strategy.connect(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.save_checkpoint(path)
        again = DetectionTask.load_from_checkpoint(path, weights_only=True)
    assert again.hparams["head"]["class_path"] == "detframe.models.heads.dense.DenseHead"
    assert again.hparams["head"]["init_args"].items() >= {"width": 16, "depth": 1}.items()
    assert tuple(again.hparams["image_size"]) == (64, 96)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for one_field, other in zip(task.eval()(images), again.eval()(images), strict=True):
            torch.testing.assert_close(one_field, other)


def test_what_no_checkpoint_could_remember_is_refused() -> None:
    with pytest.raises(TypeError, match="remember"):
        class_path_of(lambda: None)
    with pytest.raises(ValueError, match="classes"):
        DetectionTask()


def saved(task: DetectionTask, path: Path) -> Path:
    one = trainer(path.parent)
    one.strategy.connect(task)
    one.save_checkpoint(path)
    return path


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    """A checkpoint whose first class has half the logits."""
    task = make_task()
    task.detector.calibration = Calibration(2)
    task.detector.calibration.logits[0] *= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(task, tmp_path / "calibrated.ckpt")


@pytest.mark.filterwarnings("ignore")
def test_a_calibrated_checkpoint_gives_calibrated_scores(calibrated: Path, tmp_path: Path) -> None:
    task = DetectionTask.load_from_checkpoint(calibrated, weights_only=True).eval()
    plain = make_task().eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(images).scores.double()
        found = task(images)
    assert task.detector.calibration is not None
    labels = plain(images).labels
    expected = torch.where(labels == 0, torch.sigmoid(0.5 * torch.logit(expected)), expected)
    expected = torch.where(plain(images).valid, expected, 0.0).sort(dim=1, descending=True).values
    torch.testing.assert_close(found.scores, expected.float(), atol=1e-5, rtol=1e-4)

    # Within one process one checkpoint may follow another.
    outputs = trainer(tmp_path).predict(task, loader(make_batch()), ckpt_path=saved(plain, tmp_path / "plain.ckpt"))
    assert outputs is not None
    assert task.detector.calibration is None
    outputs = trainer(tmp_path).predict(task, loader(make_batch()), ckpt_path=calibrated)
    assert outputs is not None
    assert task.detector.calibration is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("averaged", [False, True])
def test_training_leaves_a_calibration_behind(averaged: bool, calibrated: Path, tmp_path: Path) -> None:
    """Resumed or begun from it, with or without averaged weights, and saved again without it."""
    callbacks = [EMAWeightAveraging(decay=0.5)] if averaged else []
    first, again = make_task(), make_task()
    one = trainer(tmp_path, max_epochs=1, callbacks=callbacks)
    one.fit(first, loader(make_batch()))
    one.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    curves = {f"detector.calibration.{name}": value for name, value in Calibration(2).named_buffers()}
    content["state_dict"] |= curves
    torch.save(content, tmp_path / "last.ckpt")

    other = trainer(tmp_path, max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.5)] if averaged else [])
    other.fit(again, loader(make_batch()), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert other.current_epoch == 2
    assert again.detector.calibration is None
    other.save_checkpoint(tmp_path / "more.ckpt")
    assert not curves.keys() & torch.load(tmp_path / "more.ckpt", weights_only=True)["state_dict"].keys()

    begun = make_task(init_from=str(calibrated))
    assert begun.detector.calibration is None
    weights = torch.load(calibrated, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[f"detector.{key}"]) for key, value in begun.detector.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_weights_that_do_not_fit_are_refused_by_the_first(tmp_path: Path) -> None:
    content = torch.load(saved(make_task(), tmp_path / "whole.ckpt"), weights_only=True)
    state = content["state_dict"]
    first, *_, last = state

    def refused(changed: dict[str, Any], words: str) -> None:
        torch.save({**content, **changed}, tmp_path / "changed.ckpt")
        with pytest.raises(CheckpointError, match=re.escape(words)):
            trainer(tmp_path).predict(make_task(), loader(make_batch()), ckpt_path=tmp_path / "changed.ckpt")

    refused({"state_dict": {**state, last: torch.zeros(3, 5, 7, 9, 2)}}, f"{last} is [3, 5, 7, 9, 2], not")
    rest = {key: value for key, value in state.items() if key != last}
    refused({"state_dict": rest}, f"{last} is missing, the first of 1 such tensors")
    refused({"state_dict": {"weight": torch.zeros(1)}}, f"{first} is missing, the first of {len(state) + 1} such")
    refused({"state_dict": {**state, "weight": torch.zeros(1)}}, "weight is not the detector's")
    refused({"hyper_parameters": {"width": 3}}, "is no checkpoint of detframe: it has no class names")
    # As before: who asks for it may load a part.
    make_task().load_state_dict(rest, strict=False)

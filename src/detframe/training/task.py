"""The LightningModule: steps, metrics and the optimizer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detframe.letterbox import to_original
from detframe.metrics.mean_ap import MeanAveragePrecision, named_results
from detframe.models.backbones import Backbone, TimmBackbone
from detframe.models.calibration import Calibration
from detframe.models.detector import Detector, build_detector
from detframe.models.heads.base import Head
from detframe.models.heads.dense import DenseHead
from detframe.models.necks import FPN, Neck
from detframe.models.transfer import initialise
from detframe.structures import Batch, Detections, Level
from detframe.training.schedules import warmup_cosine

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
"""Makes an optimizer from parameter groups."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was found and what to do."""


class _Step(NamedTuple):
    """What is said of a step whose loss is not finite."""

    number: int
    losses: dict[str, Tensor]  # scalars on the device
    image_ids: Tensor  # [B]


class DetectionTask(LightningModule):
    """Trains and evaluates a detector. A checkpoint of it holds all that ``load_from_checkpoint`` needs.

    Args:
        class_names: Names by label; the CLI takes them from the data, and `predict` from the checkpoint.
        backbone: Makes the backbone: a class path with its arguments in YAML, a class or ``functools.partial`` in
            Python. The checkpoint remembers both.
        neck: Makes the neck from the backbone's levels; null is the feature pyramid network ``FPN``.
        head: Makes the head from the neck's levels and the number of classes; null is ``DenseHead``.
        optimizer: Makes the optimizer from parameter groups; null is AdamW with learning rate 0.001 and weight decay
            0.05.
        backbone_lr_factor: The backbone's learning rate as a share of the others'.
        init_from: Pretrained detector to begin from: a checkpoint of detframe, also one with other classes (what
            belongs to a class goes by its name); a file of torchvision's Faster R-CNN, RetinaNet or FCOS, or of the
            authors' RT-DETRv2 or D-FINE; or the name of torchvision's weights, such as
            ``FCOS_ResNet50_FPN_Weights.COCO_V1``, which torchvision downloads.
        layer_decay: Factor of the learning rate from each layer of the backbone to the one before it, for vision
            transformers, such as 0.75 (BEiT); 1 is none.
        learning_rate: Takes the place of the optimizer's; it is what Lightning's ``LearningRateFinder`` sets.
        warmup_steps: Optimizer steps in which the learning rate rises; then it falls along a cosine.
        cycles: Cosines in the run: with more than one the learning rate restarts at its height (SGDR).
        compile: Compile backbone and neck with ``torch.compile``: minutes at the start, faster steps on a GPU.
        image_size: (height, width) of the input in pixels, taken from the data by the CLI and remembered for who uses
            the checkpoint; the network takes any size.
        stretch: Whether images were stretched to it instead of letterboxed, likewise.

    Raises:
        ValueError: There is no class, parts do not go together, or ``init_from`` does not fit.
    """

    def __init__(
        self,
        class_names: Sequence[str] = (),
        backbone: Callable[[], Backbone] = TimmBackbone,
        neck: Callable[[list[Level]], Neck] | None = None,
        head: Callable[[list[Level], int], Head] | None = None,
        optimizer: OptimizerFactory | None = None,
        init_from: str | None = None,
        backbone_lr_factor: float = 0.3,
        layer_decay: float = 1.0,
        learning_rate: float | None = None,
        warmup_steps: int = 100,
        cycles: int = 1,
        compile: bool = False,
        image_size: tuple[int, int] = (320, 320),
        stretch: bool = False,
    ) -> None:
        super().__init__()
        if not class_names:
            raise ValueError("A detector needs classes: give annotated data, or a checkpoint with --ckpt_path.")
        # No defaults of the signature: jsonargparse hands a default class's arguments on to the class named instead,
        # where their names fit, and so `nms_iou` of one head would silently be another's.
        neck = neck or FPN
        head = head or DenseHead
        # One plain dictionary, built by the CLI or in Python: `load_from_checkpoint` hands it to jsonargparse.
        self.save_hyperparameters(
            {
                "_instantiator": "lightning.pytorch.cli.instantiate_module",
                "class_names": list(class_names),
                "backbone": class_path_of(backbone),
                "neck": class_path_of(neck),
                "head": class_path_of(head),
                "optimizer": class_path_of(optimizer) if optimizer else None,
                "init_from": None,  # a checkpoint holds the weights, and must load where that file is not
                "backbone_lr_factor": backbone_lr_factor,
                "layer_decay": layer_decay,
                "learning_rate": learning_rate,
                "warmup_steps": warmup_steps,
                "cycles": cycles,
                "compile": compile,
                "image_size": list(image_size),
                "stretch": stretch,
            }
        )
        self.class_names = list(class_names)
        make_optimizer = optimizer or partial(AdamW, lr=1e-3, weight_decay=0.05)
        # A function is not copied along with the module, as weight averaging does it; what jsonargparse makes holds the
        # trainer, which cannot be copied where there are several processes.
        self.make_optimizer: OptimizerFactory = lambda groups: make_optimizer(groups)
        self.backbone_lr_factor = backbone_lr_factor
        self.layer_decay = layer_decay
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.cycles = cycles
        self.compiled = compile
        self.detector = build_detector(backbone, neck, head, len(self.class_names))
        if init_from is not None:
            rank_zero_info(f"{init_from}: {initialise(self.detector, self.class_names, init_from)}.")
        self.metrics = nn.ModuleDict({stage: MeanAveragePrecision(class_metrics=True) for stage in ("val", "test")})
        self._unchecked: list[_Step] = []  # whose loss may not be finite
        self.results: dict[str, dict[str, Any]] = {}  # the last computed metrics of each stage, for who writes them

    def forward(self, images: Tensor) -> Detections:
        """Detections of images ``[B, 3, H, W]``, RGB float 0..1, in their pixels."""
        detections: Detections = self.detector(images)
        return detections

    def training_step(self, batch: Batch | None, batch_idx: int) -> Tensor | None:
        """Sum of the loss parts.

        Raises:
            FloatingPointError: A loss is not finite; the message names the batch's images. It comes when losses are
                logged, every ``log_every_n_steps`` of the trainer, at the end of an epoch and before a checkpoint.
        """
        if batch is None:  # every image of the batch was skipped
            return self._no_loss() if self.trainer.world_size > 1 else None
        parts = self.detector.loss(batch.images, batch.targets)
        total = torch.stack(list(parts.values())).sum()
        detached = {name: value.detach() for name, value in parts.items()}
        self._unchecked.append(_Step(self.global_step, detached, batch.image_ids))
        if len(self._unchecked) >= self.trainer.log_every_n_steps:  # type: ignore[attr-defined]  # the logger connector sets it
            self._require_finite()
        size = len(batch.images)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/loss_{name}": value for name, value in detached.items()}, batch_size=size)
        return total

    def _require_finite(self) -> None:
        """Look at the losses since the last time, at once: each look waits for the device."""
        steps, self._unchecked = self._unchecked, []
        if not steps:
            return
        finite = torch.stack([torch.stack(list(step.losses.values())).sum() for step in steps]).isfinite().tolist()
        for step, good in zip(steps, finite, strict=True):
            if not good:
                values = ", ".join(f"{name} {value.item():.4g}" for name, value in step.losses.items())
                raise FloatingPointError(
                    f"The loss is not finite at step {step.number}: {values}. Images of the batch, by id: "
                    f"{step.image_ids.tolist()}. Look at them with `detframe check`, or lower the learning rate."
                )

    def on_train_epoch_end(self) -> None:
        """Look at the epoch's last losses."""
        self._require_finite()

    def validation_step(  # type: ignore[override]  # Lightning hands on any output, and says otherwise
        self, batch: Batch | None, batch_idx: int
    ) -> Detections | None:
        """Detections in original pixels, counted by the metric."""
        return self._evaluate("val", batch)

    def test_step(  # type: ignore[override]
        self, batch: Batch | None, batch_idx: int
    ) -> Detections | None:
        """Detections in original pixels, counted by the metric."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch | None, batch_idx: int) -> Detections | None:
        """Detections in original pixels."""
        return None if batch is None else self._detect(batch)

    def _detect(self, batch: Batch) -> Detections:
        found: Detections = self(batch.images)
        boxes = to_original(found.boxes, batch.transforms, batch.original_sizes)
        return found._replace(boxes=boxes * found.valid[..., None])

    def _no_loss(self) -> Tensor:
        """Zero that depends on every parameter: the other processes wait for gradients from this one."""
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0

    def _evaluate(self, stage: str, batch: Batch | None) -> Detections | None:
        if batch is None:
            return None
        detections = self._detect(batch)
        truth = batch.targets._replace(boxes=batch.original_boxes)
        self._metric(stage).update_batch(detections, truth, batch.areas, batch.image_ids)
        return detections

    def _metric(self, stage: str) -> MeanAveragePrecision:
        metric = self.metrics[stage]
        assert isinstance(metric, MeanAveragePrecision)
        return metric

    def on_validation_epoch_end(self) -> None:
        """Log the mean average precision of the epoch."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean average precision of the test split."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        metric = self._metric(stage)
        flat, summary = named_results(metric.compute(), self.class_names)
        metric.reset()
        self.results[stage] = summary
        self.log_dict({f"{stage}/{name}": value for name, value in flat.items()}, rank_zero_only=False)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own type has nine alternatives
        """Optimizer with the backbone's groups slowed and no decay on norms and biases, and the schedule by step."""
        groups = parameter_groups(self.detector, self.backbone_lr_factor, self.layer_decay)
        optimizer = self.make_optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] = (self.learning_rate or group["lr"]) * group["lr_factor"]
        total = int(self.trainer.estimated_stepping_batches)
        warmup = min(self.warmup_steps, total // 10)  # a short trial run must not be all warm-up
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, total, warmup, self.cycles))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let a rate that ``LearningRateFinder`` found reach the schedule, which keeps the one that it began with."""
        if self.learning_rate is None:
            return
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(schedule, LambdaLR)
        schedule.base_lrs = [self.learning_rate * group["lr_factor"] for group in optimizer.param_groups]  # type: ignore[union-attr]

    def setup(self, stage: str) -> None:
        """Refuse data whose labels mean other classes than the detector's: every figure would be false.

        Raises:
            CheckpointError: The classes differ in name or order.
        """
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if stage != "predict" and datamodule is not None:
            self._require_classes(datamodule.class_names, "data")
        if stage == "fit" and self.compiled:
            # In place, so that names in checkpoints stay; the head's loss has shapes that change with the targets.
            self.detector.backbone.compile()
            self.detector.neck.compile()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of a detector with other classes, as :meth:`setup` does with data; calibrate as it does.

        Training that goes on from a calibrated checkpoint leaves the calibration out: it is one of weights that will
        not stay, and weight averaging keeps a model without it.

        Raises:
            CheckpointError: The classes differ, or it is other software's.
        """
        names = checkpoint.get("hyper_parameters", {}).get("class_names")
        if names is None or "state_dict" not in checkpoint:
            lacking = "state_dict" if names is not None else "class names in hyper_parameters"
            raise CheckpointError(
                f"The file is no checkpoint of detframe: it has no {lacking}. Runs keep theirs in `checkpoints/`."
            )
        self._require_classes(names, "checkpoint")
        state: dict[str, Tensor] = checkpoint["state_dict"]
        own = [key for key in state if key.startswith("detector.calibration.")]
        self.detector.calibration = None
        if own and self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            rank_zero_info("The checkpoint's calibration is left out; run `detframe calibrate` again after training.")
            for key in own:
                del state[key]
        elif own:
            self.detector.calibration = Calibration(len(self.class_names)).to(self.device)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401 - torch's own
        """Load weights as torch does, and name the first of those that do not fit: torch lists them all.

        Raises:
            CheckpointError: A tensor is missing, too many or of another shape.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            faults = _misfits(self.state_dict(), state_dict, strict)
            if not faults:
                raise
            raise CheckpointError(
                f"The checkpoint's weights do not fit the detector that it describes: {faults[0]}, the first of "
                f"{len(faults)} such tensors. Either the file is damaged, or its detector's parts have changed since; "
                "take another checkpoint, or train anew."
            ) from error

    def _require_classes(self, names: Sequence[str], whose: str) -> None:
        if list(names) != self.class_names:
            raise CheckpointError(
                f"The detector's classes are {', '.join(self.class_names)}; those of the {whose} are "
                f"{', '.join(names)}. The same classes in the same order are needed, or a new detector, "
                "which `fit --model.init_from CHECKPOINT` begins with what the classes share."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that a loss may have spoilt, and leave the pretrained file out.

        The checkpoint holds the weights, and must load where that file is not.
        """
        self._require_finite()
        parameters = dict(checkpoint["hyper_parameters"])
        backbone = dict(parameters["backbone"])
        backbone["init_args"] = {**backbone["init_args"], "weights": None}
        checkpoint["hyper_parameters"] = {**parameters, "backbone": backbone}


def _misfits(own: Mapping[str, Tensor], given: Mapping[str, Any], strict: bool) -> list[str]:
    """What of ``given`` a module with the state ``own`` cannot load, in words, one for each tensor."""
    faults = []
    for key, value in own.items():
        if key not in given:
            if strict:
                faults.append(f"{key} is missing")
        elif not isinstance(given[key], Tensor):
            faults.append(f"{key} is no tensor")
        elif given[key].shape != value.shape:
            faults.append(f"{key} is {list(given[key].shape)}, not {list(value.shape)}")
    return faults + [f"{key} is not the detector's" for key in given if strict and key not in own]


def parameter_groups(detector: Detector, backbone_lr_factor: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters that train, apart by learning rate and by decay: none on norms and biases (Bag of Tricks, 3.1).

    Args:
        detector: Whose parameters.
        backbone_lr_factor: Learning rate of the backbone as a share of the others'.
        layer_decay: Further factor from each layer of the backbone to the one before it; 1 is none.

    Returns:
        Groups with ``params``, ``lr_factor`` and, where there is none, ``weight_decay`` 0.

    Raises:
        ValueError: The backbone does not say how deep its layers lie, which ``layer_decay`` asks for.
    """
    depths = detector.backbone.parameter_depths() if layer_decay != 1 else {}
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0
        if name.startswith("backbone."):
            above = deepest - depths.get(name.removeprefix("backbone."), deepest)
            factor = backbone_lr_factor * layer_decay**above
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, **({} if decays else {"weight_decay": 0.0})}
        for (factor, decays), parameters in groups.items()
    ]


def class_path_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """A factory as jsonargparse writes it: ``class_path`` and ``init_args``.

    Args:
        factory: A class, a ``functools.partial`` of one with keyword arguments, or what jsonargparse makes of either.

    Raises:
        TypeError: It is something else, which a checkpoint could not remember.
    """
    target: Any = factory
    arguments: dict[str, Any] = {}
    while isinstance(target, partial):
        arguments = {**target.keywords, **arguments}
        classes = [argument for argument in target.args if isinstance(argument, type)]
        target = classes[-1] if classes else target.func
    if not isinstance(target, type) or "<locals>" in target.__qualname__:
        raise TypeError(f"{factory!r} is no class or functools.partial of one, so no checkpoint can remember it.")
    return {"class_path": f"{target.__module__}.{target.__qualname__}", "init_args": _plain(arguments)}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value that YAML has
    """Tuples as lists and paths as text, so that a checkpoint holds nothing that ``weights_only`` rejects."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if callable(value):  # a part of a part, as the assigner of a head
        return class_path_of(value)
    return str(value)

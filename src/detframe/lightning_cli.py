"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with detframe's defaults and short errors."""

from __future__ import annotations

import ctypes
import itertools
import re
import sys
import warnings
from argparse import ArgumentTypeError
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateMonitor, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from detframe.analysis.embeddings import EmbeddingWriter
from detframe.analysis.predictions import EvaluationWriter, PredictionWriter
from detframe.analysis.wandb_evidence import WandbEvidence
from detframe.augment.facts import PolicyError
from detframe.data.annotations import DataError
from detframe.data.datamodule import DetectionDataModule
from detframe.data.images import ImageError
from detframe.refusals import explain_argument, similar
from detframe.training.callbacks import BestCheckpoint, LastCheckpoint, RunRecorder, SampleImages
from detframe.training.task import CheckpointError, DetectionTask

LINKS = {"class_names": "data.class_names", "image_size": "data.image_size", "stretch": "data.stretch"}
"""Arguments of the task that the data decides, and what they are taken from."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_VERBS = ("fit", "validate", "test", "predict")
_MESSAGE_LENGTH = 600
_CAUSES = (
    r"module '[\w.]+' has no attribute '\w+'",
    r"No module named '[\w.]+'",
    r"Option '[^']+' is not accepted",
    r"Expected '[\w.]+' to be a subclass of <class '[\w.]+'>",
    r"Expected a <class '[\w.]+'>\. Got value: [^\n]{1,80}",
)
"""What a jsonargparse message says about the innermost fault, the most telling first."""


class DetframeCLI(LightningCLI):
    """LightningCLI for one task and one data module, which any parts fit into by ``class_path``."""

    class_names_from_data = True  # `predict` looks at images that have none: there they are the checkpoint's

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the data decides and add what detframe's verbs have beside the trainer's options."""
        for target, source in LINKS.items():
            if target != "class_names" or self.class_names_from_data:
                parser.link_arguments(source, f"model.{target}", apply_on="instantiate")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(SampleImages, "samples")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(EmbeddingWriter, "embeddings")
        parser.add_class_arguments(WandbEvidence, "evidence")
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test best.ckpt after `fit` where there is a test split."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 - Lightning's own
        """Parse, and refuse values that a link would override in silence."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            actions = [action for verb in _VERBS for action in self._parser(verb)._actions]
            options = [name for action in actions for name in action.option_strings]
            raise ArgumentError(None, explain_argument(short(str(error)), options)) from error
        model = self._options().model
        for target, source in LINKS.items():
            if target in model and (target != "class_names" or self.class_names_from_data):
                raise ArgumentError(None, f"argument {source} --> model.{target}")

    def _parse_ckpt_path(self) -> None:
        """Take the model's arguments from the checkpoint, and say so where the configuration has others.

        Lightning has no public hook between parsing and this.
        """
        path = self._options().get("ckpt_path")
        verb = self.config.subcommand
        if path is None and verb != "fit" and not self._options().model.get("init_from"):
            raise CheckpointError(
                f"`{verb}` without a checkpoint would look at a detector with random weights. Give one with "
                "--ckpt_path, such as RUN/checkpoints/best.ckpt."
            )
        named = path in (None, "best", "last", "hpc") or str(path).startswith("registry:")
        if not named and not Path(path).is_file():
            raise CheckpointError(f"{path}: no such checkpoint. Runs keep theirs in `checkpoints/`.")
        before = {} if named else _flat(self._options().model)
        try:
            super()._parse_ckpt_path()
        except Exception as error:  # files that are no checkpoint make torch.load raise nearly anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path}: is no checkpoint of detframe ({reason[:200]}).") from error
        options = self._options()
        if not named:
            after = _flat(options.model)
            if not after.get("class_names"):  # else Lightning ends in a KeyError over what else it lacks
                raise CheckpointError(f"{path}: is no checkpoint of detframe (it has no class names).")
            ignored = [
                f"{key} is {after[key]}, not {value}"
                for key, value in before.items()
                if key in after and after[key] != value and not key.endswith(".weights") and value is not None
            ]
            if ignored and self.config.subcommand == "fit":
                rank_zero_warn(f"The checkpoint decides what is trained on: {'; '.join(ignored)}.")
        for name in ("image_size", "stretch"):
            if options.data[name] is None and name in options.model:
                options.data[name] = options.model[name]

    def _options(self) -> Namespace:
        options: Namespace = self.config[self.config.subcommand]
        return options

    def instantiate_classes(self) -> None:
        """Build the data module, the task and the trainer; an argument that one of them refuses is bad input."""
        try:
            super().instantiate_classes()
        except (DataError, CheckpointError):
            raise
        except ValueError as error:
            raise ArgumentError(None, str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - Lightning's own
        """Build the trainer, without the callbacks that it refuses where checkpoints or loggers are switched off.

        Each run has a folder of its own, whatever it logs to.
        """
        # The last of the defaults: it reads what they write.
        self.trainer_defaults["callbacks"].append(self._get(self.config_init, "evidence"))
        options = self._get(self.config_init, "trainer")
        if options.get("logger") is False:
            self.save_config_callback = None  # there is no folder of the run's own
            defaults = self.trainer_defaults["callbacks"]
            defaults[:] = [callback for callback in defaults if not isinstance(callback, LearningRateMonitor)]
        elif isinstance(options.get("logger"), Logger | list):
            kwargs["logger"] = folder_first(options.logger)
        if options.get("enable_checkpointing") is False:
            keys = self._parser(self.subcommand).callback_keys
            keys[:] = [key for key in keys if key not in ("best_checkpoint", "last_checkpoint")]
        return super().instantiate_trainer(**kwargs)

    def _remove_what_only_training_needs(self) -> None:
        """Take off callbacks that would change what is evaluated.

        Averaging would put the weights as they were trained in the place of the averaged ones that the checkpoint
        holds; Lightning's search for a batch size would leave a file of its own as the checkpoint that is named.
        """
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [
            callback for callback in callbacks if not isinstance(callback, WeightAveraging | BatchSizeFinder)
        ]

    def before_fit(self) -> None:
        """Speed up training on a CPU."""
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()

    def before_validate(self) -> None:
        """Evaluate the checkpoint as it is."""
        self._remove_what_only_training_needs()

    def before_test(self) -> None:
        """Evaluate the checkpoint as it is."""
        self._remove_what_only_training_needs()

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last where none was validated."""
        if not self._get(self.config, "test_after_fit") or self.datamodule.splits["test"] is None:
            return
        if getattr(self.trainer, "fast_dev_run", False):
            return
        paths = [callback.best_model_path for callback in self.trainer.checkpoint_callbacks]  # type: ignore[attr-defined]
        checkpoint = next((path for path in paths if path), None)  # the best comes first
        if checkpoint is None:
            rank_zero_info("There is no checkpoint to test.")
            return
        rank_zero_info(f"Testing {checkpoint}")
        self._remove_what_only_training_needs()
        self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False
        )


def run(arguments: list[str]) -> int:
    """Run a Lightning verb.

    Args:
        arguments: The verb and its options.

    Returns:
        Exit code: 0, or 2 where the input was bad.
    """
    strict: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    torch.set_float32_matmul_precision("high")
    # Lightning 2.6 does this under the newest torch, at every start.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    DetframeCLI.class_names_from_data = arguments[0] != "predict"
    try:
        require_yaml(arguments)
        DetframeCLI(
            DetectionTask,
            DetectionDataModule,
            trainer_defaults={"callbacks": [RunRecorder(), EvaluationWriter(), LearningRateMonitor("step")]},
            parser_kwargs={**strict, **{verb: dict(strict) for verb in _VERBS}},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": False},
            args=arguments if arguments != sys.argv[1:] else None,
        )
    except (ArgumentError, ArgumentTypeError) as error:
        return refusal(short(str(error)))
    except (
        DataError,
        ImageError,
        PolicyError,
        CheckpointError,
        FloatingPointError,
        MisconfigurationException,
    ) as error:
        return refusal(str(error))
    return 0


def folder_first(loggers: Logger | list[Logger]) -> list[Logger]:
    """Loggers in an order that gives a run a folder: Lightning takes it from the first, if that is one of files.

    Of others it takes the folder of all their runs, where the second would find the first one's files. Where none is of
    files, there is a ``CSVLogger`` besides.
    """
    given = [loggers] if isinstance(loggers, Logger) else loggers
    of_files = [logger for logger in given if isinstance(logger, CSVLogger | TensorBoardLogger)]
    others = [logger for logger in given if logger not in of_files]
    if others and not of_files:
        of_files = [CSVLogger(others[0].save_dir or "runs", name="detframe")]
    return [*of_files, *others]


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one; elsewhere nothing happens.

    By default it hands large blocks, as feature maps are, back to the system, which has to clear them when they are
    asked for again: of a training step on a CPU a third of the time.
    """
    allocator = ctypes.CDLL(None) if sys.platform == "linux" else None
    if allocator is not None and hasattr(allocator, "mallopt"):
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            allocator.mallopt(option, value)


def refusal(message: str) -> int:
    """Say what is wrong on the error stream; the exit code."""
    print(f"detframe: {message}", file=sys.stderr)
    return 2


def short(message: str) -> str:
    """What is wrong in a jsonargparse message, in one sentence: the key and the innermost cause, without the dump."""
    link = re.search(r"argument (\S+) --> ([\w.]+)|Linked \"(\S+)\" must be given via \"(\S+)\"", message)
    if link:
        source, target = link[1] or link[4], link[2] or link[3]
        return f"{target} comes from the data and cannot be given; it is what {source} is."
    refused = re.search(r"Errors:\s+- (?!Expected)(.+?)\s+- Expected a <class 'NoneType'>", message, re.DOTALL)
    if refused and "Parser key" not in message:  # by a constructor, where null would have been allowed too
        return " ".join(refused[1].split())
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    causes = [found for pattern in _CAUSES for found in re.findall(pattern, message)]
    if not keys or not causes:
        return " ".join(message.split())[:_MESSAGE_LENGTH] or "The configuration is not valid."
    named = re.fullmatch(r"module '([\w.]+)' has no attribute '(\w+)'", causes[0])
    meant = similar(named[2], dir(import_module(named[1]))) if named else ""
    return f"{', '.join(keys)}: {causes[0].rstrip('.')}.{meant}"


def require_yaml(arguments: list[str]) -> None:
    """Read the configuration files once before jsonargparse does, which does not name the file that is broken.

    Raises:
        ArgumentError: A file is no YAML.
    """
    named = [after for argument, after in itertools.pairwise(arguments) if argument in ("--config", "-c")]
    named += [argument.split("=", 1)[1] for argument in arguments if argument.startswith("--config=")]
    for path in (Path(name) for name in named):
        try:
            if path.is_file() and yaml.safe_load(path.read_text(encoding="utf-8")) is None:
                raise ValueError("it is empty")
        except (yaml.YAMLError, ValueError) as error:
            raise ArgumentError(None, f"{path}: is no valid YAML ({' '.join(str(error).split())}).") from error


def _flat(namespace: Namespace) -> dict[str, Any]:
    return {key: value for key, value in namespace.items() if not isinstance(value, Namespace)}

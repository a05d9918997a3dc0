"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with detframe's defaults and short errors."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from detframe.analysis.predictions import PredictionWriter
from detframe.data.annotations import DataError
from detframe.data.datamodule import DetectionDataModule
from detframe.data.images import ImageError
from detframe.training.callbacks import RunRecorder
from detframe.training.task import DetectionTask

LINKED = "model.class_names"


class DetframeCLI(LightningCLI):
    """LightningCLI for one task and one data module, which any parts fit into by ``class_path``."""

    class_names_from_data = True  # `predict` looks at images that have none: there they are the checkpoint's

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the class names and add what detframe's verbs have beside the trainer's options."""
        if self.class_names_from_data:
            parser.link_arguments("data.class_names", LINKED, apply_on="instantiate")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test best.ckpt after `fit` where there is a test split."
        )

    def instantiate_classes(self) -> None:
        """Build the data module, the task and the trainer; an argument that one of them refuses is bad input."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            fail(str(error))

    def after_fit(self) -> None:
        """Test the best checkpoint."""
        fast = getattr(self.trainer, "fast_dev_run", False)
        if self._get(self.config, "test_after_fit") and self.datamodule.splits["test"] is not None and not fast:
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path="best", weights_only=True, verbose=False
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
    for argument in arguments:
        if argument.startswith(f"--{LINKED}"):
            fail(f"{LINKED} comes from the data and cannot be given.")
    DetframeCLI.class_names_from_data = arguments[0] != "predict"
    try:
        DetframeCLI(
            DetectionTask,
            DetectionDataModule,
            trainer_defaults={
                "callbacks": [
                    RichProgressBar(),
                    RunRecorder(),
                    LearningRateMonitor("step"),
                    ModelCheckpoint(
                        filename="best",
                        monitor="val/map",
                        mode="max",
                        save_last=True,
                        enable_version_counter=False,
                        save_weights_only=False,
                    ),
                ],
            },
            parser_kwargs={**strict, **{verb: dict(strict) for verb in _VERBS}},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": False},
            args=arguments if arguments != sys.argv[1:] else None,
        )
    except (ArgumentError, ArgumentTypeError) as error:
        fail(short(str(error)))
    except (DataError, ImageError, FloatingPointError) as error:
        fail(str(error))
    return 0


_VERBS = ("fit", "validate", "test", "predict")


def fail(message: str) -> NoReturn:
    """End with one sentence on the error stream and exit code 2."""
    print(f"detframe: {message}", file=sys.stderr)
    raise SystemExit(2)


def short(message: str) -> str:
    """The part of a jsonargparse message that says what is wrong, without the dump of the configuration."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:4])[:400] if lines else "The configuration is not valid."

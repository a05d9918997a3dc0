"""The data module: splits, loaders, and what happens to a batch on the device."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities.rank_zero import rank_prefixed_message, rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Sampler

from detframe.data.annotations import UNREADABLE, AnnotationIndex, DataError
from detframe.data.dataset import DetectionDataset, collate
from detframe.data.held_out import hold_out
from detframe.data.sampling import RepeatFactorSampler, repeat_factors
from detframe.data.sources import read_split
from detframe.data.synthetic import write_dataset
from detframe.data.unlabelled import read_images
from detframe.letterbox import resize_batch
from detframe.listing import in_a_row
from detframe.structures import Batch, TrainingObjects

_log = logging.getLogger(__name__)
_MOST_WORKERS = 8  # of one process; beyond, a loader waits for memory and disk


class Augmentation(Protocol):
    """What moves a training batch on the device; :class:`detframe.augment.pipeline.AugmentationPipeline` is one."""

    def prepare(self, objects: TrainingObjects) -> None:
        """Look at the training data, once, before the first batch."""

    def counts(self) -> dict[str, int]:
        """What became of the objects since the last call, by a name to log it under."""

    def __call__(self, batch: Batch, progress: float = 0.0, seed: int | None = None) -> Batch:
        """The batch moved; ``progress`` is the share of the training that is done, ``seed`` the batch's own."""


class DetectionDataModule(LightningDataModule):
    """Images and boxes from COCO, Pascal VOC or YOLO files; augmentation on the device, in training only.

    Args:
        root: Folder that ``train``, ``val`` and ``test`` are relative to: a VOC or YOLO root, or a folder with COCO
            files.
        train: Split to train on: a COCO file below ``root`` (``train.json``), or the name of a VOC or YOLO split.
        val: Split that ``best.ckpt`` is chosen by. null holds ``val_fraction`` of the training images out.
        test: Split for the final figures, or null.
        predict: What `predict` looks at: a folder of images, a glob, or a COCO file.
        images: Folder of the images, where it cannot be found from the annotation files.
        val_fraction: Share of the training images held out where ``val`` is null, 0..1.
        group_by: Column of the image metadata whose groups stay together when images are held out (COCO only).
        image_size: (height, width) that the network sees, in pixels. null is what the checkpoint was trained with, or
            (320, 320) in a new training.
        crop_size: Train on random windows of this (height, width), in the pixels of images resized to ``image_size``,
            instead of on whole images.
        stretch: Fill ``image_size`` instead of keeping the aspect ratio with a grey margin. null is what the checkpoint
            was trained with, or false in a new training.
        multi_scale: Range of a random factor by which the size of each training batch differs, such as (0.75, 1.25),
            in steps of 32 pixels; null trains at one size.
        repeat_threshold: Share of the training images below which a class has its images repeated, 0..1: by
            ``sqrt(threshold / share)``, as in LVIS; null takes each image once an epoch.
        batch_size: Images per step and process.
        num_workers: Loader processes; 0 loads in the training process. null takes as many as there are cores, up to 8,
            where an accelerator does the training, and none where the CPU does and would wait for them.
        augmentation: Moves a training batch on the device; null leaves it as it is.
        on_bad_image: ``error`` stops at an image that cannot be read; ``skip`` counts and names it at the epoch's end.
        allow_leakage: Train even where files of the training split are in validation or test as well.
        synthetic: Draw the quickstart data set into ``root`` if it is not there yet.
        seed: Of the held-out choice and of the synthetic data set.

    Raises:
        ValueError: A number is out of its range; the message names the argument.
    """

    def __init__(
        self,
        root: Path = Path(),
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        images: Path | None = None,
        val_fraction: float = 0.15,
        group_by: str | None = None,
        image_size: tuple[int, int] | None = None,
        crop_size: tuple[int, int] | None = None,
        stretch: bool | None = None,
        multi_scale: tuple[float, float] | None = None,
        repeat_threshold: float | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        augmentation: Augmentation | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        allow_leakage: bool = False,
        synthetic: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.splits: dict[str, str | None] = {"train": train, "val": val, "test": test}
        self.predict_source = predict
        self.images = images
        self.val_fraction = val_fraction
        self.group_by = group_by
        self.image_size = image_size or (320, 320)
        self.crop_size = crop_size
        self.stretch = bool(stretch)
        self.multi_scale = multi_scale
        self.repeat_threshold = repeat_threshold
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augmentation = augmentation
        self.on_bad_image = on_bad_image
        self.allow_leakage = allow_leakage
        self.synthetic = synthetic
        self.seed = seed
        self._seed_of_run = seed
        self._indices: dict[str, AnnotationIndex] = {}
        self._datasets: dict[str, DetectionDataset] = {}
        self._digests: dict[str, list[bytes]] = {}
        self._hashes: dict[str, dict[str, str]] = {}
        self._require_ranges()

    def _require_ranges(self) -> None:
        """Refuse numbers that would end in a traceback of a library, or in figures of nothing, at the first batch."""
        for name, value, least in (("batch_size", self.batch_size, 1), ("num_workers", self.num_workers, 0)):
            if value is not None and value < least:
                raise ValueError(f"data.{name} is {value}; give {least} or more.")
        for name, size in (("image_size", self.image_size), ("crop_size", self.crop_size)):
            if size is not None and min(size) < 1:
                raise ValueError(f"data.{name} is {list(size)}; give sides of 1 pixel or more.")
        for name, share in (("val_fraction", self.val_fraction), ("repeat_threshold", self.repeat_threshold)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"data.{name} is {share}; give a share, 0 to 1.")
        if self.multi_scale is not None and not 0 < self.multi_scale[0] <= self.multi_scale[1] < math.inf:
            raise ValueError(
                f"data.multi_scale is {list(self.multi_scale)}; give two factors above 0, the lower one first."
            )

    @property
    def class_names(self) -> list[str]:
        """Names by label, from the first split that is given; none where only `predict` is."""
        first = self._first
        return [] if first is None else self.index(first).class_names

    @property
    def _first(self) -> str | None:
        """Split that decides what labels mean; None where there is none."""
        return next((name for name in ("train", "test", "val") if self.splits[name] is not None), None)

    def prepare_data(self) -> None:
        """Draw the synthetic data set where it is asked for."""
        if self.synthetic:
            write_dataset(self.root, seed=self.seed)

    def setup(self, stage: str) -> None:
        """Before a training, refuse leakage and show the augmentation the data."""
        if stage != "fit":
            return
        if not self.allow_leakage:
            for name in ("val", "test"):
                given = name == "val" or self.splits[name] is not None
                # To name one split as both is asked for: whether a network can learn a few images by heart.
                if given and self.splits[name] != self.splits["train"]:
                    self._require_apart(name)
        self._seed_of_run = int(os.environ.get("PL_GLOBAL_SEED", self.seed))  # Lightning's, the same on all processes
        if self.augmentation is not None:
            self.augmentation.prepare(self.dataset("train").objects())

    def index(self, name: str) -> AnnotationIndex:
        """Index of a split, read once.

        Args:
            name: ``train``, ``val``, ``test`` or ``predict``.

        Raises:
            DataError: The split is not given, cannot be read, or has other classes than the first that is given.
        """
        if name not in self._indices:
            index = self._read(name)
            self._require_classes(name, index)
            self._indices[name] = index
        return self._indices[name]

    def _require_classes(self, name: str, index: AnnotationIndex) -> None:
        """Refuse a split whose labels mean other classes than the first one's: every figure would be false."""
        if self._first is None or name in (self._first, "predict"):
            return
        first = self.index(self._first)
        if index.class_names != first.class_names:
            raise DataError(
                f"{index.source}: the classes of {name} are {', '.join(index.class_names)}; those of {self._first} are "
                f"{', '.join(first.class_names)}. Give all splits the same list in the same order, used or not."
            )

    def narrow(self, name: str, places: Sequence[int]) -> None:
        """Keep some images of a split, by their places in its index."""
        self._indices[name] = self.index(name).subset(np.asarray(places, dtype=np.int64))
        self._datasets.pop(name, None)

    def _read(self, name: str) -> AnnotationIndex:
        if name == "predict":
            if self.predict_source is None:
                raise DataError("`data.predict` is not given. Name a folder of images, a glob or a COCO file.")
            return read_images(self.predict_source)
        self.prepare_data()
        split = self.splits[name]
        if split is None and name == "val" and self.splits["train"] is not None:
            return self._held_out()[1]
        if split is None:
            raise DataError(f"`data.{name}` is not given. Name a COCO file below {self.root} or a split of it.")
        if name == "train" and self.splits["val"] is None:
            return self._held_out()[0]
        return read_split(self.root, split, self.images)

    def _held_out(self) -> tuple[AnnotationIndex, AnnotationIndex]:
        split = self.splits["train"]
        assert split is not None
        whole = read_split(self.root, split, self.images)
        kept, held = hold_out(whole, self.val_fraction, self.group_by, self.seed)
        self._indices.update(train=whole.subset(kept), val=whole.subset(held))
        note = f"{len(held)} of {len(whole)} training images are held out for validation"
        if self.group_by is not None:
            groups = sorted(set(self._indices["val"].column(self.group_by)))
            note += f", {self.group_by} {in_a_row(groups)}"
        rank_zero_info(f"{note}.")
        return self._indices["train"], self._indices["val"]

    def hashes(self, name: str) -> dict[str, str]:
        """SHA-256 of a split, found once: ``hash`` of all of it, and ``annotations_hash`` and ``images_hash`` apart."""
        if name not in self._hashes:
            self._hashes[name] = self.index(name).hashes(self._image_digests(name))
        return self._hashes[name]

    def _image_digests(self, name: str) -> list[bytes]:
        """Of a split's images, read once."""
        if name not in self._digests:
            self._digests[name] = self.index(name).image_digests()
        return self._digests[name]

    def _require_apart(self, name: str) -> None:
        """Refuse a split that has files of the same content as the training split.

        Raises:
            DataError: It does; the message names the first.
        """
        train, other = self.index("train"), self.index(name)
        known = dict(zip(self._image_digests("train"), range(len(train)), strict=True))
        known.pop(UNREADABLE, None)
        shared = [(i, known[digest]) for i, digest in enumerate(self._image_digests(name)) if digest in known]
        if shared:
            theirs, ours = shared[0]
            raise DataError(
                f"{len(shared)} of the {len(other)} images of {name} are in the training split as well, such as "
                f"{other.path(theirs)}, which is {train.path(ours)} there: its figures would be too good. See "
                "`detframe duplicates`, deal the images out anew with `detframe split`, or train all the same with "
                "--data.allow_leakage true."
            )

    def dataset(self, name: str) -> DetectionDataset:
        """Data set of a split, made once; degenerate boxes are counted in the log."""
        if name not in self._datasets:
            index = self.index(name)
            crop_size = self.crop_size if name == "train" else None
            dataset = DetectionDataset(index, self.image_size, self.stretch, crop_size, on_bad_image=self.on_bad_image)
            if dataset.degenerate:
                rank_zero_warn(
                    f"{index.source} ({name}): {dataset.degenerate} degenerate boxes are left out. "
                    "`detframe check` names them."
                )
            self._datasets[name] = dataset
        return self._datasets[name]

    def _loader(self, name: str) -> DataLoader[Any]:
        training = name == "train"
        dataset = self.dataset(name)
        accelerated = self.trainer is not None and self.trainer.strategy.root_device.type != "cpu"
        workers = self.num_workers
        if workers is None:
            workers = min(_usable_cores(), _MOST_WORKERS) if accelerated else 0
        sampler: Sampler[int] | None = None
        drop_last = False
        if training:
            factors = np.ones(len(dataset))
            if self.repeat_threshold is not None:
                factors = repeat_factors(dataset.index, self.repeat_threshold)
            world, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
            images = RepeatFactorSampler(factors, world, rank, self._seed_of_run)
            # A last batch of one image would spoil the batch norms; where a process has fewer images than a batch has,
            # that one is all.
            sampler, drop_last = images, len(images) > self.batch_size
        elif self.trainer is not None and self.trainer.world_size > 1:
            # Lightning's own choice repeats images until every rank has as many, which a metric would count twice.
            sampler = UnrepeatedDistributedSampler(
                dataset, num_replicas=self.trainer.world_size, rank=self.trainer.global_rank, shuffle=False
            )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=accelerated,
            collate_fn=collate,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the images to predict, in order."""
        return self._loader("predict")

    def on_after_batch_transfer(self, batch: Batch | None, dataloader_idx: int) -> Batch | None:
        """Make images float 0..1, and augment them while training; on the device."""
        if batch is None:
            return None
        batch = batch._replace(images=batch.images.float() / 255)
        if self.trainer is None or not self.trainer.training:
            return batch
        if self.augmentation is not None:
            batch = self.augmentation(batch, self._progress(), self._batch_seed())
        if self.multi_scale is not None:
            draw = np.random.default_rng(self._step()).random()  # the same on all processes, which wait for each other
            height, width = batch.images.shape[2:]
            batch = resize_batch(batch, *scaled_size(height, width, self.multi_scale, draw))
        return batch

    def _progress(self) -> float:
        """Share of the training that is done, 0..1, by whole epochs; 0 where it has no end."""
        assert self.trainer is not None
        if self.trainer.max_epochs is not None and self.trainer.max_epochs > 0:
            return self.trainer.current_epoch / self.trainer.max_epochs
        return self.trainer.global_step / self.trainer.max_steps if self.trainer.max_steps > 0 else 0.0

    def _step(self) -> tuple[int, int]:
        """What tells a batch from all others: the same after a resumption and with any number of workers."""
        assert self.trainer is not None
        return self._seed_of_run, self.trainer.fit_loop.total_batch_idx + 1

    def _batch_seed(self) -> int:
        """A seed for this batch of this process."""
        assert self.trainer is not None
        position = (*self._step(), self.trainer.global_rank)
        return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)

    def report_skipped(self) -> list[str]:
        """Name the images that this process could not read since the last call, in the log and as a list."""
        notes = [note for dataset in self._datasets.values() for note in dataset.skipped()]
        if notes:
            rank = self.trainer.global_rank if self.trainer is not None and self.trainer.world_size > 1 else None
            _log.warning(rank_prefixed_message(f"{len(notes)} images were skipped:\n" + "\n".join(notes), rank))
        return notes


def scaled_size(height: int, width: int, scales: tuple[float, float], draw: float) -> tuple[int, int]:
    """A size about ``height`` x ``width``, both sides by the same factor, in whole multiples of 32.

    Args:
        height: In pixels.
        width: In pixels.
        scales: Range of the factor.
        draw: Where in the range it is, 0..1.
    """
    factor = scales[0] + (scales[1] - scales[0]) * draw
    rows, columns = (max(1, round(side * factor / 32)) * 32 for side in (height, width))
    return rows, columns


def _usable_cores() -> int:
    """Cores that this process may run on, which in a container or a batch job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

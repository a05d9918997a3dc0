"""The table of saved predictions: written once by a run, read by everything that follows, and never the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.prediction_parts import ImageState, PredictionParts, image_states
from detframe.analysis.prediction_table import MATCH_IOU, SCHEMA, image_by_image, schema_table
from detframe.boxes import box_area
from detframe.data.annotations import AnnotationIndex, file_digest
from detframe.data.images import read_image
from detframe.drawing import draw_boxes
from detframe.matching import Matches, match
from detframe.structures import Batch, Detections, Targets
from detframe.unfinished import unfinished


class PredictionWriter(Callback):
    """Writes what ``predict`` finds, in the pixels of the original images.

    As it goes on, each process writes what it has to ``out/parts``. Called again, after it was stopped or when images
    were added, it looks at the others alone; an image that has changed since is looked at anew. Processes and nodes
    share the images out; they need one file system.

    Args:
        out: Folder for ``predictions.json`` (COCO results, image and category ids as in the annotation file, or the
            image's place and label + 1 where there is none) and ``predictions.parquet`` (with file and class names).
        draw: Also draw the detections on the images, into ``out/images``; an image that is not drawn yet is looked at
            again.
        min_score: Detections below it are neither written nor drawn, 0..1.
        part_images: After so many images a process writes a part.
        merge: Make both files of the parts in the end. It takes memory for all detections; the parts, which are tables
            like ``predictions.parquet``, are there in any case.
    """

    def __init__(
        self,
        out: Path = Path("predictions"),
        draw: bool = False,
        min_score: float = 0.05,
        part_images: int = 10_000,
        merge: bool = True,
    ) -> None:
        self.out = Path(out)
        self.draw = draw
        self.min_score = min_score
        self.part_images = part_images
        self.merge = merge
        self._rows: list[pa.Table] = []
        self._images: list[ImageState] = []
        self._states: dict[int, ImageState] = {}  # by image id
        self._parts: PredictionParts | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out the images that are done.

        Raises:
            DataError: The folder holds what another checkpoint has found.
        """
        if stage != "predict":
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._whole = index = datamodule.index("predict")
        states = image_states(index)
        self._states = dict(zip(index.image_ids.tolist(), states, strict=True))
        origin = {
            "checkpoint": file_digest(Path(trainer.ckpt_path)).hex() if trainer.ckpt_path else "",
            "data.image_size": list(datamodule.image_size),
            "data.stretch": datamodule.stretch,
            "predictions.min_score": self.min_score,
        }
        self._parts = PredictionParts(self.out / "parts", origin)
        self.out.mkdir(parents=True, exist_ok=True)
        done = self._parts.covered()
        if any(getattr(callback, "needs_every_image", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                self._parts.clear()
            done = set()
        trainer.strategy.barrier()  # before the first adds to them
        left = [
            place
            for place, state in enumerate(states)
            if state not in done or (self.draw and not self._picture(state.file_name).is_file())
        ]
        if len(left) == len(states):
            return
        rank_zero_info(f"{len(states) - len(left)} of {len(states)} images are in {self._parts.folder} already.")
        if not left:
            self._finish(trainer)
        elif len(left) < trainer.world_size:  # each process needs one
            left += [place for place in range(len(states)) if place not in left][: trainer.world_size - len(left)]
        datamodule.narrow("predict", sorted(left))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Detections | None,
        batch: Batch | None,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's detections, and draw them where asked."""
        if outputs is None or batch is None:
            return
        index = trainer.datamodule.index("predict")  # type: ignore[attr-defined]
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        found = outputs._replace(valid=outputs.valid & (outputs.scores >= self.min_score))
        self._rows.append(detection_rows(found, batch, None, index, names))
        if self.draw:
            self._draw(found, batch, index, names)
        self._images += [self._states[number] for number in batch.image_ids.tolist()]
        if len(self._images) >= self.part_images:
            self._flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what is done."""
        self._flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files, of all processes."""
        self._flush()
        trainer.strategy.barrier()
        self._finish(trainer)

    def _flush(self) -> None:
        if self._images and self._parts is not None:
            self._parts.add(pa.concat_tables(self._rows), self._images)
        self._rows, self._images = [], []

    def _finish(self, trainer: Trainer) -> None:
        if self.merge and trainer.is_global_zero:
            assert self._parts is not None
            table = self._parts.merged(self._whole, self._states.values())
            with unfinished(self.out / "predictions.json") as path:
                path.write_text(json.dumps(coco_results(table)))
            with unfinished(self.out / "predictions.parquet") as path:
                pq.write_table(table, path)

    def _draw(self, found: Detections, batch: Batch, index: AnnotationIndex, names: list[str]) -> None:
        places = positions(index, batch.image_ids)
        for i, place in enumerate(places.tolist()):
            rows = found.valid[i]
            boxes, scores, labels = (t[i][rows].cpu() for t in (found.boxes, found.scores, found.labels))
            picture = draw_boxes(read_image(index.path(place)), boxes, labels, scores, names)
            path = self._picture(index.file_names[place])
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=92)

    def _picture(self, file_name: str) -> Path:
        """Where an image is drawn: below ``out/images``, as its own name may be absolute, and would be written over."""
        name = Path(file_name)
        own = name if name.suffix.lower() in (".jpg", ".jpeg") else name.with_name(f"{name.name}.jpg")
        return self.out.joinpath("images", *(part for part in own.parts if part not in (own.anchor, "..")))


class EvaluationWriter(Callback):
    """Writes ``<stage>_predictions.parquet`` into the run's folder: what was found, what was there, and the match.

    It does so at the end of the epoch, so that any callback can read the table at the end of the stage.
    """

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own type does not know what a step returns
        batch: Batch | None,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's detections and objects."""
        self._add(trainer, pl_module, outputs, batch, "test")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Batch | None,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's detections and objects, where it is not training that validates."""
        if trainer.state.fn == "validate":
            self._add(trainer, pl_module, outputs, batch, "val")

    def _add(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Detections | None, batch: Batch | None, stage: str
    ) -> None:
        if outputs is None or batch is None:
            return
        index = trainer.datamodule.index(stage)  # type: ignore[attr-defined]
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        truth = batch.targets._replace(boxes=batch.original_boxes)
        matches = Matches(*(tensor.squeeze(-1) for tensor in match(outputs, truth, [MATCH_IOU])))
        self._parts += [
            detection_rows(outputs, batch, matches, index, names),
            truth_rows(truth, batch, matches, index, names),
        ]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of the test split."""
        self._write(trainer, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of ``detframe validate``."""
        if trainer.state.fn == "validate":
            self._write(trainer, "val")

    def _write(self, trainer: Trainer, stage: str) -> None:
        table = gather(self._parts)
        self._parts = []
        log_dir = trainer.log_dir  # asks all processes
        if trainer.is_global_zero and log_dir:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, Path(log_dir) / f"{stage}_predictions.parquet")


def detection_rows(
    detections: Detections, batch: Batch, matches: Matches | None, index: AnnotationIndex, class_names: Sequence[str]
) -> pa.Table:
    """Rows of a batch's detections.

    Args:
        detections: In original pixels.
        batch: What they were found in.
        matches: With the batch's objects at one IoU, ``[B, K]`` and ``[B, N]``; None where there are no annotations.
        index: The images.
        class_names: The detector's, by label.
    """
    image, slot = detections.valid.nonzero(as_tuple=True)
    boxes = detections.boxes[image, slot]
    columns: dict[str, Any] = _common_columns(
        "detection", boxes, detections.labels[image, slot], image, batch, index, class_names
    )
    columns |= {
        "area": _numpy(box_area(boxes)),
        "score": _numpy(detections.scores[image, slot]),
        "slot": _numpy(slot),
    }
    if matches is not None:
        row = matches.target[image, slot]
        matched = row >= 0
        found = torch.where(matched, batch.annotation_ids.gather(1, matches.target.clamp(min=0))[image, slot], 0)
        unmatched = _numpy(~matched)
        columns |= {
            "annotation_id": pa.array(_numpy(found), mask=unmatched),
            "iou": pa.array(_numpy(matches.iou[image, slot]), mask=unmatched),
            "outcome": np.select(
                [unmatched, _numpy(matches.ignored[image, slot])], ["false_positive", "ignored"], "true_positive"
            ),
        }
    return schema_table(columns, len(boxes))


def truth_rows(
    truth: Targets, batch: Batch, matches: Matches, index: AnnotationIndex, class_names: Sequence[str]
) -> pa.Table:
    """Rows of a batch's ground-truth boxes; arguments as for :func:`detection_rows`, boxes in original pixels."""
    image, row = truth.valid.nonzero(as_tuple=True)
    slot = matches.detection[image, row]
    unmatched = _numpy(slot < 0)
    iou = matches.iou.gather(1, matches.detection.clamp(min=0))[image, row]
    ignore = _numpy(truth.ignore[image, row])
    columns: dict[str, Any] = _common_columns(
        "truth", truth.boxes[image, row], truth.labels[image, row], image, batch, index, class_names
    )
    columns |= {
        "area": _numpy(batch.areas[image, row]),
        "ignore": ignore,
        "slot": pa.array(_numpy(slot), mask=unmatched),
        "annotation_id": _numpy(batch.annotation_ids[image, row]),
        "iou": pa.array(_numpy(iou), mask=unmatched),
        "outcome": np.select([ignore, unmatched], ["ignored", "missed"], "found"),
    }
    return schema_table(columns, len(ignore))


def _common_columns(
    kind: str,
    boxes: Tensor,
    labels: Tensor,
    image: Tensor,
    batch: Batch,
    index: AnnotationIndex,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Columns that both kinds of rows have."""
    place = positions(index, batch.image_ids)[_numpy(image)]
    ids = {category.name: category.id for category in index.categories}
    known = all(name in ids for name in class_names)
    category_ids = np.array([ids[name] if known else i + 1 for i, name in enumerate(class_names)], dtype=np.int64)
    label = _numpy(labels)
    sizes = _numpy(batch.original_sizes[image])
    corners = _numpy(boxes)
    return {
        "kind": np.full(len(label), kind),
        "image_id": _numpy(batch.image_ids[image]),
        "file_name": np.array(index.file_names, dtype=object)[place],
        "image_height": sizes[:, 0],
        "image_width": sizes[:, 1],
        "label": label,
        "category_id": category_ids[label],
        "class_name": np.array(class_names, dtype=object)[label],
        **{name: corners[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))},
    }


def positions(index: AnnotationIndex, image_ids: Tensor) -> NDArray[np.int64]:
    """Positions in the index of images with these ids ``[B]``."""
    ids = _numpy(image_ids)
    order = np.argsort(index.image_ids, kind="stable")
    return np.asarray(order[np.searchsorted(index.image_ids, ids, sorter=order)], dtype=np.int64)


def gather(parts: Sequence[pa.Table], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Tables of all processes as one, in the order of image ids; those of an image keep their order."""
    table = pa.concat_tables([schema.empty_table(), *parts])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        tables: list[pa.Table] = [table] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(tables, table)
        table = pa.concat_tables(tables)
    return image_by_image(table)


def coco_results(table: pa.Table) -> list[dict[str, Any]]:
    """The detections of a table in COCO's format of results."""
    rows = table.filter(pa.array(table["kind"].to_numpy() == "detection"))
    names = ("image_id", "category_id", "x1", "y1", "x2", "y2", "score")
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image_id, category_id, x1, y1, x2, y2, score in zip(
            *(rows[name].to_pylist() for name in names), strict=True
        )
    ]


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array

"""What boxes and whole images look like to the backbone, saved beside the predictions.

The vectors of boxes trace a mistake back to the training; those of images tell which are alike (`detframe mine`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.ops import roi_align

from detframe.analysis.prediction_table import MATCH_IOU, SCHEMA
from detframe.analysis.predictions import PredictionWriter, detection_rows, gather, positions, truth_rows
from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.dataset import DetectionDataset, collate
from detframe.letterbox import to_input
from detframe.matching import Matches, match
from detframe.structures import Batch, Detections

EMBEDDED = SCHEMA.append(pa.field("embedding", pa.list_(pa.float16())))
"""The predictions table with a unit vector for every row."""

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("path", pa.string()),  # of the file, absolute
        ("image_height", pa.int32()),  # pixels, as decoded
        ("image_width", pa.int32()),
        ("metadata", pa.string()),  # further columns of the image (board, camera), as JSON
        ("thumbnail", pa.list_(pa.uint8())),  # grey, of the network's input, row by row
        EMBEDDED.field("embedding"),
    ]
)
"""The table of whole images, each with a unit vector, those without any detection included."""

CELLS, IMAGE_CELLS = 3, 4
"""A box, and an image, is pooled to so many cells each way: where something lies can then be told from the vector."""

THUMBNAIL = 32  # pixels of a side

CHECKPOINT = b"checkpoint_hash"
"""Key of the schema's metadata in a file of whole images: vectors of two networks cannot be compared."""


class _Body(Protocol):
    """What a detector is needed for here."""

    mean: Tensor
    std: Tensor

    def backbone(self, images: Tensor) -> list[Tensor]: ...


class EmbeddingWriter(Callback):
    """Writes what boxes look like to the backbone, for `detframe diagnose` to say why mistakes happen and for `mine`.

    `test` and `validate` then also look at the training images, whose objects the mistakes are compared with, and write
    ``<stage>_embeddings.parquet`` and ``train_embeddings.parquet`` into the run's folder; `predict` writes
    ``embeddings.parquet`` beside its predictions. Beside each stand the whole images, ``...image_embeddings.parquet``.

    Args:
        write: Write embeddings. It costs a pass over the training images, and a second run of the backbone over those
            evaluated.
        min_score: Detections below it get no vector, 0..1.
    """

    def __init__(self, write: bool = False, min_score: float = 0.05) -> None:
        self.write = write
        self.min_score = min_score
        self._parts: list[pa.Table] = []
        self._images: list[pa.Table] = []

    @property
    def needs_every_image(self) -> bool:
        """Whether `predict` has to look at images again that it has predictions of."""
        return self.write

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own type does not know what a step returns
        batch: Batch | None,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Embed the batch's detections and objects."""
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
        """Embed the batch's detections and objects, where it is not training that validates."""
        if trainer.state.fn == "validate":
            self._add(trainer, pl_module, outputs, batch, "val")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Batch | None,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Embed the batch's detections."""
        self._add(trainer, pl_module, outputs, batch, "predict")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the vectors of the test split, then those of training."""
        self._finish(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the vectors of the validation split, then those of training."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module, "val")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the vectors beside the predictions."""
        out = next((writer.out for writer in trainer.callbacks if isinstance(writer, PredictionWriter)), None)  # type: ignore[attr-defined]
        if self.write and out is not None:
            self._save(trainer, out, "")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # asks all processes
        if not self.write or not log_dir:
            return
        self._save(trainer, Path(log_dir), f"{stage}_")
        if trainer.datamodule.splits["train"] is None:  # type: ignore[attr-defined]
            return
        for batch in _training_batches(trainer):
            with trainer.precision_plugin.forward_context():
                found = pl_module.predict_step(batch, 0)
            self._add(trainer, pl_module, found, batch, "train")
        self._save(trainer, Path(log_dir), "train_")

    def _save(self, trainer: Trainer, folder: Path, prefix: str) -> None:
        boxes, images = gather(self._parts, EMBEDDED), gather(self._images, IMAGES)
        self._parts, self._images = [], []
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(Path(trainer.ckpt_path).read_bytes()).hexdigest() if trainer.ckpt_path else ""
            pq.write_table(boxes, folder / f"{prefix}embeddings.parquet")
            pq.write_table(
                images.replace_schema_metadata({CHECKPOINT: digest}), folder / f"{prefix}image_embeddings.parquet"
            )

    def _add(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Detections | None, batch: Batch | None, stage: str
    ) -> None:
        if not self.write or outputs is None or batch is None:
            return
        index = trainer.datamodule.index(stage)  # type: ignore[attr-defined]
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        detector: _Body = pl_module.detector  # type: ignore[assignment]
        with trainer.precision_plugin.forward_context():
            finest = detector.backbone((batch.images - detector.mean) / detector.std)[0].float()
        found = outputs._replace(valid=outputs.valid & (outputs.scores >= self.min_score))
        stride = batch.images.shape[3] / finest.shape[3]
        self._images.append(image_rows(batch, embed_images(finest), index))
        vectors = embed(finest, to_input(found.boxes, batch.transforms), found.valid, stride)
        if stage == "predict":
            self._parts.append(_with_vectors(detection_rows(found, batch, None, index, names), vectors))
            return
        truth = batch.targets._replace(boxes=batch.original_boxes)
        matches = Matches(*(tensor.squeeze(-1) for tensor in match(outputs, truth, [MATCH_IOU])))
        self._parts += [
            _with_vectors(detection_rows(found, batch, matches, index, names), vectors),
            _with_vectors(
                truth_rows(truth, batch, matches, index, names),
                embed(finest, batch.targets.boxes, truth.valid, stride),
            ),
        ]


def embed(features: Tensor, boxes: Tensor, valid: Tensor, stride: float) -> Tensor:
    """Unit vectors ``[n, channels * CELLS ** 2]`` of the valid boxes, in order of image and row.

    The finest map alone, without context, separated the classes of both real data sets best and told a box from the
    same one displaced (docs/diagnosis.md); coarser maps see more of the surroundings than of the object.

    Args:
        features: ``[B, channels, H, W]``.
        boxes: ``[B, N, 4]`` xyxy in pixels of the network's input.
        valid: ``[B, N]`` bool, boxes to embed.
        stride: Input pixels for a cell of the map.
    """
    image, row = valid.nonzero(as_tuple=True)
    places = torch.cat((image[:, None].to(boxes.dtype), boxes[image, row]), dim=1)
    pooled = roi_align(features, places, CELLS, 1 / stride, sampling_ratio=2, aligned=True)
    return torch.nn.functional.normalize(pooled.flatten(1), dim=1)


def embed_images(features: Tensor) -> Tensor:
    """Unit vectors ``[B, channels * IMAGE_CELLS ** 2]`` of whole images from maps ``[B, channels, H, W]``."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(features, IMAGE_CELLS)
    return torch.nn.functional.normalize(pooled.flatten(1), dim=1)


def image_rows(batch: Batch, vectors: Tensor, index: AnnotationIndex) -> pa.Table:
    """Rows of :data:`IMAGES` for a batch with its vectors ``[B, D]``."""
    places = positions(index, batch.image_ids).tolist()
    sizes = batch.original_sizes.cpu().numpy()
    grey = torch.nn.functional.adaptive_avg_pool2d(batch.images.mean(dim=1), THUMBNAIL)
    columns = {
        "image_id": batch.image_ids.cpu().numpy(),
        "file_name": [index.file_names[place] for place in places],
        "path": [str(index.path(place).resolve()) for place in places],
        "image_height": sizes[:, 0],
        "image_width": sizes[:, 1],
        "metadata": [json.dumps(index.metadata[place] if index.metadata else {}) for place in places],
        "thumbnail": list((grey * 255).round().to(torch.uint8).flatten(1).cpu().numpy()),
    }
    table = pa.table({name: pa.array(values).cast(IMAGES.field(name).type) for name, values in columns.items()})
    return _with_vectors(table, vectors)


class ImageEmbeddings(NamedTuple):
    """A file of ``I`` whole images."""

    table: pa.Table  # of IMAGES, without vectors and thumbnails
    vectors: NDArray[np.float32]  # [I, D], of length 1
    thumbnails: NDArray[np.uint8]  # [I, THUMBNAIL ** 2]
    checkpoint_hash: str  # SHA-256 of the file, "" where there was none


def read_image_embeddings(path: Path) -> ImageEmbeddings:
    """Read a file of whole images.

    Raises:
        DataError: It is no such file.
    """
    table, vectors = read_embeddings(path)
    if missing := [name for name in IMAGES.names if name not in (*table.column_names, "embedding")]:
        raise DataError(f"{path}: has no column {missing[0]!r}. Write it anew with `--embeddings.write true`.")
    flat = table["thumbnail"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)  # float16 rounds them
    return ImageEmbeddings(
        table.drop_columns("thumbnail"),
        vectors,
        flat.reshape(table.num_rows, -1 if len(flat) else 0),
        (table.schema.metadata or {}).get(CHECKPOINT, b"").decode(),
    )


def read_embeddings(path: Path) -> tuple[pa.Table, NDArray[np.float32]]:
    """A file of :class:`EmbeddingWriter`: its table without the vectors, and those, ``[rows, D]``.

    Raises:
        DataError: It is no such file.
    """
    try:
        table = pq.read_table(path)
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: holds no embeddings ({str(error).splitlines()[0]}). Write it anew with `detframe test "
            "--embeddings.write true`."
        ) from error
    vectors = flat.astype(np.float32).reshape(table.num_rows, -1 if len(flat) else 0)
    return table.drop_columns("embedding"), vectors


def _with_vectors(table: pa.Table, vectors: Tensor) -> pa.Table:
    flat = pa.array(vectors.cpu().numpy().astype(np.float16).ravel())
    ends = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
    return table.append_column(EMBEDDED.field("embedding"), pa.ListArray.from_arrays(pa.array(ends), flat))


def _training_batches(trainer: Trainer) -> Any:  # noqa: ANN401 - an iterator of batches on the device
    """Whole training images as evaluation sees them, this process's share, on the device."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    whole = DetectionDataset(data.index("train"), data.image_size, data.stretch, on_bad_image=data.on_bad_image)
    share = Subset(whole, range(trainer.global_rank, len(whole), trainer.world_size))
    for batch in DataLoader(share, data.batch_size, collate_fn=collate):
        if batch is not None:
            yield trainer.strategy.batch_to_device(batch)

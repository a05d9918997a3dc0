"""Saved predictions: written once by ``predict``, read by everything that follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer

from detframe.data.images import read_image
from detframe.drawing import draw_boxes
from detframe.structures import Batch, Detections


class PredictionWriter(Callback):
    """Writes what ``predict`` finds, in the pixels of the original images.

    Args:
        out: Folder for ``predictions.json`` (COCO results, image and category ids as in the annotation file, or the
            image's place and label + 1 where there is none) and ``predictions.parquet`` (with file and class names).
        draw: Also draw the detections on the images, into ``out/images``.
        min_score: Detections below it are neither written nor drawn, 0..1.
    """

    def __init__(self, out: Path = Path("predictions"), draw: bool = False, min_score: float = 0.05) -> None:
        self.out = Path(out)
        self.draw = draw
        self.min_score = min_score
        self.rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty table."""
        self.rows = []
        self.out.mkdir(parents=True, exist_ok=True)

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
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        index = datamodule.index("predict")
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        place_of = {int(image_id): i for i, image_id in enumerate(index.image_ids)}
        category_ids = [c.id for c in index.categories] if index.class_names == names else None
        for i, image_id in enumerate(batch.image_ids.tolist()):
            place = place_of[image_id]
            keep = outputs.valid[i] & (outputs.scores[i] >= self.min_score)
            boxes, scores, labels = (t[i][keep].cpu() for t in (outputs.boxes, outputs.scores, outputs.labels))
            for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
                self.rows.append(
                    {
                        "image_id": image_id,
                        "file_name": index.file_names[place],
                        "category_id": category_ids[label] if category_ids else label + 1,
                        "class_name": names[label],
                        "score": score,
                        **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
                    }
                )
            if self.draw:
                picture = draw_boxes(read_image(index.path(place)), boxes, labels, scores, names)
                path = self.out / "images" / Path(index.file_names[place]).with_suffix(".jpg")
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path, quality=92)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files."""
        write_predictions(self.rows, self.out)


SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("category_id", pa.int64()),
        ("class_name", pa.string()),
        ("score", pa.float32()),
        *((corner, pa.float32()) for corner in ("x1", "y1", "x2", "y2")),
    ]
)


def write_predictions(rows: list[dict[str, Any]], out: Path) -> None:
    """Write rows of ``SCHEMA`` as ``predictions.json`` (COCO results) and ``predictions.parquet``."""
    results = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]],
            "score": row["score"],
        }
        for row in rows
    ]
    (out / "predictions.json").write_text(json.dumps(results))
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / "predictions.parquet")

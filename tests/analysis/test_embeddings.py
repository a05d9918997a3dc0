"""Vectors of boxes: what they are made of, and that a run writes one for every row."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from detframe.analysis.embeddings import (
    CELLS,
    EMBEDDED,
    IMAGE_CELLS,
    THUMBNAIL,
    EmbeddingWriter,
    embed,
    embed_images,
    read_embeddings,
    read_image_embeddings,
)
from detframe.analysis.predictions import EvaluationWriter, PredictionWriter
from detframe.data.annotations import DataError
from detframe.data.datamodule import DetectionDataModule
from detframe.data.scenes import CLASS_NAMES
from detframe.data.synthetic import write_dataset
from detframe.models.backbones import TimmBackbone
from detframe.training.task import DetectionTask

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_vector_is_the_mean_of_the_features_in_each_cell_of_the_box() -> None:
    features = torch.arange(2 * 12 * 12, dtype=torch.float32).view(1, 2, 12, 12)
    box = torch.tensor([[[8.0, 16.0, 32.0, 40.0], [0, 0, 1, 1]]])  # cells 2..8 by 4..10 at stride 4
    vectors = embed(features, box, torch.tensor([[True, False]]), 4)
    expected = torch.stack(
        [features[0, :, 4 + 2 * y : 6 + 2 * y, 2 + 2 * x : 4 + 2 * x].mean((1, 2)) for y in range(3) for x in range(3)]
    )
    expected = expected.T.flatten()
    assert vectors.shape == (1, 2 * CELLS**2)
    torch.testing.assert_close(vectors[0], expected / expected.norm())


def test_a_whole_image_is_the_mean_of_the_features_in_each_part_of_it() -> None:
    features = torch.arange(2 * 8 * 8, dtype=torch.float32).view(1, 2, 8, 8)
    expected = features.view(2, IMAGE_CELLS, 2, IMAGE_CELLS, 2).mean((2, 4)).flatten()
    torch.testing.assert_close(embed_images(features)[0], expected / expected.norm())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    write_dataset(folder / "data", train=5, val=2, test=4)
    data = DetectionDataModule(
        folder / "data", "train.json", "val.json", "test.json", image_size=(64, 80), batch_size=2, num_workers=0
    )
    task = DetectionTask(CLASS_NAMES, partial(TimmBackbone, name="resnet10t"), image_size=(64, 80))
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[EvaluationWriter(), EmbeddingWriter(write=True, min_score=0.0)],
    )
    trainer.test(task, data, verbose=False)
    return folder


def test_a_test_embeds_every_row_of_its_table_and_the_training_split(run: Path) -> None:
    table, vectors = read_embeddings(run / "test_embeddings.parquet")
    assert table.equals(pq.read_table(run / "test_predictions.parquet"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)  # float16
    training, others = read_embeddings(run / "train_embeddings.parquet")
    assert others.shape == (training.num_rows, vectors.shape[1])
    index = DetectionDataModule(run / "data", "train.json", "val.json").index("train")
    kinds = training["kind"].to_numpy()
    ids = training["annotation_id"].to_numpy()[kinds == "truth"]
    assert sorted(ids) == sorted(index.annotation_ids.tolist())
    assert pq.read_schema(run / "train_embeddings.parquet").equals(EMBEDDED)


def test_images_are_embedded_whole_with_or_without_detections(run: Path, tmp_path: Path) -> None:
    for split, count in (("test", 4), ("train", 5)):
        found = read_image_embeddings(run / f"{split}_image_embeddings.parquet")
        index = DetectionDataModule(run / "data", "train.json", "val.json", "test.json").index(split)
        assert found.table["path"].to_pylist() == [str(index.path(i).resolve()) for i in range(count)]
        assert found.vectors.shape[0] == found.thumbnails.shape[0] == count
        assert found.thumbnails.shape[1] == THUMBNAIL**2
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    data = DetectionDataModule(predict=str(run / "data"), image_size=(64, 80), batch_size=2, num_workers=0)
    task = DetectionTask(CLASS_NAMES, partial(TimmBackbone, name="resnet10t"), image_size=(64, 80))
    writers = [PredictionWriter(tmp_path, min_score=0.99), EmbeddingWriter(write=True, min_score=0.99)]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=writers)
    trainer.predict(task, data, return_predictions=False)
    assert pq.read_table(tmp_path / "embeddings.parquet").num_rows == 0
    pool = read_image_embeddings(tmp_path / "image_embeddings.parquet")
    assert len(pool.vectors) == 11
    image = np.asarray(Image.open(pool.table["path"][0].as_py()).convert("RGB"), dtype=np.float64)
    grey = pool.thumbnails[0].reshape(THUMBNAIL, THUMBNAIL)
    assert grey.mean() == pytest.approx(image.mean(), abs=12)  # a margin is grey


def test_a_file_without_vectors_is_refused(run: Path, tmp_path: Path) -> None:
    for path in (run / "test_predictions.parquet", tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="--embeddings"):
            read_embeddings(path)

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from detframe.metrics.mean_ap import MeanAveragePrecision, named_results

Images = list[dict[str, Tensor]]


def reference(preds: Images, target: Images) -> tuple[np.ndarray[Any, Any], dict[int, float]]:
    """COCOeval's twelve figures, and the AP of every class."""
    coco = COCO()
    labels = sorted({int(i) for image in (*preds, *target) for i in image["labels"]})
    annotations: list[dict[str, Any]] = []
    for i, truth in enumerate(target):
        for box, label, crowd, area in zip(
            truth["boxes"].tolist(),
            truth["labels"].tolist(),
            truth["iscrowd"].tolist(),
            truth["area"].tolist(),
            strict=True,
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": crowd,
                }
            )
    images = [{"id": i} for i in range(len(target))]
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in labels]}
    results = [
        {"image_id": i, "category_id": label, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, found in enumerate(preds)
        for (x1, y1, x2, y2), label, score in zip(
            found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        found = coco.loadRes(results) if results else COCO()
        if not results:
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = {
        label: float(values[values > -1].mean()) if (values > -1).any() else -1.0
        for label, values in zip(labels, precision.transpose(2, 0, 1), strict=True)
    }
    return evaluation.stats, by_class


def random_images(seed: int, images: int, classes: int, crowds: bool, most: int) -> tuple[Images, Images]:
    """Detections near objects, with tied scores, false positives, crowds, areas and images without either."""
    rng = np.random.default_rng(seed)
    preds, target = [], []
    for _ in range(images):
        count = int(rng.integers(0, 8))
        corners = rng.integers(0, 200, (count, 2))
        sides = rng.integers(4, 150, (count, 2))
        boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        labels = rng.integers(0, classes, count)
        found = int(rng.integers(0, most))
        if count and found:
            picked = rng.integers(0, count, found)
            near = boxes[picked] + rng.integers(-6, 7, (found, 4))
            near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
            near_labels = np.where(rng.random(found) < 0.8, labels[picked], rng.integers(0, classes + 1, found))
        else:
            near = np.array([[10, 10, 50, 60]] * found, dtype=np.float32).reshape(-1, 4)
            near_labels = rng.integers(0, classes + 1, found)
        scores = rng.integers(1, 20, found) / 20
        preds.append(
            {
                "boxes": torch.tensor(near, dtype=torch.float32),
                "scores": torch.tensor(scores, dtype=torch.float32),
                "labels": torch.tensor(near_labels, dtype=torch.int64),
            }
        )
        target.append(
            {
                "boxes": torch.tensor(boxes),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "iscrowd": torch.tensor(rng.random(count) < (0.2 if crowds else 0)).long(),
                "area": torch.tensor(sides.prod(1) * rng.uniform(0.5, 1, count), dtype=torch.float32),
            }
        )
    return preds, target


def stats(results: dict[str, Tensor]) -> list[float]:
    names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
    names += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
    return [float(results[name]) for name in names]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_equals_pycocotools(seed: int, images: int, classes: int, crowds: bool) -> None:
    preds, target = random_images(seed, images, classes, crowds, 30)
    expected, by_class = reference(preds, target)
    metric = MeanAveragePrecision(class_metrics=True)
    for start in range(0, images, 5):  # in several batches
        metric.update(preds[start : start + 5], target[start : start + 5])
    results = metric.compute()
    np.testing.assert_allclose(stats(results), expected, atol=1e-6)
    labels, values = (results[name].reshape(-1).tolist() for name in ("classes", "map_per_class"))
    assert dict(zip(labels, values, strict=True)) == pytest.approx(by_class, abs=1e-6)


def test_equals_pycocotools_above_100_detections_of_a_class() -> None:
    preds, target = random_images(3, 4, 1, True, 300)
    expected, _ = reference(preds, target)
    metric = MeanAveragePrecision()
    metric.update(preds, target)
    np.testing.assert_allclose(stats(metric.compute()), expected, atol=1e-6)


def test_no_image_gives_minus_one() -> None:
    metric = MeanAveragePrecision()
    metric.update([], [])
    assert stats(metric.compute()) == [-1.0] * 12


def test_names_and_counts() -> None:
    box = torch.tensor([[0.0, 0.0, 50.0, 50.0]])
    one = torch.tensor([1])
    metric = MeanAveragePrecision()
    metric.update([{"boxes": box, "scores": torch.tensor([0.9]), "labels": one}], [{"boxes": box, "labels": one}])
    flat, summary = named_results(metric.compute(), ["cat", "dog"])
    assert flat["map"] == 1.0
    assert flat["ap_50/dog"] == 1.0
    assert flat["ap/cat"] == -1.0
    assert summary["per_class"]["dog"] == {"ap": 1.0, "ap_50": 1.0, "ap_75": 1.0, "images": 1, "instances": 1}
    assert summary["per_class"]["cat"]["instances"] == 0


def test_bad_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="three limits"):
        MeanAveragePrecision(max_detection_thresholds=[1, 10])

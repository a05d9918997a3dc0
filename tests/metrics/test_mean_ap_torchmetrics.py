"""Against torchmetrics' own class: its keys, its shapes, and its figures where it reads the same recalls."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision as TorchmetricsMeanAveragePrecision

from detframe.metrics.mean_ap import MeanAveragePrecision

Images = list[dict[str, Tensor]]
OURS_ONLY = {f"{name}_per_class" for name in ("map_50", "map_75", "images", "instances")} | {"ap_per_class_and_iou"}
# torchmetrics' own defaults are these values in float32.
SAME = {
    "rec_thresholds": np.linspace(0, 1, 101).tolist(),
    "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
}

pytestmark = pytest.mark.filterwarnings("ignore:Encountered more than 100 detections")


def images_of(seed: int, images: int, classes: int) -> tuple[Images, Images]:
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> Tensor:
        corners = torch.randint(0, 60, (count, 2), generator=generator).float()
        return torch.cat((corners, corners + torch.randint(5, 120, (count, 2), generator=generator)), dim=1)

    preds, target = [], []
    for i in range(images):
        found, objects = 25 * (i != 1), 6 * (i != 2)
        truth = boxes(objects)
        labels = torch.randint(0, classes, (objects,), generator=generator)
        near = torch.cat((truth, truth + 3, boxes(found)))[:found]
        near_labels = torch.cat((labels, labels, torch.randint(0, classes, (found,), generator=generator)))[:found]
        preds.append({"boxes": near, "scores": torch.rand(len(near), generator=generator), "labels": near_labels})
        target.append({"boxes": truth, "labels": labels, "iscrowd": torch.arange(objects) % 5 == 4})
        target[-1]["iscrowd"] = target[-1]["iscrowd"].long()
    return preds, target


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_metrics": True},
        {"class_metrics": True, "iou_thresholds": [0.5], "max_detection_thresholds": [5, 2, 100]},
        {"iou_thresholds": [0.4, 0.6]},
        {"extended_summary": True},
        {"average": "micro"},
        {"rec_thresholds": [0.0, 0.5, 1.0]},
    ],
)
@pytest.mark.parametrize("classes", [1, 3])
def test_keys_shapes_and_figures_are_torchmetrics(options: dict[str, Any], classes: int) -> None:
    theirs = TorchmetricsMeanAveragePrecision(**{**SAME, **options})
    ours = MeanAveragePrecision(**{**SAME, **options})
    preds, target = images_of(len(options) + classes, 5, classes)
    for metric in (theirs, ours):
        metric.update(preds, target)
    expected, results = theirs.compute(), ours.compute()
    expected.pop("ious", None)
    assert results.keys() - expected.keys() == OURS_ONLY
    assert expected.keys() - results.keys() == set()
    for name, value in expected.items():
        assert results[name].shape == value.shape, name
        assert results[name].dtype == value.dtype, name
        np.testing.assert_allclose(results[name], value, atol=1e-6, rtol=0, err_msg=name)


def test_is_torchmetrics_metric() -> None:
    assert isinstance(MeanAveragePrecision(), TorchmetricsMeanAveragePrecision)


def test_last_limit_is_that_of_map() -> None:
    # torchmetrics asks pycocotools for 100 detections and gets -1 where that is none of the limits.
    preds, target = images_of(0, 4, 2)
    metric = MeanAveragePrecision(max_detection_thresholds=[1, 10, 1000])
    plain = MeanAveragePrecision()
    for one in (metric, plain):
        one.update(preds, target)
    assert metric.compute()["map"] == plain.compute()["map"] > 0

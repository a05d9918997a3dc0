import contextlib
import copy
import io
import pickle
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import coco as pycoco
from pycocotools import cocoeval as pycocoeval
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from detframe.metrics import mean_ap
from detframe.metrics.mean_ap import MeanAveragePrecision, named_results
from detframe.structures import Detections, Targets

# pycocotools has no types.
COCO: Any = pycoco.COCO
COCOeval: Any = pycocoeval.COCOeval

Images = list[dict[str, Tensor]]
TWELVE = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
TWELVE += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]


def reference(preds: Images, target: Images, iou_thresholds: list[float] | None = None) -> Any:  # noqa: ANN401 - a COCOeval
    """pycocotools on the same images, without its prints."""
    labels = sorted({int(i) for image in (*preds, *target) for i in image["labels"]})
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(target):
        for box, label, crowd, area in zip(
            *(image[k].tolist() for k in ("boxes", "labels", "iscrowd", "area")), strict=True
        ):
            annotation = {"bbox": _xywh(box), "area": area if area > 0 else _xywh(box)[2] * _xywh(box)[3]}
            annotation |= {"id": len(annotations) + 1, "image_id": i, "category_id": label, "iscrowd": crowd}
            annotations.append(annotation)
    results = [
        {"image_id": i, "category_id": label, "score": score, "bbox": _xywh(box)}
        for i, image in enumerate(preds)
        for box, label, score in zip(*(image[k].tolist() for k in ("boxes", "labels", "scores")), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": i} for i in range(len(target))]
        coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in labels]}
        coco.createIndex()
        found = COCO()
        if results:
            found = coco.loadRes(results)
        else:
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, "bbox")
        if iou_thresholds:
            evaluation.params.iouThrs = np.array(iou_thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def random_images(seed: int, images: int, classes: int, most: int) -> tuple[Images, Images]:
    """Images with crowds, tied scores and overlaps, boxes of all sizes and none, and without objects or detections."""
    rng = np.random.default_rng(seed)
    coarse = rng.random() < 0.5  # on whole pixels many overlaps tie and equal a threshold
    preds, target = [], []
    for _ in range(images):
        count = int(rng.integers(0, 8))
        boxes = rng.uniform(0, 200, (count, 4))
        boxes[:, 2:] = boxes[:, :2] + rng.choice([0, 1, 8, 30, 33, 96, 150, 2000], (count, 2)) * rng.uniform(0.9, 1.1)
        labels = rng.integers(0, classes, count)
        found = int(rng.integers(0, most)) * int(rng.random() < 0.9)
        picked = rng.integers(0, max(count, 1), found)
        known = boxes if count else np.array([[10.0, 10, 50, 60]])
        near = known[picked] + rng.normal(0, rng.choice([0, 1, 6]), (found, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        guess = rng.integers(0, classes + 1, found)
        near_labels = np.where(rng.random(found) < 0.8, labels[picked], guess) if count else guess
        own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if coarse:
            boxes, near = boxes.round(), near.round()
        preds.append(
            {
                "boxes": torch.tensor(near, dtype=torch.float32),
                "scores": torch.tensor(rng.integers(0, 20, found) / 20, dtype=torch.float32),
                "labels": torch.tensor(near_labels, dtype=torch.int64),
            }
        )
        target.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "iscrowd": torch.tensor(rng.random(count) < rng.choice([0, 0.2, 1])).long(),
                "area": torch.tensor(own * rng.choice([0, 0.7, 1], count), dtype=torch.float32),
            }
        )
    return preds, target


def batch_of(preds: Images, target: Images) -> tuple[Detections, Targets, Tensor]:
    """The same images as padded tensors, detections by descending score."""
    order = [image["scores"].argsort(descending=True, stable=True) for image in preds]
    found = {k: [image[k][i] for image, i in zip(preds, order, strict=True)] for k in ("boxes", "scores", "labels")}
    truth = {k: [image[k] for image in target] for k in ("boxes", "labels", "iscrowd", "area")}
    found["valid"] = [torch.ones_like(labels, dtype=torch.bool) for labels in found["labels"]]
    truth["valid"] = [torch.ones_like(labels, dtype=torch.bool) for labels in truth["labels"]]
    dets = {k: pad_sequence(v, batch_first=True) for k, v in found.items()}
    objects = {k: pad_sequence(v, batch_first=True) for k, v in truth.items()}
    own = (objects["boxes"][..., 2:] - objects["boxes"][..., :2]).double().prod(-1)
    areas = torch.where(objects["area"] > 0, objects["area"].double(), own)
    targets = Targets(objects["boxes"], objects["labels"], objects["iscrowd"].bool(), objects["valid"])
    return Detections(dets["boxes"], dets["scores"], dets["labels"], dets["valid"]), targets, areas


def twelve(results: dict[str, Tensor]) -> list[float]:
    return [float(results[name]) for name in TWELVE]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_equals_pycocotools(metric: MeanAveragePrecision, preds: Images, target: Images) -> None:
    results = metric.compute()
    evaluation = reference(preds, target, metric.iou_thresholds)
    np.testing.assert_allclose(twelve(results), evaluation.stats, atol=1e-6)
    classes = results["classes"].reshape(-1).tolist()
    assert classes == list(evaluation.params.catIds)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [T, R, C]
    recall = evaluation.eval["recall"][:, :, 0, -1]  # [T, C]
    expected = {
        "ap_per_class_and_iou": precision.mean(axis=1).T,
        "map_per_class": precision.mean(axis=(0, 1)),
        "mar_100_per_class": recall.mean(axis=0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(results[name].reshape(values.shape), values, atol=1e-6, err_msg=name)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 10), st.integers(1, 4), st.sampled_from([1, 5, 40]))
def test_equals_pycocotools(seed: int, images: int, classes: int, most: int) -> None:
    preds, target = random_images(seed, images, classes, most)
    metric = MeanAveragePrecision(class_metrics=True)
    metric.update(preds, target)
    assert_equals_pycocotools(metric, preds, target)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**9),
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.75, 0.95, 1.0]), min_size=1, max_size=5, unique=True),
)
def test_equals_pycocotools_at_any_iou(seed: int, thresholds: list[float]) -> None:
    preds, target = random_images(seed, 6, 2, 20)
    metric = MeanAveragePrecision(iou_thresholds=thresholds, class_metrics=True)
    metric.update(preds, target)
    assert_equals_pycocotools(metric, preds, target)


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_above_100_detections_of_a_class(seed: int) -> None:
    preds, target = random_images(seed, 8, 1, 300)
    assert max(len(image["scores"]) for image in preds) > 100
    metric = MeanAveragePrecision(class_metrics=True)
    metric.update(preds, target)
    assert_equals_pycocotools(metric, preds, target)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 9))
def test_any_way_in_gives_the_same(seed: int, size: int) -> None:
    preds, target = random_images(seed, 9, 3, 20)
    whole, parts, batches, backwards = (MeanAveragePrecision(class_metrics=True) for _ in range(4))
    whole.update(preds, target)
    starts = range(0, 9, size)
    for start in starts:
        part = slice(start, start + size)
        parts.update(preds[part], target[part])
        batches.update_batch(*batch_of(preds[part], target[part]))
    for start in reversed(starts):
        part = slice(start, start + size)
        ids = torch.arange(9)[part] * 7 - 20
        backwards.update_batch(*batch_of(preds[part], target[part]), image_ids=ids)
    for metric in (parts, batches, backwards):
        assert_same(whole.compute(), metric.compute())


@pytest.mark.parametrize("box_format", ["xyxy", "xywh", "cxcywh"])
def test_box_formats(box_format: Literal["xyxy", "xywh", "cxcywh"]) -> None:
    preds, target = random_images(5, 6, 2, 20)
    metric = MeanAveragePrecision(box_format, class_metrics=True)

    def converted(images: Images) -> Images:
        return [{**i, "boxes": box_convert(i["boxes"].round(), "xyxy", box_format)} for i in images]

    def whole(images: Images) -> Images:
        return [{**i, "boxes": i["boxes"].round()} for i in images]

    metric.update(converted(preds), converted(target))
    assert_equals_pycocotools(metric, whole(preds), whole(target))


def test_memory_bound_does_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    preds, target = random_images(1, 9, 3, 20)
    whole, parts = MeanAveragePrecision(), MeanAveragePrecision()
    whole.update(preds, target)
    monkeypatch.setattr(mean_ap, "PAIRS_AT_ONCE", 1)
    parts.update(preds, target)
    assert_same(whole.compute(), parts.compute())


def test_an_image_counts_once() -> None:
    preds, target = random_images(2, 6, 2, 20)
    once, twice = MeanAveragePrecision(), MeanAveragePrecision()
    ids = torch.arange(6)
    once.update_batch(*batch_of(preds, target), image_ids=ids)
    twice.update_batch(*batch_of(preds, target), image_ids=ids)
    twice.update_batch(*batch_of(preds[1:3], target[1:3]), image_ids=ids[1:3])
    assert_same(once.compute(), twice.compute())


def test_areas_default_to_the_boxes() -> None:
    preds, target = random_images(8, 6, 2, 20)
    detections, targets, _ = batch_of(preds, target)
    stated, unstated = MeanAveragePrecision(), MeanAveragePrecision()
    sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
    stated.update_batch(detections, targets, sides.prod(-1))
    unstated.update_batch(detections, targets)
    assert_same(stated.compute(), unstated.compute())


def test_no_image_gives_minus_one() -> None:
    metric = MeanAveragePrecision()
    assert twelve(metric.compute()) == [-1.0] * 12  # and no warning: a process may have had no image
    metric.update([], [])
    assert twelve(metric.compute()) == [-1.0] * 12
    flat, summary = named_results(metric.compute(), ["cat"])
    assert flat["ap/cat"] == -1.0
    assert summary["per_class"]["cat"]["images"] == 0


def test_empty_tensors_without_columns() -> None:
    empty = torch.zeros(0)
    metric = MeanAveragePrecision()
    metric.update(
        [{"boxes": empty, "scores": empty, "labels": empty.long()}], [{"boxes": empty, "labels": empty.long()}]
    )
    assert twelve(metric.compute()) == [-1.0] * 12


def test_names_and_counts() -> None:
    box = torch.tensor([[0.0, 0.0, 50.0, 50.0]])
    one, boxes = torch.tensor([1]), box.expand(3, 4)
    metric = MeanAveragePrecision()
    metric.update([{"boxes": box, "scores": torch.tensor([0.9]), "labels": one}], [{"boxes": box, "labels": one}])
    truth = {"boxes": boxes, "labels": torch.tensor([1, 1, 0]), "iscrowd": torch.tensor([0, 0, 1])}
    metric.update([{"boxes": box, "scores": torch.tensor([0.8]), "labels": one}], [truth])
    flat, summary = named_results(metric.compute(), ["cat", "dog", "owl"])
    # 2 of 3 are found: precision 1 up to recall 0.66, so 67 of 101 recalls.
    assert flat["map"] == pytest.approx(67 / 101)
    assert flat["map"] == summary["map"]
    assert flat["mar_100"] == pytest.approx(2 / 3)
    assert flat["ap_50/dog"] == pytest.approx(67 / 101)
    assert flat["ap/cat"] == -1.0
    dog = summary["per_class"]["dog"]
    assert (dog["images"], dog["instances"]) == (2, 3)
    assert dog["ap"] == dog["ap_75"] == flat["ap_75/dog"]
    nothing = {"ap": -1.0, "ap_50": -1.0, "ap_75": -1.0, "images": 0, "instances": 0}
    assert summary["per_class"]["cat"] == nothing  # only a crowd
    assert summary["per_class"]["owl"] == nothing
    assert list(summary["per_class"]) == ["cat", "dog", "owl"]
    names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100"]
    assert list(flat)[:7] == list(summary)[:7] == names


def test_named_results_of_other_limits_and_ious() -> None:
    preds, target = random_images(3, 4, 2, 20)
    metric = MeanAveragePrecision(iou_thresholds=[0.75], max_detection_thresholds=[2, 5, 300])
    metric.update(preds, target)
    results = metric.compute()
    flat, summary = named_results(results, ["a", "b", "c"])
    assert flat["mar_300"] == float(results["mar_300"])
    assert flat["map_50"] == flat["ap_50/a"] == -1.0
    assert flat["ap_75/a"] == summary["per_class"]["a"]["ap"] > 0


def test_a_label_without_a_name_is_refused() -> None:
    preds, target = random_images(3, 4, 3, 20)
    metric = MeanAveragePrecision()
    metric.update(preds, target)
    with pytest.raises(ValueError, match=r"Labels \[2, 3\] have no name"):
        named_results(metric.compute(), ["a", "b"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"max_detection_thresholds": [1, 10]}, "three limits"),
        ({"iou_thresholds": [50.0]}, "iou_thresholds"),
        ({"iou_thresholds": []}, "iou_thresholds"),
        ({"rec_thresholds": [-1.0]}, "rec_thresholds"),
        ({"iou_type": "segm"}, "only 'bbox'"),
        ({"box_format": "yxyx"}, "box_format"),
        ({"average": "weighted"}, "average"),
        ({"average": "micro", "class_metrics": True}, "class_metrics"),
    ],
)
def test_bad_arguments_are_refused(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanAveragePrecision(**argument)


def test_bad_images_are_refused_by_name() -> None:
    metric = MeanAveragePrecision()
    preds, target = random_images(2, 3, 2, 20)
    with pytest.raises(ValueError, match="preds has 2 images and target 3"):
        metric.update(preds[:2], target)
    del preds[1]["scores"]
    with pytest.raises(ValueError, match=r"preds\[1\] has no 'scores'"):
        metric.update(preds, target)
    target[2]["area"] = torch.zeros(99)
    with pytest.raises(ValueError, match=r"target\[2\] has lengths that differ"):
        metric.update(random_images(2, 3, 2, 20)[0], target)
    with pytest.raises(NotImplementedError, match="not kept"):
        metric.tm_to_coco()


def test_state_survives_what_torchmetrics_does_with_it() -> None:
    preds, target = random_images(4, 8, 3, 20)
    plain = MeanAveragePrecision(class_metrics=True)
    plain.update(preds, target)
    expected = plain.compute()

    moved = MeanAveragePrecision(class_metrics=True, compute_on_cpu=True)
    moved.update(preds[:3], target[:3])
    moved = pickle.loads(pickle.dumps(copy.deepcopy(moved))).to("cpu")
    nn.ModuleDict({"metric": moved}).half()  # the precision plugin of a trainer must not reach the states
    moved.update_batch(*batch_of(preds[3:], target[3:]))
    assert_same(expected, moved.compute())
    assert not moved.state_dict()

    forward = MeanAveragePrecision(class_metrics=True)
    for image in range(8):
        one = MeanAveragePrecision(class_metrics=True)
        one.update([preds[image]], [target[image]])
        assert_same(one.compute(), forward([preds[image]], [target[image]]))
    assert_same(expected, forward.compute())

    first, second = MeanAveragePrecision(class_metrics=True), MeanAveragePrecision(class_metrics=True)
    first.update(preds[:5], target[:5])
    second.update(preds[5:], target[5:])
    second.merge_state(first)
    assert_same(expected, second.compute())

    plain.reset()
    assert twelve(plain.compute()) == [-1.0] * 12
    plain.update(preds[:2], target[:2])
    plain.compute()
    plain.update_batch(*batch_of(preds[2:], target[2:]))  # forgets the cached result
    assert_same(expected, plain.compute())


def test_pycocotools_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PYCOCOTOOLS_AVAILABLE", "_FASTER_COCO_EVAL_AVAILABLE"):
        monkeypatch.setattr(f"torchmetrics.detection.mean_ap.{name}", False)
    preds, target = random_images(4, 2, 3, 20)
    metric = MeanAveragePrecision()
    metric.update(preds, target)
    assert metric.compute()["map"] >= 0

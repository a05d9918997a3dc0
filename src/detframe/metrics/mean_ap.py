"""Mean average precision: torchmetrics' interface and sync, COCO's numbers, matched in tensor code when updating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision as TorchmetricsMeanAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat
from torchvision.ops import box_convert

from detframe.boxes import box_area
from detframe.matching import class_overlaps, greedy_match
from detframe.metrics.average_precision import Curves, accumulate, mean_of_defined
from detframe.structures import Detections, Targets

AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's object sizes, in square pixels of the original image."""


class MeanAveragePrecision(TorchmetricsMeanAveragePrecision):
    """COCO's mean average precision and recall, equal to pycocotools.

    Takes and gives what torchmetrics' class does, and beside that the AP of every class at every IoU
    (``ap_per_class_and_iou``) and each class's ``images`` and ``instances``. Detections are matched when they come in,
    on their device; only flat arrays are kept and gathered, so ranks may hold unequal counts, or none.

    Args:
        box_format: Format of the boxes given to :meth:`update`.
        iou_thresholds: IoUs, 0..1; None is 0.5, 0.55 ... 0.95.
        rec_thresholds: Recalls that precision is read at; None is 0, 0.01 ... 1 in float64, as pycocotools.
        max_detection_thresholds: Three limits of detections per image and class; None is 1, 10, 100.
        class_metrics: Give ``map_per_class`` and ``mar_<limit>_per_class`` as well.
        kwargs: torchmetrics' own: ``dist_sync_on_step``, ``process_group``, ``sync_on_compute`` ...

    Raises:
        ValueError: Three limits are not given, or a threshold is not in 0..1.
    """

    detection_scores: list[Tensor]  # [D] float32
    detection_rows: list[Tensor]  # [D, 3] int64: image serial, label, rank among its image's detections of its class
    detection_flags: list[Tensor]  # [D, 2, R, T] uint8: matched, ignored
    truth_rows: list[Tensor]  # [G, 2] int64: image serial, label
    truth_counts: list[Tensor]  # [G, R] uint8: the object counts in the area range
    image_rows: list[Tensor]  # [I, 2] int64: image id, serial

    def __init__(
        self,
        box_format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy",
        iou_thresholds: list[float] | None = None,
        rec_thresholds: list[float] | None = None,
        max_detection_thresholds: list[int] | None = None,
        class_metrics: bool = False,
        **kwargs: Any,  # noqa: ANN401 - torchmetrics' own
    ) -> None:
        # torchmetrics' __init__ asks for pycocotools, which this class has no use for.
        Metric.__init__(self, **kwargs)
        self.box_format = box_format
        self.iou_thresholds = iou_thresholds or np.linspace(0.5, 0.95, 10).tolist()
        self.rec_thresholds = rec_thresholds or np.linspace(0, 1, 101).tolist()
        self.max_detection_thresholds = sorted(max_detection_thresholds or [1, 10, 100])
        if len(self.max_detection_thresholds) != 3:
            raise ValueError(f"max_detection_thresholds: three limits are needed, got {max_detection_thresholds}.")
        for name in ("iou_thresholds", "rec_thresholds"):
            if not all(0 <= value <= 1 for value in getattr(self, name)):
                raise ValueError(f"{name}: values must be in 0..1, got {getattr(self, name)}.")
        self.class_metrics = class_metrics
        self.iou_type = ("bbox",)
        shape = (len(AREA_RANGES), len(self.iou_thresholds))
        self._empty = {
            "detection_scores": torch.zeros(0),
            "detection_rows": torch.zeros(0, 3, dtype=torch.int64),
            "detection_flags": torch.zeros(0, 2, *shape, dtype=torch.uint8),
            "truth_rows": torch.zeros(0, 2, dtype=torch.int64),
            "truth_counts": torch.zeros(0, shape[0], dtype=torch.uint8),
            "image_rows": torch.zeros(0, 2, dtype=torch.int64),
        }
        for name in self._empty:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._updates = 0

    def update(self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        """Count images in torchmetrics' format, one dictionary each.

        Args:
            preds: ``boxes`` ``[n, 4]``, ``scores`` ``[n]``, ``labels`` ``[n]``.
            target: ``boxes`` ``[m, 4]``, ``labels`` ``[m]``, and if known ``iscrowd`` and ``area`` ``[m]``.
        """
        if len(preds) != len(target):
            raise ValueError(f"`preds` has {len(preds)} images and `target` has {len(target)}.")
        if not preds:
            return
        self._update_count -= 1  # counted by torchmetrics already, and again by `update_batch`
        pad = torch.nn.utils.rnn.pad_sequence
        ordered = [p["scores"].argsort(descending=True, stable=True) for p in preds]
        scores = pad([p["scores"][i].float() for p, i in zip(preds, ordered, strict=True)], batch_first=True)
        found = [len(p["scores"]) for p in preds]
        detections = Detections(
            boxes=pad([self._xyxy(p["boxes"])[i] for p, i in zip(preds, ordered, strict=True)], batch_first=True),
            scores=scores,
            labels=pad([p["labels"][i].long() for p, i in zip(preds, ordered, strict=True)], batch_first=True),
            valid=_mask(found, scores.device),
        )
        boxes = pad([self._xyxy(t["boxes"]) for t in target], batch_first=True)
        crowds = [t.get("iscrowd", torch.zeros_like(t["labels"])).bool() for t in target]
        targets = Targets(
            boxes=boxes,
            labels=pad([t["labels"].long() for t in target], batch_first=True),
            ignore=pad(crowds, batch_first=True),
            valid=_mask([len(t["labels"]) for t in target], boxes.device),
        )
        own = box_area(boxes)
        stated = pad([t.get("area", torch.zeros_like(t["labels"])).to(boxes.dtype) for t in target], batch_first=True)
        self.update_batch(detections, targets, torch.where(stated > 0, stated, own), None)

    def update_batch(self, detections: Detections, targets: Targets, areas: Tensor, image_ids: Tensor | None) -> None:
        """Count a batch of images.

        Args:
            detections: In original pixels.
            targets: In original pixels; ignore regions are COCO's crowds.
            areas: ``[B, N]``, square pixels of the objects.
            image_ids: ``[B]``; an image counted twice, as a distributed sampler pads with, is dropped when computing.
                None makes every image one of its own.
        """
        self._update_count += 1  # what torchmetrics' wrapper does around `update`
        self._computed = None
        if not self.detection_scores:
            for name, value in self._empty.items():  # never an empty list: a rank without images must gather too
                getattr(self, name).append(value.to(targets.boxes.device))
        batch, device = len(targets.boxes), targets.boxes.device
        rank, world = _process()
        serials = (torch.arange(self._updates, self._updates + batch, device=device)) * world + rank
        self._updates += batch
        ranges = torch.tensor(list(AREA_RANGES.values()), dtype=torch.float64, device=device)  # [R, 2]
        ignore = targets.ignore | outside(areas, ranges)  # [R, B, N]
        overlaps = class_overlaps(detections, targets)
        thresholds = torch.tensor(self.iou_thresholds, dtype=torch.float64, device=device)
        ranks = class_ranks(detections)
        # Detections over the largest limit never count, nor may they take an object.
        overlaps = torch.where((ranks < self.max_detection_thresholds[-1])[..., None], overlaps, -1.0)
        taken = greedy_match(overlaps, thresholds, ignore, targets.ignore)  # [R, B, K, T]
        found = taken >= 0
        if ignore.shape[2]:
            expanded = ignore[:, :, None, :].expand(-1, -1, taken.shape[2], -1)
            ignored = expanded.gather(3, taken.clamp(min=0)) & found
        else:
            ignored = torch.zeros_like(found)
        matched = found & ~ignored
        strange = outside(box_area(detections.boxes.double()), ranges)  # a false positive counts in its own size only
        ignored |= ~found & strange[..., None]

        keep = detections.valid
        rows = torch.stack((serials[:, None].expand_as(ranks), detections.labels, ranks), dim=-1)
        flags = torch.stack((matched, ignored)).permute(2, 3, 0, 1, 4)  # [B, K, 2, R, T]
        self.detection_scores.append(detections.scores[keep])
        self.detection_rows.append(rows[keep])
        self.detection_flags.append(flags[keep].to(torch.uint8))
        truth = torch.stack((serials[:, None].expand_as(targets.labels), targets.labels), dim=-1)
        self.truth_rows.append(truth[targets.valid])
        self.truth_counts.append((~ignore).permute(1, 2, 0)[targets.valid].to(torch.uint8))
        self.image_rows.append(torch.stack((serials if image_ids is None else image_ids, serials), dim=1))

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images; -1 where there is nothing to measure.

        Returns:
            torchmetrics' ``map``, ``map_50``, ``map_75``, ``map_small`` ..., ``mar_1`` ..., ``classes`` and, with
            class metrics, ``map_per_class``, ``mar_100_per_class``; beside those ``ap_per_class_and_iou`` ``[C, T]``,
            ``images_per_class`` and ``instances_per_class`` ``[C]``.
        """
        state = {name: _flat(getattr(self, name), empty) for name, empty in self._empty.items()}
        images = state["image_rows"]
        # In the order of image ids, as pycocotools, so that equal scores fall the same on any number of processes.
        _, first = np.unique(images[np.lexsort((images[:, 1], images[:, 0]))][:, 0], return_index=True)
        serials = images[np.lexsort((images[:, 1], images[:, 0]))][first, 1]
        place = {int(serial): i for i, serial in enumerate(serials)}
        detection_place = _places(state["detection_rows"][:, 0], place)
        order = np.argsort(detection_place, kind="stable")
        order = order[detection_place[order] >= 0]
        kept = _places(state["truth_rows"][:, 0], place) >= 0
        truth, counts = state["truth_rows"][kept], state["truth_counts"][kept].astype(bool)
        rows, flags = state["detection_rows"][order], state["detection_flags"][order].astype(bool)
        classes = np.union1d(rows[:, 1], truth[:, 1]).astype(np.int64)
        positives = np.stack([counts[truth[:, 1] == c].sum(axis=0) for c in classes] or [np.zeros(len(AREA_RANGES))])
        curves = accumulate(
            state["detection_scores"][order].astype(np.float64),
            rows[:, 1],
            rows[:, 2],
            flags[:, 0],
            flags[:, 1],
            positives.astype(np.int64),
            classes,
            self.max_detection_thresholds,
            np.asarray(self.rec_thresholds, dtype=np.float64),
        )
        live = truth[counts[:, 0]]
        pairs = np.unique(live, axis=0)
        return self._summarise(
            curves,
            classes,
            np.array([(pairs[:, 1] == c).sum() for c in classes]),
            np.array([(live[:, 1] == c).sum() for c in classes]),
        )

    def reset(self) -> None:
        """Forget all images."""
        self._updates = 0
        super().reset()

    def _summarise(
        self,
        curves: Curves,
        classes: np.ndarray[Any, Any],
        images: np.ndarray[Any, Any],
        instances: np.ndarray[Any, Any],
    ) -> dict[str, Tensor]:
        precision, recall = curves
        values: dict[str, float] = {"map": mean_of_defined(precision[:, 0])}
        for percent in (50, 75):
            place = [t for t, iou in enumerate(self.iou_thresholds) if abs(iou - percent / 100) < 1e-9]
            values[f"map_{percent}"] = mean_of_defined(precision[:, 0, place])
        for r, size in enumerate(AREA_RANGES):
            if r:
                values[f"map_{size}"] = mean_of_defined(precision[:, r])
                values[f"mar_{size}"] = mean_of_defined(recall[:, r, :, -1])
        for m, limit in enumerate(self.max_detection_thresholds):
            values[f"mar_{limit}"] = mean_of_defined(recall[:, 0, :, m])
        result = {name: torch.tensor(value) for name, value in values.items()}
        last = self.max_detection_thresholds[-1]
        none = torch.tensor(-1.0)
        by_class = torch.tensor([mean_of_defined(p[0]) for p in precision])
        by_recall = torch.tensor([mean_of_defined(r[0, :, -1]) for r in recall])
        result["map_per_class"] = by_class if self.class_metrics else none
        result[f"mar_{last}_per_class"] = by_recall if self.class_metrics else none
        result["classes"] = torch.as_tensor(classes, dtype=torch.int32)
        per_iou = [[mean_of_defined(p[0, t]) for t in range(len(self.iou_thresholds))] for p in precision]
        result["ap_per_class_and_iou"] = torch.tensor(per_iou)
        result["images_per_class"] = torch.as_tensor(images)
        result["instances_per_class"] = torch.as_tensor(instances)
        return result

    def _xyxy(self, boxes: Tensor) -> Tensor:
        return box_convert(boxes.reshape(-1, 4).float(), self.box_format, "xyxy")


def named_results(
    results: dict[str, Tensor], class_names: Sequence[str], iou_thresholds: Sequence[float] | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Results under the names that runs log and write.

    Args:
        results: What :meth:`MeanAveragePrecision.compute` gives.
        class_names: Names by label; a class with neither object nor detection is reported as -1.
        iou_thresholds: Those of the metric; None is 0.5, 0.55 ... 0.95.

    Returns:
        Flat names for loggers (``map``, ``map_50``, ``ap/<class>``, ``ap_50/<class>`` ...), and the content of a
        ``*_metrics.json`` without its hashes.
    """
    thresholds = list(iou_thresholds or np.linspace(0.5, 0.95, 10))
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
    flat = {name: float(results[name]) for name in names}
    summary: dict[str, Any] = dict(flat)
    # torchmetrics makes a scalar of whatever has one element.
    rows = {int(label): i for i, label in enumerate(results["classes"].reshape(-1))}
    curves = results["ap_per_class_and_iou"].reshape(len(rows), -1).double()
    images, instances = (results[f"{name}_per_class"].reshape(-1) for name in ("images", "instances"))
    columns = {"ap_50": 0.5, "ap_75": 0.75}
    per_class: dict[str, dict[str, float]] = {}
    for label, name in enumerate(class_names):
        row: dict[str, float] = {"ap": -1.0, "ap_50": -1.0, "ap_75": -1.0, "images": 0, "instances": 0}
        if label in rows:
            i = rows[label]
            curve = curves[i]
            row["ap"] = float(curve.mean())
            for key, iou in columns.items():
                place = [t for t, value in enumerate(thresholds) if abs(value - iou) < 1e-9]
                row[key] = float(curve[place[0]]) if place else -1.0
            row["images"] = int(images[i])
            row["instances"] = int(instances[i])
        per_class[name] = row
        flat.update({f"{key}/{name}": row[key] for key in ("ap", "ap_50", "ap_75")})
    summary["per_class"] = per_class
    return flat, summary


def outside(areas: Tensor, ranges: Tensor) -> Tensor:
    """Which areas ``[B, N]`` lie outside each of the ranges ``[R, 2]``, ``[R, B, N]`` bool."""
    low, high = ranges[:, 0, None, None], ranges[:, 1, None, None]
    return (areas.double() < low) | (areas.double() > high)


def class_ranks(detections: Detections) -> Tensor:
    """Place of every detection among those of its image and class by score, ``[B, K]`` int64 from 0."""
    same = detections.labels[..., :, None] == detections.labels[..., None, :]
    earlier = torch.ones_like(same[0] if len(same) else same.sum(0)).bool().tril(-1)
    return (same & earlier & detections.valid[..., None, :]).sum(dim=-1)


def _mask(counts: list[int], device: torch.device) -> Tensor:
    return torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]


def _process() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _flat(state: list[Tensor] | Tensor, empty: Tensor) -> np.ndarray[Any, Any]:
    if isinstance(state, list):
        state = dim_zero_cat(state) if state else empty
    return state.cpu().numpy()


def _places(serials: np.ndarray[Any, Any], place: dict[int, int]) -> np.ndarray[Any, Any]:
    unique, inverse = np.unique(serials, return_inverse=True)
    return np.array([place.get(int(serial), -1) for serial in unique], dtype=np.int64)[inverse]

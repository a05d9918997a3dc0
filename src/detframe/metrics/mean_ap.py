"""Mean average precision: torchmetrics' interface and sync, COCO's numbers, matched in tensor code when updating."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision as TorchmetricsMeanAveragePrecision
from torchmetrics.utilities.distributed import gather_all_tensors
from torchvision.ops import box_convert

from detframe.boxes import box_area
from detframe.metrics.average_precision import Curves, accumulate, mean_of_defined, sort_for_accumulation
from detframe.metrics.matched_images import (
    AREA_RANGES,
    NO_ID,
    MatchedImages,
    concatenate,
    count_images,
    count_positives,
    from_bytes,
    in_order_of_ids,
    match_images,
    no_images,
    number_by_position,
    to_bytes,
)
from detframe.structures import Detections, Targets

PAIRS_AT_ONCE = 2**19
"""Detection slots times object rows that are matched together: what bounds the memory of an update."""


class MeanAveragePrecision(TorchmetricsMeanAveragePrecision):
    """COCO's mean average precision and recall, equal to pycocotools' for coordinates in float32.

    Takes and gives what torchmetrics' class does, and gives besides ``ap_per_class_and_iou``, ``images_per_class`` and
    ``instances_per_class``. Detections are matched when they come in, on their device; only flat tensors are kept, and
    processes exchange them once, whatever each of them holds. Unlike torchmetrics' class it

    - reads precision at float64 recalls, as pycocotools, whose figures therefore differ from torchmetrics' by 1e-4;
    - takes ``map`` at the last of ``max_detection_thresholds``, where torchmetrics gives -1 unless that is 100;
    - keeps no boxes, so ``extended_summary`` has no ``ious``, and :meth:`tm_to_coco` is not available;
    - needs neither pycocotools nor faster-coco-eval.

    Args:
        box_format: Format of the boxes given to :meth:`update`.
        iou_type: ``"bbox"``; masks are not supported.
        iou_thresholds: IoUs, 0..1; None is 0.5, 0.55 ... 0.95. ``map_50`` and ``map_75`` are -1 where they are not
            among them.
        rec_thresholds: Recalls that precision is read at, 0..1; None is 0, 0.01 ... 1.
        max_detection_thresholds: Three limits of detections per image and class; None is 1, 10, 100.
        class_metrics: Give ``map_per_class`` and ``mar_<last limit>_per_class`` as well.
        extended_summary: Give ``precision`` and ``scores`` ``[T, R, C, A, M]`` and ``recall`` ``[T, C, A, M]`` as well.
        average: ``"macro"`` is the mean over classes; ``"micro"`` takes all objects for one class.
        kwargs: torchmetrics' own: ``dist_sync_on_step``, ``process_group``, ``sync_on_compute`` ...

    Raises:
        ValueError: An argument is outside what it may be, or not supported; the message names it.
    """

    full_state_update: bool = False

    def __init__(
        self,
        box_format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy",
        iou_type: Literal["bbox"] | tuple[Literal["bbox"], ...] = "bbox",
        iou_thresholds: list[float] | None = None,
        rec_thresholds: list[float] | None = None,
        max_detection_thresholds: list[int] | None = None,
        class_metrics: bool = False,
        extended_summary: bool = False,
        average: Literal["macro", "micro"] = "macro",
        **kwargs: Any,  # noqa: ANN401 - torchmetrics' own
    ) -> None:
        # Not the parent's __init__: it demands pycocotools and adds states of boxes, neither of which is used here.
        Metric.__init__(self, **kwargs)
        if box_format not in ("xyxy", "xywh", "cxcywh"):
            raise ValueError(f"box_format: 'xyxy', 'xywh' or 'cxcywh' is needed, got {box_format!r}.")
        if iou_type not in ("bbox", ("bbox",)):
            raise ValueError(f"iou_type: only 'bbox' is supported, got {iou_type!r}.")
        if average not in ("macro", "micro"):
            raise ValueError(f"average: 'macro' or 'micro' is needed, got {average!r}.")
        if average == "micro" and class_metrics:
            raise ValueError("class_metrics: not with average='micro', which takes all objects for one class.")
        self.box_format = box_format
        self.iou_type = ("bbox",)
        self.iou_thresholds = _shares("iou_thresholds", iou_thresholds, np.linspace(0.5, 0.95, 10))
        self.rec_thresholds = _shares("rec_thresholds", rec_thresholds, np.linspace(0, 1, 101))
        self.max_detection_thresholds = sorted(max_detection_thresholds or [1, 10, 100])
        if len(self.max_detection_thresholds) != 3 or self.max_detection_thresholds[0] < 1:
            raise ValueError(
                f"max_detection_thresholds: three limits above 0 are needed, got {max_detection_thresholds}."
            )
        self.class_metrics = class_metrics
        self.extended_summary = extended_summary
        self.average = average
        for name in MatchedImages._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]], image_ids: Tensor | None = None
    ) -> None:
        """Count images in torchmetrics' format, one dictionary each.

        Args:
            preds: ``boxes`` ``[n, 4]``, ``scores`` ``[n]``, ``labels`` ``[n]``.
            target: ``boxes`` ``[m, 4]``, ``labels`` ``[m]`` and, where known, ``iscrowd`` ``[m]`` and ``area`` ``[m]``
                square pixels, where 0 takes the box's.
            image_ids: ``[images]``, as for :meth:`update_batch`.

        Raises:
            ValueError: A key is missing or lengths differ.
        """
        _check_images(preds, target)
        if not preds:
            return
        detections = Detections(
            boxes=_pad([self._xyxy(image["boxes"]) for image in preds]),
            scores=_pad([image["scores"] for image in preds]),
            labels=_pad([image["labels"].long() for image in preds]),
            valid=_pad([torch.ones_like(image["labels"], dtype=torch.bool) for image in preds]),
        )
        targets = Targets(
            boxes=_pad([self._xyxy(image["boxes"]) for image in target]),
            labels=_pad([image["labels"].long() for image in target]),
            ignore=_pad([_optional(image, "iscrowd").bool() for image in target]),
            valid=_pad([torch.ones_like(image["labels"], dtype=torch.bool) for image in target]),
        )
        areas = _pad([_optional(image, "area").double() for image in target])
        self._count(detections, targets, torch.where(areas > 0, areas, box_area(targets.boxes)), image_ids)

    def update_batch(
        self,
        detections: Detections,
        targets: Targets,
        areas: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> None:
        """Count a batch of images.

        Args:
            detections: In original pixels.
            targets: In original pixels; ``ignore`` is COCO's crowd.
            areas: ``[B, N]``, square pixels by which objects are small, medium or large; None takes the boxes'.
            image_ids: ``[B]`` int64. Images count in their order, and only once each, as distributed samplers show some
                twice. None makes every image one of its own, in the order in which one process would see them.
        """
        # What torchmetrics wraps around `update`.
        self._computed = None
        self._update_count += 1
        with torch.no_grad():
            self._count(detections, targets, box_area(targets.boxes) if areas is None else areas, image_ids)
        if self.compute_on_cpu:
            self._move_list_states_to_cpu()

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images; -1 where there is nothing to measure.

        Returns:
            torchmetrics' scalars ``map``, ``map_50``, ``map_75``, ``map_small`` ..., ``mar_1`` ... and ``mar_small``
            ..., ``map_per_class`` and ``mar_100_per_class`` ``[C]`` (-1 without class metrics) and ``classes`` ``[C]``,
            the labels seen; and besides, ``ap_per_class_and_iou`` ``[C, T]`` (-1 with micro average),
            ``map_50_per_class``, ``map_75_per_class``, ``images_per_class`` and ``instances_per_class`` ``[C]``. As
            torchmetrics does, a tensor of one element becomes a scalar.
        """
        images = self._state()
        images = images._replace(image_ids=number_by_position(images.image_ids, 0, 1))
        images = in_order_of_ids(images)
        classes = torch.unique(torch.cat((images.detection_labels, images.target_labels)))
        positives = count_positives(images, classes)
        counted = positives if self.average == "macro" else positives.sum(dim=0, keepdim=True)
        curves = [self._accumulate(images, classes, counted, limit) for limit in self.max_detection_thresholds]
        result = self._summarise(curves)
        ap = curves[-1].precision[..., 0].mean(dim=1)  # [T, C], and -1 stays -1
        recall = curves[-1].recall[..., 0].mean(dim=0)  # [C]
        micro = self.average == "micro"
        none = torch.tensor(-1.0, device=ap.device)
        result["map_per_class"] = ap.mean(dim=0).float() if self.class_metrics else none
        result[f"mar_{self.max_detection_thresholds[-1]}_per_class"] = recall.float() if self.class_metrics else none
        result["classes"] = classes
        result["ap_per_class_and_iou"] = none if micro else ap.T.float()
        for percent in (50, 75):
            column = self._iou_column(percent / 100)
            missing = torch.full_like(recall, -1)
            result[f"map_{percent}_per_class"] = none if micro else (missing if column is None else ap[column]).float()
        result["images_per_class"] = count_images(images, classes)
        result["instances_per_class"] = positives[:, 0]
        if self.extended_summary:
            result["precision"] = torch.stack([curve.precision for curve in curves], dim=-1)
            result["recall"] = torch.stack([curve.recall for curve in curves], dim=-1)
            result["scores"] = torch.stack([curve.scores for curve in curves], dim=-1)
        return result

    def tm_to_coco(self, name: str = "tm_map_input") -> None:
        """Not available: the boxes are not kept.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("The boxes are matched when they come in and not kept; save them before updating.")

    def _count(self, detections: Detections, targets: Targets, areas: Tensor, image_ids: Tensor | None) -> None:
        if image_ids is None:
            image_ids = torch.full((len(areas),), NO_ID, device=areas.device)
        step = max(1, PAIRS_AT_ONCE // max(1, detections.labels.shape[1] * targets.labels.shape[1]))
        for start in range(0, len(areas), step):
            part = slice(start, start + step)
            images = match_images(
                Detections(*(tensor[part] for tensor in detections)),
                Targets(*(tensor[part] for tensor in targets)),
                areas[part],
                image_ids[part],
                self.iou_thresholds,
                self.max_detection_thresholds[-1],
                one_class=self.average == "micro",
            )
            for name, value in images._asdict().items():
                getattr(self, name).append(value)

    def _accumulate(self, images: MatchedImages, classes: Tensor, positives: Tensor, limit: int) -> Curves:
        """Curves of the detections within a limit per image and class, in the area ranges that anything asks for."""
        within = images.detection_ranks < limit
        scores = images.detection_scores[within]
        class_index = torch.searchsorted(classes, images.detection_labels[within])
        if self.average == "micro":
            class_index = torch.zeros_like(class_index)
        order = sort_for_accumulation(class_index, scores)
        # Sizes are told apart at the last limit only, unless the extended summary has them all.
        ranges = len(AREA_RANGES) if self.extended_summary or limit == self.max_detection_thresholds[-1] else 1
        return accumulate(
            images.detection_outcomes[within][order],
            class_index[order],
            scores[order],
            positives[:, :ranges],
            len(self.iou_thresholds),
            torch.tensor(self.rec_thresholds, dtype=torch.float64, device=scores.device),
        )

    def _summarise(self, curves: list[Curves]) -> dict[str, Tensor]:
        """COCO's twelve figures."""
        precision, recall, _ = curves[-1]
        values = {"map": mean_of_defined(precision[..., 0])}
        for percent in (50, 75):
            column = self._iou_column(percent / 100)
            values[f"map_{percent}"] = -1.0 if column is None else mean_of_defined(precision[column, ..., 0])
        values.update({f"map_{size}": mean_of_defined(precision[..., a]) for a, size in _sizes()})
        for limit, curve in zip(self.max_detection_thresholds, curves, strict=True):
            values[f"mar_{limit}"] = mean_of_defined(curve.recall[..., 0])
        values.update({f"mar_{size}": mean_of_defined(recall[..., a]) for a, size in _sizes()})
        return {name: torch.tensor(value, device=precision.device) for name, value in values.items()}

    def _iou_column(self, iou: float) -> int | None:
        return next((t for t, value in enumerate(self.iou_thresholds) if abs(value - iou) < 1e-9), None)

    def _xyxy(self, boxes: Tensor) -> Tensor:
        # In float64, where the corners of float32 boxes are exact in every format.
        return box_convert(boxes.reshape(-1, 4).double(), self.box_format, "xyxy")

    def _state(self) -> MatchedImages:
        """All that was counted, as one record."""
        parts = [getattr(self, name) for name in MatchedImages._fields]
        device = parts[0][0].device if parts[0] else self.device
        empty = no_images(len(self.iou_thresholds), device)
        return concatenate([empty, *(MatchedImages(*tensors) for tensors in zip(*parts, strict=True))])

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., list[Tensor]] | None = gather_all_tensors,
        process_group: Any | None = None,  # noqa: ANN401 - torch's own type for it is private
    ) -> None:
        """Gather all processes' states in one exchange, which holds for unequal and empty ones."""
        gather = dist_sync_fn or gather_all_tensors
        buffers = gather(to_bytes(self._state()).to(self.device), group=process_group or self.process_group)
        parts = []
        for rank, buffer in enumerate(buffers):
            part = from_bytes(buffer, len(self.iou_thresholds))
            parts.append(part._replace(image_ids=number_by_position(part.image_ids, rank, len(buffers))))
        for name, value in concatenate(parts)._asdict().items():
            setattr(self, name, [value])

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Torchmetrics' wrapper, without its warning where nothing was counted: a process may have had no image."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(wrapped)
        def quiet(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - a wrapper
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r"The ``compute`` method of metric .* was called before")
                return wrapped(*args, **kwargs)

        return quiet


def named_results(results: dict[str, Tensor], class_names: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Results under the names that runs log and write.

    Args:
        results: What :meth:`MeanAveragePrecision.compute` gives with macro average.
        class_names: Names by label; a class with neither object nor detection is reported as -1.

    Returns:
        Flat names for loggers (``map``, ``map_50``, ``ap/<class>``, ``ap_50/<class>``, ``ap_75/<class>`` ...), and the
        content of a ``*_metrics.json`` without its hashes.

    Raises:
        ValueError: A label has no name.
    """
    labels = results["classes"].reshape(-1).tolist()  # torchmetrics makes a scalar of whatever has one element
    unnamed = [label for label in labels if not 0 <= label < len(class_names)]
    if unnamed:
        raise ValueError(f"Labels {unnamed} have no name: the {len(class_names)} names are for labels from 0.")
    recall = max((name for name in results if re.fullmatch(r"mar_\d+", name)), key=lambda name: int(name[4:]))
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", recall)
    summary: dict[str, Any] = {name: float(results[name]) for name in names}
    flat: dict[str, float] = dict(summary)

    ap = results["ap_per_class_and_iou"]
    columns = {"ap": (ap.mean(dim=1) if ap.ndim == 2 else ap.reshape(1)).tolist()}
    columns.update({f"ap_{iou}": results[f"map_{iou}_per_class"].reshape(-1).tolist() for iou in (50, 75)})
    counts = {name: results[f"{name}_per_class"].reshape(-1).tolist() for name in ("images", "instances")}
    place = {label: i for i, label in enumerate(labels)}
    summary["per_class"] = {
        name: {key: values[place[label]] if label in place else -1.0 for key, values in columns.items()}
        | {key: values[place[label]] if label in place else 0 for key, values in counts.items()}
        for label, name in enumerate(class_names)
    }
    for key in columns:
        flat.update({f"{key}/{name}": row[key] for name, row in summary["per_class"].items()})
    return flat, summary


def _sizes() -> list[tuple[int, str]]:
    """Places and names of the area ranges other than all."""
    return [(a, size) for a, size in enumerate(AREA_RANGES) if size != "all"]


def _shares(name: str, values: list[float] | None, default: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    shares: list[float] = default.tolist() if values is None else list(values)
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{name}: one or more values in 0..1 are needed, got {values}.")
    return shares


def _check_images(preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
    """Errors name the image, by its place in the call, and the key."""
    if len(preds) != len(target):
        raise ValueError(f"preds has {len(preds)} images and target {len(target)}.")
    sides = (
        ("preds", preds, ("boxes", "scores", "labels"), ()),
        ("target", target, ("boxes", "labels"), ("iscrowd", "area")),
    )
    for side, images, needed, optional in sides:
        for i, image in enumerate(images):
            missing = [key for key in needed if key not in image]
            if missing:
                raise ValueError(f"{side}[{i}] has no {missing[0]!r}; it needs {', '.join(needed)}.")
            lengths = {key: len(image[key]) for key in (*needed, *optional) if key in image}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"{side}[{i}] has lengths that differ: {lengths}.")


def _optional(image: dict[str, Tensor], key: str) -> Tensor:
    return image[key] if key in image else torch.zeros_like(image["labels"])


def _pad(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)

"""INT8 for CPUs: an OpenVINO artefact whose convolutions are quantised, as far as its mAP bears it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torchvision.ops import box_iou

os.environ.setdefault("NNCF_DEV", "1")  # else NNCF reports to its makers that it was called, without asking
import nncf

from detframe.curation.split import instances
from detframe.data.annotations import AnnotationIndex
from detframe.data.images import read_image
from detframe.data.stratified import assign_folds
from detframe.export.openvino import save_openvino
from detframe.export.proof_images import AnnotatedSplit
from detframe.export.runtime import Answer, Images, Metadata, openvino_answer
from detframe.export.verify import metrics
from detframe.metrics.rows import TruthRows

CALIBRATION_IMAGES = 200
"""From how many training images the ranges of activations are read."""

RANKING_IMAGES = 60
"""On how many images, those that suffered most, each operation's cost is found."""

_openvino: Any = openvino  # it states no types for what it offers
_nncf: Any = nncf
_FLOAT_DEPTH = 2  # convolutions from the image on


def calibration_images(train: AnnotationIndex, seed: int = 0) -> list[Path]:
    """Training images with all classes in their shares, and images without boxes too."""
    count = min(CALIBRATION_IMAGES, len(train))
    places = list(range(len(train)))
    if count < len(train):
        fold_of = assign_folds(places, instances(train), [count, len(train) - count], seed)
        places = [place for place in places if fold_of[place] == 0]
    return [train.path(place) for place in places]


def quantize(
    artefact: Path,
    calibration: Sequence[Path],
    split: AnnotatedSplit,
    max_drop: float,
    tell: Callable[[str], object],
    metadata: Metadata,
) -> None:
    """Quantise the convolutions of an OpenVINO artefact, in its place.

    Where that costs more than ``max_drop``, NNCF ranks the operations by what they cost and gives back float to the
    worst until the rest fits. The first two layers stay as they are, and what follows the last convolution.

    Args:
        artefact: Folder that `openvino.write_openvino` has written.
        calibration: Images from which the ranges of activations are read.
        split: What mAP is measured on.
        max_drop: Of mAP, absolute.
        tell: Gets a line for each measurement: where operations have to be given back there are many.
        metadata: Of the quantised artefact.
    """
    model = _openvino.Core().read_model(artefact / "model.xml")
    names = split.index.class_names

    def judge(compiled: Any, places: Iterable[int]) -> tuple[float, list[float]]:  # noqa: ANN401 - openvino's
        asked = list(places)
        answers = [openvino_answer(compiled, _read(split.index.path(place))) for place in asked]
        truths, areas = _truths_of(split, asked)
        found = float(metrics(answers, truths, areas, names)["map"])
        if len(asked) == len(split.index):
            tell(f"mAP {found:.4f}")
        return found, [quality(answer, split.truths, place) for answer, place in zip(answers, asked, strict=True)]

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # where progress belongs
        quantised = _nncf.quantize_with_accuracy_control(
            model,
            _nncf.Dataset(calibration, _read),
            _nncf.Dataset(range(len(split.index))),
            judge,
            max_drop=max_drop,
            preset=_nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            advanced_accuracy_restorer_parameters=_nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=RANKING_IMAGES
            ),
            ignored_scope=_nncf.IgnoredScope(names=in_float(model), validate=False),
        )
    save_openvino(quantised, metadata, artefact)


def quality(answer: Answer, truths: TruthRows, image: int) -> float:
    """How well an image's objects are found, 0..1: the mean over them of the best score times IoU of their class.

    An mAP of single images would not move with scores.
    """
    own = truths.images == image
    if not bool(own.any()):
        return 1.0 - float(np.max(answer.scores[0][answer.valid[0]], initial=0.0))
    overlaps = box_iou(truths.boxes[own], torch.from_numpy(answer.boxes[0])).numpy()  # [n, K]
    same = truths.labels[own].numpy()[:, None] == answer.labels[0][None]
    return float((overlaps * same * answer.valid[0] * answer.scores[0]).max(axis=1).mean())


def _read(image: Path) -> Images:
    return read_image(image)[None].numpy()


def _truths_of(split: AnnotatedSplit, places: Sequence[int]) -> tuple[TruthRows, torch.Tensor]:
    """Truths of some images, numbered by their order, and their areas."""
    rank = torch.full((len(split.index),), -1)
    rank[list(places)] = torch.arange(len(places))
    kept = torch.nonzero(rank[split.truths.images] >= 0).flatten()
    kept = kept[rank[split.truths.images[kept]].argsort(stable=True)]
    truths = TruthRows(*(column[kept] for column in split.truths))
    return truths._replace(images=rank[truths.images]), split.areas[kept]


def in_float(model: Any) -> list[str]:  # noqa: ANN401 - openvino's
    """Names of the operations that stay in float32.

    Those from which no convolution is reached, those before the first one, which resize the image, and the convolutions
    that read the image or read those: with these in 8 bits, mAP on DeepPCB fell from 0.633 to 0.534, with the first
    alone in float to 0.590, and with both to 0.633. Depthwise ones, since OpenVINO computes them in float32 all the
    same: quantised, they cost a conversion before and after, a tenth of the time of BCCD's detector.
    """
    operations = model.get_ordered_ops()  # each after what it reads
    is_convolution = {
        operation.get_friendly_name(): operation.get_type_name() in ("Convolution", "GroupConvolution")
        for operation in operations
    }
    read_by = {
        operation.get_friendly_name(): [
            given.get_source_output().get_node().get_friendly_name() for given in operation.inputs()
        ]
        for operation in operations
    }
    depthwise = {
        operation.get_friendly_name()
        for operation in operations
        if operation.get_type_name() == "GroupConvolution" and operation.get_input_shape(1)[1:3] == [1, 1]
    }
    depth: dict[str, int] = {}  # convolutions on the longest way from the image
    for name, givers in read_by.items():
        depth[name] = max((depth[giver] for giver in givers), default=0) + is_convolution[name]
    leads_on: set[str] = set()
    for name in reversed(read_by):
        if is_convolution[name] or name in leads_on:
            leads_on.update((name, *read_by[name]))
    return [
        name
        for name, givers in read_by.items()
        if name not in leads_on
        or (depth[name] == 0 and givers)
        or name in depthwise
        or (depth[name] <= _FLOAT_DEPTH and is_convolution[name])
    ]

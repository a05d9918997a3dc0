"""ONNX, with resizing and non-maximum suppression inside: onnxruntime alone runs it."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from detframe.export.artefact import Artefact
from detframe.export.onnx_resize import as_vector, op, resize_antialiased
from detframe.export.program import exported
from detframe.export.runtime import METADATA, OUTPUTS, Metadata

OPSET = 18
"""The first that resizes with antialiasing."""


def write_onnx(artefact: Artefact, metadata: Metadata, path: Path) -> None:
    """Write an artefact for uint8 images ``[B, 3, H, W]`` of any B, H and W."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its optimizer tells of each constant that it does not fold
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its steps
            program = torch.onnx.export(
                exported(artefact),
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(OUTPUTS),
                custom_translation_table={
                    torch.ops.torchvision.nms.default: _nms,
                    torch.ops.aten._upsample_bilinear2d_aa.default: resize_antialiased,
                    torch.ops.aten.sort.stable: _stable_sort,
                    torch.ops.aten.slice_scatter.default: _between,
                },
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    program.model.metadata_props[METADATA] = metadata.to_json()
    program.save(str(path))


def _stable_sort(values: Any, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ANN401
    """``torch.sort`` as the whole of ONNX's TopK, which puts the lower place first where values are equal."""
    length = op.Reshape(op.Gather(op.Shape(values), op.Constant(value_int=dim)), op.Constant(value_ints=[1]))
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def _between(canvas: Any, part: Any, dim: int = 0, start: Any = 0, end: Any = None) -> Any:  # noqa: ANN401
    """``canvas`` with ``part`` from ``start`` to ``end``, copied: the exporter would transpose the image twice."""
    zero, most, axis = (op.Constant(value_ints=[value]) for value in (0, 2**63 - 1, dim))
    first, last = (zero if start is None else as_vector(start), most if end is None else as_vector(end))
    return op.Concat(op.Slice(canvas, zero, first, axis), part, op.Slice(canvas, last, most, axis), axis=dim)


def _nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:  # noqa: ANN401 - values of a graph in the making
    """``torchvision::nms`` in float32, as onnxruntime has no other; boxes come in float64."""
    found = op.NonMaxSuppression(
        op.Unsqueeze(op.Cast(boxes, to=1), op.Constant(value_ints=[0])),
        op.Unsqueeze(op.Cast(scores, to=1), op.Constant(value_ints=[0, 1])),
        op.Constant(value_ints=[2**31 - 1]),  # as many boxes as there are
        op.Constant(value_floats=[iou_threshold]),
    )
    columns = (op.Constant(value_ints=[2]), op.Constant(value_ints=[3]), op.Constant(value_ints=[1]))
    return op.Reshape(op.Slice(found, *columns), op.Constant(value_ints=[-1]))

"""Antialiased resizing of uint8 images in ONNX, to the last grey as torch does it.

ONNX has an operator for it, but each runtime rounds in a way of its own, and OpenVINO leaves antialiasing out: a
detector that is asked about other pixels suppresses other boxes. So torch's own arithmetic is written out
(``aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h``): a triangle as the filter, its weights as whole numbers, one
side after the other, each rounded to whole greys.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnxscript import opset18

op: Any = opset18  # whose types tell kinds of elements apart that are not known here
Value = Any
"""A value of the graph in the making; onnxscript has no public type for it."""

_INT32, _INT64, _DOUBLE, _UINT8 = 6, 7, 11, 2  # onnx.TensorProto
_WEIGHT_LIMIT = 2.0**15
_MOST_BITS = 22


def resize_antialiased(images: Value, output_size: Any, align_corners: bool, *scales: Any) -> Value:  # noqa: ANN401
    """``aten::_upsample_bilinear2d_aa`` of uint8 images ``[B, C, H, W]``.

    Args:
        images: What is resized.
        output_size: (height, width), numbers or values.
        align_corners: Is False.
        scales: Follow from the sizes.
    """
    height, width = output_size
    resized = _along(_cast(images, _INT32), 3, width)
    return _cast(_along(resized, 2, height), _UINT8)


def _along(images: Value, axis: int, length: Any) -> Value:  # noqa: ANN401
    """Resize one side: gather the pixels under the filter of each new one, weigh and add them."""
    place, weight, bits = _filters(op.Shape(images, start=axis, end=axis + 1), _reshaped(length, [1]))
    gathered = op.Gather(images, place, axis=axis)  # [B, C, H, new, taps], or [B, C, new, taps, W]
    if axis == 2:
        weight = op.Unsqueeze(weight, _ints([2]))
    total = op.ReduceSum(op.Mul(gathered, weight), _ints([axis + 1]), keepdims=0)
    one = op.Pow(_cast(_ints([2]), _INT32), bits)
    return op.Min(op.Div(op.Add(total, op.Div(one, _cast(_ints([2]), _INT32))), one), _cast(_ints([255]), _INT32))


def _filters(old: Value, new: Value) -> tuple[Value, Value, Value]:
    """Of each new pixel the old ones under its filter and their weights.

    All of it in whole numbers up to the division, in units of half an old pixel over a new one, so that runtimes agree.

    Args:
        old: ``[1]`` int64 pixels of the side.
        new: ``[1]`` int64 pixels that it gets.

    Returns:
        Places ``[new, taps]`` int64, weights ``[new, taps]`` int32, and the bits ``[1]`` int32 that weights are of.
    """
    two = _ints([2])
    reach = op.Max(old, new)  # half the filter's width, times the new length
    count = op.Squeeze(new, _ints([0]))
    number = op.Range(_scalar(0), count, _scalar(1))
    centre = op.Unsqueeze(op.Mul(old, op.Add(op.Mul(number, two), _ints([1]))), _ints([1]))  # [new, 1]
    doubled = op.Mul(new, two)
    first = op.Max(op.Div(op.Add(op.Sub(centre, op.Mul(reach, two)), new), doubled), _ints([0]))
    end = op.Min(op.Div(op.Add(op.Add(centre, op.Mul(reach, two)), new), doubled), old)
    taps = op.Add(op.Mul(op.Div(op.Sub(op.Add(reach, new), _ints([1])), new), two), _ints([1]))
    offset = op.Range(_scalar(0), op.Squeeze(taps, _ints([0])), _scalar(1))
    place = op.Add(first, offset)  # [new, taps]
    away = op.Abs(op.Sub(op.Mul(op.Add(op.Mul(place, two), _ints([1])), new), centre))
    height = op.Max(op.Sub(op.Mul(reach, two), away), _ints([0]))
    height = op.Where(op.Less(place, end), height, _ints([0]))
    share = op.Div(_cast(height, _DOUBLE), _cast(op.ReduceSum(height, _ints([1])), _DOUBLE))
    powers = op.Constant(value=_doubles([2.0**bit for bit in range(1, _MOST_BITS + 1)]))
    fits = op.Less(op.Add(op.Mul(op.ReduceMax(share, keepdims=0), powers), _double(0.5)), _double(_WEIGHT_LIMIT))
    bits = op.ReduceSum(_cast(fits, _INT64), _ints([0]))  # [1]
    scale = _cast(op.Pow(two, bits), _DOUBLE)
    weight = _cast(op.Floor(op.Add(op.Mul(share, scale), _double(0.5))), _INT32)
    return op.Min(place, op.Sub(old, _ints([1]))), weight, _cast(bits, _INT32)


def _cast(value: Value, to: int) -> Value:
    return op.Cast(value, to=to)


def _reshaped(value: Any, shape: list[int]) -> Value:  # noqa: ANN401
    if isinstance(value, int):
        return _ints([value])
    return op.Reshape(_cast(value, _INT64), _ints(shape))


def _ints(values: list[int]) -> Value:
    return op.Constant(value_ints=values)


def _scalar(value: int) -> Value:
    return op.Constant(value_int=value)


def _double(value: float) -> Value:
    return op.Constant(value=_doubles([value]))


def _doubles(values: list[float]) -> Any:  # noqa: ANN401 - onnx has no types
    return onnx.helper.make_tensor("", _DOUBLE, [len(values)], values)

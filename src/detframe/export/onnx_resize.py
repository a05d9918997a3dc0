"""Antialiased resizing of uint8 images in ONNX, to the last grey as torch does it.

ONNX has an operator for it, but each runtime rounds in a way of its own, and OpenVINO leaves antialiasing out: a
detector that is asked about other pixels suppresses other boxes. So torch's own arithmetic is written out
(``aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h``): a triangle as the filter, its weights as whole numbers, one
side after the other, each rounded to whole greys. Numbers are whole and fit into 32 bits: OpenVINO has no others.
It adds up in float32, so that after a reduction to less than a quarter one pixel in 50,000 may be one grey off there.
"""

from __future__ import annotations

from typing import Any

from onnxscript import opset18

op: Any = opset18  # whose types tell kinds of elements apart that are not known here
Value = Any
"""A value of the graph in the making; onnxscript has no public type for it."""

_UINT8, _INT32, _INT64 = 2, 6, 7  # onnx.TensorProto
_WEIGHT_BITS = 15
_MOST_BITS = 22
_SHARE_BITS = 24


def resize_antialiased(images: Value, output_size: Any, align_corners: bool, *scales: Any) -> Value:  # noqa: ANN401
    """``aten::_upsample_bilinear2d_aa`` of uint8 images ``[B, C, H, W]``.

    Args:
        images: What is resized.
        output_size: (height, width), numbers or values.
        align_corners: Is False.
        scales: Follow from the sizes.
    """
    height, width = output_size
    sideways = op.Transpose(images, perm=[3, 0, 1, 2])  # else single pixels would be gathered instead of rows
    columns = op.Transpose(_along(sideways, 0, width), perm=[1, 2, 3, 0])
    return _along(columns, 2, height)


def _along(images: Value, axis: int, length: Any) -> Value:  # noqa: ANN401
    """Resize one side: gather the pixels under the filter of each new one, weigh and add them."""
    place, weight, bits = _filters(op.Shape(images, start=axis, end=axis + 1), _reshaped(length, [1]))
    gathered = op.Gather(images, place, axis=axis)  # [..., taps, new, ...]
    weight = op.Unsqueeze(weight, _ints(list(range(2, 5 - axis))))
    total = op.ReduceSum(op.Mul(_cast(gathered, _INT32), weight), _ints([axis]), keepdims=0)
    one = op.Pow(_int32(2), bits)
    return _cast(op.Min(op.Div(op.Add(total, op.Div(one, _int32(2))), one), _int32(255)), _UINT8)


def _filters(old: Value, new: Value) -> tuple[Value, Value, Value]:
    """Of each new pixel the old ones under its filter and their weights.

    Lengths are in units of half an old pixel over a new one.

    Args:
        old: ``[1]`` int64 pixels of the side.
        new: ``[1]`` int64 pixels that it gets.

    Returns:
        Places ``[taps, new]`` int64, weights ``[taps, new]`` int32, and the bits ``[1]`` int32 that weights are of.
    """
    two = _ints([2])
    reach = op.Max(old, new)  # half the filter's width, times the new length
    number = op.Range(_scalar(0), op.Squeeze(new, _ints([0])), _scalar(1))
    centre = op.Mul(old, op.Add(op.Mul(number, two), _ints([1])))  # [new]
    doubled = op.Mul(new, two)
    first = op.Max(op.Div(op.Add(op.Sub(centre, op.Mul(reach, two)), new), doubled), _ints([0]))
    end = op.Min(op.Div(op.Add(op.Add(centre, op.Mul(reach, two)), new), doubled), old)
    taps = op.Add(op.Mul(op.Div(op.Sub(op.Add(reach, new), _ints([1])), new), two), _ints([1]))
    offset = op.Range(_scalar(0), op.Squeeze(taps, _ints([0])), _scalar(1))
    place = op.Add(first, op.Unsqueeze(offset, _ints([1])))  # [taps, new]
    away = op.Abs(op.Sub(op.Mul(op.Add(op.Mul(place, two), _ints([1])), new), centre))
    height = op.Max(op.Sub(op.Mul(reach, two), away), _ints([0]))
    height = op.Where(op.Less(place, end), height, _ints([0]))
    share = _share(_cast(height, _INT32), _cast(op.ReduceSum(height, _ints([0])), _INT32))
    # As many bits as leave the largest weight, rounded, below 2 ** _WEIGHT_BITS.
    limits = [min(2**30, (2 ** (_WEIGHT_BITS + 1) - 1) << _SHARE_BITS - 1 >> bit) for bit in range(1, _MOST_BITS + 1)]
    fits = op.Less(op.ReduceMax(share, keepdims=0), _cast(_ints(limits), _INT32))
    bits = op.ReduceSum(_cast(fits, _INT32), _ints([0]))  # [1]
    unit = op.Pow(_int32(2), op.Sub(_int32(_SHARE_BITS), bits))
    weight = op.Div(op.Add(share, op.Div(unit, _int32(2))), unit)
    return op.Min(place, op.Sub(old, _ints([1]))), weight, bits


def _share(part: Value, whole: Value) -> Value:
    """``part * 2 ** _SHARE_BITS // whole``, eight bits after the other, as the product has more than 32."""
    share, left = _int32(0), part
    for _ in range(_SHARE_BITS // 8):
        left = op.Mul(left, _int32(256))
        digit = op.Div(left, whole)
        left = op.Sub(left, op.Mul(digit, whole))
        share = op.Add(op.Mul(share, _int32(256)), digit)
    return share


def _cast(value: Value, to: int) -> Value:
    return op.Cast(value, to=to)


def _reshaped(value: Any, shape: list[int]) -> Value:  # noqa: ANN401
    if isinstance(value, int):
        return _ints([value])
    return op.Reshape(_cast(value, _INT64), _ints(shape))


def _ints(values: list[int]) -> Value:
    return op.Constant(value_ints=values)


def _int32(value: int) -> Value:
    return _cast(_ints([value]), _INT32)


def _scalar(value: int) -> Value:
    return op.Constant(value_int=value)

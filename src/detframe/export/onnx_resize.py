"""Antialiased resizing of uint8 images in ONNX, to the last grey as torch does it.

ONNX has an operator for it, but each runtime rounds in a way of its own, and OpenVINO leaves antialiasing out: a
detector that is asked about other pixels suppresses other boxes. So torch's own arithmetic is written out
(``aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h``): a triangle as the filter, its weights as whole numbers, one
side after the other, each rounded to whole greys. Greys are weighed and added up in float32, which is exact but after a
reduction to less than a quarter: there one pixel in 50,000 may be one grey off.

What costs is the moving of pixels, not the sums. Neighbouring new pixels are made of nearly the same old ones, so a
block of them shares a window of old ones and a small matrix, mostly zeros: each old pixel is copied about once.
"""

from __future__ import annotations

from typing import Any

from onnxscript import opset18

op: Any = opset18  # whose types tell kinds of elements apart that are not known here
Value = Any
"""A value of the graph in the making; onnxscript has no public type for it."""

_FLOAT, _UINT8, _INT32, _INT64 = 1, 2, 6, 7  # onnx.TensorProto
_BLOCK = 16  # new pixels of a side
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
    height, width = (as_vector(length) for length in output_size)
    columns = _cast(op.Transpose(images, perm=[0, 1, 3, 2]), _FLOAT)  # else single pixels would be gathered, not rows
    rows = op.Transpose(_resized(columns, width), perm=[0, 1, 3, 2])
    return _cast(_resized(rows, height), _UINT8)


def _resized(images: Value, length: Value) -> Value:
    """Float images ``[B, C, L, N]`` of whole greys with another ``L``, of whole greys again."""
    place, weight, bits = _filters(op.Shape(images, start=2, end=3), length)
    total = op.MatMul(_cast(weight, _FLOAT), op.Gather(images, place, axis=2))  # [B, C, blocks, _BLOCK, N]
    one = _cast(op.Pow(_int32(2), bits), _FLOAT)
    half = op.Div(one, _cast(_int32(2), _FLOAT))
    greys = op.Min(op.Floor(op.Div(op.Add(total, half), one)), _cast(_int32(255), _FLOAT))
    shape = op.Concat(op.Shape(images, end=2), _ints([-1]), op.Shape(images, start=3), axis=0)
    return op.Slice(op.Reshape(greys, shape), _ints([0]), length, _ints([2]))  # the last block may have pixels too many


def _filters(old: Value, new: Value) -> tuple[Value, Value, Value]:
    """Of each block of new pixels the old ones under their filters, and of each new pixel the weights of these.

    Lengths are in units of half an old pixel over a new one.

    Args:
        old: ``[1]`` int64 pixels of the side.
        new: ``[1]`` int64 pixels that it gets.

    Returns:
        Places ``[blocks, window]`` int64, weights ``[blocks, _BLOCK, window]`` int32, and the bits ``[1]`` int32 that
        weights are of.
    """
    two, block = _ints([2]), _ints([_BLOCK])
    reach = op.Max(old, new)  # half the filter's width, times the new length
    blocks = op.Div(op.Add(new, _ints([_BLOCK - 1])), block)
    number = op.Range(_scalar(0), op.Squeeze(op.Mul(blocks, block), _ints([0])), _scalar(1))
    number = op.Reshape(op.Min(number, op.Sub(new, _ints([1]))), _ints([-1, _BLOCK, 1]))
    centre = op.Mul(old, op.Add(op.Mul(number, two), _ints([1])))  # [blocks, _BLOCK, 1]
    doubled = op.Mul(new, two)
    first = op.Max(op.Div(op.Add(op.Sub(centre, op.Mul(reach, two)), new), doubled), _ints([0]))
    end = op.Min(op.Div(op.Add(op.Add(centre, op.Mul(reach, two)), new), doubled), old)
    begin = op.ReduceMin(first, _ints([1]))  # [blocks, 1, 1]
    window = op.ReduceMax(op.Sub(op.ReduceMax(end, _ints([1])), begin), keepdims=0)
    place = op.Add(begin, op.Range(_scalar(0), window, _scalar(1)))  # [blocks, 1, window]
    away = op.Abs(op.Sub(op.Mul(op.Add(op.Mul(place, two), _ints([1])), new), centre))
    height = op.Max(op.Sub(op.Mul(reach, two), away), _ints([0]))
    own = op.And(op.GreaterOrEqual(place, first), op.Less(place, end))
    height = op.Where(own, height, _ints([0]))  # [blocks, _BLOCK, window]
    share = _share(_cast(height, _INT32), _cast(op.ReduceSum(height, _ints([2])), _INT32))
    # As many bits as leave the largest weight, rounded, below 2 ** _WEIGHT_BITS.
    limits = [min(2**30, (2 ** (_WEIGHT_BITS + 1) - 1) << _SHARE_BITS - 1 >> bit) for bit in range(1, _MOST_BITS + 1)]
    fits = op.Less(op.ReduceMax(share, keepdims=0), _cast(_ints(limits), _INT32))
    bits = op.ReduceSum(_cast(fits, _INT32), _ints([0]))  # [1]
    unit = op.Pow(_int32(2), op.Sub(_int32(_SHARE_BITS), bits))
    weight = op.Div(op.Add(share, op.Div(unit, _int32(2))), unit)
    return op.Squeeze(op.Min(place, op.Sub(old, _ints([1]))), _ints([1])), weight, bits


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


def as_vector(number: Any) -> Value:  # noqa: ANN401
    """A whole number, or the graph's value of one, as ``[1]`` int64, which ONNX's operators want sizes to be."""
    if isinstance(number, int):
        return _ints([number])
    return op.Reshape(_cast(number, _INT64), _ints([1]))


def _ints(values: list[int]) -> Value:
    return op.Constant(value_ints=values)


def _int32(value: int) -> Value:
    return _cast(_ints([value]), _INT32)


def _scalar(value: int) -> Value:
    return op.Constant(value_int=value)

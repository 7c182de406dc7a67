"""How synapses and sums are spelled in ONNX.

Convolutions and pools look their windows up: ONNX Runtime has ``Conv`` and ``AveragePool`` in float32 only.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from export.onnx_format.builder import OnnxBuilder
from export.onnx_format.spellings import writes
from export.operators import (
    Affine,
    Convolution,
    Flatten,
    IntegerAffine,
    IntegerConvolution,
    Pooling,
    Scale,
    Total,
)
from export.operators.affine import narrow_weight
from export.operators.convolution import windows_of

INT16_MAX = (1 << 15) - 1


@writes(Total)
def write_total(build: OnnxBuilder, name: str, operator: Total, *summands: str) -> None:
    """Write a sum."""
    build.add("Add", summands, name)
    if all(summand in build.bounds for summand in summands):
        build.bounds[name] = sum(build.bounds[summand] for summand in summands)


@writes(Affine)
def write_affine(build: OnnxBuilder, name: str, operator: Affine, x: str) -> None:
    """Write ``x W^T + b``; the weight is stored transposed, as ``MatMul`` takes it."""
    weight = build.weight(f"{name}/weight", operator.weight.T)
    if operator.bias is None:
        build.add("MatMul", [x, weight], name)
        return
    product = build.add("MatMul", [x, weight], f"{name}/product")
    build.add("Add", [product, build.weight(f"{name}/bias", operator.bias)], name)


@writes(IntegerAffine)
def write_integer_affine(build: OnnxBuilder, name: str, operator: IntegerAffine, x: str) -> None:
    """Write ``x W^T + b`` in whole numbers: ``MatMulInteger`` on spikes and small sums of them, else 64 bits."""
    product = f"{name}/product" if operator.bias is not None else name
    weight = narrow_weight(operator.weight)
    largest = int(np.abs(weight.astype(np.int64)).max(initial=0))
    bound = build.bounds.get(x, INT16_MAX)
    if 2 * bound * largest <= INT16_MAX:  # some processors add pairs of such products in 16 bits, and saturate
        inhibitory = weight.dtype == np.int16  # down to -255: the operator takes 8 bits, so the sign goes behind it
        stored = build.weight(
            f"{name}/weight", (-weight if inhibitory else weight).T, np.uint8 if inhibitory else weight.dtype
        )
        spikes = build.add("Cast", [x], f"{name}/spikes", to=TensorProto.UINT8)
        total = build.add("MatMulInteger", [spikes, stored], f"{name}/total")
        signed = build.add("Neg", [total], f"{name}/inhibition") if inhibitory else total
        build.cast(signed, product)
    else:
        stored = build.weight(f"{name}/weight", weight.T, weight.dtype)
        build.add("MatMul", [x, build.cast(stored, f"{name}/weight_64")], product)
    if operator.bias is not None:
        build.add("Add", [product, build.weight(f"{name}/bias", operator.bias)], name)


@writes(Scale)
def write_scale(build: OnnxBuilder, name: str, operator: Scale, x: str) -> None:
    """Write ``scale x``."""
    build.add("Mul", [x, build.weight(f"{name}/scale", operator.scale)], name)


@writes(Flatten)
def write_flatten(build: OnnxBuilder, name: str, operator: Flatten, x: str) -> None:
    """Write nothing but a name: features are a row in any case."""
    build.add("Identity", [x], name)
    if x in build.bounds:
        build.bounds[name] = build.bounds[x]


@writes(Convolution, IntegerConvolution)
def write_convolution(build: OnnxBuilder, name: str, operator: Convolution, x: str) -> None:
    """Write the windows of each group as rows, times the group's weight, ``(T, B, N, positions, channels)``."""
    places = _places(operator.in_shape)
    kernel, groups = operator.weight.shape[2:], operator.groups
    windows = windows_of(places, kernel, operator.stride, operator.padding, operator.dilation)[0]
    windows = windows.reshape(groups, -1, math.prod(operator.out_shape[1:]), math.prod(kernel))  # (G, C, P, K)
    guarded = _with_zero(build, name, x)
    maps = []
    for group, weight in enumerate(np.split(operator.weight, groups)):
        index = np.moveaxis(windows[group], 1, 0).reshape(windows.shape[2], -1)  # (P, C K)
        rows = _look_up(build, f"{name}/group_{group}", guarded, index)
        stored = build.weight(f"{name}/weight_{group}", weight.reshape(len(weight), -1).T)
        maps.append(build.add("MatMul", [rows, stored], f"{name}/maps_{group}"))
    joined = build.add("Concat", maps, f"{name}/maps", axis=-1) if groups > 1 else maps[0]
    biased = build.add("Add", [joined, build.weight(f"{name}/bias", operator.bias)], f"{name}/biased")
    channels_first = build.add("Transpose", [biased], f"{name}/channels_first", perm=[0, 1, 2, 4, 3])
    build.add("Reshape", [channels_first, build.shape(0, 0, 0, operator.out_features)], name)


@writes(Pooling)
def write_pooling(build: OnnxBuilder, name: str, operator: Pooling, x: str) -> None:
    """Write the sum, or the mean, of each window."""
    pads = tuple((pad, pad) for pad in operator.padding)
    windows = windows_of(_places(operator.in_shape), operator.kernel, operator.stride, pads, (1, 1))[0]
    index = windows.reshape(operator.out_features, math.prod(operator.kernel))
    rows = _look_up(build, name, _with_zero(build, name, x), index)
    total = f"{name}/total" if operator.mean else name
    build.add("ReduceSum", [rows, build.axes(-1)], total, keepdims=0)
    if operator.mean:
        build.add("Div", [total, build.weight(f"{name}/size", np.array(index.shape[1]))], name)


def _places(shape: tuple[int, ...]) -> np.ndarray:
    """Return ``(1, *shape)``: where each feature stands behind a 0; a padded place is 0, that of the 0."""
    return 1 + np.arange(math.prod(shape)).reshape(1, *shape)


def _with_zero(build: OnnxBuilder, name: str, x: str) -> str:
    """Write `x` with a feature of 0 before all others."""
    zero = build.weight("/zero_feature", np.zeros((1, 1, 1, 1)))
    leading = build.add("Shape", [x], f"{name}/leading", end=3)
    shape = build.add("Concat", [leading, build.axes(1)], f"{name}/zero_shape", axis=0)
    return build.add("Concat", [build.add("Expand", [zero, shape], f"{name}/zero"), x], f"{name}/guarded", axis=-1)


def _look_up(build: OnnxBuilder, name: str, guarded: str, index: np.ndarray) -> str:
    return build.add("Gather", [guarded, build.weight(f"{name}/places", index, np.int64)], f"{name}/windows", axis=-1)

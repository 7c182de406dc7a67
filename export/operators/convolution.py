"""Convolution over one or two axes. Standard NIR nodes ``Conv1d`` and ``Conv2d``, in integers with int8 arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.affine import (
    is_marked_integer,
    narrow_weight,
    read_integer_bias,
    read_integer_weight,
    sign_mode,
)
from export.operators.interval import Interval
from export.operators.operator import FLOAT64_EXACT, Array, Case, Operator, Traits
from export.operators.reading import StepSeconds, feature_shape, parameter, reads, whole_numbers


@dataclass(frozen=True, eq=False)
class Convolution(Operator):
    """``y[o, p] = b[o] + sum_c,k w[o, c, k] x[c, stride p + dilation k - padding]``, x being 0 outside its shape.

    Features of a token are the numbers of ``(channels, *size)`` in row-major order. With several groups, the outputs of
    a group read the inputs of that group alone.

    Parameters
    ----------
    size : tuple of int
        The input's length, or height and width.
    weight : ndarray
        ``(out_channels, in_channels / groups, *kernel)``.
    bias : ndarray
        ``(out_channels,)``.
    stride, dilation : tuple of int
    padding : tuple of (int, int)
        Zeros before and behind each axis.
    groups : int

    References
    ----------
    NIR's ``Conv1d`` and ``Conv2d``; ``torch.nn.Conv2d``.
    """

    name: ClassVar[str] = "convolution"
    traits: ClassVar[Traits] = Traits(
        integer=False,
        spike_range=None,
        sources=1,
        edges=None,
        keeps_shape=False,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=False,
        reads_tokens=False,
        remembers=False,
        passes_values=False,
        is_synaptic=True,
        needs_program=False,
        latency=0,
    )

    size: tuple[int, ...]
    weight: Array
    bias: Array
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Channels and size of the input."""
        return (self.weight.shape[1] * self.groups, *self.size)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Channels and size of the output."""
        return (
            self.weight.shape[0],
            *window_counts(self.size, self.weight.shape[2:], self.stride, self.padding, self.dilation),
        )

    @property
    def in_features(self) -> int:
        """All numbers of the input."""
        return math.prod(self.in_shape)

    @property
    def out_features(self) -> int:
        """All numbers of the output."""
        return math.prod(self.out_shape)

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `convolution`."""
        return convolution(self, x)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the interval of the convolution; padding is 0."""
        if read[0] is None:
            return None
        low, high = read[0].low, read[0].high
        weight, silent = self.weight.astype(np.float64), np.zeros(len(self.bias))
        positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)

        def side(*images: tuple[Array, Array]) -> Array:
            parts = (convolution(replace(self, weight=part, bias=silent), image) for part, image in images)
            return sum(parts) + np.repeat(self.bias.astype(np.float64), math.prod(self.out_shape[1:]))

        return Interval(side((positive, low), (negative, high)), side((positive, high), (negative, low)))

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Conv1d`` or ``nir.Conv2d``."""
        if all(before == behind for before, behind in self.padding):
            padding: Any = tuple(before for before, _ in self.padding)
        else:
            padding = "same"  # the only uneven padding NIR knows
        shared = {
            "weight": np.asarray(self.weight, dtype),
            "bias": np.asarray(self.bias, dtype),
            "groups": int(self.groups),
        }
        if len(self.size) == 1:
            padding = padding if padding == "same" else padding[0]
            return nir.Conv1d(
                input_shape=self.size[0], stride=self.stride[0], padding=padding, dilation=self.dilation[0], **shared
            )
        return nir.Conv2d(input_shape=self.size, stride=self.stride, padding=padding, dilation=self.dilation, **shared)


def convolution(operator: Convolution, x: Array) -> Array:
    """Return the convolution of ``x`` ``(..., in_features)`` as ``(..., out_features)``."""
    leading = x.shape[:-1]
    windows = windows_of(
        x.reshape(-1, *operator.in_shape),
        operator.weight.shape[2:],
        operator.stride,
        operator.padding,
        operator.dilation,
    )  # (M, channels, *positions, *kernel)
    positions = operator.out_shape[1:]
    groups, kernel = operator.groups, math.prod(operator.weight.shape[2:])
    split = windows.reshape(len(windows), groups, -1, math.prod(positions), kernel)
    weight = operator.weight.reshape(groups, -1, operator.weight.shape[1], kernel)
    y = np.einsum("mgcpk,gock->mgop", split, weight, optimize=True).reshape(len(windows), len(operator.bias), -1)
    return (y + operator.bias[:, None]).reshape(*leading, -1)


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerConvolution(Convolution):
    """The same in whole numbers, which never wrap here: only a neuron's current does.

    Parameters
    ----------
    weight : ndarray
        As narrow as its sign mode allows (int8 with mixed signs).
    bias : ndarray
        ``(out_channels,)`` int64, in units of `y`.
    unit : ndarray
        ``(out_channels,)`` float64: what a 1 of a channel stands for in the float graph.

    References
    ----------
    ``lava.proc.conv.models.PyConvModelBitAcc``, whose weights keep to the limits of ``export.loihi_numbers``.
    """

    name: ClassVar[str] = "integer_convolution"
    traits: ClassVar[Traits] = replace(Convolution.traits, integer=True)

    unit: Array

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return int64; computed in float64 where no sum can leave the whole numbers that float64 holds."""
        taps = math.prod(self.weight.shape[1:])
        largest = int(np.abs(x).max(initial=0)) * int(np.abs(self.weight, dtype=np.float64).max(initial=0)) * taps
        if largest + int(np.abs(self.bias).max(initial=0)) < FLOAT64_EXACT:
            return convolution(self, x.astype(np.float64)).astype(np.int64)
        return convolution(replace(self, weight=self.weight.astype(np.int64)), x.astype(np.int64))

    def cast(self, dtype: DTypeLike) -> IntegerConvolution:
        """Return the operator with its weights in float64, in which `step` multiplies exactly and fast."""
        return replace(self, weight=np.ascontiguousarray(self.weight, np.float64))

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Conv1d`` or ``nir.Conv2d`` with integer arrays; `dtype` is not used."""
        node = Convolution.to_nir(self, np.int64, dt)
        node.weight = narrow_weight(self.weight)
        node.metadata.update(
            op=self.name,
            op_version=self.version,
            standard=True,
            unit=np.asarray(self.unit, np.float64),
            sign_mode=sign_mode(self.weight),
            formula="y[o, p] = b[o] + sum_c,k w[o, c, k] x[c, stride p + dilation k - padding] in whole numbers "
            "without wrap-around; y * unit[o] is the float value",
        )
        return node


def window_counts(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """Return how many windows of `kernel` fit along each axis."""
    return tuple(
        (length + sum(pad) - gap * (taps - 1) - 1) // hop + 1
        for length, taps, hop, pad, gap in zip(size, kernel, stride, padding, dilation, strict=True)
    )


def windows_of(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> Array:
    """Return the windows of ``x`` ``(M, channels, *size)`` as ``(M, channels, *positions, *kernel)``."""
    axes = tuple(range(2, x.ndim))
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    spans = tuple(gap * (taps - 1) + 1 for taps, gap in zip(kernel, dilation, strict=True))
    # NumPy's stub knows a single axis only
    every = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)  # type: ignore[call-overload]
    return every[(..., *(slice(None, None, hop) for hop in stride), *(slice(None, None, gap) for gap in dilation))]


@reads(Convolution, nir.Conv1d, nir.Conv2d)
def read_convolution(node: nir.Conv1d | nir.Conv2d, where: str, dt: StepSeconds) -> Convolution:
    """Check and read ``nir.Conv1d`` or ``nir.Conv2d`` whose input shape is known."""
    axes = 1 if isinstance(node, nir.Conv1d) else 2
    whole = is_marked_integer(node, IntegerConvolution)
    weight, unit = read_integer_weight(node, where, IntegerConvolution) if whole else (np.asarray(node.weight), None)
    weight = weight if whole else parameter(weight, (None,) * (axes + 2), where, "weight")
    bias = read_integer_bias(node, where) if whole else parameter(node.bias, weight.shape[:1], where, "bias")
    stride = whole_numbers(node.stride, axes, 1, where, "stride")
    dilation = whole_numbers(node.dilation, axes, 1, where, "dilation")
    (groups,) = whole_numbers(node.groups, 1, 1, where, "groups")
    size = feature_shape({"input": node.input_shape}, where, "input")
    kernel = weight.shape[2:]
    if len(size) != axes or weight.ndim != axes + 2 or 0 in weight.shape or len(weight) % groups:
        raise GraphError(f"{where}: a weight {weight.shape} in {groups} groups does not fit an input of size {size}")
    padding = _padding(node.padding, kernel, stride, dilation, where)
    kind: Any = Convolution if unit is None else partial(IntegerConvolution, unit=unit)
    found: Convolution = kind(
        size=size, weight=weight, bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    if min(found.out_shape) < 1:
        raise GraphError(f"{where}: a kernel of {kernel} with dilation {dilation} is larger than its input {size}")
    return found


def _padding(
    said: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], where: str
) -> tuple[tuple[int, int], ...]:
    said = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    if not isinstance(said, str):
        return tuple((pad, pad) for pad in whole_numbers(said, len(kernel), 0, where, "padding"))
    if said == "valid":
        return ((0, 0),) * len(kernel)
    if said != "same" or set(stride) != {1}:
        raise GraphError(
            f"{where}: padding {said!r} at stride {stride}; only 'valid', and 'same' at stride 1, are known"
        )
    totals = [gap * (taps - 1) for taps, gap in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def cases() -> list[Case]:
    """Return one and two axes, with stride, padding, dilation, groups, rectangles, and uneven padding."""
    rng = np.random.default_rng(24)

    def case(title: str, size: tuple[int, ...], weight: tuple[int, ...], **changes: Any) -> Case:
        ones, zeros = (1,) * len(size), ((0, 0),) * len(size)
        rest = {"stride": ones, "padding": zeros, "dilation": ones, "groups": 1, **changes}
        operator = Convolution(size, rng.normal(size=weight), rng.normal(size=weight[0]), **rest)
        return Case(title, operator, rng.normal(size=(2, 2, 1, operator.in_features)))

    return [
        case("convolution over time", (9,), (4, 2, 3), stride=(2,), padding=((1, 1),)),
        case("convolution over a picture", (5, 5), (3, 2, 3, 3)),
        case(
            "convolution with everything",
            (7, 6),
            (4, 2, 3, 2),
            stride=(2, 1),
            padding=((1, 1), (2, 2)),
            dilation=(2, 3),
            groups=2,
        ),
        case("convolution padded to its own size", (4, 5), (2, 1, 2, 3), padding=((0, 1), (1, 1))),
    ]


def integer_cases() -> list[Case]:
    """Return one and two axes, with everything a convolution can have, and weights and inputs at their limits."""
    rng = np.random.default_rng(29)

    def case(
        title: str, size: tuple[int, ...], weight: tuple[int, ...], bits: int, shift: int = 0, **changes: Any
    ) -> Case:
        ones, zeros = (1,) * len(size), ((0, 0),) * len(size)
        rest = {"stride": ones, "padding": zeros, "dilation": ones, "groups": 1, **changes}
        operator = IntegerConvolution(
            size=size,
            weight=rng.integers(-128, 128, weight).astype(np.int8),
            bias=rng.integers(-(1 << 20), 1 << 20, weight[0]) << shift,
            unit=np.full(weight[0], 0.25),
            **rest,
        )
        x = rng.integers(-(1 << bits), 1 << bits, (2, 2, 1, operator.in_features))
        return Case(title, operator, x << shift)

    everything: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 1), (2, 2)), "dilation": (2, 3), "groups": 2}
    return [
        case("integer convolution over time", (9,), (4, 2, 3), 1, stride=(2,), padding=((1, 1),)),
        case("integer convolution with everything", (7, 6), (4, 2, 3, 2), 10, **everything),
        case("integer convolution beyond float64", (4, 4), (2, 1, 2, 2), 23, 28),
    ]

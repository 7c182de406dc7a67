"""Sums and means over windows of a picture. Standard NIR nodes ``SumPool2d`` and ``AvgPool2d``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.convolution import window_counts, windows_of
from export.operators.interval import Interval
from export.operators.operator import Array, Case, Operator, Traits
from export.operators.reading import StepSeconds, feature_shape, reads, whole_numbers


@dataclass(frozen=True, eq=False)
class Pooling(Operator):
    """``y[c, p] = sum_k x[c, stride p + k - padding]``; a mean divides by the size of the kernel, padding included.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of the input.
    kernel, stride, padding : tuple of int
        For height and width.
    mean : bool
        Whether it is a mean in place of a sum.

    References
    ----------
    NIR's ``SumPool2d`` and ``AvgPool2d``; ``torch.nn.AvgPool2d`` with ``count_include_pad``.
    """

    name: ClassVar[str] = "pooling"
    traits: ClassVar[Traits] = Traits(
        integer=None,
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

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    mean: bool

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return self.shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Channels, and how many windows fit."""
        return (self.shape[0], *window_counts(self.shape[1:], self.kernel, self.stride, self._padding, (1, 1)))

    @property
    def in_features(self) -> int:
        """All numbers of the input."""
        return math.prod(self.in_shape)

    @property
    def out_features(self) -> int:
        """All numbers of the output."""
        return math.prod(self.out_shape)

    def check_whole_numbers(self, where: str) -> None:
        """Check that it is a sum."""
        if self.mean:
            raise GraphError(f"{where}: a mean divides; an integer graph sums, and its unit is divided")

    @property
    def _padding(self) -> tuple[tuple[int, int], ...]:
        return tuple((pad, pad) for pad in self.padding)

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return the windows' sums or means, ``(..., out_features)``."""
        picture = x.reshape(-1, *self.shape)
        total = windows_of(picture, self.kernel, self.stride, self._padding, (1, 1)).sum((-2, -1))
        y = total.reshape(*x.shape[:-1], -1)
        return y / x.dtype.type(math.prod(self.kernel)) if self.mean else y

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the pool of the least and of the greatest."""
        if read[0] is None:
            return None
        low, high = (self.step(side, None, None) for side in (read[0].low, read[0].high))
        return Interval(low, high)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.SumPool2d`` or ``nir.AvgPool2d``."""
        kind = nir.AvgPool2d if self.mean else nir.SumPool2d
        return kind(np.array(self.kernel), np.array(self.stride), np.array(self.padding))


@reads(Pooling, nir.SumPool2d, nir.AvgPool2d)
def read_pooling(node: nir.SumPool2d | nir.AvgPool2d, where: str, dt: StepSeconds) -> Pooling:
    """Check and read ``nir.SumPool2d`` or ``nir.AvgPool2d`` whose input shape is known."""
    shape = feature_shape(node.input_type, where, "input")
    if len(shape) != 3:
        raise GraphError(f"{where}: reads a shape {shape}; expected (channels, height, width)")
    found = Pooling(
        shape,
        kernel=whole_numbers(node.kernel_size, 2, 1, where, "kernel_size"),
        stride=whole_numbers(node.stride, 2, 1, where, "stride"),
        padding=whole_numbers(node.padding, 2, 0, where, "padding"),
        mean=isinstance(node, nir.AvgPool2d),
    )
    if min(found.out_shape) < 1:
        raise GraphError(f"{where}: a window of {found.kernel} is larger than its input {shape}")
    return found


def cases() -> list[Case]:
    """Return sums and means over square and rectangular windows, overlapping, padded, and leaving a rest."""
    rng = np.random.default_rng(25)
    found = []
    for mean in (False, True):
        title = "mean pooling" if mean else "sum pooling"
        for rest, kernel, stride, padding in (
            ("", (2, 2), (2, 2), (0, 0)),
            (" of overlapping rectangles", (2, 3), (1, 2), (1, 1)),
        ):
            x = rng.normal(size=(2, 2, 1, 3 * 5 * 6))
            found.append(Case(f"{title}{rest}", Pooling((3, 5, 6), kernel, stride, padding, mean), x))
    return found


def integer_cases() -> list[Case]:
    """Return sums of whole numbers; a mean has none, it is a sum whose unit is divided."""
    rng = np.random.default_rng(30)
    x = rng.integers(-(1 << 20), 1 << 20, (2, 2, 1, 3 * 5 * 6))
    return [Case("integer sum pooling", Pooling((3, 5, 6), (2, 3), (1, 2), (1, 1), False), x)]

"""Axes of a feature shape made one. Standard NIR node ``Flatten``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.interval import Interval
from export.operators.operator import Array, Case, Operator, Traits
from export.operators.reading import StepSeconds, feature_shape, reads


@dataclass(frozen=True, eq=False)
class Flatten(Operator):
    """``y = x``: features are a row of numbers here in any case, so that only their shape in the file changes.

    Parameters
    ----------
    shape : tuple of int
        Of the input.
    start_dim, end_dim : int
        First and last axis of `shape` that become one, as in ``torch.nn.Flatten`` without the batch axis.

    References
    ----------
    NIR's ``Flatten``.
    """

    name: ClassVar[str] = "flatten"
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
        passes_values=True,
        is_synaptic=False,
        needs_program=False,
        latency=0,
    )

    shape: tuple[int, ...]
    start_dim: int = 0
    end_dim: int = -1

    @property
    def in_features(self) -> int:
        """All numbers of the shape."""
        return math.prod(self.shape)

    @property
    def out_features(self) -> int:
        """The same."""
        return self.in_features

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape that is flattened."""
        return self.shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape with the axes from `start_dim` to `end_dim` as one."""
        axes = range(len(self.shape))
        start, end = axes[self.start_dim], axes[self.end_dim] + 1
        return (*self.shape[:start], math.prod(self.shape[start:end]), *self.shape[end:])

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return `x`."""
        return x

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return what it reads."""
        return read[0]

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Flatten``."""
        return nir.Flatten({"input": np.array(self.shape)}, self.start_dim, self.end_dim)


@reads(Flatten, nir.Flatten)
def read_flatten(node: nir.Flatten, where: str, dt: StepSeconds) -> Flatten:
    """Check and read ``nir.Flatten`` whose input shape is known."""
    shape = feature_shape(node.input_type, where, "input")
    start, end = int(node.start_dim), int(node.end_dim)
    axes = range(-len(shape), len(shape))
    if start not in axes or end not in axes or start % len(shape) > end % len(shape):
        raise GraphError(f"{where}: flattens axes {start} to {end} of a shape {shape}")
    return Flatten(shape, start, end)


def cases() -> list[Case]:
    """Return all axes and some of them."""
    x = np.random.default_rng(23).normal(size=(2, 2, 3, 12))
    return [Case("flatten", Flatten((3, 2, 2)), x), Case("flatten of two axes", Flatten((3, 2, 2), 1, 2), x)]


def integer_cases() -> list[Case]:
    """Return whole numbers, which pass as they are."""
    x = np.random.default_rng(31).integers(-9, 10, (2, 2, 3, 12))
    return [Case("integer flatten", Flatten((3, 2, 2), 1, 2), x)]

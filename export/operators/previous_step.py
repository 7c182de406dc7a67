"""What a neuron sent in the step before: a recurrent connection. In NIR, an edge that closes a cycle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
from numpy.typing import DTypeLike

from export.operators.operator import Array, Operator


@dataclass(frozen=True, eq=False)
class PreviousStep(Operator):
    """``y[t] = s[t - 1]``, the spikes of a neuron further on in the order, and 0 at the first step.

    Reading a graph puts one where an edge leaves a neuron and closes a cycle; see `export.recurrence`.

    Parameters
    ----------
    features : int
    """

    name: ClassVar[str] = "previous_step"
    integer: ClassVar[bool | None] = None

    features: int

    @property
    def in_features(self) -> int:
        """Features of the neuron."""
        return self.features

    @property
    def out_features(self) -> int:
        """The same."""
        return self.features

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return `x`: whoever runs the graph has kept it for a step already."""
        return x

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Not a node in NIR: `export.network.build_graph` writes edges instead."""
        raise AssertionError("a recurrent connection is written as an edge, never as a node")

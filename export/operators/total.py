"""Sum of two nodes: the residual stream. In NIR it is not a node but two edges into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
from numpy.typing import DTypeLike

from export.operators.operator import Array, Operator


@dataclass(frozen=True, eq=False)
class Total(Operator):
    """``y = a + b``, the sum of what two nodes send.

    NIR sums all edges into a node, in the order of the edges. Reading a graph turns such sums into chains of these, so
    that a running sum (the residual stream) is computed once and has a name.

    Parameters
    ----------
    features : int
    """

    name: ClassVar[str] = "total"
    keeps_shape: ClassVar[bool] = True
    integer: ClassVar[bool | None] = None

    features: int

    @property
    def in_features(self) -> int:
        """Features of either input."""
        return self.features

    @property
    def out_features(self) -> int:
        """The same."""
        return self.features

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return `x`: whoever runs the graph has added the inputs already."""
        return x

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Not a node in NIR: `export.network.build_graph` writes edges instead."""
        raise AssertionError("a total is written as edges, never as a node")

"""Sum of two nodes: the residual stream. In NIR it is not a node but two edges into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import nir
from numpy.typing import DTypeLike

from export.operators.interval import Interval
from export.operators.operator import SUM, Array, Operator, Traits


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
    traits: ClassVar[Traits] = Traits(
        integer=None,
        spike_range=None,
        sources=2,
        edges=SUM,
        keeps_shape=True,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=True,
        reads_tokens=False,
        remembers=False,
        passes_values=True,
        is_synaptic=False,
        needs_program=False,
        latency=0,
    )

    features: int

    @property
    def in_features(self) -> int:
        """Features of either input."""
        return self.features

    @property
    def out_features(self) -> int:
        """The same."""
        return self.features

    def step(self, x: tuple[Array, Array], state: Any, token_mask: Array | None) -> Array:
        """Return the sum of both."""
        left, right = x
        return left + right

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the sum of what both lie between."""
        left, right = read
        if left is None or right is None:
            return None
        return Interval(left.low + right.low, left.high + right.high)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Not a node in NIR: `export.network.build_graph` writes edges instead."""
        raise AssertionError("a total is written as edges, never as a node")

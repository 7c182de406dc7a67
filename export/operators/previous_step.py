"""What a neuron sent in the step before: a recurrent connection. In NIR, an edge that closes a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.operators.interval import Interval
from export.operators.operator import PREVIOUS_STEP, Array, Operator, Traits


@dataclass(frozen=True, eq=False)
class PreviousStep(Operator):
    """``y[t] = s[t - 1]``, the spikes of a neuron further on in the order, and 0 at the first step.

    Reading a graph puts one where an edge leaves a neuron and closes a cycle; see `export.recurrence`.

    Parameters
    ----------
    features : int
    """

    name: ClassVar[str] = "previous_step"
    traits: ClassVar[Traits] = Traits(
        integer=None,
        spike_range=None,
        sources=1,
        edges=PREVIOUS_STEP,
        keeps_shape=False,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=False,
        reads_tokens=False,
        remembers=True,
        passes_values=True,
        is_synaptic=False,
        needs_program=False,
        latency=0,
    )

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

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the least and greatest spike of the neurons that recurrent connections leave here."""
        return Interval(np.zeros(self.features), np.ones(self.features))

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Not a node in NIR: `export.network.build_graph` writes edges instead."""
        raise AssertionError("a recurrent connection is written as an edge, never as a node")

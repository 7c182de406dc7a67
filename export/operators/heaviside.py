"""A step without memory. Standard NIR node ``Threshold``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.firing import NeuronState, fires, firing_threshold, meant_threshold, with_test
from export.operators.operator import Array, SpikingOperator, Traits
from export.operators.reading import StepSeconds, check_standard_marks, parameter, reads


@dataclass(frozen=True, eq=False)
class Heaviside(SpikingOperator):
    """A step without memory: ``S = x > threshold`` (>= with `fire_on_equal`).

    Parameters
    ----------
    threshold : ndarray
        ``(features,)``.
    fire_on_equal : bool

    References
    ----------
    NIR's ``Threshold``. The published SpikeBERT code turns embeddings into spikes with one at 0.
    """

    name: ClassVar[str] = "heaviside"
    traits: ClassVar[Traits] = Traits(
        integer=None,
        spike_range=(0, 1),
        sources=1,
        edges=None,
        keeps_shape=True,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=False,
        reads_tokens=False,
        remembers=False,
        passes_values=False,
        is_synaptic=False,
        needs_program=False,
        latency=0,
    )

    threshold: Array
    fire_on_equal: bool = False

    @property
    def update(self) -> str:
        """The equation of one step, in words a file can carry."""
        return with_test("S[t] = I[t] > threshold", self.fire_on_equal)

    def check_whole_numbers(self, where: str) -> None:
        """Check that thresholds are whole numbers."""
        if np.any(self.threshold != np.rint(self.threshold)):
            raise GraphError(f"{where}: a threshold of an integer graph is no whole number")

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> NeuronState:
        """Return a state that only remembers what was tested."""
        return NeuronState(np.zeros(0, dtype), np.zeros(0, dtype), np.zeros(shape, dtype))

    def step(self, x: Array, state: NeuronState, token_mask: Array | None) -> Array:
        """Return 1 where `x` lies above the threshold, else 0."""
        state.tested_potential = x
        return fires(x, self.threshold, self.fire_on_equal).astype(x.dtype)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Threshold``."""
        threshold = np.asarray(self.threshold, np.float64)
        metadata = {
            "op": self.name,
            "op_version": self.version,
            "standard": True,
            "fire_on_equal": self.fire_on_equal,
            "threshold": threshold,
        }
        return nir.Threshold(firing_threshold(threshold, self.fire_on_equal, dtype), metadata=metadata)


@reads(Heaviside, nir.Threshold)
def read_threshold(node: nir.Threshold, where: str, dt: StepSeconds) -> Heaviside:
    """Check and read ``nir.Threshold``."""
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    check_standard_marks(metadata, Heaviside, where)
    written = parameter(node.threshold, (None,), where, "threshold")
    return Heaviside(*meant_threshold(written, metadata, where))

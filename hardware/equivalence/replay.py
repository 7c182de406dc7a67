"""A subgraph computed again on the inputs of a run, each value with the bound of how far rounding may move it.

How an operator is computed again is its row of `BOUNDS`, a small class beside the others here. One that has none has no
bound, so that nothing behind it could be judged: a graph that holds it is refused, by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from export.errors import UnsupportedOperatorError
from export.network import Network, Node
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    RuleTable,
    Scale,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
    rule_for,
)
from export.operators.firing import NeuronState, fires
from export.operators.operator import Array
from hardware.equivalence.rounding import (
    Precision,
    bound_affine,
    bound_attention,
    bound_gather,
    bound_layer_norm,
    bound_potential,
    bound_token_mean,
)
from hardware.equivalence.subgraphs import Subgraph
from hardware.traces.edges import BINARY
from hardware.traces.trace import Trace


class SubgraphReplay:
    """Computes one subgraph step by step, in a precision, with the bound of each value.

    Parameters
    ----------
    network : Network
    subgraph : Subgraph
    trace : Trace
        Gives mask and token ids.
    precision : Precision

    Raises
    ------
    UnsupportedOperatorError
        An operator has no bound.
    """

    def __init__(self, network: Network, subgraph: Subgraph, trace: Trace, precision: Precision) -> None:
        self.precision = precision
        token_mask = None if trace.mask.all() else trace.mask[..., None]
        self.nodes = [rule_for(BOUNDS, node)(node, precision, token_mask) for node in subgraph.nodes]
        self.hot = None
        if network.token_encoding is not None and trace.input_ids is not None:
            self.hot = network.token_encoding.hot_inputs(trace.input_ids)

    @property
    def last(self) -> NodeReplay:
        """The node that the subgraph ends in."""
        return self.nodes[-1]

    def step(self, entering: dict[str, Array], fired: Array | None) -> tuple[Array, Array]:
        """Return the value behind one step and its bound.

        Parameters
        ----------
        entering : dict of str to ndarray
            ``(B, N, D)`` by source.
        fired : ndarray or None
            What the subgraph's neurons fired in this step; the reset goes by it.
        """
        values = {name: value.astype(self.precision.dtype) for name, value in entering.items()}
        distances = {name: np.zeros(value.shape) for name, value in values.items()}
        for node in self.nodes:
            if self.hot is not None and node.sources[0] not in values:
                values[node.name], distances[node.name] = node.gather(self.hot)
                continue
            inputs = [values[source] for source in node.sources]
            apart = [distances[source] for source in node.sources]
            values[node.name], distances[node.name] = node.step(inputs, apart, fired)
        return values[self.last.name], distances[self.last.name]


class NodeReplay(ABC):
    """One node computed again: its value in each step, and how far another implementation's may lie from it.

    Parameters
    ----------
    node : Node
    precision : Precision
    token_mask : ndarray or None
        ``(B, N, 1)``.
    """

    def __init__(self, node: Node, precision: Precision, token_mask: Array | None) -> None:
        self.name, self.sources = node.name, node.sources
        self.operator: Any = node.operator.cast(precision.dtype)
        self.precision, self.token_mask = precision, token_mask

    def step(self, inputs: Sequence[Array], distances: Sequence[Array], fired: Array | None) -> tuple[Array, Array]:
        """Return value and bound for what its sources send, and how far another's may lie from that."""
        value = self.operator.step(inputs[0] if len(inputs) == 1 else tuple(inputs), None, self.token_mask)
        return value, self.bound(inputs, distances)

    @abstractmethod
    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """Return how far another implementation's value may lie from ours, of an operator without memory."""

    def gather(self, hot: Array) -> tuple[Array, Array]:
        """Return value and bound where it reads words, given as the indices that are hot ``(K, ..., N)``."""
        raise UnsupportedOperatorError(
            f"{self.name}: no rounding bound is derived for {self.operator.name} that reads words"
        )


BOUNDS: RuleTable[type[NodeReplay]] = RuleTable("rounding bound")
"""How each operator is computed again, with its bound."""


@BOUNDS.row(Total)
class _SumReplay(NodeReplay):
    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """Round once; there is one order."""
        return self.precision.rounded_apart(inputs[0].astype(np.float64) + inputs[1], distances[0] + distances[1])


@BOUNDS.row(Affine)
class _AffineReplay(NodeReplay):
    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """See `bound_affine`."""
        return bound_affine(self.operator, inputs[0], distances[0], self.precision)

    def gather(self, hot: Array) -> tuple[Array, Array]:
        """See `bound_gather`."""
        return self.operator.gather(hot), bound_gather(self.operator, hot, self.precision)


@BOUNDS.row(LayerNorm)
class _LayerNormReplay(NodeReplay):
    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """See `bound_layer_norm`."""
        return bound_layer_norm(self.operator, inputs[0], distances[0], self.precision)


@BOUNDS.row(SpikeAttention)
class _AttentionReplay(NodeReplay):
    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """See `bound_attention`."""
        return bound_attention(self.operator, inputs[0], distances[0], self.token_mask, self.precision)


@BOUNDS.row(TokenMean)
class _TokenMeanReplay(NodeReplay):
    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """See `bound_token_mean`."""
        return bound_token_mean(inputs[0], distances[0], self.token_mask, self.precision)


class NeuronReplay(NodeReplay):
    """Neurons that send 1 above a threshold, computed again; the value is the potential that they test.

    Raises
    ------
    UnsupportedOperatorError
        They send other spikes than 0 and 1.
    """

    def __init__(self, node: Node, precision: Precision, token_mask: Array | None) -> None:
        super().__init__(node, precision, token_mask)
        if node.operator.traits.spike_range != BINARY:
            raise UnsupportedOperatorError(
                f"{node.name}: {node.operator.name} sends other spikes than 0 and 1; for those no rounding bound says "
                "which are possible"
            )

    def judge(self, potential: Array, bound: Array, spikes: Array) -> tuple[Array, Array]:
        """Return where spikes are such that no rounding gives them, and where either spike is possible."""
        threshold = self.operator.threshold
        near = (bound > 0) & (np.abs(potential.astype(np.float64) - threshold) <= bound)
        fired = fires(potential, threshold, self.operator.fire_on_equal)
        return (fired != (spikes != 0)) & ~near, near


@BOUNDS.row(Heaviside)
class _HeavisideReplay(NeuronReplay):
    def step(self, inputs: Sequence[Array], distances: Sequence[Array], fired: Array | None) -> tuple[Array, Array]:
        """Return what is tested: what comes in."""
        return inputs[0], self.bound(inputs, distances)

    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """Nothing is computed."""
        return distances[0]


@BOUNDS.row(LeakyIntegrateAndFire)
class _LeakyIntegrateAndFireReplay(NeuronReplay):
    """Neurons whose reset goes by what the run fired."""

    state: NeuronState | None = None
    distance: Array

    def step(self, inputs: Sequence[Array], distances: Sequence[Array], fired: Array | None) -> tuple[Array, Array]:
        """Return the potential as it is tested, and its bound."""
        (x,) = inputs
        if self.state is None:
            self.state, self.distance = self.operator.initial_state(x.shape, x.dtype), np.zeros(x.shape)
        state, bound = self.state, self.bound(inputs, distances)
        self.operator.step(x, state, self.token_mask)
        tested = state.tested_potential
        assert fired is not None
        state.spikes = fired.astype(x.dtype)
        state.membrane_potential, self.distance = tested, bound
        if self.operator.reset == "zero":
            state.membrane_potential = np.where(fired, x.dtype.type(0), tested)
            self.distance = np.where(fired, 0.0, bound)
        return tested, bound

    def bound(self, inputs: Sequence[Array], distances: Sequence[Array]) -> Array:
        """See `bound_potential`."""
        assert self.state is not None
        potential, spikes = self.state.membrane_potential, self.state.spikes
        return bound_potential(self.operator, inputs[0], distances[0], potential, self.distance, spikes, self.precision)


BOUNDS.refuse(
    "nobody has derived one yet",
    Convolution,
    Delay,
    Flatten,
    LeakyIntegrator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
)
BOUNDS.refuse(
    "whole numbers are not rounded; compare their runs number by number",
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    TokenSum,
)

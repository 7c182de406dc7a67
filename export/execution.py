"""Executes nodes one time step at a time, on the operators' own meaning.

The reference interpreter runs a whole network with it, a Lava process the part of the network it was given; the
integer simulator and the calibration of `quantize` run cycles with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from export.network import Node
from export.operators import NeuronState

SpikeRecorder = Callable[[str, np.ndarray, np.ndarray], None]
"""Called with node name, spikes and tested potentials, ``(..., N, D)`` each, after every spiking node."""


class NodeExecution:
    """State and step function of some nodes of a network.

    Parameters
    ----------
    nodes : iterable of Node
        In topological order.
    dtype : dtype
        Type everything is computed in; int64 for an integer network.
    record : callable, optional
        See `SpikeRecorder`.
    needed : iterable of str, optional
        Nodes whose output is read behind a step; all others are let go of once their last reader has run. All are kept
        by default.
    pooled : collection of str, optional
        Nodes that send one vector a sentence, see `export.network.Network.pooled`: no mask holds for who reads them.

    Attributes
    ----------
    states : dict of str to Any
        State of each node since the last `reset`.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        dtype: DTypeLike,
        record: SpikeRecorder | None = None,
        needed: Iterable[str] | None = None,
        pooled: Collection[str] = (),
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.nodes = [Node(node.name, node.operator.cast(self.dtype), node.sources) for node in nodes]
        self.record = record
        self._reads_sentences = {node.name for node in self.nodes if node.sources[0] in pooled}
        self.states: dict[str, Any] = {}
        last_reader = {name: node.name for node in self.nodes for name in (node.name, *node.sources)}
        kept = set(last_reader) if needed is None else set(needed)
        kept.update(node.sources[0] for node in self.nodes if node.is_previous_step)
        self._done_with = {
            node.name: [name for name, reader in last_reader.items() if reader == node.name and name not in kept]
            for node in self.nodes
        }

    def reset(self) -> None:
        """Forget everything: the next step is the first of a sentence."""
        self.states.clear()

    def step(
        self, values: dict[str, np.ndarray], token_mask: np.ndarray | None, hot_inputs: np.ndarray | None = None
    ) -> None:
        """Compute one time step.

        Parameters
        ----------
        values : dict of str to ndarray
            What each source sent in this step, ``(..., N, D)``; each node's output is added to it, and taken away again
            if it is not needed any more.
        token_mask : ndarray or None
            ``(..., N, 1)``; spikes of masked tokens are zeroed.
        hot_inputs : ndarray or None
            Multi-hot indices ``(K, ..., N)``, gathered by nodes whose source is not in `values`: the graph's input.
        """
        for node in self.nodes:
            mask = None if node.name in self._reads_sentences else token_mask
            values[node.name] = self._compute(node, values, mask, hot_inputs)
            for name in self._done_with[node.name]:
                values.pop(name, None)
        for node in self.nodes:
            if node.is_previous_step:
                self.states[node.name] = values[node.sources[0]]

    def _compute(
        self,
        node: Node,
        values: dict[str, np.ndarray],
        token_mask: np.ndarray | None,
        hot_inputs: np.ndarray | None,
    ) -> np.ndarray:
        operator = node.operator
        if node.is_previous_step:
            if node.name not in self.states:
                leading = next(iter(values.values())).shape[:-1] if hot_inputs is None else hot_inputs.shape[1:]
                self.states[node.name] = np.zeros((*leading, operator.out_features), self.dtype)
            return self.states[node.name]
        if hot_inputs is not None and node.sources[0] not in values:
            return operator.gather(hot_inputs)
        read = tuple(values[source] for source in node.sources)
        if node.name not in self.states:
            self.states[node.name] = operator.initial_state(read[0].shape, self.dtype)
        state = self.states[node.name]
        y = operator.step(read if len(read) > 1 else read[0], state, token_mask)
        if operator.spikes:
            if token_mask is not None:
                y = y * token_mask.astype(self.dtype)
            if self.record is not None:
                assert isinstance(state, NeuronState)
                self.record(node.name, y, state.tested_potential)
        return y

"""Runs every subgraph by itself, on the inputs that a reference run gave it.

What a runner does at one node is then seen without what went wrong before it: where a free run ends in thousands of
differing spikes, this shows the few that started them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from export.network import Network
from hardware.equivalence.comparison import NODE_OF_LOGITS
from hardware.equivalence.subgraphs import subgraphs_with_inputs
from hardware.runners.runner import Runner
from hardware.traces.trace import Trace


class NodeByNode:
    """Runs the subgraphs of a network on any runner that executes graphs; a context manager, as runners are.

    Parameters
    ----------
    network : Network
    open_subgraph : callable
        Makes the runner of a subgraph, which is a network of its own. Each is made once, when it is first needed.

    Attributes
    ----------
    left_out : list of str
        Subgraphs that more than one source enters, or whose input no trace holds; they cannot be run by themselves.
    """

    def __init__(self, network: Network, open_subgraph: Callable[[Network], Runner]) -> None:
        self.network = network
        self.open_subgraph = open_subgraph
        self.left_out: list[str] = []
        self._runners: dict[str, Runner] = {}

    def run(self, reference: Trace) -> Trace:
        """Return the spikes of every subgraph on the inputs it had in `reference`; nodes left out are not in the trace.

        Raises
        ------
        TraceMismatchError
            The trace is not of this graph.
        """
        spikes: dict[str, np.ndarray] = {}
        potentials: dict[str, np.ndarray] = {}
        thresholds: dict[str, np.ndarray] = {}
        logits: np.ndarray = np.zeros((reference.mask.shape[0], 0))
        outputs = None
        metadata: dict[str, Any] = {}
        for subgraph, entering in subgraphs_with_inputs(reference, self.network):
            reads_tokens = subgraph.sources == (self.network.input_name,) and self.network.token_encoding is not None
            inputs = reference.input_ids if reads_tokens else entering.get(subgraph.sources[0])
            if len(subgraph.sources) != 1 or inputs is None:
                continue
            if subgraph.name not in self._runners:
                self._runners[subgraph.name] = self.open_subgraph(subgraph.network(self.network))
            trace = self._runners[subgraph.name].run(inputs, reference.mask)
            metadata = trace.metadata
            if subgraph.name == NODE_OF_LOGITS:
                logits, outputs = trace.logits, trace.outputs
                continue
            spikes[subgraph.name] = trace.spikes[subgraph.name]
            for found, kept in ((trace.membrane_potentials, potentials), (trace.thresholds, thresholds)):
                if subgraph.name in found:
                    kept[subgraph.name] = found[subgraph.name]
        self.left_out = [node.name for node in self.network.spiking_nodes if node.name not in spikes]
        return Trace(
            spikes=spikes,
            logits=logits,
            mask=reference.mask,
            outputs=outputs,
            membrane_potentials=potentials,
            thresholds=thresholds,
            input_ids=reference.input_ids,
            metadata={**metadata, "inputs_of": reference.metadata.get("runner")},
        )

    def close(self) -> None:
        """Close every runner."""
        runners, self._runners = self._runners, {}
        for runner in runners.values():
            runner.close()

    def __enter__(self) -> NodeByNode:
        """Return this."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close every runner."""
        self.close()

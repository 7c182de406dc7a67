"""A graph cut at its spikes: a subgraph is what lies between the spikes that enter and one population of neurons.

What enters are whole numbers that a trace holds or gives (spikes, sums of spikes, words). So a subgraph can be run
again on the inputs that another run gave it, by itself, and what it makes of them judged without what went wrong
before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from export.network import Network, Node, Readout
from hardware.equivalence.comparison import NODE_OF_LOGITS
from hardware.traces.edges import edge_kinds, edges_by_node
from hardware.traces.trace import Trace


@dataclass(frozen=True, eq=False)
class Subgraph:
    """One population of neurons, or the output, with all nodes between it and the spikes that it reads.

    Attributes
    ----------
    name : str
        Of the spiking node, or ``"output"``.
    nodes : tuple of Node
        In topological order; the last is the spiking node, or the one that the output shows.
    sources : tuple of str
        What enters: spiking nodes, sums of them, or the graph's input.
    """

    name: str
    nodes: tuple[Node, ...]
    sources: tuple[str, ...]

    @property
    def spikes(self) -> bool:
        """Whether it ends in neurons."""
        return self.nodes[-1].operator.spikes

    def network(self, whole: Network) -> Network:
        """Return it as a network of its own.

        Raises
        ------
        ValueError
            More than one source enters.
        """
        if len(self.sources) != 1:
            raise ValueError(f"{self.name}: reads {' and '.join(self.sources)}; a network has one input")
        (source,) = self.sources
        widths = {whole.input_name: whole.input_features}
        widths.update((node.name, node.operator.out_features) for node in whole.nodes)
        last = self.nodes[-1]
        readout, limit = whole.readout, whole.input_limit
        if whole.is_integer and self.spikes:
            readout = Readout(1.0, np.zeros(last.operator.out_features, np.int64))
        if whole.is_integer and source != whole.input_name:
            limit = _largest_sent(whole, source)
        return replace(
            whole,
            nodes=self.nodes,
            input_name=source,
            input_features=widths[source],
            output_source=last.name,
            token_encoding=whole.token_encoding if source == whole.input_name else None,
            input_limit=limit,
            readout=readout,
        )


def _largest_sent(network: Network, source: str) -> int:
    """Return the largest magnitude of what a node of spikes, or a sum of such, can send."""
    node = network.by_name[source]
    if node.operator.traits.spike_range is not None:
        return max(map(abs, node.operator.traits.spike_range))
    return sum(_largest_sent(network, name) for name in node.sources)


def subgraphs_of(network: Network, spiking_input: bool = False) -> list[Subgraph]:
    """Return the subgraphs of a network in topological order, the output's last.

    An output that shows spikes, or nothing but a sum of spikes, has none of its own.
    """
    nodes = network.by_name
    kinds = edge_kinds(network, spiking_input)

    def ending_in(end: Node, name: str) -> Subgraph:
        inside: dict[str, Node] = {}
        sources: list[str] = []

        def visit(node: Node) -> None:
            for source in node.sources:
                whole_numbers = kinds[source] in ("binary", "graded", "tokens") or source == network.input_name
                if whole_numbers and source not in sources:
                    sources.append(source)
                elif not whole_numbers and source not in inside:
                    visit(nodes[source])
            inside[node.name] = node

        visit(end)
        return Subgraph(name, tuple(inside.values()), tuple(sources))

    found = [ending_in(node, node.name) for node in network.spiking_nodes]
    if kinds[network.output_source] == "analog":
        found.append(ending_in(nodes[network.output_source], NODE_OF_LOGITS))
    return found


def subgraphs_with_inputs(trace: Trace, network: Network) -> Iterator[tuple[Subgraph, dict[str, np.ndarray]]]:
    """Yield every subgraph with what entered it in a run, in topological order.

    Inputs are ``(T, B, N, D)`` whole numbers by source; token ids are not among them. A subgraph whose input the trace
    does not hold (values that were fed to the graph) is left out.

    Raises
    ------
    TraceMismatchError
        The trace is not of this graph.
    """
    subgraphs = subgraphs_of(network, network.input_name in trace.spikes)
    ends = {subgraph.nodes[-1].name: subgraph for subgraph in subgraphs}
    readers = Counter(source for subgraph in subgraphs for source in subgraph.sources)
    held: dict[str, np.ndarray] = {}
    for node, edges in edges_by_node(trace, network):
        held.update((edge.source, edge.values) for edge in edges if edge.values is not None and readers[edge.source])
        if node.name not in ends:
            continue
        subgraph = ends[node.name]
        needed = [s for s in subgraph.sources if s != network.input_name or network.token_encoding is None]
        if all(source in held for source in needed):
            yield subgraph, {source: held[source] for source in needed}
        for source in subgraph.sources:
            readers[source] -= 1
            if not readers[source]:
                held.pop(source, None)

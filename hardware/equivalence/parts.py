"""A graph cut at its spikes: each part is what lies between the spikes that enter and one population of neurons.

What enters a part are whole numbers that a trace holds or gives (spikes, sums of spikes, words). So a part can be run
again on the inputs that another run gave it, by itself, and what it makes of them judged without what went wrong
before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from export.network import Network, Node, Readout
from hardware.edges import edge_kinds, edges_by_node
from hardware.equivalence.comparison import NODE_OF_LOGITS
from hardware.trace import Trace


@dataclass(frozen=True, eq=False)
class Part:
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
        """Whether the part ends in neurons."""
        return self.nodes[-1].operator.spikes

    def network(self, whole: Network) -> Network:
        """Return the part as a network of its own.

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
            limit = _most_spikes(whole, source)
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


def _most_spikes(network: Network, source: str) -> int:
    """Return the largest number that a node of spikes, or a sum of such, can send."""
    node = next(node for node in network.nodes if node.name == source)
    return 1 if node.operator.spikes else sum(_most_spikes(network, name) for name in node.sources)


def parts_of(network: Network, spiking_input: bool = False) -> list[Part]:
    """Return the parts of a network in topological order, the output's last.

    An output that shows spikes, or nothing but a sum of spikes, has no part of its own.
    """
    nodes = {node.name: node for node in network.nodes}
    kinds = edge_kinds(network, spiking_input)

    def part(name: str, end: Node) -> Part:
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
        return Part(name, tuple(inside.values()), tuple(sources))

    found = [part(node.name, node) for node in network.spiking_nodes]
    if kinds[network.output_source] == "analog":
        found.append(part(NODE_OF_LOGITS, nodes[network.output_source]))
    return found


def parts_with_inputs(trace: Trace, network: Network) -> Iterator[tuple[Part, dict[str, np.ndarray]]]:
    """Yield every part with what entered it in a run, in topological order.

    Inputs are ``(T, B, N, D)`` whole numbers by source; token ids are not among them. A part whose input the trace does
    not hold (values that were fed to the graph) is left out.

    Raises
    ------
    TraceMismatchError
        The trace is not of this graph.
    """
    parts = parts_of(network, network.input_name in trace.spikes)
    ends = {part.nodes[-1].name: part for part in parts}
    readers = Counter(source for part in parts for source in part.sources)
    held: dict[str, np.ndarray] = {}
    for node, edges in edges_by_node(trace, network):
        held.update((edge.source, edge.values) for edge in edges if edge.values is not None and readers[edge.source])
        if node.name not in ends:
            continue
        part = ends[node.name]
        needed = [s for s in part.sources if s != network.input_name or network.token_encoding is None]
        if all(source in held for source in needed):
            yield part, {source: held[source] for source in needed}
        for source in part.sources:
            readers[source] -= 1
            if not readers[source]:
                held.pop(source, None)

"""What flows on every edge of a graph, derived from a trace and the graph, one node at a time.

A trace holds spikes only. Everything spike-driven that a node reads follows from them: the spikes of its source, or the
running sum of a residual stream. This is the one place where it is derived; counts, profiles and placement read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from export.network import Network, Node
from export.operators import PreviousStep, TokenMean, Total
from hardware.errors import TraceMismatchError
from hardware.trace import Trace

EdgeKind = Literal["binary", "graded", "analog", "tokens"]
"""What an edge carries: spikes 0 or 1; whole numbers 0, 1, 2, …; numbers no trace knows; or the words of a sentence."""

SPIKE_DRIVEN: tuple[EdgeKind, ...] = ("binary", "graded")


@dataclass(frozen=True, eq=False)
class Edge:
    """What one node reads from another.

    Attributes
    ----------
    source, reader : str
        Node names; the source may be the graph's input.
    kind : {"binary", "graded", "analog", "tokens"}
        Only binary and graded edges are spike-driven: a zero costs nothing. Analog are the outputs of affine nodes,
        layer norms, attention (scaled) and token means, and input values the trace does not hold. Tokens is the
        multi-hot input of a graph that reads token ids.
    values : ndarray or None
        ``(T, B, N, D)`` whole numbers, unsigned and as narrow as their bound allows; None on analog and tokens edges.
    """

    source: str
    reader: str
    kind: EdgeKind
    values: np.ndarray | None


def edges_by_node(trace: Trace, network: Network) -> Iterator[tuple[Node, tuple[Edge, ...]]]:
    """Check a trace, then yield every node in topological order with the edges into it.

    Nothing is materialised but the running sums a later node still reads: a few ``(T, B, N, D)`` of small integers.

    Parameters
    ----------
    trace : Trace
        Of any runner. Where the graph takes spikes or counts in place of tokens, the trace may hold them under the name
        of the graph's input node; otherwise that edge is analog.
    network : Network

    Raises
    ------
    TraceMismatchError
        The trace is not of this graph; see `check_trace`. Raised by the call, before the first node.
    """
    check_trace(trace, network)
    return edges_of_checked(trace, network)


def edges_of_checked(trace: Trace, network: Network) -> Iterator[tuple[Node, tuple[Edge, ...]]]:
    """Do as `edges_by_node` does, for a trace that `check_trace` has passed already."""
    return ((node, edges) for node, edges, _ in _walk(trace, network))


def sums_of_spikes(trace: Trace, network: Network) -> Iterator[tuple[str, np.ndarray]]:
    """Check a trace, then yield name and values ``(T, B, N, D)`` of every sum of spikes: the residual stream.

    Whoever reads them, a node or only the output of the graph. Parameters and errors as of `edges_by_node`.
    """
    check_trace(trace, network)
    return (
        (node.name, sent)
        for node, _, sent in _walk(trace, network)
        if isinstance(node.operator, Total) and sent is not None
    )


def _walk(trace: Trace, network: Network) -> Iterator[tuple[Node, tuple[Edge, ...], np.ndarray | None]]:
    """Yield every node, the edges into it, and what it sends where that is spikes or a sum of them."""
    kinds = edge_kinds(network, spiking_input=network.input_name in trace.spikes)
    readings = Counter(
        source for node in network.nodes if not isinstance(node.operator, PreviousStep) for source in node.sources
    )
    values: dict[str, np.ndarray] = {}
    bounds: dict[str, int] = {}
    if network.input_name in trace.spikes:
        values[network.input_name] = trace.spikes[network.input_name]
        bounds[network.input_name] = int(values[network.input_name].max(initial=0))
    for node in network.nodes:
        if isinstance(node.operator, PreviousStep):
            (neuron,) = node.sources  # comes later, but the trace knows it already
            values[node.name], bounds[node.name] = np.zeros_like(trace.spikes[neuron]), 1
            values[node.name][1:] = trace.spikes[neuron][:-1]
            yield node, (Edge(neuron, node.name, "binary", trace.spikes[neuron]),), values[node.name]
            continue
        edges = tuple(Edge(source, node.name, kinds[source], values.get(source)) for source in node.sources)
        if node.operator.spikes:
            values[node.name], bounds[node.name] = trace.spikes[node.name], 1
        elif isinstance(node.operator, Total) and kinds[node.name] == "graded":
            left, right = node.sources
            bounds[node.name] = bounds[left] + bounds[right]
            narrow = np.min_scalar_type(bounds[node.name])
            values[node.name] = np.add(values[left], values[right], dtype=narrow, casting="unsafe")
        yield node, edges, values.get(node.name)
        for source in node.sources:
            readings[source] -= 1
            if not readings[source]:
                values.pop(source, None)


def edge_kinds(network: Network, spiking_input: bool = False) -> dict[str, EdgeKind]:
    """Return what each node, and the input, sends to whoever reads it.

    Parameters
    ----------
    network : Network
    spiking_input : bool
        Whether the trace holds the graph's input as whole numbers.
    """
    kinds: dict[str, EdgeKind] = {network.input_name: "graded" if spiking_input else "analog"}
    if network.token_encoding is not None:
        kinds[network.input_name] = "tokens"
    for node in network.nodes:
        if node.operator.spikes or isinstance(node.operator, PreviousStep):
            kinds[node.name] = "binary"
        elif isinstance(node.operator, Total) and all(kinds[source] in ("binary", "graded") for source in node.sources):
            kinds[node.name] = "graded"
        else:
            kinds[node.name] = "analog"
    return kinds


@dataclass(frozen=True)
class RunningSums:
    """Sums of spikes that grow by an addend each, as a residual stream does.

    Attributes
    ----------
    names : list of str
        The sums; the first is of two addends.
    addends : list of str
        Neurons, one more than there are sums.
    """

    names: list[str]
    addends: list[str]


def running_sums(network: Network) -> list[RunningSums]:
    """Return the running sums of nothing but spikes; where one goes on in two ways, only the first of them."""
    neurons = {node.name for node in network.spiking_nodes}
    found: dict[str, RunningSums] = {}  # by the last sum
    for node in network.nodes:
        if not isinstance(node.operator, Total) or node.sources[1] not in neurons:
            continue
        running, joining = node.sources
        if running in neurons:
            found[node.name] = RunningSums([node.name], [running, joining])
        elif running in found:
            before = found.pop(running)
            found[node.name] = RunningSums([*before.names, node.name], [*before.addends, joining])
    return list(found.values())


def check_trace(trace: Trace, network: Network, largest_of: Callable[[str, np.ndarray], int] | None = None) -> None:
    """Check that a trace is of this graph.

    Parameters
    ----------
    trace : Trace
    network : Network
    largest_of : callable, optional
        Gives the largest of a node's spikes, for a caller who reads them all for something else too.

    Raises
    ------
    TraceMismatchError
        A spiking node has no spikes in the trace, or spikes of another shape, or such that are not 0 or 1; or the trace
        has a node the graph has not. The first such node is named.
    """
    expected = {node.name: node.operator.out_features for node in network.spiking_nodes}
    for name in trace.spikes:
        if name not in expected and name != network.input_name:
            raise TraceMismatchError(
                f"{name}: the trace has spikes of this node, but the graph has no such spiking node"
            )
    if network.input_name in trace.spikes:
        if network.token_encoding is not None:
            raise TraceMismatchError(f"{network.input_name}: the trace has spikes of it, but the graph reads token ids")
        expected = {network.input_name: network.input_features, **expected}
    steps: int | None = None
    for name, features in expected.items():
        if name not in trace.spikes:
            raise TraceMismatchError(f"{name}: this spiking node of the graph has no spikes in the trace")
        spikes = trace.spikes[name]
        if steps is None:
            steps = spikes.shape[0] if spikes.ndim else 0
        wanted = (steps, *trace.mask.shape, features)
        if spikes.shape != wanted or not steps:
            raise TraceMismatchError(
                f"{name}: its spikes have shape {spikes.shape}; graph, mask and the other nodes need {wanted} "
                "(time steps, sentences, tokens, features)"
            )
        if spikes.dtype.kind not in "bui":
            raise TraceMismatchError(f"{name}: its spikes are {spikes.dtype}; expected whole numbers")
        smallest = int(spikes.min(initial=0)) if spikes.dtype.kind == "i" else 0
        largest = int(spikes.max(initial=0)) if largest_of is None else largest_of(name, spikes)
        if smallest < 0 or (largest > 1 and name != network.input_name):
            raise TraceMismatchError(
                f"{name}: its spikes span {smallest} to {largest}; a neuron of this graph sends 0 or 1"
            )


def pooled_nodes(network: Network) -> set[str]:
    """Return the nodes behind a token mean: they have one row a sentence in place of one a token."""
    pooled: set[str] = set()
    for node in network.nodes:
        if isinstance(node.operator, TokenMean) or any(source in pooled for source in node.sources):
            pooled.add(node.name)
    return pooled

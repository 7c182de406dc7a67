"""What flows on every edge of a graph, derived from a trace and the graph, one node at a time.

A trace holds spikes only. Everything spike-driven that a node reads follows from them: the spikes of its source, or the
running sum of a residual stream. This is the one place where it is derived; counts, profiles and placement read it.
What a neuron sends, 0 and 1 or other whole numbers, is its operator's `Traits.spike_range`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from export.network import Network, Node
from hardware.errors import TraceMismatchError
from hardware.traces.trace import Trace, spike_type

EdgeKind = Literal["binary", "graded", "analog", "tokens"]
"""What an edge carries: spikes 0 or 1; other whole numbers, of either sign; numbers no trace knows; or the words of a
sentence."""

SPIKE_DRIVEN: tuple[EdgeKind, ...] = ("binary", "graded")
BINARY = (0, 1)
"""Least and greatest spike of a neuron that fires or does not."""


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
        ``(T, B, N, D)`` whole numbers; of a sum as narrow as what can come out allows, see `spike_type`; None on analog
        and tokens edges.
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
    return ((node.name, sent) for node, _, sent in _walk(trace, network) if node.is_sum and sent is not None)


def _walk(trace: Trace, network: Network) -> Iterator[tuple[Node, tuple[Edge, ...], np.ndarray | None]]:
    """Yield every node, the edges into it, and what it sends where that is spikes or a sum of them."""
    kinds = edge_kinds(network, spiking_input=network.input_name in trace.spikes)
    readings = Counter(source for node in network.nodes if not node.is_previous_step for source in node.sources)
    values: dict[str, np.ndarray] = {}
    ranges: dict[str, tuple[int, int]] = {}
    if network.input_name in trace.spikes:
        fed = values[network.input_name] = trace.spikes[network.input_name]
        ranges[network.input_name] = int(fed.min(initial=0)), int(fed.max(initial=0))
    for node in network.nodes:
        if node.is_previous_step:
            (neuron,) = node.sources  # comes later, but the trace knows it already
            values[node.name], ranges[node.name] = np.zeros_like(trace.spikes[neuron]), _spike_range(network, neuron)
            values[node.name][1:] = trace.spikes[neuron][:-1]
            yield node, (Edge(neuron, node.name, kinds[node.name], trace.spikes[neuron]),), values[node.name]
            continue
        edges = tuple(Edge(source, node.name, kinds[source], values.get(source)) for source in node.sources)
        if node.operator.spikes:
            values[node.name], ranges[node.name] = trace.spikes[node.name], _spike_range(network, node.name)
        elif node.is_sum and kinds[node.name] == "graded":
            left, right = node.sources
            low, high = ranges[left][0] + ranges[right][0], ranges[left][1] + ranges[right][1]
            ranges[node.name] = low, high
            values[node.name] = np.add(values[left], values[right], dtype=spike_type(low, high), casting="unsafe")
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
        if node.operator.spikes or node.is_previous_step:
            (neuron,) = node.sources if node.is_previous_step else (node.name,)
            kinds[node.name] = "binary" if _spike_range(network, neuron) == BINARY else "graded"
        elif node.is_sum and all(kinds[source] in SPIKE_DRIVEN for source in node.sources):
            kinds[node.name] = "graded"
        else:
            kinds[node.name] = "analog"
    return kinds


def _spike_range(network: Network, neuron: str) -> tuple[int, int]:
    """Return the least and greatest spike that a spiking node sends."""
    found = network.by_name[neuron].operator.traits.spike_range
    assert found is not None, neuron
    return found


@dataclass(frozen=True)
class RunningSums:
    """Sums of spikes 0 and 1 that grow by an addend each, as a residual stream does.

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
    """Return the running sums of nothing but spikes 0 and 1; where one goes on in two ways, only the first of them."""
    neurons = {node.name for node in network.spiking_nodes if _spike_range(network, node.name) == BINARY}
    found: dict[str, RunningSums] = {}  # by the last sum
    for node in network.nodes:
        if not node.is_sum or node.sources[1] not in neurons:
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
        A spiking node has no spikes in the trace, or spikes of another shape, or some that its neurons never send; or
        the trace has a node the graph has not. The first such node is named.
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
        if name == network.input_name:
            if smallest < 0:
                raise TraceMismatchError(
                    f"{name}: its values span {smallest} to {largest}; inputs in a trace are counts, 0 or more"
                )
            continue
        low, high = _spike_range(network, name)
        if smallest < low or largest > high:
            sent = "0 or 1" if (low, high) == BINARY else f"whole numbers from {low} to {high}"
            raise TraceMismatchError(
                f"{name}: its spikes span {smallest} to {largest}; a neuron of this graph sends {sent}"
            )

"""A graph in executable form: operators wired in topological order.

`nir.NIRGraph` is what crosses from package to package and what files hold; a `Network` is the same thing understood:
every node an operator, every sum a node of its own, every width checked. Runners execute networks. `export.nir_graph`
reads and writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any, Protocol

import numpy as np

from export.errors import GraphError, UnsupportedOperatorError
from export.operators import DEFAULT_DT, PREVIOUS_STEP, SUM, Operator, PreviousStep, Total
from export.recurrence import cycle_through
from export.token_encoding import TokenEncoding

FORMAT = "spikebert-nir"
FORMAT_VERSION = 1
MULTI_HOT = "multi_hot"
COUNTS = ("time_steps", "max_tokens", "input_limit")
"""Attributes of a network that its metadata hold where they are known."""
MAX_TIME_STEPS = 1 << 16
"""Steps a sentence is shown for; what asks for more is not to be believed."""
INTEGER = "integer"
"""Precision of a graph in whole numbers."""


@dataclass(frozen=True, eq=False)
class Readout:
    """How the whole numbers that an integer graph shows become logits.

    With ``y[t]`` the output at step t, T steps, and N the sentence's tokens where the graph sums them (else 1)::

        total = sum_t y[t] + N T bias;  logits = total unit / (N T)

    The largest total is the largest logit, so a class is decided on whole numbers.

    Attributes
    ----------
    unit : float
        What a 1 of the output stands for in the float graph.
    bias : ndarray
        ``(C,)`` int64: the bias of the last affine, which a sum over tokens would need N times.
    """

    unit: float
    bias: np.ndarray

    def totals(self, outputs: np.ndarray, tokens: np.ndarray | int) -> np.ndarray:
        """Return ``(B, ..., C)`` int64 for outputs ``(T, B, ..., C)`` and the number of tokens summed, ``(B, 1)``."""
        return outputs.sum(0, dtype=np.int64) + tokens * len(outputs) * self.bias

    def step_logits(self, outputs: np.ndarray, tokens: np.ndarray | int) -> np.ndarray:
        """Return what each step by itself says, ``(T, B, ..., C)`` float64."""
        return (outputs + tokens * self.bias) * self.unit / tokens

    def logits(self, outputs: np.ndarray, tokens: np.ndarray | int) -> np.ndarray:
        """Return ``(B, ..., C)`` float64."""
        return self.totals(outputs, tokens) * self.unit / (tokens * len(outputs))


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of a network.

    Attributes
    ----------
    name : str
    operator : Operator
    sources : tuple of str
        What it reads, in the order that its operator wants. The network's input has the name of its input node.
    """

    name: str
    operator: Operator
    sources: tuple[str, ...]

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum of two nodes, in a file several edges into one."""
        return self.operator.traits.edges == SUM

    @property
    def is_previous_step(self) -> bool:
        """Whether it sends what a neuron further on sent in the step before, in a file an edge that closes a cycle."""
        return self.operator.traits.edges == PREVIOUS_STEP


@dataclass(frozen=True, eq=False)
class Network:
    """A graph understood.

    Attributes
    ----------
    nodes : tuple of Node
        In topological order.
    input_name, input_features : str, int
        The input node and its width.
    output_name, output_source : str, str
        The output node, and the node it shows.
    token_encoding : TokenEncoding or None
        How token ids become inputs; None for a graph that takes currents or spikes.
    time_steps : int or None
        Steps a sentence is shown for.
    dt : float
        Seconds of a step in the file.
    attend_to_padding : bool
        Whether padding counts as ordinary tokens.
    max_tokens : int or None
        Longest sentence for which an integer graph's sums are proven to fit; None without limit.
    input_limit : int or None
        Largest magnitude of input values that an integer graph's sums are proven for; None where it reads tokens.
    readout : Readout or None
        How to read the output; in integer graphs only.
    input_shape : tuple of int or None
        Shape of the input's features in the file, where it is more than a row of them.
    metadata : dict
        What else the graph says about itself.
    """

    nodes: tuple[Node, ...]
    input_name: str
    input_features: int
    output_name: str
    output_source: str
    token_encoding: TokenEncoding | None = None
    time_steps: int | None = None
    dt: float = DEFAULT_DT
    attend_to_padding: bool = False
    max_tokens: int | None = None
    input_limit: int | None = None
    readout: Readout | None = None
    input_shape: tuple[int, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the number of time steps."""
        check_time_steps(self.time_steps)

    @property
    def is_integer(self) -> bool:
        """Whether it computes in whole numbers, as Loihi does."""
        return self.readout is not None

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Every node by its name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def readers(self) -> dict[str, tuple[Node, ...]]:
        """The nodes that read each node, and the input, in topological order."""
        found: dict[str, list[Node]] = {self.input_name: [], **{node.name: [] for node in self.nodes}}
        for node in self.nodes:
            for source in node.sources:
                found[source].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def pooled(self) -> frozenset[str]:
        """The nodes that send one vector a sentence in place of one a token: what pools tokens, and all behind it."""
        found: set[str] = set()
        for node in self.nodes:
            if node.operator.traits.pools_tokens or any(source in found for source in node.sources):
                found.add(node.name)
        return frozenset(found)

    @property
    def pools_tokens(self) -> bool:
        """Whether the output is one vector a sentence, not one a token."""
        return self.output_source in self.pooled

    @cached_property
    def sums_tokens(self) -> bool:
        """Whether the output stands for the number of tokens times a mean over them; see `Readout`."""
        return any(node.operator.traits.pools_tokens == "sum" for node in self.nodes)

    @cached_property
    def has_cycles(self) -> bool:
        """Whether there are recurrent connections."""
        return any(node.is_previous_step for node in self.nodes)

    @property
    def spiking_nodes(self) -> tuple[Node, ...]:
        """Nodes whose output is spikes, in topological order."""
        return tuple(node for node in self.nodes if node.operator.spikes)

    @property
    def stages(self) -> tuple[tuple[Node, ...], ...]:
        """Nodes in an order in which each can be computed over all steps at once, those of a cycle together.

        A cycle ends with its neuron: all else in it reads, in the same step, nothing that the neuron sends.
        """
        if not self.has_cycles:
            return tuple((node,) for node in self.nodes)
        sources: dict[str, tuple[str, ...]] = {self.input_name: ()}
        sources |= {node.name: node.sources for node in self.nodes}
        first = {name: name for name in sources}  # what stands for all nodes of a cycle
        for node in self.nodes:
            if node.is_previous_step:
                first |= dict.fromkeys(cycle_through(sources, node.name), node.name)
        stages: dict[str, list[Node]] = {self.input_name: []}
        for node in self.nodes:
            stages.setdefault(first[node.name], []).append(node)
        reads = {
            name: {first[source] for node in stage for source in node.sources} - {name}
            for name, stage in stages.items()
        }
        return tuple(tuple(stages[name]) for name in TopologicalSorter(reads).static_order() if stages[name])

    @property
    def output_features(self) -> int:
        """Width of the output."""
        return self.by_name[self.output_source].operator.out_features


def check_time_steps(time_steps: int | None) -> None:
    """Refuse more time steps than `MAX_TIME_STEPS`.

    Raises
    ------
    GraphError
        There are more.
    """
    if time_steps is not None and time_steps > MAX_TIME_STEPS:
        raise GraphError(f"graph: time_steps is {time_steps}; at most {MAX_TIME_STEPS} are run")


class NetworkBuilder:
    """Wires operators into a network, turning sums of several sources into shared chains of `Total`.

    Parameters
    ----------
    input_name, input_features : str, int
        The network's input.
    """

    def __init__(self, input_name: str, input_features: int) -> None:
        self.input_name = input_name
        self.widths = {input_name: input_features}
        self.nodes: list[Node] = []
        self._totals: dict[tuple[str, ...], str] = {}
        self._previous: dict[str, str] = {}
        self._pooled: set[str] = set()  # nodes that send one vector a sentence, not one a token

    def add(self, name: str, operator: Operator, sources: str | Iterable[str]) -> str:
        """Add a node; return its name.

        It reads the sum of `sources`, added in that order, or, where its operator has several, one after the other.

        Raises
        ------
        GraphError
            The name is taken, a source is unknown, or widths do not fit.
        UnsupportedOperatorError
            It stands behind a pooling of tokens and cannot act on a whole sentence.
        """
        if name in self.widths:
            raise GraphError(f"{name}: two nodes have this name")
        if not name or "/" in name or name == ".":
            raise GraphError(f"{name!r}: cannot be a node's name; in a file it would mean another place")
        read = (sources,) if isinstance(sources, str) else tuple(sources)
        if operator.traits.sources == 1:
            read = (self.total(read, reader=name),)
        elif len(read) != operator.traits.sources:
            raise GraphError(
                f"{name}: {operator.name} reads {operator.traits.sources} nodes, but {len(read)} lead to it"
            )
        for source in read:
            if source not in self.widths:
                raise GraphError(f"{name}: reads {source}, which is no node of the graph")
            if self.widths[source] != operator.in_features:
                raise GraphError(
                    f"{name}: takes {operator.in_features} features, but {source} sends {self.widths[source]}"
                )
            if source in self._pooled and not operator.traits.reads_sentences:
                raise UnsupportedOperatorError(
                    f"{name}: {operator.name} reads {source}, which is one vector for the whole sentence; behind a "
                    "token mean only affine, linear and layer norm nodes are supported"
                )
        pooled = [source for source in read if source in self._pooled]
        if pooled and len(pooled) < len(read):
            raise GraphError(f"{name}: reads {', '.join(read)}, some one vector a sentence and some one a token")
        if pooled or operator.traits.pools_tokens:
            self._pooled.add(name)
        self._append(Node(name, operator, read))
        return name

    def total(self, sources: tuple[str, ...], reader: str) -> str:
        """Return the name of the node that is the sum of `sources`, added left to right."""
        if not sources:
            raise GraphError(f"{reader}: nothing leads to it")
        for source in sources:
            if source not in self.widths:
                raise GraphError(f"{reader}: reads {source}, which is no node of the graph")
        running = sources[0]
        for end in range(2, len(sources) + 1):
            prefix = sources[:end]
            if prefix not in self._totals:
                last = prefix[-1]
                if self.widths[running] != self.widths[last]:
                    raise GraphError(
                        f"{reader}: adds {running} of {self.widths[running]} features to {last} of {self.widths[last]}"
                    )
                if (running in self._pooled) != (last in self._pooled):
                    raise GraphError(f"{reader}: adds {running} to {last}, one vector a sentence to one a token")
                name = self._free_name(f"{last}_stream")
                self._append(Node(name, Total(self.widths[last]), (running, last)))
                if last in self._pooled:
                    self._pooled.add(name)
                self._totals[prefix] = name
            running = self._totals[prefix]
        return running

    def previous_step(self, neuron: str, features: int) -> str:
        """Return the name of the node that sends what `neuron`, which may come later, sent in the step before."""
        if neuron not in self._previous:
            name = self._free_name(f"{neuron}_before")
            self._append(Node(name, PreviousStep(features), (neuron,)))
            self._previous[neuron] = name
        return self._previous[neuron]

    def network(self, output_name: str, output_source: str | Iterable[str], **rest: Any) -> Network:
        """Return the finished network; `rest` are the other attributes of `Network`."""
        sources = (output_source,) if isinstance(output_source, str) else tuple(output_source)
        source = self.total(sources, reader=output_name)
        if source == self.input_name:
            raise GraphError(f"{output_name}: shows the input itself; the graph computes nothing")
        return Network(tuple(self.nodes), self.input_name, self.widths[self.input_name], output_name, source, **rest)

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self.widths[node.name] = node.operator.out_features

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self.widths:
            name, number = f"{wanted}{number}", number + 1
        return name


class TakesValues(Protocol):
    """What says in which shape input values come: a `Network`, or a file that says the same of itself."""

    @property
    def input_features(self) -> int:
        """Width of the input."""

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of the input's features, where it is more than a row of them."""


def with_token_axis(network: TakesValues, values: np.ndarray) -> np.ndarray:
    """Return input values ``(T, B, *shape)``, in the shape the graph's file gives its input, as ``(T, B, 1, D)``.

    Graphs of other tools know no tokens. Values of any other shape are returned as they are.
    """
    shape = network.input_shape or (network.input_features,)
    if values.shape[2:] != shape or (values.ndim == 4 and shape[-1] == network.input_features):
        return values
    return values.reshape(*values.shape[:2], 1, network.input_features)


def feature_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape that the features of each node's output, and of the input, have in a file."""
    shapes = {network.input_name: network.input_shape or (network.input_features,)}
    for node in network.nodes:
        known = [shapes[source] for source in node.sources if source in shapes]
        shapes[node.name] = known[0] if known and node.operator.traits.keeps_shape else node.operator.out_shape
    return shapes

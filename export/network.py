"""A graph in executable form: operators wired in topological order, read from NIR and written to it.

`nir.NIRGraph` is what crosses from package to package and what files hold; a `Network` is the same thing understood:
every node an operator, every sum a node of its own, every width checked. Runners execute networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Protocol

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError, UnsupportedOperatorError
from export.foreign_graph import complete_graph, open_nested, shaped
from export.operators import (
    DEFAULT_DT,
    MARKED_OPERATORS,
    Affine,
    Convolution,
    Delay,
    Heaviside,
    IntegerCurrentNeuron,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    Operator,
    Pooling,
    PreviousStep,
    Scale,
    TokenMean,
    Total,
)
from export.operators.affine import read_affine, read_linear
from export.operators.convolution import read_convolution
from export.operators.delay import read_delay
from export.operators.flatten import read_flatten
from export.operators.leaky_integrate_and_fire import (
    is_simple_neuron,
    is_subtractive_neuron,
    read_neuron,
    read_threshold,
)
from export.operators.leaky_integrator import read_leaky_integrator
from export.operators.operator import integer_parameter, metadata_value
from export.operators.pooling import read_pooling
from export.operators.resistive_neuron import read_resistive_neuron
from export.operators.scale import read_scale
from export.recurrence import cycle_through, delayed_edges

FORMAT = "spikebert-nir"
FORMAT_VERSION = 1
MULTI_HOT = "multi_hot"
COUNTS = ("time_steps", "max_tokens", "input_limit")
"""Attributes of a network that its metadata hold where they are known."""
MAX_TIME_STEPS = 1 << 16
"""Steps a sentence is shown for; what asks for more is not to be believed."""
INTEGER = "integer"
"""Precision of a graph in whole numbers."""
WORD, PREVIOUS_WORD, POSITION = "word", "previous_word", "position"
"""What a table of inputs says of a token."""
SHAPED = (nir.Conv1d, nir.Conv2d, nir.SumPool2d, nir.AvgPool2d, nir.Flatten)
"""Nodes for which the shape of features matters; everywhere else they are a row."""


@dataclass(frozen=True)
class TokenEncoding:
    """How token ids become a graph's multi-hot input: one hot for the word, one for that before, one for the position.

    Attributes
    ----------
    vocabulary : int
        Number of word inputs; they come first.
    positions : int
        Number of position inputs, which come last; 0 where the model has no positions.
    before_first : int or None
        Where the input says the word before each token too, by as many inputs as there are words: the word that stands
        before the first token. None where it does not.
    """

    vocabulary: int
    positions: int
    before_first: int | None = None

    @cached_property
    def tables(self) -> dict[str, slice]:
        """The inputs of which one is hot at a time, by what they say, in order."""
        sizes = {
            WORD: self.vocabulary,
            PREVIOUS_WORD: 0 if self.before_first is None else self.vocabulary,
            POSITION: self.positions,
        }
        ends = dict(zip(sizes, np.cumsum(list(sizes.values())).tolist(), strict=True))
        return {said: slice(ends[said] - size, ends[said]) for said, size in sizes.items() if size}

    @property
    def width(self) -> int:
        """Number of inputs."""
        return sum(table.stop - table.start for table in self.tables.values())

    def to_metadata(self) -> dict[str, int]:
        """Return the fields by name; `before_first` where there is one."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def hot_inputs(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the indices that are hot for token ids ``(..., N)``, as ``(number of tables, ..., N)``.

        Raises
        ------
        GraphError
            An id is outside the vocabulary, or there are more tokens than positions.
        """
        ids = np.asarray(input_ids)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary):
            raise GraphError(
                f"token ids span {ids.min()} to {ids.max()}; the graph's vocabulary has ids 0 to {self.vocabulary - 1}"
            )
        hot = {WORD: ids}
        if self.before_first is not None:
            hot[PREVIOUS_WORD] = np.concatenate([np.full_like(ids[..., :1], self.before_first), ids[..., :-1]], -1)
        if self.positions:
            if ids.shape[-1] > self.positions:
                raise GraphError(f"{ids.shape[-1]} tokens are more than the {self.positions} positions of the graph")
            hot[POSITION] = np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
        return np.stack([table.start + hot[said] for said, table in self.tables.items()])


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
        The node it reads: one, or two for a `Total`. The network's input has the name of its input node.
    """

    name: str
    operator: Operator
    sources: tuple[str, ...]


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
    def sums_tokens(self) -> bool:
        """Whether the output is one vector a sentence, its tokens averaged or summed."""
        return any(isinstance(node.operator, TokenMean) for node in self.nodes)

    @property
    def spiking_nodes(self) -> tuple[Node, ...]:
        """Nodes whose output is spikes, in topological order."""
        return tuple(node for node in self.nodes if node.operator.spikes)

    @property
    def stages(self) -> tuple[tuple[Node, ...], ...]:
        """Nodes in an order in which each can be computed over all steps at once, those of a cycle together.

        A cycle ends with its neuron: all else in it reads, in the same step, nothing that the neuron sends.
        """
        if not any(isinstance(node.operator, PreviousStep) for node in self.nodes):
            return tuple((node,) for node in self.nodes)
        sources: dict[str, tuple[str, ...]] = {self.input_name: ()}
        sources |= {node.name: node.sources for node in self.nodes}
        first = {name: name for name in sources}  # what stands for all nodes of a cycle
        for node in self.nodes:
            if isinstance(node.operator, PreviousStep):
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
        return next(node.operator.out_features for node in self.nodes if node.name == self.output_source)


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
        self._token_means: set[str] = set()  # nodes that send one vector a sentence, not one a token

    def add(self, name: str, operator: Operator, sources: str | Iterable[str]) -> str:
        """Add a node that reads the sum of `sources`, in that order; return its name.

        Raises
        ------
        GraphError
            The name is taken, a source is unknown, or widths do not fit.
        """
        if name in self.widths:
            raise GraphError(f"{name}: two nodes have this name")
        if not name or "/" in name or name == ".":
            raise GraphError(f"{name!r}: cannot be a node's name; in a file it would mean another place")
        source = self.total((sources,) if isinstance(sources, str) else tuple(sources), reader=name)
        if self.widths[source] != operator.in_features:
            raise GraphError(f"{name}: takes {operator.in_features} features, but {source} sends {self.widths[source]}")
        if source in self._token_means and not isinstance(operator, Affine | LayerNorm):
            raise UnsupportedOperatorError(
                f"{name}: {operator.name} reads {source}, which is one vector for the whole sentence; behind a token "
                "mean only affine, linear and layer norm nodes are supported"
            )
        if source in self._token_means or isinstance(operator, TokenMean):
            self._token_means.add(name)
        self._append(Node(name, operator, (source,)))
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
                if (running in self._token_means) != (last in self._token_means):
                    raise GraphError(f"{reader}: adds {running} to {last}, one vector a sentence to one a token")
                name = self._free_name(f"{last}_stream")
                self._append(Node(name, Total(self.widths[last]), (running, last)))
                if last in self._token_means:
                    self._token_means.add(name)
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


def build_graph(network: Network, dtype: DTypeLike = np.float32) -> nir.NIRGraph:
    """Write a network as a NIR graph.

    Parameters
    ----------
    network : Network
    dtype : dtype
        Type of the weights, float32 or float64. Parameters of neurons are float64 always. An integer network is written
        in integers whatever this says.

    Returns
    -------
    nir.NIRGraph
        Standard nodes where NIR has them; marked, poisoned composites where not (see ``docs/nir.md``).

    Raises
    ------
    UnsupportedOperatorError
        NIR cannot hold a node's parameters exactly.
    """
    dtype = np.dtype(np.float64 if network.is_integer else dtype)
    nodes: dict[str, nir.NIRNode] = {}
    encoding = network.token_encoding
    nodes[network.input_name] = nir.Input(
        {"input": np.array(network.input_shape or (network.input_features,))},
        metadata=({"encoding": MULTI_HOT, **encoding.to_metadata()} if encoding else {"encoding": "values"}),
    )
    wires = {node.name: node.sources for node in network.nodes if isinstance(node.operator, Total | PreviousStep)}
    shapes = feature_shapes(network)
    edges: list[tuple[str, str]] = []

    def summands(name: str) -> list[str]:
        return [part for source in wires[name] for part in summands(source)] if name in wires else [name]

    for node in network.nodes:
        if node.name in wires:
            continue
        try:
            written = node.operator.to_nir(dtype, network.dt)
            nodes[node.name] = shaped(written, shapes[node.name]) if _keeps_shape(node.operator) else written
        except UnsupportedOperatorError as error:
            raise UnsupportedOperatorError(f"{node.name}: {error}") from error
        edges.extend((source, node.name) for source in summands(node.sources[0]))
    nodes[network.output_name] = nir.Output(
        {"output": np.array(shapes[network.output_source])}, metadata=decoding(network)
    )
    edges.extend((source, network.output_name) for source in summands(network.output_source))
    non_standard = [name for name, node in nodes.items() if node.metadata.get("standard") is False]
    metadata: dict[str, Any] = {
        **network.metadata,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "precision": INTEGER if network.is_integer else dtype.name,
        "dt": network.dt,
        "attend_to_padding": network.attend_to_padding,
        "layout": "shapes are per token; time, sentence and token are implicit leading axes; standard nodes act on "
        "each token by itself",
        "sums": "several edges into one node are summed, in the order of the edges",
        "non_standard_nodes": json.dumps(non_standard),
    }
    for key in COUNTS:
        if getattr(network, key) is not None:
            metadata[key] = getattr(network, key)
    # NIR's own type check takes kernels to be square and groups to be one
    has_kernels = any(isinstance(node.operator, Convolution | Pooling) for node in network.nodes)
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=not has_kernels)


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
        shapes[node.name] = known[0] if known and _keeps_shape(node.operator) else node.operator.out_shape
    return shapes


def _keeps_shape(operator: Operator) -> bool:
    return operator.spikes or operator.keeps_shape


def decoding(network: Network) -> dict[str, Any]:
    """Return what the metadata of an output node say of how to read it."""
    readout = network.readout
    if readout is None:
        return {"decoding": "mean over time steps"}
    tokens = "N the sentence's tokens" if network.sums_tokens else "N = 1"
    return {
        "decoding": f"logits = (sum over T steps + N T bias) unit / (N T), {tokens}",
        "unit": float(readout.unit),
        "bias": np.asarray(readout.bias, np.int64),
    }


def parse_graph(graph: nir.NIRGraph, dt: float | None = None) -> Network:
    """Read a NIR graph as a network, checking everything on the way.

    Parameters
    ----------
    graph : nir.NIRGraph
    dt : float, optional
        Seconds of a time step, for graphs that do not say.

    Raises
    ------
    GraphError
        The graph means nothing; the message names the node and what is wrong.
    UnsupportedOperatorError
        A node has no operator here.
    """
    metadata = dict(graph.metadata) if isinstance(graph.metadata, dict) else {}
    _check_format(metadata)
    said_dt = metadata_value(metadata, "dt", float, "graph") if "dt" in metadata else None
    dt = dt if said_dt is None else said_dt
    if dt is not None and not (np.isfinite(dt) and dt > 0):
        raise GraphError(f"graph: dt is {dt}; it must be a positive number of seconds")
    is_ours = metadata.get("format") in (FORMAT, FORMAT.encode())
    graph = graph if is_ours else open_nested(graph)
    input_name = _only(graph, nir.Input)
    output_name = _only(graph, nir.Output)
    sources = _sources(graph)
    delayed = delayed_edges(sources, [name for name, node in graph.nodes.items() if _spikes(node)])
    in_step = {name: [source for source in read if (source, name) not in delayed] for name, read in sources.items()}
    order = _topological_order(graph, sources, in_step)
    if not is_ours or any(isinstance(node, SHAPED) or _has_axes(node) for node in graph.nodes.values()):
        graph = complete_graph(graph, order, in_step)
    encoding = _token_encoding(graph.nodes[input_name], input_name)
    builder = NetworkBuilder(input_name, _width(graph.nodes[input_name], input_name))
    operators = {
        name: _read_operator(graph.nodes[name], name, said_dt, dt)
        for name in order
        if name not in (input_name, output_name)
    }
    for name, operator in operators.items():
        read = [
            builder.previous_step(source, operators[source].out_features) if (source, name) in delayed else source
            for source in sources[name]
        ]
        builder.add(name, operator, read)
    if encoding is not None:
        _check_token_input(builder, encoding)
    integer = _is_integer(builder, metadata)
    known = ("dt", "attend_to_padding", *COUNTS)
    network = builder.network(
        output_name,
        sources[output_name],
        token_encoding=encoding,
        dt=DEFAULT_DT if dt is None else dt,
        attend_to_padding=(
            metadata_value(metadata, "attend_to_padding", bool, "graph") if "attend_to_padding" in metadata else False
        ),
        **{key: _count(metadata, key) for key in COUNTS},
        readout=_readout(graph.nodes[output_name], output_name) if integer else None,
        input_shape=_input_shape(graph.nodes[input_name]),
        metadata={key: value for key, value in metadata.items() if key not in known},
    )
    width = _width(graph.nodes[output_name], output_name)
    if width != network.output_features:
        raise GraphError(f"{output_name}: shows {width} features, but its source sends {network.output_features}")
    return network


def _check_format(metadata: dict[str, Any]) -> None:
    if "format_version" not in metadata:
        return
    version = metadata_value(metadata, "format_version", int, "graph")
    if version != FORMAT_VERSION:
        raise GraphError(f"graph: written as {FORMAT} version {version}; this reader knows version {FORMAT_VERSION}")


def _count(metadata: dict[str, Any], key: str) -> int | None:
    if key not in metadata:
        return None
    count = metadata_value(metadata, key, int, "graph")
    if count < 1:
        raise GraphError(f"graph: {key} is {count}; it must be at least 1")
    return count


def _is_integer(builder: NetworkBuilder, metadata: dict[str, Any]) -> bool:
    """Return whether a graph computes in whole numbers, after checking that all of its nodes or none do."""
    said = metadata_value(metadata, "precision", str, "graph") == INTEGER if "precision" in metadata else False
    for node in builder.nodes:
        operator = node.operator
        if operator.integer is not None and operator.integer != said:
            found, expected = ("integer", "a float") if operator.integer else ("float", "an integer")
            raise GraphError(f"{node.name}: {operator.name} is a {found} operator in {expected} graph")
        if said and isinstance(operator, Heaviside) and np.any(operator.threshold != np.rint(operator.threshold)):
            raise GraphError(f"{node.name}: a threshold of an integer graph is no whole number")
        if said and isinstance(operator, Pooling) and operator.mean:
            raise GraphError(f"{node.name}: a mean divides; an integer graph sums, and its unit is divided")
        if said and isinstance(operator, Scale) and not np.isin(operator.scale, (-1, 0, 1)).all():
            raise GraphError(f"{node.name}: a factor of an integer graph is 1, 0 or -1; the unit holds what is left")
        if said and isinstance(operator, Delay):
            operator.check_chip_holds(node.name)
    return said


def _readout(node: nir.NIRNode, name: str) -> Readout:
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    unit = metadata_value(metadata, "unit", float, name)
    if not (np.isfinite(unit) and unit > 0):
        raise GraphError(f"{name}: metadata unit is {unit}; it must be a positive number")
    limit, remedy = (1 << 40) - 1, "the total over tokens and steps must fit 64 bits"
    return Readout(
        unit, integer_parameter(metadata.get("bias"), (_width(node, name),), name, "bias", -limit, limit, remedy)
    )


def _only(graph: nir.NIRGraph, kind: type[nir.NIRNode]) -> str:
    names = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
    if len(names) != 1:
        raise GraphError(f"graph: has {len(names)} {kind.__name__} nodes ({', '.join(names) or 'none'}); expected one")
    return names[0]


def _width(node: nir.NIRNode, name: str) -> int:
    width = _port(node.input_type if isinstance(node, nir.Input) else node.output_type)
    if width is None:
        raise GraphError(f"{name}: has no shape of positive whole numbers, its features")
    return width


def _has_axes(node: nir.NIRNode) -> bool:
    """Return whether a node is an input of more than a row of features."""
    return isinstance(node, nir.Input) and np.size(node.input_type.get("input", ())) > 1


def _input_shape(node: nir.NIRNode) -> tuple[int, ...] | None:
    shape = tuple(int(length) for length in np.asarray(node.input_type["input"]).reshape(-1))
    return shape if len(shape) > 1 else None


def _spikes(node: nir.NIRNode) -> bool:
    if isinstance(node, nir.NIRGraph):
        metadata = node.metadata if isinstance(node.metadata, dict) else {}
        return is_subtractive_neuron(node) or metadata.get("op") in (
            IntegerLeakyIntegrateAndFire.name,
            IntegerCurrentNeuron.name,
        )
    return isinstance(node, nir.LIF | nir.IF | nir.CubaLIF | nir.Threshold)


def _sources(graph: nir.NIRGraph) -> dict[str, list[str]]:
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for edge in graph.edges:
        source, target = (str(end) for end in edge)
        for end in (source, target):
            if end not in sources:
                raise GraphError(f"{end}: an edge {source} -> {target} names it, but the graph has no such node")
        if source in sources[target]:
            raise GraphError(f"{target}: two edges lead to it from {source}")
        sources[target].append(source)
    return sources


def _topological_order(graph: nir.NIRGraph, sources: dict[str, list[str]], in_step: dict[str, list[str]]) -> list[str]:
    try:
        order = list(TopologicalSorter(in_step).static_order())
    except CycleError as error:
        raise GraphError(f"graph: a cycle leads through {' -> '.join(map(str, error.args[1]))}") from error
    read = {source for list_of_sources in sources.values() for source in list_of_sources}
    for name, node in graph.nodes.items():
        if not sources[name] and not isinstance(node, nir.Input):
            raise GraphError(f"{name}: nothing leads to it")
        if name not in read and not isinstance(node, nir.Output):
            raise GraphError(f"{name}: nothing reads it")
    return order


def _token_encoding(node: nir.NIRNode, name: str) -> TokenEncoding | None:
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    if metadata.get("encoding") != MULTI_HOT:
        return None
    vocabulary = metadata_value(metadata, "vocabulary", int, name)
    positions = metadata_value(metadata, "positions", int, name)
    before_first = metadata_value(metadata, "before_first", int, name) if "before_first" in metadata else None
    encoding = TokenEncoding(vocabulary, positions, before_first)
    if vocabulary < 1 or positions < 0 or encoding.width != _width(node, name):
        previous = "" if before_first is None else ", as many words before"
        raise GraphError(
            f"{name}: {vocabulary} words{previous} and {positions} positions do not make up its "
            f"{_width(node, name)} inputs"
        )
    if before_first is not None and not 0 <= before_first < vocabulary:
        raise GraphError(
            f"{name}: before_first is {before_first}; it must be one of the {vocabulary} words, 0 to {vocabulary - 1}"
        )
    return encoding


def _check_token_input(builder: NetworkBuilder, encoding: TokenEncoding) -> None:
    for node in builder.nodes:
        if builder.input_name in node.sources and not isinstance(node.operator, Affine):
            raise GraphError(f"{node.name}: reads token ids, which only an affine or linear node can")


def _read_operator(node: nir.NIRNode, name: str, dt: float | None, default_dt: float | None) -> Operator:
    if isinstance(node, nir.Affine):
        return read_affine(node, name)
    if isinstance(node, nir.Linear):
        return read_linear(node, name)
    if isinstance(node, nir.Threshold):
        return read_threshold(node, name)
    seconds = default_dt if dt is None else dt
    if isinstance(node, nir.CubaLIF) or (isinstance(node, nir.LIF | nir.IF) and not is_simple_neuron(node, seconds)):
        return read_resistive_neuron(node, name, seconds)
    if isinstance(node, nir.LIF | nir.IF) or is_subtractive_neuron(node):
        return read_neuron(node, name, dt, default_dt)
    if isinstance(node, nir.LI | nir.I):
        return read_leaky_integrator(node, name, seconds)
    if isinstance(node, nir.Delay):
        return read_delay(node, name, seconds)
    if isinstance(node, nir.Scale):
        return read_scale(node, name)
    if isinstance(node, nir.Flatten):
        return read_flatten(node, name)
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        return read_convolution(node, name)
    if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        return read_pooling(node, name)
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    is_standard = metadata_value(metadata, "standard", bool, name) if "standard" in metadata else True
    if isinstance(node, nir.NIRGraph) and not is_standard:
        op = metadata_value(metadata, "op", str, name)
        version = metadata_value(metadata, "op_version", int, name)
        if op not in MARKED_OPERATORS:
            raise UnsupportedOperatorError(
                f"{name}: operator {op!r} is not known; known are {', '.join(MARKED_OPERATORS)}"
            )
        known_version, read = MARKED_OPERATORS[op]
        if version != known_version:
            raise UnsupportedOperatorError(f"{name}: {op} version {version} is not known, only {known_version}")
        operator = read(metadata, name)
        if (operator.in_features, operator.out_features) != (_port(node.input_type), _port(node.output_type)):
            raise GraphError(
                f"{name}: its metadata describe {operator.in_features} -> {operator.out_features} features, its ports "
                f"{_port(node.input_type)} -> {_port(node.output_type)}"
            )
        return operator
    raise UnsupportedOperatorError(
        f"{name}: {type(node).__name__} has no operator here; supported are all of NIR's nodes but CubaLI, the "
        f"subtractive-reset graph of LI, Threshold and Scale, and marked {', '.join(MARKED_OPERATORS)}"
    )


def _port(types: dict[str, Any] | None) -> int | None:
    """Return the features of a node's only port; None where its shape is not one of positive whole numbers."""
    if not types or len(types) != 1:
        return None
    shape = np.asarray(next(iter(types.values()))).reshape(-1)
    return math.prod(shape.tolist()) if shape.dtype.kind in "iu" and shape.size and shape.min() > 0 else None

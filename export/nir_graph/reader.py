"""NIR graph -> network: every node an operator, everything checked on the way."""

from __future__ import annotations

import json
import math
from graphlib import CycleError, TopologicalSorter
from typing import Any

import nir
import numpy as np

from export.errors import GraphError, UnsupportedOperatorError
from export.network import COUNTS, FORMAT, FORMAT_VERSION, INTEGER, MULTI_HOT, Network, NetworkBuilder, Readout
from export.nir_graph.completion import complete_graph, open_nested
from export.operators import DEFAULT_DT, MARKED_OPERATORS, STANDARD_READERS, Operator
from export.operators.leaky_integrate_and_fire import is_subtractive_neuron, read_neuron
from export.operators.reading import StepSeconds, integer_parameter, metadata_of, metadata_value
from export.recurrence import delayed_edges
from export.token_encoding import TokenEncoding

SHAPED = (nir.Conv1d, nir.Conv2d, nir.SumPool2d, nir.AvgPool2d, nir.Flatten)
"""Nodes for which the shape of features matters; everywhere else they are a row."""


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
    metadata = dict(metadata_of(graph))
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
        name: _read_operator(graph.nodes[name], name, StepSeconds(said_dt, dt))
        for name in order
        if name not in (input_name, output_name)
    }
    for name, operator in operators.items():
        read = [
            builder.previous_step(source, operators[source].out_features) if (source, name) in delayed else source
            for source in (
                sources[name] if operator.traits.sources == 1 else _ordered(sources[name], graph.nodes[name], name)
            )
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
        if operator.traits.integer not in (None, said):
            found, expected = ("integer", "a float") if operator.traits.integer else ("float", "an integer")
            raise GraphError(f"{node.name}: {operator.name} is a {found} operator in {expected} graph")
        if said:
            operator.check_whole_numbers(node.name)
    return said


def _readout(node: nir.NIRNode, name: str) -> Readout:
    metadata = metadata_of(node)
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
    if is_subtractive_neuron(node):
        return True
    marked = MARKED_OPERATORS.get(str(metadata_of(node).get("op")))
    found = STANDARD_READERS.get(type(node), marked)
    return found is not None and found[0].traits.spike_range is not None


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
    metadata = metadata_of(node)
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
        if builder.input_name in node.sources and not node.operator.traits.reads_tokens:
            raise GraphError(f"{node.name}: reads token ids, which only an affine or linear node can")


def _read_operator(node: nir.NIRNode, name: str, dt: StepSeconds) -> Operator:
    if is_subtractive_neuron(node):
        return read_neuron(node, name, dt)
    if type(node) in STANDARD_READERS:
        _, read = STANDARD_READERS[type(node)]
        return read(node, name, dt)
    metadata = metadata_of(node)
    is_standard = metadata_value(metadata, "standard", bool, name) if "standard" in metadata else True
    if isinstance(node, nir.NIRGraph) and not is_standard:
        return _read_marked(node, metadata, name)
    raise UnsupportedOperatorError(
        f"{name}: {type(node).__name__} has no operator here; supported are all of NIR's nodes but CubaLI, the "
        f"subtractive-reset graph of LI, Threshold and Scale, and marked {', '.join(MARKED_OPERATORS)}"
    )


def _read_marked(node: nir.NIRGraph, metadata: dict[str, Any], name: str) -> Operator:
    op = metadata_value(metadata, "op", str, name)
    version = metadata_value(metadata, "op_version", int, name)
    if op not in MARKED_OPERATORS:
        raise UnsupportedOperatorError(f"{name}: operator {op!r} is not known; known are {', '.join(MARKED_OPERATORS)}")
    known, read = MARKED_OPERATORS[op]
    if version != known.version:
        raise UnsupportedOperatorError(f"{name}: {op} version {version} is not known, only {known.version}")
    operator = read(metadata, name)
    if (operator.in_features, operator.out_features) != (_port(node.input_type), _port(node.output_type)):
        raise GraphError(
            f"{name}: its metadata describe {operator.in_features} -> {operator.out_features} features, its ports "
            f"{_port(node.input_type)} -> {_port(node.output_type)}"
        )
    return operator


def _ordered(sources: list[str], node: nir.NIRNode, name: str) -> list[str]:
    """Return what a node with several sources reads, in the order that its metadata say; edges have none."""
    said = metadata_value(metadata_of(node), "sources", str, name)
    try:
        order = json.loads(said)
    except json.JSONDecodeError:
        order = None
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(set(sources)):
        raise GraphError(
            f"{name}: metadata sources are {said!r}; expected the nodes that lead to it, {sources}, in order"
        )
    return order


def _port(types: dict[str, Any] | None) -> int | None:
    """Return the features of a node's only port; None where its shape is not one of positive whole numbers."""
    if not types or len(types) != 1:
        return None
    shape = np.asarray(next(iter(types.values()))).reshape(-1)
    return math.prod(shape.tolist()) if shape.dtype.kind in "iu" and shape.size and shape.min() > 0 else None

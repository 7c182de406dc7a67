"""Graphs as other tools write them -> graphs as our reader wants them.

snnTorch, sinabs, norse and nirtorch leave out what they take to be clear: shapes, parameters that are the same for all
neurons, the batch axis, whose arrays are torch's. Here all of it is written down: nested graphs are opened, every array
is NumPy's, every node knows the shape it reads, and what acts on each feature by itself has one parameter for each, in
a row. Nothing is guessed: what does not follow from the graph is refused.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import nir
import numpy as np

from export.errors import GraphError, UnsupportedOperatorError
from export.operators.leaky_integrate_and_fire import is_subtractive_neuron
from export.operators.reading import STANDARD_READERS, STEP_UNKNOWN

ELEMENTWISE = (nir.LIF, nir.IF, nir.CubaLIF, nir.LI, nir.I, nir.Scale, nir.Threshold, nir.Delay)
"""Nodes whose parameters are one number for each feature."""
SPATIAL_AXES = {nir.Conv1d: 1, nir.Conv2d: 2}
Shape = tuple[int, ...]


def complete_graph(graph: nir.NIRGraph, order: list[str], sources: dict[str, list[str]]) -> nir.NIRGraph:
    """Return the graph with every shape and parameter written down.

    Parameters
    ----------
    graph : nir.NIRGraph
        Without nested graphs but neurons and marked operators, see `open_nested`.
    order : list of str
        Its nodes, each behind those it reads but for recurrent edges.
    sources : dict of str to list of str
        What each node reads in the same step.

    Returns
    -------
    nir.NIRGraph
        The input keeps its shape, without batch axis. Elementwise nodes are flat. Convolutions and pools know the shape
        they read.

    Raises
    ------
    GraphError
        A shape does not fit; the message names the node.
    UnsupportedOperatorError
        A node is of a type without operator here.
    """
    shapes: dict[str, Shape] = {}
    nodes: dict[str, nir.NIRNode] = {}
    for name in order:
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            readers = [graph.nodes[reader] for reader, read in sources.items() if name in read]
            shapes[name] = _without_batch(_shape(node.input_type, name), readers)
            nodes[name] = nir.Input({"input": np.array(shapes[name])}, metadata=node.metadata)
            continue
        if sources[name]:
            read_shape = _common_shape(name, [(source, shapes[source]) for source in sources[name]])
        elif isinstance(node, nir.Affine | nir.Linear):
            read_shape = np.shape(node.weight)[-1:]  # it reads a neuron behind it, of the step before
        else:
            behind = [(str(a), _own_shape(graph.nodes[str(a)], str(a), name)) for a, b in graph.edges if str(b) == name]
            read_shape = _common_shape(name, behind)
        nodes[name], shapes[name] = _complete(node, name, read_shape)
    return nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False)


def open_nested(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return the graph with the nodes of nested graphs among its own, as ``outer.inner``.

    Neurons with subtractive reset and marked operators stay closed: they are one operator each.
    """
    if not any(_is_plain_graph(node) for node in graph.nodes.values()):
        return graph
    nodes: dict[str, nir.NIRNode] = {}
    enters: dict[str, list[str]] = {}  # where an edge to a nested graph leads, and where one from it comes from
    leaves: dict[str, list[str]] = {}
    edges: list[tuple[str, str]] = []
    for name, node in graph.nodes.items():
        if not _is_plain_graph(node):
            nodes[name], enters[name], leaves[name] = node, [name], [name]
            continue
        inner = open_nested(node)
        ports = {key: port for key, port in inner.nodes.items() if isinstance(port, nir.Input | nir.Output)}
        if sorted(type(port).__name__ for port in ports.values()) != ["Input", "Output"]:
            raise UnsupportedOperatorError(f"{name}: a nested graph must have one input and one output")
        for key, part in inner.nodes.items():
            if key not in ports:
                full = f"{name}.{key}"
                if full in nodes or full in graph.nodes:
                    raise GraphError(f"{full}: two nodes have this name")
                nodes[full] = part
        enters[name] = [f"{name}.{b}" for a, b in inner.edges if isinstance(ports.get(str(a)), nir.Input)]
        leaves[name] = [f"{name}.{a}" for a, b in inner.edges if isinstance(ports.get(str(b)), nir.Output)]
        edges += [(f"{name}.{a}", f"{name}.{b}") for a, b in inner.edges if str(a) not in ports and str(b) not in ports]
    for source, target in graph.edges:
        for end in (source, target):
            if str(end) not in enters:
                raise GraphError(f"{end}: an edge {source} -> {target} names it, but the graph has no such node")
        edges += [(leaf, entry) for leaf in leaves[str(source)] for entry in enters[str(target)]]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


def shaped(node: nir.NIRNode, shape: Shape) -> nir.NIRNode:
    """Return an elementwise node, or a neuron's nested graph, with its parameters in a shape in place of a row."""
    if len(shape) == 1:
        return node
    if isinstance(node, nir.NIRGraph) and not is_subtractive_neuron(node):  # a marked operator, and poison stays poison
        poison = nir.Scale(np.full(shape, np.nan, np.float32))
        ports = {"input": nir.Input({"input": np.array(shape)}), "output": nir.Output({"output": np.array(shape)})}
        edges = [("input", "poison"), ("poison", "output")]
        return nir.NIRGraph({**ports, "poison": poison}, edges, node.metadata)
    if isinstance(node, nir.NIRGraph):
        return nir.NIRGraph({key: shaped(part, shape) for key, part in node.nodes.items()}, node.edges, node.metadata)
    if isinstance(node, nir.Input):
        return nir.Input({"input": np.array(shape)})
    if isinstance(node, nir.Output):
        return nir.Output({"output": np.array(shape)})
    values = {entry.name: getattr(node, entry.name) for entry in fields(node)}
    values = {key: value.reshape(shape) if isinstance(value, np.ndarray) else value for key, value in values.items()}
    return type(node)(**{key: value for key, value in values.items() if key not in ("input_type", "output_type")})


def _is_plain_graph(node: nir.NIRNode) -> bool:
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    return isinstance(node, nir.NIRGraph) and "op" not in metadata and not is_subtractive_neuron(node)


def _complete(node: nir.NIRNode, name: str, shape: Shape) -> tuple[nir.NIRNode, Shape]:
    """Return a node that knows it reads `shape`, and the shape it sends."""
    values = {entry.name: _array(getattr(node, entry.name)) for entry in fields(node)} if is_dataclass(node) else {}
    for port in ("input_type", "output_type"):
        values.pop(port, None)
    if isinstance(node, nir.Output):
        return nir.Output({"output": np.array([math.prod(shape)])}, metadata=node.metadata), shape
    if isinstance(node, nir.NIRGraph):
        return node, _shape(node.output_type, name)
    if isinstance(node, nir.Affine | nir.Linear):
        if len(shape) != 1:
            raise GraphError(
                f"{name}: reads a shape {shape}; an affine or linear node reads a row, put a Flatten before it"
            )
        return type(node)(**values), (int(np.shape(values["weight"])[0]),)
    if isinstance(node, ELEMENTWISE):
        flat = {key: value if key == "metadata" else _flat(value, shape, name, key) for key, value in values.items()}
        return type(node)(**flat), shape
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        axes, weight = SPATIAL_AXES[type(node)], values["weight"]
        if len(shape) != axes + 1 or np.ndim(weight) != axes + 2:
            raise GraphError(f"{name}: reads a shape {shape} with a weight {np.shape(weight)}")
        channels = weight.shape[1] * int(values["groups"])
        if shape[0] != channels:
            raise GraphError(f"{name}: takes {channels} channels, but reads a shape {shape}")
        said = values["input_shape"]
        if said is not None and np.asarray(said).reshape(-1).tolist() != list(shape[1:]):
            raise GraphError(f"{name}: says that it reads a size {said}, but it reads a shape {shape}")
        values["input_shape"] = shape[1:] if axes == 2 else shape[1]
        done: nir.NIRNode = type(node)(**values)
        return done, _out_shape(done, name)
    if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        done = type(node)(**values)
        done.input_type = {"input": np.array(shape)}
        return done, _out_shape(done, name)
    if isinstance(node, nir.Flatten):
        done = nir.Flatten({"input": np.array(shape)}, **values)
        return done, _out_shape(done, name)
    raise UnsupportedOperatorError(
        f"{name}: {type(node).__name__} has no operator here; supported are "
        f"{', '.join(kind.__name__ for kind in (*ELEMENTWISE, *SPATIAL_AXES))}, Affine, Linear, SumPool2d, AvgPool2d, "
        "Flatten"
    )


def _out_shape(node: nir.NIRNode, name: str) -> Shape:
    """Return the shape that a node sends whose input's shape is known."""
    _, read = STANDARD_READERS[type(node)]
    return read(node, name, STEP_UNKNOWN).out_shape


def _array(value: Any) -> Any:
    """Return a torch tensor as NumPy array; anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _flat(value: Any, shape: Shape, name: str, key: str) -> np.ndarray:
    """Return a parameter as one number for each feature; NIR files also hold one for all."""
    array = np.asarray(value)
    if array.size == 1:
        return np.full(math.prod(shape), array.reshape(()), array.dtype)
    without_batch = array.reshape(array.shape[1:]) if array.shape[:1] == (1,) else array
    if shape not in (array.shape, without_batch.shape):
        raise GraphError(f"{name}: {key} has shape {array.shape}, but the node reads a shape {shape}")
    return array.reshape(-1)


def _shape(types: dict[str, Any] | None, name: str) -> Shape:
    found = None if not types or len(types) != 1 else next(iter(types.values()))
    array = np.asarray(() if found is None else found).reshape(-1)
    if not array.size or array.dtype.kind not in "iu" or array.min() < 1:
        raise GraphError(f"{name}: has no shape of positive whole numbers")
    return tuple(int(length) for length in array)


def _own_shape(neuron: nir.NIRNode, name: str, reader: str) -> Shape:
    """Return the shape of a neuron that stands behind its reader, as its parameters have it."""
    if isinstance(neuron, nir.NIRGraph):
        return _shape(neuron.output_type, name)
    shape = np.shape(neuron.threshold if isinstance(neuron, nir.Threshold) else neuron.v_threshold)
    if math.prod(shape) == 1:
        raise UnsupportedOperatorError(
            f"{reader}: reads only what {name} sent in the step before, and the parameters of {name} do not say its "
            "shape; give it one for each feature"
        )
    return shape


def _common_shape(name: str, read: list[tuple[str, Shape]]) -> Shape:
    (first, shape), *rest = read
    for source, other in rest:
        if other != shape:
            raise GraphError(f"{name}: adds {first} of shape {shape} to {source} of shape {other}")
    return shape


def _without_batch(shape: Shape, readers: list[nir.NIRNode]) -> Shape:
    """Return an input's shape without the batch axis of 1 that some exporters leave in it."""
    for reader in readers:
        if isinstance(reader, nir.Affine | nir.Linear):
            axes = 1
        elif isinstance(reader, nir.Conv1d | nir.Conv2d):
            axes = SPATIAL_AXES[type(reader)] + 1
        elif isinstance(reader, nir.SumPool2d | nir.AvgPool2d):
            axes = 3
        elif isinstance(reader, ELEMENTWISE):
            axes = next(np.ndim(getattr(reader, entry.name)) for entry in fields(reader) if entry.name in _PARAMETERS)
        else:
            continue
        if shape[0] == 1 and len(shape) == axes + 1 and axes:
            return shape[1:]
    return shape


_PARAMETERS = ("r", "scale", "threshold", "delay")

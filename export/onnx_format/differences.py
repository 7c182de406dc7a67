"""Where an ONNX file differs from what a model is written as: each weight, and how each node is spelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.differences import GraphDifference, parameter_difference
from export.errors import OnnxFileError
from export.onnx_format.file import load_onnx
from export.onnx_format.graph import OnnxDraft

SHARED = "graph"
"""Who owns the constants that many nodes share, and what is not of one node."""


def onnx_differences(expected: OnnxDraft, path: str | Path) -> list[GraphDifference]:
    """Return how a file differs from a draft of the model it is said to be; empty where it does not.

    Weights are compared to the last bit, nodes in the way this version spells them.

    Raises
    ------
    OnnxFileError
        The file, or its external data, cannot be read.
    """
    path = Path(path)
    model = load_onnx(path)
    differences = _node_differences(expected.model.graph, model.graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for weight in expected.weights:
        tensor = stored.pop(weight.name, None)
        found = None if tensor is None else _read(tensor, path)
        detail = "missing" if found is None else _detail(weight.value.astype(weight.dtype), found)
        if detail:
            differences.append(_difference(weight.name, detail))
    return [*differences, *(_difference(name, "not expected") for name in stored)]


def _node_differences(expected: onnx.GraphProto, found: onnx.GraphProto) -> list[GraphDifference]:
    nodes = {node.name: node for node in found.node}
    spelled_otherwise: dict[str, GraphDifference] = {}  # one for each node of the network, whatever it is made of
    for node in expected.node:
        other = nodes.pop(node.name, None)
        if other != node:
            how = "missing" if other is None else f"{_spelled(other)}, expected {_spelled(node)}"
            if other is not None and _spelled(other) == _spelled(node):
                how = f"{_spelled(node)} with other attributes"
            spelled_otherwise.setdefault(_owner(node.name), GraphDifference(_owner(node.name), node.name, how))
    for name, node in nodes.items():
        added = GraphDifference(_owner(name), name, f"{node.op_type}, not expected")
        spelled_otherwise.setdefault(_owner(name), added)
    return list(spelled_otherwise.values())


def _spelled(node: onnx.NodeProto) -> str:
    return f"{node.op_type}({', '.join(node.input)})"


def _read(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor, base_dir=str(path.parent))
    except Exception as error:  # the file with the external data is missing, too short, or elsewhere
        raise OnnxFileError(f"{path}: its external data cannot be read: {type(error).__name__}: {error}") from error


def _detail(expected: np.ndarray, found: np.ndarray) -> str | None:
    if expected.dtype != found.dtype:
        return f"holds {found.dtype}, expected {expected.dtype}"
    return parameter_difference(expected, found)


def _difference(name: str, detail: str) -> GraphDifference:
    return GraphDifference(_owner(name), name.partition("/")[2] or name, detail)


def _owner(name: str) -> str:
    """Return the node that a value or weight called ``NODE/...`` belongs to."""
    return name.partition("/")[0] or SHARED

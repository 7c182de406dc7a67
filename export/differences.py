"""Where two graphs differ: nodes, edges, and each parameter of the nodes they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.network import Network, Node


@dataclass(frozen=True)
class GraphDifference:
    """One thing in which two graphs differ.

    Attributes
    ----------
    node : str
    what : str
        ``"missing"``, ``"added"``, ``"edges"``, ``"operator"`` or the name of a parameter.
    detail : str
        Both sides, in words.
    """

    node: str
    what: str
    detail: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.node}: {self.what}: {self.detail}"


def graph_differences(expected: Network, found: Network) -> list[GraphDifference]:
    """Return how `found` differs from `expected`, in topological order of the latter; empty where it does not.

    Weights are compared to the last bit, as numbers: a graph written in float64 equals its float32 original.
    """
    differences: list[GraphDifference] = []
    for name in ("time_steps", "attend_to_padding", "token_encoding", "output_source"):
        mine, other = getattr(expected, name), getattr(found, name)
        if mine != other:
            differences.append(GraphDifference("graph", name, f"{mine} expected, {other} found"))
    nodes = {node.name: node for node in found.nodes}
    for node in expected.nodes:
        if node.name not in nodes:
            differences.append(GraphDifference(node.name, "missing", "the graph has no such node"))
            continue
        differences.extend(_node_differences(node, nodes.pop(node.name)))
    differences.extend(GraphDifference(name, "added", "not expected") for name in nodes)
    return differences


def source_differences(found: Network, checkpoint_sha256: str) -> list[GraphDifference]:
    """Return how an integer graph says that it was not made from a checkpoint; its weights no longer show it."""
    said = found.metadata.get("checkpoint_sha256")
    if said == checkpoint_sha256:
        return []
    return [GraphDifference("graph", "checkpoint_sha256", f"{said or 'none'}, expected {checkpoint_sha256}")]


def _node_differences(expected: Node, found: Node) -> list[GraphDifference]:
    differences = []
    if expected.sources != found.sources:
        differences.append(
            GraphDifference(
                expected.name, "edges", f"reads {' + '.join(found.sources)}, expected {' + '.join(expected.sources)}"
            )
        )
    if type(expected.operator) is not type(found.operator):
        kinds = f"{found.operator.name}, expected {expected.operator.name}"
        return [*differences, GraphDifference(expected.name, "operator", kinds)]
    mine, other = expected.operator.parameters(), found.operator.parameters()
    for name in dict.fromkeys((*mine, *other)):
        detail = parameter_difference(mine.get(name), other.get(name))
        if detail:
            differences.append(GraphDifference(expected.name, name, detail))
    return differences


def parameter_difference(expected: Any, found: Any) -> str | None:
    """Return in words how a parameter differs from another, None where it does not."""
    if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
        if not isinstance(expected, np.ndarray) and not isinstance(found, np.ndarray) and expected == found:
            return None
        return f"{_in_words(found)}, expected {_in_words(expected)}"
    if expected.shape != found.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    where = np.argwhere(expected != found)
    if not len(where):
        return None
    index = tuple(int(i) for i in where[0])
    return (
        f"{len(where)} of {expected.size} values differ, the first at {list(index)}: {float(found[index])!r}, expected "
        f"{float(expected[index])!r}"
    )


def _in_words(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)

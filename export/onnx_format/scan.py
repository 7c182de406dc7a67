"""What must be computed step by step, in ONNX: neurons, integrators, and whatever a recurrent connection leads through.

Such nodes become a ``Scan`` over time whose state is what they remember, zeros before the first step: each neuron one
of its own, the nodes of a cycle one together. Inside it a value is ``(1, B, N, D)``, so that every operator is spelled
there as it is outside, and is called ``NODE/now``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import helper

from export.network import Node
from export.onnx_format.builder import POTENTIAL, OnnxBuilder, State


def write_scan(
    build: OnnxBuilder, nodes: Sequence[Node], clock: str, write: Callable[[OnnxBuilder, Node], list[State]]
) -> None:
    """Write nodes as one ``Scan``; outside it their values have their names, as everywhere.

    Parameters
    ----------
    build : OnnxBuilder
    nodes : sequence of Node
        In topological order.
    clock : str
        A value that is there at every step, for nodes that read nothing else.
    write : callable
        Writes one of the nodes into the body it is given; returns its states.
    """
    inside = [node.name for node in nodes]
    reads = list(dict.fromkeys(name for node in nodes for name in node.sources if name not in inside)) or [clock]
    shown = {node.name: node.operator.out_features for node in nodes}
    if build.membrane_potentials:
        shown |= {POTENTIAL.format(node.name): node.operator.out_features for node in nodes if node.operator.spikes}
    scan = inside[-1]
    body = build.subgraph({name: f"{name}/now" for name in [*shown, *reads]})
    for name in reads:
        body.add("Unsqueeze", [f"{name}/step", body.axes(0)], name)
    states = [state for node in nodes for state in write(body, node)]
    sent = [body.add("Squeeze", [name, body.axes(0)], f"{name}/sent") for name in shown]

    def value(name: str, *shape: int | None) -> Any:
        return helper.make_tensor_value_info(name, build.element_type, shape)

    graph = helper.make_graph(
        body.nodes,
        f"{scan}/step",
        [
            *(value(body.called(state.before), state.depth, None, None, state.features) for state in states),
            *(value(f"{name}/step", None, None, None) for name in reads),
        ],
        [
            *(value(state.after, state.depth, None, None, state.features) for state in states),
            *(value(name, None, None, features) for name, features in zip(sent, shown.values(), strict=True)),
        ],
    )
    rows = build.add("Shape", [reads[0]], f"{scan}/rows", start=1, end=3)
    sizes = dict.fromkeys((state.depth, state.features) for state in states)
    at_rest = {size: zeros(build, f"{scan}/at_rest_{'_'.join(map(str, size))}", rows, *size) for size in sizes}
    build.add_node(
        "Scan",
        [*(at_rest[state.depth, state.features] for state in states), *reads],
        [*(f"{state.after}/last" for state in states), *shown],
        body=graph,
        num_scan_inputs=len(reads),
    )


def zeros(build: OnnxBuilder, name: str, rows: str, depth: int, features: int) -> str:
    """Write what is remembered before the first step, ``(depth, *rows, features)``."""
    shape = build.add("Concat", [build.axes(depth), rows, build.axes(features)], f"{name}/shape", axis=0)
    zero = helper.make_tensor("zero", build.element_type, [1], [0])
    return build.add("ConstantOfShape", [shape], name, value=zero)

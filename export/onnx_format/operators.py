"""How each operator is spelled in ONNX: the same operations, in the same order, as its NumPy meaning.

Activations are ``(T, B, N, D)``: all time steps at once, so that every affine node is one ``MatMul`` over all of them
and no weight is stored twice. Time passes only inside a neuron, as a ``Scan`` over the first axis whose state is the
membrane potential; an unrolled loop would fix T and repeat every node T times, and a ``Loop`` around the whole network
would hide the nodes' values from whoever wants to see them.

Layer norm is spelled out too: ONNX Runtime's fused operator adds and scales in another order, which flips spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import helper

from export.onnx_format.builder import OnnxBuilder
from export.operators import Affine, Heaviside, LayerNorm, LeakyIntegrateAndFire, SpikeAttention, TokenMean
from export.operators.operator import Operator

POTENTIAL = "{}.membrane_potential"
"""Name of the value that holds a neuron's potential as it was tested against the threshold."""

Writer = Callable[[OnnxBuilder, str, Any, str], None]
"""Called with builder, node name, operator, and the name of what it reads; writes a value called as the node."""


def write_affine(build: OnnxBuilder, name: str, operator: Affine, x: str) -> None:
    """Write ``x W^T + b``; the weight is stored transposed, as ``MatMul`` takes it."""
    weight = build.weight(f"{name}/weight", operator.weight.T)
    if operator.bias is None:
        build.add("MatMul", [x, weight], name)
        return
    product = build.add("MatMul", [x, weight], f"{name}/product")
    build.add("Add", [product, build.weight(f"{name}/bias", operator.bias)], name)


def write_layer_norm(build: OnnxBuilder, name: str, operator: LayerNorm, x: str) -> None:
    """Write the norm of each group, centred before it is squared."""
    grouped = operator.groups > 1
    parts = build.add("Reshape", [x, build.shape(0, 0, 0, operator.groups, -1)], f"{name}/groups") if grouped else x
    last_axis = build.axes(-1)
    centred = build.add("Sub", [parts, build.add("ReduceMean", [parts, last_axis], f"{name}/mean")], f"{name}/centred")
    squared = build.add("Mul", [centred, centred], f"{name}/squared")
    variance = build.add("ReduceMean", [squared, last_axis], f"{name}/variance")
    guarded = build.add("Add", [variance, build.weight(f"{name}/eps", operator.eps)], f"{name}/guarded_variance")
    deviation = build.add("Sqrt", [guarded], f"{name}/deviation")
    normed = build.add("Div", [centred, deviation], f"{name}/normed")
    if grouped:
        normed = build.add("Reshape", [normed, build.shape(0, 0, 0, operator.in_features)], f"{name}/joined")
    scaled = build.add("Mul", [normed, build.weight(f"{name}/weight", operator.weight)], f"{name}/scaled")
    build.add("Add", [scaled, build.weight(f"{name}/bias", operator.bias)], name)


def write_neuron(build: OnnxBuilder, name: str, operator: LeakyIntegrateAndFire, x: str) -> None:
    """Write a population as a ``Scan`` over time, with the equations of its docstring in their order."""
    subtracts = operator.reset == "subtract"
    body = OnnxBuilder(build.dtype)
    before, spikes_before, current = f"{name}/U_before", f"{name}/S_before", f"{name}/I"
    threshold = build.weight(f"{name}/threshold", operator.threshold)
    if operator.decay_input:
        gap = body.add("Sub", [current, before], f"{name}/gap")
        change = body.add("Div", [gap, build.weight(f"{name}/tau", operator.tau)], f"{name}/change")
        potential = body.add("Add", [before, change], f"{name}/charged")
    else:
        kept = body.add("Mul", [build.weight(f"{name}/beta", operator.beta), before], f"{name}/kept")
        potential = body.add("Add", [kept, current], f"{name}/charged")
    if subtracts:
        taken = body.add("Mul", [spikes_before, threshold], f"{name}/taken")
        potential = body.add("Sub", [potential, taken], f"{name}/tested")
    fired = body.add(_test(operator), [potential, threshold], f"{name}/fired")
    spikes = body.cast(fired, f"{name}/S_now")
    if subtracts:
        states = [(before, body.add("Identity", [potential], f"{name}/U_after")), (spikes_before, spikes)]
    else:
        # U is multiplied by 0 where the neuron fired, else by 1: exact for every finite U
        silent = body.cast(body.add("Not", [fired], f"{name}/quiet"), f"{name}/silent")
        states = [(before, body.add("Mul", [potential, silent], f"{name}/U_after"))]
    recorded = [body.add("Identity", [spikes], f"{name}/S")]
    of_all_steps = [f"{name}/S_of_steps"]
    if build.membrane_potentials:
        recorded.append(body.add("Identity", [potential], f"{name}/U"))
        of_all_steps.append(POTENTIAL.format(name))

    def value(tensor: str) -> Any:
        return helper.make_tensor_value_info(tensor, build.element_type, [None, None, operator.in_features])

    graph = helper.make_graph(
        body.nodes,
        f"{name}/step",
        [*(value(state) for state, _ in states), value(current)],
        [*(value(state) for _, state in states), *map(value, recorded)],
    )
    shape = build.add("Shape", [x], f"{name}/shape", start=1)
    zero = helper.make_tensor("zero", build.element_type, [1], [0])
    silence = build.add("ConstantOfShape", [shape], f"{name}/at_rest", value=zero)
    last = [f"{name}/last_{index}" for index in range(len(states))]
    build.add_node("Scan", [*(silence for _ in states), x], [*last, *of_all_steps], body=graph, num_scan_inputs=1)
    _mask_spikes(build, name, of_all_steps[0])


def write_heaviside(build: OnnxBuilder, name: str, operator: Heaviside, x: str) -> None:
    """Write the bare comparison."""
    if build.membrane_potentials:
        build.add("Identity", [x], POTENTIAL.format(name))
    fired = build.add(_test(operator), [x, build.weight(f"{name}/threshold", operator.threshold)], f"{name}/fired")
    _mask_spikes(build, name, build.cast(fired, f"{name}/S"))


def write_spike_attention(build: OnnxBuilder, name: str, operator: SpikeAttention, x: str) -> None:
    """Write (Q K^T) V head by head; on spikes its sums are whole numbers, so the order of the products is free."""
    heads, size = operator.num_heads, operator.head_size
    if build.token_mask is not None:
        x = build.add("Mul", [x, build.token_mask], f"{name}/tokens")
    split = build.add_node("Split", [x], [f"{name}/{part}" for part in "qkv"], axis=-1, num_outputs=3)
    query, key, value = (
        build.add("Reshape", [part, build.shape(0, 0, 0, heads, size)], f"{part}/heads") for part in split
    )
    query, value = (build.add("Transpose", [part], f"{part}_first", perm=[0, 1, 3, 2, 4]) for part in (query, value))
    key = build.add("Transpose", [key], f"{key}_transposed", perm=[0, 1, 3, 4, 2])
    matches = build.add("MatMul", [query, key], f"{name}/matches")
    product = build.add("MatMul", [matches, value], f"{name}/product")
    tokens = build.add("Transpose", [product], f"{name}/tokens_first", perm=[0, 1, 3, 2, 4])
    joined = build.add("Reshape", [tokens, build.shape(0, 0, 0, operator.out_features)], f"{name}/joined")
    build.add("Mul", [joined, build.weight(f"{name}/scale", operator.scale)], name)


def write_token_mean(build: OnnxBuilder, name: str, operator: TokenMean, x: str) -> None:
    """Write the mean over real tokens; the token axis stays, with length 1."""
    token_axis = build.axes(-2)
    if build.token_mask is None:
        build.add("ReduceMean", [x, token_axis], name)
        return
    total = build.add(
        "ReduceSum", [build.add("Mul", [x, build.token_mask], f"{name}/tokens"), token_axis], f"{name}/sum"
    )
    count = build.add("ReduceSum", [build.token_mask, token_axis], f"{name}/count")
    build.add("Div", [total, count], name)


def _test(operator: LeakyIntegrateAndFire | Heaviside) -> str:
    return "GreaterOrEqual" if operator.fire_on_equal else "Greater"


def _mask_spikes(build: OnnxBuilder, name: str, spikes: str) -> None:
    """Write the node's own value: spikes, silent at padding."""
    if build.token_mask is None:
        build.add("Identity", [spikes], name)
    else:
        build.add("Mul", [spikes, build.token_mask], name)


WRITERS: dict[type[Operator], Writer] = {
    Affine: write_affine,
    LayerNorm: write_layer_norm,
    LeakyIntegrateAndFire: write_neuron,
    Heaviside: write_heaviside,
    SpikeAttention: write_spike_attention,
    TokenMean: write_token_mean,
}
"""Operator -> how it is written. `Total` is an ``Add`` and has no row."""

"""What flows on every edge: compared with what torch's own modules were given, and with sums written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from export import to_nir
from export.network import Network, NetworkBuilder
from export.nir_graph.reader import parse_graph
from export.operators import Affine, Heaviside, LayerNorm, SpikeAttention
from hardware import run
from hardware.errors import TraceMismatchError
from hardware.traces.edges import Edge, RunningSums, check_trace, edge_kinds, edges_by_node, running_sums
from hardware.traces.firing import Firing
from hardware.traces.trace import Trace


def all_edges(trace: Trace, network: Network) -> dict[tuple[str, str], Edge]:
    return {(edge.source, edge.reader): edge for _, edges in edges_by_node(trace, network) for edge in edges}


def residual_network(features: int = 3) -> Network:
    """Input -> step -> (+ input) -> affine -> step: a running sum whose summands a test can choose."""
    builder = NetworkBuilder("input", features)
    first = builder.add("first", Heaviside(np.zeros(features)), "input")
    builder.add("affine", Affine(np.ones((2, features))), ["input", first])
    builder.add("last", Heaviside(np.zeros(2)), "affine")
    return builder.network("output", "last")


def spiking_trace(network: Network, values: np.ndarray, mask: np.ndarray | None = None) -> Trace:
    """Return a trace with random spikes whose input was `values` (T, B, N, D)."""
    rng = np.random.default_rng(0)
    spikes = {"input": values}
    for node in network.spiking_nodes:
        spikes[node.name] = (rng.random((*values.shape[:3], node.operator.out_features)) < 0.5).astype(np.uint8)
    return Trace(spikes, np.zeros((values.shape[1], 2)), np.ones(values.shape[1:3], bool) if mask is None else mask)


def test_every_affine_reads_exactly_what_torch_gave_its_linear_layer(
    make_model: Callable[..., Any], padded_batch: tuple[np.ndarray, np.ndarray]
) -> None:
    model, (ids, mask) = make_model(num_hidden_layers=3), padded_batch
    given: list[np.ndarray] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach().numpy()))
        for block in model.spikebert.blocks
        for module in block.modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        output = model(torch.as_tensor(ids), torch.as_tensor(mask), output_spikes=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    spikes = {name: value.to(torch.uint8).numpy() for name, value in output.spikes.items()}
    network = parse_graph(to_nir(model))
    trace = Trace(spikes, output.logits.numpy(), mask)
    found = [
        edge
        for node, (edge, *_) in edges_by_node(trace, network)
        if isinstance(node.operator, Affine) and edge.values is not None
    ]
    assert len(found) == len(given) == 12  # qkv, projection, intermediate, output in each of three blocks
    for edge, expected in zip(found, given, strict=True):
        np.testing.assert_array_equal(edge.values, expected, err_msg=edge.reader)
    residual = all_edges(trace, network)["block02_output_neuron_stream", "final_norm"]
    np.testing.assert_array_equal(residual.values, output.hidden_states[-1].numpy())
    assert residual.values is not None
    assert residual.values.max() > 1  # or the residual stream would prove nothing


def test_kinds_say_which_edges_are_not_driven_by_spikes(tiny_model: Any, padded_batch: Any) -> None:
    network = parse_graph(to_nir(tiny_model))
    kinds = {edge: found.kind for edge, found in all_edges(run(network, *padded_batch), network).items()}
    stream = "block00_projection_neuron_stream"
    expected = {
        ("input", "embedding"): "tokens",
        ("embedding", "embedding_neuron"): "analog",
        ("embedding_neuron", "block00_qkv_affine"): "binary",
        ("block00_qkv_affine", "block00_qkv_norm"): "analog",
        ("block00_qkv_norm", "block00_qkv_neuron"): "analog",
        ("block00_qkv_neuron", "block00_attention"): "binary",
        ("block00_attention", "block00_attention_neuron"): "analog",  # whole numbers times the scale
        ("embedding_neuron", stream): "binary",
        ("block00_projection_neuron", stream): "binary",
        (stream, "block00_intermediate_affine"): "graded",
        ("block00_output_neuron_stream", "final_norm"): "graded",
        ("final_norm", "token_mean"): "analog",
        ("token_mean", "classifier"): "analog",
    }
    assert {edge: kinds[edge] for edge in expected} == expected
    assert len(kinds) == sum(len(node.sources) for node in network.nodes)  # no edge is left out


def test_input_is_analog_unless_the_trace_holds_it() -> None:
    network = residual_network()
    assert edge_kinds(network)["input"] == "analog"
    assert edge_kinds(network)["first_stream"] == "analog"  # a sum with something unknown is unknown
    assert edge_kinds(network, spiking_input=True)["first_stream"] == "graded"
    values = np.array([[[[0, 3, 1], [2, 0, 0]]]], np.uint8)
    trace = spiking_trace(network, values)
    trace.spikes["first"] = np.array([[[[1, 1, 0], [0, 0, 1]]]], np.uint8)
    edge = all_edges(trace, network)["first_stream", "affine"]
    np.testing.assert_array_equal(edge.values, [[[[1, 4, 1], [2, 0, 1]]]])
    del trace.spikes["input"]
    edge = all_edges(trace, network)["first_stream", "affine"]
    assert (edge.kind, edge.values) == ("analog", None)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_sums_widen_where_a_byte_would_wrap(dtype: type) -> None:
    network = residual_network()
    trace = spiking_trace(network, np.full((1, 1, 1, 3), 255, dtype))
    trace.spikes["first"][...] = 1
    edge = all_edges(trace, network)["first_stream", "affine"]
    assert edge.values is not None
    assert edge.values.tolist() == [[[[256, 256, 256]]]]
    assert edge.values.dtype == np.uint16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spikes: spikes.pop("last"), "last: .*no spikes in the trace"),
        (lambda spikes: spikes.update(other=spikes["last"]), "other: .*no such spiking node"),
        (lambda spikes: spikes.update(last=spikes["last"][:1]), r"last: .*shape \(1, 1, 4, 2\).*need \(2, 1, 4, 2\)"),
        (lambda spikes: spikes.update(first=spikes["first"][..., :2]), r"first: .*\(2, 1, 4, 2\).*need \(2, 1, 4, 3\)"),
        (lambda spikes: spikes.update(last=spikes["last"] * 2), "last: .*span 0 to 2"),
        (lambda spikes: spikes.update(last=-spikes["last"].astype(np.int8)), "last: .*span -1 to 0"),
        (lambda spikes: spikes.update(last=spikes["last"].astype(float)), "last: .*float64; expected whole numbers"),
    ],
)
def test_a_trace_of_another_graph_is_refused_by_node(
    change: Callable[[dict[str, np.ndarray]], Any], message: str, counted_in: str
) -> None:
    network = residual_network()
    trace = spiking_trace(network, np.ones((2, 1, 4, 3), np.uint8))
    check_trace(trace, network)
    change(trace.spikes)
    with pytest.raises(TraceMismatchError, match=message):
        edges_by_node(trace, network)
    with pytest.raises(TraceMismatchError, match=message):
        Firing(trace, network)  # which adds up what it checks


def test_a_graph_that_reads_tokens_takes_no_spikes_as_input(tiny_model: Any, padded_batch: Any) -> None:
    network = parse_graph(to_nir(tiny_model))
    trace = run(network, *padded_batch)
    trace.spikes["input"] = trace.spikes["embedding_neuron"]
    with pytest.raises(TraceMismatchError, match=r"input: .*the graph reads token ids"):
        check_trace(trace, network)


def test_attention_and_norm_edges_of_a_wired_up_graph() -> None:
    builder = NetworkBuilder("input", 6)
    builder.add("neurons", Heaviside(np.zeros(6)), "input")
    builder.add("norm", LayerNorm(np.ones(6), np.zeros(6)), "neurons")
    builder.add("attention", SpikeAttention(1, 2, 1.0), ["neurons", "norm"])
    kinds = edge_kinds(builder.network("output", "attention"))
    assert kinds == {
        "input": "analog",
        "neurons": "binary",
        "norm": "analog",
        "norm_stream": "analog",
        "attention": "analog",
    }


def test_running_sums_of_spikes_are_found_and_no_others() -> None:
    builder = NetworkBuilder("input", 2)
    for name in "abcd":
        builder.add(name, Heaviside(np.zeros(2)), "input")
    for name, sources in {"ab": "ab", "abc": "abc", "abd": "abd", "cd": "cd"}.items():
        builder.add(name, Affine(np.ones((2, 2))), list(sources))
    builder.add("analog", Affine(np.ones((2, 2))), ["a", "ab", "b"])
    network = builder.network("output", "analog")
    reads = {node.name: node.sources[0] for node in network.nodes}
    assert running_sums(network) == [
        RunningSums([reads["ab"], reads["abc"]], ["a", "b", "c"]),  # a, b and d go on from the first of these too
        RunningSums([reads["cd"]], ["c", "d"]),
    ]

"""Operation counts: by hand, against brute force that shares no code, and against NeuroBench and SpikingJelly."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import UnsupportedOperatorError, parse_graph, quantize, to_nir
from export.network import Network, NetworkBuilder
from export.operators import (
    Affine,
    Flatten,
    Heaviside,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    LeakyIntegrateAndFire,
    Operator,
    SpikeAttention,
    TokenMean,
    Traits,
)
from export.token_encoding import TokenEncoding
from hardware import run
from hardware.energy import (
    ATTENTION_ORDERS,
    OPERATION_KINDS,
    OperationCounter,
    OperationCounts,
    count_operations,
    estimate_energy,
)
from hardware.energy.baselines import QuantizedTwin
from hardware.energy.comparison import energy_by_component
from hardware.energy.counts import OPERATION_COUNTS, STATISTIC_KINDS, NodeActivity, Tallies, counting_rule
from hardware.errors import TraceMismatchError
from hardware.traces.trace import Trace

pytestmark = pytest.mark.usefixtures("counted_in")


def neurons(features: int, beta: float = 0.9, **knobs: Any) -> LeakyIntegrateAndFire:
    return LeakyIntegrateAndFire(np.full(features, beta), np.full(features, 2.0), np.ones(features), **knobs)


def small_transformer(width: int = 4, heads: int = 2, positions: int = 6) -> Network:
    """A block in miniature with every kind of node; its weights do not matter, its traces are made up."""
    rng = np.random.default_rng(0)
    builder = NetworkBuilder("input", 5 + positions)
    last = builder.add("embedding", Affine(rng.normal(size=(width, 5 + positions))), "input")
    last = builder.add("embedding_norm", LayerNorm(np.ones(width), np.zeros(width)), last)
    stream = [builder.add("embedding_neuron", Heaviside(np.zeros(width)), last)]
    last = builder.add("qkv_affine", Affine(rng.normal(size=(3 * width, width)), np.zeros(3 * width)), stream)
    last = builder.add("qkv_norm", LayerNorm(np.ones(3 * width), np.zeros(3 * width), groups=3), last)
    last = builder.add("qkv_neuron", neurons(3 * width), last)
    last = builder.add("attention", SpikeAttention(heads, width // heads, 0.125), last)
    stream.append(builder.add("attention_neuron", neurons(width), last))
    last = builder.add("mlp_affine", Affine(rng.normal(size=(width, width))), stream)
    stream.append(builder.add("mlp_neuron", neurons(width, beta=1.0, reset="zero"), last))
    last = builder.add("final_norm", LayerNorm(np.ones(width), np.zeros(width)), stream)
    last = builder.add("token_mean", TokenMean(width), last)
    last = builder.add("classifier", Affine(rng.normal(size=(3, width)), np.zeros(3)), last)
    return builder.network("output", last, token_encoding=TokenEncoding(5, positions))


def made_up_trace(network: Network, seed: int, shape: tuple[int, int, int], rate: float, mask: np.ndarray) -> Trace:
    """Return a trace of random spikes, none at padding; `shape` is (time steps, sentences, tokens)."""
    rng = np.random.default_rng(seed)
    spikes = {
        node.name: ((rng.random((*shape, node.operator.out_features)) < rate) & mask[..., None]).astype(np.uint8)
        for node in network.spiking_nodes
    }
    return Trace(spikes, np.zeros((shape[1], 3)), mask)


# Brute force: one synapse, one pair of tokens, one neuron at a time. Nothing here is taken from the code under test.


def synapses_one_by_one(values: np.ndarray, weight: np.ndarray) -> Counter[str]:
    counted: Counter[str] = Counter()
    for value in values.reshape(-1, values.shape[-1]):
        for i, o in itertools.product(range(weight.shape[1]), range(weight.shape[0])):
            if value[i] == 1:
                counted["ac_binary"] += 1
            elif value[i] > 1:
                counted["ac_graded"] += 1
                for _ in range(int(value[i])):
                    counted["ac_graded_additions"] += 1
            assert weight[o, i] is not None
    return counted


def attention_one_by_one(qkv: np.ndarray, heads: int, order: str) -> Counter[str]:
    """Count one sentence at one time step, ``(N, 3 D)``."""
    counted: Counter[str] = Counter()
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    size = width // heads
    for head in range(heads):
        q, k, v = (qkv[:, part * width + head * size :][:, :size].astype(int) for part in range(3))
        if order == "qk_first":
            for n, m in itertools.product(range(tokens), range(tokens)):
                entry = 0
                for i in range(size):
                    if q[n, i]:
                        counted["attention_and"] += 1
                        entry += k[m, i]
                counted["attention_count"] += entry
                counted["attention_add"] += sum(1 for j in range(size) if entry and v[m, j])
        else:
            for i, j in itertools.product(range(size), range(size)):
                entry = 0
                for m in range(tokens):
                    if k[m, i]:
                        counted["attention_and"] += 1
                        entry += v[m, j]
                counted["attention_count"] += entry
                counted["attention_add"] += sum(1 for n in range(tokens) if entry and q[n, i])
    return counted


def nonzero(tally: dict[str, int] | Counter[str]) -> dict[str, int]:
    return {kind: count for kind, count in tally.items() if count}


def test_one_affine_layer_by_hand() -> None:
    """Three inputs, two neurons with bias, one sentence of two tokens, two steps; the inputs are whole numbers."""
    builder = NetworkBuilder("input", 3)
    builder.add("affine", Affine(np.ones((2, 3)), np.ones(2)), "input")
    builder.add("neuron", neurons(2), "affine")
    network = builder.network("output", "neuron")
    values = np.array([[[[1, 0, 3], [0, 0, 0]]], [[[2, 1, 1], [0, 0, 1]]]], np.uint8)
    spikes = np.array([[[[1, 0], [0, 0]]], [[[1, 1], [0, 0]]]], np.uint8)
    counts = count_operations(
        Trace({"input": values, "neuron": spikes}, np.zeros((1, 2)), np.ones((1, 2), bool)), network
    )
    # ones: 1 + 0 + 2 + 1 = 4, each reaches 2 neurons: 8. Above one: 3 and 2, so 2 x 2 = 4 multi-bit operations, which
    # are (3 + 2) x 2 = 10 additions. Rows: 2 tokens x 2 steps = 4, each adds 2 biases: 8, and has 3 x 2 dense MACs: 24.
    assert counts.nodes["affine"].real == {
        "ac_binary": 8,
        "ac_graded": 4,
        "ac_graded_additions": 10,
        "addition": 8,
        "weight_read": 12,
        "parameter_read": 8,
        "input_element": 12,
        "input_event": 6,
        "input_value": 9,
        "dense_mac": 24,
    }
    # 2 neurons x 2 tokens x 2 steps = 8 updates; three spikes.
    assert counts.nodes["neuron"].real == {
        **dict.fromkeys(("membrane_update", "membrane_leak", "comparison", "state_read", "state_write"), 8),
        "reset": 3,
        "spike": 3,
    }
    assert (counts.nodes["affine"].edge, counts.nodes["neuron"].edge) == ("graded", "analog")
    # Eq. 18: T = 2, FLOPs of a step = 2 tokens x 3 x 2 = 12; 6 of 12 inputs are not 0, their mean is 9/12
    assert counts.nodes["affine"].nonzero_fraction == 0.5
    assert counts.nodes["affine"].mean_field_operations("nonzero_fraction") == 2 * 0.5 * 12 == 8 + 4
    assert counts.nodes["affine"].mean_field_operations("mean_value") == 2 * 0.75 * 12 == 8 + 10


def test_attention_by_hand() -> None:
    """Two tokens, one head of two features, one step."""
    builder = NetworkBuilder("input", 6)
    builder.add("qkv", Heaviside(np.zeros(6)), "input")
    builder.add("attention", SpikeAttention(1, 2, 0.125), "qkv")
    network = builder.network("output", "attention")
    #                     q     k     v
    tokens = np.array([[1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1]], np.uint8)
    trace = Trace({"qkv": tokens[None, None]}, np.zeros((1, 2, 2)), np.ones((1, 2), bool))
    counts = count_operations(trace, network)
    # Q K^T = [[1, 2], [0, 0]]: two query spikes x two tokens = 4 ANDs, 1 + 2 = 3 of them coincide; entry (0, 0) meets
    # one value spike, entry (0, 1) two: 3 additions. Scale: 2 tokens x 2 features = 4 MACs.
    attention = counts.nodes["attention"].real
    assert (attention["attention_and"], attention["attention_count"], attention["attention_add"]) == (4, 3, 3)
    assert attention["mac"] == 4
    assert attention["dense_mac"] == 2 * 2 * 2 * 2  # two products of 2 x 2 tokens x 2 features
    # K^T V = [[1, 2], [1, 1]]: three key spikes x two features = 6 ANDs, 5 coincide; the query spikes of token 0 take
    # both rows, of two nonzero entries each: 4 additions.
    attention = counts.with_attention_order("kv_first").nodes["attention"].real
    assert (attention["attention_and"], attention["attention_count"], attention["attention_add"]) == (6, 5, 4)
    assert attention["mac"] == 4


def test_dense_nodes_by_hand() -> None:
    """Two sentences of 3 and 1 tokens, padded to 3; three steps; width 4."""
    network = small_transformer()
    mask = np.array([[True, True, True], [True, False, False]])
    counts = count_operations(made_up_trace(network, 0, (3, 2, 3), 0.5, mask), network)
    nodes = counts.nodes
    # The embedding is gathered once a token, not once a step: 4 tokens x (word + position) x 4 numbers; 4 x 4 additions
    # of the two; a one-hot product would be 4 tokens x 11 inputs x 4. Two tokens are padding.
    assert nodes["embedding"].real == {"addition": 16, "embedding_read": 32, "dense_mac": 176}
    assert nodes["embedding"].padding == {"addition": 8, "embedding_read": 16, "dense_mac": 88}
    # Its norm too: 4 rows x (3 x 4 + 2) MACs, x (2 x 4 + 1) additions, x 2 special, x 8 parameters.
    norm = {
        "mac": 56,
        "addition": 36,
        "special": 8,
        "parameter_read": 32,
        "activation_read": 48,
        "activation_write": 16,
    }
    assert nodes["embedding_norm"].real == norm
    # The norm of query, key and value has 12 features in 3 groups, and 4 tokens x 3 steps = 12 rows; padding 6.
    assert nodes["qkv_norm"].real["mac"] == 12 * (3 * 12 + 2 * 3)
    assert nodes["qkv_norm"].real["addition"] == 12 * (2 * 12 + 3)
    assert nodes["qkv_norm"].real["special"] == 12 * 2 * 3
    assert nodes["qkv_norm"].padding["mac"] == 6 * (3 * 12 + 2 * 3)
    # A step without memory over a constant input compares once, but its spikes are sent at every step.
    assert nodes["embedding_neuron"].real["comparison"] == 4 * 4
    # beta = 1 leaks nothing: no multiplication; padding is updated, and fires nothing.
    assert "membrane_leak" not in nodes["mlp_neuron"].real
    assert nodes["mlp_neuron"].real["membrane_update"] == 12 * 4
    assert nodes["mlp_neuron"].padding == dict.fromkeys(
        ("membrane_update", "comparison", "state_read", "state_write"), 6 * 4
    )
    # The mean sums 4 tokens x 3 steps x 4 features, scales 2 sentences x 3 steps x 4 and takes 2 x 3 reciprocals.
    assert nodes["token_mean"].real == {
        "mac": 24,
        "addition": 48,
        "special": 6,
        "activation_read": 48,
        "activation_write": 24,
    }
    assert not nodes["token_mean"].padding  # masked tokens are not averaged
    # The head has a row a sentence and step: 6 x (4 x 3) MACs, 6 x 3 biases; padding adds nothing.
    head = {"mac": 72, "addition": 18, "weight_read": 72, "parameter_read": 18, "activation_read": 24}
    assert nodes["classifier"].real == {**head, "activation_write": 18, "dense_mac": 72}
    assert not nodes["classifier"].padding
    assert [node.stage for node in nodes.values()] == ["input"] * 3 + ["body"] * 8 + ["head"] * 4
    assert (counts.real_tokens, counts.padding_tokens, counts.sentences, counts.time_steps) == (4, 2, 2, 3)
    assert (counts.depth, counts.neurons_per_token, counts.longest_sentence) == (4, 4 + 12 + 4 + 4, 3)


def test_a_neuron_is_updated_at_every_step_even_where_its_input_never_changes() -> None:
    builder = NetworkBuilder("input", 5)
    builder.add("embedding", Affine(np.ones((2, 5))), "input")
    builder.add("neuron", neurons(2), "embedding")
    network = builder.network("output", "neuron", token_encoding=TokenEncoding(5, 0))
    trace = Trace({"neuron": np.zeros((3, 1, 4, 2), np.uint8)}, np.zeros((1, 4, 2)), np.ones((1, 4), bool))
    nodes = count_operations(trace, network).nodes
    assert nodes["neuron"].real["membrane_update"] == 3 * 4 * 2
    assert nodes["embedding"].real == {"embedding_read": 4 * 2, "dense_mac": 4 * 5 * 2}


def test_readers_of_a_spike_are_found_through_residual_sums() -> None:
    mask = np.ones((1, 2), bool)
    nodes = count_operations(made_up_trace(small_transformer(), 0, (1, 1, 2), 0.5, mask), small_transformer()).nodes
    assert sorted(nodes["embedding_neuron"].readers) == [4, 4, 12]  # final norm, mlp, qkv
    assert sorted(nodes["attention_neuron"].readers) == [4, 4]  # final norm, mlp
    assert nodes["mlp_neuron"].readers == (4,)
    assert nodes["qkv_neuron"].readers == (4,)


@pytest.mark.parametrize("dtype", [np.bool_, np.int64])
def test_traces_of_other_tools_count_the_same_in_any_integer_type(dtype: type) -> None:
    network, mask = small_transformer(), np.arange(5) < np.array([5, 3])[:, None]
    trace = made_up_trace(network, 1, (2, 2, 5), 0.4, mask)
    other = Trace({name: spikes.astype(dtype) for name, spikes in trace.spikes.items()}, trace.logits, mask)
    assert count_operations(other, network) == count_operations(trace, network)


def test_spikes_at_padding_are_counted_as_padding() -> None:
    """A tool that does not silence padding: its accumulates are real work, but not of real tokens."""
    network, mask = small_transformer(), np.array([[True, False]])
    trace = made_up_trace(network, 1, (2, 1, 2), 1.0, np.ones((1, 2), bool))
    trace.mask = mask
    counts = count_operations(trace, network)
    for kind in ("ac_binary", "ac_graded", "spike", "reset", "residual_addition"):
        assert counts.padding_totals[kind] == counts.totals[kind] > 0
    assert "attention_and" not in counts.padding_totals  # attention leaves masked tokens out
    assert counts.totals["attention_and"] == 2 * 4  # 2 steps x 4 query spikes x 1 attended token


def test_input_that_decays_too_costs_one_more_addition() -> None:
    builder = NetworkBuilder("input", 2)
    builder.add("neuron", neurons(2, decay_input=True, beta=0.5), "input")
    network = builder.network("output", "neuron")
    trace = Trace({"neuron": np.zeros((3, 1, 1, 2), np.uint8)}, np.zeros((1, 1, 2)), np.ones((1, 1), bool))
    real = count_operations(trace, network).nodes["neuron"].real
    assert real["addition"] == real["membrane_update"] == real["membrane_leak"] == 6


def test_attention_on_anything_but_spikes_is_dense() -> None:
    builder = NetworkBuilder("input", 6)
    builder.add("attention", SpikeAttention(1, 2, 1.0), "input")
    builder.add("neuron", neurons(2), "attention")
    network = builder.network("output", "neuron")
    trace = Trace({"neuron": np.zeros((1, 1, 3, 2), np.uint8)}, np.zeros((1, 3, 2)), np.ones((1, 3), bool))
    counts = count_operations(trace, network)
    # scale 3 x 2; (Q K^T) V: 2 x 3 x 3 x 2 = 36; Q (K^T V): 2 x 3 x 2 x 2 = 24
    assert counts.nodes["attention"].real["mac"] == 6 + 36
    assert counts.with_attention_order("kv_first").nodes["attention"].real["mac"] == 6 + 24


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    rate=st.floats(0, 1),
    heads=st.sampled_from([1, 2, 4]),
)
def test_counts_equal_brute_force(seed: int, steps: int, lengths: list[int], rate: float, heads: int) -> None:
    network = small_transformer(heads=heads)
    tokens = max(lengths)
    mask = np.arange(tokens) < np.array(lengths)[:, None]
    trace = made_up_trace(network, seed, (steps, len(lengths), tokens), rate, mask)
    counts = count_operations(trace, network)
    spikes = {name: value.astype(int) for name, value in trace.spikes.items()}
    running = spikes["embedding_neuron"] + spikes["attention_neuron"]
    weights = {node.name: node.operator.weight for node in network.nodes if isinstance(node.operator, Affine)}
    for name, values in (("qkv_affine", spikes["embedding_neuron"]), ("mlp_affine", running)):
        expected = nonzero(synapses_one_by_one(values, weights[name]))
        found = counts.nodes[name].real
        assert {kind: found[kind] for kind in expected} == expected
        assert found.get("weight_read", 0) == expected.get("ac_binary", 0) + expected.get("ac_graded", 0)
        assert counts.nodes[name].mean_field_operations("nonzero_fraction") == pytest.approx(
            found.get("weight_read", 0)
        )
    for order in ATTENTION_ORDERS:
        expected_products: Counter[str] = Counter()
        for step, sentence in itertools.product(range(steps), range(len(lengths))):
            qkv = trace.spikes["qkv_neuron"][step, sentence, : lengths[sentence]]
            expected_products += attention_one_by_one(qkv, heads, order)
        node = counts.with_attention_order(order).nodes["attention"]
        assert nonzero({k: v for k, v in node.real.items() if k.startswith("attention")}) == nonzero(expected_products)
    joined = counts.nodes["attention_neuron_stream"].real, counts.nodes["mlp_neuron_stream"].real
    sent = [int(spikes[name].sum()) for name in ("attention_neuron", "mlp_neuron")]
    assert [tally.get("residual_addition", 0) for tally in joined] == sent
    for node in network.spiking_nodes:
        assert counts.nodes[node.name].real.get("spike", 0) == spikes[node.name].sum()


@pytest.mark.parametrize("padding_fires", [False, True])
def test_sums_of_spikes_that_go_on_in_two_ways_are_counted_by_value(padding_fires: bool) -> None:
    builder = NetworkBuilder("input", 5)
    for name in "abcd":
        builder.add(name, Heaviside(np.zeros(5)), "input")
    readers = {"ab": "ab", "abc": "abc", "abd": "abd", "abcdd": ["a", "b", "c", "d", "abc_neuron"]}
    for name, sources in readers.items():
        builder.add(name, Affine(np.ones((3, 5))), list(sources))
        if name == "abc":
            builder.add("abc_neuron", Heaviside(np.zeros(5)), builder.add("widen", Affine(np.ones((5, 3))), name))
    network = builder.network("output", "abcdd")
    mask = np.arange(3) < np.array([[3], [1]])
    trace = made_up_trace(network, 0, (2, 2, 3), 0.6, np.ones_like(mask) if padding_fires else mask)
    counts = count_operations(trace, network, real_tokens=mask)
    for name, sources in readers.items():
        values = sum(trace.spikes[source].astype(int) for source in sources)
        for tally, tokens in ((counts.nodes[name].real, mask), (counts.nodes[name].padding, ~mask)):
            read = values[:, tokens]
            expected = {
                "input_event": np.count_nonzero(read),
                "input_value": read.sum(),
                "ac_binary": 3 * np.count_nonzero(read == 1),
                "ac_graded": 3 * np.count_nonzero(read > 1),
                "ac_graded_additions": 3 * read[read > 1].sum(),
            }
            assert {kind: tally.get(kind, 0) for kind in expected} == expected, name


def test_an_input_may_be_known_in_one_batch_and_not_in_another() -> None:
    """What an affine reads is spikes in one and dense in the other; both are charged."""
    builder = NetworkBuilder("input", 3)
    builder.add("neuron", neurons(2), builder.add("affine", Affine(np.ones((2, 3)), np.ones(2)), "input"))
    network = builder.network("output", "neuron")
    trace = made_up_trace(network, 0, (2, 3, 4), 0.5, np.ones((3, 4), bool))
    fed = Trace({"input": np.full((2, 3, 4, 3), 2, np.uint8), **trace.spikes}, trace.logits, trace.mask)
    counter = OperationCounter(network)
    counter.update(fed)
    counter.update(trace)
    alone = [count_operations(each, network).totals for each in (fed, trace)]
    assert alone[0]["ac_graded"] == alone[1]["mac"] == 2 * 3 * 4 * 3 * 2
    assert counter.result().totals == {
        kind: sum(part.get(kind, 0) for part in alone) for kind in counter.result().totals
    }
    assert {kind for part in alone for kind in part} == set(counter.result().totals)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, 4), max_size=3))
def test_streaming_equals_the_whole(seed: int, cuts: set[int]) -> None:
    network = small_transformer()
    mask = np.arange(4) < np.array([4, 2, 3, 1, 4])[:, None]
    trace = made_up_trace(network, seed, (2, 5, 4), 0.4, mask)
    whole = count_operations(trace, network)
    counter = OperationCounter(network)
    for start, end in itertools.pairwise([0, *sorted(cuts), 5]):
        part = {name: spikes[:, start:end] for name, spikes in trace.spikes.items()}
        counter.update(Trace(part, trace.logits[start:end], mask[start:end]))
    assert counter.result() == whole


def test_a_result_does_not_change_when_counting_goes_on() -> None:
    network = small_transformer()
    trace = made_up_trace(network, 0, (2, 1, 3), 0.5, np.ones((1, 3), bool))
    counter = OperationCounter(network)
    counter.update(trace)
    first = counter.result()
    before = first.totals
    counter.update(trace)
    assert first.totals == before
    assert counter.result().totals == {kind: 2 * count for kind, count in before.items()}


@pytest.mark.parametrize("preset", ["paper", "published"])
def test_padding_changes_no_count_of_real_tokens(
    make_model: Callable[..., Any], padded_batch: tuple[np.ndarray, np.ndarray], preset: str
) -> None:
    graph = to_nir(make_model(num_hidden_layers=2, neuron=preset))
    ids, mask = padded_batch
    padded = count_operations(run(graph, ids, mask), graph)
    counter = OperationCounter(graph)
    for sentence, length in enumerate(mask.sum(-1)):
        counter.update(run(graph, ids[sentence : sentence + 1, :length]))
    alone = counter.result()
    assert padded.totals == alone.totals
    assert not alone.padding_totals
    # Masked tokens send no spike, so what they add is dense only.
    caused_by_spikes = {
        "ac_binary",
        "ac_graded",
        "attention_add",
        "attention_and",
        "spike",
        "reset",
        "residual_addition",
    }
    assert not caused_by_spikes & set(padded.padding_totals)
    for name, node in padded.nodes.items():
        for kind in ("membrane_update", "comparison", "parameter_read", "embedding_read"):
            if kind in node.real and name != "classifier":
                assert node.padding[kind] * padded.real_tokens == node.real[kind] * padded.padding_tokens, (name, kind)


def test_padding_that_was_attended_to_can_be_told_apart(
    make_model: Callable[..., Any], padded_batch: tuple[np.ndarray, np.ndarray]
) -> None:
    graph = to_nir(make_model(attend_to_padding=True))
    ids, mask = padded_batch
    trace = run(graph, ids, mask)
    assert trace.mask.all()
    everything = count_operations(trace, graph)
    apart = count_operations(trace, graph, real_tokens=mask)
    assert (everything.real_tokens, everything.padding_tokens) == (18, 0)
    assert (apart.real_tokens, apart.padding_tokens) == (11, 7)
    total = Counter(apart.totals) + Counter(apart.padding_totals)
    assert total == Counter(everything.totals)
    expected: Counter[str] = Counter()
    for step, sentence in itertools.product(range(4), range(3)):
        qkv = trace.spikes["block00_qkv_neuron"][step, sentence, mask[sentence]]
        expected += attention_one_by_one(qkv, 2, "qk_first")
    found = apart.nodes["block00_attention"]
    assert {kind: found.real.get(kind, 0) for kind in expected} == dict(expected)
    assert found.padding["attention_and"] > 0
    assert apart.nodes["block00_qkv_affine"].padding["ac_binary"] > 0


def test_attention_in_mean_field_is_not_the_exact_count() -> None:
    """Eq. 18 on two tokens that never share a feature: it charges accumulates where nothing coincides."""
    builder = NetworkBuilder("input", 6)
    builder.add("qkv", Heaviside(np.zeros(6)), "input")
    builder.add("attention", SpikeAttention(1, 2, 0.125), "qkv")
    network = builder.network("output", "attention")
    #                     q     k     v
    tokens = np.array([[1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 0, 1]], np.uint8)
    trace = Trace({"qkv": tokens[None, None]}, np.zeros((1, 2, 2)), np.ones((1, 2), bool))
    node = count_operations(trace, network).nodes["attention"]
    # rate 6 / 12; FLOPs 2 x 2 x 2 x 2 = 16
    assert node.mean_field_operations() == 0.5 * 16
    assert node.real.get("attention_count", 0) == node.real.get("attention_add", 0) == 0


def test_json_has_the_promised_keys(tiny_model: Any, padded_batch: Any) -> None:
    graph = to_nir(tiny_model)
    counts = count_operations(run(graph, *padded_batch), graph)
    found = json.loads(json.dumps(counts.to_dict()))
    assert {"ac_binary", "ac_graded", "mac", "node", "tokens"} <= set(found)
    assert found["tokens"] == {"real": 11, "padding": 7}
    for kind in ("ac_binary", "ac_graded", "mac"):
        assert found[kind] == sum(node[kind] for node in found["node"].values()) > 0
    attention = found["node"]["block00_attention"]
    assert attention["ac_binary"] == attention["real"]["attention_count"] + attention["real"]["attention_add"] > 0
    assert set(attention["attention_orders"]) == set(ATTENTION_ORDERS)
    known = {*OPERATION_KINDS, *STATISTIC_KINDS}
    assert all(set(node["real"]) | set(node["padding"]) <= known for node in found["node"].values())


def test_mistakes_end_in_typed_errors(tiny_model: Any, padded_batch: Any) -> None:
    graph = to_nir(tiny_model)
    trace = run(graph, *padded_batch)
    counter = OperationCounter(graph)
    with pytest.raises(TraceMismatchError, match="no trace was counted yet"):
        counter.result()
    with pytest.raises(TraceMismatchError, match=r"real_tokens has shape \(3, 5\); the trace has \(3, 6\)"):
        counter.update(trace, real_tokens=np.ones((3, 5)))
    broken = Trace(
        {**trace.spikes, "block00_output_neuron": trace.spikes["block00_output_neuron"][..., :1]},
        trace.logits,
        trace.mask,
    )
    with pytest.raises(TraceMismatchError, match="block00_output_neuron"):
        counter.update(broken)
    with pytest.raises(TraceMismatchError, match="no trace was counted yet"):
        counter.result()  # the broken one left nothing behind
    counter.update(trace)
    with pytest.raises(ValueError, match="attention order 'vk' is not one of qk_first, kv_first"):
        counter.result().with_attention_order("vk")


@dataclass(frozen=True, eq=False)
class Softmax(Operator):
    """An operator that no target knows."""

    name: ClassVar[str] = "softmax"
    traits: ClassVar[Traits] = replace(Flatten.traits, integer=False, passes_values=False)
    in_features = out_features = 2  # type: ignore[assignment]

    def interval(self, read: Any, tokens: Any) -> None:
        return None

    def step(self, x: Any, state: Any, token_mask: Any) -> Any:
        return x

    def to_nir(self, dtype: Any, dt: float) -> Any:
        raise NotImplementedError


def softmax_network() -> Network:
    builder = NetworkBuilder("input", 2)
    return builder.network("output", builder.add("fire", neurons(2), builder.add("soft", Softmax(), "input")))


def test_an_operator_without_a_row_is_refused_by_name() -> None:
    network = softmax_network()
    with pytest.raises(UnsupportedOperatorError, match="soft: operation counts knows no softmax; register a row for"):
        OperationCounter(network)
    with pytest.raises(UnsupportedOperatorError, match="soft: quantized twin knows no softmax; register a row for"):
        QuantizedTwin(network, 4).macs(3)


def test_an_operator_is_counted_by_the_row_that_is_registered_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPERATION_COUNTS, "_rows", dict(OPERATION_COUNTS._rows))

    @counting_rule(Softmax, component="attention")
    def count_softmax(operator: Softmax, activity: NodeActivity) -> Tallies:
        return activity.rows.times(special=operator.in_features)

    network = softmax_network()
    mask = np.array([[True, True, False]])
    trace = Trace({"fire": np.zeros((4, 1, 3, 2), np.uint8)}, np.zeros((1, 1)), mask)
    counts = count_operations(trace, network)
    found = counts.nodes["soft"]
    assert (found.real, found.padding) == ({"special": 4 * 2 * 2}, {"special": 4 * 1 * 2})  # steps, tokens, features
    assert (found.operator, found.component) == ("softmax", "attention")
    assert energy_by_component(estimate_energy(counts, model="horowitz-fp32"), counts)["attention"] > 0


def test_an_order_of_attention_that_was_not_counted_is_not_made_up(tiny_model: Any, padded_batch: Any) -> None:
    graph = to_nir(tiny_model)
    trace = run(graph, *padded_batch)
    both = count_operations(trace, graph)
    for order in ATTENTION_ORDERS:
        one = count_operations(trace, graph, attention_orders=(order,))
        assert one.totals == both.with_attention_order(order).totals
        other = next(name for name in ATTENTION_ORDERS if name != order)
        with pytest.raises(ValueError, match=f"attention: attention order '{other}' was not counted, only {order}"):
            one.with_attention_order(other)
        assert f"attention_{other}" not in estimate_energy(one, model="horowitz-fp32").alternatives_mj
    with pytest.raises(ValueError, match=r"attention_orders is \('vk',\); give one or both of qk_first, kv_first"):
        OperationCounter(graph, ("vk",))


def test_an_integer_graph_has_the_same_spikes_and_less_that_is_dense(tiny_model: Any, padded_batch: Any) -> None:
    """One trace, counted with the integer graph it is of and with the float graph that was quantized."""
    ids, mask = padded_batch
    float_graph = to_nir(tiny_model)
    graph = quantize(float_graph, calibration=(ids, mask))
    trace = run(graph, ids, mask, runner="integer", precision="integer")
    found, expected = count_operations(trace, graph), count_operations(trace, float_graph)
    names = {name: (node.operator, node.edge, node.stage) for name, node in found.nodes.items()}
    assert names == {name: (node.operator, node.edge, node.stage) for name, node in expected.nodes.items()}
    less_dense = ("mac", "special", "addition", "parameter_read")
    for kind in {*OPERATION_KINDS, *STATISTIC_KINDS} - set(less_dense):
        assert found.totals.get(kind) == expected.totals.get(kind), kind
    steps, config = trace.metadata["time_steps"], tiny_model.config
    scales = config.num_hidden_layers * config.hidden_size * int(mask.sum()) * steps
    mean = config.hidden_size * len(mask) * steps
    assert expected.totals["mac"] - found.totals["mac"] == scales + mean
    assert expected.totals["special"] - found.totals["special"] == len(mask) * steps
    biases = sum(
        np.count_nonzero(node.operator.bias_mantissa)
        for node in parse_graph(graph).nodes
        if isinstance(node.operator, IntegerLeakyIntegrateAndFire)
    )
    neurons = [node for name, node in found.nodes.items() if node.fires]
    assert sum(node.real.get("addition", 0) for node in neurons) == biases * int(mask.sum()) * steps


# Other people's counters, on what they can count.


def counted_by_us(model: Any, ids: np.ndarray) -> OperationCounts:
    graph = to_nir(model)
    return count_operations(run(model, ids, runner="torch"), graph)


def test_spikingjelly_counts_the_same_where_it_can(make_model: Callable[..., Any]) -> None:
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter")
    model = make_model(num_hidden_layers=2).double()
    ids = np.random.default_rng(0).integers(1, 20, (2, 5))
    synaptic, multiply = counters.SynOpCounter(), counters.MACCounter()
    with torch.no_grad(), counters.DispatchCounterMode([synaptic, multiply]):
        model(torch.as_tensor(ids))
    ours = counted_by_us(model, ids).nodes

    def theirs(counter: Any, module: str) -> int:
        (found,) = [sum(ops.values()) for scope, ops in counter.records.items() if scope.endswith(module)] or [0]
        return found

    block = "spikebert.blocks.0"
    for module, node in (("attention.qkv", "qkv"), ("attention.projection", "projection"), ("output", "output")):
        assert theirs(synaptic, f"{block}.{module}.affine") == ours[f"block00_{node}_affine"].real["ac_binary"] > 0
    # A residual stream with a 2 in it is no spike tensor to SpikingJelly: a MAC for every synapse, zeros too.
    graded = ours["block00_intermediate_affine"].real
    assert graded["ac_graded"] > 0
    assert theirs(synaptic, f"{block}.intermediate.affine") == 0
    assert theirs(multiply, f"{block}.intermediate.affine") == graded["dense_mac"]
    # Attention: two spike matrices count their coincidences, as here. For the second product it adds a column of the
    # map for every value spike (or a row for every query spike), zeros of the map included; here they are left out.
    products = theirs(synaptic, f"{block}.attention") - sum(
        theirs(synaptic, f"{block}.attention.{part}") for part in ("qkv", "projection")
    )
    spikes = run(model, ids, runner="torch").spikes["block00_qkv_neuron"].astype(int)
    query, key, value = np.moveaxis(spikes.reshape(4, 2, 5, 3, 2, 4), (3, 4), (0, 3))  # (3, T, B, H, N, head_size)
    tokens_first = query.shape[-2] > query.shape[-1]  # the order the model itself chose
    order = "kv_first" if tokens_first else "qk_first"
    product = np.swapaxes(key, -1, -2) @ value if tokens_first else query @ np.swapaxes(key, -1, -2)
    with_zeros = int(query.sum()) * 4 if tokens_first else int(value.sum()) * 5
    spikes_at, axis = (query.sum(-2), -1) if tokens_first else (value.sum(-1), -2)
    zeros = (spikes_at * (product == 0).sum(axis)).sum()
    found = ours["block00_attention"].orders[order].real
    assert products == found["attention_count"] + with_zeros
    assert found["attention_add"] == with_zeros - zeros
    assert zeros > 0


class TwoLayers(torch.nn.Module):
    """Linear -> step -> Linear, as NeuroBench sees it, and as a graph."""

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        super().__init__()
        self.first = torch.nn.Linear(first.shape[1], first.shape[0]).double()
        self.second = torch.nn.Linear(second.shape[1], second.shape[0]).double()
        with torch.no_grad():
            self.first.weight.copy_(torch.as_tensor(first))
            self.second.weight.copy_(torch.as_tensor(second))
            self.first.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second((self.first(x) > 0).double())


def neurobench_count(first: np.ndarray, second: np.ndarray, values: np.ndarray) -> dict[str, float]:
    models = pytest.importorskip("neurobench.models")
    workload = pytest.importorskip("neurobench.metrics.workload")
    model = models.TorchModel(TwoLayers(first, second))
    model.register_hooks()
    data = torch.as_tensor(values, dtype=torch.float64)
    metric = workload.SynapticOperations()
    found = metric(model, model(data), (data, None))
    model.cleanup_hooks()
    return {key: value * len(values) for key, value in found.items()}


def two_layer_counts(first: np.ndarray, second: np.ndarray, values: np.ndarray) -> OperationCounts:
    builder = NetworkBuilder("input", first.shape[1])
    builder.add("first", Affine(first, np.zeros(len(first))), "input")
    builder.add("step", Heaviside(np.zeros(len(first))), "first")
    builder.add("second", Affine(second, np.zeros(len(second))), "step")
    network = builder.network("output", "second")
    trace = run(network, values[None, :, None, :].astype(float))  # a step; each row a sentence of one token
    trace.spikes["input"] = values[None, :, None, :].astype(np.uint8)
    return count_operations(trace, network)


def test_neurobench_counts_the_same_where_it_can() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(5, 6)), rng.normal(size=(3, 5))
    spikes = (rng.random((8, 6)) < 0.4).astype(np.uint8)
    found, ours = neurobench_count(first, second, spikes), two_layer_counts(first, second, spikes)
    assert found["Effective_ACs"] == ours.totals["ac_binary"] > 0
    assert found["Effective_MACs"] == 0
    assert found["Dense"] == ours.totals["dense_mac"]
    # Integers above 1 make a layer's input "not spiking" for NeuroBench: all its nonzero inputs become effective MACs.
    # Here the ones among them stay accumulates, and the others are one multi-bit operation each.
    graded = rng.integers(0, 3, (8, 6)).astype(np.uint8)
    found, ours = neurobench_count(first, second, graded), two_layer_counts(first, second, graded)
    layer = ours.nodes["first"].real
    assert found["Effective_MACs"] == layer["ac_binary"] + layer["ac_graded"] > layer["ac_graded"] > 0
    assert found["Effective_ACs"] == ours.nodes["second"].real["ac_binary"]
    # A weight of exactly 0 is no synapse for NeuroBench. It is one here: hardware with dense weights adds the zero.
    first[2, 1] = 0
    found, ours = neurobench_count(first, second, spikes), two_layer_counts(first, second, spikes)
    assert ours.totals["ac_binary"] - found["Effective_ACs"] == spikes[:, 1].sum() > 0


def test_neurobench_counts_membrane_updates_that_changed_something() -> None:
    workload = pytest.importorskip("neurobench.metrics.workload")
    models = pytest.importorskip("neurobench.models")
    snntorch = pytest.importorskip("snntorch")

    class Population(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = snntorch.Leaky(beta=0.5, threshold=10.0, init_hidden=True)

        def forward(self, currents: torch.Tensor) -> torch.Tensor:
            self.neuron.reset_mem()
            return torch.stack([self.neuron(current) for current in currents.unbind(1)], 1)

    builder = NetworkBuilder("input", 3)
    builder.add("neuron", neurons(3, beta=0.5), "input")
    network = builder.network("output", "neuron")

    def updates(current: float) -> tuple[float, int]:
        model = models.TorchModel(Population())
        model.add_activation_module(snntorch.SpikingNeuron)
        model.register_hooks()
        currents = torch.full((1, 4, 3), current)  # a sentence of one token, four steps, three neurons
        found = workload.MembraneUpdates()(model, model(currents), (currents, None))
        model.cleanup_hooks()
        trace = run(network, currents.numpy().transpose(1, 0, 2)[:, :, None, :])
        return found, count_operations(trace, network).totals["membrane_update"]

    assert updates(1.0) == (12, 12)
    # Without input the potential stays 0: NeuroBench counts the first step only. Here every neuron is updated at every
    # step, as on hardware that steps through them all.
    assert updates(0.0) == (3, 12)

"""A profile counts what a reader with pencil and paper would count, whole or streamed, with padding apart."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import to_nir
from export.network import NetworkBuilder
from export.nir_graph.reader import parse_graph
from export.operators import Heaviside
from hardware.errors import TraceError, TraceMismatchError
from hardware.runners import run
from hardware.traces.profiler import COLLECTIONS, Profiler, profile
from hardware.traces.trace import Trace
from spikebert.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("counted_in")

WITHOUT_GRAPH = ("histogram", "persistence")


def make_trace(spikes: dict[str, np.ndarray], mask: np.ndarray) -> Trace:
    return Trace(spikes, np.zeros((mask.shape[0], 2)), mask)


@st.composite
def traces(draw, largest: int = 6) -> Trace:
    """Random traces: binary and graded, any integer type, any padding, and sometimes spikes at padding."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps, sentences, tokens = (draw(st.integers(1, 4)) for _ in range(3))
    mask = rng.random((sentences, tokens)) < draw(st.sampled_from([0.4, 0.8, 1.0]))
    spikes = {}
    for node in ("first", "second"):
        shape = (steps, sentences, tokens, draw(st.integers(1, 4)))
        values = rng.integers(0, 1 + draw(st.sampled_from([1, largest])), shape)
        values *= rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))
        if draw(st.booleans()):
            values *= mask[None, :, :, None]
        kinds = [np.uint8, np.int8, np.uint16, np.int64] + [bool] * int(values.max(initial=0) < 2)
        spikes[node] = values.astype(draw(st.sampled_from(kinds)))
    return make_trace(spikes, mask)


def count_by_hand(trace: Trace, node: str) -> dict[str, object]:
    """Look at every output of a node, one after the other."""
    steps, sentences, tokens, neurons = trace.spikes[node].shape
    outputs = trace.spikes[node].astype(int).tolist()
    by_position = [[0] * tokens for _ in range(steps)]
    by_neuron = [[0] * neurons for _ in range(steps)]
    values: list[dict[int, int]] = [{} for _ in range(steps)]
    padding_values: dict[int, int] = {}
    value_sum = [0] * steps
    again = [0] * max(0, steps - 1)
    at_padding = 0
    for step in range(steps):
        for sentence in range(sentences):
            for token in range(tokens):
                for neuron in range(neurons):
                    output = outputs[step][sentence][token][neuron]
                    if not trace.mask[sentence, token]:
                        at_padding += output != 0
                        padding_values[output] = padding_values.get(output, 0) + 1
                        continue
                    values[step][output] = values[step].get(output, 0) + 1
                    value_sum[step] += output
                    if output:
                        by_position[step][token] += 1
                        by_neuron[step][neuron] += 1
                        if step + 1 < steps and outputs[step + 1][sentence][token][neuron]:
                            again[step] += 1
    return {
        "by_position": by_position,
        "by_neuron": by_neuron,
        "at_padding": at_padding,
        "values": values,
        "padding_values": padding_values,
        "value_sum": value_sum,
        "again": again,
        "real": int(trace.mask.sum()),
    }


def as_dictionary(counts: np.ndarray) -> dict[int, int]:
    return {value: int(count) for value, count in enumerate(counts) if count}


@settings(max_examples=150, deadline=None)
@given(traces())
def test_every_count_is_that_of_a_loop_over_all_outputs(trace):
    found = profile(trace, collect=WITHOUT_GRAPH)
    for name, node in found.nodes.items():
        expected = count_by_hand(trace, name)
        assert node.fired_by_position.tolist() == expected["by_position"]
        assert node.fired_by_neuron.tolist() == expected["by_neuron"]
        assert node.fired_at_padding == expected["at_padding"]
        assert node.value_sum.tolist() == expected["value_sum"]
        assert [as_dictionary(counts) for counts in node.histogram.counts] == expected["values"]
        assert as_dictionary(node.histogram.padding_counts) == expected["padding_values"]
        assert node.persistence.fired_again.tolist() == expected["again"]
        seen = {value for values in expected["values"] for value in values}
        assert node.largest_value == node.histogram.largest_value == max(seen, default=0)


@settings(max_examples=80, deadline=None)
@given(traces())
def test_rates_are_counts_over_what_could_have_fired(trace):
    found = profile(trace)
    mask = trace.mask
    for name, node in found.nodes.items():
        fired = trace.spikes[name] != 0
        real = fired[:, mask]  # (T, tokens, D)
        if not mask.any():
            assert np.isnan(node.firing_rate)
            assert not node.saturated_neurons.size
            continue
        assert node.firing_rate == pytest.approx(real.mean())
        assert node.firing_rate_by_step == pytest.approx(real.mean((1, 2)))
        assert node.firing_rate_by_neuron == pytest.approx(real.mean((0, 1)))
        assert node.firing_rate_by_step_and_neuron == pytest.approx(real.mean(1))
        assert node.firing_rate_with_padding == pytest.approx(fired.mean())
        assert node.mean_value == pytest.approx(trace.spikes[name][:, mask].mean())
        for position in range(mask.shape[1]):
            here = fired[:, mask[:, position], position]
            if not here.size:
                assert np.isnan(node.firing_rate_by_position[position])
                continue
            assert node.firing_rate_by_position[position] == pytest.approx(here.mean())
            assert node.firing_rate_by_step_and_position[:, position] == pytest.approx(here.mean((1, 2)))
        assert node.silent_neurons.tolist() == [d for d in range(node.neurons) if not real[..., d].any()]
        assert node.saturated_neurons.tolist() == [d for d in range(node.neurons) if real[..., d].all()]
    everything = [trace.spikes[name][:, mask].reshape(-1) != 0 for name in found.nodes]
    if mask.any():
        assert found.firing_rate == pytest.approx(np.concatenate(everything).mean())


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(0, 4))
def test_streaming_equals_whole(trace, cut):
    """In two parts, the second cut to its own longest sentence, as batches of a data set are."""
    cut = min(cut, trace.mask.shape[0])
    profiler = Profiler(collect=WITHOUT_GRAPH)
    for rows in (slice(cut), slice(cut, None)):
        mask = trace.mask[rows]
        if mask.size:
            profiler.update(make_trace({name: value[:, rows] for name, value in trace.spikes.items()}, mask))
    assert profiler.result().to_dict(detailed=True) == profile(trace, collect=WITHOUT_GRAPH).to_dict(detailed=True)


def test_batches_may_differ_in_length():
    rng = np.random.default_rng(0)
    long, short = (rng.integers(0, 2, (2, 3, tokens, 5)).astype(np.uint8) for tokens in (6, 2))
    profiler = Profiler()
    for spikes in (short, long, short):
        profiler.update(make_trace({"node": spikes}, np.ones(spikes.shape[1:3], bool)))
    node = profiler.result().nodes["node"]
    assert node.tokens_by_position.tolist() == [9, 9, 3, 3, 3, 3]
    assert node.firing_rate_by_position[0] == pytest.approx(
        np.concatenate([short[:, :, 0], long[:, :, 0], short[:, :, 0]], axis=1).mean()
    )
    assert node.firing_rate_by_position[5] == pytest.approx(long[:, :, 5].mean())


def test_memory_does_not_grow_with_the_number_of_traces(tiny_model, padded_batch):
    graph = to_nir(tiny_model)
    trace = run(graph, *padded_batch)
    profiler = Profiler(graph, COLLECTIONS)
    sizes = []
    for _ in range(40):
        profiler.update(trace)
        sizes.append(len(pickle.dumps({key: value for key, value in vars(profiler).items() if key != "network"})))
    assert max(sizes[1:]) <= sizes[0] + 64  # larger counts may take a byte more
    assert profiler.result().sentences == 120


@pytest.mark.parametrize("sentences", [1, 255, 256, 300])
def test_sums_over_many_sentences_do_not_wrap(sentences):
    spikes = np.ones((2, sentences, 3, 70), np.uint8)
    node = profile(make_trace({"node": spikes}, np.ones((sentences, 3), bool))).nodes["node"]
    assert node.fired_by_neuron.tolist() == [[3 * sentences] * 70] * 2
    assert node.fired_by_position.tolist() == [[70 * sentences] * 3] * 2
    assert len(node.saturated_neurons) == 70


def test_what_stands_at_padding_changes_no_rate():
    rng = np.random.default_rng(1)
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    clean = rng.integers(0, 2, (3, 2, 4, 6)).astype(np.uint8) * mask[None, :, :, None]
    noisy = clean.copy()
    noisy[:, ~mask] = 1
    expected = profile(make_trace({"node": clean}, mask), collect=WITHOUT_GRAPH).nodes["node"]
    found = profile(make_trace({"node": noisy}, mask), collect=WITHOUT_GRAPH).nodes["node"]
    assert (expected.fired_at_padding, found.fired_at_padding) == (0, 3 * 4 * 6)
    without = {"spikes_at_padding", "firing_rate_with_padding", "histogram"}
    for key in expected.to_dict(detailed=True).keys() - without:
        assert found.to_dict(detailed=True)[key] == expected.to_dict(detailed=True)[key], key
    assert found.histogram.counts.tolist() == expected.histogram.counts.tolist()


def test_tokens_that_a_run_took_for_real_may_be_named_padding(make_model, padded_batch):
    """A model that attends to padding has a mask of ones; who profiles it knows better."""
    ids, mask = padded_batch
    trace = run(to_nir(make_model(attend_to_padding=True)), ids, mask)
    assert trace.mask.all()
    found = profile(trace, real_tokens=mask)
    assert (found.real_tokens, found.padding_tokens) == (11, 7)
    for name, node in found.nodes.items():
        assert node.firing_rate == pytest.approx(trace.spikes[name][:, mask].mean())
        assert node.fired_at_padding == trace.spikes[name][:, ~mask].sum()
    with pytest.raises(TraceMismatchError, match=r"real_tokens has shape \(3, 5\); the trace has \(3, 6\)"):
        profile(trace, real_tokens=mask[:, :5])


def test_heads_are_equal_slices_of_query_key_value_and_attended(make_model, padded_batch):
    model = make_model(hidden_size=12, num_attention_heads=3, num_hidden_layers=2)
    ids, mask = padded_batch
    graph = to_nir(model)
    trace = run(graph, ids, mask)
    found = profile(trace, graph, collect=("heads",))
    with_heads = [name for name, node in found.nodes.items() if node.fired_by_head]
    assert with_heads == [f"block0{block}_{what}_neuron" for block in (0, 1) for what in ("qkv", "attention")], (
        "query, key, value and attended, and nothing else"
    )
    for block in (0, 1):
        qkv = trace.spikes[f"block0{block}_qkv_neuron"][:, mask]  # (T, tokens, 36)
        rates = found.nodes[f"block0{block}_qkv_neuron"].firing_rate_by_step_and_head
        for part, offset in (("query", 0), ("key", 12), ("value", 24)):
            for head in range(3):
                start = offset + 4 * head
                assert rates[part][:, head] == pytest.approx(qkv[..., start : start + 4].mean((1, 2)))
        attended = trace.spikes[f"block0{block}_attention_neuron"][:, mask]
        rate = found.nodes[f"block0{block}_attention_neuron"].firing_rate_by_head["attended"]
        assert rate == pytest.approx([attended[..., 4 * head : 4 * head + 4].mean() for head in range(3)])


def test_residual_stream_is_what_the_torch_model_adds_up(make_model, padded_batch):
    """The hidden states of the torch model share no code with the sums derived from its spikes."""
    model = make_model(num_hidden_layers=3)
    ids, mask = padded_batch
    graph = to_nir(model)
    found = profile(run(model.double(), ids, mask, runner="torch"), graph, collect=("histogram",))
    with torch.no_grad():
        hidden = model(torch.from_numpy(ids), torch.from_numpy(mask), output_hidden_states=True).hidden_states
    for block, state in enumerate(hidden[1:]):
        stream = found.streams[f"block0{block}_output_neuron_stream"]
        values = state.numpy()[:, mask]
        assert (
            stream.counts.sum(0).tolist()
            == np.bincount(values.astype(int).ravel(), minlength=stream.counts.shape[1]).tolist()
        )
        assert [as_dictionary(row) for row in stream.counts] == [
            dict(zip(*(part.tolist() for part in np.unique(step.astype(int), return_counts=True)), strict=True))
            for step in values
        ]
        assert stream.mean_value == pytest.approx(values.mean())
        assert stream.sparsity_in_values == pytest.approx((values == 0).mean())
    assert max(stream.largest_value for stream in found.streams.values()) > 1, "the model must make graded sums"
    assert len(found.streams) == 6


def test_sparsity_in_bits_of_values_worked_by_hand():
    """0, 0, 1, 2, 5, 3 in words of 3 bits: 000 000 001 010 101 011 has 6 ones among 18 bits."""
    spikes = np.array([0, 0, 1, 2, 5, 3], np.uint8).reshape(1, 1, 6, 1)
    histogram = (
        profile(make_trace({"node": spikes}, np.ones((1, 6), bool)), collect=("histogram",)).nodes["node"].histogram
    )
    assert histogram.bits == 3
    assert histogram.sparsity_in_bits == pytest.approx(12 / 18)
    assert histogram.sparsity_in_values == pytest.approx(2 / 6)
    assert histogram.mean_value == pytest.approx(11 / 6)


def test_persistence_worked_by_hand():
    """Two tokens, two steps. Neuron 0 always fires; neuron 1 at step 0 on one token, at step 1 on the other."""
    spikes = np.array([[[1, 1], [1, 0]], [[1, 0], [1, 1]]], np.uint8)[:, None]  # (T, 1, N, D)
    found = (
        profile(make_trace({"node": spikes}, np.ones((1, 2), bool)), collect=("persistence",)).nodes["node"].persistence
    )
    assert found.share == pytest.approx(2 / 3)  # three spikes at step 0, neuron 0's two are repeated
    assert found.chance == pytest.approx((2 * 1 + 1 * 0.5) / 3)  # neuron 1 fires at step 1 with rate 1/2
    silent = profile(make_trace({"node": 0 * spikes}, np.ones((1, 2), bool)), collect=("persistence",)).nodes["node"]
    assert np.isnan(silent.persistence.share)
    assert silent.to_dict()["persistence"]["share"] is None


def test_persistence_of_independent_neurons_is_chance():
    rng = np.random.default_rng(2)
    rates = rng.random(20) * 0.8
    spikes = (rng.random((4, 50, 40, 20)) < rates).astype(np.uint8)
    found = (
        profile(make_trace({"node": spikes}, np.ones((50, 40), bool)), collect=("persistence",))
        .nodes["node"]
        .persistence
    )
    assert found.share == pytest.approx(found.chance, abs=0.01)
    assert found.share > spikes.mean() + 0.05, "neurons of different rates repeat more often than the mean rate says"


def test_a_row_behind_a_token_mean_counts_as_one_token():
    """Such a node has one row a sentence, whatever the mask of its tokens."""
    mask = np.array([[True, True, True], [False, False, True]])
    tokens = np.ones((2, 2, 3, 4), np.uint8) * mask[None, :, :, None]
    pooled = np.array([[[[1, 0]], [[1, 1]]], [[[0, 0]], [[1, 0]]]], np.uint8)  # (T, B, 1, D)
    found = profile(make_trace({"tokens": tokens, "pooled": pooled}, mask), collect=WITHOUT_GRAPH)
    assert found.nodes["tokens"].firing_rate == 1
    assert found.nodes["pooled"].firing_rate == pytest.approx(4 / 8)
    assert found.nodes["pooled"].fired_at_padding == 0
    assert found.real_tokens == 4
    assert found.firing_rate == pytest.approx((2 * 4 * 4 + 4) / (2 * 4 * 4 + 8))


def test_json_has_no_nan_and_lists_neurons_only_when_asked():
    mask = np.array([[False, True]])  # nothing real at position 0
    found = profile(
        make_trace({"node": np.array([0, 1, 1, 0], np.uint8).reshape(1, 1, 2, 2)}, mask), collect=WITHOUT_GRAPH
    )
    short, detailed = (json.loads(json.dumps(found.to_dict(flag), allow_nan=False)) for flag in (False, True))
    assert short["nodes"][0]["firing_rate_by_position"] == [None, 0.5]
    assert short["nodes"][0]["silent"] == {"count": 1, "share": 0.5}
    assert detailed["nodes"][0]["silent"]["neurons"] == [1]
    assert detailed["nodes"][0]["saturated"]["neurons"] == [0]
    assert detailed["nodes"][0]["firing_rate_by_neuron"] == [1, 0]


def test_result_is_not_changed_by_what_comes_later():
    trace = make_trace({"node": np.ones((2, 1, 2, 3), np.uint8)}, np.ones((1, 2), bool))
    profiler = Profiler(collect=WITHOUT_GRAPH)
    profiler.update(trace)
    before = profiler.result()
    told = json.dumps(before.to_dict(detailed=True))
    profiler.update(trace)
    assert json.dumps(before.to_dict(detailed=True)) == told
    assert profiler.result().spikes == 2 * before.spikes


def test_silent_and_saturated_nodes_are_named():
    ones = np.ones((2, 1, 2, 3), np.uint8)
    found = profile(make_trace({"dead": 0 * ones, "stuck": ones, "alive": ones * [1, 0, 1]}, np.ones((1, 2), bool)))
    assert found.silent_nodes == ["dead"]
    assert found.saturated_nodes == ["stuck"]


MASK = np.ones((2, 3), bool)
GOOD = np.zeros((2, 2, 3, 4), np.uint8)


@pytest.mark.parametrize(
    ("spikes", "error", "complaint"),
    [
        ({}, TraceMismatchError, "no spiking node"),
        ({"a": GOOD.astype(float)}, TraceError, "a: spikes are float64"),
        ({"a": GOOD.astype(np.int8) - 1}, TraceError, "a: a spike of -1"),
        (
            {"a": GOOD.astype(np.int32) + 70_000},
            TraceError,
            "a: a spike of 70000; a histogram counts values up to 65535",
        ),
        ({"a": GOOD[0]}, TraceMismatchError, "a: spikes have shape"),
        ({"a": GOOD[:, :, :2]}, TraceMismatchError, "a: spikes have shape"),
        ({"a": GOOD[:0]}, TraceMismatchError, "a: 0 time steps"),
        ({"a": GOOD, "b": GOOD[:1]}, TraceMismatchError, "b: 1 time steps of 4 neurons; expected 2 of 4"),
    ],
)
def test_what_is_no_spike_train_is_refused(spikes, error, complaint):
    with pytest.raises(error, match=complaint):
        profile(make_trace(spikes, MASK), collect=("histogram",))


@pytest.mark.parametrize(
    ("spikes", "complaint"),
    [
        ({"a": GOOD}, "b: has no spikes in this trace"),
        ({"a": GOOD, "b": GOOD, "c": GOOD}, "c: has spikes in this trace"),
        ({"a": GOOD + 1, "b": GOOD[..., :3]}, "b: 2 time steps of 3 neurons; expected 2 of 4"),
        ({"a": GOOD[:1] + 1, "b": GOOD[:1]}, "a: 1 time steps"),
    ],
)
def test_a_trace_of_another_model_is_refused_and_nothing_of_it_added(spikes, complaint):
    profiler = Profiler()
    profiler.update(make_trace({"a": GOOD, "b": GOOD}, MASK))
    before = profiler.result().to_dict(detailed=True)
    with pytest.raises(TraceMismatchError, match=complaint):
        profiler.update(make_trace(spikes, MASK))
    assert profiler.result().to_dict(detailed=True) == before


def test_a_trace_of_another_graph_is_refused(tiny_model, make_model, padded_batch):
    trace = run(to_nir(tiny_model), *padded_batch)
    with pytest.raises(TraceMismatchError, match="block01_qkv_neuron"):
        profile(trace, to_nir(make_model(num_hidden_layers=2)))
    missing = make_trace(dict(list(trace.spikes.items())[1:]), trace.mask)
    with pytest.raises(TraceMismatchError, match="embedding_neuron"):
        profile(missing, parse_graph(to_nir(tiny_model)))


def test_a_sum_that_only_the_output_reads_has_its_values_counted():
    """Two layers of neurons whose sum is the output: 0, 1 and 2 occur, and nothing but the output reads them."""
    builder = NetworkBuilder("input", 2)
    builder.add("first", Heaviside(np.zeros(2)), "input")
    builder.add("second", Heaviside(np.zeros(2)), "input")
    network = builder.network("output", ("first", "second"))
    first, second = (
        np.array(spikes, np.uint8).reshape(1, 1, 3, 2) for spikes in ([1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0])
    )
    trace = make_trace({"first": first, "second": second}, np.array([[True, True, False]]))
    (stream,) = profile(trace, network, collect=("histogram",)).streams.values()
    assert stream.node == "second_stream"
    assert stream.counts.tolist() == [[1, 1, 2]]
    assert stream.padding_counts.tolist() == [1, 1, 0]


def test_what_cannot_be_collected_is_refused():
    with pytest.raises(ConfigurationError, match="collect 'everything' is not known; choose from heads, histogram"):
        Profiler(collect=("everything",))
    with pytest.raises(ConfigurationError, match="'heads' needs the graph"):
        Profiler(collect=("heads",))
    with pytest.raises(TraceError, match="nothing was profiled"):
        Profiler().result()


def test_what_is_not_asked_for_is_not_there(tiny_model, padded_batch):
    graph = to_nir(tiny_model)
    found = profile(run(graph, *padded_batch), graph)
    assert not found.streams
    assert all(node.histogram is node.persistence is node.fired_by_head is None for node in found.nodes.values())

"""The promise of Lava in fixed point: the spikes and states of the integer graph, in either timing, bit for bit.

With hardware timing most of a graph runs in stock LIFReset and Dense, which share no code with the operators
that the reference runner executes; so there equality proves the meaning as well. Random graphs go to the limits of the
chip's registers, where sums wrap around and potentials saturate.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export import parse_graph, quantize, to_nir
from export.errors import ChipLimitError
from export.loihi_numbers import DELAY_MAX
from export.network import Network, NetworkBuilder, Readout
from export.nir_graph.writer import build_graph
from export.operators import (
    Affine,
    Delay,
    Heaviside,
    IntegerAffine,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    Operator,
    TokenSum,
)
from export.token_encoding import TokenEncoding
from hardware import Trace, compare, open_runner
from hardware.errors import RunnerError
from hardware.runners.lava.stock import own_nodes
from hardware.runners.lava.stock_share import stock_share
from hardware.runners.lava.timing import arrivals, running_steps

lava = pytest.mark.lava
HARDWARE = {"timing": "hardware"}
VOCABULARY, POSITIONS = 9, 8


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def _neuron(rng: np.random.Generator, width: int, stock: bool, at_limits: bool) -> Operator:
    if not stock and rng.random() < 0.2:
        return Heaviside(rng.integers(-3, 4, width).astype(float), bool(rng.integers(2)))
    high = 2**17 if at_limits else 12
    threshold, decay = rng.integers(0, high, width), rng.integers(0, 4096, width)
    return IntegerLeakyIntegrateAndFire(
        threshold=np.full(width, threshold[0]) if stock else threshold,
        decay=np.full(width, decay[0]) if stock else decay,
        bias_mantissa=rng.integers(-4096, 4096, width) if at_limits else rng.integers(-64, 65, width),
        bias_exponent=rng.integers(0, 8 if at_limits else 3, width),
        reset="zero" if stock else str(rng.choice(["zero", "subtract"])),
        fire_on_equal=not stock and bool(rng.integers(2)),
        unit=np.ones(width),
    )


def _affine(rng: np.random.Generator, out: int, width: int, bias: bool) -> IntegerAffine:
    low, high = [(-128, 127), (-8, 8), (0, 255), (-255, 0)][rng.integers(4)]
    weight = rng.integers(low, high + 1, (out, width))
    if rng.random() < 0.2:
        weight[rng.integers(out)] = 0
    return IntegerAffine(weight=weight, bias=rng.integers(-2000, 2000, out) if bias else None, unit=np.ones(out))


def _norm(rng: np.random.Generator, width: int, groups: int) -> IntegerLayerNorm:
    return IntegerLayerNorm(
        weight=rng.integers(-(1 << 22), 1 << 22, width),
        bias=rng.integers(-(1 << 42), 1 << 42, width),
        groups=groups,
        integer_eps=rng.integers(1, 1 << 10, groups),
        shift=38,
        unit=np.ones(width),
    )


def random_network(seed: int, layers: int, at_limits: bool) -> Network:
    """Return a graph of layers that read any stream before them, or the sum of two, over paths of any lengths."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 4)) * 2
    builder = NetworkBuilder("input", VOCABULARY + POSITIONS)
    builder.add("embedding", _affine(rng, width, VOCABULARY + POSITIONS, bool(rng.integers(2))), "input")
    streams = [builder.add("embedding_neuron", _neuron(rng, width, True, at_limits), "embedding")]
    for layer in range(layers):
        name = f"block{layer:02}"
        count = int(rng.integers(1, min(3, len(streams)) + 1))
        sources = tuple(str(source) for source in rng.permutation(streams)[:count])
        out = 3 * width if rng.random() < 0.4 else width
        has_norm = rng.random() < 0.3
        last = builder.add(f"{name}_affine", _affine(rng, out, width, has_norm or rng.random() < 0.3), sources)
        if has_norm:
            last = builder.add(f"{name}_norm", _norm(rng, out, 3 if out > width else 1), last)
        last = builder.add(f"{name}_neuron", _neuron(rng, out, rng.random() < 0.7, at_limits), last)
        if out > width:
            attention = IntegerSpikeAttention(
                num_heads=2, head_size=width // 2, scale=0.125, shift=int(rng.integers(0, 4))
            )
            last = builder.add(f"{name}_attention", attention, last)
            last = builder.add(f"{name}_attention_neuron", _neuron(rng, width, True, False), last)
        streams.append(last)
    readers = tuple(streams[-2:])
    if rng.random() < 0.7:
        readers = (builder.add("sum", TokenSum(width), readers),)
    last = builder.add("classifier", _affine(rng, 3, width, bool(rng.integers(2))), readers)
    return builder.network(
        "output",
        last,
        token_encoding=TokenEncoding(VOCABULARY, POSITIONS),
        time_steps=int(rng.integers(1, 6)),
        readout=Readout(0.5, rng.integers(-9, 9, 3)),
        max_tokens=POSITIONS,
    )


def _sentences(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, count)
    mask = np.arange(lengths.max()) < lengths[:, None]
    return np.where(mask, rng.integers(0, VOCABULARY, mask.shape), 0), mask


def _assert_equal(found: Trace, expected: Trace) -> None:
    """Every spike, state and output, without the code under test and with it."""
    real = expected.mask
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
        np.testing.assert_array_equal(
            found.membrane_potentials[name][:, real], expected.membrane_potentials[name][:, real], err_msg=name
        )
    assert found.outputs is not None
    assert expected.outputs is not None
    assert found.metadata["overflows"] == expected.metadata["overflows"]
    tokens = ~real if found.outputs.ndim == 4 else np.zeros(len(real), bool)
    np.testing.assert_array_equal(found.outputs[:, ~tokens], expected.outputs[:, ~tokens])
    comparison = compare(expected, found)
    assert comparison.equal
    assert comparison.states_different == 0
    assert comparison.states_compared == comparison.spikes_compared


def _check(network: Network, seed: int, options: dict[str, Any]) -> Trace:
    """Two batches through one build, so that a state that stays would show."""
    batches = [_sentences(seed, 3), _sentences(seed + 1, 1)]
    with (
        open_runner(network, "reference", "integer", record_membrane_potentials=True) as reference,
        open_runner(network, "lava", "integer", tokens=4, record_membrane_potentials=True, **options) as runner,
    ):
        for batch in batches:
            found = runner.run(*batch)
            _assert_equal(found, reference.run(*batch))
        assert runner.builds == 1
    return found


graphs = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())


@lava
@settings(max_examples=3, deadline=None, derandomize=True)
@given(graphs)
def test_random_graphs_agree_in_either_timing(graph: tuple[int, int, bool]) -> None:
    network = random_network(*graph)
    _check(network, graph[0], {"granularity": "network"})
    _check(network, graph[0], HARDWARE)


@lava
@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(graphs, st.sampled_from([{"granularity": "operator"}, {"granularity": "block"}, HARDWARE]))
def test_many_random_graphs_agree(graph: tuple[int, int, bool], options: dict[str, Any]) -> None:
    _check(random_network(*graph), graph[0], options)


def _chip_like() -> Network:
    """A block whose every neuron is stock, with a skip path, attention and a norm; lively."""
    rng = np.random.default_rng(3)
    width = 6

    def neuron(features: int, threshold: int) -> IntegerLeakyIntegrateAndFire:
        return IntegerLeakyIntegrateAndFire(
            threshold=np.full(features, threshold),
            decay=np.full(features, 410),
            bias_mantissa=rng.integers(-64, 65, features),
            bias_exponent=np.zeros(features, np.int64),
            reset="zero",
            fire_on_equal=False,
            unit=np.ones(features),
        )

    def affine(out: int, inputs: int, bias: bool = False) -> IntegerAffine:
        weight = rng.integers(-9, 10, (out, inputs)).astype(np.int8)
        return IntegerAffine(weight=weight, bias=rng.integers(-5, 6, out) if bias else None, unit=np.ones(out))

    builder = NetworkBuilder("input", VOCABULARY + POSITIONS)
    builder.add("embedding", affine(width, VOCABULARY + POSITIONS), "input")
    builder.add("embedding_neuron", neuron(width, 3), "embedding")
    builder.add("block00_qkv", affine(3 * width, width, bias=True), "embedding_neuron")
    builder.add("block00_qkv_norm", _norm(rng, 3 * width, 3), "block00_qkv")
    builder.add("block00_qkv_neuron", neuron(3 * width, 3), "block00_qkv_norm")
    attention = IntegerSpikeAttention(num_heads=2, head_size=width // 2, scale=0.125, shift=1)
    builder.add("block00_attention", attention, "block00_qkv_neuron")
    builder.add("block00_attention_neuron", neuron(width, 2), "block00_attention")
    builder.add("block00_out", affine(width, width), ("embedding_neuron", "block00_attention_neuron"))
    builder.add("block00_out_neuron", neuron(width, 2), "block00_out")
    builder.add("sum", TokenSum(width), ("embedding_neuron", "block00_attention_neuron", "block00_out_neuron"))
    builder.add("classifier", affine(3, width), "sum")
    return builder.network(
        "output",
        "classifier",
        token_encoding=TokenEncoding(VOCABULARY, POSITIONS),
        time_steps=4,
        readout=Readout(0.5, np.zeros(3, np.int64)),
        max_tokens=POSITIONS,
    )


@lava
def test_what_runs_in_stock_processes_and_how_late_it_shows() -> None:
    network = parse_graph(build_graph(_chip_like()))  # through its file's form
    trace = _check(network, 0, HARDWARE)
    neurons = [node.name for node in network.spiking_nodes]
    for name in neurons:
        assert 0.05 < trace.firing_rate(name) < 0.95, name
    assert set(trace.metadata["stock_nodes"]) == {node.name for node in network.nodes} - {
        "block00_qkv_norm",
        "block00_attention",
    }
    assert set(trace.metadata["own_nodes"]) == {"block00_qkv_norm", "block00_attention"}
    # a step for each affine and for attention; what is added to a later spike waits for it
    assert trace.metadata["latency"] == {
        "embedding_neuron": 1,
        "block00_qkv_neuron": 2,
        "block00_attention_neuron": 3,
        "block00_out_neuron": 4,
        "classifier": 5,
    }
    share = stock_share(network, trace)
    assert share.neurons_stock == share.neurons == 6 + 18 + 6 + 6
    assert share.synapses_stock == share.synapses == 6 * 17 + 18 * 6 + 6 * 6 + 3 * 6
    # all nodes but the sums; three delays of a step (two where a stream waits for attention); what sends token ids
    assert trace.metadata["processes"] == len(network.nodes) - 3 + 3 + 1
    assert share.spikes_stock == share.spikes > 0


@lava
def test_a_model_without_attention_is_stock_to_the_last_node(make_model, padded_batch) -> None:
    model = make_model(attention="none", neuron="loihi", norm="none", embedding_neuron="lif", num_hidden_layers=2)
    ids, mask = padded_batch
    network = parse_graph(quantize(to_nir(model), (ids, mask)))
    with (
        open_runner(network, "integer", "integer", record_membrane_potentials=True) as integer,
        open_runner(network, "lava", "integer", record_membrane_potentials=True, **HARDWARE) as runner,
    ):
        found = runner.run(ids, mask)
        _assert_equal(found, integer.run(ids, mask))
    assert all(0.02 < found.firing_rate(node.name) < 0.98 for node in network.spiking_nodes)
    assert found.metadata["own_nodes"] == {}
    assert set(found.metadata["stock_nodes"]) == {node.name for node in network.nodes}
    share = stock_share(network, found)
    assert (share.neurons_stock, share.synapses_stock) == (share.neurons, share.synapses)
    assert share.spikes_stock == share.spikes > 0
    assert str(share).endswith(f"100.0 % of {share.spikes} spikes; nothing in ours")
    assert share.reasons() == []


@lava
def test_one_token_needs_no_columns() -> None:
    network = _chip_like()
    ids = np.array([[3], [4]])
    with open_runner(network, "lava", "integer", record_membrane_potentials=True, **HARDWARE) as runner:
        found = runner.run(ids)
    with open_runner(network, "reference", "integer", record_membrane_potentials=True) as reference:
        _assert_equal(found, reference.run(ids))


@lava
@pytest.mark.parametrize("timing", ["zero-latency", "hardware"])
def test_what_overflows_in_stock_neurons_and_in_ours_is_counted_alike(timing: str) -> None:
    """Padding is not counted, a neuron's second reader counts nothing twice, and batches do not add up."""
    leaks_little = {"decay": np.array([7, 7]), "threshold": np.array([100_000, 100_000])}
    builder = NetworkBuilder("input", 2)
    builder.add("wide", _square(127, 5 if timing == "zero-latency" else None), "input")
    builder.add("stock", _lif(**leaks_little), "wide")
    builder.add("ours", _lif(**{**leaks_little, "reset": "subtract"}), "wide")
    builder.add("quiet", _lif(), ("stock", "ours"))
    network = builder.network("output", "quiet", readout=Readout(1.0, np.zeros(2, np.int64)))
    rng = np.random.default_rng(0)
    mask = np.array([[True, True, True], [True, False, False]])
    batches = [rng.integers(-low, 1500, (6, 2, 3, 2)) for low in (200, 1500)]
    with (
        open_runner(network, "integer", "integer") as simulator,
        open_runner(network, "lava", "integer", timing=timing, granularity="operator") as runner,
    ):
        assert {"stock", "quiet"} <= set(runner.stock_nodes)
        assert "ours" not in runner.stock_nodes
        for inputs in batches:
            found, expected = (opened.run(inputs, mask).metadata["overflows"] for opened in (runner, simulator))
            assert found == expected
            assert set(found) == {"stock", "ours"}
            assert min(min(counts.values()) for counts in found.values()) > 3


@lava
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_columns_for_tokens_are_stock_synapses_token_by_token(kind: str) -> None:
    """In networks of its own: TokenDense or TokenSparse, and one stock process for each token, on the same spikes."""
    from lava.proc.dense.process import Dense
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.sparse.process import Sparse

    from hardware.runners.lava.guard import GuardedNetwork
    from hardware.runners.lava.processes.token_dense import TokenDense
    from hardware.runners.lava.processes.token_sparse import TokenSparse
    from hardware.runners.lava.run_config import PrecisionRunConfig

    rng = np.random.default_rng(5)
    weights, steps, tokens = rng.integers(-300, 300, (4, 6)), 5, 3
    spikes = (rng.random((6, tokens, steps)) < 0.5).astype(np.int32)

    def run(process: Any, data: np.ndarray) -> np.ndarray:
        source, sink = Source(data=data), Sink(shape=process.a_out.shape, buffer=steps)
        source.s_out.connect(process.s_in)
        process.a_out.connect(sink.a_in)
        with GuardedNetwork(source, PrecisionRunConfig("integer")) as network:
            network.run(steps)
            return sink.data.get().astype(np.int64)

    of_tokens, stock = (TokenDense, Dense) if kind == "dense" else (TokenSparse, Sparse)
    found = run(of_tokens(weights=weights, tokens=tokens, num_message_bits=24, weight_exp=-1), spikes)
    for token in range(tokens):
        expected = run(stock(weights=weights, weight_exp=-1), spikes[:, token])
        assert expected.any()
        np.testing.assert_array_equal(found[:, token], expected)


# ---------------------------------------------------------------------------------------------------------------------
# Where stock processes would not be exact, or the chip would not do it.


def _chain(*operators: Operator, features: int = 2) -> Network:
    builder, last = NetworkBuilder("input", features), "input"
    for index, operator in enumerate(operators):
        last = builder.add(f"node{index}", operator, last)
    return builder.network("output", last, readout=Readout(1.0, np.zeros(builder.widths[last], np.int64)))


def _stock_nodes(network: Network, timing: str) -> set[str]:
    return {node.name for node in network.nodes} - set(own_nodes(network, "integer", timing))


def _square(value: int, bias: int | None = None) -> IntegerAffine:
    return IntegerAffine(
        weight=np.full((2, 2), value), bias=None if bias is None else np.full(2, bias), unit=np.ones(2)
    )


def _lif(**changes: Any) -> IntegerLeakyIntegrateAndFire:
    two = np.array([3, 3])
    usual = {"threshold": two, "decay": two, "bias_mantissa": two, "bias_exponent": two, "unit": np.ones(2)}
    return IntegerLeakyIntegrateAndFire(**{**usual, "reset": "zero", "fire_on_equal": False, **changes})


def test_synapses_are_stock_only_where_32_bits_hold_their_sums() -> None:
    network = _chain(_square(1), _lif(), *[_square(127)] * 6)
    # twice the sum is what Dense holds before the exponent halves it; 2 * 127 is the most that a spike becomes
    fitting = {f"node{index}" for index in range(2, 8) if 2 * 254 ** (index - 1) < 2**31}
    assert fitting == {"node2", "node3", "node4"}
    assert _stock_nodes(network, "hardware") == {"node1", *fitting}


def test_a_bias_needs_a_reader_of_ours() -> None:
    assert _stock_nodes(_chain(_square(1), _lif(), _square(2, 5), _lif()), "hardware") == {"node1", "node3"}
    softly = _lif(reset="subtract")
    assert _stock_nodes(_chain(_square(1), _lif(), _square(2, 5), softly), "hardware") == {"node1", "node2"}
    biased_twice = _chain(_square(1), _lif(), _square(2, 5), _square(2, 5))
    assert _stock_nodes(biased_twice, "hardware") == {"node1", "node2"}


@pytest.mark.parametrize(
    "changes",
    [
        {"reset": "subtract"},
        {"fire_on_equal": True},
        {"threshold": np.array([3, 4])},
        {"decay": np.array([3, 4])},
    ],
)
def test_neurons_that_stock_lif_is_not_are_ours(changes: dict[str, Any]) -> None:
    network = _chain(_square(1), _lif(**changes))
    for timing in ("zero-latency", "hardware"):
        assert _stock_nodes(network, timing) == set()
        assert _stock_nodes(_chain(_square(1), _lif()), timing) == {"node1"}


def test_a_skip_path_longer_than_the_chip_can_delay_is_refused() -> None:
    def network(hops: int) -> Network:
        builder, last = NetworkBuilder("input", 2), "input"
        first = last = builder.add("first", _square(1), "input")
        for index in range(hops):
            last = builder.add(f"hop{index}", _square(1), last)
        builder.add("last", _lif(), (first, last))
        return builder.network("output", "last", readout=Readout(1.0, np.zeros(2, np.int64)))

    assert arrivals(network(DELAY_MAX), "hardware")["last"] == DELAY_MAX + 1
    assert set(arrivals(network(DELAY_MAX + 1), "zero-latency").values()) == {0}
    with pytest.raises(ChipLimitError, match=r"first would have to be delayed by 63 steps to meet hop62.*by 62"):
        arrivals(network(DELAY_MAX + 1), "hardware")


def test_a_delay_longer_than_the_chip_holds_is_refused_by_name() -> None:
    def network(steps: int) -> Network:
        chain = _chain(Affine(np.eye(2), None), Delay(np.array([0, steps])), Heaviside(np.zeros(2)))
        return replace(chain, readout=None)  # of a float graph

    too_long = r"node1: delay\[1\] is 63 steps; it must lie between 0 and 62\. Relay it over neurons"
    assert set(arrivals(network(62), "hardware")) == set(arrivals(network(63), "zero-latency"))
    with pytest.raises(ChipLimitError, match=too_long):
        arrivals(network(63), "hardware")
    with pytest.raises(ChipLimitError, match=too_long):
        quantize(network(63), np.ones((1, 1, 1, 2), np.int64))


@pytest.mark.parametrize(("depth", "steps"), [(0, 12), (1, 16), (4, 16), (5, 20)])
def test_stock_neurons_reset_in_step_with_the_next_batch(depth: int, steps: int) -> None:
    assert running_steps(3, 4, depth) == steps


@lava
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timing": "hardware", "granularity": "block"}, "with granularity 'block'"),
        ({"timing": "slow"}, "timing 'slow' is not one of"),
        ({"precision": "float64"}, "this is an integer graph"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RunnerError, match=said):
        open_runner(_chip_like(), "lava", **{"precision": "integer", **options})

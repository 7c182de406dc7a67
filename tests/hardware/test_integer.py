"""The promise of the integer runners: every spike and every membrane potential is what the equations say.

They stand once more in `integer_equations`. Random graphs reach the limits of every register and beyond.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_equations import Simulated, simulate
from pairwise import pairwise

from export import build_graph, parse_graph, quantize, to_nir
from export.errors import ChipLimitError, GraphError
from export.network import NetworkBuilder, Readout
from export.operators import (
    Heaviside,
    IntegerAffine,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    TokenSum,
)
from export.operators.layer_norm import integer_layer_norm
from export.passes.intervals import value_intervals
from export.token_encoding import TokenEncoding
from hardware import compare, open_runner
from hardware.errors import RunnerError
from hardware.kernels.integer import IntegerKernel, KernelLayer, KernelNorm, load_kernel
from hardware.runners.integer import IntegerRunner
from hardware.runners.integer.in_torch import TorchNorm, even_exponent
from hardware.runners.integer.workspace import Workspace
from hardware.traces.trace import Trace
from spikebert.checkpoint import SHIPPED_CHECKPOINTS, load_model, load_tokenizer
from spikebert.cli.quantization import CALIBRATION_SENTENCES, read_calibration
from spikebert.data import load_examples
from spikebert.tasks import TASKS

SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def _check(graph: nir.NIRGraph, inputs: np.ndarray, mask: np.ndarray) -> None:
    """Both runners against the equations, and against each other as `compare` sees them."""
    expected = simulate(graph, inputs, mask)
    traces = []
    for runner in ("integer", "reference"):
        with open_runner(graph, runner, "integer", record_membrane_potentials=True) as opened:
            trace = opened.run(inputs, mask)
        assert set(trace.spikes) == set(expected.spikes)
        _assert_fires(trace, expected, mask, said=runner)
        shown = trace.logits if trace.logits.ndim == 2 else trace.logits[mask]
        np.testing.assert_array_equal(shown, expected.logits if trace.logits.ndim == 2 else expected.logits[mask])
        traces.append(trace)
    found = compare(*traces)
    assert found.equal
    assert found.states_compared == found.spikes_compared > 0
    assert found.states_different == found.spikes_different == 0
    assert traces[0].metadata["overflows"] == traces[1].metadata["overflows"]


def _assert_fires(trace: Trace, expected: Simulated, mask: np.ndarray, said: str = "") -> None:
    """What fires, and at real tokens with which potentials."""
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(trace.spikes[name], spikes, err_msg=f"{said} {name}")
        found, potentials = trace.membrane_potentials[name], expected.potentials[name]
        np.testing.assert_array_equal(found[:, mask], potentials[:, mask], err_msg=f"{said} {name}")


MODELS = st.fixed_dictionaries(
    {
        "neuron": st.sampled_from(["paper", "snntorch", "published", "loihi"]),
        "num_hidden_layers": st.integers(1, 2),
        "num_attention_heads": st.sampled_from([1, 2, 4]),
        "embedding_neuron": st.sampled_from(["heaviside", "lif"]),
        "embedding_norm": st.booleans(),
        "position_embedding_type": st.sampled_from(["none", "absolute"]),
        "previous_word": st.sampled_from(["none", "table"]),
        "time_steps": st.integers(1, 5),
        "attention_scale": st.sampled_from([0.125, 0.1, 1.0]),
        "attention": st.sampled_from(["spiking", "spiking", "none"]),
        "attend_to_padding": st.booleans(),
    }
)
OPTIONS = st.fixed_dictionaries(
    {
        "scale": st.sampled_from(["per-tensor", "per-channel"]),
        "power_of_two": st.booleans(),
        "rounding": st.sampled_from(["nearest", "floor-even"]),
        "repair": st.booleans(),
    }
)


@SETTINGS
@given(configuration=MODELS, options=OPTIONS, seed=st.integers(0, 1000))
def test_quantized_models_run_as_the_equations_say(make_model, padded_batch, configuration, options, seed) -> None:
    ids, mask = padded_batch
    graph = quantize(to_nir(make_model(seed, **configuration)), (ids, mask), **options)
    _check(graph, ids, np.ones_like(mask) if configuration["attend_to_padding"] else mask)


@st.composite
def _raw_graphs(draw) -> tuple[nir.NIRGraph, np.ndarray, np.ndarray]:
    """Two layers of neurons with attention between them, parameters anywhere in their registers, inputs that wrap."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heads, head_size, width = draw(st.sampled_from([(1, 2, 5), (2, 3, 4), (1, 1, 1), (2, 16, 3)]))
    largest = draw(st.sampled_from([1, 100, 1 << 14, 1 << 19]))
    weight_limit, threshold_limit = draw(st.sampled_from([(3, 4), (127, 300), (127, (1 << 17) - 1)]))
    features = 3 * heads * head_size

    def affine(rows: int, columns: int) -> IntegerAffine:
        weight = rng.integers(-weight_limit - 1, weight_limit + 1, (rows, columns)).astype(np.int8)
        bias = rng.integers(-(1 << 10), 1 << 10, rows) if draw(st.booleans()) else None
        return IntegerAffine(weight=weight, bias=bias, unit=np.ones(rows))

    def neuron(count: int) -> IntegerLeakyIntegrateAndFire:
        scalar = draw(st.booleans())
        threshold, decay = rng.integers(0, threshold_limit + 1, count), rng.integers(0, 4096, count)
        return IntegerLeakyIntegrateAndFire(
            threshold=np.full(count, threshold[0]) if scalar else threshold,
            decay=np.full(count, decay[0]) if scalar else decay,
            bias_mantissa=rng.integers(-4096, 4096, count) * draw(st.integers(0, 1)),
            bias_exponent=rng.integers(0, 8, count),
            reset=draw(st.sampled_from(["subtract", "zero"])),
            fire_on_equal=draw(st.booleans()),
            unit=np.ones(count),
        )

    builder = NetworkBuilder("input", width)
    builder.add("a_affine", affine(features, width), "input")
    builder.add("b_neuron", neuron(features), "a_affine")
    scaled = IntegerSpikeAttention(num_heads=heads, head_size=head_size, scale=0.125, shift=draw(st.integers(0, 16)))
    builder.add("c_attention", scaled, "b_neuron")
    builder.add("d_neuron", neuron(heads * head_size), "c_attention")
    builder.add("e_affine", affine(features, heads * head_size), "d_neuron")
    builder.add("f_neuron", neuron(features), ["b_neuron", "e_affine"])
    builder.add("g_heaviside", Heaviside(np.zeros(features), draw(st.booleans())), ["f_neuron", "b_neuron"])
    builder.add("h_sum", TokenSum(features), ["g_heaviside", "b_neuron"])
    builder.add("i_head", affine(2, features), "h_sum")
    network = builder.network("output", "i_head", readout=Readout(0.5, rng.integers(-99, 99, 2)))
    tokens, sentences, steps = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    inputs = rng.integers(-largest, largest + 1, (steps, sentences, tokens, width))
    mask = np.arange(tokens) < rng.integers(1, tokens + 1, (sentences, 1))
    if draw(st.booleans()):  # what is known of the inputs lets the runner choose faster types
        network = replace(network, input_limit=max(1, int(np.abs(inputs).max())), max_tokens=tokens)
    return build_graph(network), inputs, mask


@settings(parent=SETTINGS, max_examples=60)
@given(case=_raw_graphs())
def test_graphs_at_the_limits_run_as_the_equations_say(case) -> None:
    _check(*case)


def test_the_raw_graphs_reach_what_they_are_for() -> None:
    found = {"wrapped_currents": 0, "saturated_potentials": 0}

    @settings(parent=SETTINGS, max_examples=40)
    @given(case=_raw_graphs())
    def look(case) -> None:
        graph, inputs, mask = case
        with open_runner(graph, "integer", "integer") as opened:
            for counts in opened.run(inputs, mask).metadata["overflows"].values():
                for key, count in counts.items():
                    found[key] += count

    look()
    assert min(found.values()) > 100


@pytest.mark.slow
@pytest.mark.skipif("SPIKEBERT_DATA" not in os.environ, reason="SPIKEBERT_DATA names no folder with the data sets")
@pytest.mark.parametrize("name", SHIPPED_CHECKPOINTS)
def test_shipped_checkpoints_run_real_sentences_as_the_equations_say(name: str) -> None:
    """On as many of SST-2's dev sentences as SPIKEBERT_SENTENCES says; Lava is held to the same graph by `verify`."""
    sentences, folder = int(os.environ.get("SPIKEBERT_SENTENCES", "16")), Path(os.environ["SPIKEBERT_DATA"])
    tokenizer, model = load_tokenizer(name), load_model(name)
    longest = model.config.max_position_embeddings
    graph = quantize(to_nir(model), read_calibration("sst2", tokenizer, folder, CALIBRATION_SENTENCES, longest))
    texts = [example.texts[0] for example in load_examples(TASKS["sst2"], "dev", folder)[:sentences]]
    compared = tokens = 0
    with open_runner(graph, "integer", "integer", record_membrane_potentials=True) as opened:
        for text in texts:
            ids = np.array([tokenizer(text, truncation=True, max_length=longest)["input_ids"]])
            mask = np.ones_like(ids, bool)
            expected = simulate(graph, ids, mask)
            trace = opened.run(ids)
            assert set(trace.spikes) == set(expected.spikes)
            _assert_fires(trace, expected, mask)
            compared += sum(spikes.numel() for spikes in expected.spikes.values())
            np.testing.assert_array_equal(trace.logits, expected.logits)
            tokens += ids.size
    print(
        f"\n{name}: 0 of {compared:,} spikes and as many potentials differ ({sentences} sentences, {tokens:,} tokens)"
    )


def test_a_changed_number_is_found(tiny_model, padded_batch) -> None:
    ids, mask = padded_batch
    graph = quantize(to_nir(tiny_model), (ids, mask))
    graph.nodes["block00_qkv_affine"].weight[0, 0] += 1
    changed = simulate(graph, ids, mask).potentials["block00_qkv_neuron"]
    graph.nodes["block00_qkv_affine"].weight[0, 0] -= 1
    with open_runner(graph, "integer", "integer", record_membrane_potentials=True) as opened:
        trace = opened.run(ids, mask)
    assert np.any(trace.membrane_potentials["block00_qkv_neuron"][:, mask] != changed.numpy()[:, mask])


def test_batch_padding_and_time_steps_change_nothing(tiny_model, padded_batch) -> None:
    ids, mask = padded_batch
    with open_runner(quantize(to_nir(tiny_model), (ids, mask)), "integer", "integer") as opened:
        together = opened.run(ids, mask)
        for row, real in enumerate(mask):
            alone = opened.run(ids[row : row + 1, real])
            np.testing.assert_array_equal(alone.logits[0], together.logits[row])
            for name, spikes in alone.spikes.items():
                np.testing.assert_array_equal(spikes[:, 0], together.spikes[name][:, row, real])


@pytest.fixture(params=[False, True], ids=["vectors", "tiles"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> IntegerKernel:
    """The C kernel without and with the processor's tiles, where it has such."""
    found = load_kernel()
    if found is None:
        pytest.skip("there is no C compiler")
    if request.param and not found.has_tiles:
        pytest.skip("the processor has no tiles (AMX)")
    monkeypatch.setattr(found, "has_tiles", request.param)
    return found


@pytest.mark.parametrize("neuron", ["paper", "snntorch", "published", "loihi"])
def test_the_c_kernel_computes_the_same(kernel: IntegerKernel, make_model, padded_batch, neuron: str) -> None:
    ids, mask = padded_batch
    model = make_model(neuron=neuron, embedding_norm=True, hidden_size=32, intermediate_size=100)  # tiles, and parts
    graph = quantize(to_nir(model), (ids, mask))
    traces = []
    for compiled in (False, True):
        options = {"record_membrane_potentials": True, "compiled": compiled}
        with open_runner(graph, "integer", "integer", **options) as opened:
            assert ("C" in opened.methods.values()) == compiled
            with (
                patch.object(kernel, "_fire", wraps=kernel._fire) as fire,
                patch.object(kernel, "_attend_bytes", wraps=kernel._attend_bytes) as attend,
            ):
                traces.append(opened.run(ids, mask))
            assert attend.called == (compiled and kernel.has_tiles)
            assert fire.called == compiled
    found = compare(*traces)
    assert found.equal
    assert found.states_different == 0 < found.states_compared


def test_threads_that_share_the_c_kernel_share_no_memory(kernel: IntegerKernel, make_model, padded_batch) -> None:
    ids, mask = padded_batch
    with (
        open_runner(quantize(to_nir(make_model(hidden_size=32)), (ids, mask)), "integer", "integer") as opened,
        ThreadPoolExecutor(2) as both,
    ):
        expected = opened.run(ids, mask)
        for found in both.map(opened.run, [ids] * 20, [mask] * 20):
            assert compare(expected, found).equal
        here, again = (kernel._scratch.bytes("room", count).data_ptr() for count in (100, 50))
        assert here == again != both.submit(kernel._scratch.bytes, "room", 100).result().data_ptr()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("fire_on_equal", [False, True])
@pytest.mark.parametrize("reach", [(1 << 17) - 1, 1 << 15, 1 << 11])
def test_neurons_at_the_limits_of_every_register(compiled: bool, reset: str, fire_on_equal: bool, reach: int) -> None:
    """Where a sum of all that drives a neuron is most, and float32, in which C adds it up, has to hold it.

    With less `reach` some potentials are held, or none: C first computes without the limit, and again where need be.
    """
    if compiled and load_kernel() is None:
        pytest.skip("there is no C compiler")
    rng, features = np.random.default_rng(0), 300

    def extremes(low: int, high: int, *shape: int) -> np.ndarray:
        return rng.choice([low, low + 1, high - 1, high, *rng.integers(low, high + 1, 4)], shape)

    neurons = IntegerLeakyIntegrateAndFire(
        threshold=extremes(0, (1 << 17) - 1, features),
        decay=extremes(0, 4095, features),
        bias_mantissa=extremes(-4096, 4095, features) * (reach > 1 << 11),
        bias_exponent=rng.integers(0, 8, features),
        reset=reset,
        fire_on_equal=fire_on_equal,
        unit=np.ones(features),
    )
    builder = NetworkBuilder("input", features)
    builder.add("neurons", neurons, "input")
    readout = Readout(1.0, np.zeros(features, np.int64))
    network = builder.network("output", "neurons", readout=readout, input_limit=(1 << 17) - 1)
    inputs = extremes(-reach, reach, 8, 2, 3, features)
    mask = np.ones((2, 3), bool)
    expected = simulate(build_graph(network), inputs, mask)
    with open_runner(network, "reference", "integer") as opened:
        overflows = opened.run(inputs).metadata["overflows"]
    options = {"record_membrane_potentials": True, "compiled": compiled}
    with open_runner(network, "integer", "integer", **options) as opened:
        assert opened.methods["neurons"] == ("C" if compiled else "float64")
        trace = opened.run(inputs)
    _assert_fires(trace, expected, mask)
    assert trace.metadata["overflows"] == overflows
    saturated = overflows.get("neurons", {"saturated_potentials": 0})["saturated_potentials"]
    assert saturated == 0 if reach == 1 << 11 else saturated > 0
    assert saturated > 1000 or reach < (1 << 17) - 1


@pytest.mark.skipif(load_kernel() is None, reason="there is no C compiler")
@pytest.mark.parametrize("size", [1, 3, 16, 64, 130, 768, 4096])
@pytest.mark.parametrize("spread", [0, 1, 9, 1000, 1 << 16, 1 << 18, 1 << 24])
def test_layer_norm_in_c_is_the_one_written_in_whole_numbers(size: int, spread: int) -> None:
    """Numbers close together around any mean, and numbers so large that their norm is found by the longer way.

    Gains are so large that each unit of a normed feature shows, and such that many numbers lie halfway between two.
    """
    rng, groups = np.random.default_rng(spread + size), 2
    spread, mean = min(spread, (1 << 30) // size), min(1 << 24, (1 << 30) // size)
    norm = IntegerLayerNorm(
        weight=rng.choice([-(1 << 24) + 1, (1 << 24) - 1, 3 << 20, 1 << 19, 1, 0], groups * size),
        bias=rng.integers(-(1 << 20), 1 << 20, groups * size) << 19,
        groups=groups,
        integer_eps=np.array([1, 1 << 20]),
        shift=20,
        unit=np.ones(groups * size),
    )
    x = rng.choice([0, 1, mean, -mean], (4, 60, 1)) + rng.integers(-spread, spread + 1, (4, 60, groups * size))
    kernel = load_kernel()
    assert kernel is not None
    expected = integer_layer_norm(x, norm.weight, norm.bias, norm.integer_eps, norm.shift)
    found = kernel.normalise(torch.from_numpy(x), KernelNorm(norm))
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("largest", "spread", "block", "at_once"),
    [
        (5792, 5792, 64, True),  # 64 squares are just below 2^31
        (5793, 5793, 32, True),
        (8191, 8191, 32, True),
        (8192, 8192, 0, True),  # 32 squares are 2^31
        ((1 << 22) - 1, 3, 0, True),  # 64 times as much is just below 2^28
        (1 << 22, 3, 0, False),
        ((1 << 24) + 1, 1, 0, False),
        ((1 << 19) - 1, (1 << 19) - 1, 0, True),  # the radicand is just below 2^50: nothing is shifted right
        (1 << 19, 1 << 19, 0, False),
        (0, 0, 64, True),
    ],
)
@pytest.mark.parametrize("groups", [1, 3])
def test_layer_norm_in_torch_is_the_one_written_in_whole_numbers(
    largest: int, spread: int, block: int, at_once: bool, groups: int
) -> None:
    """On both sides of every limit at which it takes another way, with rows that reach the limit as a whole."""
    rng, size = np.random.default_rng(largest), 64
    norm = IntegerLayerNorm(
        weight=rng.choice([-(1 << 24) + 1, (1 << 24) - 1, 3 << 20, 1 << 19, 1, 0], groups * size),
        bias=rng.integers(-(1 << 20), 1 << 20, groups * size) << 19,
        groups=groups,
        integer_eps=np.full(groups, 1),
        shift=20,
        unit=np.ones(groups * size),
    )
    near = largest - rng.integers(0, 2 * spread + 1, (4, 30, groups * size))
    ends = largest - 2 * spread * rng.permuted(np.tile([0, 1], (4, 30, groups * size // 2)), axis=-1)
    # in one group as much of the one end as of the other: the largest variance
    even = largest - 2 * spread * np.tile([0, 1], (4, 30, groups * size // 2))
    x = np.concatenate([near, -near, ends, -ends, even, np.full_like(even, largest)], 1)
    builder = NetworkBuilder("input", groups * size)
    builder.add("norm", norm, "input")
    readout = Readout(1.0, np.zeros(groups * size, np.int64))
    network = builder.network("output", "norm", readout=readout, input_limit=max(1, largest))
    with open_runner(network, "integer", "integer", compiled=False) as opened:
        assert isinstance(opened, IntegerRunner)
        in_torch = TorchNorm(norm, opened.workspace, value_intervals(network)["input"])
        factors = in_torch.factors(torch.from_numpy(x))
        outputs = opened.run(x[:, None]).outputs
    assert in_torch._block(largest) == block
    assert (factors.third is None) == at_once
    expected = integer_layer_norm(x, norm.weight, norm.bias, norm.integer_eps, norm.shift)
    np.testing.assert_array_equal(outputs[:, 0], expected)
    assert np.abs(expected).max() <= factors.reach


@pytest.mark.parametrize("size", [1, 3, 16, 130, 768, 4096])
@pytest.mark.parametrize("spread", [0, 1, 9, 1000, 1 << 16, 1 << 18, 1 << 24])
def test_layer_norm_of_any_size_in_torch_is_the_one_written_in_whole_numbers(size: int, spread: int) -> None:
    rng, limit = np.random.default_rng(spread + size), min((1 << 25) - 1, (1 << 30) // size)
    spread = min(spread, limit // 2)
    norm = IntegerLayerNorm(
        weight=rng.choice([-(1 << 24) + 1, (1 << 24) - 1, 3 << 20, 1 << 19, 1, 0], 2 * size),
        bias=rng.integers(-(1 << 20), 1 << 20, 2 * size) << 19,
        groups=2,
        integer_eps=np.array([1, 1 << 20]),
        shift=20,
        unit=np.ones(2 * size),
    )
    middles = [0, 1, limit // 2, -(limit // 2)]
    x = rng.choice(middles, (4, 1, 60, 1)) + rng.integers(-spread, spread + 1, (4, 1, 60, 2 * size))
    builder = NetworkBuilder("input", 2 * size)
    builder.add("norm", norm, "input")
    readout = Readout(1.0, np.zeros(2 * size, np.int64))
    network = builder.network("output", "norm", readout=readout, input_limit=limit)
    with open_runner(network, "integer", "integer", compiled=False) as opened:
        outputs = opened.run(x).outputs
    np.testing.assert_array_equal(outputs, integer_layer_norm(x, norm.weight, norm.bias, norm.integer_eps, norm.shift))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_reach_of_a_norm_holds_for_a_row_with_one_end_far_out(sign: int) -> None:
    size = 64
    norm = IntegerLayerNorm(
        weight=np.full(size, 1 << 20),
        bias=np.zeros(size, np.int64),
        groups=1,
        integer_eps=np.array([1]),
        shift=20,
        unit=np.ones(size),
    )
    x = np.zeros((1, 1, 1, size), np.int64)
    x[..., 7] = sign * 1000
    builder = NetworkBuilder("input", size)
    builder.add("norm", norm, "input")
    network = builder.network("output", "norm", readout=Readout(1.0, np.zeros(size, np.int64)), input_limit=1000)
    with open_runner(network, "integer", "integer", compiled=False) as opened:
        assert isinstance(opened, IntegerRunner)
        in_torch = TorchNorm(norm, opened.workspace, value_intervals(network)["input"])
        reach = in_torch.factors(torch.from_numpy(x[:, 0])).reach
        outputs = opened.run(x).outputs
    assert sign * outputs[0, 0, 0, 7] > 7 << 20  # next to the root of 64
    assert np.abs(outputs).max() <= reach < 9 << 20


def test_exponents_bring_numbers_next_to_powers_of_two_where_the_root_takes_them() -> None:
    """Above 2^53 float64, from which the number of bits is read, rounds those just below a power up to it."""
    x = np.array([(1 << bits) + more for bits in range(1, 62) for more in (-1, 0, 1)])
    exponent = even_exponent(x, int(x.max()))
    assert np.all(exponent % 2 == 0)
    for number, shift in zip(x.tolist(), exponent.tolist(), strict=True):
        assert 1 << 60 <= number << shift < 1 << 62, number


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_neurons_that_are_driven_alike_at_every_step(reset: str) -> None:
    """What does not change from step to step is computed once, by the layer norm before the neurons as well."""
    rng, features = np.random.default_rng(0), 24
    builder = NetworkBuilder("input", 10)
    weight = rng.integers(-127, 128, (features, 10)).astype(np.int8)
    builder.add("embedding", IntegerAffine(weight=weight, bias=None, unit=np.ones(features)), "input")
    norm = IntegerLayerNorm(
        weight=np.full(features, 1 << 20),
        bias=rng.integers(-(1 << 33), 1 << 33, features),
        groups=1,
        integer_eps=np.array([1]),
        shift=32,
        unit=np.ones(features),
    )
    builder.add("norm", norm, "embedding")
    neurons = IntegerLeakyIntegrateAndFire(
        threshold=rng.integers(50, 300, features),
        decay=rng.integers(0, 2000, features),
        bias_mantissa=np.zeros(features, np.int64),
        bias_exponent=np.zeros(features, np.int64),
        reset=reset,
        fire_on_equal=False,
        unit=np.ones(features),
    )
    builder.add("neurons", neurons, "norm")
    readout = Readout(1.0, np.zeros(features, np.int64))
    network = builder.network(
        "output", "neurons", readout=readout, token_encoding=TokenEncoding(10, 0), time_steps=6, max_tokens=10
    )
    ids, mask = np.arange(10)[None], np.ones((1, 10), bool)
    expected = simulate(build_graph(network), ids, mask)
    assert 0.1 < expected.spikes["neurons"].double().mean() < 0.9
    options = {"record_membrane_potentials": True, "compiled": False}
    with open_runner(network, "integer", "integer", **options) as opened:
        trace = opened.run(ids)
    _assert_fires(trace, expected, mask)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_what_a_spike_takes_can_drive_a_potential_to_its_limit(on_cpu: bool) -> None:
    """A neuron that keeps next to nothing and that, once it fired, is driven down by as much as it was up."""
    threshold, drive = 1 << 16, (1 << 16) + 20
    neurons = IntegerLeakyIntegrateAndFire(
        threshold=np.full(3, threshold),
        decay=np.array([4095, 4095, 4094]),
        bias_mantissa=np.zeros(3, np.int64),
        bias_exponent=np.zeros(3, np.int64),
        reset="subtract",
        fire_on_equal=True,
        unit=np.ones(3),
    )
    builder = NetworkBuilder("input", 3)
    builder.add("neurons", neurons, "input")
    readout = Readout(1.0, np.zeros(3, np.int64))
    network = builder.network("output", "neurons", readout=readout, input_limit=drive)
    inputs = np.array([drive, -drive, 5])[:, None, None, None] * np.ones((1, 1, 2, 3), np.int64)
    potentials = simulate(build_graph(network), inputs, np.ones((1, 2), bool)).potentials
    assert potentials["neurons"].min() == -(1 << 23) + 1
    options = {"record_membrane_potentials": True, "compiled": False}
    with patch.object(Workspace, "on_cpu", on_cpu), open_runner(network, "integer", "integer", **options) as opened:
        trace = opened.run(inputs)
    np.testing.assert_array_equal(trace.membrane_potentials["neurons"], potentials["neurons"])
    held = {"wrapped_currents": 0, "saturated_potentials": 4}  # the third keeps just enough
    assert trace.metadata["overflows"] == {"neurons": held}


def test_threads_that_share_a_runner_share_no_memory(make_model, padded_batch) -> None:
    ids, mask = padded_batch
    with open_runner(quantize(to_nir(make_model()), (ids, mask)), "integer", "integer", compiled=False) as opened:
        assert isinstance(opened, IntegerRunner)
        with ThreadPoolExecutor(1) as other:
            here, there = (
                opened.workspace.scratch.take("potential", (5, 3)),
                other.submit(opened.workspace.scratch.take, "potential", (5, 3)),
            )
            assert here.data_ptr() != there.result().data_ptr()
            assert here.data_ptr() == opened.workspace.scratch.take("potential", (3, 4)).data_ptr()
        expected = opened.run(ids, mask)
        with ThreadPoolExecutor(2) as both:
            for found in both.map(opened.run, [ids] * 20, [mask] * 20):
                assert compare(expected, found).equal


@pytest.mark.parametrize("compiled", [False, True])
def test_a_threshold_may_lie_between_whole_numbers_or_beyond_them(compiled: bool) -> None:
    if compiled and load_kernel() is None:
        pytest.skip("there is no C compiler")
    thresholds = np.array([-np.inf, -1e300, -128.5, -3, -2.5, -0.1, 0, 0.1, 2.5, 3, 127.5, 1e300, np.inf])
    for fire_on_equal in (False, True):
        builder = NetworkBuilder("input", len(thresholds))
        builder.add("heaviside", Heaviside(thresholds, fire_on_equal), "input")
        readout = Readout(1.0, np.zeros(len(thresholds), np.int64))
        network = builder.network("output", "heaviside", readout=readout, input_limit=128)
        inputs = np.broadcast_to(np.arange(-128, 129)[None, :, None, None], (1, 257, 1, len(thresholds)))
        with open_runner(network, "integer", "integer", compiled=compiled) as opened:
            assert opened.methods["heaviside"] == "comparison"
            spikes = opened.run(inputs).spikes["heaviside"]
        expected = inputs >= thresholds if fire_on_equal else inputs > thresholds
        np.testing.assert_array_equal(spikes, expected)


@pytest.mark.parametrize("head_size", [1, 3, 16, 17, 48, 64, 70, 80, 128])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("largest", [1, 2, 5])
def test_attention_in_c_is_the_sum_it_stands_for(
    kernel: IntegerKernel, head_size: int, heads: int, largest: int
) -> None:
    """Heads of less and more than what is summed together, sentences of any length one behind the other.

    With numbers up to 2 sums of 63 tokens stay below 2^8, so that bytes hold them; with 5 they do not.
    """
    lengths, width = np.array([9, 1, 63, 0, 31, 2, 16]), heads * head_size
    x = np.random.default_rng(head_size).integers(0, largest + 1, (3, lengths.sum(), 3 * width))
    _check_attention(kernel, x, lengths, heads, largest)


@pytest.mark.parametrize("tokens", [64, 65, 255, 256])
def test_attention_in_bytes_ends_where_a_byte_does(kernel: IntegerKernel, tokens: int) -> None:
    """With spikes everywhere K^T V is the number of tokens, of which a byte holds 255."""
    _check_attention(kernel, np.ones((2, tokens, 3 * 2 * 32), np.int64), np.array([tokens]), 2, 1)


def _check_attention(kernel: IntegerKernel, x: np.ndarray, lengths: np.ndarray, heads: int, largest: int) -> None:
    width = x.shape[-1] // 3
    spikes, tokens = torch.from_numpy(x).to(torch.int8), torch.from_numpy(lengths)
    found = kernel.attend(spikes, tokens, heads, width // heads, 4, largest).numpy()
    sentences = np.split(x.reshape(len(x), -1, 3, heads, width // heads), np.cumsum(lengths)[:-1], 1)
    expected = [
        np.einsum("tnhd,tmhd,tmhe->tnhe", *np.moveaxis(sentence, 2, 0), optimize=True) * 4 for sentence in sentences
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected, 1).reshape(found.shape))


@pytest.mark.parametrize("kernel", [True], indirect=True, ids=["tiles"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "tokens", "constant"),
    pairwise([16, 20, 64, 100, 96, 192, 300], [1, 16, 31, 33, 70], [1, 5, 16, 17, 33, 50], [False, True]),
)
def test_a_map_of_bytes_is_the_sums_it_stands_for(
    kernel: IntegerKernel, monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, tokens: int, constant: bool
) -> None:
    """Maps that do not fill tiles, weights at their limits; of 50 tokens no more than a tile's are summed at a time.

    Potentials show the sums: neurons keep a 4096th of them from step to step.
    """
    rng, steps = np.random.default_rng(inputs * outputs + tokens), 3
    if tokens == 50:
        monkeypatch.setattr("hardware.kernels.integer.SUMS_BYTES", 1)
    largest = min(127, 120_000 // (128 * inputs))  # currents have 18 bits
    weight = rng.choice([-128, 127, *rng.integers(-128, 128, 4)], (outputs, inputs)).astype(np.int8)
    bias = rng.integers(-10_000, 10_000, outputs) if outputs % 2 else None
    affine = IntegerAffine(weight=weight, bias=bias, unit=np.ones(outputs))
    constants = {"threshold": 1000, "decay": 4095, "bias_mantissa": 0, "bias_exponent": 0}
    neurons = IntegerLeakyIntegrateAndFire(
        **{key: np.full(outputs, value) for key, value in constants.items()},
        reset="zero",
        fire_on_equal=False,
        unit=np.ones(outputs),
    )
    x = rng.choice([0, largest, *rng.integers(0, largest + 1, 3)], (1 if constant else steps, tokens, inputs))
    charge = 64 * (np.einsum("tni,oi->tno", x, weight.astype(np.int64)) + (0 if bias is None else bias))
    expected, left = [], np.zeros((tokens, outputs), np.int64)
    for step in range(steps):
        expected.append(np.sign(left) * (np.abs(left) // 4096) + charge[0 if constant else step])
        left = np.where(expected[-1] > 64_000, 0, expected[-1])

    assert kernel.multiplies(affine)
    everywhere = torch.full((2, steps, tokens + 2, outputs), -1, dtype=torch.int32)  # some tokens of more
    spikes, potentials = everywhere[0].to(torch.int8), everywhere[1]
    bytes_read = torch.from_numpy(x).to(torch.int8)
    held = kernel.fire(KernelLayer(affine, None, neurons), bytes_read, spikes[:, 1:-1], potentials[:, 1:-1])
    np.testing.assert_array_equal(potentials[:, 1:-1].numpy(), expected)
    np.testing.assert_array_equal(spikes[:, 1:-1].numpy(), np.greater(expected, 64_000))
    assert held == 0
    assert all(bool((shown[:, [0, -1]] == -1).all()) for shown in (spikes, potentials))


@pytest.mark.parametrize("inputs", [6, 8, 68])
def test_a_map_that_no_tiles_suit_is_multiplied_all_the_same(kernel: IntegerKernel, inputs: int) -> None:
    """Its inputs are not a multiple of four, fewer than a quarter of a tile, or a multiple of no more than four."""
    rng = np.random.default_rng(0)
    affine = IntegerAffine(weight=rng.integers(-128, 128, (9, inputs), dtype=np.int8), bias=None, unit=np.ones(9))
    assert not kernel.multiplies(affine)
    constants = {"threshold": 300, "decay": 1000, "bias_mantissa": 5, "bias_exponent": 6}
    neurons = IntegerLeakyIntegrateAndFire(
        **{key: np.full(9, value) for key, value in constants.items()},
        reset="subtract",
        fire_on_equal=True,
        unit=np.ones(9),
    )
    builder = NetworkBuilder("input", inputs)
    builder.add("neurons", neurons, builder.add("map", affine, "input"))
    network = builder.network("output", "neurons", readout=Readout(1.0, np.zeros(9, np.int64)), input_limit=7)
    x = rng.integers(0, 8, (5, 2, 3, inputs))
    mask = np.ones((2, 3), bool)
    expected = simulate(build_graph(network), x, mask)
    with open_runner(network, "integer", "integer", record_membrane_potentials=True) as opened:
        trace = opened.run(x)
    _assert_fires(trace, expected, mask)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_compiler_from_pip_does_where_there_is_none(tmp_path: Path) -> None:
    """The package ziglang is called as ``python -m ziglang cc``; here one of that name passes it on to cc."""
    package = tmp_path / "ziglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import os, sys\nassert sys.argv[1] == 'cc'\nos.execv({shutil.which('cc')!r}, sys.argv[1:])\n"
    )
    look = "from hardware.kernels.integer import load_kernel; print(load_kernel() is not None)"
    settings = {**os.environ, "CC": "no-such-compiler", "SPIKEBERT_CACHE": str(tmp_path / "cache")}
    found = []
    for path in (sys.path, [str(tmp_path), *sys.path]):
        settings["PYTHONPATH"] = os.pathsep.join(path)
        command = [sys.executable, "-c", look]
        found.append(subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout.strip())
    assert found == [str(importlib.util.find_spec("ziglang") is not None), "True"]


GUARDED = """
import ctypes, mmap, sys
import numpy as np, torch
from export.operators import IntegerAffine, IntegerLeakyIntegrateAndFire
from hardware.kernels.integer import KernelLayer, load_kernel

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
held = []


def guarded(values):
    room = mmap.mmap(-1, (-(-values.nbytes // mmap.PAGESIZE) + 1) * mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(room)) + len(room) - mmap.PAGESIZE
    assert libc.mprotect(end, mmap.PAGESIZE, 0) == 0
    held.append(room)
    copy = np.frombuffer((ctypes.c_char * values.nbytes).from_address(end - values.nbytes), values.dtype)
    copy[:] = values.ravel()
    return copy.reshape(values.shape)


kernel, rng = load_kernel(), np.random.default_rng(0)
kernel.has_tiles = sys.argv[1] == "True"
for tokens in (1, 5, 16, 17, 33):
    for heads, size in ((1, 16), (2, 48), (3, 17)):
        x = torch.from_numpy(guarded(rng.integers(0, 2, (2, tokens, 3 * heads * size), dtype=np.int8)))
        kernel.attend(x, torch.from_numpy(guarded(np.array([tokens]))), heads, size, 4, 1)
    for inputs, outputs in ((16, 1), (100, 33), (192, 70)):
        weight = guarded(rng.integers(-128, 128, (outputs, inputs), dtype=np.int8))
        affine = IntegerAffine(weight=weight, bias=None, unit=np.ones(outputs)) if kernel.has_tiles else None
        ones = np.ones(outputs, np.int64)
        constants = dict.fromkeys(("threshold", "decay", "bias_mantissa", "bias_exponent", "unit"), ones)
        neurons = IntegerLeakyIntegrateAndFire(reset="zero", fire_on_equal=True, **constants)
        features, kind = (inputs, np.int8) if kernel.has_tiles else (outputs, np.int32)  # a map's, or sums
        read = rng.integers(0, 2, (2, tokens, features), dtype=kind)
        out = np.zeros((2, tokens, outputs))
        spikes, potentials = (torch.from_numpy(guarded(out.astype(kind))) for kind in (np.int8, np.int32))
        kernel.fire(KernelLayer(affine, None, neurons), torch.from_numpy(guarded(read)), spikes, potentials)
print("stayed inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded by a call of Linux")
def test_the_c_kernel_stays_inside_what_it_is_given(kernel: IntegerKernel) -> None:
    """Behind everything that it reads and fills lies a page that nobody may touch."""
    command = [sys.executable, "-c", GUARDED, str(kernel.has_tiles)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (found.returncode, found.stdout.strip()) == (0, "stayed inside"), found.stderr


@settings(parent=SETTINGS, max_examples=40)
@given(case=_raw_graphs())
def test_graphs_at_the_limits_run_as_on_a_gpu(case) -> None:
    """The arithmetic that other devices get, float32 and float64 products in whole layers, here on the CPU."""
    graph, inputs, mask = case
    expected = simulate(graph, inputs, mask)
    options = {"record_membrane_potentials": True}
    with patch.object(Workspace, "on_cpu", False), open_runner(graph, "integer", "integer", **options) as opened:
        assert not {"int8", "C"} & set(opened.methods.values())
        trace = opened.run(inputs, mask)
    _assert_fires(trace, expected, mask)


def test_a_model_runs_as_on_a_gpu(make_model, padded_batch) -> None:
    ids, mask = padded_batch
    graph = quantize(to_nir(make_model(num_hidden_layers=2, embedding_norm=True)), (ids, mask))
    expected = simulate(graph, ids, mask)
    options = {"record_membrane_potentials": True}
    with patch.object(Workspace, "on_cpu", False), open_runner(graph, "integer", "integer", **options) as opened:
        assert set(opened.methods.values()) <= {"gather", "float32", "float64", "sum", "comparison"}
        trace = opened.run(ids, mask)
    _assert_fires(trace, expected, mask)
    np.testing.assert_array_equal(trace.logits, expected.logits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_computes_the_same(make_model, padded_batch) -> None:
    ids, mask = padded_batch
    graph = quantize(to_nir(make_model(num_hidden_layers=2, embedding_norm=True)), (ids, mask))
    traces = []
    for device in ("cpu", "cuda"):
        with open_runner(graph, "integer", "integer", record_membrane_potentials=True, device=device) as opened:
            traces.append(opened.run(ids, mask))
    found = compare(*traces)
    assert found.equal
    assert found.states_different == 0 < found.states_compared


@pytest.mark.parametrize("proven", [True, False])
def test_no_tensor_is_made_where_torch_makes_them_by_default(make_model, padded_batch, proven: bool) -> None:
    """What a GPU would trip over: a tensor made without saying where, here on a device that holds no numbers."""
    ids, mask = padded_batch
    network = parse_graph(quantize(to_nir(make_model(embedding_norm=True)), (ids, mask)))
    if not proven:  # attention, and what reads it, then runs on the operators' own arithmetic
        network = replace(network, max_tokens=None)
    with open_runner(network, "integer", "integer", record_membrane_potentials=True, compiled=False) as opened:
        assert ("int64" in opened.methods.values()) != proven
        expected = opened.run(ids, mask)
        with torch.device("meta"):
            found = opened.run(ids, mask)
    assert compare(expected, found).equal


PRECISIONS = """
import numpy as np, torch
from export.network import NetworkBuilder, Readout
from export.operators import IntegerAffine
from hardware import open_runner

backends = torch.backends
apart = hasattr(backends.mkldnn, "matmul")  # torch 2.9: a setting for each part
parts = (backends, backends.cuda.matmul, backends.mkldnn.matmul) if apart else ()
ways = {"highest": lambda: None, "medium": lambda: torch.set_float32_matmul_precision("medium")}
if apart:
    ways["all"] = lambda: setattr(backends, "fp32_precision", "tf32")
    ways["cuda"] = lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32")
    ways["mkldnn"] = lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16")


def allowed():
    return [part.fp32_precision for part in parts] if apart else torch.get_float32_matmul_precision()


size = 32  # smaller products torch takes in float32 whatever it is allowed
builder = NetworkBuilder("input", size)
weight = np.full((size, size), 127, np.int8)
builder.add("affine", IntegerAffine(weight=weight, bias=None, unit=np.ones(size)), "input")
network = builder.network("output", "affine", readout=Readout(1.0, np.zeros(size, np.int64)), input_limit=2049)
for way, allow in ways.items():
    allow()
    before = allowed()
    with open_runner(network, "integer", "integer") as opened:
        assert opened.methods["affine"] == "float32"
        logits = opened.run(np.full((1, 1, size, size), 2049)).logits
    assert np.all(logits == size * 127 * 2049), (way, logits)
    assert allowed() == before, (way, before, allowed())
    if way == "all":  # what the parts have of the whole is not made their own
        backends.fp32_precision = "ieee"
        assert allowed() == ["ieee"] * 3, allowed()
    for part in parts:
        part.fp32_precision = "none"
"""


def test_float32_products_take_all_their_bits_whatever_a_program_allows() -> None:
    """2^11 + 1 is one more than TF32 or bfloat16 tell from 2^11. What was allowed is allowed again afterwards."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", PRECISIONS], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr


def test_the_least_int8_counts_with_its_whole_magnitude() -> None:
    affine = IntegerAffine(weight=np.full((8, 16), -128, np.int8), bias=None, unit=np.ones(8))
    builder = NetworkBuilder("input", 16)
    builder.add("affine", affine, "input")
    for limit, method in (((1 << 13) - 1, "float32"), (1 << 13, "float64")):
        network = builder.network("output", "affine", readout=Readout(1.0, np.zeros(8, np.int64)), input_limit=limit)
        with open_runner(network, "integer", "integer") as opened:
            assert opened.methods["affine"] == method


def test_sums_of_squares_that_float64_does_not_hold_are_exact() -> None:
    """64 squares of nearly 2^25 are more than 2^53 and still allowed."""
    rng, size, limit = np.random.default_rng(0), 64, (1 << 25) - 1
    norm = IntegerLayerNorm(
        weight=rng.integers(-(1 << 23), 1 << 23, size),
        bias=np.zeros(size, np.int64),
        groups=1,
        integer_eps=np.array([1]),
        shift=30,
        unit=np.ones(size),
    )
    builder = NetworkBuilder("input", size)
    builder.add("norm", norm, "input")
    network = builder.network("output", "norm", readout=Readout(1.0, np.zeros(size, np.int64)), input_limit=limit)
    inputs = limit - rng.integers(0, 3, (1, 1, 50, size))
    (sums, exact) = (inputs.astype(np.float64) ** 2).sum(-1).astype(np.int64), (inputs**2).sum(-1)
    assert np.any(sums != exact)
    logits = []
    for runner, options in (("reference", {}), ("integer", {"compiled": False}), ("integer", {})):
        with open_runner(network, runner, "integer", **options) as opened:
            logits.append(opened.run(inputs).logits)
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(logits[2], logits[0])


MEMORY = """
import ctypes
import sys
from pathlib import Path

import numpy as np
import torch

from export.network import NetworkBuilder, Readout, TokenEncoding
from export.operators import (
    Affine, IntegerAffine, IntegerLayerNorm, IntegerLeakyIntegrateAndFire, IntegerSpikeAttention, TokenSum
)
from hardware import open_runner

torch.set_num_threads(1)
rng = np.random.default_rng(0)


def network(blocks, width):
    builder = NetworkBuilder("input", 1000)

    def layer(name, out, sources):
        weight = rng.integers(-128, 128, (out, builder.widths[sources[0]]), dtype=np.int8)
        last = builder.add(name + "_affine", IntegerAffine(weight=weight, bias=None, unit=np.ones(out)), sources)
        norm = IntegerLayerNorm(
            weight=np.full(out, 1 << 20), bias=np.zeros(out, np.int64), groups=1, integer_eps=np.array([width]),
            shift=34, unit=np.ones(out),
        )
        return neuron(name, out, builder.add(name + "_norm", norm, last))

    def neuron(name, features, source):
        constants = {key: np.zeros(features, np.int64) for key in ("bias_mantissa", "bias_exponent")}
        constants |= {"threshold": np.full(features, 40), "decay": np.full(features, 400), "unit": np.ones(features)}
        cells = IntegerLeakyIntegrateAndFire(reset="subtract", fire_on_equal=True, **constants)
        return builder.add(name + "_neuron", cells, source)

    stream = [layer("embedding", width, ["input"])]
    for block in range(blocks):
        name = f"block{block:02}_"
        qkv = layer(name + "qkv", 3 * width, stream[-2:])
        attention = IntegerSpikeAttention(num_heads=width // 64, head_size=64, scale=0.125, shift=0)
        attended = neuron(name + "attention", width, builder.add(name + "attention", attention, qkv))
        stream.append(layer(name + "projection", width, [attended]))
        hidden = layer(name + "intermediate", 4 * width, stream[-2:])
        stream.append(layer(name + "output", width, [hidden]))
    last = builder.add("sum", TokenSum(width), stream[-1])
    return builder.network(
        "output", last, token_encoding=TokenEncoding(1000, 0), time_steps=STEPS, max_tokens=128,
        readout=Readout(1.0, np.zeros(width, np.int64)),
    )


def measure(blocks, width):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    built = network(blocks, width)
    with open_runner(built, "integer", "integer", record_spikes=False, compiled=COMPILED) as runner:
        for _ in range(2):
            runner.run(rng.integers(0, 1000, (SENTENCES, TOKENS)))
        assert "int64" not in runner.methods.values()
    weights = sum(node.operator.weight.nbytes for node in built.nodes if isinstance(node.operator, Affine))
    return resident("VmHWM") - before, weights, STEPS * SENTENCES * TOKENS * 4 * width * 4


def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


STEPS, SENTENCES, TOKENS, COMPILED = 4, 2, 16, sys.argv[1] == "True"
measure(1, 768)  # libraries, and the code that oneDNN makes for these widths
ctypes.CDLL(None).malloc_trim(0)  # what that left free is not to be had for nothing
print(*measure(12, 768))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a peak of memory")
@pytest.mark.parametrize("compiled", [False, True])
def test_memory_stays_near_the_weights(compiled: bool) -> None:
    """At base size: below 1.5 times the int8 weights and a batch of activations, which are the widest layer's sums."""
    if compiled and load_kernel() is None:
        pytest.skip("there is no C compiler")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEMORY, str(compiled)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    grown, weights, activations = map(int, found.stdout.split())
    assert weights > 12 * 12 * 768**2
    assert weights < grown < 1.5 * weights + activations


def test_every_layer_of_a_quantized_model_is_proven(make_model, padded_batch) -> None:
    graph = quantize(to_nir(make_model(num_hidden_layers=2, embedding_norm=True)), padded_batch)
    with open_runner(graph, "integer", "integer") as opened:
        methods = opened.methods
    assert "int64" not in methods.values()
    assert {methods[name] for name in methods if name.startswith("block") and name.endswith("affine")} == {"int8"}


def test_what_a_graph_was_not_quantized_for_is_refused(tiny_model, make_model, padded_batch) -> None:
    ids, mask = padded_batch
    graph = quantize(to_nir(make_model(position_embedding_type="none")), (ids, mask), max_tokens=6)
    with open_runner(graph, "integer", "integer") as opened, pytest.raises(RunnerError, match=r"7 tokens.*max-tokens"):
        opened.run(np.ones((1, 7), np.int64))
    with pytest.raises(RunnerError, match="float graph; quantize it first"):
        open_runner(to_nir(tiny_model), "integer", "integer")
    for runner in ("integer", "reference"):
        with pytest.raises(RunnerError, match="at precision 'integer', not 'float64'"):
            open_runner(graph, runner, "float64")
    with pytest.raises(GraphError, match="integer graph already"):
        quantize(graph, (ids, mask))


@pytest.mark.parametrize(
    ("node", "key", "value", "limit"),
    [
        ("block00_qkv_neuron", "threshold", 1 << 17, "between 0 and 131071"),
        ("block00_qkv_neuron", "decay", 4096, "between 0 and 4095"),
        ("block00_qkv_neuron", "bias_mantissa", 4096, "between -4096 and 4095"),
        ("block00_qkv_neuron", "bias_exponent", 8, "between 0 and 7"),
        ("block00_qkv_norm", "weight", 1 << 24, "between -16777215 and 16777215"),
        ("block00_qkv_norm", "integer_eps", 0, "between 1 and"),
    ],
)
def test_what_the_chip_does_not_hold_is_refused_by_name(tiny_model, padded_batch, node, key, value, limit) -> None:
    graph = quantize(to_nir(tiny_model), padded_batch)
    graph.nodes[node].metadata[key] = np.full_like(graph.nodes[node].metadata[key], value)
    with pytest.raises(ChipLimitError, match=rf"{node}: {key}\[0\] is {value}; it must lie {limit}"):
        parse_graph(graph)


def test_a_weight_the_chip_does_not_hold_is_refused_by_name(tiny_model, padded_batch) -> None:
    graph = quantize(to_nir(tiny_model), padded_batch)
    node = graph.nodes["block00_qkv_affine"]
    node.weight = node.weight.astype(np.int16)
    node.weight[2, 3] = 128
    with pytest.raises(ChipLimitError, match=r"block00_qkv_affine: weight\[2, 3\] is 128.*between -128 and 127.*mixed"):
        parse_graph(graph)


def test_float_and_integer_nodes_do_not_mix(tiny_model, padded_batch) -> None:
    graph, other = quantize(to_nir(tiny_model), padded_batch), to_nir(tiny_model)
    graph.nodes["block00_qkv_norm"] = other.nodes["block00_qkv_norm"]
    with pytest.raises(GraphError, match="block00_qkv_norm: layer_norm is a float operator in an integer graph"):
        parse_graph(graph)

"""The promise of `quantize`: no reachable sum wraps, what it breaks it repairs, what does not fit it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from export import ChipLimitError, build_graph, parse_graph, quantize, quantize_with_report, to_nir
from export.errors import UnsupportedOperatorError
from export.loihi_numbers import ACTIVATION_MAX
from export.network import NetworkBuilder
from export.operators import (
    Affine,
    IntegerAffine,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    LeakyIntegrateAndFire,
    TokenMean,
)
from export.passes.intervals import reachable_wraps, value_intervals
from hardware import run
from spikebert.errors import ConfigurationError


def _neuron(features: int, **changes) -> LeakyIntegrateAndFire:
    one = np.ones(features)
    return LeakyIntegrateAndFire(
        **{"beta": 0.9 * one, "tau": 2 * one, "threshold": one, "reset": "zero", "decay_input": False, **changes}
    )


def _two_layers(weight: np.ndarray, bias: np.ndarray | None = None, **changes):
    """Return spikes -> affine -> neurons -> affine, and spikes to calibrate on."""
    rng = np.random.default_rng(0)
    builder = NetworkBuilder("input", weight.shape[1])
    builder.add("a_affine", Affine(weight, bias), "input")
    builder.add("b_neuron", _neuron(len(weight), **changes), "a_affine")
    builder.add("c_head", Affine(rng.normal(size=(2, len(weight)))), "b_neuron")
    spikes = (rng.random((6, 8, 4, weight.shape[1])) < 0.3).astype(float)
    return builder.network("output", "c_head", time_steps=6), spikes


def _operators(graph) -> dict:
    return {node.name: node.operator for node in parse_graph(graph).nodes}


def test_folded_layers_become_stock_neurons(make_model) -> None:
    weight, bias = np.random.default_rng(1).normal(size=(30, 40)) / 5, np.random.default_rng(2).normal(size=30) / 20
    network, spikes = _two_layers(weight, bias)
    found = _operators(quantize(network, spikes))
    assert found["b_neuron"].is_stock_lif
    assert found["a_affine"].bias is None  # the neuron's own registers hold it
    unit = found["a_affine"].unit[0]
    np.testing.assert_allclose(found["a_affine"].weight * unit, weight, atol=unit * 0.51)
    np.testing.assert_allclose(found["b_neuron"].bias * unit / 64, bias, atol=unit / 64)
    np.testing.assert_allclose(found["b_neuron"].threshold * unit, 1, atol=unit)
    assert set(found["b_neuron"].decay) == {410}
    spikes_only = {"a_affine", "b_neuron"}
    trace_float = run(build_graph(network, np.float64), spikes)
    trace = run(quantize(network, spikes), spikes, runner="integer", precision="integer")
    different = np.mean(trace.spikes["b_neuron"] != trace_float.spikes["b_neuron"])
    assert 0 < trace.firing_rate("b_neuron") < 1
    assert different < 0.02
    assert spikes_only < set(found)


def test_per_channel_gives_every_row_all_8_bits() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 40)) * np.logspace(-2, 0, 8)[:, None]
    network, spikes = _two_layers(weight)
    tensor, channel = (
        _operators(quantize(network, spikes, scale=scale, clip=False, repair=False))
        for scale in ("per-tensor", "per-channel")
    )
    assert np.abs(tensor["a_affine"].weight[0]).max() < 8
    assert set(np.abs(channel["a_affine"].weight).max(1)) == {127}
    assert tensor["b_neuron"].is_stock_lif
    assert len(set(channel["b_neuron"].threshold)) == 8
    np.testing.assert_allclose(channel["b_neuron"].threshold * channel["a_affine"].unit, 1, rtol=0.01)


@pytest.mark.lava
@pytest.mark.parametrize("rounding", ["nearest", "floor-even"])
def test_stock_dense_keeps_the_weights(rounding: str) -> None:
    from hardware.runners.lava.compatibility import import_lava

    import_lava()
    from lava.utils.weightutils import SignMode, clip_weights, truncate_weights

    weight = np.random.default_rng(1).normal(size=(30, 40)) / 5
    network, spikes = _two_layers(weight)
    found = _operators(quantize(network, spikes, rounding=rounding, clip=False))["a_affine"]
    stock = truncate_weights(clip_weights(2 * found.weight.astype(np.int32), SignMode.MIXED, 8), SignMode.MIXED, 8)
    np.testing.assert_array_equal(stock >> 1, found.weight)
    if rounding == "floor-even":  # what stock Dense makes of weights with one more bit
        finer = np.rint(2 * weight / found.unit[:, None])
        stock = truncate_weights(clip_weights(finer, SignMode.MIXED, 8), SignMode.MIXED, 8)
        np.testing.assert_array_equal(stock >> 1, found.weight)


def test_weights_of_one_sign_may_use_8_bits_of_magnitude() -> None:
    weight = np.abs(np.random.default_rng(1).normal(size=(30, 40))) / 20
    for signed, mode, kind in ((weight, "excitatory", np.uint8), (-weight, "inhibitory", np.int16)):
        network, spikes = _two_layers(signed, np.full(30, 0.0 if mode == "excitatory" else 2.0))
        found = _operators(quantize(network, spikes, sign_mode="auto", clip=False))["a_affine"]
        assert (found.sign_mode, found.weight.dtype, np.abs(found.weight.astype(int)).max()) == (mode, kind, 255)


def test_scales_are_powers_of_two_where_asked() -> None:
    network, spikes = _two_layers(np.random.default_rng(1).normal(size=(30, 40)))
    for scale in ("per-tensor", "per-channel"):
        unit = _operators(quantize(network, spikes, power_of_two=True, scale=scale))["a_affine"].unit
        np.testing.assert_array_equal(np.log2(unit), np.rint(np.log2(unit)))


@pytest.mark.parametrize(("factor", "found", "direction"), [(1, "silent", -1), (-1, "saturated", 1)])
def test_layers_that_rounding_breaks_are_named_and_repaired(factor: int, found: str, direction: int) -> None:
    # a weight that is never used takes the scale; most others are just below half a step and vanish, or just above it
    step, rng = 2.0 / 127, np.random.default_rng(3)
    most, few = (0.44, 2.0) if factor > 0 else (0.55, -1.0)
    weight = (
        np.where(np.arange(400) < 360, most, few) * step * np.ones((20, 1)) + rng.normal(size=(20, 400)) * step / 99
    )
    weight[:, 0] = 2.0
    network, spikes = _two_layers(weight, beta=np.full(20, 0.5), threshold=np.full(20, 1.7))
    spikes[..., 0] = 0  # the weight that takes the scale is never used
    options = {"clip": False}
    broken = quantize_with_report(network, spikes, repair=False, **options)[1].layers[0]
    assert broken.found == found
    assert np.sign(broken.integer_rate - broken.float_rate) == direction
    graph, report = quantize_with_report(network, spikes, **options)
    (layer,) = report.repaired
    assert (layer.node, layer.found) == ("b_neuron", found)
    assert np.sign(layer.threshold_factor - 1) == direction
    assert abs(layer.integer_rate - layer.float_rate) < abs(broken.integer_rate - broken.float_rate) / 2
    trace = run(graph, spikes, runner="integer", precision="integer")
    assert trace.firing_rate("b_neuron") == pytest.approx(layer.integer_rate)
    assert json.loads(parse_graph(graph).metadata["quantization"])["layers"][0]["found"] == found


def test_no_sentence_can_wrap_a_current(make_model, padded_batch) -> None:
    for configuration in ({}, {"neuron": "loihi"}, {"embedding_norm": True}, {"attention_scale": 1.0}):
        graph = quantize(to_nir(make_model(intermediate_size=512, **configuration)), padded_batch)
        network = parse_graph(graph)
        intervals = value_intervals(network)
        assert reachable_wraps(network, intervals) == []
        assert set(intervals) >= {node.name for node in network.nodes}


def test_intervals_hold_what_flows_and_are_reached() -> None:
    weight = np.random.default_rng(1).normal(size=(30, 40))
    network, spikes = _two_layers(weight)
    graph = parse_graph(quantize(network, spikes))
    interval = value_intervals(graph)["a_affine"]
    whole = next(n.operator for n in graph.nodes if n.name == "a_affine").weight.astype(int)
    signs = np.concatenate([np.sign(whole), -np.sign(whole)])  # the inputs that drive each row to its ends
    sums = signs @ whole.T
    assert interval.low[0] == sums.min(0)[0] == -interval.high[0]
    assert (sums >= interval.low).all()
    assert (sums <= interval.high).all()


def test_scales_grow_where_a_sum_would_wrap() -> None:
    weight = np.random.default_rng(1).choice([-1.0, 1.0], (3, 5000)) * 0.01
    network, spikes = _two_layers(weight)
    graph, report = quantize_with_report(network, spikes)
    found = _operators(graph)
    largest = np.abs(found["a_affine"].weight.astype(int)).sum(1).max()
    assert largest <= ACTIVATION_MAX < 5000 * 127
    assert report.weights[0].largest < 127


def test_a_long_sentence_costs_attention_its_fraction_bits(make_model, padded_batch) -> None:
    shifts = []
    for tokens in (6, 4000):
        graph = quantize(to_nir(make_model(position_embedding_type="none")), padded_batch, max_tokens=tokens)
        shifts.append(_operators(graph)["block00_attention"].shift)
        assert parse_graph(graph).max_tokens == tokens
    assert shifts[0] > shifts[1] >= 0
    with pytest.raises(ChipLimitError, match=r"block00_attention: sums over 100000 tokens .*max_tokens"):
        quantize(to_nir(make_model(position_embedding_type="none")), padded_batch, max_tokens=100_000)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"beta": np.full(3, 1e-5)}, "b_neuron: keeps 1e-05 .* at least 1/4096"),
        ({"threshold": np.full(3, 1e9)}, "a_affine: every weight would become 0"),
    ],
)
def test_what_the_chip_cannot_hold_is_refused_by_name(changes: dict, complaint: str) -> None:
    network, spikes = _two_layers(np.ones((3, 4)), **changes)
    with pytest.raises(ChipLimitError, match=complaint):
        quantize(network, spikes)


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_neurons_behind_a_layer_norm_may_fire_at_nothing_and_not_below(threshold: float) -> None:
    rng = np.random.default_rng(0)
    builder = NetworkBuilder("input", 4)
    builder.add(
        "a_norm", LayerNorm(np.ones(6), np.zeros(6)), builder.add("affine", Affine(rng.normal(size=(6, 4))), "input")
    )
    builder.add("b_neuron", _neuron(6, threshold=np.full(6, threshold)), "a_norm")
    network = builder.network(
        "output", builder.add("c_head", Affine(rng.normal(size=(2, 6))), "b_neuron"), time_steps=3
    )
    spikes = (rng.random((3, 8, 2, 4)) < 0.5).astype(float)
    if threshold < 0:
        with pytest.raises(ChipLimitError, match="b_neuron: a threshold is -1; the chip holds none below 0"):
            quantize(network, spikes)
        return
    graph, report = quantize_with_report(network, spikes)
    assert not _operators(graph)["b_neuron"].threshold.any()
    assert report.layers[0].agreement > 0.99


def test_what_has_no_whole_numbers_is_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    spikes = (rng.random((2, 3, 4, 5)) < 0.5).astype(float)

    def graph(*more) -> NetworkBuilder:
        builder = NetworkBuilder("input", 5)
        last = builder.add("a_mean", TokenMean(5), "input")
        for name, operator in more:
            last = builder.add(name, operator, last)
        return builder.network("output", last, time_steps=2)

    biased = Affine(rng.normal(size=(5, 5)), rng.normal(size=5))
    with pytest.raises(UnsupportedOperatorError, match="b_affine: has a bias behind a sum over tokens"):
        quantize(graph(("b_affine", biased), ("c_affine", biased)), spikes)
    with pytest.raises(UnsupportedOperatorError, match="b_norm: a layer norm behind a sum over tokens"):
        quantize(graph(("b_norm", LayerNorm(np.ones(5), np.zeros(5)))), spikes)
    assert quantize(graph(("b_affine", biased)), spikes).nodes["output"].metadata["bias"].any()


@pytest.mark.parametrize(
    ("calibration", "options", "complaint"),
    [
        ([[1, 2]], {"scale": "per-row"}, "scale is 'per-row'"),
        ([[1, 2]], {"max_tokens": 0}, "max_tokens is 0"),
        ([], {}, "each sentence|a token in each sentence"),
        ([[1], []], {}, "a token in each sentence"),
        ("words", {}, "cannot be read as sentences"),
        (np.zeros((2, 1, 3, 4)), {}, "takes values, or the reverse"),
    ],
)
def test_bad_use_is_refused(tiny_model, calibration, options, complaint) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        quantize(to_nir(tiny_model), calibration, **options)


def test_logits_are_those_of_the_float_graph_but_for_rounding(make_model, padded_batch) -> None:
    ids, mask = padded_batch
    model = make_model(embedding_norm=True, hidden_size=32, intermediate_size=64, num_attention_heads=2)
    graph = to_nir(model, "float64")
    expected = run(graph, ids, mask)
    found = run(quantize(graph, padded_batch), ids, mask, runner="integer", precision="integer")
    for name, spikes in found.spikes.items():
        assert np.mean(spikes != expected.spikes[name]) < 0.12, name
    assert np.corrcoef(found.logits.ravel(), expected.logits.ravel())[0, 1] > 0.95
    kinds = {type(node.operator) for node in parse_graph(quantize(graph, padded_batch)).nodes}
    assert {IntegerAffine, IntegerLeakyIntegrateAndFire} < kinds

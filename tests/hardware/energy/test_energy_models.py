"""Energy models: the paper's own numbers, small cases worked by hand, and SpikingJelly's reading of Lemaire et al."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from export import parse_graph, to_nir
from export.network import Network, NetworkBuilder
from export.operators import Affine, Heaviside, LeakyIntegrateAndFire
from export.token_encoding import TokenEncoding
from hardware import run
from hardware.energy import (
    EnergyModelError,
    OperationCounts,
    Price,
    PriceTable,
    count_operations,
    energy_model,
    energy_models,
    estimate_energy,
    load_energy_model,
    register_energy_model,
)
from hardware.energy.baselines import BASELINES
from hardware.energy.comparison import compare_energy
from hardware.energy.counts import NodeOperations, Tallies
from hardware.energy.models import registry
from hardware.energy.models.loihi1 import LOIHI1
from hardware.energy.models.memory import MEMORY, access_picojoules
from hardware.energy.models.paper import PAPER, dense_energy_mj
from hardware.loihi import place
from hardware.reports.energy_report import explanations, mean_field_table, timing_table
from hardware.trace import Trace

MODELS = (
    "paper",
    "horowitz-fp32",
    "horowitz-fp16",
    "horowitz-int8",
    "horowitz-int8-int32",
    "memory",
    "memory-int8",
    "loihi1",
)


def neurons(features: int, beta: float = 0.5) -> LeakyIntegrateAndFire:
    return LeakyIntegrateAndFire(np.full(features, beta), np.full(features, 2.0), np.ones(features), "zero")


def token_network() -> Network:
    """Two words of 3 numbers -> step -> affine 3 -> 2 with bias -> neurons; no positions."""
    builder = NetworkBuilder("input", 2)
    builder.add("embedding", Affine(np.ones((3, 2))), "input")
    builder.add("first", Heaviside(np.zeros(3)), "embedding")
    builder.add("affine", Affine(np.ones((2, 3)), np.ones(2)), "first")
    builder.add("second", neurons(2), "affine")
    return builder.network("output", "second", token_encoding=TokenEncoding(2, 0))


def token_counts(sentences: int = 1) -> OperationCounts:
    """Count two steps over one token: four first spikes, one second spike, for each of equal sentences."""
    first = np.array([[[[1, 1, 0]]], [[[1, 0, 1]]]], np.uint8).repeat(sentences, axis=1)
    second = np.array([[[[0, 1]]], [[[0, 0]]]], np.uint8).repeat(sentences, axis=1)
    mask = np.ones((sentences, 1), bool)
    return count_operations(
        Trace({"first": first, "second": second}, np.zeros((sentences, 1, 2)), mask), token_network()
    )


@pytest.fixture
def counts(make_model: Callable[..., Any], padded_batch: tuple[np.ndarray, np.ndarray]) -> OperationCounts:
    graph = to_nir(make_model(num_hidden_layers=2))
    return count_operations(run(graph, *padded_batch), graph)


# The paper


def test_eq_17_gives_the_papers_own_numbers() -> None:
    # Table 2 prints FLOPs to two decimals: 22.23 G x 4.6 pJ = 102.258 mJ beside a printed 102.24, that of 22.226 G.
    assert dense_energy_mj(22.23e9) == pytest.approx(102.258)
    assert dense_energy_mj(22.226e9) == pytest.approx(102.24, abs=0.005)
    assert dense_energy_mj(7.60e9) == pytest.approx(34.98, abs=0.03)  # DistilBERT of Table 5


def test_paper_model_by_hand() -> None:
    # One token. Embedding: 3 numbers gathered, once: 3 x 4.6 = 13.8 pJ. Affine: T = 2, rate 4 of 6, FLOPs 6: 8 SOPs, so
    # 8 x 0.9 = 7.2 pJ. The bias, the neurons and the step in front are free.
    found = estimate_energy(token_counts(), model="paper")
    assert found.by_kind == pytest.approx({"embedding": 13.8e-9, "synaptic operations": 7.2e-9})
    assert found.by_node == pytest.approx({"embedding": 13.8e-9, "affine": 7.2e-9})
    assert found.energy_mj == pytest.approx(21.0e-9)
    # As a product with a one-hot vector of 2 words the embedding would be 2 x 3 MACs: 27.6 pJ.
    assert found.alternatives_mj["embedding_one_hot"] == pytest.approx(34.8e-9)
    assert {"addition", "membrane_update", "comparison", "weight_read"} <= set(found.unpriced)
    assert not {"ac_binary", "embedding_read"} & set(found.unpriced)
    assert not found.includes_memory
    assert "estimate, not a measurement" in found.basis
    assert "fp32" in found.precision


def test_both_readings_of_gamma_stand_beside_each_other(counts: OperationCounts) -> None:
    found = estimate_energy(counts, model="paper")
    spiking = [node for node in counts.nodes.values() if node.spike_driven]
    gathered = counts.totals["embedding_read"] * 4.6

    def expected(gamma: str) -> float:
        return (0.9 * sum(node.mean_field_operations(gamma) for node in spiking) + gathered) / 1e9 / 3

    assert found.energy_mj == pytest.approx(expected("mean_value"))
    assert found.alternatives_mj["gamma_nonzero_fraction"] == pytest.approx(expected("nonzero_fraction"))
    assert found.alternatives_mj["gamma_nonzero_fraction"] < found.energy_mj  # there are integers above 1


def test_paper_model_charges_a_network_without_spikes_by_eq_17() -> None:
    node = NodeOperations(
        "layer",
        "affine",
        "synapses",
        "analog",
        "body",
        10,
        10,
        counts=Tallies({"mac": 90, "addition": 5, "dense_mac": 90}),
    )
    dense = OperationCounts({"layer": node}, 1, 1, 1, 0, 1, 0)
    assert estimate_energy(dense, model="paper").energy_mj == pytest.approx(90 * 4.6e-9)


def test_paper_settings_are_checked() -> None:
    with pytest.raises(EnergyModelError, match="paper: gamma is 'mode'"):
        replace(PAPER, gamma="mode")
    with pytest.raises(EnergyModelError, match="paper: embedding is 'free'"):
        replace(PAPER, embedding="free")


# Horowitz


@pytest.mark.parametrize(
    ("name", "mac", "accumulate"),
    [
        ("horowitz-fp32", 4.6, 0.9),
        ("horowitz-fp16", 1.5, 0.4),
        ("horowitz-int8", 0.23, 0.03),
        ("horowitz-int8-int32", 0.3, 0.1),
    ],
)
def test_horowitz_by_precision(name: str, mac: float, accumulate: float) -> None:
    model = energy_model(name)
    assert isinstance(model, PriceTable)
    found = model.picojoules({"mac": 1, "ac_binary": 1, "ac_graded": 1, "ac_graded_additions": 3})
    assert found == pytest.approx({"mac": mac, "ac_binary": accumulate, "ac_graded_additions": 3 * accumulate})
    found = replace(model, graded="multi_bit").picojoules({"ac_graded": 1, "ac_graded_additions": 3})
    assert found == pytest.approx({"ac_graded": mac})
    assert all(price.source for price in model.prices.values())


def test_horowitz_by_hand() -> None:
    # 8 accumulates, 4 biases, 2 x 2 updates with leak (an addition and a multiplication), 4 + 3 comparisons (the step
    # in front compares once), one reset, at 0.9 and 3.7 pJ.
    found = estimate_energy(token_counts(), model="horowitz-fp32")
    expected = {
        "ac_binary": 8 * 0.9,
        "addition": 4 * 0.9,
        "membrane_update": 4 * 0.9,
        "membrane_leak": 4 * 3.7,
        "comparison": 7 * 0.9,
        "reset": 0.9,
    }
    assert found.by_kind == pytest.approx({kind: picojoules / 1e9 for kind, picojoules in expected.items()})
    assert found.energy_mj == pytest.approx(sum(expected.values()) / 1e9)
    assert {"weight_read", "state_read", "embedding_read"} <= set(found.unpriced)


# All models


def test_names_are_those_promised() -> None:
    assert tuple(energy_models()) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_every_estimate_adds_up_and_says_what_it_is(counts: OperationCounts, name: str) -> None:
    found = estimate_energy(counts, model=name)
    static = found.timing.static_mj if found.timing else 0.0
    assert sum(found.by_kind.values()) == pytest.approx(found.energy_mj)
    assert sum(found.by_node.values()) + static == pytest.approx(found.energy_mj)
    assert 0 < found.energy_mj < math.inf
    assert found.total_energy_mj == pytest.approx(3 * found.energy_mj)
    assert (found.real_tokens, found.padding_tokens) == (11, 7)
    # the paper's formula charges padding nothing but its gathered embedding, for masked tokens do not spike
    assert found.padding_mj > 0
    if name == "paper":
        assert found.padding_mj == pytest.approx(counts.padding_totals["embedding_read"] * 4.6e-9 / 3)
    text = json.dumps(found.to_dict())
    for value in (found.model, found.precision, "estimate, not a measurement"):
        assert value in text
    assert json.loads(text)["tokens"] == {"real": 11, "padding": 7}
    model = energy_models()[name]
    charged = {kind for node in counts.nodes.values() for kind in node.real if kind in model.priced(node)}
    assert found.includes_memory == ("weight_read" in charged)
    assert set(found.unpriced).isdisjoint({"dense_mac", "input_element", "input_event", "input_value"})


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_over_equal_sentences_is_one_of_them(name: str) -> None:
    one, many = (estimate_energy(token_counts(sentences), model=name) for sentences in (1, 4))
    assert many.energy_mj == pytest.approx(one.energy_mj)
    assert many.by_node == pytest.approx(one.by_node)


def test_other_order_of_attention_stands_beside(counts: OperationCounts) -> None:
    found = estimate_energy(counts, model="horowitz-fp16")
    other = estimate_energy(counts.with_attention_order("kv_first"), model="horowitz-fp16")
    assert found.alternatives_mj["attention_kv_first"] == pytest.approx(other.energy_mj)
    assert other.alternatives_mj["attention_qk_first"] == pytest.approx(found.energy_mj)
    assert other.energy_mj != found.energy_mj
    assert not [name for name in estimate_energy(counts, model="loihi1").alternatives_mj if "attention" in name]


def test_a_trace_needs_its_graph(tiny_model: Any, padded_batch: Any) -> None:
    graph = to_nir(tiny_model)
    trace = run(graph, *padded_batch)
    direct = estimate_energy(trace, graph, model="horowitz-int8")
    assert direct == estimate_energy(count_operations(trace, graph), model="horowitz-int8")
    with pytest.raises(EnergyModelError, match="a trace needs its graph"):
        estimate_energy(trace)
    with pytest.raises(EnergyModelError, match=r"'horowitz-fp64' is not known; choose one of paper, horowitz-fp32"):
        estimate_energy(trace, graph, model="horowitz-fp64")


# Memory


def test_access_energy_by_size() -> None:
    assert [access_picojoules(kib * 1024) for kib in (0, 8, 32, 1024)] == pytest.approx([0, 10, 20, 100])
    assert access_picojoules(20 * 1024) == pytest.approx(15)  # half way from 8 to 32 KiB
    # Of 4 MiB a quarter is on the chip at 100 pJ, the rest in DRAM at 640: 25 + 480.
    assert access_picojoules(4 * 1024 * 1024) == pytest.approx(505)


def test_both_prices_of_sram_stand_in_the_estimate(counts: OperationCounts) -> None:
    """Lemaire et al.'s line is the least-squares line through Horowitz's three points, a KB being 1000 bytes."""
    slope, least = np.polyfit([8e3, 32e3, 1e6], [10, 20, 100], 1)
    for size in (0, 5000, 300_000):
        assert access_picojoules(size, fitted=True) == pytest.approx(least + slope * size, rel=0.01)
    found = estimate_energy(counts, model=MEMORY)
    fitted = estimate_energy(counts, model=replace(MEMORY, fitted_sram=True))
    assert found.alternatives_mj["sram_fitted_line"] == pytest.approx(fitted.energy_mj)
    assert fitted.alternatives_mj["sram_interpolated"] == pytest.approx(found.energy_mj)
    assert fitted.energy_mj != pytest.approx(found.energy_mj)


def test_memory_by_hand() -> None:
    found = estimate_energy(token_counts(), model="memory").by_kind

    def access(size: float) -> float:
        return 10 * size / 8192  # everything here is far below 8 KiB

    # weights: 4 first spikes x 2 synapses + 2 rows x 2 biases from the affine's 8 numbers; 3 of 6 embedding numbers
    assert found["weights"] == pytest.approx(((8 + 4) * access(8 * 4) + 3 * access(6 * 4)) / 1e9)
    # sums: read and written for 8 accumulates, 2 sums of 4 bytes
    assert found["sums"] == pytest.approx(2 * 8 * access(2 * 4) / 1e9)
    # states: 2 neurons x 2 steps read and written, one token
    assert found["states"] == pytest.approx(8 * access(2 * 4) / 1e9)
    # spikes: 5 sent, 4 received, through a queue of 1000 messages
    assert found["spikes"] == pytest.approx(9 * access(4000) / 1e9)
    # addresses: 8 synapses reached and 3 gathered numbers, an int32 addition each
    assert found["addressing"] == pytest.approx(11 * 0.1 / 1e9)
    # arithmetic: 8 accumulates, 4 biases, 4 updates (and leaks at 3.1), 7 comparisons, 1 reset
    assert found["operations"] == pytest.approx(((8 + 4 + 4 + 7 + 1) * 0.1 + 4 * 3.1) / 1e9)
    assert set(found) == {"weights", "sums", "states", "spikes", "addressing", "operations"}


def test_memory_model_sizes_are_checked() -> None:
    assert (
        estimate_energy(token_counts(), model=replace(MEMORY, weight_reuse=4)).by_kind["weights"]
        < (estimate_energy(token_counts(), model=MEMORY).by_kind["weights"])
    )
    with pytest.raises(EnergyModelError, match="weight_reuse 0 must be at least 1"):
        replace(MEMORY, weight_reuse=0)
    with pytest.raises(EnergyModelError, match="no price of an addition"):
        replace(MEMORY, prices={})


@pytest.mark.parametrize("seed", [0, 1])
def test_memory_model_agrees_with_spikingjellys_lemaire(seed: int) -> None:
    """Two layers of synapses and neurons on spikes, no norm and no attention: what Lemaire et al. cover."""
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter")
    layer, neuron = (pytest.importorskip(f"spikingjelly.activation_based.{name}") for name in ("layer", "neuron"))
    rng, steps, widths = np.random.default_rng(seed), 5, (40, 30, 20)
    layers: list[torch.nn.Module] = []
    builder = NetworkBuilder("input", widths[0])
    last = "input"
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        weight, bias = rng.normal(size=(fan_out, fan_in)), rng.normal(size=fan_out)
        linear = layer.Linear(fan_in, fan_out, step_mode="m").double()  # of torch's own it takes T for more neurons
        with torch.no_grad():
            linear.weight.copy_(torch.as_tensor(weight))
            linear.bias.copy_(torch.as_tensor(bias))
        layers += [linear, neuron.LIFNode(tau=2.0, v_reset=0.0, step_mode="m")]
        last = builder.add(f"affine{index}", Affine(weight, bias), last)
        lif = LeakyIntegrateAndFire(
            np.full(fan_out, 0.5), np.full(fan_out, 2.0), np.ones(fan_out), "zero", True, fire_on_equal=True
        )
        last = builder.add(f"neuron{index}", lif, last)
    network = builder.network("output", last)
    spikes = (rng.random((steps, 1, widths[0])) < 0.3).astype(np.uint8)
    theirs = counters.estimate_lemaire_energy(
        torch.nn.Sequential(*layers), torch.as_tensor(spikes, dtype=torch.float64)
    )
    trace = run(network, spikes[:, :, None, :].astype(float))
    trace.spikes["input"] = spikes[:, :, None, :]
    counts = count_operations(trace, network)
    ours = {kind: energy * 1e9 for kind, energy in estimate_energy(counts, model="memory").by_kind.items()}
    memory = theirs.breakdown_pj
    assert ours["weights"] == pytest.approx(memory["params_pj"])
    assert ours["sums"] + ours["states"] == pytest.approx(memory["potential_pj"])
    assert ours["spikes"] == pytest.approx(memory["inout_pj"])
    assert ours["addressing"] == pytest.approx(memory["addressing_pj"])
    # Lemaire et al. charge no comparison with the threshold, and nothing for I - U of an input that decays.
    updates = counts.totals["membrane_update"]
    assert ours["operations"] - 2 * updates * 0.1 == pytest.approx(memory["ops_pj"])


# Loihi


def test_loihi_by_hand() -> None:
    found = estimate_energy(token_counts(), model="loihi1")
    hops = 3.0 * 2.625 + 4.0 * 1.25
    expected = {
        "host: embedding read": 3 * 640.0,
        "host: spikes injected": 4 * (1.7 + hops),  # four first spikes to the one core that has the affine's neurons
        "synaptic operations": 8 * 23.6,
        "neuron updates, active": 1 * 81.0,
        "neuron updates, inactive": 3 * 52.0,  # 2 neurons x 2 steps, one of them fired; nobody reads its spike
        # 2 + 2 - 1 = 3 steps, each of (8 x 3.5 + 8.4 + 3 x 5.3) / 2 ns on one core and a barrier; one chip of 104.4 mW
        "static": 3 * (52.3 / 2 + 465) * 1e-9 * 104.4 * 1e9,
    }
    assert found.by_kind == pytest.approx({kind: picojoules / 1e9 for kind, picojoules in expected.items()})
    assert found.timing is not None
    assert found.timing.steps == 3
    assert found.timing.seconds == pytest.approx(3 * 491.15e-9)
    assert found.timing.sentences_per_second == pytest.approx(1 / (3 * 491.15e-9))
    assert found.timing.pipelined_sentences_per_second == pytest.approx(1 / (2 * 491.15e-9))  # two steps apart
    assert found.timing.energy_delay_product == pytest.approx(found.energy_mj * 1e-3 * 3 * 491.15e-9)
    assert found.includes_memory


def test_loihi_names_what_it_has_no_place_for(counts: OperationCounts) -> None:
    found = estimate_energy(counts, model="loihi1")
    assert {"mac", "special", "attention_and", "attention_count", "attention_add"} <= set(found.unpriced)
    assert {"ac_binary", "ac_graded", "membrane_update", "residual_addition"}.isdisjoint(found.unpriced)
    synaptic = counts.totals["ac_binary"] + counts.totals["ac_graded_additions"]  # an integer k is k spikes
    assert found.by_kind["synaptic operations"] == pytest.approx(synaptic * 23.6e-9 / 3)
    assert "assumed" in LOIHI1.basis


def test_loihi_sends_a_spike_to_every_core_that_reads_it() -> None:
    node = replace(token_counts().nodes["second"], readers=(3072, 768))  # three cores and one
    costs = LOIHI1.cost(node, node.real, token_counts())
    assert costs["spike traffic"] == pytest.approx(1 * 4 * (1.7 + 3.0 * 2.625 + 4.0 * 1.25))


def dense_network(width: int, fan_out: int) -> Network:
    """Spikes -> affine without bias -> neurons that never fire."""
    builder = NetworkBuilder("input", width)
    builder.add("affine", Affine(np.zeros((fan_out, width))), "input")
    builder.add("neurons", neurons(fan_out), "affine")
    return builder.network("output", "neurons", input_shape=(width,))


def dense_trace(network: Network, spikes: int, sentences: int = 2) -> Trace:
    """Two steps with the first `spikes` inputs on at each."""
    given = np.zeros((2, sentences, 1, network.input_features), np.uint8)
    given[..., :spikes] = 1
    silent = np.zeros((2, sentences, 1, network.nodes[-1].operator.out_features), np.uint8)
    mask = np.ones((sentences, 1), bool)
    return Trace({"input": given, "neurons": silent}, np.zeros((sentences, 1, 0)), mask)


def test_loihi_placed_by_hand() -> None:
    # 1,500 lists of 100 weights take 1,500 x (2 x 10 + 100 x 8) bits and more: 150 KB, so two cores of 50 neurons each,
    # where the best case knows of 100 neurons only and has one. Each holds half of the work of a step:
    # 40 spikes x 50 synapses, and 50 neurons that do not fire.
    network = dense_network(1500, 100)
    trace = dense_trace(network, 40)
    found = estimate_energy(trace, network, model="loihi1")
    assert found.timing is not None
    assert (found.timing.cores, found.timing.chips) == (2, 1)
    per_step = (40 * 50 * 3.5 + 50 * 5.3 + 465) * 1e-9
    assert found.timing.seconds_per_step == pytest.approx(per_step)
    assert found.timing.seconds == pytest.approx(2 * per_step)  # 2 + 1 - 1 steps
    assert found.by_kind["static"] == pytest.approx(2 * per_step * 104.4)
    best = estimate_energy(count_operations(trace, network), model="loihi1")
    assert best.timing is not None
    assert (best.timing.cores, best.timing.chips) == (1, 1)
    assert best.timing.seconds_per_step == pytest.approx((40 * 100 * 3.5 + 100 * 5.3 + 465) * 1e-9)
    assert best.timing.placement.startswith(
        "best case: 1 core on 1 chip, as few as its neurons fill, because nobody said"
    )
    assert found.timing.placement.startswith("placed: 2 cores on 1 chip; it breaks rules")  # of floats
    for estimate in (found, best):
        assert estimate.timing is not None
        assert estimate.timing.placement in estimate.timing.basis
        assert estimate.to_dict()["timing"]["cores"] == estimate.timing.cores


def test_loihi_takes_the_cores_and_chips_that_place_says(make_model: Callable[..., Any]) -> None:
    network = parse_graph(to_nir(make_model(num_hidden_layers=2)))
    ids = np.random.default_rng(0).integers(1, network.token_encoding.vocabulary, (2, 9))
    trace = run(network, ids)
    placed = place(network, "loihi1", 9, trace)
    found = estimate_energy(trace, network, model="loihi1")
    assert found.timing is not None
    assert (found.timing.cores, found.timing.chips) == (len(placed.cores), placed.chips)
    assert found.by_kind["static"] == pytest.approx(placed.chips * 104.4 * found.timing.seconds)
    for violation in placed.violations:
        assert f"{violation.rule} (" in found.timing.placement


@pytest.mark.parametrize("width", [48, 700])
def test_loihi_sends_spikes_to_the_cores_that_place_says(width: int) -> None:
    """Against the traffic that placement counts spike by spike, of a network whose spikes the host does not read."""
    rng = np.random.default_rng(0)
    builder = NetworkBuilder("input", 3)
    builder.add("embedding", Affine(rng.normal(size=(300, 3))), "input")
    builder.add("first", neurons(300), "embedding")
    builder.add("up", Affine(rng.normal(size=(width, 300))), "first")
    builder.add("middle", neurons(width), "up")
    builder.add("down", Affine(rng.normal(size=(40, width))), "middle")
    builder.add("last", neurons(40), "down")
    network = builder.network("output", "last", token_encoding=TokenEncoding(3, 0), time_steps=3)
    trace = run(network, rng.integers(0, 3, (2, 5)))
    traffic = place(network, "loihi1", 5, trace).traffic
    found = estimate_energy(trace, network, model="loihi1")
    hops = 1.7 + 3.0 * 2.625 + 4.0 * 1.25
    assert traffic is not None
    assert traffic.sent > 0 < traffic.from_host
    assert found.by_kind["host: spikes injected"] == pytest.approx(traffic.from_host * hops / 1e9)
    to_host = trace.spikes["last"].sum() / 2  # the output; placement counts spikes to cores only
    assert found.by_kind["spike traffic"] == pytest.approx((traffic.sent + to_host) * hops / 1e9)


def test_loihi_says_why_it_has_only_a_best_case() -> None:
    network = dense_network(5000, 1)  # 5,000 axons into one neuron
    found = estimate_energy(dense_trace(network, 1), network, model="loihi1")
    assert found.timing is not None
    assert found.timing.placement.startswith(
        "best case: 1 core on 1 chip, as few as its neurons fill, because 1 population of neurons fits no core "
        "(in_axons_per_core of neurons: 5,000, at most 4,096)"
    )


def test_loihi_is_placed_for_sentences_as_long_as_those_counted(make_model: Callable[..., Any]) -> None:
    network = parse_graph(to_nir(make_model()))
    counts = count_operations(run(network, np.array([[1, 2, 3]])), network)
    assert estimate_energy(counts, model=LOIHI1.for_network(network, 3)) == estimate_energy(counts, network, "loihi1")
    with pytest.raises(EnergyModelError, match=r"for sentences of up to 2 tokens, counted is one of 3; .*network, 3\)"):
        estimate_energy(counts, model=LOIHI1.for_network(network, 2))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "loihi1"])
def test_models_of_no_chip_price_every_network_alike(name: str) -> None:
    model = energy_model(name)
    assert model.for_network(token_network(), 1) is model


# Models from files

GOOD = {"name": "mine", "source": "a datasheet", "precision": "int4", "picojoules": {"ac_binary": 2, "mac": 5.5}}


def test_users_add_models_from_json_and_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({**GOOD, "picojoules": {"ac_binary": 2, "addition": {"value": 0.5, "source": "page 9"}}})
    )
    found = estimate_energy(token_counts(), model=path)
    assert (found.model, found.source, found.precision) == ("mine", "a datasheet", "int4")
    assert found.energy_mj == pytest.approx((8 * 2 + 4 * 0.5) / 1e9)
    assert estimate_energy(token_counts(), model=str(path)) == found
    assert load_energy_model(path).prices == {"ac_binary": Price(2.0, "a datasheet"), "addition": Price(0.5, "page 9")}
    toml = tmp_path / "mine.toml"
    toml.write_text('name="mine"\nsource="s"\nprecision="int4"\nincludes_memory=false\n[picojoules]\nmac=1.5\n')
    assert load_energy_model(toml).prices == {"mac": Price(1.5, "s")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name is None; expected str"),
        ({"name": ""}, "name is ''; expected str, not empty"),
        ({"includes_memory": "yes"}, "includes_memory is 'yes'; expected bool"),
        ({"pj": {}}, "'pj' means nothing; known are name, source"),
        ({"picojoules": {}}, "picojoules is {}; expected dict, not empty"),
        ({"picojoules": {"ac": 1}}, "'ac' is no kind of operation; known are ac_binary"),
        ({"picojoules": {"mac": "4.6"}}, "picojoules.mac is '4.6'; expected a number"),
        ({"picojoules": {"mac": True}}, "picojoules.mac is True; expected a number"),
        ({"picojoules": {"mac": {"value": 1, "unit": "nJ"}}}, "picojoules.mac is"),
        ({"picojoules": {"mac": -1}}, "mac costs -1.0 pJ"),
        ({"picojoules": {"mac": float("nan")}}, "mac costs nan pJ"),
        ({"picojoules": {"mac": 10**400}}, "picojoules.mac is beyond what a number can hold"),
        ({"graded": "both"}, "graded is 'both'; choose one of additions, multi_bit"),
    ],
)
def test_a_wrong_file_is_refused_and_says_why(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(GOOD))
    load_energy_model(path)
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(EnergyModelError) as caught:
        load_energy_model(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["name", "source", "precision", "picojoules"])
def test_a_file_without_its_source_or_precision_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({name: value for name, value in GOOD.items() if name != key}))
    with pytest.raises(EnergyModelError, match=rf"model\.json: has no '{key}'"):
        load_energy_model(path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(EnergyModelError, match=r"model\.json"):
        load_energy_model(path)
    with pytest.raises(EnergyModelError, match="cannot be read"):
        load_energy_model(tmp_path / "missing.json")


# Models from Python


@pytest.fixture
def registered_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"


@pytest.mark.usefixtures("registered_models")
def test_the_model_that_the_docs_add_works_by_its_name() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in code if "register_energy_model(" in block)
    trace = Trace(
        {
            "first": np.array([[[[1, 1, 0]]], [[[1, 0, 1]]]], np.uint8),
            "second": np.array([[[[0, 1]]], [[[0, 0]]]], np.uint8),
        },
        np.zeros((1, 1, 2)),
        np.ones((1, 1), bool),
    )
    told: dict[str, Any] = {"trace": trace, "graph": token_network(), "__name__": "__main__"}
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), told)
    # as of `test_horowitz_by_hand`, 8 accumulates and 4 updates: 8 x 11 and 4 x 52 pJ
    assert told["estimate"].by_kind == pytest.approx({"synapses": 88e-9, "neurons": 208e-9})
    assert told["estimate"].by_node == pytest.approx({"affine": 88e-9, "second": 208e-9})
    assert (told["estimate"].model, told["estimate"].source) == ("mine", "datasheet of my chip, page 7")
    assert {"addition", "comparison", "embedding_read"} <= set(told["estimate"].unpriced)
    assert list(energy_models()) == [*MODELS, "mine"]
    # whoever asks for a model by name knows it, and says where it has no figure
    found = compare_energy(token_counts(), BASELINES["bert-base-cased"], [1], "mine")
    assert found.network == told["estimate"]
    assert found.remark == "mine has no figure for dense multiply-accumulates"


@pytest.mark.usefixtures("registered_models")
def test_a_models_name_is_its_own() -> None:
    mine = PriceTable("mine", "a datasheet", "int4", prices={"mac": Price(1.0, "page 9")})
    register_energy_model(mine)
    register_energy_model(replace(mine))  # the same once more
    other = replace(mine, source="another datasheet")
    with pytest.raises(EnergyModelError, match=r"mine: a PriceTable is registered under this name \(a datasheet\)"):
        register_energy_model(other)
    assert energy_model("mine") == mine
    register_energy_model(other, replace=True)
    assert energy_model("mine") is other
    with pytest.raises(EnergyModelError, match="paper: a PaperModel is registered under this name"):
        register_energy_model(replace(mine, name="paper"))


@pytest.mark.parametrize("key", ["name", "source", "precision"])
def test_a_model_that_does_not_say_what_it_is_is_not_registered(key: str) -> None:
    with pytest.raises(EnergyModelError, match=f"has no {key}, which estimates say"):
        register_energy_model(replace(PAPER, **{"name": "mine", key: ""}))
    with pytest.raises(EnergyModelError, match="is no energy model; give an instance"):
        register_energy_model(type(PAPER))  # type: ignore[arg-type]
    assert tuple(energy_models()) == MODELS


# Tables of an estimate


def test_eq_18_stands_beside_the_exact_count(counts: OperationCounts) -> None:
    table = mean_field_table(counts)
    spiking = {name: node for name, node in counts.nodes.items() if node.spike_driven}
    assert [row[0] for row in table.rows] == list(spiking)
    for name, *_, by_events, events, by_mean, additions in table.rows:
        node, millions = spiking[name], 1e-6 / counts.sentences
        if node.operator == "affine":
            assert (by_events, by_mean) == (events, additions), "every input has the same fan-out"
            assert float(events) == pytest.approx(node.real["weight_read"] * millions, abs=5e-4)
        else:
            both = node.real["attention_count"] + node.real["attention_add"]
            assert float(events) == float(additions) == pytest.approx(both * millions, abs=5e-4)


def test_time_is_shown_where_a_model_has_it(counts: OperationCounts) -> None:
    paper, loihi = (estimate_energy(counts, model=name) for name in ("paper", "loihi1"))
    assert timing_table([paper]) is None
    table = timing_table([paper, loihi, loihi])
    assert table is not None
    shown = dict(table.rows)
    assert table.columns[1:] == ("loihi1",)
    assert shown["steps a sentence"] == f"{loihi.timing.steps:g}"
    seconds = float(shown["µs a sentence"].replace(",", "")) / 1e6
    assert 1 / seconds == pytest.approx(float(shown["sentences a second"].replace(",", "")), rel=0.01)
    energy = float(shown["mJ a sentence"])
    assert energy * 1e-3 * seconds * 1e9 == pytest.approx(
        float(shown["energy-delay product, nJ s"].replace(",", "")), rel=0.02
    )
    assert {"of these host, embedding read", "of these host, spikes injected"} <= set(shown)
    parts = [float(value) for title, value in shown.items() if title.startswith("of these ")]
    assert sum(parts) == pytest.approx(energy, rel=0.01)
    assert timing_table([paper, loihi], ["sst2", "sst2"]).columns[1:] == ("loihi1, sst2",)


def test_notes_are_as_wide_as_the_terminal_however_narrow_the_table(counts: OperationCounts) -> None:
    table = timing_table([estimate_energy(counts, model="loihi1")])
    assert table is not None
    console = Console(width=90, file=io.StringIO())
    console.print(table.to_rich())
    lines = console.file.getvalue().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("loihi1: "))
    said, *rest = lines[start:]
    assert max(len(line.rstrip()) for line in lines[:start]) < 60
    assert len(said.rstrip()) + len(rest[0].split()[0]) >= 89, "another word would have had room"
    assert " ".join(" ".join(lines[start:]).split()) == table.notes[0]


def test_what_a_model_leaves_out_at_some_nodes_only_is_said_apart() -> None:
    found = estimate_energy(token_counts(), model="loihi1")
    assert found.partly_unpriced == ("comparison",)
    assert found.unpriced["comparison"] == 3  # of the host, for the first spikes, once; the chip's own are priced
    assert not estimate_energy(token_counts(), model="horowitz-fp32").partly_unpriced
    said = explanations([compare_energy(token_counts(), BASELINES["bert-base-cased"], [1], "loihi1")])
    assert "loihi1: leaves out at some nodes, as those on the host: comparison" in said
    assert not [line for line in said if "has no figure for, and leaves out" in line and "comparison" in line]

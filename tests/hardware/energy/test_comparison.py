"""The promises of a comparison: both sides priced by one model, both precisions named, break-even where it is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from export import parse_graph, to_nir
from export.network import Network
from hardware import run
from hardware.energy import OperationCounts, PriceTable, count_operations, energy_model, estimate_energy
from hardware.energy.baselines import BASELINES, QuantizedTwin, TransformerBaseline
from hardware.energy.comparison import (
    break_even_rate,
    compare_energy,
    energy_by_component,
    firing_rate,
    scale_firing,
)
from hardware.energy.models import Price
from hardware.energy.models.memory import MEMORY_INT8
from hardware.errors import TraceMismatchError

STEPS = 3
LENGTHS = [5, 3]
SMALL = TransformerBaseline("small", "small", "bert", 1, 8, 2, 16, 20, "made up")


@pytest.fixture(scope="module")
def network(make_model: Callable[..., Any]) -> Network:
    return parse_graph(to_nir(make_model(num_hidden_layers=2, time_steps=STEPS)))


@pytest.fixture(scope="module")
def trace(network: Network) -> Any:
    ids = np.array([[3, 7, 1, 9, 4], [5, 2, 8, 0, 0]])
    return run(network, ids, ids > 0)


@pytest.fixture(scope="module")
def counts(network: Network, trace: Any) -> OperationCounts:
    return count_operations(trace, network)


def test_the_firing_rate_is_the_mean_over_real_tokens_only(counts: OperationCounts, trace: Any) -> None:
    spikes = sum(int(fired.sum()) for fired in trace.spikes.values())
    chances = sum(STEPS * sum(LENGTHS) * fired.shape[-1] for fired in trace.spikes.values())
    assert firing_rate(counts) == pytest.approx(spikes / chances)


def test_the_papers_ratio_is_eq_19_over_eq_17(counts: OperationCounts) -> None:
    found = compare_energy(counts, SMALL, LENGTHS, "paper")
    macs = sum(map(SMALL.macs, LENGTHS)) / len(LENGTHS)
    assert found.baseline_estimate is not None
    assert found.baseline_estimate.energy_mj == pytest.approx(4.6 * macs / 1e9)
    assert found.ratio == pytest.approx(estimate_energy(counts).energy_mj / (4.6 * macs / 1e9))
    assert found.precision == {"network": "fp32", "baseline": "fp32", "memory": False}


def test_whoever_needs_more_loses_and_it_is_said(counts: OperationCounts) -> None:
    tiny = TransformerBaseline("tiny", "tiny", "bert", 1, 2, 1, 2, 20, "made up")
    assert compare_energy(counts, tiny, LENGTHS, "horowitz-fp32").verdict == "LOSES"
    assert compare_energy(counts, BASELINES["bert-base-cased"], LENGTHS, "horowitz-fp32").verdict == "wins"


def test_narrow_activations_make_a_product_cheaper_by_their_share_of_the_multiplier(
    counts: OperationCounts, network: Network
) -> None:
    twin = QuantizedTwin(network, STEPS)  # 2 bits for 3 steps
    found = compare_energy(counts, twin, LENGTHS, "horowitz-int8").baseline_estimate
    whole = estimate_energy(twin.count(LENGTHS), model="horowitz-int8").energy_mj
    macs = sum(map(twin.macs, LENGTHS)) / len(LENGTHS)
    assert found is not None
    assert whole - found.energy_mj == pytest.approx(macs * 0.2 * (1 - 2 / 8) / 1e9)
    assert found.precision == "int8, 8-bit sums, 2-bit activations"


def test_memory_is_the_same_for_narrow_activations(counts: OperationCounts, network: Network) -> None:
    twin = QuantizedTwin(network, STEPS)
    found = compare_energy(counts, twin, LENGTHS, MEMORY_INT8).baseline_estimate
    whole = estimate_energy(twin.count(LENGTHS), model=MEMORY_INT8)
    assert found is not None
    assert {k: v for k, v in found.by_kind.items() if k != "operations"} == {
        k: v for k, v in whole.by_kind.items() if k != "operations"
    }
    assert found.by_kind["operations"] < whole.by_kind["operations"]


@pytest.mark.parametrize(
    ("model", "baseline", "said"),
    [("loihi1", "small", "no figure for dense"), ("paper", "quantized", "fp32 only")],
)
def test_no_ratio_is_made_up_where_a_model_has_no_figure(
    counts: OperationCounts, network: Network, model: str, baseline: str, said: str
) -> None:
    other = SMALL if baseline == "small" else QuantizedTwin(network, STEPS)
    found = compare_energy(counts, other, LENGTHS, model)
    assert (found.ratio, found.verdict, found.baseline_estimate) == (None, "–", None)
    assert said in found.remark
    assert found.to_dict()["break_even"] == "no comparison"


def test_a_users_model_without_a_price_for_macs_gives_no_ratio(counts: OperationCounts) -> None:
    spikes_only = PriceTable("mine", "me", "int4", prices={"ac_binary": Price(1.0, "me")})
    assert compare_energy(counts, SMALL, LENGTHS, spikes_only).ratio is None
    free = PriceTable("mine", "me", "int4", prices={"ac_binary": Price(1.0, "me"), "mac": Price(0.0, "me")})
    found = compare_energy(counts, SMALL, LENGTHS, free)
    assert (found.ratio, found.verdict) == (None, "–")
    assert "charges nothing" in found.remark


# ---------------------------------------------------------------------------------------------------------------------
# firing rates


def test_firing_as_measured_is_what_was_measured(counts: OperationCounts) -> None:
    assert scale_firing(counts, 1.0).to_dict() == counts.to_dict()


def test_what_spikes_cause_scales_and_what_is_dense_stays(counts: OperationCounts) -> None:
    before, after = counts.totals, scale_firing(counts, 2.0).totals
    for kind in ("ac_binary", "ac_graded_additions", "spike", "reset", "attention_and", "residual_addition"):
        assert after[kind] == 2 * before[kind] > 0, kind
    for kind in ("attention_count", "attention_add"):
        assert after[kind] == 4 * before[kind] > 0, kind
    for kind in ("mac", "addition", "membrane_update", "comparison", "state_read", "parameter_read", "dense_mac"):
        assert after[kind] == before[kind] > 0, kind
    dense = sum(n.real.get("weight_read", 0) for n in counts.nodes.values() if not n.spike_driven)
    assert after["weight_read"] - dense == 2 * (before["weight_read"] - dense) > 0


@pytest.mark.parametrize("model", ["paper", "horowitz-fp32", "memory-int8", "loihi1"])
def test_at_the_break_even_rate_both_need_the_same(counts: OperationCounts, model: str) -> None:
    halfway = [estimate_energy(scale_firing(counts, factor), model=model).energy_mj for factor in (0.2, 0.9)]
    target = sum(halfway) / 2
    rate = break_even_rate(counts, target, model)
    assert rate is not None
    assert 0 < rate < 1
    at_rate = estimate_energy(scale_firing(counts, rate / firing_rate(counts)), model=model).energy_mj
    assert at_rate == pytest.approx(target, rel=1e-2)  # counts are whole numbers, and few here


def test_break_even_at_both_ends(counts: OperationCounts) -> None:
    silent = estimate_energy(scale_firing(counts, 0.0), model="horowitz-fp32").energy_mj
    assert break_even_rate(counts, silent / 2, "horowitz-fp32") is None
    everywhere = estimate_energy(scale_firing(counts, 1 / firing_rate(counts)), model="horowitz-fp32").energy_mj
    assert break_even_rate(counts, 2 * everywhere, "horowitz-fp32") == math.inf


def test_a_silent_network_is_compared_but_has_no_break_even(network: Network, trace: Any) -> None:
    silent = count_operations(
        type(trace)({name: np.zeros_like(fired) for name, fired in trace.spikes.items()}, trace.logits, trace.mask),
        network,
    )
    found = compare_energy(silent, SMALL, LENGTHS, "horowitz-fp32")
    assert found.break_even == "nothing fires"
    assert found.to_dict()["break_even_rate"] is None
    with pytest.raises(TraceMismatchError, match="nothing fires"):
        break_even_rate(silent, 1.0, "horowitz-fp32")


# ---------------------------------------------------------------------------------------------------------------------
# components


@pytest.mark.parametrize("model", ["horowitz-fp32", "memory"])
def test_components_add_up_to_the_whole(counts: OperationCounts, network: Network, model: str) -> None:
    for each in (counts, QuantizedTwin(network, STEPS).count(LENGTHS), SMALL.count(LENGTHS)):
        estimate = estimate_energy(each, model=model)
        parts = energy_by_component(estimate, each)
        assert sum(parts.values()) == pytest.approx(estimate.energy_mj)
        assert all(part > 0 for name, part in parts.items() if name != "embedding"), parts


def test_static_energy_is_in_no_component(counts: OperationCounts) -> None:
    estimate = estimate_energy(counts, model=energy_model("loihi1"))
    assert estimate.timing is not None
    parts = energy_by_component(estimate, counts)
    assert sum(parts.values()) == pytest.approx(estimate.energy_mj - estimate.timing.static_mj)

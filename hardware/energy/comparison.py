"""Energy of a spiking network beside that of a baseline: a ratio for each energy model, and the rate that decides it.

Both sides are priced by the same model, from counts of the same kinds, for the same sentences at their real length. A
ratio never travels without both precisions and whether memory is in it. The break-even firing rate is where the ratio
is 1, all else of the network as it was counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hardware.energy.baselines import Baseline
from hardware.energy.counts import COMPONENTS, OperationCounts, Tallies, Tally
from hardware.energy.errors import EnergyModelError
from hardware.energy.estimate import EnergyEstimate, estimate_energy
from hardware.energy.models import EnergyModel, energy_model
from hardware.errors import TraceMismatchError

LINEAR_IN_FIRING = (
    "ac_binary",
    "ac_graded",
    "ac_graded_additions",
    "attention_and",
    "reset",
    "spike",
    "residual_addition",
    "input_event",
    "input_value",
)
QUADRATIC_IN_FIRING = ("attention_count", "attention_add")
"""Coincidences of two spikes; exact for counts of independent spikes, an estimate for additions."""

BISECTIONS = 20
"""Halvings of the interval of firing rates: it ends below a millionth."""


@dataclass(frozen=True)
class EnergyComparison:
    """One energy model's answer to "how much energy, compared with what".

    Attributes
    ----------
    network : EnergyEstimate
        Of the spiking network.
    baseline, baseline_title : str
        The other one.
    baseline_estimate : EnergyEstimate or None
        None where the model has no figure for it.
    break_even_rate : float or None
        Firing rate at which both need the same, as `break_even_rate` gives it; NaN where nothing fires.
    remark : str
        Why there is no estimate, or what limits the comparison; may be empty.
    """

    network: EnergyEstimate
    baseline: str
    baseline_title: str
    baseline_estimate: EnergyEstimate | None
    break_even_rate: float | None = None
    remark: str = ""

    @property
    def ratio(self) -> float | None:
        """Energy of the spiking network over that of the baseline: below 1 it wins."""
        if self.baseline_estimate is None:
            return None
        return self.network.energy_mj / self.baseline_estimate.energy_mj

    @property
    def precision(self) -> dict[str, Any]:
        """Both precisions, and whether memory is in the ratio."""
        other = self.baseline_estimate
        return {
            "network": self.network.precision,
            "baseline": other.precision if other else None,
            "memory": self.network.includes_memory,
        }

    @property
    def verdict(self) -> str:
        """``wins``, ``LOSES``, or a dash where there is no ratio."""
        if self.ratio is None:
            return "–"
        return "wins" if self.ratio < 1 else "LOSES"

    @property
    def break_even(self) -> str:
        """Below which firing rate the spiking network wins, in words."""
        if self.baseline_estimate is None:
            return "no comparison"
        if self.break_even_rate is None:
            return "loses at any firing rate"
        if math.isnan(self.break_even_rate):
            return "nothing fires"
        if math.isinf(self.break_even_rate):
            return "wins at any firing rate"
        return f"wins below {self.break_even_rate:.1%}"

    def to_dict(self) -> dict[str, Any]:
        """Return one flat row of JSON values, or of a CSV file."""
        other, rate = self.baseline_estimate, self.break_even_rate
        return {
            "energy_model": self.network.model,
            "network_mj": self.network.energy_mj,
            "padding_mj": self.network.padding_mj,
            "baseline": self.baseline,
            "baseline_mj": other.energy_mj if other else None,
            "ratio": self.ratio,
            "network_precision": self.network.precision,
            "baseline_precision": other.precision if other else None,
            "memory_included": self.network.includes_memory,
            "break_even_rate": rate if rate is not None and math.isfinite(rate) else None,
            "break_even": self.break_even,
            "remark": self.remark,
            "basis": self.network.basis,
            "placement": self.network.timing.placement if self.network.timing else "",
        }


def compare_energy(
    counts: OperationCounts, baseline: Baseline, lengths: Sequence[int], model: str | EnergyModel = "paper"
) -> EnergyComparison:
    """Price a spiking network and a baseline by the same model.

    Parameters
    ----------
    counts : OperationCounts
        Of the spiking network.
    baseline : Baseline
    lengths : sequence of int
        Real tokens of each sentence that was counted: the baseline is counted for these, without padding.
    model : str or EnergyModel
    """
    chosen = energy_model(model)
    network = estimate_energy(counts, model=chosen)
    if baseline.obstacle is not None:
        return EnergyComparison(network, baseline.name, baseline.title, None, None, baseline.obstacle)
    pricing, remark = dense_pricing(chosen, baseline, lengths)
    if pricing is None:
        return EnergyComparison(network, baseline.name, baseline.title, None, None, remark)
    other = estimate_energy(baseline.count(lengths), model=pricing)
    if not other.energy_mj:
        remark = f"{chosen.name} charges nothing for {baseline.title}, so there is no ratio"
        return EnergyComparison(network, baseline.name, baseline.title, None, None, remark)
    rate = break_even_rate(counts, other.energy_mj, chosen) if firing_rate(counts) else math.nan
    return EnergyComparison(network, baseline.name, baseline.title, other, rate, remark)


def dense_pricing(model: EnergyModel, baseline: Baseline, lengths: Sequence[int]) -> tuple[EnergyModel | None, str]:
    """Return what prices a baseline where `model` prices the spiking network, and a remark; None where nothing does."""
    dense, _ = model.for_dense()
    nodes = baseline.count(lengths[:1]).nodes.values()
    if any("mac" in node.real and "mac" not in dense.priced(node) for node in nodes):
        return None, f"{model.name} has no figure for dense multiply-accumulates"
    try:
        return model.for_dense(baseline.activation_bits)
    except EnergyModelError as error:
        return None, str(error)


def firing_rate(counts: OperationCounts) -> float:
    """Return spikes per neuron, real token and time step, over all neurons."""
    chances = counts.neurons_per_token * counts.real_tokens * counts.time_steps
    return counts.totals.get("spike", 0) / chances if chances else 0.0


def scale_firing(counts: OperationCounts, factor: float) -> OperationCounts:
    """Return the counts as they would be if everything fired `factor` times as often: an estimate.

    What a spike causes grows with the factor, coincidences in attention with its square, and what happens at every
    step whether or not anything fires (membrane updates, norms, biases, the head) stays. Weights are read as often as
    spikes ask for them; dense layers read as before. How far integers of the residual stream rise above 1 is as
    counted.
    """

    def scaled(tally: Tally, spike_driven: bool) -> Tally:
        linear = (*LINEAR_IN_FIRING, "weight_read") if spike_driven else LINEAR_IN_FIRING
        powers = {**dict.fromkeys(linear, 1), **dict.fromkeys(QUADRATIC_IN_FIRING, 2)}
        return {kind: round(count * factor ** powers.get(kind, 0)) for kind, count in tally.items()}

    def both(before: Tallies, spike_driven: bool) -> Tallies:
        return Tallies(scaled(before.real, spike_driven), scaled(before.padding, spike_driven))

    nodes = {
        name: replace(
            node,
            counts=both(node.counts, node.spike_driven),
            orders={order: both(products, node.spike_driven) for order, products in node.orders.items()},
        )
        for name, node in counts.nodes.items()
    }
    return replace(counts, nodes=nodes)


def break_even_rate(counts: OperationCounts, baseline_mj: float, model: str | EnergyModel) -> float | None:
    """Return the firing rate at which the spiking network needs as much energy as the baseline.

    Parameters
    ----------
    counts : OperationCounts
        Of the spiking network, as measured.
    baseline_mj : float
        Energy of a sentence on the baseline.
    model : str or EnergyModel
        Prices the spiking network.

    Returns
    -------
    float or None
        Spikes per neuron, token and step; `math.inf` where it wins even if every neuron fires at every step, None where
        it loses even if nothing fires.
    """
    chosen, measured = energy_model(model), firing_rate(counts)
    if not measured:
        raise TraceMismatchError("nothing fires in these counts, so no firing rate can be scaled to a break-even")

    def energy(rate: float) -> float:
        return estimate_energy(scale_firing(counts, rate / measured), model=chosen).energy_mj

    low, high = 0.0, 1.0
    if energy(low) >= baseline_mj:
        return None
    if energy(high) <= baseline_mj:
        return math.inf
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if energy(middle) < baseline_mj else (low, middle)
    return low


def energy_by_component(estimate: EnergyEstimate, counts: OperationCounts) -> dict[str, float]:
    """Return an estimate's energy by key of `COMPONENTS`, in mJ; static energy is in none of them."""
    parts = dict.fromkeys(COMPONENTS, 0.0)
    reads_tokens = any(node.edge == "tokens" for node in counts.nodes.values())
    for name, millijoules in estimate.by_node.items():
        node = counts.nodes[name]
        component = node.component
        in_front = reads_tokens and node.stage == "input" and node.operator != "heaviside"
        if node.edge == "tokens" or in_front:
            component = "embedding"
        elif node.stage == "head":
            component = "rest"
        parts[component] += millijoules
    return parts

"""Energy model ``loihi1``: published per-operation figures of Intel's first Loihi, with time, static power and host.

The figures of Davies et al. 2018 are from pre-silicon simulation at 0.75 V, "consistent with early post-silicon
characterization", and minima where they say so. Loihi 1 sends binary spikes only, so a residual integer k is k spikes.
It has no place for layer norms, attention products, scales, token means or an analog head: those are listed as
unpriced, and the estimate is a lower bound for a network that has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hardware.energy.memory import DRAM
from hardware.energy.models import JOULES_PER_MILLIJOULE, EnergyModel, Price, Timing
from hardware.energy.operation_counts import NodeOperations, OperationCounts, Tally

DAVIES = "Davies et al. 2018, IEEE Micro 38(1), table 2 (0.75 V, pre-silicon simulation)"
SYNAPTIC_OPERATION = Price(23.6, f"{DAVIES}: energy per synaptic spike op (min)")
NEURON_ACTIVE = Price(81.0, f"{DAVIES}: energy per neuron update, active; assumed: active is a neuron that fires")
NEURON_INACTIVE = Price(52.0, f"{DAVIES}: energy per neuron update, inactive")
SPIKE_WITHIN_TILE = Price(1.7, f"{DAVIES}: within-tile spike energy; assumed: once for each core a spike goes to")
TILE_HOP_EAST_WEST = Price(3.0, f"{DAVIES}: energy per tile hop (E-W)")
TILE_HOP_NORTH_SOUTH = Price(4.0, f"{DAVIES}: energy per tile hop (N-S)")
HOPS_EAST_WEST, HOPS_NORTH_SOUTH = 2.625, 1.25
"""Assumed: source and target on any two of 8 x 4 tiles; the mean distance on n places is (n^2 - 1) / 3n."""
NANOSECONDS_PER_SYNAPTIC_OPERATION = 3.5
"""Davies et al. 2018, table 2: time per synaptic spike op (max)."""
NANOSECONDS_PER_UPDATE_ACTIVE, NANOSECONDS_PER_UPDATE_INACTIVE = 8.4, 5.3
"""Davies et al. 2018, table 2: time per neuron update (active / inactive)."""
NANOSECONDS_PER_BARRIER = 465.0
"""Davies et al. 2018, table 2: mesh-wide barrier sync, 32 tiles. Between chips it is longer: 14 us for 4 x 64 chips."""
NEURONS_PER_CORE, CORES_PER_CHIP = 1024, 128
"""Davies et al. 2018: compartments of a core, neuromorphic cores of a chip."""
STATIC_MILLIWATTS_PER_CHIP = 104.4
"""Frady et al. 2020, NICE, table 1: 3.34 W static over 32 chips, measured, at a supply voltage not stated."""
NANO = 1e-9
SYNAPTIC_OPERATORS = ("affine", "convolution", "scale")
"""Nodes that are synapses on the chip."""


@dataclass(frozen=True)
class Loihi1Model(EnergyModel):
    """Synaptic operations, neuron updates, spike traffic, host input, static power, and time."""

    def charge(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return pJ by what the chip and its host do."""
        did = operations.get
        if node.stage == "input" and not node.fires:
            return {"host: embedding read": DRAM.picojoules * did("embedding_read", 0)}
        charged: dict[str, float] = {}
        if node.operator in SYNAPTIC_OPERATORS and node.spike_driven:
            synaptic = did("ac_binary", 0) + did("ac_graded_additions", 0)
            charged["synaptic operations"] = SYNAPTIC_OPERATION.picojoules * synaptic
        if node.fires:
            sent, hops = did("spike", 0), _tile_hops_picojoules()
            cores = sum(math.ceil(fan_out / NEURONS_PER_CORE) for fan_out in node.readers)
            traffic = sent * cores * (SPIKE_WITHIN_TILE.picojoules + hops)
            if node.stage == "input":
                return {"host: spikes injected": traffic}
            charged["neuron updates, active"] = NEURON_ACTIVE.picojoules * sent
            charged["neuron updates, inactive"] = NEURON_INACTIVE.picojoules * (did("comparison", 0) - sent)
            charged["spike traffic"] = traffic
        return charged

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return what the chip's figures cover; on the chip they include its memory."""
        if node.stage == "input":
            host = ("embedding_read", "spike") if not node.fires else ("spike",)
            return frozenset(host)
        kinds: tuple[str, ...] = ("residual_addition",)  # joins at the synapses, as more spikes
        if node.operator in SYNAPTIC_OPERATORS and node.spike_driven:
            kinds += ("ac_binary", "ac_graded", "ac_graded_additions", "weight_read")
            kinds += ("addition", "parameter_read")  # a bias is part of the neuron it drives
        if node.fires:
            kinds += ("spike", "reset", "membrane_update", "membrane_leak", "comparison", "state_read", "state_write")
        return frozenset(kinds)

    def timing(self, counts: OperationCounts, dynamic_mj: float) -> Timing:
        """Return the time of a sentence whose work is evenly spread over as many cores as its neurons need."""
        neurons = (counts.neurons_per_token - _host_neurons(counts)) * counts.longest_sentence
        cores = max(1, math.ceil(neurons / NEURONS_PER_CORE))
        chips = math.ceil(cores / CORES_PER_CHIP)
        on_chip = [node for node in counts.nodes.values() if node.stage != "input"]
        synaptic = sum(
            node.real.get("ac_binary", 0) + node.real.get("ac_graded_additions", 0)
            for node in on_chip
            if node.operator in SYNAPTIC_OPERATORS
        )
        active = sum(node.real.get("spike", 0) for node in on_chip)
        updates = sum(node.real.get("comparison", 0) for node in on_chip)
        work = (
            synaptic * NANOSECONDS_PER_SYNAPTIC_OPERATION
            + active * NANOSECONDS_PER_UPDATE_ACTIVE
            + (updates - active) * NANOSECONDS_PER_UPDATE_INACTIVE
        )
        per_step = (work / counts.sentence_steps / cores + NANOSECONDS_PER_BARRIER) * NANO
        steps = counts.time_steps + counts.depth - 1
        seconds = steps * per_step
        static_mj = chips * STATIC_MILLIWATTS_PER_CHIP * seconds
        return Timing(
            steps=steps,
            seconds_per_step=per_step,
            seconds=seconds,
            sentences_per_second=1 / seconds,
            pipelined_sentences_per_second=1 / (counts.time_steps * per_step),
            static_mj=static_mj,
            energy_delay_product=(dynamic_mj + static_mj) * JOULES_PER_MILLIJOULE * seconds,
            basis=f"a neuron for every feature of every token of the longest sentence ({counts.longest_sentence}) on "
            f"{cores} cores of {chips} chip{'s' * (chips > 1)}, powered whole; work is spread evenly over "
            f"the cores (best case), then a barrier; a layer a step, so {counts.time_steps:g} + {counts.depth} - 1 "
            "steps; one sentence at a time, which is what static energy and energy-delay product assume; synapses and "
            "axons are assumed to fit, see place()",
        )


def _host_neurons(counts: OperationCounts) -> int:
    return sum(node.fan_out for node in counts.nodes.values() if node.fires and node.stage == "input")


def _tile_hops_picojoules() -> float:
    return TILE_HOP_EAST_WEST.picojoules * HOPS_EAST_WEST + TILE_HOP_NORTH_SOUTH.picojoules * HOPS_NORTH_SOUTH


LOIHI1 = Loihi1Model(
    name="loihi1",
    source=f"{DAVIES}; static power: Frady et al. 2020; DRAM of the host: {DRAM.source}",
    precision="weights up to 9 bits, 23-bit states",
    technology="14 nm",
    includes_memory=True,
    basis="23.6 pJ a synaptic operation (a published minimum), 81 or 52 pJ a neuron update, 1.7 pJ and assumed tile "
    "hops a spike and core; the host gathers the embedding from DRAM and injects the first spikes at the price of a "
    "spike (assumed; a real host costs more); static power over an assumed best-case time; norms, attention, token "
    "mean and head are not in it",
)

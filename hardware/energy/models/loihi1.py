"""Energy model ``loihi1``: published per-operation figures of Intel's first Loihi, with time, static power and host.

How many cores and chips a network takes, and so how far its spikes go, what a step waits for and which power is on, is
what `hardware.loihi.place` says of it. Where that finds no place, they are a best case, and the estimate says so.

The figures of Davies et al. 2018 are from pre-silicon simulation at 0.75 V, "consistent with early post-silicon
characterization", and minima where they say so. Loihi 1 sends binary spikes only, so a residual integer k is k spikes.
It has no place for layer norms, attention products, scales, token means or an analog head: those are listed as
unpriced, and the estimate is a lower bound for a network that has them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from export.network import Network
from hardware.energy.counts import NodeOperations, OperationCounts, Tally
from hardware.energy.errors import EnergyModelError
from hardware.energy.models.contract import EnergyModel, Price, Timing
from hardware.energy.models.memory import DRAM
from hardware.energy.models.registry import register_energy_model
from hardware.errors import PlacementError
from hardware.loihi import Placement, Violation, misfits, place
from hardware.loihi.chip import LOIHI1 as CHIP

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
STATIC_MILLIWATTS_PER_CHIP = 104.4
"""Frady et al. 2020, NICE, table 1: 3.34 W static over 32 chips, measured, at a supply voltage not stated."""
NANO = 1e-9
JOULES_PER_MILLIJOULE = 1e-3


@dataclass(frozen=True)
class Loihi1Model(EnergyModel):
    """Synaptic operations, neuron updates, spike traffic, host input, static power, and time.

    Attributes
    ----------
    placement : Placement or None
        Of the network that is priced, see `for_network`; None for a best case.
    obstacle : str
        Why there is none.
    """

    placement: Placement | None = field(default=None, compare=False)
    obstacle: str = "nobody said which graph was counted"

    def for_network(self, network: Network, tokens: int) -> Loihi1Model:
        """Return the model with the network's placement, or with what is in the way of one.

        Violations are no obstacle, a float graph is none either: what is on the chip has its cores all the same. But
        where neurons fit no core nobody knows how many it takes.
        """
        placement = None
        try:
            obstacle = _obstacle(misfits(network, CHIP, tokens))
            if not obstacle:
                found = place(network, CHIP, tokens)
                if found.unplaced:
                    reasons = [violation for violation in found.violations if violation.node in found.unplaced]
                    obstacle = _obstacle(reasons) or f"no cut of {found.unplaced[0]} fits"
                elif not found.cores:
                    obstacle = "nothing of it goes on the chip"
                placement = None if obstacle else found
        except PlacementError as error:
            obstacle = str(error)
        return replace(self, placement=placement, obstacle=obstacle)

    def cost(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return pJ by what the chip and its host do."""
        did = operations.get
        if node.stage == "input" and not node.fires:
            return {"host: embedding read": DRAM.picojoules * did("embedding_read", 0)}
        costs: dict[str, float] = {}
        if node.component == "synapses" and node.spike_driven:
            costs["synaptic operations"] = SYNAPTIC_OPERATION.picojoules * _synaptic_operations(operations)
        if node.fires:
            sent, hops = did("spike", 0), _tile_hops_picojoules()
            traffic = sent * self._cores_reached(node) * (SPIKE_WITHIN_TILE.picojoules + hops)
            if node.stage == "input":
                return {"host: spikes injected": traffic}
            costs["neuron updates, active"] = NEURON_ACTIVE.picojoules * sent
            costs["neuron updates, inactive"] = NEURON_INACTIVE.picojoules * (did("comparison", 0) - sent)
            costs["spike traffic"] = traffic
        return costs

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return what the chip's figures cover; on the chip they include its memory."""
        if node.stage == "input":
            host = ("embedding_read", "spike") if not node.fires else ("spike",)
            return frozenset(host)
        kinds: tuple[str, ...] = ("residual_addition",)  # joins at the synapses, as more spikes
        if node.component == "synapses" and node.spike_driven:
            kinds += ("ac_binary", "ac_graded", "ac_graded_additions", "weight_read")
            kinds += ("addition", "parameter_read")  # a bias is part of the neuron it drives
        if node.fires:
            kinds += ("spike", "reset", "membrane_update", "membrane_leak", "comparison", "state_read", "state_write")
        return frozenset(kinds)

    def timing(self, counts: OperationCounts, dynamic_mj: float) -> Timing:
        """Return the time of a sentence, in which every step waits for the busiest core and then for all others.

        Raises
        ------
        EnergyModelError
            The network was placed for shorter sentences than were counted.
        """
        if self.placement is not None and counts.longest_sentence > self.placement.tokens:
            raise EnergyModelError(
                f"{self.name}: the network is placed for sentences of up to {self.placement.tokens} tokens, counted is "
                f"one of {counts.longest_sentence}; place it with for_network(network, {counts.longest_sentence})"
            )
        taken = self._best_case(counts) if self.placement is None else _placed(self.placement, counts)
        per_step = (taken.nanoseconds + NANOSECONDS_PER_BARRIER) * NANO
        steps = counts.time_steps + counts.depth - 1
        seconds = steps * per_step
        static_mj = taken.chips * STATIC_MILLIWATTS_PER_CHIP * seconds
        barrier = "a barrier" if taken.chips == 1 else "the barrier of one chip (that of several takes longer)"
        return Timing(
            steps=steps,
            seconds_per_step=per_step,
            seconds=seconds,
            sentences_per_second=1 / seconds,
            pipelined_sentences_per_second=1 / (counts.time_steps * per_step),
            static_mj=static_mj,
            energy_delay_product=(dynamic_mj + static_mj) * JOULES_PER_MILLIJOULE * seconds,
            basis=f"{taken.placement}; a neuron for every feature of every token of the longest sentence "
            f"({counts.longest_sentence}), chips powered whole; a step is {taken.step}, then {barrier}; a layer a "
            f"step, so {counts.time_steps:g} + {counts.depth} - 1 steps; one sentence at a time, which is what static "
            "energy and energy-delay product assume",
            cores=taken.cores,
            chips=taken.chips,
            placement=taken.placement,
        )

    def _cores_reached(self, node: NodeOperations) -> float:
        """Return how many cores a spike of a node goes to: as placed, or those that its readers' neurons fill."""
        if self.placement is not None:
            return self.placement.cores_reached.get(node.name, 0.0)
        return sum(math.ceil(fan_out / CHIP["neurons_per_core"]) for fan_out in node.readers)

    def _best_case(self, counts: OperationCounts) -> _Taken:
        """Return the fewest cores that hold the neurons, with all work spread evenly over them."""
        neurons = sum(node.fan_out for node in _on_chip(counts) if node.fires) * counts.longest_sentence
        cores = max(1, math.ceil(neurons / CHIP["neurons_per_core"]))
        chips = math.ceil(cores / CHIP["cores_per_chip"])
        return _Taken(
            cores,
            chips,
            sum(map(_nanoseconds, _on_chip(counts))) / counts.sentence_steps / cores,
            f"best case: {_in_words(cores, chips)}, as few as its neurons fill, because {self.obstacle}; synapses and "
            "axons are assumed to fit",
            "the work of all, spread evenly over the cores",
        )


@dataclass(frozen=True)
class _Taken:
    """Cores and chips, how long a core works in a step, where the first are from, and what a step is, in words."""

    cores: int
    chips: int
    nanoseconds: float
    placement: str
    step: str


def _placed(placement: Placement, counts: OperationCounts) -> _Taken:
    """Return the cores of a placement, with the work of the busiest of them."""
    work = {node.name: _nanoseconds(node) for node in _on_chip(counts)}
    token_steps = counts.real_tokens * counts.time_steps
    of_a_neuron = {}
    for name, population in placement.mapping.populations.items():
        nodes = {name, *(projection.weights for projection in population.projections)}
        together = sum(nanoseconds for node, nanoseconds in work.items() if node in nodes)
        of_a_neuron[name] = together / (token_steps * population.features)
    busiest = max(
        sum(of_a_neuron[piece.node] * piece.resources.neurons for piece in core.slices) for core in placement.cores
    )
    rules = Counter(violation.rule for violation in placement.violations)
    broken = ", ".join(f"{rule} ({times})" for rule, times in rules.items())
    return _Taken(
        len(placement.cores),
        placement.chips,
        busiest,
        f"placed: {_in_words(len(placement.cores), placement.chips)}"
        + (f"; it breaks rules of the chip all the same, see spikebert place: {broken}" if broken else ""),
        "the work of the busiest core, each node's spread evenly over its neurons and real tokens",
    )


def _obstacle(violations: Sequence[Violation]) -> str:
    """Return in words that neurons fit no core; empty where there is no such violation."""
    if not violations:
        return ""
    first, number = violations[0], len({violation.node for violation in violations})
    return (
        f"{number} population{'s' * (number != 1)} of neurons fit{'s' * (number == 1)} no core ({first.rule} of "
        f"{first.node}: {first.value:,}, at most {first.limit:,})"
    )


def _on_chip(counts: OperationCounts) -> list[NodeOperations]:
    return [node for node in counts.nodes.values() if node.stage != "input"]


def _synaptic_operations(operations: Tally) -> int:
    return operations.get("ac_binary", 0) + operations.get("ac_graded_additions", 0)


def _nanoseconds(node: NodeOperations) -> float:
    """Return how long one core would work for a node, at all its real tokens and steps."""
    active = node.real.get("spike", 0)
    inactive = node.real.get("comparison", 0) - active
    synaptic = _synaptic_operations(node.real) if node.component == "synapses" else 0
    return (
        synaptic * NANOSECONDS_PER_SYNAPTIC_OPERATION
        + active * NANOSECONDS_PER_UPDATE_ACTIVE
        + inactive * NANOSECONDS_PER_UPDATE_INACTIVE
    )


def _in_words(cores: int, chips: int) -> str:
    return f"{cores:,} core{'s' * (cores != 1)} on {chips:,} chip{'s' * (chips != 1)}"


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
    "spike (assumed; a real host costs more); static power of the chips it takes, over an assumed time; where "
    "cores, chips and time are from stands beside the time; norms, attention, token mean and head are not in it",
)
register_energy_model(LOIHI1)

"""Energy model ``memory``: operations, addressing, and all traffic to weights, sums, states and spikes.

After Lemaire et al. 2022, "An analytical estimation of spiking neural networks energy efficiency" (arXiv 2210.13107):
each layer has its own memories, an access costs what a memory of that size costs, and an event reads and writes a sum
for every synapse it reaches. Read off their published code: int32 arithmetic, the three SRAM figures, and the line laid
through them. Added here: what does not fit in on-chip memory is read from DRAM, and the parts a
transformer has beside synapses and neurons (norms, attention, residual sums, embedding, head).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hardware.energy.counts import NodeOperations, OperationCounts, Tally
from hardware.energy.errors import EnergyModelError
from hardware.energy.models.arithmetic import HOROWITZ, ArithmeticModel, arithmetic_prices
from hardware.energy.models.contract import EnergyModel, Price
from hardware.energy.models.registry import register_energy_model

KIB = 1024
WORD_BYTES = 4
"""Bytes an access moves: Lemaire et al. take Horowitz's figures, which he gives for 64 bits, for each value of 32;
others take half of them (PMC8934428, table 3)."""
SRAM: tuple[tuple[int, float], ...] = ((0, 0.0), (8 * KIB, 10.0), (32 * KIB, 20.0), (KIB * KIB, 100.0))
"""Size in bytes and pJ an access: Horowitz 2014 (8 KB, 32 KB, 1 MB), and assumed: straight lines between, from 0."""
FITTED_SRAM = (13.2, 1.09e-5)
"""The line Lemaire et al. lay through the same points: pJ of an access, and pJ more for each bit of the memory. From
their published code (EnergyEstimationMetric of qualia-plugin-snn); a memory of a few bytes costs 13.2 pJ on it."""
DRAM = Price(640.0, "Han et al. 2015, arXiv 1506.02626, table 1: 32-bit DRAM access at 45 nm")
SPIKE_QUEUE_BYTES = 1000 * WORD_BYTES
"""Assumed: a queue of 1000 messages in front of each layer; the code of Lemaire et al. leaves that to the user."""
SUM_BYTES = 4
AND_BITS = 32
"""Assumed: ANDs of spikes read them 32 to an access."""


@dataclass(frozen=True)
class MemoryModel(ArithmeticModel):
    """Operations and memory traffic.

    Attributes
    ----------
    weight_bytes : int
        Of a weight or parameter; four bytes are one access.
    weight_reuse : int
        Uses one read of a synaptic weight serves; 1 as in Lemaire et al., up to the tokens of a sentence on a design
        that keeps a weight while tokens pass.
    fitted_sram : bool
        Price SRAM on the line of `FITTED_SRAM` in place of `SRAM`; the estimate shows both.
    """

    weight_bytes: int = 4
    weight_reuse: int = 1
    fitted_sram: bool = False

    def __post_init__(self) -> None:
        """Check sizes and prices."""
        if "addition" not in self.prices:
            raise EnergyModelError(f"{self.name}: has no price of an addition; addresses are computed with it")
        if self.weight_bytes < 1 or self.weight_reuse < 1:
            raise EnergyModelError(
                f"{self.name}: weight_bytes {self.weight_bytes} and weight_reuse {self.weight_reuse} must be at least 1"
            )

    def cost(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return pJ for operations, addressing, and each memory."""
        did, prices = operations.get, self.prices
        states = self.access_picojoules(self._map_bytes(node.fan_out, counts))
        costs = {
            "operations": sum(
                count * prices[kind].picojoules
                for kind, count in operations.items()
                if kind in prices and kind != "ac_graded"  # repeated additions stand in its place
            ),
            "addressing": prices["addition"].picojoules * self._addresses(node, operations),
            "weights": self._weights(node, operations),
            "sums": self._sums(node, operations, counts),
            "states": states * (did("state_read", 0) + did("state_write", 0)),
            "spikes": self.access_picojoules(SPIKE_QUEUE_BYTES) * (did("spike", 0) + did("input_event", 0)),
            "activations": self.access_picojoules(max(node.fan_in, node.fan_out) * SUM_BYTES)
            * (did("activation_read", 0) + did("activation_write", 0)),
        }
        return {kind: picojoules for kind, picojoules in costs.items() if picojoules}

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return the arithmetic kinds and all reads and writes."""
        traffic = ("weight_read", "parameter_read", "embedding_read", "state_read", "state_write")
        return frozenset((*self.prices, *traffic, "spike", "activation_read", "activation_write"))

    def _addresses(self, node: NodeOperations, operations: Tally) -> int:
        """Return address computations: one a synapse that an event reaches, one a dense value in or out."""
        kinds = ["embedding_read", "attention_count", "attention_add"]
        kinds += ["weight_read"] if node.spike_driven else ["activation_read", "activation_write"]
        return sum(operations.get(kind, 0) for kind in kinds)

    def _weights(self, node: NodeOperations, operations: Tally) -> float:
        reads = operations.get("weight_read", 0) / self.weight_reuse
        reads += operations.get("parameter_read", 0) + operations.get("embedding_read", 0)
        return reads * self.access_picojoules(node.parameters * self.weight_bytes) * self.weight_bytes / WORD_BYTES

    def _sums(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> float:
        """Return a read and a write of a sum for each accumulate, and the attention map where there is one, in pJ."""
        did = operations.get
        joined = 2 * did("residual_addition", 0) * self.access_picojoules(self._map_bytes(node.fan_out, counts))
        if not node.heads:
            return joined + 2 * (did("ac_binary", 0) + did("ac_graded", 0)) * self.access_picojoules(
                node.fan_out * SUM_BYTES
            )
        head_size = node.fan_out // node.heads
        side = counts.longest_sentence if node.attention_order == "qk_first" else head_size
        entry = self.access_picojoules(side * side * SUM_BYTES)
        spikes = self.access_picojoules(counts.longest_sentence * node.fan_in // 8)
        dense = (
            0 if node.spike_driven else 2 * did("mac", 0) * self.access_picojoules(self._map_bytes(node.fan_in, counts))
        )
        return (
            dense
            + did("attention_and", 0) / AND_BITS * spikes
            + 2 * did("attention_count", 0) * entry
            + did("attention_add", 0) * (entry + 2 * self.access_picojoules(head_size * SUM_BYTES))
        )

    def access_picojoules(self, size: float) -> float:
        """Return the energy of one access to a memory of `size` bytes, in pJ; see the function of that name."""
        return access_picojoules(size, self.fitted_sram)

    def variants(self) -> dict[str, EnergyModel]:
        """Return the same with SRAM priced the other way."""
        name = "sram_interpolated" if self.fitted_sram else "sram_fitted_line"
        return {name: replace(self, fitted_sram=not self.fitted_sram)}

    @staticmethod
    def _map_bytes(features: int, counts: OperationCounts) -> int:
        """Return the bytes of one value for each feature of each token of the longest sentence."""
        return features * counts.longest_sentence * SUM_BYTES


def access_picojoules(size: float, fitted: bool = False) -> float:
    """Return the energy of one access to a memory of `size` bytes, in pJ.

    Up to 1 MiB it is SRAM, on straight lines between `SRAM`, or `fitted` on the line of `FITTED_SRAM`. Of a larger one,
    1 MiB is on the chip and the rest in DRAM: accesses are shared by size.
    """
    sizes, energies = zip(*SRAM, strict=True)
    in_sram = min(size, sizes[-1])
    least, more_a_bit = FITTED_SRAM
    sram = least + more_a_bit * 8 * in_sram if fitted else np.interp(in_sram, sizes, energies)
    on_chip = in_sram / size if size else 1.0
    return float(on_chip * sram + (1 - on_chip) * DRAM.picojoules)


SOURCE = f"Lemaire et al. 2022, arXiv 2210.13107, on {HOROWITZ}; DRAM: {DRAM.source}"
BASIS = (
    "arithmetic with integers above 1 as repeated additions, an address computation a synaptic event, and an access "
    "for every weight, sum, state, spike and activation; each layer has memories of its own, up to 1 MiB on the chip "
    "and the rest in DRAM; weights are read again for every event; no control, no static power"
)

MEMORY = MemoryModel(
    name="memory",
    source=SOURCE,
    precision="int32",
    technology="45 nm",
    includes_memory=True,
    basis=BASIS,
    prices=arithmetic_prices(0.1, 3.1, f"{HOROWITZ}: int32 add 0.1 pJ, multiply 3.1 pJ"),
)
MEMORY_INT8 = MemoryModel(
    name="memory-int8",
    source=SOURCE,
    precision="int8 weights, 32-bit sums and states",
    technology="45 nm",
    includes_memory=True,
    basis=BASIS,
    prices=arithmetic_prices(0.1, 0.2, f"{HOROWITZ}: int32 add 0.1 pJ, int8 multiply 0.2 pJ"),
    weight_bytes=1,
)
register_energy_model(MEMORY, MEMORY_INT8)

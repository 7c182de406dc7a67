"""Energy model ``paper``: Eqs. 16 to 19 of arXiv 2308.15122, to the letter.

The formula prices accumulates of the fully connected layers and of attention, and the embedding layer's MACs; norms,
biases, membrane updates, residual sums, the task head and all memory cost nothing in it. What the paper leaves open is
a setting here, and the other reading stands beside the estimate. A network without spikes costs Eq. 17.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hardware.energy.counts import GAMMAS, NodeOperations, OperationCounts, Tally
from hardware.energy.errors import EnergyModelError
from hardware.energy.models.contract import PICOJOULES_PER_MILLIJOULE, EnergyModel
from hardware.energy.models.registry import register_energy_model
from hardware.energy.published import PICOJOULES_PER_AC, PICOJOULES_PER_MAC, SOURCE

EMBEDDINGS = ("gather", "one_hot")
"""MACs of the embedding layer: one for each number gathered, or those of the product with a one-hot matrix."""


def dense_energy_mj(macs: float) -> float:
    """Return Eq. 17: ``E_MAC x FLOPs``, in mJ; the paper's FLOPs are multiply-accumulates."""
    return PICOJOULES_PER_MAC * macs / PICOJOULES_PER_MILLIJOULE


@dataclass(frozen=True)
class PaperModel(EnergyModel):
    """Eqs. 16 to 19.

    Attributes
    ----------
    gamma : {"mean_value", "nonzero_fraction"}
        γ of Eq. 18 where a layer reads integers, which the paper takes for spikes: their mean, so that 2 costs two
        accumulates; or the share that is not zero, so that any integer costs one.
    embedding : {"gather", "one_hot"}
        EMB of Eq. 19, which the paper does not derive.
    """

    gamma: str = "mean_value"
    embedding: str = "gather"

    def __post_init__(self) -> None:
        """Check both settings."""
        for key, allowed in (("gamma", GAMMAS), ("embedding", EMBEDDINGS)):
            if getattr(self, key) not in allowed:
                raise EnergyModelError(f"{self.name}: {key} is {getattr(self, key)!r}; choose {' or '.join(allowed)}")

    def cost(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return this node's term of Eq. 19, or where nothing spikes of Eq. 17, in pJ."""
        if node.spike_driven:
            fired = operations.get("input_value" if self.gamma == "mean_value" else "input_event", 0)
            rate = fired / max(1, operations.get("input_element", 0))
            return {"synaptic operations": PICOJOULES_PER_AC * rate * operations.get("dense_mac", 0)}
        if not counts.spiking:
            return {"dense operations": PICOJOULES_PER_MAC * operations.get("dense_mac", 0)}
        if not self._is_embedding(node):
            return {}
        gathers = node.edge == "tokens" and self.embedding == "gather"
        return {"embedding": PICOJOULES_PER_MAC * operations.get("embedding_read" if gathers else "dense_mac", 0)}

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return the kinds of the layers Eq. 19 names."""
        if node.spike_driven:
            accumulates = ("ac_binary", "ac_graded", "ac_graded_additions")
            return frozenset((*accumulates, "attention_and", "attention_count", "attention_add"))
        return frozenset(("embedding_read", "mac") if self._is_embedding(node) else ())

    def for_dense(self, activation_bits: int | None = None) -> tuple[EnergyModel, str]:
        """Return Eq. 17; the formula knows one precision."""
        if activation_bits is not None:
            raise EnergyModelError("the paper's formula knows fp32 only")
        basis = "4.6 pJ for each MAC of a matrix product (Eq. 17); softmax, GELU, norms, biases and memory are free"
        return DenseFormula(self.name, f"Eq. 17 of {SOURCE}", "fp32", self.technology, basis=basis), ""

    def variants(self) -> dict[str, EnergyModel]:
        """Return the other reading of γ and of EMB."""
        gamma = GAMMAS[1 - GAMMAS.index(self.gamma)]
        embedding = EMBEDDINGS[1 - EMBEDDINGS.index(self.embedding)]
        return {
            f"gamma_{gamma}": replace(self, gamma=gamma),
            f"embedding_{embedding}": replace(self, embedding=embedding),
        }

    @staticmethod
    def _is_embedding(node: NodeOperations) -> bool:
        """Return whether a node is EMB: the affine that reads tokens, or analog values in front of all neurons."""
        return node.operator == "affine" and node.stage == "input"


@dataclass(frozen=True)
class DenseFormula(EnergyModel):
    """Eq. 17, ``E_MAC x FLOPs``, for a dense network; FLOPs are MACs of matrix products."""

    def cost(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return 4.6 pJ for each MAC of a matrix product."""
        return {"mac": PICOJOULES_PER_MAC * operations.get("dense_mac", 0)}

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return the one kind it knows."""
        return frozenset({"mac"})


PAPER = PaperModel(
    name="paper",
    source=f"Eqs. 16-19 of {SOURCE}, after Yao et al. 2022 and Horowitz 2014",
    precision="fp32",
    technology="45 nm",
    basis="0.9 pJ for each accumulate of affine layers and attention, counted by Eq. 18 (T x firing rate x FLOPs), and "
    "4.6 pJ for each MAC of the embedding; norms, biases, membrane updates, residual sums, head and memory are free",
)
register_energy_model(PAPER)

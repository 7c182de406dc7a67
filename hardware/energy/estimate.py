"""From operation counts to energy: what a run costs under a model, each figure with its source.

Every estimate says what it is: an estimate, on which basis, at which precision, with or without memory, and which
operations the model has no figure for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir

from export.network import Network
from export.nir_graph.reader import parse_graph
from hardware.energy.counts import (
    ATTENTION_ORDERS,
    STATISTIC_KINDS,
    OperationCounts,
    Tally,
    count_operations,
)
from hardware.energy.errors import EnergyModelError
from hardware.energy.models import EnergyModel, Timing, energy_model
from hardware.energy.models.contract import PICOJOULES_PER_MILLIJOULE
from hardware.traces.trace import Trace


@dataclass(frozen=True)
class EnergyEstimate:
    """An estimate of energy, with everything needed to judge it.

    Energies are mJ a sentence, the mean over all sentences counted.

    Attributes
    ----------
    model, source, precision, technology, basis : str
        From the model.
    includes_memory : bool
    energy_mj : float
        At real tokens, with static power where the model has it.
    padding_mj : float
        What padding adds to that.
    by_node, by_kind : dict of str to float
        `energy_mj` taken apart.
    alternatives_mj : dict of str to float
        `energy_mj` under the other readings of what the model leaves open, and in the other order of attention.
    unpriced : dict of str to int
        Operations at real tokens, of all sentences, that the model has no figure for: they are not in the energy.
    sentences, real_tokens, padding_tokens : int
    timing : Timing or None
    partly_unpriced : tuple of str
        Kinds of `unpriced` that the model has a figure for at other nodes.
    """

    model: str
    source: str
    precision: str
    technology: str
    basis: str
    includes_memory: bool
    energy_mj: float
    padding_mj: float
    by_node: Mapping[str, float]
    by_kind: Mapping[str, float]
    alternatives_mj: Mapping[str, float]
    unpriced: Mapping[str, int]
    sentences: int
    real_tokens: int
    padding_tokens: int
    timing: Timing | None = None
    partly_unpriced: tuple[str, ...] = ()

    @property
    def total_energy_mj(self) -> float:
        """`energy_mj` of all sentences together."""
        return self.energy_mj * self.sentences

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **{key: value for key, value in vars(self).items() if not isinstance(value, Mapping)},
            **{key: dict(value) for key, value in vars(self).items() if isinstance(value, Mapping)},
            "tokens": {"real": self.real_tokens, "padding": self.padding_tokens},
            "timing": self.timing.to_dict() if self.timing else None,
        }

    as_json = to_dict


def estimate_energy(
    trace: Trace | OperationCounts,
    graph: nir.NIRGraph | Network | None = None,
    model: str | Path | EnergyModel = "paper",
) -> EnergyEstimate:
    """Estimate the energy of a run under a model.

    Parameters
    ----------
    trace : Trace or OperationCounts
        What ran; counts where it was counted already, or streamed.
    graph : nir.NIRGraph or Network, optional
        The graph that ran; needed with a trace. A model of a chip places it; see `EnergyModel.for_network`, which
        whoever prices counts several times calls once.
    model : str, Path or EnergyModel
        A name of `energy_models`, a .json or .toml file, or a model.

    Raises
    ------
    EnergyModelError
        The model is not known, its file does not describe one, or a trace came without its graph.
    TraceMismatchError
        Trace and graph do not belong together.

    Examples
    --------
    >>> estimate_energy(trace, graph, model="horowitz-int8").energy_mj
    """
    chosen = energy_model(model)
    network = parse_graph(graph) if isinstance(graph, nir.NIRGraph) else graph
    if isinstance(trace, OperationCounts):
        counts = trace
    elif network is None:
        raise EnergyModelError("a trace needs its graph to be counted; give graph, or counts in place of the trace")
    else:
        counts = count_operations(trace, network)
    if network is not None:
        chosen = chosen.for_network(network, counts.longest_sentence)
    by_node, by_kind = _cost(chosen, counts, "real")
    dynamic = sum(by_node.values())
    timing = chosen.timing(counts, dynamic)
    if timing is not None:
        by_kind["static"] = timing.static_mj
    alternatives = {name: _energy(variant, counts) for name, variant in chosen.variants().items()}
    counted = {
        order for node in counts.nodes.values() if "attention_add" in chosen.priced(node) for order in node.orders
    }
    for order in ATTENTION_ORDERS:
        if order in counted and order != counts.attention_order:
            alternatives[f"attention_{order}"] = _energy(chosen, counts.with_attention_order(order))
    return EnergyEstimate(
        model=chosen.name,
        source=chosen.source,
        precision=chosen.precision,
        technology=chosen.technology,
        basis=f"estimate, not a measurement: {chosen.basis}",
        includes_memory=chosen.includes_memory,
        energy_mj=dynamic + (timing.static_mj if timing else 0.0),
        padding_mj=sum(_cost(chosen, counts, "padding")[0].values()),
        by_node=by_node,
        by_kind=by_kind,
        alternatives_mj=alternatives,
        unpriced=_unpriced(chosen, counts),
        partly_unpriced=_partly_unpriced(chosen, counts),
        sentences=counts.sentences,
        real_tokens=counts.real_tokens,
        padding_tokens=counts.padding_tokens,
        timing=timing,
    )


def _cost(model: EnergyModel, counts: OperationCounts, tokens: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return mJ a sentence by node and by kind, at ``real`` tokens or at ``padding``."""
    by_node: dict[str, float] = {}
    by_kind: dict[str, float] = {}
    for name, node in counts.nodes.items():
        costs = model.cost(node, getattr(node, tokens), counts)
        for kind, picojoules in costs.items():
            if picojoules:
                millijoules = picojoules / PICOJOULES_PER_MILLIJOULE / counts.sentences
                by_kind[kind] = by_kind.get(kind, 0.0) + millijoules
                by_node[name] = by_node.get(name, 0.0) + millijoules
    return by_node, by_kind


def _energy(model: EnergyModel, counts: OperationCounts) -> float:
    dynamic = sum(_cost(model, counts, "real")[0].values())
    timing = model.timing(counts, dynamic)
    return dynamic + (timing.static_mj if timing else 0.0)


def _unpriced(model: EnergyModel, counts: OperationCounts) -> dict[str, int]:
    missing: Tally = {}
    for node in counts.nodes.values():
        for kind, count in node.real.items():
            if kind not in model.priced(node) and kind not in STATISTIC_KINDS:
                missing[kind] = missing.get(kind, 0) + count
    return missing


def _partly_unpriced(model: EnergyModel, counts: OperationCounts) -> tuple[str, ...]:
    priced = {kind for node in counts.nodes.values() for kind in node.real if kind in model.priced(node)}
    return tuple(kind for kind in _unpriced(model, counts) if kind in priced)

"""How much of a run took place in stock Lava processes, and how much in ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from export.network import Network
from export.operators import Affine
from hardware.trace import Trace

MOST_NAMED = 4
"""Nodes that a line of text names; the JSON has them all."""


@dataclass(frozen=True)
class StockShare:
    """Neurons, synapses and spikes in stock Lava processes, of all.

    Attributes
    ----------
    neurons_stock, neurons : int
        Spiking features; every token has its own copy of each.
    synapses_stock, synapses : int
        Weights of affine and linear nodes. Lava's stock synapses send one step late, so that in zero-latency runs all
        are in processes of ours; with hardware timing those are stock that it computes exactly.
    spikes_stock, spikes : int
        Spikes that were fired.
    own_nodes : dict of str to str
        Every node that ran in a process of ours, with or without neurons and synapses, and why it needed one.
    """

    neurons_stock: int
    neurons: int
    synapses_stock: int
    synapses: int
    spikes_stock: int
    spikes: int
    own_nodes: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return counts as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it in one sentence."""
        parts = [
            f"{_percent(self.neurons_stock, self.neurons)} of {self.neurons:,} neurons",
            f"{_percent(self.synapses_stock, self.synapses)} of {self.synapses:,} synapses",
            f"{_percent(self.spikes_stock, self.spikes)} of {self.spikes:,} spikes",
        ]
        return f"in stock Lava processes: {', '.join(parts)}; {'the rest' if self.own_nodes else 'nothing'} in ours"

    def reasons(self) -> list[str]:
        """Say why the nodes in processes of ours are there, a line for each reason."""
        by_reason: dict[str, list[str]] = {}
        for node, why in self.own_nodes.items():
            by_reason.setdefault(why, []).append(node)
        return [f"{_some(nodes)}: {why}" for why, nodes in by_reason.items()]

    def __add__(self, other: StockShare) -> StockShare:
        """Add the spikes of another batch through the same network."""
        return StockShare(
            self.neurons_stock,
            self.neurons,
            self.synapses_stock,
            self.synapses,
            self.spikes_stock + other.spikes_stock,
            self.spikes + other.spikes,
            self.own_nodes,
        )


def stock_share(network: Network, trace: Trace) -> StockShare:
    """Count what of a Lava trace ran in stock processes; the runner names them in the trace's metadata."""
    stock = set(trace.metadata.get("stock_nodes", []))
    own = trace.metadata.get("own_nodes", {})
    neurons = {node.name: node.operator.out_features for node in network.spiking_nodes}
    synapses = {node.name: node.operator.weight.size for node in network.nodes if isinstance(node.operator, Affine)}
    spikes = {name: int(np.count_nonzero(values)) for name, values in trace.spikes.items()}

    def of_stock(counts: dict[str, int]) -> int:
        return sum(count for name, count in counts.items() if name in stock)

    return StockShare(
        of_stock(neurons),
        sum(neurons.values()),
        of_stock(synapses),
        sum(synapses.values()),
        of_stock(spikes),
        sum(spikes.values()),
        dict(own),
    )


def _some(nodes: list[str]) -> str:
    """Name a few nodes, and how many more there are."""
    if len(nodes) <= MOST_NAMED + 1:
        return ", ".join(nodes)
    return f"{', '.join(nodes[:MOST_NAMED])} and {len(nodes) - MOST_NAMED} more"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"

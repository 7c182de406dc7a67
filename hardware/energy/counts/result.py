"""What a run did, node by node and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hardware.energy.counts.kinds import ATTENTION_ORDERS, GAMMAS, Tallies, Tally, headline, sum_tallies
from hardware.traces.edges import EdgeKind


@dataclass(frozen=True)
class NodeOperations:
    """What one node did.

    Attributes
    ----------
    name, operator : str
        Node, and the name of its operator; that of the float one in an integer graph.
    component : str
        The part of a network it belongs to, of `COMPONENTS`.
    edge : {"binary", "graded", "analog", "tokens"}
        What it reads; for a sum, its first summand.
    stage : {"input", "body", "head"}
        Up to and including the first neurons; between; behind the last neurons. Where the trace holds the spikes that
        were fed to the graph, nothing stands in front of the first neurons.
    fan_in, fan_out : int
        Features.
    parameters : int
        Weights and biases of an affine, norm, convolution or scale.
    heads : int
        Attention heads; 0 elsewhere.
    fires : bool
        Whether it is neurons.
    readers : tuple of int
        Fan-out of every node that reads its spikes, directly or through residual sums.
    counts : Tallies
        What does not depend on the order of the attention product.
    orders : dict of str to Tallies
        For attention, the products in each of `ATTENTION_ORDERS`.
    attention_order : str
        The order that is in `real` and `padding`.
    """

    name: str
    operator: str
    component: str
    edge: EdgeKind
    stage: str
    fan_in: int
    fan_out: int
    parameters: int = 0
    heads: int = 0
    fires: bool = False
    readers: tuple[int, ...] = ()
    counts: Tallies = field(default_factory=Tallies)
    orders: Mapping[str, Tallies] = field(default_factory=dict)
    attention_order: str = "qk_first"

    @property
    def real(self) -> Tally:
        """Counts at real tokens: kinds of `OPERATION_KINDS` and `STATISTIC_KINDS`, those above 0."""
        chosen = self.orders.get(self.attention_order, Tallies())
        return sum_tallies([self.counts.real, chosen.real])

    @property
    def padding(self) -> Tally:
        """Counts at padding."""
        chosen = self.orders.get(self.attention_order, Tallies())
        return sum_tallies([self.counts.padding, chosen.padding])

    @property
    def spike_driven(self) -> bool:
        """Whether spikes cause its operations: the layers Eq. 18 speaks of."""
        return "input_element" in self.counts.real

    @property
    def nonzero_fraction(self) -> float:
        """Share of its input values, at real tokens, that are not zero: one reading of γ in Eq. 18."""
        return self.counts.real.get("input_event", 0) / max(1, self.counts.real.get("input_element", 0))

    @property
    def mean_value(self) -> float:
        """Mean of its input values at real tokens: the other reading of γ; the same where the input is binary."""
        return self.counts.real.get("input_value", 0) / max(1, self.counts.real.get("input_element", 0))

    def mean_field_operations(self, gamma: str = "mean_value", padding: bool = False) -> float:
        """Return Eq. 18, ``SOPs = T γ FLOPs``, from means alone.

        For an affine it equals the exact count (of accumulates, or by mean value of repeated additions), since every
        input has the same fan-out. For attention it does not: γ is the rate of query, key and value together, FLOPs
        are both products. Nor for a convolution, whose inputs at a border have a smaller fan-out.

        Parameters
        ----------
        gamma : {"nonzero_fraction", "mean_value"}
        padding : bool
            For padding in place of real tokens.

        References
        ----------
        Eq. 18, arXiv 2308.15122.
        """
        if gamma not in GAMMAS:
            raise ValueError(f"gamma is {gamma!r}; choose one of {', '.join(GAMMAS)}")
        tally = self.padding if padding else self.real
        fired = tally.get("input_event" if gamma == "nonzero_fraction" else "input_value", 0)
        return fired * tally.get("dense_mac", 0) / max(1, tally.get("input_element", 0))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: headline counts, every kind, and where spikes drive it the mean-field form."""
        found: dict[str, Any] = {
            **headline(self.real),
            "operator": self.operator,
            "edge": self.edge,
            "stage": self.stage,
            "real": self.real,
            "padding": self.padding,
        }
        if self.spike_driven:
            found["mean_field"] = {
                "nonzero_fraction": self.nonzero_fraction,
                "mean_value": self.mean_value,
                **{f"operations_by_{gamma}": self.mean_field_operations(gamma) for gamma in GAMMAS},
            }
        if self.orders:
            found["attention_orders"] = {
                order: {"real": dict(products.real), "padding": dict(products.padding)}
                for order, products in self.orders.items()
            }
        return found


@dataclass(frozen=True)
class OperationCounts:
    """What a run did, summed over all its sentences.

    Attributes
    ----------
    nodes : dict of str to NodeOperations
        In topological order.
    sentences : int
    sentence_steps : int
        Time steps, summed over sentences.
    real_tokens, padding_tokens : int
        Each token once, not once a step.
    longest_sentence : int
        Real tokens of the longest sentence.
    depth : int
        Neurons one behind the other on the longest path.
    attention_order : str
        Of `ATTENTION_ORDERS`: the one that is in all sums; see `with_attention_order`.
    """

    nodes: Mapping[str, NodeOperations]
    sentences: int
    sentence_steps: int
    real_tokens: int
    padding_tokens: int
    longest_sentence: int
    depth: int
    attention_order: str = "qk_first"

    @property
    def totals(self) -> Tally:
        """All kinds at real tokens, over all nodes."""
        return sum_tallies(node.real for node in self.nodes.values())

    @property
    def padding_totals(self) -> Tally:
        """All kinds at padding, over all nodes."""
        return sum_tallies(node.padding for node in self.nodes.values())

    @property
    def spiking(self) -> bool:
        """Whether any node is driven by spikes; not so for the counts of a dense baseline."""
        return any(node.spike_driven for node in self.nodes.values())

    @property
    def time_steps(self) -> float:
        """Time steps a sentence."""
        return self.sentence_steps / self.sentences

    @property
    def neurons_per_token(self) -> int:
        """Features of all spiking nodes together: every token has its own copy of each."""
        return sum(node.fan_out for node in self.nodes.values() if node.fires)

    def with_attention_order(self, order: str) -> OperationCounts:
        """Return the same counts with attention in the other order.

        Raises
        ------
        ValueError
            The order is not one of `ATTENTION_ORDERS`, or was not counted.
        """
        if order not in ATTENTION_ORDERS:
            raise ValueError(f"attention order {order!r} is not one of {', '.join(ATTENTION_ORDERS)}")
        for node in self.nodes.values():
            if node.orders and order not in node.orders:
                raise ValueError(
                    f"{node.name}: attention order {order!r} was not counted, only {', '.join(node.orders)}"
                )
        nodes = {name: replace(node, attention_order=order) for name, node in self.nodes.items()}
        return replace(self, nodes=nodes, attention_order=order)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: ``ac_binary``, ``ac_graded``, ``mac`` and all else, in all and by ``node``."""
        nodes = self.nodes.values()
        return {
            **headline(self.totals),
            "sentences": self.sentences,
            "time_steps": self.time_steps,
            "tokens": {"real": self.real_tokens, "padding": self.padding_tokens},
            "attention_order": self.attention_order,
            "real": self.totals,
            "padding": self.padding_totals,
            "mean_field": {
                f"operations_by_{gamma}": sum(node.mean_field_operations(gamma) for node in nodes if node.spike_driven)
                for gamma in GAMMAS
            },
            "node": {name: node.to_dict() for name, node in self.nodes.items()},
        }

    as_json = to_dict

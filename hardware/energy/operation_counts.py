"""Counts of what a run did, exactly, from what fired: the numbers every energy estimate starts from.

What each node is charged, for each of its rows. A row is a token at a time step; behind a token mean it is a sentence
at a time step; in front of the first neurons, where token ids make the input constant, it is a token once. ``in`` and
``out`` are features, ``F`` both where they are equal, ``G`` the groups of a norm, ``K`` the hot inputs of a token
(1, or 2 with positions):

===================== ============================================================================================
node                  operations
===================== ============================================================================================
affine on spikes      for each input that is 1: ``out`` ac_binary; for each input k > 1: ``out`` ac_graded, which are
                      ``k out`` ac_graded_additions; ``out`` weight_read for each input that is not 0
affine on analog      ``in out`` mac and weight_read; ``in`` activation_read, ``out`` activation_write
affine on tokens      a gather: ``K out`` embedding_read, ``(K - 1) out`` addition. What the product with a one-hot
                      matrix would cost is in dense_mac
bias of an affine     ``out`` addition and parameter_read
layer norm            ``3 F + 2 G`` mac: each element is squared into the variance, multiplied by 1 / std, and by weight
                      plus bias; each group scales two sums to means. ``2 F + G`` addition: each element is summed into
                      the mean and centred; eps. ``2 G`` special: a square root and a reciprocal a group.
                      ``2 F`` parameter_read, ``3 F`` activation_read, ``F`` activation_write
attention on spikes   see `ATTENTION_ORDERS`, and ``out`` mac for the scale (a shift where it is a power of two)
attention on others   two dense products: mac, no sparsity used
integer graphs        the same, but: a layer norm's table and Newton steps are charged as the root and reciprocal they
                      replace; the attention scale is wiring; a neuron's own bias is an addition and parameter_read
                      where it is not 0; a token sum has no mac and no special
leaky neuron          ``F`` membrane_update, membrane_leak (none without leak), comparison, state_read and state_write;
                      a spike and a reset for each spike; ``F`` addition where the input decays too (I - U)
heaviside             ``F`` comparison; a spike for each spike
residual sum          a residual_addition for each nonzero value that joins the running sum
token mean            ``F`` addition and activation_read a token; ``F`` mac, one special (1 / tokens) and ``F``
                      activation_write a sentence
===================== ============================================================================================

A multiplication alone counts as a mac: it takes the same unit. The operators of graphs that other tools write are in
`hardware.energy.foreign_counts`.

Padding is counted apart, never silently: what the masked tokens add in a run that computes them as a padded batch does.
Where they are masked their neurons send nothing, so what they add is dense: biases, norms, scales, membrane updates,
gathers, and no accumulate. Accumulates appear under padding only where a trace has spikes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import nir
import numpy as np

from export.errors import UnsupportedOperatorError
from export.network import Network, Node
from export.nir_graph.reader import parse_graph
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
)
from hardware.counting_kernel import ValueCounts, count_running_sums
from hardware.edges import SPIKE_DRIVEN, Edge, EdgeKind, edge_kinds, edges_of_checked, running_sums
from hardware.energy.attention_counts import count_spike_products
from hardware.energy.foreign_counts import (
    PASSING,
    count_convolution,
    count_delay,
    count_integer_current_neuron,
    count_integer_integrator,
    count_integrator,
    count_pooling,
    count_resistive_neuron,
    count_scale,
    count_wiring,
    fan_out_of,
    passed_on,
)
from hardware.errors import TraceMismatchError
from hardware.firing import Firing, NodeFiring
from hardware.trace import Trace

OPERATION_KINDS: dict[str, str] = {
    "ac_binary": "accumulate of a weight, caused by a spike",
    "ac_graded": "accumulate of a weight times an integer above 1, as one multi-bit operation",
    "ac_graded_additions": "the same as repeated additions: in place of ac_graded, never beside it",
    "mac": "dense multiply-accumulate",
    "addition": "addition of a bias, or into a mean or a pool; centring",
    "special": "square root, reciprocal",
    "attention_and": "AND of two spikes",
    "attention_count": "count of two spikes that coincide: an increment",
    "attention_add": "addition of a whole number, gated by a spike",
    "membrane_update": "update of a membrane potential, or of a synaptic current that is kept",
    "membrane_leak": "multiplication by the leak in such an update",
    "comparison": "comparison with a threshold",
    "reset": "reset of a potential after a spike",
    "spike": "spike sent",
    "residual_addition": "addition of a nonzero value to a running sum",
    "weight_read": "read of a synaptic weight, without any reuse",
    "parameter_read": "read of a bias, or of a weight or bias of a norm",
    "embedding_read": "read of a number of an embedding table",
    "state_read": "read of a membrane potential, a synaptic current that is kept, or a delayed value",
    "state_write": "write of one",
    "activation_read": "read of an analog activation",
    "activation_write": "write of an analog activation",
}
"""What is counted: kind -> what one is."""

STATISTIC_KINDS: dict[str, str] = {
    "input_element": "values at the input of a spike-driven node, zero or not",
    "input_event": "those that are not zero: events that reach the node",
    "input_value": "their sum",
    "dense_mac": "multiply-accumulates if the node were dense: FLOPs(l) of Eq. 18 over all steps",
}
"""What Eq. 18 needs, kept beside the operations: kind -> what one is."""

ATTENTION_ORDERS: dict[str, str] = {
    "qk_first": "(Q K^T) V, the paper's: each query spike meets that feature of every attended token (attention_and); "
    "where the key spikes too an entry of the map counts up (attention_count); each nonzero entry is added where the "
    "value spikes (attention_add)",
    "kv_first": "Q (K^T V), the same result: each key spike meets every value feature of its head and token "
    "(attention_and); where that spikes too an entry of the map counts up (attention_count); each query spike adds the "
    "nonzero entries of its row (attention_add)",
}
"""The two orders of the attention product: name -> what is charged."""

GAMMAS = ("nonzero_fraction", "mean_value")
"""The two readings of γ, the firing rate of Eq. 18, where a layer's input is integers."""

Tally = dict[str, int]
"""Kind -> count."""


@dataclass(frozen=True)
class Split:
    """Counts at real tokens and at padding, by kind; kinds that did not occur are left out."""

    real: Tally = field(default_factory=dict)
    padding: Tally = field(default_factory=dict)

    def add(self, other: Split) -> None:
        """Add another's counts to these, in place."""
        for own, more in ((self.real, other.real), (self.padding, other.padding)):
            for kind, count in more.items():
                if count:
                    own[kind] = own.get(kind, 0) + count


@dataclass(frozen=True)
class NodeOperations:
    """What one node did.

    Attributes
    ----------
    name, operator : str
        Node, and the name of its operator; that of the float one in an integer graph.
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
    counts : Split
        What does not depend on the order of the attention product.
    orders : dict of str to Split
        For attention, the products in each of `ATTENTION_ORDERS`.
    attention_order : str
        The order `real` and `padding` are charged.
    """

    name: str
    operator: str
    edge: EdgeKind
    stage: str
    fan_in: int
    fan_out: int
    parameters: int = 0
    heads: int = 0
    fires: bool = False
    readers: tuple[int, ...] = ()
    counts: Split = field(default_factory=Split)
    orders: Mapping[str, Split] = field(default_factory=dict)
    attention_order: str = "qk_first"

    @property
    def real(self) -> Tally:
        """Counts at real tokens: kinds of `OPERATION_KINDS` and `STATISTIC_KINDS`, those above 0."""
        chosen = self.orders.get(self.attention_order, Split())
        return _sum([self.counts.real, chosen.real])

    @property
    def padding(self) -> Tally:
        """Counts at padding."""
        chosen = self.orders.get(self.attention_order, Split())
        return _sum([self.counts.padding, chosen.padding])

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
                order: {"real": dict(split.real), "padding": dict(split.padding)}
                for order, split in self.orders.items()
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
        Of `ATTENTION_ORDERS`: the one attention is charged; see `with_attention_order`.
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
        return _sum(node.real for node in self.nodes.values())

    @property
    def padding_totals(self) -> Tally:
        """All kinds at padding, over all nodes."""
        return _sum(node.padding for node in self.nodes.values())

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
        """Return the same counts with attention charged in the other order.

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


def headline(tally: Mapping[str, int]) -> Tally:
    """Return the three counts everyone asks for.

    ``ac_binary`` are all accumulates one spike causes: of a weight, of one (a coincidence), of an entry of the
    attention map. ``ac_graded`` are those by an integer above 1, ``mac`` what is dense.
    """
    binary = sum(tally.get(kind, 0) for kind in ("ac_binary", "attention_count", "attention_add"))
    return {"ac_binary": binary, "ac_graded": tally.get("ac_graded", 0), "mac": tally.get("mac", 0)}


def count_operations(
    trace: Trace,
    graph: nir.NIRGraph | Network,
    real_tokens: np.ndarray | None = None,
    attention_orders: Iterable[str] = tuple(ATTENTION_ORDERS),
) -> OperationCounts:
    """Count what a run did, exactly, from what fired.

    Parameters
    ----------
    trace : Trace
        Of any runner, or of another tool.
    graph : nir.NIRGraph or Network
        The graph that ran.
    real_tokens : ndarray, optional
        ``(B, N)``, nonzero at the tokens to count as real; by default those of the trace's mask. Say it for a run that
        treated padding as ordinary tokens (``attend_to_padding``): its own mask is True everywhere.
    attention_orders : iterable of str
        Orders of the attention product to count, see `OperationCounter`.

    Raises
    ------
    TraceMismatchError
        Trace and graph, or trace and `real_tokens`, do not belong together.

    Examples
    --------
    >>> counts = count_operations(run(graph, input_ids, attention_mask), graph)
    >>> counts.to_dict()["ac_binary"], counts.nodes["block00_qkv_affine"].real["ac_graded"]
    """
    counter = OperationCounter(graph, attention_orders)
    counter.update(trace, real_tokens)
    return counter.result()


class OperationCounter:
    """The streaming form of `count_operations`, for data sets that do not fit in memory.

    Parameters
    ----------
    graph : nir.NIRGraph or Network
    attention_orders : iterable of str
        Which of `ATTENTION_ORDERS` to count, the first being the one that is charged: by default both, the paper's
        first.

    Raises
    ------
    UnsupportedOperatorError
        The graph has an operator whose operations nobody has said.
    ValueError
        An order of attention is not known, or there is none.
    """

    def __init__(
        self, graph: nir.NIRGraph | Network, attention_orders: Iterable[str] = tuple(ATTENTION_ORDERS)
    ) -> None:
        self.attention_orders = tuple(attention_orders)
        if not self.attention_orders or not set(self.attention_orders) <= set(ATTENTION_ORDERS):
            raise ValueError(
                f"attention_orders is {self.attention_orders!r}; give one or both of {', '.join(ATTENTION_ORDERS)}"
            )
        self.network = graph if isinstance(graph, Network) else parse_graph(graph)
        for node in self.network.nodes:
            if not isinstance(node.operator, tuple(_CHARGES)):
                raise UnsupportedOperatorError(
                    f"{node.name}: nobody has said what {type(node.operator).__name__} costs; known are "
                    f"{', '.join(kind.__name__ for kind in _CHARGES)}"
                )
        nodes = self.network.nodes
        self._running_sums = running_sums(self.network)
        self._attention = [node for node in nodes if isinstance(node.operator, SpikeAttention)]
        self._fan_outs = {node.name: found for node in nodes if (found := fan_out_of(node.operator)) is not None}
        self._read_edge = {
            node.name: edge for node in nodes for kind, edge in _READ_EDGES.items() if isinstance(node.operator, kind)
        }
        self._pooled = self.network.pooled
        self._seen: dict[bool, _Seen] = {}  # by whether the trace holds the input: what edges carry depends on that
        self._spiking_input = False
        self._longest_sentence = 0

    def update(self, trace: Trace, real_tokens: np.ndarray | None = None) -> None:
        """Add the counts of one more batch; arguments and errors as of `count_operations`."""
        self.add(Firing(trace, self.network, real_tokens))

    def add(self, firing: Firing) -> None:
        """Add a trace whose sums others read too; it must have been checked against the graph given here.

        Raises
        ------
        TraceMismatchError
            It has no spikes.
        """
        trace = firing.trace
        if not trace.spikes:
            raise TraceMismatchError("the trace has no spikes, so nothing says how many time steps it ran")
        steps = next(iter(trace.spikes.values())).shape[0]
        self._spiking_input = self.network.input_name in trace.spikes
        if self._spiking_input not in self._seen:
            self._seen[self._spiking_input] = self._nothing_seen()
        seen = self._seen[self._spiking_input]
        seen.add_rows(firing, steps)
        counted = self._add_spikes(seen, firing)
        if seen.read <= counted:
            for node in self._attention:
                (source,) = node.sources
                edge = Edge(source, node.name, seen.kinds[node.name][0], trace.spikes.get(source))
                self._add_attention(seen, node, edge, steps, firing)
        else:
            self._add_edges(seen, counted, steps, firing)
        self._longest_sentence = max(self._longest_sentence, int(firing.real.sum(-1).max()))

    def _nothing_seen(self) -> _Seen:
        kinds = edge_kinds(self.network, self._spiking_input)
        sources = {node.name: node.sources for node in self.network.nodes}
        read = {sources[name][edge] for name, edge in self._read_edge.items()}
        return _Seen(
            {name: tuple(kinds[source] for source in sources[name]) for name in sources},
            # an operator that passes spikes on is read itself; one that is none of these is analog, and so is not
            {name for name in read if kinds[name] in SPIKE_DRIVEN}.union(
                self._fan_outs, (node.name for node in self.network.nodes if isinstance(node.operator, PASSING))
            ),
        )

    def _add_spikes(self, seen: _Seen, firing: Firing) -> set[str]:
        """Add what neurons sent, and the running sums of it; return the names of all that was counted."""
        counted = set()
        for node in self.network.spiking_nodes:
            seen.sent_by(node.name).add_spikes(firing.nodes[node.name])
            counted.add(node.name)
        for sums in self._running_sums if not firing.fires_at_padding else ():
            found = count_running_sums([firing.nodes[name].values for name in sums.addends])
            for name, values in zip(sums.names, found or (), strict=False):
                seen.sent_by(name).real.add(_Fired.from_counts(values))
                counted.add(name)
        return counted

    def _add_edges(self, seen: _Seen, counted: set[str], steps: int, firing: Firing) -> None:
        """Add what is not `counted` yet of what flows on the edges."""
        passed: dict[str, Edge] = {}
        for node, edges in edges_of_checked(firing.trace, self.network):
            edges = tuple(
                replace(passed[edge.source], reader=node.name) if edge.source in passed else edge for edge in edges
            )
            sent = passed_on(node.name, node.operator, edges[0])
            if sent is not None:
                passed[node.name] = sent
            seen.kinds[node.name] = tuple(edge.kind for edge in edges)
            read = edges[self._read_edge[node.name]] if node.name in self._read_edge else None
            if read is not None and read.values is not None and read.source not in counted:
                seen.sent_by(read.source).add_values(read, firing)
                counted.add(read.source)
            if node.name in self._fan_outs and edges[0].values is not None:
                pooled = node.sources[0] in self._pooled
                seen.add_by_fan_out(node.name, edges[0], self._fan_outs[node.name], None if pooled else firing.real)
            if isinstance(node.operator, SpikeAttention):
                self._add_attention(seen, node, edges[0], steps, firing)

    def _add_attention(self, seen: _Seen, node: Node, edge: Edge, steps: int, firing: Firing) -> None:
        assert isinstance(node.operator, SpikeAttention)
        for order, split in _attention_products(node.operator, edge, steps, firing, self.attention_orders).items():
            seen.products.setdefault((node.name, order), Split()).add(split)

    def result(self) -> OperationCounts:
        """Return the counts of everything so far, attention in the first of the orders counted.

        Raises
        ------
        TraceMismatchError
            There was no trace yet.
        """
        if not self._seen:
            raise TraceMismatchError("no trace was counted yet; call update(trace) first")
        network = self.network
        stages, readers, constant = _stages(network, self._spiking_input), _readers(network), _constant_nodes(network)
        hot_inputs = 1 if network.token_encoding is None else len(network.token_encoding.tables)
        kinds = self._seen[self._spiking_input].kinds
        nodes = {}
        for node in network.nodes:
            name, operator = node.name, node.operator
            charge = next(charge for kind, charge in _CHARGES.items() if isinstance(operator, kind))
            counts = Split()
            orders = {order: Split() for order in self.attention_orders if isinstance(operator, SpikeAttention)}
            for seen in self._seen.values():
                task = Task(
                    node,
                    seen,
                    pooled=any(source in self._pooled for source in node.sources),
                    constant=all(source in constant for source in node.sources),
                    hot_inputs=hot_inputs,
                )
                counts.add(charge(operator, task))
                for order, split in orders.items():
                    split.add(seen.products[name, order])
            nodes[name] = NodeOperations(
                name=name,
                operator=_charged_as(operator),
                edge=kinds[name][0],
                stage=stages[name],
                fan_in=operator.in_features,
                fan_out=operator.out_features,
                parameters=_parameters(node),
                heads=operator.num_heads if isinstance(operator, SpikeAttention) else 0,
                fires=operator.spikes,
                readers=readers.get(name, ()),
                counts=counts,
                orders=orders,
                attention_order=self.attention_orders[0],
            )
        total = list(self._seen.values())
        return OperationCounts(
            nodes=nodes,
            sentences=sum(seen.sentences for seen in total),
            sentence_steps=sum(seen.sentence_steps for seen in total),
            real_tokens=sum(seen.tokens.real for seen in total),
            padding_tokens=sum(seen.tokens.padding for seen in total),
            longest_sentence=self._longest_sentence,
            depth=_depth(network),
            attention_order=self.attention_orders[0],
        )


@dataclass
class _Fired:
    """How many values are 1, how many are more, and what the latter sum to."""

    ones: int = 0
    graded: int = 0
    graded_sum: int = 0

    @classmethod
    def of(cls, values: np.ndarray, binary: bool) -> _Fired:
        events = int(np.count_nonzero(values))
        if binary or not events:
            return cls(events)
        graded = int(np.count_nonzero(values > 1))
        ones = events - graded
        narrow = np.min_scalar_type(int(values.max()) * values.shape[1])  # several times as fast as a sum in int64
        return cls(ones, graded, int(values.sum(1, dtype=narrow).sum(dtype=np.int64)) - ones)

    @classmethod
    def from_counts(cls, counts: ValueCounts) -> _Fired:
        ones = counts.nonzero - counts.graded
        return cls(ones, counts.graded, counts.total - ones)

    def add(self, other: _Fired, times: int = 1) -> None:
        """Add another's, or with ``times=-1`` take them away, in place."""
        self.ones += times * other.ones
        self.graded += times * other.graded
        self.graded_sum += times * other.graded_sum

    @property
    def events(self) -> int:
        """Values that are not 0."""
        return self.ones + self.graded

    def accumulates(self, fan_out: int) -> Tally:
        """Return what these values cause behind `fan_out` synapses each."""
        return {
            "ac_binary": self.ones * fan_out,
            "ac_graded": self.graded * fan_out,
            "ac_graded_additions": self.graded_sum * fan_out,
            "weight_read": self.events * fan_out,
            "input_event": self.events,
            "input_value": self.ones + self.graded_sum,
        }


@dataclass
class _Carried:
    """What was carried to real tokens, and to padding."""

    real: _Fired = field(default_factory=_Fired)
    padding: _Fired = field(default_factory=_Fired)

    def add_spikes(self, node: NodeFiring) -> None:
        """Add spikes of 0 and 1 that are summed already."""
        self.real.ones += int(node.by_step.sum())
        self.padding.ones += node.fired_at_padding

    def add_values(self, edge: Edge, firing: Firing) -> None:
        """Add what an edge carries."""
        assert edge.values is not None
        self.real.add(_Fired.of(edge.values, edge.kind == "binary"))
        if firing.fires_at_padding:
            at_padding = _Fired.of(edge.values[:, firing.padding], edge.kind == "binary")
            self.real.add(at_padding, -1)
            self.padding.add(at_padding)

    def __iter__(self) -> Iterator[_Fired]:
        """Real tokens first, as in `Split`."""
        return iter((self.real, self.padding))


@dataclass
class _Rows:
    """How often a node is executed, for real tokens and for padding."""

    real: int = 0
    padding: int = 0

    def add(self, real: int, padding: int) -> None:
        """Add so many."""
        self.real += real
        self.padding += padding

    def times(self, **each: int) -> Split:
        """Return `each` kind of operation so often a row."""
        return Split(
            {kind: self.real * count for kind, count in each.items()},
            {kind: self.padding * count for kind, count in each.items()},
        )


@dataclass
class _Seen:
    """What fired in all batches so far and how many rows they had: all that charges are made of, and all just adds up.

    Attributes
    ----------
    kinds : dict
        Of the edges into each node.
    read : set of str
        Sources of which has to be known what they sent, and operators whose edges have to be looked at for that.
    fired : dict
        By source: what it sent.
    by_fan_out : dict
        By node whose inputs differ in fan-out, and by fan-out: what inputs that have it carried.
    products : dict
        By node and order: the attention products.
    sentences, sentence_steps : int
    tokens, token_steps, attended, attended_steps : _Rows
        Tokens, and those that attention sees; each once, and once a time step.
    """

    kinds: dict[str, tuple[EdgeKind, ...]]
    read: set[str]
    fired: dict[str, _Carried] = field(default_factory=dict)
    by_fan_out: dict[str, dict[int, _Carried]] = field(default_factory=dict)
    products: dict[tuple[str, str], Split] = field(default_factory=dict)
    sentences: int = 0
    sentence_steps: int = 0
    tokens: _Rows = field(default_factory=_Rows)
    token_steps: _Rows = field(default_factory=_Rows)
    attended: _Rows = field(default_factory=_Rows)
    attended_steps: _Rows = field(default_factory=_Rows)

    def sent_by(self, source: str) -> _Carried:
        """Return what a source sent so far, to add to it."""
        if source not in self.fired:
            self.fired[source] = _Carried()
        return self.fired[source]

    def add_rows(self, firing: Firing, steps: int) -> None:
        """Add the rows of a batch."""
        real, attended = firing.real, firing.trace.mask
        tokens, attended_tokens = int(np.count_nonzero(real)), int(np.count_nonzero(attended))
        both = int(np.count_nonzero(attended & real))
        self.sentences += len(real)
        self.sentence_steps += len(real) * steps
        self.tokens.add(tokens, real.size - tokens)
        self.token_steps.add(tokens * steps, (real.size - tokens) * steps)
        self.attended.add(both, attended_tokens - both)
        self.attended_steps.add(both * steps, (attended_tokens - both) * steps)

    def add_by_fan_out(self, name: str, edge: Edge, fan_out: np.ndarray, real: np.ndarray | None) -> None:
        """Add what an edge carries from features of each `fan_out` ``(D,)``; every row is real without `real`."""
        assert edge.values is not None
        binary = edge.kind == "binary"
        if real is None:
            real = np.ones(edge.values.shape[1:3], bool)
        for reached in np.unique(fan_out):
            carried = edge.values[..., fan_out == reached]
            total = self.by_fan_out.setdefault(name, {}).setdefault(int(reached), _Carried())
            total.real.add(_Fired.of(carried[:, real], binary))
            total.padding.add(_Fired.of(carried[:, ~real], binary))


@dataclass(frozen=True)
class Task:
    """One node in all that was counted: what flowed in and out, and how many rows were new to it.

    Attributes
    ----------
    node : Node
    seen : _Seen
    pooled : bool
        Whether its rows are sentences.
    constant : bool
        Whether its input never changes.
    hot_inputs : int
        Of a token.
    """

    node: Node
    seen: _Seen
    pooled: bool
    constant: bool
    hot_inputs: int

    @property
    def kind(self) -> EdgeKind:
        """What the first edge carries."""
        return self.seen.kinds[self.node.name][0]

    @property
    def spike_driven(self) -> bool:
        """Whether every edge carries spikes or whole numbers."""
        return all(kind in SPIKE_DRIVEN for kind in self.seen.kinds[self.node.name])

    @property
    def sentences(self) -> int:
        """Sentences, each at every step at which its input is new."""
        return self.seen.sentences if self.constant else self.seen.sentence_steps

    @property
    def attended(self) -> _Rows:
        """Tokens that attention and token means see, each at every step at which its input is new."""
        return self.seen.attended if self.constant else self.seen.attended_steps

    @property
    def rows(self) -> _Rows:
        """Rows whose input is new: only those of the first step where it never changes."""
        if self.pooled:
            return _Rows(self.sentences)
        return self.seen.tokens if self.constant else self.seen.token_steps

    @property
    def step_rows(self) -> _Rows:
        """Rows at every step, for what remembers and so has work to do even where its input never changes."""
        return _Rows(self.seen.sentence_steps) if self.pooled else self.seen.token_steps

    def read(self, edge: int = 0) -> _Carried:
        """Return what an edge carried."""
        return self.seen.fired[self.node.sources[edge]]

    def sent(self, *kinds: str) -> Split:
        """Return the number of spikes the node itself sent, under each of `kinds`."""
        return Split(*(dict.fromkeys(kinds, part.events) for part in self.seen.fired[self.node.name]))

    def additions(self) -> Split:
        """Return an addition for each sum that a value of the first edge joins, if not 0."""
        counted = Split()
        for reached, carried in self.seen.by_fan_out[self.node.name].items():
            counted.add(Split(*({"addition": part.events * reached} for part in carried)))
        return counted

    def synapses(self, fan_out: np.ndarray, width_out: int) -> Split:
        """Return what the first edge causes behind synapses without bias, `fan_out` ``(D,)`` of them each feature."""
        dense = int(fan_out.sum())
        if not self.spike_driven:
            return self.rows.times(
                mac=dense,
                weight_read=dense,
                activation_read=len(fan_out),
                activation_write=width_out,
                dense_mac=dense,
            )
        counted = self.rows.times(input_element=len(fan_out), dense_mac=dense)
        for reached, carried in self.seen.by_fan_out[self.node.name].items():
            counted.add(Split(*(part.accumulates(reached) for part in carried)))
        return counted


def _count_affine(operator: Affine, task: Task) -> Split:
    rows = task.rows
    width_in, width_out = operator.in_features, operator.out_features
    if task.kind == "tokens":
        counted = rows.times(
            embedding_read=task.hot_inputs * width_out,
            addition=(task.hot_inputs - 1) * width_out,
            dense_mac=width_in * width_out,
        )
    elif not task.spike_driven:
        counted = rows.times(
            mac=width_in * width_out,
            weight_read=width_in * width_out,
            activation_read=width_in,
            activation_write=width_out,
            dense_mac=width_in * width_out,
        )
    else:
        counted = rows.times(input_element=width_in, dense_mac=width_in * width_out)
        counted.add(Split(*(part.accumulates(width_out) for part in task.read())))
    if operator.bias is not None:
        counted.add(rows.times(addition=width_out, parameter_read=width_out))
    return counted


def _count_layer_norm(operator: LayerNorm, task: Task) -> Split:
    features, groups = operator.in_features, operator.groups
    return task.rows.times(
        mac=3 * features + 2 * groups,
        addition=2 * features + groups,
        special=2 * groups,
        parameter_read=2 * features,
        activation_read=3 * features,
        activation_write=features,
    )


def _count_neurons(operator: LeakyIntegrateAndFire, task: Task) -> Split:
    features = operator.in_features
    leak = operator.tau if operator.decay_input else operator.beta
    counted = task.step_rows.times(
        membrane_update=features,
        membrane_leak=int(np.count_nonzero(np.not_equal(leak, 1))) * (features // np.size(leak)),
        comparison=features,
        addition=features if operator.decay_input else 0,
        state_read=features,
        state_write=features,
    )
    counted.add(task.sent("spike", "reset"))
    return counted


def _count_integer_neurons(operator: IntegerLeakyIntegrateAndFire, task: Task) -> Split:
    features, biased = operator.in_features, int(np.count_nonzero(operator.bias_mantissa))
    counted = task.step_rows.times(
        membrane_update=features,
        membrane_leak=int(np.count_nonzero(operator.decay)),
        comparison=features,
        addition=biased,
        parameter_read=biased,
        state_read=features,
        state_write=features,
    )
    counted.add(task.sent("spike", "reset"))
    return counted


def _count_heaviside(operator: Heaviside, task: Task) -> Split:
    counted = task.rows.times(comparison=operator.in_features)
    counted.add(task.sent("spike"))
    return counted


def _count_total(operator: Total, task: Task) -> Split:
    if not task.spike_driven:
        return task.rows.times(residual_addition=operator.features)
    return Split(*({"residual_addition": part.events} for part in task.read(_JOINING)))


def _count_token_mean(operator: TokenMean, task: Task) -> Split:
    features, sentences = operator.features, task.sentences
    counted = task.attended.times(addition=features, activation_read=features)
    counted.add(Split({"activation_write": sentences * features}))
    if not isinstance(operator, TokenSum):
        counted.add(Split({"mac": sentences * features, "special": sentences}))
    return counted


def _count_attention(operator: SpikeAttention, task: Task) -> Split:
    """Count what both orders share: the scale, which integers leave to the threshold behind, and what flows in."""
    counted = task.rows.times(mac=0 if isinstance(operator, IntegerSpikeAttention) else operator.out_features)
    if task.kind == "binary":
        counted.add(task.rows.times(input_element=operator.in_features))
        counted.add(Split(*(dict.fromkeys(("input_event", "input_value"), part.events) for part in task.read())))
    return counted


def _attention_products(
    operator: SpikeAttention, edge: Edge, steps: int, firing: Firing, orders: tuple[str, ...]
) -> dict[str, Split]:
    """Count both products in each of `orders`: at real tokens, and what all attended tokens add to that."""
    mask = firing.trace.mask
    attended = _products_among(operator, edge, steps, mask, orders)
    if np.array_equal(mask, firing.real):
        return {order: Split(counted) for order, counted in attended.items()}
    real = _products_among(operator, edge, steps, mask & firing.real, orders)
    return {
        order: Split(real[order], {kind: counted[kind] - real[order][kind] for kind in counted})
        for order, counted in attended.items()
    }


def _products_among(
    operator: SpikeAttention, edge: Edge, steps: int, tokens: np.ndarray, orders: tuple[str, ...]
) -> dict[str, Tally]:
    """Count each of `orders` among the `tokens` ``(B, N)`` of each sentence."""
    lengths = tokens.sum(-1).astype(np.int64)
    dense = {
        "qk_first": 2 * int((lengths**2).sum()) * operator.out_features * steps,
        "kv_first": 2 * int(lengths.sum()) * operator.head_size * operator.out_features * steps,
    }
    if edge.kind != "binary" or edge.values is None:
        return {order: {"mac": dense[order], "dense_mac": dense[order]} for order in orders}
    counted = count_spike_products(edge.values, operator.num_heads, operator.head_size, tokens, orders)
    return {order: {"dense_mac": dense[order], **counted[order]} for order in orders}


_JOINING = 1  # the edge of a sum whose values are added to those of the other
_READ_EDGES: dict[type[Operator], int] = {Affine: 0, SpikeAttention: 0, Total: _JOINING}
"""The edge of which every value is charged alike, whatever feature it belongs to."""

_CHARGES: dict[type[Operator], Callable[[Any, Task], Split]] = {
    Affine: _count_affine,
    LayerNorm: _count_layer_norm,
    LeakyIntegrateAndFire: _count_neurons,
    IntegerLeakyIntegrateAndFire: _count_integer_neurons,
    Heaviside: _count_heaviside,
    SpikeAttention: _count_attention,
    Total: _count_total,
    TokenMean: _count_token_mean,
    Convolution: count_convolution,
    Scale: count_scale,
    Pooling: count_pooling,
    Flatten: count_wiring,
    PreviousStep: count_wiring,
    Delay: count_delay,
    LeakyIntegrator: count_integrator,
    IntegerIntegrator: count_integer_integrator,
    ResistiveNeuron: count_resistive_neuron,
    IntegerCurrentNeuron: count_integer_current_neuron,
}


def _sum(tallies: Iterable[Mapping[str, int]]) -> Tally:
    total: Tally = {}
    for tally in tallies:
        for kind, count in tally.items():
            if count:
                total[kind] = total.get(kind, 0) + count
    return {kind: total[kind] for kind in (*OPERATION_KINDS, *STATISTIC_KINDS) if kind in total}


def _charged_as(operator: Operator) -> str:
    """Return the name energy models know an operator by: an integer one is charged as what it stands for."""
    if isinstance(operator, IntegerLeakyIntegrateAndFire):
        return LeakyIntegrateAndFire.name
    return next(kind.name for kind in _CHARGES if isinstance(operator, kind))


def _parameters(node: Node) -> int:
    operator = node.operator
    arrays: tuple[np.ndarray | None, ...] = ()
    if isinstance(operator, Affine | LayerNorm | Convolution):
        arrays = (operator.weight, operator.bias)
    elif isinstance(operator, Scale):
        arrays = (operator.scale,)
    return sum(array.size for array in arrays if array is not None)


def _constant_nodes(network: Network) -> set[str]:
    """Return the sources that send the same at every step: token ids, and what stands between them and neurons."""
    constant = {network.input_name} if network.token_encoding is not None else set()
    for node in network.nodes:
        remembers = node.operator.spikes or isinstance(node.operator, Delay | LeakyIntegrator | IntegerIntegrator)
        if not remembers and all(source in constant for source in node.sources):
            constant.add(node.name)
    return constant


def _stages(network: Network, spiking_input: bool) -> dict[str, str]:
    """Return ``input`` up to the first neurons, ``head`` behind the last, ``body`` between and behind spikes given."""
    behind_neurons: set[str] = {network.input_name} if spiking_input else set()
    before_neurons: set[str] = set()
    neurons = {node.name for node in network.spiking_nodes}
    for node in network.nodes:
        if any(source in neurons or source in behind_neurons for source in node.sources):
            behind_neurons.add(node.name)
    for node in reversed(network.nodes):
        if node.name in neurons or node.name in before_neurons:
            before_neurons.update(node.sources)
    stages = {}
    for node in network.nodes:
        if node.name not in behind_neurons:
            stages[node.name] = "input"
        else:
            stages[node.name] = "body" if node.name in before_neurons or node.name in neurons else "head"
    return stages


def _readers(network: Network) -> dict[str, tuple[int, ...]]:
    """Return for each source the fan-outs of the nodes that read it, directly or through what only passes spikes on."""
    readers: dict[str, tuple[int, ...]] = {}
    for node in reversed(network.nodes):
        passes_on = isinstance(node.operator, Total | Flatten | Delay | PreviousStep)
        reading = readers.get(node.name, ()) if passes_on else (node.operator.out_features,)
        for source in node.sources:
            readers[source] = reading + readers.get(source, ())
    return readers


def _depth(network: Network) -> int:
    depth: dict[str, int] = {}
    for node in network.nodes:
        depth[node.name] = max(depth.get(source, 0) for source in node.sources) + node.operator.spikes
    return max(depth.values(), default=0)

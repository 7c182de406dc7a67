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

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import nir
import numpy as np

from export.errors import UnsupportedOperatorError
from export.network import Network, Node, parse_graph
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
from hardware.edges import Edge, EdgeKind, edges_of_checked, pooled_nodes
from hardware.energy.attention_counts import count_spike_products
from hardware.energy.foreign_counts import (
    count_convolution,
    count_delay,
    count_integer_current_neuron,
    count_integer_integrator,
    count_integrator,
    count_pooling,
    count_resistive_neuron,
    count_scale,
    count_wiring,
    passed_on,
)
from hardware.errors import TraceMismatchError
from hardware.firing import Firing
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
        first. Leaving one out saves a third of the counting.

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
            if not isinstance(node.operator, tuple(_COUNTERS)):
                raise UnsupportedOperatorError(
                    f"{node.name}: nobody has said what {type(node.operator).__name__} costs; known are "
                    f"{', '.join(kind.__name__ for kind in _COUNTERS)}"
                )
        self._constant = _constant_nodes(self.network)
        self._pooled = pooled_nodes(self.network)
        encoding = self.network.token_encoding
        self._hot_inputs = 1 if encoding is None else len(encoding.tables)
        self._kinds: dict[str, EdgeKind] = {}
        self._spiking_input = False
        self._counts = {node.name: Split() for node in self.network.nodes}
        self._orders = {
            node.name: {order: Split() for order in self.attention_orders}
            for node in self.network.nodes
            if isinstance(node.operator, SpikeAttention)
        }
        self._sentences = self._sentence_steps = self._real_tokens = self._padding_tokens = 0
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
        batch = _Batch(next(iter(trace.spikes.values())).shape[0], firing)
        passed: dict[str, Edge] = {}
        self._spiking_input = self.network.input_name in trace.spikes
        for node, edges in edges_of_checked(trace, self.network):
            edges = tuple(
                replace(passed[edge.source], reader=node.name) if edge.source in passed else edge for edge in edges
            )
            sent = passed_on(node.name, node.operator, edges[0])
            if sent is not None:
                passed[node.name] = sent
            self._kinds[node.name] = edges[0].kind
            task = Task(
                edges,
                trace.spikes.get(node.name),
                batch,
                pooled=any(source in self._pooled for source in node.sources),
                constant=all(source in self._constant for source in node.sources),
                hot_inputs=self._hot_inputs,
            )
            count = next(count for kind, count in _COUNTERS.items() if isinstance(node.operator, kind))
            self._counts[node.name].add(count(node.operator, task))
            if isinstance(node.operator, SpikeAttention):
                for order, split in _attention_products(node.operator, edges[0], batch, self.attention_orders).items():
                    self._orders[node.name][order].add(split)
        self._sentences += len(batch.real)
        self._sentence_steps += len(batch.real) * batch.steps
        self._real_tokens += batch.tokens[0]
        self._padding_tokens += batch.tokens[1]
        self._longest_sentence = max(self._longest_sentence, int(batch.real.sum(-1).max()))

    def result(self) -> OperationCounts:
        """Return the counts of everything so far, attention in the first of the orders counted.

        Raises
        ------
        TraceMismatchError
            There was no trace yet.
        """
        if not self._sentences:
            raise TraceMismatchError("no trace was counted yet; call update(trace) first")
        stages, readers = _stages(self.network, self._spiking_input), _readers(self.network)
        nodes = {
            node.name: NodeOperations(
                name=node.name,
                operator=_charged_as(node.operator),
                edge=self._kinds[node.name],
                stage=stages[node.name],
                fan_in=node.operator.in_features,
                fan_out=node.operator.out_features,
                parameters=_parameters(node),
                heads=node.operator.num_heads if isinstance(node.operator, SpikeAttention) else 0,
                fires=node.operator.spikes,
                readers=readers.get(node.name, ()),
                counts=copy.deepcopy(self._counts[node.name]),
                orders=copy.deepcopy(self._orders.get(node.name, {})),
                attention_order=self.attention_orders[0],
            )
            for node in self.network.nodes
        }
        return OperationCounts(
            nodes=nodes,
            sentences=self._sentences,
            sentence_steps=self._sentence_steps,
            real_tokens=self._real_tokens,
            padding_tokens=self._padding_tokens,
            longest_sentence=self._longest_sentence,
            depth=_depth(self.network),
            attention_order=self.attention_orders[0],
        )


@dataclass(frozen=True)
class _Fired:
    """How many values are 1, how many are more, and what the latter sum to."""

    ones: int
    graded: int
    graded_sum: int

    @classmethod
    def of(cls, values: np.ndarray, binary: bool) -> _Fired:
        events = int(np.count_nonzero(values))
        if binary or not events:
            return cls(events, 0, 0)
        graded = int(np.count_nonzero(values > 1))
        ones = events - graded
        narrow = np.min_scalar_type(int(values.max()) * values.shape[1])  # several times as fast as a sum in int64
        return cls(ones, graded, int(values.sum(1, dtype=narrow).sum(dtype=np.int64)) - ones)

    def __sub__(self, other: _Fired) -> _Fired:
        return _Fired(self.ones - other.ones, self.graded - other.graded, self.graded_sum - other.graded_sum)

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


@dataclass(frozen=True)
class _Batch:
    """What fired in a batch, and what of it was counted already."""

    steps: int
    firing: Firing
    fired: dict[str, tuple[_Fired, _Fired]] = field(default_factory=dict)

    @property
    def real(self) -> np.ndarray:
        """Which tokens are real, ``(B, N)``."""
        return self.firing.real

    @property
    def padding(self) -> np.ndarray:
        """Which are not, ``(B, N)``."""
        return self.firing.padding

    @property
    def attended(self) -> np.ndarray:
        """Which tokens attend to each other, ``(B, N)``."""
        return self.firing.trace.mask

    @cached_property
    def tokens(self) -> tuple[int, int]:
        """Number of real tokens, and of others."""
        return int(np.count_nonzero(self.real)), int(np.count_nonzero(self.padding))

    def count(self, source: str, values: np.ndarray, binary: bool) -> tuple[_Fired, _Fired]:
        """Return what `source` sent ``(T, B, N, D)`` at real tokens and at padding, counted once for all readers."""
        if source not in self.fired:
            node = self.firing.nodes.get(source)
            if binary and node is not None:
                self.fired[source] = (_Fired(int(node.by_step.sum()), 0, 0), _Fired(node.fired_at_padding, 0, 0))
            else:
                everywhere, at_padding = _Fired.of(values, binary), _Fired(0, 0, 0)
                if self.firing.fires_at_padding:
                    at_padding = _Fired.of(values[:, self.padding], binary)
                self.fired[source] = (everywhere - at_padding, at_padding)
        return self.fired[source]


@dataclass(frozen=True)
class _Rows:
    """How often a node is executed in a batch."""

    real: int
    padding: int

    def times(self, **each: int) -> Split:
        """Return `each` kind of operation so often a row."""
        return Split(
            {kind: self.real * count for kind, count in each.items()},
            {kind: self.padding * count for kind, count in each.items()},
        )


@dataclass(frozen=True)
class Task:
    """One node in one batch: what flows in and out, whether its rows are sentences, whether its input ever changes."""

    edges: tuple[Edge, ...]
    spikes: np.ndarray | None
    batch: _Batch
    pooled: bool
    constant: bool
    hot_inputs: int

    @property
    def steps(self) -> int:
        """Steps at which the input is new: only the first where it never changes."""
        return 1 if self.constant else self.batch.steps

    @property
    def rows(self) -> _Rows:
        """Rows whose input is new."""
        return self._rows(self.steps)

    @property
    def step_rows(self) -> _Rows:
        """Rows at every step, for what remembers and so has work to do even where its input never changes."""
        return self._rows(self.batch.steps)

    def read(self, edge: Edge) -> tuple[_Fired, _Fired]:
        """Return what an edge carries to real tokens and to padding."""
        assert edge.values is not None
        return self.batch.count(edge.source, edge.values, edge.kind == "binary")

    def sent(self, *kinds: str) -> Split:
        """Return the number of spikes the node itself sent, under each of `kinds`."""
        assert self.spikes is not None
        counted = self.batch.count(self.edges[0].reader, self.spikes, binary=True)
        return Split(*(dict.fromkeys(kinds, part.events) for part in counted))

    def reaching(self, fan_out: np.ndarray) -> Iterator[tuple[int, tuple[_Fired, _Fired]]]:
        """Yield each fan-out of ``(D,)`` with what features that have it carry, to real tokens and to padding."""
        edge = self.edges[0]
        assert edge.values is not None
        real = np.ones(edge.values.shape[1:3], bool) if self.pooled else self.batch.real
        for reached in np.unique(fan_out):
            carried = edge.values[..., fan_out == reached]
            binary = edge.kind == "binary"
            yield int(reached), (_Fired.of(carried[:, real], binary), _Fired.of(carried[:, ~real], binary))

    def additions(self, fan_out: np.ndarray) -> Split:
        """Return an addition for each of the `fan_out` ``(D,)`` sums that a value of the first edge joins, if not 0."""
        counted = Split()
        for reached, parts in self.reaching(fan_out):
            counted.add(Split(*({"addition": part.events * reached} for part in parts)))
        return counted

    def synapses(self, fan_out: np.ndarray, width_out: int) -> Split:
        """Return what the first edge causes behind synapses without bias, `fan_out` ``(D,)`` of them each feature."""
        dense = int(fan_out.sum())
        if self.edges[0].values is None:
            return self.rows.times(
                mac=dense,
                weight_read=dense,
                activation_read=len(fan_out),
                activation_write=width_out,
                dense_mac=dense,
            )
        counted = self.rows.times(input_element=len(fan_out), dense_mac=dense)
        for reached, parts in self.reaching(fan_out):
            counted.add(Split(*(part.accumulates(reached) for part in parts)))
        return counted

    def _rows(self, steps: int) -> _Rows:
        real, padding = (len(self.batch.real), 0) if self.pooled else self.batch.tokens
        return _Rows(real * steps, padding * steps)


def _count_affine(operator: Affine, task: Task) -> Split:
    edge, rows = task.edges[0], task.rows
    width_in, width_out = operator.in_features, operator.out_features
    if edge.kind == "tokens":
        counted = rows.times(
            embedding_read=task.hot_inputs * width_out,
            addition=(task.hot_inputs - 1) * width_out,
            dense_mac=width_in * width_out,
        )
    elif edge.values is None:
        counted = rows.times(
            mac=width_in * width_out,
            weight_read=width_in * width_out,
            activation_read=width_in,
            activation_write=width_out,
            dense_mac=width_in * width_out,
        )
    else:
        counted = rows.times(input_element=width_in, dense_mac=width_in * width_out)
        counted.add(Split(*(part.accumulates(width_out) for part in task.read(edge))))
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
    running, joining = task.edges
    if running.values is None or joining.values is None:
        return task.rows.times(residual_addition=operator.features)
    return Split(*({"residual_addition": part.events} for part in task.read(joining)))


def _count_token_mean(operator: TokenMean, task: Task) -> Split:
    features, batch = operator.features, task.batch
    sentences = len(batch.real) * task.steps
    averaged = (int((batch.attended & real).sum()) * task.steps * features for real in (batch.real, batch.padding))
    counted = Split(*(dict.fromkeys(("addition", "activation_read"), count) for count in averaged))
    counted.add(Split({"activation_write": sentences * features}))
    if not isinstance(operator, TokenSum):
        counted.add(Split({"mac": sentences * features, "special": sentences}))
    return counted


def _count_attention(operator: SpikeAttention, task: Task) -> Split:
    """Count what both orders share: the scale, which integers leave to the threshold behind, and what flows in."""
    counted = task.rows.times(mac=0 if isinstance(operator, IntegerSpikeAttention) else operator.out_features)
    edge = task.edges[0]
    if edge.kind == "binary" and edge.values is not None:
        counted.add(task.rows.times(input_element=operator.in_features))
        counted.add(Split(*(dict.fromkeys(("input_event", "input_value"), part.events) for part in task.read(edge))))
    return counted


def _attention_products(
    operator: SpikeAttention, edge: Edge, batch: _Batch, orders: tuple[str, ...]
) -> dict[str, Split]:
    """Count both products in each of `orders`: at real tokens, and what all attended tokens add to that."""
    attended = _products_among(operator, edge, batch.steps, batch.attended, orders)
    if np.array_equal(batch.attended, batch.real):
        return {order: Split(counted) for order, counted in attended.items()}
    real = _products_among(operator, edge, batch.steps, batch.attended & batch.real, orders)
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


_COUNTERS: dict[type[Operator], Callable[[Any, Task], Split]] = {
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
    return next(kind.name for kind in _COUNTERS if isinstance(operator, kind))


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

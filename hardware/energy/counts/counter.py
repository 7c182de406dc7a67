"""Counting what a run did, exactly, from what fired: the numbers every energy estimate starts from.

Batch by batch only sums are kept (`Activity`); what each node did follows from them by its row of `OPERATION_COUNTS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import nir
import numpy as np

from export.network import Network, Node
from export.nir_graph.reader import parse_graph
from export.operators.rules import rule_for
from hardware.edges import SPIKE_DRIVEN, Edge, edge_kinds, edges_of_checked, running_sums
from hardware.energy.counts.activity import Activity, Events, NodeActivity
from hardware.energy.counts.kinds import ATTENTION_ORDERS, Tallies
from hardware.energy.counts.result import NodeOperations, OperationCounts
from hardware.energy.counts.rules import OPERATION_COUNTS, CountingRule
from hardware.errors import TraceMismatchError
from hardware.firing import Firing
from hardware.kernels.counting import count_running_sums
from hardware.trace import Trace


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
        Which of `ATTENTION_ORDERS` to count, the first being the one that is in all sums: by default both, the
        paper's first.

    Raises
    ------
    UnsupportedOperatorError
        The graph has an operator without a row in `OPERATION_COUNTS`.
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
        nodes = self.network.nodes
        self._rules: dict[str, CountingRule] = {node.name: rule_for(OPERATION_COUNTS, node) for node in nodes}
        self._running_sums = running_sums(self.network)
        self._with_products = [node for node in nodes if self._rules[node.name].products is not None]
        self._fan_outs: dict[str, np.ndarray] = {}
        self._read_edge: dict[str, int] = {}
        for node in nodes:
            rule = self._rules[node.name]
            if rule.fan_out is not None:
                self._fan_outs[node.name] = rule.fan_out(node.operator)
            if rule.reads is not None:
                self._read_edge[node.name] = rule.reads
        # by whether the trace holds the input: what edges carry depends on that
        self._seen: dict[bool, Activity] = {}
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
            for node in self._with_products:
                kinds = zip(node.sources, seen.kinds[node.name], strict=True)
                edges = tuple(Edge(source, node.name, kind, trace.spikes.get(source)) for source, kind in kinds)
                self._add_products(seen, node, edges, steps, firing)
        else:
            self._add_edges(seen, counted, steps, firing)
        self._longest_sentence = max(self._longest_sentence, int(firing.real.sum(-1).max()))

    def _nothing_seen(self) -> Activity:
        kinds = edge_kinds(self.network, self._spiking_input)
        sources = {node.name: node.sources for node in self.network.nodes}
        read = {sources[name][edge] for name, edge in self._read_edge.items()}
        return Activity(
            {name: tuple(kinds[source] for source in sources[name]) for name in sources},
            # an operator that passes spikes on is read itself; one that is none of these is analog, and so is not
            {name for name in read if kinds[name] in SPIKE_DRIVEN}.union(
                self._fan_outs, (name for name, rule in self._rules.items() if rule.passes_on is not None)
            ),
        )

    def _add_spikes(self, seen: Activity, firing: Firing) -> set[str]:
        """Add what neurons sent, and the running sums of it; return the names of all that was counted."""
        counted = set()
        for node in self.network.spiking_nodes:
            seen.sent_by(node.name).add_spikes(firing.nodes[node.name])
            counted.add(node.name)
        for sums in self._running_sums if not firing.fires_at_padding else ():
            found = count_running_sums([firing.nodes[name].values for name in sums.addends])
            for name, values in zip(sums.names, found or (), strict=False):
                seen.sent_by(name).real.add(Events.from_counts(values))
                counted.add(name)
        return counted

    def _add_edges(self, seen: Activity, counted: set[str], steps: int, firing: Firing) -> None:
        """Add what is not `counted` yet of what flows on the edges."""
        passed: dict[str, Edge] = {}
        for node, edges in edges_of_checked(firing.trace, self.network):
            edges = tuple(
                replace(passed[edge.source], reader=node.name) if edge.source in passed else edge for edge in edges
            )
            rule = self._rules[node.name]
            if rule.passes_on is not None and edges[0].values is not None:
                sent = rule.passes_on(node.operator, edges[0])
                if sent is not None:
                    passed[node.name] = replace(sent, source=node.name)
            seen.kinds[node.name] = tuple(edge.kind for edge in edges)
            read = edges[self._read_edge[node.name]] if node.name in self._read_edge else None
            if read is not None and read.values is not None and read.source not in counted:
                seen.sent_by(read.source).add_values(read, firing)
                counted.add(read.source)
            if node.name in self._fan_outs and edges[0].values is not None:
                pooled = node.sources[0] in self.network.pooled
                seen.add_by_fan_out(node.name, edges[0], self._fan_outs[node.name], None if pooled else firing.real)
            if rule.products is not None:
                self._add_products(seen, node, edges, steps, firing)

    def _add_products(self, seen: Activity, node: Node, edges: tuple[Edge, ...], steps: int, firing: Firing) -> None:
        products = self._rules[node.name].products
        assert products is not None
        for order, counted in products(node.operator, edges, steps, firing, self.attention_orders).items():
            seen.products.setdefault((node.name, order), Tallies()).add(counted)

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
            name, operator, rule = node.name, node.operator, self._rules[node.name]
            counts = Tallies()
            orders = {order: Tallies() for order in self.attention_orders if rule.products is not None}
            for seen in self._seen.values():
                activity = NodeActivity(
                    node,
                    seen,
                    pooled=any(source in network.pooled for source in node.sources),
                    constant=all(source in constant for source in node.sources),
                    hot_inputs=hot_inputs,
                )
                counts.add(rule.count(operator, activity))
                for order, products in orders.items():
                    products.add(seen.products[name, order])
            nodes[name] = NodeOperations(
                name=name,
                operator=rule.name,
                component=rule.component,
                edge=kinds[name][0],
                stage=stages[name],
                fan_in=operator.in_features,
                fan_out=operator.out_features,
                parameters=rule.parameters(operator),
                heads=rule.heads(operator),
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


def _constant_nodes(network: Network) -> set[str]:
    """Return the sources that send the same at every step: token ids, and what stands between them and neurons."""
    constant = {network.input_name} if network.token_encoding is not None else set()
    for node in network.nodes:
        changes = node.operator.spikes or node.operator.traits.remembers
        if not changes and all(source in constant for source in node.sources):
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
        reading = readers.get(node.name, ()) if node.operator.traits.passes_values else (node.operator.out_features,)
        for source in node.sources:
            readers[source] = reading + readers.get(source, ())
    return readers


def _depth(network: Network) -> int:
    depth: dict[str, int] = {}
    for node in network.nodes:
        depth[node.name] = max(depth.get(source, 0) for source in node.sources) + node.operator.spikes
    return max(depth.values(), default=0)

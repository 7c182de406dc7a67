"""How much fires, where and when: firing statistics of one trace, or of a whole data set streamed trace by trace.

A trace of any runner goes in, sums come out: nothing here grows with the number of sentences. The default set (rates by
node, step, position and neuron, silent and saturated neurons) reads every spike about once; what costs more is asked
for by name, see `COLLECTIONS`. Tables, files and pictures of a profile are in ``hardware.reports``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from export.network import Network
from export.nir_graph.reader import parse_graph
from export.operators import SpikeAttention
from hardware.choices import COLLECTIONS
from hardware.edges import sums_of_spikes
from hardware.errors import TraceError, TraceMismatchError
from hardware.firing import Firing, NodeFiring
from hardware.trace import Trace
from spikebert.errors import ConfigurationError

LARGEST_COUNTED_VALUE = (1 << 16) - 1
"""A histogram has one counter per value; this bounds its memory."""

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ValueHistogram:
    """How often each integer flowed out of a node: 0 and 1 of a spiking neuron, small integers of a residual stream.

    Attributes
    ----------
    node : str
        A spiking node, or a sum of several: the residual stream.
    counts : ndarray
        ``(T, K)``: values at real tokens, by time step; column v counts the value v.
    padding_counts : ndarray
        ``(K,)``: values at padding, over all steps.
    """

    node: str
    counts: Counts
    padding_counts: Counts

    @property
    def largest_value(self) -> int:
        """Largest value seen at a real token."""
        seen = np.flatnonzero(self.counts.sum(0))
        return int(seen[-1]) if seen.size else 0

    @property
    def bits(self) -> int:
        """Bits of the smallest word that holds every value seen at a real token, at least 1."""
        return max(1, self.largest_value.bit_length())

    @property
    def shares(self) -> Rates:
        """Share of each value at real tokens, ``(K,)``."""
        counts = self.counts.sum(0)
        return _ratio(counts, counts.sum())

    @property
    def mean_value(self) -> float:
        """Mean of the values at real tokens."""
        return float(self.shares @ np.arange(self.counts.shape[1]))

    @property
    def sparsity_in_values(self) -> float:
        """Share of values that are 0."""
        return float(self.shares[0])

    @property
    def sparsity_in_bits(self) -> float:
        """Share of bits that are 0 when every value is a word of `bits` bits."""
        ones = np.array([value.bit_count() for value in range(self.counts.shape[1])])
        return float(1 - self.shares @ ones / self.bits)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "node": self.node,
            "counts": self.counts.sum(0).tolist(),
            "counts_by_step": self.counts.tolist(),
            "counts_at_padding": self.padding_counts.tolist(),
            "mean_value": _number(self.mean_value),
            "largest_value": self.largest_value,
            "bits": self.bits,
            "sparsity_in_values": _number(self.sparsity_in_values),
            "sparsity_in_bits": _number(self.sparsity_in_bits),
        }


@dataclass(frozen=True, eq=False)
class Persistence:
    """How often a neuron that fired at step t fires at t + 1 on the same token, against chance.

    Chance is what would be seen if every neuron kept its own firing rate of each step, but fired independently of what
    it did before; so a neuron that fires often anyway counts as no surprise.

    Attributes
    ----------
    fired, fired_again : ndarray
        ``(T - 1,)``: spikes at step t on real tokens, and those followed by one at t + 1.
    expected_again : ndarray
        ``(T - 1,)``: `fired_again` by chance.
    """

    fired: Counts
    fired_again: Counts
    expected_again: Rates

    @property
    def share(self) -> float:
        """Share of spikes followed by another at the next step; NaN where nothing fired before the last step."""
        return float(_ratio(self.fired_again.sum(), self.fired.sum()))

    @property
    def chance(self) -> float:
        """The same share by chance."""
        return float(_ratio(self.expected_again.sum(), self.fired.sum()))

    @property
    def share_by_step(self) -> Rates:
        """`share` of each step but the last, ``(T - 1,)``."""
        return _ratio(self.fired_again, self.fired)

    @property
    def chance_by_step(self) -> Rates:
        """`chance` of each step but the last, ``(T - 1,)``."""
        return _ratio(self.expected_again, self.fired)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "share": _number(self.share),
            "chance": _number(self.chance),
            "share_by_step": _numbers(self.share_by_step),
            "chance_by_step": _numbers(self.chance_by_step),
        }


@dataclass(frozen=True, eq=False)
class NodeProfile:
    """What one spiking node did. A rate is spikes per neuron, real token and time step; padding is counted apart.

    Behind a token mean a sentence has one row in place of its tokens; that row counts as one real token at position 0.

    Attributes
    ----------
    node : str
    fired_by_position : ndarray
        ``(T, N)``: nonzero outputs at real tokens, over sentences and neurons.
    fired_by_neuron : ndarray
        ``(T, D)``: the same, over sentences and tokens.
    fired_at_padding : int
        Nonzero outputs at padding. Our runners silence padding; another tool may not.
    value_sum : ndarray
        ``(T,)``: sum of the outputs at real tokens; more than was fired where spikes are graded.
    largest_value : int
        Largest output at a real token; 1 for binary spikes, 0 where nothing fired.
    tokens_by_position, padding_by_position : ndarray
        ``(N,)``: real tokens and padding seen at each position.
    fired_by_head : dict of str to ndarray, or None
        ``(T, N, H)`` for ``query``, ``key`` and ``value`` of what attention reads, and for ``attended``, what it
        gives. None where not collected, empty where the node has no heads.
    histogram : ValueHistogram or None
    persistence : Persistence or None
    """

    node: str
    fired_by_position: Counts
    fired_by_neuron: Counts
    fired_at_padding: int
    value_sum: Counts
    largest_value: int
    tokens_by_position: Counts
    padding_by_position: Counts
    fired_by_head: dict[str, Counts] | None = None
    histogram: ValueHistogram | None = None
    persistence: Persistence | None = None

    @property
    def time_steps(self) -> int:
        """T."""
        return self.fired_by_neuron.shape[0]

    @property
    def neurons(self) -> int:
        """D, features of a token."""
        return self.fired_by_neuron.shape[1]

    @property
    def spikes(self) -> int:
        """Nonzero outputs at real tokens."""
        return int(self.fired_by_neuron.sum())

    @property
    def opportunities(self) -> int:
        """How many there could have been: steps x real tokens x neurons."""
        return self.time_steps * int(self.tokens_by_position.sum()) * self.neurons

    @property
    def padding_opportunities(self) -> int:
        """The same at padding."""
        return self.time_steps * int(self.padding_by_position.sum()) * self.neurons

    @property
    def graded(self) -> bool:
        """Whether a spike was worth more than 1."""
        return self.largest_value > 1

    @property
    def firing_rate(self) -> float:
        """Share of neurons that fired, over steps and real tokens; NaN without a real token."""
        return float(_ratio(self.spikes, self.opportunities))

    @property
    def firing_rate_with_padding(self) -> float:
        """The rate a tool that takes padding for tokens would report."""
        return float(_ratio(self.spikes + self.fired_at_padding, self.opportunities + self.padding_opportunities))

    @property
    def mean_value(self) -> float:
        """Mean output; the firing rate where spikes are binary."""
        return float(_ratio(self.value_sum.sum(), self.opportunities))

    @property
    def firing_rate_by_step(self) -> Rates:
        """``(T,)``."""
        return _ratio(self.fired_by_neuron.sum(1), self.tokens_by_position.sum() * self.neurons)

    @property
    def firing_rate_by_position(self) -> Rates:
        """``(N,)``; NaN at positions no real token stood at."""
        return _ratio(self.fired_by_position.sum(0), self.time_steps * self.tokens_by_position * self.neurons)

    @property
    def firing_rate_by_step_and_position(self) -> Rates:
        """``(T, N)``."""
        return _ratio(self.fired_by_position, self.tokens_by_position * self.neurons)

    @property
    def firing_rate_by_neuron(self) -> Rates:
        """``(D,)``."""
        return _ratio(self.fired_by_neuron.sum(0), self.time_steps * self.tokens_by_position.sum())

    @property
    def firing_rate_by_step_and_neuron(self) -> Rates:
        """``(T, D)``."""
        return _ratio(self.fired_by_neuron, self.tokens_by_position.sum())

    @property
    def firing_rate_by_head(self) -> dict[str, Rates]:
        """``(H,)`` for each part, see `fired_by_head`; empty where there are no heads or none were collected."""
        return {part: rates.mean(0) for part, rates in self.firing_rate_by_step_and_head.items()}

    @property
    def firing_rate_by_step_and_head(self) -> dict[str, Rates]:
        """``(T, H)`` for each part."""
        parts = self.fired_by_head or {}
        tokens = self.tokens_by_position.sum()
        rates = {}
        for part, fired in parts.items():
            neurons_of_a_head = self.neurons // (len(parts) * fired.shape[-1])
            rates[part] = _ratio(fired.sum(1), tokens * neurons_of_a_head)
        return rates

    @property
    def silent_neurons(self) -> NDArray[np.int64]:
        """Indices of the neurons that never fired at a real token."""
        return np.flatnonzero(self.fired_by_neuron.sum(0) == 0)

    @property
    def saturated_neurons(self) -> NDArray[np.int64]:
        """Indices of the neurons that fired at every step of every real token."""
        chances = self.time_steps * self.tokens_by_position.sum()
        return np.flatnonzero((self.fired_by_neuron.sum(0) == chances) & (chances > 0))

    @property
    def silent_share(self) -> float:
        """Share of silent neurons."""
        return len(self.silent_neurons) / self.neurons

    @property
    def saturated_share(self) -> float:
        """Share of saturated neurons."""
        return len(self.saturated_neurons) / self.neurons

    def to_dict(self, detailed: bool = False) -> dict[str, Any]:
        """Return JSON values.

        Parameters
        ----------
        detailed : bool
            Also list silent and saturated neurons by index, and rates by neuron and by step and position.
        """
        result: dict[str, Any] = {
            "node": self.node,
            "neurons": self.neurons,
            "spikes": self.spikes,
            "opportunities": self.opportunities,
            "firing_rate": _number(self.firing_rate),
            "firing_rate_by_step": _numbers(self.firing_rate_by_step),
            "firing_rate_by_position": _numbers(self.firing_rate_by_position),
            "firing_rate_with_padding": _number(self.firing_rate_with_padding),
            "spikes_at_padding": self.fired_at_padding,
            "mean_value": _number(self.mean_value),
            "largest_value": self.largest_value,
            "silent": {"count": len(self.silent_neurons), "share": self.silent_share},
            "saturated": {"count": len(self.saturated_neurons), "share": self.saturated_share},
        }
        if self.fired_by_head is not None:
            result["firing_rate_by_head"] = {part: _numbers(rate) for part, rate in self.firing_rate_by_head.items()}
        if self.histogram is not None:
            result["histogram"] = self.histogram.to_dict()
        if self.persistence is not None:
            result["persistence"] = self.persistence.to_dict()
        if detailed:
            result["silent"]["neurons"] = self.silent_neurons.tolist()
            result["saturated"]["neurons"] = self.saturated_neurons.tolist()
            result["firing_rate_by_neuron"] = _numbers(self.firing_rate_by_neuron)
            result["firing_rate_by_step_and_position"] = _numbers(self.firing_rate_by_step_and_position)
        return result


@dataclass(frozen=True, eq=False)
class Profile:
    """Firing statistics of everything a profiler has seen.

    Attributes
    ----------
    nodes : dict of str to NodeProfile
        In topological order.
    streams : dict of str to ValueHistogram
        Sums of spikes along the graph (the residual stream), where the histogram was collected and a graph was given.
    sentences : int
    tokens_by_position, padding_by_position : ndarray
        ``(N,)``: real tokens and padding at each position; N is the longest batch.
    collected : tuple of str
        What was asked for beyond the default set.
    """

    nodes: dict[str, NodeProfile]
    streams: dict[str, ValueHistogram]
    sentences: int
    tokens_by_position: Counts
    padding_by_position: Counts
    collected: tuple[str, ...] = ()

    @property
    def time_steps(self) -> int:
        """T."""
        return next(iter(self.nodes.values())).time_steps

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.tokens_by_position.sum())

    @property
    def padding_tokens(self) -> int:
        """Tokens that are padding."""
        return int(self.padding_by_position.sum())

    @property
    def spikes(self) -> int:
        """Spikes of all nodes at real tokens."""
        return sum(node.spikes for node in self.nodes.values())

    @property
    def firing_rate(self) -> float:
        """Share of all neurons of all nodes that fired, over steps and real tokens."""
        return float(_ratio(self.spikes, sum(node.opportunities for node in self.nodes.values())))

    @property
    def firing_rate_with_padding(self) -> float:
        """The rate a tool that takes padding for tokens would report."""
        nodes = self.nodes.values()
        fired = sum(node.spikes + node.fired_at_padding for node in nodes)
        return float(_ratio(fired, sum(node.opportunities + node.padding_opportunities for node in nodes)))

    @property
    def silent_nodes(self) -> list[str]:
        """Nodes of which no neuron ever fired."""
        return [name for name, node in self.nodes.items() if node.silent_share == 1]

    @property
    def saturated_nodes(self) -> list[str]:
        """Nodes of which every neuron always fired."""
        return [name for name, node in self.nodes.items() if node.saturated_share == 1]

    def to_dict(self, detailed: bool = False) -> dict[str, Any]:
        """Return JSON values; see `NodeProfile.to_dict` for `detailed`."""
        return {
            "sentences": self.sentences,
            "time_steps": self.time_steps,
            "tokens": {"real": self.real_tokens, "padding": self.padding_tokens},
            "tokens_by_position": self.tokens_by_position.tolist(),
            "spikes": self.spikes,
            "firing_rate": _number(self.firing_rate),
            "firing_rate_with_padding": _number(self.firing_rate_with_padding),
            "silent_nodes": self.silent_nodes,
            "saturated_nodes": self.saturated_nodes,
            "collected": list(self.collected),
            "nodes": [node.to_dict(detailed) for node in self.nodes.values()],
            "streams": [stream.to_dict() for stream in self.streams.values()],
        }


def profile(
    trace: Trace,
    graph: nir.NIRGraph | Network | None = None,
    collect: Iterable[str] = (),
    real_tokens: np.ndarray | None = None,
) -> Profile:
    """Profile one trace; see `Profiler` for parameters and errors.

    Examples
    --------
    >>> found = profile(run(graph, input_ids), graph, collect=("histogram",))
    >>> found.nodes["block00_qkv_neuron"].firing_rate_by_step
    """
    profiler = Profiler(graph, collect)
    profiler.update(trace, real_tokens)
    return profiler.result()


class Profiler:
    """Adds up firing statistics trace by trace; memory does not grow with the number of traces.

    Parameters
    ----------
    graph : nir.NIRGraph or Network, optional
        What was run. With it, traces are checked against the graph, heads are known, and the values of the residual
        stream are derived: of every sum of spikes, also where only the output reads it.
    collect : iterable of str
        Any of `COLLECTIONS`.

    Raises
    ------
    ConfigurationError
        A name in `collect` is not known, or ``"heads"`` is asked for without a graph.
    GraphError
        The graph means nothing.
    """

    def __init__(self, graph: nir.NIRGraph | Network | None = None, collect: Iterable[str] = ()) -> None:
        self.collect = tuple(dict.fromkeys(collect))
        for name in self.collect:
            if name not in COLLECTIONS:
                raise ConfigurationError(f"collect {name!r} is not known; choose from {', '.join(COLLECTIONS)}")
        if "heads" in self.collect and graph is None:
            raise ConfigurationError("collect 'heads' needs the graph, which says where the heads are; give graph")
        self.network = graph if graph is None or isinstance(graph, Network) else parse_graph(graph)
        self._heads = head_layouts(self.network) if self.network is not None and "heads" in self.collect else {}
        self._nodes: dict[str, _NodeSums] = {}
        self._streams: dict[str, _HistogramSums] = {}
        self._tokens = np.zeros(0, np.int64)
        self._padding = np.zeros(0, np.int64)
        self._sentences = 0

    def update(self, trace: Trace, real_tokens: np.ndarray | None = None) -> None:
        """Add one trace.

        Parameters
        ----------
        trace : Trace
            Of any runner, or of another tool.
        real_tokens : ndarray, optional
            ``(B, N)``, nonzero at the tokens to count as real; by default those of the trace's mask. Say it for a run
            that treated padding as ordinary tokens (``attend_to_padding``): its own mask is True everywhere.

        Raises
        ------
        TraceMismatchError
            Its nodes, time steps, shapes or values are not those of the graph or of the traces before, or its tokens
            not those of `real_tokens`.
        TraceError
            A spike is negative, no whole number, or too large for a histogram. Nothing was added then.
        """
        self.add(Firing(trace, self.network, real_tokens))

    def add(self, firing: Firing) -> None:
        """Add one trace whose sums others read too; it must have been checked against the graph given here.

        Raises
        ------
        TraceMismatchError, TraceError
            As `update` does.
        """
        nodes = self._neurons(firing)
        self._check(nodes)
        for name, node in nodes.items():
            if name not in self._nodes:
                steps, neurons = node.values.shape[0], node.values.shape[-1]
                self._nodes[name] = _NodeSums(steps, neurons, self._heads.get(name), self.collect)
            self._nodes[name].add(node)
        if "histogram" in self.collect and self.network is not None:
            self._add_streams(firing)
        self._tokens = _add_along_positions(self._tokens, firing.tokens_by_position)
        self._padding = _add_along_positions(self._padding, firing.padding_by_position)
        self._sentences += firing.real.shape[0]

    def _neurons(self, firing: Firing) -> dict[str, NodeFiring]:
        """Return all nodes that fired but the graph's input, which is no neurons of the graph."""
        fed = None if self.network is None else self.network.input_name
        return {name: node for name, node in firing.nodes.items() if name != fed}

    def _add_streams(self, firing: Firing) -> None:
        assert self.network is not None
        for name, values in sums_of_spikes(firing.trace, self.network):
            self._streams.setdefault(name, _HistogramSums(values.shape[0])).add(values, firing.real)

    def result(self) -> Profile:
        """Return the profile of everything added so far; adding may go on afterwards.

        Raises
        ------
        TraceError
            Nothing was added.
        """
        if not self._nodes:
            raise TraceError("nothing was profiled yet; give the profiler a trace first: update(trace)")
        return Profile(
            nodes={name: sums.profile(name) for name, sums in self._nodes.items()},
            streams={name: sums.histogram(name) for name, sums in self._streams.items()},
            sentences=self._sentences,
            tokens_by_position=self._tokens.copy(),
            padding_by_position=self._padding.copy(),
            collected=self.collect,
        )

    def _check(self, nodes: dict[str, NodeFiring]) -> None:
        """Refuse what does not fit, before anything is added."""
        if not nodes:
            raise TraceMismatchError("the trace has no spiking node; there is nothing to profile")
        steps: int | None = None
        for name, node in nodes.items():
            values = node.values
            before = self._nodes.get(name)
            if self._nodes and before is None:
                raise TraceMismatchError(f"{name}: has spikes in this trace, but had none in those before")
            steps = steps or values.shape[0]
            expected = (steps, values.shape[-1]) if before is None else (before.time_steps, before.neurons)
            if (values.shape[0], values.shape[-1]) != expected or not values.size:
                raise TraceMismatchError(
                    f"{name}: {values.shape[0]} time steps of {values.shape[-1]} neurons; expected {expected[0]} of "
                    f"{expected[1]}, as in the other nodes and traces, and none of them 0"
                )
            if "histogram" in self.collect and node.largest > LARGEST_COUNTED_VALUE:
                raise TraceError(
                    f"{name}: a spike of {node.largest}; a histogram counts values up to {LARGEST_COUNTED_VALUE}; "
                    "leave 'histogram' out of collect"
                )
        for name in self._nodes:
            if name not in nodes:
                raise TraceMismatchError(f"{name}: has no spikes in this trace, but had some in those before")


@dataclass(frozen=True)
class HeadLayout:
    """How the features of a node split into heads: `parts` after one another, each ``heads x head_size``."""

    parts: tuple[str, ...]
    heads: int


def head_layouts(network: Network) -> dict[str, HeadLayout]:
    """Return where the heads of a network are: the spikes each attention reads, and the neurons that read it."""
    layouts = {}
    spiking = {node.name for node in network.spiking_nodes}
    attentions = {node.name: node for node in network.nodes if isinstance(node.operator, SpikeAttention)}
    for node in network.nodes:
        if node.name in attentions and node.sources[0] in spiking:
            layouts[node.sources[0]] = HeadLayout(("query", "key", "value"), node.operator.num_heads)  # type: ignore[attr-defined]
        elif node.name in spiking and node.sources[0] in attentions:
            layouts[node.name] = HeadLayout(("attended",), attentions[node.sources[0]].operator.num_heads)  # type: ignore[attr-defined]
    return layouts


@dataclass
class _NodeSums:
    """Running sums of one node; see `NodeProfile` for what each is."""

    time_steps: int
    neurons: int
    layout: HeadLayout | None
    collect: tuple[str, ...]
    fired_at_padding: int = 0
    largest_value: int = 0
    tokens: np.ndarray = field(init=False)
    padding: np.ndarray = field(init=False)
    fired_by_position: np.ndarray = field(init=False)
    fired_by_neuron: np.ndarray = field(init=False)
    value_sum: np.ndarray = field(init=False)
    fired_by_head: np.ndarray | None = field(init=False, default=None)
    fired_again: np.ndarray = field(init=False)
    values: _HistogramSums = field(init=False)

    def __post_init__(self) -> None:
        """Start at zero."""
        self.tokens = np.zeros(0, np.int64)
        self.padding = np.zeros(0, np.int64)
        self.fired_by_position = np.zeros((self.time_steps, 0), np.int64)
        self.fired_by_neuron = np.zeros((self.time_steps, self.neurons), np.int64)
        self.value_sum = np.zeros(self.time_steps, np.int64)
        self.fired_again = np.zeros(self.time_steps - 1, np.int64)
        self.values = _HistogramSums(self.time_steps)
        if self.layout is not None:
            self.fired_by_head = np.zeros((self.time_steps, 0, len(self.layout.parts), self.layout.heads), np.int64)

    def add(self, node: NodeFiring) -> None:
        """Add what the node sent in one trace."""
        self.tokens = _add_along_positions(self.tokens, node.tokens_by_position)
        self.padding = _add_along_positions(self.padding, node.padding_by_position)
        self.fired_at_padding += node.fired_at_padding
        self.fired_by_position = _add_along_positions(self.fired_by_position, node.by_position)
        self.fired_by_neuron += node.by_neuron
        if node.largest <= 1:
            self.value_sum += node.by_step
            self.largest_value = max(self.largest_value, int(node.by_step.any()))
        else:
            kept = node.values * node.real[..., None]
            self.value_sum += kept.sum((1, 2, 3), dtype=np.int64)
            self.largest_value = max(self.largest_value, int(kept.max()))
        if self.fired_by_head is not None:
            steps, tokens, _ = node.over_sentences.shape
            by_head = node.over_sentences.reshape(steps, tokens, *self.fired_by_head.shape[2:], -1)
            self.fired_by_head = _add_along_positions(self.fired_by_head, by_head.sum(-1, dtype=np.int64))
        if "persistence" in self.collect:
            for step in range(self.time_steps - 1):
                self.fired_again[step] += np.count_nonzero(node.fired[step] & node.fired[step + 1])
        if "histogram" in self.collect:
            if node.largest <= 1:
                self.values.add_binary(node)
            else:
                self.values.add(node.values, node.real)

    def profile(self, name: str) -> NodeProfile:
        """Return what was added as a profile that later additions do not change."""
        by_head: dict[str, np.ndarray] | None = None
        if "heads" in self.collect:
            parts = self.layout.parts if self.layout is not None else ()
            by_head = {part: self.fired_by_head[:, :, index].copy() for index, part in enumerate(parts)}  # type: ignore[index]
        persistence = None
        if "persistence" in self.collect:
            now, after = self.fired_by_neuron[:-1], self.fired_by_neuron[1:]
            expected = np.nan_to_num(_ratio((now * after.astype(np.float64)).sum(1), self.tokens.sum()))
            persistence = Persistence(now.sum(1), self.fired_again.copy(), expected)
        return NodeProfile(
            node=name,
            fired_by_position=self.fired_by_position.copy(),
            fired_by_neuron=self.fired_by_neuron.copy(),
            fired_at_padding=self.fired_at_padding,
            value_sum=self.value_sum.copy(),
            largest_value=self.largest_value,
            tokens_by_position=self.tokens.copy(),
            padding_by_position=self.padding.copy(),
            fired_by_head=by_head,
            histogram=self.values.histogram(name) if "histogram" in self.collect else None,
            persistence=persistence,
        )


class _HistogramSums:
    """Running counts of values by time step, wide enough for the largest seen."""

    def __init__(self, time_steps: int) -> None:
        self.counts = np.zeros((time_steps, 2), np.int64)
        self.padding_counts = np.zeros(2, np.int64)

    def add(self, values: np.ndarray, mask: np.ndarray) -> None:
        """Count integers ``(T, B, N, D)``."""
        width = max(int(values.max()) + 1, self.counts.shape[1])
        grown = width - self.counts.shape[1]
        self.counts = np.pad(self.counts, ((0, 0), (0, grown)))
        self.padding_counts = np.pad(self.padding_counts, (0, grown))
        for step, of_step in enumerate(values):
            self.counts[step] += np.bincount(of_step[mask].reshape(-1), minlength=width)
            self.padding_counts += np.bincount(of_step[~mask].reshape(-1), minlength=width)

    def add_binary(self, node: NodeFiring) -> None:
        """Count zeros and ones of which the ones are counted already."""
        steps, _, _, neurons = node.values.shape
        self.counts[:, 0] += int(node.tokens_by_position.sum()) * neurons - node.by_step
        self.counts[:, 1] += node.by_step
        padding = int(node.padding_by_position.sum()) * neurons * steps
        self.padding_counts[:2] += (padding - node.fired_at_padding, node.fired_at_padding)

    def histogram(self, name: str) -> ValueHistogram:
        """Return a copy."""
        return ValueHistogram(name, self.counts.copy(), self.padding_counts.copy())


def _add_along_positions(total: np.ndarray, addend: np.ndarray) -> np.ndarray:
    """Add two arrays whose token axis (1, or 0 of a vector) may differ in length."""
    if total.shape == addend.shape:
        return total + addend
    axis = min(1, addend.ndim - 1)
    longest = max(total.shape[axis], addend.shape[axis])
    result = np.zeros((*addend.shape[:axis], longest, *addend.shape[axis + 1 :]), np.int64)
    for part in (total, addend):
        result[(slice(None),) * axis + (slice(part.shape[axis]),)] += part
    return result


def _ratio(count: Any, of: Any) -> Any:
    """Divide; NaN where there was nothing to count."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(count, np.float64) / np.asarray(of, np.float64)


def _number(value: float) -> float | None:
    """Return a number as JSON has it: no NaN."""
    return None if np.isnan(value) else float(value)


def _numbers(values: np.ndarray) -> list[Any]:
    return [_numbers(row) for row in values] if values.ndim > 1 else [_number(value) for value in values]

"""What was seen of a run: the events that flowed on its edges and how many rows there were.

All that is counted is made of these sums, once, at the end (`NodeActivity`); batch by batch they just add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from export.network import Node
from hardware.energy.counts.kinds import Tallies, Tally
from hardware.kernels.counting import ValueCounts
from hardware.traces.edges import SPIKE_DRIVEN, Edge, EdgeKind
from hardware.traces.firing import Firing, NodeFiring


@dataclass
class Events:
    """Values that are not 0: how many are 1 or -1, how many are more, and what the latter sum to, all without sign."""

    ones: int = 0
    graded: int = 0
    graded_sum: int = 0

    @classmethod
    def of(cls, values: np.ndarray, binary: bool) -> Events:
        """Return those of ``(T, B, N, D)`` or ``(T, rows, D)`` whole numbers, `binary` where none is above 1."""
        events = int(np.count_nonzero(values))
        if binary or not events:
            return cls(events)
        if values.dtype.kind == "i":  # a weight is taken away as it is added
            values = np.abs(values, dtype=np.int64)
        graded = int(np.count_nonzero(values > 1))
        ones = events - graded
        narrow = np.min_scalar_type(int(values.max()) * values.shape[1])  # several times as fast as a sum in int64
        return cls(ones, graded, int(values.sum(1, dtype=narrow).sum(dtype=np.int64)) - ones)

    @classmethod
    def from_counts(cls, counts: ValueCounts) -> Events:
        """Return values that are counted already."""
        ones = counts.nonzero - counts.graded
        return cls(ones, counts.graded, counts.total - ones)

    def add(self, other: Events, times: int = 1) -> None:
        """Add another's, or with ``times=-1`` take them away, in place."""
        self.ones += times * other.ones
        self.graded += times * other.graded
        self.graded_sum += times * other.graded_sum

    @property
    def nonzero(self) -> int:
        """Values that are not 0."""
        return self.ones + self.graded

    def accumulates(self, fan_out: int) -> Tally:
        """Return what these values cause behind `fan_out` synapses each."""
        return {
            "ac_binary": self.ones * fan_out,
            "ac_graded": self.graded * fan_out,
            "ac_graded_additions": self.graded_sum * fan_out,
            "weight_read": self.nonzero * fan_out,
            "input_event": self.nonzero,
            "input_value": self.ones + self.graded_sum,
        }


@dataclass
class EdgeEvents:
    """The events of an edge at real tokens, and at padding."""

    real: Events = field(default_factory=Events)
    padding: Events = field(default_factory=Events)

    def add_spikes(self, node: NodeFiring) -> None:
        """Add spikes, of which those of 0 and 1 are summed already."""
        if node.is_binary:
            self.real.ones += int(node.by_step.sum())
            self.padding.ones += node.fired_at_padding
        else:
            self.real.add(Events.of(node.values[:, node.real], binary=False))
            self.padding.add(Events.of(node.values[:, node.padding], binary=False))

    def add_values(self, edge: Edge, firing: Firing) -> None:
        """Add what an edge carries."""
        assert edge.values is not None
        self.real.add(Events.of(edge.values, edge.kind == "binary"))
        if firing.fires_at_padding:
            at_padding = Events.of(edge.values[:, firing.padding], edge.kind == "binary")
            self.real.add(at_padding, -1)
            self.padding.add(at_padding)

    def tallies(self, count: Callable[[Events], Tally]) -> Tallies:
        """Return what `count` makes of the events at real tokens, and of those at padding."""
        return Tallies(count(self.real), count(self.padding))


@dataclass
class Rows:
    """How often a node is executed, for real tokens and for padding."""

    real: int = 0
    padding: int = 0

    def add(self, real: int, padding: int) -> None:
        """Add so many."""
        self.real += real
        self.padding += padding

    def times(self, **each: int) -> Tallies:
        """Return `each` kind of operation so often a row."""
        return Tallies(
            {kind: self.real * count for kind, count in each.items()},
            {kind: self.padding * count for kind, count in each.items()},
        )


@dataclass
class Activity:
    """What fired in all batches so far, and how many rows they had.

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
    tokens, token_steps, attended, attended_steps : Rows
        Tokens, and those that attention sees; each once, and once a time step.
    """

    kinds: dict[str, tuple[EdgeKind, ...]]
    read: set[str]
    fired: dict[str, EdgeEvents] = field(default_factory=dict)
    by_fan_out: dict[str, dict[int, EdgeEvents]] = field(default_factory=dict)
    products: dict[tuple[str, str], Tallies] = field(default_factory=dict)
    sentences: int = 0
    sentence_steps: int = 0
    tokens: Rows = field(default_factory=Rows)
    token_steps: Rows = field(default_factory=Rows)
    attended: Rows = field(default_factory=Rows)
    attended_steps: Rows = field(default_factory=Rows)

    def sent_by(self, source: str) -> EdgeEvents:
        """Return what a source sent so far, to add to it."""
        if source not in self.fired:
            self.fired[source] = EdgeEvents()
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
            total = self.by_fan_out.setdefault(name, {}).setdefault(int(reached), EdgeEvents())
            total.real.add(Events.of(carried[:, real], binary))
            total.padding.add(Events.of(carried[:, ~real], binary))


@dataclass(frozen=True)
class NodeActivity:
    """One node in all that was seen: what flowed in and out, and how many rows were new to it.

    Attributes
    ----------
    node : Node
    activity : Activity
        Of the whole network.
    pooled : bool
        Whether its rows are sentences.
    constant : bool
        Whether its input never changes.
    hot_inputs : int
        Of a token.
    """

    node: Node
    activity: Activity
    pooled: bool
    constant: bool
    hot_inputs: int

    @property
    def kind(self) -> EdgeKind:
        """What the first edge carries."""
        return self.activity.kinds[self.node.name][0]

    @property
    def spike_driven(self) -> bool:
        """Whether every edge carries spikes or whole numbers."""
        return all(kind in SPIKE_DRIVEN for kind in self.activity.kinds[self.node.name])

    @property
    def each_sentence(self) -> Rows:
        """Sentences, each at every step at which its input is new."""
        return Rows(self.activity.sentences if self.constant else self.activity.sentence_steps)

    @property
    def attended(self) -> Rows:
        """Tokens that attention and token means see, each at every step at which its input is new."""
        return self.activity.attended if self.constant else self.activity.attended_steps

    @property
    def rows(self) -> Rows:
        """Rows whose input is new: only those of the first step where it never changes."""
        if self.pooled:
            return self.each_sentence
        return self.activity.tokens if self.constant else self.activity.token_steps

    @property
    def step_rows(self) -> Rows:
        """Rows at every step, for what remembers and so has work to do even where its input never changes."""
        return Rows(self.activity.sentence_steps) if self.pooled else self.activity.token_steps

    @property
    def fan_outs(self) -> Iterator[tuple[int, EdgeEvents]]:
        """What inputs of each fan-out carried, where a counting rule says that they differ in it."""
        return iter(self.activity.by_fan_out[self.node.name].items())

    def read(self, edge: int = 0) -> EdgeEvents:
        """Return what an edge carried, which a counting rule has to ask for."""
        return self.activity.fired[self.node.sources[edge]]

    def sent(self, *kinds: str) -> Tallies:
        """Return the number of spikes the node itself sent, under each of `kinds`."""
        sent = self.activity.fired[self.node.name]
        return sent.tallies(lambda events: dict.fromkeys(kinds, events.nonzero))

"""What of a network goes onto a chip: populations of neurons and the projections between them; the rest, on the host.

A chip knows neurons and the synapses that lead to them. So sums become several projections into one population, a
flattening or a delay a property of a projection, and an affine node, a convolution or a pool the projection itself.
What computes anything else is a population only where neurons run programs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from export.network import Network, Node, feature_shapes
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    LayerNorm,
    Operator,
    Pooling,
    PreviousStep,
    Scale,
    SpikeAttention,
    Total,
)
from hardware.edges import pooled_nodes
from hardware.errors import PlacementError
from hardware.loihi.chip import Chip
from hardware.loihi.connectivity import AttentionReads, Connectivity, Grouped, OneToOne, connectivity_of

Kind = Literal["neurons", "integrators", "readout", "relay", "microcode"]
SPIKING_KINDS: tuple[Kind, ...] = ("neurons",)
HOST_INPUT = "looks words up in the embedding table and sends the first spikes"
HOST_READOUT = "sums over tokens, once a sentence"
HOST_UNSUPPORTED = "no neuron of the chip computes it"
SYNAPTIC = (Affine, Convolution, Pooling, Scale)
PROGRAMMED = (LayerNorm, SpikeAttention)
"""Operators that need a neuron with a program of its own."""


@dataclass(frozen=True)
class Projection:
    """Synapses that lead to a population.

    Attributes
    ----------
    sources : tuple of str
        Populations, nodes on the host, or the input. Several share the lists of weights: they are summands.
    weights : str or None
        The node whose weights it has; None for weights of 1, one to one.
    connectivity : Connectivity
        Between one source and the population.
    delay : int
        Steps.
    """

    sources: tuple[str, ...]
    weights: str | None
    connectivity: Connectivity
    delay: int = 0


@dataclass(frozen=True)
class Population:
    """Neurons that stand for a node: `channels` x `positions` of them for each token.

    Attributes
    ----------
    name : str
        The node's, or the node's whose sums it holds.
    kind : str
        ``neurons`` spike; ``integrators`` send their potential; ``readout`` sums up what the host reads; ``relay`` sums
        up what further synapses read; ``microcode`` runs a program, in a way that is assumed.
    channels, positions : int
    projections : tuple of Projection
    unit : int
        Channels that cannot be split.
    read_by_host : bool
    """

    name: str
    kind: Kind
    channels: int
    positions: int
    projections: tuple[Projection, ...]
    unit: int = 1
    read_by_host: bool = False

    @property
    def features(self) -> int:
        """Neurons of a token."""
        return self.channels * self.positions

    @property
    def sends_spikes(self) -> bool:
        """Whether it sends 0 or 1, not whole numbers."""
        return self.kind in SPIKING_KINDS


@dataclass(frozen=True)
class Mapping:
    """A network as a chip has it.

    Attributes
    ----------
    populations : dict of str to Population
        In topological order.
    host : dict of str to str
        Nodes that the host computes, and what they are there for.
    split_sums : tuple of str
        Nodes that read a sum of several populations, each of which sends its own spikes.
    """

    populations: dict[str, Population]
    host: dict[str, str]
    split_sums: tuple[str, ...]


@dataclass(frozen=True)
class _Sent:
    """What a node sends, or a summand of it: what `source` sends, perhaps through weights."""

    source: str
    weights: Node | None = None
    delay: int = 0


def map_network(network: Network, chip: Chip) -> Mapping:
    """Return populations, projections and what stays on the host.

    Raises
    ------
    PlacementError
        Two convolutions of different shapes lead to the same neurons.
    """
    return _Mapper(network, chip).run()


def host_nodes(network: Network, chip: Chip) -> dict[str, str]:
    """Return the nodes that the host computes, with what they are there for.

    That is what looks tokens up, up to the first neurons; what works on a whole sentence at once, with the sums and
    norms before it that nothing else reads; and operators that no neuron of the chip computes.
    """
    host: dict[str, str] = {}
    if network.token_encoding is not None:
        before_neurons = {network.input_name}
        for node in network.nodes:
            if not isinstance(node.operator, PreviousStep) and all(name in before_neurons for name in node.sources):
                host[node.name] = HOST_INPUT
                if not node.operator.spikes:
                    before_neurons.add(node.name)
    host |= dict.fromkeys(pooled_nodes(network), HOST_READOUT)
    readers: dict[str, list[str]] = {network.output_source: [network.output_name]}
    for node in network.nodes:
        for source in node.sources:
            readers.setdefault(source, []).append(node.name)
    for node in reversed(network.nodes):
        moves = isinstance(node.operator, Total | LayerNorm | Flatten)
        if moves and all(host.get(reader) == HOST_READOUT for reader in readers[node.name]):
            host.setdefault(node.name, HOST_READOUT)
    if not chip["programmable"]:
        for node in network.nodes:
            if isinstance(node.operator, PROGRAMMED):
                host.setdefault(node.name, HOST_UNSUPPORTED)
    return {node.name: host[node.name] for node in network.nodes if node.name in host}


@dataclass
class _Mapper:
    network: Network
    chip: Chip
    sent: dict[str, tuple[_Sent, ...]] = field(default_factory=dict)
    populations: dict[str, Population] = field(default_factory=dict)
    split_sums: list[str] = field(default_factory=list)

    def run(self) -> Mapping:
        host = host_nodes(self.network, self.chip)
        self.shapes = feature_shapes(self.network)
        self.sent[self.network.input_name] = (_Sent(self.network.input_name),)
        for node in self.network.nodes:
            if isinstance(node.operator, PreviousStep):
                self.sent[node.name] = (_Sent(node.sources[0]),)
            elif node.name in host:
                for source in node.sources:
                    if source not in host:
                        self.show_host(source)
                self.sent[node.name] = (_Sent(node.name),)
            else:
                self.add(node)
        if self.network.output_source not in host:
            self.show_host(self.network.output_source)
        return Mapping(self.populations, host, tuple(self.split_sums))

    def add(self, node: Node) -> None:
        operator, incoming = node.operator, tuple(sent for source in node.sources for sent in self.sent[source])
        if isinstance(operator, Total | Flatten):
            self.sent[node.name] = incoming
        elif isinstance(operator, Delay):
            steps = int(operator.steps.max())
            self.sent[node.name] = tuple(replace(sent, delay=sent.delay + steps) for sent in incoming)
        elif isinstance(operator, Scale) and all(sent.weights is not None for sent in incoming):
            self.sent[node.name] = incoming  # factors of the weights
        elif isinstance(operator, SYNAPTIC):
            incoming = self.whole(node.sources[0])
            self.sent[node.name] = tuple(replace(sent, weights=node) for sent in incoming)
        else:
            self.add_population(node, operator)
            self.sent[node.name] = (_Sent(node.name),)

    def add_population(self, node: Node, operator: Operator) -> None:
        (source,) = node.sources
        if isinstance(operator, SpikeAttention):
            incoming = self.whole(source)
            reads = AttentionReads(operator.out_features, operator.head_size)
            delay = max(sent.delay for sent in incoming)
            projection = Projection(tuple(sent.source for sent in incoming), None, reads, delay)
            features = operator.out_features
            self.populations[node.name] = Population(
                node.name, "microcode", features, 1, (projection,), unit=operator.head_size
            )
            return
        kind: Kind = "neurons" if operator.spikes else "integrators"
        self.populate(node.name, "microcode" if isinstance(operator, LayerNorm) else kind, source)
        if isinstance(operator, LayerNorm):
            # assumed: a neuron for each group gathers mean and variance and sends them back
            name, width, groups = f"{node.name}_statistics", operator.out_features, operator.groups
            gather = Projection((node.name,), None, Grouped(width, groups, groups))
            self.populations[name] = Population(name, "microcode", groups, 1, (gather,))
            spread = Projection((name,), None, Grouped(groups, width, groups))
            own = self.populations[node.name]
            self.populations[node.name] = replace(own, projections=(*own.projections, spread))

    def populate(self, name: str, kind: Kind, source: str) -> None:
        """Add a population that reads what `source` sends."""
        by_weights: dict[tuple[str | None, int], list[_Sent]] = {}
        for sent in self.sent[source]:
            key = (None if sent.weights is None else sent.weights.name, sent.delay)
            by_weights.setdefault(key, []).append(sent)
        channels, positions = self.shape(name, source, by_weights.values())
        projections = []
        for (weights, delay), summands in by_weights.items():
            operator = None if summands[0].weights is None else summands[0].weights.operator
            if operator is None or isinstance(operator, Scale):
                connectivity: Connectivity = OneToOne(channels, positions)
            else:
                connectivity = connectivity_of(operator)
            if len(summands) > 1:
                self.split_sums.append(name if weights is None else weights)
            projections.append(Projection(tuple(sent.source for sent in summands), weights, connectivity, delay))
        self.populations[name] = Population(name, kind, channels, positions, tuple(projections))

    def shape(self, name: str, source: str, incoming: Iterable[list[_Sent]]) -> tuple[int, int]:
        """Return channels and positions: those of the convolution that leads to it, else one position."""
        shapes = set()
        for summands in incoming:
            weights = summands[0].weights
            if weights is not None and isinstance(weights.operator, Convolution | Pooling):
                channels = weights.operator.out_shape[0]
                shapes.add((channels, weights.operator.out_features // channels))
        if len(shapes) > 1:
            raise PlacementError(
                f"{name}: convolutions of different shapes lead to it, {sorted(shapes)}; placed are equal"
            )
        if shapes:
            return shapes.pop()
        shape = self.shapes[source]
        width = 1
        for length in shape[1:]:
            width *= length
        return shape[0], width

    def whole(self, source: str) -> tuple[_Sent, ...]:
        """Return what `source` sends without weights, which takes neurons in between where it has some."""
        if all(sent.weights is None for sent in self.sent[source]):
            return self.sent[source]
        if source not in self.populations:
            self.populate(source, "relay", source)
        return (_Sent(source),)

    def show_host(self, source: str) -> None:
        """Let the host read what `source` sends, which takes neurons that sum it up where it has weights."""
        if any(sent.weights is not None for sent in self.sent[source]):
            if source not in self.populations:
                self.populate(source, "readout", source)
            shown = [source]
        else:
            shown = [sent.source for sent in self.sent[source] if sent.source in self.populations]
        for name in shown:
            self.populations[name] = replace(self.populations[name], read_by_host=True)

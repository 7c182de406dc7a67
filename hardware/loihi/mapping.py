"""What of a network goes onto a chip: populations of neurons and the projections between them; the rest, on the host.

A chip knows neurons and the synapses that lead to them. So sums become several projections into one population, a
flattening or a delay a property of a projection, and an affine node, a convolution or a pool the projection itself.
What computes anything else is a population only where neurons run programs. Which is which says ``operators``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from export.network import Network, Node, feature_shapes
from hardware.errors import PlacementError
from hardware.loihi.chip import Chip
from hardware.loihi.connectivity import Connectivity, Grouped, OneToOne
from hardware.loihi.operators import Form, Neurons, PassedOn, Programs, Synapses, form_of

Kind = Literal["neurons", "integrators", "readout", "relay", "microcode"]
SPIKING_KINDS: tuple[Kind, ...] = ("neurons",)
HOST_INPUT = "looks words up in the embedding table and sends the first spikes"
HOST_READOUT = "sums over tokens, once a sentence"
HOST_UNSUPPORTED = "no neuron of the chip computes it"


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
    indivisible : int
        Channels that cannot be split between cores.
    read_by_host : bool
    """

    name: str
    kind: Kind
    channels: int
    positions: int
    projections: tuple[Projection, ...]
    indivisible: int = 1
    read_by_host: bool = False

    @property
    def features(self) -> int:
        """Neurons of a token."""
        return self.channels * self.positions

    @property
    def sends_spikes(self) -> bool:
        """Whether it sends spikes, not potentials or sums."""
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
    """What a node sends, or a summand of it: what `source` sends, perhaps through the weights of a node."""

    source: str
    weights: str | None = None
    connectivity: Connectivity | None = None
    delay: int = 0


def map_network(network: Network, chip: Chip) -> Mapping:
    """Return populations, projections and what stays on the host.

    Raises
    ------
    PlacementError
        Two convolutions of different shapes lead to the same neurons.
    UnsupportedOperatorError
        Nobody said what a node's operator is on a chip, on the host or not.
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
            if not node.is_previous_step and all(name in before_neurons for name in node.sources):
                host[node.name] = HOST_INPUT
                if not node.operator.spikes:
                    before_neurons.add(node.name)
    host |= dict.fromkeys(network.pooled, HOST_READOUT)
    for node in reversed(network.nodes):
        readers = network.readers[node.name]
        if node.name == network.output_source or not readers or not _moves_to_host(node):
            continue
        if all(host.get(reader.name) == HOST_READOUT for reader in readers):
            host.setdefault(node.name, HOST_READOUT)
    if not chip["programmable"]:
        for node in network.nodes:
            if node.operator.traits.needs_program:
                host.setdefault(node.name, HOST_UNSUPPORTED)
    return {node.name: host[node.name] for node in network.nodes if node.name in host}


def _only_source(node: Node) -> str:
    """Return the source of a node that is placed as if it had one."""
    if len(node.sources) != 1:
        raise PlacementError(f"{node.name}: {node.operator.name} reads {len(node.sources)} nodes; placed here is one")
    return node.sources[0]


def _moves_to_host(node: Node) -> bool:
    """Whether the host computes it too where it alone reads it: a sum or a norm, of one token at one step."""
    traits = node.operator.traits
    return (traits.passes_values or traits.needs_program) and not (traits.remembers or traits.mixes_tokens)


@dataclass
class _Mapper:
    network: Network
    chip: Chip
    sent: dict[str, tuple[_Sent, ...]] = field(default_factory=dict)
    populations: dict[str, Population] = field(default_factory=dict)
    split_sums: list[str] = field(default_factory=list)

    def run(self) -> Mapping:
        forms = {node.name: form_of(node) for node in self.network.nodes}
        host = host_nodes(self.network, self.chip)
        self.shapes = feature_shapes(self.network)
        self.sent[self.network.input_name] = (_Sent(self.network.input_name),)
        for node in self.network.nodes:
            if node.is_previous_step:
                self.sent[node.name] = (_Sent(node.sources[0]),)
            elif node.name in host:
                for source in node.sources:
                    if source not in host:
                        self.show_host(source)
                self.sent[node.name] = (_Sent(node.name),)
            else:
                self.sent[node.name] = self.add(node, forms[node.name])
        if self.network.output_source not in host:
            self.show_host(self.network.output_source)
        return Mapping(self.populations, host, tuple(self.split_sums))

    def add(self, node: Node, form: Form) -> tuple[_Sent, ...]:
        """Add what a node takes on the chip; return what it sends."""
        incoming = tuple(sent for source in node.sources for sent in self.sent[source])
        match form:
            case PassedOn(delay=steps):
                return tuple(replace(sent, delay=sent.delay + steps) for sent in incoming)
            case Synapses(connectivity=None) if all(sent.weights is not None for sent in incoming):
                return incoming  # factors of the weights
            case Synapses(connectivity=connectivity):
                incoming = self.whole(_only_source(node))
                return tuple(replace(sent, weights=node.name, connectivity=connectivity) for sent in incoming)
            case Neurons():
                self.populate(node.name, "neurons" if node.operator.spikes else "integrators", _only_source(node))
            case Programs():
                self.add_programs(node, form)
            case _:
                raise PlacementError(
                    f"{node.name}: {node.operator.name} is computed by the host alone, but neurons of the chip read it"
                )
        return (_Sent(node.name),)

    def add_programs(self, node: Node, form: Programs) -> None:
        """Add a population of neurons that run programs."""
        width = node.operator.out_features
        if form.reads:
            projections = []
            for source, connectivity in zip(node.sources, form.reads, strict=True):
                incoming = self.whole(source)
                delay = max(sent.delay for sent in incoming)
                projections.append(Projection(tuple(sent.source for sent in incoming), None, connectivity, delay))
            self.populations[node.name] = Population(
                node.name, "microcode", width, 1, tuple(projections), form.indivisible
            )
        else:
            self.populate(node.name, "microcode", _only_source(node))
        if form.gathering:
            # assumed: a neuron for each group gathers mean and variance and sends them back
            name, groups = f"{node.name}_statistics", form.gathering
            gather = Projection((node.name,), None, Grouped(width, groups, groups))
            self.populations[name] = Population(name, "microcode", groups, 1, (gather,))
            spread = Projection((name,), None, Grouped(groups, width, groups))
            own = self.populations[node.name]
            self.populations[node.name] = replace(own, projections=(*own.projections, spread))

    def populate(self, name: str, kind: Kind, source: str) -> None:
        """Add a population that reads what `source` sends."""
        by_weights: dict[tuple[str | None, int], list[_Sent]] = {}
        for sent in self.sent[source]:
            by_weights.setdefault((sent.weights, sent.delay), []).append(sent)
        channels, positions = self.shape(name, source)
        projections = []
        for (weights, delay), summands in by_weights.items():
            connectivity = summands[0].connectivity or OneToOne(channels, positions)
            if len(summands) > 1:
                self.split_sums.append(name if weights is None else weights)
            projections.append(Projection(tuple(sent.source for sent in summands), weights, connectivity, delay))
        self.populations[name] = Population(name, kind, channels, positions, tuple(projections))

    def shape(self, name: str, source: str) -> tuple[int, int]:
        """Return channels and positions: those of the convolution that leads to it, else those it has in a file."""
        connectivities = {sent.connectivity for sent in self.sent[source] if sent.connectivity is not None}
        shapes = {connectivity.shape for connectivity in connectivities if connectivity.shape is not None}
        if len(shapes) > 1:
            raise PlacementError(
                f"{name}: convolutions of different shapes lead to it, {sorted(shapes)}; placed are equal"
            )
        if shapes:
            return shapes.pop()
        channels, *positions = self.shapes[source]
        return channels, math.prod(positions)

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

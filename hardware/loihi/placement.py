"""Where everything goes: slices of populations on cores, cores on chips, and all that keeps a graph from fitting.

The packing is simple and always the same. Every population is cut into the fewest slices that hold all limits of a core
(see ``tiling``), each on a core of its own; populations that need one core only share it with their neighbours in the
graph while all limits hold. Cores fill chips in that order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np

from export.network import Network
from export.nir_graph.reader import parse_graph
from export.recurrence import cycle_through
from hardware.edges import check_trace
from hardware.errors import PlacementError, TraceMismatchError
from hardware.loihi.chip import Chip, find_chip
from hardware.loihi.connectivity import Part
from hardware.loihi.mapping import HOST_INPUT, HOST_READOUT, Mapping, Population, map_network
from hardware.loihi.rules import GRAPH, Subject, Violation, check
from hardware.loihi.tiling import (
    RESOURCES,
    Resources,
    Tiling,
    best_tiling,
    core_limit,
    fan_outs,
    finest_tiling,
    needs,
    smallest_part,
    tile,
)
from hardware.trace import Trace

DEFAULT_TOKENS = 128
LONGEST_SENTENCE = 1 << 16
DESIGN_LENGTHS = tuple(1 << power for power in range(11))
"""Sentence lengths that populations are cut for; the cut that takes the fewest cores for the length asked for is taken.
Every cut takes at least as many cores for a longer sentence, and so does the best of them."""
REMEDIES = {
    "neurons": "make the node narrower: its channels belong together and cannot be split between cores",
    "in_axons": "give it fewer inputs: a narrower layer, fewer summands of the residual stream, or a shorter sentence",
    "out_axons": "let fewer or narrower nodes read it: each core that a neuron sends to takes one of them",
    "memory_bits": "give it fewer inputs: one neuron's synapses lie on one core",
}


@dataclass(frozen=True)
class Slice:
    """Neurons of one population on one core.

    Attributes
    ----------
    node : str
    part : Part
        Of the features.
    tokens : tuple of int
        First, and one behind the last.
    resources : Resources
    """

    node: str
    part: Part
    tokens: tuple[int, int]
    resources: Resources


@dataclass(frozen=True)
class Core:
    """A core that is used.

    Attributes
    ----------
    index : int
        Over all chips.
    chip : int
    slices : tuple of Slice
    """

    index: int
    chip: int
    slices: tuple[Slice, ...]

    @property
    def resources(self) -> Resources:
        """What its slices need together."""
        return sum((piece.resources for piece in self.slices), Resources())


@dataclass(frozen=True)
class SpikeTraffic:
    """Spikes of a run, each counted once for every core it is sent to; means over the sentences.

    Attributes
    ----------
    sentences : int
    sent : float
        All of them that leave a core of the chips.
    between_chips : float
        Those whose target core is on another chip.
    from_host : float
        Those that the host sends in.
    """

    sentences: int
    sent: float
    between_chips: float
    from_host: float


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a graph goes on a chip, and what keeps it from fitting.

    Attributes
    ----------
    chip : Chip
    tokens : int
    cores : tuple of Core
        Of what could be placed.
    violations : tuple of Violation
        All of them.
    mapping : Mapping
        Populations and projections, and what the host does.
    unplaced : tuple of str
        Populations of which not one neuron fits a core.
    assumptions : tuple of str
        What is taken as given, in words.
    traffic : SpikeTraffic or None
        Where a trace was given.
    """

    chip: Chip
    tokens: int
    cores: tuple[Core, ...]
    violations: tuple[Violation, ...]
    mapping: Mapping
    unplaced: tuple[str, ...]
    assumptions: tuple[str, ...]
    traffic: SpikeTraffic | None = None

    @property
    def fits(self) -> bool:
        """Whether nothing is violated."""
        return not self.violations

    @property
    def chips(self) -> int:
        """Chips that are needed."""
        return -(-len(self.cores) // self.chip["cores_per_chip"])

    @functools.cached_property
    def cores_reached(self) -> dict[str, float]:
        """Cores that a spike goes to, by its source, which may be on the host: the mean over its neurons and tokens.

        Each list of weights that a core has for it counts, as an axon of its own, and so does the host where it reads.
        """
        axons: dict[str, int] = {}
        neurons: dict[str, int] = {}
        for core in self.cores:
            for piece in core.slices:
                for projection in self.mapping.populations[piece.node].projections:
                    copies = piece.tokens[1] - piece.tokens[0]
                    arriving = projection.connectivity.axons(piece.part, copies, self.tokens)
                    for source in projection.sources:
                        axons[source] = axons.get(source, 0) + arriving
                        neurons[source] = projection.connectivity.in_features * self.tokens
        reached = {source: axons[source] / neurons[source] for source in axons}
        for name, population in self.mapping.populations.items():
            reached[name] = reached.get(name, 0.0) + (population.read_by_host and population.sends_spikes)
        return reached

    @property
    def total(self) -> Resources:
        """What everything placed needs."""
        return sum((core.resources for core in self.cores), Resources())

    def node_rows(self) -> list[dict[str, Any]]:
        """Return what each population takes: kind, cores (shared ones count for each), slices, and resources."""
        cores: dict[str, set[int]] = {name: set() for name in self.mapping.populations}
        used = {name: Resources() for name in self.mapping.populations}
        parts: dict[str, set[Part]] = {name: set() for name in self.mapping.populations}
        for core in self.cores:
            for piece in core.slices:
                cores[piece.node].add(core.index)
                parts[piece.node].add(piece.part)
                used[piece.node] += piece.resources
        return [
            {
                "node": name,
                "kind": population.kind,
                "cores": len(cores[name]),
                "feature_slices": len(parts[name]),
                "neurons": used[name].neurons,
                "synapses": used[name].synapses,
                "in_axons": used[name].in_axons,
                "out_axons": used[name].out_axons,
                "memory_bits": used[name].memory_bits,
            }
            for name, population in self.mapping.populations.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        traffic = self.traffic
        return {
            "fits": self.fits,
            "chip": self.chip.to_dict(),
            "tokens": self.tokens,
            "chips": self.chips,
            "cores": len(self.cores),
            "violations": [violation.to_dict() for violation in self.violations],
            "nodes": self.node_rows(),
            "unplaced": list(self.unplaced),
            "host": [{"node": node, "does": does} for node, does in self.mapping.host.items()],
            "assumptions": list(self.assumptions),
            "spikes_per_sentence": None
            if traffic is None
            else {
                "sentences": traffic.sentences,
                "sent": traffic.sent,
                "between_chips": traffic.between_chips,
                "from_host": traffic.from_host,
            },
            "utilization": [_core_row(core, self.chip) for core in self.cores],
        }


def _core_row(core: Core, chip: Chip) -> dict[str, Any]:
    resources = core.resources
    row: dict[str, Any] = {"core": core.index, "chip": core.chip}
    for name in RESOURCES:
        used, limit = getattr(resources, name), core_limit(chip, name)
        row[name] = {"used": used, "limit": limit, "share": None if limit is None else used / limit}
    row["synapses"] = resources.synapses
    row["slices"] = [
        {
            "node": piece.node,
            "channels": list(piece.part.channels),
            "positions": list(piece.part.positions),
            "tokens": list(piece.tokens),
        }
        for piece in core.slices
    ]
    return row


def place(
    graph: nir.NIRGraph | Network,
    chip: str | Path | Chip = "loihi2",
    tokens: int | None = None,
    trace: Trace | None = None,
    dt: float | None = None,
) -> Placement:
    """Place a graph on a chip.

    Parameters
    ----------
    graph : nir.NIRGraph or Network
        Of floats too: that is a violation then, and everything else is still checked and placed.
    chip : str, Path or Chip
        ``"loihi1"``, ``"loihi2"``, a JSON file (see `hardware.loihi.chip.read_chip`), or a chip.
    tokens : int, optional
        Tokens of the longest sentence; each is a copy of all neurons. By default 128, or as many as the graph allows
        where those are fewer; 1 for a graph that reads no tokens.
    trace : Trace, optional
        Of a run of the graph: counts the spikes that go from chip to chip.
    dt : float, optional
        Seconds of a time step, for graphs that do not say.

    Returns
    -------
    Placement

    Raises
    ------
    PlacementError
        `tokens` or the chip make no sense.
    GraphError
        The graph means nothing.
    TraceMismatchError
        The trace is not of this graph, or has longer sentences.
    """
    network = graph if isinstance(graph, Network) else parse_graph(graph, dt)
    chip = find_chip(chip)
    tokens = default_tokens(network) if tokens is None else tokens
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= LONGEST_SENTENCE:
        raise PlacementError(f"tokens is {tokens!r}; expected a whole number from 1 to {LONGEST_SENTENCE}")
    if trace is not None:
        check_trace(trace, network)
        if trace.mask.shape[1] > tokens:
            raise TraceMismatchError(f"the trace has sentences of {trace.mask.shape[1]} tokens; placed are {tokens}")
    mapping = map_network(network, chip)
    tilings = _best_tilings(mapping, tokens, chip)
    cores = _assemble(mapping, tilings, tokens, chip)
    unplaced = tuple(name for name in mapping.populations if name not in tilings)
    violations = [
        *check(Subject(network, chip, tokens, mapping)),
        *_capacity(mapping, tilings, unplaced, tokens, chip),
        *_board(len(cores), chip),
    ]
    traffic = None if trace is None else _traffic(trace, network, mapping, cores, chip)
    assumptions = _assumptions(network, mapping, chip)
    return Placement(chip, tokens, cores, tuple(violations), mapping, unplaced, assumptions, traffic)


def misfits(network: Network, chip: str | Path | Chip, tokens: int) -> list[Violation]:
    """Return the populations of which one neuron is too much for a core, wherever its spikes go.

    `place` finds them too, and those that the axons to their readers keep from fitting, but works long on what it can
    place beside them; who needs all of a graph on a chip or nothing asks here first.

    Raises
    ------
    PlacementError
        The chip makes no sense.
    """
    chip = find_chip(chip)
    found: list[Violation] = []
    for population in map_network(network, chip).populations.values():
        nowhere = np.zeros(population.features, np.int64)
        resources = needs(population, smallest_part(population), 1, tokens, nowhere, chip)
        found += _exceeded(population.name, resources, chip)
    return found


def default_tokens(network: Network) -> int:
    """Return the tokens of a sentence where nobody says."""
    encoding = network.token_encoding
    if encoding is None:
        return 1
    return min(DEFAULT_TOKENS, encoding.positions or DEFAULT_TOKENS, network.max_tokens or DEFAULT_TOKENS)


def _best_tilings(mapping: Mapping, tokens: int, chip: Chip) -> dict[str, Tiling]:
    """Return the cut that takes the fewest cores, of those for `DESIGN_LENGTHS` that place the most populations.

    Where none places all of them, readers are cut into fewer parts as well, which spares axons of those they read; and
    where the cut for this very length places more, it is that one.
    """
    lengths = [length for length in DESIGN_LENGTHS if length >= tokens]
    fewest = _fewest_cores(mapping, tokens, chip)
    found = []
    for length in lengths:
        tilings = tile(mapping, length, chip)
        if len(tilings) == len(mapping.populations) and _number_of_cores(mapping, tilings, tokens, chip) == fewest:
            return tilings  # cuts for longer sentences can only take as many
        found.append(tilings)
    most = max(map(len, found), default=-1)
    if most < len(mapping.populations):
        found += [tile(mapping, length, chip, spare_axons=True) for length in lengths]
        most = max(map(len, found), default=-1)
    if most < len(mapping.populations):
        exact = tile(mapping, tokens, chip)
        if len(exact) > most:
            return exact
    whole = [tilings for tilings in found if len(tilings) == most]
    return min(whole, key=lambda tilings: _number_of_cores(mapping, tilings, tokens, chip))


def _fewest_cores(mapping: Mapping, tokens: int, chip: Chip) -> int:
    """Return how many cores any cut takes at least: as if no spike had anywhere to go."""
    own, together = 0, Resources()
    for population in mapping.populations.values():
        nowhere = np.zeros(population.features, np.int64)
        tiling = best_tiling(population, tokens, nowhere, chip)
        if tiling is None:
            return 0  # it fits no core at all
        slices = list(_slices(population, tiling, tokens, nowhere, chip)) if tiling.slices(tokens) == 1 else []
        own += tiling.slices(tokens) - len(slices)
        together = sum((piece.resources for piece in slices), together)
    shared = [
        -(-getattr(together, resource) // limit)
        for resource in RESOURCES
        if (limit := core_limit(chip, resource)) is not None
    ]
    return own + max(shared, default=0)


def _assemble(mapping: Mapping, tilings: Table[str, Tiling], tokens: int, chip: Chip) -> tuple[Core, ...]:
    """Put slices on cores: one each, but for populations of a single slice, which share cores."""
    fan_out, sharing = fan_outs(mapping, dict(tilings), tokens), _sharing(mapping, tilings, tokens, chip)
    filled: list[list[Slice]] = []
    for name, tiling in tilings.items():
        if tiling.slices(tokens) > 1:
            filled += [[piece] for piece in _slices(mapping.populations[name], tiling, tokens, fan_out[name], chip)]
        elif name in sharing:
            filled.append(
                [
                    piece
                    for other in sharing[name]
                    for piece in _slices(mapping.populations[other], tilings[other], tokens, fan_out[other], chip)
                ]
            )
    per_chip = chip["cores_per_chip"]
    return tuple(Core(index, index // per_chip, tuple(slices)) for index, slices in enumerate(filled))


def _slices(population: Population, tiling: Tiling, tokens: int, fan_out: np.ndarray, chip: Chip) -> Iterator[Slice]:
    """Yield the slices of a population, tokens first."""
    spans = _token_spans(tokens, tiling.copies)
    needed = {  # the same at whatever tokens, so it is worked out for a full span and for the last one only
        copies: [needs(population, part, copies, tokens, fan_out, chip) for part in tiling.parts]
        for copies in {stop - first for first, stop in spans}
    }
    for span in spans:
        for part, resources in zip(tiling.parts, needed[span[1] - span[0]], strict=True):
            yield Slice(population.name, part, span, resources)


def _sharing(mapping: Mapping, tilings: Table[str, Tiling], tokens: int, chip: Chip) -> dict[str, list[str]]:
    """Return which populations of a single slice share a core, by the first of them.

    Each has that of the one before it while the core holds them, wherever that stands.
    """
    fan_out = fan_outs(mapping, dict(tilings), tokens)
    sharing: dict[str, list[str]] = {}
    shared: list[str] | None = None
    load = Resources()
    for name, tiling in tilings.items():
        if tiling.slices(tokens) > 1:
            continue
        (piece,) = _slices(mapping.populations[name], tiling, tokens, fan_out[name], chip)
        if shared is not None and not (load + piece.resources).exceeded(chip):
            shared.append(name)
            load += piece.resources
        else:
            shared, load = [name], piece.resources
            sharing[name] = shared
    return sharing


def _number_of_cores(mapping: Mapping, tilings: Table[str, Tiling], tokens: int, chip: Chip) -> int:
    """Return how many cores `_assemble` fills, without the slices in them: there may be a million."""
    own = sum(tiling.slices(tokens) for tiling in tilings.values() if tiling.slices(tokens) > 1)
    return own + len(_sharing(mapping, tilings, tokens, chip))


def _token_spans(tokens: int, copies: int) -> list[tuple[int, int]]:
    return [(first, min(tokens, first + copies)) for first in range(0, tokens, copies)]


def _capacity(
    mapping: Mapping, tilings: dict[str, Tiling], unplaced: tuple[str, ...], tokens: int, chip: Chip
) -> list[Violation]:
    """Return the populations of which the smallest piece is too much for a core, with all that is too much of it.

    One that leads back to itself is cut into its smallest pieces to count the axons it needs to reach them.
    """
    reads: dict[str, tuple[str, ...]] = {
        name: tuple(source for projection in population.projections for source in projection.sources)
        for name, population in mapping.populations.items()
    }
    reads |= {source: () for sources in list(reads.values()) for source in sources if source not in reads}
    found: list[Violation] = []
    for name in unplaced:
        population = mapping.populations[name]
        again = [other for other in cycle_through(reads, name) if other in unplaced]
        finest = {other: finest_tiling(mapping.populations[other]) for other in again}
        fan_out = fan_outs(mapping, {**tilings, **finest}, tokens)
        resources = needs(population, smallest_part(population), 1, tokens, fan_out[name], chip)
        found += _exceeded(name, resources, chip)
    return found


def _exceeded(name: str, resources: Resources, chip: Chip) -> Iterator[Violation]:
    for resource in resources.exceeded(chip):
        value, limit = getattr(resources, resource), core_limit(chip, resource)
        assert limit is not None
        yield Violation(f"{resource}_per_core", name, value, limit, REMEDIES[resource])


def _board(cores: int, chip: Chip) -> list[Violation]:
    chips, limit = -(-cores // chip["cores_per_chip"]), chip["chips_per_board"]
    if chips <= limit:
        return []
    remedy = "place for shorter sentences or a smaller model, or describe a system of more chips (--chip FILE.json)"
    return [Violation("chips_per_board", GRAPH, chips, limit, remedy)]


def _assumptions(network: Network, mapping: Mapping, chip: Chip) -> tuple[str, ...]:
    """Return what is taken as given about this graph on this chip, in words."""
    kinds = {population.kind for population in mapping.populations.values()}
    host = set(mapping.host.values())
    said = [f"{name} of {chip.name}: {limit.source}" for name, limit in chip.assumed.items()]
    if HOST_INPUT in host:
        said.append("the host looks tokens up, computes the first neurons and sends their spikes")
    if HOST_READOUT in host:
        said.append("the host reads the spikes or sums before a sum over tokens, and computes what is behind it")
    if "microcode" in kinds:
        said.append(
            "layer norms and attention are neurons with programs that nobody has published: for a norm a neuron for "
            "each feature and one for each group, which gathers mean and variance and sends them back; for attention a "
            "neuron for each feature, and K^T V of a head kept on each core that has neurons of it"
        )
    if mapping.split_sums:
        said.append(
            "a sum of spikes is split: each summand sends its own spikes, to weights that they share"
            if chip["shared_copies"] > 1
            else "a sum of spikes is split: each summand sends its own spikes, to weights of its own"
        )
    if network.token_encoding is None and network.input_limit is None:
        said.append("the host sends input values as spikes")
    said.append("synapses and axons are there for every weight, those of 0 too")
    return tuple(said)


def _traffic(trace: Trace, network: Network, mapping: Mapping, cores: tuple[Core, ...], chip: Chip) -> SpikeTraffic:
    """Count each spike once for every core it is sent to, and apart where that is on another chip."""
    counts = {name: spikes.sum((0, 1), dtype=np.int64) for name, spikes in trace.spikes.items()}  # (N, D)
    sentences, tokens = trace.mask.shape
    home = {
        name: np.zeros((tokens, population.features), np.int64)
        for name, population in mapping.populations.items()
        if name in counts
    }
    for core in cores:
        for piece in core.slices:
            if piece.node in home:
                population = mapping.populations[piece.node]
                grid = home[piece.node].reshape(tokens, population.channels, population.positions)
                grid[slice(*piece.tokens), slice(*piece.part.channels), slice(*piece.part.positions)] = core.chip
    sent = between = from_host = 0
    for core in cores:
        for piece in core.slices:
            for projection in mapping.populations[piece.node].projections:
                once = projection.connectivity.reach(piece.part, 1)
                everywhere = projection.connectivity.reach(piece.part, 2) > once  # goes to all tokens' slices
                span = slice(*piece.tokens)
                for source in projection.sources:
                    if source not in counts:
                        continue
                    arriving = np.where(everywhere, counts[source], 0)
                    arriving[span] = np.where(once > 0, counts[source][span], 0)
                    if source in home:
                        sent += int(arriving.sum())
                        between += int(arriving[home[source] != core.chip].sum())
                    else:
                        from_host += int(arriving.sum())
    return SpikeTraffic(sentences, sent / sentences, between / sentences, from_host / sentences)

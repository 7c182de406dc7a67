"""Cuts populations into slices that fit a core each: which features, at which tokens.

A slice is a `FeatureSlice` at some tokens of the sentence, each token being a copy of the neurons. Long slices of
tokens share weights; wide slices of features need each source less often. The shape that takes the fewest cores is
chosen for every population, readers before those they read, until the axons that follow from it fit too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from hardware.loihi.chip import Chip
from hardware.loihi.connectivity import FeatureSlice
from hardware.loihi.mapping import Mapping, Population, Projection

RESOURCES = ("neurons", "in_axons", "out_axons", "memory_bits")


@dataclass(frozen=True)
class Resources:
    """What slices need of a core.

    Attributes
    ----------
    neurons, in_axons, out_axons, memory_bits : int
    synapses : int
        Connections, however they are stored.
    """

    neurons: int = 0
    in_axons: int = 0
    out_axons: int = 0
    memory_bits: int = 0
    synapses: int = 0

    def __add__(self, other: Resources) -> Resources:
        """Return what both need together."""
        return Resources(
            self.neurons + other.neurons,
            self.in_axons + other.in_axons,
            self.out_axons + other.out_axons,
            self.memory_bits + other.memory_bits,
            self.synapses + other.synapses,
        )

    def exceeded(self, chip: Chip) -> list[str]:
        """Return the names of `RESOURCES` of which a core has less."""
        return [name for name in RESOURCES if not _fits(getattr(self, name), core_limit(chip, name))]


def core_limit(chip: Chip, resource: str) -> int | None:
    """Return how much of one of `RESOURCES` a core has; None where it is not counted."""
    return getattr(chip, f"{resource}_per_core").value


def _fits(used: int, limit: int | None) -> bool:
    return limit is None or used <= limit


@dataclass(frozen=True)
class Tiling:
    """How a population is cut.

    Attributes
    ----------
    parts : tuple of FeatureSlice
        Of the features; together all of them.
    copies : int
        Tokens of a slice, but for the last.
    """

    parts: tuple[FeatureSlice, ...]
    copies: int

    def token_slices(self, tokens: int) -> int:
        """Return into how many slices a sentence of `tokens` is cut."""
        return -(-tokens // self.copies)

    def slices(self, tokens: int) -> int:
        """Return the number of slices of a sentence."""
        return len(self.parts) * self.token_slices(tokens)


def needs(
    population: Population, part: FeatureSlice, copies: int, tokens: int, fan_out: np.ndarray, chip: Chip
) -> Resources:
    """Return what a slice needs of its core.

    Parameters
    ----------
    population, part, copies
        The slice.
    tokens : int
        Of the sentence.
    fan_out : ndarray
        ``(features,)``: out-axons of each neuron.
    chip : Chip
    """
    neurons = copies * part.size
    grid = fan_out.reshape(population.channels, population.positions)
    out_axons = copies * int(grid[slice(*part.channels), slice(*part.positions)].sum())
    in_axons = synapses = memory = 0
    for projection in population.projections:
        arriving = projection.connectivity.axons(part, copies, tokens) * len(projection.sources)
        wiring = projection.connectivity.wiring(part)
        in_axons += arriving
        synapses += wiring.synapses * copies * len(projection.sources)
        memory += _list_bits(projection, part, copies, chip) + projection.connectivity.table_bits(part)
    memory += neurons * chip["neuron_state_bits"] + (in_axons + out_axons) * chip["axon_bits"]
    return Resources(neurons, in_axons, out_axons, memory, synapses)


def _list_bits(projection: Projection, part: FeatureSlice, copies: int, chip: Chip) -> int:
    """Return the bits that lists of weights take: each copy's own, or one for all, whichever is less."""
    connectivity, delayed = projection.connectivity, projection.delay > 0
    wiring = connectivity.wiring(part)

    def size(lists: tuple[tuple[int, int], ...], indexed: bool) -> int:
        return sum(count * chip.list_size(length, indexed, delayed) for count, length in lists)

    own = copies * len(projection.sources) * size(wiring.lists, connectivity.indexed)
    ways = [own]
    if chip["shared_copies"] > 1:
        ways.append(copies * size(wiring.lists, connectivity.indexed))  # summands point to the same lists
        if copies <= chip["shared_copies"]:
            ways.append(size(wiring.lists, indexed=connectivity.indexed or copies > 1))
        positions = part.positions[1] - part.positions[0]
        if positions * copies <= chip["shared_copies"]:
            indexed = connectivity.indexed or positions * copies > 1
            ways.append(size(wiring.shared_lists, indexed=indexed))
    return min(ways)


def fan_outs(mapping: Mapping, tilings: dict[str, Tiling], tokens: int) -> dict[str, np.ndarray]:
    """Return the out-axons of each neuron of each population, ``(features,)``: a core that it sends to is one.

    A population that the host reads has one more. Readers without a tiling are left out.
    """
    found = {
        name: np.full(population.features, int(population.read_by_host and population.sends_spikes), np.int64)
        for name, population in mapping.populations.items()
    }
    for name, population in mapping.populations.items():
        if name not in tilings:
            continue
        tiling = tilings[name]
        for projection in population.projections:
            sources = [source for source in projection.sources if source in found]
            if not sources:
                continue
            reached = projection.connectivity.reach_all(tiling.parts, tiling.token_slices(tokens))
            for source in sources:
                found[source] += reached
    return found


def tile(mapping: Mapping, tokens: int, chip: Chip, spare_axons: bool = False) -> dict[str, Tiling]:
    """Return how to cut each population for sentences of `tokens`; one that cannot be cut to fit is missing.

    With `spare_axons` into the fewest parts, whatever cores that takes: a token's neurons then send to the fewest.

    Readers come first, since how finely they are cut decides the out-axons of those they read. A population that reads
    itself is cut again with the axons that its own cut takes, which only grow, before those it reads are looked at. So
    is everything where several populations lead back to each other.
    """
    tilings: dict[str, Tiling] = {}
    at_least = {name: np.zeros(population.features, np.int64) for name, population in mapping.populations.items()}
    known: dict[tuple[object, ...], Tiling | None] = {}
    while True:
        tilings = {}
        for name in reversed(mapping.populations):
            population, readers = mapping.populations[name], _readers_of(mapping, name)
            fan_out = np.maximum(at_least[name], fan_outs(readers, tilings, tokens)[name])
            anonymous = tuple(
                replace(projection, sources=("",) * len(projection.sources), weights=None)
                for projection in population.projections
            )
            reads_itself = any(name in projection.sources for projection in population.projections)
            while True:
                key = (replace(population, name="", projections=anonymous), fan_out.tobytes())
                if key not in known:
                    known[key] = best_tiling(population, tokens, fan_out, chip, spare_axons)
                found = known[key]
                if found is None or not reads_itself:
                    break
                taken = fan_outs(readers, {**tilings, name: found}, tokens)[name]
                if np.all(taken <= fan_out):
                    break
                fan_out = np.maximum(fan_out, taken)
            at_least[name] = fan_out
            if found is not None:
                tilings[name] = found
        after = fan_outs(mapping, tilings, tokens)
        if all(np.all(after[name] <= at_least[name]) for name in tilings):
            return {name: tilings[name] for name in mapping.populations if name in tilings}
        at_least = {name: np.maximum(at_least[name], after[name]) for name in after}


def _readers_of(mapping: Mapping, name: str) -> Mapping:
    """Return a mapping of a population and those that read it."""
    chosen = {
        other: population
        for other, population in mapping.populations.items()
        if other == name or any(name in projection.sources for projection in population.projections)
    }
    return replace(mapping, populations=chosen)


def best_tiling(
    population: Population, tokens: int, fan_out: np.ndarray, chip: Chip, spare_axons: bool = False
) -> Tiling | None:
    """Return the tiling of the fewest slices, then of the fewest parts; None where not even one neuron fits a core.

    With `spare_axons` of the fewest parts, then of the fewest slices.
    """

    def cost(tiling: Tiling) -> tuple[int, int]:
        slices, parts = tiling.slices(tokens), len(tiling.parts)
        return (parts, slices) if spare_axons else (slices, parts)

    best: Tiling | None = None
    for copies in sorted({-(-tokens // slices) for slices in range(1, tokens + 1)}):
        token_slices = -(-tokens // copies)
        if copies * population.indivisible > chip["neurons_per_core"]:
            break
        if best is not None and token_slices > best.slices(tokens):
            continue
        most_parts = population.features if best is None else best.slices(tokens) // token_slices
        if best is not None and spare_axons:
            most_parts = len(best.parts)
        parts = _fewest_parts(population, copies, tokens, fan_out, chip, most_parts)
        if parts is None:
            if best is None:
                return None  # more copies need more of everything
            continue
        found = Tiling(parts, copies)
        if best is None or cost(found) < cost(best):
            best = found
    return best


def finest_tiling(population: Population) -> Tiling:
    """Return the tiling into parts that cannot be cut further, a token each."""
    ways = population.positions + population.channels // population.indivisible - 1
    return Tiling(tuple(cut(population, ways)), 1)


def smallest_part(population: Population) -> FeatureSlice:
    """Return the first part that cannot be cut further."""
    return FeatureSlice((0, population.indivisible), (0, 1))


def _fewest_parts(
    population: Population, copies: int, tokens: int, fan_out: np.ndarray, chip: Chip, most_parts: int
) -> tuple[FeatureSlice, ...] | None:
    """Return the features cut into few parts that fit a core each: first by position, then by channel.

    None where that takes more than `most_parts`.
    """
    uniform = all(projection.connectivity.uniform for projection in population.projections) and (
        int(fan_out.min()) == int(fan_out.max())
    )

    def fits(fineness: int) -> bool:
        parts = cut(population, fineness)
        tested = islice(parts, 1) if uniform else parts  # the first is as large as any
        return not any(needs(population, part, copies, tokens, fan_out, chip).exceeded(chip) for part in tested)

    ways = population.positions + population.channels // population.indivisible - 1
    low, high = 1, 1
    while not fits(high):
        if high == ways or number_of_parts(population, high) > most_parts:
            return None
        low, high = high + 1, min(2 * high, ways)
    found = high
    high -= 1
    while low <= high:
        middle = (low + high) // 2
        if fits(middle):
            found, high = middle, middle - 1
        else:
            low = middle + 1
    return tuple(cut(population, found))


def cut(population: Population, fineness: int) -> Iterator[FeatureSlice]:
    """Yield the parts of the features; `fineness` goes from 1, all in one, to single positions, to single units.

    Up to the number of positions it is into how many ranges of positions they are cut, all channels in each; beyond it,
    every position is by itself and the channels are cut as well.
    """
    position_steps, unit_steps = _steps(population, fineness)
    units = population.channels // population.indivisible
    for position in position_steps:
        positions = position, min(population.positions, position + position_steps.step)
        for unit in unit_steps:
            last = min(units, unit + unit_steps.step)
            yield FeatureSlice((unit * population.indivisible, last * population.indivisible), positions)


def number_of_parts(population: Population, fineness: int) -> int:
    """Return how many parts `cut` yields."""
    position_steps, unit_steps = _steps(population, fineness)
    return len(position_steps) * len(unit_steps)


def _steps(population: Population, fineness: int) -> tuple[range, range]:
    """Return where ranges of positions and of units begin: all of equal length, the last perhaps shorter."""
    units = population.channels // population.indivisible
    position_ranges = min(fineness, population.positions)
    unit_ranges = max(1, fineness - population.positions + 1)
    return (
        range(0, population.positions, -(-population.positions // position_ranges)),
        range(0, units, -(-units // unit_ranges)),
    )

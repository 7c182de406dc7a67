"""Recurrent connections: which edges of a graph carry what was sent in the step before.

NIR counts time continuously and says nothing about it. Every tool that runs such a graph in steps holds a neuron's
spikes back for one: so do we, on the edges that leave a neuron and close a cycle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter

from export.errors import UnsupportedOperatorError

Edge = tuple[str, str]
"""Source and reader."""


def delayed_edges(sources: Mapping[str, Collection[str]], neurons: Collection[str]) -> set[Edge]:
    """Return the edges that leave a neuron and lead back to it.

    Parameters
    ----------
    sources : mapping of str to collection of str
        What each node reads.
    neurons : collection of str
        Names of the nodes that spike.

    Raises
    ------
    UnsupportedOperatorError
        A cycle leads through several neurons, so that nothing says which edge the step falls on.
    """
    try:
        TopologicalSorter(sources).prepare()
    except CycleError:
        pass
    else:
        return set()
    loops = {neuron: cycle_through(sources, neuron) for neuron in neurons}
    found = set()
    for neuron, loop in loops.items():
        others = sorted(name for name in loop if name != neuron and name in loops)
        if others:
            raise UnsupportedOperatorError(
                f"{neuron}: a cycle leads through it and {', '.join(others)}; only cycles through one neuron are "
                "supported, as nothing says which edge holds spikes back for a step"
            )
        found |= {(neuron, reader) for reader in loop if neuron in sources[reader]}
    return found


def cycle_through(sources: Mapping[str, Collection[str]], node: str) -> set[str]:
    """Return all nodes on cycles through `node`, itself included; empty where there is no cycle."""
    readers: dict[str, list[str]] = {name: [] for name in sources}
    for reader, read in sources.items():
        for source in read:
            readers[source].append(reader)
    return _reached(sources, node) & _reached(readers, node)


def _reached(neighbours: Mapping[str, Collection[str]], start: str) -> set[str]:
    """Return what is reached from `start` in one step or more."""
    found: set[str] = set()
    pending = list(neighbours[start])
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(neighbours[name])
    return found

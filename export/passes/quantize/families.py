"""Which weights share a scale, and in which order whole numbers are chosen: planned before any number is.

What is added has one scale. Weights whose outputs are added to each other, directly or sum by sum, are a family, and
their scale is chosen for all of them at once; so each of them waits for whatever any of them reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import UnsupportedOperatorError
from export.network import Network, Node
from export.operators import rule_for
from export.passes.quantize.draft import QUANTIZE


@dataclass(frozen=True, eq=False)
class Step:
    """A step of the pass: nodes whose whole numbers are chosen, then those that the calibration tries.

    Attributes
    ----------
    chosen : tuple of Node
        Each behind all that its whole numbers depend on.
    tried : tuple of Node
        A node, or those of a cycle, see `Network.stages`; the whole numbers of each are chosen by now.
    """

    chosen: tuple[Node, ...]
    tried: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What `quantize` does with a network, before any number is chosen.

    Attributes
    ----------
    families : dict of str to tuple of Node
        By the name of each node with weights: all that share its scale, itself among them.
    steps : tuple of Step
    """

    families: dict[str, tuple[Node, ...]]
    steps: tuple[Step, ...]


def plan(network: Network) -> Plan:
    """Find the families of a network's weights, and an order in which all that a node waits for comes before it.

    Raises
    ------
    UnsupportedOperatorError
        An operator has no row, weights are added to what cannot share their scale, or families wait for each other.
    """
    families: dict[str, tuple[Node, ...]] = {}
    chosen: dict[str, Node] = {}
    waiting: list[str] = []

    def choose(name: str) -> None:
        """Put a node behind all that it waits for."""
        if name in chosen or name == network.input_name:
            return
        if name in waiting:
            summed = [loop for loop in waiting[waiting.index(name) :] if len(families.get(loop, ())) > 1]
            raise UnsupportedOperatorError(
                f"{summed[0]}: has the scale of all that it is added to, and so has {summed[-1]}, and each of the two "
                "sums reads what waits for the other, so that neither scale can be chosen first; take one of the sums "
                "apart"
            )
        waiting.append(name)
        node = network.by_name[name]
        for source in _read_in_step(node):
            choose(source)
        if _has_weights(node) and name not in families:
            family = _added_to(network, node)
            families.update((member.name, family) for member in family)
        for member in families.get(name, ()):
            for source in _read_in_step(member):
                choose(source)
        waiting.pop()
        chosen[name] = node

    steps, before = [], 0
    for stage in network.stages:
        for node in stage:
            choose(node.name)
        steps.append(Step(tuple(chosen.values())[before:], stage))
        before = len(chosen)
    return Plan(families, tuple(steps))


def _added_to(network: Network, node: Node) -> tuple[Node, ...]:
    """Return the nodes with weights whose outputs are added to that of `node`, itself first."""
    found, pending = {node.name: node}, [node]
    while pending:
        member = pending.pop()
        sums = [reader for reader in network.readers[member.name] if reader.is_sum]
        for total in [*sums, member] if member.is_sum else sums:
            added = [network.by_name[source] for source in total.sources if source in network.by_name]
            for other in (total, *added):
                if other.name not in found:
                    found[other.name] = other
                    if other.is_sum or _has_weights(other):
                        pending.append(other)
    members = tuple(member for member in found.values() if not member.is_sum)
    names = {member.name for member in members}
    odd = [member.name for member in members if not _has_weights(member)]
    odd += [member.name for member in members if names & _read_by(network, member)]
    if odd:
        raise UnsupportedOperatorError(
            f"{node.name}: is added to {odd[0]}; in an integer graph only spikes can be added, and affine maps or "
            "convolutions that read nothing from each other"
        )
    return members


def _has_weights(node: Node) -> bool:
    """Return whether a scale is searched for its weights."""
    return rule_for(QUANTIZE, node).weights is not None


def _read_by(network: Network, node: Node) -> set[str]:
    """Return all that a node reads in the same step, directly or not."""
    found: set[str] = set()
    pending = [node]
    while pending:
        read = set(_read_in_step(pending.pop())) - found
        found |= read
        pending += [network.by_name[source] for source in read if source in network.by_name]
    return found


def _read_in_step(node: Node) -> tuple[str, ...]:
    """Return what a node reads of the same step: what comes back over a recurrent connection is known before."""
    return () if node.is_previous_step else node.sources

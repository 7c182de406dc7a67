"""Decides how each node of an integer network is computed: by a fast path that is exact for it, else by its own steps.

What an operator's fast path is stands in a table, see ``hardware.runners.integer.fast_paths``. An operator without one,
or for which nothing proves that it is exact, runs on its own int64 step, and so do the nodes of a cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from export.network import Network, Node
from export.operators import RuleTable
from export.operators.interval import Interval
from export.operators.rules import Refusal
from export.passes.intervals import value_intervals
from hardware.kernels.integer import IntegerKernel
from hardware.runners.integer.layer import Layer, Run
from hardware.runners.integer.own_steps import own_steps
from hardware.runners.integer.workspace import Workspace


def _fuses_nothing(node: Node, operator: Any, planner: LayerPlanner) -> tuple[Node, ...]:
    return ()


@dataclass(frozen=True)
class FastPath:
    """How the integer runner computes an operator fast; both functions take a node, its operator and the planner.

    Attributes
    ----------
    plan : callable
        Returns the name of the method and what runs, or None where nothing proves that it is exact. What runs is None
        for a node that its reader fuses with itself.
    fuses : callable
        Returns the nodes just before it that are computed together with it.
    """

    plan: Callable[[Node, Any, LayerPlanner], tuple[str, Run | None] | None]
    fuses: Callable[[Node, Any, LayerPlanner], tuple[Node, ...]] = _fuses_nothing


class LayerPlanner:
    """What is known of a network before it runs, and the layers that follow from it.

    Parameters
    ----------
    network : Network
    fast_paths : RuleTable of FastPath
    workspace : Workspace
    kernel : IntegerKernel or None
        The C kernel, where it is to be used.

    Attributes
    ----------
    intervals : dict of str to Interval
        Between which numbers what nodes send lies, where that is proven.
    fused_before : dict of str to tuple of Node
        By node, those just before it that are computed together with it.
    """

    def __init__(
        self, network: Network, fast_paths: RuleTable[FastPath], workspace: Workspace, kernel: IntegerKernel | None
    ) -> None:
        self.network, self.workspace, self.kernel = network, workspace, kernel
        self._fast_paths = fast_paths
        self.intervals: dict[str, Interval] = value_intervals(network)
        on_cycles = {node.name for stage in network.stages if len(stage) > 1 for node in stage}
        self.fused_before: dict[str, tuple[Node, ...]] = {}
        for node in network.nodes:
            path = None if node.name in on_cycles else self._fast_path(node)
            self.fused_before[node.name] = () if path is None else path.fuses(node, node.operator, self)
        self._fused_with_reader = {before.name for nodes in self.fused_before.values() for before in nodes}

    def layers(self) -> list[Layer]:
        """Return the layers of the network in an order in which each can be computed over all steps at once."""
        return [self._layer(stage[0]) if len(stage) == 1 else self._own_steps(stage) for stage in self.network.stages]

    def reads(self, node: Node) -> tuple[str, ...]:
        """Return what is read to compute a node together with what is fused with it."""
        return (*self.fused_before[node.name], node)[0].sources

    def is_fused_with_reader(self, node: Node) -> bool:
        """Return whether the node that reads another computes it with itself."""
        return node.name in self._fused_with_reader

    def read_alone(self, node: Node) -> tuple[Node, ...]:
        """Return the node that `node` reads, where nothing else reads it; none where something does."""
        before = self.network.by_name.get(node.sources[0])
        shown = before is not None and before.name == self.network.output_source
        return () if before is None or shown or len(self.network.readers[before.name]) > 1 else (before,)

    def _layer(self, node: Node) -> Layer:
        path = self._fast_path(node)
        planned = None if path is None else path.plan(node, node.operator, self)
        if planned is None:
            return self._own_steps((node,))
        method, run = planned
        return Layer((node,), method, self.reads(node), run)

    def _own_steps(self, nodes: tuple[Node, ...]) -> Layer:
        reads = tuple(source for node in nodes for source in node.sources)
        return Layer(nodes, "int64", reads, own_steps(nodes, self.network))

    def _fast_path(self, node: Node) -> FastPath | None:
        row = self._fast_paths.find(type(node.operator))
        return None if isinstance(row, Refusal) else row

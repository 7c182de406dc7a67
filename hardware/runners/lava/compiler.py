"""Network -> Lava processes: which nodes go into which process, and how the processes are connected.

Granularities: ``operator``, one process for each operator, stock Lava processes wherever the meaning is exactly theirs;
``block``, one for each encoder block; ``network``, one for all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.network import Network, Node
from export.operators import LeakyIntegrateAndFire, TokenMean
from export.operators.leaky_integrate_and_fire import firing_threshold
from hardware.errors import RunnerError
from hardware.runners.lava.board import MAX_PORTS, Board, GroupPlan

GRANULARITIES = ("operator", "block", "network")
BLOCK_NAME = re.compile(r"block\d+_")
CURRENT_DECAY_NONE = 1.0
"""Lava's du that keeps no current from step to step, so that ``u`` is the input."""


@dataclass(frozen=True)
class ProcessPlan:
    """One Lava process to be: stock, or a group of nodes of ours.

    Attributes
    ----------
    name : str
    nodes : tuple of Node
    stock : bool
        Whether a stock Lava process runs the (single) node.
    """

    name: str
    nodes: tuple[Node, ...]
    stock: bool = False


def partition(network: Network, granularity: str, precision: str) -> list[ProcessPlan]:
    """Decide which nodes go into which process.

    Returns
    -------
    list of ProcessPlan
        In an order in which every process comes behind those it reads from.

    Raises
    ------
    RunnerError
        The granularity is not known.
    """
    if granularity not in GRANULARITIES:
        raise RunnerError(f"granularity {granularity!r} is not one of {', '.join(GRANULARITIES)}")
    if granularity == "network":
        return [ProcessPlan("network", network.nodes)]
    if granularity == "operator":
        return [
            # what reads the graph's input reads it from the board, which a stock process knows nothing of
            ProcessPlan(node.name, (node,), is_stock(node, precision) and network.input_name not in node.sources)
            for node in network.nodes
        ]
    plans: list[ProcessPlan] = []
    taken = {f"from_{node.name}" for node in network.nodes}
    label_before: str | None = None
    for node in network.nodes:
        found = BLOCK_NAME.match(node.name)
        label = found.group().rstrip("_") if found else ""
        if plans and label == label_before:
            plans[-1] = ProcessPlan(plans[-1].name, (*plans[-1].nodes, node))
        else:
            name = f"from_{node.name}" if not label or label in taken else label
            taken.add(name)
            plans.append(ProcessPlan(name, (node,)))
        label_before = label
    return plans


def is_stock(node: Node, precision: str) -> bool:
    """Return whether stock ``lava.proc.lif.LIFReset`` computes a node exactly.

    It is a float64 neuron that resets to zero, does not decay its input, fires strictly above (a >= neuron is one with
    the next smaller threshold), has one decay and one threshold for all, and is silent at rest, as padding must be.
    """
    neuron = node.operator
    if precision != "float64" or not isinstance(neuron, LeakyIntegrateAndFire):
        return False
    beta = np.asarray(neuron.beta)
    return (
        neuron.reset == "zero"
        and not neuron.decay_input
        and bool(np.all(beta == beta[0]) and np.all(neuron.threshold == neuron.threshold[0]))
        and 1 - (1 - float(beta[0])) == float(beta[0])
        and float(firing_threshold(neuron.threshold[:1], neuron.fire_on_equal, np.float64)[0]) >= 0
    )


def build_processes(network: Network, plans: list[ProcessPlan], board: Board, tokens: int) -> list[Any]:
    """Make and connect the Lava processes.

    Parameters
    ----------
    network : Network
    plans : list of ProcessPlan
        From `partition`.
    board : Board
    tokens : int
        N of every port.

    Returns
    -------
    list of AbstractProcess

    Raises
    ------
    RunnerError
        A process would need more ports than it has.
    """
    from hardware.runners.lava.processes.node_group import NodeGroup

    shapes = port_shapes(network, tokens)
    home = {node.name: plan.name for plan in plans for node in plan.nodes}
    read_elsewhere: dict[str, list[str]] = {}  # node -> processes other than its own that read it
    for plan in plans:
        for source in _outside_sources(plan, network.input_name):
            read_elsewhere.setdefault(source, []).append(plan.name)
    processes: dict[str, Any] = {}
    out_ports: dict[str, Any] = {}
    taps: list[Any] = []
    for plan in plans:
        received = _outside_sources(plan, network.input_name)
        if plan.stock:
            process = _stock_neuron(plan, board, tokens)
            (source,) = received
            out_ports[source].connect(process.a_in)
            out_ports[plan.nodes[0].name] = process.s_out
            recorder = NodeGroup(
                name=f"{plan.name}_recorder",
                plan=GroupPlan(
                    nodes=(),
                    receives=((plan.name, *shapes[plan.name]),),
                    sends=(),
                    taps=(plan.name,),
                    output_source=plan.name if plan.name == network.output_source else None,
                ),
                board=board,
            )
            process.s_out.connect(recorder.in_0)
            taps.append(recorder)
        else:
            sent = [node.name for node in plan.nodes if node.name in read_elsewhere]
            if max(len(received), len(sent)) > MAX_PORTS:
                raise RunnerError(
                    f"{plan.name}: would receive {len(received)} and send {len(sent)} values; a process has "
                    f"{MAX_PORTS} ports in each direction. Use granularity 'network' for this graph"
                )
            process = NodeGroup(
                name=plan.name,
                plan=GroupPlan(
                    nodes=plan.nodes,
                    receives=tuple((name, *shapes[name]) for name in received),
                    sends=tuple((name, *shapes[name]) for name in sent),
                    reads_input=any(network.input_name in node.sources for node in plan.nodes),
                    input_name=network.input_name,
                    token_encoding=network.token_encoding,
                    output_source=network.output_source if home[network.output_source] == plan.name else None,
                ),
                board=board,
            )
            for index, source in enumerate(received):
                out_ports[source].connect(getattr(process, f"in_{index}"))
            for index, name in enumerate(sent):
                out_ports[name] = getattr(process, f"out_{index}")
        processes[plan.name] = process
    return [*processes.values(), *taps]


def port_shapes(network: Network, tokens: int) -> dict[str, tuple[int, int]]:
    """Return tokens and features of what each node sends: one token behind a token mean, else all."""
    shapes = {network.input_name: (tokens, network.input_features)}
    for node in network.nodes:
        rows = 1 if isinstance(node.operator, TokenMean) else shapes[node.sources[0]][0]
        shapes[node.name] = (rows, node.operator.out_features)
    return shapes


def _outside_sources(plan: ProcessPlan, input_name: str) -> list[str]:
    own = {node.name for node in plan.nodes}
    found: dict[str, None] = {}
    for node in plan.nodes:
        for source in node.sources:
            if source not in own and source != input_name:
                found[source] = None
    return list(found)


def _stock_neuron(plan: ProcessPlan, board: Board, tokens: int) -> Any:
    from lava.proc.lif.process import LIFReset

    neuron = plan.nodes[0].operator
    assert isinstance(neuron, LeakyIntegrateAndFire)
    return LIFReset(
        name=plan.name,
        shape=(tokens, neuron.in_features),
        du=CURRENT_DECAY_NONE,
        dv=1 - float(neuron.beta[0]),
        vth=float(firing_threshold(neuron.threshold[:1], neuron.fire_on_equal, np.float64)[0]),
        reset_interval=board.time_steps,
        reset_offset=1 % board.time_steps,  # Lava counts time steps from 1; state clears at each sample's first
    )

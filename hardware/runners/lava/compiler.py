"""Network -> Lava processes: which nodes go into which process, and how the processes are connected.

Granularities: ``operator``, one process for each operator, stock Lava processes wherever the meaning is exactly theirs;
``block``, one for each encoder block; ``network``, one for all. Hardware timing is per operator always.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.loihi_numbers import CURRENT_DECAY_NONE, WEIGHT_LIMITS
from export.network import INTEGER, Network, Node
from export.operators import (
    IntegerAffine,
    IntegerLeakyIntegrateAndFire,
    LeakyIntegrateAndFire,
    PreviousStep,
    TokenMean,
)
from export.operators.leaky_integrate_and_fire import firing_threshold
from export.passes.intervals import affine_interval, value_intervals
from hardware.errors import RunnerError
from hardware.runners.lava.board import MAX_PORTS, Board, GroupPlan, Received, Sent
from hardware.runners.lava.probes import NeuronProbe, SynapseProbe
from hardware.runners.lava.timing import HARDWARE, ZERO_LATENCY, arrivals, check_timing, latency

GRANULARITIES = ("operator", "block", "network")
BLOCK_NAME = re.compile(r"block\d+_")
FLOAT_CURRENT_DECAY_NONE = 1.0
"""Lava's du in floating point that keeps no current from step to step, so that ``u`` is the input."""
GRADED_BITS = 24
"""Lava's ``num_message_bits`` for messages that are more than spikes; 0 would make them spikes."""
DENSE_SUM_MAX = (1 << 31) - 1
"""Stock Dense holds and sends int32; a sum of mixed signs stands doubled in it."""


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


@dataclass(frozen=True)
class ProcessNetwork:
    """Connected Lava processes, and what watches the stock ones.

    Attributes
    ----------
    processes : list of AbstractProcess
    probes : dict of AbstractProcess to callable
        As ``GuardedNetwork`` takes them.
    """

    processes: list[Any]
    probes: dict[Any, Any]


def partition(network: Network, granularity: str, precision: str, timing: str = ZERO_LATENCY) -> list[ProcessPlan]:
    """Decide which nodes go into which process.

    Returns
    -------
    list of ProcessPlan
        In an order in which every process comes behind those it reads from.

    Raises
    ------
    RunnerError
        The granularity or timing is not known, or they do not go together.
    """
    if granularity not in GRANULARITIES:
        raise RunnerError(f"granularity {granularity!r} is not one of {', '.join(GRANULARITIES)}")
    if check_timing(timing) == HARDWARE and (granularity != "operator" or precision != INTEGER):
        raise RunnerError(
            f"timing {HARDWARE!r} runs integer graphs with one process for each operator, not {precision} with "
            f"granularity {granularity!r}; quantize the graph and choose granularity 'operator'"
        )
    if granularity == "network":
        return [ProcessPlan("network", network.nodes)]
    recurrent = [node.sources[0] for node in network.nodes if isinstance(node.operator, PreviousStep)]
    if recurrent:
        raise RunnerError(
            f"{recurrent[0]}: has a recurrent connection, which granularity {granularity!r} would draw between "
            "processes; only granularity 'network' runs it"
        )
    if granularity == "operator":
        stock = stock_nodes(network, precision, timing)
        return [ProcessPlan(node.name, (node,), node.name in stock) for node in network.nodes]
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


def stock_nodes(network: Network, precision: str, timing: str) -> set[str]:
    """Return the names of the nodes that stock Lava processes compute exactly.

    Neurons: see `is_stock_neuron`. Synapses, with hardware timing only since stock ones send one step late: an
    `IntegerAffine` whose sums are sure to fit the 32 bits that ``Dense`` holds. Its bias, which stock synapses have
    not, is added by the processes that read it, which therefore must be ours. What reads the network's input is ours,
    because it reads the board.
    """
    stock = {
        node.name
        for node in network.nodes
        if network.input_name not in node.sources and is_stock_neuron(node, precision)
    }
    if timing != HARDWARE:
        return stock
    intervals = value_intervals(network)
    without_bias: set[str] = set()
    for node in network.nodes:
        affine = node.operator
        if not isinstance(affine, IntegerAffine) or network.input_name in node.sources:
            continue
        readers = {reader.name for reader in network.nodes if node.name in reader.sources}
        low, high = WEIGHT_LIMITS[affine.sign_mode]
        if (
            (affine.bias is None or not readers & stock)
            and not without_bias.intersection(node.sources)
            and node.sources[0] in intervals
            and 2 * affine_interval(affine.weight, None, intervals[node.sources[0]]).largest <= DENSE_SUM_MAX
            and affine.weight.min(initial=0) >= low
            and affine.weight.max(initial=0) <= high
        ):
            stock.add(node.name)
            if affine.bias is not None:
                without_bias.add(node.name)
    return stock


def is_stock_neuron(node: Node, precision: str) -> bool:
    """Return whether stock ``lava.proc.lif.LIFReset`` computes a node exactly.

    In whole numbers the operator says so. In floating point it is a float64 neuron that resets to zero, does not decay
    its input, fires strictly above (a >= neuron is one with the next smaller threshold), and has one decay and one
    threshold for all.
    """
    neuron = node.operator
    if isinstance(neuron, IntegerLeakyIntegrateAndFire):
        return precision == INTEGER and neuron.is_stock_lif
    if precision != "float64" or not isinstance(neuron, LeakyIntegrateAndFire):
        return False
    beta = np.asarray(neuron.beta)
    return (
        neuron.reset == "zero"
        and not neuron.decay_input
        and bool(np.all(beta == beta[0]) and np.all(neuron.threshold == neuron.threshold[0]))
        and 1 - (1 - float(beta[0])) == float(beta[0])
    )


def build_processes(
    network: Network, plans: list[ProcessPlan], board: Board, tokens: int, timing: str = ZERO_LATENCY
) -> ProcessNetwork:
    """Make and connect the Lava processes.

    Parameters
    ----------
    network : Network
    plans : list of ProcessPlan
        From `partition`.
    board : Board
    tokens : int
        N of every port.
    timing : str

    Raises
    ------
    RunnerError
        A process would need more ports than it has.
    """
    from hardware.runners.lava.processes.node_group import NodeGroup

    shapes = port_shapes(network, tokens)
    arrives = arrivals(network, timing)
    home = {node.name: plan for plan in plans for node in plan.nodes}
    read_elsewhere = {source for plan in plans for source in _outside_sources(plan, network.input_name)}
    spikes = {node.name for node in network.spiking_nodes}
    synapses: set[str] = set()  # nodes in stock Dense
    processes: dict[str, Any] = {}
    probes: dict[Any, Any] = {}
    out_ports: dict[str, Any] = {}
    for plan in plans:
        sources = _outside_sources(plan, network.input_name)
        starts_at = max(arrives[source] for node in plan.nodes for source in node.sources)
        if plan.stock:
            (node,), (source,) = plan.nodes, sources
            shows_output = node.name == network.output_source
            if isinstance(node.operator, IntegerAffine):
                process = _stock_synapses(node, shapes[source][0], graded=source not in spikes)
                _connect(out_ports[source], process.s_in, turned=source not in synapses)
                synapses.add(node.name)
                out_ports[node.name] = process.a_out
                if shows_output:
                    probes[process] = SynapseProbe(board, starts_at, node.operator.bias)
            else:
                process = _stock_neuron(node, shapes[node.name], board.time_steps, starts_at)
                _connect(out_ports[source], process.a_in, turned=source in synapses)
                out_ports[node.name] = process.s_out
                probes[process] = NeuronProbe(board, node.name, starts_at, shows_output)
            processes[plan.name] = process
            continue
        sent = [node for node in plan.nodes if node.name in read_elsewhere]
        if max(len(sources), len(sent)) > MAX_PORTS:
            raise RunnerError(
                f"{plan.name}: would receive {len(sources)} and send {len(sent)} values; a process has "
                f"{MAX_PORTS} ports in each direction. Use granularity 'network' for this graph"
            )
        process = NodeGroup(
            name=plan.name,
            plan=GroupPlan(
                nodes=plan.nodes,
                receives=tuple(
                    Received(
                        source, *shapes[source], starts_at - arrives[source], _missing_bias(home.get(source), source)
                    )
                    for source in sources
                ),
                sends=tuple(Sent(node.name, *shapes[node.name], latency(node.operator, timing)) for node in sent),
                starts_at=starts_at,
                reads_input=any(network.input_name in node.sources for node in plan.nodes),
                input_name=network.input_name,
                token_encoding=network.token_encoding,
                output_source=network.output_source if home[network.output_source] is plan else None,
            ),
            board=board,
        )
        for index, source in enumerate(sources):
            _connect(out_ports[source], getattr(process, f"in_{index}"), turned=source in synapses)
        for index, node in enumerate(sent):
            out_ports[node.name] = getattr(process, f"out_{index}")
        processes[plan.name] = process
    return ProcessNetwork(list(processes.values()), probes)


def _connect(out_port: Any, in_port: Any, turned: bool) -> None:
    """Connect two ports of as many elements.

    All ports are tokens by features, but those of stock synapses: features by tokens, and features for a single token.
    """
    if len(out_port.shape) != len(in_port.shape):
        out_port = out_port.reshape(in_port.shape)
    elif turned and len(in_port.shape) == 2:
        out_port = out_port.transpose((1, 0))
    out_port.connect(in_port)


def _missing_bias(plan: ProcessPlan | None, node: str) -> np.ndarray | None:
    """Return the bias that whoever reads `node` must add, because a stock process without one computes it."""
    if plan is None or not plan.stock:
        return None
    (operator,) = (entry.operator for entry in plan.nodes if entry.name == node)
    return operator.bias if isinstance(operator, IntegerAffine) else None


def port_shapes(network: Network, tokens: int) -> dict[str, tuple[int, int]]:
    """Return tokens and features of what each node sends: one token behind a token mean, else all."""
    shapes = {network.input_name: (tokens, network.input_features)}
    for node in network.nodes:
        if isinstance(node.operator, PreviousStep):
            rows = tokens  # its neuron comes later, and is in no token mean's wake
        else:
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


def _stock_neuron(node: Node, shape: tuple[int, int], time_steps: int, starts_at: int) -> Any:
    from lava.proc.lif.process import LIFReset

    neuron = node.operator
    # Lava counts time steps from 1; state clears at each sample's first
    resets = {"reset_interval": time_steps, "reset_offset": (1 + starts_at) % time_steps}
    if isinstance(neuron, IntegerLeakyIntegrateAndFire):
        return LIFReset(
            name=node.name,
            shape=shape,
            du=CURRENT_DECAY_NONE,
            dv=int(neuron.decay[0]),
            vth=int(neuron.threshold[0]),
            bias_mant=np.broadcast_to(neuron.bias_mantissa, shape).copy(),
            bias_exp=np.broadcast_to(neuron.bias_exponent, shape).copy(),
            **resets,
        )
    assert isinstance(neuron, LeakyIntegrateAndFire)
    return LIFReset(
        name=node.name,
        shape=shape,
        du=FLOAT_CURRENT_DECAY_NONE,
        dv=1 - float(neuron.beta[0]),
        vth=float(firing_threshold(neuron.threshold[:1], neuron.fire_on_equal, np.float64)[0]),
        **resets,
    )


def _stock_synapses(node: Node, tokens: int, graded: bool) -> Any:
    from lava.proc.dense.process import Dense

    from hardware.runners.lava.processes.token_dense import TokenDense

    affine = node.operator
    assert isinstance(affine, IntegerAffine)
    # Dense floors weights of mixed signs to even ones; twice the weight is even, and the exponent halves the sum
    mixed = affine.sign_mode == "mixed"
    weights = affine.weight.astype(np.int32) * (2 if mixed else 1)
    exponent = -1 if mixed else 0
    if tokens == 1:
        bits = GRADED_BITS if graded else 0
        return Dense(name=node.name, weights=weights, weight_exp=exponent, num_message_bits=bits)
    return TokenDense(name=node.name, weights=weights, tokens=tokens, weight_exp=exponent, num_message_bits=GRADED_BITS)

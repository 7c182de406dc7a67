"""Network -> Lava processes: which nodes go into which process, and how the processes are connected.

Granularities: ``operator``, one process for each operator, stock Lava processes wherever the meaning is exactly theirs;
``block``, one for each encoder block; ``network``, one for all. Hardware timing is per operator always.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.network import INTEGER, Network, Node
from hardware.choices import GRANULARITIES
from hardware.errors import RunnerError
from hardware.runners.lava.group_plan import MAX_PORTS, GroupPlan, Received, Sent
from hardware.runners.lava.probes import NeuronProbe, SynapseProbe
from hardware.runners.lava.shared_arrays import SharedArrays
from hardware.runners.lava.stock import StockForm, lif_parameters, own_nodes, stock_form, synapses_of
from hardware.runners.lava.timing import HARDWARE, ZERO_LATENCY, arrivals, check_timing, latency

BLOCK_NAME = re.compile(r"block\d+_")
GRADED_BITS = 24
"""Lava's ``num_message_bits`` for messages that are more than spikes; 0 would make them spikes."""


@dataclass(frozen=True)
class ProcessPlan:
    """One Lava process to be: stock, or a group of nodes of ours.

    Attributes
    ----------
    name : str
    nodes : tuple of Node
    why_own : str or None
        Why they need a process of ours; None where the node is stock, see ``hardware.runners.lava.stock``. With a stock
        node goes a sum over tokens just before it.
    """

    name: str
    nodes: tuple[Node, ...]
    why_own: str | None = None

    @property
    def stock(self) -> bool:
        """Whether no process of ours is needed."""
        return self.why_own is None


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
    why_own = f"granularity {granularity!r} runs many nodes in one process"
    if granularity == "network":
        return [ProcessPlan("network", network.nodes, why_own)]
    recurrent = [node.sources[0] for node in network.nodes if node.is_previous_step]
    if recurrent:
        raise RunnerError(
            f"{recurrent[0]}: has a recurrent connection, which granularity {granularity!r} would draw between "
            "processes; only granularity 'network' runs it"
        )
    if granularity == "operator":
        return _operator_plans(network, own_nodes(network, precision, timing))
    plans: list[ProcessPlan] = []
    taken = {f"from_{node.name}" for node in network.nodes}
    label_before: str | None = None
    for node in network.nodes:
        found = BLOCK_NAME.match(node.name)
        label = found.group().rstrip("_") if found else ""
        if plans and label == label_before:
            plans[-1] = ProcessPlan(plans[-1].name, (*plans[-1].nodes, node), why_own)
        else:
            name = f"from_{node.name}" if not label or label in taken else label
            taken.add(name)
            plans.append(ProcessPlan(name, (node,), why_own))
        label_before = label
    return plans


def _operator_plans(network: Network, own: dict[str, str]) -> list[ProcessPlan]:
    """Return a plan for each operator; a stock sum over tokens goes with the map behind it."""
    plans: list[ProcessPlan] = []
    summed: dict[str, Node] = {}
    for node in network.nodes:
        if node.name in own:
            plans.append(ProcessPlan(node.name, (node,), own[node.name]))
        elif stock_form(node.operator) is StockForm.READ_OUT:
            summed[node.name] = node
        else:
            before = [summed[source] for source in node.sources if source in summed]
            plans.append(ProcessPlan(node.name, (*before, node)))
    return plans


def build_processes(
    network: Network, plans: list[ProcessPlan], shared: SharedArrays, tokens: int, timing: str = ZERO_LATENCY
) -> ProcessNetwork:
    """Make and connect the Lava processes.

    Parameters
    ----------
    network : Network
    plans : list of ProcessPlan
        From `partition`.
    shared : SharedArrays
    tokens : int
        N of every port.
    timing : str

    Raises
    ------
    RunnerError
        A process would need more ports than it has.
    """
    building = _Building(network, plans, shared, tokens, timing)
    for plan in plans:
        building.add(plan)
    return ProcessNetwork(building.processes, building.probes)


@dataclass(frozen=True)
class _Sender:
    """A port that a node sends on: tokens by features, or turned, as the ports of stock synapses are."""

    port: Any
    turned: bool = False


class _Building:
    """Processes made so far, and the ports on which each node sends; what is connected to one port adds up there."""

    def __init__(
        self, network: Network, plans: list[ProcessPlan], shared: SharedArrays, tokens: int, timing: str
    ) -> None:
        self.network, self.shared, self.timing = network, shared, timing
        self.shapes = port_shapes(network, tokens)
        self.arrives = arrivals(network, timing, summed_by_the_reader(plans))
        self.home = {node.name: plan for plan in plans for node in plan.nodes}
        self.read_elsewhere = {source for plan in plans for source in _outside_sources(plan, network.input_name)}
        self.spikes = {node.name for node in network.spiking_nodes}
        self.processes: list[Any] = []
        self.probes: dict[Any, Any] = {}
        self._senders: dict[tuple[str, int], tuple[_Sender, ...]] = {}  # by node, and steps that it is delayed

    def add(self, plan: ProcessPlan) -> None:
        """Make what a plan says; whatever it reads is there already."""
        if not plan.stock:
            self._add_group(plan)
            return
        form = stock_form(plan.nodes[-1].operator)
        assert form is not None
        # a sum over tokens is left to who reads the output, and stands before the synapses of its plan
        adds = {
            StockForm.NEURONS: self._add_neurons,
            StockForm.SYNAPSES: self._add_synapses,
            StockForm.PORT: self._add_port_sum,
        }
        adds[form](plan)

    def _add_port_sum(self, plan: ProcessPlan) -> None:
        (node,) = plan.nodes
        late = [(source, self.arrives[node.name] - self.arrives[source]) for source in node.sources]
        self._senders[node.name, 0] = tuple(sender for part in late for sender in self._sent(*part))

    def _add_neurons(self, plan: ProcessPlan) -> None:
        (node,) = plan.nodes
        (source,) = node.sources
        process = _stock_neurons(node, self.shapes[node.name], self.shared.time_steps, self.arrives[source])
        self._connect(source, process.a_in)
        self.probes[process] = NeuronProbe(
            self.shared, node.name, self.arrives[source], node.name == self.network.output_source
        )
        self.processes.append(process)
        self._senders[node.name, 0] = (_Sender(process.s_out),)

    def _add_synapses(self, plan: ProcessPlan) -> None:
        node, (source,) = plan.nodes[-1], plan.nodes[0].sources
        reads_tokens = source == self.network.input_name
        graded = source not in self.spikes and not reads_tokens
        process = _stock_synapses(node, self.shapes[source][0], graded, sparse=reads_tokens)
        self._connect(source, process.s_in, turned=True)
        if node.name == self.network.output_source:
            self.probes[process] = SynapseProbe(
                self.shared, self.arrives[source], _missing_bias(plan, node.name), sums_tokens=len(plan.nodes) > 1
            )
        self.processes.append(process)
        self._senders[node.name, 0] = (_Sender(process.a_out, turned=True),)

    def _add_group(self, plan: ProcessPlan) -> None:
        from hardware.runners.lava.processes.node_group import NodeGroup

        network, shapes, arrives = self.network, self.shapes, self.arrives
        sources = _outside_sources(plan, network.input_name)
        starts_at = max(arrives[source] for node in plan.nodes for source in node.sources)
        sent = [node for node in plan.nodes if node.name in self.read_elsewhere]
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
                        source,
                        *shapes[source],
                        starts_at - arrives[source],
                        _missing_bias(self.home.get(source), source),
                    )
                    for source in sources
                ),
                sends=tuple(Sent(node.name, *shapes[node.name], latency(node.operator, self.timing)) for node in sent),
                starts_at=starts_at,
                reads_input=any(network.input_name in node.sources for node in plan.nodes),
                input_name=network.input_name,
                token_encoding=network.token_encoding,
                pooled=network.pooled,
                output_source=network.output_source if self.home[network.output_source] is plan else None,
            ),
            shared=self.shared,
        )
        for index, source in enumerate(sources):
            self._connect(source, getattr(process, f"in_{index}"))
        for index, node in enumerate(sent):
            self._senders[node.name, 0] = (_Sender(getattr(process, f"out_{index}")),)
        self.processes.append(process)

    def _connect(self, source: str, in_port: Any, turned: bool = False, late: int = 0) -> None:
        """Connect what a node sends, so many steps late, to a port: tokens by features, or turned.

        Ports of stock synapses for a single token have features only.
        """
        for sender in self._sent(source, late):
            port = sender.port
            if len(port.shape) != len(in_port.shape):
                port = port.reshape(in_port.shape)
            elif sender.turned != turned and len(in_port.shape) == 2:
                port = port.transpose((1, 0))
            port.connect(in_port)

    def _sent(self, source: str, late: int = 0) -> tuple[_Sender, ...]:
        """Return the ports on which a node sends; what is to come late goes over synapses that pass it on."""
        if (source, late) not in self._senders:
            self._senders[source, late] = (self._delay(source, late) if late else self._token_input(source),)
        return self._senders[source, late]

    def _delay(self, source: str, late: int) -> _Sender:
        from scipy.sparse import identity

        from hardware.runners.lava.processes.token_sparse import TokenSparse

        tokens, features = self.shapes[source]
        process = TokenSparse(
            name=f"{source}_{late}_late",
            weights=identity(features, np.int32, "csr"),
            tokens=tokens,
            num_message_bits=GRADED_BITS,
        )
        self._connect(source, process.s_in, turned=True, late=late - 1)
        self.processes.append(process)
        return _Sender(process.a_out, turned=True)

    def _token_input(self, name: str) -> _Sender:
        from hardware.runners.lava.processes.token_input import TokenInput

        assert name == self.network.input_name
        assert self.network.token_encoding is not None
        process = TokenInput(name=name, encoding=self.network.token_encoding, shared=self.shared)
        self.processes.append(process)
        return _Sender(process.s_out)


def summed_by_the_reader(plans: list[ProcessPlan]) -> set[str]:
    """Return the sums over tokens that are left to who reads the output of the map behind them."""
    return {node.name for plan in plans if plan.stock for node in plan.nodes[:-1]}


def _missing_bias(plan: ProcessPlan | None, node: str) -> np.ndarray | None:
    """Return the bias that whoever reads `node` must add, because a stock process without one computes it."""
    if plan is None or not plan.stock or stock_form(plan.nodes[-1].operator) is not StockForm.SYNAPSES:
        return None
    return synapses_of(plan.nodes[-1]).bias


def port_shapes(network: Network, tokens: int) -> dict[str, tuple[int, int]]:
    """Return tokens and features of what each node sends: one token behind a pooling of tokens, else all."""
    shapes = {network.input_name: (tokens, network.input_features)}
    for node in network.nodes:
        shapes[node.name] = (1 if node.name in network.pooled else tokens, node.operator.out_features)
    return shapes


def _outside_sources(plan: ProcessPlan, input_name: str) -> list[str]:
    own = {node.name for node in plan.nodes}
    found: dict[str, None] = {}
    for node in plan.nodes:
        for source in node.sources:
            if source not in own and source != input_name:
                found[source] = None
    return list(found)


def _stock_neurons(node: Node, shape: tuple[int, int], time_steps: int, starts_at: int) -> Any:
    from lava.proc.lif.process import LIFReset

    # Lava counts time steps from 1; state clears at each sample's first
    resets = {"reset_interval": time_steps, "reset_offset": (1 + starts_at) % time_steps}
    return LIFReset(name=node.name, shape=shape, **lif_parameters(node, shape), **resets)


def _stock_synapses(node: Node, tokens: int, graded: bool, sparse: bool) -> Any:
    from lava.proc.dense.process import Dense

    from hardware.runners.lava.processes.token_dense import TokenDense
    from hardware.runners.lava.processes.token_sparse import TokenSparse

    affine = synapses_of(node)
    # both floor weights of mixed signs to even ones; twice the weight is even, and the exponent halves the sum
    mixed = affine.sign_mode == "mixed"
    weights = affine.weight.astype(np.int32) * (2 if mixed else 1)
    exponent = -1 if mixed else 0
    if tokens == 1 and not sparse:
        bits = GRADED_BITS if graded else 0
        return Dense(name=node.name, weights=weights, weight_exp=exponent, num_message_bits=bits)
    kind = TokenSparse if sparse else TokenDense
    return kind(name=node.name, weights=weights, tokens=tokens, weight_exp=exponent, num_message_bits=GRADED_BITS)

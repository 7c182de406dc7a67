"""Which nodes of a network stock Lava processes compute exactly, and why the others need processes of ours.

With hardware timing, where every synaptic hop takes a step as stock synapses do, a node may be stock in four ways. A
neuron is a stock ``LIFReset``. An affine map is a stock ``Dense``, or ``Sparse`` where it reads token ids. A sum of
nodes is no process: a port adds up what is connected to it, after stock synapses delayed what comes early. And a sum
over tokens before the last map is left to whoever reads the output, who adds up time steps anyway. With zero latency
only neurons are stock.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.loihi_numbers import WEIGHT_LIMITS
from export.network import INTEGER, Network, Node
from export.operators import (
    Affine,
    Heaviside,
    IntegerAffine,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    LeakyIntegrateAndFire,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
)
from export.operators.interval import Interval, affine_interval
from export.passes.intervals import value_intervals
from hardware.runners.lava.timing import HARDWARE

DENSE_SUM_MAX = (1 << 31) - 1
"""Stock synapses hold and send int32; a sum of mixed signs stands doubled in them."""

OTHER_NEURON = "stock LIF resets to zero, fires above its threshold, and has one threshold and one decay for all"
ONLY_WITH_HARDWARE_TIMING = "stock synapses send a step late, and this run is without latency"
READS_INPUT = "reads the values that come in, which a process of ours holds"
IS_THE_OUTPUT = "is the output, and a sum that no process reads"
BIAS_BETWEEN = "stock synapses have no bias, and no process of ours is there to add it"
UNBOUNDED = "nothing proves that its sums fit the 32 bits of stock synapses"
WEIGHTS_OUTSIDE = "has weights that stock synapses do not hold"
SUM_ELSEWHERE = (
    "stock processes know no mask; only before the last map is a sum over tokens left to who reads the output"
)
NO_STOCK_PROCESS = "no stock process computes it"
OWN_MEANING = {
    SpikeAttention: "multiplies spikes with spikes; synapses multiply them with fixed weights",
    LayerNorm: "divides by the root of a sum of squares",
    Heaviside: "compares without memory; a stock LIF keeps a 4096th of its potential at least",
    IntegerLeakyIntegrateAndFire: OTHER_NEURON,
    LeakyIntegrateAndFire: OTHER_NEURON,
    TokenMean: SUM_ELSEWHERE,
}
"""Why a process of ours is needed, as reports say it."""


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


def own_nodes(network: Network, precision: str, timing: str) -> dict[str, str]:
    """Return the nodes that need a process of ours, each with why; all others stock processes compute exactly.

    Parameters
    ----------
    network : Network
    precision, timing : str
        Only whole numbers run with hardware timing.
    """
    if timing != HARDWARE:
        neurons = {
            node.name
            for node in network.nodes
            if network.input_name not in node.sources and is_stock_neuron(node, precision)
        }
        return {node.name: _why_own_at_once(node, precision) for node in network.nodes if node.name not in neurons}
    intervals = value_intervals(network)
    readers: dict[str, list[Node]] = {node.name: [] for node in network.nodes}
    for node in network.nodes:
        for source in node.sources:
            readers.setdefault(source, []).append(node)
    own: dict[str, str] = {}
    for node in network.nodes:
        if not isinstance(node.operator, IntegerAffine):
            why = _why_own(node, network, readers[node.name], intervals)
            if why is not None:
                own[node.name] = why
    without_bias: set[str] = set()  # in stock synapses, so that whoever reads them must add it
    for node in network.nodes:
        affine = node.operator
        if not isinstance(affine, IntegerAffine):
            continue
        read = _read_by(node, network, own)
        why = _why_no_synapses(affine, read, network, intervals)
        stock_readers = [r for r in readers[node.name] if r.name not in own and not isinstance(r.operator, Affine)]
        if why is None and (read in without_bias or (affine.bias is not None and stock_readers)):
            why = BIAS_BETWEEN
        if why is not None:
            own[node.name] = why
        elif affine.bias is not None:
            without_bias.add(node.name)
    return own


def _why_own_at_once(node: Node, precision: str) -> str:
    """Return why a node that is no stock neuron needs a process of ours without latency."""
    if is_stock_neuron(node, precision):
        return READS_INPUT
    if isinstance(node.operator, Affine | Total):
        return ONLY_WITH_HARDWARE_TIMING
    return _why_never(node)


def _why_own(node: Node, network: Network, readers: list[Node], intervals: dict[str, Interval]) -> str | None:
    """Return why a node that is no affine map needs a process of ours with hardware timing; None where it does not."""
    operator = node.operator
    if network.input_name in node.sources:
        return READS_INPUT
    if isinstance(operator, IntegerLeakyIntegrateAndFire):
        return None if operator.is_stock_lif else OTHER_NEURON
    if isinstance(operator, Total):
        if node.name == network.output_source:
            return IS_THE_OUTPUT
        return None if all(_fits(intervals.get(source)) for source in node.sources) else UNBOUNDED
    if isinstance(operator, TokenSum):
        heads = [r for r in readers if r.name == network.output_source and isinstance(r.operator, IntegerAffine)]
        if len(readers) != 1 or not heads:
            return SUM_ELSEWHERE
        return _why_no_synapses(heads[0].operator, node.sources[0], network, intervals)  # type: ignore[arg-type]
    return _why_never(node)


def _read_by(node: Node, network: Network, own: dict[str, str]) -> str:
    """Return what the synapses of an affine map read: with a stock sum over tokens before it, what that reads."""
    (source,) = node.sources
    before = next((other for other in network.nodes if other.name == source), None)
    summed = before is not None and isinstance(before.operator, TokenSum) and source not in own
    return before.sources[0] if before is not None and summed else source


def _why_no_synapses(
    affine: IntegerAffine, source: str, network: Network, intervals: dict[str, Interval]
) -> str | None:
    """Return why stock synapses would not compute ``W x`` exactly; None where they do."""
    low, high = WEIGHT_LIMITS[affine.sign_mode]
    if affine.weight.min(initial=0) < low or affine.weight.max(initial=0) > high:
        return WEIGHTS_OUTSIDE
    if source == network.input_name:
        if network.token_encoding is None:
            return READS_INPUT
        return (
            None
            if _fits(replace(affine, bias=None).gathered_interval(network.token_encoding.tables.values()))
            else UNBOUNDED
        )
    if source not in intervals:
        return UNBOUNDED
    return None if _fits(affine_interval(affine.weight, None, intervals[source])) else UNBOUNDED


def _fits(interval: Interval | None) -> bool:
    return interval is not None and 2 * interval.largest <= DENSE_SUM_MAX


def _why_never(node: Node) -> str:
    """Return why no stock process computes an operator, whatever the timing."""
    return next((why for kind, why in OWN_MEANING.items() if isinstance(node.operator, kind)), NO_STOCK_PROCESS)

"""Which nodes of a network stock Lava processes compute exactly, and why the others need processes of ours.

What stock Lava has for an operator stands in `STOCK`. With hardware timing, where every synaptic hop takes a step as
stock synapses do, there are four forms, see `StockForm`; without latency only neurons are stock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, cast

import numpy as np

from export.loihi_numbers import CURRENT_DECAY_NONE, WEIGHT_LIMITS
from export.network import INTEGER, Network, Node
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerAffine,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    RuleTable,
    Scale,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
)
from export.operators.firing import firing_threshold
from export.operators.interval import Interval, affine_interval
from export.operators.rules import Refusal
from export.passes.intervals import value_intervals
from hardware.runners.lava.timing import HARDWARE

DENSE_SUM_MAX = (1 << 31) - 1
"""Stock synapses hold and send int32; a sum of mixed signs stands doubled in them."""
FLOAT_CURRENT_DECAY_NONE = 1.0
"""Lava's du in floating point that keeps no current from step to step, so that ``u`` is the input."""

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
"""Why a process of ours is needed, as reports say it."""


class StockForm(Enum):
    """What stock Lava has for an operator."""

    NEURONS = "a ``LIFReset``"
    SYNAPSES = "a ``Dense``, or a ``Sparse`` where token ids are read"
    PORT = "no process: a port adds up what is connected to it, after stock synapses delayed what comes early"
    READ_OUT = "no process: whoever reads the output, and adds up time steps anyway, adds up tokens too"


@dataclass
class StockSearch:
    """What is known of a network while its stock nodes are looked for.

    Attributes
    ----------
    network : Network
    precision, timing : str
    intervals : dict of str to Interval
        With hardware timing: between which numbers what nodes send lies, where that is proven.
    own : dict of str to str
        Nodes found so far to need a process of ours, each with why; synapses are looked at behind all others.
    without_bias : set of str
        Stock synapses found so far whose bias whoever reads them must add.
    """

    network: Network
    precision: str
    timing: str
    intervals: dict[str, Interval] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    without_bias: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class StockRow:
    """How stock Lava computes an operator.

    Attributes
    ----------
    form : StockForm
    why_own : callable
        Takes a node, its operator and a `StockSearch`; returns why a process of ours is needed all the same, None where
        the stock one computes it exactly.
    parameters : callable or None
        Of neurons: takes an operator and the shape of its ports; returns keywords of ``LIFReset``.
    """

    form: StockForm
    why_own: Callable[[Node, Any, StockSearch], str | None]
    parameters: Callable[[Any, tuple[int, int]], dict[str, Any]] | None = None


def own_nodes(network: Network, precision: str, timing: str) -> dict[str, str]:
    """Return the nodes that need a process of ours, each with why; all others stock processes compute exactly.

    Parameters
    ----------
    network : Network
    precision, timing : str
        Only whole numbers run with hardware timing.
    """
    search = StockSearch(network, precision, timing)
    if timing == HARDWARE:
        search.intervals = value_intervals(network)
    # whether synapses need a process of ours depends on who reads them
    for node in sorted(network.nodes, key=lambda node: stock_form(node.operator) is StockForm.SYNAPSES):
        why = _why_own(node, search)
        if why is not None:
            search.own[node.name] = why
        elif stock_form(node.operator) is StockForm.SYNAPSES and synapses_of(node).bias is not None:
            search.without_bias.add(node.name)
    return search.own


def stock_form(operator: Operator) -> StockForm | None:
    """Return what stock Lava has for an operator, whether or not it computes this one exactly."""
    row = STOCK.find(type(operator))
    return None if row is None or isinstance(row, Refusal) else row.form


def synapses_of(node: Node) -> IntegerAffine:
    """Return the operator of a node that has the form of stock synapses; whoever reads them must add its bias."""
    assert stock_form(node.operator) is StockForm.SYNAPSES
    return cast(IntegerAffine, node.operator)


def lif_parameters(node: Node, shape: tuple[int, int]) -> dict[str, Any]:
    """Return the keywords with which a stock ``LIFReset`` is the neurons of a node."""
    row = STOCK.find(type(node.operator))
    assert isinstance(row, StockRow)
    assert row.parameters is not None
    return row.parameters(node.operator, shape)


def _why_own(node: Node, search: StockSearch) -> str | None:
    row = STOCK.find(type(node.operator))
    reads_input = search.network.input_name in node.sources and stock_form(node.operator) is not StockForm.SYNAPSES
    if reads_input and search.timing == HARDWARE:
        return READS_INPUT
    if row is None:
        return NO_STOCK_PROCESS
    if isinstance(row, Refusal):
        return row.reason
    why = row.why_own(node, node.operator, search)
    return READS_INPUT if why is None and reads_input else why


# ---------------------------------------------------------------------------------------------------------------------
# Neurons.


def _why_no_integer_lif(node: Node, neuron: IntegerLeakyIntegrateAndFire, search: StockSearch) -> str | None:
    return None if search.precision == INTEGER and neuron.is_stock_lif else OTHER_NEURON


def _integer_lif(neuron: IntegerLeakyIntegrateAndFire, shape: tuple[int, int]) -> dict[str, Any]:
    return {
        "du": CURRENT_DECAY_NONE,
        "dv": int(neuron.decay[0]),
        "vth": int(neuron.threshold[0]),
        "bias_mant": np.broadcast_to(neuron.bias_mantissa, shape).copy(),
        "bias_exp": np.broadcast_to(neuron.bias_exponent, shape).copy(),
    }


def _why_no_float_lif(node: Node, neuron: LeakyIntegrateAndFire, search: StockSearch) -> str | None:
    """It is one in float64, if it resets to zero, does not decay its input, and has one decay and one threshold.

    Stock LIF fires strictly above its threshold; a >= neuron is one with the next smaller threshold.
    """
    beta = np.asarray(neuron.beta)
    is_lif = (
        search.precision == "float64"
        and neuron.reset == "zero"
        and not neuron.decay_input
        and bool(np.all(beta == beta[0]) and np.all(neuron.threshold == neuron.threshold[0]))
        and 1 - (1 - float(beta[0])) == float(beta[0])
    )
    return None if is_lif else OTHER_NEURON


def _float_lif(neuron: LeakyIntegrateAndFire, shape: tuple[int, int]) -> dict[str, Any]:
    return {
        "du": FLOAT_CURRENT_DECAY_NONE,
        "dv": 1 - float(neuron.beta[0]),
        "vth": float(firing_threshold(neuron.threshold[:1], neuron.fire_on_equal, np.float64)[0]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Synapses and sums.


def _why_no_port(node: Node, operator: Total, search: StockSearch) -> str | None:
    if search.timing != HARDWARE:
        return ONLY_WITH_HARDWARE_TIMING
    if node.name == search.network.output_source:
        return IS_THE_OUTPUT
    return None if all(_fits(search.intervals.get(source)) for source in node.sources) else UNBOUNDED


def _why_not_read_out(node: Node, operator: TokenSum, search: StockSearch) -> str | None:
    readers = search.network.readers[node.name]
    is_last_but_one = len(readers) == 1 and readers[0].name == search.network.output_source
    if search.timing != HARDWARE or not is_last_but_one or stock_form(readers[0].operator) is not StockForm.SYNAPSES:
        return SUM_ELSEWHERE
    return _why_not_exact(synapses_of(readers[0]), node.sources[0], search)


def _why_no_synapses(node: Node, affine: IntegerAffine, search: StockSearch) -> str | None:
    if search.timing != HARDWARE:
        return ONLY_WITH_HARDWARE_TIMING
    read = _read_by(node, search)
    why = _why_not_exact(affine, read, search)
    if why is not None:
        return why
    # of its readers other synapses are looked at later, and see that it has no bias
    stock_readers = [
        reader
        for reader in search.network.readers[node.name]
        if reader.name not in search.own and stock_form(reader.operator) is not StockForm.SYNAPSES
    ]
    return BIAS_BETWEEN if read in search.without_bias or (affine.bias is not None and stock_readers) else None


def _read_by(node: Node, search: StockSearch) -> str:
    """Return what the synapses of an affine map read: with a stock sum over tokens before it, what that reads."""
    (source,) = node.sources
    before = search.network.by_name.get(source)
    if before is None or source in search.own or stock_form(before.operator) is not StockForm.READ_OUT:
        return source
    return before.sources[0]


def _why_not_exact(affine: IntegerAffine, source: str, search: StockSearch) -> str | None:
    """Return why stock synapses would not compute ``W x`` exactly; None where they do."""
    network, intervals = search.network, search.intervals
    low, high = WEIGHT_LIMITS[affine.sign_mode]
    if affine.weight.min(initial=0) < low or affine.weight.max(initial=0) > high:
        return WEIGHTS_OUTSIDE
    if source == network.input_name:
        if network.token_encoding is None:
            return READS_INPUT
        gathered = replace(affine, bias=None).gathered_interval(network.token_encoding.tables.values())
        return None if _fits(gathered) else UNBOUNDED
    if source not in intervals:
        return UNBOUNDED
    return None if _fits(affine_interval(affine.weight, None, intervals[source])) else UNBOUNDED


def _fits(interval: Interval | None) -> bool:
    return interval is not None and 2 * interval.largest <= DENSE_SUM_MAX


STOCK = RuleTable[StockRow]("stock Lava", serves_derived=False)
STOCK.set(StockRow(StockForm.NEURONS, _why_no_integer_lif, _integer_lif), IntegerLeakyIntegrateAndFire)
STOCK.set(StockRow(StockForm.NEURONS, _why_no_float_lif, _float_lif), LeakyIntegrateAndFire)
STOCK.set(StockRow(StockForm.SYNAPSES, _why_no_synapses), IntegerAffine)
STOCK.set(StockRow(StockForm.PORT, _why_no_port), Total)
STOCK.set(StockRow(StockForm.READ_OUT, _why_not_read_out), TokenSum)
STOCK.refuse(ONLY_WITH_HARDWARE_TIMING, Affine)
STOCK.refuse("multiplies spikes with spikes; synapses multiply them with fixed weights", SpikeAttention)
STOCK.refuse("divides by the root of a sum of squares", LayerNorm)
STOCK.refuse("compares without memory; a stock LIF keeps a 4096th of its potential at least", Heaviside)
STOCK.refuse(SUM_ELSEWHERE, TokenMean)
STOCK.refuse(
    NO_STOCK_PROCESS,
    *(Convolution, Pooling, Scale, Flatten, Delay, PreviousStep),
    *(LeakyIntegrator, ResistiveNeuron, IntegerIntegrator, IntegerCurrentNeuron),
)

"""The integer graph as far as it is chosen, and the table whose rows add to it node by node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from export.errors import ChipLimitError, UnsupportedOperatorError
from export.network import Network, Node
from export.operators import Interval, Operator, RuleTable, rule_for
from export.operators.interval import symmetric
from export.passes.intervals import node_interval
from export.passes.quantize.calibration import CalibrationRun
from export.passes.quantize.readers import Asks, Reader
from export.passes.quantize.report import QuantizationOptions, QuantizationReport
from export.passes.quantize.weight_rows import WeightRows


@dataclass(frozen=True, eq=False)
class Quantized:
    """What becomes of a node in whole numbers.

    Attributes
    ----------
    operator : Operator
    unit : ndarray
        ``(features,)``: what a 1 that it sends stands for in the float graph.
    left_bias : ndarray or None
        ``(features,)``, in the float graph's numbers: a bias it does not add, which the neurons that read it, or the
        read-out, add in its place.
    rescaled : callable or None
        Returns the operator with its thresholds times a factor, for a repair; None where none can be made.
    """

    operator: Operator
    unit: np.ndarray
    left_bias: np.ndarray | None = None
    rescaled: Callable[[float], Operator] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What becomes of an operator in whole numbers.

    Attributes
    ----------
    becomes : callable
        Returns what becomes of a node, once all is chosen that it reads; takes the node, its operator, and the draft.
    asks : callable
        Returns what a node asks of what it reads, see `Reader`.
    weights : type of WeightRows or None
        How its weights fall into rows, where a scale is searched for them: what is added to them shares it.
    """

    becomes: Callable[[Node, Any, Draft], Quantized]
    asks: Asks
    weights: type[WeightRows] | None = None


QUANTIZE = RuleTable[Row]("quantize")


class Draft:
    """A float network, and of its integer network what is chosen so far.

    Parameters
    ----------
    network : Network
        The float one, for the longest sentence and largest input that sums are proven for.
    options : QuantizationOptions
    calibration : CalibrationRun
        Has run, in float, through what a node reads when that node's turn comes.
    families : dict of str to tuple of Node
        See `export.passes.quantize.families.Plan`.

    Attributes
    ----------
    quantized : dict of str to Quantized
        By node.
    weighted : dict of str to Quantized
        The same of nodes with weights whose turn comes later, chosen with the first of their family.
    units : dict of str to ndarray
        What a 1 that each node, or the input, sends stands for in the float graph, ``(features,)``.
    intervals : dict of str to Interval
        Between which whole numbers it lies, whatever sentence comes.
    averaged : frozenset of str
        The nodes behind a mean over tokens, which is a sum in whole numbers: what they send stands for the number of
        tokens times what it is in the float graph.
    report : QuantizationReport
    """

    def __init__(
        self,
        network: Network,
        options: QuantizationOptions,
        calibration: CalibrationRun,
        families: dict[str, tuple[Node, ...]],
    ) -> None:
        self.network, self.options, self.calibration, self.families = network, options, calibration, families
        self.quantized: dict[str, Quantized] = {}
        self.weighted: dict[str, Quantized] = {}
        self.units: dict[str, np.ndarray] = {}
        self.intervals: dict[str, Interval] = {}
        averages = any(node.operator.traits.pools_tokens == "mean" for node in network.nodes)
        self.averaged = network.pooled if averages else frozenset()
        self.report = QuantizationReport({**asdict(options), "max_tokens": network.max_tokens})
        if network.input_limit is not None:
            self.units[network.input_name] = np.ones(network.input_features)
            self.intervals[network.input_name] = symmetric(np.full(network.input_features, network.input_limit))

    def add(self, node: Node, quantized: Quantized) -> None:
        """Take down what becomes of a node.

        Raises
        ------
        GraphError, ChipLimitError
            Its parameters mean nothing in whole numbers.
        UnsupportedOperatorError
            Nothing bounds what it sends, or spikes that come back do not stand for themselves.
        """
        quantized.operator.check_whole_numbers(node.name)
        recurrent = any(reader.is_previous_step for reader in self.network.readers[node.name])
        if recurrent and np.any(quantized.unit != 1):
            raise UnsupportedOperatorError(
                f"{node.name}: what it sends comes back to it, and a 1 of it stands for {quantized.unit[0]:.3g}; only "
                "spikes that stand for themselves can"
            )
        self.quantized[node.name] = quantized
        self.units[node.name] = quantized.unit
        self.intervals[node.name] = self.interval(node, quantized.operator)

    def interval(self, node: Node, operator: Operator) -> Interval:
        """Return between which whole numbers lies what a node sends, were `operator` what becomes of it.

        Raises
        ------
        UnsupportedOperatorError
            That is not known.
        """
        found = node_interval(self.network, replace(node, operator=operator), self.intervals)
        if found is None:
            raise UnsupportedOperatorError(
                f"{node.name}: nothing bounds what {operator.name} sends, so that no sum behind it can be proven to "
                "fit; give the operator an interval"
            )
        return found

    def left_bias(self, name: str) -> np.ndarray | None:
        """Return the bias that a node leaves to what reads it, see `Quantized`; None also for the input."""
        return self.quantized[name].left_bias if name in self.quantized else None

    def reader(self, node: Node) -> Reader:
        """Return what a node asks of what it reads."""
        return rule_for(QUANTIZE, node).asks(node, node.operator, self.calibration.time_steps)

    def readers(self, name: str) -> list[Reader]:
        """Return what each node asks that reads `name`."""
        return [self.reader(node) for node in self.network.readers[name]]

    def check_reads(self, node: Node) -> None:
        """Check that a node takes whatever can arrive at it.

        Raises
        ------
        ChipLimitError
            It does not.
        """
        asked = self.reader(node)
        for source in node.sources:
            sent = self.intervals.get(source)  # none of words, which are 0 or 1, and of spikes that come back
            if sent is not None and sent.largest > asked.largest:
                raise ChipLimitError(
                    f"{node.name}: {source} sends up to {sent.largest}; beyond {asked.largest} {asked.beyond}"
                )

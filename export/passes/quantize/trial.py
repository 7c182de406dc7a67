"""The calibration in whole numbers: how a layer fires in them, what it is called, and its repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from export.execution import NodeExecution
from export.network import Node
from export.operators import Operator
from export.passes.intervals import reads_words
from export.passes.quantize.calibration import Streams, run_steps
from export.passes.quantize.draft import Draft
from export.passes.quantize.report import LayerReport

SILENT_RATE, SATURATED_RATE = 0.5, 2.0
"""A layer whose firing rate falls below half the float layer's is silent, one above twice it saturated."""
FULL_RATE = 0.95
"""Above this rate a layer that did not reach it in float counts as saturated too."""
RESCALING_RANGE = 64.0
RESCALING_STEPS = 16


class Trial:
    """Runs the calibration through what a draft has chosen, and repairs layers that fell silent or saturated.

    Parameters
    ----------
    draft : Draft
        Its calibration has run in float. A repair replaces a layer's neurons in it; what becomes of layers is added to
        its report.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft, self.run = draft, draft.calibration
        self.streams, self.mask = draft.calibration.streams, draft.calibration.mask

    def run_stage(self, stage: tuple[Node, ...]) -> None:
        """Run through a node, or a cycle, whose last node is its neurons; judge these, and repair them."""
        for node in stage:
            if not node.is_previous_step:  # what comes back in float is known
                self._run_forced(node)
        self._run_integers(stage)
        if stage[-1].operator.spikes:
            self._judge(stage)

    def _judge(self, stage: tuple[Node, ...]) -> None:
        name = stage[-1].name
        streams = self.streams[name]
        agreement, factor = self._agreement(streams), 1.0
        found = self._verdict(streams.floats, self._integers(name))
        rescaled = self.draft.quantized[name].rescaled
        if found is not None and self.draft.options.repair and rescaled is not None:
            factor = self._repair(stage, rescaled)
            agreement = self._agreement(streams)
        rates = [stream[:, self.mask].mean((0, 1)) for stream in (streams.floats, self._integers(name))]
        self.draft.report.layers.append(
            LayerReport(
                node=name,
                float_rate=float(rates[0].mean()),
                integer_rate=float(rates[1].mean()),
                agreement=agreement,
                silent_features=int(np.count_nonzero((rates[0] > 0) & (rates[1] == 0))),
                saturated_features=int(np.count_nonzero((rates[0] < 1) & (rates[1] == 1))),
                found=found,
                threshold_factor=factor,
            )
        )
        streams.forced = streams.floats.astype(np.int64)  # the next layer is judged behind these

    def _agreement(self, streams: Streams) -> float:
        assert streams.forced is not None
        return float((streams.forced == streams.floats)[:, self.mask].mean())

    def _verdict(self, floats: np.ndarray, integers: np.ndarray) -> str | None:
        expected, found = (float(stream[:, self.mask].mean()) for stream in (floats, integers))
        if found < SILENT_RATE * expected:
            return "silent"
        if found > SATURATED_RATE * expected or found > FULL_RATE > expected:
            return "saturated"
        return None

    def _repair(self, stage: tuple[Node, ...], rescaled: Callable[[float], Operator]) -> float:
        """Scale the thresholds of a stage's neurons such that they fire as often as in float; return the factor."""
        node = stage[-1]
        wanted = float(self.streams[node.name].floats[:, self.mask].mean())

        def scale(factor: float) -> None:
            quantized = self.draft.quantized[node.name]
            self.draft.quantized[node.name] = replace(quantized, operator=rescaled(factor))
            self._run_forced(node)
            self._run_integers(stage)

        low, high, best = 1 / RESCALING_RANGE, RESCALING_RANGE, (np.inf, 1.0)
        for _ in range(RESCALING_STEPS):
            factor = float(np.sqrt(low * high))
            scale(factor)
            rate = float(self._integers(node.name)[:, self.mask].mean())
            best = min(best, (abs(rate - wanted), factor))
            low, high = (factor, high) if rate > wanted else (low, factor)
        scale(best[1])
        return best[1]

    def _run_forced(self, node: Node) -> None:
        """Run through a node in integers behind the float graph's spikes."""
        operator = self._operator(node)
        if reads_words(self.draft.network, node):
            self.streams[node.name].forced = self.run.gather(operator)
            return
        read = []
        for source in node.sources:
            forced = self.streams[source].forced
            assert forced is not None
            read.append(forced)
        self.streams[node.name].forced = run_steps(operator, read, np.int64, self.run.token_mask)

    def _run_integers(self, stage: tuple[Node, ...]) -> None:
        """Run through a node, or step by step through a cycle, in integers behind integers."""
        if len(stage) > 1:
            self._run_cycle(stage)
            return
        (node,) = stage
        streams = self.streams[node.name]
        read = [self.streams[source] for source in node.sources if source in self.streams]
        if all(stream.integers is stream.forced for stream in read):
            streams.integers = streams.forced  # no neuron stands before it
        else:
            sources = [self._integers(source) for source in node.sources]
            streams.integers = run_steps(self._operator(node), sources, np.int64, self.run.token_mask)

    def _run_cycle(self, stage: tuple[Node, ...]) -> None:
        nodes = [replace(node, operator=self.draft.quantized[node.name].operator) for node in stage]
        inside = [node.name for node in nodes]
        read = {s: self._integers(s) for node in nodes for s in node.sources if s not in inside}
        execution, found = NodeExecution(nodes, np.int64), []
        for step in range(self.run.time_steps):
            values = {source: stream[step] for source, stream in read.items()}
            # where a cycle reads nothing from outside, the mask says how many sentences and tokens there are
            execution.step(values, self.run.token_mask, self.mask[None])
            found.append([values[name] for name in inside])
        for name, steps in zip(inside, zip(*found, strict=True), strict=True):
            self.streams[name].integers = np.stack(steps)

    def _operator(self, node: Node) -> Operator:
        return self.draft.quantized[node.name].operator.cast(np.int64)

    def _integers(self, name: str) -> np.ndarray:
        integers = self.streams[name].integers
        assert integers is not None
        return integers

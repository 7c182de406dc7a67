"""Sides of a comparison by name (``torch``, ``lava:network``, ``chip.npz``), and the pair of runners they make.

Everything here can be sent to another process: a worker builds its own model, graph and runners from names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import nir
from torch import nn

from export.network import Network
from export.nir_graph.reader import parse_graph
from hardware.choices import INTEGER, LAVA, TORCH
from hardware.equivalence.node_by_node import NodeByNode
from hardware.equivalence.streaming import Pair
from hardware.recorded import RecordedRunner, load_trace
from hardware.runners import open_runner
from hardware.runners.runner import Runner
from hardware.trace import Trace
from spikebert.cli.runners import TRACE_SUFFIX, parse_runner
from spikebert.errors import ConfigurationError

ONNX_SUFFIX = ".onnx"
DECIDING = ("granularity", "timing")
"""Options that decide how a run goes, not only how long it takes."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes
    ----------
    runner : str
        Its name, or ``"recorded"``.
    options : dict
        For the runner.
    trace_file : Path or None
        Of a recorded trace.
    onnx_file : Path or None
        What it runs in place of the graph.
    """

    runner: str
    options: dict[str, Any] = field(default_factory=dict)
    trace_file: Path | None = None
    onnx_file: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Side:
        """Read what a command was given.

        Raises
        ------
        ConfigurationError
            It is neither a runner nor a trace file.
        """
        if text.endswith(TRACE_SUFFIX):
            return cls(RecordedRunner.name, trace_file=Path(text))
        runner, options = parse_runner(text)
        return cls(runner, dict(options))

    def __str__(self) -> str:
        """Return a short name for tables: that of the file, or of the runner with what decides how it runs."""
        if self.trace_file is not None:
            return self.trace_file.name
        return ":".join([self.runner, *(str(self.options[name]) for name in DECIDING if name in self.options)])

    def with_options(self, **options: Any) -> Side:
        """Return the side with more options, where the runner takes any; those given before stay."""
        if self.runner != LAVA:
            return self
        return replace(self, options={**{k: v for k, v in options.items() if v is not None}, **self.options})

    @property
    def executes_graphs(self) -> bool:
        """Whether it can run a part of a graph by itself."""
        return self.trace_file is None and self.onnx_file is None and self.runner != TORCH

    def open(self, model: nn.Module | None, graph: Network | nir.NIRGraph, precision: str, **options: Any) -> Runner:
        """Build the runner; an integer graph runs in integers whatever the precision of the other side."""
        if self.trace_file is not None:
            return RecordedRunner(load_trace(self.trace_file), self.trace_file)
        if self.onnx_file is not None:
            return open_runner(self.onnx_file, self.runner, precision, **self.options)
        network = graph if isinstance(graph, Network) else parse_graph(graph)
        if self.runner == TORCH and precision == INTEGER:
            raise ConfigurationError("torch computes in floating point; at integer compare with another runner")
        if self.runner != TORCH and network.is_integer:
            precision = INTEGER
        subject = model if self.runner == TORCH else network
        return open_runner(subject, self.runner, precision, record_membrane_potentials=True, **self.options, **options)


@dataclass(frozen=True)
class PairPlan:
    """What is needed to open a pair of runners.

    Attributes
    ----------
    expected, actual : Side
    precision : str
    nodes : tuple of str
        Patterns of nodes to compare.
    explain_all, node_by_node : bool
        See `hardware.equivalence.streaming.Pair`.
    """

    expected: Side
    actual: Side
    precision: str = "float64"
    nodes: tuple[str, ...] = ()
    explain_all: bool = False
    node_by_node: bool = False

    def open(
        self,
        model: nn.Module | None,
        expected_graph: nir.NIRGraph,
        actual_graph: nir.NIRGraph,
        on_traces: Callable[[Trace, Trace], None] | None = None,
    ) -> Pair:
        """Build both runners.

        Raises
        ------
        ConfigurationError
            Nodes are to be run by themselves on a side that cannot.
        """
        meant, runs = parse_graph(expected_graph), parse_graph(actual_graph)
        with ExitStack() as opened:
            sides = [
                opened.enter_context(side.open(model, network, self.precision))
                for side, network in ((self.expected, meant), (self.actual, runs))
            ]
            by_node = None
            if self.node_by_node:
                if not self.actual.executes_graphs:
                    raise ConfigurationError(
                        f"{self.actual} cannot run a node by itself; --node-by-node needs a runner of graphs"
                    )
                open_part = partial(self.actual.open, None, precision=self.precision)
                by_node = NodeByNode(runs, open_part)
            opened.pop_all()
        expected, actual = sides
        return Pair(expected, actual, meant, self.nodes, self.explain_all, by_node, on_traces)


@dataclass(frozen=True)
class CheckpointPair:
    """A pair to be opened anywhere: from a checkpoint's name and, for the second side, a NIR file of its own.

    Attributes
    ----------
    plan : PairPlan
    checkpoint : str
    graph_file : Path or None
        What the second side runs in place of the checkpoint's own graph; at precision integer, what both run.
    """

    plan: PairPlan
    checkpoint: str
    graph_file: Path | None = None

    def __call__(self) -> Pair:
        """Load, export and open."""
        from export import read_nir, to_nir
        from spikebert.checkpoint import load_model

        model = load_model(self.checkpoint)
        meant = to_nir(model)
        runs = meant if self.graph_file is None else read_nir(self.graph_file)
        return self.plan.open(model, runs if self.plan.precision == INTEGER else meant, runs)

"""Verification as the commands ``verify`` and ``demo`` do it: two runners, batch by batch, one answer and its table."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from rich.markup import escape
from rich.table import Table
from torch import nn

from export.network import Network, parse_graph
from hardware.equivalence import Comparison, compare, merge_comparisons
from hardware.runners import open_runner
from hardware.stock_share import StockShare, stock_share
from hardware.trace import Trace
from spikebert.cli.inputs import Sentences


@dataclass
class Verification:
    """What came out of verifying a graph against its model.

    Attributes
    ----------
    comparison : Comparison
        Model first, runner second.
    logits : ndarray
        ``(samples, C)``, the runner's.
    stock : StockShare or None
        For Lava.
    processes : int or None
        Lava processes that ran.
    seconds : dict of str to float
        ``start`` and ``run`` of the runner, ``torch`` of the model.
    texts : list of str
    """

    comparison: Comparison
    logits: np.ndarray
    stock: StockShare | None = None
    processes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **self.comparison.to_dict(),
            "stock_share": None if self.stock is None else self.stock.to_dict(),
            "processes": self.processes,
            "seconds": self.seconds,
        }


def verify_graph(
    model: nn.Module,
    graph: nir.NIRGraph,
    sentences: Sentences,
    against: str,
    precision: str,
    on_batch: Callable[[int], None] | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    **options: Any,
) -> Verification:
    """Run sentences through the model and through a runner, and compare every spike.

    At precision integer the integer simulator takes the model's place: both run the same graph.

    Parameters
    ----------
    model : nn.Module
    graph : nir.NIRGraph
    sentences : Sentences
    against : str
        The runner.
    precision : str
    on_batch : callable, optional
        Told how many sentences were done.
    on_trace : callable, optional
        Given every trace of the runner.
    options
        For the runner.
    """
    network: Network = parse_graph(graph)
    parts: list[Comparison] = []
    logits: list[np.ndarray] = []
    stock: StockShare | None = None
    processes: int | None = None
    seconds = {"torch": 0.0, "start": 0.0, "run": 0.0}
    if against == "lava":
        options = {"tokens": sentences.longest, **options}
    with ExitStack() as stack:
        simulated, runner = (network, "integer") if precision == "integer" else (model, "torch")
        expected = stack.enter_context(open_runner(simulated, runner, precision, record_membrane_potentials=True))
        started = time.perf_counter()
        actual = stack.enter_context(
            open_runner(network, against, precision, record_membrane_potentials=True, **options)
        )
        seconds["start"] = time.perf_counter() - started
        for batch in sentences.batches():
            started = time.perf_counter()
            trace_a = expected.run(batch.input_ids, batch.mask)
            seconds["torch"] += time.perf_counter() - started
            started = time.perf_counter()
            trace_b = actual.run(batch.input_ids, batch.mask)
            seconds["run"] += time.perf_counter() - started
            parts.append(compare(trace_a, trace_b))
            logits.append(trace_b.logits)
            if against == "lava":
                processes = trace_b.metadata["processes"]
                share = stock_share(network, trace_b)
                stock = share if stock is None else stock + share
            if on_trace is not None:
                on_trace(trace_b)
            if on_batch is not None:
                on_batch(len(batch.texts))
    return Verification(
        merge_comparisons(parts), np.concatenate(logits), stock, processes, seconds, list(sentences.texts)
    )


def comparison_table(comparison: Comparison, name_a: str, name_b: str) -> Table:
    """Return the per-node table: spikes compared and different, firing rates, smallest distance to threshold."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node", no_wrap=True)
    for title in ("compared", "different", f"rate\n{name_a}", f"rate\n{name_b}", "margin"):
        table.add_column(title, justify="right", no_wrap=True)
    for node in comparison.per_node:
        table.add_row(
            node.node,
            f"{node.compared:,}",
            str(node.different) if not node.different else f"[bold red]{node.different:,}[/]",
            f"{100 * node.rate_a:.2f} %",
            f"{100 * node.rate_b:.2f} %",
            "" if node.margin is None else ("tie" if node.margin == 0 else f"{node.margin:.1e}"),
        )
    return table


def _states(comparison: Comparison, precision: str) -> str:
    if precision != "integer":
        return ""
    return f", {comparison.states_different:,} of {comparison.states_compared:,} membrane potentials differ"


def verdict(comparison: Comparison, name_a: str, name_b: str, precision: str, texts: list[str]) -> str:
    """Return the answer in words, as rich markup."""
    scope = f"{comparison.samples} sentence{'s' if comparison.samples != 1 else ''}, {comparison.tokens} tokens"
    if comparison.equal:
        return (
            f"[bold green]EQUAL[/] {name_a} and {name_b} at {precision}: 0 of {comparison.spikes_compared:,} spikes "
            f"differ{_states(comparison, precision)} ({scope}); largest logit difference "
            f"{comparison.logit_difference:.1e}"
        )
    first = comparison.first_divergence
    text = (
        f"[bold red]NOT EQUAL[/] {name_a} and {name_b} at {precision}: {comparison.spikes_different:,} of "
        f"{comparison.spikes_compared:,} spikes differ{_states(comparison, precision)} ({scope})"
    )
    if first is None:
        return text
    text += f"\nfirst divergence: {first}"
    if first.quantity != "spike":
        text += "\nno spike of that node flipped, but this is far outside the rounding of float64"
    if 0 <= first.sample < len(texts):
        text += f"\nsample {first.sample}: “{escape(texts[first.sample])}”"
    return text

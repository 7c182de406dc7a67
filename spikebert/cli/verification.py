"""Verification as the commands do it: two sides over all sentences, one answer, its table and its verdict."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import nir
import numpy as np
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from torch import nn

from hardware.choices import INTEGER, LAVA, TORCH
from hardware.equivalence import Comparison
from hardware.equivalence.explanation import Explanation
from hardware.equivalence.streaming import Batch, Finding, Pair, ProgressFile, stream_findings
from hardware.runners.lava.stock_share import StockShare
from hardware.runners.runner import FLOAT_PRECISIONS
from hardware.trace import Trace
from spikebert.cli.application import messages, results
from spikebert.cli.inputs import BATCH_SIZE, Sentences
from spikebert.cli.pairs import PairPlan, Side

SECONDS_BETWEEN_WRITES = 1.0


@dataclass
class Verification:
    """What came out of verifying a graph against its model.

    Attributes
    ----------
    finding : Finding
        Model first, runner second.
    logits : ndarray
        ``(samples, C)``, the runner's.
    seconds : dict of str to float
        ``start`` and ``run`` of the runner, ``torch`` of the model.
    """

    finding: Finding
    logits: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def comparison(self) -> Comparison:
        """The two runs, spike by spike."""
        return self.finding.comparison

    @property
    def stock(self) -> StockShare | None:
        """For Lava, what ran in stock processes."""
        return self.finding.stock

    @property
    def processes(self) -> int | None:
        """Lava processes that ran."""
        return self.finding.facts.get("processes")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**finding_to_dict(self.finding), "seconds": self.seconds}


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
    """Run sentences through the model and its graph on a runner, and compare every spike.

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
    if against == LAVA:
        options = {"tokens": sentences.longest, **options}
    plan = PairPlan(Side(INTEGER if precision == INTEGER else TORCH), Side(against, options), precision)
    logits: list[np.ndarray] = []

    def keep(_: Trace, trace: Trace) -> None:
        logits.append(trace.logits)
        if on_trace is not None:
            on_trace(trace)

    started = time.perf_counter()
    pair = plan.open(model, graph, graph, keep)
    start = time.perf_counter() - started
    found: Finding | None = None
    for part in stream_findings(lambda: pair, batches_of(sentences)):
        found = part if found is None else found.join(part)
        if on_batch is not None:
            on_batch(part.comparison.samples)
    assert found is not None
    seconds = {"torch": found.seconds["expected"], "start": start, "run": found.seconds["actual"]}
    return Verification(found, np.concatenate(logits), seconds)


def batches_of(sentences: Sentences, batch_size: int = BATCH_SIZE, start: int = 0) -> Iterator[Batch]:
    """Yield the batches from sentence `start` on, each with the number of its first sentence."""
    rest = replace(sentences, texts=sentences.texts[start:], token_ids=sentences.token_ids[start:])
    for batch in rest.batches(batch_size):
        yield start, batch.inputs, batch.mask
        start += len(batch.texts)


@dataclass(frozen=True)
class Stream:
    """How sentences go through a pair.

    Attributes
    ----------
    jobs, batch_size : int
    stop_at_first : bool
        End with the first batch in which anything differs.
    progress_file : ProgressFile or None
        Go on where it says, and keep it up to date.
    """

    jobs: int = 1
    batch_size: int = BATCH_SIZE
    stop_at_first: bool = False
    progress_file: ProgressFile | None = None

    def run(
        self, open_pair: Callable[[], Pair], sentences: Sentences, on_batch: Callable[[int], None] | None = None
    ) -> Finding:
        """Return what is found about all sentences, or those up to the first difference."""
        known = None if self.progress_file is None else self.progress_file.read()
        done = 0 if known is None else known.comparison.samples
        if known is not None and on_batch is not None:
            on_batch(done)
        if known is not None and (done >= len(sentences) or self._stops(known)):
            return known
        written = time.monotonic()
        findings = stream_findings(open_pair, batches_of(sentences, self.batch_size, done), self.jobs)
        try:
            for part in findings:
                known = part if known is None else known.join(part)
                if self.progress_file is not None and time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                    self.progress_file.write(known)
                    written = time.monotonic()
                if on_batch is not None:
                    on_batch(part.comparison.samples)
                if self._stops(part):
                    break
        finally:
            findings.close()  # type: ignore[attr-defined]  # a generator: it closes the runners
            if known is not None and self.progress_file is not None:
                self.progress_file.write(known)
        assert known is not None
        return known

    def _stops(self, found: Finding) -> bool:
        return self.stop_at_first and found.comparison.first_divergence is not None


def job_of(plan: PairPlan, sentences: Sentences, **subject: Any) -> dict[str, Any]:
    """Return what a progress file must agree on: both sides, how they are compared, what they run, and on what."""
    words = hashlib.sha256(repr(sentences.token_ids).encode()).hexdigest()
    return {
        **{name: getattr(plan, name) for name in ("precision", "nodes", "explain_all", "node_by_node")},
        "expected": plan.expected.trace_file or plan.expected,
        "against": plan.actual.trace_file or plan.actual,
        "sentences_sha256": words,
        **subject,
    }


def with_words(found: Finding, sentences: Sentences, tokenizer: Any) -> Finding:
    """Return a finding whose first divergence shows its token as text."""
    first = found.comparison.first_divergence
    if first is None or not 0 <= first.sample < len(sentences):
        return found
    ids = sentences.token_ids[first.sample]
    return with_tokens(found, [str(token) for token in tokenizer.convert_ids_to_tokens(ids)])


def with_tokens(found: Finding, tokens: list[str]) -> Finding:
    """Return the same with the tokens of the first divergence's sentence as text."""
    first = found.comparison.first_divergence
    if first is None or not tokens:
        return found
    named = replace(first, token_text=None if first.token is None else tokens[first.token])
    evidence = found.evidence and replace(found.evidence, divergence=named, tokens=tokens)
    return replace(found, comparison=replace(found.comparison, first_divergence=named), evidence=evidence)


def finding_to_dict(found: Finding) -> dict[str, Any]:
    """Return JSON values; the keys of the comparison are promised to users and stand at the top."""
    values = found.to_dict()
    facts = values.pop("facts")
    stock = values.pop("stock")
    comparison = found.comparison
    extreme = {"silent_nodes": comparison.silent_nodes, "saturated_nodes": comparison.saturated_nodes}
    agreement = {node.node: {"all": node.agreement, "by_step": node.agreement_by_step} for node in comparison.per_node}
    return {
        **values.pop("comparison"),
        **values,
        **extreme,
        "agreement": agreement,
        "stock_share": stock,
        "processes": None,
        **facts,
    }


def comparison_table(comparison: Comparison, name_a: str, name_b: str) -> Table:
    """Return the per-node table: spikes compared and different, firing rates, smallest distance to threshold."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node", no_wrap=True)
    # a side's words stand below each other: lava:hardware in one line would leave the margins no room
    rates = ("rate\n" + name.replace(":", ":\n") for name in (name_a, name_b))
    for title in ("compared", "different", *rates, "margin"):
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


MOST_STEP_COLUMNS = 8


def growth_table(comparison: Comparison) -> Table | None:
    """Return differing spikes by node and step; None where nothing differs."""
    if not comparison.spikes_different:
        return None
    steps = max(len(node.different_by_step) for node in comparison.per_node)
    table = Table(box=None, pad_edge=False, header_style="bold", title="differing spikes by step", title_justify="left")
    table.add_column("node", no_wrap=True)
    shown = range(min(steps, MOST_STEP_COLUMNS))
    for step in shown:
        table.add_column(str(step), justify="right")
    table.add_column("agreement", justify="right")
    for node in comparison.per_node:
        counts = [f"{node.different_by_step[step]:,}" for step in shown]
        table.add_row(node.node, *counts, f"{100 * node.agreement:.3f} %")
    return table


def explanation_table(explanation: Explanation) -> Table:
    """Return, by node, why spikes differ and how far rounding may move a potential there."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node", no_wrap=True)
    for title in ("differ", "round-\ning", "propa-\ngated", "unex-\nplained", "bound", "used\nof it"):
        table.add_column(title, justify="right", no_wrap=True)
    for node in explanation.per_node:
        used = [share for share in (node.tightness_a, node.tightness_b) if share is not None]
        table.add_row(
            node.node,
            f"{node.different:,}",
            f"{node.rounding:,}",
            f"{node.propagated:,}",
            str(node.unexplained) if not node.unexplained else f"[bold red]{node.unexplained:,}[/]",
            "exact" if not node.largest_bound else f"{node.largest_bound:.1e}",
            f"{100 * max(used):.1f} %" if used else "–",
        )
    return table


def inputs_table(found: Finding, rows: int = 8) -> Table | None:
    """Return the inputs that produced the first divergence's potential, largest first."""
    evidence = found.evidence
    if evidence is None or not evidence.inputs:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("what entered", "token", "feature", "times", "weight", "contribution"):
        table.add_column(title, justify="left" if title == "what entered" else "right", no_wrap=True)
    for entry in evidence.inputs[:rows]:
        known = entry.token is not None and entry.token < len(evidence.tokens)
        text = f" {evidence.tokens[entry.token]}" if known else ""  # type: ignore[index]
        table.add_row(
            escape(entry.source),
            "" if entry.token is None else escape(f"{entry.token}{text}"),
            "" if entry.feature is None else str(entry.feature),
            str(entry.spikes),
            "" if entry.weight is None else f"{entry.weight:+.4g}",
            f"{entry.contribution:+.6g}",
        )
    rest = evidence.inputs_in_all - min(rows, len(evidence.inputs))
    if rest:
        table.add_row(f"… and {rest} more")
    return table


def agreement_in_words(comparison: Comparison) -> str:
    """Return how far two runs agree that are not meant to be equal: spikes, and predictions."""
    share = 1 - comparison.spikes_different / max(1, comparison.spikes_compared)
    return (
        f"{100 * share:.3f} % of spikes agree; {comparison.predictions_different} of {comparison.samples} predictions "
        "differ"
    )


def verdict(
    comparison: Comparison,
    name_a: str,
    name_b: str,
    precision: str,
    texts: list[str],
    explanation: Explanation | None = None,
) -> str:
    """Return the answer in words, as rich markup."""
    scope = f"{comparison.samples} sentence{'s' if comparison.samples != 1 else ''}, {comparison.tokens} tokens"
    states = ""
    if precision == INTEGER:
        states = f", {comparison.states_different:,} of {comparison.states_compared:,} membrane potentials differ"
    if comparison.equal:
        return (
            f"[bold green]EQUAL[/] {name_a} and {name_b} at {precision}: 0 of {comparison.spikes_compared:,} spikes "
            f"differ{states} ({scope}); largest logit difference {comparison.logit_difference:.1e}"
            f"{'' if _comparable(precision) else '; spikes alone decide, in these precisions'}"
        )
    first = comparison.first_divergence
    states += f"; {agreement_in_words(comparison)}" if comparison.spikes_different else ""
    text = (
        f"[bold red]NOT EQUAL[/] {name_a} and {name_b} at {precision}: {comparison.spikes_different:,} of "
        f"{comparison.spikes_compared:,} spikes differ{states} ({scope})"
    )
    if explanation is not None:
        text += f"\n{explanation_in_words(explanation, name_a, name_b)}"
    if first is None:
        return text
    text += f"\nfirst divergence: {escape(str(first))}"
    if first.quantity != "spike" and explanation is None:
        beyond = (
            "whole numbers are equal or wrong" if precision == INTEGER else f"this is beyond rounding in {precision}"
        )
        text += f"\nno spike of that node flipped, but {beyond}"
    if 0 <= first.sample < len(texts):
        text += f"\nsample {first.sample}: “{escape(texts[first.sample])}”"
    return text


def _comparable(precision: str) -> bool:
    """Return whether runs of these precisions have potentials and logits that must agree."""
    return precision == INTEGER or set(precision.split(" and ")) <= set(FLOAT_PRECISIONS)


def explanation_in_words(explanation: Explanation, name_a: str, name_b: str) -> str:
    """Return what became of the differences, as rich markup."""
    counts = [
        f"{explanation.rounding:,} are rounding at a threshold",
        f"{explanation.propagated:,} follow from others",
        f"{explanation.unexplained:,} are unexplained",
    ]
    text = f"of {explanation.different:,} differing spikes {', '.join(counts)}"
    if explanation.explained:
        return f"[bold yellow]EXPLAINED[/] {text}; nothing in either run is beyond rounding"
    names = {"a": name_a, "b": name_b}
    blamed = " and ".join(names[run] for run in explanation.at_fault)
    text = f"[bold red]UNEXPLAINED[/] {text}; {blamed} does what the graph does not say"
    return (
        text if explanation.first_unexplained is None else f"{text}, first {escape(str(explanation.first_unexplained))}"
    )


def print_finding(found: Finding, name_a: str, name_b: str) -> None:
    """Print what goes between the table and the verdict: growth, explanation, inputs, node by node, faults."""
    for table in (
        growth_table(found.comparison),
        None if found.explanation is None else explanation_table(found.explanation),
        inputs_table(found),
    ):
        if table is not None:
            results.print(table)
            results.print()
    cause = None if found.evidence is None else found.evidence.cause_in_words(name_a, name_b)
    if cause:
        results.print(cause, markup=False, soft_wrap=True)
    for what, nodes in (("silent", found.comparison.silent_nodes), ("saturated", found.comparison.saturated_nodes)):
        for run, name in (("a", name_a), ("b", name_b)):
            if nodes[run]:
                results.print(f"{what} in {name}: {', '.join(nodes[run])}", markup=False, soft_wrap=True)
    if found.node_by_node is not None:
        by_node, explanation = found.node_by_node, found.node_by_node_explanation
        text = (
            f"node by node, on the inputs of {name_a}: {by_node.spikes_different:,} of {by_node.spikes_compared:,} "
            f"spikes of {name_b} differ"
        )
        if explanation is not None:
            largest = max((node.largest_bound for node in explanation.per_node), default=0.0)
            text += f", {explanation.unexplained:,} beyond rounding (bounds up to {largest:.1e})"
        if found.left_out:
            text += f"; not run by themselves: {', '.join(found.left_out)}"
        results.print(text, markup=False, soft_wrap=True)
    for fault in found.faults:
        last = fault.first_sample + fault.samples - 1
        results.print(
            f"sentences {fault.first_sample} to {last} were run again (attempt {fault.attempt} failed): {fault.cause}",
            markup=False,
            soft_wrap=True,
        )


class _Rate(ProgressColumn):
    """Sentences a second."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:.1f}/s")


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show sentences done, a rate and an end on standard error; yield what is told how many more were done."""
    columns = (
        TextColumn("{task.description}, sentences"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)

"""Energy estimates as people read them: one kind of table for terminal, Markdown and HTML, and self-contained pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hardware.energy.comparison import EnergyComparison
from hardware.energy.counts import OperationCounts, Tally, headline
from hardware.energy.estimate import EnergyEstimate
from hardware.reports import page
from hardware.reports.files import write_whole

DASH = "–"
LOSES = "LOSES"
INDENT = "\N{NO-BREAK SPACE}" * 2


@dataclass(frozen=True)
class ReportTable:
    """A table of text, to be shown anywhere.

    Attributes
    ----------
    title : str
    columns : tuple of str
        Headings; figures are right-aligned.
    rows : sequence of tuple of str
    notes : tuple of str
        Said below it.
    text_columns : frozenset of int
        Which columns are words: left-aligned.
    broken_columns : frozenset of int
        Which of them are broken where a terminal is narrow.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()
    text_columns: frozenset[int] = frozenset({0})
    broken_columns: frozenset[int] = frozenset({0})

    def __post_init__(self) -> None:
        """Check that every row has a cell for every column."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: a row has {len(row)} cells and the table {len(self.columns)} columns")

    def to_rich(self) -> Group:
        """Return the table for a terminal, with its title and notes as wide as that is."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(
                escape(column),
                justify="left" if index in self.text_columns else "right",
                no_wrap=index not in self.broken_columns,
            )
        for row in self.rows:
            table.add_row(*(f"[bold red]{cell}[/]" if cell == LOSES else escape(cell) for cell in row))
        return Group(Text(self.title, "bold"), table, *map(Text, self.notes))

    def to_markdown(self) -> str:
        """Return the table as Markdown, under a heading."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        rule = [":--" if index in self.text_columns else "--:" for index in range(len(self.columns))]
        notes = "".join(f"\n{note}\n" for note in self.notes)
        rows = "\n".join(line(row) for row in self.rows)
        return f"## {self.title}\n\n{line(self.columns)}\n{line(rule)}\n{rows}\n{notes}"


@dataclass(frozen=True)
class Picture:
    """A picture inside a page.

    Attributes
    ----------
    source : str
        A data URI.
    caption : str
    """

    source: str
    caption: str


MILLION = 1_000_000
FEWEST_IN_MILLIONS = 1_000
"""Operations a sentence below which a table counts them one by one: three digits of a million would show nothing."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with so many significant digits, without exponent from 0.0001 up; a dash for None."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    text = f"{value:#.{digits}g}"
    if "e" in text:
        return f"{value:.{digits - 1}e}" if abs(value) < 1e-4 else f"{value:,.0f}"
    return text.rstrip(".")


def operations_table(counts: OperationCounts) -> ReportTable:
    """Return what each node that accumulates did, and all others together, a sentence."""
    quiet: Tally = {}
    rows = []
    unit, unit_name = _unit(counts)
    for name, node in counts.nodes.items():
        if node.spike_driven:
            rows.append(_operation_cells(name, node.edge, node.real, counts.sentences, unit))
        else:
            for kind, count in node.real.items():
                quiet[kind] = quiet.get(kind, 0) + count
    rows.append(_operation_cells("all else: norms, head …", DASH, quiet, counts.sentences, unit))
    rows.append(_operation_cells("all nodes", "", counts.totals, counts.sentences, unit))
    notes: tuple[str, ...] = (
        f"Means of {counts.sentences:,} sentences, {counts.real_tokens:,} real tokens, {counts.time_steps:g} time "
        "steps. AC: accumulates; graded are those of inputs above 1, as one multi-bit operation or as repeated "
        "additions, never both. MAC: dense multiply-accumulates.",
    )
    if counts.padding_tokens:
        added = headline(counts.padding_totals)
        notes += (
            f"Left out: {counts.padding_tokens:,} padding tokens, which would add {amount(added['mac'], counts)} MAC "
            f"and {amount(added['ac_binary'] + added['ac_graded'], counts)} accumulates a sentence.",
        )
    columns = ("node", "reads", "binary AC", "graded AC", "as additions", "MAC")
    return ReportTable(f"Operations of a sentence{unit_name}", columns, rows, notes, frozenset({0, 1}))


def mean_field_table(counts: OperationCounts) -> ReportTable:
    """Return Eq. 18 beside the exact count, for every node that spikes drive, in both readings of γ."""
    rows = []
    unit, unit_name = _unit(counts)
    for name, node in counts.nodes.items():
        if not node.spike_driven:
            continue
        top = headline(node.real)
        events = top["ac_binary"] + top["ac_graded"]
        additions = top["ac_binary"] + node.real.get("ac_graded_additions", 0)
        figures = (
            node.mean_field_operations("nonzero_fraction"),
            events,
            node.mean_field_operations("mean_value"),
            additions,
        )
        gammas = (f"{100 * node.nonzero_fraction:.1f}", f"{node.mean_value:.3f}")
        rows.append((name, *gammas, *(_in_units(count / counts.sentences, unit) for count in figures)))
    notes = (
        f"γ: share of inputs that are not zero, and mean input. Accumulates a sentence{unit_name}: by Eq. 18 (T x γ x "
        "FLOPs) and counted, then the same with integers as repeated additions. Affine maps agree, since every input "
        "has the same fan-out; attention does not, since an accumulate there needs two spikes that meet.",
    )
    columns = ("node", "γ>0 %", "γ mean", "Eq. 18", "counted", "by mean", "additions")
    return ReportTable("Mean field (Eq. 18) beside the exact count", columns, rows, notes)


def timing_table(estimates: Sequence[EnergyEstimate], of: Sequence[str] = ()) -> ReportTable | None:
    """Return time, throughput and what the energy goes to where an energy model has time; None where none has.

    Parameters
    ----------
    estimates : sequence of EnergyEstimate
    of : sequence of str, optional
        What each of them is of, where they are of several networks or data sets.
    """
    names = (
        [f"{e.model}, {what}" for e, what in zip(estimates, of, strict=True)] if of else [e.model for e in estimates]
    )
    timed = {name: each for name, each in zip(names, estimates, strict=True) if each.timing is not None}
    if not timed:
        return None
    kinds = dict.fromkeys(kind for estimate in timed.values() for kind in estimate.by_kind)
    quantities: dict[str, list[str]] = {}
    for estimate in timed.values():
        timing = estimate.timing
        assert timing is not None
        for title, value in {
            "cores": DASH if timing.cores is None else f"{timing.cores:,}",
            "chips": DASH if timing.chips is None else f"{timing.chips:,}",
            "steps a sentence": f"{timing.steps:g}",
            "µs a step": number(1e6 * timing.seconds_per_step),
            "µs a sentence": number(1e6 * timing.seconds),
            "sentences a second": number(timing.sentences_per_second),
            "sentences a second, pipelined": number(timing.pipelined_sentences_per_second),
            "mJ a sentence": number(estimate.energy_mj),
            **{f"of these {kind.replace(':', ',')}": number(estimate.by_kind.get(kind, 0.0)) for kind in kinds},
            "energy-delay product, nJ s": number(1e9 * timing.energy_delay_product),
        }.items():
            quantities.setdefault(title, []).append(value)
    notes = tuple(f"{name}: {estimate.timing.basis}." for name, estimate in timed.items() if estimate.timing)
    rows = [(title, *values) for title, values in quantities.items()]
    return ReportTable("Time and what comes with it (estimates)", ("of a sentence", *timed), rows, notes)


def _unit(counts: OperationCounts) -> tuple[int, str]:
    """Return what operations are counted in, and how a table's title says so: millions, but not for small graphs."""
    most = max(headline(counts.totals).values()) / counts.sentences
    return (MILLION, ", in millions") if most >= FEWEST_IN_MILLIONS else (1, "")


def _in_units(count: float, unit: int) -> str:
    return f"{count / unit:,.3f}" if unit == MILLION else f"{count:,.1f}"


def _operation_cells(name: str, reads: str, tally: Tally, sentences: int, unit: int) -> tuple[str, ...]:
    top = headline(tally)
    figures = (top["ac_binary"], top["ac_graded"], tally.get("ac_graded_additions", 0), top["mac"])
    return (name, reads, *(_in_units(count / sentences, unit) if count else DASH for count in figures))


def amount(count: int, counts: OperationCounts) -> str:
    """Return a count a sentence, in what `operations_table` counts in."""
    unit, _ = _unit(counts)
    return f"{_in_units(count / counts.sentences, unit)}{' M' * (unit == MILLION)}"


def comparison_table(title: str, comparisons: Sequence[EnergyComparison]) -> ReportTable:
    """Return energies and ratios: a group of rows an energy model, in it a row a baseline.

    Under its name stand a model's precision, which holds for both sides, and whether memory is in the ratio.
    """
    rows: list[tuple[str, ...]] = []
    for model, group in _by_model(comparisons).items():
        network = group[0].network
        memory = "in" if network.includes_memory else "out"
        names = [model, f"{INDENT}{network.precision}", f"{INDENT}memory {memory}"]
        for index in range(max(len(names), len(group))):
            name = names[index] if index < len(names) else ""
            rows.append((name, *(_comparison_cells(group[index]) if index < len(group) else [""] * 6)))
    columns = ("energy model", "against", "SNN mJ", "its mJ", "ratio", "SNN", "break-even")
    titles = {comparison.baseline: comparison.baseline_title for comparison in comparisons}
    differing = {c.baseline for c in comparisons if c.precision["baseline"] not in (None, c.network.precision)}
    rest = {name: ", all else in the precision named" if name in differing else "" for name in titles}
    notes = [f"{name}: {title}{rest[name]}" for name, title in titles.items()]
    notes.append(
        "break-even: the firing rate at which both need the same, all else as counted; any: the spiking network needs "
        "less at every rate, none: at no rate."
    )
    if any(comparison.baseline_estimate is None for comparison in comparisons):
        notes.append(f"{DASH}: the energy model has no price for that network.")
    return ReportTable(title, columns, rows, tuple(notes), frozenset({0, 1, 5}))


def _by_model(comparisons: Sequence[EnergyComparison]) -> dict[str, list[EnergyComparison]]:
    groups: dict[str, list[EnergyComparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.network.model, []).append(comparison)
    return groups


def _comparison_cells(comparison: EnergyComparison) -> list[str]:
    other, rate = comparison.baseline_estimate, comparison.break_even_rate
    if other is None:
        return [comparison.baseline, number(comparison.network.energy_mj), DASH, DASH, DASH, DASH]
    return [
        comparison.baseline,
        number(comparison.network.energy_mj),
        number(other.energy_mj),
        number(comparison.ratio),
        comparison.verdict,
        rate_text(rate),
    ]


def rate_text(rate: float | None) -> str:
    """Return a break-even rate in a word or two: ``none`` below which the network wins, or ``any``."""
    if rate is None:
        return "none"
    if math.isnan(rate):
        return DASH
    return f"{100 * rate:.1f} %" if math.isfinite(rate) else "any"


def explanations(comparisons: Sequence[EnergyComparison]) -> list[str]:
    """Return what each estimate rests on and leaves out, and what limits each comparison, each said once."""
    said: dict[str, list[str]] = {}
    for comparison in comparisons:
        network = comparison.network
        said.setdefault(f"{network.basis}. Source: {network.source}", []).append(network.model)
    for comparison in comparisons:
        if comparison.remark:
            said.setdefault(comparison.remark, []).append(f"{comparison.network.model} against {comparison.baseline}")
        elsewhere = set(comparison.network.partly_unpriced)
        never = ", ".join(sorted(set(comparison.network.unpriced) - elsewhere))
        if never:
            said.setdefault(f"has no figure for, and leaves out: {never}", []).append(comparison.network.model)
        if elsewhere:
            where = f"leaves out at some nodes, as those on the host: {', '.join(sorted(elsewhere))}"
            said.setdefault(where, []).append(comparison.network.model)
    return [f"{', '.join(dict.fromkeys(who))}: {what}" for what, who in said.items()]


def render_page(
    title: str,
    subject: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[ReportTable],
    pictures: Sequence[Picture],
    paragraphs: Sequence[tuple[str, Sequence[str]]],
    record: dict[str, Any],
) -> str:
    """Return a self-contained HTML page; everything in it is escaped.

    Parameters
    ----------
    title, subject : str
        Its heading, and what it is about.
    facts : sequence of (str, str)
        Figures at the top, and what they are.
    tables : sequence of ReportTable
    pictures : sequence of Picture
    paragraphs : sequence of (str, sequence of str)
        Headings and what stands below them, at the end.
    record : dict
        How this was made; see `spikebert.provenance.run_record`.
    """
    return page.render_page(
        "energy.html",
        title=title,
        subject=subject,
        facts=facts,
        tables=tables,
        pictures=pictures,
        paragraphs=paragraphs,
        record=record,
        loses=LOSES,
        indent=INDENT,
    )


def write_page(path: str | Path, **parts: Any) -> Path:
    """Write the page that `render_page` makes of `parts`, whole or not at all."""
    return write_whole(path, render_page(**parts))

"""Results of ``energy.py``: tables, findings, picture and page, all from what was counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from energy_counts import (
    GIGA,
    MEASURED_BIT_RATE,
    STANDARD_LENGTHS,
    BaselineCount,
    Measurement,
    TableRow,
    Variation,
    count_baseline,
    rebuilt_rows,
    synaptic_operations,
)
from energy_pictures import results_picture, sensitivity_panels
from matplotlib.figure import Figure

from hardware.energy import energy_models, estimate_energy
from hardware.energy.baselines import BASELINES, TransformerBaseline
from hardware.energy.comparison import EnergyComparison, firing_rate
from hardware.energy.models.paper import dense_energy_mj
from hardware.energy.published import check, implied_firing_rate, published_rows
from hardware.reports.energy_figures import SensitivityPanel
from hardware.reports.energy_report import (
    DASH,
    Picture,
    ReportTable,
    comparison_table,
    explanations,
    mean_field_table,
    number,
    render_page,
    timing_table,
)
from hardware.reports.pictures import picture_data_uri

NONE: frozenset[int] = frozenset()


class EnergyResults:
    """Everything ``energy.py`` found.

    Parameters
    ----------
    measured : sequence of Measurement
        The checkpoint on each data set; last, where it ran, SpikeBERT-base.
    variations : sequence of Variation
    record : dict
        How it was made.
    others : sequence of Measurement
        Further checkpoints on the same data sets: rows of the paper's table only.
    """

    def __init__(
        self,
        measured: Sequence[Measurement],
        variations: Sequence[Variation],
        record: dict[str, Any],
        others: Sequence[Measurement] = (),
    ) -> None:
        self.measured = list(measured)
        self.variations = list(variations)
        self.record = record
        self.others = list(others)
        self.checkpoint = [m for m in measured if not m.is_paper_size]
        self.base = next((m for m in measured if m.is_paper_size), None)

    @property
    def first(self) -> Measurement:
        """The checkpoint on its own task, or on the shipped sentences."""
        return self.checkpoint[0]

    @cached_property
    def table_rows(self) -> list[TableRow]:
        """Tables 2 and 5: ours, the paper's, and the formula fed with the paper's figures."""
        return rebuilt_rows(self.checkpoint, self.base, self.others)

    @cached_property
    def baseline_counts(self) -> list[BaselineCount]:
        """MACs of every baseline at the mean real length, at 128 and at 256 tokens."""
        lengths = (max(1, round(self.first.mean_tokens)), *STANDARD_LENGTHS)
        return [
            count_baseline(baseline, tokens)
            for baseline in (*BASELINES.values(), self.first.twin)
            for tokens in lengths
        ]

    # ------------------------------------------------------------------ tables for people

    @cached_property
    def tables(self) -> list[ReportTable]:
        """All tables, in the order they are printed."""
        own = f"{self.first.data}: {self.first.title}"
        found = [
            self._paper_table(),
            self._measured_table(),
            self._energy_table(),
            comparison_table(f"Estimated energy of a sentence, {own}", self.first.comparisons),
            mean_field_table(self.first.counts),
        ]
        timing = self._timing_table()
        if timing is not None:
            found.append(timing)
        if self.base is not None:
            found.append(comparison_table(f"Estimated energy, {self.base.title}", self.base.comparisons))
        return [*found, self._baseline_table()]

    def _paper_table(self) -> ReportTable:
        letters: dict[str, str] = {}
        rows = []
        for row in self.table_rows:
            gap = row.gap_mj
            rows.append(
                (
                    row.data,
                    row.network,
                    "256*" if math.isnan(row.tokens) else f"{row.tokens:.1f}".removesuffix(".0"),
                    f"{row.operations:.2f}",
                    f"{row.formula_mj:.2f}",
                    DASH if row.printed_mj is None else f"{row.printed_mj:.2f}",
                    DASH if gap is None else f"{gap:+.2f}",
                    DASH if gap is None or not row.printed_mj else f"{100 * gap / row.printed_mj:+.1f}",
                    DASH if row.reduction_percent is None else f"{row.reduction_percent:.2f}",
                    letters.setdefault(row.why, chr(ord("a") + len(letters))) if row.why else "",
                )
            )
        notes = (
            "mJ: by Eqs. 16 to 19 of arXiv 2308.15122 (fp32, memory out), fed with our counts, or in rows called paper "
            "with its own FLOPs and SOPs, without Eq. 19's embedding term. Gap: printed less that. Less %: energy "
            "reduction against BERT, ours at the same length.",
            "* the paper's length; its published code pads every sentence and lets padding spike.",
            *(f"{letter}: {why}." for why, letter in letters.items()),
        )
        columns = ("data set", "network", "tokens", "G ops", "mJ", "printed", "gap", "gap %", "less %", "why")
        return ReportTable("Tables 2 and 5 of SpikeBERT, rebuilt", columns, rows, notes, frozenset({0, 1, 9}), NONE)

    def _measured_table(self) -> ReportTable:
        rows = [
            (
                measurement.data,
                f"{measurement.counts.sentences:,}",
                f"{measurement.mean_tokens:.1f}",
                f"{firing_rate(measurement.counts):.1%}",
                *(
                    f"{measurement.per_sentence(kind) / 1e6:,.2f}"
                    for kind in ("ac_binary", "ac_graded", "ac_graded_additions", "mac")
                ),
                f"{synaptic_operations(measurement.counts) / 1e6:,.2f}",
            )
            for measurement in self.measured
        ]
        notes = (
            "Millions of operations a sentence, counted from what fired at real tokens. Graded: integers above 1, as "
            "one operation or as additions, never both. Eq. 18: T x mean input x FLOPs, the paper's SOPs.",
            *(f"{measurement.data}: {measurement.remark}." for measurement in self.measured if measurement.remark),
        )
        columns = ("data", "sentences", "tokens", "fires", "binary AC", "graded AC", "as additions", "MAC", "Eq. 18")
        return ReportTable("What was counted", columns, rows, notes, broken_columns=NONE)

    def _energy_table(self) -> ReportTable:
        rows = []
        for name, model in energy_models().items():
            estimates = [estimate_energy(m.counts, model=m.models[name]) for m in self.measured]
            rows.append((name, "in" if model.includes_memory else "out", *(number(e.energy_mj) for e in estimates)))
        columns = ("energy model", "memory", *(measurement.data.replace(" ", "\n") for measurement in self.measured))
        notes = (
            "Estimates, mJ a sentence at its real length. What each rests on stands at the end of energy.md and "
            "energy.html.",
        )
        return ReportTable("Energy of the spiking network", columns, rows, notes, frozenset({0, 1}), NONE)

    def _timing_table(self) -> ReportTable | None:
        estimates = [
            (estimate_energy(measurement.counts, model=model), measurement.data)
            for measurement in (self.first, self.base)
            if measurement is not None
            for model in measurement.models.values()
        ]
        return timing_table(*zip(*estimates, strict=True))

    def _baseline_table(self) -> ReportTable:
        by_name: dict[str, list[BaselineCount]] = {}
        for count in self.baseline_counts:
            by_name.setdefault(count.baseline.name, []).append(count)
        rows = []
        for name, counts in by_name.items():
            baseline = counts[0].baseline
            parameters = baseline.parameters if isinstance(baseline, TransformerBaseline) else None
            verdicts = {count.verdict for count in counts}
            rows.append(
                (
                    name,
                    DASH if parameters is None else f"{parameters / 1e6:.1f}",
                    *(number(count.formula / GIGA, 4) for count in counts),
                    *(f"{dense_energy_mj(count.formula):.2f}" for count in counts[1:]),
                    verdicts.pop() if len(verdicts) == 1 else "DIFFER",
                )
            )
        lengths = [count.tokens for count in counts]
        notes = [
            "MACs of matrix products, 10^9 a sentence; mJ by Eq. 17, fp32, memory out. Counters: how many of the "
            "closed formula, torch's FlopCounterMode / 2 (eager attention) and fvcore were there and gave this figure.",
            f"quantized: {self.first.twin.title}; Eq. 17 charges fp32 and is shown for its MACs only.",
            "Energies under the other models at each length are in energy.json and energy.csv.",
            *dict.fromkeys(count.problem for count in self.baseline_counts if count.problem),
        ]
        columns = (
            "baseline",
            "M param.",
            *(f"G at {tokens}" for tokens in lengths),
            *(f"mJ at {tokens}" for tokens in lengths[1:]),
            "counters",
        )
        return ReportTable("Baselines", columns, rows, tuple(notes), frozenset({0, len(columns) - 1}), NONE)

    @cached_property
    def verdicts(self) -> list[str]:
        """Who loses and who wins, without figures: those stand in the tables, with what they hold for."""
        lines = []
        for measurement in (self.first, self.base):
            for baseline in measurement.baselines if measurement else ():
                found = [c for c in measurement.comparisons if c.baseline == baseline.name]
                parts = []
                for verdict, words in (("LOSES", "LOSES"), ("wins", "wins"), (DASH, "no comparison")):
                    models = [c.network.model for c in found if c.verdict == verdict]
                    if models:
                        parts.append(f"{words} under {', '.join(models)}")
                lines.append(f"{measurement.title}, against {baseline.name}: {'; '.join(parts)}")
        return lines

    @cached_property
    def findings(self) -> list[str]:
        """What the figures say, in sentences."""
        lines = []
        for measurement in (self.first, self.base):
            if measurement is not None:
                by_name = {baseline.name: baseline.title for baseline in measurement.baselines}
                lines += [_finding(measurement, name, title) for name, title in by_name.items()]
        row = next(row for row in published_rows("sst2", 2) if row.spiking)
        dense = BASELINES["bert-base-cased"].macs(STANDARD_LENGTHS[1]) / GIGA
        lines.append(
            f"The SOPs the paper prints for SST-2 ({row.operations} G) imply a mean input of "
            f"{implied_firing_rate(row, dense):.2f} by Eq. 18 at {dense:.2f} G MACs a step and 256 tokens; an "
            f"independent measurement found {MEASURED_BIT_RATE:.1%} of SpikeBERT's bits to be ones."
        )
        return lines

    @property
    def explanations(self) -> list[str]:
        """What every estimate rests on."""
        comparisons = [c for measurement in self.measured for c in measurement.comparisons]
        return explanations(comparisons)

    @cached_property
    def sensitivity(self) -> list[SensitivityPanel]:
        """How the energy ratio depends on firing rate, time steps, sentence length and energy model."""
        return sensitivity_panels(self.first, self.variations)

    @cached_property
    def picture(self) -> Figure:
        """One picture: components, break-even, sensitivity."""
        return results_picture(self.first, self.base, self.sensitivity)

    def csv_rows(self) -> list[dict[str, Any]]:
        """Return one flat table: rows of the rebuilt tables, then every comparison, then every baseline by itself."""
        rows: list[dict[str, Any]] = []
        for row in self.table_rows:
            rows.append({"section": "ours" if row.ours else "paper", **row.to_dict(), "energy_model": "paper"})
        for measurement in self.measured:
            for comparison in measurement.comparisons:
                rows.append(
                    {
                        "section": "comparison",
                        "data": measurement.data,
                        "network": measurement.title,
                        "tokens": measurement.mean_tokens,
                        **comparison.to_dict(),
                    }
                )
        for count in self.baseline_counts:
            for name, estimate in count.energies.items():
                if estimate is not None:
                    rows.append(
                        {
                            "section": "baseline",
                            "data": "any",
                            "network": count.baseline.title,
                            "tokens": count.tokens,
                            "operations": count.formula / GIGA,
                            "energy_model": name,
                            "baseline": count.baseline.name,
                            "baseline_mj": estimate.energy_mj,
                            "baseline_precision": estimate.precision,
                            "memory_included": estimate.includes_memory,
                            "basis": estimate.basis,
                        }
                    )
        keys = list(dict.fromkeys(key for row in rows for key in row))
        return [{key: _finite(row.get(key)) for key in keys} for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **self.record,
            "note": "every energy is an estimate from counted operations, not a measurement; mJ a sentence",
            "tables_2_and_5": [
                {key: _finite(value) for key, value in row.to_dict().items()} for row in self.table_rows
            ],
            "published": [check(row).to_dict() for row in published_rows()],
            "measured": [
                {
                    "data": measurement.data,
                    "network": measurement.title,
                    "sentences": measurement.counts.sentences,
                    "mean_tokens": measurement.mean_tokens,
                    "firing_rate": firing_rate(measurement.counts),
                    "synaptic_operations_eq_18": synaptic_operations(measurement.counts),
                    "remark": measurement.remark,
                    "operations": measurement.counts.to_dict(),
                    "comparisons": [comparison.to_dict() for comparison in measurement.comparisons],
                }
                for measurement in self.measured
            ],
            "baselines": [count.to_dict() for count in self.baseline_counts],
            "sensitivity": [
                {
                    "panel": panel.title,
                    "x_label": panel.x_label,
                    "x_names": list(panel.ticks),
                    "curves": [{"label": c.label, "x": list(c.x), "ratio": list(c.y)} for c in panel.curves],
                }
                for panel in self.sensitivity
            ],
            "findings": self.findings,
            "explanations": self.explanations,
        }

    def to_markdown(self) -> str:
        """Return everything but the pictures as Markdown."""
        record = "\n".join(f"* {key}: {value}" for key, value in self.record.items())
        tables = "\n".join(table.to_markdown() for table in self.tables)
        return (
            "# Energy\n\nEvery energy here is an estimate from counted operations, never a measurement.\n\n"
            f"{tables}\n## What the figures say\n\n{_bullets(self.findings)}\n"
            f"## What the estimates rest on\n\n{_bullets(self.explanations)}\n## How this was made\n\n{record}\n"
        )

    def to_html(self) -> str:
        """Return everything as one self-contained page."""
        first = self.first
        caption = (
            "Top: shares of each network's estimated energy, its total beside the bar. Middle: energy against the "
            "firing rate, all else as counted; dashed are the others. Bottom: energy ratio against firing rate "
            "(scaled), time steps and sentence length (each run), and under every energy model; dotted: as measured. "
            f"The checkpoint was trained at T = {first.counts.time_steps:g}."
        )
        return render_page(
            title="Energy benchmark",
            subject=f"{first.title}, against the tables of SpikeBERT (arXiv 2308.15122)",
            facts=[
                (f"{sum(m.counts.sentences for m in self.checkpoint):,}", "sentences"),
                (f"{len(self.checkpoint)}", "data sets"),
                (f"{firing_rate(first.counts):.1%}", f"of neurons fire on {first.data}"),
                (f"{number(estimate_energy(first.counts, model='paper').energy_mj)} mJ", "a sentence, paper's formula"),
            ],
            tables=self.tables,
            pictures=[Picture(picture_data_uri(self.picture), caption)],
            paragraphs=[("What the figures say", self.findings), ("What the estimates rest on", self.explanations)],
            record=self.record,
        )


def _finding(measurement: Measurement, baseline: str, title: str) -> str:
    """Say under which energy models a network loses and wins, and how far."""
    found = [c for c in measurement.comparisons if c.baseline == baseline and c.ratio is not None]
    subject = f"{measurement.title} on {measurement.data}, against {baseline} ({title})"
    parts = []
    for verdict, words in (("LOSES", "LOSES under"), ("wins", "wins under")):
        ratios = [f"{c.network.model} ({number(c.ratio)} x, {_conditions(c)})" for c in found if c.verdict == verdict]
        if ratios:
            parts.append(f"{words} {len(ratios)} of {len(found)} energy models: {', '.join(ratios)}")
    return f"{subject}: {'; '.join(parts)}."


def _conditions(comparison: EnergyComparison) -> str:
    network, other = comparison.network.precision, str(comparison.precision["baseline"])
    both = f"both {network}" if other == network else f"{network} against {other.removeprefix(network).lstrip(', ')}"
    return f"{both}, memory {'in' if comparison.network.includes_memory else 'out'}, {comparison.break_even}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"* {line}\n" for line in lines)

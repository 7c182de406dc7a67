"""``spikebert energy``: what a run costs under each energy model, beside what a dense network would cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spikebert.cli.application import check_outputs, common_options, messages, print_json, results
from spikebert.cli.sources import Source, SourceCommand, SourceOptions, open_source, source_options
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from export.network import Network
    from hardware.energy import EnergyModel, OperationCounts
    from hardware.energy.baselines import Baseline
    from hardware.energy.comparison import EnergyComparison
    from hardware.reports.energy_report import ReportTable

DEFAULT_BASELINE = "bert-base-cased"
KINDS = {"ac_binary": "binary accumulates", "ac_graded": "graded accumulates", "mac": "dense MACs"}
FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True)
class CountedRun:
    """A run and its operations.

    Attributes
    ----------
    title : str
        What ran: a checkpoint, or a graph with a trace.
    network : Network
    counts : OperationCounts
    lengths : list of int
        Real tokens of each sentence.
    record : dict
        What the result must say about how it was made.
    """

    title: str
    network: Network
    counts: OperationCounts
    lengths: list[int]
    record: dict[str, Any]


@click.command(cls=SourceCommand)
@source_options
@click.option(
    "--model", "models", multiple=True, help="Energy model; give several behind one --model  [default: all there are]."
)
@click.option(
    "--model-file",
    "model_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An energy model of your own (.json or .toml); the head of hardware/energy/models/price_table.py shows one.",
)
@click.option(
    "--baseline",
    "baseline_name",
    help=f"Dense network to compare with; the quantized twin of the network itself is always shown too  [default: "
    f"{DEFAULT_BASELINE}, and for a graph that reads no tokens the twin alone].",
)
@click.option("--csv", "csv_file", type=FILE, help="Write energies and ratios as CSV.")
@click.option("--html", "page_file", type=FILE, help="Write everything as one self-contained page.")
@click.option("--force", is_flag=True, help="Write over existing files.")
@common_options
def energy(
    models: tuple[str, ...],
    model_files: tuple[Path, ...],
    baseline_name: str | None,
    csv_file: Path | None,
    page_file: Path | None,
    force: bool,
    seed: int,
    as_json: bool,
    **of_source: Any,
) -> None:
    """Run sentences through CHECKPOINT, count its operations from what fired, and estimate its energy.

    Every energy is an estimate, in mJ a sentence of real length; padding is counted apart. A NIR graph, of any tool,
    runs on --runner; one that reads no tokens takes --input. A trace from a chip or another tool goes through the same
    counters: give --trace and --graph in place of CHECKPOINT and sentences.

    \b
    Examples:
      spikebert energy default --text "A warm and funny film ."
      spikebert energy default --task sst2 --data-dir DATA --limit 100 --html energy.html
      spikebert energy default --text "A warm film ." --model paper memory-int8 --baseline minilm-6
      spikebert energy from_snntorch.nir --dt 1e-4 --input spikes.npy
      spikebert energy --trace trace.npz --graph model.nir
    """
    from hardware.energy import energy_model, energy_models
    from hardware.energy.baselines import QuantizedTwin, find_baseline
    from hardware.energy.comparison import compare_energy, firing_rate
    from hardware.reports.energy_report import comparison_table, explanations
    from spikebert.provenance import seed_everything

    check_outputs((csv_file, page_file), force)
    names: Sequence[str | Path] = [*models, *model_files] or list(energy_models())
    chosen = [energy_model(name) for name in names]
    for model, count in Counter(model.name for model in chosen).items():
        if count > 1:  # results are told apart by it
            raise ConfigurationError(f"{count} energy models are called {model!r}; leave one out, or rename yours")
    seed_everything(seed)
    source = open_source(SourceOptions.of(of_source), seed)
    if baseline_name is None:
        baseline_name = DEFAULT_BASELINE if source.network.token_encoding is not None else QuantizedTwin.name
    find_baseline(baseline_name, source.network, time_steps=1)  # a name nobody knows ends it before anything runs
    run = _count(source)
    chosen = [model.for_network(run.network, run.counts.longest_sentence) for model in chosen]
    twin = QuantizedTwin(run.network, round(run.counts.time_steps))
    baseline = find_baseline(baseline_name, run.network, twin.time_steps)
    baselines = [baseline] if isinstance(baseline, QuantizedTwin) else [baseline, twin]
    comparisons = [compare_energy(run.counts, other, run.lengths, model) for model in chosen for other in baselines]
    if csv_file is not None:
        from hardware.reports.files import write_csv_rows

        write_csv_rows(csv_file, [{"network": run.title, **comparison.to_dict()} for comparison in comparisons])
    if page_file is not None:
        _write_page(page_file, run, chosen, baselines, comparisons)
    for path in (csv_file, page_file):
        if path is not None:
            messages.print(f"wrote {path}", markup=False, soft_wrap=True)
    if as_json:
        print_json(_json_object(run, baseline, comparisons))
        return
    title = f"Estimated energy of a sentence on {run.title}; {firing_rate(run.counts):.1%} of its neurons fire"
    for table in (*_tables_of_counts(run.counts, comparisons), comparison_table(title, comparisons)):
        results.print(table.to_rich())
        results.print()
    for line in explanations(comparisons):
        results.print(f"* {line}", markup=False)


def _count(source: Source) -> CountedRun:
    from hardware.energy import OperationCounter

    counter, lengths = OperationCounter(source.network), []
    for firing in source.counted("counting"):
        counter.add(firing)
        lengths += [int(tokens) for tokens in firing.real.sum(-1)]
    return CountedRun(source.name, source.network, counter.result(), lengths, {**source.record, "data": source.data})


def _json_object(run: CountedRun, baseline: Baseline, comparisons: Sequence[EnergyComparison]) -> dict[str, Any]:
    from hardware.energy.comparison import firing_rate

    against = [comparison for comparison in comparisons if comparison.baseline == baseline.name]
    counts = run.counts
    return {
        "model": run.title,
        "operations": counts.to_dict(),
        "energy_mj": {c.network.model: c.network.energy_mj for c in against},
        "baseline": {
            "name": baseline.name,
            "macs": None if baseline.obstacle else sum(map(baseline.macs, run.lengths)) / len(run.lengths),
            "energy_mj": {
                c.network.model: c.baseline_estimate.energy_mj if c.baseline_estimate else None for c in against
            },
        },
        "ratio": {c.network.model: c.ratio for c in against},
        "precision": {c.network.model: c.precision for c in against},
        "tokens": {"real": counts.real_tokens, "padding": counts.padding_tokens},
        "sentences": counts.sentences,
        "firing_rate": firing_rate(counts),
        "comparisons": [comparison.to_dict() for comparison in comparisons],
        "estimates": {c.network.model: c.network.to_dict() for c in against},
        "note": "energies are estimates, not measurements; mJ a sentence, operations of all sentences together",
        **run.record,
    }


def _tables_of_counts(counts: OperationCounts, comparisons: Sequence[EnergyComparison]) -> list[ReportTable]:
    """Return operations, Eq. 18 beside them, and time where an energy model has it."""
    from hardware.reports.energy_report import mean_field_table, operations_table, timing_table

    timing = timing_table([comparison.network for comparison in comparisons])
    return [operations_table(counts), mean_field_table(counts), *([] if timing is None else [timing])]


def _write_page(
    path: Path,
    run: CountedRun,
    models: Sequence[EnergyModel],
    baselines: Sequence[Baseline],
    comparisons: Sequence[EnergyComparison],
) -> None:
    from hardware.energy.comparison import energy_by_component, firing_rate
    from hardware.energy.counts import headline
    from hardware.reports.energy_figures import Bar, break_even_panel, paint_break_even, paint_components
    from hardware.reports.energy_report import (
        Picture,
        amount,
        comparison_table,
        explanations,
        number,
        write_page,
    )
    from hardware.reports.pictures import draw, picture_data_uri

    counts, top = run.counts, headline(run.counts.totals)
    bars, curves = [], []
    for model in models:
        found = [(c, c.baseline_estimate) for c in comparisons if c.network.model == model.name]
        priced = [(c, estimate) for c, estimate in found if estimate is not None]
        if not priced:
            continue
        memory = "memory in" if model.includes_memory else "memory out"
        shown = [Bar("this network", energy_by_component(priced[0][0].network, counts))]
        for comparison, estimate in priced:
            other = next(baseline for baseline in baselines if baseline.name == comparison.baseline)
            shown.append(Bar(other.title, energy_by_component(estimate, other.count(run.lengths))))
        bars.append((f"{model.name} ({model.precision}), {memory}", shown))
        lines = [(comparison.baseline, estimate.energy_mj) for comparison, estimate in priced]
        if firing_rate(counts):
            curves.append(break_even_panel(f"{model.name}, {memory}", counts, model, lines))
    pictures = []
    if bars:
        figure = draw(lambda figure: paint_components(figure, bars), 10, 0.6 + 1.4 * math.ceil(len(bars) / 2))
        pictures.append(Picture(picture_data_uri(figure), "Estimated energy of a sentence by component."))
    if curves:
        figure = draw(lambda figure: paint_break_even(figure, curves), 10, 0.3 + 2.8 * math.ceil(len(curves) / 3))
        caption = "Estimated energy against the firing rate, all else as counted; dashed: the others."
        pictures.append(Picture(picture_data_uri(figure), caption))
    write_page(
        path,
        title="Energy estimate",
        subject=f"{run.title}: {run.record['data']}",
        facts=[
            (f"{firing_rate(counts):.1%}", "mean firing rate"),
            (f"{counts.sentences:,}", "sentences"),
            (number(counts.real_tokens / counts.sentences), "real tokens a sentence"),
            (f"{counts.padding_tokens:,}", "padding tokens, left out"),
            *((amount(count, counts), f"{KINDS[kind]} a sentence") for kind, count in top.items()),
        ],
        tables=[
            comparison_table("Energy of a sentence (estimates)", comparisons),
            *_tables_of_counts(counts, comparisons),
        ],
        pictures=pictures,
        paragraphs=[("What the estimates rest on", explanations(comparisons))],
        record=run.record,
    )

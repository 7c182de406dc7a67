"""``spikebert profile``: how much fires, where and when, on sentences of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hardware.choices import COLLECTIONS, CSV_AXES, FIGURES
from spikebert.cli.application import check_outputs, common_options, messages, print_json, results
from spikebert.cli.sources import Source, SourceCommand, SourceOptions, open_source, source_options
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from hardware.firing import Firing

PAPERS_ORDER = ("qk_first",)
BOTH_ORDERS = ("qk_first", "kv_first")
NEEDED_FOR_CSV = {"head": "heads", "value": "histogram"}
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=SourceCommand)
@source_options
@click.option("--csv", "csv_file", type=FILE, help="Write a table as CSV.")
@click.option(
    "--csv-by",
    type=click.Choice(CSV_AXES),
    default="node",
    show_default=True,
    help="What a row of the CSV is, within each node.",
)
@click.option("--png", "picture_file", type=FILE, help="Write pictures into one file (.png, .pdf or .svg).")
@click.option(
    "--figure", "figures", type=click.Choice(FIGURES), multiple=True, help="Which pictures  [default: all there are]."
)
@click.option("--html", "page_file", type=FILE, help="Write everything as one self-contained page.")
@click.option("--force", is_flag=True, help="Write over existing files.")
@click.option(
    "--collect",
    type=click.Choice(COLLECTIONS),
    multiple=True,
    help="Count more than firing rates, silent and saturated neurons  [default: nothing; everything for --html and "
    "--png].",
)
@click.option(
    "--both-orders", is_flag=True, help="Count attention as Q (K^T V) too, not only as (Q K^T) V; always for --html."
)
@click.option("--detailed", is_flag=True, help="List silent and saturated neurons by index, in --json and --html.")
@click.option(
    "--sentence", "shown_sentence", type=click.IntRange(min=0), default=0, show_default=True, help="In the raster."
)
@common_options
def profile(
    csv_file: Path | None,
    csv_by: str,
    picture_file: Path | None,
    figures: tuple[str, ...],
    page_file: Path | None,
    force: bool,
    collect: tuple[str, ...],
    both_orders: bool,
    detailed: bool,
    shown_sentence: int,
    seed: int,
    as_json: bool,
    **of_source: Any,
) -> None:
    """Run sentences through CHECKPOINT in PyTorch and count its spikes: by node, step, position, head and neuron.

    The operations they cause are counted with them. Padding is left out of every rate, and counted apart. A NIR graph,
    of any tool, runs on --runner; one that reads no tokens takes --input. A trace from a chip or another tool is
    profiled alike: give --trace and --graph in place of CHECKPOINT and sentences.

    \b
    Examples:
      spikebert profile default --text "A warm and funny film ."
      spikebert profile default --task sst2 --data-dir DATA --limit 200 --html profile.html --csv profile.csv
      spikebert profile default --task sst2 --data-dir DATA --png rates.pdf --figure rates
      spikebert profile default --text "A warm film ." --csv operations.csv --csv-by operation
      spikebert profile from_snntorch.nir --dt 1e-4 --input spikes.npy
      spikebert profile --trace trace.npz --graph model.nir
    """
    if figures and picture_file is None:
        raise ConfigurationError("--figure chooses what --png draws; give --png FILE too")
    from hardware.energy import OperationCounter
    from hardware.profiler import Profiler
    from hardware.reports.pictures import picture_format
    from hardware.reports.profile_figures import ReportSubject, Sentence
    from hardware.reports.profile_report import (
        profile_object,
        profile_tables,
        write_profile_csv,
        write_profile_page,
        write_profile_picture,
    )
    from spikebert.provenance import seed_everything

    check_outputs((csv_file, picture_file, page_file), force)
    if picture_file is not None:
        picture_format(picture_file)
    seed_everything(seed)
    source = open_source(SourceOptions.of(of_source), seed)
    if shown_sentence >= source.sentences:
        raise ConfigurationError(f"--sentence {shown_sentence}: there are {source.sentences} sentences, counted from 0")
    wanted = _collections(collect, csv_by if csv_file else None, figures, bool(picture_file or page_file))
    profiler = Profiler(source.network, wanted)
    counter = OperationCounter(source.network, BOTH_ORDERS if both_orders or page_file else PAPERS_ORDER)
    raster = None
    done = 0
    for firing in source.counted("profiling"):
        profiler.add(firing)
        counter.add(firing)
        sentences = len(firing.real)
        if done <= shown_sentence < done + sentences:
            raster = Sentence(firing.trace, shown_sentence - done, _words(source, firing, shown_sentence - done))
        done += sentences
    found, operations = profiler.result(), counter.result()
    record = {**source.record, "precision": source.record["run_precision"]}
    subject = ReportSubject(source.title, f"{source.data}, {found.real_tokens:,} tokens", record)
    if csv_file is not None:
        write_profile_csv(found, csv_file, csv_by, operations)
    if picture_file is not None:
        write_profile_picture(found, picture_file, subject, raster, figures or None)
    if page_file is not None:
        write_profile_page(found, page_file, subject, raster, detailed, operations)
    for path in (csv_file, picture_file, page_file):
        if path is not None:
            messages.print(f"wrote {path}", markup=False, soft_wrap=True)
    if as_json:
        print_json(profile_object(found, subject, detailed, operations))
        return
    results.print(subject.caption, markup=False, soft_wrap=True)
    for table in profile_tables(found, operations):
        results.print(table)
        results.print()
    results.print(
        f"all nodes: {100 * found.firing_rate:.2f} % of neurons fire per real token and step "
        f"({100 * found.firing_rate_with_padding:.2f} % if the {found.padding_tokens:,} padding tokens counted)",
        soft_wrap=True,
    )


def _words(source: Source, firing: Firing, sentence: int) -> list[str] | None:
    """Return the tokens of a sentence, with its padding where the model attends to that."""
    trace = firing.trace
    if source.words is None or trace.input_ids is None:
        return None
    return source.words(trace.input_ids[sentence][trace.mask[sentence]].tolist())


def _collections(asked: tuple[str, ...], csv_by: str | None, figures: tuple[str, ...], drawn: bool) -> list[str]:
    """Return what to collect: what was asked for, what the CSV needs, and everything for pictures of everything."""
    wanted = set(asked)
    if csv_by in NEEDED_FOR_CSV:
        wanted.add(NEEDED_FOR_CSV[csv_by])
    if drawn and not asked:
        wanted.update(COLLECTIONS)
    wanted.update(set(figures) & set(COLLECTIONS))
    return [name for name in COLLECTIONS if name in wanted]

"""``spikebert place``: does a graph fit a chip, where does it go, and if it does not fit, every reason why."""

from __future__ import annotations

from pathlib import Path

import click

from spikebert.cli.application import (
    EXIT_ANSWER_IS_NO,
    check_outputs,
    common_options,
    messages,
    print_json,
    results,
)
from spikebert.cli.grammar import Command
from spikebert.cli.graph_runs import check_recorded_on, dt_option

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Command)
@click.argument("graph_file", metavar="MODEL.nir", type=click.Path(path_type=Path))
@click.option("--chip", required=True, help="loihi1, loihi2, or FILE.json, a description of your own chip.")
@click.option(
    "--tokens",
    type=int,
    help="Tokens of the longest sentence  [default: 128, or as many as the graph allows; 1 without tokens].",
)
@click.option("--trace", "trace_file", type=FILE, help="A run of the graph (.npz): counts spikes from chip to chip.")
@dt_option
@click.option("--png", "picture_file", type=FILE, help="Write how full every core is (.png, .pdf or .svg).")
@click.option("--html", "page_file", type=FILE, help="Write everything as one self-contained page.")
@click.option("--force", is_flag=True, help="Write over existing files.")
@common_options
def place(
    graph_file: Path,
    chip: str,
    tokens: int | None,
    trace_file: Path | None,
    dt: float | None,
    picture_file: Path | None,
    page_file: Path | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Place MODEL.nir on a chip: what each node takes, how full the cores are, and all reasons why it does not fit.

    Every token of a sentence is a copy of the neurons. Exit code 0: it fits, 1: it does not. A chip of your own is a
    JSON file; docs/placement.md says what it holds. Nothing here is drawn, so --seed changes nothing.

    \b
    Examples:
      spikebert place integer.nir --chip loihi2 --tokens 32
      spikebert place integer.nir --chip loihi1 --json
      spikebert place theirs.nir --chip my-chip.json --dt 1e-4 --html placement.html
    """
    from export.nir_file import read_network
    from hardware.loihi import place as place_graph
    from hardware.recorded import load_trace
    from hardware.reports.pictures import picture_format
    from hardware.reports.placement_report import (
        placement_tables,
        verdict,
        write_placement_page,
        write_placement_picture,
    )
    from spikebert.provenance import file_sha256, run_record

    check_outputs((picture_file, page_file), force)
    if picture_file is not None:
        picture_format(picture_file)
    _, network = read_network(graph_file, dt)
    trace = None
    if trace_file is not None:
        trace = load_trace(trace_file)
        check_recorded_on(trace, trace_file, network, graph_file)
    found = place_graph(network, chip, tokens, trace)
    record = {**run_record(seed), "file_sha256": file_sha256(graph_file)}
    if picture_file is not None:
        write_placement_picture(found, picture_file)
    if page_file is not None:
        write_placement_page(found, page_file, graph_file.name, record)
    for path in (picture_file, page_file):
        if path is not None:
            messages.print(f"wrote {path}", markup=False, soft_wrap=True)
    if as_json:
        print_json({**found.to_dict(), **record})
    else:
        for table in placement_tables(found):
            results.print(table)
            results.print()
        if found.mapping.host:
            results.print(f"on the host: {', '.join(found.mapping.host)}", markup=False, soft_wrap=True)
        for assumption in found.assumptions:
            results.print(f"assumed: {assumption}", markup=False, soft_wrap=True)
        if found.traffic is not None:
            traffic = found.traffic
            results.print(
                f"spikes a sentence, once for each core they go to: {traffic.sent:,.0f} between cores, "
                f"{traffic.between_chips:,.0f} of them from chip to chip; {traffic.from_host:,.0f} from the host",
                soft_wrap=True,
            )
        results.print(verdict(found), markup=False, soft_wrap=True)
    if not found.fits:
        raise SystemExit(EXIT_ANSWER_IS_NO)

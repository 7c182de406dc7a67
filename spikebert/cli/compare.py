"""``spikebert compare``: two recorded traces, spike by spike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikebert.cli.application import EXIT_ANSWER_IS_NO, check_outputs, common_options, messages, print_json, results
from spikebert.cli.grammar import Command, Renamed
from spikebert.cli.graph_runs import dt_option
from spikebert.errors import ConfigurationError


@click.command(cls=Command, old=(Renamed("--report", "--html"),))
@click.argument("trace_a", metavar="TRACE_A.npz", type=click.Path(path_type=Path))
@click.argument("trace_b", metavar="TRACE_B.npz", type=click.Path(path_type=Path))
@click.option(
    "--graph", "graph_file", type=click.Path(path_type=Path), help="NIR file that both ran: explains differences."
)
@dt_option
@click.option(
    "--nodes", multiple=True, help="Compare only nodes that match, such as 'block00_*'; output is the logits."
)
@click.option("--tokenizer", "tokenizer_name", help="Checkpoint whose tokenizer names tokens.")
@click.option("--audit", is_flag=True, help="With --graph: hold every value against its rounding bound in any case.")
@click.option("--accept-rounding", is_flag=True, help="Exit with 0 if every difference is explained by rounding.")
@click.option(
    "--html", "page_file", type=click.Path(path_type=Path), help="Write everything as one self-contained page."
)
@click.option("--force", is_flag=True, help="Write over an existing page.")
@common_options
def compare(
    trace_a: Path,
    trace_b: Path,
    graph_file: Path | None,
    dt: float | None,
    nodes: tuple[str, ...],
    tokenizer_name: str | None,
    audit: bool,
    accept_rounding: bool,
    page_file: Path | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Compare every spike of two traces of the same sentences.

    A trace is a file of `simulate -o`, or one recorded elsewhere, in a layout of docs/equivalence.md. Exits with 0 if
    all are equal, with 1 and the first divergence if not.

    \b
    Examples:
      spikebert compare lava.npz reference.npz
      spikebert compare reference.npz chip.npz --nodes 'block00_*' --graph model.nir --html report.html
    """
    from export.nir_file import read_network
    from hardware.equivalence.streaming import Pair
    from hardware.recorded import RecordedRunner, load_trace
    from spikebert.cli.verification import (
        comparison_table,
        finding_to_dict,
        print_finding,
        verdict,
        with_tokens,
    )
    from spikebert.provenance import file_sha256, run_record

    check_outputs((page_file,), force)
    if (audit or accept_rounding) and graph_file is None:
        option = "audit" if audit else "accept-rounding"
        raise ConfigurationError(f"--{option} needs the graph that both ran; give --graph FILE.nir")
    first, second = load_trace(trace_a), load_trace(trace_b)
    network = None if graph_file is None else read_network(graph_file, dt)[1]
    pair = Pair(RecordedRunner(first, trace_a), RecordedRunner(second, trace_b), network, nodes, audit)
    found = pair.compare_traces(first, second)
    found = with_tokens(found, _tokens(first, found, tokenizer_name))
    comparison = found.comparison
    texts = first.metadata.get("texts")
    texts = texts if isinstance(texts, list) else []
    record: dict[str, Any] = {"traces": [str(trace_a), str(trace_b)], **run_record(seed)}
    if graph_file is not None:
        record["graph_sha256"] = file_sha256(graph_file)
    if page_file is not None:
        from hardware.reports.equivalence_report import EquivalenceSubject, write_equivalence_page

        record_of_page = {**record, "traces": ", ".join(record["traces"])}
        subject = EquivalenceSubject(trace_a.name, trace_b.name, found.precision, texts=texts, record=record_of_page)
        write_equivalence_page(found, page_file, subject)
        messages.print(f"wrote {page_file}", markup=False, soft_wrap=True)
    if as_json:
        print_json({**finding_to_dict(found), **record})
    else:
        results.print(comparison_table(comparison, "A", "B"))
        results.print()
        print_finding(found, trace_a.name, trace_b.name)
        results.print(
            verdict(comparison, trace_a.name, trace_b.name, found.precision, texts, found.explanation), soft_wrap=True
        )
    explained = found.explanation is not None and found.explanation.explained
    if not (comparison.equal or (accept_rounding and explained)):
        raise SystemExit(EXIT_ANSWER_IS_NO)


def _tokens(trace: Any, found: Any, tokenizer_name: str | None) -> list[str]:
    """Return the tokens of the sentence where the traces part, as a tokenizer writes them."""
    first = found.comparison.first_divergence
    if first is None or tokenizer_name is None or trace.input_ids is None:
        return []
    from spikebert.checkpoint import load_tokenizer

    ids = trace.input_ids[first.sample][trace.mask[first.sample]].tolist()
    return [str(token) for token in load_tokenizer(tokenizer_name).convert_ids_to_tokens(ids)]

"""``spikebert compare``: two recorded traces, spike by spike."""

from __future__ import annotations

from pathlib import Path

import click

from spikebert.cli.application import EXIT_ANSWER_IS_NO, common_options, print_json, results


@click.command()
@click.argument("trace_a", metavar="TRACE_A.npz", type=click.Path(path_type=Path))
@click.argument("trace_b", metavar="TRACE_B.npz", type=click.Path(path_type=Path))
@common_options
def compare(trace_a: Path, trace_b: Path, seed: int, as_json: bool) -> None:
    """Compare every spike of two traces of the same sentences.

    Exits with 0 if all are equal, with 1 and the first divergence if not.

    \b
    Example:
      spikebert compare lava.npz reference.npz
    """
    from hardware.equivalence import compare as compare_traces
    from hardware.trace import Trace
    from spikebert.cli.verification import comparison_table, verdict
    from spikebert.provenance import run_record

    first, second = Trace.load(trace_a), Trace.load(trace_b)
    comparison = compare_traces(first, second)
    precisions = " and ".join(dict.fromkeys(str(trace.precision or "unknown precision") for trace in (first, second)))
    if as_json:
        print_json({**comparison.to_dict(), "traces": [str(trace_a), str(trace_b)], **run_record(seed)})
    else:
        results.print(comparison_table(comparison, "A", "B"))
        results.print()
        texts = first.metadata.get("texts")
        results.print(
            verdict(comparison, trace_a.name, trace_b.name, precisions, texts if isinstance(texts, list) else []),
            soft_wrap=True,
        )
    if not comparison.equal:
        raise SystemExit(EXIT_ANSWER_IS_NO)

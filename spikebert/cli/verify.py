"""``spikebert verify``: is what a simulator runs what was trained? Spike by spike."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from spikebert.cli.application import (
    EXIT_ANSWER_IS_NO,
    MultiValueCommand,
    common_options,
    messages,
    print_json,
    results,
)
from spikebert.cli.inputs import read_sentences, sentence_lengths, sentence_options

if TYPE_CHECKING:
    from export.differences import GraphDifference


@click.command(cls=MultiValueCommand)
@click.argument("checkpoint")
@click.option(
    "--against",
    type=click.Choice(["reference", "lava", "onnx"]),
    default="lava",
    show_default=True,
    help="Runner to compare with.",
)
@click.option(
    "--graph", "graph_file", type=click.Path(path_type=Path), help="Run this NIR file instead of exporting afresh."
)
@click.option(
    "--precision",
    type=click.Choice(["float64", "float32", "integer"]),
    default="float64",
    show_default=True,
    help="On both sides; at integer, the integer simulator stands in for PyTorch.",
)
@click.option(
    "--calibration",
    help="At integer: sentences to quantize on, a task (its training split) or a file "
    "[default: the task's, else the texts themselves].",
)
@click.option(
    "--granularity",
    type=click.Choice(["operator", "block", "network"]),
    help="Lava only: how much runs in one process [default: block].",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Lava only: seconds without progress.")
@sentence_options
@common_options
def verify(
    checkpoint: str,
    against: str,
    graph_file: Path | None,
    precision: str,
    granularity: str | None,
    timeout: float | None,
    calibration: str | None,
    texts: tuple[str, ...],
    task: str | None,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run CHECKPOINT in PyTorch and its NIR graph on a simulator, and compare every spike of every node and step.

    Exits with 0 if all are equal, with 1 and the first divergence if not. A --graph that is not CHECKPOINT's own is
    not equal either, even where the sentences do not show it: a weight behind a neuron that never fired, for instance.

    \b
    Examples:
      spikebert verify default --against lava --precision float64 --text "A warm and funny film ."
      spikebert verify default --against reference --task sst2 --data-dir DATA --limit 50
      spikebert verify default --graph model.nir --text "A warm and funny film ."
      spikebert verify default --against lava --precision integer --task sst2 --data-dir DATA --limit 50
    """
    from export import parse_graph, read_nir, to_nir
    from export.differences import graph_differences, source_differences
    from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
    from spikebert.cli.quantization import CALIBRATION_SENTENCES, quantize_checkpoint, read_calibration
    from spikebert.cli.verification import comparison_table, verdict, verify_graph
    from spikebert.errors import ConfigurationError
    from spikebert.provenance import run_record, seed_everything

    lava_options = {"granularity": granularity, "timeout": timeout}
    options: dict[str, Any] = {key: value for key, value in lava_options.items() if value is not None}
    if options and against != "lava":
        raise ConfigurationError(f"--{next(iter(options))} is for --against lava only")
    seed_everything(seed)
    model = load_model(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    sentences = read_sentences(tokenizer, texts, task, data_dir, split, limit, *sentence_lengths(model.config))
    differences: list[GraphDifference] = []
    if calibration is not None and (precision != "integer" or graph_file is not None):
        raise ConfigurationError("--calibration is for --precision integer without --graph")
    if precision == "integer":
        if graph_file is None:
            ids = sentences.token_ids[:CALIBRATION_SENTENCES]
            if calibration or task:
                longest = model.config.max_position_embeddings
                ids = read_calibration(calibration or str(task), tokenizer, data_dir, CALIBRATION_SENTENCES, longest)
            graph, _ = quantize_checkpoint(checkpoint, ids)
        else:
            graph = read_nir(graph_file)
            differences = source_differences(parse_graph(graph), checkpoint_sha256(checkpoint))
    else:
        exported = graph = to_nir(model)  # type: ignore[arg-type]
        if graph_file is not None:
            graph = read_nir(graph_file)
            differences = graph_differences(parse_graph(exported), parse_graph(graph))
    expected_name = "integer simulator" if precision == "integer" else "torch"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=messages
    ) as progress:
        bar = progress.add_task(f"{expected_name} and {against}, sentences", total=len(sentences))
        found = verify_graph(
            model, graph, sentences, against, precision, lambda done: progress.advance(bar, done), **options
        )
    comparison = found.comparison
    equal = comparison.equal and not differences
    if as_json:
        answer = {**found.to_dict(), "equal": equal}
        if comparison.equal and differences:
            answer["first_divergence"] = _parameter_divergence(differences[0])
        print_json(
            {
                **answer,
                "against": against,
                "precision": precision,
                "graph_differences": [str(difference) for difference in differences],
                **run_record(seed, checkpoint_sha256(checkpoint)),
            }
        )
    else:
        results.print(comparison_table(comparison, expected_name, against))
        results.print()
        if comparison.equal and differences:
            results.print(
                f"[bold red]NOT EQUAL[/] {escape(f'{graph_file} is not the graph of {checkpoint}')}, first at "
                f"{differences[0].node}; these sentences do not show it: 0 of {comparison.spikes_compared:,} spikes "
                "differ",
                soft_wrap=True,
            )
        else:
            results.print(verdict(comparison, expected_name, against, precision, sentences.texts), soft_wrap=True)
        if found.stock is not None:
            results.print(f"{found.processes} Lava processes; {found.stock}", soft_wrap=True)
        for difference in differences:
            results.print(f"{graph_file} is not the checkpoint's own graph: {difference}", soft_wrap=True, markup=False)
    if not equal:
        raise SystemExit(EXIT_ANSWER_IS_NO)


def _parameter_divergence(difference: GraphDifference) -> dict[str, Any]:
    """Return what stands for a first divergence where a file differs from the model and no sentence shows it."""
    from hardware.equivalence import Divergence

    nothing = dict.fromkeys(entry.name for entry in fields(Divergence))
    return {**nothing, "quantity": "parameter", "node": difference.node, "detail": str(difference)}

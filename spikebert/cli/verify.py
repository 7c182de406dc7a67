"""``spikebert verify``: is what a simulator runs what was trained? Spike by spike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hardware.choices import INTEGER, LAVA, ONNX, PRECISIONS, TORCH
from spikebert.cli.application import (
    EXIT_ANSWER_IS_NO,
    Positive,
    check_outputs,
    common_options,
    messages,
    print_json,
    results,
)
from spikebert.cli.grammar import Command, PartOfRunner, Renamed
from spikebert.cli.inputs import BATCH_SIZE, read_sentences, sentence_lengths, sentence_options
from spikebert.cli.runners import RunnerName
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    import nir

    from export.differences import GraphDifference
    from hardware.equivalence.streaming import Pair
    from spikebert.cli.pairs import Side

DIFFERENCES_SHOWN = 8
"""Of a graph that is not the checkpoint's own."""


@click.command(
    cls=Command,
    old=(
        PartOfRunner("--granularity", "--against", LAVA),
        PartOfRunner("--timing", "--against", LAVA),
        Renamed("--report", "--html"),
    ),
)
@click.argument("checkpoint")
@click.option(
    "--against",
    type=RunnerName(traces=True),
    help="What to compare with: a runner (reference, lava, lava:network, lava:hardware, …) or a trace recorded "
    "elsewhere (.npz)  [default: lava; onnx for an ONNX file].",
)
@click.option(
    "--expected",
    type=RunnerName(traces=True),
    help="What it is compared with, likewise  [default: torch; at integer the integer simulator].",
)
@click.option(
    "--graph",
    "graph_file",
    type=click.Path(path_type=Path),
    help="Run this NIR or ONNX file instead of exporting afresh.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="On both sides  [default: float64; an ONNX file's own].",
)
@click.option(
    "--calibration",
    help="At integer: sentences to quantize on, a task (its training split) or a file "
    "[default: the task's, else the texts themselves].",
)
@click.option("--timeout", type=Positive(), help="Lava only: seconds without progress.")
@click.option(
    "--nodes", multiple=True, help="Compare only nodes that match, such as 'block00_*'; output is the logits."
)
@click.option("--node-by-node", is_flag=True, help="Also run every node by itself, on the inputs it had in --expected.")
@click.option("--audit", is_flag=True, help="Hold every value against its rounding bound, also where nothing differs.")
@click.option("--accept-rounding", is_flag=True, help="Exit with 0 if every difference is explained by rounding.")
@click.option("--stop-at-first", is_flag=True, help="End with the first batch in which anything differs.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, or Lava workers.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=BATCH_SIZE, show_default=True, help="Sentences a batch."
)
@click.option(
    "--resume", "resume_file", type=click.Path(path_type=Path), help="Keep progress in this file, and go on from it."
)
@click.option(
    "--html", "page_file", type=click.Path(path_type=Path), help="Write everything as one self-contained page."
)
@click.option("--force", is_flag=True, help="Write over an existing page.")
@sentence_options
@common_options
def verify(
    checkpoint: str,
    against: str | None,
    expected: str | None,
    graph_file: Path | None,
    precision: str | None,
    calibration: str | None,
    timeout: float | None,
    nodes: tuple[str, ...],
    node_by_node: bool,
    audit: bool,
    accept_rounding: bool,
    stop_at_first: bool,
    jobs: int,
    batch_size: int,
    resume_file: Path | None,
    page_file: Path | None,
    force: bool,
    texts: tuple[str, ...],
    task: str | None,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run CHECKPOINT in PyTorch and its NIR graph on a simulator, and compare every spike of every node and step.

    Exits with 0 if all are equal, with 1 and the first divergence if not. Each difference is then held against the
    rounding that the graph allows, and the verdict says whether all of them are explained by it. A --graph that is not
    CHECKPOINT's own is not equal either, even where the sentences do not show it: a weight behind a neuron that never
    fired, for instance.

    \b
    Examples:
      spikebert verify default --against lava --precision float64 --text "A warm and funny film ."
      spikebert verify default --against reference --task sst2 --data-dir DATA --limit 50 --html report.html
      spikebert verify default --against reference --precision float32 --node-by-node --text "A warm film ."
      spikebert verify default --expected reference --against lava:operator --text "A warm film ."
      spikebert verify default --against chip.npz --task sst2 --data-dir DATA --limit 100
      spikebert verify default --graph model.nir --text "A warm and funny film ."
      spikebert verify default --graph model.onnx --text "A warm and funny film ."
      spikebert verify default --against lava --precision integer --task sst2 --data-dir DATA --limit 50
      spikebert verify default --against integer --text "A warm and funny film ."
    """
    from export import parse_graph, read_nir, to_nir, write_nir
    from export.differences import graph_differences, source_differences
    from hardware.equivalence.streaming import ProgressFile
    from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
    from spikebert.cli.pairs import ONNX_SUFFIX, CheckpointPair, PairPlan, Side
    from spikebert.cli.quantization import CALIBRATION_SENTENCES, quantize_checkpoint, read_calibration
    from spikebert.cli.simulate import precision_of_onnx
    from spikebert.cli.verification import Stream, finding_to_dict, job_of, progress_bar, with_words
    from spikebert.provenance import file_sha256, run_record, seed_everything

    check_outputs((page_file,), force)
    is_onnx = graph_file is not None and graph_file.suffix == ONNX_SUFFIX
    nir_file, onnx_file = (None, graph_file) if is_onnx else (graph_file, None)
    against = against or (LAVA if onnx_file is None else ONNX)
    its_own = None if onnx_file is None else precision_of_onnx(onnx_file)
    precision = precision or its_own or "float64"
    if its_own not in (None, precision):
        raise ConfigurationError(f"{onnx_file}: computes in {its_own}, not {precision}; leave --precision out")
    expected = expected or (INTEGER if precision == INTEGER else TORCH)
    side_a, side_b = Side.parse(expected), Side.parse(against)
    if timeout is not None and side_b.runner != LAVA:
        raise ConfigurationError("--timeout is for --against lava only")
    side_b = side_b.with_options(timeout=timeout)
    if onnx_file is not None:
        side_b = _onnx_side(side_b, onnx_file, nodes)
    seed_everything(seed)
    model = load_model(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    sentences = read_sentences(tokenizer, texts, task, data_dir, split, limit, *sentence_lengths(model.config))
    # Lava is built once for the longest sentence, and spreads the samples of a batch over workers of its own
    side_a, side_b = (side.with_options(tokens=sentences.longest, jobs=jobs) for side in (side_a, side_b))
    processes = 1 if LAVA in (side_a.runner, side_b.runner) else jobs
    plan = PairPlan(side_a, side_b, precision, nodes, audit, node_by_node)
    sha256 = checkpoint_sha256(checkpoint)
    own = runs = to_nir(model)
    differences: list[GraphDifference] = []
    quantizes = INTEGER in (precision, side_a.runner, side_b.runner) and nir_file is None
    if calibration is not None and not quantizes:
        raise ConfigurationError(
            "--calibration is for --precision integer, or an integer runner, without a NIR file as --graph"
        )
    if nir_file is not None:
        runs = read_nir(nir_file)
        network = parse_graph(runs)
        differences = (
            source_differences(network, sha256) if network.is_integer else graph_differences(parse_graph(own), network)
        )
    elif quantizes:
        ids = sentences.token_ids[:CALIBRATION_SENTENCES]
        if calibration or task:
            longest = model.config.max_position_embeddings
            ids = read_calibration(calibration or str(task), tokenizer, data_dir, CALIBRATION_SENTENCES, longest)
        runs, _ = quantize_checkpoint(checkpoint, ids)
    meant = runs if precision == INTEGER else own
    if onnx_file is not None:
        differences = _onnx_differences(meant, onnx_file)
    progress_file = None
    if resume_file is not None:
        graph_sha256 = graph_file and file_sha256(graph_file)
        subject = {"checkpoint_sha256": sha256, "graph_sha256": graph_sha256, "calibration": calibration}
        progress_file = ProgressFile(resume_file, job_of(plan, sentences, **subject))
    name_a, name_b = str(side_a), str(side_b)
    with (
        tempfile.TemporaryDirectory(prefix="spikebert-verify-") as scratch,
        progress_bar(f"{name_a} and {name_b}", len(sentences)) as advance,
    ):
        here: Callable[[], Pair] = partial(plan.open, model, meant, runs)
        if processes > 1:
            for_workers = write_nir(Path(scratch) / "quantized.nir", runs) if quantizes else nir_file
            here = CheckpointPair(plan, checkpoint, for_workers)
        found = Stream(processes, batch_size, stop_at_first, progress_file).run(here, sentences, advance)
    found = with_words(found, sentences, tokenizer)
    comparison = found.comparison
    equal = comparison.equal and not differences
    record = {
        "expected": expected,
        "against": against,
        "precision": precision,
        "sentences_asked": len(sentences),
        "graph_differences": [str(difference) for difference in differences],
        **run_record(seed, sha256),
    }
    if page_file is not None:
        from hardware.reports.equivalence_report import EquivalenceSubject, write_equivalence_page

        subject_of_page = EquivalenceSubject(
            name_a,
            name_b,
            found.precision,
            model=f"{checkpoint} ({model.config.num_hidden_layers} blocks, D = {model.config.hidden_size}, "
            f"T = {model.config.time_steps})",
            data=f"{task} {split}" if task else "given text",
            texts=sentences.texts,
            graph_differences=record["graph_differences"],
            record={key: value for key, value in record.items() if key != "graph_differences"},
        )
        write_equivalence_page(found, page_file, subject_of_page)
        messages.print(f"wrote {page_file}", markup=False, soft_wrap=True)
    if as_json:
        answer = {**finding_to_dict(found), "equal": equal}
        if comparison.equal and differences:
            answer["first_divergence"] = _parameter_divergence(differences[0])
        print_json({**answer, **record})
    else:
        _print(found, name_a, name_b, sentences.texts, differences, graph_file, checkpoint)
    explained = found.explanation is not None and found.explanation.explained and not differences
    if not (equal or (accept_rounding and explained)):
        raise SystemExit(EXIT_ANSWER_IS_NO)


def _onnx_side(side: Side, path: Path, nodes: tuple[str, ...]) -> Side:
    """Return the side that runs an ONNX file: all that it shows, or where asked the logits alone."""
    from hardware.equivalence.comparison import NODE_OF_LOGITS

    if side.runner != ONNX:
        raise ConfigurationError(f"{path}: is an ONNX file, which only --against onnx runs, not {side}")
    return replace(side, onnx_file=path, options={"logits_only": nodes == (NODE_OF_LOGITS,)})


def _onnx_differences(meant: nir.NIRGraph, path: Path) -> list[GraphDifference]:
    """Return how an ONNX file differs from what the graph is written as, with the outputs of the file.

    Raises
    ------
    ConfigurationError
        It runs another number of steps, so that nothing can be compared.
    """
    from export import draft_onnx
    from export.onnx_format.differences import onnx_differences
    from export.onnx_format.file import read_onnx

    file = read_onnx(path)
    steps = meant.metadata["time_steps"]
    if file.time_steps != steps:
        raise ConfigurationError(
            f"{path}: runs {file.time_steps} time steps, the checkpoint {steps}; export it again without --time-steps"
        )
    if file.shows_spikes and not file.shows_membrane_potentials:
        messages.print(
            f"{path}: shows no membrane potentials, so none are compared; export it with --membrane-potentials",
            markup=False,
            soft_wrap=True,
        )
    draft = draft_onnx(
        meant,
        file.precision,
        spikes=file.shows_spikes,
        membrane_potentials=file.shows_membrane_potentials,
    )
    return onnx_differences(draft, path)


def _print(
    found: Any,
    name_a: str,
    name_b: str,
    texts: list[str],
    differences: list[GraphDifference],
    graph_file: Path | None,
    checkpoint: str,
) -> None:
    from rich.markup import escape

    from spikebert.cli.verification import comparison_table, print_finding, verdict

    comparison = found.comparison
    results.print(comparison_table(comparison, name_a, name_b))
    results.print()
    print_finding(found, name_a, name_b)
    if comparison.equal and differences:
        results.print(
            f"[bold red]NOT EQUAL[/] {escape(f'{graph_file} is not the graph of {checkpoint}')}, first at "
            f"{differences[0].node}; these sentences do not show it: 0 of {comparison.spikes_compared:,} spikes "
            "differ",
            soft_wrap=True,
        )
    else:
        results.print(verdict(comparison, name_a, name_b, found.precision, texts, found.explanation), soft_wrap=True)
    if found.stock is not None:
        results.print(f"{found.facts.get('processes')} Lava processes; {found.stock}", soft_wrap=True)
        for reason in found.stock.reasons():
            results.print(f"  in ours: {reason}", soft_wrap=True, markup=False)
    for difference in differences[:DIFFERENCES_SHOWN]:
        results.print(f"{graph_file} is not the checkpoint's own graph: {difference}", soft_wrap=True, markup=False)
    if len(differences) > DIFFERENCES_SHOWN:
        rest = len(differences) - DIFFERENCES_SHOWN
        results.print(f"and {rest} more such differences, all of them with --json", soft_wrap=True, markup=False)


def _parameter_divergence(difference: GraphDifference) -> dict[str, Any]:
    """Return what stands for a first divergence where a file differs from the model and no sentence shows it."""
    from hardware.equivalence import Divergence

    nothing = dict.fromkeys(entry.name for entry in fields(Divergence))
    return {**nothing, "quantity": "parameter", "node": difference.node, "detail": str(difference)}

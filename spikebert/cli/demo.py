"""``spikebert demo``: the whole road on the shipped checkpoint, in one run a person can read.

text -> PyTorch -> NIR file -> Lava processes -> the same spikes -> energy -> a verdict
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hardware.choices import LAVA
from spikebert.cli.application import (
    EXIT_ANSWER_IS_NO,
    common_options,
    messages,
    print_json,
    refuse_overwrite,
    results,
)
from spikebert.cli.energy import DEFAULT_BASELINE
from spikebert.cli.grammar import Command, PartOfRunner
from spikebert.cli.inputs import read_sentences, sentence_lengths, sentence_options
from spikebert.cli.runners import RunnerName, parse_runner

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

DEMO_SENTENCES = (
    "A warm and quietly funny film that stays with you for days.",
    "Two hours of noise, and not one character worth caring about.",
    "The plot creaks now and then, but the two leads are a joy to watch.",
    "I wanted to like it, yet every joke lands with a thud.",
    "Beautifully shot, patiently told, and moving without ever begging for tears.",
    "The sequel nobody asked for, made by people who seem to agree.",
    "Sharp, strange and very much alive.",
    "It is neither clever enough to admire nor silly enough to enjoy.",
)
"""Written for this demo; not taken from any data set."""
DEMO_ENERGY_MODELS = ("paper", "horowitz-fp32", "memory-int8")
"""The paper's own, the same with every operation charged, and one with memory where the spiking side loses."""


@click.command(cls=Command, old=(PartOfRunner("--granularity", "--runner", LAVA),))
@click.option("--checkpoint", default="default", show_default=True, help="Folder, the word default, or a hub name.")
@click.option(
    "--runner",
    type=RunnerName(LAVA),
    default="lava:block",
    show_default=True,
    help="How Lava runs it: one process for each operator (lava:operator), for each block, or for all (lava:network).",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Keep the NIR file here [default: a temporary file]."
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
@sentence_options
@common_options
def demo(
    checkpoint: str,
    runner: str,
    output: Path | None,
    force: bool,
    texts: tuple[str, ...],
    task: str | None,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Take a trained model down the whole road: classify, export to NIR, simulate on Lava, verify, energy.

    Without --text or --task it runs sentences of its own.

    \b
    Examples:
      spikebert demo
      spikebert demo --text "A film like a warm bath ."
      spikebert demo --task sst2 --data-dir DATA --limit 20
    """
    with tempfile.TemporaryDirectory(prefix="spikebert-demo-") as scratch:
        if output is not None:
            refuse_overwrite(output, force)
        graph_file = output or Path(scratch) / "spikebert.nir"
        sentences_asked = texts or (() if task else DEMO_SENTENCES)
        keep = output is not None
        in_lava = {"granularity": "block", **parse_runner(runner)[1]}
        _run(checkpoint, in_lava, graph_file, keep, sentences_asked, task, data_dir, split, limit, seed, as_json)


def _run(
    checkpoint: str,
    in_lava: dict[str, str],
    graph_file: Path,
    keep_graph: bool,
    texts: tuple[str, ...],
    task: str | None,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    steps = _Steps(quiet=as_json)
    started = time.perf_counter()

    steps.begin("Load the trained model")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from export import parse_graph, read_nir, to_nir, write_nir
    from hardware.energy import OperationCounter
    from hardware.energy.baselines import BASELINES, QuantizedTwin
    from hardware.energy.comparison import compare_energy
    from hardware.reports.energy_report import comparison_table as energy_table
    from hardware.runners.lava.compatibility import import_lava
    from hardware.trace import Trace
    from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer, resolve_checkpoint
    from spikebert.cli.verification import comparison_table, verdict, verify_graph
    from spikebert.errors import MissingDependencyError
    from spikebert.families import family_of
    from spikebert.provenance import run_record, seed_everything

    seed_everything(seed)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    config, sha256 = model.config, checkpoint_sha256(checkpoint)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(file.stat().st_size for file in Path(resolve_checkpoint(checkpoint)).rglob("*") if file.is_file())
    in_short = family_of(model, checkpoint).in_short(config)
    steps.say(f"{checkpoint}: {in_short}, {parameters / 1e6:.1f} M parameters, {stored / 1e6:.1f} MB on disk")
    steps.say(f"sha256 {sha256}")

    steps.begin("Classify sentences with PyTorch")
    sentences = read_sentences(tokenizer, texts, task, data_dir, split, limit, *sentence_lengths(config))
    predictions = _predict(model, sentences)
    steps.show(_prediction_table(sentences.texts, predictions))

    steps.begin("Export to NIR")
    graph = to_nir(model, metadata={"checkpoint_sha256": sha256})
    write_nir(graph_file, graph)
    graph = read_nir(graph_file)
    network = parse_graph(graph)
    marked = sum(1 for node in graph.nodes.values() if not node.metadata.get("standard", True))
    steps.say(
        f"{graph_file}: {graph_file.stat().st_size / 1e6:.1f} MB, {len(graph.nodes)} nodes "
        f"({len(graph.nodes) - marked} standard NIR, {marked} marked composites), "
        f"{len(network.spiking_nodes)} spiking; read back and checked"
    )

    if not keep_graph:
        steps.say("a temporary file; -o FILE keeps it")

    steps.begin(f"Run the NIR file on Lava, one process per {in_lava['granularity']}, and compare every spike")
    try:
        import_lava()
    except MissingDependencyError as error:
        steps.say(f"[bold yellow]stopped here[/]: {error}")
        raise
    counter, lengths = OperationCounter(network), list[int]()

    def count(trace: Trace) -> None:
        counter.update(trace)
        lengths.extend(int(tokens) for tokens in trace.mask.sum(-1))

    with Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=messages
    ) as progress:
        bar = progress.add_task("sentences on PyTorch and Lava", total=len(sentences))
        found = verify_graph(
            model,
            graph,
            sentences,
            "lava",
            "float64",
            on_batch=lambda done: progress.advance(bar, done),
            on_trace=count,
            **in_lava,
        )
    comparison = found.comparison
    steps.show(comparison_table(comparison, "torch", "lava"))

    steps.begin("Count what fired on Lava, and estimate its energy beside BERT's")
    counts = counter.result()
    baselines = [BASELINES[DEFAULT_BASELINE], QuantizedTwin(network, config.time_steps)]
    energies = [compare_energy(counts, other, lengths, name) for name in DEMO_ENERGY_MODELS for other in baselines]
    steps.show(energy_table("Estimated energy of a sentence", energies).to_rich())
    steps.say("All of them, their bases and what they leave out: spikebert energy default --text …")

    steps.begin("Verdict")
    labels_agree = [label for label, _ in predictions] == [_label(config, row) for row in found.logits]
    steps.say(verdict(comparison, "torch", "lava", "float64", sentences.texts))
    steps.say(f"{found.processes} Lava processes; {found.stock}")
    steps.say(
        f"predictions from Lava's logits: {'the same' if labels_agree else 'NOT the same'} for all {len(sentences)} "
        f"sentences; whole demo {time.perf_counter() - started:.0f} s"
    )
    if as_json:
        print_json(
            {
                **found.to_dict(),
                "predictions": [
                    {"text": text, "label": label, "probability": probability}
                    for text, (label, probability) in zip(sentences.texts, predictions, strict=True)
                ],
                "predictions_agree": labels_agree,
                "parameters": parameters,
                "checkpoint_bytes": stored,
                "nir_bytes": graph_file.stat().st_size,
                "granularity": in_lava["granularity"],
                "energy": [comparison.to_dict() for comparison in energies],
                **run_record(seed, sha256),
            }
        )
    if not (comparison.equal and labels_agree):
        raise SystemExit(EXIT_ANSWER_IS_NO)


class _Steps:
    """Numbered headings and what is said below them; silent for ``--json``."""

    def __init__(self, quiet: bool) -> None:
        self.console = messages if quiet else results
        self.number = 0

    def begin(self, title: str) -> None:
        self.number += 1
        self.console.print(f"\n[bold]{self.number}. {title}[/]")

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        from rich.padding import Padding

        self.console.print(Padding(table, (0, 0, 0, 2)))


def _predict(model, sentences):  # type: ignore[no-untyped-def]
    """Return label and probability of each sentence, in float32 as a user would run it."""
    import torch

    found = []
    with torch.no_grad():
        for batch in sentences.batches():
            logits = model(torch.from_numpy(batch.inputs), torch.from_numpy(batch.mask)).logits
            for row, probabilities in zip(logits.numpy(), logits.softmax(-1), strict=True):
                found.append((_label(model.config, row), float(probabilities.max())))
    return found


def _label(config, logits):  # type: ignore[no-untyped-def]
    return str(config.id2label[int(logits.argmax())])


def _prediction_table(texts: list[str], predictions: list[tuple[str, float]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sentence")
    table.add_column("prediction")
    table.add_column("probability", justify="right")
    for text, (label, probability) in zip(texts, predictions, strict=True):
        table.add_row(escape(text), escape(label), f"{100 * probability:.0f} %")
    return table

"""``python benchmarks/energy.py``: Tables 2 and 5 of SpikeBERT rebuilt, and what a critical reader asks beside them.

It runs a checkpoint over every data set that is there (over sentences of its own where none is) and SpikeBERT-base over
256 tokens with random weights, counts what fires, prices it under every energy model beside dense baselines, puts the
paper's printed figures and the paper's formula next to that, and writes
``results/energy.{csv,json,md,png,html}``. Every energy is an estimate.

    python benchmarks/energy.py
    python benchmarks/energy.py --data-dir DATA --limit 200 --output results
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
from energy_counts import Measurement, Variation
from energy_results import EnergyResults
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from export import parse_graph, to_nir
from export.network import Network
from hardware.energy import OperationCounter, OperationCounts
from hardware.energy.published import MAX_TOKENS
from hardware.reports.files import write_csv_rows, write_json_object, write_whole
from hardware.reports.pictures import picture_bytes
from hardware.runners import open_runner
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
from spikebert.cli.application import DEFAULT_SEED, data_directory, messages
from spikebert.cli.demo import DEMO_SENTENCES
from spikebert.cli.inputs import Sentences, read_sentences
from spikebert.errors import SpikeBertError
from spikebert.provenance import run_record, seed_everything

DATA_SETS = ("sst2", "mr", "subj", "sst5", "chnsenti", "waimai")
"""The data sets of Table 2, the one the shipped checkpoint was trained on first."""
CHINESE = ("chnsenti", "waimai")
SPLIT = "dev"
DEFAULT_LIMIT = 64
"""Sentences of each data set; with these the run ends in about two minutes on two cores."""
BASE_VOCABULARY = 28996
"""Of BERT-base, cased, from which random token ids are drawn."""
TIME_STEPS_TRIED = (1, 2, 4, 8, 16)
LENGTHS_TRIED = (8, 16, 32, 64, 128)
SENTENCES_OF_SENSITIVITY = 8
WIDTH = 100
"""Columns of the printed tables where they do not go to a terminal."""


@click.command()
@click.option("--checkpoint", default="default", show_default=True, help="Folder, the word default, or a hub name.")
@click.option(
    "--also",
    "others",
    multiple=True,
    default=("default-loihi",),
    show_default=True,
    help="Further checkpoints, each a row of the paper's table on each data set.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with TASK/dev.tsv  [default: SPIKEBERT_DATA, else sentences of its own].",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True, help="Sentences of each data set."
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True)
@click.option("--seed", type=int, default=DEFAULT_SEED, show_default=True, help="Seed of random weights and tokens.")
@click.option("--base/--no-base", default=True, help="Whether to run SpikeBERT-base too (16 s, 3 GB).")
def main(
    checkpoint: str, others: tuple[str, ...], data_dir: Path | None, limit: int, output: Path, seed: int, base: bool
) -> None:
    """Rebuild the paper's energy tables beside our own counts, and write results/energy.{csv,json,md,png,html}.

    \b
    Example:
      python benchmarks/energy.py --data-dir DATA --limit 200
    """
    try:
        found = measure(checkpoint, others, data_directory(data_dir), limit, seed, base)
        output.mkdir(parents=True, exist_ok=True)
        for path in write(found, output):
            messages.print(f"wrote {path}", markup=False, soft_wrap=True)
    except SpikeBertError as error:
        raise click.UsageError(str(error)) from error
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for table in found.tables:
        console.print(table.to_rich())
        console.print()
    for line in found.verdicts:
        console.print(f"* {line}", markup=False)


def measure(
    checkpoint: str, others: tuple[str, ...], data_dir: Path | None, limit: int, seed: int, base: bool
) -> EnergyResults:
    """Run and count everything, and put the results together."""
    started = time.perf_counter()
    seed_everything(seed)
    others = tuple(name for name in dict.fromkeys(others) if name != checkpoint)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    network = parse_graph(to_nir(model))
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=messages
    ) as progress:
        measured, sources = _measure_checkpoint(checkpoint, model, network, tokenizer, data_dir, limit, progress)
        beside: list[Measurement] = []
        for name in others:
            other, words = load_model(name), load_tokenizer(name)
            found_there, _ = _measure_checkpoint(
                name, other, parse_graph(to_nir(other)), words, data_dir, limit, progress
            )
            beside += found_there
        example = sources[0][1]
        variations = [
            *_vary_time_steps(network, example, progress),
            *_vary_length(model, network, example, progress),
        ]
        if base:
            bar = progress.add_task(f"SpikeBERT-base, {MAX_TOKENS} random tokens", total=1)
            measured.append(_measure_base(seed))
            progress.advance(bar)
        bar = progress.add_task("baselines, counted by torch and fvcore", total=None)
        record = {
            **run_record(seed, checkpoint_sha256(checkpoint)),
            "checkpoint": checkpoint,
            "other_checkpoints": {name: checkpoint_sha256(name) for name in others},
            "data": str(data_dir) if data_dir else "shipped sentences",
            "limit": limit,
            "runner": "torch, float32",
        }
        found = EnergyResults(measured, variations, record, beside)
        _ = found.baseline_counts
        progress.update(bar, total=1, completed=1)
    found.record["seconds"] = round(time.perf_counter() - started, 1)
    return found


def _measure_checkpoint(
    name: str, model: Any, network: Network, tokenizer: Any, data_dir: Path | None, limit: int, progress: Progress
) -> tuple[list[Measurement], list[tuple[str, Sentences]]]:
    """Count a checkpoint on each data set; return the sentences too."""
    title = f"{name} checkpoint, {_size(model.config)}"
    sources = list(_sentence_sources(tokenizer, data_dir, limit, model.config.max_position_embeddings))
    bar = progress.add_task(f"sentences, {name}", total=sum(len(sentences) for _, sentences in sources))
    measured = []
    for data_set, sentences in sources:
        counts, lengths = count_sentences(model, network, sentences, lambda done: progress.advance(bar, done))
        remark = _remark(data_set, sentences, tokenizer.unk_token_id)
        measured.append(Measurement(title, data_set, network, counts, lengths, remark))
    return measured, sources


def count_sentences(
    model: Any, network: Network, sentences: Sentences, on_batch: Callable[[int], None] | None = None
) -> tuple[OperationCounts, list[int]]:
    """Run sentences through a torch model in float32 and count what it does.

    Parameters
    ----------
    model : nn.Module
    network : Network
        Its graph.
    sentences : Sentences
    on_batch : callable, optional
        Told how many sentences were done.

    Returns
    -------
    counts : OperationCounts
    lengths : list of int
        Real tokens of each sentence.
    """
    counter, lengths = OperationCounter(network), []
    with open_runner(model, "torch", "float32") as runner:
        for batch in sentences.batches():
            # a model may attend to padding; it is no real token for that
            counter.update(runner.run(batch.inputs, batch.mask), batch.mask)
            lengths += [int(tokens) for tokens in batch.mask.sum(-1)]
            if on_batch is not None:
                on_batch(len(batch.texts))
    return counter.result(), lengths


def write(found: EnergyResults, folder: Path) -> list[Path]:
    """Write the five files, each whole or not at all."""
    return [
        write_csv_rows(folder / "energy.csv", found.csv_rows()),
        write_json_object(folder / "energy.json", found.to_dict()),
        write_whole(folder / "energy.md", found.to_markdown()),
        write_whole(folder / "energy.png", picture_bytes(found.picture)),
        write_whole(folder / "energy.html", found.to_html()),
    ]


def _sentence_sources(
    tokenizer: Any, data_dir: Path | None, limit: int, max_tokens: int
) -> Iterable[tuple[str, Sentences]]:
    """Yield each data set that is there, or sentences of our own."""
    there = [name for name in DATA_SETS if data_dir and (data_dir / name / f"{SPLIT}.tsv").is_file()]
    for name in there:
        yield name, read_sentences(tokenizer, (), name, data_dir, SPLIT, limit, max_tokens)
    if not there:
        if data_dir:
            messages.print(f"{data_dir} has none of {', '.join(DATA_SETS)}; running shipped sentences", markup=False)
        yield "shipped", read_sentences(tokenizer, DEMO_SENTENCES[:limit], None, None, SPLIT, None, max_tokens)


def _remark(data_set: str, sentences: Sentences, unknown: int | None) -> str:
    """Say what the reader must know about sentences that the checkpoint was not trained for."""
    if data_set in ("sst2", "shipped"):
        return ""
    if data_set not in CHINESE:
        return "run for its energy only: the checkpoint was trained on SST-2"
    tokens = [token for row in sentences.token_ids for token in row]
    share = sum(token == unknown for token in tokens) / len(tokens)
    return (
        f"run for its energy only: {share:.0%} of its tokens are unknown to this English vocabulary, so its length is "
        "right and its spikes are not representative"
    )


def _vary_time_steps(network: Network, sentences: Sentences, progress: Progress) -> Iterable[Variation]:
    """Yield counts and lengths of a few sentences at other numbers of time steps."""
    first = slice(SENTENCES_OF_SENSITIVITY)
    few = Sentences(sentences.texts[first], sentences.token_ids[first], sentences.pad_token_id)
    (batch,) = few.batches(len(few))
    lengths = [int(tokens) for tokens in batch.mask.sum(-1)]
    for steps in progress.track(TIME_STEPS_TRIED, description="other time steps"):
        counter = OperationCounter(network)
        with open_runner(network, "reference", "float32", time_steps=steps) as runner:
            counter.update(runner.run(batch.inputs, batch.mask))
        yield Variation("time steps", steps, counter.result(), lengths)


def _vary_length(model: Any, network: Network, sentences: Sentences, progress: Progress) -> Iterable[Variation]:
    """Yield counts and lengths of texts cut and joined to other lengths, first and last token as in any sentence."""
    first, last = sentences.token_ids[0][0], sentences.token_ids[0][-1]
    words = np.concatenate([row[1:-1] for row in sentences.token_ids]).tolist()
    for tokens in progress.track(LENGTHS_TRIED, description="other lengths"):
        if tokens > model.config.max_position_embeddings:
            continue
        inner = tokens - 2
        repeated = words * (2 * inner // len(words) + 1)
        rows = [[first, *repeated[start : start + inner], last] for start in (0, inner)]
        joined = Sentences([f"{tokens} tokens"] * len(rows), rows, sentences.pad_token_id)
        yield Variation("tokens", tokens, *count_sentences(model, network, joined))


def _measure_base(seed: int) -> Measurement:
    """Run SpikeBERT-base, random weights and random tokens, at the paper's length and time steps.

    Nothing is scaled to make it fire: a layer norm with gain 1 stands in front of every neuron but those of the
    embedding and of attention, so that its current has unit variance against a threshold of 1.
    """
    seed_everything(seed)
    model = SpikeBertForSequenceClassification(SpikeBertConfig(vocab_size=BASE_VOCABULARY)).eval()
    network = parse_graph(to_nir(model))
    ids = np.random.default_rng(seed).integers(1, BASE_VOCABULARY, MAX_TOKENS).tolist()
    counts, lengths = count_sentences(model, network, Sentences(["random tokens"], [ids]))
    return Measurement(
        f"SpikeBERT-base, {_size(model.config)}, random weights",
        "random tokens",
        network,
        counts,
        lengths,
        f"SpikeBERT-base over {MAX_TOKENS} random tokens, random weights as initialised, nothing scaled: layer norms "
        "of gain 1 keep neurons from falling silent. It shows the paper's size and length, not a trained network's "
        "firing",
        is_paper_size=True,
    )


def _size(config: Any) -> str:
    return f"{config.num_hidden_layers} x {config.hidden_size}, T = {config.time_steps}"


if __name__ == "__main__":
    main()

"""``spikebert check``: does a sentence's result depend on something it must not?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hardware.choices import PRECISIONS, REFERENCE
from spikebert.cli.application import (
    EXIT_ANSWER_IS_NO,
    common_options,
    messages,
    print_json,
    results,
)
from spikebert.cli.grammar import Command
from spikebert.cli.inputs import Sentences, most_positions, read_sentences, sentence_options
from spikebert.cli.runners import RunnerName
from spikebert.errors import ConfigurationError

OWN_SENTENCES = ("A warm and quietly funny film .", "Dull .", "It never finds its feet , but the leads are a joy .")
MOST_SENTENCES = 16
"""The checks run every sentence several times, alone and together."""


@click.command(cls=Command)
@click.argument("checkpoint")
@click.option(
    "--runner", type=RunnerName(), default=REFERENCE, show_default=True, help="Runner to ask: torch, reference, lava, …"
)
@click.option(
    "--graph", "graph_file", type=click.Path(path_type=Path), help="Run this NIR file in place of CHECKPOINT's."
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="float64", show_default=True, help="Of the run.")
@click.option("--check", "names", multiple=True, help="Only these: batch, padding, order, repeat, reset, prefix.")
@sentence_options
@common_options
def check(
    checkpoint: str,
    runner: str,
    graph_file: Path | None,
    precision: str,
    names: tuple[str, ...],
    texts: tuple[str, ...],
    task: str | None,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run sentences of CHECKPOINT in ways that must give the same spikes: alone and in a batch, padded and bare, twice.

    Finds state that leaks from batch to batch, padding that counts, results that depend on their neighbours. Exits with
    0 if nothing matters that must not, with 1 if something does. Without --text or --task it runs sentences of its own.

    \b
    Examples:
      spikebert check default
      spikebert check default --runner lava:network --text "A warm film ." "Dull ."
      spikebert check default --runner torch --precision float32 --check batch padding
    """
    from export import parse_graph, read_nir, to_nir
    from hardware.checks import EXTRA_PADDING, check_hidden_state
    from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
    from spikebert.cli.pairs import Side
    from spikebert.families import family_of
    from spikebert.provenance import run_record, seed_everything

    side = Side.parse(runner)
    seed_everything(seed)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    longest = model.config.max_position_embeddings
    asked = texts or (() if task else OWN_SENTENCES)
    sentences = read_sentences(
        tokenizer, asked, task, data_dir, split, limit or (MOST_SENTENCES if task else None), longest
    )
    if len(sentences) > MOST_SENTENCES:
        raise ConfigurationError(f"{len(sentences)} sentences are more than the checks run; --limit {MOST_SENTENCES}")
    network = parse_graph(to_nir(model) if graph_file is None else read_nir(graph_file))
    (batch,) = sentences.batches(len(sentences))
    room = sentences.longest + EXTRA_PADDING
    side = side.with_options(tokens=room if longest is None else min(room, longest))

    def open_runner(time_steps: int | None) -> Any:
        if time_steps is None:
            return side.open(model, network, precision)
        if side.runner == "torch":
            return side.open(family_of(model, checkpoint).with_time_steps(model, time_steps), network, precision)
        return side.open(model, network, precision, time_steps=time_steps)

    found = check_hidden_state(
        open_runner,
        batch.inputs,
        batch.mask,
        model.config.time_steps,
        network,
        most_positions(model.config),
        names or None,
        lambda name: messages.print(f"check {name} …"),
    )
    passed = all(result.passed is not False for result in found)
    if as_json:
        print_json(
            {
                "passed": passed,
                "checks": [result.to_dict() for result in found],
                "runner": runner,
                "precision": precision,
                "sentences": len(sentences),
                **run_record(seed, checkpoint_sha256(checkpoint)),
            }
        )
    else:
        _print(found, sentences, runner, precision)
    if not passed:
        raise SystemExit(EXIT_ANSWER_IS_NO)


def _print(found: list[Any], sentences: Sentences, runner: str, precision: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("check", "what must not matter", "spikes compared", "different", ""):
        table.add_column(title, justify="right" if title in ("spikes compared", "different") else "left")
    for result in found:
        compared = "" if result.comparison is None else f"{result.comparison.spikes_compared:,}"
        different = "" if result.comparison is None else f"{result.comparison.spikes_different:,}"
        answer = {True: "[green]passed[/]", False: "[bold red]FAILED[/]", None: "not asked"}[result.passed]
        if result.passed and not result.comparison.equal:
            answer = "[yellow]rounding[/]"
        table.add_row(result.name, result.meaning, compared, different, answer)
    results.print(table)
    results.print()
    failed = [result for result in found if result.passed is False]
    for result in found:
        if result.passed is None:
            results.print(f"{result.name}: not asked: {result.reason}", markup=False, soft_wrap=True)
    for result in failed:
        results.print(
            f"{result.name}: first divergence: {result.comparison.first_divergence}", markup=False, soft_wrap=True
        )
    scope = f"{runner} at {precision}, {len(sentences)} sentences"
    if failed:
        names = ", ".join(result.name for result in failed)
        results.print(f"[bold red]FAILED[/] {scope}: the result depends on what it must not ({names})", soft_wrap=True)
    else:
        results.print(f"[bold green]PASSED[/] {scope}: nothing matters that must not", soft_wrap=True)

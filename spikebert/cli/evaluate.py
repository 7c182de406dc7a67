"""``spikebert evaluate``: the score of a checkpoint on a task."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import Progress

from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
from spikebert.cli.application import common_options, data_directory, messages, print_json, results
from spikebert.data import SPLITS, TASKS, TokenizedExamples, find_task, load_examples
from spikebert.evaluation import check_task_fits, predict
from spikebert.provenance import run_record, seed_everything


@click.command()
@click.argument("checkpoint")
@click.option("--task", "task_name", required=True, type=click.Choice(list(TASKS)), help="What to evaluate on.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with TASK/SPLIT.tsv [default: SPIKEBERT_DATA, else the hub].",
)
@click.option("--split", type=click.Choice(SPLITS), default="dev", show_default=True, help="Which part of it.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N examples.")
@common_options
def evaluate(
    checkpoint: str,
    task_name: str,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Score CHECKPOINT (a folder, the word default, or a hub name) on a task.

    \b
    Example:
      spikebert evaluate default --task sst2 --data-dir DATA
    """
    seed_everything(seed)
    task = find_task(task_name)
    model = load_model(checkpoint)
    check_task_fits(model, task)
    examples = TokenizedExamples(
        load_examples(task, split, data_directory(data_dir))[:limit],
        task,
        load_tokenizer(checkpoint),
        model.config.max_position_embeddings,
    )
    with Progress(console=messages) as progress:
        bar = progress.add_task(f"{task.name} {split}", total=len(examples))
        logits = predict(model, examples, on_batch=lambda sentences: progress.advance(bar, sentences))
    value = task.score(logits, examples.labels.numpy())
    if as_json:
        print_json(
            {
                "task": task.name,
                "split": split,
                "metric": task.metric,
                "value": value,
                "examples": len(examples),
                **run_record(seed, checkpoint_sha256(checkpoint)),
            }
        )
        return
    results.print(f"{checkpoint} on {task.name} {split}: {task.metric} {value:.4f} over {len(examples)} examples")

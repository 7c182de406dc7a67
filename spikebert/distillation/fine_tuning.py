"""Fine-tuning the teacher: stage 2 learns from a BERT that knows the task, so one that does not learns it first."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from spikebert.checkpoint import CONFIGURATION_FILE, writing_directory
from spikebert.data import Example, TokenizedExamples
from spikebert.distillation.model_card import RECORD_FILE
from spikebert.distillation.settings import TEACHER_SETTINGS, TrainingSettings
from spikebert.distillation.student import label_names
from spikebert.distillation.task_trainer import TaskTrainer
from spikebert.distillation.teacher import load_teacher_with_head, weights_sha256
from spikebert.distillation.teacher_outputs import texts_sha256
from spikebert.distillation.training import Callback, Record, make_accelerator
from spikebert.errors import ConfigurationError
from spikebert.evaluation import evaluate
from spikebert.provenance import run_record, seed_everything
from spikebert.tasks import Task


def fine_tuned_teacher(
    name: str,
    task: Task,
    train: list[Example],
    dev: list[Example],
    folder: Path,
    settings: TrainingSettings = TEACHER_SETTINGS,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
) -> tuple[PreTrainedModel, Tokenizer, Record]:
    """Return a teacher that knows the task: as it is, from `folder`, or fine-tuned now and kept there.

    Parameters
    ----------
    name : str
        Folder, hub name or package of a BERT, pre-trained or fine-tuned on the task.
    task, train, dev
        What it learns from, and what its best epoch is chosen on.
    folder : Path
        A Hugging Face folder with the record in ``training.json``; used again where it is there and was made from the
        same teacher and text.
    settings : TrainingSettings
        How.
    on_step, on_evaluation : callable, optional
        See `Trainer.train`.

    Returns
    -------
    model, tokenizer, record
        In evaluation mode; `record` has ``name``, ``dev`` (the teacher's own score) and how it came to be.

    Raises
    ------
    ConfigurationError
        `folder` holds another teacher.
    """
    accelerator = make_accelerator()
    seed_everything(settings.seed)  # the head is drawn
    model, tokenizer, knows_the_task = load_teacher_with_head(name, task)
    dev_set = TokenizedExamples(dev, task, tokenizer, settings.max_length)
    if knows_the_task:
        model.to(accelerator.device)
        return model, tokenizer, {"name": name, "dev": evaluate(model, task, dev_set), "fine_tuned": None}
    identity = {"base_sha256": weights_sha256(model.base_model), "task": task.name, "texts": texts_sha256(train)}
    if (folder / CONFIGURATION_FILE).is_file():
        record = _checked_record(folder, identity, name)
        model, tokenizer, _ = load_teacher_with_head(str(folder), task)
        return model.to(accelerator.device), tokenizer, record
    model.config.id2label = label_names(task)
    model.config.label2id = {label: index for index, label in model.config.id2label.items()}
    train_set = TokenizedExamples(train, task, tokenizer, settings.max_length)
    trainer = TaskTrainer(model, task, train_set, dev_set, settings, accelerator=accelerator)
    result = trainer.train(on_step, on_evaluation)
    record = {
        "name": name,
        "dev": max(result.dev_values),
        "fine_tuned": {**identity, "settings": asdict(settings), "evaluations": result.evaluations},
        **run_record(settings.seed),
    }
    if accelerator.is_main_process:
        with writing_directory(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    accelerator.wait_for_everyone()
    return model, tokenizer, record


def _checked_record(folder: Path, identity: Record, name: str) -> Record:
    remedy = "delete it, or name another folder with --fine-tuned-teacher"
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        found = record["fine_tuned"]
        different = [key for key in identity if found[key] != identity[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{folder} holds a model that was not fine-tuned here; give it as --teacher, or {remedy}"
        ) from error
    if different:
        raise ConfigurationError(
            f"{folder} holds a teacher made from {record['name']} on {found['task']}, and {name} on "
            f"{identity['task']} is asked for (different: {', '.join(different)}); {remedy}"
        )
    return record

"""Stage 2: a student learns a task, the best epoch is chosen on dev, and everything needed to repeat it is kept.

`TaskTrainer` is the loop; a stage with more losses overrides `TaskTrainer.loss_terms` and adds its terms there.
`distill_task` is the whole road from a teacher's name to a checkpoint with its record and model card.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikebert.checkpoint import (
    checkpoint_sha256,
    load_model,
    load_tokenizer,
    refuse_foreign_directory,
    write_checkpoint_files,
    writing_directory,
)
from spikebert.configuration import SpikeBertConfig
from spikebert.data import Batch, Task, TokenizedExamples, load_examples
from spikebert.distillation.model_card import model_card
from spikebert.distillation.student import build_student
from spikebert.distillation.teacher import load_teacher
from spikebert.errors import ConfigurationError
from spikebert.evaluation import check_task_fits, evaluate, firing_rates
from spikebert.modeling import SpikeBertForSequenceClassification
from spikebert.neuron import SpikingNeuron
from spikebert.provenance import run_record, seed_everything

PRECISIONS = ("float32", "bfloat16")
LOG_FILE = "training.jsonl"
LOG_EVERY_STEPS = 10
RECORD_FILE = "training.json"
CARD_FILE = "README.md"

Record = dict[str, Any]
Report = Callable[[Record], None]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Parameters
    ----------
    epochs, batch_size : int
        Passes over the training set, and sentences a step.
    learning_rate : float
        Peak, reached after `warmup_share` of all steps, falling linearly to 0 at the last.
    weight_decay : float
        Of matrices; norms, biases and embeddings have none.
    max_gradient_norm : float
        Gradients of everything but the word embeddings are clipped to it together.
    max_length : int
        Longest sentence in tokens while training.
    precision : {"float32", "bfloat16"}
        Of matrix products while training; membrane potentials and dev scores are always float32.
    compile_neurons : bool
        Compile the neurons' loop over time: half the time a step, after seconds of compiling; needs a C++ compiler.
    seed : int
        Of initial weights and of the order of sentences.

    Raises
    ------
    ConfigurationError
        A value is not allowed.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    max_gradient_norm: float = 1.0
    max_length: int = 128
    precision: str = "bfloat16"
    compile_neurons: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "max_gradient_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be a positive number")
        if not 0 <= self.warmup_share < 1:
            raise ConfigurationError(f"warmup_share is {self.warmup_share}; it must lie in [0, 1)")
        if not self.weight_decay >= 0:
            raise ConfigurationError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")


@dataclass
class TrainingResult:
    """What a training came to.

    Attributes
    ----------
    best_epoch : int
        Counted from 1; the model holds the weights it ended with.
    dev_values : list of float
        The task's metric on dev after each epoch.
    losses : list of float
        Mean loss of each epoch.
    """

    best_epoch: int = 0
    dev_values: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class TaskTrainer:
    """Trains a classifier on a task.

    Parameters
    ----------
    model : SpikeBertForSequenceClassification
        Changed in place.
    task : Task
        Gives the metric.
    train, dev : TokenizedExamples
        What it learns from, and what the best epoch is chosen on.
    settings : TrainingSettings
        How.
    """

    def __init__(
        self,
        model: SpikeBertForSequenceClassification,
        task: Task,
        train: TokenizedExamples,
        dev: TokenizedExamples,
        settings: TrainingSettings,
    ) -> None:
        check_task_fits(model, task)
        self.model = model
        self.task = task
        self.train_examples = train
        self.dev_examples = dev
        self.settings = settings
        self.word_embeddings = model.spikebert.embeddings.word_embeddings
        self.steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
        if settings.compile_neurons:
            for module in model.modules():
                if isinstance(module, SpikingNeuron):
                    module.compile_recurrence()
        self.optimizers = self._optimizers()
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._rate_at) for o in self.optimizers]

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss by name, weighted; their sum is what is minimised."""
        output = self.model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
        return {"task": output.loss}

    def train(self, on_step: Report | None = None, on_epoch: Report | None = None) -> TrainingResult:
        """Train, and leave the weights of the best epoch on dev in the model.

        Parameters
        ----------
        on_step, on_epoch : callable, optional
            Receive a record after every step (``step``, ``steps``, ``epoch``, ``loss``, one ``loss_NAME`` for each term
            where there are several, ``learning_rate``, ``sentences_per_second``) and every epoch (``epoch``, ``loss``,
            ``dev``).
        """
        generator = np.random.default_rng(self.settings.seed)
        result = TrainingResult()
        best_weights: dict[str, Tensor] = {}
        step = 0
        for epoch in range(1, self.settings.epochs + 1):
            self.model.train()
            losses = []
            for batch in self.train_examples.batches(self.settings.batch_size, generator):
                began = time.perf_counter()
                terms = self._step(batch)
                losses.append(math.fsum(terms.values()))
                step += 1
                if on_step is not None:
                    record: Record = {"step": step, "steps": self.steps, "epoch": epoch, "loss": losses[-1]}
                    if len(terms) > 1:
                        record.update({f"loss_{name}": value for name, value in terms.items()})
                    record["learning_rate"] = self.schedules[0].get_last_lr()[0]
                    record["sentences_per_second"] = len(batch.indices) / (time.perf_counter() - began)
                    on_step(record)
            result.losses.append(float(np.mean(losses)))
            with torch.compiler.set_stance("force_eager"):  # what is chosen on dev is what users will run
                result.dev_values.append(evaluate(self.model, self.task, self.dev_examples))
            if max(result.dev_values) > max(result.dev_values[:-1], default=-math.inf):
                result.best_epoch = epoch
                best_weights = copy.deepcopy(self.model.state_dict())
            if on_epoch is not None:
                on_epoch({"epoch": epoch, "loss": result.losses[-1], "dev": result.dev_values[-1]})
        self.model.load_state_dict(best_weights)
        self.model.eval()
        return result

    def _step(self, batch: Batch) -> dict[str, float]:
        half = self.settings.precision == "bfloat16"
        with torch.autocast(self.model.device.type, torch.bfloat16) if half else nullcontext():
            terms = self.loss_terms(batch)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(
            [p for group in self.optimizers[0].param_groups for p in group["params"]], self.settings.max_gradient_norm
        )
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        # A batch uses some hundred of the 30,000 words: sparse gradients leave the other rows, and most of the
        # optimizer's time, alone.
        self.word_embeddings.sparse = True
        dense = [p for p in self.model.parameters() if p is not self.word_embeddings.weight]
        rate = self.settings.learning_rate
        return [
            torch.optim.AdamW(
                [
                    {"params": [p for p in dense if p.ndim > 1], "weight_decay": self.settings.weight_decay},
                    {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=rate,
            ),
            torch.optim.SparseAdam([self.word_embeddings.weight], lr=rate),
        ]

    def _rate_at(self, step: int) -> float:
        warmup = max(1.0, self.settings.warmup_share * self.steps)
        return min(1.0, (step + 1) / warmup) * (self.steps - step) / self.steps


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
    on_step: Report | None = None,
    on_epoch: Report | None = None,
) -> Record:
    """Train a student on a task and write its checkpoint, record, log and model card.

    Parameters
    ----------
    teacher : str
        Folder, hub name or package of a BERT.
    task, data_directory, train_file
        See `spikebert.data.load_examples`.
    output : Path
        The checkpoint's folder. While training, the log lies beside it as ``OUTPUT.training.jsonl``.
    settings : TrainingSettings
        How to train.
    student : str or Path, optional
        Checkpoint to start from; without one, a student is made from the teacher.
    student_configuration : dict, optional
        Fields of `SpikeBertConfig` for a student made from the teacher.
    prune : bool
        Whether such a student drops tokens outside the Latin script.
    on_step, on_epoch : callable, optional
        See `TaskTrainer.train`.

    Returns
    -------
    dict
        What is written to ``training.json``.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    output = Path(output).absolute()
    refuse_foreign_directory(output)  # now, not after an hour of training
    train_set = load_examples(task, "train", data_directory, train_file)
    dev_set = load_examples(task, "dev", data_directory)
    seed_everything(settings.seed)
    if student is None:
        model, tokenizer = build_student(
            *load_teacher(teacher),
            task,
            prune,
            max_position_embeddings=settings.max_length,
            **(student_configuration or {}),
        )
    else:
        loaded = load_model(student)
        if not isinstance(loaded, SpikeBertForSequenceClassification):
            raise ConfigurationError(f"the student {student} is a {type(loaded).__name__}; a SpikeBERT is needed")
        model, tokenizer = loaded, load_tokenizer(student)
    train = TokenizedExamples(train_set, task, tokenizer, settings.max_length)
    dev = TokenizedExamples(dev_set, task, tokenizer, settings.max_length)
    trainer = TaskTrainer(model, task, train, dev, settings)

    log_path = output.with_name(f"{output.name}.{LOG_FILE}")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", encoding="utf-8", buffering=1) as log:

        def logged(report: Report | None) -> Report:
            def write(record: Record) -> None:
                if record.get("step", 0) % LOG_EVERY_STEPS == 0:  # and every epoch
                    log.write(json.dumps(record) + "\n")
                if report is not None:
                    report(record)

            return write

        result = trainer.train(logged(on_step), logged(on_epoch))

    with writing_directory(output) as folder:
        write_checkpoint_files(model, tokenizer, folder)
        stored = load_model(folder)  # rounded to half precision: these weights, not the trained ones, are the model
        record = {
            "task": task.name,
            "metric": task.metric,
            "dev": evaluate(stored, task, dev),
            "dev_by_epoch": result.dev_values,
            "best_epoch": result.best_epoch,
            "loss_by_epoch": result.losses,
            "examples": {"train": len(train), "dev": len(dev)},
            "train_file": train_file or "train.tsv",
            "teacher": teacher,
            "student": None if student is None else str(student),
            "settings": asdict(settings),
            "parameters": sum(p.numel() for p in model.parameters()),
            "firing_rates": firing_rates(stored, dev),
            "minutes": (time.perf_counter() - began) / 60,
            "cpu_minutes": (time.process_time() - cpu_began) / 60,
            "threads": torch.get_num_threads(),
            "device": str(model.device),
            **run_record(settings.seed, checkpoint_sha256(folder)),
        }
        (folder / LOG_FILE).write_text(log_path.read_text(encoding="utf-8"), encoding="utf-8")
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        card = model_card(record, SpikeBertConfig.from_pretrained(folder))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    log_path.unlink()
    return record

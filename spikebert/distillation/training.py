"""The training loop of every stage: optimizers, schedule, precision, processes, evaluation, and exact resumption.

`Trainer` knows nothing of tasks or corpora: a stage says what its batches are (`Trainer.plan`, `Trainer.collate`), what
it minimises (`Trainer.loss_terms`) and how it is scored (`Trainer.score`). Devices and processes are accelerate's, so
the same command runs on a CPU, on a GPU, or on many through ``accelerate launch``.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from spikebert.distillation.settings import TrainingSettings
from spikebert.errors import CheckpointError, DataError, MissingDependencyError
from spikebert.files import written_whole
from spikebert.neuron import SpikingNeuron

CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 8, 64  # what the first statistics of norms are taken from

Record = dict[str, Any]
Callback = Callable[[Record], None]


@dataclass
class TrainingResult:
    """What a training came to.

    Attributes
    ----------
    evaluations : list of dict
        ``step``, ``epoch``, mean ``loss`` since the one before, and ``dev`` (None where there is nothing to score).
    best_epoch, best_step : int
        Counted from 1, where dev was best; the model ends with the weights it had then.
    """

    evaluations: list[Record] = field(default_factory=list)
    best_epoch: int = 0
    best_step: int = 0

    @property
    def dev_values(self) -> list[float]:
        """The task's metric at each evaluation."""
        return [evaluation["dev"] for evaluation in self.evaluations]

    @property
    def losses(self) -> list[float]:
        """Mean loss up to each evaluation since the one before."""
        return [evaluation["loss"] for evaluation in self.evaluations]


@dataclass(frozen=True)
class StateFile:
    """Where the state of a training is kept, so that a killed one can go on.

    Attributes
    ----------
    path : Path
        One file, written whole, gone when training ends well.
    every : int
        Steps between two writings.
    resume : bool
        Go on from the file if it is there; otherwise begin anew.
    identity : dict
        What must be equal for that (settings, data, teacher …), compared as stored.
    """

    path: Path
    every: int
    resume: bool = False
    identity: Record = field(default_factory=dict)


@dataclass(frozen=True)
class Callbacks:
    """Who is told how it goes.

    Parameters
    ----------
    on_step, on_evaluation : callable, optional
        Of the student's training, see `Trainer.train`.
    on_teacher_step, on_teacher_evaluation : callable, optional
        Of the teacher's.
    on_labelling : callable, optional
        Told how many texts the teacher has read, and of how many.
    """

    on_step: Callback | None = None
    on_evaluation: Callback | None = None
    on_teacher_step: Callback | None = None
    on_teacher_evaluation: Callback | None = None
    on_labelling: Callable[[int, int], None] | None = None


def make_accelerator() -> Any:
    """Return accelerate's ``Accelerator``: the device and processes this run has, autocasting left to the trainer.

    Raises
    ------
    MissingDependencyError
        accelerate is not installed.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingDependencyError("training needs the package accelerate (pip install accelerate)") from error
    # a batch of unlabelled text alone touches no feature transform; DDP must be told to expect that
    return Accelerator(
        mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )


class Trainer:
    """A training loop; a stage fills in `plan`, `collate`, `loss_terms` and, where there is one, `score`.

    Parameters
    ----------
    model : nn.Module
        Changed in place; what is averaged, scored and kept.
    settings : TrainingSettings
        How.
    steps : int or callable
        How many updates in all; a callable is told how many batches an update takes, over all processes.
    transforms : nn.Module, optional
        Further weights that learn, such as the feature transforms of distillation, and are dropped at the end.
    accelerator : accelerate.Accelerator, optional
        Device and processes; made here by default.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainingSettings,
        steps: int | Callable[[int], int],
        transforms: nn.Module | None = None,
        accelerator: Any = None,
    ) -> None:
        self.accelerator = make_accelerator() if accelerator is None else accelerator
        self.settings = settings
        self.batches_a_step = self.accelerator.num_processes * settings.accumulate
        self.steps = steps if isinstance(steps, int) else steps(self.batches_a_step)
        self.model = model.to(self.accelerator.device)
        self.transforms = (transforms or nn.Module()).to(self.accelerator.device)
        self.word_tables = _word_tables(model)
        if settings.compile_neurons:
            for module in model.modules():
                if isinstance(module, SpikingNeuron):
                    module.compile_recurrence()
        self.optimizers = self._optimizers()
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._rate_at) for o in self.optimizers]
        self.average = None
        if settings.average_decay:
            self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        self.forward = self.accelerator.prepare(_Forward(self))

    def plan(self, epoch: int) -> Iterable[Any]:
        """Yield what each batch of an epoch (from 1) will be made of; cheap, and the same whenever it is called."""
        raise NotImplementedError

    def collate(self, planned: Any) -> Any:
        """Make the batch: anything that has ``indices``, one for each sentence, and ``to(device)``."""
        raise NotImplementedError

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Return the terms of the loss by name, weighted; their sum is what is minimised."""
        raise NotImplementedError

    def score(self, model: Any) -> float | None:
        """Return how good the model is on dev, or None where there is nothing to choose by."""
        return None

    def train(
        self,
        on_step: Callback | None = None,
        on_evaluation: Callback | None = None,
        state_file: StateFile | None = None,
    ) -> TrainingResult:
        """Train, and leave the best weights on dev in the model (the last, where nothing is scored).

        Parameters
        ----------
        on_step, on_evaluation : callable, optional
            Receive a record after every step (``step``, ``steps``, ``epoch``, ``loss``, one ``loss_NAME`` for each term
            where there are several, ``learning_rate``, ``sentences_per_second``) and every evaluation (``step``,
            ``epoch``, ``loss``, ``dev``), in the main process.
        state_file : StateFile, optional
            Keep the state there, and go on from it if it says so. What a resumed training ends with is what an
            uninterrupted one does, bit for bit, on the same machine with as many threads and processes.

        Raises
        ------
        CheckpointError
            The state to resume from is damaged or of another training.
        DataError
            An epoch is empty, as one over a data set of the hub may turn out to be.
        """
        self.progress = _Progress()
        if state_file is not None and state_file.resume and state_file.path.exists():
            self._load_state(state_file)
        progress = self.progress
        while progress.step < self.steps and not progress.stopped:
            for group in self._groups(progress.epoch, progress.batch_groups):
                self.model.train()
                began = time.perf_counter()
                terms, sentences = self._step(group)
                progress.step += 1
                progress.batch_groups += 1
                progress.losses.append(math.fsum(terms.values()))
                if on_step is not None and self.accelerator.is_main_process:
                    record: Record = {"step": progress.step, "steps": self.steps, "epoch": progress.epoch}
                    record["loss"] = progress.losses[-1]
                    if len(terms) > 1:
                        record.update({f"loss_{name}": value for name, value in terms.items()})
                    record["learning_rate"] = self.schedules[0].get_last_lr()[0]
                    record["sentences_per_second"] = sentences / (time.perf_counter() - began)
                    on_step(record)
                every = self.settings.evaluate_every
                if progress.step == self.steps or (every and progress.step % every == 0):
                    self._evaluate(on_evaluation)
                if state_file is not None and progress.step % state_file.every == 0:
                    self._save_state(state_file)
                if progress.step == self.steps or progress.stopped:
                    break
            else:
                if not progress.batch_groups:
                    raise DataError("there is no text to learn from: an epoch over it has no batch")
                if not self.settings.evaluate_every and progress.losses:
                    self._evaluate(on_evaluation)
                progress.epoch += 1
                progress.batch_groups = 0
        if progress.best_weights is not None:
            self.model.load_state_dict(progress.best_weights)
        elif self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()
        return progress.result

    def step_to_resume_from(self, file: StateFile) -> int:
        """Return the step that `train` would go on from with this state file, 0 where it would begin."""
        if not (file.resume and file.path.exists()):
            return 0
        return self._read_state(file)["progress"]["step"]

    def _groups(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        """Yield what this process makes each step of; every process gets as many batches."""
        processes, size = self.accelerator.num_processes, self.batches_a_step
        planned = iter(self.plan(epoch))
        next(itertools.islice(planned, skip * size, skip * size), None)  # skipped without being made
        while group := list(itertools.islice(planned, size)):
            missing = -len(group) % processes
            group += list(itertools.islice(itertools.cycle(group), missing))
            yield group[self.accelerator.process_index :: processes]

    def _step(self, group: list[Any]) -> tuple[dict[str, float], int]:
        half = self.settings.precision == "bfloat16"
        sums: dict[str, Tensor] = {}
        sentences = 0
        for position, planned in enumerate(group):
            batch = self.collate(planned).to(self.accelerator.device)
            sentences += len(batch.indices) * self.accelerator.num_processes
            last = position == len(group) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.forward):
                with torch.autocast(self.accelerator.device.type, torch.bfloat16) if half else nullcontext():
                    terms = self.forward(batch)
                self.accelerator.backward(torch.stack(list(terms.values())).sum() / len(group))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach() / len(group)
        for table in self.word_tables:
            if not table.sparse and table.weight.grad is not None:
                table.weight.grad = table.weight.grad.to_sparse(1)
        nn.utils.clip_grad_norm_(
            [p for group in self.optimizers[0].param_groups for p in group["params"]], self.settings.max_gradient_norm
        )
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.accelerator.num_processes > 1:
            sums = {name: self.accelerator.reduce(value, "mean") for name, value in sums.items()}
        return {name: float(value) for name, value in sums.items()}, sentences

    def _evaluate(self, on_evaluation: Callback | None) -> None:
        progress = self.progress
        scored = self.model if self.average is None else self.average.module
        value: float | None = None
        if self.accelerator.is_main_process:
            with torch.compiler.set_stance("force_eager"):  # what is chosen on dev is what users will run
                value = self.score(scored)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            value = broadcast_object_list([value])[0]
        evaluation = {
            "step": progress.step,
            "epoch": progress.epoch,
            "loss": float(np.mean(progress.losses)),
            "dev": value,
        }
        progress.losses = []
        result = progress.result
        result.evaluations.append(evaluation)
        if value is not None:
            before = max((v for v in result.dev_values[:-1] if v is not None), default=-math.inf)
            if value > before:
                result.best_epoch, result.best_step = progress.epoch, progress.step
                progress.best_weights = copy.deepcopy(scored.state_dict())
                progress.without_best = 0
            else:
                progress.without_best += 1
            progress.stopped = progress.without_best == self.settings.patience
        if on_evaluation is not None and self.accelerator.is_main_process:
            on_evaluation(evaluation)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        # A batch uses some hundred of the 30,000 words: sparse gradients leave the other rows, and most of the
        # optimizer's time, alone. Several processes average dense gradients, made sparse before the step.
        for table in self.word_tables:
            table.sparse = self.accelerator.num_processes == 1
        words = {table.weight for table in self.word_tables}
        learning = [p for p in (*self.model.parameters(), *self.transforms.parameters()) if p.requires_grad]
        dense = [p for p in learning if p not in words]
        rate = self.settings.learning_rate
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": [p for p in dense if p.ndim > 1], "weight_decay": self.settings.weight_decay},
                    {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=rate,
            )
        ]
        learning_words = [table.weight for table in self.word_tables if table.weight.requires_grad]
        if learning_words:
            optimizers.append(torch.optim.SparseAdam(learning_words, lr=rate))
        return optimizers

    def _rate_at(self, step: int) -> float:
        warmup = max(1.0, self.settings.warmup_share * self.steps)
        return min(1.0, (step + 1) / warmup) * (self.steps - step) / self.steps

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, number: Tensor | int) -> None:
        count = int(number)
        decay = min(self.settings.average_decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(list(averages), list(weights), 1 - decay)

    def _save_state(self, file: StateFile) -> None:
        from accelerate.utils import gather_object

        generators = gather_object([_generator_states()])  # one of each process
        if not self.accelerator.is_main_process:
            return
        state = {
            "identity": file.identity,
            "settings": asdict(self.settings),
            "steps": self.steps,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "transforms": self.transforms.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "generators": generators,
        }
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file.path) as partial:
            torch.save(state, partial)

    def _read_state(self, file: StateFile) -> Record:
        """Return what the file holds, refusing what is damaged or of another training."""
        try:
            state = torch.load(file.path, map_location="cpu", weights_only=False)
            found = {**state["identity"], **state["settings"], "steps": state["steps"]}
            found["processes"] = len(state["generators"])
        except Exception as error:  # pickle raises anything
            raise CheckpointError(f"{file.path} cannot be read ({error}); delete it to begin anew") from error
        wanted = {
            **file.identity,
            **asdict(self.settings),
            "steps": self.steps,
            "processes": self.accelerator.num_processes,
        }
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if different:
            raise CheckpointError(
                f"{file.path} is the state of another training: "
                + ", ".join(f"{key} was {found.get(key)!r} and is {wanted.get(key)!r}" for key in different[:3])
                + "; give the same command, or delete the file to begin anew"
            )
        return state

    def _load_state(self, file: StateFile) -> None:
        state = self._read_state(file)
        progress = state["progress"]
        progress["result"] = TrainingResult(**progress["result"])
        self.progress = _Progress(**progress)
        self.model.load_state_dict(state["model"])
        self.transforms.load_state_dict(state["transforms"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        _set_generator_states(state["generators"][self.accelerator.process_index])


def _word_tables(model: Any) -> list[nn.Embedding]:
    """Return the embeddings that have a row for every word, of which a batch reads few."""
    words = model.get_input_embeddings()
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return [table for table in tables if table.num_embeddings == words.num_embeddings]


class _Forward(nn.Module):
    """What is wrapped for several processes: all that learns, and the loss as the forward pass."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model, self.transforms = trainer.model, trainer.transforms
        self.loss_terms = lambda batch: trainer.loss_terms(batch)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.loss_terms(batch)


@dataclass
class _Progress:
    """Where a training stands; `batch_groups` counts the steps of the current epoch."""

    step: int = 0
    epoch: int = 1
    batch_groups: int = 0
    losses: list[float] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = None
    without_best: int = 0
    stopped: bool = False
    result: TrainingResult = field(default_factory=TrainingResult)


def _generator_states() -> Record:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  libraries below us draw from the global generator
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_generator_states(states: Record) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])

"""Learning a task: the trainer of stage 2, and of the teacher before it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from spikebert.data import ExampleBatch, TokenizedExamples, bucketed_indices
from spikebert.distillation.losses import FeatureTransforms, alignment_losses, label_loss, logits_loss
from spikebert.distillation.settings import LABEL_ONLY, LossWeights, TrainingSettings
from spikebert.distillation.teacher_outputs import TeacherOutputs
from spikebert.distillation.training import Trainer
from spikebert.evaluation import check_task_fits, evaluate
from spikebert.families import family_of
from spikebert.tasks import Task


@dataclass
class TeacherSignals:
    """What the teacher says of the training set, row by row.

    Attributes
    ----------
    logits : Tensor
        ``(n, C)``.
    features : TeacherOutputs, optional
        Its features of the first rows.
    aligned : Tensor
        ``(n,)`` bool, the rows whose features can be compared with the student's: both have the same tokens.
    """

    logits: Tensor
    features: TeacherOutputs | None
    aligned: Tensor


def rows_with_equal_tokens(
    student_ids: list[list[int]], student: Tokenizer, teacher_ids: list[list[int]], teacher: Tokenizer
) -> Tensor:
    """Return ``(n,)`` bool, whether both tokenizers cut a text into the same tokens; a smaller vocabulary may not."""
    teacher_id_of = teacher.get_vocab()
    tokens = student.convert_ids_to_tokens(list(range(len(student))))
    translated = np.array([teacher_id_of.get(token, -1) for token in tokens])
    return torch.tensor(
        [
            len(ours) == len(theirs) and bool((translated[ours] == theirs).all())
            for ours, theirs in zip(student_ids, teacher_ids, strict=True)
        ]
    )


class TaskTrainer(Trainer):
    """Trains a classifier on a task, from labels and from what a teacher says.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place.
    task : Task
        Gives the metric.
    train, dev : TokenizedExamples
        What it learns from, and what its best weights are chosen on.
    settings : TrainingSettings
        How.
    weights : LossWeights
        Of the losses; labels alone by default.
    signals : TeacherSignals, optional
        Needed by the losses that look at a teacher.
    transforms : FeatureTransforms, optional
        Needed by those that look inside it.
    accelerator : accelerate.Accelerator, optional
        See `Trainer`.
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        train: TokenizedExamples,
        dev: TokenizedExamples,
        settings: TrainingSettings,
        weights: LossWeights = LABEL_ONLY,
        signals: TeacherSignals | None = None,
        transforms: FeatureTransforms | None = None,
        accelerator: Any = None,
    ) -> None:
        check_task_fits(model, task)
        self.task = task
        self.train_examples = train
        self.dev_examples = dev
        self.weights = weights
        self.signals = signals
        batches = math.ceil(len(train) / settings.batch_size)
        super().__init__(model, settings, lambda size: settings.steps(batches, size), transforms, accelerator)

    def plan(self, epoch: int) -> Iterable[np.ndarray]:
        """Return the rows of each batch of an epoch."""
        generator = np.random.default_rng([self.settings.seed, epoch])
        return bucketed_indices(self.train_examples.lengths, self.settings.batch_size, generator)

    def collate(self, planned: np.ndarray) -> ExampleBatch:
        """Return the batch of some rows."""
        return self.train_examples.batch(planned)

    def score(self, model: Any) -> float:
        """Return the task's metric on dev."""
        return evaluate(model, self.task, self.dev_examples)

    def loss_terms(self, batch: ExampleBatch) -> dict[str, Tensor]:
        """Return the weighted terms of Eq. 8, each a mean over the batch: rows it does not apply to count as 0."""
        weights, signals = self.weights, self.signals
        inside = signals is not None and signals.features is not None and weights.needs_features
        output = self.model(**batch.inputs, output_hidden_states=inside)
        terms = {}
        if weights.label:
            labelled = batch.labelled
            term = output.logits.sum() * 0  # nothing here has a label; a term all the same, so that logs are even
            if bool(labelled.any()):
                term = label_loss(output.logits[labelled], batch.labels[labelled]) * labelled.float().mean()
            terms["label"] = weights.label * term
        if weights.logits:
            assert signals is not None
            wanted = signals.logits[batch.indices].to(output.logits.device)
            terms["logits"] = weights.logits * logits_loss(
                output.logits, wanted, weights.logits_loss, weights.temperature
            )
        if inside:
            assert signals is not None
            assert signals.features is not None
            assert isinstance(self.transforms, FeatureTransforms)
            rows = signals.aligned[batch.indices]
            features = embedding = output.logits.sum() * 0
            if bool(rows.any()):
                device = output.logits.device
                wanted = signals.features.features_of(batch.indices[rows].tolist(), batch.input_ids.shape[1])
                on_device = rows.to(device)
                losses = alignment_losses(
                    self.transforms,
                    [each[on_device] for each in family_of(self.model).student_features(output)],
                    wanted.to(device),
                    batch.attention_mask[on_device] != 0,
                )
                features, embedding = (loss * rows.float().mean().to(device) for loss in losses)
            terms["features"] = weights.features * features
            terms["embedding"] = weights.embedding * embedding
        return terms

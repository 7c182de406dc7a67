"""A model's score on a task: the one function that training (to choose on dev) and ``spikebert evaluate`` share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel

from spikebert.data import TokenizedExamples
from spikebert.errors import ConfigurationError
from spikebert.tasks import Task

EVALUATION_BATCH_SIZE = 32


def check_task_fits(model: PreTrainedModel, task: Task) -> None:
    """Refuse a model whose output has another size than the task.

    Raises
    ------
    ConfigurationError
        The numbers of labels differ.
    """
    if model.config.num_labels != task.num_labels:
        raise ConfigurationError(
            f"the checkpoint has {model.config.num_labels} labels and {task.name} needs {task.num_labels}; "
            "choose the task it was trained for"
        )


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    examples: TokenizedExamples,
    batch_size: int = EVALUATION_BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the model's logits ``(n, C)`` in the order of `examples`.

    `on_batch` is told the number of sentences of each batch when it is done. The model is left as it was found,
    in training or evaluation mode.
    """
    was_training = model.training
    model.eval()
    logits = np.empty((len(examples), model.config.num_labels or 1), np.float64)
    for batch in examples.batches(batch_size):
        output = model(**batch.to(model.device).inputs)
        logits[batch.indices.numpy()] = output.logits.double().cpu().numpy()
        if on_batch is not None:
            on_batch(len(batch.indices))
    model.train(was_training)
    return logits


def evaluate(
    model: PreTrainedModel,
    task: Task,
    examples: TokenizedExamples,
    on_batch: Callable[[int], None] | None = None,
) -> float:
    """Return the task's metric of `model` on `examples`.

    Raises
    ------
    ConfigurationError
        The model's number of labels is not the task's.
    """
    check_task_fits(model, task)
    return task.score(predict(model, examples, on_batch=on_batch), examples.labels.numpy())


@torch.no_grad()
def firing_rates(
    model: PreTrainedModel, examples: TokenizedExamples, batch_size: int = EVALUATION_BATCH_SIZE
) -> dict[str, dict[str, float]]:
    """Return how much each spiking node fires on `examples`, padding left out.

    Returns
    -------
    dict
        By node name: ``rate``, spikes per neuron, token and time step; ``silent``, the share of its features that
        never fired.
    """
    model.eval()
    spikes: dict[str, torch.Tensor] = {}
    opportunities: dict[str, int] = {}
    for batch in examples.batches(batch_size):
        output = model(**batch.to(model.device).inputs, output_spikes=True)
        for node, fired in output.spikes.items():
            opportunities[node] = opportunities.get(node, 0) + int(batch.attention_mask.sum()) * fired.shape[0]
            spikes[node] = spikes.get(node, 0) + fired.sum((0, 1, 2), dtype=torch.float64)
    return {
        node: {"rate": float(count.mean()) / opportunities[node], "silent": float((count == 0).double().mean())}
        for node, count in spikes.items()
    }

"""A student: made from its teacher, with the teacher's vocabulary and embeddings, and layers where asked, or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from spikebert.checkpoint import head_parameters, resolve_checkpoint
from spikebert.errors import CheckpointError
from spikebert.families import DEFAULT_MODEL_TYPE, family_named, family_of
from spikebert.tasks import Task
from spikebert.vocabulary import cut_vocabulary, prune_vocabulary

BLOCKS = 2
FEATURES_PER_HEAD = 64  # as in every BERT
MLP_EXPANSION = 4  # section 3.2 of arXiv 2308.15122


def build_student(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    prune: bool = True,
    vocabulary: tuple[Sequence[str], int] | None = None,
    blocks_from_teacher: bool = False,
    model_type: str = DEFAULT_MODEL_TYPE,
    **configuration: Any,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Make an untrained student for a task.

    Parameters
    ----------
    teacher : PreTrainedModel
        A BERT; the student has its hidden size and its embeddings.
    tokenizer : PreTrainedTokenizerBase
        The teacher's.
    task : Task, optional
        Gives the labels; without one the head is transformers' default, to be thrown away.
    prune : bool
        Whether to drop tokens outside the Latin script, see `prune_vocabulary`.
    vocabulary : (texts, size), optional
        Keep the `size` tokens that the texts use most instead, see `cut_vocabulary`.
    blocks_from_teacher : bool
        Whether blocks start with the weights of the teacher's layers.
    model_type : str
        Of the family to make one of.
    **configuration
        Further fields of the family's configuration; without them 2 blocks, a head per 64 features, an MLP 4 times as
        wide, but the teacher's heads and MLP where blocks start as its layers.

    Returns
    -------
    model, tokenizer
        The student in training mode, and its tokenizer.

    Raises
    ------
    ConfigurationError
        There is no such family, its configuration has no such field, or sizes do not fit the teacher's.
    """
    kept = torch.arange(teacher.config.vocab_size)
    if vocabulary is not None:
        tokenizer, kept = cut_vocabulary(tokenizer, *vocabulary)
    elif prune:
        tokenizer, kept = prune_vocabulary(tokenizer)
    hidden_size = teacher.config.hidden_size
    usual = {
        "pad_token_id": tokenizer.pad_token_id,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": max(1, hidden_size // FEATURES_PER_HEAD),
        "intermediate_size": MLP_EXPANSION * hidden_size,
    }
    if blocks_from_teacher:
        usual |= {name: getattr(teacher.config, name) for name in ("num_attention_heads", "intermediate_size")}
    if task is not None:
        configuration["id2label"] = label_names(task)
    family = family_named(model_type)
    model = family.new_classifier(
        vocab_size=len(kept),
        hidden_size=hidden_size,
        **{name: value for name, value in usual.items() if name in family.fields - set(configuration)},
        **configuration,
    ).train()
    family.start_from_teacher(model, teacher, kept, blocks_from_teacher)
    return model, tokenizer


def label_names(task: Task) -> dict[int, str]:
    """Return the names of a task's outputs by their index."""
    return dict(enumerate(task.labels or ("value",)))


def load_student(checkpoint: str | Path, task: Task) -> PreTrainedModel:
    """Load a student to train further; one without a head, or with another task's, is given a new one.

    Raises
    ------
    CheckpointError, ConfigurationError
        It cannot be read, or is of no family that can be trained here.
    """
    source = resolve_checkpoint(checkpoint)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source,
            id2label=label_names(task),
            label2id={label: index for index, label in label_names(task).items()},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the student {checkpoint} cannot be loaded: {error}") from error
    family_of(model, f"the student {checkpoint}")
    unfit = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]]
    unfit = [str(key) for key in unfit if (key if isinstance(key, str) else key[0]) not in head_parameters(model)]
    if unfit:
        raise CheckpointError(f"the weights of {checkpoint} do not fit its config.json: {', '.join(unfit[:3])}")
    return model

"""A student made from its teacher: a SpikeBERT whose embeddings, and vocabulary, are the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spikebert.configuration import SpikeBertConfig
from spikebert.data import Task
from spikebert.errors import ConfigurationError
from spikebert.modeling import SpikeBertForSequenceClassification
from spikebert.vocabulary import cut_vocabulary, prune_vocabulary

BLOCKS = 2
FEATURES_PER_HEAD = 64  # as in every BERT
MLP_EXPANSION = 4  # section 3.2 of arXiv 2308.15122


def build_student(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    prune: bool = True,
    vocabulary: tuple[Sequence[str], int] | None = None,
    **configuration: Any,
) -> tuple[SpikeBertForSequenceClassification, PreTrainedTokenizerBase]:
    """Make an untrained student for a task.

    Parameters
    ----------
    teacher : PreTrainedModel
        A BERT; the student has its hidden size and its embeddings.
    tokenizer : PreTrainedTokenizerBase
        The teacher's.
    task : Task
        Gives the labels.
    prune : bool
        Whether to drop tokens outside the Latin script, see `prune_vocabulary`.
    vocabulary : (texts, size), optional
        Keep the `size` tokens that the texts use most instead, see `cut_vocabulary`.
    **configuration
        Further fields of `SpikeBertConfig`; without them 2 blocks, a head per 64 features, an MLP 4 times as wide.

    Returns
    -------
    model, tokenizer
        The student in training mode, and its tokenizer.
    """
    kept = torch.arange(teacher.config.vocab_size)
    if vocabulary is not None:
        tokenizer, kept = cut_vocabulary(tokenizer, *vocabulary)
    elif prune:
        tokenizer, kept = prune_vocabulary(tokenizer)
    hidden_size = teacher.config.hidden_size
    configuration.setdefault("num_hidden_layers", BLOCKS)
    configuration.setdefault("num_attention_heads", max(1, hidden_size // FEATURES_PER_HEAD))
    configuration.setdefault("intermediate_size", MLP_EXPANSION * hidden_size)
    config = SpikeBertConfig(
        vocab_size=len(kept),
        hidden_size=hidden_size,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(task.labels or ("value",))),
        **configuration,
    )
    model = SpikeBertForSequenceClassification(config).train()
    copy_embeddings(teacher, model, kept)
    return model, tokenizer


@torch.no_grad()
def copy_embeddings(teacher: PreTrainedModel, student: SpikeBertForSequenceClassification, kept: Tensor) -> None:
    """Copy what the student has of the teacher's embeddings: words, positions, layer norm.

    Parameters
    ----------
    teacher : PreTrainedModel
        A BERT of the student's hidden size.
    student : SpikeBertForSequenceClassification
        Changed in place.
    kept : Tensor
        ``(V,)``, the teacher's token id of each of the student's.

    Raises
    ------
    ConfigurationError
        Hidden sizes differ, or the teacher has fewer positions than the student.
    """
    source: Any = teacher.embeddings
    target = student.spikebert.embeddings
    if source.word_embeddings.weight.shape[1] != target.word_embeddings.weight.shape[1]:
        raise ConfigurationError(
            f"the teacher's embeddings have {source.word_embeddings.weight.shape[1]} features and the student's "
            f"{target.word_embeddings.weight.shape[1]}; choose the teacher's hidden_size"
        )
    target.word_embeddings.weight.copy_(source.word_embeddings.weight[kept])
    first_segment = source.token_type_embeddings.weight[0]  # BERT adds it to every token of a single sentence
    if target.position_embeddings is not None:
        positions = target.position_embeddings.weight.shape[0]
        available = source.position_embeddings.weight.shape[0]
        if positions > available:
            raise ConfigurationError(f"the student has {positions} positions and the teacher {available}; take fewer")
        target.position_embeddings.weight.copy_(source.position_embeddings.weight[:positions] + first_segment)
    if target.norm is not None:
        target.norm.weight.copy_(source.LayerNorm.weight)
        target.norm.bias.copy_(source.LayerNorm.bias)

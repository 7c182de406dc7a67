"""Embeddings of a student from those of its teacher, where both have them as a BERT has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikebert.errors import ConfigurationError
from spikebert.norms import GroupedLayerNorm


@torch.no_grad()
def copy_embeddings(teacher: PreTrainedModel, student: PreTrainedModel, kept: Tensor) -> None:
    """Copy what the student has of the teacher's embeddings: words, positions, layer norm.

    Parameters
    ----------
    teacher : PreTrainedModel
        A BERT of the student's hidden size, or one of its kin: DistilBERT (without segments), RoBERTa (whose positions
        begin behind its padding's), or a spiking one.
    student : PreTrainedModel
        With ``embeddings`` that have tables of those names, all but the words optional; changed in place.
    kept : Tensor
        ``(V,)``, the teacher's token id of each of the student's.

    Raises
    ------
    ConfigurationError
        Hidden sizes differ, or the teacher has fewer positions than the student.
    """
    source: Any = teacher.embeddings
    target: Any = student.base_model.embeddings
    if source.word_embeddings.weight.shape[1] != target.word_embeddings.weight.shape[1]:
        raise ConfigurationError(
            f"the teacher's embeddings have {source.word_embeddings.weight.shape[1]} features and the student's "
            f"{target.word_embeddings.weight.shape[1]}; choose the teacher's hidden_size"
        )
    target.word_embeddings.weight.copy_(source.word_embeddings.weight[kept])
    if getattr(target, "position_embeddings", None) is not None:
        table = getattr(source, "position_embeddings", None)
        available = torch.empty(0, student.config.hidden_size)
        if table is not None:
            available = table.weight[0 if table.padding_idx is None else table.padding_idx + 1 :]
        positions = target.position_embeddings.weight.shape[0]
        if positions > len(available):
            raise ConfigurationError(
                f"the student has {positions} positions and the teacher {len(available)}; take fewer"
            )
        target.position_embeddings.weight.copy_(available[:positions])
        if hasattr(source, "token_type_embeddings"):  # BERT adds the first to every token of a single sentence
            target.position_embeddings.weight.add_(source.token_type_embeddings.weight[0])
    norm = getattr(source, "LayerNorm", getattr(source, "norm", None))
    if isinstance(getattr(target, "norm", None), GroupedLayerNorm) and isinstance(
        norm, nn.LayerNorm | GroupedLayerNorm
    ):
        target.norm.weight.copy_(norm.weight)
        target.norm.bias.copy_(norm.bias)

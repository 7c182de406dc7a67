"""A student made from its teacher: a SpikeBERT with the teacher's vocabulary and embeddings, and blocks where asked."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from spikebert.checkpoint import resolve_checkpoint
from spikebert.choices import NO_ATTENTION
from spikebert.configuration import SpikeBertConfig
from spikebert.distillation.losses import aligned_layers
from spikebert.distillation.settings import CHANGEABLE
from spikebert.errors import CheckpointError, ConfigurationError
from spikebert.modeling import SpikeBertForSequenceClassification
from spikebert.neuron import SpikingNeuron
from spikebert.norms import GroupedLayerNorm, change_norms
from spikebert.tasks import Task
from spikebert.vocabulary import cut_vocabulary, prune_vocabulary

BLOCKS = 2
FEATURES_PER_HEAD = 64  # as in every BERT
MLP_EXPANSION = 4  # section 3.2 of arXiv 2308.15122
ATTENTION_RATE = 0.2  # spikes per neuron and step to begin with, about what the other neurons of a block do


def build_student(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    prune: bool = True,
    vocabulary: tuple[Sequence[str], int] | None = None,
    blocks_from_teacher: bool = False,
    **configuration: Any,
) -> tuple[SpikeBertForSequenceClassification, PreTrainedTokenizerBase]:
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
        Whether blocks start with the weights of the teacher's layers, see `copy_layers`.
    **configuration
        Further fields of `SpikeBertConfig`; without them 2 blocks, a head per 64 features, an MLP 4 times as wide, but
        the teacher's heads and MLP where blocks start as its layers.

    Returns
    -------
    model, tokenizer
        The student in training mode, and its tokenizer.

    Raises
    ------
    ConfigurationError
        See `copy_embeddings` and `copy_layers`.
    """
    kept = torch.arange(teacher.config.vocab_size)
    if vocabulary is not None:
        tokenizer, kept = cut_vocabulary(tokenizer, *vocabulary)
    elif prune:
        tokenizer, kept = prune_vocabulary(tokenizer)
    hidden_size = teacher.config.hidden_size
    configuration.setdefault("num_hidden_layers", BLOCKS)
    if blocks_from_teacher:
        configuration.setdefault("num_attention_heads", teacher.config.num_attention_heads)
        configuration.setdefault("intermediate_size", teacher.config.intermediate_size)
    configuration.setdefault("num_attention_heads", max(1, hidden_size // FEATURES_PER_HEAD))
    configuration.setdefault("intermediate_size", MLP_EXPANSION * hidden_size)
    if task is not None:
        configuration["id2label"] = label_names(task)
    config = SpikeBertConfig(
        vocab_size=len(kept), hidden_size=hidden_size, pad_token_id=tokenizer.pad_token_id, **configuration
    )
    model = SpikeBertForSequenceClassification(config).train()
    copy_embeddings(teacher, model, kept)
    if blocks_from_teacher:
        copy_layers(teacher, model)
    return model, tokenizer


def label_names(task: Task) -> dict[int, str]:
    """Return the names of a task's outputs by their index."""
    return dict(enumerate(task.labels or ("value",)))


def load_student(checkpoint: str | Path, task: Task) -> SpikeBertForSequenceClassification:
    """Load a student to train further; one without a head, or with another task's, is given a new one.

    Raises
    ------
    CheckpointError, ConfigurationError
        It cannot be read, or is no SpikeBERT.
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
    if not isinstance(model, SpikeBertForSequenceClassification):
        raise ConfigurationError(f"the student {checkpoint} is a {type(model).__name__}; a SpikeBERT is needed")
    unfit = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]]
    unfit = [key for key in unfit if "classifier." not in key]
    if unfit:
        raise CheckpointError(f"the weights of {checkpoint} do not fit its config.json: {', '.join(unfit[:3])}")
    return model


@torch.no_grad()
def copy_embeddings(teacher: PreTrainedModel, student: SpikeBertForSequenceClassification, kept: Tensor) -> None:
    """Copy what the student has of the teacher's embeddings: words, positions, layer norm.

    Parameters
    ----------
    teacher : PreTrainedModel
        A BERT of the student's hidden size, or one of its kin: DistilBERT (without segments), RoBERTa (whose positions
        begin behind its padding's), SpikeBERT.
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
    if target.position_embeddings is not None:
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
    if isinstance(target.norm, GroupedLayerNorm) and isinstance(norm, nn.LayerNorm | GroupedLayerNorm):
        target.norm.weight.copy_(norm.weight)
        target.norm.bias.copy_(norm.bias)


@torch.no_grad()
def copy_layers(teacher: PreTrainedModel, student: SpikeBertForSequenceClassification) -> None:
    """Start each block as the layer of the teacher that its features are compared with, see `aligned_layers`.

    Copied are weights and biases of query, key, value, attention's output, and both halves of the MLP. What stands
    between them, norms and neurons, has no counterpart in a BERT and stays as it is; so does a front block for which
    no layer is left.

    Parameters
    ----------
    teacher : PreTrainedModel
        A BERT of the student's hidden size and MLP width. Other numbers of heads are allowed: they cut the same
        features into other groups.
    student : SpikeBertForSequenceClassification
        Changed in place.

    Raises
    ------
    ConfigurationError
        The teacher has no layers where a BERT has them, or another MLP width than the student.
    """
    layers: Any = getattr(getattr(teacher, "encoder", None), "layer", None)
    if layers is None:
        raise ConfigurationError(
            f"the teacher is a {type(teacher).__name__}, whose layers are no BERT's; leave out --blocks-from-teacher"
        )
    widths = teacher.config.intermediate_size, student.config.intermediate_size
    if widths[0] != widths[1]:
        raise ConfigurationError(
            f"the teacher's MLP is {widths[0]} wide and the student's intermediate_size {widths[1]}; "
            "take the teacher's, or leave out --blocks-from-teacher"
        )
    for number, layer_number in aligned_layers(len(student.spikebert.blocks), len(layers)).items():
        block: Any = student.spikebert.blocks[number - 1]
        layer = layers[layer_number - 1]
        asked = layer.attention.self
        for parameter in ("weight", "bias"):
            qkv = torch.cat([getattr(part, parameter) for part in (asked.query, asked.key, asked.value)])
            getattr(block.attention.qkv.affine, parameter).copy_(qkv)
            for projection, dense in (
                (block.attention.projection, layer.attention.output.dense),
                (block.intermediate, layer.intermediate.dense),
                (block.output, layer.output.dense),
            ):
                getattr(projection.affine, parameter).copy_(getattr(dense, parameter))


def change_student(
    model: SpikeBertForSequenceClassification, changes: dict[str, Any], batches: Iterable[dict[str, Tensor]]
) -> SpikeBertForSequenceClassification:
    """Return a student with the same weights and other norms or neurons, see `CHANGEABLE`.

    Parameters
    ----------
    model : SpikeBertForSequenceClassification
        Not changed.
    changes : dict
        Fields of its configuration.
    batches : iterable of dict
        What statistics of new norms are taken from.

    Raises
    ------
    ConfigurationError
        A field would change the shape of a weight, or a value is not allowed.
    """
    unchangeable = sorted(set(changes) - set(CHANGEABLE))
    if unchangeable:
        raise ConfigurationError(
            f"a student that is there can change its {', '.join(CHANGEABLE)}, not its {', '.join(unchangeable)}"
        )
    changes = dict(changes)
    norm = changes.pop("norm", model.config.norm)
    if norm != model.config.norm:
        model = change_norms(model, norm, batches)
    if changes:
        config: Any = copy.deepcopy(model.config)
        config.update(changes)
        changed = SpikeBertForSequenceClassification(config)
        changed.load_state_dict(model.state_dict())
        model = changed
    return model


@torch.no_grad()
def calibrate_attention_threshold(
    model: SpikeBertForSequenceClassification, batches: Iterable[dict[str, Tensor]], rate: float = ATTENTION_RATE
) -> float | None:
    """Set the attention threshold so that the first block's attention neurons neither fall silent nor saturate.

    Without a softmax, what attention says grows with the sentence and with the size of a head; a threshold that suits
    one task leaves another with neurons that never rest. Of all multiples of the attention scale (the product is one of
    them), the one is taken with which the neurons fire closest to `rate`.

    Parameters
    ----------
    model : SpikeBertForSequenceClassification
        Changed in place, configuration included; left in the mode it was in.
    batches : iterable of dict
        What the model is called with.
    rate : float
        Spikes per neuron, real token and step.

    Returns
    -------
    float or None
        The threshold; None, and nothing is changed, where the model has no attention.
    """
    if model.config.attention == NO_ATTENTION:
        return None
    currents: list[tuple[Tensor, Tensor | None]] = []
    blocks: Any = model.spikebert.blocks
    neuron = blocks[0].attention.neuron
    hook = neuron.register_forward_pre_hook(lambda _, given: currents.append(given[:2]))
    was_training = model.training
    model.train()
    try:
        for batch in batches:
            model(**batch)
    finally:
        hook.remove()
        model.train(was_training)

    def rate_at(multiple: int) -> float:
        parameters = replace(model.config.attention_neuron_parameters(), threshold=multiple * scale)
        tried = SpikingNeuron(parameters)
        fired = opportunities = 0.0
        for current, token_mask in currents:
            spikes = tried(current) if token_mask is None else tried(current) * token_mask
            fired += float(spikes.sum())
            tokens = current.shape[1:-1].numel() if token_mask is None else float(token_mask.sum())
            opportunities += tokens * current.shape[0] * current.shape[-1]
        return fired / opportunities

    scale = model.config.attention_scale
    low, high = 1, 2
    while rate_at(high) > rate:
        low, high = high, 2 * high
    while high - low > 1:  # the rate falls as the threshold rises
        middle = (low + high) // 2
        low, high = (middle, high) if rate_at(middle) > rate else (low, middle)
    threshold = scale * min((low, high), key=lambda multiple: abs(rate_at(multiple) - rate))
    model.config.attention_threshold = threshold
    for block in blocks:
        block.attention.neuron.neuron.parameters_of_neuron = model.config.attention_neuron_parameters()
    return threshold

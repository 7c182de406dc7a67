"""What SpikeBERT answers to the questions of the road, see `spikebert.families.family.ModelFamily`."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikebert.choices import LAYER, NO_ATTENTION, NONE, PROJECTED, SPIKING, TABLE
from spikebert.configuration import SpikeBertConfig
from spikebert.errors import ConfigurationError
from spikebert.families.embeddings import copy_embeddings
from spikebert.families.family import Batches, ModelFamily
from spikebert.folding import calibrate_norms, change_norms, fold_norms
from spikebert.modeling import SpikeBertForSequenceClassification, SpikeBertModel
from spikebert.neuron import SpikingNeuron
from spikebert.norms import Norm

ATTENTION_RATE = 0.2  # spikes per neuron and step to begin with, about what the other neurons of a block do


class SpikeBertFamily(ModelFamily):
    """SpikeBERT: spiking attention without a softmax, norms that may fold, a mean over tokens and time as read-out."""

    name = "SpikeBERT"
    paper = "arXiv 2308.15122"
    encoder_class = SpikeBertModel
    classifier_class = SpikeBertForSequenceClassification
    changeable = ("norm", "neuron", "attention_threshold")  # what no weight's shape depends on

    def facts(self, config: SpikeBertConfig) -> dict[str, Any]:
        """Return neuron and attention."""
        return {
            "neuron": f"{config.neuron}: {config.neuron_parameters()}",
            "attention": config.attention,
            "attention_threshold": config.attention_threshold,
        }

    def mixing(self, config: SpikeBertConfig) -> str:
        """Return the heads, where there is attention."""
        return f"{config.num_attention_heads} heads" if config.attention == SPIKING else "no attention"

    def card_text(self, config: SpikeBertConfig, parameters: int, has_head: bool) -> str:
        """Return sizes, neurons and what stands before them."""
        if not has_head:
            return (
                f"A spiking language model ({self.paper}) without a head: {config.num_hidden_layers} encoder blocks,\n"
                f"{config.hidden_size} features, T = {config.time_steps} time steps, {parameters:,} parameters, "
                f"preset\n`{config.neuron}`, norms `{config.norm}`."
            )
        neuron = config.neuron_parameters()
        behind_attention, previous_word = "", ""
        if config.attention == SPIKING:
            behind_attention = f", {config.attention_threshold:g} behind\nattention"
        if config.previous_word != NONE:
            previous_word = f", previous word `{config.previous_word}`"
        return (
            f"A spiking language model ({self.paper}): {config.num_hidden_layers} encoder blocks, "
            f"{config.hidden_size} features,\n"
            f"{self.mixing(config)}, {config.intermediate_size} in the MLP, T = {config.time_steps} time steps,\n"
            f"{parameters:,} parameters, {config.vocab_size:,} tokens. Neurons: preset `{config.neuron}`\n"
            f"(decay {neuron.decay:g}, threshold {neuron.threshold:g}, reset {neuron.reset}){behind_attention}; "
            f"embeddings through `{config.embedding_neuron}`, positions `{config.position_embedding_type}`"
            f"{previous_word}."
        )

    def start_from_teacher(self, student: Any, teacher: PreTrainedModel, kept: Tensor, with_layers: bool) -> None:
        """Take embeddings, and where asked layers, see `copy_layers`."""
        copy_embeddings(teacher, student, kept)
        if with_layers:
            copy_layers(teacher, student)

    def aligned_layers(self, blocks: int, teacher_layers: int, ignored_front_blocks: int = 0) -> dict[int, int]:
        """Take every so many layers, counted from the back, see `aligned_layers`."""
        return aligned_layers(blocks, teacher_layers, ignored_front_blocks)

    def student_features(self, output: Any) -> Sequence[Tensor]:
        """Return what the embedding neuron is given, and the residual stream behind each block summed over time."""
        return [output.embeddings, *(state.sum(0) for state in output.hidden_states[1:])]

    def teacher_features(self, output: Any) -> Sequence[Tensor]:
        """Return the same with means over time in place of sums, which are about as large as a BERT's features."""
        return [output.embeddings, *(state.mean(0) for state in output.hidden_states[1:])]

    def calibrate(self, model: Any, batches: Batches, chosen: Collection[str]) -> None:
        """Set statistics of norms that have any, and with them the attention threshold where it was not chosen."""
        if model.config.norm == LAYER:
            return
        inputs = batches()
        calibrate_norms(model, inputs)
        if "attention_threshold" not in chosen:
            calibrate_attention_threshold(model, inputs)

    def change(self, model: Any, changes: dict[str, Any], batches: Batches) -> Any:
        """Change norms and neurons."""
        self.check_changeable(changes)
        changes = dict(changes)
        norm = changes.pop("norm", model.config.norm)
        if norm != model.config.norm:
            model = change_norms(model, norm, batches())
        if changes:
            config: Any = copy.deepcopy(model.config)
            config.update(changes)
            changed = type(model)(config)
            changed.load_state_dict(model.state_dict())
            model = changed
        return model

    @torch.no_grad()
    def fold(self, model: Any) -> Any:
        """Fold batch and power norms, see `spikebert.folding.fold_norms`.

        The last norm goes into the classifier behind it, since a mean over tokens and an affine layer can change
        places; the embeddings' norm into their tables, its shift into the positions, where there are any. A projection
        of previous words becomes a table.
        """
        if model.config.norm == LAYER:
            raise ConfigurationError(
                "a layer norm depends on the token and cannot be folded into weights; distil the model into one with "
                "batch or power norms first: spikebert distill task --teacher MODEL --student MODEL --norm batch …"
            )
        if model.config.norm == NONE:
            raise ConfigurationError("this model has no norms to fold: its norm is none already")
        config: Any = copy.deepcopy(model.config)
        config.norm, config.embedding_norm = NONE, False
        if config.previous_word == PROJECTED:
            config.previous_word = TABLE
        folded: Any = type(model)(config)
        folded.to(model.device, model.dtype).eval()
        norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Norm))
        weights = {name: w.clone() for name, w in model.state_dict().items() if not name.startswith(norms)}
        if model.config.previous_word == PROJECTED:
            _project_previous_words(weights, config.pad_token_id)
        tables = [f"spikebert.embeddings.{kind}_embeddings" for kind in ("position", "word", "previous_word")]
        fold_norms(
            model,
            weights,
            behind={"spikebert.final_norm": "classifier"},
            tables={"spikebert.embeddings.norm": [table for table in tables if f"{table}.weight" in weights]},
        )
        folded.load_state_dict(weights)
        return folded


def aligned_layers(blocks: int, teacher_layers: int, ignored_front_blocks: int = 0) -> dict[int, int]:
    """Return which layer of the teacher each block is compared with, both counted from 1.

    Every ceil(B / M) layers (section 3.3.1), counted from the back: the last block is compared with the last layer,
    whatever B and M. Front blocks for which no layer is left are compared with nothing, and so are the first
    `ignored_front_blocks`.
    """
    stride = math.ceil(teacher_layers / blocks)
    pairs = {block: teacher_layers - (blocks - block) * stride for block in range(1, blocks + 1)}
    return {block: layer for block, layer in pairs.items() if layer >= 1 and block > ignored_front_blocks}


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


def _project_previous_words(weights: dict[str, Tensor], pad: int) -> None:
    """Put the table of previous words in the place of their projection; nothing stands before the first token."""
    words = weights["spikebert.embeddings.word_embeddings.weight"]
    projection = weights.pop("spikebert.embeddings.previous_word_projection.weight")
    table = (words.double() @ projection.double().T).to(words.dtype)
    table[pad] = 0
    weights["spikebert.embeddings.previous_word_embeddings.weight"] = table

"""SpikeBERT in PyTorch: the language Spikformer of arXiv 2308.15122, section 3.2, as a Hugging Face model.

Activations are ``(T, B, N, D)``: time steps, sentences, tokens, features. Linear layers and norms see T folded into the
batch; only the neurons loop over it. This package owns the node names: what a run records here under
``block00_qkv_neuron`` has that name in the NIR graph and in every runner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from spikebert.choices import PROJECTED, SPIKING, TABLE
from spikebert.configuration import SpikeBertConfig
from spikebert.errors import ConfigurationError
from spikebert.neuron import Heaviside, SpikingNeuron
from spikebert.norms import Norm, make_norm
from spikebert.recording import NamedNeuron, Recording

FINAL_NORM = "final_norm"
TOKEN_MEAN = "token_mean"
CLASSIFIER = "classifier"
EMBEDDING = "embedding"


def block_prefix(index: int) -> str:
    """Return the prefix of every node name in encoder block `index`: ``block00_`` and so on."""
    return f"block{index:02d}_"


@dataclass
class SpikeBertOutput(ModelOutput):
    """What `SpikeBertModel` returns.

    Attributes
    ----------
    pooled_output : Tensor
        Token mean of the normed last layer, ``(T, B, D)``.
    last_hidden_state : Tensor
        Residual stream behind the last block, small integers ``(T, B, N, D)``.
    hidden_states : tuple of Tensor, optional
        Residual stream behind the embedding and behind each block, M + 1 of ``(T, B, N, D)``.
    embeddings : Tensor, optional
        What the embedding neuron is given, ``(B, N, D)``; kept with `hidden_states`.
    spikes, membrane_potentials : dict of str to Tensor, optional
        By node name, ``(T, B, N, D)``.
    """

    pooled_output: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    embeddings: Tensor | None = None
    spikes: dict[str, Tensor] | None = None
    membrane_potentials: dict[str, Tensor] | None = None


@dataclass
class SpikeBertClassifierOutput(ModelOutput):
    """What `SpikeBertForSequenceClassification` returns.

    Attributes
    ----------
    loss : Tensor, optional
        Cross-entropy, or mean squared error with one label; given where labels were.
    logits : Tensor
        ``(B, C)``, the mean of `step_logits` over time.
    step_logits : Tensor
        ``(T, B, C)``, what the classifier says at each time step.
    hidden_states, embeddings, spikes, membrane_potentials
        As in `SpikeBertOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    step_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    embeddings: Tensor | None = None
    spikes: dict[str, Tensor] | None = None
    membrane_potentials: dict[str, Tensor] | None = None


class SpikingProjection(nn.Module):
    """Linear -> norm, where there is one -> spiking neuron, the unit everything in a block is made of."""

    def __init__(
        self, name: str, in_features: int, out_features: int, config: SpikeBertConfig, groups: int = 1
    ) -> None:
        super().__init__()
        self.affine = nn.Linear(in_features, out_features)
        self.norm = make_norm(config.norm, out_features, groups, config.layer_norm_eps)
        self.neuron = NamedNeuron(f"{name}_neuron", _common_neuron(config))

    def forward(self, x: Tensor, token_mask: Tensor | None, recording: Recording) -> Tensor:
        """Turn ``(T, B, N, in_features)`` into spikes ``(T, B, N, out_features)``."""
        current = self.affine(x)
        if self.norm is not None:
            current = self.norm(current, token_mask)
        return self.neuron(current, token_mask, recording)


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention over N x N tokens: Q K^T V times a scale, with no softmax (Eq. 5).

    Padding needs no mask of its own here: its keys and values do not spike, so they add zeros.
    """

    def __init__(self, prefix: str, config: SpikeBertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = config.attention_scale
        width = config.hidden_size
        self.qkv = SpikingProjection(f"{prefix}qkv", width, 3 * width, config, groups=3)
        self.neuron = NamedNeuron(
            f"{prefix}attention_neuron",
            SpikingNeuron(config.attention_neuron_parameters(), config.surrogate, config.surrogate_alpha),
        )
        self.projection = SpikingProjection(f"{prefix}projection", width, width, config)

    def forward(self, x: Tensor, token_mask: Tensor | None, recording: Recording) -> Tensor:
        """Turn the residual stream ``(T, B, N, D)`` into spikes of the same shape."""
        qkv = self.qkv(x, token_mask, recording)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (T, B, H, N, D/H)
        tokens, head_size = query.shape[-2:]
        # Spikes are 0 or 1 and there is no softmax: both orders give the same integers, so take the cheaper one.
        if tokens > head_size:
            product = query @ (key.transpose(-1, -2) @ value)
        else:
            product = (query @ key.transpose(-1, -2)) @ value
        attended = product.mul_(self.scale).transpose(-2, -3).flatten(-2)
        return self.projection(self.neuron(attended, token_mask, recording), token_mask, recording)


class SpikeBertBlock(nn.Module):
    """Encoder block: spiking self-attention where configured, and a spiking MLP, each added to the residual stream."""

    def __init__(self, index: int, config: SpikeBertConfig) -> None:
        super().__init__()
        prefix = block_prefix(index)
        self.attention = SpikingSelfAttention(prefix, config) if config.attention == SPIKING else None
        self.intermediate = SpikingProjection(
            f"{prefix}intermediate", config.hidden_size, config.intermediate_size, config
        )
        self.output = SpikingProjection(f"{prefix}output", config.intermediate_size, config.hidden_size, config)

    def forward(self, x: Tensor, token_mask: Tensor | None, recording: Recording) -> Tensor:
        """Turn the residual stream ``(T, B, N, D)`` into the next."""
        if self.attention is not None:
            x = x + self.attention(x, token_mask, recording)
        return x + self.output(self.intermediate(x, token_mask, recording), token_mask, recording)


class FeatureTransform(nn.Module):
    """Linear -> layer norm: what a block's features over time are turned into to be compared with a teacher's."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__()
        width = config.feature_transform_size or config.hidden_size
        self.affine = nn.Linear(config.hidden_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``(B, N, D)``, already reduced over time, into ``(B, N, width)``."""
        return self.norm(self.affine(features))


class SpikeBertEmbeddings(nn.Module):
    """Word embeddings, with previous words, positions and a norm where configured, turned into spikes."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__()
        self.time_steps = config.time_steps
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.previous_word_projection: nn.Linear | None = None
        self.previous_word_embeddings: nn.Embedding | None = None
        if config.previous_word == PROJECTED:
            self.previous_word_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        elif config.previous_word == TABLE:
            self.previous_word_embeddings = nn.Embedding(
                config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
            )
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.position_embedding_type == "absolute"
            else None
        )
        self.norm = None
        if config.embedding_norm:
            self.norm = make_norm(config.norm, config.hidden_size, 1, config.layer_norm_eps)
        parameters = config.neuron_parameters()
        neuron: SpikingNeuron | Heaviside
        if config.embedding_neuron == "heaviside":
            neuron = Heaviside(parameters.fire_on_equal, config.surrogate, config.surrogate_alpha)
        else:
            neuron = _common_neuron(config)
        self.neuron = NamedNeuron(f"{EMBEDDING}_neuron", neuron)

    def forward(self, input_ids: Tensor, token_mask: Tensor | None, recording: Recording) -> tuple[Tensor, Tensor]:
        """Turn token ids ``(B, N)`` into embeddings ``(B, N, D)`` and their spikes ``(T, B, N, D)``."""
        embedded = self.word_embeddings(input_ids)
        if self.previous_word_projection is not None:
            embedded = embedded + self.previous_word_projection(F.pad(embedded[:, :-1], (0, 0, 1, 0)))
        elif self.previous_word_embeddings is not None:
            nothing: Any = self.previous_word_embeddings.padding_idx
            embedded = embedded + self.previous_word_embeddings(F.pad(input_ids[:, :-1], (1, 0), value=nothing))
        if self.position_embeddings is not None:
            embedded = embedded + self.position_embeddings(torch.arange(input_ids.shape[1], device=input_ids.device))
        if self.norm is not None:
            embedded = self.norm(embedded, token_mask)
        current = embedded.expand(self.time_steps, *embedded.shape)
        return embedded, self.neuron(current, token_mask, recording)


class SpikeBertPreTrainedModel(PreTrainedModel):
    """What both models share: a checked configuration, initial weights, and what a runner asks of them."""

    config_class = SpikeBertConfig
    base_model_prefix = "spikebert"
    spikes_are_bits = True

    @property
    def attends_to_padding(self) -> bool:
        """Whether padding counts as ordinary tokens."""
        return self.config.attend_to_padding

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__(config)
        config.check()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers.initialization leaves alone what a checkpoint has filled already
        from transformers import initialization as init

        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, Norm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, statistic in module.named_buffers():  # those of a standard normal distribution
                (init.zeros_ if name == "running_mean" else init.ones_)(statistic)


class SpikeBertModel(SpikeBertPreTrainedModel):
    """The encoder: embeddings to spikes, M blocks, last norm and token mean."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__(config)
        self.embeddings = SpikeBertEmbeddings(config)
        self.feature_transforms: nn.ModuleList | None = None
        if config.feature_transform_size is not None:  # for distillation; running the model never calls them
            self.feature_transforms = nn.ModuleList(FeatureTransform(config) for _ in range(config.num_hidden_layers))
        self.blocks = nn.ModuleList(SpikeBertBlock(index, config) for index in range(config.num_hidden_layers))
        self.final_norm = make_norm(config.norm, config.hidden_size, 1, config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        assert isinstance(value, nn.Embedding)
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_spikes: bool = False,
        output_membrane_potentials: bool = False,
        keep_spikes: Callable[[Tensor], Tensor] | None = None,
        **unused: Any,
    ) -> SpikeBertOutput:
        """Encode token ids ``(B, N)``; `attention_mask` ``(B, N)`` is 1 at tokens and 0 at padding.

        With `keep_spikes`, each layer's spikes ``(T, B, N, D)`` are kept as it returns them. Whoever makes bytes of
        them lets go of the floats while the model still runs, which is what recording them costs.

        Raises
        ------
        ConfigurationError
            Ids or mask have a wrong shape, an id is outside the vocabulary, or the sentence is too long.
        """
        mask = self._checked_mask(input_ids, attention_mask)
        token_mask = None if mask is None else mask.unsqueeze(-1).to(self.dtype)
        recording = Recording({} if output_spikes else None, {} if output_membrane_potentials else None, keep_spikes)
        embedded, x = self.embeddings(input_ids, token_mask, recording)
        hidden_states = [x] if output_hidden_states else None
        for block in self.blocks:
            x = block(x, token_mask, recording)
            if hidden_states is not None:
                hidden_states.append(x)
        normed = x if self.final_norm is None else self.final_norm(x, token_mask)
        pooled = normed.mean(-2) if token_mask is None else (normed * token_mask).sum(-2) / token_mask.sum(-2)
        return SpikeBertOutput(
            pooled_output=pooled,
            last_hidden_state=x,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            embeddings=embedded if output_hidden_states else None,
            spikes=recording.spikes,
            membrane_potentials=recording.membrane_potentials,
        )

    def _checked_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Return the mask to use, None where every token counts."""
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise ConfigurationError(
                f"input_ids has shape {tuple(input_ids.shape)}; expected (sentences, tokens), none 0"
            )
        if input_ids.dtype not in (torch.int32, torch.int64):
            raise ConfigurationError(f"input_ids has type {input_ids.dtype}; expected whole numbers (int64)")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ConfigurationError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; "
                "they must be equal"
            )
        tokens = input_ids.shape[1]
        if self.embeddings.position_embeddings is not None and tokens > self.config.max_position_embeddings:
            raise ConfigurationError(
                f"{tokens} tokens are more than the {self.config.max_position_embeddings} positions of this model "
                "(max_position_embeddings); truncate the text"
            )
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ConfigurationError(
                f"input_ids span {low} to {high}; this model's vocabulary has ids 0 to {self.config.vocab_size - 1}"
            )
        if attention_mask is None or self.config.attend_to_padding:
            return None
        mask = attention_mask != 0
        if not bool(mask.any(-1).all()):
            raise ConfigurationError("a sentence has no token: its attention_mask is all zeros")
        return None if bool(mask.all()) else mask


class SpikeBertForSequenceClassification(SpikeBertPreTrainedModel):
    """SpikeBERT with the task head of the paper: a linear layer whose logits are averaged over time."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__(config)
        self.spikebert = SpikeBertModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_spikes: bool = False,
        output_membrane_potentials: bool = False,
        keep_spikes: Callable[[Tensor], Tensor] | None = None,
        **unused: Any,
    ) -> SpikeBertClassifierOutput:
        """Classify token ids ``(B, N)``.

        Parameters
        ----------
        input_ids, attention_mask : Tensor
            ``(B, N)``; the mask is 1 at tokens and 0 at padding.
        labels : Tensor, optional
            ``(B,)``, class indices, or values where the model has one label.
        output_hidden_states, output_spikes, output_membrane_potentials : bool
            What to keep, see `SpikeBertOutput`.
        keep_spikes : callable, optional
            What to keep of each layer's spikes, see `SpikeBertModel.forward`.

        Raises
        ------
        ConfigurationError
            As `SpikeBertModel` does, or `labels` has a wrong shape or a class that the model does not have.
        """
        encoded = self.spikebert(
            input_ids,
            attention_mask,
            output_hidden_states=output_hidden_states,
            output_spikes=output_spikes,
            output_membrane_potentials=output_membrane_potentials,
            keep_spikes=keep_spikes,
        )
        step_logits = self.classifier(encoded.pooled_output)
        logits = step_logits.mean(0)
        return SpikeBertClassifierOutput(
            loss=None if labels is None else _loss(logits, labels),
            logits=logits,
            step_logits=step_logits,
            hidden_states=encoded.hidden_states,
            embeddings=encoded.embeddings,
            spikes=encoded.spikes,
            membrane_potentials=encoded.membrane_potentials,
        )


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, or the mean squared error with one label, in float32 at least."""
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:1]:
        raise ConfigurationError(
            f"labels has shape {tuple(labels.shape)}; expected one for each of {len(logits)} sentences"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if classes == 1:
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    if labels.is_floating_point() or not bool((labels < classes).all()):
        raise ConfigurationError(f"labels are {labels.tolist()}; this model has classes 0 to {classes - 1}")
    return F.cross_entropy(logits, labels.long())


def _common_neuron(config: SpikeBertConfig) -> SpikingNeuron:
    return SpikingNeuron(config.neuron_parameters(), config.surrogate, config.surrogate_alpha)


AutoConfig.register("spikebert", SpikeBertConfig, exist_ok=True)
AutoModel.register(SpikeBertConfig, SpikeBertModel, exist_ok=True)
AutoModelForSequenceClassification.register(SpikeBertConfig, SpikeBertForSequenceClassification, exist_ok=True)

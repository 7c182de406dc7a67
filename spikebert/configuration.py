"""Configuration of a SpikeBERT: Hugging Face BERT's names beside this project's own."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from spikebert.choices import (
    ATTENTIONS,
    BATCH,
    EMBEDDING_NEURONS,
    LAYER,
    NONE,
    NORMS,
    POWER,
    PREVIOUS_WORDS,
    SPIKING,
)
from spikebert.errors import ConfigurationError
from spikebert.neuron import NeuronParameters, is_finite, neuron_preset
from spikebert.surrogate import surrogate_gradient

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "time_steps",
)
PAPER_ATTENTION_THRESHOLD = 0.25  # section 4.2
STATISTICS_ATTENTION_THRESHOLD = 2.0  # with norms by statistics nearly every attention neuron would fire at 0.25
POSITION_EMBEDDING_TYPES = ("none", "absolute")


class SpikeBertConfig(PreTrainedConfig):
    """Configuration of `SpikeBertModel` and `SpikeBertForSequenceClassification`.

    The defaults are the paper's SpikeBERT (section 4.2, arXiv 2308.15122) over BERT's uncased English vocabulary.

    Parameters
    ----------
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size : int
        As in Hugging Face's BERT. The published code uses 8 heads; the paper gives no number.
    max_position_embeddings : int
        Longest sentence in tokens, where there are positions; without them a sentence may have any length.
    position_embedding_type : {"none", "absolute"}
        The paper has no positions; "absolute" adds a learned table to the word embeddings.
    previous_word : {"none", "projected", "table"}
        What is added to every token's embedding for the token before it (``pad_token_id`` before the first). The
        paper's has nothing: what it sees of word order is what attention finds. "projected" is a learned linear map of
        that word's embedding, which learns from less text; "table" a second table, which is what folding makes of it.
        Neither adds an operator to a graph: a token's input has one word more hot.
    norm : {"layer", "batch", "power", "none"}
        What stands between every affine layer and its neuron, and before the token mean: the paper's layer norm, or one
        that folds into weights, see ``spikebert.norms``; "none" is what folding leaves.
    layer_norm_eps : float
        Added to the variance (or mean square) in every norm.
    time_steps : int
        T, the number of steps a sentence is shown for.
    neuron : {"paper", "snntorch", "published", "loihi"}
        Preset of every neuron; `beta` (or `tau`, in steps), `threshold`, `reset`, `decay_input`, `fire_on_equal`
        and `initial_membrane_potential` override it where given.
    attention : {"spiking", "none"}
        What mixes the tokens of a block: the paper's Q K^T V, or nothing. Without it a block is its MLP, tokens meet in
        the token mean only, and nothing is left that stock Lava processes cannot compute (see ``docs/lava.md``).
    attention_threshold : float, optional
        Threshold of the neuron behind the attention product; by default the paper's 0.25 with layer norm and without
        any, and 2 with batch or power norm, whose queries, keys and values all fire now and then.
    attention_scale : float
        tau of Eq. 5, which multiplies Q K^T V.
    embedding_neuron : {"heaviside", "lif"}
        How embeddings become spikes: a bare step at 0 (published code), or the common neuron.
    embedding_norm : bool
        Whether a norm stands between the embeddings and their neuron.
    surrogate, surrogate_alpha : str, float
        Surrogate gradient and its sharpness (Eq. 4).
    attend_to_padding : bool
        Treat padding as ordinary tokens, as the published code does; otherwise padding neither spikes, attends nor is
        averaged. How many padding tokens a sentence has is then part of its result, so the commands pad every sentence
        to `max_position_embeddings`.
    feature_transform_size : int, optional
        Width that the feature transform of every block leads to, a teacher's hidden size; None where the model has no
        feature transforms. Distillation trains them, the classifier does not need them.

    Raises
    ------
    ConfigurationError
        A value is not allowed; the message names it.
    """

    model_type = "spikebert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 512,
        position_embedding_type: str = "none",
        previous_word: str = NONE,
        norm: str = LAYER,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        time_steps: int = 4,
        neuron: str = "paper",
        beta: float | None = None,
        tau: float | None = None,
        threshold: float | None = None,
        reset: str | None = None,
        decay_input: bool | None = None,
        fire_on_equal: bool | None = None,
        initial_membrane_potential: float | None = None,
        attention: str = SPIKING,
        attention_threshold: float | None = None,
        attention_scale: float = 0.125,
        embedding_neuron: str = "heaviside",
        embedding_norm: bool = False,
        surrogate: str = "arctangent",
        surrogate_alpha: float = 2.0,
        attend_to_padding: bool = False,
        feature_transform_size: int | None = None,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.position_embedding_type = position_embedding_type
        self.previous_word = previous_word
        self.norm = norm
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.time_steps = time_steps
        self.neuron = neuron
        self.beta = beta
        self.tau = tau
        self.threshold = threshold
        self.reset = reset
        self.decay_input = decay_input
        self.fire_on_equal = fire_on_equal
        self.initial_membrane_potential = initial_membrane_potential
        self.attention = attention
        if attention_threshold is None:
            attention_threshold = (
                STATISTICS_ATTENTION_THRESHOLD if norm in (BATCH, POWER) else PAPER_ATTENTION_THRESHOLD
            )
        self.attention_threshold = attention_threshold
        self.attention_scale = attention_scale
        self.embedding_neuron = embedding_neuron
        self.embedding_norm = embedding_norm
        self.surrogate = surrogate
        self.surrogate_alpha = surrogate_alpha
        self.attend_to_padding = attend_to_padding
        self.feature_transform_size = feature_transform_size
        self.pad_token_id = pad_token_id
        self.check()
        super().__init__(**_labels_both_ways(kwargs))

    def check(self) -> None:
        """Check every value; models do so again, since ``from_pretrained(path, time_steps=8)`` changes them afterwards.

        Raises
        ------
        ConfigurationError
            A value is not allowed; the message names it.
        """
        for key in SIZES if self.feature_transform_size is None else (*SIZES, "feature_transform_size"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{key} is {value!r}; it must be a whole number of at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigurationError(
                f"hidden_size {self.hidden_size} cannot be shared among num_attention_heads "
                f"{self.num_attention_heads}; choose a divisor"
            )
        if self.position_embedding_type not in POSITION_EMBEDDING_TYPES:
            raise ConfigurationError(
                f"position_embedding_type is {self.position_embedding_type!r}; choose one of {POSITION_EMBEDDING_TYPES}"
            )
        if self.previous_word not in PREVIOUS_WORDS:
            raise ConfigurationError(f"previous_word is {self.previous_word!r}; choose one of {PREVIOUS_WORDS}")
        if self.embedding_neuron not in EMBEDDING_NEURONS:
            raise ConfigurationError(
                f"embedding_neuron is {self.embedding_neuron!r}; choose one of {EMBEDDING_NEURONS}"
            )
        if self.attention not in ATTENTIONS:
            raise ConfigurationError(f"attention is {self.attention!r}; choose one of {ATTENTIONS}")
        if self.norm not in NORMS:
            raise ConfigurationError(f"norm is {self.norm!r}; choose one of {NORMS}")
        if self.norm == NONE and self.embedding_norm:
            raise ConfigurationError("embedding_norm is True and norm is 'none'; leave one of them out")
        for key in ("attention_threshold", "attention_scale", "layer_norm_eps"):
            value = getattr(self, key)
            if not (is_finite(value) and value > 0):
                raise ConfigurationError(f"{key} is {value!r}; it must be a positive number")
        if not (is_finite(self.initializer_range) and self.initializer_range >= 0):
            raise ConfigurationError(
                f"initializer_range is {self.initializer_range!r}; it must be a number of 0 or more"
            )
        for key in ("embedding_norm", "attend_to_padding"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigurationError(f"{key} is {getattr(self, key)!r}; it must be True or False")
        pad = self.pad_token_id
        if pad is not None and not (isinstance(pad, int) and 0 <= pad < self.vocab_size):
            raise ConfigurationError(
                f"pad_token_id is {pad!r}; this vocabulary has ids 0 to {self.vocab_size - 1}, None is none"
            )
        if self.previous_word != NONE and pad is None:
            raise ConfigurationError(
                f"previous_word is {self.previous_word!r} and pad_token_id None; say what stands before the first token"
            )
        surrogate_gradient(self.surrogate, self.surrogate_alpha)
        self.neuron_parameters()
        self.attention_neuron_parameters()

    @property
    def padded_length(self) -> int | None:
        """Tokens that every sentence must be padded to; None where padding changes nothing."""
        return self.max_position_embeddings if self.attend_to_padding else None

    def neuron_parameters(self) -> NeuronParameters:
        """Return the parameters of the common neurons."""
        return self._neuron(self.threshold)

    def attention_neuron_parameters(self) -> NeuronParameters:
        """Return the parameters of the neurons behind the attention product."""
        return self._neuron(self.attention_threshold)

    def _neuron(self, threshold: float | None) -> NeuronParameters:
        return neuron_preset(
            self.neuron,
            beta=self.beta,
            tau=self.tau,
            threshold=threshold,
            reset=self.reset,
            decay_input=self.decay_input,
            fire_on_equal=self.fire_on_equal,
            initial_membrane_potential=self.initial_membrane_potential,
        )


def _labels_both_ways(fields: dict[str, Any]) -> dict[str, Any]:
    """Return `fields` with `id2label` and `label2id` each derived from the other where only one is given."""
    by_index, by_label = fields.get("id2label") or {}, fields.get("label2id") or {}
    number = fields.get("num_labels", 1)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigurationError(f"num_labels is {number!r}; it must be a whole number of at least 1")
    if not by_index and not by_label:
        return fields
    if by_index:
        by_index = {int(index): label for index, label in by_index.items()}
    else:
        by_index = {int(index): label for label, index in by_label.items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ConfigurationError(f"id2label is {by_index}; its indices must be 0 to {len(by_index) - 1}, each once")
    derived = {label: index for index, label in by_index.items()}
    if len(derived) != len(by_index) or (by_label and {k: int(v) for k, v in by_label.items()} != derived):
        raise ConfigurationError(f"id2label is {by_index} and label2id {by_label}; one must be the other turned round")
    return {**fields, "id2label": by_index, "label2id": derived}

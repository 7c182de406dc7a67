"""Configuration of a SpikeBERT: Hugging Face BERT's names beside this project's own."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from spikebert.errors import ConfigurationError
from spikebert.neuron import NeuronParameters, neuron_preset
from spikebert.surrogate import surrogate_gradient

EMBEDDING_NEURONS = ("heaviside", "lif")
POSITION_EMBEDDING_TYPES = ("none", "absolute")


class SpikeBertConfig(PreTrainedConfig):
    """Configuration of `SpikeBertModel` and `SpikeBertForSequenceClassification`.

    The defaults are the paper's SpikeBERT (section 4.2, arXiv 2308.15122) over BERT's uncased English vocabulary.

    Parameters
    ----------
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size : int
        As in Hugging Face's BERT. The published code uses 8 heads; the paper gives no number.
    max_position_embeddings : int
        Longest sentence in tokens.
    position_embedding_type : {"none", "absolute"}
        The paper has no positions; "absolute" adds a learned table to the word embeddings.
    layer_norm_eps : float
        Added to the variance in every layer norm.
    time_steps : int
        T, the number of steps a sentence is shown for.
    neuron : {"paper", "snntorch", "published", "loihi"}
        Preset of every neuron; `beta` (or `tau`, in steps), `threshold`, `reset`, `decay_input`, `fire_on_equal`
        and `initial_membrane_potential` override it where given.
    attention_threshold : float
        Threshold of the neuron behind the attention product.
    attention_scale : float
        tau of Eq. 5, which multiplies Q K^T V.
    embedding_neuron : {"heaviside", "lif"}
        How embeddings become spikes: a bare step at 0 (published code), or the common neuron.
    embedding_norm : bool
        Whether a layer norm stands between the embeddings and their neuron.
    surrogate, surrogate_alpha : str, float
        Surrogate gradient and its sharpness (Eq. 4).
    attend_to_padding : bool
        Treat padding as ordinary tokens, as the published code does; otherwise padding neither spikes, attends nor is
        averaged.

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
        attention_threshold: float = 0.25,
        attention_scale: float = 0.125,
        embedding_neuron: str = "heaviside",
        embedding_norm: bool = False,
        surrogate: str = "arctangent",
        surrogate_alpha: float = 2.0,
        attend_to_padding: bool = False,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": max_position_embeddings,
            "time_steps": time_steps,
        }
        for key, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{key} is {value!r}; it must be a whole number of at least 1")
            setattr(self, key, value)
        if hidden_size % num_attention_heads:
            raise ConfigurationError(
                f"hidden_size {hidden_size} cannot be shared among num_attention_heads {num_attention_heads}; "
                "choose a divisor"
            )
        if position_embedding_type not in POSITION_EMBEDDING_TYPES:
            raise ConfigurationError(
                f"position_embedding_type is {position_embedding_type!r}; choose one of {POSITION_EMBEDDING_TYPES}"
            )
        if embedding_neuron not in EMBEDDING_NEURONS:
            raise ConfigurationError(f"embedding_neuron is {embedding_neuron!r}; choose one of {EMBEDDING_NEURONS}")
        surrogate_gradient(surrogate)
        self.position_embedding_type = position_embedding_type
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.neuron = neuron
        self.beta = beta
        self.tau = tau
        self.threshold = threshold
        self.reset = reset
        self.decay_input = decay_input
        self.fire_on_equal = fire_on_equal
        self.initial_membrane_potential = initial_membrane_potential
        self.attention_threshold = attention_threshold
        self.attention_scale = attention_scale
        self.embedding_neuron = embedding_neuron
        self.embedding_norm = embedding_norm
        self.surrogate = surrogate
        self.surrogate_alpha = surrogate_alpha
        self.attend_to_padding = attend_to_padding
        self.pad_token_id = pad_token_id
        self.neuron_parameters()  # a wrong preset or knob is refused here, not in the middle of a model
        self.attention_neuron_parameters()
        if kwargs.get("id2label") and not kwargs.get("label2id"):
            kwargs["label2id"] = {label: int(index) for index, label in kwargs["id2label"].items()}
        super().__init__(**kwargs)

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

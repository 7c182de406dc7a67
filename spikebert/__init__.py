"""Spiking language models in PyTorch: configuration, neurons, models, data, training and the command line.

Names load when first used, so that ``spikebert --help`` and what needs no torch do not wait for it. Importing any of
the model's names also registers it with transformers' Auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikebert.checkpoint import default_checkpoint
    from spikebert.configuration import SpikeBertConfig
    from spikebert.errors import SpikeBertError
    from spikebert.modeling import SpikeBertForSequenceClassification, SpikeBertModel
    from spikebert.neuron import NeuronParameters, SpikingNeuron
    from spikebert.published import load_published

_HOMES = {
    "NeuronParameters": "spikebert.neuron",
    "SpikeBertConfig": "spikebert.configuration",
    "SpikeBertError": "spikebert.errors",
    "SpikeBertForSequenceClassification": "spikebert.modeling",
    "SpikeBertModel": "spikebert.modeling",
    "SpikingNeuron": "spikebert.neuron",
    "default_checkpoint": "spikebert.checkpoint",
    "load_published": "spikebert.published",
}

__all__ = [
    "NeuronParameters",
    "SpikeBertConfig",
    "SpikeBertError",
    "SpikeBertForSequenceClassification",
    "SpikeBertModel",
    "SpikingNeuron",
    "default_checkpoint",
    "load_published",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})

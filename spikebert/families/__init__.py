"""The families of models that the commands, checkpoints and trainings know; another registers itself beside them.

Importing this package registers every family's classes with transformers' Auto classes, so that a checkpoint's
``config.json`` is enough to load it.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from spikebert.errors import ConfigurationError
from spikebert.families.family import ModelFamily
from spikebert.families.spikebert import SpikeBertFamily

DEFAULT_MODEL_TYPE = "spikebert"
"""The ``model_type`` of a student where nobody says."""

_families: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> None:
    """Make a family known, here and to transformers' Auto classes.

    Raises
    ------
    ConfigurationError
        Another family is known by its ``model_type``.
    """
    known = _families.get(family.model_type)
    if known is not None and known.config_class is not family.config_class:
        raise ConfigurationError(f"model_type {family.model_type!r} is {known.name}'s; choose another")
    _families[family.model_type] = family
    AutoConfig.register(family.model_type, family.config_class, exist_ok=True)
    AutoModel.register(family.config_class, family.encoder_class, exist_ok=True)
    AutoModelForSequenceClassification.register(family.config_class, family.classifier_class, exist_ok=True)


def find_family(model_or_config: Any) -> ModelFamily | None:
    """Return the family of a model or configuration; None where it has none, as a BERT."""
    config = getattr(model_or_config, "config", model_or_config)
    return _families.get(getattr(config, "model_type", ""))


def family_of(model_or_config: Any, subject: str = "it") -> ModelFamily:
    """Return the family of a model or configuration, called `subject` where it has none.

    Raises
    ------
    ConfigurationError
        It is of no family that is known here.
    """
    family = find_family(model_or_config)
    if family is None:
        names = " or ".join(known.name for known in _families.values())
        raise ConfigurationError(f"{subject} is a {type(model_or_config).__name__}; a {names} is needed")
    return family


def family_named(model_type: str) -> ModelFamily:
    """Return the family that configurations call `model_type`.

    Raises
    ------
    ConfigurationError
        There is none of that name.
    """
    if model_type not in _families:
        raise ConfigurationError(f"model family {model_type!r} is not known; choose one of {', '.join(_families)}")
    return _families[model_type]


register_family(SpikeBertFamily())

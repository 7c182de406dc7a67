"""Checkpoints on disk: the one shipped with the package, names resolved to folders, models read and written.

A checkpoint is a folder in Hugging Face form: ``config.json``, ``model.safetensors`` and the tokenizer's files.
Weights are stored in half precision and loaded as float32, so the rounded values are the model.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import cached_file, logging

from spikebert.errors import CheckpointError
from spikebert.families import find_family  # registers them with transformers' Auto classes
from spikebert.provenance import file_sha256

DEFAULT_CHECKPOINT = "default"
SHIPPED_CHECKPOINTS = (DEFAULT_CHECKPOINT, "default-loihi")
"""``default-loihi``: norms folded away and hard reset, so that its neurons and synapses are stock ones on Loihi."""
WEIGHTS_FILE = "model.safetensors"
CONFIGURATION_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
SIZES_OF_WEIGHTS = ("vocab_size", "hidden_size", "intermediate_size", "feature_transform_size", "num_labels")
STORED = ("F16", "BF16", "F32", "F64")
"""Types of numbers, in safetensors' words, that a weight may have on disk."""
TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model")
MAX_TEXT_BYTES = 256 << 20
LONGEST_REASON = 400
"""Letters of another library's error that are passed on."""
LOCAL_CODE_ONLY: dict[str, Any] = {"trust_remote_code": False}
"""Without it transformers asks at the terminal whether to run code that a checkpoint names."""


def default_checkpoint() -> Path:
    """Return the folder of the shipped checkpoint ``default``; see `shipped_checkpoint`."""
    return shipped_checkpoint(DEFAULT_CHECKPOINT)


def shipped_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint shipped with the package, one of `SHIPPED_CHECKPOINTS`.

    Raises
    ------
    CheckpointError
        There is no such checkpoint, or the package was installed without it.
    """
    if name not in SHIPPED_CHECKPOINTS:
        raise CheckpointError(f"no checkpoint {name!r} is shipped; choose one of {', '.join(SHIPPED_CHECKPOINTS)}")
    directory = Path(str(resources.files("spikebert.checkpoints"))) / name
    if not (directory / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"the shipped checkpoint is not in {directory}; install the package again")
    return directory


def resolve_checkpoint(name: str | Path) -> str:
    """Return the folder or hub name that `name` means.

    ``default`` and ``default-loihi`` are shipped; what exists is a folder; ``owner/model`` is left to the Hugging Face
    hub.

    Raises
    ------
    CheckpointError
        It is none of these, or a folder that lacks a file of a checkpoint.
    """
    if str(name) in SHIPPED_CHECKPOINTS:
        return str(shipped_checkpoint(str(name)))
    path = Path(name)
    if path.is_dir():
        missing = [file for file in (CONFIGURATION_FILE, WEIGHTS_FILE) if not (path / file).is_file()]
        if missing:
            raise CheckpointError(f"{path} has no {' and no '.join(missing)}; give a folder that save_pretrained wrote")
        return str(path)
    if path.exists():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder with config.json and {WEIGHTS_FILE}")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/")):
        return str(name)
    raise CheckpointError(
        f"there is no checkpoint {str(name)!r}; give a folder, a hub name, or the name of a "
        f"shipped one: {', '.join(SHIPPED_CHECKPOINTS)}"
    )


def load_config(name: str | Path) -> PreTrainedConfig:
    """Read a checkpoint's configuration, and nothing else of it.

    Raises
    ------
    CheckpointError
        It is missing or damaged.
    """
    source = resolve_checkpoint(name)
    with _reading(source):
        _check_text_files(source)
        return AutoConfig.from_pretrained(source, **LOCAL_CODE_ONLY)


def load_model(name: str | Path, encoder_allowed: bool = False) -> PreTrainedModel:
    """Load a classifier for evaluation, in float32.

    Parameters
    ----------
    name : str or Path
    encoder_allowed : bool
        Whether an encoder without a classifier, as stage 1 of training leaves it, is returned as one in place of being
        refused.

    Raises
    ------
    CheckpointError
        It is missing, damaged, or its weights do not fit its configuration.
    """
    source = resolve_checkpoint(name)
    with _reading(source):
        _check_declared_sizes(source)
        # size mismatches are read from the report below instead of raised half-way
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32, **LOCAL_CODE_ONLY
        )
    problems = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    encoder = find_family(model) is not None and problems["missing_keys"] == head_parameters(model)
    if encoder and not encoder_allowed:
        raise CheckpointError(
            f"{source} is an encoder without a classifier; spikebert distill task --student {source} trains one for it"
        )
    for kind, keys in problems.items():
        if keys and not (encoder and kind == "missing_keys"):
            raise CheckpointError(f"the weights of {source} do not fit its config.json: {kind} {', '.join(keys[:3])}")
    for key, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{source}: {key} in {WEIGHTS_FILE} holds values that are not finite")
    return (model.base_model if encoder else model).eval()


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Return the names of a classifier's weights that are not its encoder's, in alphabetical order."""
    return sorted(key for key in model.state_dict() if not key.startswith(f"{model.base_model_prefix}."))


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Load the tokenizer that lies beside the weights, or in a folder of its own.

    Raises
    ------
    CheckpointError
        It is missing or damaged.
    """
    source = str(name) if Path(name).is_dir() else resolve_checkpoint(name)
    if Path(source).is_dir() and not (Path(source) / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{source} has no {TOKENIZER_FILE}; save the tokenizer beside the model")
    with _reading(source):
        _check_text_files(source)
        tokenizer = AutoTokenizer.from_pretrained(source, **LOCAL_CODE_ONLY)
        tokenizer("a")  # what its files say of special tokens is looked up now, not in the middle of a run
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{source}: tokenizer_config.json names no pad_token; sentences could not be batched")
    return tokenizer


def checkpoint_sha256(name: str | Path) -> str:
    """Return the SHA-256 of a checkpoint's weights, as hexadecimal digits.

    Raises
    ------
    CheckpointError
        There is no such checkpoint.
    """
    source = resolve_checkpoint(name)
    with _reading(source):
        weights = cached_file(source, WEIGHTS_FILE)
    if weights is None:
        raise CheckpointError(f"{source} has no {WEIGHTS_FILE}")
    return file_sha256(weights)


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    directory: str | Path,
    storage_dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint: whole or not at all, replacing what `directory` held.

    Weights are rounded to `storage_dtype`; ``config.json`` says float32, so transformers loads them as that.

    Raises
    ------
    CheckpointError
        A weight does not survive the rounding (it overflows).
    """
    with writing_directory(directory) as folder:
        write_checkpoint_files(model, tokenizer, folder, storage_dtype)


def write_checkpoint_files(
    model: PreTrainedModel, tokenizer: Tokenizer | None, folder: Path, storage_dtype: torch.dtype = torch.float16
) -> None:
    """Write the files of `save_checkpoint` into a folder that exists, e.g. one of `writing_directory`."""
    weights = {}
    learnt = {name for name, _ in model.named_parameters()}  # running statistics stay as they are: they are few
    for name, value in model.state_dict().items():
        stored = value.detach().to("cpu", storage_dtype if name in learnt else value.dtype).contiguous()
        if not bool(torch.isfinite(stored).all()):
            raise CheckpointError(f"{name} holds values that are not finite in {storage_dtype}; store it as float32")
        weights[name] = stored
    # save_file() would make a file that only its owner can read
    (folder / WEIGHTS_FILE).write_bytes(serialize(weights, metadata={"format": "pt"}))
    configuration = model.config.to_dict()
    configuration.update(dtype="float32", architectures=[type(model).__name__])
    AutoConfig.for_model(**configuration).save_pretrained(folder)
    if tokenizer is not None:  # a published checkpoint may come without one
        tokenizer.save_pretrained(folder)


def refuse_foreign_directory(directory: Path) -> None:
    """Refuse a folder that a checkpoint may not replace.

    Raises
    ------
    CheckpointError
        It holds something, and that is not a checkpoint.
    """
    is_empty = directory.is_dir() and not any(directory.iterdir())
    if directory.exists() and not is_empty and not (directory / CONFIGURATION_FILE).is_file():
        raise CheckpointError(f"{directory} is no checkpoint, and writing one would delete it; choose another folder")


@contextmanager
def writing_directory(directory: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `directory` when the block ends well, and vanishes otherwise.

    Raises
    ------
    CheckpointError
        `directory` holds something other than a checkpoint, which this would delete.
    """
    directory = Path(directory).absolute()
    refuse_foreign_directory(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        folder = temporary / "new"  # a folder of its own, so that its permissions are the usual ones, not mkdtemp's
        folder.mkdir()
        yield folder
        if directory.exists():
            os.replace(directory, temporary / "old")
        os.replace(folder, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_declared_sizes(source: str) -> None:
    """Check that ``config.json`` describes about as many weights as there are, before memory is taken for them.

    Raises
    ------
    CheckpointError
        It describes many more, or the file with the weights holds something other than what the model needs.
    """
    _check_text_files(source)
    weights = cached_file(source, WEIGHTS_FILE)
    if weights is None:
        raise CheckpointError(f"{source} has no {WEIGHTS_FILE}")
    with safe_open(weights, "pt") as file:  # checks that the header fits the file, and reads no weight
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        held = {name: math.prod(part.get_shape()) for name, part in parts.items()}
        wrong = [f"{name} holds {part.get_dtype()}" for name, part in parts.items() if part.get_dtype() not in STORED]
    if wrong:
        raise CheckpointError(f"{source}: {WEIGHTS_FILE}: {wrong[0]}; expected one of {', '.join(STORED)}")
    total = sum(held.values())
    said, _ = PreTrainedConfig.get_config_dict(source)
    # before a configuration is made of them: it names every label, and a block takes memory even without its weights
    limits = {"num_hidden_layers": len(held), **dict.fromkeys(SIZES_OF_WEIGHTS, total)}
    for key, limit in limits.items():
        if isinstance(said.get(key), int) and said[key] > limit:
            raise CheckpointError(
                f"{source}: {CONFIGURATION_FILE} says {key} {said[key]}; {WEIGHTS_FILE} holds {total:,} weights in "
                f"{len(held)} arrays"
            )
    config = AutoConfig.from_pretrained(source, **LOCAL_CODE_ONLY)
    with torch.device("meta"):
        described = sum(value.numel() for value in AutoModelForSequenceClassification.from_config(config).parameters())
    if described > 2 * total:
        raise CheckpointError(
            f"{source}: {CONFIGURATION_FILE} describes {described:,} weights; {WEIGHTS_FILE} holds {total:,}"
        )


def _check_text_files(source: str) -> None:
    """Check that no file but the weights is too large to be read whole."""
    for path in Path(source).glob("*") if Path(source).is_dir() else ():
        if path.suffix in TEXT_SUFFIXES and path.is_file() and path.stat().st_size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; at most {MAX_TEXT_BYTES} are read")


def _in_short(error: Exception) -> str:
    """Return the first paragraph of what is said, on one line: transformers appends advice, and whole files."""
    text = " ".join(str(error).split("\n\n")[0].split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn what goes wrong while transformers reads `source` into a `CheckpointError`."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # a bar for a second's work would break into our own
    logging.set_verbosity(logging.CRITICAL)  # it prints whole configurations, and what it raises is reported below
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise whatever they trip over
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{source} cannot be loaded: it contains custom code (trust_remote_code), which is never run; "
                "give a checkpoint of an architecture that is installed"
            ) from error
        raise CheckpointError(f"{source} cannot be loaded: {type(error).__name__}: {_in_short(error)}") from error
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{source} cannot be loaded: its tokenizer cannot be used: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

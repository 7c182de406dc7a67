"""Checkpoints of the published SpikeBERT code (github.com/Lvchangze/SpikeBERT) as models of this project.

That code saves a bare state dict; time steps, time constant, threshold and heads are not in it and must be told. What
it computes differs from the paper, and the model made here computes the same: embeddings through a bare step, neurons
with a hard reset whose leak takes from the input too, half the threshold behind attention, firing at equality, and
padding treated as words, so every sentence is padded to the same length.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikebert.configuration import SpikeBertConfig
from spikebert.errors import CheckpointError
from spikebert.modeling import SpikeBertForSequenceClassification

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
ATTENTION_THRESHOLD_SHARE = 0.5
"""The neuron behind attention has half the common threshold; the paper says 0.25."""
ATTENTION_SCALE = 0.125
MLP_EXPANSION = 4
MAX_NAMES_LISTED = 30
STORED_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BLOCK_NAME = re.compile(r"blocks\.(\d+)\.")

# Our module in a block <- the published ones whose rows it holds, one below the other.
BLOCK_MODULES = {
    "attention.qkv.affine": ("attn.q_m", "attn.k_m", "attn.v_m"),
    "attention.qkv.norm": ("attn.q_ln", "attn.k_ln", "attn.v_ln"),
    "attention.projection.affine": ("attn.last_m",),
    "attention.projection.norm": ("attn.last_ln",),
    "intermediate.affine": ("mlp.fc1",),
    "intermediate.norm": ("mlp.ln1",),
    "output.affine": ("mlp.fc2",),
    "output.norm": ("mlp.ln2",),
}


def load_published(
    state_dict: Mapping[str, Tensor],
    *,
    time_steps: int = 4,
    tau: float = 2.0,
    threshold: float = 1.0,
    num_heads: int = 8,
    max_length: int = 128,
    num_labels: int | None = None,
    **configuration: Any,
) -> SpikeBertForSequenceClassification:
    """Make a model from a state dict with the names of the published code.

    Sizes are read from the shapes; the defaults of the rest are those of the published stage-2 script.

    Parameters
    ----------
    state_dict : mapping of str to Tensor
        As ``torch.save(model.state_dict(), …)`` wrote it, with or without the prefix of DataParallel; float64,
        float32, bfloat16 or float16.
    time_steps : int
        T.
    tau : float
        Time constant of every neuron in steps (``--tau``; the published code's own default is 10).
    threshold : float
        Of the common neurons (``--common_thr``); those behind attention have half of it.
    num_heads : int
        Heads of attention.
    max_length : int
        Tokens that every sentence is padded to (``--max_length``), since padding counts as words.
    num_labels : int, optional
        Classes of a new classifier, for a checkpoint of stage 1, which has none.
    **configuration
        Further fields of `SpikeBertConfig`, such as ``id2label`` or ``attention_scale``.

    Returns
    -------
    SpikeBertForSequenceClassification
        In evaluation mode and float32, or float64 where the state dict is. Its per-block feature transforms are kept
        in ``model.spikebert.feature_transforms``; the classifier does not need them.

    Raises
    ------
    CheckpointError
        Names are missing or too many, shapes do not fit, or a value is no tensor of finite numbers; all are named.
    ConfigurationError
        A setting is not allowed.
    """
    published = _without_wrapper(state_dict)
    _check_tensors(published)
    blocks = _number_of_blocks(published)
    hidden_size = _size(published, "emb.weight", 1)
    intermediate_size = _size(published, "blocks.0.mlp.fc1.weight", 0, MLP_EXPANSION * hidden_size)
    has_classifier = num_labels is None or any(name.startswith("classifier.") for name in published)
    labels = num_labels
    if labels is None:
        labels = len(configuration.get("id2label") or {}) or _size(published, "classifier.weight", 0, 2)
    shapes = _expected_shapes(
        _size(published, "emb.weight", 0), hidden_size, intermediate_size, blocks, labels if has_classifier else None
    )
    _check_names_and_shapes(published, shapes)
    if not configuration.get("id2label"):
        configuration["num_labels"] = labels
    settings: dict[str, Any] = {
        "attention_threshold": threshold * ATTENTION_THRESHOLD_SHARE,
        "attention_scale": ATTENTION_SCALE,
        "pad_token_id": None,  # the published table has no row that training leaves alone
        **configuration,
    }
    config = SpikeBertConfig(
        vocab_size=published["emb.weight"].shape[0],
        hidden_size=hidden_size,
        num_hidden_layers=blocks,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_length,
        time_steps=time_steps,
        neuron="published",
        tau=tau,
        threshold=threshold,
        embedding_neuron="heaviside",
        attend_to_padding=True,
        feature_transform_size=hidden_size,
        **settings,
    )
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in published.values()) else torch.float32
    weights = _renamed(published, blocks, dtype)
    with torch.device("meta"):  # sizes only: every weight comes from the state dict
        model = SpikeBertForSequenceClassification(config)
    if not has_classifier:
        head = torch.nn.Linear(hidden_size, labels, dtype=dtype)
        torch.nn.init.normal_(head.weight, std=config.initializer_range)
        torch.nn.init.zeros_(head.bias)
        weights.update({f"classifier.{name}": value.detach() for name, value in head.state_dict().items()})
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_().eval()


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Read a file that ``torch.save`` wrote, as weights only: nothing in it is run, and its arrays are only mapped.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, written before torch 1.6, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: is not a file of torch.save, or one cut off, or older than torch 1.6 (load and save it with a "
            "newer torch)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise CheckpointError(f"{path}: {packed[0]} is compressed, which torch.save never does; save it again")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, the unpickler and torch raise whatever they trip over
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{path}: cannot be read as weights only: {type(error).__name__}: {reason}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}; expected a state dict, names with tensors")
    odd = next((name for name, value in loaded.items() if not (isinstance(name, str) and torch.is_tensor(value))), None)
    if odd is not None or not loaded:
        found = "nothing" if odd is None else f"{str(odd)[:60]!r} with a {type(loaded[odd]).__name__}"
        raise CheckpointError(f"{path}: holds {found}; expected a state dict, names with tensors")
    return loaded


def _without_wrapper(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict without the prefixes that wrappers put before every name, however many."""
    names = dict(state_dict)
    while names:
        prefix = next((p for p in WRAPPER_PREFIXES if all(str(name).startswith(p) for name in names)), None)
        if prefix is None:
            break
        names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def _check_tensors(published: dict[str, Tensor]) -> None:
    """Check that everything is a plain tensor of finite numbers that is as large as it says."""
    problems = []
    for name, value in published.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            problems.append(f"{name} is a {type(value).__name__}, not a tensor")
        elif value.layout != torch.strided or value.dtype not in STORED_TYPES or value.is_meta:
            problems.append(f"{name} holds {value.dtype} on {value.device} ({value.layout}), not plain numbers")
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            problems.append(
                f"{name} declares shape {tuple(value.shape)}, but holds {value.untyped_storage().nbytes()} bytes"
            )
        elif not bool(torch.isfinite(value).all()):
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise CheckpointError(f"the published checkpoint cannot be used: {_listed(problems, '; ')}")


def _number_of_blocks(published: dict[str, Tensor]) -> int:
    return len({found.group(1) for found in map(BLOCK_NAME.match, published) if found})


def _size(published: dict[str, Tensor], name: str, axis: int, otherwise: int = 0) -> int:
    """Return the length of an axis of a matrix; `otherwise` where it is none, which is named later."""
    value = published.get(name)
    return value.shape[axis] if value is not None and value.ndim == 2 else otherwise


def _expected_shapes(
    vocab_size: int, hidden_size: int, intermediate_size: int, blocks: int, labels: int | None
) -> dict[str, tuple[int, ...]]:
    """Return every name of a published state dict with its shape."""

    def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name: str, features: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (features,), f"{name}.bias": (features,)}

    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (vocab_size, hidden_size)}
    for index in range(blocks):
        attention, mlp = f"blocks.{index}.attn", f"blocks.{index}.mlp"
        for part in ("q", "k", "v", "last"):
            shapes |= linear(f"{attention}.{part}_m", hidden_size, hidden_size)
            shapes |= norm(f"{attention}.{part}_ln", hidden_size)
        shapes |= linear(f"{mlp}.fc1", intermediate_size, hidden_size) | norm(f"{mlp}.ln1", intermediate_size)
        shapes |= linear(f"{mlp}.fc2", hidden_size, intermediate_size) | norm(f"{mlp}.ln2", hidden_size)
        shapes |= linear(f"transforms.{index}.fc", hidden_size, hidden_size)
        shapes |= norm(f"transforms.{index}.ln", hidden_size)
    shapes |= norm("last_ln", hidden_size)
    return shapes | (linear("classifier", labels, hidden_size) if labels is not None else {})


def _check_names_and_shapes(published: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    missing = sorted(name for name in shapes if name not in published)
    extra = sorted(str(name) for name in published if name not in shapes)
    misfits = [
        f"{name} has shape {tuple(published[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in published and (tuple(published[name].shape) != shape or 0 in shape)
    ]
    problems = [
        f"{kind}: {_listed(names, '; ' if kind == 'misfits' else ', ')}"
        for kind, names in (("missing", missing), ("extra", extra), ("misfits", misfits))
        if names
    ]
    if len(missing) and all(name.startswith("classifier.") for name in missing) and len(missing) == 2:
        problems.append("a checkpoint of stage 1 has no classifier; give num_labels to start a new one")
    if not any(name.startswith("blocks.") for name in shapes):
        problems.append("it has no blocks")
    if problems:
        raise CheckpointError(f"this is not a published SpikeBERT checkpoint: {'. '.join(problems)}")


def _listed(entries: Iterable[str], separator: str) -> str:
    entries = [str(entry)[:200] for entry in entries]
    rest = len(entries) - MAX_NAMES_LISTED
    return separator.join(entries[:MAX_NAMES_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _renamed(published: dict[str, Tensor], blocks: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return copies of the weights under our names; half precisions widen exactly."""
    sources: dict[str, tuple[str, ...]] = {
        "spikebert.final_norm": ("last_ln",),
        "classifier": ("classifier",),
    }
    for index in range(blocks):
        for ours, theirs in BLOCK_MODULES.items():
            sources[f"spikebert.blocks.{index}.{ours}"] = tuple(f"blocks.{index}.{name}" for name in theirs)
        for ours, name in (("affine", "fc"), ("norm", "ln")):
            sources[f"spikebert.feature_transforms.{index}.{ours}"] = (f"transforms.{index}.{name}",)
    weights = {"spikebert.embeddings.word_embeddings.weight": published["emb.weight"].to(dtype, copy=True)}
    for ours, theirs in sources.items():
        for part in ("weight", "bias"):
            if f"{theirs[0]}.{part}" in published:  # a checkpoint of stage 1 has no classifier
                weights[f"{ours}.{part}"] = torch.cat([published[f"{name}.{part}"] for name in theirs]).to(dtype)
    return weights

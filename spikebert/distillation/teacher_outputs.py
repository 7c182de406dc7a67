"""What a teacher says of texts, kept on disk: asked once, read by every later training with the same teacher and texts.

A folder of the cache is named by a hash of the teacher's weights, the texts and all that changes the answer. It holds
``logits.npy`` and, where layers were asked for, ``features.npy`` in half precision, which is read through memory
mapping: a batch costs its own bytes, whatever the size of the set.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from spikebert.data import Example, TokenizedExamples
from spikebert.distillation.teacher import run_teacher, weights_sha256
from spikebert.errors import ConfigurationError
from spikebert.tasks import Task

CACHE_VARIABLE = "SPIKEBERT_CACHE"
FORMAT = 1  # changes whenever what is stored under a key would
LABELLING_BATCH_SIZE = 64
BYTES_PER_FEATURE = 2


def default_cache() -> Path:
    """Return the folder that outputs are kept in: SPIKEBERT_CACHE, else ``~/.cache/spikebert``."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/spikebert").expanduser()


@dataclass
class TeacherOutputs:
    """What a teacher said of some texts.

    Attributes
    ----------
    logits : Tensor
        ``(n, C)`` float32.
    token_ids : list of list of int
        The teacher's own tokens of each text, which `features` belong to.
    features : np.ndarray, optional
        ``(all tokens, L, D)`` float16, memory-mapped.
    """

    logits: Tensor
    token_ids: list[list[int]]
    features: np.ndarray | None = None
    starts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find where each text's features start."""
        self.starts = np.concatenate([[0], np.cumsum([len(ids) for ids in self.token_ids])])

    def features_of(self, indices: Sequence[int], tokens: int) -> Tensor:
        """Return the features of some texts, ``(B, tokens, L, D)``, zeros behind each text's last token."""
        assert self.features is not None
        padded = np.zeros((len(indices), tokens, *self.features.shape[1:]), np.float16)
        for row, index in enumerate(indices):
            start = self.starts[index]
            length = min(len(self.token_ids[index]), tokens)
            padded[row, :length] = self.features[start : start + length]
        return torch.from_numpy(padded)


def teacher_outputs(
    teacher: PreTrainedModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    task: Task,
    max_length: int,
    precision: str,
    layers: Sequence[int] = (),
    cache: Path | None = None,
    largest_bytes: float = float("inf"),
    on_batch: Callable[[int, int], None] | None = None,
) -> TeacherOutputs:
    """Ask a teacher about texts, or read what it said before.

    Parameters
    ----------
    teacher, tokenizer
        With a head for the task.
    examples, task, max_length
        The texts; longer ones are cut.
    precision : {"float32", "bfloat16"}
        Of its matrix products.
    layers : sequence of int
        Layers whose features are wanted, see `run_teacher`.
    cache : Path, optional
        Folder of the cache, see `default_cache`.
    largest_bytes : float
        How much features may take on disk.
    on_batch : callable, optional
        Told how many texts are done, and how many there are.

    Raises
    ------
    ConfigurationError
        The features would take more than `largest_bytes`.
    """
    cache = default_cache() if cache is None else cache
    tokenized = TokenizedExamples(examples, task, tokenizer, max_length)
    tokens = int(tokenized.lengths.sum())
    size = tokens * len(layers) * teacher.config.hidden_size * BYTES_PER_FEATURE
    if size > largest_bytes:
        raise ConfigurationError(
            f"the teacher's features of {len(tokenized)} texts take {size / 1e9:.1f} GB on disk, allowed are "
            f"{largest_bytes / 1e9:.1f}; raise --feature-cache-gb, train on fewer texts (--augment, --spans), or give "
            "--weight-features 0 --weight-embedding 0"
        )
    said = {
        "format": FORMAT,
        "teacher": weights_sha256(teacher),
        "texts": texts_sha256(examples),
        "max_length": max_length,
        "precision": precision,
        "layers": list(layers),
    }
    folder = cache / "teacher-outputs" / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            _ask(teacher, tokenized, precision, list(layers), temporary, on_batch)
            (temporary / "settings.json").write_text(json.dumps({**said, "examples": len(tokenized)}, indent=2) + "\n")
            try:
                os.replace(temporary, folder)
            except OSError:
                if not folder.is_dir():  # else another training was faster, and says the same
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    logits = torch.from_numpy(np.load(folder / "logits.npy"))
    features = np.load(folder / "features.npy", mmap_mode="r") if layers else None
    return TeacherOutputs(logits, tokenized.input_ids, features)


def texts_sha256(examples: Sequence[Example]) -> str:
    """Return a SHA-256 of the texts of `examples`, in their order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update("\t".join(example.texts).encode() + b"\n")
    return digest.hexdigest()


def _ask(
    teacher: PreTrainedModel,
    examples: TokenizedExamples,
    precision: str,
    layers: list[int],
    folder: Path,
    on_batch: Callable[[int, int], None] | None,
) -> None:
    starts = np.concatenate([[0], np.cumsum(examples.lengths)])
    logits = np.zeros((len(examples), teacher.config.num_labels or 1), np.float32)
    features = None
    if layers:
        shape = (int(starts[-1]), len(layers), teacher.config.hidden_size)
        features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape)
    device = teacher.device
    done = 0
    for batch in examples.batches(LABELLING_BATCH_SIZE):
        half = precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            said, layer_features = run_teacher(teacher, batch.to(device).inputs, layers)
        assert said is not None
        logits[batch.indices.numpy()] = said.float().cpu().numpy()
        if features is not None:
            half_features = layer_features.to("cpu", torch.float16).numpy()
            for row, index in enumerate(batch.indices.tolist()):
                features[starts[index] : starts[index + 1]] = half_features[row, : examples.lengths[index]]
        done += len(batch.indices)
        if on_batch is not None:
            on_batch(done, len(examples))
    np.save(folder / "logits.npy", logits)
    if features is not None:
        features.flush()

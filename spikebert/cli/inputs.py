"""What commands run: sentences (``--text``, ``--task``, ``--data-dir``, ``--limit``), token ids or values of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spikebert.cli.application import Function, data_directory
from spikebert.cli.arrays import read_array
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

BATCH_SIZE = 8
LARGEST_COUNT = (1 << 16) - 1
"""Larger whole numbers are values: nothing sends so many spikes in a step."""


@dataclass(frozen=True)
class SentenceBatch:
    """Some sentences, padded to the longest of them or to the length that all are padded to.

    Attributes
    ----------
    texts : list of str
    inputs, mask : ndarray
        ``(B, N)``: token ids; the mask is True at tokens.
    """

    texts: list[str]
    inputs: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class ValueBatch:
    """Some samples of a graph that reads no tokens.

    Attributes
    ----------
    texts : list of str
        What to call them.
    inputs : ndarray
        ``(T, B, *shape)``.
    mask : None
    """

    texts: list[str]
    inputs: np.ndarray
    mask: None = None


@dataclass(frozen=True)
class Sentences:
    """Sentences to run, tokenized.

    Attributes
    ----------
    texts : list of str
    token_ids : list of list of int
    pad_token_id : int
    padded_length : int or None
        Tokens that every sentence is padded to; None for the longest of its batch.
    """

    texts: list[str]
    token_ids: list[list[int]]
    pad_token_id: int = 0
    padded_length: int | None = None

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.texts)

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence, with the padding that all of them have."""
        return max(self.padded_length or 0, *(len(ids) for ids in self.token_ids))

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[SentenceBatch]:
        """Yield the sentences in order, each batch padded to its own longest or to `padded_length`."""
        import numpy as np

        for start in range(0, len(self), batch_size):
            rows = self.token_ids[start : start + batch_size]
            width = max(self.padded_length or 0, *map(len, rows))
            ids = np.full((len(rows), width), self.pad_token_id, np.int64)
            for row, tokens in zip(ids, rows, strict=True):
                row[: len(tokens)] = tokens
            mask = np.arange(ids.shape[1]) < np.array([[len(tokens)] for tokens in rows])
            yield SentenceBatch(self.texts[start : start + batch_size], ids, mask)


@dataclass(frozen=True)
class Values:
    """Samples to run through a graph that reads no tokens.

    Attributes
    ----------
    texts : list of str
        What to call them.
    array : ndarray
        ``(T, B, *shape)``; spikes and counts in unsigned whole numbers as narrow as hold them.
    """

    texts: list[str]
    array: np.ndarray

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.texts)

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[ValueBatch]:
        """Yield the samples in order."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield ValueBatch(self.texts[rows], self.array[:, rows])


def sentence_options(function: Function) -> Function:
    """Add ``--text``, ``--task``, ``--data-dir``, ``--split`` and ``--limit``."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="Only the first N sentences of the task."),
        click.option("--split", default="dev", show_default=True, help="Part of the task's data."),
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder with TASK/SPLIT.tsv [default: SPIKEBERT_DATA, else the hub].",
        ),
        click.option("--task", help="Run the sentences of a task, such as sst2."),
        click.option(
            "--text", "texts", multiple=True, help="Sentence to run; give several behind one --text or repeat it."
        ),
    ):
        function = option(function)
    return function


def sentence_lengths(config: Any) -> tuple[int | None, int | None]:
    """Return how many tokens sentences are cut to and padded to for a model of this configuration; None is neither."""
    return config.max_position_embeddings, getattr(config, "padded_length", None)


def most_positions(config: Any) -> int | None:
    """Return the tokens that a model of this configuration has positions for; None where it needs none."""
    without = getattr(config, "position_embedding_type", None) == "none"
    return None if without else config.max_position_embeddings


def read_sentences(
    tokenizer: Any,
    texts: tuple[str, ...],
    task: str | None,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    max_tokens: int | None,
    padded_length: int | None = None,
) -> Sentences:
    """Tokenize what the options name.

    `max_tokens` and `padded_length` are the model's, see `sentence_lengths`.

    Raises
    ------
    ConfigurationError
        Neither or both of ``--text`` and ``--task`` are given, or a text is empty.
    DataError
        The task's file cannot be read.
    """
    if bool(texts) == bool(task):
        raise ConfigurationError("say which sentences to run: give --text or --task, and not both")
    if task:
        from spikebert.data import load_examples
        from spikebert.tasks import find_task

        found = load_examples(find_task(task), split, data_directory(data_dir))[:limit]
        rows = [example.texts for example in found]
    else:
        rows = [(text,) for text in texts]
    for row in rows:
        if not all(text.strip() for text in row):
            raise ConfigurationError("a text is empty; every sentence needs at least one word")
    columns = [list(column) for column in zip(*rows, strict=True)]
    ids = tokenizer(*columns, truncation=max_tokens is not None, max_length=max_tokens)["input_ids"]
    return Sentences([" ".join(row) for row in rows], ids, tokenizer.pad_token_id or 0, padded_length)


def read_values(path: Path) -> Values:
    """Return samples of input values ``(T, B, *shape)`` from an array of a file.

    Raises
    ------
    ConfigurationError, TraceError
        There is no such array (see `spikebert.cli.arrays`), or it is none of numbers of two axes or more.
    """
    import numpy as np

    array = read_array(path)
    if array.dtype.kind not in "fiub":
        raise ConfigurationError(f"{path}: holds {array.dtype}; expected numbers (time steps, samples, ...)")
    if array.dtype.kind != "u" and np.isfinite(array).all() and array.min() >= 0 and array.max() <= LARGEST_COUNT:
        counts = array.astype(np.min_scalar_type(int(array.max())))
        array = counts if (counts == array).all() else array
    return Values([f"sample {index} of {path.name}" for index in range(array.shape[1])], array)


def read_ids(path: Path) -> Sentences:
    """Return sentences of token ids from an array of a file, zeros at the end of a row being padding.

    Raises
    ------
    ConfigurationError, TraceError
        There is no such array (see `spikebert.cli.arrays`), it is none of whole numbers, or a sentence is all padding.
    """
    import numpy as np

    expected = "whole numbers (sentences, tokens)"
    ids = read_array(path, expected)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ConfigurationError(f"{path}: holds shape {ids.shape}; expected {expected}")
    if ids.max() > np.iinfo(np.int64).max:
        raise ConfigurationError(f"{path}: holds {ids.max()}, which is no token id; expected {expected}")
    rows = [[int(token) for token in np.trim_zeros(row, "b")] for row in ids]
    for index, row in enumerate(rows):
        if not row:
            raise ConfigurationError(f"{path}: sentence {index} is all padding")
    return Sentences([f"sentence {index} of {path.name}" for index in range(len(rows))], rows)

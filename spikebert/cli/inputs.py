"""What commands run: sentences (``--text``, ``--task``, ``--data-dir``, ``--limit``), or a recorded trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from spikebert.cli.application import Function, MultiValueCommand, data_directory
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from export.network import Network
    from hardware.trace import Trace

BATCH_SIZE = 8


@dataclass(frozen=True)
class SentenceBatch:
    """Some sentences, padded to the longest of them or to the length that all are padded to.

    Attributes
    ----------
    texts : list of str
    input_ids, mask : ndarray
        ``(B, N)``; the mask is True at tokens.
    """

    texts: list[str]
    input_ids: np.ndarray
    mask: np.ndarray


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
        for start in range(0, len(self), batch_size):
            rows = self.token_ids[start : start + batch_size]
            width = max(self.padded_length or 0, *map(len, rows))
            ids = np.full((len(rows), width), self.pad_token_id, np.int64)
            for row, tokens in zip(ids, rows, strict=True):
                row[: len(tokens)] = tokens
            mask = np.arange(ids.shape[1]) < np.array([[len(tokens)] for tokens in rows])
            yield SentenceBatch(self.texts[start : start + batch_size], ids, mask)


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


class TraceCommand(MultiValueCommand):
    """A command whose CHECKPOINT may be missing where ``--trace`` stands in its place."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Ask for CHECKPOINT or not, then parse as usual."""
        has_trace = any(word.split("=")[0] in ("--trace", "--graph") for word in args)
        for parameter in self.params:
            if isinstance(parameter, click.Argument):
                parameter.required = not has_trace
        return super().parse_args(ctx, args)


def trace_options(function: Function) -> Function:
    """Add ``--trace`` and ``--graph``."""
    file = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--graph", "graph_file", type=file, help="NIR graph the trace was made with."),
        click.option(
            "--trace", "trace_file", type=file, help="Count this trace (.npz of any tool) instead of a CHECKPOINT's."
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class RecordedRun:
    """A trace from a file and the graph it was made with.

    Attributes
    ----------
    title : str
    trace : Trace
    network : Network
    record : dict
        What a result must say about how it was made.
    """

    title: str
    trace: Trace
    network: Network
    record: dict[str, Any]


def read_recorded_run(
    checkpoint: str | None,
    trace_file: Path | None,
    graph_file: Path | None,
    texts: tuple[str, ...],
    task: str | None,
    seed: int,
) -> RecordedRun | None:
    """Read what ``--trace`` and ``--graph`` name; None where a CHECKPOINT is to be run.

    Raises
    ------
    ConfigurationError
        One of the two is missing, or stands beside a CHECKPOINT or sentences.
    TraceError, GraphError
        A file cannot be read.
    """
    if checkpoint is not None:
        if trace_file is not None or graph_file is not None:
            raise ConfigurationError("--trace and --graph stand in place of CHECKPOINT; give one or the other")
        return None
    from export.nir_file import read_network
    from hardware.recorded import load_trace
    from spikebert.provenance import file_sha256, run_record

    if trace_file is None or graph_file is None:
        raise ConfigurationError("a trace is counted with the graph it was made with: give both --trace and --graph")
    if texts or task:
        raise ConfigurationError("--trace holds its own sentences; leave out --text and --task")
    trace = load_trace(trace_file)
    _, network = read_network(graph_file)
    record = {
        **run_record(seed),
        "trace": str(trace_file),
        "trace_sha256": file_sha256(trace_file),
        "graph": str(graph_file),
        "graph_sha256": file_sha256(graph_file),
        "runner": trace.metadata.get("runner"),
        "run_precision": trace.precision,
    }
    return RecordedRun(f"{trace_file} on {graph_file}", trace, network, record)


def sentence_lengths(config: Any) -> tuple[int | None, int | None]:
    """Return how many tokens sentences are cut to and padded to for a model of this configuration; None is neither."""
    return config.max_position_embeddings, getattr(config, "padded_length", None)


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
        from spikebert.data import find_task, load_examples

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


def read_array(path: Path, expected: str = "an array of two axes or more, none of them empty") -> np.ndarray:
    """Return the array of an .npy file; `expected` says in an error what should have been there.

    Raises
    ------
    ConfigurationError
        The file is no .npy array of two axes or more.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigurationError(f"{path}: is not an .npy array: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim < 2 or 0 in array.shape:
        shape = getattr(array, "shape", None)
        raise ConfigurationError(f"{path}: holds shape {shape}; expected {expected}")
    return array


def read_ids(path: Path) -> Sentences:
    """Return sentences of token ids from an .npy file, zeros at the end of a row being padding.

    Raises
    ------
    ConfigurationError
        The file is no .npy array of whole numbers, or a sentence is all padding.
    """
    expected = "whole numbers (sentences, tokens)"
    ids = read_array(path, expected)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ConfigurationError(f"{path}: holds shape {ids.shape}; expected {expected}")
    rows = [[int(token) for token in np.trim_zeros(row, "b")] for row in ids]
    for index, row in enumerate(rows):
        if not row:
            raise ConfigurationError(f"{path}: sentence {index} is all padding")
    return Sentences([f"sentence {index} of {path.name}" for index in range(len(rows))], rows)

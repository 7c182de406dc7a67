"""The text of a task from a folder or the Hugging Face hub, tokenized, in batches.

This is where the road begins; which tasks there are stands in ``tasks.py``. Nothing in this file knows a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spikebert.errors import ConfigurationError, DataError, MissingDependencyError
from spikebert.tasks import SPLITS, Task

LABEL_COLUMN = "label"
BATCHES_PER_BUCKET = 50  # sentences of this many batches are sorted by length together: little padding, still shuffled


class Example(NamedTuple):
    """One text, or pair of texts."""

    texts: tuple[str, ...]
    label: float | None  # a class index as a whole number, or a value of a regression; None where nobody gave one


def load_examples(task: Task, split: str, data_directory: Path | None, file_name: str | None = None) -> list[Example]:
    """Read one split of a task from a folder, or from the Hugging Face hub where no folder is given.

    Parameters
    ----------
    task : Task
        A row of `TASKS`.
    split : {"train", "dev", "test"}
        Which part.
    data_directory : Path, optional
        Folder that holds ``TASK/{train,dev,test}.tsv``.
    file_name : str, optional
        File to read in the task's folder in place of ``SPLIT.tsv``, e.g. ``train_sentences.tsv``.

    Raises
    ------
    DataError
        A file or split is missing, or a line does not say what the task needs.
    MissingDependencyError
        No folder is given and the package ``datasets`` is not installed.
    """
    if split not in SPLITS:
        raise ConfigurationError(f"split {split!r} is not known; choose one of {', '.join(SPLITS)}")
    if data_directory is not None:
        return read_tsv(Path(data_directory) / task.name / (file_name or f"{split}.tsv"), task)
    if file_name is not None:
        raise ConfigurationError(f"{file_name} names a file, so the folder it lies in is needed: give --data-dir")
    return _load_from_hub(task, split)


def read_tsv(path: Path, task: Task) -> list[Example]:
    """Read a tab-separated file: UTF-8, one header line, no quoting.

    Raises
    ------
    DataError
        The file is missing, empty or not UTF-8, or a line is wrong; the message has the line's number.
    """
    columns = (*task.text_columns, LABEL_COLUMN)
    expected = "a tab between each of: " + ", ".join(columns)
    lines = _lines(path, f"--data-dir (or SPIKEBERT_DATA) must name the folder that holds {task.name}/{path.name}")
    if tuple(lines[0].split("\t")) != columns:
        raise DataError(f"{path}, line 1: the header is {lines[0]!r}; {task.name} needs {expected}")
    examples = []
    for number, line in enumerate(lines[1:], start=2):
        values = line.split("\t")
        if len(values) != len(columns):
            raise DataError(f"{path}, line {number}: found {len(values)} columns, {line[:60]!r}; it needs {expected}")
        examples.append(Example(tuple(values[:-1]), _checked_label(values[-1], task, f"{path}, line {number}")))
    if not examples:
        raise DataError(f"{path} has a header and no examples")
    return examples


def read_unlabelled(path: Path, task: Task, limit: int | None = None) -> list[Example]:
    """Read text without labels: UTF-8, one text a line; for a task of pairs, a tab between the two.

    Lines without text are left out. With a `limit`, only so many lines are read, spread evenly over the file.

    Raises
    ------
    DataError
        The file is missing, not UTF-8 or has no text, or a line has another number of texts than the task; the message
        has the line's number.
    """
    examples = []
    for number, line in enumerate(_lines(path, "--unlabelled needs text files"), start=1):
        texts = tuple(text.strip() for text in line.split("\t"))
        if not any(texts):
            continue
        if len(texts) != len(task.text_columns):
            raise DataError(
                f"{path}, line {number}: found {len(texts)} texts, {line[:60]!r}; {task.name} needs "
                f"{len(task.text_columns)} a line, a tab between them"
            )
        examples.append(Example(texts, None))
    if not examples:
        raise DataError(f"{path} has no text")
    if limit is not None and limit < len(examples):
        examples = [examples[i] for i in np.linspace(0, len(examples) - 1, limit).round().astype(int)]
    return examples


def _lines(path: Path, hint: str) -> list[str]:
    """Return the lines of a UTF-8 file."""
    try:
        # not splitlines(), which would also break at the rarer separators that text may contain
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {hint}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8") from error


def _checked_label(value: str | float, task: Task, where: str) -> float:
    allowed = f"a whole number from 0 to {task.num_labels - 1}"
    low, high = 0.0, task.num_labels - 1.0
    if task.label_range is not None:
        low, high = task.label_range
        allowed = f"a number from {low:g} to {high:g}"
    try:
        label = float(value)
    except ValueError:
        label = float("nan")
    if not low <= label <= high or (task.labels and not label.is_integer()):
        raise DataError(f"{where}: the label is {value!r}; {task.name} needs {allowed}")
    return label


def _load_from_hub(task: Task, split: str) -> list[Example]:
    instead = f"give a folder that holds {task.name}/{split}.tsv with --data-dir or SPIKEBERT_DATA"
    if task.hub is None or split not in task.hub.splits:
        raise DataError(f"the Hugging Face hub has no {split} split of {task.name}; {instead}")
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{task.name} would come from the Hugging Face hub, which needs the package datasets "
            f"(pip install datasets); or {instead}"
        ) from error
    try:
        rows = datasets.load_dataset(task.hub.path, task.hub.name, split=task.hub.splits[split])
    except Exception as error:  # the hub's client raises a dozen kinds, from no network to a moved set
        raise DataError(f"{task.hub.path} could not be loaded from the Hugging Face hub: {error}; {instead}") from error
    missing = {*task.hub.text_columns, LABEL_COLUMN} - set(rows.column_names)
    if missing:
        raise DataError(f"{task.hub.path} on the hub has no column {', '.join(sorted(missing))}; {instead}")
    return [
        Example(
            tuple(row[column] for column in task.hub.text_columns),
            _checked_label(row[LABEL_COLUMN], task, f"{task.hub.path}, {split} row {index}"),
        )
        for index, row in enumerate(rows)
    ]


@dataclass(frozen=True)
class ExampleBatch:
    """Some examples, padded to the longest of them.

    Attributes
    ----------
    indices : Tensor
        ``(B,)``, which examples of the set these are.
    input_ids, attention_mask : Tensor
        ``(B, N)``.
    labels : Tensor
        ``(B,)``, whole numbers for classes, floating point for a regression; 0 where there is none.
    labelled : Tensor
        ``(B,)`` bool, whether there is one.
    token_type_ids : Tensor, optional
        ``(B, N)``, which text of a pair a token is of, where the tokenizer says so (BERT's does, a student's not).
    """

    indices: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    labelled: Tensor
    token_type_ids: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    def to(self, device: torch.device) -> ExampleBatch:
        """Return the batch on a device, `indices` left where they are."""
        types = self.token_type_ids
        return ExampleBatch(
            self.indices,
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.labels.to(device),
            self.labelled.to(device),
            None if types is None else types.to(device),
        )


class TokenizedExamples:
    """A split turned into token ids once, handed out in batches of sentences of similar length.

    Parameters
    ----------
    examples : sequence of Example
        The split.
    task : Task
        Decides the type of the labels.
    tokenizer : PreTrainedTokenizerBase
        Turns text into ids and pads.
    max_length : int, optional
        Longest sentence in tokens; longer ones are cut. None cuts nothing.
    padded_length : int, optional
        Tokens that every sentence is padded to; without it, to the longest of its batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        padded_length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.padding = {"padding": "max_length", "max_length": padded_length} if padded_length else {"padding": True}
        columns = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
        encoded = tokenizer(*columns, truncation=max_length is not None, max_length=max_length, padding=False)
        self.input_ids: list[list[int]] = encoded["input_ids"]
        self.token_type_ids: list[list[int]] | None = encoded.get("token_type_ids")
        self.lengths = np.array([len(ids) for ids in self.input_ids])
        self.labelled = torch.tensor([example.label is not None for example in examples])
        self.labels = torch.tensor([float(example.label or 0) for example in examples])
        if task.labels:
            self.labels = self.labels.long()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.input_ids)

    def batch(self, indices: np.ndarray) -> ExampleBatch:
        """Return the examples at `indices` ``(B,)``, padded by the tokenizer."""
        chosen = {"input_ids": [self.input_ids[i] for i in indices]}
        if self.token_type_ids is not None:
            chosen["token_type_ids"] = [self.token_type_ids[i] for i in indices]
        padded = self.tokenizer.pad(chosen, return_tensors="pt", **self.padding)
        rows = torch.from_numpy(indices)
        return ExampleBatch(
            rows,
            padded["input_ids"],
            padded["attention_mask"],
            self.labels[rows],
            self.labelled[rows],
            padded.get("token_type_ids"),
        )

    def batches(self, batch_size: int, generator: np.random.Generator | None = None) -> Iterator[ExampleBatch]:
        """Yield every example once, in batches of similar length: shuffled by `generator`, by length without one."""
        for indices in bucketed_indices(self.lengths, batch_size, generator):
            yield self.batch(indices)


def bucketed_indices(
    lengths: np.ndarray, batch_size: int, generator: np.random.Generator | None = None
) -> list[np.ndarray]:
    """Split the indices of `lengths` ``(n,)`` into batches of similar length.

    With a generator, indices are shuffled, sorted by length within buckets of `BATCHES_PER_BUCKET` batches, and the
    batches shuffled; without one, all are sorted.
    """
    order = np.arange(len(lengths))
    bucket = len(lengths)
    if generator is not None:
        generator.shuffle(order)
        bucket = batch_size * BATCHES_PER_BUCKET
    batches = []
    for start in range(0, len(order), max(bucket, 1)):
        members = order[start : start + bucket]
        members = members[np.argsort(lengths[members], kind="stable")]
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    if generator is not None:
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches

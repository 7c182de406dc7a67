"""Text to learn a language from: files or a data set of the hub, read as a stream, never held in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from spikebert.data import BATCHES_PER_BUCKET, bucketed_indices
from spikebert.errors import DataError, MissingDependencyError

HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class TextFiles:
    """Text files, UTF-8, one sentence or passage a line; lines of several files come mixed, as their sizes are.

    Attributes
    ----------
    paths : tuple of Path
    counts : tuple of int
        Lines with text in each.
    """

    paths: tuple[Path, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of texts."""
        return sum(self.counts)

    def __iter__(self) -> Iterator[str]:
        """Yield every text once, always in the same order."""

        def placed(path: Path, count: int) -> Iterator[tuple[float, str]]:
            for number, text in enumerate(_texts_of(path)):
                yield (number + 0.5) / count, text

        streams = (placed(path, count) for path, count in zip(self.paths, self.counts, strict=True))
        return (text for _, text in heapq.merge(*streams, key=lambda each: each[0]))


@dataclass(frozen=True)
class HubTexts:
    """A data set of the hub, streamed.

    Attributes
    ----------
    path, name : str
        What ``datasets.load_dataset`` is called with.
    column : str
        The one that holds the text.
    """

    path: str
    name: str | None = None
    column: str = "text"

    def __iter__(self) -> Iterator[str]:
        """Yield every text once, in the hub's order."""
        try:
            import datasets
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.path} would come from the Hugging Face hub, which needs the package datasets "
                "(pip install datasets); or give text files"
            ) from error
        try:
            rows = datasets.load_dataset(self.path, self.name, split="train", streaming=True)
            for row in rows:
                if text := str(row[self.column]).strip():
                    yield text
        except Exception as error:  # the hub's client raises a dozen kinds, from no network to a moved set
            raise DataError(f"{self.path} could not be read from the Hugging Face hub: {error}") from error


Corpus = TextFiles | HubTexts


def open_corpus(sources: Sequence[str | Path]) -> Corpus:
    """Return the corpus that the sources name: text files, or one ``hub:PATH`` or ``hub:PATH:NAME``.

    Raises
    ------
    DataError
        There is none, a file cannot be read or has no text, or files and the hub are mixed.
    """
    from_hub = [str(source) for source in sources if str(source).startswith(HUB_PREFIX)]
    if from_hub:
        if len(sources) > 1:
            raise DataError(f"{from_hub[0]} is a data set of the hub; give it alone, or text files alone")
        data_set, _, name = from_hub[0].removeprefix(HUB_PREFIX).partition(":")
        return HubTexts(data_set, name or None)
    if not sources:
        raise DataError("a corpus needs at least one text file")
    paths = tuple(Path(source) for source in sources)
    counts = tuple(sum(1 for _ in _texts_of(path)) for path in paths)
    for path, count in zip(paths, counts, strict=True):
        if not count:
            raise DataError(f"{path} has no text")
    return TextFiles(paths, counts)


def shuffled_batches(texts: Iterable[str], batch_size: int, seed: Sequence[int]) -> Iterator[list[str]]:
    """Yield batches of texts of similar length, shuffled among the texts of 50 batches at a time."""
    stream = iter(texts)
    generator = np.random.default_rng(list(seed))
    while window := list(islice(stream, batch_size * BATCHES_PER_BUCKET)):
        lengths = np.array([len(text) for text in window])
        for indices in bucketed_indices(lengths, batch_size, generator):
            yield [window[i] for i in indices]


def _texts_of(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                if text := line.strip():
                    yield text
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); --corpus needs text files or hub:NAME") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8") from error

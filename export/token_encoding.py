"""How the words of a sentence become a graph's multi-hot input, and what each of its tables says of a token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from export.errors import GraphError

WORD, PREVIOUS_WORD, POSITION = "word", "previous_word", "position"
"""What a table of inputs says of a token."""


@dataclass(frozen=True)
class TokenEncoding:
    """How token ids become a graph's multi-hot input: one hot for the word, one for that before, one for the position.

    Attributes
    ----------
    vocabulary : int
        Number of word inputs; they come first.
    positions : int
        Number of position inputs, which come last; 0 where the model has no positions.
    before_first : int or None
        Where the input says the word before each token too, by as many inputs as there are words: the word that stands
        before the first token. None where it does not.
    """

    vocabulary: int
    positions: int
    before_first: int | None = None

    @cached_property
    def tables(self) -> dict[str, slice]:
        """The inputs of which one is hot at a time, by what they say, in order."""
        sizes = {
            WORD: self.vocabulary,
            PREVIOUS_WORD: 0 if self.before_first is None else self.vocabulary,
            POSITION: self.positions,
        }
        ends = dict(zip(sizes, np.cumsum(list(sizes.values())).tolist(), strict=True))
        return {said: slice(ends[said] - size, ends[said]) for said, size in sizes.items() if size}

    @property
    def width(self) -> int:
        """Number of inputs."""
        return sum(table.stop - table.start for table in self.tables.values())

    def to_metadata(self) -> dict[str, int]:
        """Return the fields by name; `before_first` where there is one."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def hot_inputs(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the indices that are hot for token ids ``(..., N)``, as ``(number of tables, ..., N)``.

        Raises
        ------
        GraphError
            An id is outside the vocabulary, or there are more tokens than positions.
        """
        ids = np.asarray(input_ids)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary):
            raise GraphError(
                f"token ids span {ids.min()} to {ids.max()}; the graph's vocabulary has ids 0 to {self.vocabulary - 1}"
            )
        hot = {WORD: ids}
        if self.before_first is not None:
            hot[PREVIOUS_WORD] = np.concatenate([np.full_like(ids[..., :1], self.before_first), ids[..., :-1]], -1)
        if self.positions:
            if ids.shape[-1] > self.positions:
                raise GraphError(f"{ids.shape[-1]} tokens are more than the {self.positions} positions of the graph")
            hot[POSITION] = np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
        return np.stack([table.start + hot[said] for said, table in self.tables.items()])

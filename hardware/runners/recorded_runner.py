"""Runner ``recorded``: answers from a trace of somebody else, so that a recording is compared as a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hardware.errors import TraceMismatchError
from hardware.runners.runner import Runner, as_array
from hardware.traces.trace import Trace


class RecordedRunner(Runner):
    """Answers a run from a recorded trace: the next sentences of it, after checking that they are the ones asked for.

    Parameters
    ----------
    trace : Trace
    path : str or Path
        For messages.
    """

    name = "recorded"

    def __init__(self, trace: Trace, path: str | Path = "trace") -> None:
        self.trace = trace
        self.path = path
        self.precision = str(trace.precision)
        self._next = 0

    def seek(self, sentence: int) -> None:
        """Go on with this sentence."""
        self._next = sentence

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Return the next sentences.

        Raises
        ------
        TraceMismatchError
            There are no more, they are longer or shorter, or their words are others.
        """
        ids = as_array(inputs, "inputs")
        mask = np.ones(ids.shape[:2], bool) if token_mask is None else as_array(token_mask, "token_mask") != 0
        start, stop = self._next, self._next + len(ids)
        sentences, tokens = self.trace.mask.shape
        if stop > sentences:
            raise TraceMismatchError(f"{self.path}: holds {sentences} sentences; sentence {stop - 1} is asked for")
        if tokens < mask.shape[1] or self.trace.mask[start:stop, mask.shape[1] :].any():
            longest = int(self.trace.mask[start:stop].sum(-1).max())
            raise TraceMismatchError(
                f"{self.path}: sentences {start} to {stop - 1} have up to {longest} tokens there, {mask.shape[1]} here"
            )
        found = self.trace.rows(start, stop, mask.shape[1])
        if not np.array_equal(found.mask, mask):
            row = start + int(np.argmax((found.mask != mask).any(-1)))
            raise TraceMismatchError(f"{self.path}: sentence {row} has other real tokens there than here")
        if found.input_ids is not None and (found.input_ids != ids)[mask].any():
            row = start + int(np.argmax(((found.input_ids != ids) & mask).any(-1)))
            raise TraceMismatchError(f"{self.path}: sentence {row} has other token ids there than here")
        self._next = stop
        return found

"""What fired in one trace: checked once and added up once, for everyone who counts spikes.

The profiler and the operation counter need the same sums. Reading every spike is what they cost, so whoever wants both
makes one `Firing` and hands it to both. Spikes of 0 and 1 in bytes are read once, check included, where there is a C
compiler (``counting_kernel.c``); whatever else a trace holds, and every other sum, is NumPy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from export.network import Network
from hardware.edges import check_trace
from hardware.errors import TraceError, TraceMismatchError
from hardware.kernels.counting import SpikeSums, add_up_spikes
from hardware.trace import Trace


class Firing:
    """A trace that was checked, and the sums of its spikes, each made when it is first asked for and then kept.

    Parameters
    ----------
    trace : Trace
        Of any runner, or of another tool. Its spikes must not change afterwards.
    network : Network, optional
        What was run; with it, the trace is checked against it.
    real_tokens : ndarray, optional
        ``(B, N)``, nonzero at the tokens to count as real; by default those of the trace's mask. Say it for a run
        that treated padding as ordinary tokens (``attend_to_padding``): its own mask is True everywhere.

    Attributes
    ----------
    trace : Trace
    network : Network or None
    real : ndarray
        ``(B, N)`` bool.

    Raises
    ------
    TraceMismatchError
        The trace is not of this network, see `check_trace`, its spikes have no shape of spikes, or its tokens are not
        those of `real_tokens`.
    TraceError
        A spike is negative or no whole number.
    """

    def __init__(self, trace: Trace, network: Network | None = None, real_tokens: np.ndarray | None = None) -> None:
        self.trace, self.network = trace, network
        self.real = np.asarray(trace.mask if real_tokens is None else real_tokens) != 0
        self._read: dict[str, tuple[int, SpikeSums | None]] = {}
        if network is not None:
            check_trace(trace, network, lambda name, values: self._largest_and_sums(name, values, self.real)[0])
        if self.real.ndim != 2 or self.real.shape != trace.mask.shape:
            raise TraceMismatchError(
                f"real_tokens has shape {self.real.shape}; the trace has {trace.mask.shape} (sentences, tokens)"
            )
        self.nodes = {name: self._node(name, _as_integers(values, name)) for name, values in trace.spikes.items()}

    def _node(self, name: str, values: np.ndarray) -> NodeFiring:
        sentences, tokens = self.real.shape
        if values.ndim != 4 or values.shape[1] != sentences or values.shape[2] not in (1, tokens):
            raise TraceMismatchError(
                f"{name}: spikes have shape {values.shape}; expected (time steps, {sentences} sentences, {tokens} "
                "tokens, neurons)"
            )
        if values.shape[2] == tokens:
            mask = (self.real, self.padding, self.tokens_by_position, self.padding_by_position)
        else:  # behind a token mean, where a sentence has one row
            every_row = np.ones(values.shape[1:3], bool)
            mask = (every_row, ~every_row, every_row.sum(0), (~every_row).sum(0))
        return NodeFiring(values, *self._largest_and_sums(name, values, mask[0]), *mask)

    def _largest_and_sums(self, name: str, values: np.ndarray, real: np.ndarray) -> tuple[int, SpikeSums | None]:
        """Return a node's largest value and, where one pass can have both, the sums of its spikes; read them once."""
        if name not in self._read:
            sums = add_up_spikes(values, real)
            self._read[name] = (int(values.max(initial=0)) if sums is None else sums.largest, sums)
        return self._read[name]

    @cached_property
    def padding(self) -> np.ndarray:
        """``(B, N)``, True at tokens that are not real."""
        return ~self.real

    @cached_property
    def tokens_by_position(self) -> np.ndarray:
        """``(N,)``: real tokens at each position."""
        return self.real.sum(0)

    @cached_property
    def padding_by_position(self) -> np.ndarray:
        """``(N,)``: padding at each position."""
        return self.padding.sum(0)

    @cached_property
    def fires_at_padding(self) -> bool:
        """Whether anything fired at a token that is not real."""
        return any(node.fired_at_padding for node in self.nodes.values())


@dataclass(frozen=True, eq=False)
class NodeFiring:
    """What one node sent.

    Attributes
    ----------
    values : ndarray
        ``(T, B, N, D)`` whole numbers.
    largest : int
        The largest value.
    sums : SpikeSums or None
        Of spikes 0 and 1 that were added up while they were checked.
    real, padding : ndarray
        ``(B, N)`` bool; behind a token mean N is 1 and every row is real.
    tokens_by_position, padding_by_position : ndarray
        ``(N,)``: how many rows are real at each position, and how many are not.
    """

    values: np.ndarray
    largest: int
    sums: SpikeSums | None
    real: np.ndarray
    padding: np.ndarray
    tokens_by_position: np.ndarray
    padding_by_position: np.ndarray

    @cached_property
    def fired_at_padding(self) -> int:
        """Nonzero values at padding."""
        if self.sums is not None:
            return self.sums.at_padding
        if not self.padding_by_position.any():
            return 0
        return int(np.count_nonzero(self.values[:, self.padding]))

    @cached_property
    def fired(self) -> np.ndarray:
        """``(T, B, N, D)``: 1 where it fired at a real token, else 0; `values` themselves where that is the same."""
        fired = self.values if self.largest <= 1 else (self.values != 0).view(np.uint8)
        return fired * self.real[..., None] if self.fired_at_padding else fired

    @cached_property
    def over_sentences(self) -> np.ndarray:
        """``(T, N, D)``: how often it fired at real tokens, over sentences."""
        return _narrow_sum(self.fired, 1, self.values.shape[1])

    @cached_property
    def by_position(self) -> np.ndarray:
        """``(T, N)``: the same over neurons too."""
        if self.sums is not None:
            return self.sums.by_position
        return _narrow_sum(self.over_sentences, 2, self.values.shape[1] * self.values.shape[3])

    @cached_property
    def by_neuron(self) -> np.ndarray:
        """``(T, D)``: over sentences and tokens."""
        if self.sums is not None:
            return self.sums.by_neuron
        return _narrow_sum(self.over_sentences, 1, self.values.shape[1] * self.values.shape[2])

    @cached_property
    def by_step(self) -> np.ndarray:
        """``(T,)``: over sentences, tokens and neurons."""
        return self.by_position.sum(1, dtype=np.int64)


def _as_integers(values: Any, name: str) -> np.ndarray:
    """Return spikes as an integer array; booleans as uint8, without a copy."""
    array = np.asarray(values)
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    if array.dtype.kind not in "ui":
        raise TraceError(f"{name}: spikes are {array.dtype}; they must be whole numbers")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise TraceError(f"{name}: a spike of {array.min()}; spikes are 0 or positive")
    return array


def _narrow_sum(fired: np.ndarray, axis: int, bound: int) -> np.ndarray:
    """Sum over an axis in the narrowest type that holds `bound`, the most that can come out.

    These sums read every spike, and narrow types are what makes them quick.
    """
    if fired.shape[axis] == 1:
        return fired.squeeze(axis)
    return fired.sum(axis, dtype=np.min_scalar_type(bound))

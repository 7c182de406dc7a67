"""What fired in one trace: checked once and added up once, for everyone who counts spikes.

The profiler and the operation counter need the same sums. Reading every spike is what they cost, so whoever wants both
makes one `Firing` and hands it to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from export.network import Network
from hardware.edges import check_trace
from hardware.errors import TraceError, TraceMismatchError
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
        if network is not None:
            check_trace(trace, network)
        self.trace, self.network = trace, network
        self.real = np.asarray(trace.mask if real_tokens is None else real_tokens) != 0
        if self.real.ndim != 2 or self.real.shape != trace.mask.shape:
            raise TraceMismatchError(
                f"real_tokens has shape {self.real.shape}; the trace has {trace.mask.shape} (sentences, tokens)"
            )
        neurons = set() if network is None else {node.name for node in network.spiking_nodes}
        self.nodes = {
            name: self._node(name, _as_integers(values, name), name in neurons) for name, values in trace.spikes.items()
        }

    def _node(self, name: str, values: np.ndarray, checked: bool) -> NodeFiring:
        sentences, tokens = self.real.shape
        if values.ndim != 4 or values.shape[1] != sentences or values.shape[2] not in (1, tokens):
            raise TraceMismatchError(
                f"{name}: spikes have shape {values.shape}; expected (time steps, {sentences} sentences, {tokens} "
                "tokens, neurons)"
            )
        # a network's neurons were found to send 0 and 1; looking for the largest again would cost a tenth of it all
        largest = 1 if checked else int(values.max(initial=0))
        if values.shape[2] == tokens:
            return NodeFiring(
                values, largest, self.real, self.padding, self.tokens_by_position, self.padding_by_position
            )
        every_row = np.ones(values.shape[1:3], bool)  # behind a token mean, where a sentence has one row
        return NodeFiring(values, largest, every_row, ~every_row, every_row.sum(0), (~every_row).sum(0))

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
        No value is larger.
    real, padding : ndarray
        ``(B, N)`` bool; behind a token mean N is 1 and every row is real.
    tokens_by_position, padding_by_position : ndarray
        ``(N,)``: how many rows are real at each position, and how many are not.
    """

    values: np.ndarray
    largest: int
    real: np.ndarray
    padding: np.ndarray
    tokens_by_position: np.ndarray
    padding_by_position: np.ndarray

    @cached_property
    def fired_at_padding(self) -> int:
        """Nonzero values at padding."""
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
        return _narrow_sum(self.over_sentences, 2, self.values.shape[1] * self.values.shape[3])

    @cached_property
    def by_neuron(self) -> np.ndarray:
        """``(T, D)``: over sentences and tokens."""
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

    These sums read every spike, so they decide what profiling costs, and narrow types are what makes them quick.
    """
    if fired.shape[axis] == 1:
        return fired.squeeze(axis)
    return fired.sum(axis, dtype=np.min_scalar_type(bound))

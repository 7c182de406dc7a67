"""The sentences that scales and thresholds are chosen on, and their way through the float graph, node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from export.execution import NodeExecution
from export.network import Network, Node
from export.operators import Operator
from export.passes.intervals import reads_words
from spikebert.errors import ConfigurationError


@dataclass(frozen=True)
class Calibration:
    """Inputs that scales and thresholds are chosen on.

    Attributes
    ----------
    inputs : ndarray
        Token ids ``(B, N)``, or input values ``(T, B, N, D)`` for a graph that reads no tokens.
    mask : ndarray
        ``(B, N)`` bool, True at tokens.
    """

    inputs: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, given: Any) -> Calibration:
        """Return a calibration from sentences of token ids, an array of inputs, or a pair of inputs and mask.

        Raises
        ------
        ConfigurationError
            It is none of these, or holds no token.
        """
        if isinstance(given, Calibration):
            return given
        try:
            if isinstance(given, tuple) and len(given) == 2:
                inputs, mask = (np.asarray(part) for part in given)
            elif isinstance(given, np.ndarray):
                inputs, mask = given, np.ones(given.shape[:2] if given.ndim == 2 else given.shape[1:3], bool)
            else:
                rows: Sequence[Sequence[int]] = [list(row) for row in given]
                mask = np.arange(max(map(len, rows), default=0)) < np.array([[len(row)] for row in rows])
                inputs = np.zeros(mask.shape, np.int64)
                inputs[mask] = [token for row in rows for token in row]
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"the calibration cannot be read as sentences of token ids: {error}") from error
        shape = inputs.shape[:2] if inputs.ndim == 2 else inputs.shape[1:3]
        if inputs.ndim not in (2, 4) or mask.shape != shape or not mask.size or not (mask != 0).any(-1).all():
            raise ConfigurationError(
                f"the calibration has inputs of shape {inputs.shape} and a mask of shape {mask.shape}; expected token "
                "ids (sentences, tokens) or values (time steps, sentences, tokens, features), a token in each sentence"
            )
        return cls(inputs, mask != 0)

    @property
    def largest_input(self) -> int:
        """Largest magnitude of input values, at least 1."""
        return max(1, int(np.ceil(np.abs(self.inputs).max())))


@dataclass
class Streams:
    """What one node sends on the calibration, ``(T, B, N, D)`` each.

    Attributes
    ----------
    floats : ndarray
        In float.
    forced : ndarray or None
        In integers behind the float graph's spikes; None until its whole numbers are tried.
    integers : ndarray or None
        In integers behind integers; the same array as `forced` where no neuron stands before the node.
    """

    floats: np.ndarray
    forced: np.ndarray | None = None
    integers: np.ndarray | None = None


class CalibrationRun:
    """The calibration on its way through a float network.

    Parameters
    ----------
    network : Network
    calibration : Calibration

    Attributes
    ----------
    time_steps : int
    mask : ndarray
        ``(B, N)`` bool.
    token_mask : ndarray or None
        ``(B, N, 1)`` bool; None where there is no padding.
    hot_inputs : ndarray or None
        Multi-hot indices ``(K, B, N)`` of a graph that reads tokens.
    streams : dict of str to Streams
        What each node sends that something still has to read.

    Raises
    ------
    ConfigurationError
        The calibration is not of the kind that the graph reads.
    """

    def __init__(self, network: Network, calibration: Calibration) -> None:
        encoding = network.token_encoding
        if (calibration.inputs.ndim == 2) != (encoding is not None):
            raise ConfigurationError("the calibration holds token ids and the graph takes values, or the reverse")
        self.network, self.mask = network, calibration.mask
        self.token_mask = None if self.mask.all() else self.mask[..., None]
        self.hot_inputs = None if encoding is None else encoding.hot_inputs(calibration.inputs)
        self.time_steps = len(calibration.inputs) if encoding is None else network.time_steps or 1
        self.streams: dict[str, Streams] = {}
        self._unread = Counter(source for node in network.nodes for source in node.sources)
        if encoding is None:
            values = calibration.inputs.astype(np.float64)
            if np.any(values != np.rint(values)):
                raise ConfigurationError(
                    "a graph that takes values is quantized for whole numbers only, such as spikes"
                )
            whole = values.astype(np.int64)
            self.streams[network.input_name] = Streams(values, whole, whole)
        if network.has_cycles:
            self._run_cycles(calibration)

    def run(self, node: Node) -> None:
        """Run through a node all of whose sources have been run."""
        if node.is_previous_step:
            return  # what comes back is known already
        operator = node.operator.cast(np.float32)
        if reads_words(self.network, node):
            floats = self.gather(operator)
        else:
            floats = run_steps(operator, [self.streams[s].floats for s in node.sources], np.float32, self.token_mask)
        self.streams[node.name] = Streams(floats)

    def gather(self, operator: Operator) -> np.ndarray:
        """Return what an operator makes of the words of the calibration, the same in every step."""
        assert self.hot_inputs is not None
        found = operator.gather(self.hot_inputs)
        return np.broadcast_to(found, (self.time_steps, *found.shape))

    def mean_squares(self, node: Node) -> np.ndarray:
        """Return the mean square of each feature that a node reads in float, over steps and tokens, ``(features,)``."""
        width = node.operator.in_features
        if reads_words(self.network, node):
            assert self.hot_inputs is not None
            seen = self.hot_inputs[:, self.mask]
            return np.bincount(seen.reshape(-1), minlength=width) / seen.shape[1]
        (source,) = node.sources
        x = self.streams[source].floats
        real = x if source in self.network.pooled else x[:, self.mask]
        return (real.reshape(-1, width).astype(np.float64) ** 2).mean(0)

    def release(self, stage: tuple[Node, ...]) -> None:
        """Let go of what only these nodes still had to read."""
        for source in (source for node in stage for source in node.sources):
            self._unread[source] -= 1
            if not self._unread[source]:
                self.streams.pop(source, None)

    def _run_cycles(self, calibration: Calibration) -> None:
        """Run the whole graph in float for what recurrent connections bring: the spikes of the step before."""
        network = self.network
        found: dict[str, list[np.ndarray]] = {node.name: [] for node in network.spiking_nodes}
        execution = NodeExecution(network.nodes, np.float32, lambda name, spikes, _: found[name].append(spikes), ())
        for step in range(self.time_steps):
            values = {}
            if self.hot_inputs is None:
                values[network.input_name] = calibration.inputs[step].astype(np.float32)
            execution.step(values, self.token_mask, self.hot_inputs)
        for node in (node for node in network.nodes if node.is_previous_step):
            sent = np.stack(found[node.sources[0]])
            spikes = np.concatenate([np.zeros_like(sent[:1]), sent[:-1]])
            self.streams[node.name] = Streams(spikes, spikes.astype(np.int64))


def run_steps(
    operator: Operator, read: Sequence[np.ndarray], dtype: DTypeLike, token_mask: np.ndarray | None
) -> np.ndarray:
    """Run an operator, cast to `dtype`, over its sources, ``(T, B, N, D)`` each; spikes of padding are zeroed."""
    state = operator.initial_state(read[0].shape[1:], dtype)
    outputs = []
    for steps in zip(*read, strict=True):
        x = tuple(step.astype(dtype, copy=False) for step in steps)
        outputs.append(operator.step(x if len(x) > 1 else x[0], state, token_mask))
    found = np.stack(outputs)
    return found * token_mask if operator.spikes and token_mask is not None else found

"""What a runner is: something that takes inputs through a graph and fills a trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from export.errors import UnsupportedOperatorError
from export.network import INTEGER, Network, with_token_axis
from export.token_encoding import TokenEncoding
from hardware.errors import RunnerError
from hardware.traces.trace import Trace, spike_type

FLOAT_PRECISIONS: dict[str, Any] = {"float32": np.float32, "float64": np.float64}


class Runner(ABC):
    """Runs batches through one graph or model; build once, run often, close at the end.

    Use it as a context manager: a runner may own processes and shared memory.
    """

    name: str
    precision: str

    @abstractmethod
    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch.

        Parameters
        ----------
        inputs : array
            Token ids ``(B, N)``, or for a graph without token encoding input values ``(T, B, N, D)``, which may come
            without tokens as ``(T, B, *shape)``.
        token_mask : array, optional
            ``(B, N)``, nonzero at tokens and 0 at padding; every token counts by default.
        """

    def run_stream(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[Trace]:
        """Run batch after batch, keeping only what is being run in memory.

        Parameters
        ----------
        batches : iterable of (inputs, token_mask)
            As `run` takes them; read a few ahead of what is yielded where a runner works on several at once.

        Yields
        ------
        Trace
            One for each batch, in their order.
        """
        for inputs, token_mask in batches:
            yield self.run(inputs, token_mask)

    def close(self) -> None:  # noqa: B027  most runners hold nothing
        """Give back what the runner holds; a second call does nothing."""

    def __enter__(self) -> Runner:
        """Return the runner."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the runner."""
        self.close()


@dataclass(frozen=True)
class CheckedBatch:
    """Inputs of one run after checking.

    Attributes
    ----------
    input_ids : ndarray or None
        ``(B, N)`` int64.
    hot_inputs : ndarray or None
        ``(number of tables, B, N)``, as `TokenEncoding.hot_inputs` gives them for the ids.
    values : ndarray or None
        ``(T, B, N, D)``; given in place of ids.
    mask : ndarray
        ``(B, N)`` bool.
    time_steps : int
    """

    input_ids: np.ndarray | None
    hot_inputs: np.ndarray | None
    values: np.ndarray | None
    mask: np.ndarray
    time_steps: int

    @property
    def step_mask(self) -> np.ndarray | None:
        """The mask as operators take it, ``(B, N, 1)``, or None where every token counts."""
        return None if self.mask.all() else self.mask[..., None]


class TakesInputs(Protocol):
    """What inputs are checked against: a `Network`, or a file that says the same of itself."""

    @property
    def token_encoding(self) -> TokenEncoding | None:
        """How token ids become inputs; None where values are taken."""

    @property
    def input_features(self) -> int:
        """Width of the input."""

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of the input's features, where it is more than a row of them."""

    @property
    def time_steps(self) -> int | None:
        """Steps a sentence is shown for."""

    @property
    def attend_to_padding(self) -> bool:
        """Whether padding counts as ordinary tokens."""

    @property
    def is_integer(self) -> bool:
        """Whether it computes in whole numbers."""

    @property
    def max_tokens(self) -> int | None:
        """Longest sentence it is sure to compute rightly."""

    @property
    def input_limit(self) -> int | None:
        """Largest magnitude of input values that it is sure to compute rightly."""


def check_batch(network: TakesInputs, inputs: Any, token_mask: Any, time_steps: int | None) -> CheckedBatch:
    """Check inputs against a network.

    Raises
    ------
    RunnerError
        Shapes, types or lengths do not fit; the message says what was expected.
    """
    if network.token_encoding is not None:
        array = check_token_ids(inputs)
        steps = network.time_steps if time_steps is None else time_steps
        if steps is None:
            raise RunnerError("the graph does not say how many time steps to run; give time_steps")
        hot = network.token_encoding.hot_inputs(array)  # refuses ids outside the vocabulary and too many tokens
        ids, values, shape = array, None, array.shape
    else:
        array = with_token_axis(network, as_array(inputs, "inputs"))
        fits = array.ndim == 4 and array.shape[-1] == network.input_features and 0 not in array.shape
        if not fits or array.dtype.kind not in "fiub":
            raise RunnerError(
                f"inputs have shape {array.shape} and type {array.dtype}; this graph takes numbers (time steps, "
                f"sentences, tokens, {network.input_features}), without the axis of tokens one for each sentence, "
                f"(time steps, sentences, {', '.join(map(str, network.input_shape or (network.input_features,)))})"
            )
        if time_steps is not None and time_steps != array.shape[0]:
            raise RunnerError(f"inputs have {array.shape[0]} time steps, but time_steps is {time_steps}")
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise RunnerError(f"inputs{list(where)} is {array[where]}; every input must be finite")
        if network.is_integer and array.dtype.kind == "f" and np.any(array != np.rint(array)):
            raise RunnerError("inputs of an integer graph must be whole numbers")
        if network.input_limit is not None and np.abs(array).max() > network.input_limit:
            raise RunnerError(
                f"inputs reach {np.abs(array).max()}; this integer graph was quantized for up to "
                f"{network.input_limit}; quantize again with such inputs among the calibration"
            )
        ids, hot, values, shape, steps = None, None, array, array.shape[1:3], array.shape[0]
    if network.max_tokens is not None and shape[1] > network.max_tokens:
        raise RunnerError(
            f"{shape[1]} tokens are more than the {network.max_tokens} this integer graph was quantized for; quantize "
            "again with a larger --max-tokens"
        )
    if token_mask is None or network.attend_to_padding:
        mask = np.ones(shape, bool)
    else:
        mask = as_array(token_mask, "token_mask") != 0
        if mask.shape != shape:
            raise RunnerError(f"token_mask has shape {mask.shape}; the inputs need {shape}")
        if not mask.any(-1).all():
            raise RunnerError(f"sentence {int(np.argmin(mask.any(-1)))} has no token: its mask is all zeros")
    return CheckedBatch(ids, hot, values, mask, steps)


def with_input(trace: Trace, network: Network, values: np.ndarray) -> Trace:
    """Return a trace that holds what was fed to the graph, so that whoever reads it is counted by spike too.

    Parameters
    ----------
    trace : Trace
    network : Network
        Without token encoding.
    values : ndarray
        ``(T, B, N, D)`` or ``(T, B, *shape)``. Only spikes and counts, of an unsigned type, are put in: a trace holds
        nothing else, and behind other values everything is dense.
    """
    if values.dtype.kind not in "bu":
        return trace
    return replace(trace, spikes={network.input_name: with_token_axis(network, values), **trace.spikes})


def check_time_steps(time_steps: int | None) -> int | None:
    """Return the number of time steps asked for.

    Raises
    ------
    RunnerError
        It is no whole number of at least 1.
    """
    if time_steps is not None and (isinstance(time_steps, bool) or not isinstance(time_steps, int) or time_steps < 1):
        raise RunnerError(f"time_steps is {time_steps!r}; it must be a whole number of at least 1")
    return time_steps


def check_token_ids(inputs: Any) -> np.ndarray:
    """Return token ids as ``(B, N)`` int64.

    Raises
    ------
    RunnerError
        They have another shape, are none, or are no whole numbers.
    """
    array = as_array(inputs, "inputs")
    if array.ndim != 2 or array.dtype.kind not in "iu" or 0 in array.shape:
        raise RunnerError(
            f"inputs have shape {array.shape} and type {array.dtype}; expected token ids (sentences, tokens), which "
            "are whole numbers"
        )
    return array.astype(np.int64)


def as_array(values: Any, what: str) -> np.ndarray:
    """Return `values` as an array of numbers.

    Raises
    ------
    RunnerError
        They are none, as rows of unequal length.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise RunnerError(f"{what} cannot be made an array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise RunnerError(f"{what} have type {array.dtype}; expected numbers")
    return array


def number_type(network: Network, precision: str) -> Any:
    """Return the NumPy type in which a graph runs at a precision: that precision's, int64 for ``"integer"``.

    Raises
    ------
    RunnerError
        It is no precision, or not the graph's: integer graphs run at precision integer, float graphs do not.
    UnsupportedOperatorError
        An operator is of the other kind of graph, or sends spikes that no trace holds.
    """
    _check_operators(network)
    if network.is_integer and precision != INTEGER:
        raise RunnerError(f"this is an integer graph; it runs at precision {INTEGER!r}, not {precision!r}")
    if precision == INTEGER and not network.is_integer:
        raise RunnerError("this is a float graph; quantize it first (spikebert quantize), then run the integer graph")
    return np.int64 if precision == INTEGER else float_type(precision)


def _check_operators(network: Network) -> None:
    for node in network.nodes:
        operator = node.operator
        if operator.traits.integer not in (None, network.is_integer):
            kinds = ("a float operator in an integer", "an integer operator in a float")
            raise UnsupportedOperatorError(f"{node.name}: {operator.name} is {kinds[operator.traits.integer]} graph")
    for node in network.spiking_nodes:
        if node.name in network.pooled:
            raise UnsupportedOperatorError(
                f"{node.name}: {node.operator.name} sends spikes for a whole sentence; a trace holds those of tokens"
            )


def spike_types(network: Network) -> dict[str, np.dtype]:
    """Return the types in which a trace holds the spikes of a network's neurons, by node in topological order."""
    ranges = {node.name: node.operator.traits.spike_range for node in network.nodes}
    return {name: spike_type(*spikes) for name, spikes in ranges.items() if spikes is not None}


def float_type(precision: str) -> Any:
    """Return the NumPy type of a floating precision.

    Raises
    ------
    RunnerError
        It is not one.
    """
    if precision not in FLOAT_PRECISIONS:
        raise RunnerError(f"precision {precision!r} is not one of {', '.join(FLOAT_PRECISIONS)}")
    return FLOAT_PRECISIONS[precision]

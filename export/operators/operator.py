"""What an operator is: one node of a graph, its meaning, its traits, and how NIR writes it down.

Each operator has one home, a file beside this one: a frozen dataclass of its parameters whose docstring gives equation,
shapes and source, a pure NumPy function that is its meaning, what it is (`Traits`), and its cases; the same again for
its meaning in whole numbers. The reference interpreter and the Lava processes call that home, so equality between those
two proves plumbing; the meaning is proven in ``tests/operators`` against code that shares nothing with it.

What becomes of an operator elsewhere (on a chip, in ONNX, in a count) is no trait: it is a row of that target's table,
see `export.operators.rules`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

import nir
import numpy as np
from numpy.typing import DTypeLike, NDArray

from export.errors import UnsupportedOperatorError
from export.operators.interval import Interval

Array = NDArray[Any]
OperatorType = TypeVar("OperatorType", bound="Operator")

DEFAULT_DT = 1e-4
"""Seconds a time step stands for in a NIR file; snnTorch's default too. It cancels out of every equation here."""
FLOAT64_EXACT = 1 << 53
"""Whole numbers up to this, and sums of them in any order, are exact in float64."""
SUM: Literal["sum"] = "sum"
PREVIOUS_STEP: Literal["previous step"] = "previous step"
"""What edges of a file stand for; see `Traits.edges`."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an operator is, whatever is done with it. Nothing has a default: who writes an operator answers all of it.

    Attributes
    ----------
    integer : bool or None
        Whether it belongs into integer graphs (True), float graphs (False) or either (None).
    spike_range : tuple of int or None
        Least and greatest spike it sends: ``(0, 1)``, or ``(-1, 1)`` for ternary ones. Spikes are masked at padding,
        recorded in a trace and compared. None where its output is no spikes.
    sources : int
        How many ordered sources it has. Of one, several edges into it are summed; of more, each has its place.
    edges : {"sum", "previous step"} or None
        Which edges of a file it stands for, where it is no node there: several into one node, or one that closes a
        cycle.
    keeps_shape : bool
        Whether it acts on each feature by itself, whatever shape they have in a file.
    mixes_tokens : bool
        Whether what it sends at a token depends on other tokens of the sentence.
    pools_tokens : {"mean", "sum", "choice"} or None
        How it makes one vector of a sentence's tokens: their mean, their sum (which stands for the number of tokens
        times the mean), or one of them; None where the tokens stay.
    reads_sentences : bool
        Whether it can stand behind one that pools tokens, and act on one vector a sentence.
    reads_tokens : bool
        Whether it can read the words of a sentence, by `Operator.gather`.
    remembers : bool
        Whether what it sends depends on earlier steps.
    passes_values : bool
        Whether it only sends on what it reads: moved, delayed or summed, but with no arithmetic of its own.
    is_synaptic : bool
        Whether it is synapses, weights between what it reads and what reads it, rather than something that computes.
    needs_program : bool
        Whether a chip needs neurons that run programs for it.
    latency : int
        Steps later than its input that its output arrives where every synaptic hop takes one, as on the chip.
    """

    integer: bool | None
    spike_range: tuple[int, int] | None
    sources: int
    edges: Literal["sum", "previous step"] | None
    keeps_shape: bool
    mixes_tokens: bool
    pools_tokens: Literal["mean", "sum", "choice"] | None
    reads_sentences: bool
    reads_tokens: bool
    remembers: bool
    passes_values: bool
    is_synaptic: bool
    needs_program: bool
    latency: int


@dataclass(frozen=True, eq=False)
class Operator(ABC):
    """One node of a graph, acting on each time step in turn.

    Activations of one step are ``(..., N, D)``: any leading axes, tokens, features. A token mask is ``(..., N, 1)``,
    1 at tokens and 0 at padding, or None where every token counts.
    """

    name: ClassVar[str]
    """Name in NIR metadata (``op``) where NIR has no node for it, and in tables."""
    version: ClassVar[int] = 1
    """Version of the meaning; a reader refuses one it does not know."""
    traits: ClassVar[Traits]
    """What it is."""

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Width of the last axis of its input, or of each of its inputs."""

    @property
    @abstractmethod
    def out_features(self) -> int:
        """Width of the output's last axis."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape that the input's features have in a file; here they are one row of numbers."""
        return (self.in_features,)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape that the output's features have in a file, where the operator does not keep the input's."""
        return (self.out_features,)

    @property
    def spikes(self) -> bool:
        """Whether the output is spikes."""
        return self.traits.spike_range is not None

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Return the state before the first step for inputs of `shape`; None for an operator without memory."""
        return None

    @abstractmethod
    def step(self, x: Any, state: Any, token_mask: Array | None) -> Array:
        """Compute one time step, changing `state` in place; with several sources, `x` is a tuple, in their order."""

    def gather(self, columns: Array) -> Array:
        """Return the output for multi-hot inputs given as the indices that are hot.

        Parameters
        ----------
        columns : ndarray
            ``(K, ..., N)``: K hot inputs for each token.

        Raises
        ------
        UnsupportedOperatorError
            The operator cannot read words; see `Traits.reads_tokens`.
        """
        raise UnsupportedOperatorError(f"{self.name} cannot read token ids; only an affine or linear node can")

    def gathered_interval(self, tables: Iterable[slice]) -> Interval | None:
        """Return the interval of `gather` where one input of each table is hot; None where nothing is claimed."""
        return None

    @abstractmethod
    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return between which whole numbers the output lies, feature by feature; None where nothing is claimed.

        Parameters
        ----------
        read : sequence of Interval or None
            The same of what each source sends.
        tokens : int or None
            The longest sentence; None without limit.
        """

    @abstractmethod
    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return the NIR node, its weights in `dtype`, for steps of `dt` seconds."""

    def check_whole_numbers(self, where: str) -> None:  # noqa: B027 - most have nothing to check
        """Check that node `where` can stand in an integer graph, where operators of either kind can.

        Raises
        ------
        GraphError, ChipLimitError
            Its parameters mean something there is not in whole numbers.
        """

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that the meaning depends on, by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def cast(self: OperatorType, dtype: DTypeLike) -> OperatorType:
        """Return the operator with every array parameter in `dtype`."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}
        return replace(self, **{key: np.ascontiguousarray(value, dtype=dtype) for key, value in arrays.items()})


class SpikingOperator(Operator):
    """An operator that sends spikes: neurons, one for each feature of each token."""

    threshold: Array
    """``(features,)``."""

    @property
    def in_features(self) -> int:
        """One current for each neuron."""
        return self.threshold.shape[0]

    @property
    def out_features(self) -> int:
        """One spike train for each neuron."""
        return self.threshold.shape[0]

    @property
    def tested_threshold(self) -> Array:
        """What the potential is compared with, in its units, ``(features,)``."""
        return self.threshold

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval:
        """Return the least and greatest spike, whatever is read."""
        assert self.traits.spike_range is not None
        low, high = self.traits.spike_range
        return Interval(np.full(self.out_features, float(low)), np.full(self.out_features, float(high)))


@dataclass(frozen=True)
class Case:
    """An example every runner must get right: an operator, its input over time, and a token mask.

    Attributes
    ----------
    title : str
        What the case is about; used as the test's name.
    operator : Operator
        What to run.
    inputs : ndarray
        ``(T, B, N, D)`` float64, or int64 in whole numbers; what several sources send stands side by side.
    token_mask : ndarray or None
        ``(B, N)`` bool.
    """

    title: str
    operator: Operator
    inputs: Array
    token_mask: Array | None = None

"""What was sent some steps ago. Standard NIR node ``Delay``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import ChipLimitError, GraphError, UnsupportedOperatorError
from export.loihi_numbers import DELAY_MAX
from export.operators.interval import Interval
from export.operators.operator import Array, Case, Operator, Traits
from export.operators.reading import StepSeconds, parameter, reads
from export.operators.time_constants import known_dt

WHOLE_STEP_TOLERANCE = 1e-6
"""Relative; float32 files hold a delay to seven digits."""
MAX_DELAY_STEPS = 1 << 16


@dataclass(frozen=True, eq=False)
class Delay(Operator):
    """``y[t] = x[t - steps]``, feature by feature, and 0 before anything came.

    Parameters
    ----------
    steps : ndarray
        ``(features,)`` int64, 0 for none.

    References
    ----------
    NIR's ``Delay``, ``y(t) = x(t - tau)``.
    """

    name: ClassVar[str] = "delay"
    traits: ClassVar[Traits] = Traits(
        integer=None,
        spike_range=None,
        sources=1,
        edges=None,
        keeps_shape=True,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=False,
        reads_tokens=False,
        remembers=True,
        passes_values=True,
        is_synaptic=False,
        needs_program=False,
        latency=0,
    )

    steps: Array

    @property
    def in_features(self) -> int:
        """One value for each delay."""
        return self.steps.shape[0]

    @property
    def out_features(self) -> int:
        """The same."""
        return self.steps.shape[0]

    def check_whole_numbers(self, where: str) -> None:
        """Check that an axon of the chip can wait so long.

        Raises
        ------
        ChipLimitError
            It cannot.
        """
        longest = int(np.argmax(self.steps))
        if self.steps[longest] > DELAY_MAX:
            raise ChipLimitError(
                f"{where}: delay[{longest}] is {self.steps[longest]} steps; it must lie between 0 and {DELAY_MAX}. "
                "Relay it over neurons, or choose a longer time step"
            )

    def cast(self, dtype: DTypeLike) -> Delay:
        """Return the operator as it is: steps are whole numbers in every precision."""
        return replace(self)

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> list[Array]:
        """Return what came in the steps before, newest last: zeros."""
        return [np.zeros(shape, dtype)] * int(self.steps.max())

    def step(self, x: Array, state: list[Array], token_mask: Array | None) -> Array:
        """Remember `x` and return what is due."""
        state.append(x)
        y = np.empty_like(x)
        for steps in np.unique(self.steps):
            due = self.steps == steps
            y[..., due] = state[-1 - int(steps)][..., due]
        del state[0]
        return y

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return what it reads, and 0, which it sends until something came."""
        return None if read[0] is None else Interval(np.minimum(read[0].low, 0), np.maximum(read[0].high, 0))

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Delay`` in seconds."""
        return nir.Delay(np.asarray(self.steps, np.float64) * dt)


@reads(Delay, nir.Delay)
def read_delay(node: nir.Delay, where: str, dt: StepSeconds) -> Delay:
    """Check and read ``nir.Delay`` in steps.

    Raises
    ------
    GraphError
        A delay is negative, or nothing says how long a step is.
    UnsupportedOperatorError
        A delay is no whole number of steps.
    """
    seconds = parameter(node.delay, (None,), where, "delay").astype(np.float64)
    step = known_dt(dt.known, where)
    steps = np.rint(seconds / step)
    if seconds.min() < 0 or steps.max() > MAX_DELAY_STEPS:
        raise GraphError(
            f"{where}: delays of {seconds.min()} to {seconds.max()} s; at steps of {step} s they must lie between 0 "
            f"and {MAX_DELAY_STEPS} steps"
        )
    odd = np.flatnonzero(~np.isclose(seconds, steps * step, rtol=WHOLE_STEP_TOLERANCE, atol=0))
    if odd.size:
        raise UnsupportedOperatorError(
            f"{where}: delay[{odd[0]}] is {seconds[odd[0]]} s, {seconds[odd[0]] / step} steps of {step} s; it must be "
            "a whole number of steps"
        )
    return Delay(steps.astype(np.int64))


def cases() -> list[Case]:
    """Return delays that differ between features, none among them, and one longer than the run."""
    rng = np.random.default_rng(22)
    return [Case("delay", Delay(np.array([0, 1, 3, 9, 1])), rng.normal(size=(6, 2, 3, 5)))]


def integer_cases() -> list[Case]:
    """Return delays up to the longest of the chip."""
    rng = np.random.default_rng(33)
    return [Case("integer delay", Delay(np.array([0, 1, 3, DELAY_MAX, 1])), rng.integers(-9, 10, (6, 2, 3, 5)))]

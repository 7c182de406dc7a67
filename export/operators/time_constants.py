"""Between seconds, in which NIR counts, and time steps, in which operators do."""

from __future__ import annotations

import numpy as np

from export.errors import GraphError
from export.operators.leaky_integrate_and_fire import nearest_inverse
from export.operators.operator import Array

SHORTEST = 1 - 1e-6
"""In steps; float32 files hold a time constant of one step to seven digits."""


def known_dt(dt: float | None, where: str) -> float:
    """Return the seconds of a time step.

    Raises
    ------
    GraphError
        Nothing says how long a step is.
    """
    if dt is None:
        raise GraphError(f"{where}: neither the node nor the graph says dt, the seconds of a time step; give it")
    return dt


def in_steps(seconds: Array, dt: float | None, where: str, name: str) -> Array:
    """Return time constants in steps.

    Raises
    ------
    GraphError
        One is shorter than a step, so that forward Euler would overshoot.
    """
    steps = seconds / known_dt(dt, where)
    if np.any(steps < SHORTEST):
        raise GraphError(f"{where}: {name} of {seconds.min()} s is shorter than a step of {dt} s; give a smaller dt")
    return steps


def in_seconds(steps: Array, dt: float) -> Array:
    """Return time constants in seconds, which `in_steps` turns back to the last bit where there is such a number."""
    return nearest_inverse(lambda seconds: seconds / dt, np.asarray(steps, np.float64), steps * dt)


def per_step(rate: Array, dt: float | None, where: str) -> Array:
    """Return how much of a rate per second falls on a step."""
    return rate * known_dt(dt, where)


def per_second(share: Array, dt: float) -> Array:
    """Return the rate per second, which `per_step` turns back to the last bit where there is such a number."""
    return nearest_inverse(lambda rate: rate * dt, np.asarray(share, np.float64), share / dt)

"""Integrators that never fire. Standard NIR nodes ``LI`` and ``I``; NIR has no node for their whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.operators.interval import Interval
from export.operators.leaky_integrate_and_fire import LeakyIntegrateAndFire
from export.operators.operator import Array, Case, Operator, Traits
from export.operators.reading import StepSeconds, parameter, reads
from export.operators.time_constants import in_seconds, in_steps, per_second, per_step


@dataclass(frozen=True, eq=False)
class LeakyIntegrator(Operator):
    """``U[t] = U[t-1] + (v_leak - U[t-1] + r x[t]) / tau``, sent as it is; without leak ``U[t] = U[t-1] + r x[t]``.

    ``U = 0`` before the first step.

    Parameters
    ----------
    tau : ndarray or None
        ``(features,)``, in steps; None without leak.
    r : ndarray
        ``(features,)``; without leak, for a step: NIR's `r` times dt.
    v_leak : ndarray
        ``(features,)``; 0 without leak.

    References
    ----------
    NIR's ``LI`` and ``I`` in steps of forward Euler, as norse computes them.
    """

    name: ClassVar[str] = "leaky_integrator"
    traits: ClassVar[Traits] = replace(LeakyIntegrateAndFire.traits, spike_range=None)

    tau: Array | None
    r: Array
    v_leak: Array

    @property
    def in_features(self) -> int:
        """One current for each integrator."""
        return self.r.shape[0]

    @property
    def out_features(self) -> int:
        """One potential for each integrator."""
        return self.r.shape[0]

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return potentials of 0."""
        return np.zeros(shape, dtype)

    def step(self, x: Array, state: Array, token_mask: Array | None) -> Array:
        """Return the new potentials."""
        state += charge(x, state, self.tau, self.r, self.v_leak)
        return state.copy()

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Claim nothing: it computes in floating point."""
        return None

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.LI``, or ``nir.I`` without leak; parameters are float64."""
        r, leak = np.asarray(self.r, np.float64), np.asarray(self.v_leak, np.float64)
        if self.tau is None:
            return nir.I(r=per_second(r, dt))
        return nir.LI(tau=in_seconds(self.tau, dt), r=r, v_leak=leak)


def charge(x: Array, potential: Array, tau: Array | None, r: Array, v_leak: Array) -> Array:
    """Return by how much an input `x` changes a potential within a step."""
    return r * x if tau is None else (v_leak - potential + r * x) / tau


@reads(LeakyIntegrator, nir.LI, nir.I)
def read_leaky_integrator(node: nir.LI | nir.I, where: str, dt: StepSeconds) -> LeakyIntegrator:
    """Check and read ``nir.LI`` or ``nir.I`` in steps."""
    r = parameter(node.r, (None,), where, "r").astype(np.float64)
    if isinstance(node, nir.I):
        return LeakyIntegrator(None, per_step(r, dt.known, where), np.zeros_like(r))
    tau = parameter(node.tau, r.shape, where, "tau").astype(np.float64)
    leak = parameter(node.v_leak, r.shape, where, "v_leak").astype(np.float64)
    return LeakyIntegrator(in_steps(tau, dt.known, where, "tau"), r, leak)


def cases() -> list[Case]:
    """Return integrators with leak, with a resting potential, and without leak."""
    rng = np.random.default_rng(26)
    x = rng.normal(size=(6, 2, 3, 4))
    tau, r, leak = np.array([1.0, 2.0, 5.5, 20.0]), np.array([1.0, 2.0, 0.5, -1.0]), np.array([0.0, 0.5, -1.0, 0.0])
    return [
        Case("leaky integrator", LeakyIntegrator(tau, r, np.zeros(4)), x),
        Case("leaky integrator that rests elsewhere", LeakyIntegrator(tau, r, leak), x),
        Case("integrator", LeakyIntegrator(None, r, np.zeros(4)), x),
    ]

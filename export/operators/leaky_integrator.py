"""Integrators that never fire. Standard NIR nodes ``LI`` and ``I``; NIR has no node for their whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.loihi_numbers import (
    ACTIVATION_SHIFT,
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_MAX,
    BIAS_MANTISSA_MIN,
    DECAY_BITS,
    DECAY_MAX,
    DECAY_UNITY,
    POTENTIAL_MAX,
)
from export.operators.leaky_integrate_and_fire import IntegerNeuronState, shift_to_zero, wrap_current
from export.operators.operator import (
    Array,
    Case,
    Operator,
    opaque_node,
    parameter,
    register_parameters,
)
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
    keeps_shape: ClassVar[bool] = True

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

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.LI``, or ``nir.I`` without leak; parameters are float64."""
        r, leak = np.asarray(self.r, np.float64), np.asarray(self.v_leak, np.float64)
        if self.tau is None:
            return nir.I(r=per_second(r, dt))
        return nir.LI(tau=in_seconds(self.tau, dt), r=r, v_leak=leak)


def charge(x: Array, potential: Array, tau: Array | None, r: Array, v_leak: Array) -> Array:
    """Return by how much an input `x` changes a potential within a step."""
    return r * x if tau is None else (v_leak - potential + r * x) / tau


def read_leaky_integrator(node: nir.LI | nir.I, where: str, dt: float | None) -> LeakyIntegrator:
    """Check and read ``nir.LI`` or ``nir.I`` for steps of `dt` seconds."""
    r = parameter(node.r, (None,), where, "r").astype(np.float64)
    if isinstance(node, nir.I):
        return LeakyIntegrator(None, per_step(r, dt, where), np.zeros_like(r))
    tau = parameter(node.tau, r.shape, where, "tau").astype(np.float64)
    leak = parameter(node.v_leak, r.shape, where, "v_leak").astype(np.float64)
    return LeakyIntegrator(in_steps(tau, dt, where, "tau"), r, leak)


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerIntegrator(Operator):
    """Loihi's neuron where it never fires, and its potential, in 64ths of an activation, is what it sends.

    With activation ``a`` and ``t(x) = sign(x) floor(|x| / 4096)``, see `IntegerLeakyIntegrateAndFire`::

        v[t] = t(v[t-1] (4096 - decay)) + wrap24(a << 6) + (bias_mantissa << bias_exponent)
        v[t] between -(2^23 - 1) and 2^23 - 1;  y[t] = v[t]

    and ``v = 0`` before the first step.

    Parameters
    ----------
    decay : ndarray
        ``(features,)``, 0 to 4095.
    bias_mantissa, bias_exponent : ndarray
        ``(features,)``, -4096 to 4095 and 0 to 7, in units of the potential.
    unit : ndarray
        ``(features,)`` float64: what a potential of 1 stands for in the float graph.

    References
    ----------
    ``lava.proc.lif.models.PyLifModelBitAcc`` of lava-nc 0.10.0 below its threshold.
    """

    name: ClassVar[str] = "integer_integrator"
    integer: ClassVar[bool | None] = True

    decay: Array
    bias_mantissa: Array
    bias_exponent: Array
    unit: Array

    @property
    def in_features(self) -> int:
        """One activation for each integrator."""
        return self.decay.shape[0]

    @property
    def out_features(self) -> int:
        """One potential for each integrator."""
        return self.decay.shape[0]

    @property
    def bias(self) -> Array:
        """Bias in units of the potential, ``(features,)``."""
        return self.bias_mantissa << self.bias_exponent

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> IntegerNeuronState:
        """Return potentials of 0, in int64."""
        return IntegerNeuronState(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))

    def step(self, x: Array, state: IntegerNeuronState, token_mask: Array | None) -> Array:
        """Return the new potentials."""
        current = wrap_current(x)
        decayed = shift_to_zero(state.membrane_potential * (DECAY_UNITY - self.decay), DECAY_BITS)
        charged = decayed + current + self.bias
        potential = np.clip(charged, -POTENTIAL_MAX, POTENTIAL_MAX)
        real = np.ones(x.shape, bool) if token_mask is None else np.broadcast_to(token_mask != 0, x.shape)
        state.wrapped_currents += int(np.count_nonzero((current != x << ACTIVATION_SHIFT) & real))
        state.saturated_potentials += int(np.count_nonzero((charged != potential) & real))
        state.membrane_potential = potential
        return potential

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        integers = ("decay", "bias_mantissa", "bias_exponent")
        return opaque_node(
            self,
            {
                **{key: np.asarray(getattr(self, key), np.int32) for key in integers},
                "unit": np.asarray(self.unit, np.float64),
                "axes": "each feature of each token by itself, over time steps",
                "formula": "v = t(v (4096 - decay)) + wrap24(a << 6) + (bias_mantissa << bias_exponent); v clipped to "
                "+-(2^23 - 1); y = v; t(x) = sign(x) floor(|x| / 4096)",
            },
        )


def read_integer_integrator(metadata: dict[str, Any], where: str) -> IntegerIntegrator:
    """Check and read the metadata of a marked composite."""
    limits = {
        "decay": (0, DECAY_MAX),
        "bias_mantissa": (BIAS_MANTISSA_MIN, BIAS_MANTISSA_MAX),
        "bias_exponent": (0, BIAS_EXPONENT_MAX),
    }
    return IntegerIntegrator(**register_parameters(metadata, limits, where))


def integer_cases() -> list[Case]:
    """Return integrators that leak, are biased, and reach the limits of their registers."""
    rng = np.random.default_rng(34)
    operator = IntegerIntegrator(
        decay=np.array([0, 410, 4095, 1]),
        bias_mantissa=np.array([0, -3, 100, BIAS_MANTISSA_MIN]),
        bias_exponent=np.array([0, 2, 0, BIAS_EXPONENT_MAX]),
        unit=np.full(4, 0.25),
    )
    return [
        Case("integer integrator", operator, rng.integers(-9, 10, (8, 2, 3, 4))),
        Case("integer integrator at its limits", operator, rng.integers(-(1 << 18), 1 << 18, (8, 2, 3, 4))),
    ]


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

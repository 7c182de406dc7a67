"""Loihi's neuron with a current that decays, as SLAYER trains it. NIR has no node for its whole numbers."""

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
    STATE_LIMIT,
    THRESHOLD_MAX,
)
from export.operators.leaky_integrate_and_fire import IntegerNeuronState, shift_to_zero
from export.operators.operator import Array, Case, Operator, opaque_node, register_parameters


@dataclass
class IntegerCurrentNeuronState(IntegerNeuronState):
    """State of a population between two steps.

    Attributes
    ----------
    current : ndarray
        int64.
    """

    current: Array | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerCurrentNeuron(Operator):
    """Loihi's neuron in whole numbers, current and potential decaying, bit for bit as stock Lava computes it.

    With activation ``a``, ``t(x) = sign(x) floor(|x| / 4096)``::

        current     u[t] = t(u[t-1] (4096 - current_decay)) + (a << 6)         brought back by 2^24 once beyond 24 bits
        potential   v[t] = t(v[t-1] (4096 - decay)) + u[t] + (bias_mantissa << bias_exponent)
        saturate    v[t] between -(2^23 - 1) and 2^23 - 1
        fire        S[t] = v[t] > threshold << 6
        reset       v[t] = 0 where S[t] = 1

    and ``u = v = S = 0`` before the first step.

    Parameters
    ----------
    threshold : ndarray
        ``(features,)`` mantissas, 0 to 2^17 - 1, in units of the activation.
    current_decay : ndarray
        ``(features,)``, 1 to 4096, in 4096ths; 4096 is `IntegerLeakyIntegrateAndFire`.
    decay : ndarray
        ``(features,)``, 0 to 4095.
    bias_mantissa, bias_exponent : ndarray
        ``(features,)``, -4096 to 4095 and 0 to 7, in units of the potential.
    unit : ndarray
        ``(features,)`` float64: what an activation of 1 stands for in the float graph.

    References
    ----------
    ``lava.proc.lif.models.PyLifModelBitAcc`` of lava-nc 0.10.0, whose ``du`` is `current_decay` - 1.
    """

    name: ClassVar[str] = "integer_current_neuron"
    spikes: ClassVar[bool] = True
    integer: ClassVar[bool | None] = True

    threshold: Array
    current_decay: Array
    decay: Array
    bias_mantissa: Array
    bias_exponent: Array
    unit: Array

    @property
    def update(self) -> str:
        """The equations of one step, in their order, in words a file can carry."""
        return (
            "u = wrap24(t(u (4096 - current_decay)) + (a << 6)); v = t(v (4096 - decay)) + u + (bias_mantissa << "
            "bias_exponent); v clipped to +-(2^23 - 1); s = v > threshold << 6; v = 0 where s; "
            "t(x) = sign(x) floor(|x| / 4096)"
        )

    @property
    def in_features(self) -> int:
        """One activation for each neuron."""
        return self.threshold.shape[0]

    @property
    def out_features(self) -> int:
        """One spike train for each neuron."""
        return self.threshold.shape[0]

    @property
    def bias(self) -> Array:
        """Bias in units of the potential, ``(features,)``."""
        return self.bias_mantissa << self.bias_exponent

    @property
    def tested_threshold(self) -> Array:
        """What the potential is compared with, ``(features,)``."""
        return self.threshold << ACTIVATION_SHIFT

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> IntegerCurrentNeuronState:
        """Return a silent population of `shape`, in int64."""
        potential, spikes, tested, current = (np.zeros(shape, np.int64) for _ in range(4))
        return IntegerCurrentNeuronState(potential, spikes, tested, current=current)

    def step(self, x: Array, state: IntegerCurrentNeuronState, token_mask: Array | None) -> Array:
        """See the class; returns new spikes, 0 or 1 in int64."""
        assert state.current is not None
        arrived = shift_to_zero(state.current * (DECAY_UNITY - self.current_decay), DECAY_BITS) + (
            x << ACTIVATION_SHIFT
        )
        current = np.where(arrived > STATE_LIMIT, arrived - 2 * STATE_LIMIT, arrived)
        current = np.where(current <= -STATE_LIMIT, arrived + 2 * STATE_LIMIT, current)
        charged = shift_to_zero(state.membrane_potential * (DECAY_UNITY - self.decay), DECAY_BITS) + current + self.bias
        potential = np.clip(charged, -POTENTIAL_MAX, POTENTIAL_MAX)
        fired = potential > self.tested_threshold
        real = np.ones_like(fired) if token_mask is None else np.broadcast_to(token_mask != 0, fired.shape)
        state.wrapped_currents += int(np.count_nonzero((current != arrived) & real))
        state.saturated_potentials += int(np.count_nonzero((charged != potential) & real))
        state.current, state.tested_potential = current, potential
        state.membrane_potential = np.where(fired, 0, potential)
        state.spikes = fired.astype(np.int64)
        return state.spikes

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        integers = ("threshold", "current_decay", "decay", "bias_mantissa", "bias_exponent")
        return opaque_node(
            self,
            {
                **{key: np.asarray(getattr(self, key), np.int32) for key in integers},
                "unit": np.asarray(self.unit, np.float64),
                "axes": "each feature of each token by itself, over time steps",
                "formula": self.update,
            },
        )


def read_integer_current_neuron(metadata: dict[str, Any], where: str) -> IntegerCurrentNeuron:
    """Check and read the metadata of a marked composite."""
    limits = {
        "threshold": (0, THRESHOLD_MAX),
        "current_decay": (1, DECAY_UNITY),
        "decay": (0, DECAY_MAX),
        "bias_mantissa": (BIAS_MANTISSA_MIN, BIAS_MANTISSA_MAX),
        "bias_exponent": (0, BIAS_EXPONENT_MAX),
    }
    return IntegerCurrentNeuron(**register_parameters(metadata, limits, where))


def integer_cases() -> list[Case]:
    """Return currents that decay fast, slowly and hardly, biased, and at the limits of their registers."""
    rng = np.random.default_rng(28)
    neuron = IntegerCurrentNeuron(
        threshold=np.array([1, 5, 100, 2000, 0]),
        current_decay=np.array([4096, 2048, 410, 1, 4000]),
        decay=np.array([0, 410, 4095, 2048, 1]),
        bias_mantissa=np.array([0, -3, 100, BIAS_MANTISSA_MIN, 1]),
        bias_exponent=np.array([0, 2, 0, BIAS_EXPONENT_MAX, 6]),
        unit=np.full(5, 0.25),
    )
    mask = np.array([[True, True, False], [True, False, False]])

    def inputs(bits: int) -> Array:
        return rng.integers(-(1 << bits), 1 << bits, (12, 2, 3, 5))

    return [
        Case("integer current neuron", neuron, inputs(6)),
        Case("integer current neuron on padded tokens", neuron, inputs(6), mask),
        Case("integer current neuron that wraps around", neuron, inputs(17)),
    ]


def cases() -> list[Case]:
    """Return none: it is a neuron of integer graphs alone."""
    return []

"""Loihi's neuron in whole numbers, bit for bit as stock Lava computes it; NIR has no node for it.

Three forms: one whose current keeps nothing from step to step, one whose current decays as SLAYER trains it, and one
that never fires and sends its potential.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
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
from export.operators.firing import NeuronState, fires
from export.operators.interval import Interval, symmetric
from export.operators.leaky_integrate_and_fire import LeakyIntegrateAndFire
from export.operators.operator import Array, Case, Operator, SpikingOperator, Traits
from export.operators.reading import (
    integer_parameter,
    metadata_value,
    opaque_node,
    reads_marked,
    register_parameters,
    unit_parameter,
)


@dataclass
class IntegerNeuronState(NeuronState):
    """State of a population of integer neurons, and what the chip's registers could not hold.

    Attributes
    ----------
    wrapped_currents, saturated_potentials : int
        How often, at real tokens, a current wrapped around at 24 bits and a potential was held at its limit.
    """

    wrapped_currents: int = 0
    saturated_potentials: int = 0


class LoihiNeuron(Operator):
    """What all forms have: the registers of a potential that decays and is biased."""

    decay: Array
    """``(features,)``, 0 to 4095: the share of the potential lost from step to step, in 4096ths."""
    bias_mantissa: Array
    bias_exponent: Array

    @property
    def bias(self) -> Array:
        """Bias in units of the potential, ``(features,)``."""
        return self.bias_mantissa << self.bias_exponent

    @property
    def lost_current(self) -> Array:
        """Share of the current lost from step to step, ``(features,)``; what adds up is what comes, divided by it."""
        return np.ones(self.in_features)

    @property
    def registers(self) -> dict[str, Array]:
        """What each register of the chip holds that the form has, by name, ``(features,)``."""
        return {"decay": self.decay, "bias_mantissa": self.bias_mantissa, "bias_exponent": self.bias_exponent}


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerLeakyIntegrateAndFire(SpikingOperator, LoihiNeuron):
    """Loihi's neuron in whole numbers, bit for bit as stock Lava computes it.

    With activation ``a`` (what the synapses send), ``t(x) = sign(x) floor(|x| / 4096)`` and ``<<`` in 32 bits::

        current     u = a << 6                           wrapped at 24 bits, see `wrap_current`
        potential   v[t] = t(v[t-1] (4096 - decay)) + u[t] + (bias_mantissa << bias_exponent)
        subtract    v[t] = v[t] - S[t-1] (threshold << 6)                    (reset="subtract")
        saturate    v[t] between -(2^23 - 1) and 2^23 - 1
        fire        S[t] = v[t] > threshold << 6                             (>= with `fire_on_equal`)
        zero        v[t] = 0 where S[t] = 1                                  (reset="zero")

    and ``v = S = 0`` before the first step. With reset to zero, > and one threshold and decay for all, this is
    ``lava.proc.lif.LIF`` with ``du = 4095`` (the current keeps nothing from step to step), ``dv = decay``; see
    `is_stock_lif`. The other forms are a process of ours with the same arithmetic.

    Parameters
    ----------
    threshold : ndarray
        ``(features,)`` mantissas, 0 to 2^17 - 1, in units of the activation.
    decay : ndarray
        ``(features,)``, 0 to 4095: the share of the potential lost from step to step, in 4096ths.
    bias_mantissa, bias_exponent : ndarray
        ``(features,)``, -4096 to 4095 and 0 to 7, in units of the potential.
    reset : {"subtract", "zero"}
    fire_on_equal : bool
    unit : ndarray
        ``(features,)`` float64: what an activation of 1 stands for in the float graph. A potential of 1 stands for a
        64th of it.

    References
    ----------
    ``lava.proc.lif.models.PyLifModelBitAcc`` of lava-nc 0.10.0.
    """

    name: ClassVar[str] = "integer_leaky_integrate_and_fire"
    traits: ClassVar[Traits] = replace(LeakyIntegrateAndFire.traits, integer=True)

    threshold: Array
    decay: Array
    bias_mantissa: Array
    bias_exponent: Array
    reset: str
    fire_on_equal: bool
    unit: Array

    @property
    def update(self) -> str:
        """The equations of one step, in their order, in words a file can carry."""
        return (
            "u = wrap24(a << 6); v = t(v (4096 - decay)) + u + (bias_mantissa << bias_exponent)"
            + (" - s_before (threshold << 6)" if self.reset == "subtract" else "")
            + f"; v clipped to +-(2^23 - 1); s = v {'>=' if self.fire_on_equal else '>'} threshold << 6"
            + ("; v = 0 where s" if self.reset == "zero" else "")
            + "; t(x) = sign(x) floor(|x| / 4096)"
        )

    @property
    def tested_threshold(self) -> Array:
        """What the potential is compared with, ``(features,)``."""
        return self.threshold << ACTIVATION_SHIFT

    @property
    def registers(self) -> dict[str, Array]:
        """Those of all forms, and the threshold."""
        return {**super().registers, "threshold": self.threshold}

    @property
    def is_stock_lif(self) -> bool:
        """Whether stock ``lava.proc.lif.LIF`` computes it: it takes one threshold and one decay."""
        return (
            self.reset == "zero"
            and not self.fire_on_equal
            and bool(np.all(self.threshold == self.threshold[0]) and np.all(self.decay == self.decay[0]))
        )

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> IntegerNeuronState:
        """Return a silent population of `shape`, in int64."""
        return IntegerNeuronState(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))

    def step(self, x: Array, state: IntegerNeuronState, token_mask: Array | None) -> Array:
        """See the class; returns new spikes, 0 or 1 in int64."""
        current = wrap_current(x)
        decayed = shift_to_zero(state.membrane_potential * (DECAY_UNITY - self.decay), DECAY_BITS)
        charged = decayed + current + self.bias
        if self.reset == "subtract":
            charged = charged - state.spikes * self.tested_threshold
        potential = np.clip(charged, -POTENTIAL_MAX, POTENTIAL_MAX)
        fired = fires(potential, self.tested_threshold, self.fire_on_equal)
        real = np.ones_like(fired) if token_mask is None else np.broadcast_to(token_mask != 0, fired.shape)
        state.wrapped_currents += int(np.count_nonzero((current != x << ACTIVATION_SHIFT) & real))
        state.saturated_potentials += int(np.count_nonzero((charged != potential) & real))
        state.tested_potential = potential
        state.membrane_potential = np.where(fired, 0, potential) if self.reset == "zero" else potential
        state.spikes = fired.astype(np.int64)
        return state.spikes

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        return opaque_node(
            self,
            {
                "threshold": np.asarray(self.threshold, np.int32),
                "decay": np.asarray(self.decay, np.int32),
                "bias_mantissa": np.asarray(self.bias_mantissa, np.int32),
                "bias_exponent": np.asarray(self.bias_exponent, np.int32),
                "reset": self.reset,
                "fire_on_equal": bool(self.fire_on_equal),
                "unit": np.asarray(self.unit, np.float64),
                "axes": "each feature of each token by itself, over time steps",
                "formula": f"{self.update}; a * unit and v * unit / 64 are the float values",
            },
        )


def wrap_current(activation: Array) -> Array:
    """Return ``activation << 6`` as int64, as stock Lava holds it: shifted in int32, then brought back by 2^24 once.

    Within three times its range that is wrapping around modulo 2^24, into -2^23 + 1 to 2^23.
    """
    shifted = (activation << ACTIVATION_SHIFT).astype(np.int32).astype(np.int64)
    wrapped = np.where(shifted > STATE_LIMIT, shifted - 2 * STATE_LIMIT, shifted)
    return np.where(shifted <= -STATE_LIMIT, shifted + 2 * STATE_LIMIT, wrapped)


def shift_to_zero(x: Array, bits: int) -> Array:
    """Return ``sign(x) floor(|x| / 2^bits)``."""
    return np.sign(x) * (np.abs(x) >> bits)


@reads_marked(IntegerLeakyIntegrateAndFire)
def read_integer_neuron(metadata: dict[str, Any], where: str) -> IntegerLeakyIntegrateAndFire:
    """Check and read the metadata of a marked composite."""

    def read(name: str, shape: tuple[int | None, ...], low: int, high: int, remedy: str) -> Array:
        return integer_parameter(metadata.get(name), shape, where, name, low, high, remedy)

    threshold = read("threshold", (None,), 0, THRESHOLD_MAX, "quantize the layer before it with a larger scale")
    shape, bias_remedy = threshold.shape, "quantize the layer before it with a larger scale"
    reset = metadata_value(metadata, "reset", str, where)
    if reset not in ("subtract", "zero"):
        raise GraphError(f"{where}: metadata say reset is {reset!r}; expected 'subtract' or 'zero'")
    return IntegerLeakyIntegrateAndFire(
        threshold=threshold,
        decay=read("decay", shape, 0, DECAY_MAX, "choose a beta between 1/4096 and 1"),
        bias_mantissa=read("bias_mantissa", shape, BIAS_MANTISSA_MIN, BIAS_MANTISSA_MAX, bias_remedy),
        bias_exponent=read("bias_exponent", shape, 0, BIAS_EXPONENT_MAX, bias_remedy),
        reset=reset,
        fire_on_equal=metadata_value(metadata, "fire_on_equal", bool, where),
        unit=unit_parameter(metadata, shape[0], where),
    )


def _neuron_cases() -> list[Case]:
    """Return every form of the neuron near its threshold, and at the limits of its registers."""
    rng = np.random.default_rng(12)
    features = 6

    def neuron(reset: str, fire_on_equal: bool, **changes: Any) -> IntegerLeakyIntegrateAndFire:
        parameters = {
            "threshold": rng.integers(1, 9, features),
            "decay": np.array([0, 410, 2048, 4095, 1, 4000]),
            "bias_mantissa": rng.integers(-64, 65, features),
            "bias_exponent": rng.integers(0, 3, features),
            "unit": np.full(features, 0.125),
        }
        return IntegerLeakyIntegrateAndFire(**{**parameters, **changes}, reset=reset, fire_on_equal=fire_on_equal)

    def inputs(bits: int) -> Array:
        return rng.integers(-(1 << bits), 1 << bits, (6, 2, 4, features))

    silent = np.zeros(features, np.int64)
    found = [
        Case(
            f"integer neuron {reset} {'>=' if fire_on_equal else '>'}",
            neuron(reset, fire_on_equal, bias_mantissa=silent, decay=silent),
            inputs(3),
        )
        for reset in ("subtract", "zero")
        for fire_on_equal in (False, True)
    ]
    extremes = {
        "bias_mantissa": np.array([BIAS_MANTISSA_MIN, BIAS_MANTISSA_MAX, 1, 0, -1, 7]),
        "bias_exponent": np.array([BIAS_EXPONENT_MAX, BIAS_EXPONENT_MAX, 0, 0, 3, 7]),
        "threshold": np.array([0, THRESHOLD_MAX, 1, 1 << 16, 0, 5]),
    }
    mask = np.array([[True, True, False, False], [True, False, False, False]])
    found.append(Case("integer neuron that leaks and is biased", neuron("zero", False), inputs(4)))
    found.append(Case("integer neuron on padded tokens", neuron("subtract", True), inputs(4), mask))
    for reset in ("subtract", "zero"):
        found.append(Case(f"integer neuron {reset} at its limits", neuron(reset, False, **extremes), inputs(17)))
        found.append(Case(f"integer neuron {reset} that wraps around", neuron(reset, True), inputs(19)))
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerIntegrator(LoihiNeuron):
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
    traits: ClassVar[Traits] = replace(IntegerLeakyIntegrateAndFire.traits, spike_range=None, keeps_shape=False)

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

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return what a potential can hold, whatever is read."""
        return symmetric(np.full(self.out_features, POTENTIAL_MAX))

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


@reads_marked(IntegerIntegrator)
def read_integer_integrator(metadata: dict[str, Any], where: str) -> IntegerIntegrator:
    """Check and read the metadata of a marked composite."""
    limits = {
        "decay": (0, DECAY_MAX),
        "bias_mantissa": (BIAS_MANTISSA_MIN, BIAS_MANTISSA_MAX),
        "bias_exponent": (0, BIAS_EXPONENT_MAX),
    }
    return IntegerIntegrator(**register_parameters(metadata, limits, where))


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
class IntegerCurrentNeuron(SpikingOperator, LoihiNeuron):
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
    traits: ClassVar[Traits] = IntegerLeakyIntegrateAndFire.traits

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
    def lost_current(self) -> Array:
        """Share of the current lost from step to step, ``(features,)``."""
        return self.current_decay / DECAY_UNITY

    @property
    def registers(self) -> dict[str, Array]:
        """Those of all forms, the threshold, and the current's decay, which the chip stores less 1."""
        return {**super().registers, "threshold": self.threshold, "current_decay": self.current_decay - 1}

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


@reads_marked(IntegerCurrentNeuron)
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


def _current_neuron_cases() -> list[Case]:
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


def _integrator_cases() -> list[Case]:
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


def integer_cases() -> list[Case]:
    """Return all three forms near their thresholds and at the limits of their registers."""
    return [*_neuron_cases(), *_current_neuron_cases(), *_integrator_cases()]

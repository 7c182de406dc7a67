"""The leaky integrate-and-fire neuron, and the bare threshold.

Both are standard in NIR: hard reset as ``LIF`` (``IF`` without leak), subtractive reset as a nested graph of
``LI -> Threshold -> Scale(-threshold) -> LI`` (``I`` without leak), the bare step as ``Threshold``. NIR fires strictly
above threshold, so a neuron that fires at equality is written with the next smaller number as threshold; metadata say
what was meant, and the reader checks that both agree.

In whole numbers the neuron is Loihi's, as stock Lava computes it bit for bit; NIR has no node for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError, UnsupportedOperatorError
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
from export.operators.operator import (
    DEFAULT_DT,
    Array,
    Case,
    Operator,
    check_standard_marks,
    integer_parameter,
    metadata_value,
    opaque_node,
    parameter,
    unit_parameter,
)

SEARCH_ULPS = 64
LEAK_TOLERANCE = 2.0**-51
"""A decay, or a time constant's ratio to the step, and what NIR's time constant says of it, differ by no more: relative
to 1, or to itself where it is larger. Two divisions and a subtraction in float64 round by less."""
GAIN_TOLERANCE = 1e-12
"""Relative; r dt / tau is 1 but for the rounding of three operations where the input enters whole."""


@dataclass
class NeuronState:
    """State of a population between two steps.

    Attributes
    ----------
    membrane_potential : ndarray
        U behind the reset of the last step.
    spikes : ndarray
        S of the last step, before any masking; bool, or 0 and 1 as numbers.
    tested_potential : ndarray
        U as it was compared with the threshold in the last step; what a trace records.
    """

    membrane_potential: Array
    spikes: Array
    tested_potential: Array


@dataclass(frozen=True, eq=False)
class LeakyIntegrateAndFire(Operator):
    """Leaky integrate-and-fire neurons, one for each feature of each token.

    With input ``I``, potential ``U``, spikes ``S``, in this order, each operation rounded::

        charge      U[t] = beta U[t-1] + I[t]                    (decay_input=False)
                    U[t] = U[t-1] + (I[t] - U[t-1]) / tau        (decay_input=True)
        subtract    U[t] = U[t] - S[t-1] threshold               (reset="subtract")
        fire        S[t] = U[t] > threshold                      (>= with fire_on_equal)
        zero        U[t] = 0 where S[t] = 1                      (reset="zero")

    and ``U = S = 0`` before the first step.

    Parameters
    ----------
    beta : ndarray
        ``(features,)``, in (0, 1]; used without `decay_input`.
    tau : ndarray
        ``(features,)``, in steps, at least 1; used with `decay_input`.
    threshold : ndarray
        ``(features,)``.
    reset : {"subtract", "zero"}
    decay_input, fire_on_equal : bool

    References
    ----------
    Eqs. 1 and 2 of arXiv 2308.15122 (subtract, >=); snntorch.Leaky (subtract, >); SpikingJelly's LIFNode (zero,
    decay_input, >=); lava.proc.lif.LIF with du = 1 (zero, >).
    """

    name: ClassVar[str] = "leaky_integrate_and_fire"
    spikes: ClassVar[bool] = True

    beta: Array
    tau: Array
    threshold: Array
    reset: str = "subtract"
    decay_input: bool = False
    fire_on_equal: bool = False

    def parameters(self) -> dict[str, Any]:
        """Return the parameters but for the leak that the charge does not use."""
        unused = "beta" if self.decay_input else "tau"
        return {name: value for name, value in super().parameters().items() if name != unused}

    @property
    def update(self) -> str:
        """The equations of one step, in their order, in words a file can carry."""
        return _with_test(_UPDATE[self.decay_input, self.reset], self.fire_on_equal)

    @property
    def in_features(self) -> int:
        """One current for each neuron."""
        return self.threshold.shape[0]

    @property
    def out_features(self) -> int:
        """One spike train for each neuron."""
        return self.threshold.shape[0]

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> NeuronState:
        """Return a silent population of `shape`."""
        return NeuronState(np.zeros(shape, dtype), np.zeros(shape, bool), np.zeros(shape, dtype))

    def step(self, x: Array, state: NeuronState, token_mask: Array | None) -> Array:
        """See `leaky_integrate_and_fire`; returns new spikes, 0 or 1 in the type of `x`."""
        potential = leaky_integrate_and_fire(self, x, state.membrane_potential, state.spikes)
        state.spikes = _fires(potential, self.threshold, self.fire_on_equal)
        state.tested_potential = potential
        zero = x.dtype.type(0)
        state.membrane_potential = np.where(state.spikes, zero, potential) if self.reset == "zero" else potential
        return state.spikes.astype(x.dtype)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return standard nodes only; parameters of neurons are always float64.

        NIR knows a decay by its time constant, and not every decay has one in float64 that gives it back to the last
        bit. The nearest is written, an exact one where there is one, and the decay itself stands in the metadata.

        Raises
        ------
        UnsupportedOperatorError
            Only some neurons of the population leak.
        """
        threshold = np.asarray(self.threshold, np.float64)
        fires_above = firing_threshold(threshold, self.fire_on_equal, dtype)
        metadata = {
            "op": self.name,
            "op_version": self.version,
            "standard": True,
            "reset": self.reset,
            "decay_input": self.decay_input,
            "fire_on_equal": self.fire_on_equal,
            "threshold": threshold,
            "dt": dt,
            "update": _UPDATE[self.decay_input, self.reset],
        }
        zeros, ones = np.zeros_like(threshold), np.ones_like(threshold)
        if self.decay_input:
            steps = np.asarray(self.tau, np.float64)
            tau = nearest_inverse(lambda tau: tau / dt, steps, steps * dt)
            metadata["tau_steps"] = steps
            resistance = ones
        elif np.all(self.beta == 1):
            tau, resistance = None, ones / dt
        elif np.any(self.beta == 1):
            raise UnsupportedOperatorError(
                "a population where only some neurons leak: NIR needs them in separate nodes"
            )
        else:
            beta = np.asarray(self.beta, np.float64)
            tau = nearest_inverse(lambda tau: 1 - dt / tau, beta, dt / (1 - beta))
            metadata["beta"] = beta
            resistance = tau / dt
        if self.reset == "zero":
            if tau is None:
                return nir.IF(r=resistance, v_threshold=fires_above, v_reset=zeros, metadata=metadata)
            return nir.LIF(
                tau=tau, r=resistance, v_leak=zeros, v_threshold=fires_above, v_reset=zeros, metadata=metadata
            )
        membrane = nir.I(r=resistance) if tau is None else nir.LI(tau=tau, r=resistance, v_leak=zeros)
        # what is fed back passes the membrane's own input gain: undo it where that is 1 / tau
        feedback = -threshold * (np.asarray(self.tau, np.float64) if self.decay_input else 1)
        width = np.array([self.in_features])
        return nir.NIRGraph(
            nodes={
                "input": nir.Input({"input": width}),
                "membrane": membrane,
                "spike": nir.Threshold(fires_above),
                "reset": nir.Scale(feedback),
                "output": nir.Output({"output": width}),
            },
            edges=[
                ("input", "membrane"),
                ("membrane", "spike"),
                ("spike", "reset"),
                ("reset", "membrane"),
                ("spike", "output"),
            ],
            metadata=metadata,
        )


_UPDATE = {
    (False, "subtract"): "U[t] = ((beta * U[t-1]) + I[t]) - S[t-1] * threshold; S[t] = U[t] > threshold",
    (True, "subtract"): "U[t] = (U[t-1] + (I[t] - U[t-1]) / tau) - S[t-1] * threshold; S[t] = U[t] > threshold",
    (False, "zero"): "U[t] = (beta * U[t-1]) + I[t]; S[t] = U[t] > threshold; U[t] = 0 where S[t]",
    (True, "zero"): "U[t] = U[t-1] + (I[t] - U[t-1]) / tau; S[t] = U[t] > threshold; U[t] = 0 where S[t]",
}


def _with_test(equations: str, fire_on_equal: bool) -> str:
    return equations.replace("> threshold", ">= threshold") if fire_on_equal else equations


def leaky_integrate_and_fire(neuron: LeakyIntegrateAndFire, x: Array, potential: Array, spikes: Array) -> Array:
    """Return the potential to test against the threshold: charge, then subtractive reset."""
    charged = potential + (x - potential) / neuron.tau if neuron.decay_input else neuron.beta * potential + x
    if neuron.reset == "subtract":
        charged -= spikes * neuron.threshold
    return charged


def _fires(potential: Array, threshold: Array, on_equal: bool) -> Array:
    return potential >= threshold if on_equal else potential > threshold


def firing_threshold(threshold: Array, fire_on_equal: bool, dtype: DTypeLike) -> Array:
    """Return, as float64, the threshold for a strict test: `threshold`, or the number of `dtype` just below it."""
    if not fire_on_equal:
        return np.asarray(threshold, np.float64)
    with np.errstate(over="ignore"):  # a threshold that `dtype` cannot hold is beyond all its numbers
        below = np.nextafter(np.asarray(threshold, dtype), np.asarray(-np.inf, dtype))
    return below.astype(np.float64)


def nearest_inverse(forward: Any, wanted: Array, guess: Array) -> Array:
    """Return numbers near `guess` for which ``forward`` gives `wanted` to the last bit; `guess` where none is found."""
    wanted = np.broadcast_to(wanted, guess.shape)
    found, candidates = guess.copy(), (guess.copy(), guess.copy())
    missing = forward(found) != wanted
    for _ in range(SEARCH_ULPS):
        if not missing.any():
            break
        candidates = (np.nextafter(candidates[0], -np.inf), np.nextafter(candidates[1], np.inf))
        for candidate in candidates:
            hit = missing & (forward(candidate) == wanted)
            found[hit] = candidate[hit]
            missing &= ~hit
    return found


def _exact_leak(metadata: dict[str, Any], key: str, read: Array, low: float, high: float, where: str) -> Array:
    """Return the leak that metadata hold to the last bit, after checking that it is what the nodes say."""
    if key not in metadata:
        return read
    exact = parameter(metadata[key], read.shape, where, f"metadata {key}")
    far = np.abs(exact - read) > LEAK_TOLERANCE * np.maximum(1, np.abs(read))
    wrong = np.flatnonzero(far | (exact < low) | (exact > high))
    if wrong.size:
        raise GraphError(
            f"{where}: metadata say that {key} of neuron {wrong[0]} is {exact[wrong[0]]!r}, but its time constant says "
            f"{read[wrong[0]]!r}"
        )
    return exact


def read_neuron(
    node: nir.NIRNode, where: str, dt: float | None, default_dt: float | None = None
) -> LeakyIntegrateAndFire:
    """Check and read a hard-reset ``LIF`` or ``IF``, or the nested graph of a subtractive reset.

    Parameters
    ----------
    node : nir.NIRNode
    where : str
        Its name, for errors.
    dt : float or None
        Seconds of a time step as the graph says.
    default_dt : float or None
        The same where neither graph nor node say.
    """
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    check_standard_marks(metadata, LeakyIntegrateAndFire, where)
    dt = _seconds_of_a_step(metadata, where, dt, default_dt)
    if isinstance(node, nir.NIRGraph):
        reset, membrane = "subtract", node.nodes["membrane"]
        written = parameter(node.nodes["spike"].threshold, (None,), where, "threshold")
        scale = parameter(node.nodes["reset"].scale, written.shape, where, "reset scale")
    else:
        reset, membrane = "zero", node
        written = parameter(node.v_threshold, (None,), where, "v_threshold")
        scale = None
        if np.any(parameter(node.v_reset, written.shape, where, "v_reset")):
            raise UnsupportedOperatorError(f"{where}: v_reset is not 0; only a reset to 0 is supported")
    resistance = parameter(membrane.r, written.shape, where, "r")
    if hasattr(membrane, "tau"):
        tau = parameter(membrane.tau, written.shape, where, "tau")
        if np.any(tau < dt):
            raise GraphError(f"{where}: a time constant of {tau.min()} s is shorter than a step of {dt} s")
        if np.any(parameter(membrane.v_leak, written.shape, where, "v_leak")):
            raise UnsupportedOperatorError(f"{where}: v_leak is not 0; only a leak towards 0 is supported")
        beta = _exact_leak(metadata, "beta", 1 - dt / tau, 0, 1, where)
        tau_steps = _exact_leak(metadata, "tau_steps", tau / dt, 1, np.inf, where)
        input_decays, gain = bool(np.all(resistance == 1)), resistance / tau_steps
    else:
        beta, tau_steps = np.ones_like(written), np.ones_like(written)
        input_decays, gain = False, resistance * dt
    # float32 files hold the two parameters to seven digits
    tolerance = max(GAIN_TOLERANCE, 4 * float(np.finfo(resistance.dtype).eps))
    enters_whole = np.allclose(gain, 1, rtol=tolerance, atol=0)
    if not (input_decays or enters_whole):
        raise UnsupportedOperatorError(f"{where}: r must be tau / dt (input enters whole) or 1 (input decays too)")
    said_to_decay = "decay_input" in metadata and metadata_value(metadata, "decay_input", bool, where)
    decay_input = said_to_decay if input_decays and enters_whole else input_decays  # tau = dt: both forms in one
    for key, read in (("reset", reset), ("decay_input", decay_input)):
        if key in metadata and metadata_value(metadata, key, type(read), where) != read:
            raise GraphError(f"{where}: metadata say {key} is {metadata[key]!r}, but the nodes mean {read!r}")
    threshold, fire_on_equal = _meant_threshold(written, metadata, where)
    if scale is not None:
        wrong = np.flatnonzero(scale != -threshold * (tau_steps if decay_input else 1))
        if wrong.size:
            raise UnsupportedOperatorError(
                f"{where}: the reset of neuron {wrong[0]} is scaled by {scale[wrong[0]]} at a threshold of "
                f"{threshold[wrong[0]]}; it must take away the threshold itself"
            )
    return LeakyIntegrateAndFire(beta, tau_steps, threshold, reset, decay_input, fire_on_equal)


def is_simple_neuron(node: nir.LIF | nir.IF, dt: float | None) -> bool:
    """Return whether `read_neuron` is to read a ``LIF`` or ``IF``: metadata say so, or its parameters are simple.

    Simple is a reset to 0, a leak towards 0, and an input that enters whole or decays like the potential, the same for
    all neurons. The rest is for ``export.operators.resistive_neuron``.
    """
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    if "op" in metadata or dt is None:
        return True
    r = np.asarray(node.r)
    if np.any(node.v_reset) or np.any(getattr(node, "v_leak", 0)):
        return False
    tolerance = max(GAIN_TOLERANCE, 4 * float(np.finfo(r.dtype).eps)) if r.dtype.kind == "f" else GAIN_TOLERANCE
    whole = r * dt / (node.tau if isinstance(node, nir.LIF) else 1)
    return bool(np.allclose(whole, 1, rtol=tolerance, atol=0)) or (isinstance(node, nir.LIF) and bool(np.all(r == 1)))


def _seconds_of_a_step(metadata: dict[str, Any], where: str, dt: float | None, default_dt: float | None) -> float:
    if "dt" in metadata:
        own = float(metadata_value(metadata, "dt", float, where))
        if dt is not None and own != dt:
            raise GraphError(f"{where}: says that dt, the seconds of a time step, is {own}, but the graph says {dt}")
        dt = own
    dt = default_dt if dt is None else dt
    if dt is None:
        raise GraphError(f"{where}: neither the node nor the graph says dt, the seconds of a time step")
    if not (np.isfinite(dt) and dt > 0):
        raise GraphError(f"{where}: dt is {dt}; it must be a positive number of seconds")
    return dt


def _meant_threshold(written: Array, metadata: dict[str, Any], where: str) -> tuple[Array, bool]:
    """Return the threshold that a node's strict one was made from, and whether it fires at equality."""
    fire_on_equal = "fire_on_equal" in metadata and metadata_value(metadata, "fire_on_equal", bool, where)
    if not fire_on_equal and "threshold" not in metadata:
        return written, False
    threshold = parameter(metadata.get("threshold"), written.shape, where, "metadata threshold")
    precisions = (np.float64, np.float32) if fire_on_equal else (np.float64,)
    strict = [firing_threshold(threshold, fire_on_equal, precision) for precision in precisions]
    if not any(np.array_equal(written, above) for above in strict):
        index = int(np.argmax(written != strict[-1]))
        relation = ("at", "the number just below") if fire_on_equal else ("above", "that")
        raise GraphError(
            f"{where}: metadata say that neuron {index} fires {relation[0]} {threshold[index]}, but its threshold "
            f"{written[index]!r} is not {relation[1]}"
        )
    return threshold, fire_on_equal


def is_subtractive_neuron(node: nir.NIRNode) -> bool:
    """Return whether a nested graph is a neuron with subtractive reset, whatever its metadata say."""
    if not isinstance(node, nir.NIRGraph) or set(node.nodes) != {"input", "membrane", "spike", "reset", "output"}:
        return False
    kinds = (node.nodes["membrane"], node.nodes["spike"], node.nodes["reset"])
    edges = {
        ("input", "membrane"),
        ("membrane", "spike"),
        ("spike", "reset"),
        ("reset", "membrane"),
        ("spike", "output"),
    }
    return (
        isinstance(kinds[0], nir.LI | nir.I)
        and isinstance(kinds[1], nir.Threshold)
        and isinstance(kinds[2], nir.Scale)
        and {(str(a), str(b)) for a, b in node.edges} == edges
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


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerLeakyIntegrateAndFire(Operator):
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
    spikes: ClassVar[bool] = True
    integer: ClassVar[bool | None] = True

    threshold: Array
    decay: Array
    bias_mantissa: Array
    bias_exponent: Array
    reset: str
    fire_on_equal: bool
    unit: Array

    @property
    def in_features(self) -> int:
        """One activation for each neuron."""
        return self.threshold.shape[0]

    @property
    def out_features(self) -> int:
        """One spike train for each neuron."""
        return self.threshold.shape[0]

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
    def bias(self) -> Array:
        """Bias in units of the potential, ``(features,)``."""
        return self.bias_mantissa << self.bias_exponent

    @property
    def tested_threshold(self) -> Array:
        """What the potential is compared with, ``(features,)``."""
        return self.threshold << ACTIVATION_SHIFT

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
        fired = _fires(potential, self.tested_threshold, self.fire_on_equal)
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


@dataclass(frozen=True, eq=False)
class Heaviside(Operator):
    """A step without memory: ``S = x > threshold`` (>= with `fire_on_equal`).

    Parameters
    ----------
    threshold : ndarray
        ``(features,)``.
    fire_on_equal : bool

    References
    ----------
    NIR's ``Threshold``. The published SpikeBERT code turns embeddings into spikes with one at 0.
    """

    name: ClassVar[str] = "heaviside"
    spikes: ClassVar[bool] = True
    integer: ClassVar[bool | None] = None

    threshold: Array
    fire_on_equal: bool = False

    @property
    def update(self) -> str:
        """The equation of one step, in words a file can carry."""
        return _with_test("S[t] = I[t] > threshold", self.fire_on_equal)

    @property
    def in_features(self) -> int:
        """One value for each neuron."""
        return self.threshold.shape[0]

    @property
    def out_features(self) -> int:
        """One spike for each neuron."""
        return self.threshold.shape[0]

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> NeuronState:
        """Return a state that only remembers what was tested."""
        return NeuronState(np.zeros(0, dtype), np.zeros(0, dtype), np.zeros(shape, dtype))

    def step(self, x: Array, state: NeuronState, token_mask: Array | None) -> Array:
        """Return 1 where `x` lies above the threshold, else 0."""
        state.tested_potential = x
        return _fires(x, self.threshold, self.fire_on_equal).astype(x.dtype)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Threshold``."""
        threshold = np.asarray(self.threshold, np.float64)
        metadata = {
            "op": self.name,
            "op_version": self.version,
            "standard": True,
            "fire_on_equal": self.fire_on_equal,
            "threshold": threshold,
        }
        return nir.Threshold(firing_threshold(threshold, self.fire_on_equal, dtype), metadata=metadata)


def read_threshold(node: nir.Threshold, where: str) -> Heaviside:
    """Check and read ``nir.Threshold``."""
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    check_standard_marks(metadata, Heaviside, where)
    written = parameter(node.threshold, (None,), where, "threshold")
    return Heaviside(*_meant_threshold(written, metadata, where))


def cases() -> list[Case]:
    """Return every form of the neuron on currents that hit the threshold exactly now and then."""
    rng = np.random.default_rng(3)
    features = 6
    found = []
    for decay_input in (False, True):
        for reset in ("subtract", "zero"):
            for fire_on_equal in (False, True):
                neuron = LeakyIntegrateAndFire(
                    beta=rng.choice([0.5, 0.9, 3686 / 4096], features),
                    tau=rng.choice([2.0, 4.0, 1.5], features),
                    threshold=rng.choice([0.25, 1.0, 0.5], features),
                    reset=reset,
                    decay_input=decay_input,
                    fire_on_equal=fire_on_equal,
                )
                ties = rng.integers(-4, 9, (6, 2, 4, features)) / 8
                title = f"neuron {reset}{' decay_input' if decay_input else ''} {'>=' if fire_on_equal else '>'}"
                found.append(Case(title, neuron, ties))
    no_leak = LeakyIntegrateAndFire(np.ones(features), np.full(features, 2.0), np.ones(features), "subtract")
    found.append(Case("integrate and fire without leak", no_leak, rng.integers(-4, 9, (6, 1, 3, features)) / 8))
    masked = rng.integers(0, 9, (4, 2, 3, features)) / 4
    mask = np.array([[True, True, False], [True, False, False]])
    found.append(Case("neuron on padded tokens", found[0].operator, masked, mask))
    for fire_on_equal in (False, True):
        found.append(
            Case(
                f"heaviside {'>=' if fire_on_equal else '>'}",
                Heaviside(np.zeros(features), fire_on_equal),
                rng.integers(-2, 3, (3, 2, 4, features)).astype(float),
            )
        )
    return found


def integer_cases() -> list[Case]:
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


__all__ = [
    "DEFAULT_DT",
    "Heaviside",
    "IntegerLeakyIntegrateAndFire",
    "IntegerNeuronState",
    "LeakyIntegrateAndFire",
    "NeuronState",
    "cases",
    "firing_threshold",
    "integer_cases",
    "is_simple_neuron",
    "is_subtractive_neuron",
    "leaky_integrate_and_fire",
    "nearest_inverse",
    "read_integer_neuron",
    "read_neuron",
    "read_threshold",
]

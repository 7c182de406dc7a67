"""The leaky integrate-and-fire neuron, and the bare threshold.

Both are standard in NIR: hard reset as ``LIF`` (``IF`` without leak), subtractive reset as a nested graph of
``LI -> Threshold -> Scale(-threshold) -> LI`` (``I`` without leak), the bare step as ``Threshold``. NIR fires strictly
above threshold, so a neuron that fires at equality is written with the next smaller number as threshold; metadata say
what was meant, and the reader checks that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError, UnsupportedOperatorError
from export.operators.operator import (
    DEFAULT_DT,
    Array,
    Case,
    Operator,
    check_standard_marks,
    metadata_value,
    parameter,
)

SEARCH_ULPS = 64
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
        S of the last step, before any masking.
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
    def in_features(self) -> int:
        """One current for each neuron."""
        return self.threshold.shape[0]

    @property
    def out_features(self) -> int:
        """One spike train for each neuron."""
        return self.threshold.shape[0]

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> NeuronState:
        """Return a silent population of `shape`."""
        return NeuronState(np.zeros(shape, dtype), np.zeros(shape, dtype), np.zeros(shape, dtype))

    def step(self, x: Array, state: NeuronState, token_mask: Array | None) -> Array:
        """See `leaky_integrate_and_fire`; returns new spikes, 0 or 1 in the type of `x`."""
        potential = leaky_integrate_and_fire(self, x, state.membrane_potential, state.spikes)
        spikes = _fires(potential, self.threshold, self.fire_on_equal)
        state.tested_potential = potential
        state.membrane_potential = np.where(spikes, x.dtype.type(0), potential) if self.reset == "zero" else potential
        state.spikes = spikes.astype(x.dtype)
        return state.spikes

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return standard nodes only; parameters of neurons are always float64.

        Raises
        ------
        UnsupportedOperatorError
            A decay has no time constant in float64 that gives it back exactly.
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
            tau = _exact_inverse(lambda tau: tau / dt, np.asarray(self.tau, np.float64), self.tau * dt, "tau")
            resistance = ones
        elif np.all(self.beta == 1):
            tau, resistance = None, ones / dt
        elif np.any(self.beta == 1):
            raise UnsupportedOperatorError(
                "a population where only some neurons leak: NIR needs them in separate nodes"
            )
        else:
            beta = np.asarray(self.beta, np.float64)
            tau = _exact_inverse(lambda tau: 1 - dt / tau, beta, dt / (1 - beta), "beta")
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


def leaky_integrate_and_fire(neuron: LeakyIntegrateAndFire, x: Array, potential: Array, spikes: Array) -> Array:
    """Return the potential to test against the threshold: charge, then subtractive reset."""
    charged = potential + (x - potential) / neuron.tau if neuron.decay_input else neuron.beta * potential + x
    return charged - spikes * neuron.threshold if neuron.reset == "subtract" else charged


def _fires(potential: Array, threshold: Array, on_equal: bool) -> Array:
    return potential >= threshold if on_equal else potential > threshold


def firing_threshold(threshold: Array, fire_on_equal: bool, dtype: DTypeLike) -> Array:
    """Return, as float64, the threshold for a strict test: `threshold`, or the number of `dtype` just below it."""
    if not fire_on_equal:
        return np.asarray(threshold, np.float64)
    with np.errstate(over="ignore"):  # a threshold that `dtype` cannot hold is beyond all its numbers
        below = np.nextafter(np.asarray(threshold, dtype), np.asarray(-np.inf, dtype))
    return below.astype(np.float64)


def _exact_inverse(forward: Any, wanted: Array, guess: Array, name: str) -> Array:
    """Return numbers near `guess` for which ``forward`` gives `wanted` to the last bit."""
    wanted = np.broadcast_to(wanted, guess.shape)
    found, candidates = guess.copy(), (guess.copy(), guess.copy())
    missing = forward(found) != wanted
    for _ in range(SEARCH_ULPS):
        if not missing.any():
            return found
        candidates = (np.nextafter(candidates[0], -np.inf), np.nextafter(candidates[1], np.inf))
        for candidate in candidates:
            hit = missing & (forward(candidate) == wanted)
            found[hit] = candidate[hit]
            missing &= ~hit
    if missing.any():
        raise UnsupportedOperatorError(
            f"neuron {name} {float(wanted[missing][0])!r} has no time constant in float64 that gives it back exactly; "
            f"its neighbour {float(forward(guess)[missing][0])!r} has one, choose that"
        )
    return found


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
        beta, tau_steps = 1 - dt / tau, tau / dt
        input_decays, gain = bool(np.all(resistance == 1)), resistance / tau_steps
    else:
        beta, tau_steps = np.ones_like(written), np.ones_like(written)
        input_decays, gain = False, resistance * dt
    enters_whole = np.allclose(gain, 1, rtol=GAIN_TOLERANCE, atol=0)
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

    threshold: Array
    fire_on_equal: bool = False

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


__all__ = [
    "DEFAULT_DT",
    "Heaviside",
    "LeakyIntegrateAndFire",
    "NeuronState",
    "cases",
    "firing_threshold",
    "is_subtractive_neuron",
    "leaky_integrate_and_fire",
    "read_neuron",
    "read_threshold",
]

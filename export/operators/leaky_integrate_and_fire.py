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
from export.operators.firing import NeuronState, fires, firing_threshold, meant_threshold, with_test
from export.operators.heaviside import Heaviside
from export.operators.operator import Array, Case, SpikingOperator, Traits
from export.operators.reading import StepSeconds, check_standard_marks, metadata_value, parameter

SEARCH_ULPS = 64
LEAK_TOLERANCE = 2.0**-51
"""A decay, or a time constant's ratio to the step, and what NIR's time constant says of it, differ by no more: relative
to 1, or to itself where it is larger. Two divisions and a subtraction in float64 round by less."""
GAIN_TOLERANCE = 1e-12
"""Relative; r dt / tau is 1 but for the rounding of three operations where the input enters whole."""


@dataclass(frozen=True, eq=False)
class LeakyIntegrateAndFire(SpikingOperator):
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
    traits: ClassVar[Traits] = Traits(
        integer=False,
        spike_range=(0, 1),
        sources=1,
        edges=None,
        keeps_shape=True,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=False,
        reads_tokens=False,
        remembers=True,
        passes_values=False,
        is_synaptic=False,
        needs_program=False,
        latency=0,
    )

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
        return with_test(_UPDATE[self.decay_input, self.reset], self.fire_on_equal)

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> NeuronState:
        """Return a silent population of `shape`."""
        return NeuronState(np.zeros(shape, dtype), np.zeros(shape, bool), np.zeros(shape, dtype))

    def step(self, x: Array, state: NeuronState, token_mask: Array | None) -> Array:
        """See `leaky_integrate_and_fire`; returns new spikes, 0 or 1 in the type of `x`."""
        potential = leaky_integrate_and_fire(self, x, state.membrane_potential, state.spikes)
        state.spikes = fires(potential, self.threshold, self.fire_on_equal)
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


def leaky_integrate_and_fire(neuron: LeakyIntegrateAndFire, x: Array, potential: Array, spikes: Array) -> Array:
    """Return the potential to test against the threshold: charge, then subtractive reset."""
    charged = potential + (x - potential) / neuron.tau if neuron.decay_input else neuron.beta * potential + x
    if neuron.reset == "subtract":
        charged -= spikes * neuron.threshold
    return charged


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


def read_neuron(node: nir.NIRNode, where: str, dt: StepSeconds) -> LeakyIntegrateAndFire:
    """Check and read a hard-reset ``LIF`` or ``IF``, or the nested graph of a subtractive reset.

    Parameters
    ----------
    node : nir.NIRNode
    where : str
        Its name, for errors.
    dt : StepSeconds
        For a node that does not say.
    """
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    check_standard_marks(metadata, LeakyIntegrateAndFire, where)
    step = _seconds_of_a_step(metadata, where, dt)
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
        if np.any(tau < step):
            raise GraphError(f"{where}: a time constant of {tau.min()} s is shorter than a step of {step} s")
        if np.any(parameter(membrane.v_leak, written.shape, where, "v_leak")):
            raise UnsupportedOperatorError(f"{where}: v_leak is not 0; only a leak towards 0 is supported")
        beta = _exact_leak(metadata, "beta", 1 - step / tau, 0, 1, where)
        tau_steps = _exact_leak(metadata, "tau_steps", tau / step, 1, np.inf, where)
        input_decays, gain = bool(np.all(resistance == 1)), resistance / tau_steps
    else:
        beta, tau_steps = np.ones_like(written), np.ones_like(written)
        input_decays, gain = False, resistance * step
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
    threshold, fire_on_equal = meant_threshold(written, metadata, where)
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


def _seconds_of_a_step(metadata: dict[str, Any], where: str, dt: StepSeconds) -> float:
    step = dt.known
    if "dt" in metadata:
        step = float(metadata_value(metadata, "dt", float, where))
        if dt.said is not None and step != dt.said:
            raise GraphError(
                f"{where}: says that dt, the seconds of a time step, is {step}, but the graph says {dt.said}"
            )
    if step is None:
        raise GraphError(f"{where}: neither the node nor the graph says dt, the seconds of a time step")
    if not (np.isfinite(step) and step > 0):
        raise GraphError(f"{where}: dt is {step}; it must be a positive number of seconds")
    return step


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

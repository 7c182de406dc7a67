"""NIR's neurons with all their parameters: ``LIF``, ``IF`` and ``CubaLIF`` as other tools write them.

Where a ``LIF`` or ``IF`` is one of the simple forms, it is read as `LeakyIntegrateAndFire` instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.operators.firing import NeuronState
from export.operators.leaky_integrate_and_fire import LeakyIntegrateAndFire, is_simple_neuron, read_neuron
from export.operators.leaky_integrator import charge
from export.operators.operator import Array, Case, SpikingOperator, Traits
from export.operators.reading import StepSeconds, parameter, reads
from export.operators.time_constants import in_seconds, in_steps, per_second, per_step


@dataclass
class ResistiveNeuronState(NeuronState):
    """State of a population between two steps.

    Attributes
    ----------
    current : ndarray
        The synapses' current of the last step.
    """

    current: Array


@dataclass(frozen=True, eq=False)
class ResistiveNeuron(SpikingOperator):
    """Integrate-and-fire neurons with resistance, leak potential, reset potential, and a current that may decay too.

    With input ``x``, in this order::

        current     I[t] = I[t-1] + (w_in x[t] - I[t-1]) / tau_syn       (I[t] = x[t] without tau_syn)
        charge      U[t] = U[t-1] + (v_leak - U[t-1] + r I[t]) / tau     (U[t-1] + r I[t] without leak)
        fire        S[t] = U[t] > threshold
        reset       U[t] = v_reset where S[t] = 1

    and ``I = U = 0`` before the first step.

    Parameters
    ----------
    tau : ndarray or None
        ``(features,)``, in steps; None without leak.
    r : ndarray
        ``(features,)``; without leak, for a step: NIR's `r` times dt.
    v_leak, threshold, v_reset : ndarray
        ``(features,)``.
    tau_syn : ndarray or None
        ``(features,)``, in steps; None where the input is the current.
    w_in : ndarray or None
        ``(features,)``; None likewise.

    References
    ----------
    NIR's ``LIF``, ``IF`` and ``CubaLIF`` in steps of forward Euler, as norse computes them.
    """

    name: ClassVar[str] = "resistive_neuron"
    traits: ClassVar[Traits] = LeakyIntegrateAndFire.traits

    tau: Array | None
    r: Array
    v_leak: Array
    threshold: Array
    v_reset: Array
    tau_syn: Array | None = None
    w_in: Array | None = None

    @property
    def update(self) -> str:
        """The equations of one step, in their order, in words a file can carry."""
        current = "" if self.tau_syn is None else "I[t] = I[t-1] + (w_in * x[t] - I[t-1]) / tau_syn; "
        drive = "r * x[t]" if self.tau_syn is None else "r * I[t]"
        charge = f"U[t-1] + {drive}" if self.tau is None else f"U[t-1] + ((v_leak - U[t-1]) + {drive}) / tau"
        return f"{current}U[t] = {charge}; S[t] = U[t] > threshold; U[t] = v_reset where S[t]"

    def parameters(self) -> dict[str, Any]:
        """Return the parameters without those that this form has not."""
        leak = ("v_leak",) if self.tau is None else ()
        return {key: value for key, value in super().parameters().items() if value is not None and key not in leak}

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> ResistiveNeuronState:
        """Return a silent population of `shape`."""
        return ResistiveNeuronState(*(np.zeros(shape, dtype) for _ in range(4)))

    def step(self, x: Array, state: ResistiveNeuronState, token_mask: Array | None) -> Array:
        """See the class; returns new spikes, 0 or 1 in the type of `x`."""
        if self.tau_syn is None:
            state.current = x
        else:
            state.current = state.current + (self.w_in * x - state.current) / self.tau_syn
        before = state.membrane_potential
        potential = before + charge(state.current, before, self.tau, self.r, self.v_leak)
        fired = potential > self.threshold
        state.tested_potential = potential
        state.membrane_potential = np.where(fired, self.v_reset, potential)
        state.spikes = fired.astype(x.dtype)
        return state.spikes

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.LIF``, ``nir.IF`` or ``nir.CubaLIF``; parameters are float64."""
        r, threshold, reset = (np.asarray(p, np.float64) for p in (self.r, self.threshold, self.v_reset))
        if self.tau is None:
            return nir.IF(r=per_second(r, dt), v_threshold=threshold, v_reset=reset)
        tau = in_seconds(self.tau, dt)
        rest: dict[str, Any] = {
            "r": r,
            "v_leak": np.asarray(self.v_leak, np.float64),
            "v_threshold": threshold,
            "v_reset": reset,
        }
        if self.tau_syn is None:
            return nir.LIF(tau=tau, **rest)
        tau_syn = in_seconds(self.tau_syn, dt)
        return nir.CubaLIF(tau_syn=tau_syn, tau_mem=tau, w_in=np.asarray(self.w_in, np.float64), **rest)


@reads(ResistiveNeuron, nir.LIF, nir.IF, nir.CubaLIF)
def read_standard_neuron(
    node: nir.LIF | nir.IF | nir.CubaLIF, where: str, dt: StepSeconds
) -> LeakyIntegrateAndFire | ResistiveNeuron:
    """Check and read ``nir.LIF``, ``nir.IF`` or ``nir.CubaLIF``, as the simpler neuron where it is one."""
    if not isinstance(node, nir.CubaLIF) and is_simple_neuron(node, dt.known):
        return read_neuron(node, where, dt)
    return read_resistive_neuron(node, where, dt.known)


def read_resistive_neuron(node: nir.LIF | nir.IF | nir.CubaLIF, where: str, dt: float | None) -> ResistiveNeuron:
    """Check and read ``nir.LIF``, ``nir.IF`` or ``nir.CubaLIF`` for steps of `dt` seconds."""
    threshold = parameter(node.v_threshold, (None,), where, "v_threshold").astype(np.float64)

    def read(name: str) -> Array:
        return parameter(getattr(node, name), threshold.shape, where, name).astype(np.float64)

    r, reset = read("r"), read("v_reset")
    if isinstance(node, nir.IF):
        return ResistiveNeuron(None, per_step(r, dt, where), np.zeros_like(r), threshold, reset)
    if isinstance(node, nir.LIF):
        return ResistiveNeuron(in_steps(read("tau"), dt, where, "tau"), r, read("v_leak"), threshold, reset)
    tau, tau_syn = (in_steps(read(name), dt, where, name) for name in ("tau_mem", "tau_syn"))
    return ResistiveNeuron(tau, r, read("v_leak"), threshold, reset, tau_syn, read("w_in"))


def cases() -> list[Case]:
    """Return all forms on currents that hit thresholds exactly now and then."""
    rng = np.random.default_rng(27)
    features = 4
    x = rng.integers(-4, 9, (8, 2, 3, features)) / 8
    zeros, halves = np.zeros(features), np.full(features, 0.5)
    tau, r = np.array([2.0, 4.0, 1.0, 8.0]), np.array([1.0, 3.0, 2.0, 0.5])
    leak, reset = np.array([0.25, 0.0, -0.5, 1.0]), np.array([0.0, -0.25, 0.25, 0.0])
    tau_syn, w_in = np.array([1.0, 2.0, 4.0, 2.0]), np.array([1.0, 2.0, 4.0, -1.0])
    return [
        Case("resistive neuron", ResistiveNeuron(tau, r, leak, halves, reset), x),
        Case("resistive neuron without leak", ResistiveNeuron(None, r, zeros, halves, reset), x),
        Case("resistive neuron with synapses", ResistiveNeuron(tau, r, leak, halves, zeros, tau_syn, w_in), x),
    ]

"""The spiking neuron: its parameters, its presets, and the multi-step torch layer that models are made of.

Time is an axis. Everything else in a model sees the time steps folded into the batch; only the recurrence here loops
over them. The order of operations is part of the meaning (it decides ties): the decayed potential is rounded, then the
input is added, then the reset is subtracted. What each form means in NumPy, for every runner, is in
``export.operators.leaky_integrate_and_fire``; this file shares no code with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikebert.errors import ConfigurationError
from spikebert.surrogate import Surrogate, surrogate_gradient

RESETS = ("subtract", "zero")
LOIHI_DECAY_UNITY = 4096  # decays are 12-bit fractions on Loihi


def is_finite(value: object) -> bool:
    """Return whether `value` is a number other than infinity or nan (and not a truth value)."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class NeuronParameters:
    """Everything that decides when a neuron fires.

    With input current ``I``, membrane potential ``U``, spikes ``S`` and ``>`` or ``>=`` as `fire_on_equal` says::

        charge      U[t] = beta U[t-1] + I[t]                          (decay_input=False)
                    U[t] = U[t-1] + (I[t] - U[t-1]) / tau              (decay_input=True)
        fire        S[t] = U[t] > threshold
        reset       "subtract": the charge of step t ends with - S[t-1] threshold, undecayed (Eq. 2, arXiv 2308.15122)
                    "zero":     U[t] becomes 0 where S[t] = 1, after the test

    Parameters
    ----------
    beta : float
        Share of the potential kept from one step to the next, in (0, 1]; 1 integrates without leak. Used where
        `decay_input` is False.
    threshold : float
        Potential at which the neuron fires, > 0.
    reset : {"subtract", "zero"}
        What firing does to the potential. Before the first step nothing has fired, whatever the potential.
    decay_input : bool
        Whether the leak takes from the input too, as SpikingJelly does by default. Without it SpikingJelly computes
        ``U - U / tau + I``, which rounds like ``beta U + I`` only where tau is a power of two.
    tau : float
        Time constant in steps, at least 1. Used where `decay_input` is True.
    fire_on_equal : bool
        Whether a potential equal to the threshold fires.
    initial_membrane_potential : float
        Potential before the first step. NIR and Lava have no place for one that is not 0.

    Raises
    ------
    ConfigurationError
        A value is outside the ranges above.
    """

    beta: float = 0.9
    threshold: float = 1.0
    reset: str = "subtract"
    decay_input: bool = False
    tau: float = 2.0
    fire_on_equal: bool = True
    initial_membrane_potential: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        if not (is_finite(self.beta) and 0 < self.beta <= 1):
            raise ConfigurationError(f"neuron beta is {self.beta!r}; it must be a number in (0, 1]")
        if not (is_finite(self.threshold) and self.threshold > 0):
            raise ConfigurationError(f"neuron threshold is {self.threshold!r}; it must be a positive number")
        if self.reset not in RESETS:
            raise ConfigurationError(f"neuron reset is {self.reset!r}; choose one of {', '.join(RESETS)}")
        if not (is_finite(self.tau) and self.tau >= 1):
            raise ConfigurationError(f"neuron tau is {self.tau!r}; it must be a finite number of at least 1 step")
        for knob in ("decay_input", "fire_on_equal"):
            if not isinstance(getattr(self, knob), bool):
                raise ConfigurationError(f"neuron {knob} is {getattr(self, knob)!r}; it must be True or False")
        if not is_finite(self.initial_membrane_potential):
            raise ConfigurationError(
                f"neuron initial_membrane_potential is {self.initial_membrane_potential!r}; it must be a finite number"
            )

    @property
    def decay(self) -> float:
        """Share of the potential kept from one step to the next, in either form."""
        return 1 - 1 / self.tau if self.decay_input else self.beta


NEURON_PRESETS: dict[str, NeuronParameters] = {
    # Eqs. 1 and 2 and section 4.2 of arXiv 2308.15122
    "paper": NeuronParameters(beta=0.9, threshold=1.0, reset="subtract", fire_on_equal=True),
    # snntorch.Leaky(reset_mechanism="subtract"): the same, strictly above
    "snntorch": NeuronParameters(beta=0.9, threshold=1.0, reset="subtract", fire_on_equal=False),
    # spikingjelly LIFNode(tau=2.0, decay_input=True, v_reset=0.0), as the published SpikeBERT code runs it
    "published": NeuronParameters(decay_input=True, tau=2.0, threshold=1.0, reset="zero", fire_on_equal=True),
    # lava.proc.lif.LIF with du = 1: hard reset, strict, a decay the chip can hold (0.9 rounded to 12 bits)
    "loihi": NeuronParameters(
        beta=round(0.9 * LOIHI_DECAY_UNITY) / LOIHI_DECAY_UNITY, threshold=1.0, reset="zero", fire_on_equal=False
    ),
}


def neuron_preset(name: str, **changes: Any) -> NeuronParameters:
    """Return the preset called `name` with `changes` applied (those that are None are left out).

    The leak may be given as `beta` or as `tau` whatever the form of the charge: ``beta = 1 - 1 / tau``. Where only
    `decay_input` changes, the preset's leak stays.

    Raises
    ------
    ConfigurationError
        No preset has that name, both `beta` and `tau` are given, or a changed value is not allowed.
    """
    if not isinstance(name, str) or name not in NEURON_PRESETS:
        raise ConfigurationError(f"neuron preset {name!r} is not known; choose one of {', '.join(NEURON_PRESETS)}")
    preset = NEURON_PRESETS[name]
    changes = {key: value for key, value in changes.items() if value is not None}
    if "beta" in changes and "tau" in changes:
        raise ConfigurationError(
            f"neuron beta is {changes['beta']!r} and tau {changes['tau']!r}; give one of them: beta = 1 - 1 / tau"
        )
    neuron = replace(preset, **changes)
    leak_is_beta = "beta" in changes or ("tau" not in changes and not preset.decay_input)
    if neuron.decay_input and leak_is_beta:
        if neuron.beta == 1:
            raise ConfigurationError(f"neuron beta is {neuron.beta}; with decay_input it must lie in (0, 1)")
        return replace(neuron, tau=1 / (1 - neuron.beta))
    if not neuron.decay_input and not leak_is_beta:
        if neuron.tau == 1:
            raise ConfigurationError(f"neuron tau is {neuron.tau}; without decay_input it must be above 1 step")
        return replace(neuron, beta=1 - 1 / neuron.tau)
    return neuron


class SpikingNeuron(nn.Module):
    """A population of spiking neurons, run over all time steps at once.

    Parameters
    ----------
    parameters : NeuronParameters
        When the neurons fire.
    surrogate : str
        Name of the surrogate gradient, see ``spikebert.surrogate``.
    alpha : float
        Its sharpness; 2 in the paper.
    """

    def __init__(self, parameters: NeuronParameters, surrogate: str = "arctangent", alpha: float = 2.0) -> None:
        super().__init__()
        self.parameters_of_neuron = parameters
        self.gradient = surrogate_gradient(surrogate, alpha)
        self.alpha = alpha
        self.recurrence, self.recurrence_gradient = _recurrence, _recurrence_gradient

    def compile_recurrence(self) -> None:
        """Run the loop over time as one compiled kernel from now on: faster training, after seconds of compiling.

        The compiler may round a product and a sum together, so what proves equality leaves this alone.
        """
        self.recurrence = torch.compile(_recurrence, dynamic=True)
        self.recurrence_gradient = torch.compile(_recurrence_gradient, dynamic=True)

    def forward(
        self,
        current: Tensor,
        record_potential: Callable[[Tensor], None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Turn input currents into spikes.

        Parameters
        ----------
        current : Tensor
            ``(T, ...)`` floating point; half precisions keep their state in float32.
        record_potential : callable, optional
            Receives the membrane potentials ``(T, ...)`` as they were tested against the threshold.
        mask : Tensor, optional
            What each step's spikes are multiplied by, 0 or 1, such as ``(B, N, 1)`` to silence padding.

        Returns
        -------
        Tensor
            Spikes, 0 or 1, in the shape and type of `current`.
        """
        spikes, potential = _MultiStep.apply(
            current,
            mask,
            self.parameters_of_neuron,
            self.gradient,
            self.alpha,
            self.recurrence,
            self.recurrence_gradient,
        )
        if record_potential is not None:
            record_potential(potential.detach())
        return spikes

    def extra_repr(self) -> str:
        """Show the parameters in the printed model."""
        return str(self.parameters_of_neuron)


class Heaviside(nn.Module):
    """A step without memory: 1 where the input lies above 0 (or at 0, with `fire_on_equal`), the same at every step.

    The published SpikeBERT code turns embeddings into spikes with it.
    """

    def __init__(self, fire_on_equal: bool, surrogate: str = "arctangent", alpha: float = 2.0) -> None:
        super().__init__()
        self.fire_on_equal = fire_on_equal
        self.gradient = surrogate_gradient(surrogate, alpha)
        self.alpha = alpha

    def forward(
        self,
        current: Tensor,
        record_potential: Callable[[Tensor], None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Turn currents of any shape into spikes of the same shape; the current itself is the potential."""
        if record_potential is not None:
            record_potential(current.detach())
        return _Step.apply(current, mask, self.fire_on_equal, self.gradient, self.alpha)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, mask: Tensor | None, fire_on_equal: bool, gradient: Surrogate, alpha: float
    ) -> Tensor:
        ctx.save_for_backward(current, mask)
        ctx.gradient, ctx.alpha = gradient, alpha
        spikes = (current >= 0 if fire_on_equal else current > 0).to(current.dtype)
        return spikes if mask is None else spikes.mul_(mask.to(spikes.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        current, mask = ctx.saved_tensors
        grad_current = ctx.gradient(current, ctx.alpha).mul_(grad_outputs[0])
        if mask is not None:
            grad_current.mul_(mask)
        return grad_current, None, None, None, None


class _MultiStep(torch.autograd.Function):
    """The recurrence forward, and its analytic gradient backward; the reset carries no gradient, as in snnTorch.

    The spikes that are kept are the masked ones, which whatever comes next keeps too. Backward they say where a
    potential was reset, which where the mask is 0 nothing asks: no gradient comes in there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        mask: Tensor | None,
        neuron: NeuronParameters,
        gradient: Surrogate,
        alpha: float,
        recurrence: Callable,
        recurrence_gradient: Callable,
    ) -> tuple[Tensor, Tensor]:
        spikes, potentials = recurrence(current, neuron)
        if mask is not None:
            spikes.mul_(mask.to(spikes.dtype))  # in their own type, half precision too
        ctx.save_for_backward(spikes, potentials, mask)
        ctx.neuron, ctx.gradient, ctx.alpha, ctx.recurrence_gradient = neuron, gradient, alpha, recurrence_gradient
        ctx.mark_non_differentiable(potentials)
        ctx.set_materialize_grads(False)  # potentials have no gradient; do not make zeros for it
        return spikes, potentials

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        grad_current = ctx.recurrence_gradient(grad_outputs[0], *ctx.saved_tensors, ctx.neuron, ctx.gradient, ctx.alpha)
        return grad_current, None, None, None, None, None, None


def _recurrence(current: Tensor, neuron: NeuronParameters) -> tuple[Tensor, Tensor]:
    """Return spikes, and the potentials tested against the threshold, both ``(T, ...)``.

    Memory is what this waits for, fresh memory above all, so it works in place; every operation rounds on its own, in
    the order that is meant.
    """
    state_type = torch.float64 if current.dtype == torch.float64 else torch.float32
    fires = torch.ge if neuron.fire_on_equal else torch.gt
    spikes = torch.empty_like(current)
    potentials = torch.empty_like(current, dtype=state_type)
    kept = torch.full_like(potentials[0], neuron.initial_membrane_potential)  # what the step before leaves
    for step in range(current.shape[0]):
        potential, fired = potentials[step], spikes[step]
        if neuron.decay_input:
            torch.sub(current[step], kept, out=potential).div_(neuron.tau).add_(kept)
        else:
            torch.mul(kept, neuron.beta, out=potential).add_(current[step])
        if neuron.reset == "subtract" and step:
            potential.sub_(spikes[step - 1], alpha=neuron.threshold)  # 0 or 1 times the threshold: nothing to round
        fires(potential, neuron.threshold, out=fired)
        if neuron.reset == "zero":
            torch.addcmul(potential, potential, fired, value=-1, out=kept)  # itself or 0: nothing to round
        else:
            kept = potential
    return spikes, potentials


def _recurrence_gradient(
    grad_spikes: Tensor,
    spikes: Tensor,
    potentials: Tensor,
    mask: Tensor | None,
    neuron: NeuronParameters,
    gradient: Surrogate,
    alpha: float,
) -> Tensor:
    """Return the gradient of the input current ``(T, ...)`` from that of the spikes."""
    grad_current = torch.empty_like(potentials)
    carried, at_threshold = torch.zeros_like(potentials[0]), torch.empty_like(potentials[0])
    for step in range(spikes.shape[0] - 1, -1, -1):
        if neuron.reset == "zero":  # what was reset does not reach the next step
            carried.addcmul_(carried, spikes[step], value=-1)
        torch.sub(potentials[step], neuron.threshold, out=at_threshold)
        gradient(at_threshold, alpha, out=at_threshold).mul_(grad_spikes[step])
        if mask is not None:
            at_threshold.mul_(mask)
        carried.add_(at_threshold)  # the gradient of the potential
        if neuron.decay_input:
            torch.div(carried, neuron.tau, out=grad_current[step])
        else:
            grad_current[step] = carried
        carried.mul_(neuron.decay)
    return grad_current.to(grad_spikes.dtype)

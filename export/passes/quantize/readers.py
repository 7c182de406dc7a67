"""What a node asks of the whole numbers that it reads: a function for each kind of reader, and what they answer with.

Whoever chooses a scale asks all that read it how large a number they take, whether a threshold has to fit a register,
which features have to share a scale, and where a bias may go. Which operator asks what stands in its row, see `rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import ChipLimitError
from export.loihi_numbers import (
    ACTIVATION_MAX,
    ACTIVATION_SHIFT,
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_MAX,
    DECAY_UNITY,
    THRESHOLD_MAX,
)
from export.network import Node
from export.operators import (
    Heaviside,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    ResistiveNeuron,
)
from export.operators.layer_norm import INPUT_BITS, RADICAND_BITS

BIAS_MAX = BIAS_MANTISSA_MAX << BIAS_EXPONENT_MAX
WRAPS = "its current wraps around: split the sum before it, or shorten the synapses' time constant"
"""What happens to neurons beyond the largest activation."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reader:
    """What one node asks of what it reads. Without any of these, it takes whole numbers of any size and scale.

    Attributes
    ----------
    largest : float
        Largest magnitude that it takes.
    beyond : str
        What happens beyond that, and what to do.
    by_feature : bool
        Whether each feature may have a scale of its own.
    groups : int
        How many equal parts of the features may have a scale each; within a part it has to be the same.
    threshold : ndarray or None
        ``(features,)``, in the float graph's numbers: what has to come, within a step, for it to fire. A register holds
        it, in units of what comes.
    takes_bias : bool
        Whether a bias of what it reads may be its own: its current keeps nothing, so both are alike.
    """

    largest: float = np.inf
    beyond: str = "it takes no more: scale down what it reads"
    by_feature: bool = False
    groups: int = 1
    threshold: np.ndarray | None = None
    takes_bias: bool = False

    def least_unit(self, bias: np.ndarray) -> np.ndarray:
        """Return the smallest units ``(features,)`` in which its registers hold its threshold, and a bias it reads."""
        if self.threshold is None:
            return np.zeros(len(bias))
        return np.maximum(self.threshold / THRESHOLD_MAX, np.abs(bias) * (1 << ACTIVATION_SHIFT) / BIAS_MAX)

    def takes(self, magnitude: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Return which features it takes, of a largest magnitude and a unit each, ``(features,)``."""
        return magnitude <= self.largest


@dataclass(frozen=True, eq=False, kw_only=True)
class NormReader(Reader):
    """A layer norm: its squares must fit, summed up over a group, with eps in their units.

    Attributes
    ----------
    eps : float
        In the float graph's numbers.
    """

    eps: float

    def takes(self, magnitude: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Return which features it takes: all of a group, or none."""
        size = len(unit) // self.groups
        parts = magnitude.reshape(self.groups, size)
        squares = (parts**2).sum(-1) * size
        eps = size**2 * self.eps / unit.reshape(self.groups, size)[:, 0] ** 2
        fits = (squares + eps < 1 << (RADICAND_BITS - 1)) & (parts.max(-1) < 1 << (INPUT_BITS - 1))
        return np.repeat(fits, size)


Asks = Callable[[Node, Any, int], Reader]
"""Returns what a node asks; takes the node, its operator, and how many time steps a sentence is shown for."""


def nothing(node: Node, operator: Operator, time_steps: int) -> Reader:
    """Whatever comes is multiplied and added in whole numbers that do not wrap, or sent on."""
    return Reader()


def heaviside(node: Node, operator: Heaviside, time_steps: int) -> Reader:
    """A comparison of whole numbers, each feature by itself."""
    return Reader(by_feature=True)


def layer_norm(node: Node, norm: LayerNorm, time_steps: int) -> Reader:
    """Its squares, summed up; groups may differ in scale."""
    return NormReader(groups=norm.groups, eps=norm.eps)


def neuron(node: Node, neuron: LeakyIntegrateAndFire, time_steps: int) -> Reader:
    """Where the leak takes from the input, tau times as much has to come."""
    threshold = np.asarray(neuron.threshold, np.float64)
    return Reader(
        largest=ACTIVATION_MAX,
        beyond=WRAPS,
        by_feature=True,
        threshold=threshold * neuron.tau if neuron.decay_input else threshold,
        takes_bias=True,
    )


def resistive_neuron(node: Node, neuron: ResistiveNeuron, time_steps: int) -> Reader:
    """A current that decays sums up what comes; what the input is multiplied with is left to the threshold."""
    largest = ACTIVATION_MAX
    if neuron.tau_syn is not None:
        # a current that loses one part in n a step sums up no more than n activations
        lost = max(1, int(np.rint(DECAY_UNITY / neuron.tau_syn).min()))
        largest = ACTIVATION_MAX * lost // DECAY_UNITY
    return Reader(
        largest=largest,
        beyond=WRAPS,
        by_feature=True,
        threshold=np.asarray(neuron.threshold, np.float64) / resistive_gain(node, neuron),
        takes_bias=neuron.tau_syn is None,
    )


def integrator(node: Node, integrator: LeakyIntegrator, time_steps: int) -> Reader:
    """Its potential sums up what comes over the steps of a sentence, or of its leak."""
    steps = float(time_steps) if integrator.tau is None else min(time_steps, float(integrator.tau.max()))
    return Reader(largest=int(ACTIVATION_MAX / steps), beyond=WRAPS)


def resistive_gain(node: Node, neuron: ResistiveNeuron) -> np.ndarray:
    """Return what neurons multiply their input with on its way to the potential, ``(features,)``; it is positive.

    Raises
    ------
    ChipLimitError
        It is not.
    """
    gain = _membrane_gain(neuron.r, neuron.tau)
    if neuron.tau_syn is not None and neuron.w_in is not None:
        gain = gain * neuron.w_in / neuron.tau_syn
    return _positive(node, gain)


def integrator_gain(node: Node, integrator: LeakyIntegrator) -> np.ndarray:
    """Return the same of integrators."""
    return _positive(node, _membrane_gain(integrator.r, integrator.tau))


def _membrane_gain(r: np.ndarray, tau: np.ndarray | None) -> np.ndarray:
    return np.asarray(r if tau is None else r / tau, np.float64)


def _positive(node: Node, gain: np.ndarray) -> np.ndarray:
    if gain.min() <= 0:
        raise ChipLimitError(
            f"{node.name}: neuron {int(np.argmin(gain))} multiplies its input with {gain.min():.3g}; in whole numbers "
            "that is left to threshold and scale, which are positive: put the sign into the weights before it"
        )
    return gain

"""What each operator is on a chip: synapses, neurons, neurons that run programs, or nothing of its own.

These are the rows of `PLACEMENT`: an operator that has none cannot be placed. ``mapping`` makes populations and
projections of them, ``rules`` asks whether the chip holds what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.network import Node
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    RuleTable,
    Scale,
    SpikeAttention,
    TokenMean,
    Total,
    rule_for,
)
from hardware.loihi.connectivity import AttentionReads, Connectivity, Convolutional, Dense


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an operator is on a chip.

    Attributes
    ----------
    remedy : str
        What to do about an operator that needs a program where no neuron runs one.
    """

    remedy: str = "take a chip whose neurons run programs"


@dataclass(frozen=True, kw_only=True)
class PassedOn(Form):
    """Nothing of its own: who reads it reads what it reads.

    Attributes
    ----------
    delay : int
        Steps later.
    """

    delay: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Synapses(Form):
    """Synapses between what it reads and the neurons that read it.

    Attributes
    ----------
    connectivity : Connectivity or None
        None: one to one, whatever shape the neurons have. Behind other synapses those are factors of their weights.
    weights : ndarray or None
        What has to fit the chip's bits; None where every weight is 1, 0 or -1.
    """

    connectivity: Connectivity | None
    weights: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Neurons(Form):
    """A neuron for each feature.

    Attributes
    ----------
    registers : dict of str to ndarray
        What its registers hold, by name; see `export.operators.LoihiNeuron.registers`.
    reset : str
        In words, where it is none to zero.
    fires_on_equal : bool
        Whether it fires at its threshold, too.
    """

    registers: Mapping[str, np.ndarray] = field(default_factory=dict)
    reset: str = ""
    fires_on_equal: bool = False


@dataclass(frozen=True, kw_only=True)
class Programs(Form):
    """Neurons that run a program, a neuron for each feature.

    Attributes
    ----------
    reads : tuple of Connectivity
        From each of its sources, without weights; empty where it reads as any neuron does.
    indivisible : int
        Features that cannot be split between cores.
    gathering : int
        Groups of features that each have one neuron more, which gathers from them and sends back; 0 without.
    """

    reads: tuple[Connectivity, ...] = ()
    indivisible: int = 1
    gathering: int = 0


@dataclass(frozen=True, kw_only=True)
class OnHost(Form):
    """Nothing on the chip: the host computes it."""


PLACEMENT: RuleTable[Callable[[Any], Form]] = RuleTable("placement")
"""What each operator is on a chip."""


def form_of(node: Node) -> Form:
    """Return what a node is on a chip.

    Raises
    ------
    UnsupportedOperatorError
        Nobody said what its operator is there.
    """
    return rule_for(PLACEMENT, node)(node.operator)


@PLACEMENT.row(Total, Flatten, PreviousStep)
def _passed_on(operator: Total | Flatten | PreviousStep) -> Form:
    return PassedOn()


@PLACEMENT.row(Delay)
def _delayed(operator: Delay) -> Form:
    return PassedOn(delay=int(operator.steps.max()))


@PLACEMENT.row(Affine)
def _affine(operator: Affine) -> Form:
    return Synapses(connectivity=Dense(operator.in_features), weights=operator.weight)


@PLACEMENT.row(Convolution)
def _convolution(operator: Convolution) -> Form:
    connectivity = Convolutional(
        operator.in_shape[0],
        operator.out_shape[0],
        operator.groups,
        operator.size,
        operator.weight.shape[2:],
        operator.stride,
        operator.dilation,
        operator.padding,
    )
    return Synapses(connectivity=connectivity, weights=operator.weight)


@PLACEMENT.row(Pooling)
def _pooling(operator: Pooling) -> Form:
    channels, *size = operator.shape
    padding = tuple((pad, pad) for pad in operator.padding)
    connectivity = Convolutional(
        channels, channels, channels, tuple(size), operator.kernel, operator.stride, (1, 1), padding
    )
    return Synapses(connectivity=connectivity)


@PLACEMENT.row(Scale)
def _scale(operator: Scale) -> Form:
    return Synapses(connectivity=None)


@PLACEMENT.row(LeakyIntegrateAndFire)
def _neurons(operator: LeakyIntegrateAndFire) -> Form:
    return Neurons(reset=_reset_in_words(operator.reset), fires_on_equal=operator.fire_on_equal)


@PLACEMENT.row(IntegerLeakyIntegrateAndFire)
def _integer_neurons(operator: IntegerLeakyIntegrateAndFire) -> Form:
    reset = _reset_in_words(operator.reset)
    return Neurons(registers=operator.registers, reset=reset, fires_on_equal=operator.fire_on_equal)


@PLACEMENT.row(IntegerCurrentNeuron, IntegerIntegrator)
def _stock_neurons(operator: IntegerCurrentNeuron | IntegerIntegrator) -> Form:
    return Neurons(registers=operator.registers)


@PLACEMENT.row(ResistiveNeuron)
def _resistive_neurons(operator: ResistiveNeuron) -> Form:
    farthest = operator.v_reset[np.argmax(np.abs(operator.v_reset))]
    return Neurons(reset=f"reset to {farthest}" if farthest else "")


@PLACEMENT.row(Heaviside)
def _steps(operator: Heaviside) -> Form:
    return Neurons(fires_on_equal=operator.fire_on_equal)


@PLACEMENT.row(LeakyIntegrator)
def _integrators(operator: LeakyIntegrator) -> Form:
    return Neurons()


@PLACEMENT.row(LayerNorm)
def _layer_norm(operator: LayerNorm) -> Form:
    remedy = "train with --norm batch and fold (spikebert fold), or take a chip whose neurons run programs"
    return Programs(gathering=operator.groups, remedy=remedy)


@PLACEMENT.row(SpikeAttention)
def _attention(operator: SpikeAttention) -> Form:
    return Programs(
        reads=(AttentionReads(operator.out_features, operator.head_size),),
        indivisible=operator.head_size,
        remedy="take a chip whose neurons run programs; on the host it is a round trip each step",
    )


@PLACEMENT.row(TokenMean)
def _token_mean(operator: TokenMean) -> Form:
    return OnHost()


def _reset_in_words(reset: str) -> str:
    return "" if reset == "zero" else f"reset by {reset}ion"

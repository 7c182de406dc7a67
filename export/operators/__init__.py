"""The operators: what each node of a graph means. One file each; see `Operator`."""

from __future__ import annotations

from export.operators import (
    affine,
    convolution,
    delay,
    flatten,
    integer_current_neuron,
    layer_norm,
    leaky_integrate_and_fire,
    leaky_integrator,
    pooling,
    resistive_neuron,
    scale,
    spike_attention,
    token_mean,
)
from export.operators.affine import Affine, IntegerAffine
from export.operators.convolution import Convolution, IntegerConvolution
from export.operators.delay import Delay
from export.operators.flatten import Flatten
from export.operators.integer_current_neuron import IntegerCurrentNeuron
from export.operators.layer_norm import IntegerLayerNorm, LayerNorm
from export.operators.leaky_integrate_and_fire import (
    Heaviside,
    IntegerLeakyIntegrateAndFire,
    IntegerNeuronState,
    LeakyIntegrateAndFire,
    NeuronState,
)
from export.operators.leaky_integrator import IntegerIntegrator, LeakyIntegrator
from export.operators.operator import DEFAULT_DT, Case, Operator
from export.operators.pooling import Pooling
from export.operators.previous_step import PreviousStep
from export.operators.resistive_neuron import ResistiveNeuron
from export.operators.scale import Scale
from export.operators.spike_attention import IntegerSpikeAttention, SpikeAttention
from export.operators.token_mean import TokenMean, TokenSum
from export.operators.total import Total

MARKED_OPERATORS = {
    LayerNorm.name: (LayerNorm.version, layer_norm.read_layer_norm),
    SpikeAttention.name: (SpikeAttention.version, spike_attention.read_spike_attention),
    TokenMean.name: (TokenMean.version, token_mean.read_token_mean),
    IntegerLayerNorm.name: (IntegerLayerNorm.version, layer_norm.read_integer_layer_norm),
    IntegerSpikeAttention.name: (IntegerSpikeAttention.version, spike_attention.read_integer_spike_attention),
    TokenSum.name: (TokenSum.version, token_mean.read_token_sum),
    IntegerLeakyIntegrateAndFire.name: (
        IntegerLeakyIntegrateAndFire.version,
        leaky_integrate_and_fire.read_integer_neuron,
    ),
    IntegerCurrentNeuron.name: (
        IntegerCurrentNeuron.version,
        integer_current_neuron.read_integer_current_neuron,
    ),
    IntegerIntegrator.name: (IntegerIntegrator.version, leaky_integrator.read_integer_integrator),
}
"""Operators NIR lacks: name -> (version, reader of a marked composite's metadata)."""


_MODULES = (affine, integer_current_neuron, layer_norm, leaky_integrate_and_fire, spike_attention, token_mean)
_OF_OTHERS = (convolution, delay, flatten, leaky_integrator, pooling, resistive_neuron, scale)
"""Of graphs that other tools write."""
_WITHOUT_INTEGERS = (resistive_neuron,)
"""Whose whole numbers are another operator's: `IntegerLeakyIntegrateAndFire` or `IntegerCurrentNeuron`."""


def all_cases() -> list[Case]:
    """Return the cases of every operator in floating point."""
    return [case for module in (*_MODULES, *_OF_OTHERS) for case in module.cases()]


def all_integer_cases() -> list[Case]:
    """Return the cases of every operator in whole numbers."""
    modules = [module for module in (*_MODULES, *_OF_OTHERS) if module not in _WITHOUT_INTEGERS]
    return [case for module in modules for case in module.integer_cases()]


__all__ = [
    "DEFAULT_DT",
    "MARKED_OPERATORS",
    "Affine",
    "Case",
    "Convolution",
    "Delay",
    "Flatten",
    "Heaviside",
    "IntegerAffine",
    "IntegerConvolution",
    "IntegerCurrentNeuron",
    "IntegerIntegrator",
    "IntegerLayerNorm",
    "IntegerLeakyIntegrateAndFire",
    "IntegerNeuronState",
    "IntegerSpikeAttention",
    "LayerNorm",
    "LeakyIntegrateAndFire",
    "LeakyIntegrator",
    "NeuronState",
    "Operator",
    "Pooling",
    "PreviousStep",
    "ResistiveNeuron",
    "Scale",
    "SpikeAttention",
    "TokenMean",
    "TokenSum",
    "Total",
    "all_cases",
    "all_integer_cases",
]

"""The operators: what each node of a graph means. One file each; see `Operator`.

A file in this folder is all that a new operator takes here: every one is imported, and registers what it knows.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from export.operators.affine import Affine, IntegerAffine
from export.operators.convolution import Convolution, IntegerConvolution
from export.operators.delay import Delay
from export.operators.firing import NeuronState
from export.operators.flatten import Flatten
from export.operators.heaviside import Heaviside
from export.operators.interval import Interval
from export.operators.layer_norm import IntegerLayerNorm, LayerNorm
from export.operators.leaky_integrate_and_fire import LeakyIntegrateAndFire
from export.operators.leaky_integrator import LeakyIntegrator
from export.operators.loihi_neuron import (
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    IntegerNeuronState,
    LoihiNeuron,
)
from export.operators.operator import DEFAULT_DT, PREVIOUS_STEP, SUM, Case, Operator, SpikingOperator, Traits
from export.operators.pooling import Pooling
from export.operators.previous_step import PreviousStep
from export.operators.reading import MARKED_OPERATORS, STANDARD_READERS, reads, reads_marked
from export.operators.resistive_neuron import ResistiveNeuron
from export.operators.rules import TABLES, RuleTable, rule_for
from export.operators.scale import Scale
from export.operators.spike_attention import IntegerSpikeAttention, SpikeAttention
from export.operators.token_mean import TokenMean, TokenSum
from export.operators.total import Total

_MODULES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]


def all_cases() -> list[Case]:
    """Return the cases of every operator in floating point."""
    return [case for module in _MODULES if hasattr(module, "cases") for case in module.cases()]


def all_integer_cases() -> list[Case]:
    """Return the cases of every operator in whole numbers."""
    return [case for module in _MODULES if hasattr(module, "integer_cases") for case in module.integer_cases()]


def all_operators() -> list[type[Operator]]:
    """Return every operator there is, those that a program made for itself included, each behind what it comes from."""
    found, pending = [], [Operator]
    while pending:
        kinds = pending.pop(0).__subclasses__()
        found += [kind for kind in kinds if hasattr(kind, "traits") and kind not in found]
        pending += kinds
    return found


__all__ = [
    "DEFAULT_DT",
    "MARKED_OPERATORS",
    "PREVIOUS_STEP",
    "STANDARD_READERS",
    "SUM",
    "TABLES",
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
    "Interval",
    "LayerNorm",
    "LeakyIntegrateAndFire",
    "LeakyIntegrator",
    "LoihiNeuron",
    "NeuronState",
    "Operator",
    "Pooling",
    "PreviousStep",
    "ResistiveNeuron",
    "RuleTable",
    "Scale",
    "SpikeAttention",
    "SpikingOperator",
    "TokenMean",
    "TokenSum",
    "Total",
    "Traits",
    "all_cases",
    "all_integer_cases",
    "all_operators",
    "reads",
    "reads_marked",
    "rule_for",
]

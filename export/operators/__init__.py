"""The operators: what each node of a graph means. One file each; see `Operator`."""

from __future__ import annotations

from export.operators import affine, layer_norm, leaky_integrate_and_fire, spike_attention, token_mean
from export.operators.affine import Affine
from export.operators.layer_norm import LayerNorm
from export.operators.leaky_integrate_and_fire import Heaviside, LeakyIntegrateAndFire, NeuronState
from export.operators.operator import DEFAULT_DT, Case, Operator
from export.operators.spike_attention import SpikeAttention
from export.operators.token_mean import TokenMean
from export.operators.total import Total

MARKED_OPERATORS = {
    LayerNorm.name: (LayerNorm.version, layer_norm.read_layer_norm),
    SpikeAttention.name: (SpikeAttention.version, spike_attention.read_spike_attention),
    TokenMean.name: (TokenMean.version, token_mean.read_token_mean),
}
"""Operators NIR lacks: name -> (version, reader of a marked composite's metadata)."""


def all_cases() -> list[Case]:
    """Return the cases of every operator."""
    modules = (affine, layer_norm, leaky_integrate_and_fire, spike_attention, token_mean)
    return [case for module in modules for case in module.cases()]


__all__ = [
    "DEFAULT_DT",
    "MARKED_OPERATORS",
    "Affine",
    "Case",
    "Heaviside",
    "LayerNorm",
    "LeakyIntegrateAndFire",
    "NeuronState",
    "Operator",
    "SpikeAttention",
    "TokenMean",
    "Total",
    "all_cases",
]

"""What dense operations there are, for one row of a node where no spikes cause them: the one table of it.

Traces whose edges carry no spikes, dense baselines and the quantized twin are all counted from here. A row is a token
(at a time step), or behind a token mean a sentence. `in` and `out` are features, ``F`` both where they are equal.

==================== ==============================================================================================
weights              a mac and weight_read for each pair of an input and an output that a weight joins; ``in``
                     activation_read, ``out`` activation_write
bias                 an addition and parameter_read for each output that has one
gather               of K embedding tables: ``K out`` embedding_read, ``(K - 1) out`` addition
layer norm           of G groups: ``3 F + 2 G`` mac: each element is squared into the variance, multiplied by 1 / std,
                     and by weight plus bias; each group scales two sums to means. ``2 F + G`` addition: each element is
                     summed into the mean and centred; eps. ``2 G`` special: a square root and a reciprocal a group.
                     ``2 F`` parameter_read, ``3 F`` activation_read, ``F`` activation_write
pool                 an addition for each value and each window that holds it; ``in`` activation_read and ``out``
                     activation_write; a mean: ``out`` mac
residual sum         ``F`` residual_addition
token mean           ``F`` addition and activation_read a token; ``F`` activation_write a sentence, and where it divides
                     ``F`` mac and one special (1 / tokens)
==================== ==============================================================================================

A multiplication alone counts as a mac: it takes the same unit.
"""

from __future__ import annotations

import math

import numpy as np

from export.operators import Convolution, Pooling
from hardware.energy.counts.fan_out import convolution_fan_out, pooling_fan_out
from hardware.energy.counts.kinds import Tally


def weights(width_in: int, width_out: int, pairs: int) -> Tally:
    """Return synapses that join so many `pairs` of an input and an output."""
    return {
        "mac": pairs,
        "weight_read": pairs,
        "activation_read": width_in,
        "activation_write": width_out,
        "dense_mac": pairs,
    }


def bias(outputs: int) -> Tally:
    """Return the biases of so many outputs."""
    return {"addition": outputs, "parameter_read": outputs}


def affine(width_in: int, width_out: int, has_bias: bool) -> Tally:
    """Return an affine map."""
    return {**weights(width_in, width_out, width_in * width_out), **bias(width_out if has_bias else 0)}


def convolution(operator: Convolution) -> Tally:
    """Return a convolution; synapses onto padding are none."""
    return {**convolution_weights(operator), **bias(biased_outputs(operator))}


def convolution_weights(operator: Convolution) -> Tally:
    """Return a convolution without its biases."""
    return weights(operator.in_features, operator.out_features, int(convolution_fan_out(operator).sum()))


def biased_outputs(operator: Convolution) -> int:
    """Return how many outputs of a convolution belong to a channel with a bias other than 0."""
    return int(np.count_nonzero(operator.bias)) * math.prod(operator.out_shape[1:])


def gather(tables: int, width: int) -> Tally:
    """Return an embedding: a row of each table, summed."""
    return {"embedding_read": tables * width, "addition": (tables - 1) * width}


def layer_norm(features: int, groups: int) -> Tally:
    """Return a layer norm."""
    return {
        "mac": 3 * features + 2 * groups,
        "addition": 2 * features + groups,
        "special": 2 * groups,
        "parameter_read": 2 * features,
        "activation_read": 3 * features,
        "activation_write": features,
    }


def pool(operator: Pooling) -> Tally:
    """Return a pool; padding is never added."""
    return {
        "addition": int(pooling_fan_out(operator).sum()),
        "activation_read": operator.in_features,
        "activation_write": operator.out_features,
        **pool_division(operator),
    }


def pool_division(operator: Pooling) -> Tally:
    """Return what turns sums of windows into means; nothing where they stay sums."""
    return {"mac": operator.out_features if operator.mean else 0}


def residual_sum(features: int) -> Tally:
    """Return the addition of one vector to another."""
    return {"residual_addition": features}


def token_sum(features: int) -> Tally:
    """Return what each token adds to a mean or sum over tokens."""
    return {"addition": features, "activation_read": features}


def token_mean(features: int, divides: bool) -> Tally:
    """Return what is done with that sum once a sentence."""
    return {"activation_write": features, **({"mac": features, "special": 1} if divides else {})}

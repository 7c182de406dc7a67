r"""How far apart two implementations of one operator may lie, derived from the operator: no constant chosen to pass.

Two runners hold the same parameters in the same precision, and mean the same equation. What is left to each is the
order of additions, the form in which a mean, a variance or a quotient is computed, and fused products: freedom that
moves a result by a few units of rounding. Here each operator gets a bound on that: given a value and how far another
implementation's input may lie from it, how far may its output lie from ours?

With unit roundoff ``u`` (2^-24 in float32, 2^-53 in float64) and ``gamma(k) = k u / (1 - k u)`` a sum of products
computed in any order, blocked, fused or not, lies within ``gamma(k) sum |w| |x|`` of the exact one, where k is the most
roundings any term goes through (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1; in any
order: section 4.2). Adding a zero rounds nothing, so k counts the inputs that are not zero. Two such sums lie within
twice that. Where an operator leaves no freedom and both inputs are the same to the bit, the bound is 0, and a spike at
the threshold itself must agree: ``>=`` in place of ``>`` is never rounding.

Every step is written out in ``docs/equivalence.md``; which operator has which of these bounds, in
`hardware.equivalence.replay`. Overflow and underflow are not covered: a value beyond the largest
or below the smallest normal number of the precision has no bound here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from export.operators import Affine, LayerNorm, LeakyIntegrateAndFire, SpikeAttention
from export.operators.operator import Array

EVALUATION_SLACK = 1 + 2.0**-20
"""A bound is itself computed, in float64, from values that are rounded: by less than a millionth of it."""


@dataclass(frozen=True)
class Precision:
    """Floating-point arithmetic: correctly rounded to nearest, as IEEE 754 has it.

    Attributes
    ----------
    dtype : dtype
        float32 or float64.
    """

    dtype: np.dtype

    @classmethod
    def of(cls, dtype: DTypeLike) -> Precision:
        """Return the arithmetic of a NumPy type."""
        return cls(np.dtype(dtype))

    @property
    def unit_roundoff(self) -> float:
        """``u``: the largest relative error of one rounding."""
        return float(np.finfo(self.dtype).eps) / 2

    def gamma(self, roundings: Array | float) -> Array:
        """Return ``k u / (1 - k u)``, infinite where ``k u`` reaches 1."""
        share = np.asarray(roundings, np.float64) * self.unit_roundoff
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(share < 1, share / (1 - share), np.inf)

    def rounded_apart(self, value: Array, distance: Array) -> Array:
        """Return how far the roundings of two numbers may lie apart: `value`, and one within `distance` of it.

        Equal numbers round alike.
        """
        apart = distance + self.unit_roundoff * (2 * np.abs(value, dtype=np.float64) + distance)
        return np.where(distance > 0, apart, 0.0)


def bound_affine(operator: Affine, x: Array, distance: Array, precision: Precision) -> Array:
    """Return how far another ``y = x W^T + b`` may lie from ours, ``(..., out_features)``.

    Same inputs, ``m`` of them not zero: ``2 gamma(k) (|x| |W|^T + |b|)`` where a term goes through ``k = m - 1``
    additions, one more with a bias, and one rounding of its product unless every input is 0 or 1. Two terms can be
    added in one order only: the bound is 0. Inputs that differ by `distance` move the exact result by
    ``distance |W|^T``.
    """
    weight = np.abs(operator.weight, dtype=np.float64)
    bias = 0.0 if operator.bias is None else np.abs(operator.bias, dtype=np.float64)
    size = np.abs(x, dtype=np.float64)
    with_bias = operator.bias is not None
    exact_products = ((size == 0) | (size == 1)).all(-1, keepdims=True)
    roundings = np.count_nonzero(x, axis=-1, keepdims=True) - 1 + with_bias + ~exact_products
    free = (roundings > 1) | ~exact_products
    magnitude = size @ weight.T + bias
    bound = np.where(free, 2 * precision.gamma(np.maximum(roundings, 1)) * magnitude, 0.0)
    moved = (distance > 0).any(-1, keepdims=True)
    if moved.any():
        carried = distance @ weight.T
        worst = precision.gamma(operator.in_features + with_bias)
        bound = np.where(moved, carried + 2 * worst * (magnitude + carried), bound)
    return bound


def bound_gather(operator: Affine, hot: Array, precision: Precision) -> Array:
    """Return the same for multi-hot inputs given as the indices that are hot ``(K, ..., N)``."""
    columns = np.abs(operator.weight.T, dtype=np.float64)
    magnitude = columns[hot].sum(0)
    additions = len(hot) - 1
    if operator.bias is not None:
        magnitude, additions = magnitude + np.abs(operator.bias), additions + 1
    return 2 * precision.gamma(additions) * magnitude if additions > 1 else np.zeros_like(magnitude)


def bound_layer_norm(operator: LayerNorm, x: Array, distance: Array, precision: Precision) -> Array:
    """Return how far another layer norm may lie from ours, ``(..., features)``.

    Covers means and variances in any order: in two passes, and in one pass as ``mean(x^2) - mean(x)^2``, the least
    accurate, whose error is what counts (that of Welford's update lies between: Chan, Golub and LeVeque, The American
    Statistician 37, 1983); and the quotient as
    ``(x - mean) * r * w + b`` or as ``x * (r w) + (b - mean r w)`` with ``r = 1 / sqrt(variance + eps)``.
    """
    gamma, u = precision.gamma, precision.unit_roundoff
    shape = x.shape
    parts = x.astype(np.float64).reshape(*shape[:-1], operator.groups, -1)
    moved = np.broadcast_to(distance, shape).reshape(parts.shape)
    width = parts.shape[-1]

    def mean(values: Array) -> Array:
        return values.mean(-1, keepdims=True)

    weight = np.abs(operator.weight, dtype=np.float64).reshape(operator.groups, width)
    bias = np.abs(operator.bias, dtype=np.float64).reshape(operator.groups, width)
    centre = mean(parts)
    centred = np.abs(parts - centre)
    variance = mean(centred**2)
    size = np.abs(parts)
    # how far one implementation's mean and variance lie from the exact ones of its input
    mean_error = gamma(width) * mean(size + moved)
    largest_mean = np.abs(centre) + mean(moved) + mean_error
    square = mean((size + moved) ** 2)
    variance_error = gamma(width + 2) * square + 2 * mean_error * largest_mean + 2 * u * (square + largest_mean**2)
    # how far the exact ones move with the input
    shift = moved + mean(moved)
    mean_distance = mean(moved) + 2 * mean_error
    variance_distance = mean(2 * centred * shift + shift**2) + 2 * variance_error
    # r falls with the variance, and faster where that is small
    exact = 1 / np.sqrt(variance + operator.eps)
    smallest = variance - variance_distance + operator.eps
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.where(smallest > 0, 1 / np.sqrt(np.maximum(smallest, 0)), np.inf)
    inverse_distance = (largest - exact) + 6 * u * largest
    reach = size + np.abs(centre) + moved + mean_distance
    centred_distance = moved + mean_distance + 2 * u * reach
    with np.errstate(invalid="ignore"):
        bound = weight * ((centred + centred_distance) * inverse_distance + largest * centred_distance)
        bound = bound + 2 * gamma(5) * (weight * reach * largest + bias)
    return np.where(np.isnan(bound), np.inf, bound).reshape(shape)


def bound_attention(
    operator: SpikeAttention, x: Array, distance: Array, token_mask: Array | None, precision: Precision
) -> Array:
    """Return how far another attention may lie from ours, ``(..., N, features)``.

    Sums of products of spikes are whole numbers: exact while they stay below ``1 / u``, whatever the order, and the one
    product with the scale rounds alike. Otherwise a term goes through one rounding an addition and a product.
    """
    reach = np.abs(x, dtype=np.float64)
    if token_mask is not None:
        reach, distance = reach * token_mask, distance * token_mask
    terms = x.shape[-2] * operator.head_size
    whole = not np.any(distance) and np.array_equal(x, np.rint(x))
    if whole and terms * reach.max(initial=0) ** 3 < 1 / precision.unit_roundoff:
        return np.zeros((*x.shape[:-1], operator.out_features))
    size = _attend(reach, operator)
    farthest = _attend(reach + distance, operator)
    scale = abs(operator.scale)
    roundings = x.shape[-2] + operator.head_size + 3
    return scale * (farthest - size + 2 * precision.gamma(roundings) * farthest)


def _attend(x: Array, operator: SpikeAttention) -> Array:
    """Return ``sum_m (q . k[m]) v[m]`` in float64, without the scale."""
    tokens = x.shape[-2]
    split = x.reshape(*x.shape[:-1], 3, operator.num_heads, operator.head_size)
    query, key, value = (split[..., part, :, :] for part in range(3))
    scores = np.einsum("...nhd,...mhd->...hnm", query, key, optimize=True)
    product = np.einsum("...hnm,...mhd->...nhd", scores, value, optimize=True)
    return product.reshape(*x.shape[:-2], tokens, operator.out_features)


def bound_token_mean(x: Array, distance: Array, token_mask: Array | None, precision: Precision) -> Array:
    """Return how far another mean over tokens may lie from ours, ``(..., 1, features)``.

    The mean of one or two equal-to-the-bit tokens leaves no freedom: one addition and an exact division.
    """
    weight = np.ones((*x.shape[:-1], 1)) if token_mask is None else token_mask.astype(np.float64)
    count = weight.sum(-2, keepdims=True)
    reach = ((np.abs(x, dtype=np.float64) + distance) * weight).sum(-2, keepdims=True) / count
    carried = (distance * weight).sum(-2, keepdims=True) / count
    free = (count > 2) | (carried > 0)
    return np.where(free, carried + 2 * precision.gamma(count + 2) * reach, 0.0)


def bound_potential(
    neuron: LeakyIntegrateAndFire,
    x: Array,
    x_distance: Array,
    potential: Array,
    potential_distance: Array,
    fired: Array,
    precision: Precision,
) -> Array:
    """Return how far another membrane potential may lie from ours behind one step, before the test.

    The order of operations is part of the neuron's meaning, so there is no freedom: what differs is what came in with
    the current, and what the leak kept of earlier steps.

    Parameters
    ----------
    neuron : LeakyIntegrateAndFire
    x, x_distance : ndarray
        Input current, and how far the other's may lie from it.
    potential, potential_distance : ndarray
        Potential behind the last step's reset, likewise.
    fired : ndarray
        Spikes of the last step, the same on both sides.
    """
    potential, x = potential.astype(np.float64), x.astype(np.float64)
    apart = precision.rounded_apart
    if neuron.decay_input:
        difference = apart(x - potential, x_distance + potential_distance)
        charge = (x - potential) / neuron.tau
        kept, kept_distance = potential, potential_distance
        charge_distance = apart(charge, difference / neuron.tau)
    else:
        kept = neuron.beta * potential
        kept_distance = apart(kept, neuron.beta * potential_distance)
        charge, charge_distance = x, x_distance
    charged = kept + charge
    distance = apart(charged, kept_distance + charge_distance)
    if neuron.reset == "subtract":
        distance = np.where(fired != 0, apart(charged - fired * neuron.threshold, distance), distance)
    return distance

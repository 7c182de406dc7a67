"""Layer norm over features, in groups, in floating point and in whole numbers. NIR has no node for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import ChipLimitError, GraphError
from export.operators.interval import Interval
from export.operators.operator import Array, Case, Operator, Traits
from export.operators.reading import (
    integer_parameter,
    metadata_value,
    opaque_node,
    parameter,
    reads_marked,
    unit_parameter,
)

RADICAND_BITS = 62
"""The variance in integer units, eps included, lies below 2^62."""
ROOT_BITS = 30
"""Fraction bits in which the inverse square root is iterated; `FACTOR_BITS` of them are kept."""
FACTOR_BITS = 24
PRODUCT_BITS = FACTOR_BITS + (RADICAND_BITS - 2) // 2
"""Fraction bits of a normalised numerator times a factor."""
NORMED_BITS = 20
"""Fraction bits of a normed feature before gain and bias."""
TABLE_BITS = 8
GAIN_BITS = 24
"""A gain's magnitude lies below 2^24: times a normed feature of `NORMED_BITS` fraction bits it is exact in float64."""
BIAS_BITS = 51
MAX_GROUP_FEATURES = 4096
INPUT_BITS = 25
"""Inputs lie below 2^25 in magnitude, so that their sum over a group, and D times one of them, are exact in float64."""


@dataclass(frozen=True, eq=False)
class LayerNorm(Operator):
    """``y = (x - mean) / sqrt(variance + eps) * weight + bias`` over each group of features, token by token.

    The variance is the biased one. Query, key and value stand in one vector and are three groups.

    Parameters
    ----------
    weight, bias : ndarray
        ``(features,)``.
    eps : float
        Added to the variance.
    groups : int
        Number of equal parts of the features, each with its own mean and variance.

    References
    ----------
    Ba et al. 2016, arXiv 1607.06450; section 3.2 of arXiv 2308.15122 puts it in place of batch norm.
    """

    name: ClassVar[str] = "layer_norm"
    traits: ClassVar[Traits] = Traits(
        integer=False,
        spike_range=None,
        sources=1,
        edges=None,
        keeps_shape=False,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=True,
        reads_tokens=False,
        remembers=False,
        passes_values=False,
        is_synaptic=False,
        needs_program=True,
        latency=0,
    )

    weight: Array
    bias: Array
    eps: float = 1e-5
    groups: int = 1

    @property
    def in_features(self) -> int:
        """Features of all groups together."""
        return self.weight.shape[0]

    @property
    def out_features(self) -> int:
        """As many as come in."""
        return self.weight.shape[0]

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `layer_norm`."""
        return layer_norm(x, self.weight, self.bias, self.eps, self.groups)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Claim nothing: it computes in floating point."""
        return None

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        return opaque_node(
            self,
            {
                "weight": np.asarray(self.weight, dtype),
                "bias": np.asarray(self.bias, dtype),
                "eps": float(self.eps),
                "groups": int(self.groups),
                "axes": "features of one token at one time step, each group by itself",
                "formula": "y = (x - mean) / sqrt(biased_variance + eps) * weight + bias",
            },
        )


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, groups: int) -> Array:
    """Return the norm of ``x`` ``(..., features)``, computed in the type of `x`."""
    parts = x.reshape(*x.shape[:-1], groups, -1)
    centred = parts - parts.mean(-1, keepdims=True, dtype=x.dtype)
    variance = (centred * centred).mean(-1, keepdims=True, dtype=x.dtype)
    # in place from here on: at every step, fresh memory for each of these would cost more than they do
    centred /= np.sqrt(variance + x.dtype.type(eps))
    normed = centred.reshape(x.shape)
    normed *= weight
    normed += bias
    return normed


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerLayerNorm(LayerNorm):
    """Layer norm of whole numbers to whole numbers, over D features of a group, token by token.

    With ``>>`` rounding half up (``x >> n`` is ``floor(x / 2^n + 1/2)``) and E the group's `integer_eps`::

        S = sum x;  c = D x - S;  R = D sum x^2 - S^2 + E           exact: no mean is divided
        e even with 2^60 <= R 2^e < 2^62;  f = integer_inverse_square_root(R 2^e)     24 fraction bits
        n = (c 2^(e / 2)) >> h,  h = 3 + ceil(log2(D) / 2)          so that |n| < 2^28
        normed = (n f) >> (34 - h)                                  20 fraction bits
        y = (normed weight + bias) >> shift

    Every intermediate number fits int64, and all but R and the root's fit the whole numbers of float64. The normed
    value differs from ``c / sqrt(R)``, which is ``(x - mean) / sqrt(variance + eps)``, by less than
    ``2^-20 + 2^-23 |normed|``.

    Parameters
    ----------
    weight : ndarray
        ``(features,)`` gains below 2^24 in magnitude.
    bias : ndarray
        ``(features,)`` below 2^51 in magnitude, with `shift` fraction bits.
    eps : float
        What was added to the variance in the float graph; says nothing new, see `integer_eps`.
    groups : int
    integer_eps : ndarray
        ``(groups,)``: D^2 eps in the square of the input's units, at least 1.
    shift : int
        Fraction bits of the products, 1 to 51.
    unit : ndarray
        ``(features,)`` float64: what a 1 of `y` stands for in the float graph.

    References
    ----------
    Newton's iteration for the inverse square root from a table, as in any fixed-point library; the error is proven in
    ``docs/integers.md`` and tested against exact rational arithmetic.
    """

    name: ClassVar[str] = "integer_layer_norm"
    traits: ClassVar[Traits] = replace(LayerNorm.traits, integer=True)

    integer_eps: Array
    shift: int
    unit: Array

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `integer_layer_norm`."""
        return integer_layer_norm(x, self.weight, self.bias, self.integer_eps, self.shift)

    def cast(self, dtype: DTypeLike) -> IntegerLayerNorm:
        """Return the operator with whole numbers as int64."""
        return replace(self, weight=self.weight.astype(np.int64), bias=self.bias.astype(np.int64))

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the bound on a normed feature, the root of the number of features, weighted; whatever is read."""
        size = self.in_features // self.groups
        normed = isqrt(size << (2 * NORMED_BITS)) + 2 + (isqrt(size << (2 * NORMED_BITS)) >> 22)
        spread = normed * np.abs(self.weight.astype(np.int64))
        bias = self.bias.astype(np.int64)
        low, high = (bias - spread) >> self.shift, ((bias + spread) >> self.shift) + 1
        return Interval(low.astype(np.float64), high.astype(np.float64))

    def check_sums(self, read: Interval, where: str) -> None:
        """Check that the sums of node `where` fit what it computes in, for inputs that lie in `read`.

        Raises
        ------
        ChipLimitError
            A reachable input is too large.
        """
        size = self.in_features // self.groups
        squares = (read.magnitude**2).reshape(self.groups, size).sum(-1) * size + self.integer_eps
        if read.largest >= 1 << INPUT_BITS or squares.max() >= 1 << RADICAND_BITS:
            raise ChipLimitError(
                f"{where}: inputs up to {read.largest}, squared and summed up to 2^{np.log2(squares.max()):.1f}, leave "
                f"2^{INPUT_BITS} or 2^{RADICAND_BITS}; quantize what it reads with a larger scale"
            )

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        return opaque_node(
            self,
            {
                "weight": np.asarray(self.weight, np.int32),
                "bias": np.asarray(self.bias, np.int64),
                "eps": float(self.eps),
                "integer_eps": np.asarray(self.integer_eps, np.int64),
                "groups": int(self.groups),
                "shift": int(self.shift),
                "unit": np.asarray(self.unit, np.float64),
                "axes": "features of one token at one time step, each group by itself",
                "formula": "S = sum x; c = D x - S; R = D sum x^2 - S^2 + integer_eps; e even: 2^60 <= R 2^e < 2^62; "
                "f = 2^24 / sqrt(R 2^e / 2^60) by table and two Newton steps; h = 3 + ceil(log2(D) / 2); "
                "normed = (((c 2^(e/2)) >> h) f) >> (34 - h); y = (normed weight + bias) >> shift; "
                ">> rounds half up; y * unit is the float value",
            },
        )


def integer_layer_norm(x: Array, weight: Array, bias: Array, integer_eps: Array, shift: int) -> Array:
    """Return the norm of whole numbers ``x`` ``(..., features)`` as int64; see `IntegerLayerNorm`."""
    groups = len(integer_eps)
    parts = x.astype(np.int64).reshape(*x.shape[:-1], groups, -1)
    features = parts.shape[-1]
    total = parts.sum(-1, keepdims=True)
    centred = features * parts - total
    radicand = features * (parts * parts).sum(-1, keepdims=True) - total * total + integer_eps[:, None]
    exponent = (RADICAND_BITS - bit_length(radicand)) & ~1
    factor = integer_inverse_square_root(radicand << exponent)
    drop = numerator_shift(features)
    numerator = round_shift(centred << (exponent >> 1), drop)
    normed = round_shift(numerator * factor, PRODUCT_BITS - drop - NORMED_BITS)
    return round_shift(normed.reshape(x.shape) * weight + bias, shift)


def numerator_shift(features: int) -> int:
    """Return h of `IntegerLayerNorm` for groups of so many features.

    ``|c| 2^(e/2) < sqrt(D R 2^e) < sqrt(D) 2^31``, so that behind the shift it lies below 2^28.
    """
    return 3 + ((features - 1).bit_length() + 1) // 2


def round_shift(x: Array, bits: int) -> Array:
    """Return ``floor(x / 2^bits + 1/2)``."""
    return (x + (1 << (bits - 1))) >> bits


def bit_length(x: Array) -> Array:
    """Return the number of bits of positive int64: what a leading-zero count gives on hardware."""
    length = np.ones_like(x)
    for bits in (32, 16, 8, 4, 2, 1):
        large = x >> bits > 0
        length += np.where(large, bits, 0)
        x = np.where(large, x >> bits, x)
    return length


def integer_inverse_square_root(x: Array) -> Array:
    """Return ``2^24 / sqrt(x / 2^60)`` for int64 ``2^60 <= x < 2^62``: 2^23 to 2^24, within a relative error of 2^-23.

    ``M = x / 2^60`` lies in [1, 4). A table of 192 entries gives ``1 / sqrt(M)`` within 2^-8; each Newton step
    ``r (3 - M r^2) / 2`` squares that error and halves it thrice over, so that two leave less than 2^-27 with what the
    30 fraction bits cut off, and the rounding to 24 bits less than 2^-24 of a number of at least one half.
    """
    root = inverse_square_root_table()[(x >> (RADICAND_BITS - TABLE_BITS)) - (1 << (TABLE_BITS - 2))]
    scaled = x >> (RADICAND_BITS - 2 - ROOT_BITS)
    for _ in range(2):
        square = (root * root) >> ROOT_BITS
        root = (root * ((3 << ROOT_BITS) - ((scaled * square) >> ROOT_BITS))) >> (ROOT_BITS + 1)
    return round_shift(root, ROOT_BITS - FACTOR_BITS)


@lru_cache(maxsize=1)
def inverse_square_root_table() -> Array:
    """Return ``2^30 / sqrt(M)`` at the middle of each of 192 parts of [1, 4), from whole numbers alone."""
    return np.array(
        [isqrt((1 << (2 * ROOT_BITS + 7)) // (2 * part + 1)) for part in range(1 << (TABLE_BITS - 2), 1 << TABLE_BITS)],
        np.int64,
    )


@reads_marked(LayerNorm)
def read_layer_norm(metadata: dict[str, Any], where: str) -> LayerNorm:
    """Check and read the metadata of a marked composite."""
    weight = parameter(metadata.get("weight"), (None,), where, "weight")
    groups = metadata_value(metadata, "groups", int, where)
    if groups < 1 or weight.shape[0] % groups:
        raise GraphError(f"{where}: {weight.shape[0]} features cannot form {groups} equal groups")
    eps = metadata_value(metadata, "eps", float, where)
    if not 0 < eps < 1:
        raise GraphError(f"{where}: eps is {eps}; expected a small positive number")
    return LayerNorm(weight, parameter(metadata.get("bias"), weight.shape, where, "bias"), eps, groups)


@reads_marked(IntegerLayerNorm)
def read_integer_layer_norm(metadata: dict[str, Any], where: str) -> IntegerLayerNorm:
    """Check and read the metadata of a marked composite."""
    groups = metadata_value(metadata, "groups", int, where)
    limit, remedy = (1 << GAIN_BITS) - 1, "the norm's products must stay exact; quantize to a smaller shift"
    weight = integer_parameter(metadata.get("weight"), (None,), where, "weight", -limit, limit, remedy)
    if groups < 1 or weight.shape[0] % groups or weight.shape[0] // groups > MAX_GROUP_FEATURES:
        raise GraphError(
            f"{where}: {weight.shape[0]} features cannot form {groups} equal groups of at most {MAX_GROUP_FEATURES}"
        )
    limit = (1 << BIAS_BITS) - 1
    bias = integer_parameter(metadata.get("bias"), weight.shape, where, "bias", -limit, limit, remedy)
    limit, remedy = (1 << (RADICAND_BITS - 1)) - 1, "quantize with a larger weight scale, or without eps it is 1"
    integer_eps = integer_parameter(metadata.get("integer_eps"), (groups,), where, "integer_eps", 1, limit, remedy)
    shift = metadata_value(metadata, "shift", int, where)
    if not 1 <= shift <= BIAS_BITS:
        raise GraphError(f"{where}: shift is {shift}; it must lie between 1 and {BIAS_BITS}")
    return IntegerLayerNorm(
        weight=weight,
        bias=bias,
        eps=metadata_value(metadata, "eps", float, where),
        groups=groups,
        integer_eps=integer_eps,
        shift=shift,
        unit=unit_parameter(metadata, weight.shape[0], where),
    )


def cases() -> list[Case]:
    """Return one group, three groups, and tokens whose variance is zero."""
    rng = np.random.default_rng(2)
    weight, bias = 1 + 0.3 * rng.normal(size=12), rng.normal(size=12)
    x = rng.normal(size=(3, 2, 4, 12))
    constant = np.ones((2, 1, 3, 12)) * np.arange(3.0)[:, None]
    return [
        Case("layer norm", LayerNorm(weight, bias), x),
        Case("layer norm in three groups", LayerNorm(weight, bias, groups=3), x),
        Case("layer norm of constant tokens", LayerNorm(weight, bias, eps=1e-3), constant),
    ]


def integer_cases() -> list[Case]:
    """Return small and large inputs, groups with an eps each, constant tokens and the widest group."""
    rng = np.random.default_rng(9)

    def norm(features: int, groups: int = 1, shift: int = 30) -> IntegerLayerNorm:
        return IntegerLayerNorm(
            weight=rng.integers(-(1 << GAIN_BITS) + 1, 1 << GAIN_BITS, features),
            bias=rng.integers(-(1 << 40), 1 << 40, features),
            groups=groups,
            integer_eps=rng.integers(1, 1 << 20, groups),
            shift=shift,
            unit=np.full(features, 2.0**-10),
        )

    small, large = (rng.integers(-(1 << bits), 1 << bits, (3, 2, 4, 12)) for bits in (3, 24))
    constant = np.broadcast_to(np.arange(3)[:, None], (2, 1, 3, 12)).astype(np.int64)
    wide = rng.integers(-(1 << 17), 1 << 17, (1, 1, 3, MAX_GROUP_FEATURES))
    return [
        Case("integer layer norm", norm(12), small),
        Case("integer layer norm of large numbers", norm(12, shift=24), large),
        Case("integer layer norm in three groups", norm(12, 3), small),
        Case("integer layer norm of constant tokens", norm(12), constant),
        Case("integer layer norm of one feature", norm(1), small[..., :1]),
        Case("integer layer norm of the widest group", norm(MAX_GROUP_FEATURES), wide),
    ]

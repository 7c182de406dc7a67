"""Spiking self-attention: Q K^T V without softmax. NIR has no node for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import ChipLimitError, GraphError
from export.operators.interval import Interval, symmetric
from export.operators.operator import FLOAT64_EXACT, Array, Case, Operator, Traits
from export.operators.reading import metadata_value, opaque_node, reads_marked

MAX_SHIFT = 16
"""Fraction bits an integer attention product may have; more leave no room for the product below 24 bits."""


@dataclass(frozen=True, eq=False)
class SpikeAttention(Operator):
    """``y[n] = scale sum_m (q[n] . k[m]) v[m]`` over the tokens ``m`` of one sentence, head by head.

    The input is ``q | k | v``, three vectors of ``num_heads x head_size``. Padding gives neither keys nor values. With
    spikes the sums are whole numbers, so (Q K^T) V and Q (K^T V) agree to the bit, and the cheaper one is computed.

    Parameters
    ----------
    num_heads, head_size : int
    scale : float
        tau of Eq. 5, 0.125 in the paper.

    References
    ----------
    Eq. 5 and section 3.2 of arXiv 2308.15122 (N x N attention map).
    """

    name: ClassVar[str] = "spike_attention"
    traits: ClassVar[Traits] = Traits(
        integer=False,
        spike_range=None,
        sources=1,
        edges=None,
        keeps_shape=False,
        mixes_tokens=True,
        pools_tokens=None,
        reads_sentences=False,
        reads_tokens=False,
        remembers=False,
        passes_values=False,
        is_synaptic=False,
        needs_program=True,
        latency=1,
    )

    num_heads: int
    head_size: int
    scale: float

    @property
    def in_features(self) -> int:
        """Query, key and value."""
        return 3 * self.num_heads * self.head_size

    @property
    def out_features(self) -> int:
        """One vector of all heads."""
        return self.num_heads * self.head_size

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `spike_attention`."""
        return spike_attention(x, self.num_heads, self.scale, token_mask)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Claim nothing: it computes in floating point."""
        return None

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        return opaque_node(
            self,
            {
                "num_heads": int(self.num_heads),
                "head_size": int(self.head_size),
                "scale": float(self.scale),
                "axes": "mixes the tokens of one sentence at one time step; padding gives no keys and no values",
                "layout": "input is query | key | value, each num_heads x head_size",
                "formula": "y[n] = scale * sum_m (q[n] . k[m]) * v[m], no softmax",
            },
        )


def spike_attention(x: Array, num_heads: int, scale: float, token_mask: Array | None) -> Array:
    """Return the attention of ``x`` ``(..., N, 3 D)`` as ``(..., N, D)``."""
    if token_mask is not None:
        x = x * token_mask.astype(x.dtype)
    tokens, width = x.shape[-2:]
    split = x.reshape(*x.shape[:-1], 3, num_heads, width // (3 * num_heads))
    query, key, value = (np.moveaxis(split[..., part, :, :], -2, -3) for part in range(3))  # (..., H, N, head_size)
    if tokens > query.shape[-1]:
        product = query @ (np.swapaxes(key, -1, -2) @ value)
    else:
        product = (query @ np.swapaxes(key, -1, -2)) @ value
    joined = np.moveaxis(product, -3, -2).reshape(*x.shape[:-1], width // 3)
    return joined * x.dtype.type(scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerSpikeAttention(SpikeAttention):
    """``y[n] = (sum_m (q[n] . k[m]) v[m]) 2^shift`` in whole numbers; nothing is rounded, whatever the scale.

    A 1 of `y` stands for ``scale 2^-shift``: the scale is not computed with, the neuron behind has its threshold in
    these units. The fraction bits are for that threshold, and for where the neuron fires at equality.

    Parameters
    ----------
    num_heads, head_size, scale
        As in `SpikeAttention`.
    shift : int
        Fraction bits, 0 to 16.
    """

    name: ClassVar[str] = "integer_spike_attention"
    traits: ClassVar[Traits] = replace(SpikeAttention.traits, integer=True)

    shift: int

    @property
    def unit(self) -> Array:
        """What a 1 of `y` stands for in the float graph, ``(features,)``."""
        return np.full(self.out_features, self.scale / (1 << self.shift))

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `spike_attention`; products of whole numbers stay whole, in float64 too while it holds them exactly."""
        largest = int(np.abs(x).max(initial=0)) ** 3 * self.head_size * x.shape[-2]
        kind = np.float64 if largest < FLOAT64_EXACT else np.int64
        return spike_attention(x.astype(kind), self.num_heads, 1, token_mask).astype(np.int64) << self.shift

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the largest sum over the longest sentence."""
        if read[0] is None or tokens is None:
            return None
        width = self.out_features
        query, key, value = (read[0].magnitude[part * width : (part + 1) * width].max() for part in range(3))
        return symmetric(np.full(width, tokens * self.head_size * query * key * value * 2**self.shift))

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        node = super().to_nir(dtype, dt)
        node.metadata["shift"] = int(self.shift)
        node.metadata["unit"] = self.unit
        node.metadata["formula"] = (
            "y[n] = (sum_m (q[n] . k[m]) * v[m]) << shift, whole numbers, no softmax; y * unit is the float value"
        )
        return node


@reads_marked(SpikeAttention)
def read_spike_attention(metadata: dict[str, Any], where: str) -> SpikeAttention:
    """Check and read the metadata of a marked composite."""
    heads = metadata_value(metadata, "num_heads", int, where)
    head_size = metadata_value(metadata, "head_size", int, where)
    scale = metadata_value(metadata, "scale", float, where)
    if heads < 1 or head_size < 1 or not np.isfinite(scale):
        raise GraphError(f"{where}: {heads} heads of {head_size} features with scale {scale} mean nothing")
    return SpikeAttention(heads, head_size, scale)


@reads_marked(IntegerSpikeAttention)
def read_integer_spike_attention(metadata: dict[str, Any], where: str) -> IntegerSpikeAttention:
    """Check and read the metadata of a marked composite."""
    attention = read_spike_attention(metadata, where)
    shift = metadata_value(metadata, "shift", int, where)
    if not 0 <= shift <= MAX_SHIFT:
        raise ChipLimitError(
            f"{where}: shift is {shift}; it must lie between 0 and {MAX_SHIFT}: take fewer fraction bits"
        )
    return IntegerSpikeAttention(
        num_heads=attention.num_heads, head_size=attention.head_size, scale=attention.scale, shift=shift
    )


def cases() -> list[Case]:
    """Return both orders of multiplication, a mask, and graded inputs."""
    rng = np.random.default_rng(4)
    few, many = ((rng.random((3, 2, tokens, 24)) < 0.4).astype(float) for tokens in (3, 9))
    mask = np.arange(9) < np.array([[5], [9]])
    return [
        Case("attention over few tokens", SpikeAttention(2, 4, 0.125), few),
        Case("attention over many tokens", SpikeAttention(2, 4, 0.125), many),
        Case("attention over padded tokens", SpikeAttention(4, 2, 0.125), many, mask),
        Case("attention over one token and head", SpikeAttention(1, 8, 1.0), few[:, :, :1]),
    ]


def integer_cases() -> list[Case]:
    """Return both orders of multiplication, a mask, graded inputs and no fraction bits."""
    rng = np.random.default_rng(10)

    def attention(num_heads: int, head_size: int, shift: int) -> IntegerSpikeAttention:
        return IntegerSpikeAttention(num_heads=num_heads, head_size=head_size, scale=0.125, shift=shift)

    few, many = ((rng.random((3, 2, tokens, 24)) < 0.4).astype(np.int64) for tokens in (3, 9))
    mask = np.arange(9) < np.array([[5], [9]])
    return [
        Case("integer attention over few tokens", attention(2, 4, 3), few),
        Case("integer attention over many tokens", attention(2, 4, 0), many),
        Case("integer attention over padded tokens", attention(4, 2, 5), many, mask),
        Case("integer attention over graded inputs", attention(2, 4, 3), few * rng.integers(0, 9, few.shape)),
    ]

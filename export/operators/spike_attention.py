"""Spiking self-attention: Q K^T V without softmax. NIR has no node for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.operator import Array, Case, Operator, metadata_value, opaque_node


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


def read_spike_attention(metadata: dict[str, Any], where: str) -> SpikeAttention:
    """Check and read the metadata of a marked composite."""
    heads = metadata_value(metadata, "num_heads", int, where)
    head_size = metadata_value(metadata, "head_size", int, where)
    scale = metadata_value(metadata, "scale", float, where)
    if heads < 1 or head_size < 1 or not np.isfinite(scale):
        raise GraphError(f"{where}: {heads} heads of {head_size} features with scale {scale} mean nothing")
    return SpikeAttention(heads, head_size, scale)


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

"""Softmax attention of three ordered sources: all that the reference and Lava need of an operator, in one file.

Who reads NIR files registers ``reads_marked(SoftmaxAttention)(read_softmax_attention)`` first; in the package that is a
decorator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.operators import Interval, Operator, Traits
from export.operators.operator import Array
from export.operators.reading import metadata_value, opaque_node


@dataclass(frozen=True, eq=False)
class SoftmaxAttention(Operator):
    """``y[n] = sum_m softmax_m(q[n] . k[m] / sqrt(head_size)) v[m]`` over the real tokens of a sentence, head by head.

    Queries, keys and values are its three sources, ``num_heads x head_size`` features each.
    """

    name: ClassVar[str] = "softmax_attention"
    traits: ClassVar[Traits] = Traits(
        integer=False,
        spike_range=None,
        sources=3,
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

    @property
    def in_features(self) -> int:
        """Features of the queries, of the keys, and of the values."""
        return self.num_heads * self.head_size

    @property
    def out_features(self) -> int:
        """One vector of all heads."""
        return self.num_heads * self.head_size

    def step(self, x: tuple[Array, Array, Array], state: Any, token_mask: Array | None) -> Array:
        """Return ``(..., N, D)`` of queries, keys and values of the same shape."""
        heads = (self.num_heads, self.head_size)
        query, key, value = (np.moveaxis(part.reshape(*part.shape[:-1], *heads), -2, -3) for part in x)
        score = query @ np.swapaxes(key, -1, -2) / np.sqrt(self.head_size).astype(query.dtype)  # (..., H, N, N)
        if token_mask is not None:
            score = np.where(np.swapaxes(token_mask, -1, -2)[..., None, :, :], score, -np.inf)
        weight = np.exp(score - score.max(-1, keepdims=True))
        attended = weight / weight.sum(-1, keepdims=True) @ value
        return np.moveaxis(attended, -3, -2).reshape(x[0].shape)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Claim nothing: it computes in floating point."""
        return None

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        formula = "y[n] = sum_m softmax_m(q[n] . k[m] / sqrt(head_size)) v[m]"
        return opaque_node(self, {"num_heads": self.num_heads, "head_size": self.head_size, "formula": formula})


def read_softmax_attention(metadata: dict[str, Any], where: str) -> SoftmaxAttention:
    """Read the metadata of a marked composite."""
    return SoftmaxAttention(*(metadata_value(metadata, key, int, where) for key in ("num_heads", "head_size")))

"""Mean over the tokens of a sentence, in whole numbers their sum. NIR has no node for either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.interval import Interval
from export.operators.operator import Array, Case, Operator, Traits
from export.operators.reading import metadata_value, opaque_node, reads_marked


@dataclass(frozen=True, eq=False)
class TokenMean(Operator):
    """``y = sum_n mask[n] x[n] / sum_n mask[n]``; the token axis stays, with length 1.

    Parameters
    ----------
    features : int

    References
    ----------
    The published SpikeBERT code averages tokens before its classifier; here padding does not count.
    """

    name: ClassVar[str] = "token_mean"
    traits: ClassVar[Traits] = Traits(
        integer=False,
        spike_range=None,
        sources=1,
        edges=None,
        keeps_shape=False,
        mixes_tokens=True,
        pools_tokens="mean",
        reads_sentences=False,
        reads_tokens=False,
        remembers=False,
        passes_values=False,
        is_synaptic=False,
        needs_program=False,
        latency=1,
    )

    features: int

    @property
    def in_features(self) -> int:
        """Features of a token."""
        return self.features

    @property
    def out_features(self) -> int:
        """Features of the sentence."""
        return self.features

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `token_mean`."""
        return token_mean(x, token_mask)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Claim nothing: it computes in floating point."""
        return None

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        return opaque_node(
            self,
            {
                "features": int(self.features),
                "axes": "mean over the tokens of one sentence at one time step, padding left out",
                "formula": "y = sum_n mask[n] x[n] / sum_n mask[n]",
            },
        )


def token_mean(x: Array, token_mask: Array | None) -> Array:
    """Return the mean of ``x`` ``(..., N, D)`` over tokens as ``(..., 1, D)``."""
    if token_mask is None:
        return x.mean(-2, keepdims=True, dtype=x.dtype)
    weight = token_mask.astype(x.dtype)
    return (x * weight).sum(-2, keepdims=True) / weight.sum(-2, keepdims=True)


@dataclass(frozen=True, eq=False)
class TokenSum(TokenMean):
    """``y = sum_n mask[n] x[n]``: the mean in whole numbers, its division left to whoever reads the output.

    Behind it every value stands for the number of tokens times the mean; see `export.network.Readout`.

    Parameters
    ----------
    features : int
    """

    name: ClassVar[str] = "token_sum"
    traits: ClassVar[Traits] = replace(TokenMean.traits, integer=True, pools_tokens="sum")

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return the sum of ``x`` ``(..., N, D)`` over tokens as ``(..., 1, D)`` int64."""
        counted = x if token_mask is None else x * token_mask.astype(np.int64)
        return counted.sum(-2, keepdims=True, dtype=np.int64)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return what the longest sentence adds up to."""
        return None if read[0] is None or tokens is None else Interval(read[0].low * tokens, read[0].high * tokens)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return a marked composite."""
        return opaque_node(
            self,
            {
                "features": int(self.features),
                "axes": "sum over the tokens of one sentence at one time step, padding left out",
                "formula": "y = sum_n mask[n] x[n]; the output's metadata say how to divide",
            },
        )


@reads_marked(TokenMean)
def read_token_mean(metadata: dict[str, Any], where: str) -> TokenMean:
    """Check and read the metadata of a marked composite."""
    features = metadata_value(metadata, "features", int, where)
    if features < 1:
        raise GraphError(f"{where}: {features} features mean nothing")
    return TokenMean(features)


@reads_marked(TokenSum)
def read_token_sum(metadata: dict[str, Any], where: str) -> TokenSum:
    """Check and read the metadata of a marked composite."""
    return TokenSum(read_token_mean(metadata, where).features)


def cases() -> list[Case]:
    """Return a sentence with and without padding."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, 2, 5, 4))
    return [
        Case("token mean", TokenMean(4), x),
        Case("token mean of padded tokens", TokenMean(4), x, np.arange(5) < np.array([[2], [5]])),
    ]


def integer_cases() -> list[Case]:
    """Return a sentence with and without padding."""
    x = np.random.default_rng(11).integers(-(1 << 20), 1 << 20, (3, 2, 5, 4))
    return [
        Case("token sum", TokenSum(4), x),
        Case("token sum of padded tokens", TokenSum(4), x, np.arange(5) < np.array([[2], [5]])),
    ]

"""Layer norm over features, in groups. NIR has no node for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.operator import Array, Case, Operator, metadata_value, opaque_node, parameter


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
    normed = centred / np.sqrt(variance + x.dtype.type(eps))
    return normed.reshape(x.shape) * weight + bias


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

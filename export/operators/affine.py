"""Affine and linear maps: the synapses. Standard NIR nodes ``Affine`` and ``Linear``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.operators.operator import Array, Case, Operator, parameter


@dataclass(frozen=True, eq=False)
class Affine(Operator):
    """``y = x W^T + b`` on each token by itself; without bias, ``y = x W^T``.

    Parameters
    ----------
    weight : ndarray
        ``(out_features, in_features)``.
    bias : ndarray or None
        ``(out_features,)``.

    References
    ----------
    NIR's ``Affine`` and ``Linear``.
    """

    name: ClassVar[str] = "affine"

    weight: Array
    bias: Array | None = None

    @property
    def in_features(self) -> int:
        """Fan-in."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Fan-out."""
        return self.weight.shape[0]

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `affine`."""
        return affine(x, self.weight, self.bias)

    def gather(self, columns: Array) -> Array:
        """Return the output for multi-hot inputs given as the indices that are hot.

        Parameters
        ----------
        columns : ndarray
            ``(K, ..., N)``: K hot inputs for each token; their columns of the weight are summed in order.
        """
        rows = self.weight.T
        y = rows[columns[0]]
        for hot in columns[1:]:
            y = y + rows[hot]
        return y if self.bias is None else y + self.bias

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Affine``, or ``nir.Linear`` without bias."""
        weight = np.asarray(self.weight, dtype)
        return nir.Linear(weight) if self.bias is None else nir.Affine(weight, np.asarray(self.bias, dtype))


def affine(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x W^T + b`` for ``x`` ``(..., in_features)``."""
    y = x @ weight.T
    return y if bias is None else y + bias


def read_affine(node: nir.Affine, where: str) -> Affine:
    """Check and read ``nir.Affine``."""
    weight = parameter(node.weight, (None, None), where, "weight")
    return Affine(weight, parameter(node.bias, (weight.shape[0],), where, "bias"))


def read_linear(node: nir.Linear, where: str) -> Affine:
    """Check and read ``nir.Linear``."""
    return Affine(parameter(node.weight, (None, None), where, "weight"))


def cases() -> list[Case]:
    """Return examples with and without bias, on spikes and on graded values."""
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(5, 7)), rng.normal(size=5)
    spikes = (rng.random((3, 2, 4, 7)) < 0.3).astype(float)
    return [
        Case("affine on spikes", Affine(weight, bias), spikes),
        Case("affine on graded integers", Affine(weight, bias), rng.integers(0, 5, (3, 2, 4, 7)).astype(float)),
        Case("linear without bias", Affine(weight), spikes),
        Case("affine that widens one feature", Affine(rng.normal(size=(9, 1)), rng.normal(size=9)), spikes[..., :1]),
    ]

"""A factor for each feature. Standard NIR node ``Scale``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.operators.operator import Array, Case, Operator, parameter


@dataclass(frozen=True, eq=False)
class Scale(Operator):
    """``y = scale x``, feature by feature. In an integer graph only signs and 0: a unit holds what is left.

    Parameters
    ----------
    scale : ndarray
        ``(features,)``.

    References
    ----------
    NIR's ``Scale``.
    """

    name: ClassVar[str] = "scale"
    integer: ClassVar[bool | None] = None
    keeps_shape: ClassVar[bool] = True

    scale: Array

    @property
    def in_features(self) -> int:
        """One value for each factor."""
        return self.scale.shape[0]

    @property
    def out_features(self) -> int:
        """The same."""
        return self.scale.shape[0]

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return ``scale x``."""
        return x * self.scale.astype(x.dtype)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Scale``."""
        return nir.Scale(np.asarray(self.scale, dtype))


def read_scale(node: nir.Scale, where: str) -> Scale:
    """Check and read ``nir.Scale``."""
    return Scale(parameter(node.scale, (None,), where, "scale"))


def cases() -> list[Case]:
    """Return factors of both signs and zero."""
    rng = np.random.default_rng(21)
    return [Case("scale", Scale(np.array([2.0, -0.5, 0.0, 1.0])), rng.normal(size=(3, 2, 3, 4)))]


def integer_cases() -> list[Case]:
    """Return the factors there are in whole numbers: signs, and 0."""
    x = np.random.default_rng(32).integers(-9, 10, (2, 2, 3, 3))
    return [Case("integer scale", Scale(np.array([1.0, -1.0, 0.0])), x)]

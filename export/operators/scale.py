"""A factor for each feature. Standard NIR node ``Scale``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.interval import Interval
from export.operators.operator import Array, Case, Operator, Traits
from export.operators.reading import StepSeconds, parameter, reads


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
    traits: ClassVar[Traits] = Traits(
        integer=None,
        spike_range=None,
        sources=1,
        edges=None,
        keeps_shape=True,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=False,
        reads_tokens=False,
        remembers=False,
        passes_values=False,
        is_synaptic=True,
        needs_program=False,
        latency=0,
    )

    scale: Array

    @property
    def in_features(self) -> int:
        """One value for each factor."""
        return self.scale.shape[0]

    @property
    def out_features(self) -> int:
        """The same."""
        return self.scale.shape[0]

    def check_whole_numbers(self, where: str) -> None:
        """Check that factors are signs or 0."""
        if not np.isin(self.scale, (-1, 0, 1)).all():
            raise GraphError(f"{where}: a factor of an integer graph is 1, 0 or -1; the unit holds what is left")

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """Return ``scale x``."""
        return x * self.scale.astype(x.dtype)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the interval between both ends, scaled."""
        if read[0] is None:
            return None
        ends = (read[0].low * self.scale, read[0].high * self.scale)
        return Interval(np.minimum(*ends), np.maximum(*ends))

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Scale``."""
        return nir.Scale(np.asarray(self.scale, dtype))


@reads(Scale, nir.Scale)
def read_scale(node: nir.Scale, where: str, dt: StepSeconds) -> Scale:
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

"""Between which numbers the values of a node lie, feature by feature: proof, not measurement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BOUNDED_ROWS = 32
"""Of a weight matrix that are looked at in float64 at a time: all of them would take eight times the memory of int8."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Least and greatest value of each feature, both included.

    Attributes
    ----------
    low, high : ndarray
        ``(features,)`` float64 holding whole numbers.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def magnitude(self) -> np.ndarray:
        """Largest magnitude of each feature."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def largest(self) -> int:
        """Largest magnitude of all features."""
        return int(self.magnitude.max(initial=0))


def symmetric(magnitude: np.ndarray) -> Interval:
    """Return the interval around 0."""
    magnitude = np.asarray(magnitude, np.float64)
    return Interval(-magnitude, magnitude)


def affine_interval(weight: np.ndarray, bias: np.ndarray | None, read: Interval) -> Interval:
    """Return the interval of ``W x + b``."""
    low = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    high = low.copy()
    for start in range(0, len(weight), BOUNDED_ROWS):
        rows = slice(start, start + BOUNDED_ROWS)
        signed = weight[rows].astype(np.float64)
        positive, negative = np.maximum(signed, 0), np.minimum(signed, 0)
        low[rows] += positive @ read.low + negative @ read.high
        high[rows] += positive @ read.high + negative @ read.low
    return Interval(low, high)


def largest_sum(weight: np.ndarray, bias: np.ndarray | None, read: Interval) -> int:
    """Return a bound on every partial sum of ``W x + b``, in whatever order: the largest sum of all magnitudes."""
    rows = range(0, len(weight), BOUNDED_ROWS)
    # float64 first: the magnitude of -128 is no int8
    sums = [np.abs(weight[row : row + BOUNDED_ROWS].astype(np.float64)) @ read.magnitude for row in rows]
    offset = 0 if bias is None else int(np.abs(bias).max(initial=0))
    return int(np.concatenate(sums).max(initial=0)) + offset

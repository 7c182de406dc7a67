"""Cases that try every pair of values, where trying every combination of all would take long and show no more."""

from __future__ import annotations

import itertools
from typing import Any


def pairwise(*axes: list[Any]) -> list[tuple[Any, ...]]:
    """Return cases, a value of each axis, in which each two values of two axes meet.

    Each case begins with a pair that no other has had, and takes of every other axis the value that makes most new
    pairs. The values must be hashable; the cases are the same each time.
    """
    missing = {
        ((i, a), (j, b)): None
        for (i, first), (j, second) in itertools.combinations(enumerate(axes), 2)
        for a, b in itertools.product(first, second)
    }
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for axis, values in enumerate(axes):
            if axis not in case:
                gains = [sum(pair in missing for pair in _pairs({**case, axis: value})) for value in values]
                case[axis] = values[gains.index(max(gains))]
        for pair in _pairs(case):
            missing.pop(pair, None)
        cases.append(tuple(case[axis] for axis in range(len(axes))))
    return cases


def _pairs(case: dict[int, Any]) -> list[tuple[tuple[int, Any], tuple[int, Any]]]:
    return list(itertools.combinations(sorted(case.items(), key=lambda entry: entry[0]), 2))

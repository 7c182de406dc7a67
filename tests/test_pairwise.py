"""`pairwise` leaves no pair out, and few cases are left."""

from __future__ import annotations

import itertools

from pairwise import pairwise


def test_every_two_values_meet() -> None:
    axes = ([1, 2, 3, 4, 5, 6, 7], ["a", "b", "c", "d", "e"], [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], [False, True])
    cases = pairwise(*axes)
    for (i, first), (j, second) in itertools.combinations(enumerate(axes), 2):
        assert {(case[i], case[j]) for case in cases} == set(itertools.product(first, second))
    assert 7 * 6 <= len(cases) <= 1.2 * 7 * 6  # of 420; no fewer than the two longest axes have pairs


def test_two_axes_are_their_product() -> None:
    assert sorted(pairwise([1, 2], [3, 4, 5])) == sorted(itertools.product([1, 2], [3, 4, 5]))

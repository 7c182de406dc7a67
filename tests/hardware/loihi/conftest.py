"""Chips of a few neurons, and graphs for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from export.network import Network, NetworkBuilder
from export.operators import Affine, LeakyIntegrateAndFire
from hardware.loihi import Chip, Limit
from hardware.loihi.chip import LOIHI1


@pytest.fixture(scope="session")
def make_chip() -> Callable[..., Chip]:
    """Return a function that makes a chip like Loihi 1 but for some limits."""

    def make(base: Chip = LOIHI1, **limits: int | None) -> Chip:
        return replace(base, **{name: Limit(value, "a test") for name, value in limits.items()})

    return make


@pytest.fixture(scope="session")
def make_chain() -> Callable[..., Network]:
    """Return a function that makes a chain of dense layers of neurons, that reset to zero, of given widths."""

    def make(*widths: int) -> Network:
        builder = NetworkBuilder("input", widths[0])
        last = "input"
        for index, (fan_in, width) in enumerate(itertools.pairwise(widths)):
            last = builder.add(f"affine{index}", Affine(np.ones((width, fan_in))), last)
            neuron = LeakyIntegrateAndFire(np.full(width, 0.5), np.full(width, 2.0), np.ones(width), "zero")
            last = builder.add(f"neuron{index}", neuron, last)
        return builder.network("output", last)

    return make

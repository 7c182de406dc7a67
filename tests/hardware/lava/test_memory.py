"""The promise that Lava's processes treat memory well: they share what was there before them, and keep what they free.

Both are read from /proc, as the kernel counts them.
"""

from __future__ import annotations

import gc
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import nir
import numpy as np
import pytest
from numpy.typing import DTypeLike

from export.network import Network, NetworkBuilder
from export.operators import Affine, Flatten, LayerNorm, LeakyIntegrateAndFire, Operator, Traits
from hardware import open_runner
from hardware.runners.lava.memory import private_bytes

pytestmark = [
    pytest.mark.lava,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other ways with memory"),
]

STEPS, TOKENS, FEATURES, WIDE = 4, 128, 64, 1024


def _network() -> Network:
    """Return a network of temporary arrays of a megabyte each."""
    rng = np.random.default_rng(0)
    ones = np.ones(WIDE)
    builder = NetworkBuilder("input", FEATURES)
    builder.add("wide", Affine(rng.normal(size=(WIDE, FEATURES)), ones), "input")
    builder.add("norm", LayerNorm(ones, ones), "wide")
    builder.add("neuron", LeakyIntegrateAndFire(0.9 * ones, 10 * ones, ones), "norm")
    builder.add("narrow", Affine(rng.normal(size=(FEATURES, WIDE))), "neuron")
    return builder.network("output", "narrow")


def _page_faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def test_memory_freed_at_one_step_is_there_at_the_next() -> None:
    sample = np.random.default_rng(1).normal(size=(STEPS, 1, TOKENS, FEATURES))
    with open_runner(_network(), "lava", granularity="network", tokens=TOKENS) as runner:
        for _ in range(3):  # the first samples fill the heap
            runner.run(sample)
        actors = runner.process_ids()
        before = sum(map(_page_faults, actors))
        for _ in range(4):
            runner.run(sample)
        faults = sum(map(_page_faults, actors)) - before
    one_array = TOKENS * WIDE * np.dtype(np.float64).itemsize // 4096
    assert faults < 4 * STEPS * one_array / 2  # with memory given back, a step costs the pages of several arrays


@dataclass(frozen=True, eq=False)
class Collector(Operator):
    """Passes on what comes, and has Python's collector look through all its objects."""

    name: ClassVar[str] = "collector"
    traits: ClassVar[Traits] = replace(Flatten.traits, integer=False)

    @property
    def in_features(self) -> int:
        return FEATURES

    @property
    def out_features(self) -> int:
        return FEATURES

    def interval(self, read: Any, tokens: int | None) -> None:
        return None

    def step(self, x: np.ndarray, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        gc.collect()
        return x

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        raise NotImplementedError


def test_collecting_garbage_copies_nothing_that_was_there_before() -> None:
    builder = NetworkBuilder("input", FEATURES)
    builder.add("collector", Collector(), "input")
    objects = [[] for _ in range(1_000_000)]  # 60 MB and more, which the processes are forked with
    with open_runner(builder.network("output", "collector"), "lava", granularity="network", tokens=1) as runner:
        runner.run(np.zeros((STEPS, 1, 1, FEATURES)))
        own = [private_bytes([pid]) for pid in runner.process_ids()]
    assert len(own) == 2
    assert max(own) < 56 * len(objects) / 2

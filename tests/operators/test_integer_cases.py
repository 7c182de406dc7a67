"""The promise of every operator in whole numbers: each runner computes the equations of ``docs/integers.md``.

Every integer case goes as a graph of one operator through a NIR file to every runner of integer graphs and is compared,
to the last bit, with those equations as `integer_equations` has them, which share no code with the operator.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
from integer_equations import simulate

from export import build_graph, read_nir, write_nir
from export.cases import network_of_case
from export.operators import (
    Case,
    TokenSum,
    all_integer_cases,
)
from export.operators.layer_norm import integer_inverse_square_root, integer_layer_norm
from hardware import open_runner

CASES = all_integer_cases()
RUNNERS = [("reference", False), ("integer", False), ("integer", True), ("onnx", False)]
"""Each runner with nothing known of its inputs; the integer one also with their size known, which it may rely on."""


def _graph(case: Case, tmp_path: Path, proven: bool = False):
    network = network_of_case(case)
    if proven:
        limits = {"input_limit": max(1, int(np.abs(case.inputs).max())), "max_tokens": case.inputs.shape[2]}
        network = replace(network, **limits)
    return read_nir(write_nir(tmp_path / "case.nir", build_graph(network)))


@pytest.mark.parametrize(("runner", "proven"), RUNNERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_every_runner_computes_the_equations(case: Case, runner: str, proven: bool, tmp_path: Path) -> None:
    graph = _graph(case, tmp_path, proven)
    with open_runner(graph, runner, "integer", record_membrane_potentials=True) as opened:
        trace = opened.run(case.inputs, case.token_mask)
    mask = np.ones(case.inputs.shape[1:3], bool) if case.token_mask is None else case.token_mask
    expected = simulate(graph, case.inputs, mask)
    outputs = expected.sent["node"].numpy()
    real = np.ones(outputs.shape[1:3], bool) if isinstance(case.operator, TokenSum) else mask
    if case.operator.spikes:
        np.testing.assert_array_equal(trace.spikes["node"], expected.spikes["node"])
        potentials = expected.potentials["node"]
        np.testing.assert_array_equal(trace.membrane_potentials["node"][:, real], potentials[:, real])
        np.testing.assert_array_equal(trace.thresholds["node"], case.operator.threshold * 64)
    tokens = mask.sum(-1)[:, None, None] if isinstance(case.operator, TokenSum) else 1
    steps = outputs / tokens  # the readout divides by the tokens that were summed
    assert trace.outputs is not None
    np.testing.assert_array_equal(trace.outputs.reshape(steps.shape)[:, real], steps[:, real])
    totals = outputs.sum(0) / (tokens * len(outputs))
    np.testing.assert_array_equal(trace.logits.reshape(totals.shape)[real], totals[real])


def test_overflows_are_reported(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.title == "integer neuron subtract that wraps around")
    with open_runner(_graph(case, tmp_path), "reference", "integer") as opened:
        found = opened.run(case.inputs).metadata["overflows"]["node"]
    assert found["wrapped_currents"] == np.count_nonzero(np.abs(case.inputs * 64 + 0.5) > 2**23)
    assert found["saturated_potentials"] > 0


def test_the_inverse_square_root_is_as_near_as_stated() -> None:
    rng = np.random.default_rng(0)
    edges = [(part << 54) + offset for part in range(64, 256) for offset in (0, 1, (1 << 54) - 1)]
    x = np.concatenate([np.array(edges), rng.integers(1 << 60, 1 << 62, 20_000)])
    found = integer_inverse_square_root(x)
    exact = np.array([isqrt((1 << 168) // int(value)) for value in x], dtype=object)  # 2^54 / sqrt(x 2^-60)
    relative = [abs(Fraction(int(f) << 30, int(e)) - 1) for f, e in zip(found, exact, strict=True)]
    assert max(relative) < Fraction(1, 2**23)
    assert found.max() <= 1 << 24
    assert found.min() >= 1 << 23


@pytest.mark.parametrize("features", [1, 2, 12, 384, 3072, 4096])
@pytest.mark.parametrize("bits", [1, 8, 18])
def test_the_normed_value_is_as_near_as_stated(features: int, bits: int) -> None:
    rng = np.random.default_rng(features + bits)
    x = rng.integers(-(1 << bits), 1 << bits, (8, features))
    x[0] = 0
    x[0, 0] = 1 << bits  # the largest normed value there is
    eps = np.array([max(1, features)])
    found = integer_layer_norm(x, np.full(features, 1 << 20), np.zeros(features, np.int64), eps, 20)  # 20 fraction bits
    for token, normed in zip(x.tolist(), found.tolist(), strict=True):
        total = sum(token)
        radicand = features * sum(v * v for v in token) - total * total + int(eps[0])
        for place in {0, features - 1, features // 2}:
            centred = features * token[place] - total
            size = isqrt((centred * centred << 80) // radicand)  # 2^40 |c| / sqrt(R), rounded down
            exact = size if centred >= 0 else -size
            allowed = (1 << 20) + (size >> 23) + 2
            assert abs((normed[place] << 20) - exact) < allowed

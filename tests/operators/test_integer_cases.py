"""The promise of every operator in whole numbers: each runner computes the equations of ``docs/integers.md``.

Every integer case goes as a graph of one operator through a NIR file to every runner of integer graphs and is compared,
to the last bit, with those equations written here in plain Python integers, which share no code with the operator.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import isqrt
from pathlib import Path

import numpy as np
import pytest

from export import build_graph, read_nir, write_nir
from export.cases import network_of_case
from export.operators import (
    Case,
    Delay,
    Flatten,
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    Pooling,
    Scale,
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


def _expected(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
    """Return outputs (T, B, N or 1, C), and for neurons their potentials."""
    operator, x = case.operator, case.inputs
    mask = np.ones(x.shape[1:3], bool) if case.token_mask is None else case.token_mask
    if isinstance(operator, IntegerAffine):
        bias = [0] * operator.out_features if operator.bias is None else operator.bias.tolist()
        rows = operator.weight.tolist()
        return _each_token(
            x,
            lambda token: [
                sum(w * v for w, v in zip(row, token, strict=True)) + b for row, b in zip(rows, bias, strict=True)
            ],
        ), None
    if isinstance(operator, IntegerLayerNorm):
        return _each_token(x, lambda token: _norm(operator, token)), None
    if isinstance(operator, IntegerSpikeAttention):
        return np.stack([[_attention(operator, s, m) for s, m in zip(step, mask, strict=True)] for step in x]), None
    if isinstance(operator, TokenSum):
        return np.stack([[s[m].sum(0, keepdims=True) for s, m in zip(step, mask, strict=True)] for step in x]), None
    if isinstance(operator, IntegerConvolution):
        return _each_token(x, lambda token: _convolution(operator, token)), None
    if isinstance(operator, Pooling):
        return _each_token(x, lambda token: _sums_of_windows(operator, token)), None
    if isinstance(operator, Flatten):
        return x, None
    if isinstance(operator, Scale):
        return _each_token(x, lambda token: [int(s) * v for s, v in zip(operator.scale, token, strict=True)]), None
    if isinstance(operator, Delay):
        late = np.zeros_like(x)
        for (step, *_, feature), _value in np.ndenumerate(x[:, :1, :1]):
            if step >= operator.steps[feature]:
                late[step, ..., feature] = x[step - operator.steps[feature], ..., feature]
        return late, None
    if isinstance(operator, IntegerIntegrator):
        potentials = np.zeros(x.shape, np.int64)
        for index in np.ndindex(x.shape[1:]):
            potentials[(slice(None), *index)] = _one_integrator(operator, index[-1], x[(slice(None), *index)].tolist())
        return potentials, None
    assert isinstance(operator, IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron), (
        f"{operator.name}: write its meaning"
    )
    one_neuron = _one_current_neuron if isinstance(operator, IntegerCurrentNeuron) else _one_neuron
    spikes, potentials = np.zeros(x.shape, np.int64), np.zeros(x.shape, np.int64)
    for index in np.ndindex(x.shape[1:]):
        every_step = (slice(None), *index)
        spikes[every_step], potentials[every_step] = one_neuron(operator, index[-1], x[every_step].tolist())
    return spikes * mask[None, :, :, None], potentials


def _each_token(x: np.ndarray, meaning) -> np.ndarray:
    return np.array([meaning(token.tolist()) for token in x.reshape(-1, x.shape[-1])]).reshape(*x.shape[:-1], -1)


def _convolution(convolution: IntegerConvolution, token: list[int]) -> list[int]:
    """Look every weight's input up by itself; what lies outside the input is 0."""
    channels, *size = convolution.in_shape
    x = np.array(token, dtype=object).reshape(channels, *size)
    filters, inputs, *kernel = convolution.weight.shape
    found = []
    for o in range(filters):
        first = o // (filters // convolution.groups) * inputs
        for place in np.ndindex(*convolution.out_shape[1:]):
            total = int(convolution.bias[o])
            for c, *taps in np.ndindex(inputs, *kernel):
                where = [
                    hop * p + gap * k - pad[0]
                    for hop, p, gap, k, pad in zip(
                        convolution.stride, place, convolution.dilation, taps, convolution.padding, strict=True
                    )
                ]
                if all(0 <= w < length for w, length in zip(where, size, strict=True)):
                    total += int(convolution.weight[(o, c, *taps)]) * int(x[(first + c, *where)])
            found.append(total)
    return found


def _sums_of_windows(pooling: Pooling, token: list[int]) -> list[int]:
    x = np.array(token).reshape(pooling.shape)
    _, rows, columns = pooling.shape
    found = []
    for c, p, q in np.ndindex(*pooling.out_shape):
        top, left = (hop * at - pad for hop, at, pad in zip(pooling.stride, (p, q), pooling.padding, strict=True))
        held = [(top + i, left + j) for i in range(pooling.kernel[0]) for j in range(pooling.kernel[1])]
        found.append(sum(int(x[c, i, j]) for i, j in held if 0 <= i < rows and 0 <= j < columns))
    return found


def _one_integrator(integrator: IntegerIntegrator, feature: int, activations: list[int]) -> list[int]:
    decay, mantissa, exponent = (
        int(values[feature]) for values in (integrator.decay, integrator.bias_mantissa, integrator.bias_exponent)
    )
    potential, found = 0, []
    for activation in activations:
        current = activation * 64
        if current > 2**23:
            current -= 2**24
        elif current <= -(2**23):
            current += 2**24
        product = potential * (4096 - decay)
        potential = (product // 4096 if product >= 0 else -(-product // 4096)) + current + mantissa * 2**exponent
        potential = max(-(2**23) + 1, min(2**23 - 1, potential))
        found.append(potential)
    return found


def _rounded(value: int, bits: int) -> int:
    return (2 * value + (1 << bits)) // (2 << bits)


def _norm(norm: IntegerLayerNorm, token: list[int]) -> list[int]:
    size = len(token) // norm.groups
    found = []
    for group in range(norm.groups):
        part = token[group * size : (group + 1) * size]
        total = sum(part)
        radicand = size * sum(v * v for v in part) - total * total + int(norm.integer_eps[group])
        exponent = 0
        while radicand << (exponent + 2) < 1 << 62:
            exponent += 2
        factor = int(integer_inverse_square_root(np.array(radicand << exponent)))  # its error is tested below
        half_bits = 0
        while 1 << (2 * half_bits) < size:
            half_bits += 1
        for place, value in enumerate(part):
            index = group * size + place
            numerator = _rounded((size * value - total) << (exponent // 2), 3 + half_bits)
            normed = _rounded(numerator * factor, 31 - half_bits)
            found.append(_rounded(normed * int(norm.weight[index]) + int(norm.bias[index]), norm.shift))
    return found


def _attention(attention: IntegerSpikeAttention, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    tokens, width = len(x), attention.out_features
    y = np.zeros((tokens, width), np.int64)
    for n in range(tokens):
        for feature in range(width):
            head = feature // attention.head_size * attention.head_size
            for m in np.flatnonzero(mask):
                keys = range(head, head + attention.head_size)
                score = sum(int(x[n, k]) * int(x[m, width + k]) for k in keys) if mask[n] else 0
                y[n, feature] += score * int(x[m, 2 * width + feature]) * 2**attention.shift
    return y


def _one_neuron(neuron: IntegerLeakyIntegrateAndFire, feature: int, activations: list[int]) -> tuple[list, list]:
    threshold, decay, mantissa, exponent = (
        int(parameter[feature])
        for parameter in (neuron.threshold, neuron.decay, neuron.bias_mantissa, neuron.bias_exponent)
    )
    potential, fired, spikes, tested = 0, False, [], []
    for activation in activations:
        current = activation * 64
        if current > 2**23:
            current -= 2**24
        elif current <= -(2**23):
            current += 2**24
        product = potential * (4096 - decay)
        potential = (product // 4096 if product >= 0 else -(-product // 4096)) + current + mantissa * 2**exponent
        if neuron.reset == "subtract" and fired:
            potential -= threshold * 64
        potential = max(-(2**23) + 1, min(2**23 - 1, potential))
        tested.append(potential)
        fired = potential > threshold * 64 or (neuron.fire_on_equal and potential == threshold * 64)
        spikes.append(int(fired))
        if neuron.reset == "zero" and fired:
            potential = 0
    return spikes, tested


def _one_current_neuron(neuron: IntegerCurrentNeuron, feature: int, activations: list[int]) -> tuple[list, list]:
    def decayed(value: int, decay: int) -> int:
        product = value * (4096 - decay)
        return product // 4096 if product >= 0 else -(-product // 4096)

    given = {key: int(value[feature]) for key, value in vars(neuron).items() if key != "unit"}
    current, potential, spikes, tested = 0, 0, [], []
    for activation in activations:
        current = decayed(current, given["current_decay"]) + activation * 64
        if current > 2**23:
            current -= 2**24
        elif current <= -(2**23):
            current += 2**24
        bias = given["bias_mantissa"] * 2 ** given["bias_exponent"]
        potential = decayed(potential, given["decay"]) + current + bias
        potential = max(-(2**23) + 1, min(2**23 - 1, potential))
        tested.append(potential)
        spikes.append(int(potential > given["threshold"] * 64))
        if spikes[-1]:
            potential = 0
    return spikes, tested


@pytest.mark.parametrize(("runner", "proven"), RUNNERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_every_runner_computes_the_equations(case: Case, runner: str, proven: bool, tmp_path: Path) -> None:
    with open_runner(_graph(case, tmp_path, proven), runner, "integer", record_membrane_potentials=True) as opened:
        trace = opened.run(case.inputs, case.token_mask)
    outputs, potentials = _expected(case)
    real = np.ones(outputs.shape[1:3], bool)
    if case.token_mask is not None and not isinstance(case.operator, TokenSum):
        real = case.token_mask
    if case.operator.spikes:
        np.testing.assert_array_equal(trace.spikes["node"], outputs)
        assert potentials is not None
        np.testing.assert_array_equal(trace.membrane_potentials["node"][:, real], potentials[:, real])
        np.testing.assert_array_equal(trace.thresholds["node"], case.operator.threshold * 64)
    tokens = 1
    if isinstance(case.operator, TokenSum):
        tokens = (np.ones(case.inputs.shape[1:3]) if case.token_mask is None else case.token_mask).sum(-1)[
            :, None, None
        ]
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

"""The promise of the rounding bounds: no two implementations of an operator lie further apart than is said.

The other implementation here shares nothing with ours: sums in random order, fused or blocked, variances in one pass,
in two and by Welford, in float32, on inputs moved by up to the distance that came in. And the promise is not bought by
bounds too wide to mean anything: a perturbation a few times larger is always beyond them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.operators import Affine, LayerNorm, LeakyIntegrateAndFire, SpikeAttention, TokenMean
from hardware.equivalence.rounding import (
    Precision,
    bound_affine,
    bound_attention,
    bound_gather,
    bound_layer_norm,
    bound_potential,
    bound_token_mean,
)

SINGLE, DOUBLE = Precision.of(np.float32), Precision.of(np.float64)
single = np.float32


def _sum_in_order(terms: np.ndarray, rng: np.random.Generator) -> np.float32:
    """Add float32 numbers in a random tree."""
    pending = [single(term) for term in terms]
    while len(pending) > 1:
        i, j = sorted(rng.choice(len(pending), 2, replace=False))
        right = pending.pop(j)
        pending[i] = single(pending[i] + right)
    return pending[0] if pending else single(0)


def _moved(x: np.ndarray, distance: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 inputs within `distance` of `x`, and how far they really lie."""
    other = (x + distance * rng.uniform(-1, 1, x.shape)).astype(single) if distance else x
    return other, np.abs(other.astype(np.float64) - x)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    fan_in=st.integers(1, 60),
    kind=st.sampled_from(["spikes", "integers", "analog"]),
    distance=st.sampled_from([0.0, 1e-6, 1e-3]),
    bias=st.booleans(),
)
def test_affine(seed: int, fan_in: int, kind: str, distance: float, bias: bool) -> None:
    rng = np.random.default_rng(seed)
    draw = {
        "spikes": rng.random((3, fan_in)) < 0.3,
        "integers": rng.integers(0, 5, (3, fan_in)),
        "analog": rng.normal(size=(3, fan_in)),
    }
    x = draw[kind].astype(single)
    operator = Affine(rng.normal(size=(4, fan_in)).astype(single), rng.normal(size=4).astype(single) if bias else None)
    ours = operator.step(x, None, None)
    other_x, apart = _moved(x, distance, rng)
    bound = bound_affine(operator, x, apart, SINGLE)
    for row, feature in np.ndindex(ours.shape):
        terms = [single(w * v) for w, v in zip(operator.weight[feature], other_x[row], strict=True)]
        if operator.bias is not None:
            terms.insert(int(rng.integers(len(terms) + 1)), operator.bias[feature])
        other = _sum_in_order(np.array(terms, single), rng)
        assert abs(float(other) - float(ours[row, feature])) <= bound[row, feature]


def test_two_terms_have_one_order_and_three_have_more() -> None:
    weight = np.array([[0.1, 0.2, 0.3, 0.4]], single)
    two, three = np.array([[1, 1, 0, 0]], single), np.array([[1, 1, 1, 0]], single)
    nothing = np.zeros((1, 4))
    assert bound_affine(Affine(weight), two, nothing, SINGLE) == 0
    assert bound_affine(Affine(weight), three, nothing, SINGLE) > 0
    assert bound_affine(Affine(weight, np.ones(1, single)), two, nothing, SINGLE) > 0
    assert bound_affine(Affine(weight), 3 * two, nothing, SINGLE) > 0  # fused products round differently
    assert bound_gather(Affine(weight), np.array([[[0]], [[2]]]), SINGLE) == 0


def _one_pass(x: np.ndarray, rng: np.random.Generator) -> tuple[np.float32, np.float32]:
    n = single(len(x))
    mean = single(_sum_in_order(x, rng) / n)
    square = single(_sum_in_order(x * x, rng) / n)
    return mean, single(square - single(mean * mean))


def _two_passes(x: np.ndarray, rng: np.random.Generator) -> tuple[np.float32, np.float32]:
    mean = single(_sum_in_order(x, rng) / single(len(x)))
    centred = (x - mean).astype(single)
    return mean, single(_sum_in_order(centred * centred, rng) / single(len(x)))


def _welford(x: np.ndarray, rng: np.random.Generator) -> tuple[np.float32, np.float32]:
    mean, total = single(0), single(0)
    for index, value in enumerate(rng.permutation(x)):
        delta = single(value - mean)
        mean = single(mean + single(delta / single(index + 1)))
        total = single(total + single(delta * single(value - mean)))
    return mean, single(total / single(len(x)))


MOMENTS: dict[str, Callable] = {"one pass": _one_pass, "two passes": _two_passes, "Welford": _welford}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(2, 48),
    offset=st.sampled_from([0.0, 1.0, -5.0]),
    distance=st.sampled_from([0.0, 1e-6, 1e-3]),
    moments=st.sampled_from(list(MOMENTS)),
    folded=st.booleans(),
)
def test_layer_norm(seed: int, width: int, offset: float, distance: float, moments: str, folded: bool) -> None:
    rng = np.random.default_rng(seed)
    x = (offset + rng.normal(size=(2, width))).astype(single)
    operator = LayerNorm(rng.normal(size=width).astype(single), rng.normal(size=width).astype(single), 1e-5)
    ours = operator.step(x, None, None)
    other_x, apart = _moved(x, distance, rng)
    bound = bound_layer_norm(operator, x, apart, SINGLE)
    for row in range(len(x)):
        mean, variance = MOMENTS[moments](other_x[row], rng)
        inverse = single(1 / np.sqrt(single(variance + single(1e-5))))
        if folded:
            scale = (inverse * operator.weight).astype(single)
            other = other_x[row] * scale + (operator.bias - mean * scale)
        else:
            other = (other_x[row] - mean) * inverse * operator.weight + operator.bias
        assert (np.abs(other.astype(np.float64) - ours[row]) <= bound[row]).all()


def test_layer_norm_of_torch_lies_within_its_bound() -> None:
    rng = np.random.default_rng(0)
    x = (3 + rng.normal(size=(50, 384))).astype(single)
    operator = LayerNorm(rng.normal(size=384).astype(single), rng.normal(size=384).astype(single), 1e-12)
    other = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (384,), torch.from_numpy(operator.weight), torch.from_numpy(operator.bias), 1e-12
    ).numpy()
    bound = bound_layer_norm(operator, x, np.zeros(x.shape), SINGLE)
    distance = np.abs(other.astype(np.float64) - operator.step(x, None, None))
    assert distance.max() > 0
    assert (distance <= bound).all()


def test_a_norm_of_constant_tokens_has_no_bound_where_one_pass_can_cancel_everything() -> None:
    operator = LayerNorm(np.ones(8, single), np.zeros(8, single), 1e-12)
    constant = np.full((1, 8), 3.0, single)
    assert np.isinf(bound_layer_norm(operator, constant, np.zeros((1, 8)), SINGLE)).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 6), distance=st.sampled_from([0.0, 1e-4]))
def test_attention(seed: int, tokens: int, distance: float) -> None:
    rng = np.random.default_rng(seed)
    operator = SpikeAttention(2, 3, 0.3)
    x = (rng.random((1, tokens, 18)) < 0.5).astype(single)
    ours = operator.step(x, None, None)
    other_x, apart = _moved(x, distance, rng)
    bound = bound_attention(operator, x, apart, None, SINGLE)
    if not distance:
        assert not bound.any()
    query, key, value = (other_x[0, :, part * 6 : (part + 1) * 6].astype(np.float64) for part in range(3))
    for head in range(2):
        own = slice(3 * head, 3 * head + 3)
        product = (query[:, own] @ key[:, own].T) @ value[:, own]
        if distance:
            assert (np.abs(single(0.3) * product - ours[0, :, own]) <= bound[0, :, own]).all()
        else:  # whole numbers, and one product with the scale that rounds as ours does
            assert np.array_equal(single(0.3) * product.astype(single), ours[0, :, own])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 9), distance=st.sampled_from([0.0, 1e-4]))
def test_token_mean(seed: int, tokens: int, distance: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, 3)).astype(single)
    mask = np.arange(tokens)[:, None] < int(rng.integers(1, tokens + 1))
    ours = TokenMean(3).step(x, None, mask)[0]
    other_x, apart = _moved(x, distance, rng)
    bound = bound_token_mean(x, apart, mask, SINGLE)[0]
    count = int(mask.sum())
    for feature in range(3):
        total = _sum_in_order(other_x[:count, feature], rng)
        for other in (single(total / single(count)), single(total * single(1 / count))):
            assert abs(float(other) - float(ours[feature])) <= bound[feature]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    decay_input=st.booleans(),
    reset=st.sampled_from(["subtract", "zero"]),
    distance=st.sampled_from([0.0, 1e-7, 1e-4]),
)
def test_the_bound_of_a_potential_follows_it_over_steps(
    seed: int, decay_input: bool, reset: str, distance: float
) -> None:
    _check_bound_over_steps(seed, decay_input, reset, distance, size=20)


@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_the_bound_of_a_potential_counts_every_rounding(decay_input: bool, reset: str) -> None:
    """So many neurons, on currents a rounding apart, that a bound without one of its terms is too narrow for some."""
    _check_bound_over_steps(0, decay_input, reset, 1e-7, size=20_000)


def _check_bound_over_steps(seed: int, decay_input: bool, reset: str, distance: float, size: int) -> None:
    """Run two populations on currents that lie apart, both reset by the same spikes."""
    rng = np.random.default_rng(seed)
    neuron = LeakyIntegrateAndFire(
        rng.uniform(0.1, 1, size), rng.uniform(1, 5, size), rng.uniform(0.2, 1, size), reset, decay_input
    ).cast(single)
    ours, other = (neuron.initial_state((size,), single) for _ in range(2))
    bound = np.zeros(size)
    for _ in range(8):
        current = rng.normal(size=size).astype(single)
        other_current, apart = _moved(current, distance, rng)
        bound = bound_potential(neuron, current, apart, ours.membrane_potential, bound, ours.spikes, SINGLE)
        spikes = neuron.step(current, ours, None)
        neuron.step(other_current, other, None)
        moved = np.abs(other.tested_potential.astype(np.float64) - ours.tested_potential)
        assert (moved <= bound).all()
        if not distance:
            assert not bound.any()
        other.spikes = spikes
        if reset == "zero":
            other.membrane_potential = np.where(spikes, single(0), other.tested_potential)
            bound = np.where(spikes, 0.0, bound)


def test_gamma_is_what_the_literature_says() -> None:
    assert SINGLE.unit_roundoff == 2**-24
    assert DOUBLE.unit_roundoff == 2**-53
    assert SINGLE.gamma(100) == pytest.approx(100 * 2**-24 / (1 - 100 * 2**-24), rel=1e-15)
    assert np.isinf(SINGLE.gamma(2**24))


@pytest.mark.parametrize("fan_in", [8, 64, 512])
def test_bounds_are_not_too_wide_to_mean_anything(fan_in: int) -> None:
    """On spikes at a rate of one fifth, a bound is below fan-in roundings of the whole sum of magnitudes."""
    rng = np.random.default_rng(0)
    x = (rng.random((20, fan_in)) < 0.2).astype(single)
    operator = Affine(rng.normal(size=(16, fan_in)).astype(single))
    bound = bound_affine(operator, x, np.zeros(x.shape), SINGLE)
    magnitude = np.abs(operator.weight).sum(1)
    assert (bound <= 2 * fan_in * 2.0**-24 * magnitude * 0.3).mean() > 0.95

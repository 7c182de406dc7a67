"""The C kernel counts what NumPy counts, at every shape, in every layout, and where narrow sums would wrap."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.kernels import counting as counting_kernel
from hardware.kernels.counting import LANES, add_up_spikes, count_attention, count_running_sums, load_kernel

pytestmark = pytest.mark.skipif(load_kernel() is None, reason="there is no C compiler")


def random_spikes(seed: int, shape: tuple[int, ...], rate: float) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < rate).astype(np.uint8)


def laid_out(spikes: np.ndarray, layout: str) -> np.ndarray:
    """Return spikes ``(T, B, N, D)`` of the same values, differently placed in memory."""
    if layout == "part":  # of more steps, sentences, tokens and features
        whole = np.ones([2 * size + 1 for size in spikes.shape], np.uint8)
        part = whole[tuple(slice(1, 1 + size) for size in spikes.shape)]
        part[...] = spikes
        return part
    if layout == "sentences first":
        return np.ascontiguousarray(np.moveaxis(spikes, 0, 1)).swapaxes(0, 1)
    if layout == "backwards":
        return np.ascontiguousarray(spikes[:, ::-1, ::-1])[:, ::-1, ::-1]
    return spikes.view(bool) if layout == "bool" else spikes


LAYOUTS = ("one piece", "part", "sentences first", "backwards", "bool")
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3 * LANES))
RATES = st.sampled_from([0.0, 0.1, 0.5, 1.0])
SEEDS = st.integers(0, 1000)


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, shape=SHAPES, rate=RATES, kept=RATES, layout=st.sampled_from(LAYOUTS))
def test_sums_are_those_of_numpy(seed: int, shape: tuple[int, ...], rate: float, kept: float, layout: str) -> None:
    """Padding fires too."""
    spikes = random_spikes(seed, shape, rate)
    real = random_spikes(seed + 1, shape[1:3], kept) != 0
    found = add_up_spikes(laid_out(spikes, layout), real)
    assert found is not None
    at_real = spikes * real[..., None]
    assert found.largest == spikes.max()
    np.testing.assert_array_equal(found.by_position, at_real.sum((1, 3)))
    np.testing.assert_array_equal(found.by_neuron, at_real.sum((1, 2)))
    assert found.at_padding == spikes[:, ~real].sum()


@pytest.mark.parametrize(
    "shape",
    [
        (2, 300, 300, 1),  # more rows, and
        (1, 3, 2, 70000),  # more features, than two bytes count
        (1, 300, 1, 300),  # a position that fires more often than two bytes count
        (2, 16, 16, LANES),  # one row more than a byte counts, and no feature beyond a vector
    ],
)
def test_no_sum_wraps_where_everything_fires(shape: tuple[int, ...]) -> None:
    steps, sentences, tokens, features = shape
    real = np.ones((sentences, tokens), bool)
    real[-1, -1] = tokens == 1
    found = add_up_spikes(np.ones(shape, np.uint8), real)
    assert found is not None
    np.testing.assert_array_equal(found.by_position, np.tile(real.sum(0) * features, (steps, 1)))
    np.testing.assert_array_equal(found.by_neuron, np.full((steps, features), real.sum()))
    assert found.at_padding == steps * np.count_nonzero(~real) * features


@pytest.mark.parametrize("value", [2, 128, 255])
@pytest.mark.parametrize("feature", [0, LANES - 1, LANES, LANES + 4])  # within a vector, and behind the last
@pytest.mark.parametrize("token", [0, 4])  # real, and padding
def test_a_value_above_one_is_not_taken_for_a_spike(value: int, feature: int, token: int) -> None:
    spikes = np.ones((2, 3, 5, LANES + 5), np.uint8)
    real = np.arange(5) < np.array([[4], [4], [4]])
    assert add_up_spikes(spikes, real) is not None
    spikes[1, 2, token, feature] = value
    assert add_up_spikes(spikes, real) is None


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, addends=st.integers(2, 6), size=st.integers(1, 3 * counting_kernel.GROUP * LANES), rate=RATES)
def test_running_sums_come_to_what_numpy_finds(seed: int, addends: int, size: int, rate: float) -> None:
    spikes = [random_spikes(seed + i, (size,), rate) for i in range(addends)]
    found = count_running_sums(spikes)
    assert found is not None
    sums = list(accumulate(x.astype(int) for x in spikes))[1:]
    assert found == [(np.count_nonzero(x), np.count_nonzero(x > 1), x.sum()) for x in sums]


def test_a_running_sum_ends_where_a_byte_does() -> None:
    spikes = [np.ones(5000, np.uint8)] * 255
    found = count_running_sums(spikes)
    assert found is not None
    assert found[-1] == (5000, 5000, 255 * 5000)
    assert count_running_sums([*spikes, spikes[0]]) is None


def test_no_attention_count_wraps_where_everything_fires() -> None:
    """Counts beyond 32 bits; half a word of features behind the last whole one."""
    tokens, size = 1500, 32 * 64 + 32
    found = count_attention(
        np.ones((1, 1, tokens, 3 * size), np.uint8), 1, size, np.ones((1, tokens), bool), ("qk_first", "kv_first")
    )
    every_product = tokens * tokens * size
    assert every_product > 1 << 32
    assert found == {
        "qk_first": dict.fromkeys(counting_kernel.ATTENTION_KINDS, every_product),
        "kv_first": dict.fromkeys(counting_kernel.ATTENTION_KINDS, tokens * size * size),
    }


def test_what_is_no_rows_of_bytes_is_left_to_numpy() -> None:
    spikes, real = np.ones((2, 3, 4, 6), np.uint8), np.ones((3, 4), bool)
    for others in (spikes.astype(np.int64), spikes.view(np.int8), spikes[..., ::2], spikes[..., ::-1], spikes[0]):
        assert add_up_spikes(others, real) is None
        assert count_attention(others, 1, 2, real, ("qk_first",)) is None
    assert add_up_spikes(spikes, real[:, :3]) is None
    assert count_running_sums([spikes, spikes[..., ::-1]]) is None
    assert count_running_sums([spikes, spikes.astype(np.uint16)]) is None

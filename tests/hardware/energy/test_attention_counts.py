"""Counts on words of bits equal the integer maps themselves, at every width of a head and length of a sentence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.energy.counts import attention as attention_counts
from hardware.energy.counts.attention import count_spike_products

pytestmark = pytest.mark.usefixtures("counted_in")


def products_from_the_maps(
    spikes: np.ndarray, heads: int, head_size: int, tokens: np.ndarray
) -> dict[str, dict[str, int]]:
    """Build Q K^T and K^T V in whole numbers and look at every entry."""
    steps, sentences, length, _ = spikes.shape
    parts = spikes.reshape(steps, sentences, length, 3, heads, head_size).astype(np.int64)
    counted = {
        order: dict.fromkeys(("attention_and", "attention_count", "attention_add"), 0)
        for order in ("qk_first", "kv_first")
    }
    for step, sentence, head in itertools.product(range(steps), range(sentences), range(heads)):
        query, key, value = (parts[step, sentence][tokens[sentence]][:, part, head] for part in range(3))
        token_map, feature_map = query @ key.T, key.T @ value
        found = {
            "qk_first": (query.sum() * len(query), token_map.sum(), ((token_map > 0) @ value).sum()),
            "kv_first": (key.sum() * head_size, feature_map.sum(), (query @ (feature_map > 0)).sum()),
        }
        for order, three in found.items():
            for kind, count in zip(counted[order], three, strict=True):
                counted[order][kind] += int(count)
    return counted


@pytest.mark.parametrize(
    ("shape", "heads", "head_size", "rate"),
    [
        ((2, 2, 5), 2, 3, 0.4),
        ((1, 2, 4), 1, 70, 0.1),
        ((2, 1, 6), 2, 130, 0.02),
        ((2, 3, 9), 3, 8, 0.3),
        ((1, 1, 1), 1, 64, 0.5),
        ((1, 1, 300), 1, 64, 0.9),  # more tokens than a byte can count
        ((1, 2, 7), 1, 16, 0.0),
        ((1, 2, 7), 1, 16, 1.0),
    ],
)
@pytest.mark.parametrize("entries_at_a_time", [1, 200, attention_counts.ENTRIES_AT_A_TIME])
def test_counts_are_those_of_the_maps(
    shape: tuple[int, int, int],
    heads: int,
    head_size: int,
    rate: float,
    entries_at_a_time: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_counts, "ENTRIES_AT_A_TIME", entries_at_a_time)
    rng = np.random.default_rng(0)
    spikes = (rng.random((*shape, 3 * heads * head_size)) < rate).astype(np.uint8)
    tokens = rng.random(shape[1:]) < 0.7  # those left out fire all the same
    tokens[:, 0] = True
    expected = products_from_the_maps(spikes, heads, head_size, tokens)
    assert count_spike_products(spikes, heads, head_size, tokens, tuple(expected)) == expected
    for order, products in expected.items():
        assert count_spike_products(spikes, heads, head_size, tokens, (order,)) == {order: products}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 3),
    batch=st.tuples(st.integers(1, 3), st.integers(1, 20)),
    heads=st.integers(1, 3),
    head_size=st.integers(1, 140),
    rate=st.sampled_from([0.02, 0.2, 1.0]),
    kept=st.sampled_from([0.0, 0.6, 1.0]),
    layout=st.sampled_from(["one piece", "part", "steps last", "bool", "int64"]),
)
def test_counts_are_those_of_the_maps_in_every_layout(
    seed: int, steps: int, batch: tuple[int, int], heads: int, head_size: int, rate: float, kept: float, layout: str
) -> None:
    rng = np.random.default_rng(seed)
    spikes = (rng.random((steps, *batch, 3 * heads * head_size)) < rate).astype(np.uint8)
    tokens = rng.random(batch) < kept
    expected = products_from_the_maps(spikes, heads, head_size, tokens)
    if layout == "part":  # of something larger, full of spikes
        whole = np.ones((steps + 1, batch[0] + 1, batch[1] + 1, spikes.shape[-1] + 1), np.uint8)
        whole[1:, 1:, 1:, 1:] = spikes
        spikes = whole[1:, 1:, 1:, 1:]
    elif layout == "steps last":
        spikes = np.moveaxis(np.ascontiguousarray(np.moveaxis(spikes, 0, -1)), -1, 0)
    elif layout != "one piece":
        spikes = spikes.astype(layout)
    assert count_spike_products(spikes, heads, head_size, tokens, tuple(expected)) == expected

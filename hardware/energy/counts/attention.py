"""Counts of the two attention products in both orders; where they are of binary spikes, on words of bits.

Sums over tokens and features give ANDs and coincidences. Only which entries of the two maps are not zero needs a pass
over the maps, and for that a bit per spike is enough: a row of Q and a row of K meet where the AND of their words is
not zero, and a feature of K meets those features of V that are set in the OR of the V rows it fires with. In C where
there is a compiler (``counting_kernel.c``), else with NumPy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from export.operators import SpikeAttention
from hardware.edges import Edge
from hardware.energy.counts.kinds import Tallies, Tally
from hardware.firing import Firing
from hardware.kernels.counting import count_attention

ENTRIES_AT_A_TIME = 1 << 16
"""Map entries worked on at once, of at least one sentence and step: 512 KiB of words stay in the cache."""

Words = NDArray[np.uint64]


def attention_products(
    operator: SpikeAttention, edges: tuple[Edge, ...], steps: int, firing: Firing, orders: tuple[str, ...]
) -> dict[str, Tallies]:
    """Count both products in each of `orders`: at real tokens, and what all attended tokens add to that."""
    (edge,) = edges
    mask = firing.trace.mask
    attended = _products_among(operator, edge, steps, mask, orders)
    if np.array_equal(mask, firing.real):
        return {order: Tallies(counted) for order, counted in attended.items()}
    real = _products_among(operator, edge, steps, mask & firing.real, orders)
    return {
        order: Tallies(real[order], {kind: counted[kind] - real[order][kind] for kind in counted})
        for order, counted in attended.items()
    }


def _products_among(
    operator: SpikeAttention, edge: Edge, steps: int, tokens: np.ndarray, orders: tuple[str, ...]
) -> dict[str, Tally]:
    """Count each of `orders` among the `tokens` ``(B, N)`` of each sentence."""
    lengths = tokens.sum(-1).astype(np.int64)
    dense = {
        "qk_first": 2 * int((lengths**2).sum()) * operator.out_features * steps,
        "kv_first": 2 * int(lengths.sum()) * operator.head_size * operator.out_features * steps,
    }
    if edge.kind != "binary" or edge.values is None:
        return {order: {"mac": dense[order], "dense_mac": dense[order]} for order in orders}
    counted = count_spike_products(edge.values, operator.num_heads, operator.head_size, tokens, orders)
    return {order: {"dense_mac": dense[order], **counted[order]} for order in orders}


def count_spike_products(
    spikes: np.ndarray, num_heads: int, head_size: int, tokens: np.ndarray, orders: Collection[str]
) -> dict[str, dict[str, int]]:
    """Count what Q, K and V spikes cause in each order of the product, among the `tokens` of each sentence.

    Parameters
    ----------
    spikes : ndarray
        ``(T, B, N, 3 D)``, 0 and 1: query, key and value after one another, each heads x head size.
    num_heads, head_size : int
        ``D = num_heads x head_size``.
    tokens : ndarray
        ``(B, N)`` bool; spikes of other tokens are left out.
    orders : collection of str
        ``qk_first``, ``kv_first`` or both; each has a map of its own.

    Returns
    -------
    dict of str to dict of str to int
        For each order: attention_and, attention_count, attention_add.
    """
    counted = count_attention(spikes, num_heads, head_size, tokens, orders)
    return _count_on_words(spikes, num_heads, head_size, tokens, orders) if counted is None else counted


def _count_on_words(
    spikes: np.ndarray, num_heads: int, head_size: int, tokens: np.ndarray, orders: Collection[str]
) -> dict[str, dict[str, int]]:
    """Do as `count_spike_products` does, with NumPy."""
    spikes = spikes.astype(np.uint8, copy=False)
    if not tokens.all() and spikes[:, ~tokens].any():
        spikes = spikes * tokens[..., None].astype(np.uint8)
    steps, sentences, length, _ = spikes.shape
    pairs = steps * sentences  # of a step and a sentence
    parts = np.ascontiguousarray(spikes).reshape(pairs, length, 3, num_heads, head_size)
    words = np.moveaxis(_words(parts), -1, 0)  # (W, pairs, N, 3, H)
    of_feature = parts[:, :, :2].sum(1, dtype=np.min_scalar_type(length)).astype(np.int64)  # (pairs, 2, H, head size)
    query_of_feature, key_of_feature = of_feature[:, 0], of_feature[:, 1]
    value_of_token = np.sum([_ones(word[:, :, 2]) for word in words], 0)  # (pairs, N, H)
    counted = {}
    if "qk_first" in orders:
        meets_key = _tokens_met(words[..., 0, :], words[..., 1, :])
        counted["qk_first"] = {
            "attention_and": int(query_of_feature.sum((1, 2)) @ np.tile(tokens.sum(-1), steps)),
            "attention_count": int((query_of_feature * key_of_feature).sum()),
            "attention_add": int((meets_key * value_of_token).sum()),
        }
    if "kv_first" in orders:
        key_of_token = np.sum([_ones(word[:, :, 1]) for word in words], 0)
        meets_value = _features_met(parts[:, :, 1], words[..., 2, :])
        counted["kv_first"] = {
            "attention_and": int(key_of_feature.sum()) * head_size,
            "attention_count": int((key_of_token * value_of_token).sum()),
            "attention_add": int((meets_value * query_of_feature).sum()),
        }
    return counted


def _tokens_met(query: Words, key: Words) -> NDArray[np.int64]:
    """Return how many queries of its sentence meet each key, ``(pairs, N, H)``, from words ``(W, pairs, N, H)``."""
    _, pairs, length, heads = query.shape
    # tokens first, so that what a query is compared with, and added to, lies in one row
    query, key = (np.ascontiguousarray(np.swapaxes(x, 1, 2)) for x in (query, key))  # (W, N, pairs, H)
    met = np.zeros((length, pairs, heads), np.min_scalar_type(length))
    for some in _chunks(pairs, length * heads):
        of_keys = key[:, :, some]
        at_a_time = max(1, ENTRIES_AT_A_TIME // of_keys[0].size)
        buffer = np.empty((min(at_a_time, length), *of_keys.shape[1:]), key.dtype)
        for start in range(0, length, at_a_time):
            of_queries = query[:, start : start + at_a_time, None, some]
            entries = np.bitwise_and(of_queries[0], of_keys[0], out=buffer[: of_queries.shape[1]])
            for of_query, of_key in zip(of_queries[1:], of_keys[1:], strict=True):
                entries |= of_query & of_key
            met[:, some] += (entries != 0).view(np.uint8).sum(0, dtype=met.dtype)
    return np.moveaxis(met, 0, 1).astype(np.int64)


def _features_met(key: np.ndarray, value: Words) -> NDArray[np.int64]:
    """Return how many value features meet each key feature, ``(pairs, H, head size)``.

    `key` are spikes ``(pairs, N, H, head size)``, `value` words ``(W, pairs, N, H)``.
    """
    pairs, length, heads, head_size = key.shape
    met = np.empty((pairs, heads, head_size), np.int64)
    buffer = np.empty((2, _at_a_time(length * heads * head_size), *key.shape[1:]), value.dtype)
    for some in _chunks(pairs, length * heads * head_size):
        all_or_none, kept = buffer[:, : len(key[some])]
        np.copyto(all_or_none, key[some])
        np.negative(all_or_none, out=all_or_none)  # 1 becomes a word of ones
        met[some] = 0
        for word in value:
            np.bitwise_and(all_or_none, word[some][..., None], out=kept)
            met[some] += _ones(np.bitwise_or.reduce(kept, axis=1))
    return met


def _at_a_time(entries_of_a_pair: int) -> int:
    return max(1, ENTRIES_AT_A_TIME // entries_of_a_pair)


def _chunks(pairs: int, entries_of_a_pair: int) -> Iterator[slice]:
    at_a_time = _at_a_time(entries_of_a_pair)
    return (slice(start, start + at_a_time) for start in range(0, pairs, at_a_time))


def _words(spikes: np.ndarray) -> Words:
    """Pack the last axis, 0 and 1, into words of 64 bits; bits beyond it are 0."""
    missing = -spikes.shape[-1] % 64
    if missing:
        spikes = np.pad(spikes, [(0, 0)] * (spikes.ndim - 1) + [(0, missing)])
    return np.packbits(spikes.reshape(-1)).view(np.uint64).reshape(*spikes.shape[:-1], spikes.shape[-1] // 64)


def _ones(words: Words) -> NDArray[np.int64]:
    """Count the ones of each word: sums of neighbouring bits, of pairs, of fours, then of bytes."""
    shift = [np.uint64(bits) for bits in (1, 2, 4, 56)]
    pairs, fours, bytes_, each_byte = (
        np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
    )
    words = words - ((words >> shift[0]) & pairs)
    words = (words & fours) + ((words >> shift[1]) & fours)
    words = (words + (words >> shift[2])) & bytes_
    return ((words * each_byte) >> shift[3]).astype(np.int64)

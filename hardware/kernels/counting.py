"""The C kernel that counts spikes, ``counting_kernel.c``, on NumPy arrays of bytes.

Each function says None where it cannot count: without a C compiler, or where spikes are no bytes. Whoever calls counts
with NumPy then; the numbers are the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from ctypes import c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hardware.kernels.c_library import load_library

SOURCE = Path(__file__).with_name("counting_kernel.c")
GROUP, WORD_BITS = 8, 64
"""Words that are worked on together, and bits of a word."""
LANES = GROUP * WORD_BITS // 8
"""Bytes that are worked on together."""
NUMBERS: dict[str, int | str] = {"GROUP": GROUP, "WORD_BITS": WORD_BITS, "LANES": LANES}
"""What the C source calls by name."""

ATTENTION_KINDS = ("attention_and", "attention_count", "attention_add")


class SpikeSums(NamedTuple):
    """What the spikes of one node come to: by position ``(T, N)`` and neuron ``(T, D)`` at real tokens; at padding."""

    largest: int
    by_position: np.ndarray
    by_neuron: np.ndarray
    at_padding: int


class ValueCounts(NamedTuple):
    """How many values are not 0, how many are above 1, and what all sum to."""

    nonzero: int
    graded: int
    total: int


def add_up_spikes(spikes: np.ndarray, real: np.ndarray) -> SpikeSums | None:
    """Return the sums of spikes ``(T, B, N, D)`` in one pass; None where one is above 1.

    Parameters
    ----------
    spikes : ndarray
    real : ndarray
        ``(B, N)`` bool, the tokens that are not padding.
    """
    library = load_kernel()
    if library is None or not _are_rows_of_bytes(spikes) or real.shape != spikes.shape[1:3]:
        return None
    steps, _, tokens, features = spikes.shape
    real = np.ascontiguousarray(real)
    by_position, by_neuron = np.zeros((steps, tokens), np.int64), np.zeros((steps, features), np.int64)
    at_padding, scratch = c_int64(), np.zeros(2 * features + LANES, np.uint8)
    unaligned = scratch.ctypes.data
    bits = library.add_up(
        spikes.ctypes.data,
        *spikes.shape,
        *spikes.strides[:3],
        real.ctypes.data,
        by_position.ctypes.data,
        by_neuron.ctypes.data,
        ctypes.addressof(at_padding),
        unaligned + -unaligned % LANES,
    )
    return SpikeSums(bits, by_position, by_neuron, at_padding.value) if bits <= 1 else None


def count_running_sums(addends: Sequence[np.ndarray]) -> list[ValueCounts] | None:
    """Return what the sums of the first two, the first three, … of several arrays of spikes, 0 or 1, come to."""
    library = load_kernel()
    size = addends[0].size
    if library is None or len(addends) > np.iinfo(np.uint8).max:
        return None
    if not all(_are_bytes(spikes) and spikes.flags.c_contiguous and spikes.size == size for spikes in addends):
        return None
    width = len(ValueCounts._fields)
    found = (c_int64 * (width * (len(addends) - 1)))()
    addresses = (c_void_p * len(addends))(*(spikes.ctypes.data for spikes in addends))
    library.count_running_sums(addresses, len(addends), size, found)
    return [ValueCounts(*found[start : start + width]) for start in range(0, len(found), width)]


def count_attention(
    spikes: np.ndarray, num_heads: int, head_size: int, tokens: np.ndarray, orders: Collection[str]
) -> dict[str, dict[str, int]] | None:
    """Count the attention products; arguments and result as of `attention_counts.count_spike_products`."""
    library = load_kernel()
    if library is None or not _are_rows_of_bytes(spikes):
        return None
    steps, sentences, length, _ = spikes.shape
    tokens = np.ascontiguousarray(tokens, bool)
    longest, words = -(-length // GROUP) * GROUP, -(-head_size // WORD_BITS)
    scratch = np.empty((2 * words + 2) * longest + words * head_size + (4 + 1) * num_heads * head_size, np.uint64)
    found = {order: (c_int64 * len(ATTENTION_KINDS))() for order in orders}
    library.count_attention(
        spikes.ctypes.data,
        steps,
        sentences,
        length,
        num_heads,
        head_size,
        *spikes.strides[:3],
        tokens.ctypes.data,
        longest,
        words,
        found.get("qk_first"),
        found.get("kv_first"),
        scratch.ctypes.data,
    )
    return {order: dict(zip(ATTENTION_KINDS, counted, strict=True)) for order, counted in found.items()}


def _are_rows_of_bytes(spikes: np.ndarray) -> bool:
    """Whether features lie one behind the other, a byte each."""
    return spikes.ndim == 4 and _are_bytes(spikes) and spikes.strides[-1] == 1


def _are_bytes(values: np.ndarray) -> bool:
    return values.dtype == np.uint8 or values.dtype == np.bool_


@lru_cache(maxsize=1)
def load_kernel() -> ctypes.CDLL | None:
    """Return the kernel, built where it is not there yet; None where it cannot be."""
    library = load_library(SOURCE, NUMBERS)
    if library is None:
        return None
    library.add_up.restype = c_int64
    library.add_up.argtypes = [c_void_p, *[c_int64] * 7, *[c_void_p] * 5]
    library.count_running_sums.restype = library.count_attention.restype = None
    library.count_running_sums.argtypes = [c_void_p, *[c_int64] * 2, c_void_p]
    library.count_attention.argtypes = [c_void_p, *[c_int64] * 8, c_void_p, *[c_int64] * 2, *[c_void_p] * 3]
    return library

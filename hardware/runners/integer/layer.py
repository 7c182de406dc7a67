"""A layer of the integer runner: a node, or nodes that are computed together, and what computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from export.network import Node
from hardware.runners.integer.packed_batch import PackedBatch

INT8_MAX = 127
FLOAT32_EXACT = 1 << 24
"""Whole numbers up to this, and sums of them in any order, are exact in float32."""

Run = Callable[[PackedBatch], None]
"""Reads values of a packed batch, and puts there what a layer sends."""


@dataclass(frozen=True)
class Layer:
    """Some nodes and how they are computed.

    Attributes
    ----------
    nodes : tuple of Node
        One, or those of a cycle.
    method : str
        How, in a word: a type, what is done, or ``"C"``.
    reads : tuple of str
        Whose values `run` reads.
    run : callable or None
        None where the reader of the node computes it with itself.
    """

    nodes: tuple[Node, ...]
    method: str
    reads: tuple[str, ...]
    run: Run | None

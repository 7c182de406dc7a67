"""What one of our Lava processes is to do: which nodes it computes, what it receives for them, and what it sends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.network import Node
from export.token_encoding import TokenEncoding

MAX_PORTS = 4
"""Ports a process of ours has in each direction."""


@dataclass(frozen=True)
class Received:
    """A value that comes into one of our processes.

    Attributes
    ----------
    node : str
        Where it comes from.
    tokens, features : int
    delay : int
        Steps it waits here for what it meets.
    bias : ndarray or None
        ``(features,)``, added: stock synapses have none.
    """

    node: str
    tokens: int
    features: int
    delay: int = 0
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Sent:
    """A value that goes out of one of our processes.

    Attributes
    ----------
    node : str
        The node it comes from.
    tokens, features : int
    latency : int
        Steps after which it goes out.
    """

    node: str
    tokens: int
    features: int
    latency: int = 0


@dataclass(frozen=True)
class GroupPlan:
    """What one of our Lava processes does.

    Attributes
    ----------
    nodes : tuple of Node
        What it computes, in order.
    receives : tuple of Received
        One port each.
    sends : tuple of Sent
        One port each.
    starts_at : int
        Steps by which what it computes on lies behind the network's input.
    reads_input : bool
        Whether it takes the network's input from the shared arrays.
    input_name : str
        Name of the network's input.
    token_encoding : TokenEncoding or None
    pooled : frozenset of str
        The network's nodes that send one vector a sentence.
    output_source : str or None
        The node it writes to the shared outputs.
    """

    nodes: tuple[Node, ...]
    receives: tuple[Received, ...]
    sends: tuple[Sent, ...]
    starts_at: int = 0
    reads_input: bool = False
    input_name: str = "input"
    token_encoding: TokenEncoding | None = None
    pooled: frozenset[str] = frozenset()
    output_source: str | None = None

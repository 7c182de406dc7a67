"""Memory that the parent and all Lava processes of a network share: what goes in, and what is recorded.

Lava's own ways (``Var.get``, ``Monitor``) cost tens of microseconds an element; here a process writes its spikes where
the parent reads them. The memory is anonymous: it has no file and is gone with the last process that maps it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

MAX_PORTS = 4
"""Ports a process of ours has in each direction."""


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return a zeroed array that processes forked later see too."""
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


@dataclass
class Board:
    """Shared arrays of one network; S samples fit at a time, of N tokens each.

    Attributes
    ----------
    first_step : ndarray
        ``(1,)``, steps every process had finished when the samples now on the board were put there.
    shown : ndarray
        ``(1,)``, how many samples are on the board now.
    input_ids : ndarray or None
        ``(S, N)`` token ids.
    values : ndarray or None
        ``(S, T, N, D)`` input values, where the graph takes no ids.
    mask : ndarray
        ``(S, N, 1)`` bool, True at tokens.
    outputs : ndarray
        ``(S, T, N or 1, C)``.
    spikes, membrane_potentials : dict of str to ndarray
        ``(S, T, N, D)`` by node.
    overflows : dict of str to ndarray
        ``(S, 2)`` by neuron of whole numbers: how many currents of a sample wrapped around so far, and how many
        potentials were held at their limit.
    """

    time_steps: int
    first_step: np.ndarray
    shown: np.ndarray
    mask: np.ndarray
    outputs: np.ndarray
    input_ids: np.ndarray | None = None
    values: np.ndarray | None = None
    spikes: dict[str, np.ndarray] = field(default_factory=dict)
    membrane_potentials: dict[str, np.ndarray] = field(default_factory=dict)
    overflows: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples fit on the board."""
        return self.mask.shape[0]

    @property
    def built_for(self) -> tuple[int, int]:
        """Tokens and time steps of a sample."""
        return self.mask.shape[1], self.time_steps

    def position(self, finished_steps: int) -> tuple[int, int] | None:
        """Return sample and time step for a process that has finished that many steps of its own.

        None where it has nothing to do: with latency, before the first sample arrives and behind the last one.
        """
        sample, step = divmod(finished_steps - int(self.first_step[0]), self.time_steps)
        return (sample, step) if 0 <= sample < self.shown[0] else None


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
        Whether it takes the network's input from the board.
    input_name : str
        Name of the network's input.
    token_encoding : TokenEncoding or None
    output_source : str or None
        The node it writes to the board's outputs.
    """

    nodes: tuple[Any, ...]
    receives: tuple[Received, ...]
    sends: tuple[Sent, ...]
    starts_at: int = 0
    reads_input: bool = False
    input_name: str = "input"
    token_encoding: Any = None
    output_source: str | None = None

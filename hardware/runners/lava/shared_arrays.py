"""Memory that the parent and all Lava processes of a network share: what goes in, and what is recorded.

Lava's own ways (``Var.get``, ``Monitor``) cost tens of microseconds an element; here a process writes its spikes where
the parent reads them. The memory is anonymous: it has no file and is gone with the last process that maps it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return a zeroed array that processes forked later see too."""
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


@dataclass
class SharedArrays:
    """What one network shares with the parent; S samples fit at a time, of N tokens each.

    Attributes
    ----------
    first_step : ndarray
        ``(1,)``, steps every process had finished when the samples that are there now were put there.
    shown : ndarray
        ``(1,)``, how many samples are there now.
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
        """How many samples fit at a time."""
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

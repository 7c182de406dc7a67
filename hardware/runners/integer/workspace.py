"""Where torch computes, the memory it uses again, and how much of a layer it works on at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from hardware.kernels.scratch import Scratch

CHUNK_BYTES = 3 << 18
"""Of float64 that is worked on at a time on the CPU: with what stands beside it, a core's second cache."""
ALL = slice(None)


class Workspace:
    """A device, and what a layer needs to know of it.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.scratch = Scratch(device)

    @property
    def on_cpu(self) -> bool:
        """Whether there are int8 products, the C kernel, and a cache to cut layers for."""
        return self.device.type == "cpu"

    def chunks(self, rows: int, bytes_per_row: int, limit: int) -> list[slice]:
        """Return slices of rows that take no more than `limit` bytes each; all of them where there is no such cache."""
        size = max(1, limit // bytes_per_row) if self.on_cpu else rows
        if size >= rows:
            return [ALL]
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def tokens_of(x: Tensor, tokens: slice) -> Tensor:
    """Return some tokens of ``(T, P, D)``; small layers would spend a tenth of their time on taking all of them."""
    return x if tokens is ALL else x[:, tokens]

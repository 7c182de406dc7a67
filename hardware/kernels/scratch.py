"""Memory that is used again and again within a runner."""

from __future__ import annotations

from math import prod
from threading import local

import torch
from torch import Tensor


class Scratch(local):
    """Memory by name that one computation uses after the other, for each thread its own.

    Fresh memory comes page by page from the system, each filled with zeros first, and that takes several times as long
    as a pass over it. Not so on a GPU, where torch keeps memory itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[str, Tensor] = {}
        self._taken: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], kind: torch.dtype = torch.float64) -> Tensor:
        """Return memory, with anything in it, that is nobody else's until the same name is taken again."""
        taken = self._taken.get(name)
        if taken is not None and taken.shape == shape and taken.dtype == kind:
            return taken
        if self._device.type != "cpu":
            return torch.empty(shape, dtype=kind, device=self._device)
        size = prod(shape) * kind.itemsize
        taken = self._taken[name] = self.bytes(name, size)[:size].view(kind).view(shape)
        return taken

    def bytes(self, name: str, count: int) -> Tensor:
        """Return at least so many bytes of the processor's memory, at the beginning of a line of its cache."""
        memory = self._memory.get(name)
        if memory is None or memory.numel() < count:
            memory = self._memory[name] = torch.empty(count, dtype=torch.uint8)
        return memory

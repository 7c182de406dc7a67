"""What the integer runner's layers read and write: the values of some sentences, padding left out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from export.network import Network
from hardware.runners.runner import CheckedBatch, spike_types


class PackedBatch:
    """Some sentences on their way through the network, their real tokens one behind the other.

    Parameters
    ----------
    network : Network
    batch : CheckedBatch
    rows : slice
        Which of the batch's sentences.
    device : torch.device
    record_spikes, record_membrane_potentials : bool
        What is wanted of what neurons sent and tested.

    Attributes
    ----------
    values : dict of str to Tensor
        What each node sent: ``(T, P, D)`` for the P real tokens of all sentences, ``(T, B, D)`` behind a pooling of
        tokens; a first axis of 1 where every step is the same.
    mask : ndarray
        ``(B, N)`` bool, the tokens that are not padding.
    lengths : Tensor
        ``(B,)`` int64, how many these are.
    hot, hot_inputs : Tensor and ndarray, or None
        The hot inputs of a graph that reads words, ``(K, P)`` and, those of padding too, ``(K, B, N)``.
    spikes, membrane_potentials : dict of str to ndarray
        ``(T, B, N, D)`` by node, as recorded.
    overflows : dict of str to Counter
        What the chip's registers could not hold, by node.
    """

    def __init__(
        self,
        network: Network,
        batch: CheckedBatch,
        rows: slice,
        device: torch.device,
        record_spikes: bool,
        record_membrane_potentials: bool,
    ) -> None:
        self.steps = batch.time_steps
        self.mask = batch.mask[rows]
        self.lengths = torch.from_numpy(self.mask.sum(-1, dtype=np.int64))
        self.places = torch.from_numpy(np.flatnonzero(self.mask)).to(device)
        self.device = device
        self.record_spikes, self.record_membrane_potentials = record_spikes, record_membrane_potentials
        self._spike_types = spike_types(network)
        self.values: dict[str, Tensor] = {}
        self.spikes: dict[str, np.ndarray] = {}
        self.membrane_potentials: dict[str, np.ndarray] = {}
        self.overflows: dict[str, Counter[str]] = {}
        self.hot_inputs: np.ndarray | None = None
        self.hot: Tensor | None = None
        if batch.hot_inputs is not None:
            self.hot_inputs = batch.hot_inputs[:, rows]
            self.hot = torch.from_numpy(self.hot_inputs[:, self.mask]).to(device)
        elif batch.values is not None:
            values = batch.values[:, rows][:, self.mask].astype(np.int64)
            self.values[network.input_name] = torch.from_numpy(values).to(device)

    def padded(self, packed: Tensor) -> Tensor:
        """Return ``(T, P, D)`` as ``(T, B, N, D)`` with zeros at padding."""
        steps, _, features = packed.shape
        if self.places.numel() == self.mask.size:
            return packed.reshape(steps, *self.mask.shape, features)
        full = packed.new_zeros(steps, self.mask.size, features)
        full[:, self.places] = packed
        return full.reshape(steps, *self.mask.shape, features)

    def packed(self, padded: Tensor) -> Tensor:
        """Return the real tokens of ``(T, B, N, D)`` as ``(T, P, D)``."""
        flat = padded.flatten(1, 2)
        return flat if self.places.numel() == self.mask.size else flat[:, self.places]

    def record(self, name: str, spikes: Tensor, potentials: Tensor | None) -> None:
        """Keep what a neuron sent, where spikes are wanted, and what it tested, where that is given."""
        if self.record_spikes:
            kept, kind = self.padded(spikes.expand(self.steps, -1, -1)).cpu().numpy(), self._spike_types[name]
            # a byte is a byte; to copy all of them would take as long again
            self.spikes[name] = kept.view(kind) if kept.itemsize == kind.itemsize == 1 else kept.astype(kind)
        if potentials is not None:
            self.membrane_potentials[name] = self.padded(potentials.expand(self.steps, -1, -1)).cpu().numpy()

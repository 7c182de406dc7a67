"""What a forward pass keeps of its spiking layers, by node name: the names that graphs, runners and traces use too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from spikebert.neuron import Heaviside, SpikingNeuron


@dataclass
class Recording:
    """What a forward pass is asked to keep, by node name, in the order the nodes ran.

    Attributes
    ----------
    spikes, membrane_potentials : dict of str to Tensor, or None
        ``(T, B, N, D)`` each; None where not asked for. Potentials are those tested against the threshold.
    keep_spikes : callable or None
        Turns a layer's spikes into what is kept of them; None keeps them as they were computed.
    """

    spikes: dict[str, Tensor] | None = None
    membrane_potentials: dict[str, Tensor] | None = None
    keep_spikes: Callable[[Tensor], Tensor] | None = None


class NamedNeuron(nn.Module):
    """A spiking neuron layer that knows its node name, silences padding and records itself."""

    def __init__(self, name: str, neuron: SpikingNeuron | Heaviside) -> None:
        super().__init__()
        self.name = name
        self.neuron = neuron

    def forward(self, current: Tensor, token_mask: Tensor | None, recording: Recording) -> Tensor:
        """Return spikes ``(T, B, N, D)``, zero at tokens where `token_mask` ``(B, N, 1)`` is 0."""
        record_potential = None
        if recording.membrane_potentials is not None:
            kept = recording.membrane_potentials

            def record_potential(potential: Tensor) -> None:
                kept[self.name] = potential

        spikes = self.neuron(current, record_potential, token_mask)
        if recording.spikes is not None:
            keep = recording.keep_spikes or Tensor.detach
            recording.spikes[self.name] = keep(spikes)
        return spikes

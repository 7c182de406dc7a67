"""What stock Lava processes computed, read where they compute it.

Stock neurons send their spikes but not the potential they tested, and a potential is gone once it is reset. Lava's own
Monitor reads it between steps at tens of microseconds an element. A probe is told of the process model once it is
built, in the operating system process that runs it, and from then on copies what the model holds into the shared
arrays. It changes nothing of what the model computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.loihi_numbers import ACTIVATION_SHIFT, DECAY_BITS, DECAY_UNITY
from export.operators.loihi_neuron import shift_to_zero
from hardware.runners.lava.shared_arrays import SharedArrays


@dataclass(frozen=True)
class NeuronProbe:
    """Records spikes and tested potentials of a stock LIF just before it resets what fired, and what overflowed.

    Stock LIF wraps currents and holds potentials at their limit without a word. What it would have held else follows
    from what came in and from the potential before, which are there before and after it computes.

    Attributes
    ----------
    shared : SharedArrays
    node : str
    starts_at : int
        Steps by which the node lies behind the network's input.
    shows_output : bool
        Whether its spikes are the network's output.
    """

    shared: SharedArrays
    node: str
    starts_at: int
    shows_output: bool

    def __call__(self, model: Any) -> None:
        """Attach to a process model."""
        reset_voltage = model.reset_voltage

        def reset_recorded_voltage(spike_vector: np.ndarray) -> None:
            self._record(model.time_step - 1, spike_vector, model.v)
            reset_voltage(spike_vector=spike_vector)

        model.reset_voltage = reset_recorded_voltage
        if self.node in self.shared.overflows:
            self._count_overflows(model)

    def _count_overflows(self, model: Any) -> None:
        subthr_dynamics = model.subthr_dynamics

        def counted_subthr_dynamics(activation_in: np.ndarray) -> None:
            decayed = shift_to_zero(model.v.astype(np.int64) * (DECAY_UNITY - int(model.dv)), DECAY_BITS)
            subthr_dynamics(activation_in=activation_in)
            place = self.shared.position(model.time_step - 1 - self.starts_at)
            if place is None:
                return
            wrapped = model.u != activation_in.astype(np.int64) << ACTIVATION_SHIFT
            saturated = model.v != decayed + model.u + model.effective_bias
            sample, step = place
            counts, real = self.shared.overflows[self.node], self.shared.mask[sample]
            found = [np.count_nonzero(wrapped & real), np.count_nonzero(saturated & real)]
            counts[sample] = found if step == 0 else counts[sample] + found

        model.subthr_dynamics = counted_subthr_dynamics

    def _record(self, finished_steps: int, fired: np.ndarray, potential: np.ndarray) -> None:
        shared = self.shared
        place = shared.position(finished_steps - self.starts_at)
        if place is None:
            return
        spikes = fired & shared.mask[place[0]]  # a stock neuron knows no mask
        shared.spikes[self.node][place] = spikes
        if self.node in shared.membrane_potentials:
            shared.membrane_potentials[self.node][place] = potential
        if self.shows_output:
            shared.outputs[place] = spikes


@dataclass(frozen=True)
class SynapseProbe:
    """Records what a stock Dense computed, as the network's output.

    Attributes
    ----------
    shared : SharedArrays
    starts_at : int
        Steps by which its input lies behind the network's.
    bias : ndarray or None
        ``(C,)``, added: synapses have none.
    sums_tokens : bool
        Whether the output is the sum of what was computed for the real tokens of a sentence.
    """

    shared: SharedArrays
    starts_at: int
    bias: np.ndarray | None
    sums_tokens: bool = False

    def __call__(self, model: Any) -> None:
        """Attach to a process model."""
        run_spk = model.run_spk

        def recorded_run_spk() -> None:
            run_spk()
            place = self.shared.position(model.time_step - 1 - self.starts_at)
            if place is not None:
                outputs = self.shared.outputs
                shown = np.asarray(model.a_buff, np.int64).T  # features by tokens there
                if self.sums_tokens:
                    shown = shown.reshape(-1, outputs.shape[-1])[self.shared.mask[place[0], :, 0]].sum(0)
                shown = shown.reshape(outputs.shape[2:])
                outputs[place] = shown if self.bias is None else shown + self.bias

        model.run_spk = recorded_run_spk

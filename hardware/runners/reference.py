"""Runner ``reference``: executes any graph of our operators in NumPy, step by step. The meaning, made runnable."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.execution import NodeExecution
from export.network import Network
from export.operators import IntegerNeuronState, SpikingOperator
from hardware.runners.runner import Runner, check_batch, check_time_steps, number_type, spike_types
from hardware.traces.trace import Trace


class ReferenceRunner(Runner):
    """Runs a network in float64 or float32, an integer network in int64.

    Parameters
    ----------
    network : Network
    precision : {"float64", "float32", "integer"}
    time_steps : int, optional
        In place of the graph's own.
    record_membrane_potentials : bool
        Keep every neuron's potential as it was tested against the threshold.
    """

    name = "reference"

    def __init__(
        self,
        network: Network,
        precision: str = "float64",
        time_steps: int | None = None,
        record_membrane_potentials: bool = False,
    ) -> None:
        self.network = network
        self.precision = precision
        self.time_steps = check_time_steps(time_steps)
        self.dtype = number_type(network, precision)
        self.record_membrane_potentials = record_membrane_potentials
        self._execution = NodeExecution(
            network.nodes, self.dtype, self._record, (network.output_source,), network.pooled
        )
        self._spike_types = spike_types(network)
        self._spikes: dict[str, list[np.ndarray]] = {}
        self._potentials: dict[str, list[np.ndarray]] = {}

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch; see `Runner.run`."""
        batch = check_batch(self.network, inputs, token_mask, self.time_steps)
        self._execution.reset()
        self._spikes = {node.name: [] for node in self.network.spiking_nodes}
        self._potentials = {node.name: [] for node in self.network.spiking_nodes}
        outputs = []
        for step in range(batch.time_steps):
            values: dict[str, np.ndarray] = {}
            if batch.values is not None:
                values[self.network.input_name] = batch.values[step].astype(self.dtype)
            self._execution.step(values, batch.step_mask, batch.hot_inputs)
            outputs.append(values[self.network.output_source])
        logits, shown = read_outputs(self.network, np.stack(outputs), batch.mask)
        return Trace(
            spikes={name: np.stack(steps) for name, steps in self._spikes.items()},
            logits=logits,
            mask=batch.mask,
            outputs=shown,
            membrane_potentials=(
                {name: np.stack(steps) for name, steps in self._potentials.items()}
                if self.record_membrane_potentials
                else {}
            ),
            thresholds=thresholds(self.network),
            input_ids=batch.input_ids,
            metadata={
                "runner": self.name,
                "precision": self.precision,
                "time_steps": batch.time_steps,
                **({"overflows": overflows(self._execution.states)} if self.network.is_integer else {}),
            },
        )

    def _record(self, name: str, spikes: np.ndarray, potential: np.ndarray) -> None:
        self._spikes[name].append(spikes.astype(self._spike_types[name]))
        if self.record_membrane_potentials:
            self._potentials[name].append(np.array(potential))


def thresholds(network: Network) -> dict[str, np.ndarray]:
    """Return what the potential of every spiking node is compared with, ``(D,)``."""
    return {
        node.name: np.asarray(node.operator.tested_threshold)
        for node in network.nodes
        if isinstance(node.operator, SpikingOperator)
    }


def read_outputs(network: Network, outputs: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and what each step says, of outputs ``(T, B, N or 1, C)`` and a mask ``(B, N)``.

    Where the graph averages (or sums) its tokens their axis goes: ``(B, C)`` and ``(T, B, C)``.
    """
    shown = outputs[..., 0, :] if network.pools_tokens else outputs
    if network.readout is None:
        return shown.mean(0, dtype=outputs.dtype), shown
    tokens = mask.sum(-1, keepdims=True) if network.sums_tokens else 1
    return network.readout.logits(shown, tokens), network.readout.step_logits(shown, tokens)


def overflows(states: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return what the chip's registers could not hold, by node; nodes where nothing happened are left out."""
    found = {}
    for name, state in states.items():
        if isinstance(state, IntegerNeuronState) and (state.wrapped_currents or state.saturated_potentials):
            found[name] = {
                "wrapped_currents": state.wrapped_currents,
                "saturated_potentials": state.saturated_potentials,
            }
    return found

"""Runner ``reference``: executes any graph of our operators in NumPy, step by step. The meaning, made runnable."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.network import Network
from export.operators import TokenMean
from hardware.runners.execution import NodeExecution
from hardware.runners.runner import Runner, check_batch, check_time_steps, float_type
from hardware.trace import Trace


class ReferenceRunner(Runner):
    """Runs a network in float64 or float32.

    Parameters
    ----------
    network : Network
    precision : {"float64", "float32"}
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
        self.dtype = float_type(precision)
        self.record_membrane_potentials = record_membrane_potentials
        self._execution = NodeExecution(network.nodes, self.dtype, self._record)
        self._spikes: dict[str, list[np.ndarray]] = {}
        self._potentials: dict[str, list[np.ndarray]] = {}

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch; see `Runner.run`."""
        batch = check_batch(self.network, inputs, token_mask, self.time_steps)
        encoding = self.network.token_encoding
        hot = encoding.hot_inputs(batch.input_ids) if encoding and batch.input_ids is not None else None
        self._execution.reset()
        self._spikes = {node.name: [] for node in self.network.spiking_nodes}
        self._potentials = {node.name: [] for node in self.network.spiking_nodes}
        outputs = []
        for step in range(batch.time_steps):
            values: dict[str, np.ndarray] = {}
            if batch.values is not None:
                values[self.network.input_name] = batch.values[step].astype(self.dtype)
            self._execution.step(values, batch.step_mask, hot)
            outputs.append(values[self.network.output_source])
        shown = without_token_axis(self.network, np.stack(outputs))
        return Trace(
            spikes={name: np.stack(steps) for name, steps in self._spikes.items()},
            logits=shown.mean(0, dtype=self.dtype),
            mask=batch.mask,
            outputs=shown,
            membrane_potentials=(
                {name: np.stack(steps) for name, steps in self._potentials.items()}
                if self.record_membrane_potentials
                else {}
            ),
            thresholds=thresholds(self.network),
            input_ids=batch.input_ids,
            metadata={"runner": self.name, "precision": self.precision, "time_steps": batch.time_steps},
        )

    def _record(self, name: str, spikes: np.ndarray, potential: np.ndarray) -> None:
        self._spikes[name].append(spikes.astype(np.uint8))
        if self.record_membrane_potentials:
            self._potentials[name].append(np.array(potential))


def thresholds(network: Network) -> dict[str, np.ndarray]:
    """Return the threshold ``(D,)`` of every spiking node."""
    return {node.name: np.asarray(node.operator.threshold) for node in network.spiking_nodes}  # type: ignore[attr-defined]


def without_token_axis(network: Network, outputs: np.ndarray) -> np.ndarray:
    """Return outputs ``(T, B, 1, C)`` as ``(T, B, C)`` where the graph averages its tokens."""
    pools = any(isinstance(node.operator, TokenMean) for node in network.nodes)
    return outputs[..., 0, :] if pools else outputs

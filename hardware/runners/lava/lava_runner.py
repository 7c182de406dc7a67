"""Runner ``lava``: a network on Lava processes, under guard.

The network is built once for sentences of up to N tokens; new samples are put on the board without rebuilding, and
every process clears its state at a sample's first step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.network import Network
from hardware.errors import RunnerError
from hardware.runners.lava.board import Board, shared_array
from hardware.runners.lava.compatibility import import_lava
from hardware.runners.lava.compiler import build_processes, partition, port_shapes
from hardware.runners.reference import read_outputs, thresholds
from hardware.runners.runner import Batch, Runner, check_batch, check_time_steps, float_type
from hardware.trace import Trace

BOARD_BYTES = 256 << 20
"""How much one board may hold; longer batches go through it in parts."""
CHANNEL_SIZE = 2
"""Messages a Lava channel can hold; 2 takes a third of the memory of Lava's default and costs no time here."""
DEFAULT_TIMEOUT = 60.0


class LavaRunner(Runner):
    """Runs a network on Lava in float64 or float32.

    Parameters
    ----------
    network : Network
    precision : {"float64", "float32"}
    granularity : {"operator", "block", "network"}
        How much goes into one process, see ``hardware.runners.lava.compiler``.
    tokens : int, optional
        Longest sentence to come; without it the network is built for the first batch, and again for a longer one.
    time_steps : int, optional
        In place of the graph's own.
    record_membrane_potentials : bool
        Keep potentials as they were tested; stock neurons do not show theirs.
    timeout : float
        Seconds without progress after which a run counts as stuck.

    Raises
    ------
    MissingDependencyError
        Lava is not installed.
    """

    name = "lava"

    def __init__(
        self,
        network: Network,
        precision: str = "float64",
        granularity: str = "block",
        tokens: int | None = None,
        time_steps: int | None = None,
        record_membrane_potentials: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        import_lava()
        self.network = network
        self.precision = precision
        self.dtype = float_type(precision)
        self.granularity = granularity
        self.plans = partition(network, granularity, precision)
        self.tokens = self._checked_tokens(tokens)
        self.time_steps = check_time_steps(time_steps)
        self.record_membrane_potentials = record_membrane_potentials
        self.timeout = timeout
        self.built_for: tuple[int, int] | None = None  # tokens, time steps
        self.builds = 0
        self._guarded: Any = None
        self._board: Board | None = None
        self._finished_steps = 0

    @property
    def stock_nodes(self) -> list[str]:
        """Names of the nodes that run in stock Lava processes."""
        return [plan.nodes[0].name for plan in self.plans if plan.stock]

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch, sample by sample; see `Runner.run`.

        Raises
        ------
        LavaRunError
            A process failed; the message names it and the cause. Nothing of the network is left.
        """
        batch = check_batch(self.network, inputs, token_mask, self.time_steps)
        self._build_if_needed(batch)
        assert self._board is not None
        parts = []
        for start in range(0, len(batch.mask), self._board.samples):
            parts.append(self._run_part(batch, start, min(start + self._board.samples, len(batch.mask))))
        joined: dict[str, np.ndarray] = {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
        logits, outputs = read_outputs(self.network, joined.pop(""), batch.mask)
        spiking = [node.name for node in self.network.spiking_nodes]
        return Trace(
            spikes={name: joined[name] for name in spiking},
            logits=logits,
            mask=batch.mask,
            outputs=outputs,
            membrane_potentials={
                name: joined[f"potential {name}"] for name in spiking if f"potential {name}" in joined
            },
            thresholds=thresholds(self.network),
            input_ids=batch.input_ids,
            metadata={
                "runner": self.name,
                "precision": self.precision,
                "time_steps": batch.time_steps,
                "granularity": self.granularity,
                "processes": len(self.plans) + len(self.stock_nodes),
                "stock_nodes": self.stock_nodes,
            },
        )

    def close(self) -> None:
        """Stop the network."""
        guarded, self._guarded, self.built_for = self._guarded, None, None
        if guarded is not None:
            guarded.stop()

    def _checked_tokens(self, tokens: int | None) -> int | None:
        if tokens is None:
            return None
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise RunnerError(f"tokens is {tokens!r}; it must be a whole number of at least 1")
        encoding = self.network.token_encoding
        if encoding is not None and 0 < encoding.positions < tokens:
            raise RunnerError(f"tokens is {tokens}; the graph has only {encoding.positions} positions")
        return tokens

    def _build_if_needed(self, batch: Batch) -> None:
        tokens = max(batch.mask.shape[1], self.tokens or 0)
        if self.built_for is not None and self.built_for[0] >= tokens and self.built_for[1] == batch.time_steps:
            return
        self.close()
        from hardware.runners.lava.guard import GuardedNetwork
        from hardware.runners.lava.run_config import FloatRunConfig

        self._board = self._make_board(batch, tokens)
        processes = build_processes(self.network, self.plans, self._board, tokens)
        self._guarded = GuardedNetwork(
            processes[0],
            FloatRunConfig(self.precision),
            timeout=self.timeout,
            compile_config={"pypy_channel_size": CHANNEL_SIZE},
        )
        self._guarded.start()
        self._finished_steps = 0
        self.built_for = (tokens, batch.time_steps)
        self.builds += 1

    def _make_board(self, batch: Batch, tokens: int) -> Board:
        shapes = port_shapes(self.network, tokens)
        steps = batch.time_steps
        spiking = self.network.spiking_nodes
        item = 1 + (np.dtype(self.dtype).itemsize if self.record_membrane_potentials else 0)
        sample_bytes = steps * sum(shapes[node.name][0] * shapes[node.name][1] for node in spiking) * item
        samples = int(np.clip(BOARD_BYTES // max(1, sample_bytes), 1, len(batch.mask)))
        stock = set(self.stock_nodes)
        return Board(
            time_steps=steps,
            first_step=shared_array((1,), np.int64),
            mask=shared_array((samples, tokens, 1), bool),
            outputs=shared_array((samples, steps, *shapes[self.network.output_source]), self.dtype),
            input_ids=None if batch.input_ids is None else shared_array((samples, tokens), np.int64),
            values=(
                None
                if batch.values is None
                else shared_array((samples, steps, tokens, self.network.input_features), np.float64)
            ),
            spikes={n.name: shared_array((samples, steps, *shapes[n.name]), np.uint8) for n in spiking},
            membrane_potentials=(
                {
                    n.name: shared_array((samples, steps, *shapes[n.name]), self.dtype)
                    for n in spiking
                    if n.name not in stock
                }
                if self.record_membrane_potentials
                else {}
            ),
        )

    def _run_part(self, batch: Batch, start: int, stop: int) -> dict[str, np.ndarray]:
        """Run samples `start` to `stop`; return ``(T, samples, N, D)`` by node, and the outputs under ``""``."""
        board, count, tokens = self._board, stop - start, batch.mask.shape[1]
        assert board is not None
        board.mask[:] = False
        board.mask[:count, :tokens, 0] = batch.mask[start:stop]
        if board.input_ids is not None and batch.input_ids is not None:
            board.input_ids[:] = 0
            board.input_ids[:count, :tokens] = batch.input_ids[start:stop]
        if board.values is not None and batch.values is not None:
            board.values[:] = 0
            board.values[:count, :, :tokens] = np.moveaxis(batch.values[:, start:stop], 0, 1)
        board.first_step[0] = self._finished_steps
        try:
            self._guarded.run(count * board.time_steps)
        except BaseException:
            self._guarded, self.built_for = None, None  # the guard has torn it down; the next run builds anew
            raise
        self._finished_steps += count * board.time_steps

        def taken(array: np.ndarray) -> np.ndarray:
            rows = array[:count, :, : min(tokens, array.shape[2])]
            return np.moveaxis(rows, 0, 1).copy()

        part = {name: taken(array) for name, array in board.spikes.items()}
        part.update({f"potential {name}": taken(array) for name, array in board.membrane_potentials.items()})
        part[""] = taken(board.outputs)
        return part

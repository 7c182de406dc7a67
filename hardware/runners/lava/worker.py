"""One Lava network with its board, built once and fed part after part; the runner keeps several of them busy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from export.network import Network, Node
from export.operators import IntegerCurrentNeuron, IntegerLeakyIntegrateAndFire
from hardware.runners.lava.board import Board, shared_array
from hardware.runners.lava.compiler import ProcessPlan, build_processes, port_shapes, summed_by_the_reader
from hardware.runners.lava.memory import private_bytes
from hardware.runners.lava.timing import arrivals, running_steps
from hardware.runners.runner import Batch

BOARD_BYTES = 256 << 20
"""How much one board may hold; longer batches go through it in parts."""
MAX_SAMPLES = 32
"""How many samples a board holds at most: what is lost with a worker is run again, so parts should stay small."""
CHANNEL_SIZE = 2
"""Messages a Lava channel can hold; 2 takes a third of the memory of Lava's default and costs no time here."""


@dataclass(frozen=True)
class WorkerPlan:
    """What all workers of a runner have in common.

    Attributes
    ----------
    network : Network
        Its parameters in the runner's type already, so that forked processes share them.
    plans : list of ProcessPlan
    precision, timing : str
    dtype : type
    record_membrane_potentials : bool
    timeout : float
    """

    network: Network
    plans: list[ProcessPlan]
    precision: str
    timing: str
    dtype: Any
    record_membrane_potentials: bool
    timeout: float

    @cached_property
    def arrivals(self) -> dict[str, int]:
        """By how many steps what each node sends lies behind the input."""
        return arrivals(self.network, self.timing, summed_by_the_reader(self.plans))

    def steps(self, samples: int, time_steps: int) -> int:
        """Return the steps in which so many samples pass through the network."""
        return running_steps(samples, time_steps, max(self.arrivals.values()))

    @property
    def stock_nodes(self) -> list[str]:
        """Names of the nodes that need no process of ours, see ``hardware.runners.lava.stock``."""
        return [node.name for plan in self.plans if plan.stock for node in plan.nodes]

    @property
    def own_nodes(self) -> dict[str, str]:
        """Names of the others, each with why it needs a process of ours."""
        return {node.name: plan.why_own for plan in self.plans for node in plan.nodes if plan.why_own is not None}

    def samples_that_fit(self, tokens: int, time_steps: int) -> int:
        """Return how many samples of so many tokens and steps one board holds."""
        shapes = port_shapes(self.network, tokens)
        item = 1 + (np.dtype(self.dtype).itemsize if self.record_membrane_potentials else 0)
        neurons = sum(shapes[node.name][0] * shapes[node.name][1] for node in self.network.spiking_nodes)
        return int(np.clip(BOARD_BYTES // max(1, time_steps * neurons * item), 1, MAX_SAMPLES))


@dataclass(frozen=True)
class Fault:
    """A worker that failed, and what was done about it.

    Attributes
    ----------
    worker : int
        Number of the worker.
    process : str
        The Lava process at fault.
    samples : list of int
        Rows of the batch it was running.
    attempt : int
        Which attempt at these samples failed, from 1.
    message : str
        What happened.
    """

    worker: int
    process: str
    samples: list[int]
    attempt: int
    message: str

    def report(self, runs_again: bool) -> str:
        """Say it in one sentence."""
        what = (
            f"sample {self.samples[0]}" if len(self.samples) == 1 else f"samples {self.samples[0]}-{self.samples[-1]}"
        )
        outlook = "its network is built again and they are run again" if runs_again else "that was the last attempt"
        return f"Lava worker {self.worker} failed at {what}, attempt {self.attempt}: {self.message}; {outlook}"


@dataclass(eq=False)
class Part:
    """Some samples of one batch that go through a worker together.

    Attributes
    ----------
    batch : Batch
    start, stop : int
        Its samples, as rows of the batch.
    tokens : int
        Longest sentence the network must be able to take.
    faults : list of Fault
        What went wrong with it so far.
    kills : int
        How many of them were processes killed from outside.
    result : dict or None
        ``(T, samples, N, D)`` by node, potentials under ``"potential NODE"``, the outputs under ``""``.
    overflows : dict
        Wrapped currents and saturated potentials of all samples, ``(2,)`` by node; empty but for integer networks.
    """

    batch: Batch
    start: int
    stop: int
    tokens: int
    faults: list[Fault] = field(default_factory=list)
    kills: int = 0
    result: dict[str, np.ndarray] | None = None
    overflows: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.stop - self.start


@dataclass(eq=False)
class Worker:
    """A guarded Lava network and the board it reads from and writes to.

    Attributes
    ----------
    number : int
        From 0, shown in reports of faults.
    plan : WorkerPlan
    part : Part or None
        What it is running.
    board : Board or None
    built_for : tuple of int or None
        Tokens and time steps of the network that stands.
    builds : int
        How often it was built.
    processes : int
        Lava processes of the network built last.
    """

    number: int
    plan: WorkerPlan
    part: Part | None = None
    board: Board | None = None
    built_for: tuple[int, int] | None = None
    builds: int = 0
    processes: int = 0
    _guarded: Any = field(default=None, repr=False)
    _room: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _finished_steps: int = 0

    def build(self, tokens: int, time_steps: int) -> None:
        """Build the network, unless one stands that takes as many tokens.

        Raises
        ------
        LavaRunError
            It cannot be built.
        """
        if self.built_for is not None and self.built_for[0] >= tokens and self.built_for[1] == time_steps:
            return
        from hardware.runners.lava.guard import GuardedNetwork
        from hardware.runners.lava.run_config import PrecisionRunConfig

        self._stop()
        if self.board is None or self.board.built_for != (tokens, time_steps):
            self.board = self._make_board(tokens, time_steps)
        built = build_processes(self.plan.network, self.plan.plans, self.board, tokens, self.plan.timing)
        self.processes = len(built.processes)
        self._guarded = GuardedNetwork(
            built.processes[0],
            PrecisionRunConfig(self.plan.precision),
            timeout=self.plan.timeout,
            compile_config={"pypy_channel_size": CHANNEL_SIZE},
            probes=built.probes,
        )
        self.builds += 1
        self._guarded.start()
        self._finished_steps = 0
        self.built_for = (tokens, time_steps)

    def begin(self, part: Part) -> None:
        """Start to run a part; builds the network if it does not stand or is too small.

        Raises
        ------
        LavaRunError
            The network cannot be built, or failed since its last part. Nothing of it is left.
        """
        self.part = part
        self.build(part.tokens, part.batch.time_steps)
        board = self.board
        assert board is not None
        _show(part, board)
        board.first_step[0] = self._finished_steps
        board.shown[0] = part.samples
        self._guarded.begin(self.plan.steps(part.samples, board.time_steps))
        # While the network works: to be given so many new pages takes longer than to copy into them
        self._room = {name: np.full(left.shape, 0, left.dtype) for name, left in _left_on(board, part).items()}

    def finished(self) -> bool:
        """Look whether the part is done, never waiting; then its result is taken off the board.

        Raises
        ------
        LavaRunError
            A process failed or is stuck. Nothing of the network is left.
        """
        if not self._guarded.finished():
            return False
        part, board = self.part, self.board
        assert part is not None
        assert board is not None
        self._finished_steps += self.plan.steps(part.samples, board.time_steps)
        for name, left in _left_on(board, part).items():
            self._room[name][...] = left
        part.result, self._room = self._room, {}
        part.overflows = {name: counts[: part.samples].sum(0) for name, counts in board.overflows.items()}
        self.part = None
        return True

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to look at."""
        return self._guarded.fileno()

    def abandon(self) -> None:
        """Kill the network, whatever it does; the board stays for the next one."""
        guarded, self._guarded, self.built_for, self.part = self._guarded, None, None, None
        self._room = {}
        if guarded is not None:
            guarded.kill()

    def close(self) -> None:
        """Stop the network in good order."""
        if self.part is not None:
            self.abandon()
        self._stop()

    def process_ids(self) -> list[int]:
        """Return the ids of the operating system processes that run the network."""
        return [] if self._guarded is None else self._guarded.process_ids()

    def private_bytes(self) -> int:
        """Return the memory that only this worker's processes use."""
        return private_bytes(self.process_ids())

    def _stop(self) -> None:
        guarded, self._guarded, self.built_for = self._guarded, None, None
        if guarded is not None:
            guarded.stop()

    def _make_board(self, tokens: int, steps: int) -> Board:
        network, dtype = self.plan.network, self.plan.dtype
        reads_tokens = network.token_encoding is not None
        shapes = port_shapes(network, tokens)
        samples = self.plan.samples_that_fit(tokens, steps)
        spiking = network.spiking_nodes
        shown = spiking if self.plan.record_membrane_potentials else ()
        input_type = np.int64 if network.is_integer else np.float64
        return Board(
            time_steps=steps,
            first_step=shared_array((1,), np.int64),
            shown=shared_array((1,), np.int64),
            mask=shared_array((samples, tokens, 1), bool),
            outputs=shared_array((samples, steps, *shapes[network.output_source]), dtype),
            input_ids=shared_array((samples, tokens), np.int64) if reads_tokens else None,
            values=(
                None if reads_tokens else shared_array((samples, steps, tokens, network.input_features), input_type)
            ),
            spikes={node.name: shared_array((samples, steps, *shapes[node.name]), np.uint8) for node in spiking},
            membrane_potentials={
                node.name: shared_array((samples, steps, *shapes[node.name]), dtype) for node in shown
            },
            overflows={node.name: shared_array((samples, 2), np.int64) for node in spiking if counts_overflows(node)},
        )


def counts_overflows(node: Node) -> bool:
    """Return whether a node has registers that can overflow."""
    return isinstance(node.operator, IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron)


def _show(part: Part, board: Board) -> None:
    """Put a part's samples on the board."""
    batch, count, tokens = part.batch, part.samples, part.batch.mask.shape[1]
    board.mask[:count] = False
    board.mask[:count, :tokens, 0] = batch.mask[part.start : part.stop]
    if board.input_ids is not None and batch.input_ids is not None:
        board.input_ids[:count] = 0
        board.input_ids[:count, :tokens] = batch.input_ids[part.start : part.stop]
    if board.values is not None and batch.values is not None:
        board.values[:count] = 0
        board.values[:count, :, :tokens] = np.moveaxis(batch.values[:, part.start : part.stop], 0, 1)


def _left_on(board: Board, part: Part) -> dict[str, np.ndarray]:
    """Return what the network leaves on the board for a part, as the board's own memory; see `Part.result`."""
    arrays = {**board.spikes, **{f"potential {name}": array for name, array in board.membrane_potentials.items()}}
    arrays[""] = board.outputs
    count, tokens = part.samples, part.batch.mask.shape[1]
    return {name: np.moveaxis(array[:count, :, : min(tokens, array.shape[2])], 0, 1) for name, array in arrays.items()}

"""One Lava network with its shared memory, built once and fed shard after shard; the runner keeps several busy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from export.network import Network, Node
from export.operators import IntegerNeuronState
from hardware.runners.lava.compiler import ProcessPlan, build_processes, port_shapes, summed_by_the_reader
from hardware.runners.lava.memory import private_bytes
from hardware.runners.lava.shared_arrays import SharedArrays, shared_array
from hardware.runners.lava.timing import arrivals, running_steps
from hardware.runners.runner import CheckedBatch, spike_types

SHARED_BYTES = 256 << 20
"""How much the shared arrays of a network may take; longer batches go through them in shards."""
MAX_SAMPLES = 32
"""How many samples they hold at most: what is lost with a worker is run again, so shards should stay small."""
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
        """Return how many samples of so many tokens and steps the shared arrays hold."""
        shapes = port_shapes(self.network, tokens)
        item = 1 + (np.dtype(self.dtype).itemsize if self.record_membrane_potentials else 0)
        neurons = sum(shapes[node.name][0] * shapes[node.name][1] for node in self.network.spiking_nodes)
        return int(np.clip(SHARED_BYTES // max(1, time_steps * neurons * item), 1, MAX_SAMPLES))


@dataclass(frozen=True)
class WorkerFault:
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
class Shard:
    """Some samples of one batch that go through a worker together.

    Attributes
    ----------
    batch : CheckedBatch
    start, stop : int
        Its samples, as rows of the batch.
    tokens : int
        Longest sentence the network must be able to take.
    faults : list of WorkerFault
        What went wrong with it so far.
    kills : int
        How many of them were processes killed from outside.
    result : dict or None
        ``(T, samples, N, D)`` by node, potentials under ``"potential NODE"``, the outputs under ``""``.
    overflows : dict
        Wrapped currents and saturated potentials of all samples, ``(2,)`` by node; empty but for integer networks.
    """

    batch: CheckedBatch
    start: int
    stop: int
    tokens: int
    faults: list[WorkerFault] = field(default_factory=list)
    kills: int = 0
    result: dict[str, np.ndarray] | None = None
    overflows: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.stop - self.start


@dataclass(eq=False)
class Worker:
    """A guarded Lava network and the shared arrays it reads from and writes to.

    Attributes
    ----------
    number : int
        From 0, shown in reports of faults.
    plan : WorkerPlan
    shard : Shard or None
        What it is running.
    shared : SharedArrays or None
    built_for : tuple of int or None
        Tokens and time steps of the network that stands.
    builds : int
        How often it was built.
    processes : int
        Lava processes of the network built last.
    """

    number: int
    plan: WorkerPlan
    shard: Shard | None = None
    shared: SharedArrays | None = None
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
        if self.shared is None or self.shared.built_for != (tokens, time_steps):
            self.shared = self._make_shared(tokens, time_steps)
        built = build_processes(self.plan.network, self.plan.plans, self.shared, tokens, self.plan.timing)
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

    def begin(self, shard: Shard) -> None:
        """Start to run a shard; builds the network if it does not stand or is too small.

        Raises
        ------
        LavaRunError
            The network cannot be built, or failed since its last shard. Nothing of it is left.
        """
        self.shard = shard
        self.build(shard.tokens, shard.batch.time_steps)
        shared = self.shared
        assert shared is not None
        _put(shard, shared)
        shared.first_step[0] = self._finished_steps
        shared.shown[0] = shard.samples
        self._guarded.begin(self.plan.steps(shard.samples, shared.time_steps))
        # While the network works: to be given so many new pages takes longer than to copy into them
        self._room = {name: np.full(left.shape, 0, left.dtype) for name, left in _left_in(shared, shard).items()}

    def finished(self) -> bool:
        """Look whether the shard is done, never waiting; then its result is copied out of the shared arrays.

        Raises
        ------
        LavaRunError
            A process failed or is stuck. Nothing of the network is left.
        """
        if not self._guarded.finished():
            return False
        shard, shared = self.shard, self.shared
        assert shard is not None
        assert shared is not None
        self._finished_steps += self.plan.steps(shard.samples, shared.time_steps)
        for name, left in _left_in(shared, shard).items():
            self._room[name][...] = left
        shard.result, self._room = self._room, {}
        shard.overflows = {name: counts[: shard.samples].sum(0) for name, counts in shared.overflows.items()}
        self.shard = None
        return True

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to look at."""
        return self._guarded.fileno()

    def abandon(self) -> None:
        """Kill the network, whatever it does; the shared arrays stay for the next one."""
        guarded, self._guarded, self.built_for, self.shard = self._guarded, None, None, None
        self._room = {}
        if guarded is not None:
            guarded.kill()

    def close(self) -> None:
        """Stop the network in good order."""
        if self.shard is not None:
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

    def _make_shared(self, tokens: int, steps: int) -> SharedArrays:
        network, dtype = self.plan.network, self.plan.dtype
        reads_tokens = network.token_encoding is not None
        shapes = port_shapes(network, tokens)
        samples = self.plan.samples_that_fit(tokens, steps)
        spiking = network.spiking_nodes
        shown = spiking if self.plan.record_membrane_potentials else ()
        input_type = np.int64 if network.is_integer else np.float64
        return SharedArrays(
            time_steps=steps,
            first_step=shared_array((1,), np.int64),
            shown=shared_array((1,), np.int64),
            mask=shared_array((samples, tokens, 1), bool),
            outputs=shared_array((samples, steps, *shapes[network.output_source]), dtype),
            input_ids=shared_array((samples, tokens), np.int64) if reads_tokens else None,
            values=(
                None if reads_tokens else shared_array((samples, steps, tokens, network.input_features), input_type)
            ),
            spikes={
                name: shared_array((samples, steps, *shapes[name]), kind) for name, kind in spike_types(network).items()
            },
            membrane_potentials={
                node.name: shared_array((samples, steps, *shapes[node.name]), dtype) for node in shown
            },
            overflows={node.name: shared_array((samples, 2), np.int64) for node in spiking if counts_overflows(node)},
        )


def counts_overflows(node: Node) -> bool:
    """Return whether a node counts what its registers could not hold."""
    return isinstance(node.operator.initial_state((1, node.operator.in_features), np.int64), IntegerNeuronState)


def _put(shard: Shard, shared: SharedArrays) -> None:
    """Put a shard's samples into the shared arrays."""
    batch, count, tokens = shard.batch, shard.samples, shard.batch.mask.shape[1]
    shared.mask[:count] = False
    shared.mask[:count, :tokens, 0] = batch.mask[shard.start : shard.stop]
    if shared.input_ids is not None and batch.input_ids is not None:
        shared.input_ids[:count] = 0
        shared.input_ids[:count, :tokens] = batch.input_ids[shard.start : shard.stop]
    if shared.values is not None and batch.values is not None:
        shared.values[:count] = 0
        shared.values[:count, :, :tokens] = np.moveaxis(batch.values[:, shard.start : shard.stop], 0, 1)


def _left_in(shared: SharedArrays, shard: Shard) -> dict[str, np.ndarray]:
    """Return what the network leaves for a shard, as the shared memory itself; see `Shard.result`."""
    arrays = {**shared.spikes, **{f"potential {name}": array for name, array in shared.membrane_potentials.items()}}
    arrays[""] = shared.outputs
    count, tokens = shard.samples, shard.batch.mask.shape[1]
    return {name: np.moveaxis(array[:count, :, : min(tokens, array.shape[2])], 0, 1) for name, array in arrays.items()}

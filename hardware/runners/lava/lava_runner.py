"""Runner ``lava``: a network on Lava processes, under guard, in as many workers as memory and processors allow.

Each worker is a Lava network of its own, built once for sentences of up to N tokens; new samples are put into its
shared arrays without rebuilding, and every process clears its state at a sample's first step. A worker that fails is
built again and what it was running is run again, so that a process killed from outside costs time and nothing else.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from export.network import Network, Node
from hardware.errors import RunnerError
from hardware.runners.lava.compatibility import import_lava
from hardware.runners.lava.compiler import partition
from hardware.runners.lava.guard import LOOK_UP_EVERY, LavaRunError
from hardware.runners.lava.memory import UNKNOWN, available_bytes, processor_count
from hardware.runners.lava.timing import HARDWARE, ZERO_LATENCY
from hardware.runners.lava.worker import Shard, Worker, WorkerFault, WorkerPlan
from hardware.runners.reference import read_outputs, thresholds
from hardware.runners.runner import CheckedBatch, Runner, check_batch, check_time_steps, number_type
from hardware.trace import Trace

DEFAULT_TIMEOUT = 60.0
MAX_FAILURES = 2
"""How often the processes may raise, end or hang on the same samples; twice is no accident."""
MAX_KILLS = 4
"""How often they may be killed there, which says nothing of the samples, but must end too."""
MEMORY_TO_SPARE = 1.5
"""Another worker starts where so many times the memory of the first is available."""

log = logging.getLogger(__name__)


class LavaRunner(Runner):
    """Runs a network on Lava in float64 or float32, an integer network in fixed point.

    Parameters
    ----------
    network : Network
    precision : {"float64", "float32", "integer"}
    granularity : {"operator", "block", "network"}, optional
        How much goes into one process, see ``hardware.runners.lava.compiler``; blocks by default, with hardware timing
        operators.
    timing : {"zero-latency", "hardware"}
        See ``hardware.runners.lava.timing``; the trace is the same.
    tokens : int, optional
        Longest sentence to come; without it a network is built for its first batch, and again for a longer one.
    time_steps : int, optional
        In place of the graph's own.
    record_membrane_potentials : bool
        Keep potentials as they were tested.
    timeout : float
        Seconds without progress after which a run counts as stuck.
    jobs : int or None, default 1
        Workers at most; None for one a processor. They start when there is work for them and memory to spare.

    Attributes
    ----------
    faults : list of WorkerFault
        All that went wrong and was mended, over all runs.

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
        granularity: str | None = None,
        timing: str = ZERO_LATENCY,
        tokens: int | None = None,
        time_steps: int | None = None,
        record_membrane_potentials: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        jobs: int | None = 1,
    ) -> None:
        import_lava()
        self.network = network
        self.precision = precision
        self.granularity = granularity or ("operator" if timing == HARDWARE else "block")
        self.tokens = self._checked_tokens(tokens)
        self.time_steps = check_time_steps(time_steps)
        dtype = number_type(network, precision)
        # cast here and not in the processes, which then share it: they are forked
        cast = replace(network, nodes=tuple(Node(n.name, n.operator.cast(dtype), n.sources) for n in network.nodes))
        plans = partition(cast, self.granularity, precision, timing)
        self._plan = WorkerPlan(cast, plans, precision, timing, dtype, record_membrane_potentials, timeout)
        self._workers = [Worker(number, self._plan) for number in range(_checked_jobs(jobs))]
        self._streaming = False
        self._bytes_of_a_worker: int | None = None
        self.faults: list[WorkerFault] = []

    @property
    def stock_nodes(self) -> list[str]:
        """Names of the nodes that need no process of ours, see ``hardware.runners.lava.stock``."""
        return self._plan.stock_nodes

    @property
    def builds(self) -> int:
        """How many networks were built so far."""
        return sum(worker.builds for worker in self._workers)

    def process_ids(self) -> list[int]:
        """Return the ids of all operating system processes that run networks now."""
        return [pid for worker in self._workers for pid in worker.process_ids()]

    def start(self) -> None:
        """Build the first worker's network now and not with its first batch; `tokens` must have been given.

        Raises
        ------
        RunnerError
            Nothing says for how many tokens and time steps to build.
        LavaRunError
            The network cannot be built.
        """
        steps = self.time_steps or self.network.time_steps
        if self.tokens is None or steps is None:
            raise RunnerError("give tokens, and time_steps where the graph does not say them, to start without a batch")
        self._workers[0].build(self.tokens, steps)

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch, its samples spread over the workers; see `Runner.run`.

        Raises
        ------
        LavaRunError
            A process failed and did so again; the message names it and the cause. Nothing of its network is left.
        """
        (trace,) = self.run_stream([(inputs, token_mask)])
        return trace

    def run_stream(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[Trace]:
        """Run batch after batch, several at a time; see `Runner.run_stream`.

        A trace's metadata list under ``faults`` what went wrong on the way and was mended.

        Raises
        ------
        LavaRunError
            As `run`. The batches that are still running are given up.
        RunnerError
            The stream before this one is neither at its end nor closed.
        """
        if self._streaming:
            raise RunnerError("another stream of this runner is open; read it to its end, or close it")
        self._streaming = True
        try:
            yield from self._traces(iter(batches))
        finally:
            for worker in self._workers:
                if worker.shard is not None:
                    worker.abandon()
            self._streaming = False

    def close(self) -> None:
        """Stop all networks."""
        with ExitStack() as stack:  # what one of them raises must not keep the others
            for worker in self._workers:
                stack.callback(worker.close)

    def _traces(self, batches: Iterator[tuple[Any, Any]]) -> Iterator[Trace]:
        started: deque[tuple[CheckedBatch, list[Shard]]] = deque()
        waiting: deque[Shard] = deque()
        more = True
        while more or started:
            # No further ahead than keeps the workers busy, nor than a slow one lets the others run: what came out early
            # waits for it, and a long stream must take little memory.
            while more and len(waiting) < len(self._workers) and len(started) <= 2 * len(self._workers):
                inputs = next(batches, None)
                more = inputs is not None
                if inputs is not None:
                    batch = check_batch(self.network, *inputs, self.time_steps)
                    shards = self._split(batch)
                    waiting.extend(shards)
                    started.append((batch, shards))
            self._give_out(waiting)
            while started and all(shard.result is not None for shard in started[0][1]):
                yield self._trace(*started.popleft())
            self._look_after(waiting)

    def _split(self, batch: CheckedBatch) -> list[Shard]:
        """Cut a batch into shards that fit into shared arrays, two for each worker where there are enough samples."""
        count, width = batch.mask.shape
        tokens = max(width, self.tokens or 0)
        largest = max([tokens, *(worker.built_for[0] for worker in self._workers if worker.built_for is not None)])
        fitting = self._plan.samples_that_fit(largest, batch.time_steps)
        wanted = 2 * len(self._workers) if len(self._workers) > 1 else 1
        size = min(fitting, -(-count // wanted))
        return [Shard(batch, start, min(start + size, count), tokens) for start in range(0, count, size)]

    def _give_out(self, waiting: deque[Shard]) -> None:
        """Give idle workers something to do; those whose network stands come first."""
        for worker in sorted(self._workers, key=lambda worker: worker.built_for is None):
            if waiting and worker.shard is None and self._may_start(worker):
                shard = waiting.popleft()
                try:
                    worker.begin(shard)
                except LavaRunError as error:
                    self._mend(worker, error, waiting)

    def _may_start(self, worker: Worker) -> bool:
        """Tell whether a worker stands, is the only one, or would fit into memory beside the others."""
        others = [other for other in self._workers if other is not worker and other.built_for is not None]
        if worker.built_for is not None or not others:
            return True
        if self._bytes_of_a_worker is None:  # what one takes is known once it has run something
            return False
        available = available_bytes()
        return available == UNKNOWN or available > MEMORY_TO_SPARE * self._bytes_of_a_worker

    def _look_after(self, waiting: deque[Shard]) -> None:
        """Wait for something to happen to the busy workers; mend what failed."""
        busy = [worker for worker in self._workers if worker.shard is not None]
        if not busy:
            return
        wait([worker.fileno() for worker in busy], LOOK_UP_EVERY)
        for worker in busy:
            try:
                finished = worker.finished()
            except LavaRunError as error:
                self._mend(worker, error, waiting)
                continue
            if finished and self._bytes_of_a_worker is None and len(self._workers) > 1:
                self._bytes_of_a_worker = worker.private_bytes()

    def _mend(self, worker: Worker, error: LavaRunError, waiting: deque[Shard]) -> None:
        """Have what a failed worker was running run again, or raise `error` where that was tried often enough."""
        shard = worker.shard
        assert shard is not None
        worker.abandon()
        fault = WorkerFault(
            worker.number, error.process_name, list(range(shard.start, shard.stop)), len(shard.faults) + 1, str(error)
        )
        self.faults.append(fault)
        shard.faults.append(fault)
        if error.from_outside:
            shard.kills += 1
        if error.from_outside:
            tries_left = MAX_KILLS - shard.kills
        elif error.process_name:
            tries_left = MAX_FAILURES - (len(shard.faults) - shard.kills)
        else:  # no process is to blame: Lava cannot compile or start this network at all
            tries_left = 0
        log.warning("%s", fault.report(runs_again=tries_left > 0))
        if tries_left <= 0:
            raise error
        waiting.appendleft(shard)

    def _trace(self, batch: CheckedBatch, shards: list[Shard]) -> Trace:
        results = [shard.result for shard in shards if shard.result is not None]
        joined = {key: _joined([result[key] for result in results]) for key in results[0]}
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
                "timing": self._plan.timing,
                "latency": {name: self._plan.arrivals[name] for name in (*spiking, self.network.output_source)},
                "processes": max(worker.processes for worker in self._workers),
                "stock_nodes": self.stock_nodes,
                "own_nodes": self._plan.own_nodes,
                "workers": sum(worker.built_for is not None for worker in self._workers),
                "faults": [asdict(fault) for shard in shards for fault in shard.faults],
                **({"overflows": _overflows(shards)} if self.network.is_integer else {}),
            },
        )

    def _checked_tokens(self, tokens: int | None) -> int | None:
        if tokens is None:
            return None
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise RunnerError(f"tokens is {tokens!r}; it must be a whole number of at least 1")
        encoding = self.network.token_encoding
        if encoding is not None and 0 < encoding.positions < tokens:
            raise RunnerError(f"tokens is {tokens}; the graph has only {encoding.positions} positions")
        return tokens


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _overflows(shards: list[Shard]) -> dict[str, dict[str, int]]:
    """Return what registers could not hold, by node; nodes where nothing happened are left out."""
    found = {}
    for name in shards[0].overflows:
        wrapped, saturated = (sum(int(shard.overflows[name][kind]) for shard in shards) for kind in range(2))
        if wrapped or saturated:
            found[name] = {"wrapped_currents": wrapped, "saturated_potentials": saturated}
    return found


def _checked_jobs(jobs: int | None) -> int:
    if jobs is None:
        return processor_count()
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise RunnerError(f"jobs is {jobs!r}; it must be a whole number of at least 1, or None for one a processor")
    return jobs

"""Two runners over any number of sentences, in bounded memory: batch by batch, in several processes, resumable.

A `Pair` runs one batch on both sides and keeps what was found of it, not the traces. `stream_findings` does so for
every batch, in order, in as many processes as asked; a batch whose worker died is run again. `ProgressFile` remembers
how far a stream came, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.util
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from export.network import Network
from hardware.equivalence.comparison import NODE_OF_LOGITS, Comparison, Divergence, compare, merge_comparisons
from hardware.equivalence.evidence import Evidence, gather_evidence
from hardware.equivalence.explanation import Explanation, explain, merge_explanations
from hardware.equivalence.node_by_node import NodeByNode
from hardware.errors import RunnerError, TraceMismatchError
from hardware.recorded import RecordedRunner
from hardware.runners.lava.stock_share import StockShare, stock_share
from hardware.runners.runner import FLOAT_PRECISIONS, Runner
from hardware.trace import Trace
from spikebert.files import written_whole

ATTEMPTS = 3
"""How often a batch is run before its failure counts as one that will not go away."""
IN_FLIGHT_PER_JOB = 2
"""Batches handed to a worker process ahead of its need."""
RECORDED_FACTS = ("processes", "granularity", "timing")
PROGRESS_FORMAT = "spikebert-progress"
PROGRESS_VERSION = 1


@dataclass(frozen=True)
class Fault:
    """Sentences that failed and were run again.

    Attributes
    ----------
    first_sample, samples : int
        Which sentences.
    attempt : int
        Counted from 1.
    cause : str
        What the worker or its guard said.
    """

    first_sample: int
    samples: int
    attempt: int
    cause: str


@dataclass(frozen=True)
class Finding:
    """What was found about some sentences.

    Attributes
    ----------
    comparison : Comparison
        Of the two runs as they are.
    explanation : Explanation or None
        Of their differences; None where nothing was explained.
    evidence : Evidence or None
        Around the first divergence.
    node_by_node : Comparison or None
        Of the first run with the second runner on the first's inputs, part by part.
    node_by_node_explanation : Explanation or None
        Of the same.
    left_out : list of str
        Nodes that cannot be run by themselves.
    faults : list of Fault
    seconds : dict of str to float
        By side.
    facts : dict
        What the second runner's trace says about itself.
    stock : StockShare or None
        How much of the second run took place in stock Lava processes.
    precisions : list of str
        Of the two runs.
    """

    comparison: Comparison
    explanation: Explanation | None = None
    evidence: Evidence | None = None
    node_by_node: Comparison | None = None
    node_by_node_explanation: Explanation | None = None
    left_out: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    stock: StockShare | None = None
    precisions: list[str] = field(default_factory=list)

    @property
    def precision(self) -> str:
        """The precision of both runs, in words."""
        return " and ".join(dict.fromkeys(self.precisions))

    def join(self, other: Finding) -> Finding:
        """Return the finding about these sentences and, behind them, those of `other`."""
        offset = self.comparison.samples
        comparison = merge_comparisons([self.comparison, other.comparison])
        evidence = self.evidence
        if comparison.first_divergence != self.comparison.first_divergence and other.evidence is not None:
            evidence = replace(other.evidence, divergence=comparison.first_divergence)  # type: ignore[arg-type]
        by_node = [found for found in (self.node_by_node, other.node_by_node) if found is not None]
        faults = [replace(fault, first_sample=fault.first_sample + offset) for fault in other.faults]
        sides = {*self.seconds, *other.seconds}
        return Finding(
            comparison,
            _join_explanations(self.explanation, other.explanation, offset),
            evidence,
            merge_comparisons(by_node) if by_node else None,
            _join_explanations(self.node_by_node_explanation, other.node_by_node_explanation, offset),
            other.left_out or self.left_out,
            [*self.faults, *faults],
            {side: self.seconds.get(side, 0.0) + other.seconds.get(side, 0.0) for side in sorted(sides)},
            {**self.facts, **other.facts},
            self.stock + other.stock if self.stock and other.stock else self.stock or other.stock,
            self.precisions or other.precisions,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "comparison": self.comparison.to_dict(),
            "explanation": self.explanation and self.explanation.to_dict(),
            "evidence": self.evidence and self.evidence.to_dict(),
            "node_by_node": self.node_by_node and self.node_by_node.to_dict(),
            "node_by_node_explanation": self.node_by_node_explanation and self.node_by_node_explanation.to_dict(),
            "left_out": self.left_out,
            "faults": [asdict(fault) for fault in self.faults],
            "seconds": self.seconds,
            "facts": self.facts,
            "stock": self.stock and self.stock.to_dict(),
            "precisions": self.precisions,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """Return what `to_dict` was made from."""
        kinds: dict[str, Any] = {
            "comparison": Comparison,
            "explanation": Explanation,
            "evidence": Evidence,
            "node_by_node": Comparison,
            "node_by_node_explanation": Explanation,
        }
        parts = {name: values[name] and kind.from_dict(values[name]) for name, kind in kinds.items()}
        faults = [Fault(**fault) for fault in values["faults"]]
        stock = values["stock"] and StockShare(**values["stock"])
        return cls(**{**values, **parts, "faults": faults, "stock": stock})


def _join_explanations(a: Explanation | None, b: Explanation | None, offset: int) -> Explanation | None:
    parts = [(part, start) for part, start in ((a, 0), (b, offset)) if part is not None]
    return merge_explanations(parts) if parts else None


@dataclass
class Pair:
    """Two runners and what to do with their traces; a context manager that closes both.

    Attributes
    ----------
    expected, actual : Runner
    network : Network or None
        What both are meant to run; needed to explain differences.
    nodes : tuple of str
        Patterns of the nodes to compare, ``"output"`` for the logits; all where empty.
    explain_all : bool
        Audit every batch, not only those with differences. A float32 batch always is: there bounds decide.
    node_by_node : NodeByNode or None
        Runs the parts of the network on the second runner.
    on_traces : callable, optional
        Given both traces of every batch.
    """

    expected: Runner
    actual: Runner
    network: Network | None = None
    nodes: tuple[str, ...] = ()
    explain_all: bool = False
    node_by_node: NodeByNode | None = None
    on_traces: Callable[[Trace, Trace], None] | None = None

    def run(self, first_sample: int, inputs: Any, mask: Any) -> Finding:
        """Run one batch on both sides.

        What a runner mended on the way (a Lava worker that was killed, built again and its samples rerun) stands in the
        finding's faults.
        """
        seconds: dict[str, float] = {}

        def timed(side: str, runner: Runner) -> Trace:
            started = time.perf_counter()
            if isinstance(runner, RecordedRunner):
                runner.seek(first_sample)
            trace = runner.run(inputs, mask)
            seconds[side] = time.perf_counter() - started
            return trace

        trace_a, trace_b = timed("expected", self.expected), timed("actual", self.actual)
        if self.on_traces is not None:
            self.on_traces(trace_a, trace_b)
        faults = [*_mended(trace_a), *_mended(trace_b)]
        return replace(self.compare_traces(trace_a, trace_b), faults=faults, seconds=seconds)

    def compare_traces(self, trace_a: Trace, trace_b: Trace) -> Finding:
        """Return what is found about two traces of the same sentences."""
        whole_a = trace_a
        if self.nodes:
            trace_a, trace_b = (_selected(trace, self.nodes) for trace in (trace_a, trace_b))
        comparison = compare(trace_a, trace_b)
        first = comparison.first_divergence
        explanation = evidence = None
        can_explain = self.network is not None and _float(trace_a) and _float(trace_b)
        in_single = trace_b.precision == "float32"
        if can_explain and (self.explain_all or in_single or first is not None):
            assert self.network is not None
            full_b = replace(trace_b, spikes={**whole_a.spikes, **trace_b.spikes})
            explanation = explain(self.network, whole_a, trace_b, inputs_b=full_b)
            comparison = held_against_bounds(comparison, explanation)
            first = comparison.first_divergence
        if first is not None and first.node in whole_a.spikes:
            evidence = gather_evidence(first, whole_a, trace_b, self.network if can_explain else None)
        rerun = rerun_explanation = None
        left_out: list[str] = []
        if self.node_by_node is not None:
            trace_c = self.node_by_node.run(whole_a)
            left_out = self.node_by_node.left_out
            rerun = compare(whole_a.select(trace_c.spikes, logits=bool(trace_c.logits.size)), trace_c)
            if can_explain and self.network is not None:
                rerun_explanation = explain(self.network, whole_a, trace_c, inputs_b=whole_a)
        facts = {key: trace_b.metadata[key] for key in RECORDED_FACTS if key in trace_b.metadata}
        in_stock = self.network is not None and "stock_nodes" in trace_b.metadata and not self.nodes
        stock = stock_share(self.network, trace_b) if in_stock else None  # type: ignore[arg-type]
        by_node = (rerun, rerun_explanation, left_out)
        precisions = [str(trace.precision or "unknown precision") for trace in (trace_a, trace_b)]
        return Finding(comparison, explanation, evidence, *by_node, facts=facts, stock=stock, precisions=precisions)

    def close(self) -> None:
        """Close both runners."""
        with ExitStack() as stack:
            for runner in (self.expected, self.actual, self.node_by_node):
                if runner is not None:
                    stack.callback(runner.close)

    def __enter__(self) -> Pair:
        """Return the pair."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close both runners."""
        self.close()


def held_against_bounds(comparison: Comparison, explanation: Explanation) -> Comparison:
    """Return a comparison without differing spikes judged by derived bounds in place of fixed tolerances."""
    if comparison.spikes_different:
        return comparison
    first = comparison.first_divergence
    if first is not None and first.node not in {node.node for node in explanation.per_node}:
        return comparison  # nothing is known of that node but the two runs
    if explanation.explained:
        return replace(comparison, equal=True, first_divergence=None)
    beyond = explanation.first_unexplained
    if comparison.first_divergence is not None or beyond is None:
        return replace(comparison, equal=False)
    values = {beyond.run: beyond.found, "b" if beyond.run == "a" else "a": beyond.expected}
    is_potential = beyond.quantity == "membrane_potential"
    divergence = Divergence(
        quantity=beyond.quantity,
        node=beyond.node,
        time_step=beyond.time_step,
        sample=beyond.sample,
        token=beyond.token,
        feature=beyond.feature,
        value_a=values["a"],
        value_b=values["b"],
        membrane_potential_a=values["a"] if is_potential else None,
        membrane_potential_b=values["b"] if is_potential else None,
        threshold=beyond.threshold,
    )
    return replace(comparison, equal=False, first_divergence=divergence)


def _mended(trace: Trace) -> list[Fault]:
    """Return what a runner says it had to run again."""
    return [
        Fault(min(fault["samples"]), len(fault["samples"]), fault["attempt"], fault["message"])
        for fault in trace.metadata.get("faults", ())
    ]


def _float(trace: Trace) -> bool:
    return trace.precision in FLOAT_PRECISIONS


def _selected(trace: Trace, patterns: tuple[str, ...]) -> Trace:
    """Return a trace of the nodes that match.

    Raises
    ------
    TraceMismatchError
        A pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*trace.spikes, NODE_OF_LOGITS)):
            known = ", ".join((*trace.spikes, NODE_OF_LOGITS))
            raise TraceMismatchError(f"no node is called {pattern}; there are {known}")

    def matches(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return trace.select([name for name in trace.spikes if matches(name)], logits=matches(NODE_OF_LOGITS))


# ---------------------------------------------------------------------------------------------------------------------
# Many batches.

Batch = tuple[int, np.ndarray, np.ndarray]
"""Number of the first sentence, inputs, mask."""

_worker_pair: Pair | Exception | None = None


def _open_worker(open_pair: Callable[[], Pair]) -> None:
    """Make a worker process's own pair, closed when the process ends; what is raised is told with the first batch."""
    global _worker_pair
    try:
        _worker_pair = open_pair()
    except Exception as error:  # raised here, it would only break the pool
        _worker_pair = error
    else:
        multiprocessing.util.Finalize(_worker_pair, _worker_pair.close, exitpriority=100)


def _run_in_worker(batch: Batch) -> Finding:
    assert _worker_pair is not None
    if isinstance(_worker_pair, Exception):
        raise _worker_pair
    return _worker_pair.run(*batch)


def stream_findings(open_pair: Callable[[], Pair], batches: Iterable[Batch], jobs: int = 1) -> Iterator[Finding]:
    """Yield what is found about each batch, in order.

    Parameters
    ----------
    open_pair : callable
        Makes a pair. With more than one job it is called in each worker process, which is started afresh: it must be
        picklable, as a module's function or a dataclass is.
    batches : iterable
    jobs : int
        Processes. With one, everything runs in this one.

    Raises
    ------
    RunnerError
        The same batch killed its worker `ATTEMPTS` times.
    """
    if jobs == 1:
        with open_pair() as pair:
            for batch in batches:
                yield pair.run(*batch)
        return
    yield from _stream_parallel(open_pair, iter(batches), jobs)


def _stream_parallel(open_pair: Callable[[], Pair], batches: Iterator[Batch], jobs: int) -> Iterator[Finding]:
    waiting: deque[tuple[Batch, list[Fault], Future[Finding]]] = deque()
    pool = _make_pool(open_pair, jobs)
    try:
        while True:
            for batch in islice(batches, jobs * IN_FLIGHT_PER_JOB - len(waiting)):
                waiting.append((batch, [], _submit(pool, batch)))
            if not waiting:
                return
            batch, faults, future = waiting[0]
            try:
                found = future.result()
            except BrokenProcessPool as error:
                # which batch killed the worker is not known: the first that waits is held to have
                if len(faults) + 1 == ATTEMPTS:
                    raise RunnerError(
                        f"the worker process died {ATTEMPTS} times on sentences {batch[0]} to "
                        f"{batch[0] + len(batch[2]) - 1}: {error}"
                    ) from error
                faults.append(Fault(0, len(batch[2]), len(faults) + 1, f"the worker process died: {error}"))
                pool.shutdown(wait=True, cancel_futures=True)
                pool = _make_pool(open_pair, jobs)
                waiting = deque(
                    (again, known, done if _is_good(done) else _submit(pool, again)) for again, known, done in waiting
                )
                continue
            waiting.popleft()
            yield replace(found, faults=[*faults, *found.faults])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, batch: Batch) -> Future[Finding]:
    """Hand a batch to a worker; a pool that broke since says so in the future, as it does for those that waited."""
    try:
        return pool.submit(_run_in_worker, batch)
    except BrokenProcessPool as error:
        failed: Future[Finding] = Future()
        failed.set_exception(error)
        return failed


def _is_good(future: Future[Finding]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _make_pool(open_pair: Callable[[], Pair], jobs: int) -> ProcessPoolExecutor:
    # torch and Lava do not survive a fork of a process that has used them
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_open_worker, initargs=(open_pair,))


class ProgressFile:
    """How far a stream came, and what it found until there, in a JSON file that is replaced whole.

    Parameters
    ----------
    path : str or Path
    job : dict of str to str
        What makes this stream the same as another: checkpoint, runners, precision, sentences.
    """

    def __init__(self, path: str | Path, job: dict[str, Any]) -> None:
        self.path = Path(path)
        self.job = {key: str(value) for key, value in job.items()}

    def read(self) -> Finding | None:
        """Return what was found until now; None where nothing was.

        Raises
        ------
        RunnerError
            The file is no progress file, or one of another stream; the message says in what they differ.
        """
        if not self.path.exists():
            return None
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            told = (values["format"], values["version"])
            job, finding = values["job"], values["finding"]
            same = {key: job.get(key) == self.job.get(key) for key in {**job, **self.job}}
            found = Finding.from_dict(finding)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunnerError(
                f"{self.path}: is not a progress file of this command ({type(error).__name__}: {error}); choose "
                "another file, or remove it"
            ) from error
        if told != (PROGRESS_FORMAT, PROGRESS_VERSION):
            raise RunnerError(f"{self.path}: is {told[0]} version {told[1]}; this reads version {PROGRESS_VERSION}")
        for key, equal in same.items():
            if not equal:
                raise RunnerError(
                    f"{self.path}: belongs to another run: its {key} is {job.get(key)}, here it is "
                    f"{self.job.get(key)}; choose another file, or remove it to start again"
                )
        return found

    def write(self, finding: Finding) -> None:
        """Remember what was found.

        Raises
        ------
        RunnerError
            The file cannot be written; the one that was there stays.
        """
        values = {
            "format": PROGRESS_FORMAT,
            "version": PROGRESS_VERSION,
            "job": self.job,
            "samples": finding.comparison.samples,
            "finding": finding.to_dict(),
        }
        try:
            with written_whole(self.path) as partial:
                partial.write_text(json.dumps(values), encoding="utf-8")
        except OSError as error:
            raise RunnerError(f"{self.path}: cannot be written: {error}") from error

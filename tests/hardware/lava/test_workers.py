"""The promise of a data set's run: whatever happens to its Lava workers, every sample comes out once, in order, right.

Workers are killed, stopped and broken from outside while they work; what is expected comes from the NumPy reference,
which knows nothing of Lava. What is left behind is read from /proc and /dev/shm.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import nir
import numpy as np
import pytest
from numpy.typing import DTypeLike

from export.network import Network, NetworkBuilder
from export.operators import Affine, Flatten, LeakyIntegrateAndFire, Operator, Traits
from hardware import Trace, open_runner
from hardware.errors import RunnerError
from hardware.runners.lava import lava_runner
from hardware.runners.lava.memory import available_bytes, private_bytes, processor_count, proportional_bytes

pytestmark = pytest.mark.lava

STEPS, FEATURES = 4, 3


@dataclass(frozen=True, eq=False)
class Fuse(Operator):
    """Passes on what comes. Where a 13 comes and the file `armed` is there, it takes the file away and does `fault`."""

    name: ClassVar[str] = "fuse"
    traits: ClassVar[Traits] = replace(Flatten.traits, integer=False)
    fault: str = "none"
    armed: Path = Path()

    @property
    def in_features(self) -> int:
        return FEATURES

    @property
    def out_features(self) -> int:
        return FEATURES

    def interval(self, read: Any, tokens: int | None) -> None:
        return None

    def step(self, x: np.ndarray, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        if (x == 13).any():
            for name in sorted(self.armed.glob("armed*"))[:1]:
                name.unlink()
                getattr(self, self.fault)()
        return x

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stopped(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def raises(self) -> None:
        raise ArithmeticError("thirteen came in")

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        raise NotImplementedError


def _network(fault: str, armed: Path) -> Network:
    ones = np.ones(FEATURES)
    builder = NetworkBuilder("input", FEATURES)
    builder.add("mix", Affine(np.eye(FEATURES)), "input")
    builder.add("block07_fuse", Fuse(fault, armed), "mix")
    builder.add("neuron", LeakyIntegrateAndFire(0.9 * ones, 2 * ones, 5 * ones), "block07_fuse")
    return builder.network("output", "neuron")


def _batches(sizes: list[int], thirteen_at: int, seed: int = 0) -> list[tuple[np.ndarray, None]]:
    """Return batches of so many samples of two tokens; the 13 is in one sample, counted over all."""
    rng = np.random.default_rng(seed)
    every = rng.integers(0, 9, (STEPS, sum(sizes), 2, FEATURES)).astype(float)
    every[2, thirteen_at, 1, 0] = 13
    return [(part, None) for part in np.split(every, np.cumsum(sizes)[:-1], axis=1)]


def _assert_equal(found: list[Trace], batches: list[tuple[np.ndarray, None]]) -> None:
    with open_runner(_network("none", Path()), "reference", record_membrane_potentials=True) as reference:
        expected = [reference.run(*batch) for batch in batches]
    assert len(found) == len(expected)
    for trace, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(trace.spikes["neuron"], wanted.spikes["neuron"])
        np.testing.assert_array_equal(trace.membrane_potentials["neuron"], wanted.membrane_potentials["neuron"])
        np.testing.assert_array_equal(trace.outputs, wanted.outputs)


def _what_there_is() -> dict[str, Any]:
    children = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended since it was listed
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                children.add(int(path.parent.name))
    return {
        "processes": children,
        "threads": set(threading.enumerate()),
        "shared memory": set(os.listdir("/dev/shm")),
        "open files": len(os.listdir("/proc/self/fd")),
    }


LEFT_BY_OTHERS = 60.0  # seconds that other programs, such as another worker of these tests, may take for their files


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    lava_runner.import_lava()
    before = _what_there_is()
    yield
    deadline = time.monotonic() + LEFT_BY_OTHERS
    while set(os.listdir("/dev/shm")) - before["shared memory"] and time.monotonic() < deadline:
        time.sleep(0.1)
    after = _what_there_is()
    assert after.pop("shared memory") <= before.pop("shared memory")
    assert after == before


@pytest.mark.parametrize(("fault", "said"), [("killed", "SIGKILL"), ("stopped", "is stuck"), ("raises", "thirteen")])
def test_a_worker_that_fails_once_costs_nothing_but_time(
    fault: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a stream over two workers, at 9 of 14 samples."""
    (tmp_path / "armed").touch()
    batches = _batches([5, 1, 6, 2], thirteen_at=8)
    with (
        caplog.at_level(logging.WARNING),
        open_runner(_network(fault, tmp_path), "lava", jobs=2, timeout=5.0, record_membrane_potentials=True) as runner,
    ):
        found = list(runner.run_stream(batches))
        (record,) = runner.faults
        assert runner.builds in (2, 3)  # the one that failed only where there was more to do
    _assert_equal(found, batches)
    assert not list(tmp_path.iterdir())  # the fault took place
    assert said in record.message
    assert [trace.metadata["faults"] != [] for trace in found] == [False, False, True, False]
    (told,) = found[2].metadata["faults"]
    assert told["process"] == "block07"
    assert 2 in told["samples"]  # sample 8 of all is row 2 of the third batch
    assert told["attempt"] == 1
    (message,) = caplog.messages
    assert message.startswith(f"Lava worker {told['worker']} failed at sample")
    assert said in message


@pytest.mark.parametrize(
    ("fault", "times", "faults"),
    [("raises", 9, lava_runner.MAX_FAILURES), ("killed", 9, lava_runner.MAX_KILLS)],
)
def test_a_failure_that_comes_again_is_raised_with_its_cause(
    fault: str, times: int, faults: int, tmp_path: Path
) -> None:
    for number in range(times):
        (tmp_path / f"armed{number}").touch()
    batches = _batches([3, 3], thirteen_at=4)
    with open_runner(_network(fault, tmp_path), "lava", granularity="network", jobs=2) as runner:
        stream = runner.run_stream(batches)
        with pytest.raises(lava_runner.LavaRunError, match=r"thirteen came in|SIGKILL"):
            list(stream)
        assert len(runner.faults) == faults
        assert [fault.attempt for fault in runner.faults] == list(range(1, faults + 1))
        # and the runner goes on
        for file in tmp_path.iterdir():
            file.unlink()
        assert len(list(runner.run_stream(batches))) == 2


def test_workers_killed_by_hand_between_and_during_batches(tmp_path: Path) -> None:
    """As a person or the kernel kills: any process, at any moment, several times."""
    batches = _batches([2] * 30, thirteen_at=0)
    network = _network("none", tmp_path)
    with open_runner(network, "lava", jobs=2, record_membrane_potentials=True) as runner:
        found, rng = [], np.random.default_rng(0)
        for number, trace in enumerate(runner.run_stream(batches)):
            found.append(trace)
            if number in (5, 14, 23):
                os.kill(rng.choice(runner.process_ids()), signal.SIGKILL)
        assert 1 <= len(runner.faults) <= 3  # the last may have had nothing left to do
        assert all("SIGKILL" in fault.message for fault in runner.faults)
    _assert_equal(found, batches)


def test_a_stream_that_is_given_up_leaves_the_runner_usable(tmp_path: Path) -> None:
    batches = _batches([1] * 12, thirteen_at=3)
    with open_runner(_network("none", tmp_path), "lava", jobs=2, record_membrane_potentials=True) as runner:
        stream = runner.run_stream(batches)
        next(stream)
        with pytest.raises(RunnerError, match="another stream"):
            runner.run(*batches[0])
        stream.close()
        _assert_equal([runner.run(*batch) for batch in batches[:3]], batches[:3])


def test_a_bad_batch_in_a_stream_is_refused_and_the_rest_given_up(tmp_path: Path) -> None:
    batches = _batches([1] * 4, thirteen_at=3)
    with open_runner(_network("none", tmp_path), "lava", jobs=2) as runner:
        with pytest.raises(RunnerError, match="inputs have shape"):
            list(runner.run_stream([*batches, (np.ones((STEPS, 1, 2, FEATURES + 1)), None)]))
        assert len(list(runner.run_stream(batches))) == 4


def test_a_stream_reads_no_further_ahead_than_its_workers_need(tmp_path: Path) -> None:
    read = []

    def source() -> Iterator[tuple[np.ndarray, None]]:
        for number, batch in enumerate(_batches([1] * 40, thirteen_at=3)):
            read.append(number)
            yield batch

    with open_runner(_network("none", tmp_path), "lava", jobs=2) as runner:
        for number, _ in enumerate(runner.run_stream(source())):
            assert len(read) <= number + 1 + 5  # two running, two waiting, one early: however slow the first of them is


def test_workers_start_only_where_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = _batches([1] * 8, thirteen_at=3)
    monkeypatch.setattr(lava_runner, "available_bytes", lambda: 1 << 20)
    with open_runner(_network("none", tmp_path), "lava", jobs=4, record_membrane_potentials=True) as runner:
        found = list(runner.run_stream(batches))
        assert runner.builds == 1
    assert {trace.metadata["workers"] for trace in found} == {1}
    _assert_equal(found, batches)


def test_one_batch_is_spread_over_workers(tmp_path: Path) -> None:
    batches = _batches([16], thirteen_at=3)
    with open_runner(_network("none", tmp_path), "lava", jobs=2, record_membrane_potentials=True) as runner:
        found = [runner.run(*batches[0])]
        assert runner.builds == 2
    _assert_equal(found, batches)


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, "2"])
def test_bad_numbers_of_jobs_are_refused(jobs: Any, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="jobs is"):
        open_runner(_network("none", tmp_path), "lava", jobs=jobs)


def test_memory_is_read_as_the_kernel_counts_it() -> None:
    size = 64 << 20
    ours = [os.getpid()]
    before = private_bytes(ours), proportional_bytes(ours)
    # from the kernel itself: NumPy may be given what a test before left free in this process
    block = np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    block[:] = 1
    assert private_bytes(ours) - before[0] >= 0.9 * block.nbytes
    assert proportional_bytes(ours) - before[1] >= 0.9 * block.nbytes
    assert available_bytes() > size
    assert 1 <= processor_count() <= multiprocessing.cpu_count()

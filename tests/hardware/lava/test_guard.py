"""The guard's promise: whatever a Lava process does, an error names it and its cause in seconds, and nothing is left.

Every failure is provoked on purpose with the processes of `faulty_processes/faulty.py`. What is left is read from /proc
and /dev/shm, not from the guard.
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hardware.runners.lava.compatibility import import_lava
from hardware.runners.lava.guard import GuardedNetwork, LavaRunError
from spikebert.errors import ConfigurationError, MissingDependencyError

try:
    import_lava()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

from lava.magma.core.run_configs import Loihi2SimCfg

pytestmark = pytest.mark.lava

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
SHAPE = (3,)
CULPRIT = "block00_qkv_neuron"
LEFT_BY_OTHERS = 60.0  # seconds that other programs, such as another worker of these tests, may take for their files


def _load_faulty() -> ModuleType:
    """Import the faulty processes by their path; Lava looks a process's module up in sys.modules."""
    specification = importlib.util.spec_from_file_location("faulty", HERE / "faulty_processes" / "faulty.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["faulty"] = module
    specification.loader.exec_module(module)
    return module


faulty: Any = _load_faulty()


def _build(fault: str = "none", at_step: int = 2) -> tuple[Any, np.ndarray]:
    """Counter -> RunningSum -> Faulty -> Recorder; returns the first and what the last will record, by time step."""
    record = np.frombuffer(mmap.mmap(-1, 32 * SHAPE[0] * 8), dtype=float).reshape(32, *SHAPE)
    source = faulty.Counter(shape=SHAPE, name="source")
    running_sum = faulty.RunningSum(shape=SHAPE, name="running_sum")
    culprit = faulty.Faulty(shape=SHAPE, fault=fault, at_step=at_step, name=CULPRIT)
    recorder = faulty.Recorder(shape=SHAPE, record=record, name="recorder")
    source.a_out.connect(running_sum.a_in)
    running_sum.a_out.connect(culprit.a_in)
    culprit.a_out.connect(recorder.a_in)
    return source, record


def _guard(process: Any, **options: Any) -> GuardedNetwork:
    return GuardedNetwork(process, Loihi2SimCfg(select_tag="floating_pt"), **options)


def _run_faulty(fault: str, steps: int = 4, **options: Any) -> LavaRunError:
    source, _ = _build(fault)
    with pytest.raises(LavaRunError) as caught, _guard(source, **options) as network:
        network.run(steps)
    return caught.value


@cache
def _slowness() -> float:
    """Return how many times as long as on an idle machine, at least once, a healthy network lives here and now."""
    began = time.monotonic()
    with _guard(_build()[0]) as network:
        network.run(4)
    return max(1.0, (time.monotonic() - began) / 0.3)


def _at_once() -> float:
    """Return the seconds within which a failure is told that needs no time limit to show: a few, on an idle machine."""
    return 3.0 * _slowness()


def _short() -> float:
    """Return a time limit in seconds in which a healthy network makes progress, for failures that need one to show."""
    return 1.0 * _slowness()


def _children(parent: int) -> set[int]:
    """Processes whose parent is the given one, zombies included."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended since it was listed
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(int(path.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _pid_of(name: str) -> int:
    return next(child.pid for child in multiprocessing.active_children() if child.name == name and child.pid)


def _what_there_is() -> dict[str, set[Any]]:
    return {
        "processes": _children(os.getpid()),
        "threads": set(threading.enumerate()),
        "shared memory": set(os.listdir("/dev/shm")),
        "open files": {len(os.listdir("/proc/self/fd"))},
    }


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    _slowness()
    before = _what_there_is()
    yield
    deadline = time.monotonic() + LEFT_BY_OTHERS
    while set(os.listdir("/dev/shm")) - before["shared memory"] and time.monotonic() < deadline:
        time.sleep(0.1)
    after = _what_there_is()
    assert after.pop("shared memory") <= before.pop("shared memory")
    assert after == before


@pytest.fixture(autouse=True)
def _no_signal_handler_is_left() -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in signals]
    yield
    assert [signal.getsignal(number) for number in signals] == before


class TestHealthyNetwork:
    def test_state_and_time_go_on_from_run_to_run(self) -> None:
        source, record = _build()
        with _guard(source) as network:
            network.run(3)
            after_first = record.copy()
            network.run(1)
            network.run(4)
        # The source sends its time step, so these numbers are right only if time_step counts 1, 2, ... 8 across runs.
        expected = np.cumsum(np.arange(1, 9))
        np.testing.assert_array_equal(record[:8], expected[:, None] * np.ones(SHAPE))
        np.testing.assert_array_equal(after_first[:3], record[:3])
        assert not after_first[3:].any()
        assert not record[8:].any()

    def test_variables_can_be_read_and_written_between_runs(self) -> None:
        total = np.full(SHAPE, 100.0)
        source, record = _build()
        running_sum = faulty.RunningSum(shape=SHAPE, name="second_sum")
        source.a_out.connect(running_sum.a_in)
        with _guard(source) as network:
            network.run(2)
            np.testing.assert_array_equal(running_sum.total.get(), np.full(SHAPE, 3.0))
            running_sum.total.set(total)
            network.run(1)
            np.testing.assert_array_equal(running_sum.total.get(), total + 3)
        np.testing.assert_array_equal(record[2], np.full(SHAPE, 6.0))

    def test_stop_without_a_run_and_stop_twice(self) -> None:
        network = _guard(_build()[0])
        network.start()
        network.stop()
        network.stop()
        with pytest.raises(ConfigurationError, match="not running"):
            network.run(1)

    def test_lavas_own_stop_is_the_guarded_one(self) -> None:
        source, _ = _build()
        network = _guard(source)
        network.start()
        network.run(1)
        source.stop()

    def test_a_network_that_is_dropped_ends(self) -> None:
        network = _guard(_build()[0])
        network.start()
        del network

    def test_an_error_in_the_body_ends_the_network_and_passes_through(self) -> None:
        with pytest.raises(ZeroDivisionError), _guard(_build()[0]):
            raise ZeroDivisionError

    def test_a_network_can_be_run_outside_the_main_thread(self) -> None:
        source, record = _build()

        def work() -> None:
            with _guard(source) as network:
                network.run(2)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        np.testing.assert_array_equal(record[:2, 0], [1, 3])

    def test_a_slow_step_is_no_failure_where_progress_is_reported(self) -> None:
        source, record = _build("sleep_a_while", at_step=1)
        with _guard(source, timeout=_short(), progress=lambda: int(time.monotonic() / 0.1)) as network:
            network.run(1)
        assert record[0, 0] == 1

    def test_wrong_use_is_told(self) -> None:
        source, _ = _build()
        with pytest.raises(ConfigurationError, match="timeout"):
            _guard(source, timeout=0)
        with pytest.raises(ConfigurationError, match="use_watchdog"):
            _guard(source, compile_config={"use_watchdog": True})
        with _guard(source) as network:
            with pytest.raises(ConfigurationError, match="started already"):
                network.start()
            with pytest.raises(ConfigurationError, match="not 0"):
                network.run(0)


RAISED = {
    "raise_in_init": ("ValueError: no threshold given", "while its model was built"),
    "raise_before_send": ("ValueError: membrane potential is not a number", "in time step 2"),
    "raise_after_send": ("ValueError: threshold lost", "in time step 2"),
    "raise_unpicklable": ("UnpicklableError: cannot be sent", "in time step 2"),
    "raise_system_exit": ("SystemExit: given up", "in time step 2"),
    "send_wrong_shape": ("data.shape=(2,) self._shape=(3,) Mismatch", "in time step 2"),
    "expect_wrong_shape": ("ValueError: matmul", "in time step 2"),
}
DIED = {
    "exit_in_init": "ended with exit code 5",
    "exit_with_3": "ended with exit code 3",
    "exit_with_0": "ended with exit code 0",
    "crash": "was killed by SIGSEGV",
}
STUCK = {
    "hang_in_init": "time.sleep(1e6)",
    "loop_for_ever": "in loop_for_ever",
    "sleep_for_ever": "time.sleep(1e6)",
    "wait_for_own_lock": "lock.acquire()",
}


class TestFailures:
    @pytest.mark.parametrize("fault", RAISED)
    def test_an_exception(self, fault: str) -> None:
        began = time.monotonic()
        error = _run_faulty(fault)
        assert time.monotonic() - began < _at_once()
        assert (error.process_name, error.process_class) == (CULPRIT, "Faulty")
        for fragment in (CULPRIT, "Faulty", *RAISED[fault], f"in {fault}", "faulty.py:"):
            assert fragment in str(error)
        assert "Traceback (most recent call last)" in error.cause_traceback
        assert f"in {fault}" in error.cause_traceback

    @pytest.mark.parametrize("fault", DIED)
    def test_a_death(self, fault: str) -> None:
        began = time.monotonic()
        error = _run_faulty(fault)
        assert time.monotonic() - began < _at_once()
        assert (error.process_name, error.process_class) == (CULPRIT, "Faulty")
        assert f"process '{CULPRIT}' (Faulty, model PyFaulty) {DIED[fault]}" in str(error)

    def test_a_crash_shows_where_it_happened(self) -> None:
        error = _run_faulty("crash")
        assert "in crash" in str(error)
        assert "faulty.py" in error.cause_traceback

    def test_a_kill_from_outside(self) -> None:
        source, _ = _build("sleep_for_ever")
        network = _guard(source)
        network.start()
        killer = threading.Timer(0.3, os.kill, (_pid_of("running_sum"), signal.SIGKILL))
        killer.start()
        began = time.monotonic()
        with pytest.raises(LavaRunError) as caught:
            network.run(3)
        assert time.monotonic() - began < _at_once()
        assert caught.value.process_name == "running_sum"
        assert "was killed by SIGKILL" in str(caught.value)

    @pytest.mark.parametrize("action", ["run", "stop", "read a variable"])
    def test_a_kill_between_runs(self, action: str) -> None:
        source, _ = _build()
        variable = source.a_out.get_dst_ports()[0].process.total
        network = _guard(source)
        network.start()
        network.run(1)
        # The runtime service reads variables through the process itself, so it must be the one asked that is dead.
        name = "running_sum" if action == "read a variable" else CULPRIT
        os.kill(_pid_of(name), signal.SIGKILL)
        act = {"run": lambda: network.run(1), "stop": network.stop, "read a variable": variable.get}[action]
        began = time.monotonic()
        with pytest.raises(LavaRunError, match="was killed by SIGKILL") as caught:
            act()
        assert time.monotonic() - began < _at_once()
        assert caught.value.process_name == name

    @pytest.mark.parametrize("fault", STUCK)
    def test_a_hang(self, fault: str) -> None:
        began = time.monotonic()
        error = _run_faulty(fault, timeout=_short())
        assert _short() < time.monotonic() - began < _short() + _at_once()
        assert (error.process_name, error.process_class) == (CULPRIT, "Faulty")
        for fragment in (f"no progress for {_short():g} s", f"process '{CULPRIT}'", "is stuck at", STUCK[fault]):
            assert fragment in str(error)
        assert f"in {fault}" in error.cause_traceback

    def test_a_stopped_process_that_answers_no_signal(self) -> None:
        source, _ = _build()
        network = _guard(source, timeout=_short())
        network.start()
        os.kill(_pid_of(CULPRIT), signal.SIGSTOP)
        with pytest.raises(LavaRunError) as caught:
            network.run(1)
        assert caught.value.process_name == CULPRIT
        assert "does not answer signals" in str(caught.value)

    def test_a_forgotten_message_is_blamed_on_who_forgot_to_send(self) -> None:
        error = _run_faulty("forget_to_send", timeout=_short())
        assert error.process_name == CULPRIT
        assert f"'{CULPRIT}' (Faulty, model PyFaulty) finished time step 2 without sending" in str(error)
        assert "process 'recorder' (Recorder, model PyRecorder) waits for" in str(error)
        assert "a_in.recv()" in str(error)

    def test_a_full_channel_is_blamed_on_who_forgot_to_receive(self) -> None:
        error = _run_faulty("forget_to_receive", steps=8, timeout=_short(), compile_config={"pypy_channel_size": 2})
        assert error.process_name == CULPRIT
        assert "without receiving what process 'running_sum'" in str(error)

    def test_a_deadlock_names_all_that_wait(self) -> None:
        first = faulty.RunningSum(shape=SHAPE, name="first")
        second = faulty.RunningSum(shape=SHAPE, name="second")
        first.a_out.connect(second.a_in)
        second.a_out.connect(first.a_in)
        with pytest.raises(LavaRunError) as caught, _guard(first, timeout=_short()) as network:
            network.run(1)
        assert caught.value.process_name in ("first", "second")
        for fragment in ("deadlock", "process 'first' (RunningSum", "process 'second' (RunningSum", "a_in.recv()"):
            assert fragment in str(caught.value)

    def test_a_process_that_will_not_stop(self) -> None:
        source, record = _build("hang_when_stopped")
        network = _guard(source, timeout=_short())
        network.start()
        network.run(2)
        began = time.monotonic()
        with pytest.raises(LavaRunError, match="is stuck at") as caught:
            network.stop()
        assert time.monotonic() - began < _short() + _at_once()
        assert caught.value.process_name == CULPRIT
        assert record[1, 0] == 3

    def test_what_lava_cannot_compile(self) -> None:
        with pytest.raises(LavaRunError, match="could not compile") as caught:
            _guard(faulty.NoModel(name="orphan")).start()
        assert (caught.value.process_name, caught.value.process_class) == ("orphan", "NoModel")
        assert "NoProcessModelFound" in str(caught.value)

    def test_lava_itself_refuses_ports_of_different_shapes(self) -> None:
        with pytest.raises(AssertionError, match="incompatible"):
            faulty.Counter(shape=(3,)).a_out.connect(faulty.RunningSum(shape=(4,)).a_in)

    def test_ctrl_c(self) -> None:
        source, _ = _build("sleep_for_ever")
        network = _guard(source)
        network.start()
        # a shell starts background jobs, and so perhaps this test run, with Ctrl-C ignored
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,)).start()
            with pytest.raises(KeyboardInterrupt):
                network.run(3)
        finally:
            signal.signal(signal.SIGINT, before)
        with pytest.raises(ConfigurationError, match="not running"):
            network.run(1)


# A whole Python of its own, which builds a network as the tests above do and tells its actors.
SCRIPT = """
import sys
sys.path[:0] = [{repository!r}, {here!r}]
import multiprocessing, time
import test_guard
network = test_guard._guard(test_guard._build({fault!r})[0], timeout=600)
network.start()
network.run(1)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
{then}
"""


@contextlib.contextmanager
def _python(fault: str, then: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    script = SCRIPT.format(repository=str(REPOSITORY), here=str(HERE), fault=fault, then=then)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as python:
        assert python.stdout is not None
        actors = [int(pid) for pid in python.stdout.readline().split()]
        try:
            assert len(actors) == 5  # four processes and Lava's runtime service
            yield python, actors
        finally:  # a test that fails must not leave them behind
            for pid in filter(_alive, [*actors, python.pid]):
                os.kill(pid, signal.SIGKILL)


class TestEndOfPython:
    @pytest.mark.parametrize(("then", "code"), [("", 0), ("raise SystemExit(7)", 7), ("1 / 0", 1)])
    def test_leaving_without_stop(self, then: str, code: int) -> None:
        with _python("none", then) as (python, actors):
            _, errors = python.communicate(timeout=10 * _slowness())
            assert python.returncode == code, errors
            assert not any(map(_alive, actors))
            assert "Exception ignored" not in errors

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
    def test_a_killed_parent_takes_its_actors_along(self, how: signal.Signals) -> None:
        with _python("loop_for_ever", "network.run(3)") as (python, actors):
            time.sleep(0.2)  # into the endless loop
            assert all(map(_alive, actors))
            python.send_signal(how)
            python.communicate(timeout=10 * _slowness())
            deadline = time.monotonic() + _at_once()
            while any(map(_alive, actors)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not any(map(_alive, actors))

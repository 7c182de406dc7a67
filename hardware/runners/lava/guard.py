"""Runs a Lava network so that whatever one of its processes does ends in an error naming it, and nothing stays behind.

Stands between the compiler (which builds the network of Lava processes) and the Lava runner (which feeds it samples).

Lava alone hangs in silence when a process model raises, dies, loops or waits for ever. Here Lava compiles the network
and builds its channels, but the operating system processes that run the models ("actors") are forked, watched and
ended by this file:

* Every actor has a file for its last words, without a name on disk: an exception, or its stack when asked by a signal.
* Every actor counts its finished time steps in shared memory; a count that stands still is what "no progress" means.
* The parent sleeps until an answer of Lava's, the end of an actor, or the time limit wakes it; it can watch several
  networks at once, each by its file descriptor.
* Channels lie in anonymous shared memory: no file in /dev/shm and no manager process that could outlive anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import linecache
import mmap
import multiprocessing
import multiprocessing.util
import os
import re
import selectors
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from hardware.runners.lava.compatibility import import_lava
from hardware.runners.lava.memory import settle_forked_process
from spikebert.errors import ConfigurationError, SpikeBertError

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from lava.magma.compiler.executable import Executable
    from lava.magma.core.process.process import AbstractProcess
    from lava.magma.core.run_configs import RunConfig

# All in seconds. How often the parent looks up while nothing wakes it:
LOOK_UP_EVERY = 0.1
# A healthy actor ends within milliseconds of Lava's stop command; many on few cores end one after the other.
STOP_TIMEOUT = 10.0
# A model that raises tells Lava first and its last words a moment later.
LAST_WORDS_TIMEOUT = 1.0
# For an actor to write its stack, or to be gone after SIGKILL; longer means it hangs in the kernel.
STACK_TIMEOUT = 2.0
KILL_TIMEOUT = 5.0

STACK_SIGNAL = signal.SIGUSR2
NOT_BUILT = -1  # an actor's count of finished steps before its model is built
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CHANNELS_FILE = "/lava/magma/compiler/channels/pypychannel.py"


class LavaRunError(SpikeBertError):
    """A Lava network failed; it is stopped and nothing of it is left.

    Attributes
    ----------
    process_name : str
        Name of the Lava process at fault, led by those of the processes it is part of (`block00/neuron`). In a
        deadlock the first of those that wait; empty where no process is to blame, as when compiling fails.
    process_class : str
        Name of its class; empty likewise.
    cause_traceback : str
        Traceback of the exception in the process, or its stack where it hung or died; for a deadlock the stacks of
        all that wait.
    from_outside : bool
        Whether the process was killed, which nothing that it computes can bring about; running it again may go well.
    """

    def __init__(
        self,
        message: str,
        *,
        process_name: str = "",
        process_class: str = "",
        cause_traceback: str = "",
        from_outside: bool = False,
    ) -> None:
        super().__init__(message)
        self.process_name = process_name
        self.process_class = process_class
        self.cause_traceback = cause_traceback
        self.from_outside = from_outside


class GuardedNetwork:
    """A network of Lava processes that runs, or fails with an error that says where and why.

    Used as a context manager it starts on entry and stops on exit. It can be run many times, keeping its state, and is
    used up once stopped or failed, as are its processes: Lava compiles a process only once.

    Leaving Python without `stop` ends it too, and so does the death of this process (on Linux, when started from the
    main thread: the kernel ties the actors to the thread that made them).

    Parameters
    ----------
    process : AbstractProcess
        Any process of the network; Lava finds the others by their connections.
    run_config : RunConfig
        Lava's choice of process models, such as `Loihi2SimCfg(select_tag="floating_pt")`.
    timeout : float, default 30
        Seconds without progress after which the network counts as stuck. Progress is any process finishing a time
        step, or a change of `progress()`.
    progress : callable, optional
        Returns a counter that changes while work goes on; needed only where longer than `timeout` may pass before any
        process finishes its time step.
    compile_config : mapping, optional
        Lava's compiler options, such as `{"pypy_channel_size": 2}`.
    probes : mapping of AbstractProcess to callable, optional
        Each is called once with the model of its process, where that runs and before its first step, to record what it
        computes.

    Examples
    --------
    >>> with GuardedNetwork(source, Loihi2SimCfg(select_tag="floating_pt")) as network:  # doctest: +SKIP
    ...     network.run(steps=4)
    ...     network.run(steps=4)  # goes on at time step 5
    """

    def __init__(
        self,
        process: AbstractProcess,
        run_config: RunConfig,
        *,
        timeout: float = 30.0,
        progress: Callable[[], int] | None = None,
        compile_config: Mapping[str, Any] | None = None,
        probes: Mapping[AbstractProcess, Callable[[Any], None]] | None = None,
    ) -> None:
        if not timeout > 0:
            raise ConfigurationError(f"timeout must be above 0 seconds, not {timeout}")
        if compile_config and compile_config.get("use_watchdog"):
            raise ConfigurationError("Lava's own watchdog only prints; leave use_watchdog out, the guard replaces it")
        self._process = process
        self._run_config = run_config
        self._timeout = timeout
        self._progress = progress
        self._compile_config = dict(compile_config or {})
        self._probes = dict(probes or {})
        self._actors: _Actors | None = None

    def __enter__(self) -> GuardedNetwork:
        """Start the network."""
        self.start()
        return self

    def __exit__(self, error_type: object, error: object, error_traceback: object) -> None:
        """Stop the network, or kill it where the body of the `with` statement failed."""
        if error_type is None:
            self.stop()
        else:
            self.kill()

    def start(self) -> None:
        """Compile the network, start its actors and wait until every process model is built.

        Compiling happens in this process and has no time limit.

        Raises
        ------
        LavaRunError
            Lava cannot compile the network, or a process model cannot be built.
        ConfigurationError
            This network was started before, or its processes run elsewhere.
        """
        if self._actors is not None or self._process.runtime is not None:
            raise ConfigurationError(f"the network of process {self._process.name!r} has been started already")
        import_lava()
        try:
            executable = self._process.compile(self._run_config, self._compile_config)
        except Exception as error:
            raise _compile_error(self._process, error) from error
        self._actors = _Actors(executable, self._timeout, self._progress, self._probes)
        # multiprocessing waits for all children when Python ends; its finalizers come before that, and also run when
        # this object is collected. They must not hold on to it, so they hold the actors.
        multiprocessing.util.Finalize(self, self._actors.destroy, exitpriority=10)
        self._actors.start()

    def run(self, steps: int) -> None:
        """Run the network for so many time steps, from where it stands.

        Raises
        ------
        LavaRunError
            A process failed, or nothing moved for `timeout` seconds. The network is gone then.
        ConfigurationError
            `steps` is below 1, or the network is not running.
        """
        self.begin(steps)
        self._running_actors().wait()

    def begin(self, steps: int) -> None:
        """Have the network run for so many time steps and return at once; `finished` tells when it is there.

        Raises
        ------
        LavaRunError, ConfigurationError
            As `run`.
        """
        if steps < 1:
            raise ConfigurationError(f"a Lava network runs for 1 step or more, not {steps}")
        self._running_actors().begin(steps)

    def finished(self) -> bool:
        """Look whether all steps that were begun are done; never waits.

        Ask again whenever `fileno` is readable, and at least every `LOOK_UP_EVERY` seconds, for the time limit to be
        kept.

        Raises
        ------
        LavaRunError
            A process failed, or nothing moved for `timeout` seconds. The network is gone then.
        """
        return self._running_actors().finished()

    def fileno(self) -> int:
        """Return a descriptor to wait on, as ``selectors`` do: readable when there is something to look at."""
        return self._running_actors().fileno()

    def process_ids(self) -> list[int]:
        """Return the ids of the operating system processes that run this network; none if it is not running."""
        return [] if self._actors is None else self._actors.process_ids()

    def kill(self) -> None:
        """End the network whatever it is doing, and wait until nothing of it is left."""
        if self._actors is not None:
            self._actors.destroy()

    def _running_actors(self) -> _Actors:
        if self._actors is None or self._actors.destroyed:
            raise ConfigurationError(f"the network of process {self._process.name!r} is not running")
        return self._actors

    def stop(self) -> None:
        """End the network and wait until nothing of it is left; does nothing if it is not running.

        Raises
        ------
        LavaRunError
            A process failed since the last run or would not stop. It is killed all the same.
        """
        if self._actors is not None:
            self._actors.stop()


# ---------------------------------------------------------------------------------------------------------------------
# The parent's side: actors are made, watched and ended.


@dataclass(eq=False)
class _Actor:
    """One operating system process: it runs the model of one Lava process, or one of Lava's runtime services."""

    process: AbstractProcess | None  # None for a service
    model_name: str
    slot: int
    os_process: ForkProcess
    last_words: IO[bytes]

    @property
    def name(self) -> str:
        return _full_name(self.process) if self.process is not None else self.model_name

    @property
    def class_name(self) -> str:
        return type(self.process).__name__ if self.process is not None else ""

    def __str__(self) -> str:
        if self.process is None:
            return f"Lava's {self.model_name}"
        return f"process {self.name!r} ({self.class_name}, model {self.model_name})"

    def read_last_words(self) -> str:
        file = self.last_words.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def failed_at(self) -> int:
        """Nanoseconds at which the last words were written: who failed first when several did."""
        return os.fstat(self.last_words.fileno()).st_mtime_ns


class _Actors:
    """All actors of one network, alive from `start` to `destroy`; every failure destroys them before it is raised."""

    def __init__(
        self,
        executable: Executable,
        timeout: float,
        progress: Callable[[], int] | None,
        probes: Mapping[AbstractProcess, Callable[[Any], None]],
    ) -> None:
        self.destroyed = False
        self._probes = probes
        self._executable = executable
        self._timeout = timeout
        self._progress = progress
        self._actors: list[_Actor] = []
        self._ended = 0
        self._stopping = False
        self._unanswered: list[Any] = []
        self._counter_before = (0, 0, 0)
        self._deadline = 0.0
        self._runtime: Any = None
        self._messaging = _Messaging()
        self._threaded_ports: list[Any] = []
        self._finished_steps = np.zeros(0, dtype=np.int64)
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)

    def start(self) -> None:
        with self._destroyed_on_error():
            try:
                self._build_channels()
                self._fork_actors()
                self._start_ports()
            except Exception as error:
                raise LavaRunError(
                    f"Lava could not start the network: {_one_line(error)}{_place_outside_lava(error)}",
                    cause_traceback=traceback.format_exc(),
                ) from error
            self._wait_until(lambda: bool((self._finished_steps > NOT_BUILT).all()))

    def begin(self, steps: int) -> None:
        from lava.magma.runtime.mgmt_token_enums import enum_to_np

        with self._destroyed_on_error():
            self._raise_if_actor_failed()
            for port in self._runtime.runtime_to_service:
                port.send(enum_to_np(steps))
            self._unanswered = list(self._runtime.service_to_runtime)
            self._start_clock()

    def finished(self) -> bool:
        with self._destroyed_on_error():
            self._look_up(0, self._answered)
            return self._answered()

    def wait(self) -> None:
        with self._destroyed_on_error():
            self._wait_until(self._answered)

    def _answered(self) -> bool:
        """Take the answers that have come to the last command; tell whether that were all."""
        from lava.magma.runtime.mgmt_token_enums import MGMT_RESPONSE, enum_equal

        while self._unanswered and self._unanswered[0].probe():
            answer = self._unanswered.pop(0).recv()
            if enum_equal(answer, MGMT_RESPONSE.ERROR):
                self._raise_failure()
            if not enum_equal(answer, MGMT_RESPONSE.DONE):
                raise LavaRunError(f"a process asked Lava to pause or stop the run (answer {int(answer[0])})")
        return not self._unanswered

    def fileno(self) -> int:
        selector: Any = self._selector
        return selector.fileno()  # epoll and kqueue have one

    def process_ids(self) -> list[int]:
        pids = (actor.os_process.pid for actor in self._actors)
        return [pid for pid in pids if pid is not None]

    def stop(self) -> None:
        from lava.magma.runtime.mgmt_token_enums import MGMT_COMMAND

        if self.destroyed:
            return
        with self._destroyed_on_error():
            self._stopping = True
            self._timeout = min(self._timeout, STOP_TIMEOUT)
            for port in self._runtime.runtime_to_service:
                port.send(MGMT_COMMAND.STOP)
            for port in self._runtime.service_to_runtime:
                port.recv()
            self._wait_until(lambda: self._ended == len(self._actors))
        self.destroy()

    def destroy(self) -> None:
        """Kill what lives and free everything; may be called again, also after it was itself interrupted."""
        if self.destroyed:
            return
        for actor in self._actors:
            if actor.os_process.pid is not None:
                actor.os_process.kill()
        survivors = []
        while self._actors:
            actor = self._actors.pop()
            actor.last_words.close()
            if actor.os_process.pid is None:
                continue
            actor.os_process.join(KILL_TIMEOUT)
            if actor.os_process.exitcode is None:
                survivors.append(str(actor))
            else:
                actor.os_process.close()
        self.destroyed = True
        for port in self._threaded_ports:
            port.observer = None
            port.join()
            port.thread.join(KILL_TIMEOUT)
        for process in self._executable.process_list:
            process.runtime = None
        if self._runtime is not None:
            self._runtime._is_started = False  # else Lava stops it again when it is collected
        self._selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._runtime = None
        self._threaded_ports.clear()
        self._messaging.free()
        if survivors:
            raise LavaRunError(f"could not be killed, so they hang in the kernel: {', '.join(survivors)}")

    @contextlib.contextmanager
    def _destroyed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # KeyboardInterrupt too
            self.destroy()
            raise

    # Starting: the steps of Lava's Runtime.initialize, with our own memory and processes.

    def _build_channels(self) -> None:
        from lava.magma.core.process.message_interface_enum import ActorType
        from lava.magma.runtime.runtime import Runtime

        self._runtime = Runtime(self._executable, ActorType.MultiProcessing)
        self._executable.assign_runtime_to_all_processes(self._runtime)
        self._runtime._build_watchdog_manager()
        self._runtime._messaging_infrastructure = self._messaging
        self._runtime.stop = self.stop  # so that Process.stop() is guarded as well
        self._runtime._build_channels()
        self._runtime._build_sync_channels()

    def _fork_actors(self) -> None:
        processes = self._executable.proc_builders
        services = list((self._executable.runtime_service_builders or {}).values())
        count = len(processes) + len(services)
        shared = mmap.mmap(-1, max(count, 1) * np.dtype(np.int64).itemsize)
        self._finished_steps = np.frombuffer(shared, dtype=np.int64, count=count)
        self._finished_steps[:] = NOT_BUILT
        for process, builder in processes.items():
            self._runtime._create_external_channels(process, builder)
            self._fork_actor(builder, process, builder.proc_model.__name__)
        for service in services:
            self._fork_actor(service, None, service.rs_class.__name__)

    def _fork_actor(self, builder: Any, process: AbstractProcess | None, model_name: str) -> None:
        last_words = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the actor
        # The kernel sends the death signal when the *thread* ends that forked, so any thread but the main one is out.
        tied_to = os.getpid() if threading.current_thread() is threading.main_thread() else None
        slot = len(self._actors)
        os_process = multiprocessing.get_context("fork").Process(
            target=_actor_main,
            args=(
                builder,
                None if process is None else self._probes.get(process),
                self._finished_steps[slot : slot + 1],
                last_words,
                self._wake_writer,
                tied_to,
            ),
            name=model_name if process is None else _full_name(process),
        )
        # Entered before it starts, so that an interrupt in between finds it.
        self._actors.append(_Actor(process, model_name, slot, os_process, last_words))
        os_process.start()
        self._selector.register(os_process.sentinel, selectors.EVENT_READ)

    def _start_ports(self) -> None:
        """Start the ports of this side, and make every wait for an answer a guarded one."""
        for process in self._executable.proc_builders:
            for port in [*process.in_ports.members, *process.out_ports.members]:
                for outside in ("external_pipe_csp_send_port", "external_pipe_csp_recv_port"):
                    if getattr(port, outside, None) is not None:
                        self._threaded_ports.append(getattr(port, outside))
        self._runtime._start_ports()
        self._threaded_ports += [*self._runtime.runtime_to_service, *self._runtime.service_to_runtime]
        for port in self._runtime.service_to_runtime:
            port.observer = self._wake
            port.recv = self._guarded(port.recv, port.probe)
        self._runtime._is_initialized = self._runtime._is_started = True  # so that Var.get() and Var.set() work

    def _wake(self) -> None:
        os.write(self._wake_writer, b".")

    def _guarded(self, receive: Callable[[], Any], probe: Callable[[], bool]) -> Callable[[], Any]:
        def guarded_receive() -> Any:
            with self._destroyed_on_error():
                self._wait_until(probe)
                return receive()

        return guarded_receive

    # Watching.

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Sleep until `done()`, unless an actor fails or nothing moves for the time limit."""
        self._start_clock()
        while not done():
            self._look_up(LOOK_UP_EVERY, done)

    def _start_clock(self) -> None:
        self._counter_before = self._count_progress()
        self._deadline = time.monotonic() + self._timeout

    def _look_up(self, seconds: float, done: Callable[[], bool]) -> None:
        """Wait so long for something to happen; raise what failed, or that the time limit passed without progress."""
        for key, _ in self._selector.select(seconds):
            if key.fd == self._wake_reader:
                os.read(self._wake_reader, mmap.PAGESIZE)
        self._raise_if_actor_failed()
        if self._count_progress() != self._counter_before:
            self._start_clock()
        elif time.monotonic() > self._deadline and not done():
            self._raise_stuck()

    def _count_progress(self) -> tuple[int, int, int]:
        return int(self._finished_steps.sum()), self._ended, self._progress() if self._progress else 0

    def _raise_if_actor_failed(self) -> None:
        ended = 0
        for actor in self._actors:
            exit_code = actor.os_process.exitcode
            if exit_code is None:
                continue
            if not self._stopping or exit_code != 0:
                self._raise_failure()
            ended += 1
            # An ended actor's sentinel stays readable: it would wake us for ever.
            with contextlib.suppress(KeyError):
                self._selector.unregister(actor.os_process.sentinel)
        self._ended = ended

    def _raise_failure(self) -> NoReturn:
        """Raise what the actor said that failed first; called when something failed, perhaps before it could say so."""
        deadline = time.monotonic() + LAST_WORDS_TIMEOUT
        while not any(actor.process is not None and actor.os_process.exitcode for actor in self._actors):
            # Only a service, or one that ended well, has ended yet; the process that caused it may be a moment behind.
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        failed = [actor for actor in self._actors if actor.os_process.exitcode]
        ended = [actor for actor in self._actors if actor.os_process.exitcode == 0]
        if not failed and not ended:
            raise LavaRunError("Lava reports an error, but no process failed")
        first, *others = sorted(failed or ended, key=lambda actor: (actor.process is None, actor.failed_at()))
        what, cause_traceback = _describe_end(first)
        also = f"; failed too: {', '.join(str(actor) for actor in others)}" if failed and others else ""
        raise LavaRunError(
            f"{first} {what}{also}",
            process_name=first.name,
            process_class=first.class_name,
            cause_traceback=cause_traceback,
            from_outside=first.os_process.exitcode in (-signal.SIGKILL, -signal.SIGTERM),
        )

    def _raise_stuck(self) -> NoReturn:
        """Find who is to blame for the standstill: whoever does anything but wait for a message."""
        living = [actor for actor in self._actors if actor.os_process.exitcode is None]
        self._ask_for_stacks(living)
        stacks = {actor: _parse_stack(actor.read_last_words()) for actor in living}
        busy = [actor for actor in living if not _waits_in_channel(stacks[actor])]
        waiting = [actor for actor in living if actor not in busy and _of_models(stacks[actor])]
        if busy:
            culprit, *others = sorted(busy, key=lambda actor: actor.process is None)
            where = _innermost(stacks[culprit]) if stacks[culprit] else "a place unknown: it does not answer signals"
            what = f"{culprit} is stuck at {where}"
            what += f"; stuck too: {', '.join(map(str, others))}" if others else ""
        elif waiting:
            culprit, what = self._describe_deadlock({actor: stacks[actor] for actor in waiting})
        else:
            raise LavaRunError(
                f"no progress for {self._timeout:g} s: no process is at work, Lava's own messages stopped"
            )
        raise LavaRunError(
            f"no progress for {self._timeout:g} s: {what}",
            process_name=culprit.name,
            process_class=culprit.class_name,
            cause_traceback="\n".join(f"{actor}\n{actor.read_last_words()}" for actor in busy or waiting),
        )

    def _describe_deadlock(self, stacks: dict[_Actor, list[_Frame]]) -> tuple[_Actor, str]:
        """Tell who waits for whom; whoever finished the step without its part of an exchange is to blame."""
        for actor, stack in stacks.items():
            partners = self._partners(actor, stack)
            # It is in a time step that all it waits for have finished: what it waits for never comes.
            if partners and all(
                self._finished_steps[partner.slot] > self._finished_steps[actor.slot] for partner in partners
            ):
                undone = "receiving" if _sends(stack) else "sending"
                return partners[0], (
                    f"{' or '.join(map(str, partners))} finished time step {self._finished_steps[actor.slot] + 1} "
                    f"without {undone} what {actor} waits for at {_innermost(stack)}"
                )
        return next(iter(stacks)), "deadlock, every process waits for another: " + "; ".join(
            f"{actor} waits for {', '.join(partner.name for partner in self._partners(actor, stack))} "
            f"at {_innermost(stack)}"
            for actor, stack in stacks.items()
        )

    def _partners(self, actor: _Actor, stack: list[_Frame]) -> list[_Actor]:
        """Actors at the other ends of the channels that a waiting one may be waiting for."""
        channels = [(channel.src_process, channel.dst_process) for channel in self._executable.channel_builders]
        if _sends(stack):
            wanted = [receiver for sender, receiver in channels if sender is actor.process]
        else:
            wanted = [sender for sender, receiver in channels if receiver is actor.process]
        return [other for other in self._actors if other.process is not None and other.process in wanted]

    def _ask_for_stacks(self, actors: list[_Actor]) -> None:
        for actor in actors:
            if actor.os_process.pid is not None:
                os.kill(actor.os_process.pid, STACK_SIGNAL)
        deadline = time.monotonic() + STACK_TIMEOUT
        lengths: list[int] = []
        while time.monotonic() < deadline:
            time.sleep(0.05)
            before, lengths = lengths, [len(actor.read_last_words()) for actor in actors]
            if all(lengths) and lengths == before:  # all have written, and none writes any more
                break


class _Messaging:
    """What Lava's Runtime asks of its messaging infrastructure."""

    def __init__(self) -> None:
        self.smm = self  # Lava's channels call create_shared_memory on this attribute
        self._memories: list[SimpleNamespace] = []

    def create_shared_memory(self, size: int) -> SimpleNamespace:
        """Memory that forked actors share with this process, gone with the last of them; has no name and no file."""
        self._memories.append(SimpleNamespace(buf=memoryview(mmap.mmap(-1, max(size, 1)))))
        return self._memories[-1]

    def free(self) -> None:
        """Let go of the memory now: Lava's ports hold it, and its processes the ports, for as long as Python runs."""
        for memory in self._memories:
            memory.buf = None
        self._memories.clear()

    def channel_class(self, channel_type: Any) -> type:
        from lava.magma.compiler.channels.interfaces import ChannelType
        from lava.magma.compiler.channels.pypychannel import PyPyChannel

        if channel_type is not ChannelType.PyPy:
            raise LavaRunError(f"only process models in Python can be run, this network has a {channel_type} channel")
        return PyPyChannel


def _full_name(process: Any) -> str:
    return process.name if process.parent_proc is None else f"{_full_name(process.parent_proc)}/{process.name}"


def _compile_error(process: AbstractProcess, error: Exception) -> LavaRunError:
    """Wrap what Lava's compiler raised, and give the process's name where Lava prints only its address."""
    from lava.magma.core.process.process import ProcessServer

    said = _one_line(error)
    shown = {known: (repr(known), f"{known.name}::{type(known).__name__}") for known in ProcessServer().processes}
    culprit = next((known for known, ways in shown.items() if any(way in said for way in ways)), None)
    about = "" if culprit is None else f" because of process {_full_name(culprit)!r} ({type(culprit).__name__})"
    return LavaRunError(
        f"Lava could not compile the network of process {process.name!r}{about}: {said}{_place_outside_lava(error)}",
        process_name="" if culprit is None else _full_name(culprit),
        process_class="" if culprit is None else type(culprit).__name__,
        cause_traceback=traceback.format_exc(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The actor's side: what runs in the forked child.


def _actor_main(
    builder: Any,
    probe: Callable[[Any], None] | None,
    finished_steps: np.ndarray,
    last_words: IO[bytes],
    wake_writer: int,
    tied_to: int | None,
) -> None:
    """Build the model (or Lava's service) and run it to Lava's stop command; leave word if that fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us in good order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if tied_to is not None:
        _die_with_parent(tied_to)
    faulthandler.enable(file=last_words, all_threads=False)
    faulthandler.register(STACK_SIGNAL, file=last_words, all_threads=False)
    settle_forked_process()
    model: Any = None
    try:
        model = builder.build()
        if probe is not None:
            probe(model)
        _count_steps(model, finished_steps)
        os.write(wake_writer, b".")
        model.start()
    except BaseException as error:  # SystemExit too: nothing but Lava's stop command may end a model
        report = {
            "raised": _one_line(error),
            "time_step": getattr(model, "time_step", None),
            "frames": _frames_of(error),
            "traceback": traceback.format_exc(),
        }
        last_words.write(json.dumps(report).encode())
        with contextlib.suppress(OSError, ValueError):  # what the model printed; its streams may be closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)  # a thread or exit handler of the model's must not hold the actor back


def _count_steps(model: Any, finished_steps: np.ndarray) -> None:
    """Show the parent that the model is built and, from then on, every time step it finishes."""
    finished_steps[0] = 0
    run_spk = getattr(model, "run_spk", None)
    if run_spk is None:
        return

    def counted_run_spk() -> None:
        run_spk()
        finished_steps[0] += 1

    model.run_spk = counted_run_spk


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent is gone, however that came about."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


# ---------------------------------------------------------------------------------------------------------------------
# Last words: told again for people.


class _Frame(NamedTuple):
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


def _describe_end(actor: _Actor) -> tuple[str, str]:
    """What happened to an actor that ended when it should not have, and the traceback that goes with it."""
    words = actor.read_last_words()
    if words.startswith("{"):
        report = json.loads(words)
        frames = [_Frame(*frame) for frame in report["frames"]]
        step = report["time_step"]
        when = "while its model was built" if step is None else f"in time step {step}"
        return f"raised {report['raised']} {when}, at {_innermost(frames)}", report["traceback"]
    exit_code = actor.os_process.exitcode or 0
    if exit_code >= 0:
        return f"ended with exit code {exit_code} before it was told to stop", words
    what = f"was killed by {signal.Signals(-exit_code).name}"
    if exit_code == -signal.SIGKILL:
        what += " (by a person, or by the kernel for want of memory)"
    elif words:
        what += f" at {_innermost(_parse_stack(words))}"
    return what, words


def _parse_stack(words: str) -> list[_Frame]:
    """Read faulthandler's output, innermost frame first, up to where the actor begins."""
    found = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', words, re.MULTILINE)
    frames = [_Frame(file, int(line), function) for file, line, function in found]
    functions = [frame.function for frame in frames]
    return frames[: functions.index(_actor_main.__name__)] if _actor_main.__name__ in functions else frames


def _frames_of(error: BaseException) -> list[_Frame]:
    """Read the frames of an exception, innermost first."""
    stack = traceback.extract_tb(error.__traceback__)
    return [_Frame(frame.filename, frame.lineno or 0, frame.name) for frame in reversed(stack)]


def _of_models(frames: Iterable[_Frame]) -> list[_Frame]:
    """The frames of process models and what they call, without those of Lava's machinery and ours."""
    ours = (_actor_main.__code__.co_filename, threading.__file__)
    return [frame for frame in frames if "/lava/magma/" not in frame.file and frame.file not in ours]


def _waits_in_channel(frames: list[_Frame]) -> bool:
    """Tell whether a stack is that of a wait in one of Lava's channels."""
    outer = [frame for frame in frames if frame.file != threading.__file__]
    return bool(outer) and outer[0].file.endswith(CHANNELS_FILE)


def _sends(frames: list[_Frame]) -> bool:
    """Tell whether a stack that waits in a channel does so to send, the channel being full, and not to receive."""
    return any(frame.function == "send" and frame.file.endswith(CHANNELS_FILE) for frame in frames)


def _innermost(frames: list[_Frame]) -> str:
    """Where a process is: its innermost frame with the line of code, and the two around it."""
    shown = (_of_models(frames) or frames)[:3]
    if not shown:
        return "an unknown place"
    code = linecache.getline(shown[0].file, shown[0].line).strip()
    return " < ".join([f"{shown[0]}: `{code}`", *map(str, shown[1:])])


def _place_outside_lava(error: BaseException) -> str:
    frames = _of_models(_frames_of(error))
    return f", at {_innermost(frames)}" if frames else ""


def _one_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())

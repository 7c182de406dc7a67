"""Lava processes that fail on purpose, and the healthy ones around them; alone here because Lava executes siblings."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

IN_DENSE = LavaPyType(PyInPort.VEC_DENSE, float)
OUT_DENSE = LavaPyType(PyOutPort.VEC_DENSE, float)


class Counter(AbstractProcess):
    """Sends its time step, in every element."""

    def __init__(self, *, shape: tuple[int, ...], **params: Any) -> None:
        super().__init__(shape=shape, **params)
        self.a_out = OutPort(shape)


@implements(Counter, LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyCounter(PyLoihiProcessModel):
    a_out = OUT_DENSE

    def run_spk(self) -> None:
        self.a_out.send(np.full(self.a_out._shape, self.time_step, dtype=float))


class RunningSum(AbstractProcess):
    """Sends the sum of all it ever received."""

    def __init__(self, *, shape: tuple[int, ...], **params: Any) -> None:
        super().__init__(shape=shape, **params)
        self.a_in = InPort(shape)
        self.a_out = OutPort(shape)
        self.total = Var(shape, init=0.0)


@implements(RunningSum, LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyRunningSum(PyLoihiProcessModel):
    a_in = IN_DENSE
    a_out = OUT_DENSE
    total: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self) -> None:
        self.total += self.a_in.recv()
        self.a_out.send(self.total)


class Recorder(AbstractProcess):
    """Writes what it receives into `record`, memory shared with the parent: row `time_step - 1`."""

    def __init__(self, *, shape: tuple[int, ...], record: np.ndarray, **params: Any) -> None:
        super().__init__(shape=shape, record=record, **params)
        self.a_in = InPort(shape)


@implements(Recorder, LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyRecorder(PyLoihiProcessModel):
    a_in = IN_DENSE

    def run_spk(self) -> None:
        self.proc_params["record"][self.time_step - 1] = self.a_in.recv()


class NoModel(AbstractProcess):
    """Has no process model, so that Lava cannot compile it."""


class Faulty(AbstractProcess):
    """Passes on what it receives; from time step `at_step` on it does what its model's method named `fault` does."""

    def __init__(self, *, shape: tuple[int, ...], fault: str, at_step: int = 2, **params: Any) -> None:
        super().__init__(shape=shape, fault=fault, at_step=at_step, **params)
        self.a_in = InPort(shape)
        self.a_out = OutPort(shape)


class UnpicklableError(Exception):
    """Neither it nor its arguments survive being sent to another process."""

    def __init__(self, reason: str, callback: Any) -> None:
        super().__init__(reason)
        self.callback = callback


@implements(Faulty, LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyFaulty(PyLoihiProcessModel):
    a_in = IN_DENSE
    a_out = OUT_DENSE

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        if proc_params["fault"].endswith("_in_init"):
            getattr(self, proc_params["fault"])()

    def run_spk(self) -> None:
        fault = self.proc_params["fault"]
        if self.time_step >= self.proc_params["at_step"] and hasattr(self, fault):
            getattr(self, fault)()
        else:
            self.a_out.send(self.a_in.recv())

    def join(self) -> None:
        if self.proc_params["fault"] == "hang_when_stopped":
            time.sleep(1e6)
        super().join()

    def raise_in_init(self) -> None:
        raise ValueError("no threshold given")

    def exit_in_init(self) -> None:
        os._exit(5)

    def hang_in_init(self) -> None:
        time.sleep(1e6)

    def raise_before_send(self) -> None:
        raise ValueError("membrane potential is not a number")

    def raise_after_send(self) -> None:
        self.a_out.send(self.a_in.recv())
        raise ValueError("threshold lost")

    def raise_unpicklable(self) -> None:
        raise UnpicklableError("cannot be sent", lambda: None)

    def raise_system_exit(self) -> None:
        sys.exit("given up")

    def send_wrong_shape(self) -> None:
        self.a_out.send(self.a_in.recv()[:-1])

    def expect_wrong_shape(self) -> None:
        self.a_out.send(self.a_in.recv() @ np.eye(7))

    def exit_with_3(self) -> None:
        os._exit(3)

    def exit_with_0(self) -> None:
        os._exit(0)

    def crash(self) -> None:
        ctypes.string_at(0)

    def loop_for_ever(self) -> None:
        while True:
            pass

    def sleep_for_ever(self) -> None:
        time.sleep(1e6)

    def forget_to_send(self) -> None:
        self.a_in.recv()

    def forget_to_receive(self) -> None:
        self.a_out.send(np.zeros(self.a_out._shape))

    def wait_for_own_lock(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    def sleep_a_while(self) -> None:
        time.sleep(1.5)
        self.a_out.send(self.a_in.recv())

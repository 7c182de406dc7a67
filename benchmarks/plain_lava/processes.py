"""One Lava process for each operator, as a user would first write it: ports, a Monitor on every neuron, Lava's runtime.

Alone in its folder, since Lava executes the siblings of a process's module.
"""

from __future__ import annotations

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


class TokenInput(AbstractProcess):
    """Sends the embedded sentence in every step."""

    def __init__(self, *, value: np.ndarray, name: str) -> None:
        super().__init__(name=name)
        self.value = Var(value.shape, init=value)
        self.out = OutPort(value.shape)


@implements(TokenInput, LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class TokenInputModel(PyLoihiProcessModel):
    """Sends."""

    value: np.ndarray = LavaPyType(np.ndarray, np.float32)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float32)

    def run_spk(self) -> None:
        """Send the value."""
        self.out.send(self.value)


class OperatorProcess(AbstractProcess):
    """Runs one operator; InPorts sum their connections, so that a residual needs no process."""

    def __init__(self, *, operator: Any, in_shape: tuple[int, int], out_shape: tuple[int, int], name: str) -> None:
        super().__init__(name=name, operator=operator, in_shape=in_shape)
        self.a_in = InPort(in_shape)
        self.out = OutPort(out_shape)
        self.shown = Var(out_shape, init=0)


@implements(OperatorProcess, LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class OperatorModel(PyLoihiProcessModel):
    """Receives, computes and sends."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float32)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float32)
    shown: np.ndarray = LavaPyType(np.ndarray, np.float32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.operator = proc_params["operator"]
        self.state = self.operator.initial_state(proc_params["in_shape"], np.float32)

    def run_spk(self) -> None:
        """Compute one step; keep it where a Monitor can read it."""
        value = self.operator.step(self.a_in.recv(), self.state, None)
        self.shown[:] = value
        self.out.send(value)

"""A Lava process that runs some nodes of a network: one operator, a block, or all of it.

It receives what other processes send, computes its nodes in the same time step (no latency), records spikes on the
board and sends on. One process, three granularities; only what is inside differs.
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
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from hardware.runners.execution import NodeExecution
from hardware.runners.lava.board import MAX_PORTS, Board, GroupPlan

UNUSED_SHAPE = (1,)


class NodeGroup(AbstractProcess):
    """Some nodes of a network as one process.

    Parameters
    ----------
    name : str
        Shown in errors and statistics.
    plan : GroupPlan
    board : Board
    """

    def __init__(self, *, name: str, plan: GroupPlan, board: Board) -> None:
        super().__init__(name=name, plan=plan, board=board)
        # Lava wants every port of the model on the process too; what is not needed stays unconnected.
        for index in range(MAX_PORTS):
            received, sent = plan.receives[index : index + 1], plan.sends[index : index + 1]
            setattr(self, f"in_{index}", InPort(received[0][1:] if received else UNUSED_SHAPE))
            setattr(self, f"out_{index}", OutPort(sent[0][1:] if sent else UNUSED_SHAPE))


class _NodeGroupModel(PyLoihiProcessModel):
    """What both precisions share; Lava wants ports declared on the class, so each declares MAX_PORTS."""

    dtype: type[np.floating]

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.plan: GroupPlan = proc_params["plan"]
        self.board: Board = proc_params["board"]
        self.execution = NodeExecution(self.plan.nodes, self.dtype, self._record)
        self.finished_steps = 0
        self.sample = self.step_of_sample = 0

    def run_spk(self) -> None:
        """Receive, compute and send one time step."""
        plan, board = self.plan, self.board
        self.sample, self.step_of_sample = board.position(self.finished_steps)
        if self.step_of_sample == 0:
            self.execution.reset()
        mask = board.mask[self.sample]
        token_mask = None if mask.all() else mask
        values = {name: getattr(self, f"in_{index}").recv() for index, (name, *_) in enumerate(plan.receives)}
        for name in plan.taps:
            board.spikes[name][self.sample, self.step_of_sample] = values[name]
        hot_inputs = None
        if plan.reads_input and board.input_ids is not None:
            hot_inputs = plan.token_encoding.hot_inputs(board.input_ids[self.sample])
        elif plan.reads_input and board.values is not None:
            values[plan.input_name] = board.values[self.sample, self.step_of_sample].astype(self.dtype)
        self.execution.step(values, token_mask, hot_inputs)
        if plan.output_source is not None:
            board.outputs[self.sample, self.step_of_sample] = values[plan.output_source]
        for index, (name, tokens, _) in enumerate(plan.sends):
            value = values[name]
            if token_mask is not None and tokens == len(mask):
                value = value * mask  # a stock neuron knows no mask: without current, padding stays silent
            getattr(self, f"out_{index}").send(value)
        self.finished_steps += 1

    def _record(self, name: str, spikes: np.ndarray, potential: np.ndarray) -> None:
        self.board.spikes[name][self.sample, self.step_of_sample] = spikes
        if name in self.board.membrane_potentials:
            self.board.membrane_potentials[name][self.sample, self.step_of_sample] = potential


@implements(proc=NodeGroup, protocol=LoihiProtocol)
@requires(CPU)
@tag("float64")
class NodeGroupFloat64(_NodeGroupModel):
    """The model in float64."""

    dtype = np.float64
    in_0: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float64)
    in_1: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float64)
    in_2: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float64)
    in_3: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float64)
    out_0: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float64)
    out_1: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float64)
    out_2: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float64)
    out_3: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float64)


@implements(proc=NodeGroup, protocol=LoihiProtocol)
@requires(CPU)
@tag("float32")
class NodeGroupFloat32(_NodeGroupModel):
    """The model in float32."""

    dtype = np.float32
    in_0: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float32)
    in_1: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float32)
    in_2: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float32)
    in_3: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.float32)
    out_0: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float32)
    out_1: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float32)
    out_2: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float32)
    out_3: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.float32)

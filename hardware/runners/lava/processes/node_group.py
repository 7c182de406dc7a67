"""A Lava process that runs some nodes of a network: one operator, a block, or all of it.

It receives what other processes send, computes its nodes in the same time step, records spikes in shared memory and
sends on: at once, or with hardware timing as many steps later as synapses take. One process, three granularities; only
what is inside differs.
"""

from __future__ import annotations

from collections import deque
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

from export.execution import NodeExecution
from hardware.runners.lava.group_plan import MAX_PORTS, GroupPlan, Received, Sent
from hardware.runners.lava.shared_arrays import SharedArrays

UNUSED_SHAPE = (1,)


class NodeGroup(AbstractProcess):
    """Some nodes of a network as one process.

    Parameters
    ----------
    name : str
        Shown in errors and statistics.
    plan : GroupPlan
    shared : SharedArrays
    """

    def __init__(self, *, name: str, plan: GroupPlan, shared: SharedArrays) -> None:
        super().__init__(name=name, plan=plan, shared=shared)
        # Lava wants every port of the model on the process too; what is not needed stays unconnected.
        for index in range(MAX_PORTS):
            for prefix, port, values in (("in", InPort, plan.receives), ("out", OutPort, plan.sends)):
                shape = (values[index].tokens, values[index].features) if index < len(values) else UNUSED_SHAPE
                setattr(self, f"{prefix}_{index}", port(shape))


class _NodeGroupModel(PyLoihiProcessModel):
    """What all precisions share; Lava wants ports declared on the class, so each declares MAX_PORTS."""

    dtype: type[np.number]

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.plan: GroupPlan = proc_params["plan"]
        self.shared: SharedArrays = proc_params["shared"]
        needed = {sent.node for sent in self.plan.sends} | {self.plan.output_source or ""}
        self.execution = NodeExecution(self.plan.nodes, self.dtype, self._record, needed, self.plan.pooled)
        self.finished_steps = 0
        self.place = (0, 0)
        self._delayed = [_DelayLine(received, received.delay, self.dtype) for received in self.plan.receives]
        self._late = [_DelayLine(sent, sent.latency, self.dtype) for sent in self.plan.sends]

    def run_spk(self) -> None:
        """Receive, compute and send one time step."""
        plan = self.plan
        values = {
            received.node: delayed.pass_on(getattr(self, f"in_{index}").recv())
            for index, (received, delayed) in enumerate(zip(plan.receives, self._delayed, strict=True))
        }
        place = self.shared.position(self.finished_steps - plan.starts_at)
        if place is not None:
            self.place = place
            self._compute(values)
        for index, (sent, late) in enumerate(zip(plan.sends, self._late, strict=True)):
            value = np.zeros((sent.tokens, sent.features), self.dtype) if place is None else values[sent.node]
            getattr(self, f"out_{index}").send(late.pass_on(value))
        self.finished_steps += 1

    def _compute(self, values: dict[str, np.ndarray]) -> None:
        """Add the output of every node of the group to `values`, which holds what was received."""
        plan, shared, (sample, step) = self.plan, self.shared, self.place
        if step == 0:
            self.execution.reset()
        for received in plan.receives:
            if received.bias is not None:
                values[received.node] = values[received.node] + received.bias
        mask = shared.mask[sample]
        hot_inputs = None
        if plan.reads_input and shared.input_ids is not None:
            assert plan.token_encoding is not None
            hot_inputs = plan.token_encoding.hot_inputs(shared.input_ids[sample])
        elif plan.reads_input and shared.values is not None:
            values[plan.input_name] = shared.values[sample, step].astype(self.dtype)
        self.execution.step(values, None if mask.all() else mask, hot_inputs)
        for name, state in self.execution.states.items():
            if name in shared.overflows:  # counted since the sample's first step, when states are made anew
                shared.overflows[name][sample] = state.wrapped_currents, state.saturated_potentials
        if plan.output_source is not None:
            shared.outputs[sample, step] = values[plan.output_source]

    def _record(self, name: str, spikes: np.ndarray, potential: np.ndarray) -> None:
        self.shared.spikes[name][self.place] = spikes
        if name in self.shared.membrane_potentials:
            self.shared.membrane_potentials[name][self.place] = potential


class _DelayLine:
    """Gives back, step by step, what came in `steps` steps before; zeros at first."""

    def __init__(self, value: Received | Sent, steps: int, dtype: type[np.number]) -> None:
        self._waiting = deque(np.zeros((value.tokens, value.features), dtype) for _ in range(steps))

    def pass_on(self, value: np.ndarray) -> np.ndarray:
        if not self._waiting:
            return value
        self._waiting.append(value)
        return self._waiting.popleft()


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


@implements(proc=NodeGroup, protocol=LoihiProtocol)
@requires(CPU)
@tag("integer")
class NodeGroupInteger(_NodeGroupModel):
    """The model in whole numbers; no operator's result leaves int64."""

    dtype = np.int64
    in_0: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int64)
    in_1: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int64)
    in_2: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int64)
    in_3: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int64)
    out_0: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int64)
    out_1: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int64)
    out_2: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int64)
    out_3: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int64)

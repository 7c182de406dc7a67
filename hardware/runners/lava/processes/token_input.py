"""Where a sentence enters a network of stock processes: its token ids, as the multi-hot spikes that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from export.token_encoding import TokenEncoding
from hardware.runners.lava.shared_arrays import SharedArrays


class TokenInput(AbstractProcess):
    """What lies outside the chip: it computes nothing, and sends a spike for each word and position at every step.

    Parameters
    ----------
    name : str
    encoding : TokenEncoding
    shared : SharedArrays
        Its ids are sent, those of padding too.
    """

    def __init__(self, *, name: str, encoding: TokenEncoding, shared: SharedArrays) -> None:
        super().__init__(name=name, encoding=encoding, shared=shared)
        self.s_out = OutPort((shared.mask.shape[1], encoding.width))


@implements(proc=TokenInput, protocol=LoihiProtocol)
@requires(CPU)
@tag("integer")
class TokenInputModel(PyLoihiProcessModel):
    """The model; spikes are bytes, of which an embedding needs many."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int8)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.encoding: TokenEncoding = proc_params["encoding"]
        self.shared: SharedArrays = proc_params["shared"]
        self.finished_steps = 0

    def run_spk(self) -> None:
        """Send one time step."""
        shared = self.shared
        place = shared.position(self.finished_steps)
        spikes = np.zeros((shared.mask.shape[1], self.encoding.width), np.int8)
        if place is not None:
            assert shared.input_ids is not None
            for hot in self.encoding.hot_inputs(shared.input_ids[place[0]]):
                spikes[np.arange(len(spikes)), hot] = 1
        self.s_out.send(spikes)
        self.finished_steps += 1

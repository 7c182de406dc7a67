"""Stock Dense with a column for each token.

A graph has a copy of every neuron for each token, and synapses that are the same for all. A plain ``Dense`` would hold
the whole matrix once for each pair of tokens. Here ports and buffer are that much wider, and everything that is
computed is stock: the model is Lava's own, inherited without a line of change, and its ``weights.dot(s_in)`` takes a
matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.dense.models import AbstractPyDenseModelBitAcc
from lava.proc.dense.process import Dense


class TokenDense(Dense):
    """Synapses of all tokens of a sentence.

    Parameters
    ----------
    weights : ndarray
        ``(out_features, in_features)``.
    tokens : int
    options
        Of ``Dense``; ``num_message_bits`` above 0, since its way with binary spikes takes one column only.
    """

    def __init__(self, *, weights: np.ndarray, tokens: int, **options: Any) -> None:
        super().__init__(weights=weights, **options)
        out_features, in_features = weights.shape
        self.s_in = InPort((in_features, tokens))
        self.a_out = OutPort((out_features, tokens))
        self.a_buff = Var((out_features, tokens), init=0)


@implements(proc=TokenDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class TokenDenseModel(AbstractPyDenseModelBitAcc):
    """Lava's own, which ``PyDenseModelBitAcc`` inherits likewise; Lava lets a model implement one process only."""

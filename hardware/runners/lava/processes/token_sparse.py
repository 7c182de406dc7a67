"""Stock Sparse with a column for each token, as `TokenDense` is stock Dense with one.

Only synapses that are there are multiplied, which suits what delays (one synapse each) and, for its size, an embedding.
"""

from __future__ import annotations

from typing import Any

from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.sparse.models import AbstractPySparseModelBitAcc
from lava.proc.sparse.process import Sparse


class TokenSparse(Sparse):
    """Synapses of all tokens of a sentence.

    Parameters
    ----------
    weights : ndarray or scipy.sparse.spmatrix
        ``(out_features, in_features)``.
    tokens : int
    options
        Of ``Sparse``; ``num_message_bits`` above 0, since its way with binary spikes takes one column only.
    """

    def __init__(self, *, weights: Any, tokens: int, **options: Any) -> None:
        super().__init__(weights=weights, **options)
        out_features, in_features = weights.shape
        self.s_in = InPort((in_features, tokens))
        self.a_out = OutPort((out_features, tokens))
        self.a_buff = Var((out_features, tokens), init=0)


@implements(proc=TokenSparse, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class TokenSparseModel(AbstractPySparseModelBitAcc):
    """Lava's own, which ``PySparseModelBitAcc`` inherits likewise; Lava lets a model implement one process only."""

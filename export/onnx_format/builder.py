"""Writes an ONNX graph piece by piece: values, weights and constants under names that cannot collide.

The value a node of the network computes has the node's name; what lies inside a node has ``NODE/name``, which no node
can be called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper

TOKEN_MASK = "/token_mask"
"""Value ``(B, N, 1)`` in the type of activations, 1 at tokens and 0 at padding."""
OPSET = 18
"""First version with everything used here: ``ReduceMean`` takes its axes as an input, ``Split`` counts its outputs."""
_LIFT = 1 << 62


class OnnxBuilder:
    """Nodes and weights of an ONNX graph, in the order in which they are added.

    Parameters
    ----------
    dtype : dtype
        Type that activations are computed in.
    membrane_potentials : bool
        Whether neurons also keep their potential at every step, as it was tested against the threshold.

    Attributes
    ----------
    bounds : dict of str to int
        Values that are known to be whole numbers from 0 up to so much: spikes, and sums of spikes.
    """

    def __init__(self, dtype: DTypeLike, membrane_potentials: bool = False) -> None:
        self.dtype = np.dtype(dtype)
        self.element_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.membrane_potentials = membrane_potentials
        self.bounds: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, tuple[Any, np.dtype]] = {}  # converted only when stored, one at a time

    def subgraph(self) -> OnnxBuilder:
        """Return a builder for the body of a node; its weights and constants are this graph's."""
        inner = OnnxBuilder(self.dtype, self.membrane_potentials)
        inner.weights = self.weights
        return inner

    def add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def add_node(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs; return their names."""
        self.nodes.append(helper.make_node(op_type, list(inputs), list(outputs), name=outputs[0], **attributes))
        return list(outputs)

    def weight(self, name: str, value: Any, dtype: DTypeLike | None = None) -> str:
        """Note an array, in the type of activations or in `dtype`, to be stored once under `name`; return the name."""
        self.weights.setdefault(name, (value, self.dtype if dtype is None else np.dtype(dtype)))
        return name

    def store_weights(self, graph: onnx.GraphProto) -> None:
        """Copy the weights into a graph, one by one: the protobuf message is the only copy."""
        for name, (value, dtype) in self.weights.items():
            array = np.asarray(value, dtype)
            element_type = helper.np_dtype_to_tensor_dtype(dtype)
            graph.initializer.add(name=name, dims=array.shape, data_type=element_type, raw_data=array.tobytes())

    def axes(self, *values: int) -> str:
        """Return whole numbers (axes, or a shape) as a constant, shared by all who need the same."""
        return self.weight(f"/integers_{'_'.join(map(str, values))}", np.array(values, np.int64), np.int64)

    def shape(self, *lengths: int) -> str:
        """Return a shape for ``Reshape``: 0 keeps an axis, -1 takes what is left."""
        return self.axes(*lengths)

    def scalar(self, value: int) -> str:
        """Return a whole number as a constant without axes."""
        return self.weight(f"/integer_{value}", np.array(value, np.int64), np.int64)

    def shift_right(self, value: str, bits: int, output: str) -> str:
        """Return ``floor(value / 2^bits)`` of int64 whose magnitude lies below 2^62.

        ``BitShift`` takes unsigned numbers only, so the value is lifted above 0 by a multiple of 2^bits and back.
        """
        lifted = self.add("Add", [value, self.scalar(_LIFT)], f"{output}/lifted")
        unsigned = self.add("Cast", [lifted], f"{output}/unsigned", to=TensorProto.UINT64)
        count = self.weight(f"/shift_{bits}", np.array(bits, np.uint64), np.uint64)
        shifted = self.add("BitShift", [unsigned, count], f"{output}/shifted", direction="RIGHT")
        signed = self.add("Cast", [shifted], f"{output}/signed", to=TensorProto.INT64)
        return self.add("Sub", [signed, self.scalar(_LIFT >> bits)], output)

    def round_shift(self, value: str, bits: int, output: str) -> str:
        """Return ``floor(value / 2^bits + 1/2)`` of such numbers."""
        halved = self.add("Add", [value, self.scalar(1 << (bits - 1))], f"{output}/half_up")
        return self.shift_right(halved, bits, output)

    def cast(self, value: str, output: str) -> str:
        """Convert to the type of activations."""
        return self.add("Cast", [value], output, to=self.element_type)

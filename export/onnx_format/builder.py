"""Writes an ONNX graph piece by piece: values, weights and constants under names that cannot collide.

The value a node of the network computes has the node's name; what lies inside a node has ``NODE/name``, which no node
can be called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper

TOKEN_MASK = "/token_mask"
"""Value ``(B, N, 1)`` in the type of activations, 1 at tokens and 0 at padding."""
OPSET = 18
"""First version with everything used here: ``ReduceMean`` takes its axes as an input, ``Split`` counts its outputs."""
PIECE_BYTES = 1 << 23
"""A weight is converted and written in pieces of so much."""
_LIFT = 1 << 62


@dataclass(frozen=True, eq=False)
class Weight:
    """An array on its way into a file; it stays where the graph has it until it is written.

    Attributes
    ----------
    name : str
    value : array
    dtype : dtype
        What it is converted to.
    """

    name: str
    value: np.ndarray
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.value.size * self.dtype.itemsize

    def head(self) -> TensorProto:
        """Return a new tensor without its content."""
        element_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        return TensorProto(name=self.name, dims=self.value.shape, data_type=element_type)

    def pieces(self) -> Iterator[bytes]:
        """Yield the content, which is little-endian, row by row."""
        stored = self.dtype.newbyteorder("<")
        if not self.value.ndim or not self.value.size:
            yield self.value.astype(stored).tobytes()
            return
        rows = max(1, PIECE_BYTES * len(self.value) // self.nbytes)
        for start in range(0, len(self.value), rows):
            yield self.value[start : start + rows].astype(stored).tobytes()


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
    local : mapping of str to str
        What values are called here in place of their names; in the body of a node only.
    """

    def __init__(self, dtype: DTypeLike, membrane_potentials: bool = False) -> None:
        self.dtype = np.dtype(dtype)
        self.element_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.membrane_potentials = membrane_potentials
        self.bounds: dict[str, int] = {}
        self.local: Mapping[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Weight] = {}

    def subgraph(self, local: Mapping[str, str]) -> OnnxBuilder:
        """Return a builder for the body of a node; weights, constants and bounds are this graph's."""
        inner = OnnxBuilder(self.dtype, self.membrane_potentials)
        inner.weights, inner.bounds, inner.local = self.weights, self.bounds, local
        return inner

    def called(self, name: str) -> str:
        """Return what a value is called here."""
        return self.local.get(name, name)

    def add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        self.add_node(op_type, inputs, [output], **attributes)
        return output

    def add_node(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs; return their names."""
        read, written = ([self.called(name) for name in names] for names in (inputs, outputs))
        self.nodes.append(helper.make_node(op_type, read, written, name=written[0], **attributes))
        return list(outputs)

    def weight(self, name: str, value: Any, dtype: DTypeLike | None = None) -> str:
        """Note an array, in the type of activations or in `dtype`, to be stored once under `name`; return the name."""
        self.weights.setdefault(name, Weight(name, np.asarray(value), np.dtype(self.dtype if dtype is None else dtype)))
        return name

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


POTENTIAL = "{}.membrane_potential"
"""Name of the value that holds a neuron's potential as it was tested against the threshold."""


@dataclass(frozen=True)
class State:
    """What is carried from one step to the next: ``(depth, B, N, features)``, zeros before the first step.

    Attributes
    ----------
    before, after : str
        Values at the beginning and at the end of a step.
    features, depth : int
    """

    before: str
    after: str
    features: int
    depth: int = 1

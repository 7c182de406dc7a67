"""Affine and linear maps: the synapses. Standard NIR nodes ``Affine`` and ``Linear``, in integers with int8 arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.loihi_numbers import WEIGHT_LIMITS
from export.operators.interval import Interval, affine_interval
from export.operators.operator import FLOAT64_EXACT, Array, Case, Operator, Traits
from export.operators.reading import (
    StepSeconds,
    check_standard_marks,
    integer_parameter,
    parameter,
    reads,
    unit_parameter,
)

INT64_MAX = (1 << 63) - 1
WEIGHT_TYPES = {"mixed": np.int8, "excitatory": np.uint8, "inhibitory": np.int16}
"""The narrowest type that holds the weights of a sign mode."""


@dataclass(frozen=True, eq=False)
class Affine(Operator):
    """``y = x W^T + b`` on each token by itself; without bias, ``y = x W^T``.

    Parameters
    ----------
    weight : ndarray
        ``(out_features, in_features)``.
    bias : ndarray or None
        ``(out_features,)``.

    References
    ----------
    NIR's ``Affine`` and ``Linear``.
    """

    name: ClassVar[str] = "affine"
    traits: ClassVar[Traits] = Traits(
        integer=False,
        spike_range=None,
        sources=1,
        edges=None,
        keeps_shape=False,
        mixes_tokens=False,
        pools_tokens=None,
        reads_sentences=True,
        reads_tokens=True,
        remembers=False,
        passes_values=False,
        is_synaptic=True,
        needs_program=False,
        latency=1,
    )

    weight: Array
    bias: Array | None = None

    @property
    def in_features(self) -> int:
        """Fan-in."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Fan-out."""
        return self.weight.shape[0]

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `affine`."""
        return affine(x, self.weight, self.bias)

    def gather(self, columns: Array) -> Array:
        """Return the output for multi-hot inputs given as the indices that are hot.

        Parameters
        ----------
        columns : ndarray
            ``(K, ..., N)``: K hot inputs for each token; their columns of the weight are summed in order.
        """
        rows = self.weight.T
        y = rows[columns[0]]
        for hot in columns[1:]:
            y = y + rows[hot]
        return y if self.bias is None else y + self.bias

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        """Return the interval of ``W x + b``."""
        return None if read[0] is None else affine_interval(self.weight, self.bias, read[0])

    def gathered_interval(self, tables: Iterable[slice]) -> Interval:
        """Return the interval where one input of each table is hot, and no other."""
        parts = [self.weight[:, columns] for columns in tables]
        offset = 0.0 if self.bias is None else self.bias.astype(np.float64)
        return Interval(
            sum(part.min(1).astype(np.float64) for part in parts) + offset,
            sum(part.max(1).astype(np.float64) for part in parts) + offset,
        )

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Affine``, or ``nir.Linear`` without bias."""
        weight = np.asarray(self.weight, dtype)
        return nir.Linear(weight) if self.bias is None else nir.Affine(weight, np.asarray(self.bias, dtype))


def affine(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x W^T + b`` for ``x`` ``(..., in_features)``."""
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerAffine(Affine):
    """``y = x W^T + b`` in whole numbers, which never wrap here: only a neuron's current does.

    Parameters
    ----------
    weight : ndarray
        ``(out_features, in_features)``, as narrow as its sign mode allows (int8 with mixed signs).
    bias : ndarray or None
        ``(out_features,)`` int64, in units of `y`. Where a neuron follows directly, its own bias holds it instead.
    unit : ndarray
        ``(out_features,)`` float64: what a 1 of `y` stands for in the float graph.

    References
    ----------
    ``lava.proc.dense.models.PyDenseModelBitAcc`` with weights ``2 w`` and ``weight_exp = -1``; see
    ``export.loihi_numbers.WEIGHT_LIMITS``.
    """

    name: ClassVar[str] = "integer_affine"
    traits: ClassVar[Traits] = replace(Affine.traits, integer=True)

    unit: Array

    @property
    def sign_mode(self) -> str:
        """``"mixed"``, ``"excitatory"`` or ``"inhibitory"``, as stock Lava determines it."""
        return sign_mode(self.weight)

    def step(self, x: Array, state: Any, token_mask: Array | None) -> Array:
        """See `integer_affine`."""
        return integer_affine(x, self.weight, self.bias)

    def gather(self, columns: Array) -> Array:
        """Return what `Affine.gather` does, in int64."""
        return Affine.gather(self, columns).astype(np.int64)

    def cast(self, dtype: DTypeLike) -> IntegerAffine:
        """Return the operator with its weights in float64, in which `integer_affine` multiplies exactly and fast."""
        return replace(self, weight=np.ascontiguousarray(self.weight, np.float64))

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        """Return ``nir.Affine`` or ``nir.Linear`` with integer arrays; `dtype` is not used."""
        metadata = {
            "op": self.name,
            "op_version": self.version,
            "standard": True,
            "unit": np.asarray(self.unit, np.float64),
            "sign_mode": self.sign_mode,
            "formula": "y = W x + b in whole numbers without wrap-around; y * unit is the float value",
        }
        weight = narrow_weight(self.weight)
        if self.bias is None:
            return nir.Linear(weight, metadata=metadata)
        return nir.Affine(weight, np.asarray(self.bias, np.int64), metadata=metadata)


def integer_affine(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x W^T + b`` as int64 for whole numbers ``x`` ``(..., in_features)``.

    It is computed in float64 where no sum can leave the whole numbers that float64 holds, which is the same to the bit.
    """
    largest = int(np.abs(x).max(initial=0)) * int(np.abs(weight, dtype=np.float64).max(initial=0)) * weight.shape[1]
    kind = np.float64 if largest < FLOAT64_EXACT else np.int64
    y = (x.astype(kind) @ weight.T.astype(kind)).astype(np.int64)
    return y if bias is None else y + bias


def sign_mode(weight: Array) -> str:
    """Return the sign mode of a weight matrix, as ``lava.utils.weightutils.determine_sign_mode`` does."""
    if weight.min(initial=0) >= 0:
        return "excitatory"
    return "inhibitory" if weight.max(initial=0) <= 0 else "mixed"


def narrow_weight(weight: Array) -> Array:
    """Return whole-number weights in the narrowest type of their sign mode."""
    return np.ascontiguousarray(weight, WEIGHT_TYPES[sign_mode(weight)])


@reads(Affine, nir.Affine)
def read_affine(node: nir.Affine, where: str, dt: StepSeconds) -> Affine:
    """Check and read ``nir.Affine``."""
    if is_marked_integer(node):
        weight, unit = read_integer_weight(node, where, IntegerAffine)
        return IntegerAffine(weight=weight, bias=read_integer_bias(node, where), unit=unit)
    weight = parameter(node.weight, (None, None), where, "weight")
    return Affine(weight, parameter(node.bias, (weight.shape[0],), where, "bias"))


@reads(Affine, nir.Linear)
def read_linear(node: nir.Linear, where: str, dt: StepSeconds) -> Affine:
    """Check and read ``nir.Linear``."""
    if is_marked_integer(node):
        weight, unit = read_integer_weight(node, where, IntegerAffine)
        return IntegerAffine(weight=weight, unit=unit)
    return Affine(parameter(node.weight, (None, None), where, "weight"))


def is_marked_integer(node: nir.NIRNode, operator: type[Operator] = IntegerAffine) -> bool:
    """Return whether a standard node's metadata say that it means `operator`, an integer one."""
    metadata = node.metadata if isinstance(node.metadata, dict) else {}
    return metadata.get("op") in (operator.name, operator.name.encode())


def read_integer_weight(node: nir.NIRNode, where: str, operator: type[Operator]) -> tuple[Array, Array]:
    """Check and read a marked node's whole weights, of any number of axes, and the unit of each row."""
    check_standard_marks(node.metadata, operator, where)
    signs = sign_mode(np.asarray(node.weight))
    low, high = WEIGHT_LIMITS[signs]
    remedy = f"a synapse holds no other weight where the signs of its matrix are {signs}; quantize with a larger scale"
    weight = integer_parameter(node.weight, (None,) * np.ndim(node.weight), where, "weight", low, high, remedy)
    if weight.ndim < 2:
        raise GraphError(f"{where}: weight has shape {weight.shape}; expected two axes or more")
    return narrow_weight(weight), unit_parameter(node.metadata, weight.shape[0], where)


def read_integer_bias(node: nir.NIRNode, where: str) -> Array:
    """Check and read a marked node's whole biases, one for each row of its weight."""
    limit = INT64_MAX >> 8
    rows = np.shape(node.weight)[:1]
    return integer_parameter(node.bias, rows, where, "bias", -limit, limit, "a sum must fit 64 bits")


def cases() -> list[Case]:
    """Return examples with and without bias, on spikes and on graded values."""
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(5, 7)), rng.normal(size=5)
    spikes = (rng.random((3, 2, 4, 7)) < 0.3).astype(float)
    return [
        Case("affine on spikes", Affine(weight, bias), spikes),
        Case("affine on graded integers", Affine(weight, bias), rng.integers(0, 5, (3, 2, 4, 7)).astype(float)),
        Case("linear without bias", Affine(weight), spikes),
        Case("affine that widens one feature", Affine(rng.normal(size=(9, 1)), rng.normal(size=9)), spikes[..., :1]),
    ]


def integer_cases() -> list[Case]:
    """Return weights and inputs at their limits, with and without bias, and matrices of one sign."""
    rng = np.random.default_rng(6)
    weight = rng.integers(-128, 128, (5, 7)).astype(np.int8)
    weight[0] = (-128, 127, -128, 127, -128, 127, -128)
    unit = np.full(5, 0.5)
    bias = rng.integers(-(1 << 20), 1 << 20, 5)
    spikes = (rng.random((3, 2, 4, 7)) < 0.3).astype(np.int64)
    graded = rng.integers(-(1 << 23), 1 << 23, (3, 2, 4, 7))
    ones = np.ones_like(spikes)
    return [
        Case("integer affine on spikes", IntegerAffine(weight=weight, bias=bias, unit=unit), spikes),
        Case("integer affine on graded integers", IntegerAffine(weight=weight, unit=unit), graded),
        Case("excitatory weights", IntegerAffine(weight=np.full((5, 7), 255, np.uint8), unit=unit), ones),
        Case("inhibitory weights", IntegerAffine(weight=np.full((5, 7), -255, np.int16), unit=unit), ones),
        Case("sums beyond float64", IntegerAffine(weight=weight, unit=unit), graded << 28),
    ]

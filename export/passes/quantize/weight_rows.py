"""Weights as rows: what leads to one feature of an affine map, or to all places of a convolution's channel.

The search for a scale (``weights``) knows weights as such rows alone; an operator whose weights are searched names its
kind of rows in its row of the table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from export.network import Node
from export.operators import Affine, Convolution, IntegerAffine, IntegerConvolution, Operator
from export.operators.affine import narrow_weight


@dataclass(frozen=True, eq=False)
class WeightRows(ABC):
    """A node's weights as rows, each of which leads to one number, or to all places of a channel.

    Attributes
    ----------
    node : Node
    rows : ndarray
        ``(channels, weights of a row)`` float64.
    bias : ndarray or None
        ``(channels,)`` float64.
    """

    node: Node
    rows: np.ndarray
    bias: np.ndarray | None

    @classmethod
    def of(cls, node: Node) -> WeightRows:
        """Return the rows of an operator whose ``weight`` has one for each channel it sends."""
        operator: Any = node.operator
        bias = None if operator.bias is None else operator.bias.astype(np.float64)
        return cls(node, operator.weight.reshape(len(operator.weight), -1).astype(np.float64), bias)

    @property
    def places(self) -> int:
        """How many numbers a row leads to."""
        return self.node.operator.out_features // len(self.rows)

    @abstractmethod
    def meeting(self, by_channel: np.ndarray) -> np.ndarray:
        """Return what is said of each channel of the input for the weights that meet it, ``(1 or rows, weights)``."""

    @abstractmethod
    def drafted(self, rows: np.ndarray, bias: np.ndarray | None) -> Operator:
        """Return the float operator with other numbers."""

    @abstractmethod
    def quantized(self, rows: np.ndarray, bias: np.ndarray | None, unit: np.ndarray) -> Operator:
        """Return the operator in whole numbers, of a unit for each row."""


class AffineRows(WeightRows):
    """The rows of a matrix."""

    def meeting(self, by_channel: np.ndarray) -> np.ndarray:
        """Return it once: every row meets the same input."""
        return by_channel[None]

    def drafted(self, rows: np.ndarray, bias: np.ndarray | None) -> Affine:
        """Return the affine map."""
        return Affine(rows, bias)

    def quantized(self, rows: np.ndarray, bias: np.ndarray | None, unit: np.ndarray) -> IntegerAffine:
        """Return the integer affine map."""
        return IntegerAffine(weight=narrow_weight(rows), bias=bias, unit=unit)


class ConvolutionRows(WeightRows):
    """The kernels of each output channel."""

    def meeting(self, by_channel: np.ndarray) -> np.ndarray:
        """Return it for each row: those of a group meet the channels of that group, once for each tap of a kernel."""
        groups, (inputs, *kernel) = self._convolution.groups, self._convolution.weight.shape[1:]
        by_group = np.repeat(by_channel.reshape(groups, inputs), math.prod(kernel), 1)
        return np.repeat(by_group, len(self.rows) // groups, 0)

    def drafted(self, rows: np.ndarray, bias: np.ndarray | None) -> Convolution:
        """Return the convolution; NIR's always has a bias."""
        bias = np.zeros(len(self.rows)) if bias is None else bias
        return replace(self._convolution, weight=rows.reshape(self._convolution.weight.shape), bias=bias)

    def quantized(self, rows: np.ndarray, bias: np.ndarray | None, unit: np.ndarray) -> IntegerConvolution:
        """Return the integer convolution."""
        drafted = vars(self.drafted(narrow_weight(rows), bias))
        return IntegerConvolution(**{**drafted, "bias": drafted["bias"].astype(np.int64)}, unit=unit)

    @property
    def _convolution(self) -> Convolution:
        return cast(Convolution, self.node.operator)

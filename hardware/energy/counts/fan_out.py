"""How many outputs each input reaches, where some inputs reach more than others.

Synapses beyond the border of a picture, onto padding, are none: a spike at a border reaches fewer outputs than one
within.
"""

from __future__ import annotations

import math

import numpy as np

from export.operators import Convolution, Operator, Pooling
from export.operators.convolution import windows_of


def convolution_fan_out(operator: Convolution) -> np.ndarray:
    """Return how many outputs each input of a convolution reaches, ``(in,)``."""
    places = window_fan_out(
        operator.size, operator.weight.shape[2:], operator.stride, operator.padding, operator.dilation
    )
    return np.tile(places.ravel() * (operator.weight.shape[0] // operator.groups), operator.in_shape[0])


def pooling_fan_out(operator: Pooling) -> np.ndarray:
    """Return how many windows of a pool hold each input, ``(in,)``."""
    around = tuple((pad, pad) for pad in operator.padding)
    places = window_fan_out(operator.shape[1:], operator.kernel, operator.stride, around, (1, 1))
    return np.tile(places.ravel(), operator.shape[0])


def fan_out_of_one(operator: Operator) -> np.ndarray:
    """Return that each input reaches one output, ``(in,)``."""
    return np.ones(operator.in_features, np.int64)


def window_fan_out(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> np.ndarray:
    """Return how many windows hold each place of a line or picture, ``(*size,)``."""
    places = np.arange(1, math.prod(size) + 1).reshape(1, 1, *size)  # padding is 0
    held = windows_of(places, kernel, stride, padding, dilation)
    return np.bincount(held.ravel(), minlength=places.size + 1)[1:].reshape(size)

"""Between which whole numbers the values of an integer graph lie, whatever sentence comes: proof, not measurement.

`quantize` chooses scales with it so that no reachable sum wraps around, and the integer runner chooses by it where
float32 is exact. Where nothing is known about an input, nothing is claimed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from math import isqrt

import numpy as np

from export.errors import ChipLimitError
from export.loihi_numbers import ACTIVATION_MAX, DECAY_UNITY, POTENTIAL_MAX
from export.network import Network, Node, TokenEncoding
from export.operators import (
    Convolution,
    Delay,
    Flatten,
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    Pooling,
    PreviousStep,
    Scale,
    TokenSum,
    Total,
)
from export.operators.convolution import convolution
from export.operators.layer_norm import INPUT_BITS, NORMED_BITS, RADICAND_BITS
from export.operators.operator import FLOAT64_EXACT

BOUNDED_ROWS = 32
"""Of a weight matrix that are looked at in float64 at a time: all of them would take eight times the memory of int8."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Least and greatest value of each feature, both included.

    Attributes
    ----------
    low, high : ndarray
        ``(features,)`` float64 holding whole numbers.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def magnitude(self) -> np.ndarray:
        """Largest magnitude of each feature."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def largest(self) -> int:
        """Largest magnitude of all features."""
        return int(self.magnitude.max(initial=0))


def value_intervals(network: Network) -> dict[str, Interval]:
    """Return the interval of every node of an integer network, and of its input, about which anything can be said."""
    intervals: dict[str, Interval] = {}
    if network.token_encoding is None and network.input_limit is not None:
        intervals[network.input_name] = symmetric(np.full(network.input_features, network.input_limit))
    for node in network.nodes:
        found = node_interval(network, node, intervals)
        if found is not None and max(np.abs(found.low).max(), np.abs(found.high).max()) < FLOAT64_EXACT:
            intervals[node.name] = found
    return intervals


def node_interval(network: Network, node: Node, intervals: dict[str, Interval]) -> Interval | None:
    """Return the interval of one node from those of what it reads; None where that is not known."""
    operator = node.operator
    if operator.spikes or isinstance(operator, PreviousStep):
        return Interval(np.zeros(operator.out_features), np.ones(operator.out_features))
    if isinstance(operator, IntegerAffine) and node.sources[0] == network.input_name and network.token_encoding:
        return embedding_interval(operator.weight, operator.bias, network.token_encoding)
    if isinstance(operator, IntegerLayerNorm):
        return layer_norm_interval(operator)
    if isinstance(operator, IntegerIntegrator):
        return symmetric(np.full(operator.out_features, POTENTIAL_MAX))
    if any(source not in intervals for source in node.sources):
        return None
    read = [intervals[source] for source in node.sources]
    if isinstance(operator, Total):
        return Interval(read[0].low + read[1].low, read[0].high + read[1].high)
    if isinstance(operator, IntegerAffine):
        return affine_interval(operator.weight, operator.bias, read[0])
    if isinstance(operator, IntegerConvolution):
        return convolution_interval(operator, read[0])
    if isinstance(operator, Flatten):
        return read[0]
    if isinstance(operator, Delay):  # sends 0 until something came
        return Interval(np.minimum(read[0].low, 0), np.maximum(read[0].high, 0))
    if isinstance(operator, Pooling):
        low, high = (operator.step(side, None, None) for side in (read[0].low, read[0].high))
        return Interval(low, high)
    if isinstance(operator, Scale):
        sides = (read[0].low * operator.scale, read[0].high * operator.scale)
        return Interval(np.minimum(*sides), np.maximum(*sides))
    if isinstance(operator, IntegerSpikeAttention):
        if network.max_tokens is None:
            return None
        width = operator.out_features
        query, key, value = (read[0].magnitude[part * width : (part + 1) * width].max() for part in range(3))
        largest = network.max_tokens * operator.head_size * query * key * value * 2**operator.shift
        return symmetric(np.full(width, largest))
    if isinstance(operator, TokenSum):
        if network.max_tokens is None:
            return None
        return Interval(read[0].low * network.max_tokens, read[0].high * network.max_tokens)
    return None


def symmetric(magnitude: np.ndarray) -> Interval:
    """Return the interval around 0."""
    magnitude = np.asarray(magnitude, np.float64)
    return Interval(-magnitude, magnitude)


def affine_interval(weight: np.ndarray, bias: np.ndarray | None, read: Interval) -> Interval:
    """Return the interval of ``W x + b``."""
    low = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    high = low.copy()
    for start in range(0, len(weight), BOUNDED_ROWS):
        rows = slice(start, start + BOUNDED_ROWS)
        signed = weight[rows].astype(np.float64)
        positive, negative = np.maximum(signed, 0), np.minimum(signed, 0)
        low[rows] += positive @ read.low + negative @ read.high
        high[rows] += positive @ read.high + negative @ read.low
    return Interval(low, high)


def largest_sum(weight: np.ndarray, bias: np.ndarray | None, read: Interval) -> int:
    """Return a bound on every partial sum of ``W x + b``, in whatever order: the largest sum of all magnitudes."""
    rows = range(0, len(weight), BOUNDED_ROWS)
    # float64 first: the magnitude of -128 is no int8
    sums = [np.abs(weight[row : row + BOUNDED_ROWS].astype(np.float64)) @ read.magnitude for row in rows]
    offset = 0 if bias is None else int(np.abs(bias).max(initial=0))
    return int(np.concatenate(sums).max(initial=0)) + offset


def convolution_interval(operator: Convolution, read: Interval) -> Interval:
    """Return the interval of a convolution; padding is 0."""

    def sides(*images: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        parts = (convolution(replace(operator, weight=weight, bias=silent), image) for weight, image in images)
        return sum(parts) + np.repeat(operator.bias.astype(np.float64), math.prod(operator.out_shape[1:]))

    weight, silent = operator.weight.astype(np.float64), np.zeros(len(operator.bias))
    positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
    return Interval(
        sides((positive, read.low), (negative, read.high)), sides((positive, read.high), (negative, read.low))
    )


def embedding_interval(weight: np.ndarray, bias: np.ndarray | None, encoding: TokenEncoding) -> Interval:
    """Return the interval of an embedding: one row of every table."""
    tables = [weight[:, columns] for columns in encoding.tables.values()]
    offset = 0.0 if bias is None else bias.astype(np.float64)
    return Interval(
        sum(table.min(1).astype(np.float64) for table in tables) + offset,
        sum(table.max(1).astype(np.float64) for table in tables) + offset,
    )


def layer_norm_interval(norm: IntegerLayerNorm) -> Interval:
    """Return the interval of a layer norm: a normed feature is below the root of the number of features."""
    size = norm.in_features // norm.groups
    normed = isqrt(size << (2 * NORMED_BITS)) + 2 + (isqrt(size << (2 * NORMED_BITS)) >> 22)
    spread = normed * np.abs(norm.weight.astype(np.int64))
    bias = norm.bias.astype(np.int64)
    return Interval(
        ((bias - spread) >> norm.shift).astype(np.float64), (((bias + spread) >> norm.shift) + 1).astype(np.float64)
    )


def check_layer_norm(norm: IntegerLayerNorm, read: Interval, where: str) -> None:
    """Check that the sums of a layer norm fit what it computes in.

    Raises
    ------
    ChipLimitError
        A reachable input is too large.
    """
    size = norm.in_features // norm.groups
    squares = (read.magnitude**2).reshape(norm.groups, size).sum(-1) * size + norm.integer_eps
    if read.largest >= 1 << INPUT_BITS or squares.max() >= 1 << RADICAND_BITS:
        raise ChipLimitError(
            f"{where}: inputs up to {read.largest}, squared and summed up to 2^{np.log2(squares.max()):.1f}, leave "
            f"2^{INPUT_BITS} or 2^{RADICAND_BITS}; quantize what it reads with a larger scale"
        )


def reachable_wraps(network: Network, intervals: dict[str, Interval]) -> list[str]:
    """Return the nodes whose current some sentence might wrap around, or for which that is not known."""
    found = []
    for node in network.nodes:
        lost = np.ones(1)  # of a current from step to step; what adds up is no more than what comes, divided by it
        if isinstance(node.operator, IntegerCurrentNeuron):
            lost = node.operator.current_decay / DECAY_UNITY
        if isinstance(node.operator, IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron | IntegerIntegrator):
            read = intervals.get(node.sources[0])
            if read is None or (read.magnitude / lost).max() > ACTIVATION_MAX:
                found.append(node.name)
    return found

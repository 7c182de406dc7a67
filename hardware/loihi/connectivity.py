"""Who reads whom: for any part of a population, the inputs it reads, its synapses, and the lists of weights it keeps.

On the chip a spike arrives on an axon, looks up a list, and every synapse of the list adds its weight to a neuron of
that core. How many axons and lists a part of a population needs is all that placement asks of an operator.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

TABLE_ENTRY_BITS = 32
"""Assumed: an entry of the table that attention keeps, as wide as a spike's payload on Loihi 2."""


@dataclass(frozen=True, order=True)
class FeatureSlice:
    """Some features of a population: a range of channels at a range of positions.

    Attributes
    ----------
    channels, positions : tuple of int
        First, and one behind the last. A feature is ``channel * number of positions + position``.
    """

    channels: tuple[int, int]
    positions: tuple[int, int]

    @property
    def size(self) -> int:
        """Number of features."""
        return (self.channels[1] - self.channels[0]) * (self.positions[1] - self.positions[0])


@dataclass(frozen=True)
class Wiring:
    """What a part needs for one token and one source.

    Attributes
    ----------
    synapses : int
        Connections from a source's feature to a neuron of the part.
    lists : tuple of (int, int)
        Number and length of the lists of weights, each axon having its own.
    shared_lists : tuple of (int, int)
        The same where axons at different positions that have equal lists share one.
    """

    synapses: int
    lists: tuple[tuple[int, int], ...]
    shared_lists: tuple[tuple[int, int], ...]


class Connectivity(ABC):
    """The synapses from one population, of `in_features` a token, to another."""

    uniform: ClassVar[bool] = True
    """Whether parts of equal size need the same."""
    indexed: ClassVar[bool] = False
    """Whether a list leaves neurons out, so that each synapse has to name its neuron."""
    in_features: int

    @property
    def shape(self) -> tuple[int, int] | None:
        """Channels and positions that the neurons must have; None where any will do."""
        return None

    @abstractmethod
    def inputs(self, part: FeatureSlice) -> np.ndarray:
        """Return ``(in_features,)`` bool: which features of the source a part reads."""

    @abstractmethod
    def wiring(self, part: FeatureSlice) -> Wiring:
        """Return the synapses and lists of a part for one token."""

    def axons(self, part: FeatureSlice, copies: int, tokens: int) -> int:
        """Return the axons into a part at `copies` of a sentence's `tokens`, from one source."""
        return copies * int(np.count_nonzero(self.inputs(part)))

    def reach(self, part: FeatureSlice, token_slices: int) -> np.ndarray:
        """Return ``(in_features,)``: how many of the `token_slices` of a part a neuron of the source sends to."""
        return self.inputs(part).astype(np.int64)

    def reach_all(self, parts: tuple[FeatureSlice, ...], token_slices: int) -> np.ndarray:
        """Return ``(in_features,)``: the sum of `reach` over parts that are all features together."""
        return np.sum([self.reach(part, token_slices) for part in parts], axis=0)

    def table_bits(self, part: FeatureSlice) -> int:
        """Return the bits of memory that a part keeps beside synapses, neurons and axons."""
        return 0


@dataclass(frozen=True)
class Dense(Connectivity):
    """Every neuron reads every feature.

    Parameters
    ----------
    in_features : int
    """

    in_features: int

    def inputs(self, part: FeatureSlice) -> np.ndarray:
        """Return all."""
        return np.ones(self.in_features, bool)

    def axons(self, part: FeatureSlice, copies: int, tokens: int) -> int:
        """Return all features of every copy."""
        return copies * self.in_features

    def reach_all(self, parts: tuple[FeatureSlice, ...], token_slices: int) -> np.ndarray:
        """Return every part."""
        return np.full(self.in_features, len(parts), np.int64)

    def wiring(self, part: FeatureSlice) -> Wiring:
        """Return a list for each feature."""
        lists = ((self.in_features, part.size),)
        return Wiring(self.in_features * part.size, lists, lists)


@dataclass(frozen=True)
class OneToOne(Connectivity):
    """Every neuron reads the feature of its own number.

    Parameters
    ----------
    channels, positions : int
    """

    channels: int
    positions: int

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """As many as there are neurons."""
        return self.channels * self.positions

    def inputs(self, part: FeatureSlice) -> np.ndarray:
        """Return the part's own features."""
        read = np.zeros((self.channels, self.positions), bool)
        read[slice(*part.channels), slice(*part.positions)] = True
        return read.reshape(-1)

    def axons(self, part: FeatureSlice, copies: int, tokens: int) -> int:
        """Return one for each neuron."""
        return copies * part.size

    def reach_all(self, parts: tuple[FeatureSlice, ...], token_slices: int) -> np.ndarray:
        """Return the one part that has a neuron of this number."""
        return np.ones(self.in_features, np.int64)

    def wiring(self, part: FeatureSlice) -> Wiring:
        """Return a list of one synapse for each neuron."""
        lists = ((part.size, 1),)
        return Wiring(part.size, lists, lists)


@dataclass(frozen=True)
class Grouped(Connectivity):
    """Every neuron reads the features of its own group.

    Parameters
    ----------
    in_features, out_features : int
    groups : int
        Equal parts of both.
    """

    uniform: ClassVar[bool] = False

    in_features: int
    out_features: int
    groups: int

    def inputs(self, part: FeatureSlice) -> np.ndarray:
        """Return the features of the part's groups."""
        read = np.zeros((self.groups, self.in_features // self.groups), bool)
        read[slice(*group_range(part, self.out_features // self.groups))] = True
        return read.reshape(-1)

    def axons(self, part: FeatureSlice, copies: int, tokens: int) -> int:
        """Return the features of the part's groups."""
        first, last = group_range(part, self.out_features // self.groups)
        return copies * (last - first) * (self.in_features // self.groups)

    def wiring(self, part: FeatureSlice) -> Wiring:
        """Return a list for each feature of the part's groups."""
        inputs = self.in_features // self.groups
        lists = tuple((inputs, neurons) for neurons in channels_by_group(part, self.out_features // self.groups))
        return Wiring(sum(count * length for count, length in lists), lists, lists)


@dataclass(frozen=True)
class Convolutional(Connectivity):
    """Every neuron reads a window of positions, in all channels of its group: convolutions and pools.

    Parameters
    ----------
    in_channels, out_channels, groups : int
    size : tuple of int
        The input's.
    kernel, stride, dilation : tuple of int
    padding : tuple of (int, int)
    """

    uniform: ClassVar[bool] = False
    indexed: ClassVar[bool] = True

    in_channels: int
    out_channels: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """All numbers of the input."""
        return self.in_channels * math.prod(self.size)

    @property
    def out_size(self) -> tuple[int, ...]:
        """How many windows fit along each axis."""
        return tuple(
            (length + sum(pad) - gap * (taps - 1) - 1) // hop + 1
            for length, taps, hop, pad, gap in zip(
                self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def shape(self) -> tuple[int, int]:
        """A channel's neurons at each window."""
        return self.out_channels, math.prod(self.out_size)

    def inputs(self, part: FeatureSlice) -> np.ndarray:
        """Return the windows' positions in the channels of the part's groups."""
        read = np.zeros((self.groups, self.in_channels // self.groups, math.prod(self.size)), bool)
        first, last = group_range(part, self.out_channels // self.groups)
        read[first:last, :, self._taps(part).any(1)] = True
        return read.reshape(-1)

    def axons(self, part: FeatureSlice, copies: int, tokens: int) -> int:
        """Return the positions of all windows, times the channels of the part's groups."""
        first, last = group_range(part, self.out_channels // self.groups)
        return copies * self._positions(part) * (last - first) * (self.in_channels // self.groups)

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019  kernels and parts are small
    def wiring(self, part: FeatureSlice) -> Wiring:
        """Return a list for each input; inputs that the same taps of the kernel meet have equal lists."""
        taps = self._taps(part)
        taps = taps[taps.any(1)]
        kinds, counts = np.unique(taps, axis=0, return_counts=True)
        own: Counter[int] = Counter()
        shared: Counter[int] = Counter()
        inputs = self.in_channels // self.groups
        for neurons in channels_by_group(part, self.out_channels // self.groups):
            for reached, count in zip(kinds.sum(1).tolist(), counts.tolist(), strict=True):
                own[reached * neurons] += inputs * count
                shared[reached * neurons] += inputs
        lists = tuple(sorted((count, length) for length, count in own.items()))
        synapses = sum(count * length for count, length in lists)
        return Wiring(synapses, lists, tuple(sorted((count, length) for length, count in shared.items())))

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019
    def _positions(self, part: FeatureSlice) -> int:
        return int(np.count_nonzero(self._taps(part).any(1)))

    def _taps(self, part: FeatureSlice) -> np.ndarray:
        """Return ``(input positions, taps)`` bool: whether a tap meets an input at one of the part's positions."""
        found = np.zeros((math.prod(self.size), math.prod(self.kernel)), bool)
        out = np.stack(np.unravel_index(np.arange(*part.positions), self.out_size), -1)  # (positions, axes)
        for tap, offsets in enumerate(np.ndindex(*self.kernel)):
            read = [
                hop * out[:, axis] + gap * offset - pad[0]
                for axis, (hop, gap, offset, pad) in enumerate(
                    zip(self.stride, self.dilation, offsets, self.padding, strict=True)
                )
            ]
            inside = np.all([(at >= 0) & (at < length) for at, length in zip(read, self.size, strict=True)], axis=0)
            found[np.ravel_multi_index([at[inside] for at in read], self.size), tap] = True
        return found


def group_range(part: FeatureSlice, width: int) -> tuple[int, int]:
    """Return the first group of `width` channels that a part has some of, and one behind the last."""
    return part.channels[0] // width, (part.channels[1] - 1) // width + 1


def channels_by_group(part: FeatureSlice, width: int) -> Iterator[int]:
    """Yield how many channels a part has of each of its groups of `width` channels."""
    for group in range(*group_range(part, width)):
        yield min(part.channels[1], (group + 1) * width) - max(part.channels[0], group * width)


@dataclass(frozen=True)
class AttentionReads(Connectivity):
    """A head's neurons read the query of their token, and keys and values of all tokens.

    Assumed, as no such neuron is published: a core sums up ``K^T V`` of its heads in a table each step, and a neuron of
    feature j at token n multiplies its column j with the query of token n.

    Parameters
    ----------
    features, head_size : int
        Of the output.
    """

    features: int
    head_size: int

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """Query, key and value."""
        return 3 * self.features

    def inputs(self, part: FeatureSlice) -> np.ndarray:
        """Return the features of the part's heads in query, key and value."""
        read = np.zeros((3, self.features), bool)
        read[:, slice(*part.channels)] = True
        return read.reshape(-1)

    def axons(self, part: FeatureSlice, copies: int, tokens: int) -> int:
        """Return a query for each copy, and key and value of each token."""
        return (copies + 2 * tokens) * part.size

    def reach(self, part: FeatureSlice, token_slices: int) -> np.ndarray:
        """Return 1 for queries; keys and values go to every slice of tokens."""
        read = self.inputs(part).astype(np.int64).reshape(3, -1)
        read[1:] *= token_slices
        return read.reshape(-1)

    def wiring(self, part: FeatureSlice) -> Wiring:
        """Return no synapses: what is multiplied are spikes."""
        return Wiring(0, (), ())

    def table_bits(self, part: FeatureSlice) -> int:
        """Return the bits of ``K^T V`` of the part's heads."""
        return part.size * self.head_size * TABLE_ENTRY_BITS

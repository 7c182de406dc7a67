"""The C kernel of the integer runner, ``integer_kernel.c``, on torch tensors."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.loihi_numbers import ACTIVATION_SHIFT, DECAY_UNITY, POTENTIAL_MAX
from export.operators import IntegerAffine, IntegerLayerNorm, IntegerLeakyIntegrateAndFire
from export.operators.layer_norm import (
    FACTOR_BITS,
    NORMED_BITS,
    PRODUCT_BITS,
    RADICAND_BITS,
    ROOT_BITS,
    TABLE_BITS,
    inverse_square_root_table,
    numerator_shift,
)
from hardware.kernels.c_library import load_library
from hardware.kernels.scratch import Scratch

SOURCE = Path(__file__).with_name("integer_kernel.c")
LANES, SQUARE = 16, 4
"""Numbers in a vector, and how many vectors of how many rows a product of attention sums together."""
PANEL, TILE_ROWS, TILE_BYTES = 32, 16, 64
"""Of a product of bytes on the processor's tiles: outputs summed together, a tile's rows, and the bytes in each."""
SUMS_BYTES = 1 << 20
"""Of 32-bit sums that are computed and read again at a time: what a core's cache holds beside weights."""
FACTORS_BYTES = 3 * 8
UINT8_MAX = 255
NUMBERS: dict[str, int | str] = {
    "ACTIVATION_SHIFT": ACTIVATION_SHIFT,
    "DECAY_UNITY": DECAY_UNITY,
    "POTENTIAL_MAX": f"{POTENTIAL_MAX}.0f",
    "FACTOR_BITS": FACTOR_BITS,
    "NORMED_BITS": NORMED_BITS,
    "PRODUCT_BITS": PRODUCT_BITS,
    "RADICAND_BITS": RADICAND_BITS,
    "ROOT_BITS": ROOT_BITS,
    "TABLE_BITS": TABLE_BITS,
    "LANES": LANES,
    "SQUARE": SQUARE,
    "PANEL": PANEL,
    "TILE_ROWS": TILE_ROWS,
    "TILE_BYTES": TILE_BYTES,
}
"""What the C source calls by name; it has no such number of its own."""


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("groups", "size", "drop")),
        *((name, c_void_p) for name in ("eps", "roots", "gain", "offset")),
    ]


class _Neurons(ctypes.Structure):
    _fields_ = [
        ("reset_to_zero", c_int64),
        *((name, c_void_p) for name in ("keep", "above", "taken", "bias")),
    ]


class _Affine(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("inputs", "outputs", "depth", "rows", "sums_stride")),
        *((name, c_void_p) for name in ("weights", "bias")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [("features", c_int64), *((name, c_void_p) for name in ("map", "norm", "cells"))]


class KernelAffine:
    """An affine map of int8 as the kernel takes it."""

    def __init__(self, affine: IntegerAffine) -> None:
        rows, inputs = affine.weight.shape
        outputs = _rounded_up(rows, PANEL)
        self._weights = np.ascontiguousarray(affine.weight)
        self._bias = torch.zeros(outputs, dtype=torch.int32)  # torch's memory begins at a line of the cache
        if affine.bias is not None:
            self._bias[:rows] = torch.from_numpy(affine.bias)
        self.sums_stride = outputs + TILE_BYTES // 4  # rows of a power of two bytes would all meet in the same lines
        self.packed_bytes = outputs * inputs
        self._held = _Affine(
            inputs,
            outputs,
            _tile_depth(inputs),
            rows,
            self.sums_stride,
            self._weights.ctypes.data,
            self._bias.data_ptr(),
        )
        self.address = ctypes.addressof(self._held)

    def sums(self, steps: int) -> tuple[int, int]:
        """Return of how many tokens sums are held at a time, and the bytes of these."""
        bytes_per_tile = 4 * self.sums_stride * steps * TILE_ROWS
        tiles = max(1, SUMS_BYTES // bytes_per_tile)
        return tiles * TILE_ROWS, tiles * bytes_per_tile


class KernelNorm:
    """A layer norm as the kernel takes it."""

    def __init__(self, norm: IntegerLayerNorm) -> None:
        scale = 2.0**-norm.shift
        size = norm.in_features // norm.groups
        self.groups = norm.groups
        self._arrays = (  # held here: the structure knows addresses only
            np.ascontiguousarray(norm.integer_eps, np.int64),
            np.ascontiguousarray(inverse_square_root_table(), np.int64),
            np.ascontiguousarray(norm.weight * scale),
            np.ascontiguousarray((norm.bias + 0.5) * scale),  # half of the last place more
        )
        self._held = _Norm(norm.groups, size, numerator_shift(size), *(part.ctypes.data for part in self._arrays))
        self.address = ctypes.addressof(self._held)


class KernelNeurons:
    """Neurons as the kernel takes them."""

    def __init__(self, neuron: IntegerLeakyIntegrateAndFire) -> None:
        keep, threshold = (DECAY_UNITY - neuron.decay) / DECAY_UNITY, neuron.tested_threshold
        subtracts = neuron.reset == "subtract"
        parts = (keep, threshold - neuron.fire_on_equal, threshold * subtracts, neuron.bias)
        self._arrays = tuple(
            np.ascontiguousarray(np.broadcast_to(part, neuron.in_features), np.float32) for part in parts
        )
        self._held = _Neurons(not subtracts, *(part.ctypes.data for part in self._arrays))
        self.address = ctypes.addressof(self._held)


class KernelLayer:
    """Neurons with the layer norm and the affine map before them, where there are such."""

    def __init__(
        self, affine: IntegerAffine | None, norm: IntegerLayerNorm | None, neuron: IntegerLeakyIntegrateAndFire
    ) -> None:
        self.affine = None if affine is None else KernelAffine(affine)
        self._norm = None if norm is None else KernelNorm(norm)
        self._neurons = KernelNeurons(neuron)
        self.groups = 1 if norm is None else norm.groups
        self.features, self.reads = neuron.in_features, torch.int32 if affine is None else torch.int8
        parts = (None if part is None else part.address for part in (self.affine, self._norm, self._neurons))
        self._held = _Layer(neuron.in_features, *parts)
        self.address = ctypes.addressof(self._held)


class Kernel:
    """The functions of ``integer_kernel.c`` on torch tensors of the CPU, on the thread that calls."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._fire, self._normalise = library.fire, library.normalise
        self._attend, self._attend_bytes = library.attend, library.attend_bytes
        library.has_tiles.restype = self._fire.restype = c_int64
        self._fire.argtypes = [*[c_void_p] * 2, *[c_int64] * 5, *[c_void_p] * 2, c_int64, *[c_void_p] * 3]
        self._normalise.argtypes = [c_void_p, c_int64, *[c_void_p] * 2]
        for attend in (self._attend, self._attend_bytes):
            attend.argtypes = [c_void_p, c_int64, c_void_p, *[c_int64] * 5, *[c_void_p] * 2]
        self._normalise.restype = self._attend.restype = self._attend_bytes.restype = None
        self.has_tiles = bool(library.has_tiles())
        self._scratch = Scratch(torch.device("cpu"))

    def multiplies(self, affine: IntegerAffine) -> bool:
        """Return whether the processor has tiles for products of bytes (AMX), and they suit an affine map."""
        return self.has_tiles and _tile_depth(affine.weight.shape[1]) > 0

    def normalise(self, x: Tensor, norm: KernelNorm) -> Tensor:
        """Return the layer norm of whole numbers ``(T, P, D)`` as int32."""
        x = x.to(torch.int32).contiguous()
        y = torch.empty_like(x)
        self._normalise(x.data_ptr(), x.shape[0] * x.shape[1], norm.address, y.data_ptr())
        return y

    def fire(self, layer: KernelLayer, x: Tensor, spikes: Tensor, potentials: Tensor | None) -> int:
        """Run neurons, behind a layer norm and an affine map where there are such.

        Parameters
        ----------
        layer : KernelLayer
        x : Tensor
            ``(T or 1, P, D)`` whole numbers: for an affine map 0 to 127.
        spikes : Tensor
            ``(T, P, D)`` int8, filled; it may be some tokens of a larger one.
        potentials : Tensor or None
            The same in int32.

        Returns
        -------
        int
            How many potentials were held at their limit.
        """
        if x.dtype != layer.reads:
            x = x.to(layer.reads)
        x_steps, tokens, inputs = x.shape
        if x.stride()[1:] != (inputs, 1):
            x = x.contiguous()
        at_once, sums_bytes, packed_bytes = tokens, 0, 0
        if layer.affine is not None:
            at_once, sums_bytes = layer.affine.sums(x_steps)
            packed_bytes = layer.affine.packed_bytes
        factors_bytes = FACTORS_BYTES * x_steps * layer.groups
        room = self._scratch.bytes("room", sums_bytes + packed_bytes + factors_bytes).data_ptr()
        return self._fire(  # type: ignore[no-any-return]
            layer.address,
            x.data_ptr(),
            x_steps,
            x.stride(0),
            spikes.shape[0],
            tokens,
            spikes.stride(0),
            spikes.data_ptr(),
            None if potentials is None else potentials.data_ptr(),
            at_once,
            room,
            room + sums_bytes,
            room + sums_bytes + packed_bytes,
        )

    def attend(self, x: Tensor, lengths: Tensor, heads: int, head_size: int, factor: int, largest: int) -> Tensor:
        """Return `factor` times the attention product of spikes ``(T, P, 3 D)`` int8 as ``(T, P, D)`` int32.

        Sentences of `lengths` tokens, int64, lie one behind the other. Numbers are 0 to `largest`; sums must stay below
        2^24, the result below 2^31.
        """
        x = x.contiguous()
        y = torch.empty(x.shape[0], x.shape[1], heads * head_size, dtype=torch.int32)
        longest = int(lengths.max())
        if self.has_tiles and head_size % TILE_ROWS == 0 and longest * largest**2 <= UINT8_MAX:
            attend, longest = self._attend_bytes, _rounded_up(longest, TILE_BYTES)
            room = self._scratch.bytes("room", (2 * longest + head_size) * head_size).data_ptr()
        else:
            padded = _rounded_up(head_size, LANES)
            attend, longest = self._attend, _rounded_up(longest, SQUARE)
            count = 4 * (4 * longest + padded) * padded
            room = self._scratch.bytes("room", count).data_ptr()
            ctypes.memset(room, 0, count)
        attend(
            x.data_ptr(),
            x.shape[0],
            lengths.data_ptr(),
            lengths.numel(),
            longest,
            heads,
            head_size,
            factor,
            y.data_ptr(),
            room,
        )
        return y


@lru_cache(maxsize=1)
def load_kernel() -> Kernel | None:
    """Return the kernel, built where it is not there yet; None where it cannot be."""
    library = load_library(SOURCE, NUMBERS)
    return None if library is None else Kernel(library)


def _tile_depth(inputs: int) -> int:
    """Return how many inputs go into a tile, all tiles being alike; 0 where tiles would be nearly empty."""
    return next((depth for depth in range(TILE_BYTES, TILE_BYTES // 4 - 1, -4) if inputs % depth == 0), 0)


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit

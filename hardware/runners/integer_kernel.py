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
from export.operators import IntegerLayerNorm, IntegerLeakyIntegrateAndFire
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
from hardware.c_library import load_library

SOURCE = Path(__file__).with_name("integer_kernel.c")
LANES, TILE = 16, 4
"""What a product of attention is cut into: rows that are summed together, and vectors of so many numbers in each."""
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
    "TILE": TILE,
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


class Kernel:
    """The functions of ``integer_kernel.c`` on torch tensors of the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._fire, self._normalise, self._attend = library.fire, library.normalise, library.attend
        self._fire.restype = c_int64
        self._fire.argtypes = [c_void_p, *[c_int64] * 4, *[c_void_p] * 2, c_int64, *[c_void_p] * 3]
        self._normalise.restype = self._attend.restype = None
        self._normalise.argtypes = [c_void_p, c_int64, *[c_void_p] * 2]
        self._attend.argtypes = [c_void_p, c_int64, c_void_p, *[c_int64] * 5, *[c_void_p] * 2]

    def normalise(self, x: Tensor, norm: KernelNorm) -> Tensor:
        """Return the layer norm of whole numbers ``(T, P, D)`` as int32."""
        x = x.to(torch.int32).contiguous()
        y = torch.empty_like(x)
        self._normalise(x.data_ptr(), x.shape[0] * x.shape[1], norm.address, y.data_ptr())
        return y

    def fire(
        self, x: Tensor, norm: KernelNorm | None, neurons: KernelNeurons, spikes: Tensor, potentials: Tensor | None
    ) -> int:
        """Run neurons, behind a layer norm where there is one.

        Parameters
        ----------
        x : Tensor
            ``(T or 1, P, D)`` whole numbers.
        norm, neurons
        spikes : Tensor
            ``(T, P, D)`` int8, filled; it may be some tokens of a larger one.
        potentials : Tensor or None
            The same in int32.

        Returns
        -------
        int
            How many potentials were held at their limit.
        """
        x = x.to(torch.int32).contiguous()
        x_steps, tokens, features = x.shape
        scratch = torch.empty(3 * x_steps * (1 if norm is None else norm.groups), dtype=torch.float64)
        return self._fire(
            x.data_ptr(),
            x_steps,
            spikes.shape[0],
            tokens,
            features,
            None if norm is None else norm.address,
            neurons.address,
            spikes.stride(0),
            spikes.data_ptr(),
            None if potentials is None else potentials.data_ptr(),
            scratch.data_ptr(),
        )

    def attend(self, x: Tensor, lengths: Tensor, heads: int, head_size: int, factor: int) -> Tensor:
        """Return `factor` times the attention product of spikes ``(T, P, 3 D)`` int8 as ``(T, P, D)`` int32.

        Sentences of `lengths` tokens, int64, lie one behind the other. Sums must stay below 2^24, the result below
        2^31.
        """
        x = x.contiguous()
        y = torch.empty(x.shape[0], x.shape[1], heads * head_size, dtype=torch.int32)
        padded, longest = _rounded_up(head_size, LANES), _rounded_up(int(lengths.max()), TILE)
        scratch = torch.zeros((4 * longest + padded) * padded)
        self._attend(
            x.data_ptr(),
            x.shape[0],
            lengths.data_ptr(),
            lengths.numel(),
            longest,
            heads,
            head_size,
            factor,
            y.data_ptr(),
            scratch.data_ptr(),
        )
        return y


@lru_cache(maxsize=1)
def load_kernel() -> Kernel | None:
    """Return the kernel, built where it is not there yet; None where it cannot be."""
    library = load_library(SOURCE, NUMBERS)
    return None if library is None else Kernel(library)


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit

"""Layer norm and neurons of the integer runner in torch, for where the C kernel is not: no compiler, or another device.

Numbers are whole and in float64, and every sum and product stays below what it holds, as the runner proves; where less
is enough the largest number that came says so.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from export.loihi_numbers import ACTIVATION_SHIFT, DECAY_BITS, DECAY_UNITY, POTENTIAL_MAX
from export.operators import IntegerLayerNorm, IntegerLeakyIntegrateAndFire
from export.operators.interval import Interval
from export.operators.layer_norm import (
    NORMED_BITS,
    PRODUCT_BITS,
    RADICAND_BITS,
    integer_inverse_square_root,
    numerator_shift,
)
from export.operators.operator import FLOAT64_EXACT
from hardware.runners.integer.workspace import CHUNK_BYTES, Workspace, tokens_of

INT32_EXACT = (1 << 31) - 1
LEAST_BLOCK = 32
"""Features of which sums of squares are added up in int32; of fewer at a time it is not worth it."""


class TorchNorm:
    """Layer norm of ``(T, P, D)`` whole numbers: first factors of every row, then the features in float64."""

    def __init__(self, norm: IntegerLayerNorm, workspace: Workspace, read: Interval) -> None:
        scale = 2.0**-norm.shift
        self.workspace = workspace
        self.shape = (norm.groups, norm.in_features // norm.groups)
        self.gain = torch.from_numpy(norm.weight * scale).to(workspace.device).view(self.shape)
        self.offset = torch.from_numpy(norm.bias * scale + 0.5).to(workspace.device).view(self.shape)
        self.eps = norm.integer_eps[:, None]
        squares = (read.magnitude**2).reshape(self.shape).sum(-1).max()
        self.sums_in = torch.float64 if squares < FLOAT64_EXACT else torch.int64
        self.largest_gain, self.largest_offset = float(self.gain.abs().max()), float(self.offset.abs().max())

    def factors(self, x: Tensor) -> NormFactors:
        """Return what `normalise` needs to know of each row."""
        parts = x.to(torch.int32).view(*x.shape[:2], *self.shape)  # below 2^25
        low, high = (end(-1, keepdim=True).cpu().numpy() for end in (parts.amin, parts.amax))
        largest = max(-int(low.min()), int(high.max()))
        block = self._block(largest)
        if block:
            sums, squares = self._sums(parts, block)
        else:
            whole = parts.to(self.sums_in)
            sums, squares = whole.sum(-1, keepdim=True), (whole * whole).sum(-1, keepdim=True)
        first, second, third = self._factors(_whole(sums), _whole(squares).sum(-1, keepdims=True), largest)
        # a third factor is below 1, and rounding twice adds no more than 2
        normed = max(float((high * first + second).max()), -float((low * first + second).min())) + 2
        reach = int(normed * self.largest_gain + self.largest_offset) + 2

        def on_device(by: np.ndarray) -> Tensor:
            return torch.from_numpy(by).to(x.device)

        return NormFactors(on_device(first), on_device(second), None if third is None else on_device(third), reach)

    def _block(self, largest: int) -> int:
        """Return how many features to take together so that int32 holds the sum of their squares; 0 where too few."""
        size, fitting = self.shape[1], INT32_EXACT // max(largest**2, 1)
        if fitting >= size:
            return size
        block = gcd(size, 1 << fitting.bit_length() - 1) if fitting else 0
        return block if block >= LEAST_BLOCK else 0

    def _sums(self, parts: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Return sums ``(T, P, groups, 1)`` in int32, and sums of the squares of every `block` features.

        Half the bytes of float64 to read, and the sums fit as well: no group has more than 2^12 features, and of one
        whose square fits there are 2^12 to a sum.
        """
        squares = torch.empty(*parts.shape[:3], self.shape[1] // block, dtype=torch.int32, device=parts.device)
        for rows in self.workspace.chunks(parts.shape[1], parts[:, 0].numel() * 8, CHUNK_BYTES):
            part = tokens_of(parts, rows)
            squared = torch.mul(part, part, out=self.workspace.scratch.take("activations", part.shape, torch.int32))
            torch.sum(squared.unflatten(-1, (-1, block)), -1, dtype=torch.int32, out=tokens_of(squares, rows))
        return parts.sum(-1, keepdim=True, dtype=torch.int32), squares

    def normalise(self, x: Tensor, by: NormFactors, rows: slice, y: Tensor) -> None:
        """Fill `y` with the norm of `x`, the rows for which the factors hold that `rows` says."""
        parts = y.copy_(x).view(*y.shape[:2], *self.shape)
        # product and sum each by itself: with one factor a row torch does not vectorise them together
        parts.mul_(tokens_of(by.first, rows)).add_(tokens_of(by.second, rows))
        if by.third is None:
            parts.round_()
        else:
            parts.floor_().mul_(tokens_of(by.third, rows)).add_(0.5).floor_()
        torch.addcmul(self.offset, parts, self.gain, out=parts).floor_()

    def _factors(
        self, sums: np.ndarray, squares: np.ndarray, largest: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the factors from sums and sums of squares, where no feature's magnitude exceeds `largest`."""
        size, drop = self.shape[1], numerator_shift(self.shape[1])
        radicand = size * squares - sums * sums + self.eps
        greatest = int(radicand.max())
        exponent = even_exponent(radicand, greatest)
        root = integer_inverse_square_root(radicand << exponent)
        # Where no numerator is shifted right (e / 2 >= h) and |D x| < 2^28, so that |S| is, too: D x f and S f, whole
        # and below 2^52, are exact, and so is their difference c f, which lies below 2^52 as well, c 2^(e / 2) being
        # below sqrt(D) 2^31. One product does. Half of the last place more, and nothing lies halfway.
        if greatest < 1 << (RADICAND_BITS - 2 * drop) and size * largest < 1 << 28:
            scale = _root_of_two_to(exponent, NORMED_BITS - PRODUCT_BITS)
            scaled = root * scale
            return scaled * size, 0.5 * scale - sums * scaled, None
        power = _root_of_two_to(exponent, -drop)
        return power * size, 0.5 - sums * power, root * 2.0 ** -(PRODUCT_BITS - drop - NORMED_BITS)


class NormFactors(NamedTuple):
    """What the features of each group of each token are multiplied with, added to it, and multiplied with again.

    ``normed = floor(floor(x first + second) third + 1/2)``; without a third one ``normed = nearest(x first + second)``.
    No activation exceeds `reach` in magnitude.
    """

    first: Tensor
    second: Tensor
    third: Tensor | None
    reach: int


def _whole(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().astype(np.int64)


def even_exponent(x: np.ndarray, greatest: int) -> np.ndarray:
    """Return the even e with ``2^60 <= x 2^e < 2^62`` for positive int64 up to `greatest`."""
    length = (x.astype(np.float64).view(np.int64) >> 52) - 1022  # the exponent that float64 holds
    if greatest >= FLOAT64_EXACT:  # may have been rounded up to the next power of two
        length -= x >> (length - 1) == 0
    return RADICAND_BITS - length & ~1


def _root_of_two_to(exponent: np.ndarray, more: int) -> np.ndarray:
    """Return ``2^(e / 2 + more)`` for even exponents, from float64's bits."""
    return ((exponent << 51) + (more + 1023 << 52)).view(np.float64)


class TorchNeurons:
    """Neurons over activations ``(T or 1, P, D)``, whole numbers in float64."""

    def __init__(self, neuron: IntegerLeakyIntegrateAndFire, workspace: Workspace) -> None:
        def constant(values: np.ndarray) -> Tensor:
            whole = torch.from_numpy(np.asarray(values, np.float64)).to(workspace.device)
            return whole[0] if bool((whole == whole[0]).all()) else whole

        self.workspace = workspace
        keep, threshold = DECAY_UNITY - neuron.decay.astype(np.int64), neuron.tested_threshold.astype(np.int64)
        self.keep, self.threshold = constant(keep / DECAY_UNITY), constant(threshold)
        self.bias = constant(neuron.bias) if neuron.bias.any() else None
        self.subtracts = neuron.reset == "subtract"
        self.fires = torch.ge if neuron.fire_on_equal else torch.gt
        self.largest_bias, self.strongest = int(np.abs(neuron.bias).max()), float(keep.max()) / DECAY_UNITY
        # a potential that fired keeps no less than the threshold would: of what a spike takes, only so much is missing
        self.taken = int((threshold - (threshold * keep >> DECAY_BITS)).max()) if self.subtracts else 0

    def __call__(self, x: Tensor, reach: int, spikes: Tensor, potentials: Tensor | None) -> int | Tensor:
        """Fill `spikes` and `potentials` ``(T, P, D)``; return how many potentials were held at their limit.

        No activation exceeds `reach`. They are lost: where each step has its own, what fired takes their place.
        """
        steps, scratch = spikes.shape[0], self.workspace.scratch
        # what may happen in some sentence seldom does in this one
        doubtful = self._may_saturate(reach, steps) and self._may_saturate(_largest(x), steps)
        moving = x.shape[0] > 1
        potential, fired = scratch.take("potential", x.shape[1:]), x[0]
        still = None if moving else scratch.take("fired", x.shape[1:])
        saturated: int | Tensor = 0
        for step, charge in enumerate(x if moving else x.expand(steps, *x.shape[1:])):
            if step == 0:  # nothing is left of any step before
                torch.mul(charge, 1 << ACTIVATION_SHIFT, out=potential)
            else:
                if not self.subtracts:
                    potential.addcmul_(potential, fired, value=-1)
                potential.mul_(self.keep).trunc_().add_(charge, alpha=1 << ACTIVATION_SHIFT)
                if self.subtracts:
                    potential.addcmul_(fired, self.threshold, value=-1)
            if self.bias is not None:
                potential.add_(self.bias)
            # to look is cheaper than to hold and count, but for a GPU the looks had to wait at every step
            if doubtful and not (self.workspace.on_cpu and _largest(potential) <= POTENTIAL_MAX):
                saturated += (potential.abs() > POTENTIAL_MAX).sum()
                potential.clamp_(-POTENTIAL_MAX, POTENTIAL_MAX)
            if potentials is not None:
                potentials[step].copy_(potential)
            fired = self.fires(potential, self.threshold, out=charge if still is None else still)
            if still is not None:
                spikes[step].copy_(fired)
        if still is None:
            spikes.copy_(x)
        return saturated

    def _may_saturate(self, activation: int, steps: int) -> bool:
        """Return whether activations up to so much can drive a potential to its limit."""
        reachable = 0.0
        for _ in range(steps):
            kept = max(reachable * self.strongest, self.taken)
            reachable = kept + (activation << ACTIVATION_SHIFT) + self.largest_bias
        return reachable > POTENTIAL_MAX


def _largest(x: Tensor) -> int:
    """Return the largest magnitude of whole numbers; twice amax reads them in less time than one aminmax."""
    return int(max(x.amax().item(), -x.amin().item()))

"""Norms between an affine layer and its neuron.

A layer norm looks at every token anew, which no neuron of a chip does. The two others scale and shift each feature by
numbers that are fixed once training ends, so they disappear into the weights and biases before them
(``spikebert.folding``).
Statistics are over time steps, sentences and real tokens: padding never enters them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebert.choices import BATCH, LAYER, NONE, POWER

MOMENTUM = 0.1  # share of the newest batch in the running statistics, as in torch's batch norm


class Norm(nn.Module):
    """What all norms share: a weight (gain) and a bias for each feature."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., B, N, features)``; tokens where `token_mask` ``(B, N, 1)`` is 0 are no part of any statistic."""
        raise NotImplementedError


class GroupedLayerNorm(Norm):
    """Layer norm over each of `groups` equal parts of the features, with a weight and bias of its own for each.

    Query, key and value share one matrix product, yet each has its own norm; one group is an ordinary layer norm.
    """

    def __init__(self, features: int, groups: int, eps: float) -> None:
        super().__init__(features, eps)
        self.groups = groups

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., features)``, each token by itself."""
        if self.groups == 1:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        parts = x.unflatten(-1, (self.groups, -1))
        return (F.layer_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2) * self.weight).add_(self.bias)


class StatisticsNorm(Norm):
    """A norm by statistics of each feature: the batch's in training, running ones afterwards."""

    momentum = MOMENTUM

    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Set the running statistics to what a mean and a variance ``(features,)`` of the input make them."""
        raise NotImplementedError

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return what the norm does in evaluation, as float64 ``(features,)``: ``scale x + shift``."""
        raise NotImplementedError

    @staticmethod
    def real_rows(x: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the real tokens of ``(..., B, N, D)`` as rows ``(n, D)``, and their places among all B x N tokens."""
        if token_mask is None:
            return x.reshape(-1, x.shape[-1]), None
        places = token_mask.flatten().nonzero().squeeze(-1)
        return x.flatten(-3, -2).index_select(-2, places).reshape(-1, x.shape[-1]), places


class BatchStatisticsNorm(StatisticsNorm):
    """Batch norm over real tokens: ``weight (x - mean) / sqrt(variance + eps) + bias`` for each feature."""

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, features: int, eps: float) -> None:
        super().__init__(features, eps)
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_variance", torch.ones(features))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., B, N, features)``; in training, what stands at padding becomes 0."""
        if not self.training:
            rows, places = x.reshape(-1, x.shape[-1]), None
        else:
            rows, places = self.real_rows(x, token_mask)
        normed = F.batch_norm(
            rows,
            self.running_mean,
            self.running_variance,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        if places is None:
            return normed.reshape(x.shape)
        tokens = x.flatten(-3, -2)
        normed = normed.reshape(*tokens.shape[:-2], -1, x.shape[-1])
        return torch.zeros_like(tokens).index_copy(-2, places, normed).reshape(x.shape)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Set both."""
        self.running_mean.copy_(mean)
        self.running_variance.copy_(variance)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return ``weight / sqrt(variance + eps)`` and ``bias - scale mean``."""
        scale = self.weight.double() / (self.running_variance.double() + self.eps).sqrt()
        return scale, self.bias.double() - scale * self.running_mean.double()


class ShiftPowerNorm(StatisticsNorm):
    """Power norm by bit shifts: ``weight x 2**-k + bias``, with ``2**k`` the root mean square of each feature, rounded.

    After the bit-shifting PowerNorm of Sorbet (arXiv 2409.15298). There is no mean to subtract, and the division is a
    shift. The shift comes from the running mean square in training too, so that training sees the network that will
    run; the gradient is that of a division by the batch's own root mean square.
    """

    running_power: Tensor

    def __init__(self, features: int, eps: float) -> None:
        super().__init__(features, eps)
        self.register_buffer("running_power", torch.ones(features))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., B, N, features)``."""
        straight_through: Tensor | float = 1.0
        if self.training:
            rows, _ = self.real_rows(x, token_mask)
            power = rows.to(torch.promote_types(rows.dtype, torch.float32)).square().mean(0)
            with torch.no_grad():
                self.running_power.lerp_(power.to(self.running_power.dtype), self.momentum)
            inverse = (power + self.eps).rsqrt()
            straight_through = inverse / inverse.detach()  # 1, with the gradient of the division
        gain = self.weight * self._shift().to(self.weight.dtype) * straight_through
        return x * gain.to(x.dtype) + self.bias.to(x.dtype)

    def _shift(self) -> Tensor:
        """Return ``2**-k`` for each feature, exact in every floating-point type."""
        exponents = ((self.running_power.double() + self.eps).log2() / 2).round()
        return torch.exp2(-exponents)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Set the mean square to ``variance + mean**2``."""
        self.running_power.copy_(variance + mean.square())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return ``weight 2**-k`` and the bias."""
        return self.weight.double() * self._shift(), self.bias.double()


def make_norm(kind: str, features: int, groups: int, eps: float) -> Norm | None:
    """Return a norm by its name in the configuration; None for ``none``."""
    if kind == NONE:
        return None
    if kind == LAYER:
        return GroupedLayerNorm(features, groups, eps)
    return {BATCH: BatchStatisticsNorm, POWER: ShiftPowerNorm}[kind](features, eps)

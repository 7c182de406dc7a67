"""Surrogate gradients: what stands in for the derivative of the Heaviside step while training.

Each is a function of the distance to threshold ``x = U - U_thr`` and of a sharpness ``alpha``. The forward pass is
always the exact step; these are used in the backward pass only. Training spends much of its time here, most of it on
fresh memory, so each works in `out` where that is given; it may be ``x`` itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spikebert.errors import ConfigurationError


def arctangent(x: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
    """Return alpha/2 / (1 + (pi/2 alpha x)^2), of unit area: Eq. 4 of arXiv 2308.15122 (ATan of SpikingJelly)."""
    return torch.mul(x, math.pi / 2 * alpha, out=out).square_().add_(1).reciprocal_().mul_(alpha / 2)


def sigmoid(x: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
    """Return the derivative of sigmoid(alpha x), of unit area."""
    y = torch.mul(x, alpha, out=out).sigmoid_()
    return y.mul_(1 - y).mul_(alpha)


def fast_sigmoid(x: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
    """Return 1 / (1 + alpha |x|)^2, whose area is 2 / alpha (Zenke & Ganguli 2018, snnTorch's ``fast_sigmoid``)."""
    return torch.abs(x, out=out).mul_(alpha).add_(1).square_().reciprocal_()


def triangle(x: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
    """Return max(0, alpha - alpha^2 |x|), a triangle of unit area (Bellec et al. 2018)."""
    return torch.abs(x, out=out).mul_(-alpha * alpha).add_(alpha).relu_()


def rectangle(x: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
    """Return alpha where |x| < 1 / (2 alpha), else 0, a rectangle of unit area (Wu et al. 2018)."""
    return torch.abs(x, out=out).lt_(1 / (2 * alpha)).mul_(alpha)


Surrogate = Callable[..., Tensor]

SURROGATES: dict[str, Surrogate] = {
    "arctangent": arctangent,
    "sigmoid": sigmoid,
    "fast_sigmoid": fast_sigmoid,
    "triangle": triangle,
    "rectangle": rectangle,
}


def surrogate_gradient(name: str, alpha: float = 2.0) -> Surrogate:
    """Return the surrogate gradient called `name`, once `alpha` is known to be a sharpness it can have.

    Raises
    ------
    ConfigurationError
        No surrogate has that name, or `alpha` is not a positive number.
    """
    if not (isinstance(alpha, int | float) and 0 < alpha < math.inf):
        raise ConfigurationError(f"surrogate_alpha is {alpha!r}; it must be a positive number")
    if not isinstance(name, str) or name not in SURROGATES:
        raise ConfigurationError(f"surrogate {name!r} is not known; choose one of {', '.join(SURROGATES)}")
    return SURROGATES[name]

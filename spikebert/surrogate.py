"""Surrogate gradients: what stands in for the derivative of the Heaviside step while training.

Each is a function of the distance to threshold ``x = U - U_thr`` and of a sharpness ``alpha``. The forward pass is
always the exact step; these are used in the backward pass only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spikebert.errors import ConfigurationError


def arctangent(x: Tensor, alpha: float) -> Tensor:
    """Return alpha/2 / (1 + (pi/2 alpha x)^2), of unit area: Eq. 4 of arXiv 2308.15122 (ATan of SpikingJelly)."""
    y = math.pi / 2 * alpha * x
    return y.square_().add_(1).reciprocal_().mul_(alpha / 2)  # in place: training spends much of its time here


def sigmoid(x: Tensor, alpha: float) -> Tensor:
    """Return the derivative of sigmoid(alpha x), of unit area."""
    y = torch.sigmoid(alpha * x)
    return alpha * y * (1 - y)


def fast_sigmoid(x: Tensor, alpha: float) -> Tensor:
    """Return 1 / (1 + alpha |x|)^2, whose area is 2 / alpha (Zenke & Ganguli 2018, snnTorch's ``fast_sigmoid``)."""
    return 1 / (1 + alpha * x.abs()).square()


def triangle(x: Tensor, alpha: float) -> Tensor:
    """Return max(0, alpha - alpha^2 |x|), a triangle of unit area (Bellec et al. 2018)."""
    return torch.relu(alpha - alpha * alpha * x.abs())


def rectangle(x: Tensor, alpha: float) -> Tensor:
    """Return alpha where |x| < 1 / (2 alpha), else 0, a rectangle of unit area (Wu et al. 2018)."""
    return alpha * (x.abs() < 1 / (2 * alpha)).to(x.dtype)


SURROGATES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "arctangent": arctangent,
    "sigmoid": sigmoid,
    "fast_sigmoid": fast_sigmoid,
    "triangle": triangle,
    "rectangle": rectangle,
}


def surrogate_gradient(name: str, alpha: float = 2.0) -> Callable[[Tensor, float], Tensor]:
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

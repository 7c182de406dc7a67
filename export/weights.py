"""A model's weights as arrays: views of its memory, or copies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ArrayReader = Callable[[Tensor], np.ndarray]
"""`view_weight` or `copy_weight`."""


def view_weight(tensor: Tensor) -> np.ndarray:
    """Return a tensor in its own precision, float32 for anything narrower; `build_graph` stores what is asked."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def copy_weight(tensor: Tensor) -> np.ndarray:
    """Return a copy of it."""
    return view_weight(tensor).copy()

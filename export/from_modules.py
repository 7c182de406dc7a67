"""The modules that models are made of -> operators, and their weights as arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from export.errors import UnsupportedOperatorError
from export.operators import Affine, Heaviside, LayerNorm, LeakyIntegrateAndFire
from export.operators.operator import Operator
from spikebert.neuron import Heaviside as HeavisideModule
from spikebert.norms import GroupedLayerNorm, Norm
from spikebert.recording import NamedNeuron

ArrayReader = Callable[[Tensor], np.ndarray]
"""`view_weight` or `copy_weight`."""


def view_weight(tensor: Tensor) -> np.ndarray:
    """Return a tensor in its own precision, float32 for anything narrower; `build_graph` stores what is asked."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def copy_weight(tensor: Tensor) -> np.ndarray:
    """Return a copy of it."""
    return view_weight(tensor).copy()


def affine_of(linear: nn.Linear, read: ArrayReader) -> Affine:
    """Return a linear layer as an operator."""
    return Affine(read(linear.weight), None if linear.bias is None else read(linear.bias))


def layer_norm_of(name: str, norm: Norm) -> LayerNorm:
    """Return a layer norm as the operator of a node.

    Raises
    ------
    UnsupportedOperatorError
        It is another norm, which has to be folded first.
    """
    if not isinstance(norm, GroupedLayerNorm):
        # its fixed scale and shift belong into the weights; folded here, the graph would round unlike the model
        raise UnsupportedOperatorError(
            f"{name} is a {type(norm).__name__}, which NIR has no node for; fold it into the weights first: "
            "spikebert fold CHECKPOINT -o FOLDED"
        )
    return LayerNorm(copy_weight(norm.weight), copy_weight(norm.bias), float(norm.eps), norm.groups)


def neuron_of(named: NamedNeuron, features: int) -> Operator:
    """Return a layer of neurons as an operator.

    Raises
    ------
    UnsupportedOperatorError
        They start at a membrane potential other than 0.
    """
    if isinstance(named.neuron, HeavisideModule):
        return Heaviside(np.zeros(features), named.neuron.fire_on_equal)
    parameters = named.neuron.parameters_of_neuron
    if parameters.initial_membrane_potential != 0:
        raise UnsupportedOperatorError(
            f"{named.name}: starts at a membrane potential of {parameters.initial_membrane_potential}; NIR and Lava "
            "have no place for that, only for 0"
        )
    return LeakyIntegrateAndFire(
        beta=np.full(features, parameters.beta),
        tau=np.full(features, parameters.tau),
        threshold=np.full(features, parameters.threshold),
        reset=parameters.reset,
        decay_input=parameters.decay_input,
        fire_on_equal=parameters.fire_on_equal,
    )

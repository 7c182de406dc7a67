"""Training with what the chip will do to a model: int8 weights and integer decay in the forward pass.

Weights are rounded to 8 bits on the scale that ``export.quantize`` takes (the largest weight of a matrix, or of a norm
group, is 127), and gradients pass straight through the rounding. Potentials are whole numbers with `FRACTION_BITS`
fraction bits, decays have 12 bits, and what decays is cut off towards zero. Both are lava-dl SLAYER's arithmetic
(``slayer.neuron.cuba.Neuron.quantize_8bit``, ``slayer.neuron.dynamics.leaky_integrator``), which the tests compare them
with. Baked into the model, the weights are such that quantizing its graph finds the very same whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spikebert.errors import ConfigurationError
from spikebert.neuron import LOIHI_DECAY_UNITY, NeuronParameters, SpikingNeuron

WEIGHT_MIN, WEIGHT_MAX = -128, 127
FRACTION_BITS = 15
"""Of potentials: 9 of the activation, as `export.quantize` gives a layer norm of usual size, and the chip's 6."""
POTENTIAL_MAX = (1 << 23) - 1


class _RoundThrough(torch.autograd.Function):
    """Rounding, through which gradients pass as if it were not there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def weight_scale(weights: Sequence[Tensor], groups: int = 1) -> Tensor:
    """Return the scale of each row, ``(rows, 1)``: the largest weight of its group, in any of `weights`, is 127 of it.

    Parameters
    ----------
    weights : sequence of Tensor
        Matrices ``(rows, columns)`` on one scale.
    groups : int
        Equal parts of the rows, each with a scale of its own.
    """
    largest = torch.stack([w.detach().abs().unflatten(0, (groups, -1)).amax((1, 2)) for w in weights]).amax(0)
    tiny = torch.finfo(largest.dtype).tiny
    return (largest / WEIGHT_MAX).clamp_min(tiny).repeat_interleave(weights[0].shape[0] // groups)[:, None]


def quantize_weight(weight: Tensor, scale: Tensor | float) -> Tensor:
    """Return `weight` rounded to multiples of `scale` from -128 to 127; gradients pass straight through."""
    return _RoundThrough.apply(weight / scale).clamp(WEIGHT_MIN, WEIGHT_MAX) * scale


class FakeQuantizedWeight(nn.Module):
    """Parametrization of a weight matrix: what the forward pass sees is rounded to 8 bits.

    Parameters
    ----------
    groups : int
        See `weight_scale`.
    """

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight."""
        return quantize_weight(weight, weight_scale([weight], self.groups))


def integer_recurrence(current: Tensor, neuron: NeuronParameters, fraction_bits: int = FRACTION_BITS) -> tuple:
    """Return spikes and tested potentials ``(T, ...)`` of neurons that compute in whole numbers, as the chip does.

    Currents and threshold are rounded to `fraction_bits`, the decay to 12 bits; ``v (4096 - decay) / 4096`` is cut off
    towards zero; potentials saturate at 24 bits. What is returned is in the units of the threshold again.
    """
    scale = float(1 << fraction_bits)
    keep = round(neuron.decay * LOIHI_DECAY_UNITY) / LOIHI_DECAY_UNITY
    threshold = round(neuron.threshold * scale)
    charge = torch.round(current.double() * (scale / neuron.tau if neuron.decay_input else scale))
    fires = torch.ge if neuron.fire_on_equal else torch.gt
    spikes, potentials = torch.empty_like(current), torch.empty_like(current)
    potential, fired = torch.zeros_like(charge[0]), torch.zeros_like(charge[0])
    for step in range(len(charge)):
        potential = (potential * keep).trunc_().add_(charge[step])
        if neuron.reset == "subtract":
            potential.sub_(fired, alpha=threshold)
        potential.clamp_(-POTENTIAL_MAX, POTENTIAL_MAX)
        potentials[step] = potential / scale
        fires(potential, threshold, out=fired)
        spikes[step] = fired
        if neuron.reset == "zero":
            potential.mul_(1 - fired)
    return spikes, potentials


class FakeQuantization:
    """A model in training for integers; `bake` ends it.

    Attributes
    ----------
    linears, tables : list of nn.Module
        Linear layers, whose weights are rounded in the forward pass, and embeddings, whose looked-up rows are: the
        tables themselves stay plain parameters, so that their gradients may stay sparse.
    """

    def __init__(self, model: nn.Module, fraction_bits: int = FRACTION_BITS) -> None:
        self.linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        neurons = [module for module in model.modules() if isinstance(module, SpikingNeuron)]
        if any(neuron.parameters_of_neuron.initial_membrane_potential for neuron in neurons):
            raise ConfigurationError(
                "neurons that start at another potential than 0 have no place on the chip; set "
                "initial_membrane_potential to 0 to train for integers"
            )
        groups = {id(part.affine): getattr(part.norm, "groups", 1) for part in model.modules() if _is_projection(part)}
        for linear in self.linears:
            parametrize.register_parametrization(linear, "weight", FakeQuantizedWeight(groups.get(id(linear), 1)))
        self._hooks = [table.register_forward_hook(self._round_rows) for table in self.tables]
        self._neurons = [(neuron, neuron.recurrence) for neuron in neurons]
        for neuron in neurons:
            neuron.recurrence = partial(integer_recurrence, fraction_bits=fraction_bits)

    def _round_rows(self, table: nn.Module, ids: Any, rows: Tensor) -> Tensor:
        return quantize_weight(rows, self._table_scale())

    def _table_scale(self) -> Tensor:
        """Return the one scale of all tables: words and positions are added."""
        return torch.stack([table.weight.detach().abs().amax() for table in self.tables]).amax() / WEIGHT_MAX

    @torch.no_grad()
    def bake(self) -> None:
        """Leave the rounded weights in the model, and all else as it was before."""
        for hook in self._hooks:
            hook.remove()
        scale = self._table_scale() if self.tables else 1.0
        for table in self.tables:
            table.weight.copy_(quantize_weight(table.weight, scale))
        for linear in self.linears:
            weight = linear.weight.clone()
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
            linear.weight.copy_(weight)
        for neuron, recurrence in self._neurons:
            neuron.recurrence = recurrence


def _is_projection(module: nn.Module) -> bool:
    return isinstance(getattr(module, "affine", None), nn.Linear) and hasattr(module, "norm")


def fake_quantize(model: nn.Module, fraction_bits: int = FRACTION_BITS) -> FakeQuantization:
    """Let a model compute as the chip will, in training and evaluation, until the result's `bake` is called.

    Parameters
    ----------
    model : nn.Module
        Any model of Linear layers, embeddings and `SpikingNeuron`; its parameters stay the ones that are trained.
    fraction_bits : int
        Of the potentials.

    Raises
    ------
    ConfigurationError
        A neuron starts at another potential than 0.
    """
    return FakeQuantization(model, fraction_bits)

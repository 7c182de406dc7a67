"""Training with what the chip will do to a model: int8 weights and integer decay in the forward pass.

Weights are rounded to 8 bits on the scale that ``export.quantize`` takes (the largest weight of a matrix, or of a norm
group, is 127), and gradients pass straight through the rounding. Potentials are whole numbers with `FRACTION_BITS`
fraction bits, decays have 12 bits, and what decays is cut off towards zero. Both are lava-dl SLAYER's arithmetic
(``slayer.neuron.cuba.Neuron.quantize_8bit``, ``slayer.neuron.dynamics.leaky_integrator``), which the tests compare them
with. Baked into the model, the weights are such that quantizing its graph finds the very same whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        self.sharing: list[nn.Module] = []

    def share_scale(self, modules: Sequence[nn.Module]) -> None:
        """Take one scale for the weights of all `modules`, which must be parametrized and hold one group each."""
        object.__setattr__(self, "sharing", list(modules))  # no child modules: their weights are not this one's

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight."""
        shared = [module.parametrizations.weight.original for module in self.sharing]  # type: ignore[union-attr]
        scale = weight_scale(shared) if shared else weight_scale([weight], self.groups)
        return quantize_weight(weight, scale[0] if shared else scale)


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
    modules : list of nn.Module
        Linear layers and embeddings whose weights are rounded in the forward pass.
    """

    def __init__(self, model: nn.Module, fraction_bits: int = FRACTION_BITS) -> None:
        self.modules: list[nn.Module] = []
        self._neurons: list[tuple[SpikingNeuron, Any]] = []
        for module in model.modules():
            if isinstance(module, SpikingNeuron):
                if module.parameters_of_neuron.initial_membrane_potential:
                    raise ConfigurationError(
                        "neurons that start at another potential than 0 have no place on the chip; "
                        "set initial_membrane_potential to 0 to train for integers"
                    )
                self._neurons.append((module, module.recurrence))
                module.recurrence = lambda current, neuron: integer_recurrence(current, neuron, fraction_bits)
            elif isinstance(module, nn.Linear | nn.Embedding):
                self.modules.append(module)
        groups = {id(part.affine): getattr(part.norm, "groups", 1) for part in model.modules() if _is_projection(part)}
        rounding = {}
        for module in self.modules:
            rounding[id(module)] = FakeQuantizedWeight(groups.get(id(module), 1))
            parametrize.register_parametrization(module, "weight", rounding[id(module)])
        tables = [module for module in self.modules if isinstance(module, nn.Embedding)]
        for table in tables:  # words and positions are added, so they stand on one scale
            rounding[id(table)].share_scale(tables)

    @torch.no_grad()
    def bake(self) -> None:
        """Leave the rounded weights in the model, and the neurons as they were before."""
        rounded = [module.weight.clone() for module in self.modules]
        for module, weight in zip(self.modules, rounded, strict=True):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight.copy_(weight)  # type: ignore[operator, union-attr]
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

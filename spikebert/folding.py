"""What becomes of norms beside training: folded into weights, set by data, or changed for others in a trained model.

Nothing here knows a model: a family says where its norms stand, see ``spikebert.families``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikebert.choices import BATCH, NONE, POWER
from spikebert.errors import ConfigurationError
from spikebert.norms import MOMENTUM, Norm, StatisticsNorm

Weights = dict[str, Tensor]


@torch.no_grad()
def fold_norms(
    model: nn.Module,
    weights: Weights,
    behind: Mapping[str, str] | None = None,
    tables: Mapping[str, Sequence[str]] | None = None,
) -> Weights:
    """Return the weights with which a model without norms does what `model` does in evaluation.

    Each norm's scale and shift go into weights and biases: of the affine layer before it, of one behind it, or into
    embedding tables that are added to become its input.

    What is promised: the two are equal in exact arithmetic. In floating point a folded weight is rounded once, so
    currents differ by the rounding of their type, and a spike differs only where a potential lies so close to
    threshold. In float64, and in float32 on text, logits agree to rounding and predictions are the same.

    Parameters
    ----------
    model : nn.Module
        Its norms are all `StatisticsNorm`, whose scale and shift are fixed. One called ``X.norm`` reads ``X.affine``.
    weights : dict of str to Tensor
        The model's own, those of norms left out; changed.
    behind : mapping of str to str, optional
        The affine layer that reads a norm, where nothing before it can take its scale: only a mean may stand between.
    tables : mapping of str to sequence of str, optional
        The embedding tables whose rows are added to become a norm's input; the first has a row for every token, and
        takes the shift.
    """
    behind, tables = behind or {}, tables or {}
    for name, module in model.named_modules():
        if not isinstance(module, StatisticsNorm):
            continue
        scale, shift = module.scale_and_shift()
        if name in behind:
            _fold_into_columns(weights, behind[name], scale, shift)
        elif name in tables:
            _fold_into_tables(weights, tables[name], scale, shift)
        else:
            _fold_into_rows(weights, f"{name.rpartition('.')[0]}.affine", scale, shift)
    return weights


def _fold_into_rows(weights: Weights, affine: str, scale: Tensor, shift: Tensor) -> None:
    weight, bias = weights[f"{affine}.weight"], weights[f"{affine}.bias"]
    weights[f"{affine}.weight"] = (scale.unsqueeze(-1) * weight.double()).to(weight.dtype)
    weights[f"{affine}.bias"] = (scale * bias.double() + shift).to(bias.dtype)


def _fold_into_columns(weights: Weights, affine: str, scale: Tensor, shift: Tensor) -> None:
    weight, bias = weights[f"{affine}.weight"], weights[f"{affine}.bias"]
    weights[f"{affine}.weight"] = (weight.double() * scale).to(weight.dtype)
    weights[f"{affine}.bias"] = (bias.double() + weight.double() @ shift).to(bias.dtype)


def _fold_into_tables(weights: Weights, tables: Sequence[str], scale: Tensor, shift: Tensor) -> None:
    for number, table in enumerate(tables):
        rows = weights[f"{table}.weight"].double() * scale
        weights[f"{table}.weight"] = (rows if number else rows + shift).to(weights[f"{table}.weight"].dtype)


@torch.no_grad()
def calibrate_norms(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> None:
    """Set the running statistics of every norm to their mean over some batches, as training would see them.

    A fresh model's running statistics say nothing yet; with these, the shifts of power norms are right from the first
    step, and the model can be scored before it has learnt anything.

    Parameters
    ----------
    model : nn.Module
        Changed in place; left in the mode it was in.
    batches : iterable of dict
        What the model is called with.
    """
    norms = [module for module in model.modules() if isinstance(module, StatisticsNorm)]
    if not norms:
        return
    was_training = model.training
    model.train()
    for number, batch in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / number  # the mean of all so far
        model(**batch)
    for norm in norms:
        norm.momentum = MOMENTUM
    model.train(was_training)


@torch.no_grad()
def change_norms(model: PreTrainedModel, kind: str, batches: Iterable[dict[str, Tensor]]) -> PreTrainedModel:
    """Return a model with the same weights and other norms, a start for distilling `model` into it.

    Each new norm gives every feature the mean and the variance that the old one gave it on the batches, so that neurons
    fire about as often as before.

    Parameters
    ----------
    model : PreTrainedModel
        Its configuration names its norms as ``norm``, of any kind but ``none``; not changed.
    kind : {"batch", "power"}
        The new norms.
    batches : iterable of dict
        What the model is called with, some hundred sentences.

    Raises
    ------
    ConfigurationError
        Another kind is asked for, or the model has no norms.
    """
    if kind not in (BATCH, POWER):
        raise ConfigurationError(f"norms can be changed to batch or power, not to {kind!r}")
    if model.config.norm == NONE:
        raise ConfigurationError(
            "this model has no norms that could be changed (norm is none); start from one that has"
        )
    moments = _moments(model, batches)
    config: Any = copy.deepcopy(model.config)
    config.norm = kind
    changed: Any = type(model)(config)
    changed.to(model.device, model.dtype)
    same = {name: value for name, value in model.state_dict().items() if "norm." not in name}
    changed.load_state_dict(same, strict=False)
    for name, module in changed.named_modules():
        if isinstance(module, StatisticsNorm):
            (mean, variance), (wanted_mean, wanted_variance) = moments[name]
            module.set_statistics(mean, variance)
            scale, _ = module.scale_and_shift()  # with a weight of 1: what the statistics alone do
            weight = (wanted_variance.sqrt() / (scale * variance.sqrt()).clamp_min(module.eps)).to(module.weight.dtype)
            module.weight.copy_(weight)
            scale, shift = module.scale_and_shift()
            module.bias.add_((wanted_mean - (scale * mean + shift)).to(module.bias.dtype))
    return changed.eval()


def _moments(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, Any]:
    """Return mean and variance, as float64 ``(features,)``, of every norm's input and output over real tokens."""
    sums: dict[str, list[Tensor]] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
            token_mask = given[1] if len(given) > 1 else None
            values = []
            for x in (given[0], made):
                rows = StatisticsNorm.real_rows(x, token_mask)[0].double()
                values += [rows.sum(0), rows.square().sum(0), torch.tensor(float(len(rows)))]
            sums[name] = [a + b for a, b in zip(sums[name], values, strict=True)] if name in sums else values

        return hook

    hooks = [m.register_forward_hook(hook_of(name)) for name, m in model.named_modules() if isinstance(m, Norm)]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**batch)
    finally:
        for each in hooks:
            each.remove()
        model.train(was_training)

    def moments(total: Tensor, square: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        mean = total / count
        return mean, (square / count - mean.square()).clamp_min(0)

    return {name: (moments(*values[:3]), moments(*values[3:])) for name, values in sums.items()}
